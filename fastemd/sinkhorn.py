"""The Sinkhorn distance (Algorithm 1 of Martinez et al.): a reference that is slow on purpose."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastemd import pairs, validation
from fastemd.eager import eager
from fastemd.kernels.sinkhorn import FLUSH, divide, finish, log_divide, log_finish
from fastemd.pairs import Pairs
from fastemd.sinkhorn_on_device import Solver
from fastemd.spaces import GroundSpace

Array = NDArray[Any]
METHODS = ("paper", "log")
NOTHING = np.empty(0)

# Where the log domain goes up in stages, in units of lambda times the highest cost: if it is to go
# beyond REACH, from START on, and not beyond FINEST, where rounding hides as much as entropy does.
# A stage ends with the error SETTLED. 0.001 left problems unsolved, 0.00001 took a fifth more
# iterations; factors of 4 for 2, and starting from 700, a quarter more and three times as many.
REACH, START, FINEST, SETTLED = 700.0, 100.0, 1e8, 1e-4


class SinkhornResult(NamedTuple):
    """What `sinkhorn` returns; all but `grad` have the shape (...) of the batch.

    Examples
    --------
    >>> import fastemd
    >>> p, q, cost = [0.5, 0.5], [0.25, 0.75], [[0, 1], [1, 0]]
    >>> result = fastemd.sinkhorn(p, q, cost, lam=5, max_iter=100, tol=1e-9)
    >>> result.value.round(3), result.converged, result.n_iter
    (np.float64(0.25), np.True_, np.int64(23))
    """

    value: Any
    grad: Array
    n_iter: Any
    converged: Any
    error: Any


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
        What moving one unit of mass from a bin of `p` to a bin of `q` costs, finite and >= 0; or
        the ground space whose ``cost_matrix()`` says so. All arrays come from one library, as do
        the results.
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
        Of arrays on a CUDA device `synchronize` tells the outcome, unless this is True.

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
            and relative to the mass: ``sum(|T 1 - p|) / sum(p)``. At one lambda it only falls, so
            it bounds the error of the result (which costs ``q`` nothing: T always meets `q`).

        A row that fails (overflow, underflow, NaN) stops: `converged` is False and `error` not
        finite, `n_iter` says when it failed, `value` and `grad` are as they came out. There are
        no warnings. Small numbers lost one by one show as an `error` that does not fall.

    Raises
    ------
    ValueError
        If `cost` is not square, negative or not finite in the type of the results, shapes do not
        fit, ``lam <= 0``, ``max_iter < 1``, ``tol < 0`` or a histogram is bad; the message names
        the row.
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

    Where ``lam * max(cost)`` is over 700, "log" goes up to `lam` in stages: each has twice the
    lambda of the one before, the first at most ``100 / max(cost)``. A stage ends with an error of
    at most 1e-4 (or `tol`, if that is more) or once its equal share of `max_iter` is used up, the
    last one as said above; `n_iter` counts the iterations of all. ``log(u)`` starts on the
    straight line in lambda through where the last two stages ended. Float64 knows ``lam * cost``
    to 16 digits, so `error` comes down to about ``1e-17 lam max(cost)``; a `lam` beyond
    ``1e8 / max(cost)`` is taken for that, which changes `value` by at most ``1e-8 log(N)
    max(cost)`` per unit of mass.

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
    library = pairs.library_of(p, q, cost)
    if library.device is not None:
        solver = Solver(library, p, q, cost, validate, dtype, in_float64=method == "log")
        if method == "paper":
            return SinkhornResult(*solver.as_printed(lam, max_iter, tol))
        highest = solver.highest()
        lams = _stages(lam, highest)
        return SinkhornResult(*solver.with_logarithms(lams, highest, max_iter, tol, SETTLED))
    given = pairs.checked(p, q, cost, validate, dtype)
    solve = _as_printed if method == "paper" else _with_logarithms
    with np.errstate(all="ignore"):
        result = solve(given, lam, max_iter, tol)
    rows = {name: array.reshape((*given.batch, *array.shape[1:])) for name, array in result.items()}
    return SinkhornResult(**{name: given.library.take(array) for name, array in rows.items()})


class _Progress:
    """How many iterations each row took, and by how much its plan misses `p`."""

    def __init__(self, n_rows: int) -> None:
        self.n_iter = np.zeros(n_rows, np.int64)
        self.error = np.full(n_rows, np.inf)

    def iterate(self, step: Callable[..., None], *state: Array, tol: float, limit: int) -> Array:
        """Let `step` work on rows until their error is at most `tol` or they took `limit` in all.

        The arrays of `state` have a row for each; `step` leaves the error in the last. Returns the
        first array's rows as they were when each came to its end.
        """
        at_end, active = np.empty_like(state[0]), np.arange(len(state[0]))
        going = self.n_iter < limit
        while True:
            if not going.all():
                at_end[active[~going]] = state[0][~going]
                active = active[going]
                state = tuple(array[going] for array in state)
            if not active.size:
                return at_end
            step(*state)
            error = state[-1]
            self.n_iter[active] += 1
            self.error[active] = error
            going = (error > tol) & np.isfinite(error) & (self.n_iter[active] < limit)

    def report(self, value: Array, grad: Array, tol: float) -> dict[str, Array]:
        """The fields of the result; a row without a value has failed at last."""
        self.error[~np.isfinite(value)] = np.nan
        return {
            "value": value,
            "grad": grad,
            "n_iter": self.n_iter,
            "converged": self.error <= tol,
            "error": self.error,
        }


def _as_printed(given: Pairs, lam: float, max_iter: int, tol: float) -> dict[str, Array]:
    """Algorithm 1, for all rows that still go on at once."""
    p, q, cost = given[:3]
    kernel = np.exp(-lam * cost - 1)

    def step(u: Array, p: Array, q: Array, sums: Array, v: Array, error: Array) -> None:
        np.matmul(u, kernel, out=sums)
        divide(q, sums, v, NOTHING)
        np.matmul(v, kernel.T, out=sums)
        divide(p, sums, u, error)

    progress = _Progress(len(p))
    buffers = np.empty_like(p), np.empty_like(p), np.empty(len(p))
    u = progress.iterate(step, np.ones_like(p), p, q, *buffers, tol=tol, limit=max_iter)

    sums, v, grad = np.empty_like(u), np.empty_like(u), np.empty_like(u)
    value = np.empty(len(grad), grad.dtype)
    np.matmul(u, kernel, out=sums)
    divide(q, sums, v, NOTHING)
    np.matmul(v, (kernel * cost).T, out=sums)
    finish(u, sums, lam, value, grad)
    return progress.report(value, grad, tol)


def _with_logarithms(given: Pairs, lam: float, max_iter: int, tol: float) -> dict[str, Array]:
    """The same iterations on ``phi = log(u)`` and ``psi = log(v)``, in stages if `lam` is large."""
    p, q, cost = (array.astype(np.float64, copy=False) for array in given[:3])
    progress = _Progress(len(p))
    lams = _stages(lam, cost.max())
    lam_before, before, slope = 0.0, np.zeros_like(p), np.zeros_like(p)
    for stage, lam in enumerate(lams, 1):
        phi = before + slope * (lam - lam_before)
        phi[np.isneginf(before)] = -np.inf
        at_lam = _LogDomain(lam, cost)
        buffers = np.empty_like(p), np.empty_like(p), *_scaled(phi), np.empty(len(p))
        until = tol if stage == len(lams) else max(tol, SETTLED)
        limit = max_iter * stage // len(lams)
        phi = progress.iterate(at_lam.step, phi, p, q, *buffers, tol=until, limit=limit)
        slope = (phi - before) / (lam - lam_before)
        lam_before, before = lam, phi

    psi, sums, grad = (np.empty_like(phi) for _ in range(3))
    value, unit = np.empty(len(phi)), cost.max() or 1.0
    scaling, shift = _scaled(phi)
    at_lam.other_side(phi, q, psi, sums, scaling, shift)
    np.matmul(scaling, (at_lam.kernel * (cost / unit)).T, out=sums)
    log_finish(phi, psi, shift, sums, at_lam.exponents, cost / unit, lam, value, grad)
    value *= unit
    dtype = given.p.dtype
    return progress.report(value.astype(dtype), grad.astype(dtype), tol)


def _stages(lam: float, highest: float) -> list[float]:
    """The lambdas to go through; `highest` is the highest cost."""
    lam = min(lam, FINEST / highest) if highest > 0.0 else lam
    lams = [lam]
    if lam * highest > REACH:
        while lams[0] * highest > START:
            lams.insert(0, lams[0] / 2)
    return lams


class _LogDomain:
    """An iteration on logarithms, at one lambda."""

    def __init__(self, lam: float, cost: Array) -> None:
        self.exponents = lam * cost + 1.0
        self.back = np.ascontiguousarray(self.exponents.T)
        self.kernel = np.exp(-self.exponents)
        self.kernel[self.kernel < FLUSH] = 0.0

    def other_side(
        self, phi: Array, q: Array, psi: Array, sums: Array, scaling: Array, shift: Array
    ) -> None:
        """`psi` from `phi`; `scaling` and `shift` are those of `phi` and then of `psi`."""
        np.matmul(scaling, self.kernel, out=sums)
        log_divide(q, sums, shift, phi, self.back, psi, scaling, shift, NOTHING)

    def step(
        self, phi: Array, p: Array, q: Array, psi: Array, sums: Array, scaling: Array, shift: Array,
        error: Array,
    ) -> None:  # fmt: skip
        self.other_side(phi, q, psi, sums, scaling, shift)
        np.matmul(scaling, self.kernel.T, out=sums)
        log_divide(p, sums, shift, psi, self.exponents, phi, scaling, shift, error)


def _scaled(phi: Array) -> tuple[Array, Array]:
    """``exp(phi - shift)``, at most 1, and the shift of every row, as `log_divide` gives them."""
    shift = phi.max(axis=-1, initial=-np.inf)
    shift[np.isneginf(shift)] = 0.0
    scaling = np.exp(phi - shift[:, None])
    scaling[scaling < FLUSH] = 0.0
    return scaling, shift
