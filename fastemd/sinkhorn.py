"""The Sinkhorn distance (Algorithm 1 of Martinez et al.): a reference that is slow on purpose."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import array_api_compat
import numpy as np
from numpy.typing import ArrayLike

from fastemd import backends, validation, views
from fastemd.array_api import computing_with, namespace_of
from fastemd.backends import CudaBackend
from fastemd.eager import eager
from fastemd.pairs import resolve_pairs
from fastemd.spaces import GroundSpace

Array = Any  # of the namespace `xp` of the array API
LogSums = Callable[[Array, Array], Array]  # of potentials, where they are needed
METHODS = ("paper", "log")
INF = float("inf")

# Stages of the log domain, in units of lambda times the highest cost: used beyond REACH, from START
# on, and not beyond FINEST, where the error of rounding equals that of the entropy. A stage ends
# with the error SETTLED. 0.001 left problems unsolved, 0.00001 took a fifth more
# iterations; factors of 4 for 2, and starting from 700, a quarter more and three times as many.
REACH, START, FINEST, SETTLED = 700.0, 100.0, 1e8, 1e-4

# The log domain leaves a sum of products to the BLAS unless it is so small that terms may be
# missing from it. Factors below FLUSH are taken as 0: no product of two others is a denormal
# number, which would make the BLAS ten times slower. N dropped terms of at most FLUSH do not
# change a sum above N * TRUST, to the last bit of float64.
FLUSH, TRUST = 1e-150, 1e-133
LOG_FLUSH = math.log(FLUSH)

# Exponents of terms in a sum that contains a 1. NumPy's exp takes ten times as long at underflow.
LOWEST = -700.0
HIGHEST = 709.78  # exp of it is the largest number, to 0.2 %

# Sums of so few terms are all computed exactly, since a call takes longer than its numbers. Others
# go in blocks of so many terms, by whether they are to stay in a cache or to fill a GPU.
FEW, BLOCK, BLOCK_ON_DEVICE = 1 << 13, 1 << 14, 1 << 21


class SinkhornResult(NamedTuple):
    """The result of `sinkhorn`; all but `grad` have the shape (...) of the batch.

    Examples
    --------
    >>> import fastemd
    >>> p, q, cost = [0.5, 0.5], [0.25, 0.75], [[0, 1], [1, 0]]
    >>> result = fastemd.sinkhorn(p, q, cost, lam=5, max_iter=100, tol=1e-9)
    >>> result.value.round(3), result.converged, result.n_iter
    (np.float64(0.25), np.True_, np.int64(23))
    """

    value: Any
    """Cost of the transport plan of the last iteration, (...)."""
    grad: Any
    """Gradient with respect to `p`, (..., N), up to a constant."""
    n_iter: Any
    """Number of iterations of every row, (...)."""
    converged: Any
    """Whether `error` is at most `tol`, (...)."""
    error: Any
    """Relative difference between the row sums of the plan and `p`, (...)."""


@eager
def sinkhorn(
    p: ArrayLike,
    q: ArrayLike,
    cost: ArrayLike | GroundSpace,
    *,
    lam: float,
    max_iter: int = 100,
    tol: float = 0.0,
    method: str = "paper",
    dtype: Any = None,
    validate: bool | float | None = None,
) -> SinkhornResult:
    """Sinkhorn distance between histograms and its gradient, by a number of iterations.

    Parameters
    ----------
    p, q : array_like, (..., N)
        Histograms over N bins: finite, >= 0 and of equal mass. Leading axes broadcast. Bins may
        be empty.
    cost : array_like, (N, N), or Chain or Tree
        Cost of moving one unit of mass from a bin of `p` to a bin of `q`, finite and >= 0; or a
        ground space, for its ``cost_matrix()``. All arrays are of one backend, as are the results.
    lam : float
        The paper's lambda, > 0, in units of 1 / cost. The larger, the nearer to the Earth Mover's
        Distance, and the more iterations it takes.
    max_iter : int
        The limit of iterations, >= 1.
    tol : float
        A row stops as soon as its `error` is at most this.
    method : {"paper", "log"}
        "paper" is Algorithm 1 exactly as printed, in the arithmetic of `dtype`. It fails where
        numbers leave its range, about ``lam * cost`` > 87 for float32 and > 700 for float64.
        "log" are the same iterations on logarithms, always in float64: they never fail. Where
        ``lam * cost`` goes beyond 700, they begin at a smaller lambda (see Notes).
    dtype : {float32, float64}, optional
        Default: float32 if all arrays are float32, else float64. "log" only rounds its results
        to it. "paper" may need float64 where float32 histograms are far apart.
    validate : bool or float, optional
        Whether to check the histograms, by default yes; a float is the relative tolerance between
        two masses, otherwise the root of the coarser type's precision. Costs are always checked.
        For arrays on a CUDA device a copy is validated on the host.

    Returns
    -------
    SinkhornResult
        A named tuple of

        value : ndarray, (...)
            The cost ``<T, cost>`` of the transport plan T of the last iteration.
        grad : ndarray, (..., N)
            ``log(u) / lam``, defined up to a constant: compare it after centring. ``-inf`` on
            bins where `p` is 0.
        n_iter : ndarray of int, (...)
            Number of iterations of a row.
        converged : ndarray of bool, (...)
            Whether `error` is at most `tol`. With the default, 0.0, only if rounding makes it 0.
        error : ndarray of float64, (...)
            Difference between the row sums of the plan and `p` at the start of the last
            iteration, relative to the mass: ``sum(|T 1 - p|) / sum(p)``. At one lambda it does not
            increase, so it bounds the error of the result. The column sums always equal `q`.

        A row that fails (overflow, underflow, NaN) stops: `converged` is False, `error` is not
        finite, and `n_iter` is the iteration in which it failed. There are no warnings. If small
        numbers underflow to 0, `error` does not decrease.

    Raises
    ------
    ValueError
        If `cost` is not square, negative or not finite in the type of the results, shapes do not
        fit, ``lam <= 0``, ``max_iter < 1``, ``tol < 0`` or a histogram is invalid; the message
        names the row.
    TypeError
        If an argument is of another kind.

    Notes
    -----
    With ``K = exp(-lam cost - 1)`` and ``u = 1`` at first, an iteration is
    ``u = p / (K (q / (K' u)))``; in the end ``v = q / (K' u)``, ``value = sum(u ((K * cost) v))``.
    A scaling is 0 where its mass is 0, for any divisor.

    The plan ``T = diag(u) K diag(v)`` minimises ``<T, cost> - h(T) / lam``, with the entropy
    ``h(T) = -<T, log T>`` as in Cuturi (2013); eq. 3 of the paper has the opposite sign. `grad` is
    the gradient of that minimum with respect to `p`, not that of `value`.

    An iteration takes two products with an N x N matrix, O(N^2) per row. "log" uses the BLAS, too,
    except for sums that are too small, which take N exponentials each.

    If ``lam * max(cost)`` exceeds 700, "log" increases lambda in stages: each has twice the lambda
    of the previous one, the first at most ``100 / max(cost)``. A stage ends with an error of at
    most 1e-4 (or `tol`, if that is larger) or after an equal share of `max_iter`; `n_iter` is the
    sum over all stages. ``log(u)`` is extrapolated linearly in lambda from the last two stages.
    ``lam * cost`` has 16 digits in float64, so `error` reaches about ``1e-17 lam max(cost)``. A
    `lam` beyond ``1e8 / max(cost)`` is replaced by that, which changes `value` by at most
    ``1e-8 log(N) max(cost)`` per unit of mass.

    Examples
    --------
    >>> import fastemd
    >>> chain = fastemd.Chain(3)
    >>> result = fastemd.sinkhorn([0.5, 0.5, 0], [0, 0.5, 0.5], chain, lam=20, method="log")
    >>> result.value.round(6), fastemd.emd([0.5, 0.5, 0], [0, 0.5, 0.5], chain, rho=1)
    (np.float64(1.0), np.float64(1.0))

    With large `lam` the algorithm as printed fails, which is reported:

    >>> failed = fastemd.sinkhorn([0.5, 0.5, 0], [0, 0.5, 0.5], chain, lam=2000)
    >>> failed.value, failed.converged, failed.n_iter
    (np.float64(nan), np.False_, np.int64(2))
    """
    lam = validation.check_amount("lam", lam, zero=False)
    max_iter = validation.check_count("max_iter", max_iter)
    tol = validation.check_amount("tol", tol, zero=True)
    validation.check_choice("method", method, METHODS)
    arrays = {"p": p, "q": q} | ({} if isinstance(cost, GroundSpace) else {"cost": cost})
    backend = backends.backend_of(arrays)
    if not isinstance(backend, CudaBackend):
        xp, device, pairs = np, None, resolve_pairs(p, q, cost, validate, dtype)
    else:
        xp, device = namespace_of("sinkhorn", p), array_api_compat.device(p)
        p_on_host, q_on_host = _on_host("p", p), _on_host("q", q)
        pairs = resolve_pairs(p_on_host, q_on_host, _on_host("cost", cost), validate, dtype)
    iterate: Any = _iterate_as_printed if method == "paper" else _iterate_on_logarithms
    with np.errstate(all="ignore"), computing_with(xp, p):
        rows = (xp.asarray(array, device=device) for array in pairs[:3])
        value, grad, n_iter, error = iterate(xp, *rows, lam, max_iter, tol)
        error = xp.where(xp.isfinite(value), error, xp.nan)
        fields = value, grad, n_iter, error <= tol, error
        results = [xp.reshape(x, (*pairs.shape, *x.shape[1:])) for x in fields]
    wrap = backend.finish if isinstance(backend, CudaBackend) else backend.wrap
    return SinkhornResult(*map(wrap, results))


def _on_host(name: str, value: Any) -> Any:
    """Copy an array on a CUDA device to the host, where it is validated."""
    if isinstance(value, GroundSpace):
        return value
    views.as_array(name, value)  # raises for types that cannot be read
    if array_api_compat.is_torch_array(value):
        return value.numpy(force=True)
    return value.get() if array_api_compat.is_cupy_array(value) else np.asarray(value)


def _iterate(
    xp: Any, step: Callable[..., tuple[Array, Array]], state: Sequence[Array],
    constants: Sequence[Array], tol: float, limit: int,
) -> Sequence[Array]:  # fmt: skip
    """Iterate every row until its error is at most `tol` or it took `limit` iterations in all.

    `state` is ``(u, n_iter, error)``; ``step(u, *constants)`` returns the next u and the error of
    this one. Rows that stop do not change any more, and are removed once they are half of the
    batch: JAX compiles all functions for every new shape.
    """
    u, n_iter, error = state
    going, index = n_iter < limit, xp.cumulative_sum(xp.ones_like(n_iter))
    stopped = []
    while True:
        n_going = int(xp.count_nonzero(going))
        if 2 * n_going <= going.shape[0]:
            stopped.append([x[~going] for x in (u, n_iter, error, index)])
            u, n_iter, error, index = (x[going] for x in (u, n_iter, error, index))
            constants, going = [x[going] for x in constants], going[going]
        if not n_going:
            break
        next_u, next_error = step(u, *constants)
        if n_going < going.shape[0]:
            next_u = xp.where(going[:, None], next_u, u)
            next_error = xp.where(going, next_error, error)
        u, error, n_iter = next_u, next_error, n_iter + xp.astype(going, n_iter.dtype)
        going = going & (error > tol) & (error < INF) & (n_iter < limit)
    *state, index = (xp.concat(pieces) for pieces in zip(*stopped, strict=True))
    order = xp.argsort(index)
    return [xp.take(x, order, axis=0) for x in state]


def _missed(xp: Any, mass: Array, p: Array, total: Array) -> Array:
    """Return the error: by how much the plan's mass, of float64, misses `p`."""
    return xp.sum(xp.abs(mass - p), axis=-1) / total


def _start(xp: Any, p: Array) -> tuple[Array, Array, Array]:
    """Return no iterations, an infinite error, and the mass to which errors are relative."""
    total = xp.sum(p, axis=-1, dtype=xp.float64)
    n_iter = xp.zeros_like(total, dtype=xp.int64)
    return n_iter, xp.full_like(total, INF), xp.where(total > 0.0, total, 1.0)


def _iterate_as_printed(
    xp: Any, p: Array, q: Array, cost: Array, lam: float, max_iter: int, tol: float
) -> tuple[Array, ...]:
    """Run Algorithm 1 as printed; return the value, gradient, n_iter and error of every row."""
    kernel = xp.exp(-lam * cost - 1.0)

    def divide(mass: Array, sums: Array) -> Array:
        return xp.where(mass > 0.0, mass / sums, 0.0)

    def step(u: Array, p: Array, q: Array, total: Array) -> tuple[Array, Array]:
        sums = divide(q, u @ kernel) @ kernel.T
        mass = xp.astype(u, xp.float64, copy=False) * sums  # exact for float32
        return divide(p, sums), _missed(xp, mass, p, total)

    n_iter, error, total = _start(xp, p)
    state = xp.ones_like(p), n_iter, error
    u, n_iter, error = _iterate(xp, step, state, (p, q, total), tol, max_iter)
    v = divide(q, u @ kernel)
    value = xp.sum(u * (v @ (kernel * cost).T), axis=-1, dtype=xp.float64)
    return xp.astype(value, p.dtype), xp.log(u) / lam, n_iter, error


def _iterate_on_logarithms(
    xp: Any, p: Array, q: Array, cost: Array, lam: float, max_iter: int, tol: float
) -> tuple[Array, ...]:
    """Run it on ``phi = log(u)`` and ``psi = log(v)``, in stages if `lam` is large."""
    dtype = p.dtype
    p, q, cost = (xp.astype(x, xp.float64) for x in (p, q, cost))
    cost_back = xp.reshape(xp.reshape(cost.T, (-1,)), cost.shape)  # contiguous
    n_iter, error, total = _start(xp, p)
    constants = p, xp.log(p), xp.log(q), total

    highest = float(xp.max(cost))
    lams = _stages(lam, highest)
    lam_before, before, slope = 0.0, xp.zeros_like(p), xp.zeros_like(p)
    for stage, lam in enumerate(lams, 1):
        exponents = lam * cost + 1.0
        kernel = _exp_or_0(xp, -exponents)
        sum_over_p = _log_sums(xp, lam * cost_back + 1.0, kernel)
        sum_over_q = _log_sums(xp, exponents, kernel.T)
        step = functools.partial(_log_step, xp, sum_over_p, sum_over_q)
        phi = xp.where(before > -INF, before + slope * (lam - lam_before), -INF)
        until = tol if stage == len(lams) else max(tol, SETTLED)
        limit = max_iter * stage // len(lams)
        phi, n_iter, error = _iterate(xp, step, (phi, n_iter, error), constants, until, limit)
        slope = (phi - before) / (lam - lam_before)
        lam_before, before = lam, phi

    psi, unit = _log_divide(xp, constants[2], sum_over_p(phi, q > 0.0)), highest or 1.0
    log_costs = _log_sums(xp, exponents, (kernel * cost / unit).T, cost / unit)(psi, phi > -INF)
    # No entry of the plan is larger than the masses, except for rounding.
    costs = xp.where(phi > -INF, xp.exp(xp.clip(phi + log_costs, None, HIGHEST)), 0.0)
    value = xp.sum(costs, axis=-1) * unit
    return xp.astype(value, dtype), xp.astype(phi / lam, dtype), n_iter, error


def _log_step(
    xp: Any, sum_over_p: LogSums, sum_over_q: LogSums,
    phi: Array, p: Array, log_p: Array, log_q: Array, total: Array,
) -> tuple[Array, Array]:  # fmt: skip
    psi = _log_divide(xp, log_q, sum_over_p(phi, log_q > -INF))
    log_sums = sum_over_q(psi, (log_p > -INF) | (phi > -INF))
    return _log_divide(xp, log_p, log_sums), _missed(xp, xp.exp(phi + log_sums), p, total)


def _log_divide(xp: Any, log_mass: Array, log_sums: Array) -> Array:
    """Return the logarithm of a scaling, ``-inf`` on bins without mass."""
    return xp.where(log_mass > -INF, log_mass - log_sums, -INF)


def _stages(lam: float, highest: float) -> list[float]:
    """Return the lambdas of all stages; `highest` is the highest cost."""
    lam = min(lam, FINEST / highest) if highest > 0.0 else lam
    lams = [lam]
    if lam * highest > REACH:
        while lams[0] * highest > START:
            lams.insert(0, lams[0] / 2)
    return lams


def _exp_or_0(xp: Any, x: Array) -> Array:
    """Compute ``exp(x)``, and 0 where it is less than `FLUSH`."""
    return xp.where(x < LOG_FLUSH, 0.0, xp.exp(xp.maximum(x, LOG_FLUSH)))


def _log_sums(xp: Any, exponents: Array, kernel: Array, costs: Array | None = None) -> LogSums:
    """Return a function of potentials, ``log(sum(costs[k] * exp(potential - exponents[k])))``.

    It computes all sums that are `needed`, by the product with `kernel` where that will do.
    """
    n_bins = exponents.shape[0]

    def exact(potential: Array, exponents: Array, costs: Array | None = None) -> Array:
        terms = potential - exponents
        highest = xp.max(terms, axis=-1, keepdims=True)
        terms = terms - xp.where(highest > -INF, highest, 0.0)
        if costs is None:
            sums = xp.sum(xp.exp(xp.maximum(terms, LOWEST)), axis=-1)
        else:
            sums = xp.sum(xp.exp(terms) * costs, axis=-1)
        return highest[..., 0] + xp.log(sums)

    def log_sums(potential: Array, needed: Array) -> Array:
        if potential.shape[0] * n_bins**2 <= FEW:
            return exact(potential[:, None, :], exponents, costs)
        shift = xp.max(potential, axis=-1, keepdims=True)
        shift = xp.where(shift > -INF, shift, 0.0)
        sums = _exp_or_0(xp, potential - shift) @ kernel
        small = xp.reshape((sums <= n_bins * TRUST) & needed, (-1,))
        n_small, by_blas = int(xp.count_nonzero(small)), shift + xp.log(sums)
        if not n_small:
            return by_blas
        # All blocks are of one size, filled up with other sums: JAX compiles them once.
        size = max(1, (BLOCK if xp is np else BLOCK_ON_DEVICE) // n_bins)
        order, blocks = xp.argsort(xp.astype(~small, xp.int8), stable=True), []
        for i in range(0, n_small, size):
            row, k = order[i : i + size] // n_bins, order[i : i + size] % n_bins
            chosen = (xp.take(x, k, axis=0) for x in (exponents, costs) if x is not None)
            blocks.append(exact(xp.take(potential, row, axis=0), *chosen))
        place = xp.cumulative_sum(xp.astype(small, xp.int64)) - xp.astype(small, xp.int64)
        found = xp.reshape(xp.take(xp.concat(blocks), place % n_small), sums.shape)
        return xp.where(xp.reshape(small, sums.shape), found, by_blas)

    return log_sums
