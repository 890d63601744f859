"""The rows of a tile: where they start, and whether they are good."""

import numpy as np
from numba.extending import register_jitable

from fastemd.kernels.blocks import (
    add_lines,
    has_sign,
    line_at,
    number,
    numbers_per_line,
    or_lines,
    sum_of_line,
)
from fastemd.kernels.lanes import (
    LANES,
    address,
    put_integer,
    splat,
)


@register_jitable
def locate(array, first, rows):
    """Note where the rows of a tile start; beyond the end of the batch the last row stands in."""
    n_groups, n_rows = array.shape[0], array.shape[1]
    start, last = address(array), n_groups * n_rows - 1
    for r in range(LANES):
        row, group = min(first + r, last), 0
        if n_groups > 1:  # spares a division, which tiles of few bins feel
            group, row = row // n_rows, row % n_rows
        put_integer(rows, r, start + group * array.strides[0] + row * array.strides[1])


@register_jitable
def is_histogram_pair(p_row, q_row, n_bins, tolerance, like):
    """Whether both rows are finite and non-negative, and their masses equal."""
    # Two operations a cache line see whether a row needs a closer look. Sums of float32 are rough,
    # hence half of the tolerance.
    p_sums, q_sums, bits = splat(0.0), splat(0.0), splat(0.0)
    step = numbers_per_line(like)
    whole = n_bins - n_bins % step
    for k in range(0, whole, step):
        p, q = line_at(p_row, k, like), line_at(q_row, k, like)
        p_sums, q_sums = add_lines(p_sums, p, like), add_lines(q_sums, q, like)
        bits = or_lines(bits, or_lines(p, q))
    mass_p, mass_q, negative = sum_of_line(p_sums, like), sum_of_line(q_sums, like), False
    for k in range(whole, n_bins):
        a, b = number(p_row, k, like), number(q_row, k, like)
        mass_p, mass_q, negative = mass_p + a, mass_q + b, negative or a < 0.0 or b < 0.0
    finite = mass_p + mass_q < np.inf  # NaN compares false
    equal = abs(mass_p - mass_q) <= 0.5 * tolerance * max(mass_p, mass_q)
    if finite and equal and not negative and not has_sign(bits, like):
        return True
    return is_histogram_pair_after_all(p_row, q_row, n_bins, tolerance, like)


@register_jitable
def is_histogram_pair_after_all(p_row, q_row, n_bins, tolerance, like):
    """The same with sums of float64 and an eye for -0."""
    mass_p, mass_q, negative = 0.0, 0.0, False
    for k in range(n_bins):
        a, b = number(p_row, k, like), number(q_row, k, like)
        mass_p += a
        mass_q += b
        negative |= (a < 0.0) or (b < 0.0)
    finite = mass_p + mass_q < np.inf
    return finite and not negative and abs(mass_p - mass_q) <= tolerance * max(mass_p, mass_q)


@register_jitable
def is_finite(row, n_bins, like):
    total = 0.0
    for k in range(n_bins):
        total += 0.0 * number(row, k, like)
    return total == 0.0
