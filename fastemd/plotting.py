"""Pictures of flows and gradients on a ground space, with matplotlib."""

from collections.abc import Hashable, Iterable, Mapping
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import CenteredNorm
from numpy.typing import ArrayLike, NDArray

from fastemd import arrays, validation
from fastemd.functions import emd_flow, emd_grad
from fastemd.ground import GroundSpace
from fastemd.spaces import Chain

Array = NDArray[Any]
COLORS = "RdBu_r"


class _Layout(NamedTuple):
    """Where the nodes that are shown lie."""

    nodes: NDArray[np.intp]  # ascending, the root last
    columns: NDArray[np.intp]  # the bins shown
    x: NDArray[np.float64]  # (n_nodes,)
    y: NDArray[np.float64]

    def segments(self, space: GroundSpace) -> NDArray[np.float64]:
        """The edges above all nodes shown but the root, (n, 2, 2)."""
        below = self.nodes[:-1]
        above = space.parent[below]
        ends = [np.stack((self.x[n], self.y[n]), axis=-1) for n in (below, above)]
        return np.stack(ends, axis=1)


def _layout(space: GroundSpace, chosen: Iterable[int] | None) -> _Layout:
    """Bins side by side in the tree's order, inner nodes above the middle of their children."""
    if not isinstance(space, GroundSpace):
        validation.not_a_space(space)
    columns = np.arange(space.n_bins) if chosen is None else np.unique(list(chosen))
    validation.check_columns(columns, space.n_bins)
    if isinstance(space, Chain):
        nodes = np.arange(columns[0], columns[-1] + 1)
        x = np.concatenate(([0.0], np.cumsum(space.weight[:-1])))
        return _Layout(nodes, columns, x, np.zeros(space.n_nodes))
    shown = np.zeros(space.n_nodes, bool)
    shown[space.bin_node[columns]] = True
    left, right = np.full(space.n_nodes, np.inf), np.full(space.n_nodes, -np.inf)
    y, place = np.zeros(space.n_nodes), 0.0
    for node, above in enumerate(space.parent.tolist()):
        if not shown[node]:
            continue
        if left[node] == np.inf:  # no child is shown
            left[node] = right[node] = place
            place += 1.0
        if above >= 0:
            shown[above] = True
            middle = (left[node] + right[node]) / 2.0
            left[above], right[above] = min(left[above], middle), max(right[above], middle)
    for node in range(space.n_nodes - 2, -1, -1):
        y[node] = y[space.parent[node]] - 1.0
    nodes = np.flatnonzero(shown)
    below = np.bincount(space.parent[nodes[:-1]], minlength=space.n_nodes)
    holds_bin = np.isin(nodes, space.bin_node[columns])
    fork = np.flatnonzero((below[nodes] != 1) | holds_bin)[-1]  # nothing to see above it
    with np.errstate(invalid="ignore"):  # the middle of nothing, for what is not shown
        x = (left + right) / 2.0
    return _Layout(nodes[: fork + 1], columns, x, y)


def _axes(space: GroundSpace, ax: Axes | None) -> Axes:
    if ax is None:
        size = (10.0, 2.5) if isinstance(space, Chain) else (10.0, 6.0)
        ax = plt.subplots(figsize=size, layout="constrained")[1]
    ax.set_axis_off()
    return ax


def _name_bins(
    ax: Axes, space: GroundSpace, layout: _Layout, labels: Mapping[Hashable, str] | None
) -> None:
    for column in layout.columns:
        node = space.bin_node[column]
        label = space.nodes[node]
        ax.annotate(
            str(label) if labels is None else labels.get(label, str(label)),
            (layout.x[node], layout.y[node]),
            (0, -7),
            textcoords="offset points",
            rotation=90,
            ha="center",
            va="top",
            fontsize=7,
        )


def plot_tree(
    space: GroundSpace,
    *,
    columns: Iterable[int] | None = None,
    labels: Mapping[Hashable, str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a ground space: the root at the top, bins as dots; a chain lies flat.

    Parameters
    ----------
    space : Chain or Tree
        What to draw.
    columns : iterable of int, optional
        The bins to show, by their column, with the nodes above them; all by default.
    labels : mapping of Hashable to str, optional
        What to write at a bin, by its node's label (`Tree.nodes`); by default the label itself.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If `columns` holds none or one that does not exist.

    Examples
    --------
    >>> import fastemd
    >>> from fastemd import plotting
    >>> tree = fastemd.Tree.from_paths([("animal", "cat"), ("animal", "dog"), ("car",)])
    >>> ax = plotting.plot_tree(tree)
    """
    layout = _layout(space, columns)
    ax = _axes(space, ax)
    ax.add_collection(
        LineCollection(list(layout.segments(space)), colors="0.6", linewidths=1.0, zorder=1)
    )
    at = space.bin_node[layout.columns]
    ax.scatter(layout.x[at], layout.y[at], s=12, color="0.2", zorder=2)
    _name_bins(ax, space, layout, labels)
    return ax


def plot_flow(
    p: ArrayLike,
    q: ArrayLike,
    space: GroundSpace,
    *,
    columns: Iterable[int] | None = None,
    labels: Mapping[Hashable, str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the mass that moves through every edge from `p` to `q`.

    The wider an edge, the more mass moves; red moves up towards the root (on a chain to the
    right), blue down. Discs at the bins show ``p - q``: red has too much, blue too little.

    Parameters
    ----------
    p, q : array_like, (N,)
        One pair of histograms.
    space, columns, labels, ax
        As for `plot_tree`.

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
    layout = _layout(space, columns)
    p, q = _one_pair(p, q)
    flow = emd_flow(p, q, space)[layout.nodes[:-1]]
    norm = _centred(flow)
    ax = plot_tree(space, columns=layout.columns, labels=labels, ax=ax)
    edges = LineCollection(
        list(layout.segments(space)),
        array=flow,
        cmap=COLORS,
        norm=norm,
        linewidths=0.5 + 9.0 * np.abs(flow) / norm.halfrange,
        capstyle="round",
        zorder=1.5,
    )
    ax.add_collection(edges)
    surplus = (p.astype(float) - q.astype(float))[layout.columns]
    _discs(ax, space, layout, surplus, norm, "mass through an edge, p - q at a bin")
    return ax


def plot_gradient(
    p: ArrayLike,
    q: ArrayLike,
    space: GroundSpace,
    rho: float,
    *,
    columns: Iterable[int] | None = None,
    labels: Mapping[Hashable, str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the gradient of EMD^rho with respect to `p` at the bins.

    Descent takes mass from red bins and gives it to blue ones.

    Parameters
    ----------
    p, q : array_like, (N,)
        One pair of histograms.
    space, columns, labels, ax
        As for `plot_tree`.
    rho : float
        The power of the flow, >= 1.

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
    layout = _layout(space, columns)
    p, q = _one_pair(p, q)
    grad = emd_grad(p, q, space, rho)[layout.columns]
    ax = plot_tree(space, columns=layout.columns, labels=labels, ax=ax)
    _discs(ax, space, layout, grad, _centred(grad), f"gradient of EMD^{rho:g}")
    return ax


def _one_pair(p: ArrayLike, q: ArrayLike) -> tuple[Array, Array]:
    pair = arrays.real("p", p), arrays.real("q", q)
    for name, array in zip("pq", pair, strict=True):
        validation.check_one_histogram(name, array.shape)
    return pair


def _centred(values: Array) -> CenteredNorm:
    """Colours with 0 in the middle."""
    largest = float(np.max(np.abs(values), initial=0.0)) or 1.0
    return CenteredNorm(0.0, largest)


def _discs(
    ax: Axes, space: GroundSpace, layout: _Layout, values: Array, norm: CenteredNorm, title: str
) -> None:
    at = space.bin_node[layout.columns]
    sizes = 20.0 + 120.0 * np.abs(values) / norm.halfrange
    discs = ax.scatter(
        layout.x[at],
        layout.y[at],
        sizes,
        values,
        cmap=COLORS,
        norm=norm,
        edgecolors="0.2",
        zorder=3,
    )
    assert ax.figure is not None
    ax.figure.colorbar(discs, ax=ax, label=title, shrink=0.8)
