"""What Sinkhorn's iterations do on CUDA between two matrix products, a block of threads a row.

The functions are those of `fastemd.kernels.sinkhorn`, and so are their names and formulas. A row
that has come to its end stays as it is, for `going` is 0: nobody takes it out of the batch, since
that would take a look at what is on the device.
"""

import math
from typing import NamedTuple

import numpy as np

from fastemd.kernels.cuda.block import largest, report_row, sums
from fastemd.kernels.cuda.numba_cuda import device

# Those of `fastemd.kernels.sinkhorn`, whose cache's key covers its own file only.
TRUST, HIGHEST = 1e-133, 709.78


class Costs(NamedTuple):
    """(N, N) each."""

    cost: np.ndarray
    kernel: np.ndarray  # K = exp(-lam cost - 1)
    back: np.ndarray  # K'
    costed: np.ndarray  # (K * cost)', the cost in units of `unit`
    exponents: np.ndarray  # lam cost + 1, and its transpose; filled in the log domain only
    exponents_back: np.ndarray
    lam: float
    unit: float
    errors: np.ndarray


class Step(NamedTuple):
    """One half of an iteration, of all rows."""

    mass: np.ndarray  # (rows, N)
    sums: np.ndarray
    scaling: np.ndarray  # of this half, in the log domain divided by exp(shift)
    potential: np.ndarray  # its logarithm, in the log domain
    shift: np.ndarray  # (rows,)
    other: np.ndarray  # the potential and the shift of the other half
    other_shift: np.ndarray
    exponents: np.ndarray  # (N, N)
    counts: int  # whether this is the half with the error
    error: np.ndarray  # (rows,)
    n_iter: np.ndarray
    going: np.ndarray
    tol: float
    limit: int


class Start(NamedTuple):
    """Where a stage of the log domain starts."""

    potential: np.ndarray
    before: np.ndarray
    ratio: float  # how far to go on, in units of the way since `before`
    scaling: np.ndarray
    shift: np.ndarray
    n_iter: np.ndarray
    going: np.ndarray
    limit: int


class End(NamedTuple):
    """What is found from the last scalings of all rows."""

    scaling: np.ndarray  # of p; in the log domain its logarithm
    sums: np.ndarray  # (K * M) v
    other: np.ndarray  # in the log domain
    other_shift: np.ndarray
    cost: np.ndarray
    exponents: np.ndarray
    lam: float
    unit: float
    tol: float
    value: np.ndarray
    grad: np.ndarray
    error: np.ndarray
    converged: np.ndarray


@device
def prepare(team, i, s):
    n = s.cost.shape[0]
    for j in range(team.thread, n, team.n_threads):
        cost = s.cost[i, j]
        if not 0.0 <= cost < np.inf:
            report_row(s.errors, 0, i)
        k = math.exp(-s.lam * cost - 1.0)
        s.kernel[i, j] = k
        s.back[j, i] = s.kernel[i, j]
        s.costed[j, i] = s.kernel[i, j] * cost


@device
def log_prepare(team, i, s):
    n = s.cost.shape[0]
    for j in range(team.thread, n, team.n_threads):
        cost = np.float64(s.cost[i, j])
        if not 0.0 <= cost < np.inf:
            report_row(s.errors, 0, i)
        exponent = s.lam * cost + 1.0
        k = math.exp(-exponent)
        s.exponents[i, j] = exponent
        s.exponents_back[j, i] = exponent
        s.kernel[i, j] = k
        s.back[j, i] = k
        s.costed[j, i] = k * (cost / s.unit)


@device
def mass_at(s, b, k):
    """A mass; a negative one, which is within the tolerance, counts as 0."""
    mass = s.mass[b, k]
    return mass - mass if mass < 0.0 else mass


@device
def begin(team, b, s):
    for k in range(team.thread, s.scaling.shape[1], team.n_threads):
        s.scaling[b, k] = 1.0
        s.potential[b, k] = 0.0
    if team.thread == 0:
        s.error[b] = np.inf
        s.n_iter[b] = 0
        s.going[b] = 1


@device
def note(team, b, s, missed, total):
    """By how much the plan missed the masses, and whether the row goes on."""
    missed, total = sums(team, missed, total)
    if team.thread == 0:
        error = missed / total if total > 0.0 else missed
        s.error[b] = error
        s.n_iter[b] += 1
        s.going[b] = 1 if s.tol < error < np.inf and s.n_iter[b] < s.limit else 0


@device
def divide(team, b, s):
    if s.counts and not s.going[b]:
        return
    n = s.mass.shape[1]
    if s.counts:
        missed, total = 0.0, 0.0
        for k in range(team.thread, n, team.n_threads):
            missed += abs(s.scaling[b, k] * s.sums[b, k] - mass_at(s, b, k))
            total += mass_at(s, b, k)
        note(team, b, s, missed, total)
    for k in range(team.thread, n, team.n_threads):
        mass = mass_at(s, b, k)
        s.scaling[b, k] = mass / s.sums[b, k] if mass > 0 else 0.0


@device
def log_sum(potential, exponents):
    highest = -np.inf
    for i in range(potential.size):
        highest = max(highest, potential[i] - exponents[i])
    if highest == -np.inf:
        return highest
    total = 0.0
    for i in range(potential.size):
        total += math.exp(potential[i] - exponents[i] - highest)
    return highest + math.log(total)


@device
def log_divide(team, b, s):
    if s.counts and not s.going[b]:
        return
    n = s.mass.shape[1]
    missed, total, highest = 0.0, 0.0, -np.inf
    for k in range(team.thread, n, team.n_threads):
        mass = np.float64(mass_at(s, b, k))
        if mass == 0.0 and (not s.counts or s.potential[b, k] == -np.inf):
            s.potential[b, k] = -np.inf
            continue
        if s.sums[b, k] > n * TRUST:
            log_of_sum = s.other_shift[b] + math.log(s.sums[b, k])
        else:
            log_of_sum = log_sum(s.other[b], s.exponents[k])
        if s.counts:
            missed += abs(math.exp(s.potential[b, k] + log_of_sum) - mass)
            total += mass
        potential = math.log(mass) - log_of_sum if mass > 0.0 else -np.inf
        s.potential[b, k] = potential
        highest = max(highest, potential)
    if s.counts:
        note(team, b, s, missed, total)
    scale(team, b, s, highest)


@device
def scale(team, b, s, highest):
    """``exp(potential - shift)``, at most 1."""
    highest = largest(team, highest)
    shift = highest if highest > -np.inf else 0.0
    if team.thread == 0:
        s.shift[b] = shift
    for k in range(team.thread, s.potential.shape[1], team.n_threads):
        s.scaling[b, k] = math.exp(s.potential[b, k] - shift)


@device
def log_start(team, b, s):
    highest = -np.inf
    for k in range(team.thread, s.potential.shape[1], team.n_threads):
        now = s.potential[b, k]
        potential = now
        if s.ratio != 0.0 and now > -np.inf:
            potential += (now - s.before[b, k]) * s.ratio
        s.before[b, k] = now
        s.potential[b, k] = potential
        highest = max(highest, potential)
    if team.thread == 0:
        s.going[b] = 1 if s.n_iter[b] < s.limit else 0
    scale(team, b, s, highest)


@device
def judge(team, b, s, total):
    """The value, and whether it was found."""
    total, _ = sums(team, total, 0.0)
    if team.thread == 0:
        s.value[b] = total * s.unit
        if not abs(s.value[b]) < np.inf:
            s.error[b] = np.nan
        s.converged[b] = s.error[b] <= s.tol


@device
def finish(team, b, s):
    total = 0.0
    for k in range(team.thread, s.scaling.shape[1], team.n_threads):
        u = s.scaling[b, k]
        total += u * s.sums[b, k]
        s.grad[b, k] = math.log(u) / s.lam if u > 0 else (np.nan if u != 0 else -np.inf)
    judge(team, b, s, total)


@device
def log_finish(team, b, s):
    n, total = s.scaling.shape[1], 0.0
    for k in range(team.thread, n, team.n_threads):
        potential = s.scaling[b, k]
        s.grad[b, k] = potential / s.lam
        if potential == -np.inf:
            continue
        if s.sums[b, k] > n * TRUST:
            total += math.exp(potential + s.other_shift[b] + math.log(s.sums[b, k]))
        else:
            for j in range(n):
                exponent = potential + s.other[b, j] - s.exponents[k, j]
                total += math.exp(min(exponent, HIGHEST)) * (s.cost[k, j] / s.unit)
    judge(team, b, s, total)


OPERATIONS = {
    "prepare": prepare,
    "log_prepare": log_prepare,
    "begin": begin,
    "divide": divide,
    "log_divide": log_divide,
    "log_start": log_start,
    "finish": finish,
    "log_finish": log_finish,
}
