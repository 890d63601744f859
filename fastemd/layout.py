"""Post-order arrays -> the edge layouts that the kernels read.

A layout has the edges in the order of the two sweeps. Every bin has an edge, to an inner node of
the tree or, on a chain, to the next bin; a bin on an inner node is attached by an edge of
length 0. The bins' edges come first, in the order of the columns; the edges above the inner nodes
follow, each before its parent's. The last one is above the root and has no length.

Layouts differ in order (level by level, or every subtree contiguous) and in whether the tree is
contracted first. A layout is computed on the host, once, for both targets.
"""

import dataclasses
import functools
import heapq
import itertools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastemd.tree_input import Floats, Index, bins_below, freeze

# Of `CudaTables`: most edges below a node, and nodes of a level that threads process side by side.
MAX_CHILDREN = 4
GROUP = 32
BIN_LANES = 4  # bins that a thread processes side by side
BANKS = 16  # of shared memory, for float64
MOST_SPREAD = 6144  # edges of rows that fit there


class Edges(NamedTuple):
    """The arrays for CPU kernels: E edges, of which the first N belong to the bins."""

    parent: Index  # (E,) the next edge towards the root; E for the last
    length: Floats  # (E,)
    share: Floats  # (E,) fraction of the bins that are below an edge


class BinOrder(NamedTuple):
    """The bins of a layout whose subtrees are contiguous, subtree by subtree."""

    bins: Index  # (N,) sorted by the edge above them
    start: Index  # (E + 1,) where the bins directly below an edge start in `bins`
    lowest: Index  # (E + 1,) first edge of the subtree; its bins start at ``start[lowest[e]]``


@dataclasses.dataclass(frozen=True, eq=False)
class CudaTables:
    """The arrays for CUDA kernels: E edges, and on a tree the nodes above them.

    A level is the height above the bins. The nodes of a level are processed at the same time, the
    edges below a node in order, so that results have the same bits every time. The threads of
    `GROUP` nodes read side by side: the first edges below these nodes are side by side, then the
    second ones, and so on, and nodes with more edges come first. No node has more than
    `MAX_CHILDREN` edges below it: larger groups are joined by edges of length 0. The last node is
    above the edge above the root.
    """

    n_edges: int
    # Eight sizes: N, E, the number of levels (0 on a chain), and where the arrays after the first
    # one start. Then, each from a multiple of four:
    # - for every `GROUP` nodes of a level, where the edges below them start, and in four bytes
    #   the numbers of nodes with at least 1, 2, 3 and 4 edges
    # - for every node, level by level, its own edge (E for the last node) and that above it (E for
    #   the last two)
    # - where the levels start and end among the nodes, L + 1
    # - for every bin, its edge
    # - for every bin, the edge above that
    # - where the edges of the layout are, from the last to the first
    numbers: NDArray[np.int32]
    lengths: Floats  # for every edge its length and its share


class EdgeLayout:
    """The edges of a ground space in the order of the sweeps; immutable, hashable by identity."""

    def __init__(self, n_bins: int, parent: Any, length: Any, share: Any) -> None:
        self.edges = Edges(freeze(parent), freeze(length), freeze(share))
        self.n_bins, self.n_edges = n_bins, self.edges.length.size
        self.is_chain = self.n_edges == n_bins
        self._raised: dict[float, EdgeLayout] = {}

    def raised(self, exponent: float) -> "EdgeLayout":
        """Return the layout with all lengths raised to a power, one of the last few."""
        layout = self._raised.get(exponent)
        if layout is None:
            parent, length, share = self.edges
            layout = EdgeLayout(self.n_bins, parent, length**exponent, share)
            if len(self._raised) == 8:
                self._raised = {}
            self._raised[exponent] = layout
        return layout

    def with_lengths(self, length: Any) -> "EdgeLayout":
        """Return the layout "full" with other lengths of the edges above all nodes but the root."""
        lengths = np.zeros(self.n_edges)
        lengths[self.n_edges - 1 - len(length) : -1] = length
        return EdgeLayout(self.n_bins, self.edges.parent, lengths, self.edges.share)

    @functools.cached_property
    def cuda(self) -> CudaTables:
        """The tables for CUDA kernels."""
        return _cuda_tables(self.edges, self.n_bins)

    @functools.cached_property
    def bin_order(self) -> BinOrder:
        """The bins subtree by subtree, if the layout's subtrees are contiguous."""
        return _bin_order(self.edges.parent, self.n_bins)


def chain_layout(gaps: Floats) -> EdgeLayout:
    """Return the layout of a chain: the flow after bin k crosses gap k; none follows the last."""
    n_bins = gaps.size + 1
    parent = np.arange(1, n_bins + 1)
    return EdgeLayout(n_bins, parent, np.append(gaps, 0.0), parent / n_bins)


def full_layout(parent: Index, length: Floats, bin_node: Index) -> EdgeLayout:
    """Return the layout of the given tree (post-order arrays), whose nodes all keep their edge."""
    nodes, no_length = np.arange(parent.size), np.zeros(bin_node.size)
    return _layout(parent, length, bins_below(parent, bin_node), nodes, bin_node, no_length)


def contracted_layout(parent: Index, length: Floats, bin_node: Index) -> EdgeLayout:
    """Return the smallest layout with the same EMD, gradients and Hessians (post-order arrays).

    Its subtrees are contiguous.

    Exact steps: a subtree without bins carries no flow and is removed; an edge of length 0 costs
    nothing and its ends become one node; a node with one child and no bin passes its flow on, so
    its edge and its child's become one of their summed length; a leaf with one bin is replaced by
    that bin's own edge.
    """
    n_nodes, root = parent.size, parent.size - 1
    below = bins_below(parent, bin_node)
    parents, lengths = parent.tolist(), length.tolist()
    merged = list(range(n_nodes))  # the node that stands for each node
    for node in range(n_nodes - 2, -1, -1):
        parents[node] = merged[parents[node]]
        if lengths[node] == 0.0:
            merged[node] = parents[node]
    kept = (below > 0) & (np.array(merged) == np.arange(n_nodes))
    kept[root] = True
    bin_at = np.array(merged, np.intp)[bin_node]
    n_own_bins = np.bincount(bin_at, minlength=n_nodes)
    inner_edges = np.flatnonzero(kept[:-1])
    n_children = np.bincount(np.array(parents)[inner_edges], minlength=n_nodes)

    unary = kept & (n_own_bins == 0) & (n_children == 1)
    unary[root] = False
    is_unary = unary.tolist()
    for node in inner_edges[::-1].tolist():
        if is_unary[parents[node]]:
            lengths[node] += lengths[parents[node]]
            parents[node] = parents[parents[node]]
    parent, length = np.array(parents, np.intp), np.array(lengths)
    leaf = kept & (n_children == 0) & (n_own_bins == 1)
    leaf[root] = False
    on_leaf = leaf[bin_at]
    bin_length = np.where(on_leaf, length[bin_at], 0.0)
    bin_at = np.where(on_leaf, parent[bin_at], bin_at)
    return _layout(parent, length, below, np.flatnonzero(kept & ~unary & ~leaf), bin_at, bin_length)


def by_levels(layout: EdgeLayout) -> EdgeLayout:
    """Return the layout with the edges above inner nodes level by level, the deepest first.

    In post-order most of them need what the one before has just stored. In this order they do not
    wait, which made value and gradient on the ImageNet tree 1.45 times as fast.
    """
    n_bins, n_edges = layout.n_bins, layout.n_edges
    parent, length, share = layout.edges
    parents, level = parent.tolist(), [0] * (n_edges + 1)
    for edge in range(n_edges - 1, n_bins - 1, -1):
        level[edge] = level[parents[edge]] + 1
    inner = np.argsort([-level[edge] for edge in range(n_bins, n_edges)], kind="stable")
    order = np.append(np.arange(n_bins), n_bins + inner)
    number = np.empty(n_edges + 1, np.intp)
    number[order], number[n_edges] = np.arange(n_edges), n_edges
    return EdgeLayout(n_bins, number[parent[order]], length[order], share[order])


def _layout(
    parent: Index, length: Floats, below: Index, inner: Index, bin_at: Index, bin_length: Floats
) -> EdgeLayout:
    """Return the layout with the nodes `inner` of a tree, in their order, the root last."""
    n_bins, n_edges = bin_at.size, bin_at.size + inner.size
    edge_of = np.full(parent.size + 1, n_edges)  # the last entry serves parent -1
    edge_of[inner] = np.arange(n_bins, n_edges)
    inner_length = length[inner]
    inner_length[-1] = 0.0
    return EdgeLayout(
        n_bins,
        np.append(edge_of[bin_at], edge_of[parent[inner]]),
        np.append(bin_length, inner_length),
        np.append(np.full(n_bins, 1.0 / n_bins), below[inner] / n_bins),
    )


def _bin_order(parent: Index, n_bins: int) -> BinOrder:
    n_edges = parent.size
    bins = np.argsort(parent[:n_bins], kind="stable")
    start = np.searchsorted(parent[bins], np.arange(n_edges + 1))
    lowest = np.arange(n_edges + 1)
    for edge in range(n_bins, n_edges):
        lowest[parent[edge]] = min(lowest[parent[edge]], lowest[edge])
    return BinOrder(freeze(bins), freeze(start), freeze(lowest))


def _cuda_tables(edges: Edges, n_bins: int) -> CudaTables:
    n_old = edges.length.size
    length, share = edges.length.tolist(), edges.share.tolist()
    if n_old == n_bins:  # a chain
        no_nodes, places = np.empty(0, np.int64), np.arange(n_bins)
        return _packed(n_bins, 0, length, share, [*[no_nodes] * 5, places[::-1]])
    children: list[list[int]] = [[] for _ in range(n_old)]
    height = [0] * n_old
    for edge, parent in enumerate(edges.parent.tolist()):
        if edge >= n_bins:
            _join(children, edge, height, length, share)
        if parent < n_old:
            children[parent].append(edge)
    n_edges = len(length)
    children.append([n_old - 1])  # of the last node, whose edge would be n_edges
    height.append(height[n_old - 1] + 1)
    nodes = np.arange(n_bins, n_edges + 1)
    heights, sizes = np.array(height)[nodes], np.array([len(children[node]) for node in nodes])
    order = np.lexsort((-sizes, heights))
    nodes, heights, sizes = nodes[order], heights[order], sizes[order]
    levels = np.searchsorted(heights, np.arange(1, heights[-1] + 2))

    lane = np.arange(nodes.size) - levels[heights - 1]  # number in the level
    group, lane = np.cumsum(lane % GROUP == 0) - 1, lane % GROUP
    counts = np.stack([np.bincount(group, sizes > i) for i in range(MAX_CHILDREN)], 1).astype(int)
    ends = counts.sum(1).cumsum()
    starts = (ends - counts.sum(1))[:, np.newaxis] + counts.cumsum(1) - counts
    packed_counts = (counts << 8 * np.arange(MAX_CHILDREN)).sum(1)

    if n_edges <= MOST_SPREAD:
        places = starts[group] + lane[:, np.newaxis]
        nodes = _spread(nodes, np.stack([heights, sizes]), places, children, n_bins)
    child = np.array([child for node in nodes for child in children[node]])
    owner = np.arange(nodes.size).repeat(sizes)
    number = np.arange(child.size) - (sizes.cumsum() - sizes).repeat(sizes)  # among the node's
    place, parents = np.full(n_edges + 1, n_edges), np.full(n_edges + 1, n_edges)
    place[child] = starts[group[owner], number] + lane[owner]
    parents[child] = place[nodes[owner]]
    order = np.argsort(place[:n_edges])
    arrays = [
        np.stack([starts[:, 0], packed_counts], 1),
        np.stack([place[nodes], parents[nodes]], 1),
        levels,
        place[:n_bins],
        parents[:n_bins],
        place[n_old - 1 :: -1],
    ]
    return _packed(n_bins, levels.size - 1, np.array(length)[order], np.array(share)[order], arrays)


def _spread(
    nodes: Index, kinds: Index, places: Index, children: list[list[int]], n_bins: int
) -> Index:
    """Return nodes in an order in which the threads of a warp rarely meet in a bank of memory.

    Nodes of the same of `kinds`, (2, nodes), exchange their `places`, (nodes, MAX_CHILDREN), those
    of the edges below them. Half a warp accesses the edges of 16 bins at once, and those above
    them; two of them in a bank take twice the time. Each node gets the place that adds the fewest
    such meetings. On the ImageNet tree a row takes 1,130 accesses to all banks instead of 1,340.
    """
    bins = np.arange(n_bins)
    n_lanes = 1 if n_bins % BIN_LANES else BIN_LANES
    access = bins // (BANKS * n_lanes) * n_lanes + bins % n_lanes
    used, used_above = np.zeros((2, access[-1] + 1, BANKS), int)
    accesses = {
        node: np.unique(access[[child for child in children[node] if child < n_bins]])
        for node in nodes.tolist()
    }
    order, banks = nodes.copy(), places % BANKS
    bounds = np.flatnonzero((np.diff(kinds, prepend=-1, append=-1) != 0).any(0))
    for begin, end in itertools.pairwise(bounds.tolist()):
        is_free = np.ones(end - begin, bool)
        for node in sorted(nodes[begin:end].tolist(), key=lambda node: -accesses[node].size):
            meetings = np.zeros(end - begin, int)
            for i, child in enumerate(children[node]):
                bank = banks[begin:end, i]
                if child < n_bins:
                    meetings += used[access[child], bank]
                else:
                    meetings += used_above[accesses[child]][:, bank].sum(0)
            choice = int(np.where(is_free, meetings, np.iinfo(int).max).argmin())
            is_free[choice], order[begin + choice] = False, node
            for i, child in enumerate(children[node]):
                bank = banks[begin + choice, i]
                if child < n_bins:
                    used[access[child], bank] += 1
                else:
                    used_above[accesses[child], bank] += 1
    return order


def _packed(n_bins: int, n_levels: int, length: Any, share: Any, arrays: list[Any]) -> CudaTables:
    """Pack the tables into few arrays, since every argument of a launch costs time."""
    padded = [np.append(array.ravel(), [0] * (-array.size % 4)) for array in arrays]
    *starts, size = 8 + np.cumsum([array.size for array in padded])
    lengths, n_edges = np.stack([length, share], axis=1).ravel(), len(length)
    if max(size, lengths.size) >= 1 << 31:  # the kernels' indices have 32 bits
        raise ValueError(f"{n_edges} edges are too many for CUDA kernels; use NumPy arrays")
    numbers = np.concatenate([[n_bins, n_edges, n_levels, *starts], *padded])
    return CudaTables(n_edges, numbers.astype(np.int32), freeze(lengths))


def _join(
    children: list[list[int]],
    edge: int,
    height: list[int],
    length: list[float],
    share: list[float],
) -> None:
    """Leave at most `MAX_CHILDREN` edges below an edge, and set its height.

    The lowest edges are joined first, and all joins but the first are full, so that the tree hardly
    becomes higher.
    """
    heap = [(height[child], child) for child in children[edge]]
    heapq.heapify(heap)
    n_joined = (len(heap) - MAX_CHILDREN - 1) % (MAX_CHILDREN - 1) + 2
    while len(heap) > MAX_CHILDREN:
        joined = [heapq.heappop(heap) for _ in range(n_joined)]
        new = len(length)
        heapq.heappush(heap, (joined[-1][0] + 1, new))
        below = [child for _, child in joined]
        children.append(below)
        height.append(joined[-1][0] + 1)
        length.append(0.0)
        share.append(sum(share[child] for child in below))
        n_joined = MAX_CHILDREN
    children[edge] = [child for _, child in sorted(heap)]
    height[edge] = 1 + max((h for h, _ in heap), default=0)
