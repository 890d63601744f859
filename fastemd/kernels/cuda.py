"""The two sweeps on CUDA: up the tree, a function on every edge, down the tree.

Some threads do a row of the batch together. Scratch ``x`` holds one number for every edge: first
its flow, then what a function made of it, then the sum of that up to the root. All arithmetic is
float64, also for float32 arrays, because a flow is a difference of large sums: results are rounded
once, on the way out. Sums are taken in the same order every time, so they have the same bits.

Edges come in the order of `fastemd.layout`: the bins' own first, then level by level up to the
root. Where there are counterparts in `fastemd.kernels.cpu`, the names are theirs.
"""

import numpy as np

from fastemd.kernels import edges
from fastemd.kernels.edges import CURVATURE
from fastemd.kernels.threads import barrier, scan, sums
from fastemd.target import device

# ----------------------------------------------------------- the space, see `fastemd.layout.Levels`


@device
def above(row, e):
    return row.numbers[e]


@device
def weight(row, e):
    return row.lengths[e]


@device
def share(row, e):
    return row.lengths[row.n_edges + e]


@device
def list_below(row, e):
    """Where the list of the edges below an edge begins; there the one before it ends."""
    return 2 * row.n_edges - row.n_bins + 1 + row.numbers[row.n_edges + e - row.n_bins]


@device
def level(row, i):
    """The first edge of a level."""
    return row.numbers[3 * row.n_edges - row.n_bins + i]


# ---------------------------------------------------------------------------------- the two sweeps


@device
def tree_up(row, x):
    """From the masses of the bins to the flow of every edge."""
    for i in range(row.n_levels):
        barrier()
        for e in range(level(row, i) + row.thread, level(row, i + 1), row.n_threads):
            flow = 0.0
            for j in range(list_below(row, e), list_below(row, e + 1)):
                flow += x[row.numbers[j]]
            x[e] = flow
    barrier()


@device
def tree_down(row, x, start):
    """From what the edges keep to its sum between every bin and the root, from `start`.

    `sweep_up` has made sure that every thread sees what the edges keep. Afterwards a thread sees
    the bins that are its own in every loop over them.
    """
    if row.thread == 0:
        x[row.n_edges] = start
    for i in range(row.n_levels - 1, -1, -1):
        barrier()
        for e in range(level(row, i) + row.thread, level(row, i + 1), row.n_threads):
            x[e] += x[above(row, e)]
    barrier()
    for k in range(row.thread, row.n_bins, row.n_threads):
        x[k] += x[above(row, k)]


@device
def chain_up(row, x):
    barrier()
    scan(row, x, 0.0, False)


@device
def chain_down(row, x, start):
    scan(row, x, start, True)


SWEEPS = {"tree": (tree_up, tree_down), "chain": (chain_up, chain_down)}


@device
def sweep_up(row, x, up, edge, function):
    """Find every edge's flow and keep ``edge(flow)`` in its place; return the sums of two terms."""
    up(row, x)
    value, mean = 0.0, 0.0
    for e in range(row.thread, row.n_edges, row.n_threads):
        kept, of_value, of_mean = edge(row, e, x[e], function)
        x[e] = kept
        value += of_value
        mean += of_mean
    return sums(row, value, mean)


# ----------------------------------------------------------------------- what the sweeps start from


@device
def fill_difference(row):
    """``p - q``."""
    for k in range(row.thread, row.n_bins, row.n_threads):
        d = np.float64(row.p[k])
        if row.q.size > 0:
            d -= np.float64(row.q[k])
        row.x[k] = d


@device
def fill_vector(row, x):
    """`v`, less its mean if the total mass is to be conserved."""
    total = 0.0
    for k in range(row.thread, row.n_bins, row.n_threads):
        total += vector_at(row, k)
    total, _ = sums(row, total, 0.0)
    mean = row.project * total / row.n_bins
    for k in range(row.thread, row.n_bins, row.n_threads):
        x[k] = vector_at(row, k) - mean


@device
def vector_at(row, k):
    """Of the dense Hessian, whose rows are its products with the unit vectors, one of those."""
    if row.v.size == 0:
        return 1.0 if k == row.label else 0.0
    return np.float64(row.v[k])


# -------------------------------------------------------------------------- and what they end with


@device
def write_down(row, down, start):
    """The sweep down of what the edges keep, out to the bins."""
    down(row, row.x, start)
    for k in range(row.thread, row.n_bins, row.n_threads):
        row.out[k] = row.x[k]


@device
def write_edges(row):
    """Of the edges above the nodes; in the plan, the bins' own are in front of them."""
    places = row.numbers.size - row.out.size - 1  # the root's edge is the last and not wanted
    for i in range(row.thread, row.out.size, row.n_threads):
        row.out[i] = row.x[row.numbers[places + i]]


# ------------------------------------------------------------------------- functions on every edge
#
# What an edge keeps; what it adds to the value, and to the mean over all bins. On CUDA `min` and
# `max` drop NaN, so no NaN may depend on them: an invalid row must not get finite results.


@device
def slope_1(x, w, rho):
    """`edges.slope_1` by comparisons, which keep NaN."""
    sign = x * 2.0**1023
    if sign > 1.0:
        sign = 1.0
    if sign < -1.0:
        sign = -1.0
    return w * sign


@device
def bend_1(x, w, rho):
    return slope_1(x, w, rho), 0.0 * x


SLOPE = {**edges.SLOPE, "1": slope_1}
BEND = {**edges.BEND, "1": bend_1}


@device
def slope_edge(row, e, flow, slope):
    psi = slope(flow, row.rho * weight(row, e), row.rho)
    return psi, flow * psi, psi * share(row, e)


@device
def curvature_at(row, e, flow, curvature):
    return curvature(flow, row.rho * (row.rho - 1.0) * weight(row, e), row.rho)


@device
def diagonal_edge(row, e, flow, curvature):
    h, part = curvature_at(row, e, flow, curvature), share(row, e)
    return h * (1.0 - 2.0 * row.project * part), 0.0, h * part * part


@device
def product_edge(row, e, flow, curvature):
    """The curvature times the flow of `v`, which is in scratch ``y``."""
    product = curvature_at(row, e, flow, curvature) * row.y[e]
    return product, 0.0, product * share(row, e)


@device
def constant_product_edge(row, e, flow, curvature):
    """The same where the curvature depends on the edge only; the flow is that of `v`."""
    product = curvature_at(row, e, 0.0, curvature) * flow
    return product, 0.0, product * share(row, e)


@device
def flow_edge(row, e, flow, _):
    return flow, 0.0, 0.0


@device
def embed_edge(row, e, flow, _):
    return flow * weight(row, e) ** (1.0 / row.rho), 0.0, 0.0


# ------------------------------------------------------------------------ one row of each operation


@device
def gradient_row(row, up, down, slope):
    fill_difference(row)
    value, mean = sweep_up(row, row.x, up, slope_edge, slope)
    if row.out.size > 0:
        write_down(row, down, -row.project * mean)
    return value / row.rho


@device
def diagonal_row(row, up, down, curvature):
    fill_difference(row)
    _, mean = sweep_up(row, row.x, up, diagonal_edge, curvature)
    write_down(row, down, row.project * mean)
    return 0.0


@device
def product_row(row, up, down, curvature):
    fill_vector(row, row.y)
    up(row, row.y)
    fill_difference(row)
    _, mean = sweep_up(row, row.x, up, product_edge, curvature)
    write_down(row, down, -row.project * mean)
    return 0.0


@device
def constant_product_row(row, up, down, curvature):
    fill_vector(row, row.x)
    _, mean = sweep_up(row, row.x, up, constant_product_edge, curvature)
    write_down(row, down, -row.project * mean)
    return 0.0


@device
def flow_row(row, up, down, _):
    fill_difference(row)
    up(row, row.x)
    write_edges(row)
    return 0.0


@device
def embed_row(row, up, down, _):
    fill_difference(row)
    sweep_up(row, row.x, up, embed_edge, _)
    write_edges(row)
    return 0.0


@device
def check_row(row, up, down, _):
    return 0.0


# A row, the functions on its edges, and how many of the scratches x, y, z, u it needs.
ROWS = {
    "gradient": (gradient_row, SLOPE, 1),
    "hessian_diag": (diagonal_row, CURVATURE, 1),
    "hvp": (product_row, CURVATURE, 2),
    "constant_hvp": (constant_product_row, CURVATURE, 1),
    "flow": (flow_row, SLOPE, 1),
    "embed": (embed_row, SLOPE, 1),
    "check": (check_row, SLOPE, 0),
}


# ------------------------------------------------------------------------------------------ checks


@device
def is_histogram_pair(row, tolerance):
    """Whether p and q are histograms of equal mass, up to the tolerance, and v is finite."""
    mass_p, mass_q, negative_p, negative_q = 0.0, 0.0, 0.0, 0.0
    for k in range(row.thread, row.n_bins, row.n_threads):
        p = np.float64(row.p[k])
        mass_p += p
        negative_p -= min(p, 0.0)
        if row.q.size > 0:
            q = np.float64(row.q[k])
            mass_q += q
            negative_q -= min(q, 0.0)
        if row.v.size > 0:
            mass_p += 0.0 * row.v[k]
    mass_p, mass_q = sums(row, mass_p, mass_q)
    negative_p, negative_q = sums(row, negative_p, negative_q)
    if row.q.size == 0:
        mass_q = mass_p
    return (
        mass_p + mass_q < np.inf
        and negative_p <= tolerance * mass_p
        and negative_q <= tolerance * mass_q
        and abs(mass_p - mass_q) <= tolerance * max(mass_p, mass_q)
    )
