"""What a user describes -> parent pointers -> post-order.

Every description of a tree (a networkx graph, name paths, a linkage matrix) becomes one array of
parent pointers, with -1 at the root, in the description's own node order.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastemd import validation

if TYPE_CHECKING:
    import networkx as nx

Index = NDArray[np.intp]
Floats = NDArray[np.float64]
Path: TypeAlias = tuple[Hashable, ...]


def children_of(parent: Index) -> list[list[int]]:
    """The children of every node, in index order."""
    children: list[list[int]] = [[] for _ in range(parent.size)]
    for node, above in enumerate(parent.tolist()):
        if above >= 0:
            children[above].append(node)
    return children


def post_order(parent: Index, root: int) -> list[int]:
    """The nodes at or below `root`, children before parents, every subtree in one piece."""
    children = children_of(parent)
    order, stack = [], [root]
    while stack:
        node = stack.pop()
        order.append(node)
        stack.extend(children[node])
    return order[::-1]


def tree_order(parent: Index, labels: Sequence[Hashable], argument: str) -> Index:
    """The post-order of all nodes, if they are one tree; else an error that names `argument`."""
    roots = np.flatnonzero(parent < 0)
    if roots.size == 0:
        validation.on_a_cycle(argument, labels[0])
    order = np.array(post_order(parent, int(roots[0])), np.intp)
    left_out = np.ones(parent.size, bool)
    left_out[order] = False
    for node in np.flatnonzero(left_out).tolist():
        validation.on_a_cycle(argument, labels[node])
    return order


def bins_below(parent: Index, bin_node: Index) -> Index:
    """The number of bins at or below every node of a tree in post-order."""
    count = np.bincount(bin_node, minlength=parent.size).tolist()
    for node, above in enumerate(parent[:-1].tolist()):
        count[above] += count[node]
    return np.array(count, np.intp)


def frozen(values: ArrayLike) -> NDArray[Any]:
    """A read-only, contiguous array of indices or float64."""
    array = np.array(values, order="C")
    array = array.astype(np.float64 if array.dtype.kind == "f" else np.intp)
    array.flags.writeable = False
    return array


def parents_of_digraph(
    graph: "nx.DiGraph[Any]", index: Mapping[Hashable, int], root: Hashable | None
) -> Index:
    """Parent pointers of a graph whose edges run from parent to child."""
    parent = np.full(len(index), -1, np.intp)
    for above, node in graph.edges:
        if parent[index[node]] >= 0:
            validation.two_parents(node)
        parent[index[node]] = index[above]
    roots = [label for label, i in index.items() if parent[i] < 0]
    if len(roots) > 1:
        validation.not_connected(roots[1], roots[0])
    if root is not None and roots and roots != [root]:
        validation.not_the_root(root, roots[0])
    return parent


def parents_of_graph(
    graph: "nx.Graph[Any]", index: Mapping[Hashable, int], root: Hashable | None
) -> Index:
    """Parent pointers of an undirected tree hung up at `root`, by default at its centre."""
    import networkx as nx  # who calls this has imported it

    start = next(iter(index)) if root is None else root
    if root is None and nx.is_tree(graph):  # if it is none, the walk below names the fault
        start = min(nx.tree.center(graph), key=index.__getitem__)
    parent = np.full(len(index), -1, np.intp)
    reached = {start}
    order = [start]
    for node in order:  # breadth first: the list grows while it is walked
        for other in graph.adj[node]:
            if other in reached:
                if index[other] != parent[index[node]]:
                    validation.on_a_cycle("graph", other)
                continue
            reached.add(other)
            parent[index[other]] = index[node]
            order.append(other)
    for label in index:
        if label not in reached:
            validation.not_connected(label, start)
    return parent


def edge_attribute(
    graph: "nx.Graph[Any]", nodes: Sequence[Hashable], parent: Index, attribute: str | None
) -> list[Any]:
    """The length of the edge above every node; 1 if no edge has the default attribute."""
    above = [nodes[i] if i >= 0 else None for i in parent]
    edges = [
        {} if i < 0 else graph.edges[label, node]
        for node, label, i in zip(nodes, above, parent, strict=True)
    ]
    lengths = [None if attribute is None else edge.get(attribute) for edge in edges]
    missing = [i for i in range(len(nodes)) if parent[i] >= 0 and lengths[i] is None]
    if len(missing) == np.count_nonzero(parent >= 0):
        if missing and attribute not in (None, "weight"):
            validation.no_edge_has(attribute, dict.fromkeys(key for edge in edges for key in edge))
        return [1.0] * len(nodes)
    for i in missing:
        validation.edge_without(attribute, above[i], nodes[i])
    return lengths


def tree_of_paths(
    paths: object, weights: object
) -> tuple[list[Path], Index, list[Any], list[Path]]:
    """Prefixes, parent pointers, edge lengths and bins of name paths; the root is ``()``."""
    bins = validation.check_paths(paths)
    index: dict[Path, int] = {(): 0}
    parent = [-1]
    for path in bins:
        for end in range(1, len(path) + 1):
            if path[:end] not in index:
                index[path[:end]] = len(index)
                parent.append(index[path[: end - 1]])
    prefixes = list(index)
    lengths = [1.0] * len(prefixes)
    if weights is not None:
        lengths[1:] = validation.check_prefix_lengths(weights, prefixes[1:])
    return prefixes, np.array(parent, np.intp), lengths, bins


def tree_of_linkage(linkage: ArrayLike) -> tuple[Index, Floats]:
    """Parent pointers and edge lengths of scipy's linkage matrix: observations, then clusters.

    The edge lengths are half the difference of the heights, so that the path between two
    observations is as long as their cophenetic distance.
    """
    parts, height = validation.check_linkage(linkage)
    parent = np.full(height.size, -1, np.intp)
    parent[parts] = np.arange(height.size - len(parts), height.size)[:, None]
    lengths = np.zeros(height.size)
    lengths[:-1] = (height[parent[:-1]] - height[:-1]) / 2.0
    return parent, lengths
