"""Pictures of flows and gradients on a ground space, with matplotlib."""

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm
from numpy.typing import ArrayLike, NDArray

from fastemd import validation, views
from fastemd.docstrings import documented
from fastemd.functions import emd_flow, emd_grad
from fastemd.plotting.drawing import Drawing
from fastemd.plotting.outline import outline
from fastemd.spaces import GroundSpace
from fastemd.tree_input import bins_below, sums_below

Array = NDArray[Any]

__all__ = ["plot_flow", "plot_gradient", "plot_tree"]


@documented
def plot_tree(
    space: GroundSpace,
    *,
    columns: Iterable[int] | None = None,
    labels: Mapping[Hashable, str] | None = None,
    ax: Axes | None = None,
    max_bins: int = 60,
    to_scale: bool = False,
) -> Axes:
    """Draw a ground space: the root at the top, bins as dots; a chain lies flat.

    The lines of a tree have right angles and never cross. A bin on an inner node is to the right of
    the bins below it. The limits of the axes leave room for all labels. Labels that would overlap
    others are omitted.

    Parameters
    ----------
    space : Chain or Tree
        The ground space to draw.
    {plot}

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If `columns` is empty or holds a column that does not exist, or `max_bins` is < 1.
    TypeError
        If an argument has an unsupported type.

    Examples
    --------
    >>> import fastemd
    >>> from fastemd import plotting
    >>> tree = fastemd.Tree.from_paths([("animal", "cat"), ("animal", "dog"), ("car",)])
    >>> ax = plotting.plot_tree(tree)
    """
    selection = _selection(space, columns, max_bins)
    shown = outline(space, *selection, bins_below(space.parent, space.bin_node))
    drawing = Drawing(shown, to_scale, ax)
    drawing.draw_labels(labels, np.zeros(shown.marks.size))
    return drawing.fit_limits()


@documented
def plot_flow(
    p: ArrayLike,
    q: ArrayLike,
    space: GroundSpace,
    *,
    columns: Iterable[int] | None = None,
    labels: Mapping[Hashable, str] | None = None,
    ax: Axes | None = None,
    max_bins: int = 60,
    to_scale: bool = False,
) -> Axes:
    """Draw the mass that moves through every edge from `p` to `q`.

    The wider an edge, the more mass moves: red towards the root (on a chain to the right), blue
    away from it. Discs at the bins show ``p - q``: red bins have too much, blue ones too little.
    The disc of a group of bins shows their sum. The edges with the largest flow are shown first.

    Parameters
    ----------
    p, q : array_like, (N,)
        One pair of histograms.
    space : Chain or Tree
        The ground space to draw.
    {plot}

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError, TypeError
        As `fastemd.emd_flow` and `plot_tree`.

    Examples
    --------
    >>> import fastemd
    >>> from fastemd import plotting
    >>> ax = plotting.plot_flow([1, 0, 0], [0, 0.5, 0.5], fastemd.Chain(3))
    """
    selection = _selection(space, columns, max_bins)
    p, q = _one_pair(p, q, space)
    flow = np.append(emd_flow(p, q, space), 0.0)
    shown = outline(space, *selection, np.abs(flow))
    difference = p.astype(float) - q.astype(float)
    surplus = np.array([difference[shown.columns[mark]].sum() for mark in shown.marks])
    flow = flow[shown.node[shown.edges]]
    norm = _centred_norm(np.concatenate((flow, surplus)))
    drawing = Drawing(shown, to_scale, ax)
    drawing.draw_flow(flow, norm)
    drawing.draw_discs(surplus, norm, "mass through an edge,\np - q at a bin")
    drawing.draw_labels(labels, np.abs(surplus))
    return drawing.fit_limits()


@documented
def plot_gradient(
    p: ArrayLike,
    q: ArrayLike,
    space: GroundSpace,
    rho: float,
    *,
    columns: Iterable[int] | None = None,
    labels: Mapping[Hashable, str] | None = None,
    ax: Axes | None = None,
    max_bins: int = 60,
    to_scale: bool = False,
) -> Axes:
    """Draw the gradient of EMD^rho with respect to `p` at the bins.

    Descent moves mass from red bins to blue ones. The disc of a group of bins shows their mean.
    The nodes whose mean differs most from that of their parent are shown first.

    Parameters
    ----------
    p, q : array_like, (N,)
        One pair of histograms.
    space : Chain or Tree
        The ground space to draw.
    rho : float
        The power of the flow, >= 1.
    {plot}

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError, TypeError
        As `fastemd.emd_grad` and `plot_tree`.

    Examples
    --------
    >>> import fastemd
    >>> from fastemd import plotting
    >>> ax = plotting.plot_gradient([1, 0, 0], [0, 0.5, 0.5], fastemd.Chain(3), rho=2)
    """
    selection = _selection(space, columns, max_bins)
    p, q = _one_pair(p, q, space)
    grad = emd_grad(p, q, space, rho)
    shown = outline(space, *selection, _changes(grad, space))
    means = np.array([grad[shown.columns[mark]].mean() for mark in shown.marks])
    drawing = Drawing(shown, to_scale, ax)
    drawing.draw_discs(means, _centred_norm(means), f"gradient of EMD^{rho:g}")
    drawing.draw_labels(labels, np.abs(means))
    return drawing.fit_limits()


def _selection(
    space: GroundSpace, columns: Iterable[int] | None, max_bins: int
) -> tuple[Array, int]:
    """Return the columns of the bins, and the largest number of bins and groups to draw."""
    if not isinstance(space, GroundSpace):
        validation.not_a_space(space)
    validation.check_count("max_bins", max_bins)
    selected = np.arange(space.n_bins) if columns is None else np.unique(list(columns))
    validation.check_columns(selected, space.n_bins)
    return selected, max_bins if columns is None else selected.size


def _changes(values: Array, space: GroundSpace) -> Array:
    """Return how much the mean of the bins' values at or below a node differs from its parent's."""
    at_node = np.zeros(space.n_nodes)
    at_node[space.bin_node] = values
    n_below = bins_below(space.parent, space.bin_node)
    means = sums_below(space.parent, at_node) / np.maximum(n_below, 1)
    return np.append(np.abs(means[:-1] - means[space.parent[:-1]]), 0.0)


def _one_pair(p: ArrayLike, q: ArrayLike, space: GroundSpace) -> tuple[Array, Array]:
    pair = views.as_histograms("p", p, space), views.as_histograms("q", q, space)
    for name, array in zip("pq", pair, strict=True):
        validation.check_one_histogram(name, array.shape)
    return pair


def _centred_norm(values: Array) -> CenteredNorm:
    """Return a scale of colours with 0 in the middle."""
    return CenteredNorm(0.0, float(np.max(np.abs(values), initial=0.0)) or 1.0)
