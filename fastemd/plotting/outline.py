"""The part of a ground space that a picture shows, and where it lies."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastemd.spaces import Chain, GroundSpace
from fastemd.tree_input import bins_below

Array = NDArray[Any]
NEGLIGIBLE = 1e-9  # of the largest activity, about the rounding errors of sums


@dataclass(frozen=True)
class Outline:
    """Items of a picture, in post-order: nodes of a space, and groups of bins without their edges.

    Attributes
    ----------
    space : Chain or Tree
        The ground space.
    node : ndarray of intp, (n_items,)
        The node of every item; of a group, the node that it hangs from.
    parent : ndarray of intp, (n_items,)
        The item above every item, -1 for the last one.
    is_group : ndarray of bool, (n_items,)
        Whether an item is a group.
    columns : list of ndarray of intp, n_items
        Columns of the bins at every item.
    """

    space: GroundSpace
    node: Array
    parent: Array
    is_group: Array
    columns: list[Array]

    @property
    def marks(self) -> Array:
        """Items with bins, in post-order."""
        return np.flatnonzero([columns.size for columns in self.columns])

    @property
    def edges(self) -> Array:
        """Items below an edge of the space, in post-order."""
        return np.flatnonzero((self.parent >= 0) & ~self.is_group)

    def place(self, to_scale: bool) -> tuple[Array, Array]:
        """Return the x and y coordinates of the items.

        Every item with bins has its own x in a tree, and parents are above their children. The
        position on a chain is the distance from its first bin.
        """
        space = self.space
        if isinstance(space, Chain):
            return np.append(0.0, np.cumsum(space.weight[:-1]))[self.node], np.zeros(self.node.size)
        n_marks, (left, right) = 0, np.tile([[np.inf], [-np.inf]], self.node.size)
        x = np.zeros(self.node.size)
        for item, parent in enumerate(self.parent.tolist()):
            if self.columns[item].size:
                x[item] = n_marks
                n_marks += 1
            else:
                x[item] = (left[item] + right[item]) / 2.0
            left[parent], right[parent] = min(left[parent], x[item]), max(right[parent], x[item])
        if to_scale:
            return x, self._depths()
        y = np.zeros(self.node.size)
        for item in range(self.node.size - 2, -1, -1):
            y[item] = y[self.parent[item]] - 1.0
        return x, y

    def _depths(self) -> Array:
        """Return minus the distance from the top; of a group, from the top to its farthest bin."""
        parent, length = self.space.parent, self.space.weight
        depth = np.zeros(self.space.n_nodes)
        for node in range(self.space.n_nodes - 2, -1, -1):
            depth[node] = depth[parent[node]] - length[node]
        y = depth[self.node]
        for item in np.flatnonzero(self.is_group):
            y[item] = depth[self.space.bin_node[self.columns[item]]].min()
        top: Array = y - depth[self.node[-1]]
        return top


def outline(space: GroundSpace, columns: Array, max_bins: int, activity: Array) -> Outline:
    """Return the part of a space between some bins and their common ancestor.

    In a tree, the least active subtrees of a node are joined into one group, so that at most
    `max_bins` bins and groups remain.

    Parameters
    ----------
    space : Chain or Tree
        The ground space.
    columns : ndarray of intp, (n,)
        Columns of the bins, in increasing order.
    max_bins : int
        Largest number of bins and groups, >= 1.
    activity : ndarray, (n_nodes,)
        Importance of every node.
    """
    bin_node = space.bin_node[columns]
    n_below = bins_below(space.parent, bin_node)
    is_shown = n_below > 0
    if not isinstance(space, Chain) and columns.size > max_bins:
        is_shown = _most_active(space, bin_node, n_below, max_bins, activity)
    shown = np.flatnonzero(is_shown)
    n_hidden = _children(space, n_below > 0) - _children(space, is_shown)
    is_collapsed = (n_hidden > 0) & (_children(space, is_shown) == 0)
    owner = np.arange(space.n_nodes)
    for node in np.flatnonzero(~is_shown)[::-1]:
        owner[node] = owner[space.parent[node]]

    # Two keys per node, in post-order: 2 i is the group that hangs from node i, 2 i + 1 node i.
    keys = np.sort(np.concatenate((2 * shown + 1, 2 * np.flatnonzero(is_shown & (n_hidden > 0)))))
    node, is_group = keys // 2, keys % 2 == 0
    parent_node = np.where(is_group, node, space.parent[node])
    parent = np.searchsorted(keys, 2 * parent_node + 1)
    parent[-1] = -1
    bin_keys = 2 * owner[bin_node] + (is_shown & ~is_collapsed)[bin_node]
    item = np.searchsorted(keys, bin_keys)
    order = np.argsort(item, kind="stable")
    members = np.split(columns[order], np.cumsum(np.bincount(item, minlength=keys.size))[:-1])

    n_children = np.bincount(parent[:-1], minlength=keys.size)
    is_fork = (n_children != 1) | [member.size > 0 for member in members]
    is_fork[parent[is_group]] = True
    n_items = np.flatnonzero(is_fork)[-1] + 1  # a single line leads further up
    parent[n_items - 1] = -1
    return Outline(space, node[:n_items], parent[:n_items], is_group[:n_items], members[:n_items])


def _children(space: GroundSpace, is_counted: Array) -> Array:
    """Return the number of counted children of every node."""
    return np.bincount(space.parent[:-1][is_counted[:-1]], minlength=space.n_nodes)


def _most_active(
    space: GroundSpace, bin_node: Array, n_below: Array, max_bins: int, activity: Array
) -> Array:
    """Return the nodes to show, parents before children, from the most active one down."""
    parents = space.parent.tolist()
    most = np.where(n_below > 0, activity, 0.0)  # at or below a node
    for node, parent in enumerate(parents[:-1]):
        most[parent] = max(most[parent], most[node])
    if not most[:-1].any():
        most = n_below
    order = np.lexsort((-space.heights, -n_below, -most))
    order = order[(most > NEGLIGIBLE * most[:-1].max())[order] & (order < space.n_nodes - 1)]
    has_bin = np.zeros(space.n_nodes, bool)
    has_bin[bin_node] = True
    n_hidden, n_shown = _children(space, n_below > 0), np.zeros(space.n_nodes, int)
    is_shown = np.zeros(space.n_nodes, bool)
    is_shown[-1] = True
    n_marks = 1

    def show(node: int) -> None:
        is_shown[node] = True
        n_hidden[parents[node]] -= 1
        n_shown[parents[node]] += 1

    for node in order.tolist():
        parent = parents[node]
        n_more = int(n_hidden[parent] > 1) + int(has_bin[parent] and n_shown[parent] == 0)
        if is_shown[parent] and n_marks + n_more <= max_bins:
            n_marks += n_more
            show(node)
    for node in np.flatnonzero(n_below > 0)[-2::-1].tolist():  # a group of one child is the child
        parent = parents[node]
        is_alone = n_hidden[parent] == 1 and not (has_bin[parent] and n_shown[parent] == 0)
        if is_shown[parent] and not is_shown[node] and is_alone:
            show(node)
    return is_shown
