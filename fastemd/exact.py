"""The Earth Mover's Distance by linear programming: the oracle, slow on purpose."""

from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike, NDArray

from fastemd import pairs, validation
from fastemd.eager import eager
from fastemd.ground import GroundSpace

Array = NDArray[Any]
OPTIONS = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}


@eager
def exact_emd(p: ArrayLike, q: ArrayLike, cost: ArrayLike | GroundSpace) -> tuple[Any, Any]:
    """Earth Mover's Distance and an optimal transport plan, by linear programming.

    Parameters
    ----------
    p, q : array_like, (..., N)
        Histograms over N bins: finite, >= 0 and of equal mass. Leading axes broadcast.
    cost : array_like, (N, N), or Chain or Tree
        What moving one unit of mass from a bin of `p` to a bin of `q` costs, finite and >= 0; or
        the ground space whose ``cost_matrix()`` says so. All arrays come from one library, as do
        the results.

    Returns
    -------
    value : ndarray of float64, (...)
        ``sum(plan * cost)``.
    plan : ndarray of float64, (..., N, N)
        How much mass goes from which bin of `p` to which bin of `q`: rows sum to `p`, columns to
        `q`. If there are several optimal plans, one of them.

    Raises
    ------
    ValueError
        If `cost` is not square, negative or not finite, shapes do not fit or a histogram is bad;
        the message names the row.
    TypeError
        If an argument is of another kind.
    RuntimeError
        If the solver gives up.

    Notes
    -----
    Eq. 1 and 2 of Martinez et al. by `scipy.optimize.linprog` (HiGHS), row by row: one variable
    per pair of bins that have mass. 100 bins take about a second; on a chain or tree,
    `fastemd.emd` with ``rho=1`` gives the value in O(nodes).

    Examples
    --------
    >>> import fastemd
    >>> value, plan = fastemd.exact_emd([1, 0, 0], [0, 0.5, 0.5], fastemd.Chain(3))
    >>> value
    np.float64(1.5)
    >>> plan
    array([[0. , 0.5, 0.5],
           [0. , 0. , 0. ],
           [0. , 0. , 0. ]])
    """
    if pairs.library_of(p, q, cost).device is not None:
        validation.only_on_cpu("exact distances")
    given = pairs.checked(p, q, cost, True, np.float64)
    n_rows, n_bins = given.p.shape
    plan = np.zeros((n_rows, n_bins, n_bins))
    for row in range(n_rows):
        sources, sinks = (np.flatnonzero(masses[row]) for masses in given[:2])
        if sources.size:
            plan[row][np.ix_(sources, sinks)] = _solve(
                given.p[row, sources], given.q[row, sinks], given.cost[np.ix_(sources, sinks)], row
            )
    value = (plan * given.cost).sum(axis=(-2, -1))
    results = value.reshape(given.batch), plan.reshape(*given.batch, n_bins, n_bins)
    return given.library.take(results[0]), given.library.take(results[1])


def _solve(p: Array, q: Array, cost: Array, row: int) -> Array:
    """The cheapest plan between masses > 0."""
    from scipy.optimize import linprog  # takes longer to import than all of fastemd

    rows, columns = (scipy.sparse.eye_array(masses.size, format="csr") for masses in (p, q))
    sums = scipy.sparse.vstack(
        [
            scipy.sparse.kron(rows, np.ones((1, q.size))),
            scipy.sparse.kron(np.ones((1, p.size)), columns),
        ],
        format="csr",
    )
    # One of the sums follows from the others; with it, rounding could make them infeasible. The
    # solver's tolerances are absolute, hence its own units of mass and cost.
    mass, unit = p.sum(), cost.max() or 1.0
    solution = linprog(
        cost.ravel() / unit,
        A_eq=sums[:-1],
        b_eq=np.concatenate([p, q])[:-1] / mass,
        method="highs",
        options=OPTIONS,
    )
    if not solution.success:
        validation.not_solved(row, solution.message)
    plan: Array = np.maximum(solution.x, 0.0).reshape(p.size, q.size) * mass
    return plan
