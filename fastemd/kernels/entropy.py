"""The cross entropy of a tile, and its derivatives where they are added to those of EMD^rho.

Of a row that counts nothing it is 0, since a target that x excludes makes it infinite.
"""

import math

import numpy as np
from numba.extending import register_jitable

from fastemd.kernels.blocks import read_column
from fastemd.kernels.lanes import (
    integer_at,
    lane,
    load,
    multiply_add,
    n_lanes,
    number_at,
    put_number,
    splat,
)
from fastemd.kernels.lines import number
from fastemd.kernels.normalize import L1, SOFTMAX, label

# For a masked class, whose target is 0: 0 times it is 0.
LOWEST_LOGIT = -np.finfo(np.float64).max

# A smaller p counts as this in the derivatives -q / p and q / p^2, which would overflow.
LEAST, LEAST_SQUARED = 2.0**-480, 2.0**-960


@register_jitable
def target_of(tile, r, k):
    if tile.labelled:
        return 1.0 if label(tile, r) == k else 0.0
    return number(integer_at(tile.q_rows, r), k, tile.like)


@register_jitable
def cross_entropies(tile, total, form):
    """Of every row, times c."""
    lanes, known, c = n_lanes(tile.y), splat(tile.y, 0.0), tile.cross_entropy
    soft = tile.normalize == SOFTMAX and not tile.labelled
    if soft:
        known = half_sum_of_logits(tile)
    for r in range(lanes):
        row_total, half = lane(total, r), 0.0  # half, as the difference of two logits may overflow
        if number_at(tile.factors, r) == 0.0:
            half = 0.0
        elif soft:
            half = 0.5 * lane(form.entropy, r) * math.log(row_total) - c * lane(known, r)
        elif tile.normalize == SOFTMAX:
            logit = number(integer_at(tile.p_rows, r), label(tile, r), tile.like)
            below = 0.5 * number_at(tile.highest, r) - 0.5 * logit
            half = c * (0.5 * math.log(row_total) + below)
        else:
            for k in range(tile.n_bins):
                q = target_of(tile, r, k)
                if q > 0.0:
                    half += 0.5 * c * q * log_ratio(row_total, number_at(tile.y, k * lanes + r))
        put_number(tile.spare, r, 2.0 * half)
    return load(tile.spare, 0)


@register_jitable
def log_ratio(a, b):
    ratio = a / b
    return math.log(ratio) if ratio < np.inf else math.log(a) - math.log(b)


@register_jitable
def half_sum_of_logits(tile):
    """Half the logits less the largest, weighted by the target."""
    zero, highest = splat(tile.y, 0.0), load(tile.highest, 0) * 0.5
    total = zero
    for k in range(tile.n_bins):
        logit = max(read_column(tile.p_rows, zero, k, tile.like) * 0.5 - highest, LOWEST_LOGIT)
        q = max(read_column(tile.q_rows, zero, k, tile.like), 0.0)
        total = multiply_add(q, logit, total)
    return total


# ------------------------------------------- without softmax: -q / p and q / p^2, times c, in bin k


@register_jitable
def add_entropy(tile, form, add):
    """Let `add` work on all bins of the targets; return the sums of what it gives."""
    lanes = n_lanes(tile.y)
    for r in range(lanes):
        total, first, end = 0.0, 0, tile.n_bins
        if tile.labelled:
            first, end = label(tile, r), label(tile, r) + 1
        if number_at(tile.factors, r) == 0.0:
            end = first
        for k in range(first, end):
            q = target_of(tile, r, k)
            if q > 0.0:
                p = number_at(tile.y, k * lanes + r) * lane(form.scale, r)
                total += add(tile, form, r, k, p, tile.cross_entropy * q)
        put_number(tile.spare, r, total)
    return load(tile.spare, 0)


@register_jitable
def add_slope(tile, form, r, k, p, q):
    i, slope = k * n_lanes(tile.x) + r, -q / max(p, LEAST_SQUARED)
    put_number(tile.x, i, number_at(tile.x, i) + slope)
    return slope


@register_jitable
def add_bend(tile, form, r, k, p, q):
    i, bend = k * n_lanes(tile.z) + r, q / max(p, LEAST) / max(p, LEAST)
    put_number(tile.z, i, number_at(tile.z, i) + bend * (1.0 - 2.0 * lane(form.r_1, r)))
    return bend


@register_jitable
def add_product(tile, form, r, k, p, q):
    """The change of p along v is u; for l1 what v alone makes of it, a v, as the rest is known."""
    i, bend = k * n_lanes(tile.z) + r, q / max(p, LEAST) / max(p, LEAST)
    if tile.normalize == L1:
        change = bend * number(integer_at(tile.v_rows, r), k, tile.like)
    else:
        change = bend * number_at(tile.u, i)
    put_number(tile.z, i, number_at(tile.z, i) + change * lane(form.a_1, r))
    return change
