"""The demonstration: EMD^rho and its gradient on the ImageNet tree, checked and timed."""

import argparse
import difflib
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

import fastemd
from fastemd import commands
from fastemd.demo import COMMANDS
from fastemd.demo.baselines import (
    EMD_BASELINES,
    Run,
    ancestor_matrix,
    available,
    emd_by_products,
    measure,
)

Array = NDArray[Any]
FORMATS = (".png", ".pdf", ".svg")
POWERS = (1, 2)
TOLERANCE = 1e-6  # relative, for float32 results against a float64 computation

NEXT_STEPS = """
Next:
  train    loss = fastemd.torch.EMDLoss(tree.scaled(mean_distance=3), rho=1, cross_entropy=1)
  paper    python -m fastemd table1 --quick
  UniFrac  python -m fastemd unifrac --help"""


def compile_kernels(tree: fastemd.Tree, p: Array, q: Array) -> None:
    """Compile the kernels of the demonstration; `warm_up` would compile others, too."""
    print("Compiling (once: kernels are kept on disk)")
    calls: dict[str, Run] = {
        f"emd_value_and_grad, rho = {rho}": partial(fastemd.emd_value_and_grad, p, q, tree, rho)
        for rho in POWERS
    }
    calls["emd_grad of a row"] = partial(fastemd.emd_grad, p[0], q[0], tree, 2)
    calls["emd_flow of a row"] = partial(fastemd.emd_flow, p[0], q[0], tree)
    for name, call in calls.items():
        print(f"  {name:28}", end="", flush=True)
        start = time.perf_counter()
        call()
        print(f"{time.perf_counter() - start:5.1f} s")
    print()


def check(tree: fastemd.Tree, p: Array, targets: dict[str, Array]) -> bool:
    """Print EMD^1 and EMD^2 and their errors; return whether all errors are small."""
    passed = True
    ancestors, length = ancestor_matrix(tree)
    print(f"{'':8}{'targets':10}{'mean EMD':>12}{'value error':>14}{'grad error':>14}")
    for rho in POWERS:
        for kind, q in targets.items():
            value, grad = fastemd.emd_value_and_grad(p, q, tree, rho)
            doubles = p.astype(np.float64), q.astype(np.float64)
            true_value, true_grad = emd_by_products(ancestors, length, *doubles, rho)
            value_error = np.max(np.abs(value - true_value) / true_value)
            grad_error = np.max(np.abs(grad - true_grad)) / np.max(np.abs(true_grad))
            small = bool(value_error <= TOLERANCE and grad_error <= TOLERANCE)
            passed &= small
            print(
                f"EMD^{rho:<4}{kind:10}{value.mean():12.4f}{value_error:14.1e}{grad_error:14.1e}"
                f"  {'ok' if small else f'FAILED, expected at most {TOLERANCE:g}'}"
            )
    return passed


def draw(tree: fastemd.Tree, p: Array, target: int, path: Path, n_bins: int = 30) -> None:
    """Draw flow and gradient of one sample, on the bins where p and q differ most."""
    from matplotlib.figure import Figure

    from fastemd import plotting

    q = np.zeros_like(p)
    q[target] = 1.0
    columns = np.argsort(-np.abs(p - q))[:n_bins]
    names = dict(fastemd.datasets.imagenet_graph().nodes(data="name"))
    figure = Figure(figsize=(17, 7), layout="constrained")
    left, right = figure.subplots(1, 2)
    plotting.plot_flow(p, q, tree, columns=columns, labels=names, ax=left)
    plotting.plot_gradient(p, q, tree, 2, columns=columns, labels=names, ax=right)
    left.set_title(f"flow from a prediction to the class {names[tree.bins[target]]!r}")
    right.set_title("gradient of EMD^2: descent moves mass from red to blue")
    figure.savefig(path, dpi=110)


def _listed(names: tuple[str, ...]) -> str:
    return " and ".join(f"python -m fastemd {name}" for name in names)


def parse_options(arguments: list[str]) -> argparse.Namespace:
    """Parse and validate the options of the demonstration."""
    parser = argparse.ArgumentParser(
        prog="python -m fastemd",
        description=__doc__,
        epilog=f"Commands, whose options --help lists: {_listed(COMMANDS)} reproduce the paper; "
        f"{_listed(commands.COMMANDS)} compute UniFrac between samples in files.",
    )
    parser.add_argument("--version", action="version", version=f"fastemd {fastemd.__version__}")
    parser.add_argument(
        "--picture", type=Path, default=Path("fastemd-demo.png"), help="where to save the picture"
    )
    parser.add_argument("--batch", type=int, default=512, help="rows in the batch (512)")
    parser.add_argument("--repeats", type=int, default=30, help="timed runs of each (30)")
    parser.add_argument("--seed", type=int, default=0, help="of the random predictions (0)")
    if arguments and not arguments[0].startswith("-"):
        known = COMMANDS + commands.COMMANDS
        nearest = difflib.get_close_matches(arguments[0].lower(), known, n=1)
        parser.error(
            f"unknown command {arguments[0]!r}; expected one of {', '.join(known)}"
            + "".join(f"; did you mean {name!r}?" for name in nearest)
        )
    options = parser.parse_args(arguments)
    for name in ("batch", "repeats"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if options.seed < 0:
        parser.error("--seed must be at least 0")
    if options.picture.suffix.lower() not in FORMATS:
        parser.error(f"--picture must end in one of {' '.join(FORMATS)}")
    if not options.picture.absolute().parent.is_dir():
        parser.error(f"--picture: there is no folder {options.picture.absolute().parent}")
    return options


def main(arguments: list[str]) -> int:
    """Run the demonstration; return the process's exit code."""
    options = parse_options(arguments)
    rng = np.random.default_rng(options.seed)
    tree = fastemd.datasets.imagenet_tree()
    print(f"fastemd {fastemd.__version__}: Earth Mover's Distances on the ImageNet tree\n")
    print(f"{tree}\n  the 1000 ILSVRC2012 classes under WordNet; every edge has length 1\n")

    shape = options.batch, tree.n_bins
    p = softmax(3.0 * rng.standard_normal(shape), axis=-1).astype(np.float32)
    labels = rng.integers(tree.n_bins, size=options.batch)
    one_hot = np.eye(tree.n_bins, dtype=np.float32)[labels]
    soft = softmax(3.0 * rng.standard_normal(shape), axis=-1).astype(np.float32)

    compile_kernels(tree, p, soft)

    print(f"{options.batch} random softmax predictions, float32; errors against a dense float64")
    print("computation, relative (of the gradient: to its largest entry)\n")
    passed = check(tree, p, {"one-hot": one_hot, "soft": soft})

    print("\nLoading the other implementations ...", flush=True)
    grad = np.empty_like(p)
    runs: dict[str, Run] = {"np.subtract(p, q)": lambda: np.subtract(p, soft, out=grad)}
    runs |= available(EMD_BASELINES, tree, p, soft, 2)

    print(f"\nTime for EMD^2 and its gradient, {numba.get_num_threads()} threads, median")
    print(f"[quartiles] of {options.repeats} runs\n", flush=True)
    seconds = measure(runs, options.repeats)
    unit = np.median(seconds["np.subtract(p, q)"])
    for name, values in seconds.items():
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
        print(
            f"  {name:24}{middle * 1e3:9.3f} ms  [{low * 1e3:.3f}, {high * 1e3:.3f}]"
            f"{middle / unit:9.1f} x"
        )

    print("\nDrawing one sample ...", flush=True)
    draw(tree, p[0], int(labels[0]), options.picture)
    print(f"Picture of its flow and gradient: {options.picture}")
    if not passed:
        print("\nA check FAILED, see above.", file=sys.stderr)
        return 1
    print(NEXT_STEPS)
    return 0
