"""The functions on histograms: values, gradients, Hessians, flows."""

from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import ArrayLike

from fastemd import backends, validation, views
from fastemd.array_api import computing_with, namespace_of
from fastemd.backends import CudaBackend
from fastemd.call import Batch, Output, edge_cost, resolve, run
from fastemd.docstrings import documented
from fastemd.kernels.edges import power
from fastemd.layout import EdgeLayout
from fastemd.spaces import GroundSpace

__all__ = [
    "embed",
    "emd",
    "emd_flow",
    "emd_grad",
    "emd_hessian",
    "emd_hessian_diag",
    "emd_hvp",
    "emd_length_grad",
    "emd_value_and_grad",
]

# Entries of the flows that `emd_length_grad` holds at a time: to stay in a cache, or to fill a GPU.
BLOCK, BLOCK_ON_DEVICE = 1 << 17, 1 << 20


@documented
def emd(
    p: ArrayLike,
    q: ArrayLike,
    space: GroundSpace,
    rho: float,
    *,
    out: Any = None,
    validate: bool | float | None = None,
) -> Any:
    """Compute EMD^rho between histograms on a chain or tree.

    Parameters
    ----------
    {p_q}
    {rho}
    {out}
    {validate}

    Returns
    -------
    array, (...)
        The sum over all edges of length times ``|flow|^rho``.

    {raises}

    Notes
    -----
    Eq. 5, 10 and 13 of Martinez et al. (arXiv:1611.07573). O(nodes) per row.

    Examples
    --------
    >>> import fastemd
    >>> chain = fastemd.Chain(4)
    >>> fastemd.emd([1, 0, 0, 0], [0, 0, 0.5, 0.5], chain, rho=1)
    np.float64(2.5)
    """
    cost = edge_cost(rho)
    batch = resolve(space, validate, p=p, q=q)
    value = batch.output("out", out)
    run("gradient", space.layout("levels"), batch, cost, value)
    return batch.wrap(value)


@documented
def emd_grad(
    p: ArrayLike,
    q: ArrayLike,
    space: GroundSpace,
    rho: float,
    *,
    out: Any = None,
    project: bool = True,
    validate: bool | float | None = None,
) -> Any:
    """Compute the gradient of EMD^rho with respect to `p`.

    Parameters
    ----------
    {p_q}
    {rho}
    {out}
    {project}
    {validate}

    Returns
    -------
    array, (..., N)
        Rows sum to 0 if projected.

    {raises}

    Notes
    -----
    Eq. 9, 11 and 15 of Martinez et al. (arXiv:1611.07573), eq. 15 with the sum over leaves. The
    gradient with respect to `q` is the negative. An edge without flow has slope 0, also for
    ``rho = 1``. O(nodes) per row.

    Examples
    --------
    >>> import fastemd
    >>> chain = fastemd.Chain(4)
    >>> fastemd.emd_grad([1, 0, 0, 0], [0, 0, 0.5, 0.5], chain, rho=1)
    array([ 1.5,  0.5, -0.5, -1.5])
    """
    cost = edge_cost(rho)
    batch = resolve(space, validate, p=p, q=q)
    grad = batch.output("out", out, space.n_bins)
    run("gradient", space.layout("levels"), batch, cost, None, grad, project)
    return batch.wrap(grad)


@documented
def emd_value_and_grad(
    p: ArrayLike,
    q: ArrayLike,
    space: GroundSpace,
    rho: float,
    *,
    out: Any = None,
    project: bool = True,
    validate: bool | float | None = None,
) -> tuple[Any, Any]:
    """Compute EMD^rho and its gradient with respect to `p` in one pass.

    Parameters
    ----------
    {p_q}
    {rho}
    out : pair of arrays, (...) and (..., N), optional
        Arrays for value and gradient. If an error is raised, their contents are undefined.
    {project}
    {validate}

    Returns
    -------
    value : array, (...)
        As from `emd`.
    grad : array, (..., N)
        As from `emd_grad`.

    {raises}

    Notes
    -----
    One sweep up and one sweep down the tree, at the cost of the gradient alone. O(nodes) per row.

    Examples
    --------
    >>> import fastemd
    >>> chain = fastemd.Chain(3)
    >>> value, grad = fastemd.emd_value_and_grad([1, 0, 0], [0, 0, 1], chain, rho=2)
    >>> value
    np.float64(2.0)
    >>> grad
    array([ 2.,  0., -2.])
    """
    cost = edge_cost(rho)
    value_out, grad_out = validation.check_out_pair(out)
    batch = resolve(space, validate, p=p, q=q)
    value = batch.output("out[0]", value_out)
    grad = batch.output("out[1]", grad_out, space.n_bins, other=value)
    run("gradient", space.layout("levels"), batch, cost, value, grad, project)
    return batch.wrap(value), batch.wrap(grad)


@documented
def emd_hessian(
    p: ArrayLike,
    q: ArrayLike,
    space: GroundSpace,
    rho: float,
    *,
    out: Any = None,
    project: bool = True,
    validate: bool | float | None = None,
) -> Any:
    """Compute the dense Hessian of EMD^rho with respect to `p`.

    Parameters
    ----------
    {p_q}
    {rho}
    {out}
    {project}
    {validate}

    Returns
    -------
    array, (..., N, N)
        Symmetric and positive semidefinite; rows sum to 0 if projected.

    {raises}

    Notes
    -----
    Eq. 12 of Martinez et al. (arXiv:1611.07573), divided by the ``N^2`` that is missing in print.
    For ``rho < 2`` the curvature diverges as a flow goes to 0, but an edge without flow contributes
    0. For ``rho = 1`` the Hessian is 0. O(N^2) per row; `emd_hvp` and `emd_hessian_diag` take
    O(nodes).

    Examples
    --------
    >>> import fastemd
    >>> fastemd.emd_hessian([1, 0], [0, 1], fastemd.Chain(2), rho=2)
    array([[ 0.5, -0.5],
           [-0.5,  0.5]])
    """
    cost = edge_cost(rho)
    batch = resolve(space, validate, p=p, q=q)
    hessian = batch.output("out", out, space.n_bins, space.n_bins)
    run("hessian", space.layout("subtrees"), batch, cost, None, hessian, project)
    return batch.wrap(hessian)


@documented
def emd_hessian_diag(
    p: ArrayLike,
    q: ArrayLike,
    space: GroundSpace,
    rho: float,
    *,
    out: Any = None,
    project: bool = True,
    validate: bool | float | None = None,
) -> Any:
    """Compute the diagonal of the Hessian of EMD^rho with respect to `p`.

    Parameters
    ----------
    {p_q}
    {rho}
    {out}
    {project}
    {validate}

    Returns
    -------
    array, (..., N)
        The diagonal of `emd_hessian`.

    {raises}

    Notes
    -----
    The conventions are those of `emd_hessian`. O(nodes) per row.

    Examples
    --------
    >>> import fastemd
    >>> fastemd.emd_hessian_diag([1, 0, 0, 0], [0, 0, 0, 1], fastemd.Chain(4), rho=2)
    array([1.75, 0.75, 0.75, 1.75])
    """
    cost = edge_cost(rho)
    batch = resolve(space, validate, p=p, q=q)
    diagonal = batch.output("out", out, space.n_bins)
    run("hessian_diag", space.layout("levels"), batch, cost, None, diagonal, project)
    return batch.wrap(diagonal)


@documented
def emd_hvp(
    p: ArrayLike,
    q: ArrayLike,
    v: ArrayLike,
    space: GroundSpace,
    rho: float,
    *,
    out: Any = None,
    project: bool = True,
    validate: bool | float | None = None,
) -> Any:
    """Compute Hessian-vector products of EMD^rho without the dense Hessian.

    Parameters
    ----------
    {p_q}
    v : array_like, (..., N)
        Vectors of finite numbers. They broadcast with `p` and `q`.
    {rho}
    {out}
    {project}
    {validate}

    Returns
    -------
    array, (..., N)
        ``emd_hessian(p, q, space, rho) @ v``.

    {raises}

    Notes
    -----
    The conventions are those of `emd_hessian`. O(nodes) per row.

    Examples
    --------
    >>> import fastemd
    >>> fastemd.emd_hvp([1, 0, 0, 0], [0, 0, 0, 1], [1, 2, 3, 4], fastemd.Chain(4), rho=2)
    array([-5., -2.,  2.,  5.])
    """
    cost = edge_cost(rho)
    batch = resolve(space, validate, p=p, q=q, v=v)
    product = batch.output("out", out, space.n_bins)
    run("hvp", space.layout("levels"), batch, cost, None, product, project)
    return batch.wrap(product)


@documented
def emd_flow(
    p: ArrayLike,
    q: ArrayLike,
    space: GroundSpace,
    *,
    out: Any = None,
    validate: bool | float | None = None,
) -> Any:
    """Compute the signed mass that the optimal transport moves through every edge.

    Parameters
    ----------
    {p_q}
    {out}
    {validate}

    Returns
    -------
    array, (..., n_nodes - 1)
        Entry ``i`` is the flow from node ``i`` of `space` to its parent. It is negative if mass
        moves from the parent to the node. On a chain, it is the flow from bin ``i`` to bin
        ``i + 1``.

    {raises}

    Notes
    -----
    Eq. 6 and 14 of Martinez et al. (arXiv:1611.07573). O(nodes) per row.

    Examples
    --------
    >>> import fastemd
    >>> fastemd.emd_flow([1, 0, 0], [0, 0.5, 0.5], fastemd.Chain(3))
    array([1. , 0.5])
    """
    batch = resolve(space, validate, p=p, q=q)
    flow = batch.output("out", out, space.n_nodes - 1)
    run("flow", space.layout("full"), batch, power(1.0), None, flow)
    return batch.wrap(flow)


@documented
def emd_length_grad(
    p: ArrayLike,
    q: ArrayLike,
    space: GroundSpace,
    rho: float,
    *,
    upstream: ArrayLike | None = None,
    validate: bool | float | None = None,
) -> Any:
    """Compute the derivative of the sum of EMD^rho over all rows in the length of every edge.

    Parameters
    ----------
    {p_q}
    {rho}
    upstream : array_like of float, (...), optional
        What multiplies the EMD^rho of every row in the sum, by default 1: the derivative of a loss
        in the results of `emd`. It broadcasts to the rows of `p` and `q`. Its type does not change
        that of the result, and its values are not validated.
    {validate}

    Returns
    -------
    array, (n_nodes - 1,)
        Entry ``i`` is the derivative in the length of the edge from node ``i`` of `space` to its
        parent, in the order of `emd_flow`. On a chain, it is the derivative in gap ``i``.

    Raises
    ------
    ValueError
        If the length of the last axis is not N, batch shapes do not broadcast, `upstream` does not
        broadcast to the rows, a power is < 1 or not finite, or a histogram is invalid. The message
        names the row.
    TypeError
        If an argument has an unsupported type, or arrays have different backends, an unsupported
        device, or no arithmetic, as Numba's device arrays.

    See Also
    --------
    emd_grad : The derivative in `p`.

    Notes
    -----
    The sum over all rows of ``upstream * |flow|^rho``, since eq. 5, 10 and 13 of Martinez et al.
    (arXiv:1611.07573) are linear in the lengths; ``sum(length * grad)`` is the sum itself. It does
    not depend on the lengths, so edges of length 0 have a derivative, too. O(nodes) per row. The
    flows of some rows at a time are held in memory, a few MB.

    Examples
    --------
    >>> import fastemd
    >>> p, q = [[1, 0, 0], [0, 1, 0]], [0, 0.5, 0.5]
    >>> fastemd.emd_length_grad(p, q, fastemd.Chain(3), rho=2)
    array([1. , 0.5])
    >>> fastemd.emd_length_grad(p, q, fastemd.Chain(3), rho=2, upstream=[1, -2])
    array([ 1.  , -0.25])
    """
    rho = edge_cost(rho).rho
    batch = resolve(space, validate, p=p, q=q)
    factors = None if upstream is None else _row_factors(upstream, batch)
    return sum_powers_of_flows(space.layout("full"), batch, rho, factors, p)


def sum_powers_of_flows(layout: EdgeLayout, batch: Batch, rho: float, factors: Any, p: Any) -> Any:
    """Return the sum over all rows of ``factors * |flow|^rho`` for every edge of the "full" layout.

    `factors` broadcast to the rows; on a CUDA device they and `p` are arrays of one library.
    """
    backend = batch.backend
    n_edges = layout.n_edges - 1 - (0 if layout.is_chain else layout.n_bins)
    on_cuda = isinstance(backend, CudaBackend)
    xp, device, most_entries = np, None, BLOCK
    if on_cuda:
        xp, device = namespace_of("emd_length_grad", p), array_api_compat.device(p)
        most_entries = BLOCK_ON_DEVICE
        run("flow", layout, batch, power(1.0))  # validates: rows are numbered in every launch
        batch.validate, batch.tolerance = False, -1.0
    with np.errstate(all="ignore"), computing_with(xp, p):
        total: Any = xp.zeros(n_edges, dtype=xp.float64, device=device)
        if factors is not None:
            factors = xp.astype(xp.broadcast_to(factors, batch.shape), xp.float64)
            factors = xp.reshape(factors, (-1,))
        for block in batch.blocks(most_entries // max(1, n_edges)):
            output = Output(backend.empty((block.n_rows, n_edges), batch.dtype))
            run("flow", layout, block, power(1.0), None, output)
            flow = backend.wrap(output.view) if on_cuda else output.view
            powers = xp.abs(xp.astype(flow, xp.float64)) ** rho
            if factors is None:
                total = total + xp.sum(powers, axis=0)
            else:
                rows = slice(block.first_row, block.first_row + block.n_rows)
                total = total + factors[rows] @ powers
        total = xp.astype(total, getattr(xp, batch.dtype.name))
    if isinstance(backend, CudaBackend):
        return backend.finish(total)
    grad = backend.empty((n_edges,), batch.dtype)
    backend.assign(grad, total)
    return backend.wrap(grad)


def _row_factors(upstream: Any, batch: Batch) -> Any:
    """Return the validated `upstream` as an array to compute with; on the CPU, of NumPy."""
    backend = backends.backend_for("upstream", upstream)
    if backend.name != batch.backend.name:
        validation.mixed_backends({"p": batch.backend.name, "upstream": backend.name})
    view = views.as_array("upstream", upstream)
    validation.check_broadcast("upstream", tuple(view.shape), "p and q", batch.shape)
    return upstream if isinstance(backend, CudaBackend) else view


@documented
def embed(
    p: ArrayLike,
    space: GroundSpace,
    rho: float,
    *,
    out: Any = None,
    validate: bool | float | None = None,
) -> Any:
    """Map histograms to points with ``EMD^rho = (L_rho distance)^rho``.

    Parameters
    ----------
    p : array_like, (..., N)
        Histograms over the N bins of `space`: finite and >= 0. float32 arrays give float32
        results, every other real type gives float64.
    space : Chain or Tree
        The ground space.
    {rho}
    {out}
    {validate}

    Returns
    -------
    array, (..., n_nodes - 1)
        Coordinates ``z`` with ``sum(abs(z(p) - z(q)) ** rho, -1) == emd(p, q, space, rho)`` for
        histograms of equal mass.

    {raises}

    Notes
    -----
    Entry ``i`` is ``length_i^(1/rho)`` times the mass below edge ``i``. Any library for L_1 or
    Euclidean data can then compute nearest neighbours and distances of all pairs. O(nodes) per
    row.

    Examples
    --------
    >>> import fastemd
    >>> fastemd.embed([[1, 0, 0], [0, 0, 1]], fastemd.Chain(3), rho=2)
    array([[1., 1.],
           [0., 0.]])
    """
    cost = edge_cost(rho)
    batch = resolve(space, validate, p=p)
    coordinates = batch.output("out", out, space.n_nodes - 1)
    run("embed", space.layout("full").raised(1.0 / cost.rho), batch, cost, None, coordinates)
    return batch.wrap(coordinates)
