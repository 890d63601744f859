"""Losses on CUDA: a row of logits (or of masses) to the derivatives in them.

The formulas are those of `fastemd.kernels.losses`, `normalize` and `entropy`, and so are the names.
Scratch ``y`` holds what `weigh` makes of a row, in sum `total`; the histogram is ``y / total``.
"""

import math
from typing import NamedTuple

import numpy as np

from fastemd.kernels.cuda import BEND, SLOPE, slope_edge, sweep_up, weight
from fastemd.kernels.operations import L1, NONE, SOFTMAX
from fastemd.kernels.threads import larger, largest, sums
from fastemd.target import device

SMALLEST = 2.0**-1022  # sum to divide by
LOWEST_LOGIT = -np.finfo(np.float64).max  # of a masked class, whose target is 0

# A smaller p counts as this in the derivatives -q / p and q / p^2, which would overflow.
LEAST, LEAST_SQUARED = 2.0**-480, 2.0**-960


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


class Weighed(NamedTuple):
    """What is known of a row before the sweeps."""

    good: bool
    highest: float  # logit
    total: float
    mass: float  # of the target, without negative entries


@device
def x_at(row, k):
    return np.float64(row.p[k]) if row.factor != 0.0 else 0.0


@device
def vector_at(row, k):
    return np.float64(row.v[k]) if row.factor != 0.0 else 0.0


@device
def target_at(row, k):
    if row.factor == 0.0:
        return 0.0
    if row.label < 0:
        return np.float64(row.q[k])
    return 1.0 if k == row.label else 0.0


# -------------------------------------------------------------------- checks, from x to histograms


@device
def weigh(row, tolerance):
    """Fill ``y``."""
    highest = -np.inf
    for k in range(row.thread, row.n_bins, row.n_threads):
        highest = larger(highest, x_at(row, k))
    highest = largest(row, highest)
    none = -np.inf if row.normalize == SOFTMAX else 0.0
    excludes = row.cross_entropy > 0.0
    total, mass, negative_x, negative_q = 0.0, 0.0, 0.0, 0.0
    for k in range(row.thread, row.n_bins, row.n_threads):
        x, q = x_at(row, k), target_at(row, k)
        y = x
        if row.normalize == SOFTMAX:
            y = math.exp(x - highest)
        else:
            negative_x -= min(x, 0.0)
        row.y[k] = y
        total += y
        if excludes and q > 0.0 and x <= none:
            q = np.nan
        mass += q
        negative_q -= min(q, 0.0)
    total, mass = sums(row, total, mass)
    negative_x, negative_q = sums(row, negative_x, negative_q)
    good = abs(mass - 1.0) <= tolerance and negative_q <= tolerance * mass
    if row.normalize == SOFTMAX:
        good = good and abs(highest) < np.inf
    else:
        good = good and SMALLEST <= total < np.inf and negative_x <= tolerance * total
    if row.normalize == NONE:
        good = good and abs(total - 1.0) <= tolerance
        total = 1.0
    if row.factor == 0.0:
        good, total = True, max(total, 1.0)
    return Weighed(good, highest, total, mass + negative_q)


@device
def form_of(row, weighed):
    scale, entropy = 1.0 / weighed.total, row.cross_entropy * weighed.mass
    if row.normalize == SOFTMAX:
        return Form(scale, scale, 0.0, scale, 0.0, 1.0, entropy, row.factor)
    if row.normalize == L1:
        return Form(scale, 0.0, scale, scale, 0.0, 1.0, entropy, row.factor)
    return Form(1.0, 0.0, 1.0, 0.0, 1.0 / row.n_bins, 0.0, 0.0, row.factor)


@device
def centre_at(row, form, k):
    return row.y[k] * form.r_y + form.r_1


@device
def fill_deviation(row, weighed, form):
    """``p - q`` into ``x``."""
    for k in range(row.thread, row.n_bins, row.n_threads):
        if row.label < 0:
            row.x[k] = row.y[k] * form.scale - target_at(row, k)
        else:
            row.x[k] = (row.y[k] - weighed.total * target_at(row, k)) * form.scale


# --------------------------------------------------------------------------------- cross entropies


@device
def cross_entropies(row, weighed, form):
    """Cross entropy times its weight c; 0 for a row that does not count."""
    half, c = 0.0, row.cross_entropy  # half, as the difference of two logits may overflow
    for k in range(row.thread, row.n_bins, row.n_threads):
        q = target_at(row, k)
        if q > 0.0:
            if row.normalize == SOFTMAX:
                logit = max(0.5 * x_at(row, k) - 0.5 * weighed.highest, LOWEST_LOGIT)
                half += c * q * (0.5 * math.log(weighed.total) - logit)
            else:
                half += 0.5 * c * q * log_ratio(weighed.total, row.y[k])
    half, _ = sums(row, half, 0.0)
    return 2.0 * half


@device
def log_ratio(a, b):
    ratio = a / b
    return math.log(ratio) if ratio < np.inf else math.log(a) - math.log(b)


@device
def adds_entropy(row, k):
    """Whether the derivatives of the cross entropy are to be added in bin `k`: no softmax."""
    entropic = row.cross_entropy > 0.0 and row.normalize != SOFTMAX
    return entropic and target_at(row, k) > 0.0


@device
def entropy_bend(row, form, k):
    p = max(row.y[k] * form.scale, LEAST)
    return row.cross_entropy * target_at(row, k) / p / p


# ------------------------------------------------------------------------- functions on every edge


@device
def second_edge(row, e, flow, bend):
    """The slope; in ``z``, where the flow of r was, what makes the diagonal."""
    slope, h = bend(flow, row.rho * weight(row, e), row.rho)
    share = row.z[e]
    row.z[e] = h - 2.0 * h * share
    return slope, slope * share, h * share * share


@device
def change_edge(row, e, flow, bend):
    """The slope; in ``z``, where the flow of u was, the curvature times it."""
    slope, h = bend(flow, row.rho * weight(row, e), row.rho)
    row.z[e] *= h
    return slope, 0.0, 0.0


# ------------------------------------------------------------------------ one row of each operation


@device
def loss_row(row, up, down, slope, weighed):
    form = form_of(row, weighed)
    fill_deviation(row, weighed, form)
    value, _ = sweep_up(row, row.x, up, slope_edge, slope)
    result = value / row.rho
    if row.cross_entropy > 0.0:
        result += cross_entropies(row, weighed, form)
    down(row, row.x, 0.0)
    centre, more = 0.0, 0.0
    for k in range(row.thread, row.n_bins, row.n_threads):
        centre += centre_at(row, form, k) * row.x[k]
        if adds_entropy(row, k):
            p = max(row.y[k] * form.scale, LEAST_SQUARED)
            s = -row.cross_entropy * target_at(row, k) / p
            row.x[k] += s
            more += s
    centre, more = sums(row, centre, more)
    centre += form.r_1 * more
    for k in range(row.thread, row.n_bins, row.n_threads):
        y, d = row.y[k], row.x[k] - centre
        if row.normalize != SOFTMAX:
            row.out[k] = form.factor * (y * form.a_y + form.a_1) * (d + form.entropy)
        elif row.label == k:  # rounded once
            p = y * form.scale
            row.out[k] = form.factor * (p * d + row.cross_entropy * (p - 1.0))
        else:
            p = y * form.scale
            less = row.cross_entropy * max(target_at(row, k), 0.0)
            row.out[k] = form.factor * (p * (d + form.entropy) - less)
    return result


@device
def second_row(row, up, down, bend, weighed):
    """The diagonal of the second derivative."""
    form = form_of(row, weighed)
    for k in range(row.thread, row.n_bins, row.n_threads):
        row.z[k] = centre_at(row, form, k)
    up(row, row.z)
    fill_deviation(row, weighed, form)
    centre, grand = sweep_up(row, row.x, up, second_edge, bend)
    down(row, row.z, 0.0)
    down(row, row.x, 0.0)
    more = 0.0
    for k in range(row.thread, row.n_bins, row.n_threads):
        if adds_entropy(row, k):
            h = entropy_bend(row, form, k)
            row.z[k] += h * (1.0 - 2.0 * form.r_1)
            more += h
    more, _ = sums(row, more, 0.0)
    grand += form.r_1 * form.r_1 * more
    for k in range(row.thread, row.n_bins, row.n_threads):
        y = row.y[k]
        a, slope = y * form.a_y + form.a_1, row.x[k] - centre
        bent = row.z[k] + grand - 2.0 * form.bent * slope - form.entropy
        row.out[k] = form.factor * (a * (a * bent) + y * form.a_y * (slope + form.entropy))
    return 0.0


@device
def product_row(row, up, down, bend, weighed):
    """The second derivative times `v`; u is what p changes by along v."""
    form = form_of(row, weighed)
    mean, along = 0.0, 0.0
    for k in range(row.thread, row.n_bins, row.n_threads):
        v = vector_at(row, k)
        mean += centre_at(row, form, k) * v
        along += v
    mean, along = sums(row, mean, along)
    if row.normalize == L1:
        mean = 0.0
    else:
        along = 0.0
    for k in range(row.thread, row.n_bins, row.n_threads):
        y = row.y[k]
        change = vector_at(row, k) - mean - y * form.scale * along
        row.u[k] = (y * form.a_y + form.a_1) * change
        row.z[k] = row.u[k]
    up(row, row.z)
    fill_deviation(row, weighed, form)
    sweep_up(row, row.x, up, change_edge, bend)
    down(row, row.z, 0.0)
    down(row, row.x, 0.0)
    centre, mean, turn, more = 0.0, 0.0, 0.0, 0.0
    for k in range(row.thread, row.n_bins, row.n_threads):
        centre += centre_at(row, form, k) * row.x[k]
        mean += centre_at(row, form, k) * row.z[k]
        turn += row.u[k] * row.x[k]
        if adds_entropy(row, k):
            known = vector_at(row, k) if row.normalize == L1 else row.u[k]
            h = entropy_bend(row, form, k) * known
            row.z[k] += h * form.a_1
            more += h
    centre, mean = sums(row, centre, mean)
    turn, more = sums(row, turn, more)
    mean += form.bent * turn + form.r_1 * more
    for k in range(row.thread, row.n_bins, row.n_threads):
        slope, u = row.x[k] - centre + form.entropy, row.u[k]
        a, soft = row.y[k] * form.a_y + form.a_1, form.a_y / form.scale
        change = row.z[k] - mean - form.a_1 * along * slope
        row.out[k] = form.factor * (a * change + soft * u * slope)
    return 0.0


# A row, the functions on its edges, and how many of the scratches x, y, z, u it needs.
LOSS_ROWS = {
    "loss": (loss_row, SLOPE, 2),
    "loss_diagonal": (second_row, BEND, 3),
    "loss_product": (product_row, BEND, 4),
}
