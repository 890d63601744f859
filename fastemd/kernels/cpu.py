"""The two sweeps on the CPU: up the tree, a function on every edge, down the tree.

A tile is ``LANES`` rows of the batch side by side in vector registers. Its flows live in two
scratch arrays, one lane vector each: ``x`` for the bins and ``y`` for the inner nodes. On a tree
every bin is a leaf edge below an inner node; on a chain, which has no inner nodes, ``x[k]`` is the
flow between bin ``k`` and bin ``k + 1``. All arithmetic is float64, also for float32 arrays,
because a flow is a difference of large sums: results are rounded once, on the way out.
"""

from typing import NamedTuple

import numpy as np
from numba.extending import register_jitable

from fastemd.kernels.edges import curvature, slope
from fastemd.kernels.lanes import load, splat, store
from fastemd.kernels.rows import read, write

# ---------------------------------------------------------------------------------- the two sweeps


@register_jitable
def up(plan, x, y):
    """Turn bins into flows, in place; return the total (the root's flow)."""
    flow = splat(0.0)
    if plan.weight.size == 0:
        for k in range(plan.bin_weight.size):
            flow = flow + load(x, k)
            store(x, k, flow)
        return flow
    for i in range(plan.weight.size):
        # A parent pulls its children, which lie next to each other: the sum stays in registers.
        flow = splat(0.0)
        for j in range(plan.bin_start[i], plan.bin_start[i + 1]):
            flow = flow + load(x, plan.column[j])
        for c in range(plan.child_start[i], plan.child_start[i + 1]):
            flow = flow + load(y, c)
        store(y, i, flow)
    return flow


@register_jitable
def down(plan, x, y, start):
    """Sum what lies on the edges between every bin and the root, from `start`, in place."""
    if plan.weight.size == 0:
        total = start
        for k in range(plan.bin_weight.size - 1, -1, -1):
            total = total + load(x, k)
            store(x, k, total)
        return
    root = plan.weight.size - 1
    store(y, root, load(y, root) + start)
    for i in range(root, -1, -1):
        total = load(y, i)
        for c in range(plan.child_start[i], plan.child_start[i + 1]):
            store(y, c, load(y, c) + total)
        for j in range(plan.bin_start[i], plan.bin_start[i + 1]):
            k = plan.column[j]
            store(x, k, load(x, k) + total)


# ------------------------------------------------------------------------- functions on every edge


@register_jitable
def slopes(x, weight, share, rho):
    """Flows to slopes, in place; return rho EMD^rho and the mean of the gradient, negated."""
    value, start = splat(0.0), splat(0.0)
    for e in range(weight.size):
        flow = load(x, e)
        psi = slope(flow, weight[e], rho)
        value = value + flow * psi
        start = start - psi * share[e]
        store(x, e, psi)
    return value, start


@register_jitable
def diagonal_terms(x, weight, share, rho, project):
    """Flows to what each edge adds to the Hessian's diagonal, in place; return the grand mean."""
    start = splat(0.0)
    for e in range(weight.size):
        h = curvature(load(x, e), weight[e], rho)
        start = start + h * (project * share[e] * share[e])
        store(x, e, h * (1.0 - 2.0 * project * share[e]))
    return start


@register_jitable
def products(x, x2, total, weight, share, rho):
    """Curvature times the flow of `v` less its mean, in place; return the mean, negated."""
    start = splat(0.0)
    for e in range(weight.size):
        flow_of_v = load(x2, e) - total * share[e]
        product = curvature(load(x, e), weight[e], rho) * flow_of_v
        start = start - product * share[e]
        store(x, e, product)
    return start


# ----------------------------------------------------------------------- one tile of each operation


class Job(NamedTuple):
    """What one thread works on: the arrays, where the rows of its tile start, and its scratch.

    The rows are addresses, so a job holds every array they point into: Numba frees an array after
    its last use by name.
    """

    p: np.ndarray
    q: np.ndarray
    v: np.ndarray
    zeros: np.ndarray  # one row to subtract from `v`
    out: np.ndarray
    rho: float
    project: float  # 1 to conserve the total mass, 0 for the raw derivatives
    p_rows: np.ndarray
    q_rows: np.ndarray
    v_rows: np.ndarray
    zero_rows: np.ndarray
    out_rows: np.ndarray
    x: np.ndarray  # lanes of the bins
    y: np.ndarray  # lanes of the inner nodes
    x2: np.ndarray  # the same for `v`
    y2: np.ndarray
    z: np.ndarray  # lanes of what goes out, where that is edges


@register_jitable
def flows(plan, job):
    read(job.p, job.q, job.p_rows, job.q_rows, job.x)
    return up(plan, job.x, job.y)


@register_jitable
def gradient_tile(plan, job):
    flows(plan, job)
    value_x, start_x = slopes(job.x, plan.bin_weight, plan.bin_share, job.rho)
    value_y, start_y = slopes(job.y, plan.weight, plan.share, job.rho)
    if job.out.size:
        down(plan, job.x, job.y, (start_x + start_y) * job.project)
        write(job.x, job.out_rows, job.out)
    return (value_x + value_y) * (1.0 / job.rho)


@register_jitable
def hessian_diag_tile(plan, job):
    total = flows(plan, job)
    start_x = diagonal_terms(job.x, plan.bin_weight, plan.bin_share, job.rho, job.project)
    start_y = diagonal_terms(job.y, plan.weight, plan.share, job.rho, job.project)
    down(plan, job.x, job.y, start_x + start_y)
    write(job.x, job.out_rows, job.out)
    return total


@register_jitable
def hvp_tile(plan, job):
    flows(plan, job)
    read(job.v, job.v, job.v_rows, job.zero_rows, job.x2)
    total = up(plan, job.x2, job.y2) * job.project
    start_x = products(job.x, job.x2, total, plan.bin_weight, plan.bin_share, job.rho)
    start_y = products(job.y, job.y2, total, plan.weight, plan.share, job.rho)
    down(plan, job.x, job.y, (start_x + start_y) * job.project)
    write(job.x, job.out_rows, job.out)
    return total


@register_jitable
def flow_tile(plan, job):
    total = flows(plan, job)
    for e in range(job.out.shape[2]):
        store(job.z, e, load(job.x, e) if plan.weight.size == 0 else load(job.y, plan.slot[e]))
    write(job.z, job.out_rows, job.out)
    return total


@register_jitable
def embed_tile(plan, job):
    total = flows(plan, job)
    for e in range(job.out.shape[2]):
        if plan.weight.size == 0:
            store(job.z, e, load(job.x, e) * plan.bin_weight[e])
        else:
            store(job.z, e, load(job.y, plan.slot[e]) * plan.weight[plan.slot[e]])
    write(job.z, job.out_rows, job.out)
    return total


@register_jitable
def curvature_tile(plan, job):
    total = flows(plan, job)
    n_bins = plan.bin_weight.size
    for k in range(n_bins):
        store(job.z, k, curvature(load(job.x, k), plan.bin_weight[k], job.rho))
    for i in range(plan.weight.size):
        store(job.z, n_bins + i, curvature(load(job.y, i), plan.weight[i], job.rho))
    write(job.z, job.out_rows, job.out)
    return total


@register_jitable
def check_tile(plan, job):
    return splat(0.0)


TILES = {
    "gradient": gradient_tile,
    "hessian_diag": hessian_diag_tile,
    "hvp": hvp_tile,
    "flow": flow_tile,
    "embed": embed_tile,
    "curvature": curvature_tile,
    "check": check_tile,
}
