"""Operations on histograms: sweep up the tree, apply an edge function, sweep down.

The threads of a team work on a row of the batch together. Scratch ``x`` holds one number per edge:
its flow after the sweep up, then its edge value, then the sum of the edge values up to the root.
All arithmetic is float64, also for float32 arrays, because a flow is a difference of large sums:
results are rounded once, when they are written. Sums are taken in a fixed order, so results have
the same bits every time.

Names and order are those of `fastemd.kernels.cpu.sweeps`.
"""

import numpy as np

from fastemd.kernels.cuda.block import (
    barrier,
    scan,
    sums,
    team_range,
    thread_bins,
    thread_edges,
)
from fastemd.kernels.cuda.numba_cuda import device
from fastemd.kernels.edges import Edge, Numbers


def histogram_sweep(operation, cost, is_chain):
    """Make the function that performs an operation on a row; it returns `valid` and the value."""
    sweep_up, sweep_down = sweeps(is_chain)
    apply_edges = edge_loop(operation.edge(cost))
    sweeps_other, fill_other = bool(operation.other), FILL[operation.other or operation.start]
    fill, writes_bins, mean_factor = (
        FILL[operation.start],
        operation.output == "bins",
        operation.mean,
    )
    n_roots = 1 if operation.output == "nodes" else 0  # the root has no edge

    @device
    def sweep(row):
        x, other, project = row.scratch.x, row.scratch.other, row.numbers.project
        valid = row.options.tolerance < 0.0 or is_histogram_pair(row, row.options.tolerance)
        if sweeps_other:
            fill_other(row, other)
            sweep_up(row, other)
        fill(row, x)
        sweep_up(row, x)
        value, mean = apply_edges(row)
        if row.out.size > 0:
            if writes_bins:
                sweep_down(row, x, mean_factor * project * mean)
                write_bins(row, x)
            else:
                write_edges(row, x, n_roots)
        return valid, value * row.numbers.cost_factor

    return sweep


# ------------------------------------------------------ the layout, see `fastemd.layout.CudaTables`


@device
def parent(row, e):
    return row.layout.numbers[e]


@device
def first_child(row, e):
    """Return where the list of the edges below an edge begins; the list before it ends there."""
    n_edges, n_bins = row.layout.n_edges, row.layout.n_bins
    return 2 * n_edges - n_bins + 1 + row.layout.numbers[n_edges + e - n_bins]


@device
def level_start(row, i):
    return row.layout.numbers[3 * row.layout.n_edges - row.layout.n_bins + i]


@device
def level_edges(row, i):
    return range(level_start(row, i) + row.team.thread, level_start(row, i + 1), row.team.n_threads)


# ----------------------------------------------------------------------------------- the two sweeps


@device
def sweep_up_tree(row, x):
    """Turn the masses of the bins into the flow of every edge."""
    for i in range(row.layout.n_levels):
        barrier()
        for e in level_edges(row, i):
            flow = 0.0
            for j in range(first_child(row, e), first_child(row, e + 1)):
                flow += x[row.layout.numbers[j]]
            x[e] = flow
    barrier()


@device
def sweep_down_tree(row, x, start):
    """Turn the edge values into their sums up to the root, from `start`.

    `apply_edges` ends with a barrier. Afterwards a thread sees the sums of its bins only.
    """
    if row.team.thread == 0:
        x[row.layout.n_edges] = start
    for i in range(row.layout.n_levels - 1, -1, -1):
        barrier()
        for e in level_edges(row, i):
            x[e] += x[parent(row, e)]
    barrier()
    for k in thread_bins(row):
        x[k] += x[parent(row, k)]


@device
def sweep_up_chain(row, x):
    barrier()
    scan(row.team, x, row.layout.n_bins, 0.0, False)


@device
def sweep_down_chain(row, x, start):
    scan(row.team, x, row.layout.n_bins, start, True)


def sweeps(is_chain):
    """Return `sweep_up` and `sweep_down`."""
    return (sweep_up_chain, sweep_down_chain) if is_chain else (sweep_up_tree, sweep_down_tree)


# ------------------------------------------------------------------------- a function on every edge


def edge_loop(edge_values):
    """Make the function that replaces all flows of a row by edge values and returns the two sums.

    On CUDA `min` and `max` drop NaN, so no NaN in an edge function may depend on them: an invalid
    row must not get finite results.
    """
    values, _, _ = edge_values(Edge(1.0, 1.0, 1.0, Numbers(1.0, 1.0, 1.0, 1.0, 1.0)), 1.0)
    has_two = isinstance(values, tuple)

    @device
    def apply_edges(row):
        x, other, numbers = row.scratch.x, row.scratch.other, row.numbers
        lengths, n_edges = row.layout.lengths, row.layout.n_edges
        first_sum, second_sum = 0.0, 0.0
        for e in thread_edges(row):
            length, share = numbers.length_factor * lengths[e], lengths[n_edges + e]
            edge = Edge(length, share, other[e], numbers)
            values, first, second = edge_values(edge, x[e])
            if has_two:
                x[e], other[e] = values
            else:
                x[e] = values
            first_sum = add_term(first_sum, first)
            second_sum = add_term(second_sum, second)
        return sums(row.team, first_sum, second_sum)

    return apply_edges


@device
def add_term(total, factors):
    """Add the product of two factors, if the edge function returns them."""
    if factors is None:
        return total
    return total + factors[0] * factors[1]


# -------------------------------------------------------------------- what the sweep up starts from


@device
def fill_difference(row, x):
    p, q = row.inputs.p, row.inputs.q
    for k in thread_bins(row):
        mass = np.float64(p[k])
        if q.size > 0:
            mass -= np.float64(q[k])
        x[k] = mass


@device
def fill_vector(row, x):
    """Fill with `v`, less its mean if the total mass is to be conserved."""
    v, total = row.inputs.v, 0.0
    for k in thread_bins(row):
        total += np.float64(v[k])
    total, _ = sums(row.team, total, 0.0)
    mean = row.numbers.project * total / row.layout.n_bins
    for k in thread_bins(row):
        x[k] = np.float64(v[k]) - mean


FILL = {"p - q": fill_difference, "v": fill_vector}


# ---------------------------------------------------------------------------------- what is written


@device
def write_bins(row, x):
    for k in thread_bins(row):
        row.out[k] = x[k]


@device
def write_edges(row, x, n_roots):
    """Write the edge values in the order of the layout, without those of the last `n_roots`."""
    first = row.layout.numbers.size - n_roots - row.out.size
    for i in team_range(row.team, row.out.size):
        row.out[i] = x[row.layout.numbers[first + i]]


# ------------------------------------------------------------------------------------------- checks


@device
def is_histogram_pair(row, tolerance):
    """Return whether p and q are histograms of equal mass, up to the tolerance, and v is finite."""
    mass_p, mass_q, negative_p, negative_q = 0.0, 0.0, 0.0, 0.0
    for k in thread_bins(row):
        p = np.float64(row.inputs.p[k])
        mass_p += p
        negative_p -= min(p, 0.0)
        if row.inputs.q.size > 0:
            q = np.float64(row.inputs.q[k])
            mass_q += q
            negative_q -= min(q, 0.0)
        if row.inputs.v.size > 0:
            mass_p += 0.0 * row.inputs.v[k]
    mass_p, mass_q = sums(row.team, mass_p, mass_q)
    negative_p, negative_q = sums(row.team, negative_p, negative_q)
    if row.inputs.q.size == 0:
        mass_q = mass_p
    return (
        mass_p + mass_q < np.inf
        and negative_p <= tolerance * mass_p
        and negative_q <= tolerance * mass_q
        and abs(mass_p - mass_q) <= tolerance * max(mass_p, mass_q)
    )
