"""The two sweeps on the CPU, and the operations on histograms, which are made of them.

Every operation sweeps up the tree, applies an edge function on every edge, and sweeps down; see
`histogram_sweep`. Scratch ``x`` holds lanes for every edge: first its flow, then its edge value,
then the sum of the edge values up to the root. All arithmetic is float64, also for float32 arrays,
because a flow is a difference of large sums: results are rounded once, when they are written.

Edges come in the order of `fastemd.layout`: the bins' edges first, then those above the inner
nodes, each before its parent's. Bins are read, swept up, swept down and written in blocks of
`WIDTH` that stay in registers.
"""

import functools
from collections.abc import Callable
from typing import Any

from fastemd.kernels.cpu.checks import mean_of_row
from fastemd.kernels.cpu.row_io import (
    WIDTH,
    read_block,
    read_column,
    write_block,
    write_column,
)
from fastemd.kernels.cpu.simd import (
    add_term,
    integer_at,
    load,
    n_lanes,
    number_at,
    put_number,
    splat,
    store,
    store_each,
)
from fastemd.kernels.cpu.tiles import finish_streaming, overlap_memory
from fastemd.kernels.edges import Edge, EdgeCost, flow_edge
from fastemd.kernels.jitable import jitable
from fastemd.kernels.operations import Operation


def histogram_sweep(operation: Operation, cost: EdgeCost, is_chain: bool) -> Callable[..., Any]:
    """Make the function that performs an operation on a tile and returns its values."""
    sweep_up, sweep_down, _ = sweeps(is_chain)
    edge_values, other_flow = operation.edge(cost), flow_edge(cost)
    sweeps_other, starts_from_v = operation.other == "v", operation.start == "v"
    writes_bins, mean_factor = operation.output == "bins", operation.mean
    n_roots = 1 if operation.output == "nodes" else 0  # the root has no edge

    @jitable
    def sweep(tile):
        x, other = tile.scratch.x, tile.scratch.other
        if sweeps_other:
            sweep_up(tile, other, read_rows, read_row, vectors(tile, other), other_flow)
        if starts_from_v:
            sums = sweep_up(tile, x, read_rows, read_row, vectors(tile, x), edge_values)
        else:
            sums = sweep_up(tile, x, read_rows, read_row, differences(tile), edge_values)
        value, mean = sums
        if writes_bins:
            if tile.out.n_columns > 0:
                start = mean * (mean_factor * tile.numbers.project)
                sweep_down(tile, x, start, write_sums, write_sum, 0)
        else:
            first = tile.layout.n_edges - n_roots - tile.out.n_columns
            write_results(tile, x, first, write_sums, write_sum, 0)
        return value * tile.numbers.cost_factor

    return sweep


# ---------------------------------------------------------------------------------- the two sweeps


@functools.cache
def sweeps(is_chain: bool) -> tuple[Any, Any, Any]:
    """Make `sweep_up`, `sweep_down`, and the part of `sweep_down` that reaches the bins.

    On a tree, the mass below an edge is added to the flow of its parent's edge. On a chain, where
    that is the next edge, the flow stays in registers, and so do the sums on the way down.
    """

    @jitable
    def flow_of_bin(layout, x, k, mass, flow):
        """Return the flow of a bin's edge; `flow` is that of the edge before."""
        if is_chain:
            return flow + mass
        parent = integer_at(layout.parent, k)
        store(x, parent, load(x, parent) + mass)
        return mass

    @jitable
    def sum_of_bin(layout, x, k, total):
        """Return the sum of the edge values above a bin; `total` is that of the bin after it."""
        if is_chain:
            return load(x, k) + total
        return load(x, k) + load(x, integer_at(layout.parent, k))

    @jitable
    def sweep_up(tile, x, read_four, read_one, source, edge_values):
        """Compute every edge's flow, replace it by its edge value; return the two sums.

        `read_four` and `read_one` return the masses of WIDTH bins, or of one, from `source`.
        """
        layout, sums = tile.layout, (splat(x, 0.0), splat(x, 0.0))
        flow = splat(x, 0.0)
        for e in range(layout.n_bins, layout.n_edges + 1):
            store(x, e, flow)
        whole = layout.n_bins - layout.n_bins % WIDTH
        for k in range(0, whole, WIDTH):
            a, b, c, d = read_four(tile, source, k)
            a = flow_of_bin(layout, x, k, a, flow)
            sums = apply_edge(tile, x, k, a, edge_values, sums)
            b = flow_of_bin(layout, x, k + 1, b, a)
            sums = apply_edge(tile, x, k + 1, b, edge_values, sums)
            c = flow_of_bin(layout, x, k + 2, c, b)
            sums = apply_edge(tile, x, k + 2, c, edge_values, sums)
            flow = flow_of_bin(layout, x, k + 3, d, c)
            sums = apply_edge(tile, x, k + 3, flow, edge_values, sums)
        for k in range(whole, layout.n_bins):
            flow = flow_of_bin(layout, x, k, read_one(tile, source, k), flow)
            sums = apply_edge(tile, x, k, flow, edge_values, sums)
        parent, mass = -1, splat(x, 0.0)
        for e in range(layout.n_bins, layout.n_edges):
            flow = load(x, e)
            if integer_at(layout.parent, e) != parent:
                parent = integer_at(layout.parent, e)
                mass = load(x, parent)
            mass = mass + flow
            store(x, parent, mass)
            sums = apply_edge(tile, x, e, flow, edge_values, sums)
        finish_streaming(tile, layout.n_bins // WIDTH, tile.overlap.staged_bytes)
        return sums

    @jitable
    def sweep_down_bins(tile, x, start, write_four, write_one, context):
        layout, total = tile.layout, start
        whole = layout.n_bins - layout.n_bins % WIDTH
        for k in range(layout.n_bins - 1, whole - 1, -1):
            total = sum_of_bin(layout, x, k, total)
            write_one(tile, x, k, total, context)
        for k in range(whole - WIDTH, -1, -WIDTH):
            d = sum_of_bin(layout, x, k + 3, total)
            c = sum_of_bin(layout, x, k + 2, d)
            b = sum_of_bin(layout, x, k + 1, c)
            total = sum_of_bin(layout, x, k, b)
            write_four(tile, x, k, total, b, c, d, context)

    @jitable
    def sweep_down(tile, x, start, write_four, write_one, context):
        """Sum the edge values from the root down to every bin, from `start`.

        `write_four` and `write_one` get the sums of WIDTH bins, or of one, and `context`.
        """
        sweep_down_nodes(tile.layout, x, start)
        sweep_down_bins(tile, x, start, write_four, write_one, context)

    return sweep_up, sweep_down, sweep_down_bins


@jitable
def apply_edge(tile, x, e, flow, edge_values, sums):
    """Replace the flow of an edge by its edge value; return the sums with its terms."""
    other = tile.scratch.other
    length, share = number_at(tile.layout.length, e), number_at(tile.layout.share, e)
    edge = Edge(length, share, load(other, e), tile.numbers)
    values, first_term, second_term = edge_values(edge, flow)
    store_each(x, other, e, values)
    return add_term(first_term, sums[0]), add_term(second_term, sums[1])


@jitable
def sweep_down_nodes(layout, x, start):
    """Sum the edge values from the root down to every inner node."""
    store(x, layout.n_edges, start)
    for e in range(layout.n_edges - 1, layout.n_bins - 1, -1):
        store(x, e, load(x, e) + load(x, integer_at(layout.parent, e)))


# ----------------------------------------------------------------- what the sweep up starts from
#
# The source of rows: their table, what is subtracted (other rows, or lanes), the next tile's rows.


@jitable
def differences(tile):
    """Return the source of ``p - q``."""
    return tile.rows.p, tile.rows.q, tile.overlap.next_pq


@jitable
def vectors(tile, x):
    """Return the source of `v`, minus its mean if the total mass is conserved."""
    for r in range(n_lanes(x)):  # in x, which is not in use yet
        mean = mean_of_row(integer_at(tile.rows.v, r), tile.layout.n_bins, False, tile.rows.like)
        put_number(x, r, tile.numbers.project * mean)
    return tile.rows.v, load(x, 0), tile.overlap.next_v


@jitable
def read_rows(tile, source, k):
    rows, subtracted, next_rows = source
    overlap_memory(tile, next_rows, k)
    return read_block(rows, subtracted, k, tile.rows.like)


@jitable
def read_row(tile, source, k):
    rows, subtracted, _ = source
    return read_column(rows, subtracted, k, tile.rows.like)


# ------------------------------------------------------------------------------- what is written


def writers(column: Callable[..., Any]) -> tuple[Any, Any]:
    """Make the functions that write ``column(tile, k, total, context)`` to the result.

    The first one gets the totals of WIDTH bins, the second one that of one bin.
    """

    @jitable
    def write_four(tile, x, k, a, b, c, d, context):
        a, b = column(tile, k, a, context), column(tile, k + 1, b, context)
        c, d = column(tile, k + 2, c, context), column(tile, k + 3, d, context)
        write_block(a, b, c, d, tile.out.rows, k, tile.out.like)

    @jitable
    def write_one(tile, x, k, total, context):
        write_column(column(tile, k, total, context), tile.out.rows, k, tile.out.like)

    return write_four, write_one


@jitable
def total_column(tile, k, total, context):
    return total


write_sums, write_sum = writers(total_column)


@jitable
def write_results(tile, x, first, write_four, write_one, context):
    """Write all columns of the result, from the lanes in `x` from `first` on."""
    whole = tile.out.n_columns - tile.out.n_columns % WIDTH
    for k in range(0, whole, WIDTH):
        a, b = load(x, first + k), load(x, first + k + 1)
        c, d = load(x, first + k + 2), load(x, first + k + 3)
        write_four(tile, x, k, a, b, c, d, context)
    for k in range(whole, tile.out.n_columns):
        write_one(tile, x, k, load(x, first + k), context)
