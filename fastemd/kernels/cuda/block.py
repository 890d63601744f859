"""Teams of threads: their sums and scans, the row that a team processes, and the kernels.

A team of threads processes one row of the batch: a warp, or more of them where there are few rows
or long ones, or a part of a warp. A block is ``blockDim.x`` threads per row times ``blockDim.y``
rows. All rows of a block take the same steps at the same time, so every thread meets every barrier;
past the end of the batch the last row is computed again and written with the same numbers. No
barrier separates a row from the next one: at both ends of a row a thread touches only its part of
the bins.

Kernels are made here, because Numba's simulator replaces `cuda` in the module of the kernel alone.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import float64
from numba.extending import register_jitable

from fastemd.kernels.cuda.memory import (
    Rows,
    Steps,
    count,
    int32,
    int64,
    load,
    load_four,
    pointer,
    quotient,
    row_at,
    row_of,
    shared_pointer,
    store,
)
from fastemd.kernels.cuda.numba_cuda import SIMULATED, cuda, device
from fastemd.kernels.edges import Numbers

# Threads of a warp, and of a block of `team_kernel`. The simulator is slow; so few threads have all
# parts: teams of several warps, and loops with a rest.
WARP, TEAM = (2, 4) if SIMULATED else (32, 256)
ALL_LANES = 0xFFFFFFFF


class Team(NamedTuple):
    """A thread and its team."""

    thread: int
    block: int
    n_blocks: int
    exchange: Any  # two float64 per warp


class Tables(NamedTuple):
    """An edge layout as a kernel gets it, see `fastemd.layout.CudaTables`."""

    numbers: Any
    lengths: Any


class Layout(NamedTuple):
    """An edge layout on the device, see `fastemd.layout.CudaTables`."""

    n_bins: int
    n_edges: int
    n_levels: int
    nodes: int  # where the arrays after the first one start in `numbers`
    levels: int
    bins: int
    parents: int
    places: int
    numbers: Any
    lengths: Any


class Scratch(NamedTuple):
    """Arrays of float64, as many as an operation needs."""

    # A number per edge and one to spare:
    x: Any  # flow, then edge value, then sum of edge values up to the root
    other: Any  # the same for a second vector
    # A number per bin:
    y: Any  # of a loss: the masses before they are normalised
    u: Any  # of a loss: the change of p


class Inputs(NamedTuple):
    """The user's rows."""

    p: Any  # of a loss: x
    q: Any  # of a loss: the target
    v: Any
    steps: Steps


class Options(NamedTuple):
    """Options of all rows, and the labels and weights of the rows."""

    tolerance: float  # of masses; negative: no checks
    cross_entropy: float
    labels: Any  # (G * R,), or null if the targets are histograms
    row_weights: Any  # (G * R,), or null
    row_weight: float  # of all rows, if there are no `row_weights`
    extras: Any  # Extras, or ()


class Extras(NamedTuple):
    """Options of losses for which there are kernels of their own, see `fastemd.losses.Loss`."""

    keep: float  # of a target, and
    floor: float  # what every bin of it gets
    root: int
    class_weights: Any  # (N,), or null
    weighted: int  # whether they are there


class Batch(NamedTuple):
    """The memory of the user that a kernel gets, null if there is none, and its sizes.

    numba-cuda takes a microsecond for every number that is passed.
    """

    p: Rows  # of a loss: x
    q: Rows  # of a loss: the target
    v: Rows
    out: Any  # (G * R, columns), unless there are `steps`
    value: Any  # (G * R,)
    scratch: Any  # (rows, numbers)
    n_groups: int
    rows_per_group: int
    n_columns: int  # of the output; 0 without one
    present: int  # sum of the following
    steps: Any  # Steps if the bins are not side by side, else ()


WITH_VALUE, WITH_LABELS, WITH_ROW_WEIGHTS = 1, 2, 4


class Row(NamedTuple):
    """One row of the batch."""

    team: Team
    layout: Layout
    scratch: Scratch
    inputs: Inputs
    out: Any
    n_columns: int  # of the output; 0 without one
    numbers: Numbers
    options: Options
    label: int  # see `label_of`
    row_weight: float  # of the loss and its derivatives; if it is 0, the row is not read


@register_jitable
def scratch_per_row(n_arrays, n_edges, n_bins, n_threads):
    """Return the number of float64 for arrays of edges and arrays of bins."""
    of_edges, of_bins = n_arrays
    return 2 * (n_threads // WARP) + of_edges * even(n_edges + 1) + of_bins * even(n_bins)


@register_jitable
def even(n):
    return n + 1 & -2


# ------------------------------------------------------------------ sums and scans over the threads


@device
def shuffle_xor(a, lanes):
    """Return `a` of the thread whose place in the warp differs by the bits of `lanes`."""
    return cuda.shfl_xor_sync(ALL_LANES, a, lanes)


@device
def shuffle_up(a, lanes):
    """Return `a` of the thread `lanes` places before in the warp; without one, that of this one."""
    return cuda.shfl_up_sync(ALL_LANES, a, lanes)


@device
def larger(a, b):
    """Return the larger of two numbers; NaN if one is NaN, unlike `max` on CUDA."""
    return b if a == a and not b <= a else a


class TeamFunctions(NamedTuple):
    """The functions of a team, for device functions that are made for its number of threads."""

    n_threads: int  # a power of 2
    groups: Callable[..., Any]  # makes ``(team, n)`` for groups of so many indices
    indices: Callable[..., Any]  # the same for single ones
    barrier: Callable[..., Any]
    sums: Callable[..., Any]
    largest: Callable[..., Any]
    scan: Callable[..., Any]


@functools.cache
def team_functions(n_threads: int) -> TeamFunctions:
    """Make the functions of a team."""
    step, half_warp = np.int32(n_threads), min(n_threads, WARP) // 2
    n_warps, warp_size = n_threads // WARP, np.int32(WARP)
    is_warp = n_threads <= WARP and not SIMULATED

    def groups(size):
        @device
        def starts(team, n):
            """Return the first indices below `n` of a thread's groups of `size` side by side."""
            return count(size * team.thread, n, size * n_threads)

        return starts

    @device
    def barrier():
        if is_warp:
            cuda.syncwarp()
        else:
            cuda.syncthreads()

    @device
    def sums(team, a, b):
        """Return the sums of two numbers over the threads, to every thread."""
        lanes = half_warp
        while lanes > 0:
            a += shuffle_xor(a, lanes)
            b += shuffle_xor(b, lanes)
            lanes //= 2
        if n_warps > 1:
            warp = quotient(team.thread, warp_size)
            store(team.exchange, warp, a)
            store(team.exchange, int32(warp + n_warps), b)
            barrier()
            a, b = 0.0, 0.0
            for i in range(n_warps):
                a += load(team.exchange, int32(i))
                b += load(team.exchange, int32(i + n_warps))
            barrier()
        return a, b

    @device
    def largest(team, a):
        """Return the largest of a number over the threads, to every thread; NaN if one is NaN."""
        lanes = half_warp
        while lanes > 0:
            a = larger(a, shuffle_xor(a, lanes))
            lanes //= 2
        if n_warps > 1:
            store(team.exchange, quotient(team.thread, warp_size), a)
            barrier()
            for i in range(n_warps):
                a = larger(a, load(team.exchange, int32(i)))
            barrier()
        return a

    @device
    def sum_before(team, a):
        """Return the sum of a number over the threads before this one."""
        lane, lanes = team.thread % WARP, 1
        total = a
        while lanes <= half_warp:
            before = shuffle_up(total, lanes)
            if lane >= lanes:
                total += before
            lanes *= 2
        before = shuffle_up(total, 1)
        result = before if lane > 0 else 0.0
        if n_warps > 1:
            warp = quotient(team.thread, warp_size)
            if lane == WARP - 1:
                store(team.exchange, warp, total)
            barrier()
            base = 0.0
            for i in range(warp):
                base += load(team.exchange, int32(i))
            result += base
            barrier()
        return result

    def scan(backwards):
        """Make a function that replaces numbers by sums in the order of a chain, or backwards.

        ``run(team, x, n, start)`` replaces ``x[k]`` for k < n by the sum of it and all before it,
        from `start`.
        """

        @device
        def run(team, x, n, start):
            # Every thread sums a piece. Its size is odd: threads read side by side, and the number
            # of banks of memory is a power of 2.
            piece = quotient(int32(n + n_threads - 1), step) | 1
            begin = min(int32(team.thread * piece), n)
            end = min(int32(begin + piece), n)
            total = 0.0
            for i in count(begin, end, 1):
                total += load(x, int32(n - 1 - i) if backwards else i)
            total = start + sum_before(team, total)
            for i in count(begin, end, 1):
                k = int32(n - 1 - i) if backwards else i
                total += load(x, k)
                store(x, k, total)
            barrier()

        return run

    return TeamFunctions(n_threads, groups, groups(1), barrier, sums, largest, scan)


# Those of a block of `team_kernel`.
_, _, _, _, sums, largest, scan = team_functions(TEAM)


@device
def report_row(errors, slot, row):
    """Record an invalid row in a slot of `errors`, unless an earlier one is there."""
    cuda.atomic.min(errors, slot, row)


# ----------------------------------------------------------------------------- one row of the batch


@device
def scratch_of(memory, layout, n_arrays):
    """Return the scratch arrays of a row; an array that it does not have is one that it has."""
    of_edges, of_bins = n_arrays
    x = 2 * quotient(int32(cuda.blockDim.x), np.int32(WARP))
    other = x + (of_edges - 1) * even(layout.n_edges + 1)
    y = x + of_edges * even(layout.n_edges + 1)
    u = y + (of_bins - 1) * even(layout.n_bins)
    return Scratch(
        pointer(memory, int32(x)), pointer(memory, int32(other)), pointer(memory, int32(y)),
        pointer(memory, int32(u)),
    )  # fmt: skip


@device
def label_of(present, options, number, n_bins):
    """Return the label of a row, `n_bins` if it is invalid."""
    if present & WITH_LABELS == 0:
        return n_bins
    label = load(options.labels, number)
    return int32(label if 0 <= label < n_bins else n_bins)


def step_functions(strided):
    """Make the functions for the steps of a batch, and for the pointer to a row of the output."""
    if strided:

        @device
        def steps_of(batch):
            return batch.steps

        @device
        def out_of(batch, number, group, i):
            steps = batch.steps
            return row_of(Rows(batch.out, steps.out_group, steps.out_row), group, i)

    else:

        @device
        def steps_of(batch):  # constants, which the compiler removes
            return Steps(int32(1), int32(1), int32(1), int32(1), 0, 0)

        @device
        def out_of(batch, number, group, i):
            return row_at(batch.out, number, batch.n_columns)

    return steps_of, out_of


@device
def open_row(layout, batch, numbers, options, number, group, i, n_arrays, memory, steps, out):
    """Return the row of this number, which is row `i` of a group."""
    p, q, v = row_of(batch.p, group, i), row_of(batch.q, group, i), row_of(batch.v, group, i)
    row_weight = options.row_weight
    if batch.present & WITH_ROW_WEIGHTS:
        row_weight = load(options.row_weights, number)
    return Row(
        Team(int32(cuda.threadIdx.x), int32(0), int32(0), pointer(memory, int32(0))),
        layout,
        scratch_of(memory, layout, n_arrays),
        Inputs(p, q, v, steps),
        out,
        batch.n_columns,
        numbers,
        options,
        label_of(batch.present, options, number, layout.n_bins),
        row_weight,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------- kernels


def row_kernel(sweep, n_arrays, n_threads, in_shared, strided):
    """Return the kernel that calls ``sweep(row)`` for every row.

    The first invalid row goes to ``errors[0]``. The memory of a row is shared, or a row of
    `Batch.scratch`. The bins of a row are side by side, unless `strided`.
    """
    steps_of, out_of = step_functions(strided)

    def run(tables, batch, numbers, options, errors):
        shared = shared_pointer(cuda.shared.array(0, float64))
        numbers_of_layout = pointer(tables.numbers, int32(0))
        n_bins, n_edges, n_levels, nodes = load_four(numbers_of_layout, int32(0))
        levels, bins, parents, places = load_four(numbers_of_layout, int32(1))
        layout = Layout(
            n_bins, n_edges, n_levels, nodes, levels, bins, parents, places, numbers_of_layout,
            pointer(tables.lengths, int32(0)),
        )  # fmt: skip
        first = int64(cuda.blockIdx.x) * cuda.blockDim.y
        slot, step = int32(cuda.threadIdx.y), int64(cuda.gridDim.x) * cuda.blockDim.y
        size = int32(scratch_per_row(n_arrays, n_edges, n_bins, n_threads))
        if in_shared:
            memory = pointer(shared, int32(slot * size))
        else:
            memory = row_at(batch.scratch, first + slot, size)
        n_rows = batch.n_groups * batch.rows_per_group
        while first < n_rows:
            number, group = min(first + slot, n_rows - 1), int64(0)
            if batch.n_groups > 1:
                group = quotient(number, batch.rows_per_group)
            i = number - group * batch.rows_per_group
            row = open_row(
                layout, batch, numbers, options, number, group, i, n_arrays, memory,
                steps_of(batch), out_of(batch, number, group, i),
            )  # fmt: skip
            valid, result = sweep(row)
            if not valid:
                report_row(errors, 0, number)
            if batch.present & WITH_VALUE and row.team.thread == 0:
                store(batch.value, number, result)
            first += step

    return run


def team_kernel(function):
    """Return the kernel that calls ``function(team, arguments)``, every block a team of TEAM."""

    def run(arguments):
        exchange = shared_pointer(cuda.shared.array(0, float64))
        team = Team(int32(cuda.threadIdx.x), int32(cuda.blockIdx.x), cuda.gridDim.x, exchange)
        function(team, arguments)

    return run


# ------------------------------------------------------------------- functions of teams alone


@device
def grid_range(team, n):
    """Return the indices below `n` of a thread among those of all blocks."""
    return range(team.block * TEAM + team.thread, n, team.n_blocks * TEAM)


@device
def convert(team, arguments):
    """Write `values` to `out`, of another type."""
    values, out = arguments
    for i in grid_range(team, values.size):
        out[i] = values[i]


@device
def sum_rows(team, arguments):
    """Write the sum of the block's `values` to the block's place in `out`."""
    values, out, n = arguments
    total = 0.0
    for i in grid_range(team, n):
        total += load(values, i)
    total, _ = sums(team, total, 0.0)
    if team.thread == 0:
        store(out, team.block, total)
