"""Operations on histograms: sweep up the tree, apply an edge function, sweep down.

The threads of a team work on a row of the batch team. Scratch ``x`` holds one number per edge:
its flow during the sweep up, then its edge value, then the sum of the edge values up to the root.
All arithmetic is float64, also for float32 arrays, because a flow is a difference of large sums:
results are rounded once, when they are written. Sums are taken in an order that depends on the
number of threads only, so results of the same batch have the same bits every time.

Names and order are those of `fastemd.kernels.cpu.sweeps`. One difference: the thread that adds up
the flows below a node applies the edge function to them, which it has in registers.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastemd.kernels.cuda.block import TeamFunctions, keep_sum
from fastemd.kernels.cuda.memory import int32, load, load_four, load_two, store
from fastemd.kernels.cuda.numba_cuda import device
from fastemd.kernels.edges import Edge, Numbers


def histogram_sweep(operation, cost, is_chain, team):
    """Make the function that performs an operation on a row; it returns `valid` and the value."""
    up, sweep_down, sum_of_bin, _ = sweeps(is_chain, team)
    sweep_up, sweep_up_other = up(operation.edge(cost)), up(None)
    fill_difference, fill_vector = fillers(is_chain, team)
    masses_of_pair, are_histograms = checks(team)
    indices, sums = team.indices, team.sums
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
        first, second = sweep_up(row, x)
        value, mean = sums(row.team, first, second)
        valid = row.options.tolerance < 0.0 or are_histograms(row, masses, finite)
        if row.n_columns > 0:
            if writes_bins:
                sweep_down(row, x, mean_factor * row.numbers.project * mean)
                for k in indices(row.team, row.layout.n_bins):
                    store(row.out, k, sum_of_bin(row, x, k))
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
def node(row, j):
    """Return where the edges below an inner node start and end, its edge, and its parent's."""
    return load_four(row.layout.numbers, int32(4 * j))


@device
def edges_of_bin(row, k):
    """Return the edge of a bin, and that above it."""
    return load_two(row.layout.numbers, int32(4 * row.layout.n_nodes + 2 * k))


@device
def level_start(row, i):
    begin = 4 * row.layout.n_nodes + 2 * row.layout.n_bins
    return load(row.layout.numbers, int32(begin + i))


@device
def place_from_end(row, i):
    """Return where the layout's last edge but `i` is."""
    begin = 4 * row.layout.n_nodes + 2 * row.layout.n_bins + row.layout.n_levels + 1
    return load(row.layout.numbers, int32(begin + i))


# ----------------------------------------------------------------------------------- the two sweeps


class Sweeps(NamedTuple):
    """The sweeps for a kind of space and a team."""

    up: Callable[[Any], Any]  # makes ``sweep_up(row, x)`` for an edge function
    down: Any  # ``sweep_down(row, x, start)``
    sum_of_bin: Any  # ``(row, x, k)``: the sum of the edge values above a bin, after `down`
    put_bin: Any  # ``(row, x, k, mass)``: the mass of a bin, before `up`


@functools.cache
def sweeps(is_chain: bool, team: TeamFunctions) -> Sweeps:
    """Make the sweeps."""
    return (chain_sweeps if is_chain else tree_sweeps)(team)


def tree_sweeps(team: TeamFunctions) -> Sweeps:
    """Make the sweeps for trees: the nodes of a level are processed at the same time."""
    barrier, step = team.barrier, np.int32(team.n_threads)

    def up(edge_values):
        apply_edge = edge_function(edge_values)

        @device
        def sweep_up(row, x):
            """Replace the masses of the bins by edge values; return the thread's two sums."""
            first_sum, second_sum = 0.0, 0.0
            start = int32(0)
            for i in range(row.layout.n_levels):
                end = level_start(row, int32(i + 1))
                barrier()
                for j in range(int32(start + row.team.thread), end, step):
                    child, end_child, edge, _ = node(row, j)
                    flow = 0.0
                    for c in range(child, end_child):
                        flow_of_child = load(x, c)
                        flow += flow_of_child
                        value, first, second = apply_edge(row, c, flow_of_child)
                        store(x, c, value)
                        first_sum += first
                        second_sum += second
                    store(x, edge, flow)
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
        for i in range(row.layout.n_levels - 2, -1, -1):
            begin = level_start(row, int32(i))
            barrier()
            for j in range(int32(begin + row.team.thread), end, step):
                _, _, edge, parent = node(row, j)
                store(x, edge, load(x, edge) + load(x, parent))
            end = begin
        barrier()

    @device
    def sum_of_bin(row, x, k):
        edge, parent = edges_of_bin(row, k)
        return load(x, edge) + load(x, parent)

    @device
    def put_bin(row, x, k, mass):
        edge, _ = edges_of_bin(row, k)
        store(x, edge, mass)

    return Sweeps(up, sweep_down, sum_of_bin, put_bin)


def chain_sweeps(team: TeamFunctions) -> Sweeps:
    """Make the sweeps for chains: every thread processes a piece."""
    barrier = team.barrier
    sum_backwards = team.scan(keep_sum, True)

    def up(edge_values):
        scan = team.scan(edge_function(edge_values), False)

        @device
        def sweep_up(row, x):
            barrier()
            return scan(row.team, x, row.layout.n_bins, 0.0, row)

        return sweep_up

    @device
    def sweep_down(row, x, start):
        sum_backwards(row.team, x, row.layout.n_bins, start, row)

    @device
    def sum_of_bin(row, x, k):
        return load(x, k)

    @device
    def put_bin(row, x, k, mass):
        store(x, k, mass)

    return Sweeps(up, sweep_down, sum_of_bin, put_bin)


# ------------------------------------------------------------------------- a function on every edge


def edge_function(edge_values):
    """Make ``apply_edge(row, e, flow)``, which returns the edge value and two terms of sums.

    A second edge value is stored in `Scratch.other`. Without a function the flow is returned.

    On CUDA `min` and `max` drop NaN, so no NaN in an edge function may depend on them: an invalid
    row must not get finite results.
    """
    if edge_values is None:
        return keep_sum
    values, _, _ = edge_values(Edge(1.0, 1.0, 1.0, Numbers(1.0, 1.0, 1.0, 1.0, 1.0)), 1.0)
    has_two = isinstance(values, tuple)

    @device
    def apply_edge(row, e, flow):
        length, share = load_two(row.layout.lengths, int32(2 * e))
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
def product(factors):
    """Return the product of two factors; if the edge function returns none, -0.0."""
    if factors is None:
        return -0.0
    return factors[0] * factors[1]


# -------------------------------------------------------------------- what the sweep up starts from


def fillers(is_chain: bool, team: TeamFunctions) -> tuple[Any, Any]:
    """Make the functions that fill scratch with ``p - q`` and with `v`."""
    _, _, _, put_bin = sweeps(is_chain, team)
    indices, sums = team.indices, team.sums

    @device
    def fill_vector(row, x):
        """Fill with `v`, less its mean if the total mass is to be conserved; return 0 or NaN."""
        total = 0.0
        for k in indices(row.team, row.layout.n_bins):
            total += np.float64(load(row.inputs.v, k))
        total, _ = sums(row.team, total, 0.0)
        mean = row.numbers.project * total / row.layout.n_bins
        finite = 0.0
        for k in indices(row.team, row.layout.n_bins):
            v = np.float64(load(row.inputs.v, k))
            put_bin(row, x, k, v - mean)
            finite += 0.0 * v
        return finite

    return masses_of(put_bin, team), fill_vector


def masses_of(put, team: TeamFunctions) -> Any:
    """Make ``masses(row, x)``, which also calls ``put(row, x, k, p - q)`` for all bins."""
    indices = team.indices

    @device
    def masses(row, x):
        """Return the masses of p and q, and of their negative entries, of this thread's bins."""
        mass_p, mass_q, negative_p, negative_q = 0.0, 0.0, 0.0, 0.0
        for k in indices(row.team, row.layout.n_bins):
            p, q = np.float64(load(row.inputs.p, k)), 0.0
            if row.inputs.with_q:
                q = np.float64(load(row.inputs.q, k))
            put(row, x, k, p - q)
            mass_p += p
            mass_q += q
            negative_p -= min(p, 0.0)
            negative_q -= min(q, 0.0)
        return mass_p, mass_q, negative_p, negative_q

    return masses


@device
def ignore_bin(row, x, k, mass):
    pass


# ------------------------------------------------------------------------------------------- checks


def checks(team: TeamFunctions) -> tuple[Any, Any]:
    """Make the functions that add up masses, and that compare them."""
    sums, masses_of_pair = team.sums, masses_of(ignore_bin, team)

    @device
    def are_histograms(row, masses, finite):
        """Return whether p and q are histograms of equal mass, up to the tolerance.

        `masses` are those of `masses_of`; `finite` is NaN if `v` is not finite.
        """
        tolerance = row.options.tolerance
        mass_p, mass_q, negative_p, negative_q = masses
        mass_p, mass_q = sums(row.team, mass_p + finite, mass_q)
        negative_p, negative_q = sums(row.team, negative_p, negative_q)
        if not row.inputs.with_q:
            mass_q = mass_p
        return (
            mass_p + mass_q < np.inf
            and negative_p <= tolerance * mass_p
            and negative_q <= tolerance * mass_q
            and abs(mass_p - mass_q) <= tolerance * max(mass_p, mass_q)
        )

    return masses_of_pair, are_histograms
