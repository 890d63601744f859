"""Exact Earth Mover's Distances and transport plans for any costs."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastemd import backends, validation
from fastemd.backends import CudaBackend
from fastemd.eager import eager
from fastemd.pairs import resolve_pairs
from fastemd.spaces import GroundSpace

Array = NDArray[Any]
Flow = dict[tuple[int, int], int]  # the mass moved, by source and sink


@eager
@np.errstate(all="ignore")  # results beyond the range of float64 are 0 or inf
def exact_emd(p: ArrayLike, q: ArrayLike, cost: ArrayLike | GroundSpace) -> tuple[Any, Any]:
    """Compute the Earth Mover's Distance and an optimal transport plan.

    Parameters
    ----------
    p, q : array_like, (..., N)
        Histograms over N bins: finite, >= 0 and of equal mass. Leading axes broadcast. Masses that
        differ within the tolerance are equalised by scaling `q` to the mass of `p`. Negative
        masses within the tolerance are treated as 0.
    cost : array_like, (N, N), or Chain or Tree
        Cost of moving one unit of mass from a bin of `p` to a bin of `q`, finite and >= 0, or the
        ground space with this ``cost_matrix()``. All arrays of a call must have the same backend.
        Results have the same backend.

    Returns
    -------
    value : ndarray of float64, (...)
        ``sum(plan * cost)``.
    plan : ndarray of float64, (..., N, N)
        Optimal transport plan: entry ``(i, j)`` is the mass moved from bin ``i`` of `p` to bin
        ``j`` of `q`. Rows sum to `p` and columns to the scaled `q`, both up to rounding. If there
        are several optimal plans, one of them is returned.

    Raises
    ------
    ValueError
        If `cost` is not square, negative or not finite in float64, shapes do not match, or a
        histogram is invalid. The message names the row.
    TypeError
        If an argument has an unsupported type.

    Notes
    -----
    Eq. 1 and 2 of Martinez et al. (arXiv:1611.07573), row by row. Masses and costs are converted
    to integers without rounding, and the plan is optimal in exact integer arithmetic for
    magnitudes of any size: one matrix may contain costs of 1e-12 and of 1e12, and masses of 1e-300
    are not neglected. Only the results are rounded to float64. Rounding errors of the input masses
    are part of the problem: if the sums over two groups of bins that are connected only by costs
    of 1e12 differ by 1e-17, the value contains 1e-5.

    For a cost matrix, the problem is solved by `networkx.network_simplex`. On a chain or tree the
    plan takes O(nodes + N log N + entries of the plan). `fastemd.emd` with ``rho=1`` computes the
    value alone.

    Examples
    --------
    >>> import fastemd
    >>> value, plan = fastemd.exact_emd([1, 0, 0], [0, 0.5, 0.5], fastemd.Chain(3))
    >>> value
    np.float64(1.5)
    >>> plan
    array([[0. , 0.5, 0.5],
           [0. , 0. , 0. ],
           [0. , 0. , 0. ]])
    """
    if isinstance(backends.backend_of({"p": p}), CudaBackend):
        validation.only_on_cpu("exact distances")
    pairs = resolve_pairs(p, q, cost, True, np.float64)
    n_rows, n_bins = pairs.p.shape
    solve: Callable[[list[int], list[int]], Flow]
    if isinstance(cost, GroundSpace):
        solve = partial(_match_on_tree, space=cost)
    else:
        costs, _ = _integers(pairs.cost.ravel())
        solve = partial(_network_simplex, costs=costs)
    plan = np.zeros((n_rows, n_bins, n_bins))
    for row in range(n_rows):
        supply, demand, denominator = _balanced(pairs.p[row], pairs.q[row])
        for (i, j), moved in solve(supply, demand).items():
            plan[row, i, j] = moved / denominator
    value = (plan * pairs.cost).sum(axis=(-2, -1))
    wrap, shape = pairs.backend.wrap, pairs.shape
    return wrap(value.reshape(shape)), wrap(plan.reshape(*shape, n_bins, n_bins))


def _balanced(p: Array, q: Array) -> tuple[list[int], list[int], int]:
    """Return integer supply and demand of equal sum, and their common denominator."""
    supply, denominator = _integers(p)
    demand, _ = _integers(q)
    p_mass, q_mass = sum(supply), sum(demand)
    return [x * q_mass for x in supply], [x * p_mass for x in demand], denominator * q_mass


def _integers(values: Array) -> tuple[list[int], int]:
    """Return the numerators of the values and their common denominator."""
    ratios = [value.as_integer_ratio() for value in values.tolist()]
    common = max(denominator for _, denominator in ratios)  # all are powers of 2
    return [numerator * (common // denominator) for numerator, denominator in ratios], common


def _match_on_tree(supply: Sequence[int], demand: Sequence[int], space: GroundSpace) -> Flow:
    """Compute an optimal plan on a tree by matching supply and demand from the leaves up.

    Only the surplus or the deficit of a subtree crosses the edge above it, which every transport
    plan must move. This takes O(nodes + N log N + entries of the plan) steps.
    """
    flow: Flow = {}
    left, missing = list(supply), list(demand)
    bin_of = {node: k for k, node in enumerate(space.bin_node.tolist())}
    # Unmatched bins in the subtree of every node; the bin of the node itself is matched first.
    sources: list[list[int]] = [[] for _ in range(space.n_nodes)]
    sinks: list[list[int]] = [[] for _ in range(space.n_nodes)]
    for node, above in enumerate(space.parent.tolist()):
        if node in bin_of:
            sources[node].append(bin_of[node])
            sinks[node].append(bin_of[node])
        while sources[node] and sinks[node]:
            i, j = sources[node][-1], sinks[node][-1]
            if moved := min(left[i], missing[j]):
                flow[i, j] = moved
                left[i] -= moved
                missing[j] -= moved
            if not left[i]:
                sources[node].pop()
            if not missing[j]:
                sinks[node].pop()
        if above >= 0:
            for bins in sources, sinks:
                few, many = sorted((bins[node], bins[above]), key=len)
                many.extend(few)
                bins[above] = many
    return flow


def _network_simplex(supply: Sequence[int], demand: Sequence[int], costs: Sequence[int]) -> Flow:
    """Compute an optimal plan for a cost matrix in row-major order."""
    import networkx as nx  # takes half as long to import as all of fastemd

    n_bins = len(supply)
    sources = [i for i, mass in enumerate(supply) if mass]
    sinks = [j for j, mass in enumerate(demand) if mass]
    if not sources:
        return {}
    network = nx.DiGraph()
    network.add_nodes_from((i, {"demand": -supply[i]}) for i in sources)
    network.add_nodes_from((n_bins + j, {"demand": demand[j]}) for j in sinks)
    # No flow exceeds the total. The default capacity is infinity, a float, from which an integer
    # beyond the range of float64 cannot be subtracted.
    capacity = sum(supply)
    network.add_edges_from(
        (i, n_bins + j, {"weight": costs[i * n_bins + j], "capacity": capacity})
        for i in sources
        for j in sinks
    )
    flows = nx.network_simplex(network)[1]
    return {(i, end - n_bins): moved for i in sources for end, moved in flows[i].items() if moved}
