"""Rows of the user's arrays to columns of lanes, and back; and whether the rows are good."""

import numpy as np
from numba.extending import register_jitable

from fastemd.kernels.lanes import (
    LANES,
    address,
    lane,
    peek,
    peek_lanes,
    poke,
    read_block,
    splat,
    write_block,
)


@register_jitable
def locate(array, first, rows):
    """Note where the rows of a tile start; beyond the end of the batch the last row stands in."""
    n_rows = array.shape[0] * array.shape[1]
    for r in range(LANES):
        row = min(first + r, n_rows - 1)
        rows[r] = address(array, row // array.shape[1], row % array.shape[1])


@register_jitable
def read(p, q, p_rows, q_rows, x):
    """``x[k]`` = the lanes of ``p[row, k] - q[row, k]``."""
    n_bins = p.shape[2]
    whole = n_bins - n_bins % LANES
    for k in range(0, whole, LANES):
        read_block(p_rows, q_rows, k, p, x)
    for r in range(LANES):
        for k in range(whole, n_bins):
            x[k * LANES + r] = peek(p_rows, r, k, p) - peek(q_rows, r, k, q)


@register_jitable
def write(x, rows, out):
    """``out[row, k]`` = the lanes at ``x[k]``."""
    n_columns = out.shape[2]
    whole = n_columns - n_columns % LANES
    for k in range(0, whole, LANES):
        write_block(x, k, rows, out)
    for r in range(LANES):
        for k in range(whole, n_columns):
            poke(rows, r, k, out, x[k * LANES + r])


@register_jitable
def is_histogram_pair(p, p_rows, q_rows, r, tolerance):
    """Whether row `r` of `p` and `q` is finite, non-negative and of equal mass."""
    n_bins = p.shape[2]
    mass_p, mass_q, negative = splat(0.0), splat(0.0), splat(0.0)
    whole = n_bins - n_bins % LANES
    for k in range(0, whole, LANES):
        a, b = peek_lanes(p_rows, r, k, p), peek_lanes(q_rows, r, k, p)
        mass_p, mass_q = mass_p + a, mass_q + b
        negative = negative + (a < 0.0) + (b < 0.0)
    sum_p, sum_q, n_negative = 0.0, 0.0, 0.0
    for i in range(LANES):
        sum_p += lane(mass_p, i)
        sum_q += lane(mass_q, i)
        n_negative += lane(negative, i)
    for k in range(whole, n_bins):
        a, b = peek(p_rows, r, k, p), peek(q_rows, r, k, p)
        sum_p += a
        sum_q += b
        n_negative += (a < 0.0) + (b < 0.0)
    finite = sum_p + sum_q < np.inf  # NaN compares false
    return finite and n_negative == 0.0 and abs(sum_p - sum_q) <= tolerance * max(sum_p, sum_q)


@register_jitable
def is_finite(v, rows, r):
    total = 0.0
    for k in range(v.shape[2]):
        total += 0.0 * peek(rows, r, k, v)
    return total == 0.0
