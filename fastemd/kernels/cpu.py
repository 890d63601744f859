"""The two sweeps on the CPU: up the tree, a function on every edge, down the tree.

A tile is a few rows of the batch side by side in vector registers. Scratch ``x`` holds one lane
vector for every edge: first its flow, then what a function made of it, then the sum of that up to
the root. All arithmetic is float64, also for float32 arrays, because a flow is a difference of
large sums: results are rounded once, on the way out.

Edges come in the order of `fastemd.layout`: the bins' own first, then those above the inner nodes,
each before its parent's. Bins are read from the user's rows, swept up, swept down and written to
the result in blocks of `WIDTH` that do not leave the registers.
"""

from typing import NamedTuple

from numba.extending import register_jitable

from fastemd.kernels.blocks import WIDTH, read_block, read_column, write_block, write_column
from fastemd.kernels.lanes import (
    integer_at,
    load,
    multiply_add,
    n_lanes,
    number_at,
    put_number,
    splat,
    store,
)
from fastemd.kernels.memory import meanwhile, settle
from fastemd.kernels.rows import mean_of_row


class Tile(NamedTuple):
    """What one thread works on. Arrays are known by the address of their first number."""

    n_bins: int
    n_edges: int
    n_out: int  # columns of the output
    parent: int
    weight: int  # of every edge, times the function's factor
    share: int
    p_rows: int  # tables of the addresses of the rows
    q_rows: int
    v_rows: int
    out_rows: int
    x: int  # lanes for every edge and one to spare
    y: int  # more such scratch, if the operation needs it
    z: int
    u: int
    highest: int  # of a loss, the largest number of every row,
    factors: int  # what the row counts,
    spare: int  # and room for a number more
    next_pq: int  # where the rows of the next tile start,
    next_v: int
    ahead: bool  # if they are to be fetched meanwhile
    pending: int  # what the last tile staged on its way to memory, see `fastemd.kernels.memory`
    staged: int
    staged_bytes: int
    blank: int  # of a loss, the zeros that stand in for a row that does not count
    rho: float
    project: float  # 1 to conserve the total mass, 0 for the raw derivatives
    labelled: bool  # of a loss, see `fastemd.kernels.losses`
    normalize: int
    cross_entropy: float
    like: float  # any number of the type of p, q and v
    like_out: float  # the same for the output


# ---------------------------------------------------------------------------------- the two sweeps


@register_jitable
def up(tile, x, block, column, source, join, edge, function):
    """Find every edge's flow and keep ``edge(flow)`` in its place; return the sums of two terms.

    The bins' masses are what `block` and `column` find in `source`.
    """
    value, mean, flow = splat(x, 0.0), splat(x, 0.0), splat(x, 0.0)
    for e in range(tile.n_bins, tile.n_edges + 1):
        store(x, e, flow)
    whole = tile.n_bins - tile.n_bins % WIDTH
    for k in range(0, whole, WIDTH):
        a, b, c, d = block(tile, source, k)
        a = join(tile, x, k, a, flow)
        value, mean = keep(tile, x, k, a, edge, function, value, mean)
        b = join(tile, x, k + 1, b, a)
        value, mean = keep(tile, x, k + 1, b, edge, function, value, mean)
        c = join(tile, x, k + 2, c, b)
        value, mean = keep(tile, x, k + 2, c, edge, function, value, mean)
        flow = join(tile, x, k + 3, d, c)
        value, mean = keep(tile, x, k + 3, flow, edge, function, value, mean)
    for k in range(whole, tile.n_bins):
        flow = join(tile, x, k, column(tile, source, k), flow)
        value, mean = keep(tile, x, k, flow, edge, function, value, mean)
    above, mass = -1, splat(x, 0.0)
    for e in range(tile.n_bins, tile.n_edges):
        flow = load(x, e)
        if integer_at(tile.parent, e) != above:
            above = integer_at(tile.parent, e)
            mass = load(x, above)
        mass = mass + flow
        store(x, above, mass)
        value, mean = keep(tile, x, e, flow, edge, function, value, mean)
    return value, mean


@register_jitable
def down(tile, x, start, above, block, column, given):
    """Sum what lies on the edges between every bin and the root, from `start`.

    `block` and `column` take the sums and what they gave for those before, at first `given`.
    """
    down_to_bins(tile, x, start)
    return down_bins(tile, x, start, above, block, column, given)


@register_jitable
def down_to_bins(tile, x, start):
    store(x, tile.n_edges, start)
    for e in range(tile.n_edges - 1, tile.n_bins - 1, -1):
        store(x, e, load(x, e) + load(x, integer_at(tile.parent, e)))


@register_jitable
def down_bins(tile, x, start, above, block, column, given):
    total = start
    whole = tile.n_bins - tile.n_bins % WIDTH
    for k in range(tile.n_bins - 1, whole - 1, -1):
        total = load(x, k) + above(tile, x, k, total)
        given = column(tile, x, k, total, given)
    for k in range(whole - WIDTH, -1, -WIDTH):
        d = load(x, k + 3) + above(tile, x, k + 3, total)
        c = load(x, k + 2) + above(tile, x, k + 2, d)
        b = load(x, k + 1) + above(tile, x, k + 1, c)
        total = load(x, k) + above(tile, x, k, b)
        given = block(tile, x, k, total, b, c, d, given)
    return given


@register_jitable
def keep(tile, x, e, flow, edge, function, value, mean):
    kept, value, mean = edge(tile, e, flow, function, value, mean)
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


# ----------------------------------------------------------------------- what the sweeps start from
#
# `source` is rows, what is to be taken from them (other rows or lanes), and where the next tile's
# rows start.


@register_jitable
def row_block(tile, source, k):
    rows, less, next_rows = source
    meanwhile(tile, next_rows, k, tile.n_bins - tile.n_bins % WIDTH)
    return read_block(rows, less, k, tile.like)


@register_jitable
def row_column(tile, source, k):
    rows, less, _ = source
    return read_column(rows, less, k, tile.like)


# -------------------------------------------------------------------------- and what they end with


@register_jitable
def write_sums(tile, x, k, a, b, c, d, given):
    write_block(a, b, c, d, tile.out_rows, k, tile.like_out)
    return given


@register_jitable
def write_sum(tile, x, k, total, given):
    write_column(total, tile.out_rows, k, tile.like_out)
    return given


# ------------------------------------------------------------------------- functions on every edge
#
# What an edge keeps; what it adds to the value, and to the mean over all bins.


@register_jitable
def slope_edge(tile, e, flow, slope, value, mean):
    psi = slope(flow, number_at(tile.weight, e), tile.rho)
    return psi, multiply_add(flow, psi, value), multiply_add(psi, number_at(tile.share, e), mean)


@register_jitable
def diagonal_edge(tile, e, flow, curvature, value, mean):
    h, share = curvature(flow, number_at(tile.weight, e), tile.rho), number_at(tile.share, e)
    kept = h * (1.0 - 2.0 * tile.project * share)
    return kept, value, multiply_add(h, share * share, mean)


@register_jitable
def product_edge(tile, e, flow, curvature, value, mean):
    """The curvature times the flow of `v`, which is in scratch ``y``."""
    product = curvature(flow, number_at(tile.weight, e), tile.rho) * load(tile.y, e)
    return product, value, multiply_add(product, number_at(tile.share, e), mean)


@register_jitable
def constant_product_edge(tile, e, flow, _, value, mean):
    """The same where the curvature depends on the edge only; the flow is that of `v`."""
    product = number_at(tile.weight, e) * flow
    return product, value, multiply_add(product, number_at(tile.share, e), mean)


@register_jitable
def flow_edge(tile, e, flow, _, value, mean):
    return flow, value, mean


@register_jitable
def embed_edge(tile, e, flow, _, value, mean):
    return flow * number_at(tile.weight, e), value, mean


@register_jitable
def curvature_edge(tile, e, flow, curvature, value, mean):
    return curvature(flow, number_at(tile.weight, e), tile.rho), value, mean


# ----------------------------------------------------------------------- one tile of each operation


@register_jitable
def rows_up(tile, rows, less, x, next_rows, join, edge, function):
    """The sweep up of rows, less other rows or lanes."""
    source = rows, less, next_rows
    sums = up(tile, x, row_block, row_column, source, join, edge, function)
    if integer_at(tile.pending, 0) != 0:
        settle(tile, tile.n_bins // WIDTH, tile.staged_bytes)
    return sums


@register_jitable
def difference_up(tile, join, edge, function):
    """The sweep up of ``p - q``."""
    return rows_up(tile, tile.p_rows, tile.q_rows, tile.x, tile.next_pq, join, edge, function)


@register_jitable
def vector_up(tile, x, join, edge, function):
    """The sweep up of `v`, less its mean if the total mass is to be conserved."""
    for r in range(n_lanes(x)):  # to transpose, where the lanes will be
        put_number(
            x, r, tile.project * mean_of_row(integer_at(tile.v_rows, r), tile.n_bins, tile.like)
        )
    return rows_up(tile, tile.v_rows, load(x, 0), x, tile.next_v, join, edge, function)


@register_jitable
def write_down(tile, start, above):
    """The sweep down of what the edges keep, out to the rows."""
    down(tile, tile.x, start, above, write_sums, write_sum, 0)


@register_jitable
def gradient_tile(tile, join, above, slope):
    value, mean = difference_up(tile, join, slope_edge, slope)
    if tile.n_out:
        write_down(tile, mean * -tile.project, above)
    return value * (1.0 / tile.rho)


@register_jitable
def diagonal_tile(tile, join, above, curvature):
    value, mean = difference_up(tile, join, diagonal_edge, curvature)
    write_down(tile, mean * tile.project, above)
    return value


@register_jitable
def product_tile(tile, join, above, curvature):
    vector_up(tile, tile.y, join, flow_edge, curvature)
    value, mean = difference_up(tile, join, product_edge, curvature)
    write_down(tile, mean * -tile.project, above)
    return value


@register_jitable
def constant_product_tile(tile, join, above, curvature):
    value, mean = vector_up(tile, tile.x, join, constant_product_edge, curvature)
    write_down(tile, mean * -tile.project, above)
    return value


@register_jitable
def flow_tile(tile, join, above, _):
    value, _mean = difference_up(tile, join, flow_edge, _)
    write(tile, edge_column, tile.n_edges - 1 - tile.n_out)
    return value


@register_jitable
def embed_tile(tile, join, above, _):
    value, _mean = difference_up(tile, join, embed_edge, _)
    write(tile, edge_column, tile.n_edges - 1 - tile.n_out)
    return value


@register_jitable
def curvature_tile(tile, join, above, curvature):
    value, _mean = difference_up(tile, join, curvature_edge, curvature)
    write(tile, edge_column, 0)
    return value


@register_jitable
def write(tile, column, given):
    """Write ``column(tile, k, given)`` for every column of the result."""
    rows, like = tile.out_rows, tile.like_out
    whole = tile.n_out - tile.n_out % WIDTH
    for k in range(0, whole, WIDTH):
        a, b = column(tile, k, given), column(tile, k + 1, given)
        c, d = column(tile, k + 2, given), column(tile, k + 3, given)
        write_block(a, b, c, d, rows, k, like)
    for k in range(whole, tile.n_out):
        write_column(column(tile, k, given), rows, k, like)


@register_jitable
def edge_column(tile, k, first):
    return load(tile.x, first + k)


TILES = {
    "gradient": gradient_tile,
    "hessian_diag": diagonal_tile,
    "hvp": product_tile,
    "constant_hvp": constant_product_tile,
    "flow": flow_tile,
    "embed": embed_tile,
    "curvature": curvature_tile,
}
