"""Other implementations of EMD^rho and of Sinkhorn, and a fair measurement of their times.

A baseline takes a problem and returns a function without arguments that computes the values and
gradients of a batch. It raises NotImplementedError if its package is not installed or if it cannot
solve the problem. The demonstration, Table 1 and the benchmarks time them; the tests compare them.
"""

import contextlib
import importlib
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import networkx
import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from fastemd.functions import emd_value_and_grad
from fastemd.progress import show_status
from fastemd.sinkhorn import sinkhorn
from fastemd.spaces import Chain, GroundSpace

Array = NDArray[Any]
Run = Callable[[], Any]
Baseline = Callable[..., Run]

CALLS_PER_TURN = 10
WARM_UP = 0.1  # seconds


def ancestor_matrix(space: GroundSpace) -> tuple[Array, Array]:
    """Return eq. 13's matrix A (edges, bins) and the edge lengths, independently of fastemd.

    networkx finds the bins below every edge.
    """
    graph = space.to_networkx()
    nodes = [node for node in graph if graph.in_degree(node)]
    columns = {label: column for column, label in enumerate(space.bins)}
    matrix, length = np.zeros((len(nodes), space.n_bins)), np.empty(len(nodes))
    for row, node in enumerate(nodes):
        (parent,) = graph.predecessors(node)
        length[row] = graph.edges[parent, node]["weight"]
        for descendant in (node, *networkx.descendants(graph, node)):
            if descendant in columns:
                matrix[row, columns[descendant]] = 1.0
    return matrix, length


def emd_by_products(
    ancestors: Any, length: Array, p: Array, q: Array, rho: float
) -> tuple[Any, Any]:
    """Compute EMD^rho and its gradient (eq. 13, 15) by two products with A, dense or sparse."""
    flow = (ancestors @ (p - q).T).T
    if rho == 2:
        slope = 2 * length * flow
        value = (slope * flow).sum(axis=-1) / 2
    else:
        slope = rho * length * np.sign(flow) * np.abs(flow) ** (rho - 1)
        value = (length * np.abs(flow) ** rho).sum(axis=-1)
    grad = (ancestors.T @ slope.T).T
    return value, grad - grad.mean(axis=-1, keepdims=True)


def emd_by_fastemd(space: GroundSpace, p: Array, q: Array, rho: float) -> Run:
    """Write into existing arrays, unchecked."""
    out = np.empty(p.shape[:-1], p.dtype), np.empty_like(p)
    return lambda: emd_value_and_grad(p, q, space, rho, out=out, validate=False)


def emd_by_fastemd_checked(space: GroundSpace, p: Array, q: Array, rho: float) -> Run:
    """Use the defaults: checked, into new arrays."""
    return lambda: emd_value_and_grad(p, q, space, rho)


def emd_by_matrix(
    matrix: Callable[[Array], Any], space: GroundSpace, p: Array, q: Array, rho: float
) -> Run:
    """Compute two products with A as a kind of matrix."""
    ancestors, length = (array.astype(p.dtype) for array in ancestor_matrix(space))
    converted = matrix(ancestors)
    return lambda: emd_by_products(converted, length, p, q, rho)


def emd_by_torch(space: GroundSpace, p: Array, q: Array, rho: float) -> Run:
    """Run the usual loss in torch forward and backward: cumsum on a chain, else a dense product."""
    torch = installed("torch")
    x, target = torch.from_numpy(p).requires_grad_(), torch.from_numpy(q)
    is_chain = isinstance(space, Chain)
    if is_chain:
        length = torch.from_numpy(space.weight[:-1].astype(p.dtype))
    else:
        matrix, length = (torch.from_numpy(a.astype(p.dtype)) for a in ancestor_matrix(space))
        descendants = matrix.T.contiguous()

    def run() -> tuple[Any, Any]:
        x.grad = None
        if is_chain:
            flow = (x.cumsum(-1) - target.cumsum(-1))[..., :-1]
        else:
            flow = (x - target) @ descendants
        value = (length * (flow**2 if rho == 2 else flow.abs() ** rho)).sum(-1)
        value.sum().backward()
        return value.detach().numpy(), (x.grad - x.grad.mean(-1, keepdim=True)).numpy()

    return run


def emd_by_pot(space: GroundSpace, p: Array, q: Array, rho: float) -> Run:
    """Call POT's exact solver pair by pair; its dual potentials are a gradient."""
    if rho != 1 or p.size > 10_000:  # before the import, which takes seconds
        raise NotImplementedError("POT solves rho = 1 only, and takes 0.1 s per pair of 1000 bins")
    ot = installed("ot")
    cost = space.cost_matrix()

    def run() -> tuple[Any, Any]:
        pairs = [ot.emd2(*pair, cost, log=True) for pair in zip(p, q, strict=True)]
        grad = np.array([log["u"] for _, log in pairs])
        return np.array([value for value, _ in pairs]), grad - grad.mean(axis=-1, keepdims=True)

    return run


# Each takes (space, p, q, rho); gradients are projected.
EMD_BASELINES: dict[str, Baseline] = {
    "fastemd": emd_by_fastemd,
    "fastemd, checked": emd_by_fastemd_checked,
    "sparse matrix (scipy)": partial(emd_by_matrix, scipy.sparse.csr_array),
    "dense matrix (BLAS)": partial(emd_by_matrix, np.asarray),
    "autograd (torch)": emd_by_torch,
    "linear programme (POT)": emd_by_pot,
}


def sinkhorn_by_fastemd(p: Array, q: Array, cost: Array, lam: float, n_iter: int) -> Run:
    """Run Algorithm 1 as printed."""

    def run() -> tuple[Array, Array]:
        result = sinkhorn(p, q, cost, lam=lam, max_iter=n_iter)
        return result.value, result.grad

    return run


def sinkhorn_by_torch(p: Array, q: Array, cost: Array, lam: float, n_iter: int) -> Run:
    """Run the usual loop, with torch's products."""
    torch = installed("torch")
    mass, target, costs = (torch.from_numpy(array) for array in (p, q, cost))

    def run() -> tuple[Array, Array]:
        kernel = torch.exp(-lam * costs - 1)
        transposed = kernel.T
        u = torch.ones_like(mass)
        for _ in range(n_iter):
            u = mass / ((target / (u @ kernel)) @ transposed)
        v = target / (u @ kernel)
        value = (u * (v @ (kernel * costs).T)).sum(-1)
        return value.numpy(), (u.log() / lam).numpy()

    return run


def sinkhorn_by_pot(p: Array, q: Array, cost: Array, lam: float, n_iter: int) -> Run:
    """Call POT's `sinkhorn` pair by pair, since its batches share one of the two histograms."""
    ot = installed("ot")
    options = {"numItermax": n_iter, "stopThr": 0, "warn": False, "log": True}

    def run() -> tuple[Array, Array]:
        values, grads = [], []
        for a, b in zip(p, q, strict=True):
            plan, log = ot.sinkhorn(b, a, cost.T, 1 / lam, **options)
            values.append((plan * cost.T).sum())
            grads.append(np.log(log["v"]) / lam)
        return np.array(values), np.array(grads)

    return run


def sinkhorn_by_pot_batch(p: Array, q: Array, cost: Array, lam: float, n_iter: int) -> Run:
    """Call POT's `sinkhorn` for a batch with one target: all rows of `q` are equal."""
    ot = installed("ot")
    if not (q == q[:1]).all():
        raise NotImplementedError("POT's batches share one of the two histograms")
    target, predictions, costs = q[0].copy(), np.ascontiguousarray(p.T), cost.T.copy()
    options = {"numItermax": n_iter, "stopThr": 0, "warn": False, "log": True}

    def run() -> tuple[Array, Array]:
        value, log = ot.sinkhorn(target, predictions, costs, 1 / lam, **options)
        return value, (np.log(log["v"]) / lam).T

    return run


# Each takes (p, q, cost, lam, n_iter).
SINKHORN_BASELINES: dict[str, Baseline] = {
    "fastemd": sinkhorn_by_fastemd,
    "loop (torch)": sinkhorn_by_torch,
    "sinkhorn, batched (POT)": sinkhorn_by_pot_batch,
    "sinkhorn, pair by pair (POT)": sinkhorn_by_pot,
}


def installed(name: str) -> Any:
    """Import a module; raise NotImplementedError if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise NotImplementedError(f"{name} is not installed") from None


def available(baselines: Mapping[str, Baseline], *problem: Any) -> dict[str, Run]:
    """Return the runs of all baselines that are installed and can solve the problem."""
    runs = {}
    for name, baseline in baselines.items():
        with contextlib.suppress(NotImplementedError):
            runs[name] = baseline(*problem)
    return runs


def measure(runs: Mapping[str, Run], repeats: int) -> dict[str, Array]:
    """Return the seconds of `repeats` calls of every run.

    The runs take turns, so that machine noise affects all of them equally. A turn starts with
    untimed calls for `WARM_UP` seconds: they load the run's data into the caches, and the threads
    of the previous run's BLAS, which spin for a while, come to rest.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    n_turns = -(-repeats // CALLS_PER_TURN)
    for turn in range(n_turns):
        for name, run in runs.items():
            show_status(f"timing, turn {turn + 1} of {n_turns}: {name}")
            start = time.perf_counter()
            while time.perf_counter() < start + WARM_UP:
                run()
            for _ in range(min(CALLS_PER_TURN, repeats - turn * CALLS_PER_TURN)):
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
    show_status()
    return {name: np.array(values) for name, values in seconds.items()}
