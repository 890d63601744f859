"""The two sweeps on the CPU: up the tree, a function on every edge, down the tree.

A tile is ``LANES`` rows of the batch side by side in vector registers. Scratch ``x`` holds one lane
vector for every edge: first its flow, then what a function made of it, then the sum of that up to
the root. All arithmetic is float64, also for float32 arrays, because a flow is a difference of
large sums: results are rounded once, on the way out.

Edges come in the order of `fastemd.plan`: the bins' own first, then those above the inner nodes,
each before its parent's. Bins are read from the user's rows, swept up, swept down and written to
the result in blocks of `WIDTH` that do not leave the registers.
"""

from typing import NamedTuple

from numba.extending import register_jitable

from fastemd.kernels.blocks import (
    WIDTH,
    prefetch_block,
    read_block,
    read_column,
    write_block,
    write_column,
)
from fastemd.kernels.lanes import integer_at, load, number_at, splat, store


class Tile(NamedTuple):
    """What one thread works on. Arrays are known by the address (intp) of their first number."""

    n_bins: int
    n_edges: int
    parent: int
    weight: int
    share: int
    p_rows: int  # tables of the addresses of LANES rows
    q_rows: int
    v_rows: int
    zero_rows: int
    out_rows: int
    later_p: int  # the same for rows whose turn comes later,
    later_q: int
    ahead: bool  # if they are to be fetched ahead
    n_out: int  # columns of the output
    x: int  # a lane vector for every edge and one to spare
    y: int  # another such scratch
    rho: float
    project: float  # 1 to conserve the total mass, 0 for the raw derivatives
    like: float  # any number of the type of p, q and v
    like_out: float  # the same for the output


# ---------------------------------------------------------------------------------- the two sweeps


@register_jitable
def up(tile, p_rows, q_rows, x, join, edge, function):
    """Find every edge's flow and keep ``edge(flow)`` in its place; return the sums of two terms."""
    value, mean = splat(0.0), splat(0.0)
    for e in range(tile.n_bins, tile.n_edges + 1):
        store(x, e, splat(0.0))
    flow = splat(0.0)
    whole = tile.n_bins - tile.n_bins % WIDTH
    for k in range(0, whole, WIDTH):
        if tile.ahead:
            prefetch_block(tile.later_p, k, tile.like)
            prefetch_block(tile.later_q, k, tile.like)
            prefetch_block(tile.out_rows, k, tile.like)
        a, b, c, d = read_block(p_rows, q_rows, k, tile.like)
        a = join(tile, x, k, a, flow)
        value_a, mean_a = keep(tile, x, k, a, edge, function)
        b = join(tile, x, k + 1, b, a)
        value_b, mean_b = keep(tile, x, k + 1, b, edge, function)
        c = join(tile, x, k + 2, c, b)
        value_c, mean_c = keep(tile, x, k + 2, c, edge, function)
        flow = join(tile, x, k + 3, d, c)
        value_d, mean_d = keep(tile, x, k + 3, flow, edge, function)
        value = value + ((value_a + value_b) + (value_c + value_d))
        mean = mean + ((mean_a + mean_b) + (mean_c + mean_d))
    for k in range(whole, tile.n_bins):
        flow = join(tile, x, k, read_column(p_rows, q_rows, k, tile.like), flow)
        value_k, mean_k = keep(tile, x, k, flow, edge, function)
        value, mean = value + value_k, mean + mean_k
    for e in range(tile.n_bins, tile.n_edges):
        flow = join(tile, x, e, load(x, e), flow)
        value_e, mean_e = keep(tile, x, e, flow, edge, function)
        value, mean = value + value_e, mean + mean_e
    return value, mean


@register_jitable
def down(tile, x, start, above):
    """Sum what lies on the edges between every bin and the root, from `start`; write it out."""
    store(x, tile.n_edges, start)
    for e in range(tile.n_edges - 1, tile.n_bins - 1, -1):
        store(x, e, load(x, e) + load(x, integer_at(tile.parent, e)))
    rows, like, total = tile.out_rows, tile.like_out, start
    whole = tile.n_bins - tile.n_bins % WIDTH
    for k in range(tile.n_bins - 1, whole - 1, -1):
        total = load(x, k) + above(tile, x, k, total)
        write_column(total, rows, k, like)
    for k in range(whole - WIDTH, -1, -WIDTH):
        d = load(x, k + 3) + above(tile, x, k + 3, total)
        c = load(x, k + 2) + above(tile, x, k + 2, d)
        b = load(x, k + 1) + above(tile, x, k + 1, c)
        total = load(x, k) + above(tile, x, k, b)
        write_block(total, b, c, d, rows, k, like)


@register_jitable
def keep(tile, x, e, flow, edge, function):
    kept, value, mean = edge(tile, e, flow, function)
    store(x, e, kept)
    return value, mean


# On a tree the mass below an edge joins the flow of the edge above; on a chain, where that is the
# next one, the flow stays in registers. Down the tree the same holds for what lies above an edge.


@register_jitable
def tree_join(tile, x, e, mass, flow):
    above = integer_at(tile.parent, e)
    store(x, above, load(x, above) + mass)
    return mass


@register_jitable
def chain_join(tile, x, e, mass, flow):
    return flow + mass


@register_jitable
def tree_above(tile, x, e, total):
    return load(x, integer_at(tile.parent, e))


@register_jitable
def chain_above(tile, x, e, total):
    return total


# ------------------------------------------------------------------------- functions on every edge
#
# What an edge keeps, its part of the value, and its part of the mean over all bins.


@register_jitable
def slope_edge(tile, e, flow, slope):
    psi = slope(flow, number_at(tile.weight, e), tile.rho)
    return psi, flow * psi, psi * number_at(tile.share, e)


@register_jitable
def diagonal_edge(tile, e, flow, curvature):
    h, share = curvature(flow, number_at(tile.weight, e), tile.rho), number_at(tile.share, e)
    return h * (1.0 - 2.0 * tile.project * share), h, h * (share * share)


@register_jitable
def product_edge(tile, e, flow, curvature):
    """The curvature times the flow of `v`, which is in scratch ``y``."""
    product = curvature(flow, number_at(tile.weight, e), tile.rho) * load(tile.y, e)
    return product, product, product * number_at(tile.share, e)


@register_jitable
def flow_edge(tile, e, flow, _):
    return flow, flow, flow


@register_jitable
def embed_edge(tile, e, flow, _):
    return flow * number_at(tile.weight, e), flow, flow


@register_jitable
def curvature_edge(tile, e, flow, curvature):
    h = curvature(flow, number_at(tile.weight, e), tile.rho)
    return h, h, h


# ----------------------------------------------------------------------- one tile of each operation


@register_jitable
def gradient_tile(tile, join, above, slope):
    value, mean = up(tile, tile.p_rows, tile.q_rows, tile.x, join, slope_edge, slope)
    if tile.n_out:
        down(tile, tile.x, mean * -tile.project, above)
    return value * (1.0 / tile.rho)


@register_jitable
def diagonal_tile(tile, join, above, curvature):
    value, mean = up(tile, tile.p_rows, tile.q_rows, tile.x, join, diagonal_edge, curvature)
    down(tile, tile.x, mean * tile.project, above)
    return value


@register_jitable
def product_tile(tile, join, above, curvature):
    flows_of_v(tile, tile.y, join, curvature)
    value, mean = up(tile, tile.p_rows, tile.q_rows, tile.x, join, product_edge, curvature)
    down(tile, tile.x, mean * -tile.project, above)
    return value


@register_jitable
def constant_product_tile(tile, join, above, curvature):
    """The product where the curvature depends on the edge only, not on its flow."""
    flows_of_v(tile, tile.x, join, curvature)
    mean = splat(0.0)
    for e in range(tile.n_edges):
        flow = load(tile.x, e)
        product = curvature(flow, number_at(tile.weight, e), tile.rho) * flow
        mean = mean + product * number_at(tile.share, e)
        store(tile.x, e, product)
    down(tile, tile.x, mean * -tile.project, above)
    return mean


@register_jitable
def flows_of_v(tile, x, join, _):
    """Find the flows of `v`, less its mean if the total mass is to be conserved."""
    up(tile, tile.v_rows, tile.zero_rows, x, join, flow_edge, _)
    total = (
        load(x, tile.n_edges - 1) * tile.project
    )  # the flow above the root, or after the last bin
    for e in range(tile.n_edges):
        store(x, e, load(x, e) - total * number_at(tile.share, e))


@register_jitable
def flow_tile(tile, join, above, _):
    sums = up(tile, tile.p_rows, tile.q_rows, tile.x, join, flow_edge, _)
    write_edges(tile, tile.n_edges - 1 - tile.n_out)
    return sums[0]


@register_jitable
def embed_tile(tile, join, above, _):
    sums = up(tile, tile.p_rows, tile.q_rows, tile.x, join, embed_edge, _)
    write_edges(tile, tile.n_edges - 1 - tile.n_out)
    return sums[0]


@register_jitable
def curvature_tile(tile, join, above, curvature):
    sums = up(tile, tile.p_rows, tile.q_rows, tile.x, join, curvature_edge, curvature)
    write_edges(tile, 0)
    return sums[0]


@register_jitable
def check_tile(tile, join, above, _):
    return splat(0.0)


@register_jitable
def write_edges(tile, first):
    """Write what the edges keep, from edge `first` on."""
    x, rows, like = tile.x, tile.out_rows, tile.like_out
    whole = tile.n_out - tile.n_out % WIDTH
    for k in range(0, whole, WIDTH):
        e = first + k
        write_block(load(x, e), load(x, e + 1), load(x, e + 2), load(x, e + 3), rows, k, like)
    for k in range(whole, tile.n_out):
        write_column(load(x, first + k), rows, k, like)


TILES = {
    "gradient": gradient_tile,
    "hessian_diag": diagonal_tile,
    "hvp": product_tile,
    "constant_hvp": constant_product_tile,
    "flow": flow_tile,
    "embed": embed_tile,
    "curvature": curvature_tile,
    "check": check_tile,
}
