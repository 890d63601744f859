"""The threads of a row: who does what, what they find out together, and the kernels they run.

A block is ``blockDim.x`` threads a row times ``blockDim.y`` rows. All its rows take the same steps
at the same time, so that every thread meets every barrier; beyond the end of the batch the last row
stands in, and is written again with the same numbers. There is no barrier between one row and the
next: both ends of a row a thread does with bins of its own.

Only this module asks for the number of a thread or waits: Numba's simulator replaces `cuda` in the
module of the kernel alone.
"""

from typing import NamedTuple

import numpy as np
from numba import float64
from numba.extending import register_jitable

from fastemd.target import cuda, device, view

# A thread has a few edges; a row has as many threads as hide what memory takes, and short rows
# share a block.
EDGES_PER_THREAD, THREADS_PER_ROW, THREADS_PER_BLOCK = 4, 256, 128
SMALLEST_FACTOR = 2.0**-1022


class Team(NamedTuple):
    """Threads that find something together."""

    thread: int
    n_threads: int  # a power of 2
    meet: np.ndarray  # two float64 for every thread


class Row(NamedTuple):
    """What the threads of one row work on. Scratch is float64."""

    thread: int
    n_threads: int  # a power of 2
    n_bins: int
    n_edges: int
    n_levels: int
    numbers: np.ndarray  # see `fastemd.layout.Levels`
    lengths: np.ndarray
    meet: np.ndarray  # two numbers for every thread
    x: np.ndarray  # a number for every edge and one to spare
    y: np.ndarray  # the same, as many as the operation needs
    z: np.ndarray
    u: np.ndarray
    p: np.ndarray  # the user's rows, or no elements
    q: np.ndarray
    v: np.ndarray
    out: np.ndarray
    rho: float
    project: float  # 1 to conserve the total mass, 0 for the raw derivatives
    label: int  # of a dense Hessian its row; of a loss the class, -1 for a histogram
    factor: float  # of a loss, what the row counts
    normalize: int  # see `fastemd.kernels.normalize`
    cross_entropy: float


def block_of(n_edges):
    """Threads per row, rows per block."""
    threads = 1
    while threads < THREADS_PER_ROW and threads * EDGES_PER_THREAD < n_edges:
        threads *= 2
    return threads, max(1, THREADS_PER_BLOCK // threads)


@register_jitable
def scratch_per_row(n_scratch, n_edges, n_threads):
    """How many float64."""
    return 2 * n_threads + n_scratch * (n_edges + 1)


# ---------------------------------------------------------------------- what threads find together


@device
def barrier():
    cuda.syncthreads()


@device
def sums(row, a, b):
    """The sums of two numbers over the threads of a row, the same in all of them."""
    meet, t, n = row.meet, row.thread, row.n_threads
    meet[t] = a
    meet[n + t] = b
    barrier()
    half = n // 2
    while half > 0:
        if t < half:
            meet[t] += meet[t + half]
            meet[n + t] += meet[n + t + half]
        barrier()
        half //= 2
    a, b = meet[0], meet[n]
    barrier()
    return a, b


@device
def larger(a, b):
    """The larger of two numbers; NaN if one is, unlike `max` on CUDA."""
    return b if a == a and not b <= a else a


@device
def largest(row, a):
    """The largest of a number over the threads of a row; NaN if there is one."""
    meet, t = row.meet, row.thread
    meet[t] = a
    barrier()
    half = row.n_threads // 2
    while half > 0:
        if t < half:
            meet[t] = larger(meet[t], meet[t + half])
        barrier()
        half //= 2
    a = meet[0]
    barrier()
    return a


@device
def scan(row, x, start, backwards):
    """Add to ``x[k]``, k < N, `start` and all numbers before it, or behind it.

    Every thread sums a piece; of an odd number, since they read side by side and memory is dealt in
    banks, a power of 2.
    """
    meet, t, n = row.meet, row.thread, row.n_bins
    piece = ((n + row.n_threads - 1) // row.n_threads) | 1
    begin, end = min(t * piece, n), min((t + 1) * piece, n)
    total = 0.0
    for i in range(begin, end):
        k = n - 1 - i if backwards else i
        total += x[k]
        x[k] = total
    meet[t] = total
    barrier()
    apart = 1
    while apart < row.n_threads:
        more = 0.0
        if t >= apart:
            more = meet[t - apart]
        barrier()
        meet[t] += more
        barrier()
        apart *= 2
    before = start
    if t > 0:
        before += meet[t - 1]
    for i in range(begin, end):
        k = n - 1 - i if backwards else i
        x[k] += before
    barrier()


# ------------------------------------------------------------------------------- one row of a batch


@view
def row_at(array, group, i):
    """A row of (G, R, columns), where 1 stands for any G or R."""
    return array[min(group, array.shape[0] - 1), min(i, array.shape[1] - 1)]


@view
def own_scratch(scratch, shared, per_row):
    """A part of the given scratch or, if that has no elements, of the block's shared memory."""
    room, begin = shared, cuda.threadIdx.y * per_row
    if scratch.size > 0:
        room, begin = scratch, begin + cuda.blockIdx.x * cuda.blockDim.y * per_row
    return room[begin : begin + per_row]


@view
def part(scratch, i, n_threads, n_edges):
    """The i-th scratch of a row; beyond the last there is nothing."""
    begin = 2 * n_threads + i * (n_edges + 1)
    return scratch[begin : begin + n_edges + 1]


@view
def open_row(
    numbers, lengths, n_edges, n_levels, own, p, q, v, out, number, rho, project, label, factor,
    normalize, cross_entropy,
):  # fmt: skip
    """The row of this number of a batch."""
    thread, n_threads = cuda.threadIdx.x, cuda.blockDim.x
    group, i = number // p.shape[1], number % p.shape[1]
    return Row(
        thread, n_threads, p.shape[2], n_edges, n_levels, numbers, lengths, own,
        part(own, 0, n_threads, n_edges), part(own, 1, n_threads, n_edges),
        part(own, 2, n_threads, n_edges), part(own, 3, n_threads, n_edges),
        row_at(p, group, i), row_at(q, group, i), row_at(v, group, i), row_at(out, group, i),
        rho, project, label, factor, normalize, cross_entropy,
    )  # fmt: skip


@device
def ratio(a, b):
    """``a / b``, and of nothing by nothing 0."""
    return a / b if b != 0.0 else 0.0


@device
def complain(complaints, about, number):
    """Note a bad row; the first one counts."""
    cuda.atomic.min(complaints, about, number)


# ---------------------------------------------------------------------------------------- kernels


def histogram_kernel(operation, check, up, down, function, n_scratch):
    """The kernel of an operation on histograms.

    `numbers`, `lengths`, `n_edges` and `n_levels` are the space's; `p`, `q`, `v` and `out` are
    (G, R, columns), `value` is (G * R,), each without elements if there is none. The first bad row,
    unless `tolerance` is negative, goes to ``complaints[0]``.
    """

    def run(
        numbers, lengths, n_edges, n_levels, p, q, v, rho, value, out, project, tolerance,
        complaints, scratch,
    ):  # fmt: skip
        n_rows = p.shape[0] * p.shape[1]
        per_row = scratch_per_row(n_scratch, n_edges, cuda.blockDim.x)
        own = own_scratch(scratch, cuda.shared.array(0, float64), per_row)
        first = cuda.blockIdx.x * cuda.blockDim.y
        while first < n_rows:
            number = min(first + cuda.threadIdx.y, n_rows - 1)
            row = open_row(
                numbers, lengths, n_edges, n_levels, own, p, q, v, out, number, rho, project,
                number % p.shape[2], 1.0, 0, 0.0,
            )  # fmt: skip
            if tolerance >= 0.0 and not check(row, tolerance):
                complain(complaints, 0, number)
            result = operation(row, up, down, function)
            if value.size > 0 and row.thread == 0:
                value[number] = result
            first += cuda.gridDim.x * cuda.blockDim.y

    return run


def loss_kernel(operation, weigh, up, down, function, n_scratch):
    """The kernel of a loss; see `histogram_kernel`.

    `labels` are (G * R,), without elements if the targets `q` are histograms. `factors` (G * R,)
    multiply every row's derivatives and `value`; without elements, `factor` multiplies all. A row
    whose factor is 0 is not read.
    """

    def run(
        numbers, lengths, n_edges, n_levels, x, q, v, rho, value, out, labels, factors, factor,
        normalize, cross_entropy, tolerance, complaints, scratch,
    ):  # fmt: skip
        n_rows = x.shape[0] * x.shape[1]
        per_row = scratch_per_row(n_scratch, n_edges, cuda.blockDim.x)
        own = own_scratch(scratch, cuda.shared.array(0, float64), per_row)
        first = cuda.blockIdx.x * cuda.blockDim.y
        while first < n_rows:
            number = min(first + cuda.threadIdx.y, n_rows - 1)
            row_factor = factors[number] if factors.size > 0 else factor
            label, exists = -1, True
            if labels.size > 0:
                label = labels[number]
                if not 0 <= label < x.shape[2]:
                    label, exists = 0, row_factor == 0.0
            row = open_row(
                numbers, lengths, n_edges, n_levels, own, x, q, v, out, number, rho, 1.0,
                label, row_factor, normalize, cross_entropy,
            )  # fmt: skip
            weighed = weigh(row, tolerance)
            if not (exists and weighed.good):
                complain(complaints, 0, number)
            result = operation(row, up, down, function, weighed)
            if value.size > 0 and row.thread == 0:
                value[number] = result * row_factor
            first += cuda.gridDim.x * cuda.blockDim.y

    return run


def block_kernel(operation):
    """The kernel that does an operation on every row, a block each; `state` is a named tuple."""

    def run(state):
        team = Team(cuda.threadIdx.x, cuda.blockDim.x, cuda.shared.array(0, float64))
        operation(team, cuda.blockIdx.x, state)

    return run


def factors_kernel():
    """The kernel that finds what every row of a loss counts.

    `weights` and `labels` are (rows,), without elements if there are no weights, or no label is
    ignored. A row of invalid weight goes to ``complaints[1]``. `parts` (2 * blocks,), if there are
    any, are for `mean_kernel`: the largest factor of the rows of every block, then the sums of the
    factors divided by it, since the sum itself might overflow.
    """

    def run(weights, labels, ignore_index, factors, parts, complaints):
        team = Team(cuda.threadIdx.x, cuda.blockDim.x, cuda.shared.array(0, float64))
        most, total = 0.0, 0.0
        for i in range(cuda.grid(1), factors.size, cuda.gridsize(1)):
            factor = 1.0
            if labels.size > 0 and labels[i] == ignore_index:
                factor = 0.0
            elif weights.size > 0:
                factor = weights[i]
                if not 0.0 <= factor < np.inf:
                    complain(complaints, 1, i)
            factors[i] = factor
            most = larger(most, factor)
        if parts.size > 0:
            most = largest(team, most)
            for i in range(cuda.grid(1), factors.size, cuda.gridsize(1)):
                total += ratio(factors[i], most)
            total, _ = sums(team, total, 0.0)
            if team.thread == 0:
                parts[cuda.blockIdx.x] = most
                parts[cuda.gridDim.x + cuda.blockIdx.x] = total

    return run


def mean_kernel():
    """The kernel that makes of factors those of the weighted mean.

    Every block adds up the `parts` of all blocks that `factors_kernel` left, in the same order.
    """

    def run(factors, parts):
        team = Team(cuda.threadIdx.x, cuda.blockDim.x, cuda.shared.array(0, float64))
        most, total, n_parts = 0.0, 0.0, parts.size // 2
        for i in range(team.thread, n_parts, team.n_threads):
            most = larger(most, parts[i])
        most = largest(team, most)
        for i in range(team.thread, n_parts, team.n_threads):
            total += parts[n_parts + i] * ratio(parts[i], most)
        total, _ = sums(team, total, 0.0)
        for i in range(cuda.grid(1), factors.size, cuda.gridsize(1)):
            factor = factors[i]
            if factor > 0.0:  # a row whose factor is not 0 is read
                factor = larger(SMALLEST_FACTOR, ratio(ratio(factor, most), total))
            factors[i] = factor

    return run


def convert_kernel():
    """The kernel that puts `values` into `out`, of another type."""

    def run(values, out):
        for i in range(cuda.grid(1), values.size, cuda.gridsize(1)):
            out[i] = values[i]

    return run


def sum_kernel():
    """The kernel of which every block puts the sum of its `values` into its place of `out`."""

    def run(values, out):
        team = Team(cuda.threadIdx.x, cuda.blockDim.x, cuda.shared.array(0, float64))
        total = 0.0
        for i in range(cuda.grid(1), values.size, cuda.gridsize(1)):
            total += values[i]
        total, _ = sums(team, total, 0.0)
        if team.thread == 0:
            out[cuda.blockIdx.x] = total

    return run
