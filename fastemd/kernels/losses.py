"""Losses on the CPU: a tile of logits (or of masses) to the derivatives in them.

Scratch ``y`` holds what `weigh` makes of a row, in sum `total`; the histogram is ``p = y / total``.
The three ways to normalise differ in a few numbers per row (`Form`). With D what the sweep down
gives (the derivative in p) and c the weight of the cross entropy, the derivative in x is::

    a (D - <r, D>) + c (p - q)      softmax: a = r = p;  l1: a = 1 / total, r = p;  none: r = 1 / N

where for l1 and none, instead of the last term, the derivative of the cross entropy is in D. The
formulas for the second derivatives are in `second_column` and `product_column`.
"""

import math
from typing import NamedTuple

import numpy as np
from numba.extending import register_jitable

from fastemd.kernels.blocks import WIDTH, read_block, read_column, write_block, write_column
from fastemd.kernels.cpu import (
    down,
    down_bins,
    down_to_bins,
    flow_edge,
    row_block,
    row_column,
    up,
    write,
)
from fastemd.kernels.edges import BEND, SLOPE
from fastemd.kernels.lanes import (
    exp_below,
    integer_at,
    lane,
    load,
    multiply_add,
    n_lanes,
    number_at,
    put_number,
    splat,
    store,
)
from fastemd.kernels.lines import number, write_number
from fastemd.kernels.memory import settle
from fastemd.kernels.rows import is_histogram_pair, largest_of_row, mean_of_row

NORMALIZE = {"softmax": 0, "l1": 1, None: 2}
SOFTMAX, L1, NONE = NORMALIZE.values()
LOWEST_LOGIT = -1.7e308  # for a masked class, whose target is 0: 0 times it is 0


class Form(NamedTuple):
    """Lanes: p = y scale, a = y a_y + a_1, r = y r_y + r_1; `bent` is 0 if a is constant in x."""

    scale: float
    a_y: float
    a_1: float
    r_y: float
    r_1: float
    bent: float
    entropy: float  # c where the cross entropy is not in D, else 0
    factor: float  # what the row counts


# ------------------------------------------------------------------------------------------ checks


@register_jitable
def admit_losses(tile, value, with_v, first, n_rows, tolerance):
    """Check the rows of a tile, note what they count and their largest numbers."""
    for r in range(n_lanes(tile.x)):
        row = min(first + r, n_rows - 1)  # beyond the end the last row stands in
        x_row = integer_at(tile.p_rows, r)
        put_number(tile.factors, r, value[row])
        put_number(tile.highest, r, largest_of_row(x_row, tile.n_bins, tile.like))
        if not (is_normalisable(tile, r, tolerance) and is_target(tile, r, tolerance)):
            return row
        if (
            with_v
            and not abs(mean_of_row(integer_at(tile.v_rows, r), tile.n_bins, tile.like)) < np.inf
        ):
            return row
    return n_rows


@register_jitable
def is_normalisable(tile, r, tolerance):
    row, highest = integer_at(tile.p_rows, r), number_at(tile.highest, r)
    if tile.normalize == SOFTMAX:
        return abs(highest) < np.inf
    mass = mean_of_row(row, tile.n_bins, tile.like) * tile.n_bins
    good = is_histogram_pair(row, row, tile.n_bins, tolerance, tile.like) and mass > 0.0
    return good and (tile.normalize == L1 or abs(mass - 1.0) <= tolerance)


@register_jitable
def is_target(tile, r, tolerance):
    row, none = integer_at(tile.p_rows, r), -np.inf if tile.normalize == SOFTMAX else 0.0
    if tile.labelled:
        k = label(tile, r)
        if not 0 <= k < tile.n_bins:
            return False
        return tile.cross_entropy == 0.0 or number(row, k, tile.like) > none
    target = integer_at(tile.q_rows, r)
    mass = mean_of_row(target, tile.n_bins, tile.like) * tile.n_bins
    if not is_histogram_pair(target, target, tile.n_bins, tolerance, tile.like):
        return False
    if tile.cross_entropy > 0.0:
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
    return splat(y, 1.0) if tile.normalize == NONE else total


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
    factor = load(tile.factors, 0)
    if tile.normalize == SOFTMAX:
        entropy = splat(tile.y, tile.cross_entropy)
        return Form(scale, scale, none, scale, none, one, entropy, factor)
    if tile.normalize == L1:
        return Form(scale, none, scale, scale, none, one, none, factor)
    return Form(one, none, one, none, splat(tile.y, 1.0 / tile.n_bins), none, none, factor)


# -------------------------------------------------------- what the sweeps start from: p - q, r, u


@register_jitable
def deviation_block(tile, scale, k):
    y = tile.y
    a, b = load(y, k) * scale, load(y, k + 1) * scale
    c, d = load(y, k + 2) * scale, load(y, k + 3) * scale
    if not tile.labelled:
        e, f, g, h = read_block(tile.q_rows, splat(y, 0.0), k, tile.like)
        a, b, c, d = a - e, b - f, c - g, d - h
    return a, b, c, d


@register_jitable
def deviation_column(tile, scale, k):
    d = load(tile.y, k) * scale
    if not tile.labelled:
        d = d - read_column(tile.q_rows, splat(tile.y, 0.0), k, tile.like)
    return d


@register_jitable
def deviation_up(tile, total, scale, join, edge, function):
    """The sweep up of ``p - q``; of labels, one is taken from p meanwhile."""
    lanes, kept = n_lanes(tile.y), tile.spare
    if tile.labelled:
        for r in range(lanes):
            k = label(tile, r) * lanes + r
            put_number(kept, r, number_at(tile.y, k))
            put_number(tile.y, k, number_at(tile.y, k) - lane(total, r))
    sums = up(tile, tile.x, deviation_block, deviation_column, scale, join, edge, function)
    if tile.labelled:
        for r in range(lanes):
            put_number(tile.y, label(tile, r) * lanes + r, number_at(kept, r))
    return sums


@register_jitable
def centre_block(tile, form, k):
    return (
        centre_column(tile, form, k),
        centre_column(tile, form, k + 1),
        centre_column(tile, form, k + 2),
        centre_column(tile, form, k + 3),
    )


@register_jitable
def centre_column(tile, form, k):
    return multiply_add(load(tile.y, k), form.r_y, form.r_1)


@register_jitable
def change_block(tile, _, k):
    u = tile.u
    return load(u, k), load(u, k + 1), load(u, k + 2), load(u, k + 3)


@register_jitable
def change_column(tile, _, k):
    return load(tile.u, k)


# ------------------------------------------------------------------------- functions on every edge


@register_jitable
def loss_edge(tile, e, flow, slope, value, _):
    psi = slope(flow, number_at(tile.weight, e), tile.rho)
    return psi, multiply_add(flow, psi, value), _


@register_jitable
def second_edge(tile, e, flow, bend, centre, grand):
    """The slope; in ``z``, where the flow of r was, what makes the diagonal."""
    slope, h = bend(flow, number_at(tile.weight, e), tile.rho)
    share = load(tile.z, e)
    store(tile.z, e, h - 2.0 * (h * share))
    return slope, multiply_add(slope, share, centre), multiply_add(h, share * share, grand)


@register_jitable
def change_edge(tile, e, flow, bend, value, _):
    """The slope; in ``z``, where the flow of u was, the curvature times it."""
    slope, h = bend(flow, number_at(tile.weight, e), tile.rho)
    store(tile.z, e, h * load(tile.z, e))
    return slope, value, _


# ------------------------------------------------------------------------- what the sweeps end with


@register_jitable
def keep_block(tile, x, k, a, b, c, d, given):
    store(x, k, a)
    store(x, k + 1, b)
    store(x, k + 2, c)
    store(x, k + 3, d)
    return given


@register_jitable
def keep_column(tile, x, k, total, given):
    store(x, k, total)
    return given


@register_jitable
def slope_block(tile, x, k, a, b, c, d, given):
    write_block(
        slope(tile, k, a, given), slope(tile, k + 1, b, given),
        slope(tile, k + 2, c, given), slope(tile, k + 3, d, given),
        tile.out_rows, k, tile.like_out,
    )  # fmt: skip
    return given


@register_jitable
def slope_last(tile, x, k, total, given):
    write_column(slope(tile, k, total, given), tile.out_rows, k, tile.like_out)
    return given


@register_jitable
def slope(tile, k, total, given):
    a_y, a_1, shift = given
    return multiply_add(load(tile.y, k), a_y, a_1) * (total + shift)


@register_jitable
def slope_column(tile, k, given):
    a_y, a_1, shift, entropy = given
    q = read_column(tile.q_rows, splat(tile.y, 0.0), k, tile.like)
    return slope(tile, k, load(tile.x, k), (a_y, a_1, shift)) - entropy * q


# ------------------------------------------------------------------------------- the cross entropy


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


# ----------------------------------------------------------------------- one tile of each operation


@register_jitable
def centre_of(tile, form, x):
    """<r, x>."""
    total = splat(tile.y, 0.0)
    for k in range(tile.n_bins):
        total = multiply_add(centre_column(tile, form, k), load(x, k), total)
    return total


@register_jitable
def loss_tile(tile, join, above, slope_of_edge):
    total, zero = weigh(tile), splat(tile.y, 0.0)
    form = form_of(tile, total)
    value, _ = deviation_up(tile, total, form.scale, join, loss_edge, slope_of_edge)
    result = value * (1.0 / tile.rho)
    if tile.cross_entropy > 0.0:
        result = result + cross_entropies(tile, total)
    if tile.n_out == 0:
        return result
    a_y, a_1 = form.a_y * form.factor, form.a_1 * form.factor
    quick = tile.labelled and tile.normalize != NONE and tile.n_edges > tile.n_bins
    quick = quick and (tile.normalize == SOFTMAX or tile.cross_entropy == 0.0)
    if quick:  # <p, D> = <p - q, D> + <q, D> is known before the sweep reaches the bins
        down_to_bins(tile, tile.x, zero)
        centre = value + labelled_sums(tile, True)
        given = a_y, a_1, form.entropy - centre
        down_bins(tile, tile.x, zero, above, slope_block, slope_last, given)
    else:
        down(tile, tile.x, zero, above, keep_block, keep_column, 0)
        if tile.cross_entropy > 0.0 and tile.normalize != SOFTMAX:
            add_entropy(tile, total, form, False, False)
        centre = centre_of(tile, form, tile.x)
        given = a_y, a_1, form.entropy - centre
        if tile.labelled:
            write(tile, labelled_column, given)
        else:
            write(tile, slope_column, (*given, form.entropy * form.factor))
    if tile.labelled and tile.cross_entropy > 0.0 and tile.normalize == SOFTMAX:
        write_labelled(tile, form, labelled_sums(tile, quick) - centre)
    return result


@register_jitable
def labelled_column(tile, k, given):
    return slope(tile, k, load(tile.x, k), given)


@register_jitable
def labelled_sums(tile, quick):
    """What the sweep down gives, or would give, for the labels."""
    lanes = n_lanes(tile.x)
    for r in range(lanes):
        k = label(tile, r)
        total = number_at(tile.x, k * lanes + r)
        if quick:
            total += number_at(tile.x, integer_at(tile.parent, k) * lanes + r)
        put_number(tile.spare, r, total)
    return load(tile.spare, 0)


@register_jitable
def write_labelled(tile, form, slopes):
    """Write the derivatives in the logits of the labels anew, less c; rounded once."""
    lanes = n_lanes(tile.x)
    for r in range(lanes):
        k = label(tile, r)
        p = number_at(tile.y, k * lanes + r) * lane(form.scale, r)
        result = lane(form.factor, r) * (p * lane(slopes, r) + tile.cross_entropy * (p - 1.0))
        write_number(result, integer_at(tile.out_rows, r), k, tile.like_out)


@register_jitable
def second_tile(tile, join, above, bend):
    """The diagonal of the second derivative."""
    total, zero = weigh(tile), splat(tile.y, 0.0)
    form = form_of(tile, total)
    up(tile, tile.z, centre_block, centre_column, form, join, flow_edge, bend)
    centre, grand = deviation_up(tile, total, form.scale, join, second_edge, bend)
    down(tile, tile.z, zero, above, keep_block, keep_column, 0)
    down(tile, tile.x, zero, above, keep_block, keep_column, 0)
    if tile.cross_entropy > 0.0 and tile.normalize != SOFTMAX:
        grand = grand + add_entropy(tile, total, form, True, False)
        centre = centre_of(tile, form, tile.x)
    write(tile, second_column, (form, centre, grand))
    return zero


@register_jitable
def second_column(tile, k, given):
    """``a^2 (Z + <r, H r>) + (a' p - 2 a^2) (D - <r, D>)``, a' = 1 for softmax and 0 for l1."""
    form, centre, grand = given
    y = load(tile.y, k)
    a, slope = multiply_add(y, form.a_y, form.a_1), load(tile.x, k) - centre
    bent = load(tile.z, k) + grand - 2.0 * form.bent * slope - form.entropy
    return form.factor * (a * a * bent + y * form.a_y * (slope + form.entropy))


@register_jitable
def product_tile(tile, join, above, bend):
    """The second derivative times `v`; u is what p changes by along v."""
    total, zero = weigh(tile), splat(tile.y, 0.0)
    form = form_of(tile, total)
    along = fill_change(tile, form)
    up(tile, tile.z, change_block, change_column, 0, join, flow_edge, bend)
    deviation_up(tile, total, form.scale, join, change_edge, bend)
    down(tile, tile.z, zero, above, keep_block, keep_column, 0)
    down(tile, tile.x, zero, above, keep_block, keep_column, 0)
    if tile.cross_entropy > 0.0 and tile.normalize != SOFTMAX:
        add_entropy(tile, total, form, False, True)
    centre, mean, turn = centre_of(tile, form, tile.x), centre_of(tile, form, tile.z), zero
    for k in range(tile.n_bins):
        turn = multiply_add(load(tile.u, k), load(tile.x, k), turn)
    write(tile, product_column, (form, centre, mean + form.bent * turn, along))
    return zero


@register_jitable
def fill_change(tile, form):
    """Fill ``u``; for l1 return how fast the sum changes, else 0."""
    rows, u, zero = tile.v_rows, tile.u, splat(tile.y, 0.0)
    mean, along = zero, zero
    for k in range(tile.n_bins):
        v = read_column(rows, zero, k, tile.like)
        store(u, k, v)
        mean = multiply_add(centre_column(tile, form, k), v, mean)
        along = along + v
    if tile.normalize == L1:
        mean = zero
    else:
        along = zero
    for k in range(tile.n_bins):
        y = load(tile.y, k)
        change = load(u, k) - mean - y * form.scale * along
        store(u, k, multiply_add(y, form.a_y, form.a_1) * change)
    return along


@register_jitable
def product_column(tile, k, given):
    """``a (H u - <r, H u> - <u, D>) + (a' u - a^2 sum(v)) (D - <r, D>)``, a' as above."""
    form, centre, mean, along = given
    u, slope = load(tile.u, k), load(tile.x, k) - centre
    a, soft = multiply_add(load(tile.y, k), form.a_y, form.a_1), form.a_y * (1.0 / form.scale)
    bent = soft * u - form.a_1 * form.a_1 * along
    return form.factor * (a * (load(tile.z, k) - mean) + bent * slope + form.entropy * u)


# A tile, the functions on its edges, and how many of the scratches x, y, z, u it needs.
LOSSES = {
    "loss": (loss_tile, SLOPE, 2),
    "loss_diagonal": (second_tile, BEND, 3),
    "loss_product": (product_tile, BEND, 4),
}
