"""The Sinkhorn distance (Algorithm 1 of Martinez et al.): a reference that is slow on purpose."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastemd import pairs, validation
from fastemd.ground import GroundSpace
from fastemd.kernels.sinkhorn import FLUSH, TRUST, divide, finish, log_divide, log_finish
from fastemd.pairs import Pairs

Array = NDArray[Any]
METHODS = ("paper", "log")


class SinkhornResult(NamedTuple):
    """What `sinkhorn` returns; all but `grad` have the shape (...) of the batch."""

    value: Any
    grad: Array
    n_iter: Any
    converged: Any
    error: Any


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
) -> SinkhornResult:
    """Sinkhorn distance between histograms and its gradient, by a number of iterations.

    Parameters
    ----------
    p, q : array_like, (..., N)
        Histograms over N bins: finite, >= 0 and of equal mass. Leading axes broadcast. Bins may
        be empty.
    cost : array_like, (N, N), or Chain or Tree
        What moving one unit of mass from a bin of `p` to a bin of `q` costs, finite and >= 0; or
        the ground space whose ``cost_matrix()`` says so.
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
        "log" are the same iterations on logarithms, always in float64: they never fail.
    dtype : {float32, float64}, optional
        Default: float32 if all arrays are float32, else float64. "log" only rounds its results
        to it.

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
            How many iterations a row took.
        converged : ndarray of bool, (...)
            Whether `error` came down to `tol`. With the default, 0.0, rarely.
        error : ndarray of float64, (...)
            By how much the plan missed `p` when the last iteration began, summed over the bins
            and relative to the mass: ``sum(|T 1 - p|) / sum(p)``. It only falls, so it bounds the
            error of the result (which costs ``q`` nothing: T always meets `q`).

        A row that fails (overflow, underflow, NaN) stops: `converged` is False and `error` not
        finite, `n_iter` says when it failed, `value` and `grad` are as they came out. There are
        no warnings. Small numbers lost one by one show as an `error` that does not fall.

    Raises
    ------
    ValueError
        If `cost` is not square, negative or not finite, shapes do not fit, ``lam <= 0``,
        ``max_iter < 1``, ``tol < 0`` or a histogram is bad; the message names the row.
    TypeError
        If an argument is of another kind.

    Notes
    -----
    With ``K = exp(-lam cost - 1)`` and ``u = 1`` at first, an iteration is
    ``u = p / (K (q / (K' u)))``; in the end ``v = q / (K' u)``, ``value = sum(u ((K * cost) v))``.
    A scaling is 0 where its mass is 0, whatever it is divided by.

    The plan ``T = diag(u) K diag(v)`` is where ``<T, cost> - h(T) / lam`` is least, with the
    entropy ``h(T) = -<T, log T>`` as in Cuturi (2013); the paper's eq. 3 prints the sign of the
    entropy term the other way round. `grad` is the gradient of that least sum with respect to
    `p`, and not that of `value`.

    Two products with an N x N matrix per iteration, O(N^2) per row. "log" leaves them to the BLAS
    as well, but for sums that are too small for it, which cost N exponentials each.

    Examples
    --------
    >>> import fastemd
    >>> chain = fastemd.Chain(3)
    >>> result = fastemd.sinkhorn([0.5, 0.5, 0], [0, 0.5, 0.5], chain, lam=20, method="log")
    >>> result.value.round(6), fastemd.emd([0.5, 0.5, 0], [0, 0.5, 0.5], chain, rho=1)
    (np.float64(1.0), np.float64(1.0))

    With large `lam` the algorithm as printed fails, and says so:

    >>> failed = fastemd.sinkhorn([0.5, 0.5, 0], [0, 0.5, 0.5], chain, lam=2000)
    >>> failed.value, failed.converged, failed.n_iter
    (np.float64(nan), np.False_, np.int64(2))
    """
    lam = validation.check_amount("lam", lam, zero=False)
    max_iter = validation.check_count("max_iter", max_iter)
    tol = validation.check_amount("tol", tol, zero=True)
    validation.check_choice("method", method, METHODS)
    given = pairs.checked(p, q, cost, dtype)
    solve = _as_printed if method == "paper" else _with_logarithms
    with np.errstate(all="ignore"):
        result = solve(given, lam, max_iter, tol)
    rows = {name: array.reshape((*given.batch, *array.shape[1:])) for name, array in result.items()}
    return SinkhornResult(**{name: array[()] for name, array in rows.items()})


class _Progress:
    """The rows still at work, and how far each of them came."""

    def __init__(self, n_rows: int, max_iter: int, tol: float) -> None:
        self.active = np.arange(n_rows)
        self.n_iter = np.zeros(n_rows, np.int64)
        self.error = np.full(n_rows, np.inf)
        self.converged = np.zeros(n_rows, np.bool_)
        self.max_iter, self.tol = max_iter, tol

    def after(self, iteration: int, error: Array) -> Array | None:
        """Which of the active rows go on after an iteration; None if all do."""
        self.n_iter[self.active] = iteration
        self.error[self.active] = error
        done = error <= self.tol
        going = ~done & np.isfinite(error)
        if iteration == self.max_iter:
            going[:] = False
        elif going.all():
            return None
        self.converged[self.active[done]] = True
        self.active = self.active[going]
        return going

    def iterate(self, step: Callable[..., None], *state: Array) -> Array:
        """Let `step` work on the arrays of `state`, a row for each active one, until none is.

        Returns the first array's rows as they were when each came to its end; `step` leaves the
        error in the last.
        """
        at_end = np.empty_like(state[0])
        for iteration in range(1, self.max_iter + 1):
            active = self.active
            if not active.size:
                break
            step(*state)
            going = self.after(iteration, state[-1])
            if going is not None:
                at_end[active[~going]] = state[0][~going]
                state = tuple(array[going] for array in state)
        return at_end

    def report(self, value: Array, grad: Array) -> dict[str, Array]:
        """The fields of the result; a row without a value has failed at last."""
        self.error[~np.isfinite(value)] = np.nan
        self.converged &= np.isfinite(value)
        return {
            "value": value,
            "grad": grad,
            "n_iter": self.n_iter,
            "converged": self.converged,
            "error": self.error,
        }


def _as_printed(given: Pairs, lam: float, max_iter: int, tol: float) -> dict[str, Array]:
    """Algorithm 1, for all rows that still go on at once."""
    p, q, cost, _ = given
    kernel = np.exp(-lam * cost - 1)
    nothing = np.empty(0)

    def step(u: Array, p: Array, q: Array, sums: Array, v: Array, error: Array) -> None:
        np.matmul(u, kernel, out=sums)
        divide(q, sums, v, nothing)
        np.matmul(v, kernel.T, out=sums)
        divide(p, sums, u, error)

    progress = _Progress(len(p), max_iter, tol)
    buffers = np.empty_like(p), np.empty_like(p), np.empty(len(p))
    u_at_end = progress.iterate(step, np.ones_like(p), p, q, *buffers)

    sums, v, grad = np.empty_like(u_at_end), np.empty_like(u_at_end), np.empty_like(u_at_end)
    value = np.empty(len(grad), grad.dtype)
    np.matmul(u_at_end, kernel, out=sums)
    divide(q, sums, v, nothing)
    np.matmul(v, (kernel * cost).T, out=sums)
    finish(u_at_end, sums, lam, value, grad)
    return progress.report(value, grad)


def _with_logarithms(given: Pairs, lam: float, max_iter: int, tol: float) -> dict[str, Array]:
    """The same iterations on ``phi = log(u)`` and ``psi = log(v)``."""
    p, q, cost = (array.astype(np.float64, copy=False) for array in given[:3])
    exponents = lam * cost + 1.0
    back = np.ascontiguousarray(exponents.T)
    kernel = np.exp(-exponents)
    kernel[kernel < FLUSH] = 0.0
    nothing = np.empty(0)

    def step(
        phi: Array, p: Array, q: Array, psi: Array, sums: Array, scaling: Array, shift: Array,
        error: Array,
    ) -> None:  # fmt: skip
        np.matmul(scaling, kernel, out=sums)
        log_divide(q, sums, shift, phi, back, psi, scaling, shift, nothing)
        np.matmul(scaling, kernel.T, out=sums)
        log_divide(p, sums, shift, psi, exponents, phi, scaling, shift, error)

    progress = _Progress(len(p), max_iter, tol)
    phi = np.zeros_like(p)
    buffers = np.empty_like(p), np.empty_like(p), *_scaled(phi), np.empty(len(p))
    at_end = progress.iterate(step, phi, p, q, *buffers)

    phi, psi, sums, grad = at_end, *(np.empty_like(at_end) for _ in range(3))
    value = np.empty(len(phi))
    scaling, shift = _scaled(phi)
    np.matmul(scaling, kernel, out=sums)
    log_divide(q, sums, shift, phi, back, psi, scaling, shift, nothing)
    np.matmul(scaling, (kernel * cost).T, out=sums)
    trust = cost.shape[0] * TRUST * cost.max()
    log_finish(phi, psi, shift, sums, exponents, cost, trust, lam, value, grad)
    dtype = given.p.dtype
    return progress.report(value.astype(dtype), grad.astype(dtype))


def _scaled(phi: Array) -> tuple[Array, Array]:
    """``exp(phi - shift)``, at most 1, and the shift of every row, as `log_divide` gives them."""
    shift = phi.max(axis=-1, initial=-np.inf)
    shift[np.isneginf(shift)] = 0.0
    scaling = np.exp(phi - shift[:, None])
    scaling[scaling < FLUSH] = 0.0
    return scaling, shift
