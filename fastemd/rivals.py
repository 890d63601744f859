"""Other ways to the same numbers, and a fair race: for the demonstration and the benchmarks.

An implementation in `IMPLEMENTATIONS` takes ``(space, p, q, rho)`` and returns a function without
arguments that gives the values and projected gradients of EMD^rho for the batch.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import networkx
import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from fastemd.functions import emd_value_and_grad
from fastemd.ground import GroundSpace

Array = NDArray[Any]
Run = Callable[[], Any]

TURN, WARM_UP = 10, 0.1  # runs, seconds


def softmax(logits: Array) -> Array:
    """Histograms as a network gives them, of the type of its logits."""
    weights: Array = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def ancestor_matrix(space: GroundSpace) -> tuple[Array, Array]:
    """Eq. 13's matrix A (edges, bins) and the edge lengths; networkx walks the tree."""
    graph = space.to_networkx()
    nodes = [node for node in graph if graph.in_degree(node)]
    columns = {label: column for column, label in enumerate(space.bins)}
    matrix, weight = np.zeros((len(nodes), space.n_bins)), np.empty(len(nodes))
    for row, node in enumerate(nodes):
        (above,) = graph.predecessors(node)
        weight[row] = graph.edges[above, node]["weight"]
        for below in (node, *networkx.descendants(graph, node)):
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


def with_fastemd(space: GroundSpace, p: Array, q: Array, rho: float) -> Run:
    """Into arrays that are there, unchecked."""
    out = np.empty(p.shape[:-1], p.dtype), np.empty_like(p)
    return lambda: emd_value_and_grad(p, q, space, rho, out=out, validate=False)


def with_fastemd_checked(space: GroundSpace, p: Array, q: Array, rho: float) -> Run:
    """As most people call it: checked, into new arrays."""
    return lambda: emd_value_and_grad(p, q, space, rho)


def with_scipy_sparse(space: GroundSpace, p: Array, q: Array, rho: float) -> Run:
    """Two products with a sparse matrix."""
    ancestors, weight = (array.astype(p.dtype) for array in ancestor_matrix(space))
    sparse = scipy.sparse.csr_array(ancestors)
    return lambda: by_products(sparse, weight, p, q, rho)


def with_dense_blas(space: GroundSpace, p: Array, q: Array, rho: float) -> Run:
    """Two products with a dense matrix."""
    ancestors, weight = (array.astype(p.dtype) for array in ancestor_matrix(space))
    return lambda: by_products(ancestors, weight, p, q, rho)


IMPLEMENTATIONS = {
    "fastemd": with_fastemd,
    "fastemd, checked": with_fastemd_checked,
    "sparse matrix (scipy)": with_scipy_sparse,
    "dense matrix (BLAS)": with_dense_blas,
}


def measure(contenders: dict[str, Run], repeats: int) -> dict[str, Array]:
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
