"""Losses: from a row of logits (or of masses) x to the loss and its derivatives in x.

Formulas, names and order are those of `fastemd.kernels.cpu.losses`. At the end are the functions
that compute the row_weights of the rows.
"""

import math
from typing import NamedTuple

import numpy as np

from fastemd.kernels.cuda.block import (
    grid_range,
    larger,
    largest,
    report_row,
    sums,
    team_range,
    thread_bins,
)
from fastemd.kernels.cuda.numba_cuda import device
from fastemd.kernels.cuda.sweeps import edge_loop, sweeps
from fastemd.kernels.operations import L1, NONE, SOFTMAX, Jacobian, jacobian

SMALLEST = 2.0**-1022  # of a sum to divide by, and of a weight that is not 0
LOWEST_LOGIT = -np.finfo(np.float64).max  # for an excluded class: 0 times it is 0


class Prediction(NamedTuple):
    """The normalisation of a row, and whether the row is valid."""

    valid: bool
    highest: float  # logit
    total: float  # sum of y
    scale: float  # 1 / total
    jacobian: Jacobian
    entropy: float  # c times the mass of the target


# --------------------------------------------------- the user's rows, not read if their weight is 0


@device
def x_at(row, k):
    return np.float64(row.inputs.p[k]) if row.row_weight != 0.0 else 0.0


@device
def v_at(row, k):
    return np.float64(row.inputs.v[k]) if row.row_weight != 0.0 else 0.0


@device
def target_at(row, k):
    if row.row_weight == 0.0:
        return 0.0
    if row.label < 0:
        return np.float64(row.inputs.q[k])
    return 1.0 if k == row.label else 0.0


# --------------------------------------------------------------------------- from x to histograms


@device
def predict(row):
    """Fill scratch ``y``, check the row, and return the normalisation."""
    highest, normalize, tolerance = -np.inf, row.options.normalize, row.options.tolerance
    for k in thread_bins(row):
        highest = larger(highest, x_at(row, k))
    highest = largest(row.team, highest)
    total, mass, negative_x, negative_q = 0.0, 0.0, 0.0, 0.0
    for k in thread_bins(row):
        x, q = x_at(row, k), target_at(row, k)
        y = x
        if normalize == SOFTMAX:
            y = math.exp(x - highest)
        else:
            negative_x -= min(x, 0.0)
        row.scratch.y[k] = y
        total += y
        if row.options.cross_entropy > 0.0 and q > 0.0 and x == -np.inf:
            q = np.nan  # the class is excluded
        mass += q
        negative_q -= min(q, 0.0)
    total, mass = sums(row.team, total, mass)
    negative_x, negative_q = sums(row.team, negative_x, negative_q)
    valid = abs(mass - 1.0) <= tolerance and negative_q <= tolerance * mass
    if normalize == SOFTMAX:
        valid = valid and abs(highest) < np.inf
    else:
        valid = valid and SMALLEST <= total < np.inf and negative_x <= tolerance * total
    if normalize == NONE:
        valid = valid and abs(total - 1.0) <= tolerance
        total = 1.0
    if row.row_weight == 0.0:
        valid, total = True, max(total, 1.0)
    scale, entropy = 1.0 / total, row.options.cross_entropy * (mass + negative_q)
    jac = jacobian(normalize, scale, row.layout.n_bins)
    return Prediction(valid, highest, total, scale, jac, entropy)


# ------------------------------------------------------- what the sweeps up start from: p - q, r, u


@device
def fill_difference(row, prediction):
    """Fill ``x`` with ``p - q``."""
    x, y, scale = row.scratch.x, row.scratch.y, prediction.scale
    for k in thread_bins(row):
        if row.label < 0:
            x[k] = y[k] * scale - target_at(row, k)
        else:
            x[k] = (y[k] - prediction.total * target_at(row, k)) * scale


@device
def r_at(row, prediction, k):
    return row.scratch.y[k] * prediction.jacobian.r_y + prediction.jacobian.r_1


@device
def a_at(row, prediction, k):
    return row.scratch.y[k] * prediction.jacobian.a_y + prediction.jacobian.a_1


@device
def mean_over_r(row, prediction, x):
    """Return ``<r, x>``."""
    total = 0.0
    for k in thread_bins(row):
        total += r_at(row, prediction, k) * x[k]
    total, _ = sums(row.team, total, 0.0)
    return total


# --------------------------------------------------------------------------- the loss, its gradient


def gradient_sweep(operation, cost, is_chain):
    """Make the function that computes the loss of a row and its gradient."""
    sweep_up, sweep_down = sweeps(is_chain)
    apply_edges = edge_loop(operation.edge(cost))

    @device
    def sweep(row):
        x, c, prediction = row.scratch.x, row.options.cross_entropy, predict(row)
        fill_difference(row, prediction)
        sweep_up(row, x)
        value, _ = apply_edges(row)
        value *= row.numbers.cost_factor
        if c > 0.0:
            value += cross_entropy(row, prediction)
        sweep_down(row, x, 0.0)
        mean = mean_over_r(row, prediction, x)
        for k in thread_bins(row):
            a, slope = a_at(row, prediction, k), x[k] - mean
            if row.label == k:  # rounded once
                row.out[k] = row.row_weight * (a * slope + c * (a - 1.0))
            else:
                q = max(target_at(row, k), 0.0)
                row.out[k] = row.row_weight * (a * (slope + prediction.entropy) - c * q)
        return prediction.valid, row.row_weight * value

    return sweep


@device
def cross_entropy(row, prediction):
    """Return the cross entropy times c; 0 for a row of weight 0."""
    half, c = 0.0, row.options.cross_entropy  # half, as the difference of two logits may overflow
    for k in thread_bins(row):
        q = target_at(row, k)
        if q > 0.0:
            logit = max(0.5 * x_at(row, k) - 0.5 * prediction.highest, LOWEST_LOGIT)
            half += c * q * (0.5 * math.log(prediction.total) - logit)
    half, _ = sums(row.team, half, 0.0)
    return 2.0 * half


# -------------------------------------------------------------------------- its second derivatives


def diagonal_sweep(operation, cost, is_chain):
    """Make the function that computes the diagonal of the loss's Hessian."""
    sweep_up, sweep_down = sweeps(is_chain)
    apply_edges = edge_loop(operation.edge(cost))

    @device
    def sweep(row):
        x, y, other, prediction = row.scratch.x, row.scratch.y, row.scratch.other, predict(row)
        jac, entropy = prediction.jacobian, prediction.entropy
        for k in thread_bins(row):
            other[k] = r_at(row, prediction, k)
        sweep_up(row, other)
        fill_difference(row, prediction)
        sweep_up(row, x)
        mean, grand_mean = apply_edges(row)
        sweep_down(row, other, 0.0)
        sweep_down(row, x, 0.0)
        for k in thread_bins(row):
            a, slope = a_at(row, prediction, k), x[k] - mean
            second = other[k] + grand_mean - 2.0 * jac.depends * slope - entropy
            change = a * (a * second) + y[k] * jac.a_y * (slope + entropy)
            row.out[k] = row.row_weight * change
        return prediction.valid, 0.0

    return sweep


def product_sweep(operation, cost, is_chain):
    """Make the function that multiplies the loss's Hessian by `v`."""
    sweep_up, sweep_down = sweeps(is_chain)
    apply_edges = edge_loop(operation.edge(cost))

    @device
    def sweep(row):
        x, other, u, prediction = row.scratch.x, row.scratch.other, row.scratch.u, predict(row)
        jac, sum_of_v = prediction.jacobian, fill_u(row, prediction)
        for k in thread_bins(row):
            other[k] = u[k]
        sweep_up(row, other)
        fill_difference(row, prediction)
        sweep_up(row, x)
        apply_edges(row)
        sweep_down(row, other, 0.0)
        sweep_down(row, x, 0.0)
        mean, u_slope = mean_over_r(row, prediction, x), 0.0
        for k in thread_bins(row):
            u_slope += u[k] * x[k]
        u_slope, _ = sums(row.team, u_slope, 0.0)
        mean_of_product = mean_over_r(row, prediction, other) + jac.depends * u_slope
        softmax = jac.a_y / prediction.scale  # 1, or 0
        for k in thread_bins(row):
            a, slope = a_at(row, prediction, k), x[k] - mean + prediction.entropy
            change = other[k] - mean_of_product - jac.a_1 * sum_of_v * slope
            row.out[k] = row.row_weight * (a * change + softmax * u[k] * slope)
        return prediction.valid, 0.0

    return sweep


@device
def fill_u(row, prediction):
    """Fill scratch ``u`` with the change of p along `v`; for l1 return the sum of v, else 0."""
    y, u, mean, sum_of_v = row.scratch.y, row.scratch.u, 0.0, 0.0
    for k in thread_bins(row):
        mean += r_at(row, prediction, k) * v_at(row, k)
        sum_of_v += v_at(row, k)
    mean, sum_of_v = sums(row.team, mean, sum_of_v)
    if row.options.normalize == L1:
        mean = 0.0
    else:
        sum_of_v = 0.0
    for k in thread_bins(row):
        change = v_at(row, k) - mean - y[k] * prediction.scale * sum_of_v
        u[k] = a_at(row, prediction, k) * change
    return sum_of_v


# For each loss: what makes its function, and the number of scratch arrays x, y, other, u it needs.
LOSSES = {
    "loss": (gradient_sweep, 2),
    "loss_diagonal": (diagonal_sweep, 3),
    "loss_product": (product_sweep, 4),
}


# -------------------------------------------------------------------------- the weights of the rows


@device
def ratio(a, b):
    """Return ``a / b``, and 0 for 0 / 0."""
    return a / b if b != 0.0 else 0.0


@device
def find_row_weights(team, arguments):
    """Compute the weight of every row from its `sample_weight` and its label.

    `weights` and `labels` are (rows,), without elements if there are no weights, or no label is
    ignored. The first row of invalid weight goes to ``errors[1]``. If `parts` (2 * blocks,) has
    elements, it receives for `divide_by_sum` the largest weight of every block, then the sums of
    the weights divided by it, since the sum itself might overflow.
    """
    weights, labels, ignore_index, row_weights, parts, errors = arguments
    most, total = 0.0, 0.0
    for i in grid_range(team, row_weights.size):
        row_weight = 1.0
        if labels.size > 0 and labels[i] == ignore_index:
            row_weight = 0.0
        elif weights.size > 0:
            row_weight = weights[i]
            if not 0.0 <= row_weight < np.inf:
                report_row(errors, 1, i)
        row_weights[i] = row_weight
        most = larger(most, row_weight)
    if parts.size > 0:
        most = largest(team, most)
        for i in grid_range(team, row_weights.size):
            total += ratio(row_weights[i], most)
        total, _ = sums(team, total, 0.0)
        if team.thread == 0:
            parts[team.block] = most
            parts[team.n_blocks + team.block] = total


@device
def divide_by_sum(team, arguments):
    """Divide the weights by their sum, for the weighted mean.

    Every block adds up the `parts` that all blocks of `find_row_weights` left, in the same order.
    """
    row_weights, parts = arguments
    most, total, n_parts = 0.0, 0.0, parts.size // 2
    for i in team_range(team, n_parts):
        most = larger(most, parts[i])
    most = largest(team, most)
    for i in team_range(team, n_parts):
        total += parts[n_parts + i] * ratio(parts[i], most)
    total, _ = sums(team, total, 0.0)
    for i in grid_range(team, row_weights.size):
        row_weight = row_weights[i]
        if row_weight > 0.0:  # a row of another weight is read
            row_weight = larger(SMALLEST, ratio(ratio(row_weight, most), total))
        row_weights[i] = row_weight
