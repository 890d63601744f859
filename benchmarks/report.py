"""Print the tables of docs/performance.md.

    python -m benchmarks.report [table ...]

The runs of a table are interleaved in one process, so that machine noise affects all of them
equally. Figures are medians, and ratios to a simple operation of the same table:
``np.subtract(p, q, out=g)`` on the same arrays, or ``ndarray.fill``.
"""

import os
import platform
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numba
import numpy as np

import fastemd
from benchmarks.common import histograms, logits, random_tree, timed
from benchmarks.frameworks import binned_regression, cross_entropy, small_calls, training
from fastemd.demo.baselines import EMD_BASELINES, available
from fastemd.kernels.cpu import driver

SINGLE, DOUBLE = np.dtype(np.float32), np.dtype(np.float64)


def machine():
    """Describe the machine."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            name = next(line.split(":")[1].strip() for line in info if "model name" in line)
    except (OSError, StopIteration):
        name = platform.processor() or "unknown processor"
    return (
        f"{name}, {numba.get_num_threads()} threads, {platform.system()}, Python "
        f"{platform.python_version()}, numpy {np.__version__}, numba {numba.__version__}"
    )


def row(*cells):
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def header(*cells):
    print()
    row(*cells)
    row(*["---"] + ["--:"] * (len(cells) - 1))


def ratios(times, unit, *names):
    return [
        f"{times[n][0] / times[unit][0]:.2f} ± {times[n][1] / times[unit][0]:.2f}" for n in names
    ]


def milliseconds(time):
    return f"{time[0] * 1e3:.3f} ms"


def spaces():
    return {"ImageNet tree": fastemd.datasets.imagenet_tree(), "chain of 1000": fastemd.Chain(1000)}


def problem(space, batch, dtype=SINGLE):
    return tuple(histograms((batch, space.n_bins), dtype, seed) for seed in (0, 1))


def subtraction(p, q):
    g = np.empty_like(p)
    return lambda: np.subtract(p, q, out=g)


def unchecked(space, p, q, rho):
    """Return a run of value and gradient, unchecked, into existing arrays."""
    return EMD_BASELINES["fastemd"](space, p, q, rho)


def against_subtraction():
    """Compare value and gradient with np.subtract: into `out` or new arrays, checked or not."""
    header(
        "space",
        "type",
        "batch",
        "np.subtract",
        "rho = 1",
        "2",
        "3.7",
        "2, new",
        "2, new, checked",
        "2, checked",
    )
    for dtype in (SINGLE, DOUBLE):
        for name, space in spaces().items():
            for batch in (512, 8192):
                p, q = problem(space, batch, dtype)
                out = np.empty(batch, dtype), np.empty_like(p)
                call = partial(fastemd.emd_value_and_grad, p, q, space, 2)
                runs = {"subtract": subtraction(p, q)}
                runs |= {rho: unchecked(space, p, q, rho) for rho in (1, 2, 3.7)}
                runs["new"] = partial(call, validate=False)
                runs |= {"new, checked": call, "checked": partial(call, out=out)}
                times = timed(runs)
                cells = ratios(times, "subtract", *list(runs)[1:])
                row(name, dtype, batch, milliseconds(times["subtract"]), *cells)


def chains():
    """Compare chains of 8e6 numbers with the usual loss in torch, forward and backward."""
    header("bins", "batch", "np.subtract", "fastemd", "torch", "torch / fastemd")
    for n_bins in (64, 100, 1000, 1024):
        space = fastemd.Chain(n_bins)
        p, q = problem(space, 8_000_000 // n_bins)
        runs = {"subtract": subtraction(p, q), "fastemd": unchecked(space, p, q, 2)}
        if (loss := cumsum_loss(p, q)) is not None:
            runs["torch"] = loss
        times = timed(runs, 2.0)
        cells = ratios(times, "subtract", *list(runs)[1:])
        if "torch" in times:
            cells.append(f"{times['torch'][0] / times['fastemd'][0]:.1f}")
        row(n_bins, len(p), milliseconds(times["subtract"]), *cells)


def cumsum_loss(p, q):
    """Return the usual loss in torch, without the projection that the baseline computes."""
    try:
        import torch
    except ImportError:
        return None
    x, target = torch.from_numpy(p).requires_grad_(), torch.from_numpy(q)

    def run():
        x.grad = None
        ((x.cumsum(-1) - target.cumsum(-1)) ** 2).sum().backward()

    return run


def strides():
    """Compare rows of 1024 bins, whose lanes share cache sets, with 1000; float64 with float32."""
    header("space", "batch", "1024 / 1000 bins, per bin", "float64 / float32")
    tree = fastemd.datasets.imagenet_tree()
    graph = tree.to_networkx()
    inner = [node for node in graph if graph.out_degree(node)]
    graph.add_edges_from([(node, ("more", node)) for node in inner[:24]], weight=1.0)
    wider = {
        "ImageNet tree": fastemd.Tree.from_networkx(graph),
        "chain of 1000": fastemd.Chain(1024),
    }
    for name, space in spaces().items():
        for batch in (512, 8192):
            runs = {1000: unchecked(space, *problem(space, batch), 2)}
            runs[1024] = unchecked(wider[name], *problem(wider[name], batch), 2)
            runs["float64"] = unchecked(space, *problem(space, batch, DOUBLE), 2)
            times = timed(runs)
            per_bin = times[1024][0] / times[1000][0] * 1000 / 1024
            row(name, batch, f"{per_bin:.2f}", f"{times['float64'][0] / times[1000][0]:.2f}")


def functions():
    """Compare all functions with value and gradient."""
    header("space", "batch", "rho", "value", "gradient", "diagonal", "product", "flow", "embedding")
    for name, space in spaces().items():
        for batch in (512, 8192):
            p, q = problem(space, batch)
            v = histograms(p.shape, SINGLE, 2)
            value, grad = np.empty(batch, SINGLE), np.empty_like(p)
            edges = np.empty((batch, space.n_nodes - 1), SINGLE)
            for rho in (2, 3.7):
                runs = {
                    "both": partial(
                        fastemd.emd_value_and_grad, p, q, space, rho, out=(value, grad)
                    ),
                    "value": partial(fastemd.emd, p, q, space, rho, out=value),
                    "grad": partial(fastemd.emd_grad, p, q, space, rho, out=grad),
                    "diag": partial(fastemd.emd_hessian_diag, p, q, space, rho, out=grad),
                    "hvp": partial(fastemd.emd_hvp, p, q, v, space, rho, out=grad),
                    "flow": partial(fastemd.emd_flow, p, q, space, out=edges),
                    "embed": partial(fastemd.embed, p, space, rho, out=edges),
                }
                runs = {key: partial(run, validate=False) for key, run in runs.items()}
                row(name, batch, rho, *ratios(timed(runs), "both", *list(runs)[1:]))


def hessians():
    """Compare the dense Hessian with filling an array of its size."""
    header("space", "type", "matrices", "ndarray.fill", "Hessian", "checked")
    for name, space in {**spaces(), "chain of 64": fastemd.Chain(64)}.items():
        for batch in (1, 16) if space.n_bins == 1000 else (4096,):
            for dtype in (SINGLE, DOUBLE):
                p, q = problem(space, batch, dtype)
                out = np.empty((batch, space.n_bins, space.n_bins), dtype)
                call = partial(fastemd.emd_hessian, p, q, space, 2, out=out)
                runs = {"fill": partial(out.fill, 1.0)}
                runs |= {"Hessian": partial(call, validate=False), "checked": call}
                times = timed(runs)
                cells = ratios(times, "fill", "Hessian", "checked")
                row(name, dtype, batch, milliseconds(times["fill"]), *cells)


def losses():
    """Compare EMD^2 plus cross entropy of logits with torch's cross entropy, with gradients."""
    header("space", "type", "batch", "torch", "labels", "histograms", "Hessian's diagonal")
    for name, space in spaces().items():
        for dtype in (SINGLE, DOUBLE):
            for batch in (512, 8192):
                x, target = logits((batch, space.n_bins), dtype)
                loss, (_, soft) = fastemd.emd_loss, problem(space, batch, dtype)
                runs = {"torch": cross_entropy(x, target)}
                runs["labels"] = partial(loss, x, target, space, cross_entropy=1.0)
                runs["histograms"] = partial(loss, x, soft, space, cross_entropy=1.0)
                diagonal = partial(fastemd.emd_loss_hessian_diag, cross_entropy=1.0)
                runs["diagonal"] = partial(diagonal, x, target, space)
                times = timed(runs)
                cells = ratios(times, "torch", "labels", "histograms", "diagonal")
                row(name, dtype, batch, milliseconds(times["torch"]), *cells)


def axes():
    """Compare losses of classes on axis 1, of classes on the last one, and of moved copies."""
    header("logits", "type", "torch", "classes on axis 1", "classes last", "moved by copies")
    chain = {n: fastemd.Chain(n) for n in (21, 150, 1000)}
    for shape in ((8, 21, 128, 128), (8, 150, 64, 64), (4, 1000, 32, 32), (8, 1000, 500)):
        space = chain[shape[1]]
        for dtype in (SINGLE, DOUBLE):
            last, target = logits((shape[0], *shape[2:], shape[1]), dtype)
            x = np.ascontiguousarray(np.moveaxis(last, -1, 1))
            loss = partial(fastemd.emd_loss, target=target, space=space, cross_entropy=1.0)
            runs = {"torch": cross_entropy(x, target), "axis 1": partial(loss, x, axis=1)}
            runs["last"] = partial(loss, last)
            runs["copies"] = partial(moved_by_copies, loss, x)
            times = timed(runs)
            cells = ratios(times, "torch", "axis 1", "last", "copies")
            row(shape, dtype, milliseconds(times["torch"]), *cells)


def moved_by_copies(loss, x):
    value, grad = loss(np.ascontiguousarray(np.moveaxis(x, 1, -1)))
    return value, np.ascontiguousarray(np.moveaxis(grad, -1, 1))


def options():
    """Compare the options of losses with the loss without them."""
    header("space", "target", "EMD^2 + CE", "class_weight", "label_smoothing", "root", "all")
    for name, space in spaces().items():
        x, labels = logits((8192, space.n_bins), SINGLE)
        weight = np.linspace(0.5, 2.0, space.n_bins)
        choices = {"class_weight": weight, "label_smoothing": 0.1, "root": True}
        for kind, target in (("labels", labels), ("histograms", problem(space, 8192)[1])):
            loss = partial(fastemd.emd_loss, x, target, space, cross_entropy=1.0)
            runs = {"none": loss, "all": partial(loss, **choices)}
            runs |= {option: partial(loss, **{option: value}) for option, value in choices.items()}
            times = timed(runs)
            row(name, kind, milliseconds(times["none"]), *ratios(times, "none", *choices, "all"))


def one_pair():
    """Time a call from Python with one pair, checked, into new arrays."""
    header("space", "type", "emd", "emd_value_and_grad", "unchecked")
    for name, space in {"chain of 10": fastemd.Chain(10), **spaces()}.items():
        for dtype in (SINGLE, DOUBLE):
            p, q = (a[0] for a in problem(space, 1, dtype))
            call = partial(fastemd.emd_value_and_grad, p, q, space, 2)
            runs = {"emd": partial(fastemd.emd, p, q, space, 2)}
            runs |= {"both": call, "unchecked": partial(call, validate=False)}
            times = timed(runs)
            row(name, dtype, *(f"{m * 1e6:.1f} ± {s * 1e6:.1f} us" for m, s in times.values()))


def threads():
    """Compare one thread with all, for small and large batches, and np.subtract with two."""
    header(
        "space", "batch", "numbers", "one thread / all threads", "np.subtract: one / two threads"
    )
    all_threads = numba.get_num_threads()
    pool = ThreadPoolExecutor(2)
    for name, space in {"chain of 32": fastemd.Chain(32), **spaces()}.items():
        for size in (8, 16, 32, 64, 512, 8192):
            batch = size * 1024 // space.n_bins if size < 512 else size * 1000 // space.n_bins
            p, q = problem(space, batch)
            g, half, run = np.empty_like(p), batch // 2, unchecked(space, p, q, 2)
            halves = [[a[part] for a in (p, q, g)] for part in (slice(half), slice(half, None))]
            runs = {
                "one": partial(with_threads, 1, run),
                "all": partial(with_threads, all_threads, run),
                "sub one": partial(np.subtract, p, q, g),
                "sub two": partial(both_halves, pool, halves),
            }
            t = timed(runs)
            scale = f"{t['one'][0] / t['all'][0]:.2f}", f"{t['sub one'][0] / t['sub two'][0]:.2f}"
            row(name, batch, p.size, *scale)


def with_threads(n_threads, run):
    before = numba.get_num_threads(), driver.ELEMENTS_PER_THREAD
    driver.ELEMENTS_PER_THREAD = 1
    numba.set_num_threads(n_threads)
    run()
    n_threads, driver.ELEMENTS_PER_THREAD = before
    numba.set_num_threads(n_threads)


def both_halves(pool, halves):
    return list(pool.map(lambda arrays: np.subtract(*arrays), halves))


def baselines():
    """Compare other implementations with fastemd."""
    space, batch = fastemd.datasets.imagenet_tree(), 512
    p, q = problem(space, batch)
    header("ImageNet tree, batch of 512, float32, rho = 2", "time", "ratio to fastemd")
    times = timed({"np.subtract": subtraction(p, q), **available(EMD_BASELINES, space, p, q, 2)})
    unit = times["fastemd"][0]
    for name, (middle, spread) in times.items():
        row(name, f"{middle * 1e3:.3f} ± {spread * 1e3:.3f} ms", f"{middle / unit:.2f}")


def growth():
    """Time value and gradient on trees of growing size."""
    header("tree", "nodes", "batch", "time", "per node and row", "np.subtract, per bin and row")
    cases = [("ImageNet", fastemd.datasets.imagenet_tree(), batch) for batch in (16, 512, 8192)]
    cases += [("random", random_tree(10**k), 16) for k in (2, 3, 4, 5, 6)]
    cases += [("path", fastemd.Tree.from_parents(range(-1, 99_999), bins=range(100_000)), 16)]
    for name, space, batch in cases:
        p, q = problem(space, batch)
        times = timed({"subtract": subtraction(p, q), "fastemd": unchecked(space, p, q, 2)})
        per_node = times["fastemd"][0] / space.n_nodes / batch
        per_bin = times["subtract"][0] / space.n_bins / batch
        cells = (
            milliseconds(times["fastemd"]),
            f"{per_node * 1e9:.2f} ns",
            f"{per_bin * 1e9:.2f} ns",
        )
        row(name, space.n_nodes, batch, *cells)


def start():
    """Time the first calls of new processes, without and with compiled kernels on disk."""
    setup = (
        "import time; begin = time.perf_counter(); import fastemd; imported = time.perf_counter(); "
        "import numpy as np; tree = fastemd.datasets.imagenet_tree(); "
        "p = np.full(({rows}, 1000), 1e-3, 'f'); labels = np.arange({rows}); "
        "start = time.perf_counter(); {call}; "
        "print(imported - begin, time.perf_counter() - start)"
    )
    cases = {
        "emd_value_and_grad, a pair": (1, "fastemd.emd_value_and_grad(p, p, tree, 2)"),
        "emd_value_and_grad": (512, "fastemd.emd_value_and_grad(p, p, tree, 2)"),
        "the same, rho = 3.7": (512, "fastemd.emd_value_and_grad(p, p, tree, 3.7)"),
        "emd_hessian_diag": (512, "fastemd.emd_hessian_diag(p, p, tree, 2)"),
        "emd_hvp, rho = 3.7": (512, "fastemd.emd_hvp(p, p, p, tree, 3.7)"),
        "emd_hessian": (1, "fastemd.emd_hessian(p, p, tree, 2)"),
        "emd_flow": (512, "fastemd.emd_flow(p, p, tree)"),
        "emd_loss": (512, "fastemd.emd_loss(p, labels, tree)"),
        "emd_loss_hessian_diag": (512, "fastemd.emd_loss_hessian_diag(p, labels, tree)"),
        "warm_up of both defaults": (1, "fastemd.warm_up(tree)"),
    }
    header("the first call of", "rows", "first ever", "kernels cached", "import before it")
    for name, (rows, call) in cases.items():
        code = setup.format(rows=rows, call=call)
        with tempfile.TemporaryDirectory() as cache:
            _, first = output_of_process(code, NUMBA_CACHE_DIR=cache)
            imports, again = np.median(
                [output_of_process(code, NUMBA_CACHE_DIR=cache) for _ in range(5)], axis=0
            )
        row(name, rows, f"{first:.2f} s", f"{again:.2f} s", f"{imports:.2f} s")


def output_of_process(code, **environment):
    """Return the numbers that a new process prints."""
    environment = {**os.environ, **environment}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    return [float(number) for number in done.stdout.split()]


def busy():
    """Time calls beside another process that occupies a core."""
    tree = fastemd.datasets.imagenet_tree()
    header("batch", "alone", "beside a busy process: median", "mean", "99 %")
    for batch in (128, 512, 2048, 8192):
        run = partial(fastemd.emd_value_and_grad, *problem(tree, batch), tree, 2)
        alone = np.median(call_times(run, batch))
        with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
            try:
                times = call_times(run, batch)
            finally:
                process.kill()
        cells = np.median(times), np.mean(times), np.quantile(times, 0.99)
        row(batch, *(f"{1e3 * cell:.2f} ms" for cell in (alone, *cells)))


def call_times(run, batch):
    """Return the times of many calls."""
    times = []
    for _ in range(2000 if batch <= 512 else 200):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return times


def calls():
    """Time small calls in the frameworks."""
    header("call", "us")
    for name, (middle, spread) in timed(small_calls()).items():
        row(name, f"{middle * 1e6:.1f} ± {spread * 1e6:.1f}")


def train():
    """Compare losses in torch, forward and backward, with its cross entropy."""
    names = None
    for name, space in spaces().items():
        for batch in (512, 8192):
            runs = training(space, batch, SINGLE)
            if batch > 512:
                del runs["dense EMD^2"]  # same ratio, and takes half a minute
            times = timed(runs, 2.0)
            if names is None:
                names = list(runs)
                header("space", "batch", *names)
            cells = [
                f"{times[n][0] / times['cross_entropy'][0]:.2f}" for n in names[1:] if n in runs
            ]
            row(name, batch, milliseconds(times["cross_entropy"]), *cells)


def crps():
    """Compare the CRPS of 5,000 unequal bins with cumulative sums in torch: time and memory.

    Memory is what a new process needs at its peak beyond logits and labels, in arrays of the size
    of the logits; the gradient is one of them.
    """
    header(
        "device", "rows", "bins", "plain torch", "EMDLoss", "plain / EMDLoss",
        "plain: memory", "EMDLoss", "plain / EMDLoss",
    )  # fmt: skip
    n_rows, n_bins = 4096, 5000
    code = (
        "from benchmarks.frameworks import memory_of_binned_regression as memory; "
        f"print(memory({{!r}}, {n_rows}, {n_bins}, {{!r}}))"
    )
    for device in devices():
        names = "plain torch", "EMDLoss"
        plain, ours = (output_of_process(code.format(name, device))[0] for name in names)
        t = timed(binned_regression(n_rows, n_bins, device), 20.0)
        times = [f"{1e3 * t[name][0]:.2f} ± {1e3 * t[name][1]:.2f} ms" for name in names]
        arrays = [f"{size / (4 * n_rows * n_bins):.2f}" for size in (plain, ours)]
        time_ratio = f"{t['plain torch'][0] / t['EMDLoss'][0]:.2f}"
        row(device, n_rows, n_bins, *times, time_ratio, *arrays, f"{plain / ours:.2f}")


def pairs():
    """All pairs of 1,000 rows of 10,000 bins, against the product of matrices of `embed`."""
    from benchmarks.unifrac import problem as samples  # which uses this module

    header("rows", "rho", "pairwise", "z @ z.T, z = embed(P, tree, 2)", "ratio")
    case = samples(1_000, 10_000, 0.03)
    tree = fastemd.Tree.from_parents(case.parents, case.lengths, bins=range(10_000))
    sparse = case.table / case.table.sum(axis=1)[:, None]
    tables = {
        "sparse, 3 % non-zero": sparse.tocsr(),
        "the same as a dense array": sparse.toarray(),
        "all entries > 0": histograms((1_000, 10_000), DOUBLE),
    }
    for name, table in tables.items():
        dense = table if isinstance(table, np.ndarray) else table.toarray()
        z = fastemd.embed(dense, tree, 2)
        powers = (1, 2, 1.5) if name.startswith("sparse") else (1, 2)
        runs = {rho: partial(fastemd.pairwise, table, space=tree, rho=rho) for rho in powers}
        times = timed(runs | {"product": partial(np.matmul, z, z.T)}, 10.0)
        for rho in powers:
            ratio = times[rho][0] / times["product"][0]
            cells = (milliseconds(times[each]) for each in (rho, "product"))
            row(name, rho, *cells, f"{ratio:.2f}")


def devices():
    """Return the devices of torch."""
    import torch

    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


TABLES = [
    against_subtraction,
    chains,
    strides,
    functions,
    hessians,
    losses,
    axes,
    options,
    calls,
    train,
    crps,
    pairs,
    one_pair,
    threads,
    baselines,
    growth,
    busy,
    start,
]


def main(names):
    print(machine())
    for table in TABLES:
        if not names or table.__name__ in names:
            print(f"\n{table.__name__}", flush=True)
            table()


if __name__ == "__main__":
    main(sys.argv[1:])
