"""Distances of all pairs of histograms, and nearest neighbours."""

from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from fastemd import backends, validation, views
from fastemd.array_api import computing_with, namespace_of
from fastemd.backends import CudaBackend
from fastemd.call import edge_cost, result_type
from fastemd.docstrings import documented
from fastemd.functions import embed, emd
from fastemd.pair_sums import PairSums, distance, used_part
from fastemd.spaces import GroundSpace
from fastemd.tables import Table

Array = NDArray[Any]


@documented
def pairwise(
    P: Any,  # noqa: N803  # a matrix
    Q: Any = None,  # noqa: N803
    *,
    space: GroundSpace,
    rho: float,
    condensed: bool = False,
    out: Any = None,
    progress: bool | None = None,
    validate: bool | float | None = None,
) -> Any:
    """Compute EMD^rho between all pairs of histograms.

    Parameters
    ----------
    {P}
    Q : array_like, sparse array or data frame, (m, N), optional
        Other histograms, of the same mass; by default `P` itself.
    space : Chain or Tree
        The ground space.
    {rho}
    condensed : bool
        Whether to return the pairs ``i < j`` of `P` as one axis, in the order of
        `scipy.spatial.distance.pdist`.
    out : array, optional
        Array for the result, of its shape: any that parts of an array can be assigned to, such as
        `numpy.memmap` or an array of zarr. A condensed result is written row by row, which is slow
        for arrays that are compressed. If an error is raised, its contents are undefined.
    {progress}
    {validate_rows}

    Returns
    -------
    array, (n, m) or (n * (n - 1) // 2,)
        Of float32 if `P` and `Q` are, of float64 otherwise; `out` if given. All sums are computed
        in float64. Without `Q` it is symmetric, with zeros on the diagonal.

    Raises
    ------
    ValueError
        If shapes or columns do not fit, a power is < 1 or not finite, `condensed` is used with
        `Q`, or a histogram is invalid. The message names the row.
    TypeError
        If an argument has an unsupported type, arrays have different backends, or arrays on a CUDA
        device are used with a `rho` other than 2.

    See Also
    --------
    neighbors : The nearest rows alone.
    emd : One distance per row of two batches.

    Notes
    -----
    The rows are read in blocks. In memory are the result (unless `out` is on disk), and of `P` and
    `Q` the masses below the edges: two numbers per bin of a dense row, and about one per used node
    of a sparse one. At most 1 GiB of these is kept; what exceeds it is computed again.

    At ``rho = 2`` the distances are a product of matrices. At other powers an edge below which few
    rows have mass counts for the pairs that both have some. Rounding errors are below 1e-12 of the
    largest distance.

    Arrays on a CUDA device are supported at ``rho = 2``.

    Examples
    --------
    >>> import fastemd
    >>> P = [[1, 0, 0], [0, 1, 0], [0, 0.5, 0.5]]
    >>> fastemd.pairwise(P, space=fastemd.Chain(3), rho=1)
    array([[0. , 1. , 1.5],
           [1. , 0. , 0.5],
           [1.5, 0.5, 0. ]])
    """
    if not isinstance(space, GroundSpace):
        validation.not_a_space(space)
    rho = edge_cost(rho).rho
    if condensed and Q is not None:
        validation.condensed_with_two_tables()
    arrays = {"P": P, "Q": Q, "out": out}
    backend = backends.backend_of({n: x for n, x in arrays.items() if x is not None})
    if isinstance(backend, CudaBackend):
        if rho != 2.0:
            validation.only_squares_on_cuda(rho)
        return _squares_on_device(backend, P, Q, space, condensed, out, validate)
    tables = [Table("P", P)] if Q is None else [Table("P", P), Table("Q", Q)]
    return collect(_distances(tables, space, rho, validate), condensed, out, progress)


@documented
def neighbors(
    queries: Any,
    P: Any,  # noqa: N803
    *,
    space: GroundSpace,
    rho: float,
    k: int,
    progress: bool | None = None,
    validate: bool | float | None = None,
) -> tuple[Any, Any]:
    """Find the k nearest histograms of every query, exactly.

    Parameters
    ----------
    queries : array_like, sparse array or data frame, (n_queries, N)
        As `P`, of the same mass.
    {P}
    space : Chain or Tree
        The ground space.
    {rho}
    k : int
        How many neighbours, from 1 to n.
    {progress}
    {validate_rows}

    Returns
    -------
    distances : array, (n_queries, k)
        EMD^rho, ascending. Of float32 if `queries` and `P` are, of float64 otherwise.
    indices : array of int64, (n_queries, k)
        The rows of `P`. Of equal distances the smaller index is first.

    Raises
    ------
    ValueError
        If shapes or columns do not fit, `k` is out of range, a power is < 1 or not finite, or a
        histogram is invalid. The message names the row.
    TypeError
        If an argument has an unsupported type, arrays have different backends, or are on a CUDA
        device.

    See Also
    --------
    pairwise : All distances.
    embed : Points, for approximate neighbours by other libraries.

    Notes
    -----
    All distances are computed, block by block, and at most a block of them is in memory. A query
    that is a row of `P` finds itself, or equal rows before it.

    Examples
    --------
    >>> import fastemd
    >>> P = [[1, 0, 0], [0, 1, 0], [0, 0.5, 0.5]]
    >>> fastemd.neighbors([[0, 0, 1]], P, space=fastemd.Chain(3), rho=1, k=2)
    (array([[0.5, 1. ]]), array([[2, 1]]))
    """
    if not isinstance(space, GroundSpace):
        validation.not_a_space(space)
    rho = edge_cost(rho).rho
    backend = backends.backend_of({"queries": queries, "P": P})
    if isinstance(backend, CudaBackend):
        validation.only_on_cpu("nearest neighbours")
    a, b = Table("queries", queries), Table("P", P)
    k = validation.check_neighbors(k, b.n_rows)
    sums = _distances([a, b], space, rho, validate)
    distances = np.full((a.n_rows, k), np.inf)
    indices = np.full((a.n_rows, k), b.n_rows)
    for rows, columns, block in sums.results(progress=progress):
        keep_nearest(distances[rows], indices[rows], block, columns.start)
    found = backend.empty(distances.shape, result_type([a.values, b.values]))
    rows = backend.empty(indices.shape, np.dtype(np.int64))
    with np.errstate(over="ignore"):  # float32 may be infinite
        found[...], rows[...] = distances, indices
    return backend.wrap(found), backend.wrap(rows)


def _distances(
    tables: list[Table], space: GroundSpace, rho: float, validate: bool | float | None
) -> PairSums:
    """Return the sums that are the distances, of validated masses."""
    tables = [table.over(space) for table in tables]
    default = validation.mass_tolerance(*(table.values.dtype.char for table in tables))
    tolerance = validation.check_validate(validate, default)
    validation.check_equal_masses({table.name: table.masses() for table in tables}, tolerance)
    return PairSums(distance(rho), *used_part(space, tables), tolerance)


def keep_nearest(distances: Array, indices: Array, block: Array, first: int) -> None:
    """Replace the nearest columns so far by those of a block, whose first column is `first`.

    NaN is further than all numbers. Before it has seen k columns, a row ends with inf.
    """
    k = distances.shape[1]
    if block.shape[1] > 2 * k:  # a bound for every row, so that few columns are sorted
        bound = np.fmin(np.partition(block, k - 1, axis=1)[:, k - 1], distances[:, -1])
        is_far = block > bound[:, None]  # false for NaN
        width = int((~is_far).sum(axis=1).max(initial=0))
        chosen = np.argsort(is_far, axis=1, kind="stable")[:, :width]
        block = np.take_along_axis(block, chosen, axis=1)
    else:
        chosen = np.broadcast_to(np.arange(block.shape[1]), block.shape)
    known = min(k, first)
    all_distances = np.concatenate([distances[:, :known], block], axis=1)
    all_indices = np.concatenate([indices[:, :known], first + chosen], axis=1)
    order = np.argsort(all_distances, axis=1, kind="stable")[:, :k]  # of equal ones the first
    n_found = order.shape[1]
    distances[:, :n_found] = np.take_along_axis(all_distances, order, axis=1)
    indices[:, :n_found] = np.take_along_axis(all_indices, order, axis=1)


def collect(
    sums: PairSums, condensed: bool = False, out: Any = None, progress: bool | None = None
) -> Any:
    """Write the results of all blocks to `out`, or to a new array."""
    n, m, backend = sums.a.n_rows, sums.b.n_rows, sums.a.backend
    shape = (n * (n - 1) // 2,) if condensed else (n, m)
    if out is None:
        values = [table.whole.values for table in (sums.a, sums.b)]
        target = backend.empty(shape, result_type(values))
    else:
        view = target = views.writable_view("out", out, backend)
        validation.check_pairs_out(target, shape)
        dense = [each.values for each in (sums.a, sums.b) if not each.is_sparse]
        if isinstance(view, np.ndarray) and any(views.overlap(view, x) for x in dense):
            target = np.empty(shape, view.dtype)
    with np.errstate(over="ignore"):  # float32 may be infinite
        for i, j, block in sums.results(progress=progress):
            if condensed:
                assign_condensed(target, n, i, j, block)
            else:
                assign_square(target, i, j, block, sums.is_same)
    if out is None:
        return backend.wrap(target)
    if target is not view:
        view[...] = target
    backend.mark_written(out)
    return out


def assign_square(target: Any, i: slice, j: slice, block: Array, mirrored: bool) -> None:
    """Write a block of pairs, and its mirror image if the rows are those of one table."""
    target[i, j] = block
    if mirrored and i != j:
        target[j, i] = block.T


def assign_condensed(target: Any, n: int, i: slice, j: slice, block: Array) -> None:
    """Write a block of pairs of n rows to where SciPy's `pdist` has them."""
    for row in range(i.start, i.stop):
        first = max(j.start, row + 1)
        part = block[row - i.start, first - j.start :]
        place = n * row - row * (row + 1) // 2 + first - row - 1
        target[place : place + part.size] = part


def _squares_on_device(
    backend: CudaBackend, P: Any, Q: Any, space: GroundSpace, condensed: bool, out: Any,  # noqa: N803
    validate: bool | float | None,
) -> Any:  # fmt: skip
    """Compute the distances at rho = 2 by the library of the arrays, in float64."""
    xp, device = namespace_of("pairwise", P), array_api_compat.device(P)
    for name, x in (("P", P), ("Q", Q)):
        if x is not None:
            validation.check_table_shape(name, tuple(x.shape))
            validation.check_bins_axis(name, tuple(x.shape), space.n_bins)
    tables = [x for x in (P, Q) if x is not None]
    single = all(x.dtype == xp.float32 for x in tables)
    with computing_with(xp, P):
        points = [xp.astype(x, xp.float64) for x in tables]
        if tables[-1].shape[0]:
            first = tables[-1][:1, :]
            if validate is not False:  # all masses are those of one row
                names = ["P", "Q"][: len(tables)]
                for name, x in zip(names, tables, strict=True):
                    with validation.renaming({"p": name, "q": f"the first row of {names[-1]}"}):
                        emd(x, first, space, 2, validate=validate)
            # See `fastemd.pair_sums` for why a row is subtracted.
            points = [x - xp.astype(first, xp.float64) for x in points]
        points = [embed(x, space, 2, validate=False) for x in points]
        a, b = points[0], points[-1]
        squares = [xp.sum(each * each, axis=1) for each in (a, b)]
        result = squares[0][:, None] + squares[1][None, :] - 2.0 * (a @ xp.matrix_transpose(b))
        result = xp.maximum(result, xp.zeros_like(result))
        if Q is None:
            result = xp.triu(result, k=1)
            if condensed:
                ones = xp.ones_like(result, dtype=xp.bool, device=device)
                result = result[xp.triu(ones, k=1)]
            else:
                result = result + xp.matrix_transpose(result)
        result = xp.astype(result, xp.float32 if single else xp.float64)
    if out is None:
        return backend.finish(result)
    target = views.writable_view("out", out, backend)
    validation.check_pairs_out(target, tuple(result.shape))
    backend.assign(target, backend.view(result))
    backend.mark_written(out)
    return out
