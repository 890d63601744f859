"""Other ways to the same numbers, and a fair race: for the demonstration and the benchmarks.

An implementation in `IMPLEMENTATIONS` takes ``(space, p, q, rho)`` and returns a function without
arguments that gives the values and projected gradients of EMD^rho for the batch. One that is not
installed, or cannot do a case, raises NotImplementedError instead.
"""

import contextlib
import importlib
import sys
import time
from collections.abc import Callable
from typing import Any

import networkx
import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from fastemd.functions import emd_value_and_grad
from fastemd.spaces import Chain, GroundSpace

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


def with_torch(space: GroundSpace, p: Array, q: Array, rho: float) -> Run:
    """The usual loss in torch, forward and backward: cumsum on a chain, else a dense product."""
    torch = installed("torch")
    lengths = space.weight[:-1] if isinstance(space, Chain) else ancestor_matrix(space)[1]
    weight = torch.from_numpy(lengths.astype(p.dtype))
    if not isinstance(space, Chain):
        descend = torch.from_numpy(ancestor_matrix(space)[0].astype(p.dtype)).T.contiguous()
    x, target = torch.from_numpy(p).requires_grad_(), torch.from_numpy(q)

    def run() -> tuple[Any, Any]:
        x.grad = None
        if isinstance(space, Chain):
            flow = (x.cumsum(-1) - target.cumsum(-1))[..., :-1]
        else:
            flow = (x - target) @ descend
        value = (weight * (flow**2 if rho == 2 else flow.abs() ** rho)).sum(-1)
        value.sum().backward()
        return value.detach().numpy(), (x.grad - x.grad.mean(-1, keepdim=True)).numpy()

    return run


def with_pot(space: GroundSpace, p: Array, q: Array, rho: float) -> Run:
    """POT's exact solver, a pair at a time; its dual potentials are a gradient."""
    ot = installed("ot")
    if rho != 1 or p.size > 10_000:
        raise NotImplementedError("it knows the distance itself, and takes 0.1 s for 1000 bins")
    cost = space.cost_matrix()

    def run() -> tuple[Any, Any]:
        pairs = [ot.emd2(*pair, cost, log=True) for pair in zip(p, q, strict=True)]
        grad = np.array([log["u"] for _, log in pairs])
        return np.array([value for value, _ in pairs]), grad - grad.mean(axis=-1, keepdims=True)

    return run


def installed(name: str) -> Any:
    """A module, if it is installed, else NotImplementedError."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise NotImplementedError(f"{name} is not installed") from None


IMPLEMENTATIONS = {
    "fastemd": with_fastemd,
    "fastemd, checked": with_fastemd_checked,
    "sparse matrix (scipy)": with_scipy_sparse,
    "dense matrix (BLAS)": with_dense_blas,
    "autograd (torch)": with_torch,
    "linear programme (POT)": with_pot,
}


def ready(space: GroundSpace, p: Array, q: Array, rho: float) -> dict[str, Run]:
    """All implementations that are installed and can do this case."""
    runs = {}
    for name, make in IMPLEMENTATIONS.items():
        with contextlib.suppress(NotImplementedError):
            runs[name] = make(space, p, q, rho)
    return runs


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
