"""Losses: from a row of logits (or of masses) x to the loss and its derivatives in x.

Formulas, names and order are those of `fastemd.kernels.cpu.losses`.
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from fastemd.kernels.cuda.block import TeamFunctions
from fastemd.kernels.cuda.lanes import LaneFunctions, lane_functions
from fastemd.kernels.cuda.memory import int32
from fastemd.kernels.cuda.numba_cuda import device
from fastemd.kernels.cuda.sweeps import sweeps
from fastemd.kernels.operations import L1, NONE, SOFTMAX, Jacobian, jacobian

SMALLEST = 2.0**-1022  # of a sum to divide by
LOWEST_LOGIT = -np.finfo(np.float64).max  # for an excluded class: 0 times it is 0


class Prediction(NamedTuple):
    """The normalisation of a row, and whether the row is valid."""

    valid: bool
    highest: float  # logit
    total: float  # sum of y
    scale: float  # 1 / total
    jacobian: Jacobian
    target_weight: float  # <w, q>, or 1
    of_others: float  # the part of it that is not the label's
    entropy: float  # c <w, q>, or c times the mass of the target


class Curve(NamedTuple):
    """The EMD of the row as it counts in the loss, and its derivatives in EMD^rho."""

    value: float
    first: float
    second: float


class LossKind(NamedTuple):
    """The options of losses that are constants of their kernels."""

    normalize: int  # see `fastemd.kernels.operations.NORMALIZATIONS`
    labelled: bool  # whether the targets are labels, otherwise histograms
    extended: bool  # whether there are `fastemd.kernels.cuda.block.Extras`

    @property
    def only_label(self) -> bool:
        """Whether no other bin of a target has mass."""
        return self.labelled and not self.extended


@device
def bin_of_label(row):
    """Return the bin of a label; of an invalid one, the last bin."""
    return int32(min(row.label, row.layout.n_bins - 1))


# ------------------------------------------------------ smoothed targets, weights of classes, roots


class ExtraFunctions(NamedTuple):
    """The functions for `Extras`; without them, the compiler removes what they do."""

    smoothed: Any
    class_weight: Any
    is_weighted: Any
    curve_at: Any
    has_root: Any


@functools.cache
def extra_functions(extended: bool, lanes: LaneFunctions) -> ExtraFunctions:
    """Make the functions for kernels with `Extras`, or for those without."""
    read, zeros = lanes.read, lanes.zeros
    if extended:

        @device
        def smoothed(row, q):
            """Return the smoothed targets; of a row of weight 0, they are 0."""
            if row.row_weight == 0.0:
                return zeros()
            return q * row.options.extras.keep + row.options.extras.floor

        @device
        def class_weight(row, k):
            extras = row.options.extras
            return read(extras.class_weights, k) if extras.weighted else zeros() + 1.0

        @device
        def is_weighted(row):
            return row.options.extras.weighted != 0

        @device
        def has_root(row):
            return row.options.extras.root != 0

        @device
        def curve_at(row, prediction, emd):
            """Return how the EMD^rho of the row counts in the loss."""
            weight, inverse_rho = prediction.target_weight, 1.0 / row.numbers.rho
            if row.options.extras.root == 0:
                return Curve(weight * emd, weight, 0.0)
            if not emd >= SMALLEST:
                return Curve(weight * emd, 0.0, 0.0)
            root = weight * emd**inverse_rho
            first = root * inverse_rho / emd
            return Curve(root, first, first / emd * (inverse_rho - 1.0))

    else:

        @device
        def smoothed(row, q):
            return q

        @device
        def class_weight(row, k):
            return 1.0

        @device
        def is_weighted(row):
            return False

        @device
        def has_root(row):
            return False

        @device
        def curve_at(row, prediction, emd):
            return Curve(emd, 1.0, 0.0)

    return ExtraFunctions(smoothed, class_weight, is_weighted, curve_at, has_root)


# ------------------------------------------------------------- numbers of the bins from `k` on


class BinFunctions(NamedTuple):
    """Functions ``(row, k)`` or ``(row, prediction, k)`` that return lanes, or write them.

    The user's rows are not read if their weight is 0.
    """

    x_at: Any
    v_at: Any
    is_label: Any  # 1 for the label of the row, else 0
    sharp_target_at: Any
    target_at: Any  # smoothed
    y_at: Any
    u_at: Any
    r_at: Any
    a_at: Any
    write: Any  # ``(row, k, derivatives)``


@functools.cache
def bin_functions(lanes: LaneFunctions, kind: LossKind) -> BinFunctions:
    """Make the functions."""
    read, write_lanes, zeros, equal = lanes.read, lanes.write, lanes.zeros, lanes.equal
    read_own = lanes.read_own
    smoothed, labelled = extra_functions(kind.extended, lanes).smoothed, kind.labelled

    @device
    def x_at(row, k):
        if row.row_weight == 0.0:
            return zeros()
        return read(row.inputs.p, int32(k * row.inputs.steps.p))

    @device
    def v_at(row, k):
        if row.row_weight == 0.0:
            return zeros()
        return read(row.inputs.v, int32(k * row.inputs.steps.v))

    @device
    def is_label(row, k):
        return equal(k, row.label) if labelled else zeros()

    @device
    def sharp_target_at(row, k):
        if labelled:
            return equal(k, row.label)
        if row.row_weight == 0.0:
            return zeros()
        return read(row.inputs.q, int32(k * row.inputs.steps.q))

    @device
    def target_at(row, k):
        return smoothed(row, sharp_target_at(row, k))

    @device
    def y_at(row, k):
        return read_own(row.scratch.y, k, row.layout.n_bins)

    @device
    def u_at(row, k):
        return read_own(row.scratch.u, k, row.layout.n_bins)

    @device
    def r_at(row, prediction, k):
        return y_at(row, k) * prediction.jacobian.r_y + prediction.jacobian.r_1

    @device
    def a_at(row, prediction, k):
        return y_at(row, k) * prediction.jacobian.a_y + prediction.jacobian.a_1

    @device
    def write(row, k, derivatives):
        write_lanes(row.out, int32(k * row.inputs.steps.out), derivatives)

    return BinFunctions(
        x_at, v_at, is_label, sharp_target_at, target_at, y_at, u_at, r_at, a_at, write
    )


# --------------------------------------------------------------------------- from x to histograms


class Parts(NamedTuple):
    """The parts of losses, for a kind of space, a team, lanes of bins and a kind of loss."""

    predict: Any
    fill_difference: Any
    cross_entropy: Any
    fill_u: Any
    mean_over_r: Any
    curve_of_sums: Any


@functools.cache
def parts(is_chain: bool, team: TeamFunctions, lanes: LaneFunctions, kind: LossKind) -> Parts:
    """Make the parts of losses."""
    groups, sums, largest = team.groups(lanes.count), team.sums, team.largest
    total_of, exp, most = lanes.total, lanes.exp, lanes.most
    negative, write_own = lanes.negative, lanes.write_own
    _, class_weight, is_weighted, curve_at, has_root = extra_functions(kind.extended, lanes)
    bins = bin_functions(lanes, kind)
    x_at, v_at, y_at, r_at, a_at = bins.x_at, bins.v_at, bins.y_at, bins.r_at, bins.a_at
    is_label, sharp_target_at, target_at = bins.is_label, bins.sharp_target_at, bins.target_at
    _, _, sum_of_bins, put_bins = sweeps(is_chain, team, lanes)
    x_of_bin = bin_functions(lane_functions(1), kind).x_at
    (normalize, labelled, extended), only_label = kind, kind.only_label

    @device
    def highest_of(row):
        """Return the largest logit; NaN is found in the sum of their exponentials."""
        highest = -np.inf
        if row.row_weight == 0.0:
            highest = 0.0
        else:
            for k in groups(row.team, row.layout.n_bins):
                highest = max(highest, most(row.inputs.p, int32(k * row.inputs.steps.p)))
        return largest(row.team, highest)

    @device
    def fill_y(row, highest):
        """Fill scratch ``y``; return the sums of y and of its negative numbers of this thread."""
        total, negative_x = 0.0, 0.0
        for k in groups(row.team, row.layout.n_bins):
            y = x_at(row, k)
            if normalize == SOFTMAX:
                y = exp(y - highest)
            elif row.row_weight != 0.0:
                negative_x += negative(row.inputs.p, int32(k * row.inputs.steps.p))
            write_own(row.scratch.y, k, row.layout.n_bins, y)
            total += total_of(y)
        return total, negative_x

    @device
    def check_target(row):
        """Return the sums of q and its negative numbers; NaN if the cross entropy is not finite."""
        mass, negative_q, excluded = 0.0, 0.0, 0.0
        if only_label:
            if row.team.thread == 0 and row.label < row.layout.n_bins:
                has_entropy = row.options.cross_entropy > 0.0
                if not (has_entropy and x_of_bin(row, bin_of_label(row)) == -np.inf):
                    mass = 1.0
            return mass, negative_q
        for k in groups(row.team, row.layout.n_bins):
            q = sharp_target_at(row, k)
            mass += total_of(q)
            if not labelled and row.row_weight != 0.0:
                negative_q += negative(row.inputs.q, int32(k * row.inputs.steps.q))
            if row.options.cross_entropy > 0.0:
                q = target_at(row, k)
                excluded += total_of((q > 0.0) * (x_at(row, k) == -np.inf) * 1.0)
        if excluded > 0.0:
            mass = np.nan
        return mass, negative_q

    @device
    def weights_of_target(row):
        """Return ``<w, q>`` of the label and of the other bins, without negative entries of q."""
        of_label, of_others = 0.0, 0.0
        for k in groups(row.team, row.layout.n_bins):
            weight = class_weight(row, k) * max(target_at(row, k), 0.0)
            of_label += total_of(weight * is_label(row, k))
            of_others += total_of(weight * (1.0 - is_label(row, k)))
        return of_label, of_others

    @device
    def predict(row):
        """Fill scratch ``y``, check the row, and return the normalisation."""
        tolerance, c, highest = row.options.tolerance, row.options.cross_entropy, 0.0
        if normalize == SOFTMAX:
            highest = highest_of(row)
        total, negative_x = fill_y(row, highest)
        mass, negative_q = check_target(row)
        total, mass = sums(row.team, total, mass)
        negative_x, negative_q = sums(row.team, negative_x, negative_q)
        valid = abs(mass - 1.0) <= tolerance and negative_q <= tolerance * mass
        if normalize == SOFTMAX:
            valid = valid and abs(highest) < np.inf and total < np.inf
        else:
            valid = valid and SMALLEST <= total < np.inf and negative_x <= tolerance * total
        if normalize == NONE:
            valid = valid and abs(total - 1.0) <= tolerance
            total = 1.0
        if row.row_weight == 0.0:
            valid, total = True, max(total, 1.0)
        target_weight, of_others, entropy = 1.0, 0.0, c * (mass + negative_q)
        if extended:
            of_label, of_others = weights_of_target(row)
            of_label, of_others = sums(row.team, of_label, of_others)
            entropy = c * (of_others + of_label)
            if is_weighted(row):
                target_weight = of_others + of_label
        scale = 1.0 / total
        jac = jacobian(normalize, scale, row.layout.n_bins)
        return Prediction(valid, highest, total, scale, jac, target_weight, of_others, entropy)

    @device
    def fill_difference(row, prediction):
        """Fill ``x`` with ``p - q``."""
        x, scale = row.scratch.x, prediction.scale
        for k in groups(row.team, row.layout.n_bins):
            if labelled:
                difference = (y_at(row, k) - target_at(row, k) * prediction.total) * scale
            else:
                difference = y_at(row, k) * scale - target_at(row, k)
            put_bins(row, x, k, difference)

    @device
    def mean_over_r(row, prediction, x):
        """Return ``<r, x>`` for the sums of the bins, on this thread's bins."""
        total = 0.0
        for k in groups(row.team, row.layout.n_bins):
            total += total_of(r_at(row, prediction, k) * sum_of_bins(row, x, k))
        return total

    @device
    def cross_entropy(row, prediction):
        """Return the cross entropy times c; 0 for a row of weight 0."""
        # Halves, as a difference of logits may overflow.
        half, c, highest = 0.0, row.options.cross_entropy, 0.5 * prediction.highest
        entropy_of_0 = 0.5 * math.log(prediction.total)
        if only_label:
            if row.row_weight != 0.0:
                logit = max(0.5 * x_of_bin(row, bin_of_label(row)) - highest, LOWEST_LOGIT)
                half = c * (entropy_of_0 - logit)
            return 2.0 * half
        for k in groups(row.team, row.layout.n_bins):
            logits = max(x_at(row, k) * 0.5 - highest, LOWEST_LOGIT)
            q = class_weight(row, k) * max(target_at(row, k), 0.0)
            half += total_of(c * q * (entropy_of_0 - logits))
        half, _ = sums(row.team, half, 0.0)
        return 2.0 * half

    @device
    def fill_u(row, prediction):
        """Fill scratch ``u`` with the change of p along `v`; for l1 return the sum of v, else 0."""
        mean, sum_of_v = 0.0, 0.0
        for k in groups(row.team, row.layout.n_bins):
            mean += total_of(r_at(row, prediction, k) * v_at(row, k))
            sum_of_v += total_of(v_at(row, k))
        mean, sum_of_v = sums(row.team, mean, sum_of_v)
        if normalize == L1:
            mean = 0.0
        else:
            sum_of_v = 0.0
        for k in groups(row.team, row.layout.n_bins):
            p = y_at(row, k) * prediction.scale
            change = v_at(row, k) - mean - p * sum_of_v
            change = a_at(row, prediction, k) * change
            write_own(row.scratch.u, k, row.layout.n_bins, change)
        return sum_of_v

    @device
    def curve_of_sums(row, prediction, x, mean):
        """Return the curve after a sweep down, from EMD^rho = ``<p - q, D> / rho``."""
        emd = 0.0
        if has_root(row):
            for k in groups(row.team, row.layout.n_bins):
                difference = y_at(row, k) * prediction.scale - target_at(row, k)
                emd += total_of(difference * (sum_of_bins(row, x, k) - mean))
            emd, _ = sums(row.team, emd, 0.0)
        return curve_at(row, prediction, max(emd, 0.0) * row.numbers.cost_factor)

    return Parts(predict, fill_difference, cross_entropy, fill_u, mean_over_r, curve_of_sums)


# --------------------------------------------------------------------------- the loss, its gradient


def gradient_sweep(operation, cost, is_chain, team, lanes, kind):
    """Make the function that computes the loss of a row and its gradient."""
    up, sweep_down, sum_of_bins, _ = sweeps(is_chain, team, lanes)
    sweep_up = up(operation.edge(cost))
    predict, fill_difference, cross_entropy, _, mean_over_r, _ = parts(is_chain, team, lanes, kind)
    _, class_weight, _, curve_at, _ = extra_functions(kind.extended, lanes)
    bins = bin_functions(lanes, kind)
    is_label, target_at, a_at, write = bins.is_label, bins.target_at, bins.a_at, bins.write
    groups, sums, barrier = team.groups(lanes.count), team.sums, team.barrier
    only_label, by_label = kind.only_label, kind.only_label and kind.normalize == SOFTMAX
    sum_of_bin = sweeps(is_chain, team, lane_functions(1)).sum_of_bins

    @device
    def sweep(row):
        x, c, prediction = row.scratch.x, row.options.cross_entropy, predict(row)
        fill_difference(row, prediction)
        value, mean = sweep_up(row, x)
        sweep_down(row, x, 0.0)
        if by_label:  # <p, D> = <p - q, D> + <q, D>
            value, mean = sums(row.team, value, mean)
            mean += sum_of_bin(row, x, bin_of_label(row))
            barrier()  # another thread fills this bin for the next row
        else:
            value, mean = sums(row.team, value, mean_over_r(row, prediction, x))
        curve = curve_at(row, prediction, value * row.numbers.cost_factor)
        value = curve.value
        if c > 0.0:
            value += cross_entropy(row, prediction)
        for k in groups(row.team, row.layout.n_bins):
            a, label = a_at(row, prediction, k), is_label(row, k)
            grad = a * (curve.first * (sum_of_bins(row, x, k) - mean))
            grad = grad + (a - label) * prediction.entropy  # rounded once where a is almost 1
            if not only_label:
                q = class_weight(row, k) * max(target_at(row, k), 0.0)
                grad = grad + c * (label * prediction.of_others - (1.0 - label) * q)
            write(row, k, row.row_weight * grad)
        return prediction.valid, row.row_weight * value

    return sweep


# -------------------------------------------------------------------------- its second derivatives


def diagonal_sweep(operation, cost, is_chain, team, lanes, kind):
    """Make the function that computes the diagonal of the loss's Hessian."""
    up, sweep_down, sum_of_bins, put_bins = sweeps(is_chain, team, lanes)
    sweep_up, sweep_up_other = up(operation.edge(cost)), up(None)
    predict, fill_difference, _, _, _, curve_of_sums = parts(is_chain, team, lanes, kind)
    bins = bin_functions(lanes, kind)
    y_at, r_at, a_at, write = bins.y_at, bins.r_at, bins.a_at, bins.write
    groups, sums, extended = team.groups(lanes.count), team.sums, kind.extended

    @device
    def sweep(row):
        x, other, prediction = row.scratch.x, row.scratch.other, predict(row)
        jac, entropy = prediction.jacobian, prediction.entropy
        for k in groups(row.team, row.layout.n_bins):
            put_bins(row, other, k, r_at(row, prediction, k))
        sweep_up_other(row, other)
        fill_difference(row, prediction)
        mean, grand_mean = sweep_up(row, x)
        mean, grand_mean = sums(row.team, mean, grand_mean)
        sweep_down(row, other, 0.0)
        sweep_down(row, x, 0.0)
        curve = curve_of_sums(row, prediction, x, mean)
        for k in groups(row.team, row.layout.n_bins):
            a, slope = a_at(row, prediction, k), sum_of_bins(row, x, k) - mean
            second = sum_of_bins(row, other, k) + grand_mean - 2.0 * jac.depends * slope
            second = curve.first * second - entropy
            if extended:
                second = second + curve.second * slope * slope
            slope = curve.first * slope + entropy
            change = a * (a * second) + y_at(row, k) * jac.a_y * slope
            write(row, k, row.row_weight * change)
        return prediction.valid, 0.0

    return sweep


def product_sweep(operation, cost, is_chain, team, lanes, kind):
    """Make the function that multiplies the loss's Hessian by `v`."""
    up, sweep_down, sum_of_bins, put_bins = sweeps(is_chain, team, lanes)
    sweep_up, sweep_up_other = up(operation.edge(cost)), up(None)
    predict, fill_difference, _, fill_u, mean_over_r, curve_of_sums = parts(
        is_chain, team, lanes, kind
    )
    bins = bin_functions(lanes, kind)
    u_at, a_at, write = bins.u_at, bins.a_at, bins.write
    groups, sums, extended = team.groups(lanes.count), team.sums, kind.extended
    total_of = lanes.total

    @device
    def sweep(row):
        x, other, prediction = row.scratch.x, row.scratch.other, predict(row)
        jac, sum_of_v = prediction.jacobian, fill_u(row, prediction)
        for k in groups(row.team, row.layout.n_bins):
            put_bins(row, other, k, u_at(row, k))
        sweep_up_other(row, other)
        fill_difference(row, prediction)
        sweep_up(row, x)
        sweep_down(row, other, 0.0)
        sweep_down(row, x, 0.0)
        u_slope = 0.0
        for k in groups(row.team, row.layout.n_bins):
            u_slope += total_of(u_at(row, k) * sum_of_bins(row, x, k))
        mean, u_slope = sums(row.team, mean_over_r(row, prediction, x), u_slope)
        mean_of_product, _ = sums(row.team, mean_over_r(row, prediction, other), 0.0)
        mean_of_product += jac.depends * u_slope
        softmax = jac.a_y / prediction.scale  # 1, or 0
        curve = curve_of_sums(row, prediction, x, mean)
        for k in groups(row.team, row.layout.n_bins):
            a, slope = a_at(row, prediction, k), sum_of_bins(row, x, k) - mean
            change = curve.first * (sum_of_bins(row, other, k) - mean_of_product)
            if extended:
                change = change + curve.second * u_slope * slope
            slope = curve.first * slope + prediction.entropy
            change = change - jac.a_1 * sum_of_v * slope
            write(row, k, row.row_weight * (a * change + softmax * u_at(row, k) * slope))
        return prediction.valid, 0.0

    return sweep


# For each loss: what makes its function, and the scratch arrays of edges and of bins it needs.
LOSSES = {
    "loss": (gradient_sweep, (1, 1)),
    "loss_diagonal": (diagonal_sweep, (2, 1)),
    "loss_product": (product_sweep, (2, 2)),
}
