"""The rows of a tile: where they start, and whether they are good."""

import numpy as np
from numba.extending import register_jitable

from fastemd.kernels.lanes import address, integer_at, n_lanes, put_integer
from fastemd.kernels.lines import (
    LINE,
    add_lines,
    copy,
    empty_line,
    has_sign,
    line_at,
    max_lines,
    max_of_line,
    number,
    numbers_per_line,
    or_lines,
    sum_of_line,
)

# Rows this far apart, or a multiple of it, are better copied first: 1024 bins of float32 took 1.7
# times as long per bin as 1000, and take 1.2 times as long.
PAGE = 4096  # bytes

SUMMED = 256  # cache lines that a check adds up in the type of the rows


@register_jitable
def address_of_row(array, row):
    """Where a row of the batch starts; beyond the end of the batch the last row stands in."""
    n_groups, n_rows = array.shape[0], array.shape[1]
    row, group = min(row, n_groups * n_rows - 1), 0
    if n_groups > 1:  # spares a division, which tiles of few bins feel
        group, row = row // n_rows, row % n_rows
    return address(array) + group * array.strides[0] + row * array.strides[1]


@register_jitable
def locate(array, first, rows):
    """Note where the rows of a tile start."""
    for r in range(n_lanes(rows)):
        put_integer(rows, r, address_of_row(array, first + r))


@register_jitable
def are_crowded(array):
    """Whether a column's lines all compete for the same few places of the first cache."""
    return array.strides[1] != 0 and array.strides[1] % PAGE == 0


@register_jitable
def put_aside(array, rows, place):
    """Copy the rows of a tile to where they are not crowded."""
    n_bytes = array.shape[2] * array.itemsize
    for r in range(n_lanes(rows)):
        target = place + r * (n_bytes + LINE)
        copy(integer_at(rows, r), target, n_bytes)
        put_integer(rows, r, target)


@register_jitable
def locate_next(array, first, next_rows, index):
    """Note where the rows of the tile after `first` start, if they lie side by side."""
    if array.strides[1] == array.shape[2] * array.itemsize:
        put_integer(next_rows, index, address_of_row(array, first))
    else:  # something that is there
        put_integer(next_rows, index, integer_at(next_rows, 1 - index))


@register_jitable
def mean_of_row(row, n_bins, like):
    total, step = 0.0, numbers_per_line(like)
    whole = n_bins - n_bins % step
    for k in range(0, whole, step):
        total += sum_of_line(line_at(row, k, like), like)
    for k in range(whole, n_bins):
        total += number(row, k, like)
    return total / n_bins


@register_jitable
def positive_mean_of_row(row, n_bins, like):
    """The mean of a row whose negative numbers, within the tolerance, count as 0."""
    total, step = 0.0, numbers_per_line(like)
    whole = n_bins - n_bins % step
    for k in range(0, whole, step):
        total += sum_of_line(max_lines(line_at(row, k, like), empty_line(), like), like)
    for k in range(whole, n_bins):
        total += max(number(row, k, like), 0.0)
    return total / n_bins


@register_jitable
def largest_of_row(row, n_bins, like):
    """The largest number of a row, NaN if there is one."""
    largest, step = -np.inf, numbers_per_line(like)
    whole = n_bins - n_bins % step
    if whole:
        a = b = line_at(row, 0, like)
        for k in range(step, whole - step, 2 * step):  # two chains, for their latency
            a = max_lines(a, line_at(row, k, like), like)
            b = max_lines(b, line_at(row, k + step, like), like)
        a = max_lines(a, line_at(row, whole - step, like), like)
        largest = max_of_line(max_lines(a, b, like), like)
    for k in range(whole, n_bins):
        x = number(row, k, like)
        if not x <= largest:  # nor is anything more than NaN
            largest = x if largest == largest else largest
    return largest


@register_jitable
def is_histogram_pair(p_row, q_row, n_bins, tolerance, like):
    """Whether both rows are finite and non-negative, and their masses equal."""
    # Two operations a cache line accept most rows. They sum in the type of the rows, SUMMED lines
    # at a time, so masses that differ by nearly the tolerance need the second check.
    bits, mass_p, mass_q, negative = empty_line(), 0.0, 0.0, False
    step = numbers_per_line(like)
    whole = n_bins - n_bins % step
    for start in range(0, whole, SUMMED * step):
        p_sums, q_sums = empty_line(), empty_line()
        for k in range(start, min(start + SUMMED * step, whole), step):
            p, q = line_at(p_row, k, like), line_at(q_row, k, like)
            p_sums, q_sums = add_lines(p_sums, p, like), add_lines(q_sums, q, like)
            bits = or_lines(bits, or_lines(p, q))
        mass_p, mass_q = mass_p + sum_of_line(p_sums, like), mass_q + sum_of_line(q_sums, like)
    for k in range(whole, n_bins):
        a, b = number(p_row, k, like), number(q_row, k, like)
        mass_p, mass_q, negative = mass_p + a, mass_q + b, negative or a < 0.0 or b < 0.0
    finite = mass_p + mass_q < np.inf  # NaN compares false
    error = SUMMED * (2.0**-23 if step == LINE // 4 else 2.0**-52)  # of both sums, at most
    equal = abs(mass_p - mass_q) <= (tolerance - error) * max(mass_p, mass_q)
    if finite and equal and not negative and not has_sign(bits, like):
        return True
    return is_histogram_pair_after_all(p_row, q_row, n_bins, tolerance, like)


@register_jitable
def is_histogram_pair_after_all(p_row, q_row, n_bins, tolerance, like):
    """The same with sums of float64, where negative entries may sum to `tolerance` of the mass."""
    mass_p, mass_q, negative_p, negative_q = 0.0, 0.0, 0.0, 0.0
    for k in range(n_bins):
        a, b = number(p_row, k, like), number(q_row, k, like)
        mass_p += a
        mass_q += b
        negative_p -= min(a, 0.0)
        negative_q -= min(b, 0.0)
    return (
        mass_p + mass_q < np.inf
        and negative_p <= tolerance * mass_p
        and negative_q <= tolerance * mass_q
        and abs(mass_p - mass_q) <= tolerance * max(mass_p, mass_q)
    )


@register_jitable
def is_finite(row, n_bins, like):
    total = 0.0
    for k in range(n_bins):
        total += 0.0 * number(row, k, like)
    return total == 0.0
