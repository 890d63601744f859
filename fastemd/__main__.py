"""The demonstration: EMD^rho and its gradient on the ImageNet tree, checked and timed."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import numba
import numpy as np
import scipy.sparse
from numpy.typing import NDArray

import fastemd

Array = NDArray[Any]
TURN, WARM_UP = 10, 0.1  # runs, seconds
FORMATS = (".png", ".pdf", ".svg")
TOLERANCE = 1e-6  # relative, for float32 results against a float64 computation


def softmax(logits: Array) -> Array:
    """Histograms from logits, in float32 as a network would give them."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    histograms: Array = (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)
    return histograms


def ancestor_matrix(space: fastemd.Chain | fastemd.Tree) -> tuple[Array, Array]:
    """Eq. 13's matrix A (edges, bins) and the edge lengths; networkx walks the tree."""
    graph = space.to_networkx()
    nodes = [node for node in graph if graph.in_degree(node)]
    columns = {label: column for column, label in enumerate(space.bins)}
    matrix, weight = np.zeros((len(nodes), space.n_bins)), np.empty(len(nodes))
    for row, node in enumerate(nodes):
        (above,) = graph.predecessors(node)
        weight[row] = graph.edges[above, node]["weight"]
        for below in (node, *nx.descendants(graph, node)):
            if below in columns:
                matrix[row, columns[below]] = 1.0
    return matrix, weight


def by_products(ancestors: Any, weight: Array, p: Array, q: Array, rho: float) -> tuple[Any, Any]:
    """EMD^rho and its gradient (eq. 13, 15) by two products with A, dense or sparse."""
    flow = (ancestors @ (p - q).T).T
    if rho == 2:
        slope = 2 * weight * flow
        value = (slope * flow).sum(axis=-1) / 2
    else:
        slope = rho * weight * np.sign(flow) * np.abs(flow) ** (rho - 1)
        value = (weight * np.abs(flow) ** rho).sum(axis=-1)
    grad = (ancestors.T @ slope.T).T
    return value, grad - grad.mean(axis=-1, keepdims=True)


def rivals(tree: fastemd.Tree, p: Array, q: Array) -> dict[str, Callable[[], Any]]:
    """Ways to value and gradient of EMD^2 for the same arrays; a subtraction as the yardstick."""
    value, grad = np.empty(p.shape[:-1], p.dtype), np.empty_like(p)
    dense, weight = (array.astype(p.dtype) for array in ancestor_matrix(tree))
    sparse = scipy.sparse.csr_array(dense)
    return {
        "np.subtract(p, q), one array": lambda: np.subtract(p, q, out=grad),
        "fastemd, value and gradient": lambda: fastemd.emd_value_and_grad(
            p, q, tree, 2, out=(value, grad), validate=False
        ),
        "fastemd, with validation": lambda: fastemd.emd_value_and_grad(p, q, tree, 2),
        "sparse ancestor matrix (scipy)": lambda: by_products(sparse, weight, p, q, 2),
        "dense ancestor matrix (BLAS)": lambda: by_products(dense, weight, p, q, 2),
    }


def measure(contenders: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Array]:
    """Seconds of `repeats` runs of every contender.

    They take turns, so that the machine's moods hit all alike. A turn starts with untimed runs
    for `WARM_UP` seconds: the threads of a BLAS spin on for a while and disturb who comes next, and
    everyone is to find its own data in the caches.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    n_turns = -(-repeats // TURN)
    for turn in range(n_turns):
        for name, run in contenders.items():
            if sys.stderr.isatty():
                status = f"\r\033[Ktiming, turn {turn + 1} of {n_turns}: {name}"
                print(status, end="", file=sys.stderr, flush=True)
            start = time.perf_counter()
            while time.perf_counter() < start + WARM_UP:
                run()
            for _ in range(min(TURN, repeats - turn * TURN)):
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
    return {name: np.array(values) for name, values in seconds.items()}


def check(tree: fastemd.Tree, p: Array, targets: dict[str, Array]) -> bool:
    """Print EMD^1 and EMD^2 and their errors; whether all errors are small."""
    passed = True
    ancestors, weight = ancestor_matrix(tree)
    header = f"{'':8}{'targets':10}{'mean EMD':>12}{'value error':>14}{'grad error':>14}"
    print(header)
    for rho in (1, 2):
        for kind, q in targets.items():
            value, grad = fastemd.emd_value_and_grad(p, q, tree, rho)
            exact = p.astype(np.float64), q.astype(np.float64)
            true_value, true_grad = by_products(ancestors, weight, *exact, rho)
            value_error = np.max(np.abs(value - true_value) / true_value)
            grad_error = np.max(np.abs(grad - true_grad)) / np.max(np.abs(true_grad))
            good = bool(value_error <= TOLERANCE and grad_error <= TOLERANCE)
            passed &= good
            print(
                f"EMD^{rho:<4}{kind:10}{value.mean():12.4f}{value_error:14.1e}{grad_error:14.1e}"
                f"  {'ok' if good else f'FAILED, expected at most {TOLERANCE:g}'}"
            )
    return passed


def picture(tree: fastemd.Tree, p: Array, target: int, path: Path, n_bins: int = 30) -> None:
    """Flow and gradient for one sample, on the part of the tree where most of them is."""
    from matplotlib.figure import Figure

    from fastemd import plotting

    q = np.zeros_like(p)
    q[target] = 1.0
    columns = np.argsort(-np.abs(p - q))[:n_bins]
    graph = fastemd.datasets.imagenet_graph()
    names = dict(graph.nodes(data="name"))
    figure = Figure(figsize=(17, 7), layout="constrained")
    left, right = figure.subplots(1, 2)
    plotting.plot_flow(p, q, tree, columns=columns, labels=names, ax=left)
    plotting.plot_gradient(p, q, tree, 2, columns=columns, labels=names, ax=right)
    left.set_title(f"flow from a prediction to the class {names[tree.bins[target]]!r}")
    right.set_title("gradient of EMD^2: descent moves mass from red to blue")
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> int:
    """Run the demonstration; return the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m fastemd", description=__doc__)
    parser.add_argument(
        "--picture", type=Path, default=Path("fastemd-demo.png"), help="where to save the picture"
    )
    parser.add_argument("--batch", type=int, default=512, help="rows in the batch (512)")
    parser.add_argument("--repeats", type=int, default=30, help="timed runs of each (30)")
    parser.add_argument("--seed", type=int, default=0, help="of the random predictions (0)")
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

    rng = np.random.default_rng(options.seed)
    tree = fastemd.datasets.imagenet_tree()
    print(f"fastemd {fastemd.__version__}: Earth Mover's Distances on the ImageNet tree\n")
    print(f"{tree}\n  the 1000 ILSVRC2012 classes under WordNet; every edge has length 1\n")

    shape = options.batch, tree.n_bins
    p = softmax(3.0 * rng.standard_normal(shape))
    labels = rng.integers(tree.n_bins, size=options.batch)
    one_hot = np.eye(tree.n_bins, dtype=np.float32)[labels]
    soft = softmax(3.0 * rng.standard_normal(shape))

    print("Compiling two kernels (some seconds, once: they are kept on disk) ...", flush=True)
    start = time.perf_counter()
    fastemd.emd_value_and_grad(p, soft, tree, 2)
    fastemd.emd_value_and_grad(p[:1], soft[:1], tree, 2)
    print(f"  ready after {time.perf_counter() - start:.1f} s\n")

    print(f"{options.batch} random softmax predictions, float32; errors against a dense float64")
    print("computation, relative (of the gradient: to its largest entry)\n")
    passed = check(tree, p, {"one-hot": one_hot, "soft": soft})

    print(f"\nTime for the batch, median [quartiles] of {options.repeats} runs, "
          f"{numba.get_num_threads()} threads\n")  # fmt: skip
    seconds = measure(rivals(tree, p, soft), options.repeats)
    unit = np.median(next(iter(seconds.values())))
    for name, values in seconds.items():
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
        print(
            f"  {name:32}{middle * 1e3:9.3f} ms  [{low * 1e3:.3f}, {high * 1e3:.3f}]"
            f"{middle / unit:9.1f} x"
        )

    print("\nDrawing one sample ...", flush=True)
    picture(tree, p[0], int(labels[0]), options.picture)
    print(f"Picture of its flow and gradient: {options.picture}")
    if not passed:
        print("\nA check FAILED, see above.", file=sys.stderr)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
