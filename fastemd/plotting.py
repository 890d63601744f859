"""Pictures of flows and gradients on a ground space, with matplotlib."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import CenteredNorm
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike, NDArray

from fastemd import validation, views
from fastemd.functions import emd_flow, emd_grad
from fastemd.spaces import Chain, GroundSpace

Array = NDArray[Any]
COLORS = "RdBu_r"
DISC_RADIUS = 8.0  # points, at least that of the largest disc


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


def _draw_tree(
    space: GroundSpace,
    layout: _Layout,
    labels: Mapping[Hashable, str] | None,
    ax: Axes | None,
) -> tuple[Axes, list[Annotation]]:
    """Draw edges, bins and their labels; `_make_room` then needs the labels."""
    figure, height = None, 2.5 if isinstance(space, Chain) else 6.0
    if ax is None:
        figure, ax = plt.subplots(figsize=(10.0, height), layout="constrained")
    ax.set_axis_off()
    ax.add_collection(
        LineCollection(list(layout.segments(space)), colors="0.6", linewidths=1.0, zorder=1)
    )
    at = space.bin_node[layout.columns]
    ax.scatter(layout.x[at], layout.y[at], s=12, color="0.2", zorder=2)
    names = [_name_bin(ax, space, layout, node, labels) for node in at.tolist()]
    if figure is not None:
        longest = max(_extent(name).height for name in names)
        figure.set_figheight(height + longest / figure.dpi)
    return ax, names


def _name_bin(
    ax: Axes,
    space: GroundSpace,
    layout: _Layout,
    node: int,
    labels: Mapping[Hashable, str] | None,
) -> Annotation:
    label, above = space.nodes[node], space.parent[node]
    text = str(label)
    if isinstance(label, tuple) and label and above >= 0 and space.nodes[above] == label[:-1]:
        text = str(label[-1])  # a path, whose beginning the tree shows
    return ax.annotate(
        text if labels is None else labels.get(label, text),
        (layout.x[node], layout.y[node]),
        (0, -7),
        textcoords="offset points",
        rotation=90,
        ha="center",
        va="top",
        fontsize=7,
    )


def _extent(name: Annotation) -> Bbox:
    """What the label covers from its anchor, in pixels."""
    assert name.axes is not None
    return name.get_window_extent().translated(*-name.axes.transData.transform(name.xy))


def _make_room(ax: Axes, space: GroundSpace, layout: _Layout, names: Sequence[Annotation]) -> None:
    """Set the limits so that all labels lie within the axes; note if lengths are not to scale."""
    pad = DISC_RADIUS * ax.figure.dpi / 72.0
    top = pad
    lengths = space.weight[layout.nodes[:-1]]
    if not isinstance(space, Chain) and not np.allclose(lengths, lengths[:1], atol=0.0):
        note = ax.text(
            0.0,
            1.0,
            "edge lengths not to scale",
            transform=ax.transAxes,
            va="top",
            fontsize=7,
            style="italic",
            color="0.4",
        )
        top += note.get_window_extent().height
    corners = ax.dataLim.get_points()  # also of what the user has drawn
    ax.set(xlim=corners[:, 0] + (-1.0, 1.0), ylim=corners[:, 1] + (-1.0, 1.0))
    anchors = np.concatenate((corners, [name.xy for name in names]))
    extents = np.array([_extent(name).get_points() for name in names])
    below = np.concatenate((np.full((2, 2), pad), -extents[:, 0])) / ax.bbox.size
    above = np.concatenate((np.full((2, 2), (pad, top)), extents[:, 1])) / ax.bbox.size
    ax.set(
        xlim=_limits(anchors[:, 0], below[:, 0], above[:, 0]),
        ylim=_limits(anchors[:, 1], below[:, 1], above[:, 1]),
    )


def _limits(anchors: Array, below: Array, above: Array) -> tuple[float, float]:
    """The narrowest limits that keep distances from all anchors, in fractions of the axis."""
    too_much = max(1.0, (below.max() + above.max()) / 0.8)  # the rest is for the tree
    below, above = below / too_much, above / too_much
    span = 0.0
    while True:  # Newton's method; the span that is needed is convex and piecewise linear in it
        i, j = np.argmin(anchors - span * below), np.argmax(anchors + span * above)
        wider = (anchors[j] - anchors[i]) / (1.0 - below[i] - above[j])
        if not wider > span * (1.0 + 1e-9):
            break
        span = wider
    span = span or 1.0  # all anchors are at one place
    low, high = np.min(anchors - span * below), np.max(anchors + span * above)
    spare = (span - (high - low)) / 2.0
    return float(low - spare), float(high + spare)


def plot_tree(
    space: GroundSpace,
    *,
    columns: Iterable[int] | None = None,
    labels: Mapping[Hashable, str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw a ground space: the root at the top, bins as dots; a chain lies flat.

    A chain is to scale. A tree is drawn by levels, and a note says so if the edges shown differ in
    length. The limits of the axes leave room for all labels.

    Parameters
    ----------
    space : Chain or Tree
        What to draw.
    columns : iterable of int, optional
        The bins to show, by their column, with the nodes above them; all by default.
    labels : mapping of Hashable to str, optional
        What to write at a bin, by its node's label (`Tree.nodes`); by default the label itself,
        of a path (`Tree.from_paths`) its last name.
    ax : matplotlib.axes.Axes, optional
        Where to draw; a new figure by default, high enough for the longest label.

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
    ax, names = _draw_tree(space, layout, labels, ax)
    _make_room(ax, space, layout, names)
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
    p, q = _one_pair(p, q, space)
    flow = emd_flow(p, q, space)[layout.nodes[:-1]]
    norm = _centred(flow)
    ax, names = _draw_tree(space, layout, labels, ax)
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
    _discs(ax, space, layout, surplus, norm, "mass through an edge,\np - q at a bin")
    _make_room(ax, space, layout, names)
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
    p, q = _one_pair(p, q, space)
    grad = emd_grad(p, q, space, rho)[layout.columns]
    ax, names = _draw_tree(space, layout, labels, ax)
    _discs(ax, space, layout, grad, _centred(grad), f"gradient of EMD^{rho:g}")
    _make_room(ax, space, layout, names)
    return ax


def _one_pair(p: ArrayLike, q: ArrayLike, space: GroundSpace) -> tuple[Array, Array]:
    pair = views.as_histograms("p", p, space), views.as_histograms("q", q, space)
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
