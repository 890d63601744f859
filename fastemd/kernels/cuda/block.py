"""The threads that work on a row: sums and scans over them, and the loops of the kernels.

A block is ``blockDim.x`` threads per row times ``blockDim.y`` rows. All rows of a block take the
same steps at the same time, so every thread meets every barrier; past the end of the batch the last
row is computed again and written with the same numbers. No barrier separates a row from the next
one: at both ends of a row a thread touches only its part of the bins.

Kernels are made here, because Numba's simulator replaces `cuda` in the module of the kernel alone.
"""

from typing import NamedTuple

import numpy as np
from numba import float64
from numba.extending import register_jitable

from fastemd.kernels.cuda.numba_cuda import cuda, device, view
from fastemd.kernels.edges import Numbers

# A thread has a few edges. Long rows have enough threads to hide the latency of memory, and short
# rows share a block.
EDGES_PER_THREAD, THREADS_PER_ROW, THREADS_PER_BLOCK = 4, 256, 128


class Team(NamedTuple):
    """Threads that work together."""

    thread: int
    n_threads: int  # a power of 2
    block: int
    n_blocks: int
    exchange: np.ndarray  # two float64 per thread


class Layout(NamedTuple):
    """An edge layout on the device, see `fastemd.layout.CudaTables`."""

    n_bins: int
    n_edges: int
    n_levels: int
    numbers: np.ndarray
    lengths: np.ndarray


class Scratch(NamedTuple):
    """Arrays of float64, one number per edge and one to spare; as many as an operation needs."""

    x: np.ndarray  # flow, then edge value, then sum of edge values up to the root
    y: np.ndarray  # of a loss: the masses before they are normalised
    other: np.ndarray  # the same for a second vector
    u: np.ndarray  # of a loss: the change of p


class Inputs(NamedTuple):
    """The user's rows, or no elements."""

    p: np.ndarray  # of a loss: x
    q: np.ndarray  # of a loss: the target
    v: np.ndarray


class Options(NamedTuple):
    """Options of all rows, and the labels and weights of the rows."""

    tolerance: float  # of masses; negative: no checks
    normalize: int  # of a loss: see `fastemd.kernels.operations.NORMALIZATIONS`
    cross_entropy: float
    labels: np.ndarray  # (G * R,), or no elements if the targets are histograms
    row_weights: np.ndarray  # (G * R,), or no elements
    row_weight: float  # of all rows, if there are no `row_weights`


class Row(NamedTuple):
    """One row of the batch."""

    team: Team
    layout: Layout
    scratch: Scratch
    inputs: Inputs
    out: np.ndarray
    numbers: Numbers
    options: Options
    label: int  # see `label_of`
    row_weight: float  # of the loss and its derivatives; if it is 0, the row is not read


def block_of(n_edges):
    """Return the threads per row and the rows per block."""
    n_threads = 1
    while n_threads < THREADS_PER_ROW and n_threads * EDGES_PER_THREAD < n_edges:
        n_threads *= 2
    return n_threads, max(1, THREADS_PER_BLOCK // n_threads)


@register_jitable
def scratch_per_row(n_scratch, n_edges, n_threads):
    """Return the number of float64."""
    return 2 * n_threads + n_scratch * (n_edges + 1)


# -------------------------------------------------------------------- what threads compute together


@device
def barrier():
    cuda.syncthreads()


@device
def team_range(team, n):
    """Return the indices below `n` of a thread among those of its team."""
    return range(team.thread, n, team.n_threads)


@device
def grid_range(team, n):
    """Return the indices below `n` of a thread among those of all blocks."""
    return range(team.block * team.n_threads + team.thread, n, team.n_blocks * team.n_threads)


@device
def sums(team, a, b):
    """Return the sums of two numbers over the threads, to every thread."""
    exchange, t, n = team.exchange, team.thread, team.n_threads
    exchange[t] = a
    exchange[n + t] = b
    barrier()
    half = n // 2
    while half > 0:
        if t < half:
            exchange[t] += exchange[t + half]
            exchange[n + t] += exchange[n + t + half]
        barrier()
        half //= 2
    a, b = exchange[0], exchange[n]
    barrier()
    return a, b


@device
def larger(a, b):
    """Return the larger of two numbers; NaN if one is NaN, unlike `max` on CUDA."""
    return b if a == a and not b <= a else a


@device
def largest(team, a):
    """Return the largest of a number over the threads, to every thread; NaN if one is NaN."""
    exchange, t = team.exchange, team.thread
    exchange[t] = a
    barrier()
    half = team.n_threads // 2
    while half > 0:
        if t < half:
            exchange[t] = larger(exchange[t], exchange[t + half])
        barrier()
        half //= 2
    a = exchange[0]
    barrier()
    return a


@device
def scan(team, x, n, start, backwards):
    """Add to ``x[k]``, k < n, `start` and all numbers before it, or all after it if `backwards`.

    Every thread sums a piece. Its size is odd: threads read side by side, and the number of banks
    of memory is a power of 2.
    """
    exchange, t = team.exchange, team.thread
    piece = ((n + team.n_threads - 1) // team.n_threads) | 1
    begin, end = min(t * piece, n), min((t + 1) * piece, n)
    total = 0.0
    for i in range(begin, end):
        k = n - 1 - i if backwards else i
        total += x[k]
        x[k] = total
    exchange[t] = total
    barrier()
    distance = 1
    while distance < team.n_threads:
        more = 0.0
        if t >= distance:
            more = exchange[t - distance]
        barrier()
        exchange[t] += more
        barrier()
        distance *= 2
    before = start
    if t > 0:
        before += exchange[t - 1]
    for i in range(begin, end):
        k = n - 1 - i if backwards else i
        x[k] += before
    barrier()


@device
def report_row(errors, slot, row):
    """Record an invalid row in a slot of `errors`, unless an earlier one is there."""
    cuda.atomic.min(errors, slot, row)


# ----------------------------------------------------------------------------- one row of the batch


@device
def thread_bins(row):
    """Return the bins of a thread."""
    return team_range(row.team, row.layout.n_bins)


@device
def thread_edges(row):
    """Return the edges of a thread."""
    return team_range(row.team, row.layout.n_edges)


@view
def row_at(array, group, i):
    """Return a row of (G, R, columns), where 1 stands for any G or R."""
    return array[min(group, array.shape[0] - 1), min(i, array.shape[1] - 1)]


@view
def part(memory, i, n_threads, n_edges):
    """Return the i-th scratch array of a row; no elements beyond the last one."""
    begin = 2 * n_threads + i * (n_edges + 1)
    return memory[begin : begin + n_edges + 1]


@device
def label_of(labels, number, n_bins):
    """Return the label of a row; -1 if the target is a histogram, `n_bins` if it is invalid."""
    if labels.size == 0:
        return -1
    label = labels[number]
    return label if 0 <= label < n_bins else n_bins


@view
def open_team(exchange):
    return Team(
        cuda.threadIdx.x, cuda.blockDim.x, cuda.blockIdx.x, cuda.gridDim.x, exchange
    )  # fmt: skip


@view
def open_row(layout, inputs, out, numbers, options, number, n_scratch, shared, scratch):
    """Return the row of this number; its memory is shared, or part of `scratch` if there is any."""
    n_threads, n_edges = cuda.blockDim.x, layout.n_edges
    size = scratch_per_row(n_scratch, n_edges, n_threads)
    slot, memory = cuda.threadIdx.y, shared
    if scratch.size > 0:
        memory, slot = scratch, slot + cuda.blockIdx.x * cuda.blockDim.y
    memory = memory[slot * size : (slot + 1) * size]
    p, q, v = inputs
    group, i = number // p.shape[1], number % p.shape[1]
    return Row(
        open_team(memory),
        layout,
        Scratch(
            part(memory, 0, n_threads, n_edges), part(memory, 1, n_threads, n_edges),
            part(memory, min(2, n_scratch - 1), n_threads, n_edges),
            part(memory, 3, n_threads, n_edges),
        ),
        Inputs(row_at(p, group, i), row_at(q, group, i), row_at(v, group, i)),
        row_at(out, group, i),
        numbers,
        options,
        label_of(options.labels, number, layout.n_bins),
        options.row_weights[number] if options.row_weights.size > 0 else options.row_weight,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------- kernels


def row_kernel(sweep, n_scratch):
    """Return the kernel that calls ``sweep(row)`` for every row.

    `inputs` and `out` are (G, R, columns), `value` is (G * R,), each without elements if there is
    none. The first invalid row goes to ``errors[0]``.
    """

    def run(layout, inputs, numbers, value, out, options, errors, scratch):
        shared, n_rows = cuda.shared.array(0, float64), inputs.p.shape[0] * inputs.p.shape[1]
        first = cuda.blockIdx.x * cuda.blockDim.y
        while first < n_rows:
            number = min(first + cuda.threadIdx.y, n_rows - 1)
            row = open_row(
                layout, inputs, out, numbers, options, number, n_scratch, shared, scratch
            )  # fmt: skip
            valid, result = sweep(row)
            if not valid:
                report_row(errors, 0, number)
            if value.size > 0 and row.team.thread == 0:
                value[number] = result
            first += cuda.gridDim.x * cuda.blockDim.y

    return run


def team_kernel(function):
    """Return the kernel that calls ``function(team, arguments)``, every block a team."""

    def run(arguments):
        function(open_team(cuda.shared.array(0, float64)), arguments)

    return run


# ------------------------------------------------------------------- what teams do without a layout


@device
def convert(team, arguments):
    """Write `values` to `out`, of another type."""
    values, out = arguments
    for i in grid_range(team, values.size):
        out[i] = values[i]


@device
def sum_rows(team, arguments):
    """Write the sum of the block's `values` to the block's place in `out`."""
    values, out = arguments
    total = 0.0
    for i in grid_range(team, values.size):
        total += values[i]
    total, _ = sums(team, total, 0.0)
    if team.thread == 0:
        out[team.block] = total
