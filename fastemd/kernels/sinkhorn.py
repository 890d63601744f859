"""What Sinkhorn's iterations do between two matrix products: row by row, on all threads.

The products themselves, ``K' u`` and ``K v`` for the whole batch, are the BLAS's. An iteration of
Algorithm 1 is product, `divide`, product, `divide`; in the log domain product, `log_divide`,
product, `log_divide`. The rows are independent.

All helpers live in this file, and the digest of its code is in the cache's key.
"""

import functools
import math

import numpy as np
from llvmlite import ir
from numba import from_dtype, prange, types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from fastemd.kernels import caching
from fastemd.kernels.cpu import driver

# The log domain leaves a sum of products to the BLAS unless it is so small that terms may be
# missing from it. Factors below FLUSH are taken as 0: no product of two others is a denormal
# number, which would make the BLAS ten times slower. N dropped terms of at most FLUSH are not
# seen in a sum above N * TRUST, to the last bit of float64.
FLUSH = 1e-150
TRUST = 1e-133

# Between two products of a threaded BLAS, threads of Numba cost more than they are worth: each
# kind spins for a while when it is done, in the way of the other. Measured on two cores, OpenBLAS
# and OpenMP, 128 rows of 1000 bins: 4 ms per change, three times the product itself.
PARALLEL_FROM = 8_000_000  # nanoseconds

# These keep inf and NaN, which are results here, and let sums vectorise.
FAST = {"nsz", "contract", "reassoc"}

LOG2_E, LN2, LN2_REST = 1.4426950408889634, 0.6931471805599453, 2.3190468138462996e-17
LOWEST = -700.0  # exp of less is taken as 0
HIGHEST = 709.78  # exp of it is the largest number but for 0.2 %

DIGEST = caching.digest_of_code(__name__)


def _of_llvm(name, n_arguments):
    """An operation of LLVM on float64 numbers, which no fast mathematics takes apart."""

    def codegen(context, builder, sig, args):
        double = ir.DoubleType()
        kind = ir.FunctionType(double, [double] * n_arguments)
        function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.f64")
        return builder.call(function, args)

    return types.float64(*[types.float64] * n_arguments), codegen


@intrinsic
def round_down(typingctx, x):
    return _of_llvm("floor", 1)


@intrinsic
def multiply_add(typingctx, x, y, z):
    return _of_llvm("fma", 3)


@intrinsic
def maximum(typingctx, x, y):
    return _of_llvm("maximum", 2)  # a loop over it vectorises, one over Python's max does not


@intrinsic
def power_of_two(typingctx, exponent):
    """2.0 ** exponent for an int64 in the range of normal numbers."""

    def codegen(context, builder, sig, args):
        biased = builder.add(args[0], ir.IntType(64)(1023))
        return builder.bitcast(builder.shl(biased, ir.IntType(64)(52)), ir.DoubleType())

    return types.float64(types.int64), codegen


@register_jitable
def exp_below(x):
    """exp(x) for x <= 0 to some units in the last place, without a branch: loops vectorise."""
    y = x if x > LOWEST else LOWEST
    whole = round_down(multiply_add(y, LOG2_E, 0.5))
    r = multiply_add(whole, -LN2_REST, multiply_add(whole, -LN2, y))
    s = 1.0 / 6227020800.0
    s = s * r + 1.0 / 479001600.0
    s = s * r + 1.0 / 39916800.0
    s = s * r + 1.0 / 3628800.0
    s = s * r + 1.0 / 362880.0
    s = s * r + 1.0 / 40320.0
    s = s * r + 1.0 / 5040.0
    s = s * r + 1.0 / 720.0
    s = s * r + 1.0 / 120.0
    s = s * r + 1.0 / 24.0
    s = s * r + 1.0 / 6.0
    s = s * r + 0.5
    s = s * r + 1.0
    s = s * r + 1.0
    return s * power_of_two(np.int64(np.int32(whole))) if x > LOWEST else 0.0


# -- Algorithm 1 as printed ------------------------------------------------------------------------


def _divide(mass, sums, scaling, error):
    """``scaling = mass / sums``, 0 on bins without mass.

    Into `error`, unless it is empty, by how much the plan of the old scaling missed the masses.
    """
    n_rows, n_bins = mass.shape
    for b in prange(n_rows):
        if error.size:
            missed, total = 0.0, 0.0
            for k in range(n_bins):
                missed += abs(scaling[b, k] * sums[b, k] - mass[b, k])
                total += mass[b, k]
            error[b] = missed / total if total > 0.0 else missed
        for k in range(n_bins):
            quotient = mass[b, k] / sums[b, k]
            scaling[b, k] = quotient if mass[b, k] > 0 else mass.dtype.type(0)


def _finish(u, costs, lam, value, grad):
    """``value = sum(u * costs)`` with costs = (K * M) v, and ``grad = log(u) / lam``."""
    n_rows, n_bins = u.shape
    for b in prange(n_rows):
        total = 0.0
        for k in range(n_bins):
            total += u[b, k] * costs[b, k]
        value[b] = total
        for k in range(n_bins):
            grad[b, k] = math.log(u[b, k]) / lam if u[b, k] != 0 else -np.inf


# -- the log domain --------------------------------------------------------------------------------


@register_jitable
def log_sum(potential, exponents):
    """log(sum(exp(potential - exponents))), one sum that was too small for the BLAS."""
    highest = -np.inf
    for i in range(potential.size):
        highest = maximum(highest, potential[i] - exponents[i])
    if highest == -np.inf:
        return highest
    total = 0.0
    for i in range(potential.size):
        total += exp_below(potential[i] - exponents[i] - highest)
    return highest + math.log(total)


def _log_divide(mass, sums, shift, other, exponents, potential, scaling, new_shift, error):
    """``potential = log(mass) - log(sum over the other side)``, and what the BLAS needs of it.

    `sums` are those of ``exp(other - shift)`` times the kernel matrix, `exponents` the rows of
    ``lam M + 1``. ``scaling = exp(potential - new_shift)`` is at most 1. `error` as in `divide`.
    """
    n_rows, n_bins = mass.shape
    trust = n_bins * TRUST
    for b in prange(n_rows):
        missed, total, highest = 0.0, 0.0, -np.inf
        for k in range(n_bins):
            if mass[b, k] == 0.0 and (error.size == 0 or potential[b, k] == -np.inf):
                potential[b, k] = -np.inf
                continue
            if sums[b, k] > trust:
                log_of_sum = shift[b] + math.log(sums[b, k])
            else:
                log_of_sum = log_sum(other[b], exponents[k])
            if error.size:
                missed += abs(math.exp(potential[b, k] + log_of_sum) - mass[b, k])
                total += mass[b, k]
            potential[b, k] = math.log(mass[b, k]) - log_of_sum if mass[b, k] > 0.0 else -np.inf
            highest = max(highest, potential[b, k])
        if error.size:
            error[b] = missed / total if total > 0.0 else missed
        new_shift[b] = highest if highest > -np.inf else 0.0
        for k in range(n_bins):
            factor = exp_below(potential[b, k] - new_shift[b])
            scaling[b, k] = factor if factor > FLUSH else 0.0


def _log_finish(phi, psi, shift, costs, exponents, cost, lam, value, grad):
    """As `finish`, for a `cost` of at most 1; `costs` are those of ``exp(psi - shift)``."""
    n_rows, n_bins = phi.shape
    trust = n_bins * TRUST
    for b in prange(n_rows):
        total = 0.0
        for k in range(n_bins):
            grad[b, k] = phi[b, k] / lam
            if phi[b, k] == -np.inf:
                continue
            if costs[b, k] > trust:
                total += math.exp(phi[b, k] + shift[b] + math.log(costs[b, k]))
            else:
                for j in range(n_bins):
                    # No entry of the plan is larger than the masses, but for rounding.
                    mass = math.exp(min(phi[b, k] + psi[b, j] - exponents[k, j], HIGHEST))
                    total += mass * cost[k, j]
        value[b] = total


# -- compiled and launched -------------------------------------------------------------------------


def _signature(name, dtype):
    number = from_dtype(np.dtype(dtype))
    rows, row = types.Array(number, 2, "C"), types.Array(types.float64, 1, "C")
    lam = types.float64
    return {
        "divide": types.void(rows, rows, rows, row),
        "finish": types.void(rows, rows, lam, types.Array(number, 1, "C"), rows),
        "log_divide": types.void(rows, rows, row, rows, rows, rows, rows, row, row),
        "log_finish": types.void(rows, rows, row, rows, rows, rows, lam, row, rows),
    }[name]


_KERNELS = {
    "divide": _divide,
    "finish": _finish,
    "log_divide": _log_divide,
    "log_finish": _log_finish,
}


@functools.cache
def _compiled(name, char, parallel):
    source = _KERNELS[name]
    # The cache goes by this name and not by the options.
    function = _copy_of(source, f"{name}_{'parallel' if parallel else 'serial'}")
    options = {"parallel": parallel, "error_model": "numpy", "fastmath": FAST}
    return caching.compiled(function, _signature(name, char), DIGEST, **options)


def _copy_of(function, qualname):
    copy = type(function)(
        function.__code__, function.__globals__, function.__name__, function.__defaults__
    )
    copy.__module__, copy.__qualname__ = function.__module__, qualname
    return copy


def _launch(name, nanoseconds, *args):
    """Run a kernel over all rows of its first argument, on one thread or, if it pays, on all.

    `nanoseconds` is about what one thread takes.
    """
    char = args[0].dtype.char
    if driver.take_threads(nanoseconds >= PARALLEL_FROM) == 1:
        _compiled(name, char, False)(*args)
        return
    try:
        _compiled(name, char, True)(*args)
    finally:
        driver.give_threads_back()


def divide(mass, sums, scaling, error):
    """See `_divide`."""
    _launch("divide", mass.size, mass, sums, scaling, error)


def finish(u, costs, lam, value, grad):
    """See `_finish`."""
    _launch("finish", 10 * u.size, u, costs, lam, value, grad)


def log_divide(mass, sums, shift, other, exponents, potential, scaling, new_shift, error):
    """See `_log_divide`."""
    n_bins = mass.shape[1]
    small = np.count_nonzero(sums <= n_bins * TRUST)
    time = 40 * mass.size + 3 * n_bins * small
    arguments = mass, sums, shift, other, exponents, potential, scaling, new_shift, error
    _launch("log_divide", time, *arguments)


def log_finish(phi, psi, shift, costs, exponents, cost, lam, value, grad):
    """See `_log_finish`."""
    n_bins = phi.shape[1]
    time = 20 * phi.size + 10 * n_bins * np.count_nonzero(costs <= n_bins * TRUST)
    _launch("log_finish", time, phi, psi, shift, costs, exponents, cost, lam, value, grad)
