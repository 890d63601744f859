"""Losses on the CPU: from a tile of logits (or of masses) x to the loss and its derivatives in x.

The normalised histogram is ``p = y / sum(y)``, with y in scratch ``y``. With D the result of the
sweep down (the derivative in p), c the weight of the cross entropy, and a and r as in
`fastemd.kernels.operations.Jacobian`, the derivative in x is ``a (D - <r, D>) + c (M p - q)``,
where M is the mass of the target q, which is not quite 1. The formulas for the second derivatives
are at `diagonal_column` and `product_column`.

The target is smoothed: ``keep q + floor``. With weights w of the classes, the EMD is multiplied by
``<w, q>``, and the cross entropy is that of the target ``w q``. With `root`, the EMD^rho of a row
is replaced by its root, see `Curve`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastemd.kernels.cpu.checks import is_finite, is_histogram_pair, largest_of_row, mean_of_row
from fastemd.kernels.cpu.row_io import WIDTH, number, read_block, read_column, write_number
from fastemd.kernels.cpu.simd import (
    exp_below,
    integer_at,
    lane,
    least,
    load,
    multiply_add,
    n_lanes,
    number_at,
    put_integer,
    put_number,
    splat,
    store,
)
from fastemd.kernels.cpu.sweeps import (
    read_row,
    read_rows,
    sweep_down_nodes,
    sweeps,
    write_results,
    writers,
)
from fastemd.kernels.cpu.tiles import finish_streaming
from fastemd.kernels.edges import EdgeCost, flow_edge
from fastemd.kernels.jitable import jitable
from fastemd.kernels.operations import L1, NONE, SOFTMAX, Jacobian, Operation, jacobian

SMALLEST_SUM = 2.0**-1022  # to divide by

# Stands for -inf, the logit of a masked class, whose target is 0: 0 times it is 0.
LOWEST_LOGIT = -np.finfo(np.float64).max


class Loss(NamedTuple):
    """The options of a loss, and its arrays with one number per row of the batch."""

    row_weights: int  # address: what multiplies the derivatives; a row of weight 0 is not read
    labels: int  # address
    labelled: bool  # whether the targets are labels, otherwise histograms
    normalize: int
    cross_entropy: float
    keep: float  # of a target, and
    floor: float  # what every bin of it gets
    root: int  # whether the root of the EMD^rho is taken
    class_weights: int  # address
    weighted: bool  # whether a class weighs something else than 1
    sum_of_weights: float  # of the classes


class Prediction(NamedTuple):
    """Lanes: the normalisation of the rows of a tile."""

    total: Any  # sum of y
    scale: Any  # 1 / total
    jacobian: Jacobian
    target_weight: Any  # <w, q>, or 1
    entropy: Any  # c <w, q>, or c times the mass of the target
    row_weight: Any


class Curve(NamedTuple):
    """Lanes: the EMD of the rows as it counts in the losses, and its derivatives in EMD^rho."""

    value: Any
    first: Any
    second: Any


# ------------------------------------------------------------------------------------------ checks


@jitable
def first_invalid_row(tile, first, n_rows, tolerance):
    """Return the first invalid row of the tile that starts at `first`, else `n_rows`.

    Store the weights, labels and largest numbers of the rows in scratch.
    """
    rows, scratch, n_bins = tile.rows, tile.scratch, tile.layout.n_bins
    for r in range(n_lanes(scratch.x)):
        row = least(first + r, n_rows - 1)  # beyond the end, the last row is repeated
        row_weight = number_at(tile.loss.row_weights, row)
        put_number(scratch.row_weights, r, row_weight)
        if row_weight == 0.0:
            replace_row(tile, r)
            continue
        if tile.loss.labelled:
            put_integer(scratch.labels, r, integer_at(tile.loss.labels, row))
        x_row = integer_at(rows.p, r)
        put_number(scratch.highest, r, largest_of_row(x_row, n_bins, rows.like))
        if not (is_normalisable(tile, r, tolerance) and is_target(tile, r, tolerance)):
            return row
        if rows.with_v and not is_finite(integer_at(rows.v, r), n_bins, rows.like):
            return row
    return n_rows


@jitable
def replace_row(tile, r):
    """Replace a row of weight 0 by zeros."""
    rows, scratch = tile.rows, tile.scratch
    for k in range(tile.layout.n_bins):
        put_number(scratch.zeros, k, 0.0)
    put_integer(rows.p, r, scratch.zeros)
    put_integer(rows.q, r, scratch.zeros)
    put_integer(rows.v, r, scratch.zeros)
    put_integer(scratch.labels, r, 0)
    put_number(scratch.highest, r, 0.0)


@jitable
def is_normalisable(tile, r, tolerance):
    row, n_bins, like = integer_at(tile.rows.p, r), tile.layout.n_bins, tile.rows.like
    if tile.loss.normalize == SOFTMAX:
        return abs(number_at(tile.scratch.highest, r)) < np.inf
    mass = mean_of_row(row, n_bins, False, like) * n_bins
    if not is_histogram_pair(row, row, n_bins, tolerance, like) or mass < SMALLEST_SUM:
        return False
    return tile.loss.normalize == L1 or abs(mass - 1.0) <= tolerance


@jitable
def is_target(tile, r, tolerance):
    """Return whether a target is valid, and its cross entropy finite if that is computed."""
    x_row, n_bins, like = integer_at(tile.rows.p, r), tile.layout.n_bins, tile.rows.like
    with_entropy = tile.loss.cross_entropy > 0.0
    if tile.loss.labelled:
        label = integer_at(tile.scratch.labels, r)
        if not 0 <= label < n_bins:
            return False
        if with_entropy and tile.loss.floor > 0.0:
            return is_finite(x_row, n_bins, like)
        return not with_entropy or number(x_row, label, like) > -np.inf
    row = integer_at(tile.rows.q, r)
    mass = mean_of_row(row, n_bins, False, like) * n_bins
    if not is_histogram_pair(row, row, n_bins, tolerance, like):
        return False
    if with_entropy and not is_finite(x_row, n_bins, like):
        for k in range(n_bins):
            has_mass = number(row, k, like) > 0.0 or tile.loss.floor > 0.0
            if has_mass and number(x_row, k, like) <= -np.inf:
                return False
    return abs(mass - 1.0) <= tolerance


# --------------------------------------------------------------------------- from x to histograms


@jitable
def predict(tile):
    """Fill scratch ``y`` and return the normalisation."""
    scratch, loss, zero = tile.scratch, tile.loss, splat(tile.scratch.y, 0.0)
    row_weight = load(scratch.row_weights, 0)
    if loss.normalize == SOFTMAX:
        total = fill_y(tile, exponential, load(scratch.highest, 0))
    else:
        total = fill_y(tile, unchanged, zero)
    finish_streaming(tile, tile.layout.n_bins // WIDTH, tile.overlap.staged_bytes)
    total = max(total, zero >= row_weight)  # 1 / total is finite for rows of weight 0
    if loss.normalize == NONE:
        total = zero + 1.0
    scale = 1.0 / total
    jac = jacobian(loss.normalize, scale, tile.layout.n_bins)
    weight, entropy = weights_of_targets(tile)
    return Prediction(total, scale, jac, weight, entropy, row_weight)


@jitable
def fill_y(tile, function, subtracted):
    y, n_bins = tile.scratch.y, tile.layout.n_bins
    source = tile.rows.p, subtracted, tile.overlap.next_pq
    total, whole = splat(y, 0.0), n_bins - n_bins % WIDTH
    for k in range(0, whole, WIDTH):
        a, b, c, d = read_rows(tile, source, k)
        a, b, c, d = function(tile, a), function(tile, b), function(tile, c), function(tile, d)
        store(y, k, a)
        store(y, k + 1, b)
        store(y, k + 2, c)
        store(y, k + 3, d)
        total = total + ((a + b) + (c + d))
    for k in range(whole, n_bins):
        a = function(tile, read_row(tile, source, k))
        store(y, k, a)
        total = total + a
    return total


@jitable
def exponential(tile, x):
    return exp_below(x)


@jitable
def unchanged(tile, x):
    return x


@jitable
def class_weight(tile, k):
    """Return the weight of a class, or 1."""
    return number_at(tile.loss.class_weights, k)


@jitable
def weights_of_targets(tile):
    """Return ``<w, q>``, or 1, and c times that or the mass, without negative entries of q."""
    spare, loss, n_bins = tile.scratch.spare, tile.loss, tile.layout.n_bins
    one = splat(spare, 1.0)
    if loss.labelled:
        for r in range(n_lanes(spare)):
            weight = class_weight(tile, integer_at(tile.scratch.labels, r))
            put_number(spare, r, loss.keep * weight + loss.floor * loss.sum_of_weights)
        weight = load(spare, 0) if loss.weighted else one
        return weight, weight * loss.cross_entropy
    if loss.weighted:
        weight = one * 0.0
        for k in range(n_bins):
            weight = multiply_add(max(target_column(tile, k), 0.0), class_weight(tile, k), weight)
        return weight, weight * loss.cross_entropy
    if loss.cross_entropy == 0.0:
        return one, one * 0.0
    for r in range(n_lanes(spare)):
        mean = mean_of_row(integer_at(tile.rows.q, r), n_bins, True, tile.rows.like)
        put_number(spare, r, loss.cross_entropy * (loss.keep * mean + loss.floor) * n_bins)
    return one, load(spare, 0)


# ----------------------------------------------------- what the sweeps up start from: r, p - q, u


def blocks_of(column: Callable[..., Any]) -> Any:
    """Make the function that reads WIDTH columns, from the one that reads one."""

    @jitable
    def read_four(tile, source, k):
        a, b = column(tile, source, k), column(tile, source, k + 1)
        c, d = column(tile, source, k + 2), column(tile, source, k + 3)
        return a, b, c, d

    return read_four


@jitable
def r_column(tile, jac, k):
    return multiply_add(load(tile.scratch.y, k), jac.r_y, jac.r_1)


@jitable
def difference_column(tile, scale, k):
    return load(tile.scratch.y, k) * scale - target_column(tile, k)


@jitable
def target_column(tile, k):
    """Return the smoothed targets, without what labels keep."""
    loss, zero = tile.loss, splat(tile.scratch.y, 0.0)
    if loss.labelled:
        return zero + loss.floor
    q = read_column(tile.rows.q, zero, k, tile.rows.like)
    return multiply_add(q, zero + loss.keep, zero + loss.floor)


@jitable
def difference_block(tile, scale, k):
    y = tile.scratch.y
    a, b = load(y, k) * scale, load(y, k + 1) * scale
    c, d = load(y, k + 2) * scale, load(y, k + 3) * scale
    e, f, g, h = target_block(tile, k)
    return a - e, b - f, c - g, d - h


@jitable
def target_block(tile, k):
    loss, zero = tile.loss, splat(tile.scratch.y, 0.0)
    keep, floor = zero + loss.keep, zero + loss.floor
    if loss.labelled:
        return floor, floor, floor, floor
    a, b, c, d = read_block(tile.rows.q, zero, k, tile.rows.like)
    a, b = multiply_add(a, keep, floor), multiply_add(b, keep, floor)
    c, d = multiply_add(c, keep, floor), multiply_add(d, keep, floor)
    return a, b, c, d


@jitable
def sweep_up_difference(tile, prediction, sweep_up, edge_values):
    """Sweep up ``p - q``; what labels keep is subtracted from p in ``y`` during the sweep."""
    scratch, lanes = tile.scratch, n_lanes(tile.scratch.y)
    if tile.loss.labelled:
        for r in range(lanes):
            i = integer_at(scratch.labels, r) * lanes + r
            put_number(scratch.spare, r, number_at(scratch.y, i))
            kept = tile.loss.keep * lane(prediction.total, r)
            put_number(scratch.y, i, number_at(scratch.y, i) - kept)
    scale = prediction.scale
    sums = sweep_up(tile, scratch.x, difference_block, difference_column, scale, edge_values)
    if tile.loss.labelled:
        for r in range(lanes):
            i = integer_at(scratch.labels, r) * lanes + r
            put_number(scratch.y, i, number_at(scratch.spare, r))
    return sums


@jitable
def u_column(tile, _, k):
    return load(tile.scratch.u, k)


# ------------------------------------------------------------------------------ after a sweep down


@jitable
def store_sums(tile, x, k, a, b, c, d, context):
    store(x, k, a)
    store(x, k + 1, b)
    store(x, k + 2, c)
    store(x, k + 3, d)


@jitable
def store_sum(tile, x, k, total, context):
    store(x, k, total)


@jitable
def mean_over_r(tile, prediction, x):
    """Return ``<r, x>``."""
    total = splat(x, 0.0)
    for k in range(tile.layout.n_bins):
        total = multiply_add(r_column(tile, prediction.jacobian, k), load(x, k), total)
    return total


# -------------------------------------------------------------------------- the loss, its gradient


def gradient_sweep(operation: Operation, cost: EdgeCost, is_chain: bool) -> Callable[..., Any]:
    """Make the function that computes the losses of a tile and their gradients."""
    sweep_up, sweep_down, sweep_down_bins = sweeps(is_chain)
    edge_values = operation.edge(cost)
    write_gradients, write_gradient = writers(gradient_column)
    write_softmax, write_softmax_one = writers(softmax_column)

    @jitable
    def sweep(tile):
        x, zero, loss = tile.scratch.x, splat(tile.scratch.x, 0.0), tile.loss
        prediction = predict(tile)
        jac, row_weight = prediction.jacobian, prediction.row_weight
        value, _ = sweep_up_difference(tile, prediction, sweep_up, edge_values)
        curve = curve_at(tile, prediction, value * tile.numbers.cost_factor)
        result = curve.value
        if loss.cross_entropy > 0.0:
            result = result + cross_entropies(tile, prediction)
        if tile.out.n_columns == 0:  # only the loss is wanted
            return result
        a_y, a_1 = jac.a_y * row_weight, jac.a_1 * row_weight
        sharp_labels = loss.labelled and loss.floor == 0.0
        at_bins = is_chain or loss.normalize == NONE or not sharp_labels
        if at_bins:
            sweep_down(tile, x, zero, store_sums, store_sum, 0)
            mean = mean_over_r(tile, prediction, x)
            shift = prediction.entropy - curve.first * mean
            if sharp_labels or loss.normalize != SOFTMAX:
                context = a_y, a_1, curve.first, shift
                write_results(tile, x, 0, write_gradients, write_gradient, context)
            else:
                context = prediction, curve.first, shift
                write_results(tile, x, 0, write_softmax, write_softmax_one, context)
        else:  # <p, D> = <p - q, D> + <q, D> is known before the sweep reaches the bins
            sweep_down_nodes(tile.layout, x, zero)
            mean = value + sums_of_labels(tile, at_bins)
            context = a_y, a_1, curve.first, prediction.entropy - curve.first * mean
            sweep_down_bins(tile, x, zero, write_gradients, write_gradient, context)
        if loss.labelled and loss.cross_entropy > 0.0:
            slopes = curve.first * (sums_of_labels(tile, at_bins) - mean)
            write_labels(tile, prediction, slopes)
        return result

    return sweep


@jitable
def curve_at(tile, prediction, emd):
    """Return how the EMD^rho of the rows counts in the losses."""
    weight, zero, rho = prediction.target_weight, emd * 0.0, tile.numbers.rho
    if tile.loss.root == 0:
        return Curve(weight * emd, weight, zero)
    spare = tile.scratch.spare
    for r in range(n_lanes(spare)):
        put_number(spare, r, lane(emd, r) ** (1.0 / rho))
    root, filled = load(spare, 0), (emd >= SMALLEST_SUM) * 1.0
    inverse = filled / max(emd, SMALLEST_SUM)
    first = weight * root * inverse / rho
    return Curve(weight * root, first, first * inverse * (1.0 / rho - 1.0))


@jitable
def gradient_column(tile, k, total, context):
    a_y, a_1, first, shift = context
    return multiply_add(load(tile.scratch.y, k), a_y, a_1) * multiply_add(total, first, shift)


@jitable
def softmax_column(tile, k, total, context):
    prediction, first, shift = context
    jac, c = prediction.jacobian, tile.loss.cross_entropy * class_weight(tile, k)
    q = max(target_column(tile, k), 0.0)
    change = gradient_column(tile, k, total, (jac.a_y, jac.a_1, first, shift))
    return prediction.row_weight * (change - c * q)


@jitable
def sums_of_labels(tile, at_bins):
    """Return the sums down to the labels; not `at_bins`, the sweep has only reached the nodes."""
    scratch, lanes = tile.scratch, n_lanes(tile.scratch.x)
    for r in range(lanes):
        label = integer_at(scratch.labels, r)
        total = number_at(scratch.x, label * lanes + r)
        if not at_bins:
            parent = integer_at(tile.layout.parent, label)
            total += number_at(scratch.x, parent * lanes + r)
        put_number(scratch.spare, r, total)
    return load(scratch.spare, 0)


@jitable
def write_labels(tile, prediction, slopes):
    """Write the derivatives in the logits of the labels again, minus c q; rounded once."""
    lanes, loss = n_lanes(tile.scratch.x), tile.loss
    for r in range(lanes):
        k = integer_at(tile.scratch.labels, r)
        p = number_at(tile.scratch.y, k * lanes + r) * lane(prediction.scale, r)
        others = loss.floor * (loss.sum_of_weights - class_weight(tile, k))
        entropy = lane(prediction.target_weight, r) * (p - 1.0) + others
        result = p * lane(slopes, r) + loss.cross_entropy * entropy
        result = lane(prediction.row_weight, r) * result
        write_number(result, integer_at(tile.out.rows, r), k, tile.out.like)


@jitable
def cross_entropies(tile, prediction):
    """Return the cross entropies times c; 0 for a row of weight 0."""
    scratch, loss, known = tile.scratch, tile.loss, splat(tile.scratch.y, 0.0)
    c, floor = loss.cross_entropy, loss.floor * loss.sum_of_weights
    if not loss.labelled or loss.floor > 0.0:
        known = half_sum_of_logits(tile)
    for r in range(n_lanes(scratch.y)):  # halves, as the difference of two logits may overflow
        half_log = 0.5 * math.log(lane(prediction.total, r))
        if number_at(scratch.row_weights, r) == 0.0:
            half = 0.0
        elif loss.labelled:
            label = integer_at(scratch.labels, r)
            logit = number(integer_at(tile.rows.p, r), label, tile.rows.like)
            half = half_log + (0.5 * number_at(scratch.highest, r) - 0.5 * logit)
            half = c * (loss.keep * class_weight(tile, label) * half)
            half += c * (floor * half_log - lane(known, r))
        else:
            half = lane(prediction.entropy, r) * half_log - c * lane(known, r)
        put_number(scratch.spare, r, 2.0 * half)
    return load(scratch.spare, 0)


@jitable
def half_sum_of_logits(tile):
    """Return half the logits minus the largest one, summed with the target's weighted masses."""
    rows, zero = tile.rows, splat(tile.scratch.y, 0.0)
    highest, total, n_bins = load(tile.scratch.highest, 0) * 0.5, zero, tile.layout.n_bins
    whole = n_bins - n_bins % WIDTH
    for k in range(0, whole, WIDTH):
        a, b, c, d = read_block(rows.p, zero, k, rows.like)
        e, f, g, h = target_block(tile, k)
        total = add_logit(tile, k, total, a, e, highest)
        total = add_logit(tile, k + 1, total, b, f, highest)
        total = add_logit(tile, k + 2, total, c, g, highest)
        total = add_logit(tile, k + 3, total, d, h, highest)
    for k in range(whole, n_bins):
        x = read_column(rows.p, zero, k, rows.like)
        total = add_logit(tile, k, total, x, target_column(tile, k), highest)
    return total


@jitable
def add_logit(tile, k, total, x, q, highest):
    q = max(q, 0.0) * class_weight(tile, k)
    return multiply_add(q, max(x * 0.5 - highest, LOWEST_LOGIT), total)


# -------------------------------------------------------------------------- its second derivatives


def diagonal_sweep(operation: Operation, cost: EdgeCost, is_chain: bool) -> Callable[..., Any]:
    """Make the function that computes the diagonals of the losses' Hessians."""
    sweep_up, sweep_down, _ = sweeps(is_chain)
    edge_values, flow = operation.edge(cost), flow_edge(cost)
    read_r = blocks_of(r_column)
    write_four, write_one = writers(diagonal_column)

    @jitable
    def sweep(tile):
        x, other, zero = tile.scratch.x, tile.scratch.other, splat(tile.scratch.x, 0.0)
        prediction = predict(tile)
        sweep_up(tile, other, read_r, r_column, prediction.jacobian, flow)
        mean, grand_mean = sweep_up_difference(tile, prediction, sweep_up, edge_values)
        sweep_down(tile, other, zero, store_sums, store_sum, 0)
        sweep_down(tile, x, zero, store_sums, store_sum, 0)
        curve = curve_of_sums(tile, prediction, mean)
        context = prediction, curve, mean, grand_mean
        write_results(tile, x, 0, write_four, write_one, context)
        return zero

    return sweep


@jitable
def diagonal_column(tile, k, total, context):
    """Return ``a^2 (Z + <r, H r>) + (a' p - 2 a^2) (D - <r, D>)``, without a root.

    Z is the sum of the second edge values; a' is 1 for softmax and 0 for l1.
    """
    prediction, curve, mean, grand_mean = context
    jac, entropy, y = prediction.jacobian, prediction.entropy, load(tile.scratch.y, k)
    a, slope = multiply_add(y, jac.a_y, jac.a_1), total - mean
    second = load(tile.scratch.other, k) + grand_mean - 2.0 * jac.depends * slope
    second = curve.first * second - entropy + curve.second * slope * slope
    slope = curve.first * slope + entropy
    return prediction.row_weight * (a * (a * second) + y * jac.a_y * slope)


@jitable
def curve_of_sums(tile, prediction, mean):
    """Return the curve after a sweep down, from EMD^rho = ``<p - q, D> / rho``."""
    scratch, zero = tile.scratch, splat(tile.scratch.x, 0.0)
    if tile.loss.root == 0:
        return curve_at(tile, prediction, zero)
    lanes, total = n_lanes(scratch.x), zero
    for k in range(tile.layout.n_bins):
        difference = difference_column(tile, prediction.scale, k)
        total = multiply_add(difference, load(scratch.x, k) - mean, total)
    if tile.loss.labelled:
        for r in range(lanes):
            sum_of_label = number_at(scratch.x, integer_at(scratch.labels, r) * lanes + r)
            put_number(scratch.spare, r, sum_of_label)
        total = total - tile.loss.keep * (load(scratch.spare, 0) - mean)
    return curve_at(tile, prediction, max(total, 0.0) * tile.numbers.cost_factor)


def product_sweep(operation: Operation, cost: EdgeCost, is_chain: bool) -> Callable[..., Any]:
    """Make the function that multiplies the losses' Hessians by `v`."""
    sweep_up, sweep_down, _ = sweeps(is_chain)
    edge_values, flow = operation.edge(cost), flow_edge(cost)
    read_u = blocks_of(u_column)
    write_four, write_one = writers(product_column)

    @jitable
    def sweep(tile):
        scratch, zero = tile.scratch, splat(tile.scratch.x, 0.0)
        prediction = predict(tile)
        sum_of_v = fill_u(tile, prediction)
        sweep_up(tile, scratch.other, read_u, u_column, 0, flow)
        sweep_up_difference(tile, prediction, sweep_up, edge_values)
        sweep_down(tile, scratch.other, zero, store_sums, store_sum, 0)
        sweep_down(tile, scratch.x, zero, store_sums, store_sum, 0)
        mean = mean_over_r(tile, prediction, scratch.x)
        mean_of_product, u_slope = mean_over_r(tile, prediction, scratch.other), zero
        for k in range(tile.layout.n_bins):
            u_slope = multiply_add(load(scratch.u, k), load(scratch.x, k), u_slope)
        mean_of_product = mean_of_product + prediction.jacobian.depends * u_slope
        curve = curve_of_sums(tile, prediction, mean)
        context = prediction, curve, u_slope, mean, mean_of_product, sum_of_v
        write_results(tile, scratch.x, 0, write_four, write_one, context)
        return zero

    return sweep


@jitable
def fill_u(tile, prediction):
    """Fill scratch ``u`` with the change of p along `v`; for l1 return the sum of v, else 0."""
    scratch, jac = tile.scratch, prediction.jacobian
    zero, n_bins = splat(scratch.y, 0.0), tile.layout.n_bins
    mean, sum_of_v = zero, zero
    for k in range(n_bins):
        v = read_column(tile.rows.v, zero, k, tile.rows.like)
        store(scratch.u, k, v)
        mean = multiply_add(r_column(tile, jac, k), v, mean)
        sum_of_v = sum_of_v + v
    if tile.loss.normalize == L1:
        mean = zero
    else:
        sum_of_v = zero
    for k in range(n_bins):
        y = load(scratch.y, k)
        change = load(scratch.u, k) - mean - y * prediction.scale * sum_of_v
        store(scratch.u, k, multiply_add(y, jac.a_y, jac.a_1) * change)
    return sum_of_v


@jitable
def product_column(tile, k, total, context):
    """Return ``a (H u - <r, H u> - <u, D>) + (a' u - a^2 sum(v)) (D - <r, D>)``, without a root.

    a' is as above.
    """
    prediction, curve, u_slope, mean, mean_of_product, sum_of_v = context
    jac, u = prediction.jacobian, load(tile.scratch.u, k)
    slope = curve.first * (total - mean) + prediction.entropy
    a = multiply_add(load(tile.scratch.y, k), jac.a_y, jac.a_1)
    softmax = jac.a_y * (1.0 / prediction.scale)  # 1, or 0
    change = curve.first * (load(tile.scratch.other, k) - mean_of_product)
    change = change - jac.a_1 * sum_of_v * slope + curve.second * u_slope * (total - mean)
    return prediction.row_weight * (a * change + softmax * u * slope)


# For each loss: what makes its function, and the number of scratch arrays, see `tiles.Scratch`.
LOSSES = {
    "loss": (gradient_sweep, 2),
    "loss_diagonal": (diagonal_sweep, 3),
    "loss_product": (product_sweep, 4),
}
