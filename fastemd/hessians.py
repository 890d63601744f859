"""The functions on histograms: second derivatives."""

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
    """Dense Hessian of EMD^rho with respect to `p`.

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
    Eq. 12 of Martinez et al., divided by the ``N^2`` that its print lacks. For ``rho < 2`` the
    curvature grows without bound as a flow goes to 0; an edge without any flow adds none. For
    ``rho = 1`` it is 0. O(N^2) per row: `emd_hvp` and `emd_hessian_diag` need only O(nodes).

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
    """Diagonal of the Hessian of EMD^rho with respect to `p`.

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
    Conventions as for `emd_hessian`. O(nodes) per row.

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
    """Product of the Hessian of EMD^rho with vectors, without the Hessian.

    Parameters
    ----------
    {p_q}
    v : array_like, (..., N)
        The vectors, any finite numbers; they broadcast with `p` and `q`.
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
    Conventions as for `emd_hessian`. O(nodes) per row.

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
