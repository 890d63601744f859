"""Artists of an outline on matplotlib's axes."""

from collections.abc import Hashable, Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import CenteredNorm
from matplotlib.text import Annotation
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from fastemd.plotting.outline import Outline
from fastemd.spaces import Chain

Array = NDArray[Any]
COLORS = "RdBu_r"
DISC_RADIUS = 8.0  # points, at least that of the largest disc
FONT_SIZE = 7.0  # points
LINE_HEIGHT = 1.2 * FONT_SIZE


class Drawing:
    """An outline drawn on axes, by default on a new figure."""

    def __init__(self, outline: Outline, to_scale: bool, ax: Axes | None) -> None:
        """Draw the edges, groups as triangles, and other bins as dots."""
        self.outline = outline
        self.is_chain = isinstance(outline.space, Chain)
        self.to_scale = to_scale or self.is_chain
        self.x, self.y = outline.place(to_scale)
        self.figure = None
        if ax is None:
            height = 2.5 if self.is_chain else 6.0
            self.figure, ax = plt.subplots(figsize=(10.0, height), layout="constrained")
        self.ax = ax
        self.labels: list[Annotation] = []
        ax.set_axis_off()
        lines = self._edges(np.flatnonzero(outline.parent >= 0))
        ax.add_collection(LineCollection(lines, colors="0.6", linewidths=1.0, zorder=1))
        groups = np.flatnonzero(outline.is_group)
        triangles = PolyCollection(self._triangles(groups), facecolor="0.9", edgecolor="0.6")
        ax.add_collection(triangles)
        dots = np.setdiff1d(outline.marks, groups)
        ax.scatter(self.x[dots], self.y[dots], s=12, color="0.2", zorder=2)
        if to_scale and not self.is_chain:
            self._draw_scale()

    def _edges(self, items: Array) -> list[Array]:
        """Return the corners of the line above every item, (3, 2) each.

        A line goes up first, then across, so lines of any lengths do not cross.
        """
        parents = self.outline.parent[items]
        x = np.stack((self.x[items], self.x[items], self.x[parents]), axis=-1)
        y = np.stack((self.y[items], self.y[parents], self.y[parents]), axis=-1)
        return list(np.stack((x, y), axis=-1))

    def _triangles(self, groups: Array) -> list[Array]:
        """Return the corners of every group, from the height that it hangs from, (3, 2) each."""
        x = self.x[groups, None] + (0.0, -0.4, 0.4)
        y = np.stack((self.y[self.outline.parent[groups]], *[self.y[groups]] * 2), axis=-1)
        return list(np.stack((x, y), axis=-1))

    def _draw_scale(self) -> None:
        """Draw a bar of a round length at the left of the tree."""
        height = float(np.ptp(self.y))
        if height == 0.0:
            return
        length = float(MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(0.0, height)[1])
        x = self.x.min() - 1.0
        bar = [[(x, 0.0), (x, -length)]]
        self.ax.add_collection(LineCollection(bar, colors="0.2", linewidths=1.5))
        self._annotate(f"length {length:g}", x, -length / 2.0, (-4, 0), ha="right", va="center")

    def _annotate(self, text: str, x: float, y: float, offset: Any, **keywords: Any) -> None:
        label = self.ax.annotate(
            text,
            (x, y),
            offset,
            textcoords="offset points",
            rotation=90,
            fontsize=FONT_SIZE,
            **keywords,
        )
        self.labels.append(label)

    def draw_flow(self, flow: Array, norm: CenteredNorm) -> None:
        """Draw the flow through every edge as its width and colour."""
        order = np.argsort(-np.abs(flow), kind="stable")  # narrow lines in front of wide ones
        edges = LineCollection(
            self._edges(self.outline.edges[order]),
            array=flow[order],
            cmap=COLORS,
            norm=norm,
            linewidths=9.0 * np.abs(flow[order]) / norm.halfrange,
            capstyle="round",
            joinstyle="round",
            zorder=1.5,
        )
        self.ax.add_collection(edges)

    def draw_discs(self, values: Array, norm: CenteredNorm, title: str) -> None:
        """Draw a coloured disc at every bin and group, and a colour bar."""
        marks = self.outline.marks
        discs = self.ax.scatter(
            self.x[marks],
            self.y[marks],
            20.0 + 120.0 * np.abs(values) / norm.halfrange,
            values,
            cmap=COLORS,
            norm=norm,
            edgecolors="0.2",
            zorder=3,
        )
        assert self.ax.figure is not None
        self.ax.figure.colorbar(discs, ax=self.ax, label=title, shrink=0.8)

    def draw_labels(self, labels: Mapping[Hashable, str] | None, priority: Array) -> None:
        """Draw the labels in a row below the bins, of overlapping ones that of higher priority."""
        marks, bottom = self.outline.marks, self.y.min()
        texts = [self._text(mark, labels or {}) for mark in marks.tolist()]
        if self.figure is not None and (engine := self.figure.get_layout_engine()) is not None:
            engine.execute(self.figure)  # a colour bar has changed the width
        chosen = self._apart(self.x[marks], texts, priority)
        leaders = [[(self.x[mark], self.y[mark]), (self.x[mark], bottom)] for mark in marks[chosen]]
        lines = LineCollection(leaders, colors="0.85", linewidths=0.5, zorder=0.5)
        self.ax.add_collection(lines)
        for i in chosen.tolist():
            self._annotate(texts[i], self.x[marks[i]], bottom, (0, -7), ha="center", va="top")
        if self.figure is not None:
            longest = max(_extent(label).height for label in self.labels)
            self.figure.set_figheight(self.figure.get_figheight() + longest / self.figure.dpi)

    def _apart(self, x: Array, texts: list[str], priority: Array) -> Array:
        """Return the indices of labels that do not overlap, in increasing order."""
        n_lines = 1 + max(text.count("\n") for text in texts)
        line = n_lines * LINE_HEIGHT * self.ax.figure.dpi / 72.0
        span = max(np.ptp(self.x), self.ax.dataLim.width)  # also of what the user has drawn
        least = span / max(self.ax.bbox.width / line - 2.0, 1.0)
        chosen: list[int] = []
        for i in np.argsort(-priority, kind="stable").tolist():
            if not chosen or np.abs(x[chosen] - x[i]).min() > least * (1.0 - 1e-9):
                chosen.append(i)
        return np.sort(chosen)

    def _text(self, item: int, labels: Mapping[Hashable, str]) -> str:
        outline = self.outline
        node, columns, parent = outline.node[item], outline.columns[item], outline.parent[item]
        if not outline.is_group[item]:
            return self._name(node, labels)
        if np.count_nonzero(outline.parent == parent) > 1:
            return f"{columns.size} more"
        label = outline.space.nodes[node]
        if label not in labels and (isinstance(label, int | np.integer) or label == ()):
            first = self._name(outline.space.bin_node[columns[0]], labels)
            return f"{first}, {columns.size - 1} more"
        return f"{self._name(node, labels)} ({columns.size} bins)"

    def _name(self, node: int, labels: Mapping[Hashable, str]) -> str:
        nodes, parent = self.outline.space.nodes, self.outline.space.parent[node]
        label = nodes[node]
        text = str(label)
        if isinstance(label, tuple) and label and nodes[parent] == label[:-1]:
            text = str(label[-1])  # a path, whose beginning the tree shows
        return labels.get(label, text.replace("$", r"\$"))  # no mathematics

    def fit_limits(self) -> Axes:
        """Set the limits so that the axes hold all labels; say if lengths are not to scale."""
        ax = self.ax
        bottom = top = DISC_RADIUS * ax.figure.dpi / 72.0
        lengths = self.outline.space.weight[self.outline.node[self.outline.edges]]
        if not self.to_scale and not np.allclose(lengths, lengths[:1], atol=0.0):
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
