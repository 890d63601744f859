"""Operations on histograms: sweep up the tree, apply an edge function, sweep down.

The threads of a team work on a row of the batch. Scratch ``x`` holds one number per edge:
its flow during the sweep up, then its edge value, then the sum of the edge values up to the root.
All arithmetic is float64, also for float32 arrays, because a flow is a difference of large sums:
results are rounded once, when they are written. Sums are taken in an order that depends on the
number of threads and of lanes only, so results of the same batch have the same bits every time.

Names and order are those of `fastemd.kernels.cpu.sweeps`. One difference: the thread that adds up
the flows below a node applies the edge function to them, which it has in registers.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastemd.kernels.cuda.block import TeamFunctions
from fastemd.kernels.cuda.lanes import LaneFunctions
from fastemd.kernels.cuda.memory import (
    count,
    int32,
    load,
    load_two,
    pointer,
    quotient,
    store,
)
from fastemd.kernels.cuda.numba_cuda import device
from fastemd.kernels.edges import Edge, Numbers
from fastemd.layout import GROUP


def histogram_sweep(operation, cost, is_chain, team, lanes):
    """Make the function that performs an operation on a row; it returns `valid` and the value.

    A thread reads and writes as many bins side by side as there are `lanes`.
    """
    up, sweep_down, sum_of_bins, put_bins = sweeps(is_chain, team, lanes)
    sweep_up, sweep_up_other = up(operation.edge(cost)), up(None)
    fill_difference = masses_of(put_bins, operation.pairs, team, lanes)
    masses_of_pair = masses_of(ignore_bins, operation.pairs, team, lanes)
    fill_vector = vector_filler(put_bins, team, lanes)
    are_histograms = histogram_check(operation.pairs, team)
    indices, groups, sums = team.indices, team.groups(lanes.count), team.sums
    write = lanes.write
    starts_from_v, sweeps_other = operation.start == "v", operation.other == "v"
    writes_bins, mean_factor = operation.output == "bins", operation.mean
    n_roots = 1 if operation.output == "nodes" else 0  # the root has no edge

    @device
    def sweep(row):
        x, other, finite = row.scratch.x, row.scratch.other, 0.0
        if sweeps_other:
            finite = fill_vector(row, other)
            sweep_up_other(row, other)
        if starts_from_v:
            masses = masses_of_pair(row, x)
            finite = fill_vector(row, x)
        else:
            masses = fill_difference(row, x)
        valid = row.options.tolerance < 0.0 or are_histograms(row, masses, finite)
        first, second = sweep_up(row, x)
        value, mean = sums(row.team, first, second)
        if row.n_columns > 0:
            if writes_bins:
                sweep_down(row, x, mean_factor * row.numbers.project * mean)
                for k in groups(row.team, row.layout.n_bins):
                    write(row.out, k, sum_of_bins(row, x, k))
            else:
                write_edges(row, x)
        return valid, value * row.numbers.cost_factor

    @device
    def write_edges(row, x):
        """Write the edge values in the order of the layout, without those of the last roots."""
        last = row.n_columns + n_roots - 1
        for i in indices(row.team, row.n_columns):
            store(row.out, i, load(x, place_from_end(row, last - i)))

    return sweep


# ------------------------------------------------------ the layout, see `fastemd.layout.CudaTables`


@device
def node_edges(row, j):
    """Return the edge of an inner node and that above it."""
    return load_two(pointer(row.layout.numbers, row.layout.nodes), j)


@device
def node_group(row, i):
    """Return where the edges below nodes side by side start, and their numbers by place."""
    return load_two(pointer(row.layout.numbers, int32(8)), i)


@device
def level_start(row, i):
    return load(row.layout.numbers, int32(row.layout.levels + i))


@device
def place_from_end(row, i):
    """Return where the layout's last edge but `i` is."""
    return load(row.layout.numbers, int32(row.layout.places + i))


# ----------------------------------------------------------------------------------- the two sweeps


class Sweeps(NamedTuple):
    """The sweeps for a kind of space, a team, and lanes of bins."""

    up: Callable[[Any], Any]  # makes ``sweep_up(row, x)`` for an edge function
    down: Any  # ``sweep_down(row, x, start)``
    sum_of_bins: Any  # ``(row, x, k)``: the sums of the edge values above the bins, after `down`
    put_bins: Any  # ``(row, x, k, mass)``: the masses of the bins, before `up`


@functools.cache
def sweeps(is_chain: bool, team: TeamFunctions, lanes: LaneFunctions) -> Sweeps:
    """Make the sweeps."""
    return (chain_sweeps if is_chain else tree_sweeps)(team, lanes)


def tree_sweeps(team: TeamFunctions, lanes: LaneFunctions) -> Sweeps:
    """Make the sweeps for trees: the nodes of a level are processed at the same time."""
    barrier, step = team.barrier, np.int32(team.n_threads)
    is_aligned, n_lanes = team.n_threads % GROUP == 0, np.int32(GROUP)
    gather, scatter, places = lanes.gather, lanes.scatter, lanes.places

    def up(edge_values):
        apply_edge = edge_function(edge_values)

        @device
        def sweep_up(row, x):
            """Replace the masses of the bins by edge values; return the thread's two sums."""
            first_sum, second_sum = 0.0, 0.0
            start, first_group = int32(0), int32(0)
            for i in count(0, row.layout.n_levels, 1):
                end = level_start(row, int32(i + 1))
                barrier()
                for j in count(start + row.team.thread, end, step):
                    place = int32(j - start)
                    group = int32(first_group + quotient(place, n_lanes))
                    lane = (row.team.thread if is_aligned else place) & (n_lanes - 1)
                    c, counts = node_group(row, group)
                    edge, _ = node_edges(row, j)
                    flow, c, n = 0.0, int32(c + lane), int32(counts & 255)
                    while lane < n:
                        flow_of_child = load(x, c)
                        flow += flow_of_child
                        value, first, second = apply_edge(row, c, flow_of_child)
                        store(x, c, value)
                        first_sum += first
                        second_sum += second
                        c, counts = int32(c + n), int32(counts >> 8)
                        n = int32(counts & 255)
                    store(x, edge, flow)
                n_groups = quotient(int32(end - start + n_lanes - 1), n_lanes)
                first_group = int32(first_group + n_groups)
                start = end
            barrier()
            return first_sum, second_sum

        return sweep_up

    @device
    def sweep_down(row, x, start):
        """Turn the edge values of inner nodes into their sums up to the root, from `start`."""
        if row.team.thread == 0:
            store(x, row.layout.n_edges, start)
        end = level_start(row, int32(row.layout.n_levels - 1))  # the last node has no edge
        for i in count(2, row.layout.n_levels + 1, 1):
            begin = level_start(row, int32(row.layout.n_levels - i))
            barrier()
            for j in count(begin + row.team.thread, end, step):
                edge, parent = node_edges(row, j)
                store(x, edge, load(x, edge) + load(x, parent))
            end = begin
        barrier()

    @device
    def sum_of_bins(row, x, k):
        edges = places(row.layout.numbers, int32(row.layout.bins + k))
        parents = places(row.layout.numbers, int32(row.layout.parents + k))
        return gather(x, edges) + gather(x, parents)

    @device
    def put_bins(row, x, k, mass):
        scatter(x, places(row.layout.numbers, int32(row.layout.bins + k)), mass)

    return Sweeps(up, sweep_down, sum_of_bins, put_bins)


def chain_sweeps(team: TeamFunctions, lanes: LaneFunctions) -> Sweeps:
    """Make the sweeps for chains: every thread sums a piece."""
    barrier, indices, read, write = team.barrier, team.indices, lanes.read, lanes.write
    sum_forwards, sum_backwards = team.scan(False), team.scan(True)

    def up(edge_values):
        apply_edge = edge_function(edge_values)

        @device
        def sweep_up(row, x):
            barrier()
            sum_forwards(row.team, x, row.layout.n_bins, 0.0)
            first_sum, second_sum = 0.0, 0.0
            for k in indices(row.team, row.layout.n_bins):
                value, first, second = apply_edge(row, k, load(x, k))
                store(x, k, value)
                first_sum += first
                second_sum += second
            barrier()
            return first_sum, second_sum

        return sweep_up

    @device
    def sweep_down(row, x, start):
        sum_backwards(row.team, x, row.layout.n_bins, start)

    @device
    def sum_of_bins(row, x, k):
        return read(x, k)

    @device
    def put_bins(row, x, k, mass):
        write(x, k, mass)

    return Sweeps(up, sweep_down, sum_of_bins, put_bins)


# ------------------------------------------------------------------------- a function on every edge


def edge_function(edge_values):
    """Make ``apply_edge(row, e, flow)``, which returns the edge value and two terms of sums.

    A second edge value is stored in `Scratch.other`. Without a function the flow is returned.

    On CUDA `min` and `max` drop NaN, so no NaN in an edge function may depend on them: an invalid
    row must not get finite results.
    """
    if edge_values is None:
        return keep_flow
    values, _, _ = edge_values(Edge(1.0, 1.0, 1.0, Numbers(1.0, 1.0, 1.0, 1.0, 1.0)), 1.0)
    has_two = isinstance(values, tuple)

    @device
    def apply_edge(row, e, flow):
        length, share = load_two(row.layout.lengths, e)
        length *= row.numbers.length_factor
        edge = Edge(length, share, load(row.scratch.other, e), row.numbers)
        values, first, second = edge_values(edge, flow)
        if has_two:
            value, other = values
            store(row.scratch.other, e, other)
        else:
            value = values
        return value, product(first), product(second)

    return apply_edge


@device
def keep_flow(row, e, flow):
    return flow, 0.0, 0.0


@device
def product(factors):
    """Return the product of two factors; if the edge function returns none, -0.0."""
    if factors is None:
        return -0.0
    return factors[0] * factors[1]


# -------------------------------------------------------------------- what the sweep up starts from


def vector_filler(put_bins, team: TeamFunctions, lanes: LaneFunctions) -> Any:
    """Make the function that fills scratch with `v`."""
    groups, sums = team.groups(lanes.count), team.sums
    read, total_of = lanes.read, lanes.total

    @device
    def fill_vector(row, x):
        """Fill with `v`, less its mean if the total mass is to be conserved; return 0 or NaN."""
        total, finite = 0.0, 0.0
        for k in groups(row.team, row.layout.n_bins):
            total += total_of(read(row.inputs.v, k))
        total, _ = sums(row.team, total, 0.0)
        mean = row.numbers.project * total / row.layout.n_bins
        for k in groups(row.team, row.layout.n_bins):
            v = read(row.inputs.v, k)
            put_bins(row, x, k, v - mean)
            finite += total_of(0.0 * v)
        return finite

    return fill_vector


def masses_of(put, pairs: bool, team: TeamFunctions, lanes: LaneFunctions) -> Any:
    """Make ``masses(row, x)``, which also calls ``put(row, x, k, p - q)`` for all bins."""
    groups = team.groups(lanes.count)
    read, zeros, total_of, negative = lanes.read, lanes.zeros, lanes.total, lanes.negative

    @device
    def masses(row, x):
        """Return the masses of p and q, and of their negative entries, of this thread's bins."""
        mass_p, mass_q, negative_p, negative_q = 0.0, 0.0, 0.0, 0.0
        for k in groups(row.team, row.layout.n_bins):
            p, q = read(row.inputs.p, k), zeros()
            mass_p += total_of(p)
            negative_p += negative(row.inputs.p, k)
            if pairs:
                q = read(row.inputs.q, k)
                mass_q += total_of(q)
                negative_q += negative(row.inputs.q, k)
            put(row, x, k, p - q)
        return mass_p, mass_q, negative_p, negative_q

    return masses


@device
def ignore_bins(row, x, k, mass):
    pass


# ------------------------------------------------------------------------------------------- checks


def histogram_check(pairs: bool, team: TeamFunctions) -> Any:
    """Make the function that compares masses."""
    sums = team.sums

    @device
    def are_histograms(row, masses, finite):
        """Return whether p and q are histograms of equal mass, up to the tolerance.

        `masses` are those of `masses_of`; `finite` is NaN if `v` is not finite.
        """
        tolerance = row.options.tolerance
        mass_p, mass_q, negative_p, negative_q = masses
        mass_p, mass_q = sums(row.team, mass_p + finite, mass_q)
        negative_p, negative_q = sums(row.team, negative_p, negative_q)
        if not pairs:
            mass_q = mass_p
        return (
            mass_p + mass_q < np.inf
            and negative_p <= tolerance * mass_p
            and negative_q <= tolerance * mass_q
            and abs(mass_p - mass_q) <= tolerance * max(mass_p, mass_q)
        )

    return are_histograms
