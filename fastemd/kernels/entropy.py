"""The cross entropy of a tile, and its derivatives where they are added to those of EMD^rho."""

import math

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
from fastemd.kernels.normalize import SOFTMAX, label
from fastemd.kernels.rows import mean_of_row

LOWEST_LOGIT = -1.7e308  # for a masked class, whose target is 0: 0 times it is 0


@register_jitable
def target_of(tile, r, k):
    if tile.labelled:
        return 1.0 if label(tile, r) == k else 0.0
    return number(integer_at(tile.q_rows, r), k, tile.like)


@register_jitable
def cross_entropies(tile, total):
    """Of every row, times c."""
    lanes, known = n_lanes(tile.y), splat(tile.y, 0.0)
    soft = tile.normalize == SOFTMAX and not tile.labelled
    if soft:
        known = sum_of_logits(tile)
    for r in range(lanes):
        mass, entropy, row_total = 0.0, 0.0, lane(total, r)
        if soft:
            mass = mean_of_row(integer_at(tile.q_rows, r), tile.n_bins, tile.like) * tile.n_bins
            entropy = mass * math.log(row_total) - lane(known, r)
        elif tile.normalize == SOFTMAX:
            logit = number(integer_at(tile.p_rows, r), label(tile, r), tile.like)
            entropy = math.log(row_total) + (number_at(tile.highest, r) - logit)
        else:
            for k in range(tile.n_bins):
                q = target_of(tile, r, k)
                if q > 0.0:
                    entropy += q * math.log(row_total / number_at(tile.y, k * lanes + r))
        put_number(tile.spare, r, tile.cross_entropy * entropy)
    return load(tile.spare, 0)


@register_jitable
def sum_of_logits(tile):
    """The logits less the largest, weighted by the target."""
    zero, highest = splat(tile.y, 0.0), load(tile.highest, 0)
    total = zero
    for k in range(tile.n_bins):
        logit = max(read_column(tile.p_rows, highest, k, tile.like), LOWEST_LOGIT)
        total = multiply_add(read_column(tile.q_rows, zero, k, tile.like), logit, total)
    return total


@register_jitable
def add_entropy(tile, total, form, second, change):
    """Without softmax: add what c times the cross entropy has to the kept derivatives in p.

    Returns what it adds to `grand`.
    """
    lanes = n_lanes(tile.y)
    for r in range(lanes):
        grand = 0.0
        for k in range(tile.n_bins):
            i = k * lanes + r
            p, q = number_at(tile.y, i) / lane(total, r), target_of(tile, r, k)
            ratio = q / p if q > 0.0 else 0.0
            h = tile.cross_entropy * ratio / p if q > 0.0 else 0.0
            put_number(tile.x, i, number_at(tile.x, i) + tile.cross_entropy * (1.0 - ratio))
            if second:
                share = lane(form.r_y, r) * number_at(tile.y, i) + lane(form.r_1, r)
                put_number(tile.z, i, number_at(tile.z, i) + h * (1.0 - 2.0 * share))
                grand += h * share * share
            if change:
                put_number(tile.z, i, number_at(tile.z, i) + h * number_at(tile.u, i))
        put_number(tile.spare, r, grand)
    return load(tile.spare, 0)
