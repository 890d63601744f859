"""Pictures of flows and gradients on a ground space, with matplotlib."""

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

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


class _Drawing:
    """A ground space, or the part of it below some bins, drawn on axes."""

    def __init__(self, space: GroundSpace, columns: Iterable[int] | None) -> None:
        """Place the bins side by side in the tree's order, parents above their children."""
        if not isinstance(space, GroundSpace):
            validation.not_a_space(space)
        self.space = space
        self.columns = np.arange(space.n_bins) if columns is None else np.unique(list(columns))
        validation.check_columns(self.columns, space.n_bins)
        self.bin_nodes = space.bin_node[self.columns]
        if isinstance(space, Chain):
            self.nodes = np.arange(self.columns[0], self.columns[-1] + 1)
            self.x, self.y = np.append(0.0, np.cumsum(space.weight[:-1])), np.zeros(space.n_nodes)
        else:
            self._place_tree()

    def _place_tree(self) -> None:
        space, x_of_leaf = self.space, 0.0
        is_shown = np.zeros(space.n_nodes, bool)
        is_shown[self.bin_nodes] = True
        left, right = np.full(space.n_nodes, np.inf), np.full(space.n_nodes, -np.inf)
        self.x, self.y = np.zeros(space.n_nodes), np.zeros(space.n_nodes)
        for node, parent in enumerate(space.parent.tolist()):
            if not is_shown[node]:
                continue
            if left[node] == np.inf:  # no child is shown
                left[node] = right[node] = x_of_leaf
                x_of_leaf += 1.0
            self.x[node] = x = (left[node] + right[node]) / 2.0
            if parent >= 0:
                is_shown[parent] = True
                left[parent], right[parent] = min(left[parent], x), max(right[parent], x)
        for node in range(space.n_nodes - 2, -1, -1):
            self.y[node] = self.y[space.parent[node]] - 1.0
        nodes = np.flatnonzero(is_shown)
        n_children = np.bincount(space.parent[nodes[:-1]], minlength=space.n_nodes)
        is_fork = (n_children[nodes] != 1) | np.isin(nodes, self.bin_nodes)
        self.nodes = nodes[: np.flatnonzero(is_fork)[-1] + 1]  # a single line leads further up

    def segments(self) -> list[NDArray[np.float64]]:
        """Return both ends of the edges above all nodes shown except the root, (2, 2) each."""
        children = self.nodes[:-1]
        ends = np.stack((children, self.space.parent[children]), axis=-1)
        return list(np.stack((self.x[ends], self.y[ends]), axis=-1))

    def draw_tree(self, labels: Mapping[Hashable, str] | None, ax: Axes | None) -> None:
        """Draw the edges, the bins and their labels, by default on a new figure."""
        figure, height = None, 2.5 if isinstance(self.space, Chain) else 6.0
        if ax is None:
            figure, ax = plt.subplots(figsize=(10.0, height), layout="constrained")
        self.ax = ax
        ax.set_axis_off()
        ax.add_collection(LineCollection(self.segments(), colors="0.6", linewidths=1.0, zorder=1))
        ax.scatter(self.x[self.bin_nodes], self.y[self.bin_nodes], s=12, color="0.2", zorder=2)
        self.labels = [self._draw_label(node, labels) for node in self.bin_nodes.tolist()]
        if figure is not None:
            longest = max(_extent(label).height for label in self.labels)
            figure.set_figheight(height + longest / figure.dpi)

    def _draw_label(self, node: int, labels: Mapping[Hashable, str] | None) -> Annotation:
        label, parent = self.space.nodes[node], self.space.parent[node]
        text = str(label)
        if isinstance(label, tuple) and label and self.space.nodes[parent] == label[:-1]:
            text = str(label[-1])  # a path, whose beginning the tree shows
        return self.ax.annotate(
            text if labels is None else labels.get(label, text),
            (self.x[node], self.y[node]),
            (0, -7),
            textcoords="offset points",
            rotation=90,
            ha="center",
            va="top",
            fontsize=7,
        )

    def draw_discs(self, values: Array, norm: CenteredNorm, title: str) -> None:
        """Draw a coloured disc at every bin shown, and a colour bar."""
        discs = self.ax.scatter(
            self.x[self.bin_nodes],
            self.y[self.bin_nodes],
            20.0 + 120.0 * np.abs(values) / norm.halfrange,
            values,
            cmap=COLORS,
            norm=norm,
            edgecolors="0.2",
            zorder=3,
        )
        assert self.ax.figure is not None
        self.ax.figure.colorbar(discs, ax=self.ax, label=title, shrink=0.8)

    def fit_limits(self) -> Axes:
        """Set the limits so that the axes hold all labels; say if lengths are not to scale."""
        ax = self.ax
        bottom = top = DISC_RADIUS * ax.figure.dpi / 72.0
        lengths = self.space.weight[self.nodes[:-1]]
        if not isinstance(self.space, Chain) and not np.allclose(lengths, lengths[:1], atol=0.0):
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
        anchors = np.concatenate((corners, [label.xy for label in self.labels]))
        extents = np.array([_extent(label).get_points() for label in self.labels])
        before = np.concatenate((np.full((2, 2), bottom), -extents[:, 0])) / ax.bbox.size
        after = np.concatenate((np.full((2, 2), (bottom, top)), extents[:, 1])) / ax.bbox.size
        x_limits, y_limits = (_limits(anchors[:, k], before[:, k], after[:, k]) for k in (0, 1))
        ax.set(xlim=x_limits, ylim=y_limits)
        return ax


def _extent(label: Annotation) -> Bbox:
    """Return the box of a label relative to its anchor, in pixels."""
    assert label.axes is not None
    return label.get_window_extent().translated(*-label.axes.transData.transform(label.xy))


def _limits(anchors: Array, before: Array, after: Array) -> tuple[float, float]:
    """Return the narrowest limits of an axis with some space before and after every anchor.

    The space is in fractions of the axis.
    """
    scale = max(1.0, (before.max() + after.max()) / 0.8)  # at least a fifth is for the tree
    before, after = before / scale, after / scale
    span = 0.0
    while True:  # Newton's method: the required span is convex and piecewise linear in the span
        i, j = np.argmin(anchors - span * before), np.argmax(anchors + span * after)
        required = (anchors[j] - anchors[i]) / (1.0 - before[i] - after[j])
        if not required > span * (1.0 + 1e-9):
            break
        span = required
    span = span or 1.0  # all anchors coincide
    low, high = np.min(anchors - span * before), np.max(anchors + span * after)
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

    A chain is to scale. In a tree all edges are drawn one unit high, and a note says so if the
    edges shown differ in length. The limits of the axes leave room for all labels.

    Parameters
    ----------
    space : Chain or Tree
        The ground space to draw.
    columns : iterable of int, optional
        Columns of the bins to show, with the nodes above them; all by default.
    labels : mapping of Hashable to str, optional
        Texts of bins, by their node's label (`Tree.nodes`); by default the label itself, of a path
        (`Tree.from_paths`) its last name.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on; a new figure by default, high enough for the longest label.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        If `columns` is empty or holds a column that does not exist.

    Examples
    --------
    >>> import fastemd
    >>> from fastemd import plotting
    >>> tree = fastemd.Tree.from_paths([("animal", "cat"), ("animal", "dog"), ("car",)])
    >>> ax = plotting.plot_tree(tree)
    """
    drawing = _Drawing(space, columns)
    drawing.draw_tree(labels, ax)
    return drawing.fit_limits()


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

    The wider an edge, the more mass moves: red towards the root (on a chain to the right), blue
    away from it. Discs at the bins show ``p - q``: red bins have too much, blue ones too little.

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
    drawing = _Drawing(space, columns)
    p, q = _one_pair(p, q, space)
    flow = emd_flow(p, q, space)[drawing.nodes[:-1]]
    norm = _centred_norm(flow)
    drawing.draw_tree(labels, ax)
    edges = LineCollection(
        drawing.segments(),
        array=flow,
        cmap=COLORS,
        norm=norm,
        linewidths=0.5 + 9.0 * np.abs(flow) / norm.halfrange,
        capstyle="round",
        zorder=1.5,
    )
    drawing.ax.add_collection(edges)
    surplus = (p.astype(float) - q.astype(float))[drawing.columns]
    drawing.draw_discs(surplus, norm, "mass through an edge,\np - q at a bin")
    return drawing.fit_limits()


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

    Descent moves mass from red bins to blue ones.

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
    drawing = _Drawing(space, columns)
    p, q = _one_pair(p, q, space)
    grad = emd_grad(p, q, space, rho)[drawing.columns]
    drawing.draw_tree(labels, ax)
    drawing.draw_discs(grad, _centred_norm(grad), f"gradient of EMD^{rho:g}")
    return drawing.fit_limits()


def _one_pair(p: ArrayLike, q: ArrayLike, space: GroundSpace) -> tuple[Array, Array]:
    pair = views.as_histograms("p", p, space), views.as_histograms("q", q, space)
    for name, array in zip("pq", pair, strict=True):
        validation.check_one_histogram(name, array.shape)
    return pair


def _centred_norm(values: Array) -> CenteredNorm:
    """Return a scale of colours with 0 in the middle."""
    return CenteredNorm(0.0, float(np.max(np.abs(values), initial=0.0)) or 1.0)
