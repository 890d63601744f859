"""Functions on histograms: second derivatives."""

from typing import Any

from numpy.typing import ArrayLike

from fastemd.call import edge_cost, resolve, run
from fastemd.docstrings import documented
from fastemd.spaces import GroundSpace


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
