"""Losses: normalise a row, sweep as an operation on histograms does, apply the chain rule.

Scratch ``y`` holds the masses before they are normalised, with the sum `total`: ``p = y / total``.
Formulas and names are those of `fastemd.kernels.cpu.losses`. At the end are the functions that
compute the factors of the rows.
"""

import math
from typing import NamedTuple

import numpy as np

from fastemd.kernels.cuda.block import (
    grid_range,
    larger,
    largest,
    own_bins,
    report_row,
    sums,
    team_range,
)
from fastemd.kernels.cuda.numba_cuda import device
from fastemd.kernels.cuda.sweeps import apply_to_edges
from fastemd.kernels.operations import L1, NONE, SOFTMAX, jacobian

SMALLEST = 2.0**-1022  # of a sum to divide by, and of a factor that is not 0
LOWEST_LOGIT = -np.finfo(np.float64).max  # for an excluded class: 0 times it is 0


class Weighed(NamedTuple):
    """What is known of a row before the sweeps."""

    valid: bool
    highest: float  # logit
    total: float
    target_mass: float  # without negative entries


def loss_function(name, operation, cost, sweep_up, sweep_down):
    """Return the function that computes a loss of a row and its derivatives."""
    function, _ = LOSSES[name]
    edge_values = apply_to_edges(operation.edge(cost))

    @device
    def compute(row, weighed):
        return function(row, weighed, edge_values, sweep_up, sweep_down)

    return compute


# --------------------------------------------------------- the user's rows, not read if factor is 0


@device
def x_at(row, k):
    return np.float64(row.inputs.p[k]) if row.loss.factor != 0.0 else 0.0


@device
def v_at(row, k):
    return np.float64(row.inputs.v[k]) if row.loss.factor != 0.0 else 0.0


@device
def target_at(row, k):
    if row.loss.factor == 0.0:
        return 0.0
    if row.loss.label < 0:
        return np.float64(row.inputs.q[k])
    return 1.0 if k == row.loss.label else 0.0


# ------------------------------------------------------------------------- checks and normalisation


@device
def weigh(row, tolerance):
    """Fill ``y``, and check the row."""
    highest, normalize = -np.inf, row.loss.normalize
    for k in own_bins(row):
        highest = larger(highest, x_at(row, k))
    highest = largest(row.team, highest)
    total, mass, negative_x, negative_q = 0.0, 0.0, 0.0, 0.0
    for k in own_bins(row):
        x, q = x_at(row, k), target_at(row, k)
        y = x
        if normalize == SOFTMAX:
            y = math.exp(x - highest)
        else:
            negative_x -= min(x, 0.0)
        row.scratch.y[k] = y
        total += y
        if row.loss.cross_entropy > 0.0 and q > 0.0 and x == -np.inf:
            q = np.nan
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
    if row.loss.factor == 0.0:
        valid, total = True, max(total, 1.0)
    return Weighed(valid, highest, total, mass + negative_q)


@device
def jacobian_of(row, weighed):
    return jacobian(row.loss.normalize, 1.0 / weighed.total, row.layout.n_bins)


@device
def fill_deviation(row, weighed):
    """Fill ``x`` with ``p - q``."""
    x, y, scale = row.scratch.x, row.scratch.y, 1.0 / weighed.total
    for k in own_bins(row):
        if row.loss.label < 0:
            x[k] = y[k] * scale - target_at(row, k)
        else:
            x[k] = (y[k] - weighed.total * target_at(row, k)) * scale


@device
def cross_entropies(row, weighed):
    """Return the cross entropy times its weight; 0 for a row whose factor is 0."""
    half, c = 0.0, row.loss.cross_entropy  # half, as the difference of two logits may overflow
    for k in own_bins(row):
        q = target_at(row, k)
        if q > 0.0:
            logit = max(0.5 * x_at(row, k) - 0.5 * weighed.highest, LOWEST_LOGIT)
            half += c * q * (0.5 * math.log(weighed.total) - logit)
    half, _ = sums(row.team, half, 0.0)
    return 2.0 * half


# ------------------------------------------------------------------------ one row of each operation


@device
def loss_row(row, weighed, edge_values, sweep_up, sweep_down):
    """Write the derivatives in x and return the loss."""
    x, y, jac, loss = row.scratch.x, row.scratch.y, jacobian_of(row, weighed), row.loss
    fill_deviation(row, weighed)
    sweep_up(row, x)
    cost, _ = edge_values(row)
    value = cost * row.numbers.cost_factor
    if loss.cross_entropy > 0.0:
        value += cross_entropies(row, weighed)
    sweep_down(row, x, 0.0)
    centre = 0.0
    for k in own_bins(row):
        centre += (y[k] * jac.r_y + jac.r_1) * x[k]
    centre, _ = sums(row.team, centre, 0.0)
    c, entropy = loss.cross_entropy, loss.cross_entropy * weighed.target_mass
    for k in own_bins(row):
        a, slope = y[k] * jac.a_y + jac.a_1, x[k] - centre
        if loss.label == k:  # rounded once
            row.out[k] = loss.factor * (a * slope + c * (a - 1.0))
        else:
            q = max(target_at(row, k), 0.0)
            row.out[k] = loss.factor * (a * (slope + entropy) - c * q)
    return value


@device
def second_row(row, weighed, edge_values, sweep_up, sweep_down):
    """Write the diagonal of the second derivative."""
    x, y, z, jac = row.scratch.x, row.scratch.y, row.scratch.other, jacobian_of(row, weighed)
    for k in own_bins(row):
        z[k] = y[k] * jac.r_y + jac.r_1
    sweep_up(row, z)
    fill_deviation(row, weighed)
    sweep_up(row, x)
    centre, grand = edge_values(row)
    sweep_down(row, z, 0.0)
    sweep_down(row, x, 0.0)
    entropy = row.loss.cross_entropy * weighed.target_mass
    for k in own_bins(row):
        a, slope = y[k] * jac.a_y + jac.a_1, x[k] - centre
        curvature = z[k] + grand - 2.0 * jac.depends * slope - entropy
        change = a * (a * curvature) + y[k] * jac.a_y * (slope + entropy)
        row.out[k] = row.loss.factor * change
    return 0.0


@device
def product_row(row, weighed, edge_values, sweep_up, sweep_down):
    """Write the second derivative times `v`; u is the change of p along v."""
    x, y, z, u = row.scratch.x, row.scratch.y, row.scratch.other, row.scratch.u
    jac, scale = jacobian_of(row, weighed), 1.0 / weighed.total
    mean, growth = 0.0, 0.0  # growth of the sum that l1 divides by
    for k in own_bins(row):
        v = v_at(row, k)
        mean += (y[k] * jac.r_y + jac.r_1) * v
        growth += v
    mean, growth = sums(row.team, mean, growth)
    if row.loss.normalize == L1:
        mean = 0.0
    else:
        growth = 0.0
    for k in own_bins(row):
        u[k] = (y[k] * jac.a_y + jac.a_1) * (v_at(row, k) - mean - y[k] * scale * growth)
        z[k] = u[k]
    sweep_up(row, z)
    fill_deviation(row, weighed)
    sweep_up(row, x)
    edge_values(row)
    sweep_down(row, z, 0.0)
    sweep_down(row, x, 0.0)
    centre, mean, slope_change = 0.0, 0.0, 0.0
    for k in own_bins(row):
        r = y[k] * jac.r_y + jac.r_1
        centre += r * x[k]
        mean += r * z[k]
        slope_change += u[k] * x[k]
    centre, mean = sums(row.team, centre, mean)
    slope_change, _ = sums(row.team, slope_change, 0.0)
    mean += jac.depends * slope_change
    entropy = row.loss.cross_entropy * weighed.target_mass
    for k in own_bins(row):
        slope, a = x[k] - centre + entropy, y[k] * jac.a_y + jac.a_1
        change = a * (z[k] - mean - jac.a_1 * growth * slope)
        row.out[k] = row.loss.factor * (change + jac.a_y / scale * u[k] * slope)
    return 0.0


# The function of a row, and the number of scratch arrays x, y, other, u that it needs.
LOSSES = {
    "loss": (loss_row, 2),
    "loss_diagonal": (second_row, 3),
    "loss_product": (product_row, 4),
}


# -------------------------------------------------------------------------- the factors of the rows


@device
def ratio(a, b):
    """Return ``a / b``, and 0 for 0 / 0."""
    return a / b if b != 0.0 else 0.0


@device
def find_factors(team, grid, arguments):
    """Compute the factor of every row from its weight and its label.

    `weights` and `labels` are (rows,), without elements if there are no weights, or no label is
    ignored. The first row of invalid weight goes to ``errors[1]``. If `parts` (2 * blocks,) has
    elements, it receives for `divide_by_sum` the largest factor of every block, then the sums of
    the factors divided by it, since the sum itself might overflow.
    """
    weights, labels, ignore_index, factors, parts, errors = arguments
    most, total = 0.0, 0.0
    for i in grid_range(team, grid, factors.size):
        factor = 1.0
        if labels.size > 0 and labels[i] == ignore_index:
            factor = 0.0
        elif weights.size > 0:
            factor = weights[i]
            if not 0.0 <= factor < np.inf:
                report_row(errors, 1, i)
        factors[i] = factor
        most = larger(most, factor)
    if parts.size > 0:
        most = largest(team, most)
        for i in grid_range(team, grid, factors.size):
            total += ratio(factors[i], most)
        total, _ = sums(team, total, 0.0)
        if team.thread == 0:
            parts[grid.block] = most
            parts[grid.n_blocks + grid.block] = total


@device
def divide_by_sum(team, grid, arguments):
    """Divide the factors by their sum, for the weighted mean.

    Every block adds up the `parts` that all blocks of `find_factors` left, in the same order.
    """
    factors, parts = arguments
    most, total, n_parts = 0.0, 0.0, parts.size // 2
    for i in team_range(team, n_parts):
        most = larger(most, parts[i])
    most = largest(team, most)
    for i in team_range(team, n_parts):
        total += parts[n_parts + i] * ratio(parts[i], most)
    total, _ = sums(team, total, 0.0)
    for i in grid_range(team, grid, factors.size):
        factor = factors[i]
        if factor > 0.0:  # a row whose factor is not 0 is read
            factor = larger(SMALLEST, ratio(ratio(factor, most), total))
        factors[i] = factor
