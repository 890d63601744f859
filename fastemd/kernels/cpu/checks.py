"""Validate the rows of a tile."""

import numpy as np

from fastemd.kernels.cpu.row_io import (
    LINE,
    add_lines,
    empty_line,
    has_sign,
    line_at,
    magnitudes,
    max_lines,
    max_of_line,
    number,
    numbers_per_line,
    or_lines,
    sum_of_line,
)
from fastemd.kernels.cpu.simd import greatest, integer_at, least, n_lanes
from fastemd.kernels.jitable import jitable

SUMMED = 256  # cache lines that a check adds up in the type of the rows


def pair_check(pairs):
    """Make the check of a tile of p, q and v; without `pairs`, of p and v only."""

    @jitable
    def first_invalid_row(tile, first, n_rows, tolerance):
        """Return the first invalid row of the tile that starts at `first`, else `n_rows`."""
        if tolerance < 0.0:
            return n_rows
        rows, n_bins = tile.rows, tile.layout.n_bins
        others = rows.q if pairs else rows.p
        for r in range(least(n_lanes(rows.p), n_rows - first)):
            p_row, other_row = integer_at(rows.p, r), integer_at(others, r)
            if not is_histogram_pair(p_row, other_row, n_bins, tolerance, rows.like):
                return first + r
            if rows.with_v and not is_finite(integer_at(rows.v, r), n_bins, rows.like):
                return first + r
        return n_rows

    return first_invalid_row


@jitable
def mean_of_row(row, n_bins, positive, like):
    """Return the mean of a row; if `positive`, negative numbers count as 0."""
    total, step = 0.0, numbers_per_line(like)
    whole = n_bins - n_bins % step
    for k in range(0, whole, step):
        line = line_at(row, k, like)
        if positive:
            line = max_lines(line, empty_line(), like)
        total += sum_of_line(line, like)
    for k in range(whole, n_bins):
        x = number(row, k, like)
        total += greatest(x, 0.0) if positive else x
    return total / n_bins


@jitable
def largest_of_row(row, n_bins, like):
    """Return the largest number of a row, NaN if it has one."""
    largest, step = -np.inf, numbers_per_line(like)
    whole = n_bins - n_bins % step
    if whole:
        a = b = line_at(row, 0, like)
        for k in range(step, whole - step, 2 * step):  # two chains hide the latency
            a = max_lines(a, line_at(row, k, like), like)
            b = max_lines(b, line_at(row, k + step, like), like)
        a = max_lines(a, line_at(row, whole - step, like), like)
        largest = max_of_line(max_lines(a, b, like), like)
    for k in range(whole, n_bins):
        x = number(row, k, like)
        if not x <= largest:  # false for NaN
            largest = x if largest == largest else largest
    return largest


@jitable
def is_histogram_pair(p_row, q_row, n_bins, tolerance, like):
    """Return whether both rows are finite and non-negative, and their masses equal."""
    # Two operations per cache line accept most rows. They sum in the type of the rows, SUMMED lines
    # at a time, so masses that differ by nearly the tolerance need the second check.
    bits, mass_p, mass_q, negative = empty_line(), 0.0, 0.0, False
    step = numbers_per_line(like)
    whole = n_bins - n_bins % step
    for start in range(0, whole, SUMMED * step):
        p_sums, q_sums = empty_line(), empty_line()
        for k in range(start, least(start + SUMMED * step, whole), step):
            p, q = line_at(p_row, k, like), line_at(q_row, k, like)
            p_sums, q_sums = add_lines(p_sums, p, like), add_lines(q_sums, q, like)
            bits = or_lines(bits, or_lines(p, q))
        mass_p, mass_q = mass_p + sum_of_line(p_sums, like), mass_q + sum_of_line(q_sums, like)
    for k in range(whole, n_bins):
        a, b = number(p_row, k, like), number(q_row, k, like)
        mass_p, mass_q, negative = mass_p + a, mass_q + b, negative or a < 0.0 or b < 0.0
    finite = mass_p + mass_q < np.inf  # NaN compares false
    error = SUMMED * (2.0**-23 if step == LINE // 4 else 2.0**-52)  # of both sums, at most
    equal = abs(mass_p - mass_q) <= (tolerance - error) * greatest(mass_p, mass_q)
    if finite and equal and not negative and not has_sign(bits, like):
        return True
    return is_histogram_pair_in_float64(p_row, q_row, n_bins, tolerance, like)


@jitable
def is_histogram_pair_in_float64(p_row, q_row, n_bins, tolerance, like):
    """Return the same from sums in float64; negative entries may sum to `tolerance` of the mass."""
    mass_p, mass_q, negative_p, negative_q = 0.0, 0.0, 0.0, 0.0
    for k in range(n_bins):
        a, b = number(p_row, k, like), number(q_row, k, like)
        mass_p += a
        mass_q += b
        negative_p -= least(a, 0.0)
        negative_q -= least(b, 0.0)
    return (
        mass_p + mass_q < np.inf
        and negative_p <= tolerance * mass_p
        and negative_q <= tolerance * mass_q
        and abs(mass_p - mass_q) <= tolerance * greatest(mass_p, mass_q)
    )


@jitable
def is_finite(row, n_bins, like):
    """Return whether all numbers of a row are finite."""
    # One number at a time, a Hessian-vector product took 1.3 times as long.
    largest, step = empty_line(), numbers_per_line(like)
    whole = n_bins - n_bins % step
    for k in range(0, whole, step):
        largest = max_lines(largest, magnitudes(line_at(row, k, like), like), like)
    finite = max_of_line(largest, like) < np.inf
    for k in range(whole, n_bins):
        finite = finite and abs(number(row, k, like)) < np.inf
    return finite
