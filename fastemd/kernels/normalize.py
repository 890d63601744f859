"""What x stands for: the rows of a tile checked, and made histograms.

Scratch ``y`` holds what `weigh` makes of a row, in sum `total`; the histogram is ``p = y / total``.
The three ways to normalise differ in a few numbers per row, `Form`.
"""

from typing import NamedTuple

import numpy as np
from numba.extending import register_jitable

from fastemd.kernels.blocks import WIDTH
from fastemd.kernels.cpu import row_block, row_column
from fastemd.kernels.lanes import (
    exp_below,
    integer_at,
    load,
    multiply_add,
    n_lanes,
    number_at,
    put_integer,
    put_number,
    splat,
    store,
)
from fastemd.kernels.lines import number
from fastemd.kernels.memory import settle
from fastemd.kernels.rows import (
    is_finite,
    is_histogram_pair,
    largest_of_row,
    mean_of_row,
    positive_mean_of_row,
)

NORMALIZE = {"softmax": 0, "l1": 1, None: 2}
SOFTMAX, L1, NONE = NORMALIZE.values()
SMALLEST = 2.0**-1022  # sum to divide by


class Form(NamedTuple):
    """Lanes: p = y scale, a = y a_y + a_1, r = y r_y + r_1; `bent` is 0 if a is constant in x."""

    scale: float
    a_y: float
    a_1: float
    r_y: float
    r_1: float
    bent: float
    entropy: float  # c times the mass of the target, 0 where the cross entropy is all in D
    factor: float  # what the row counts


# ------------------------------------------------------------------------------------------ checks


@register_jitable
def admit_losses(tile, value, with_v, first, n_rows, tolerance):
    """Check the rows of a tile, note what they count and their largest numbers."""
    for r in range(n_lanes(tile.x)):
        row = min(first + r, n_rows - 1)  # beyond the end the last row stands in
        put_number(tile.factors, r, value[row])
        if value[row] == 0.0:
            leave_out(tile, r)
            continue
        x_row = integer_at(tile.p_rows, r)
        put_number(tile.highest, r, largest_of_row(x_row, tile.n_bins, tile.like))
        if not (is_normalisable(tile, r, tolerance) and is_target(tile, r, tolerance)):
            return row
        if with_v and not is_finite(integer_at(tile.v_rows, r), tile.n_bins, tile.like):
            return row
    return n_rows


@register_jitable
def leave_out(tile, r):
    """Let zeros stand in for a row that does not count: logits, label and v, or no mass."""
    for k in range(tile.n_bins):
        put_number(tile.blank, k, 0.0)
    put_integer(tile.p_rows, r, tile.blank)
    put_integer(tile.q_rows, r, tile.blank)
    put_integer(tile.v_rows, r, tile.blank)
    put_number(tile.highest, r, 0.0)


@register_jitable
def is_normalisable(tile, r, tolerance):
    row, highest = integer_at(tile.p_rows, r), number_at(tile.highest, r)
    if tile.normalize == SOFTMAX:
        return abs(highest) < np.inf
    mass = mean_of_row(row, tile.n_bins, tile.like) * tile.n_bins
    good = is_histogram_pair(row, row, tile.n_bins, tolerance, tile.like) and mass >= SMALLEST
    return good and (tile.normalize == L1 or abs(mass - 1.0) <= tolerance)


@register_jitable
def is_target(tile, r, tolerance):
    row, none = integer_at(tile.p_rows, r), -np.inf if tile.normalize == SOFTMAX else 0.0
    excludes = tile.cross_entropy > 0.0
    if tile.labelled:
        k = label(tile, r)
        if not 0 <= k < tile.n_bins:
            return False
        return not excludes or number(row, k, tile.like) > none
    target = integer_at(tile.q_rows, r)
    mass = mean_of_row(target, tile.n_bins, tile.like) * tile.n_bins
    if not is_histogram_pair(target, target, tile.n_bins, tolerance, tile.like):
        return False
    if excludes:
        for k in range(tile.n_bins):
            if number(target, k, tile.like) > 0.0 and number(row, k, tile.like) <= none:
                return False
    return abs(mass - 1.0) <= tolerance


@register_jitable
def label(tile, r):
    return integer_at(integer_at(tile.q_rows, r), 0)


# ---------------------------------------------------------------------------- from x to histograms


@register_jitable
def weigh(tile):
    """Fill ``y``; return the sums of the rows."""
    y, total = tile.y, splat(tile.y, 0.0)
    if tile.normalize == SOFTMAX:
        total = fill(tile, exponentials, load(tile.highest, 0), total)
    else:
        total = fill(tile, as_they_are, total, total)
    if integer_at(tile.pending, 0) != 0:
        settle(tile, tile.n_bins // WIDTH, tile.staged_bytes)
    if tile.normalize == NONE:
        return splat(y, 1.0)
    return max(total, splat(y, 0.0) >= load(tile.factors, 0))  # of no account: 1 / total is finite


@register_jitable
def fill(tile, weight, less, total):
    y, source = tile.y, (tile.p_rows, less, tile.next_pq)
    whole = tile.n_bins - tile.n_bins % WIDTH
    for k in range(0, whole, WIDTH):
        a, b, c, d = row_block(tile, source, k)
        a, b, c, d = weight(tile, a), weight(tile, b), weight(tile, c), weight(tile, d)
        store(y, k, a)
        store(y, k + 1, b)
        store(y, k + 2, c)
        store(y, k + 3, d)
        total = total + ((a + b) + (c + d))
    for k in range(whole, tile.n_bins):
        a = weight(tile, row_column(tile, source, k))
        store(y, k, a)
        total = total + a
    return total


@register_jitable
def exponentials(tile, x):
    return exp_below(x, tile.like)


@register_jitable
def as_they_are(tile, x):
    return x


@register_jitable
def form_of(tile, total):
    scale, none, one = 1.0 / total, splat(tile.y, 0.0), splat(tile.y, 1.0)
    factor, entropy = load(tile.factors, 0), entropy_of(tile)
    if tile.normalize == SOFTMAX:
        return Form(scale, scale, none, scale, none, one, entropy, factor)
    if tile.normalize == L1:
        return Form(scale, none, scale, scale, none, one, entropy, factor)
    return Form(one, none, one, none, splat(tile.y, 1.0 / tile.n_bins), none, none, factor)


@register_jitable
def entropy_of(tile):
    """The positive masses of the targets, which are not quite 1, times c."""
    if tile.labelled or tile.cross_entropy == 0.0:
        return splat(tile.y, tile.cross_entropy)
    for r in range(n_lanes(tile.y)):
        mean = positive_mean_of_row(integer_at(tile.q_rows, r), tile.n_bins, tile.like)
        put_number(tile.spare, r, tile.cross_entropy * mean * tile.n_bins)
    return load(tile.spare, 0)


@register_jitable
def centre_column(tile, form, k):
    return multiply_add(load(tile.y, k), form.r_y, form.r_1)
