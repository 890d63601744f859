"""Print the table of times on a CUDA device.

    python -m benchmarks.gpu

Inputs are float32 tensors of torch on the device, for the ImageNet tree and a chain of 1000 bins.
First, results are compared with those of the CPU. A time on the device is that of a replay of a
captured CUDA graph, between two events, without launches from Python; the time of a call ends when
it returns to Python. Figures are medians of interleaved rounds. ``--device cpu`` runs the same on
the CPU, by the clock, to test the script.
"""

import argparse
import time

import numpy as np
import torch

import fastemd
import fastemd.torch
from benchmarks.common import histograms, logits

ROUNDS = 30
PAPER_SECONDS = 25e-3  # EMD^2 of 512 rows on the ImageNet tree, on the paper's GPU


def capture(run):
    """Capture a run as a CUDA graph; return its replay."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def event_seconds(run):
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return 1e-3 * begin.elapsed_time(end)


def clock_seconds(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def call_seconds(run):
    """Time a call until it returns to Python, with the device idle before."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock_seconds(run)


def medians(runs, measure):
    times = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            times[name].append(measure(run))
    return {name: float(np.median(values)) for name, values in times.items()}


def training_step(loss, x):
    """Return a run of forward and backward."""

    def run():
        x.grad = None
        loss(x).backward()

    return run


def cumsum_loss(target):
    """Return the usual loss in torch for a chain: EMD^2 of a softmax."""
    return lambda x: (x.softmax(-1) - target).cumsum(-1)[:, :-1].square().sum(-1).mean()


def runs_by_name(device, n_rows):
    """Return the runs to time."""
    tree, chain = fastemd.datasets.imagenet_tree(), fastemd.Chain(1000)
    p, q = (torch.from_numpy(histograms((n_rows, 1000), np.float32, i)).to(device) for i in (0, 1))
    x, labels = (torch.from_numpy(array).to(device) for array in logits((n_rows, 1000), np.float32))
    out, value = torch.empty_like(p), p.new_empty(n_rows)
    x.requires_grad_()
    fused = fastemd.torch.EMDLoss(tree, cross_entropy=1.0)
    detached = x.detach()
    keywords = {"out": (value, out), "validate": False if device == "cuda" else None}
    return {
        "torch.sub": lambda: torch.sub(p, q, out=out),
        "tree: value and gradient": lambda: fastemd.emd_value_and_grad(p, q, tree, 2, **keywords),
        "chain: value and gradient": lambda: fastemd.emd_value_and_grad(p, q, chain, 2, **keywords),
        "tree: loss with CE and gradient": lambda: fastemd.emd_loss(
            detached, labels, tree, cross_entropy=1.0
        ),
        "torch: cross entropy, both ways": training_step(
            lambda x: torch.nn.functional.cross_entropy(x, labels), x
        ),
        "EMDLoss with CE, both ways": training_step(lambda x: fused(x, labels), x),
        "chain: EMDLoss, both ways": training_step(
            lambda x: fastemd.torch.EMDLoss(chain)(x, labels), x
        ),
        "chain: cumsum in torch, both ways": training_step(cumsum_loss(q), x),
    }


def check(device):
    """Compare results with those of the CPU."""
    p, q = (histograms((64, 1000), np.float32, i) for i in (0, 1))
    for space in (fastemd.datasets.imagenet_tree(), fastemd.Chain(1000)):
        tensors = (torch.from_numpy(x).to(device) for x in (p, q))
        results = fastemd.emd_value_and_grad(*tensors, space, 2)
        for result, ref in zip(results, fastemd.emd_value_and_grad(p, q, space, 2), strict=True):
            np.testing.assert_allclose(result.cpu().numpy(), ref, rtol=3e-7, atol=1e-7)
    fastemd.synchronize()


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rows", type=int, nargs="+", default=[512, 8192, 65536])
    arguments = parser.parse_args()
    device = arguments.device
    check(device)
    if device == "cuda":
        print(torch.cuda.get_device_name(), "CUDA", torch.version.cuda, end=", ")
    print("torch", torch.__version__)
    summary = []
    for n_rows in arguments.rows:
        runs = runs_by_name(device, n_rows)
        for run in runs.values():
            run()  # compile, allocate
        calls = medians(runs, call_seconds)
        if device == "cuda":
            replays = {name: capture(run) for name, run in runs.items()}
            times = medians(replays, event_seconds)
        else:
            times = medians(runs, clock_seconds)
        print(f"\n| {n_rows} rows | us | of torch.sub | call, us |\n| --- | --: | --: | --: |")
        for name, seconds in times.items():
            ratio = seconds / times["torch.sub"]
            print(f"| {name} | {1e6 * seconds:.1f} | {ratio:.2f} | {1e6 * calls[name]:.1f} |")
        if n_rows == 512:
            value = PAPER_SECONDS / times["tree: value and gradient"]
            print(f"\nThe paper's 25 ms over the tree's value and gradient: {value:.0f}")
        seconds, subtraction = times["tree: value and gradient"], times["torch.sub"]
        ratio = seconds / subtraction
        summary.append(f"{n_rows} rows {1e6 * seconds:.1f} us, {ratio:.2f} of torch.sub")
    print(f"\ntree, value and gradient: {'; '.join(summary)}")


if __name__ == "__main__":
    main()
