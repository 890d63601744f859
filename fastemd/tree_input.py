"""Descriptions of trees -> parent pointers -> post-order arrays, validated.

A networkx graph, parent pointers, paths of names and a linkage matrix all become one array of
parent pointers, with -1 at the root, in the order of the description. `post_order_arrays` validates
the tree, its lengths and its bins, and sorts them into the order of `GroundSpace`.
"""

import math
import numbers
from collections.abc import Hashable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastemd.validation.arguments import _kind, as_float, check_amount

if TYPE_CHECKING:
    import networkx as nx

Index = NDArray[np.intp]
Floats = NDArray[np.float64]
Path: TypeAlias = tuple[Hashable, ...]
TreeArrays: TypeAlias = tuple[Index, Floats, Index, Sequence[Hashable]]  # see `GroundSpace`

MAX_TOTAL_LENGTH = 1e150  # of all edges: no result overflows unless masses are huge, too
MAX_LABEL_SIZE = 60  # characters of a label in a message


def freeze(values: ArrayLike) -> NDArray[Any]:
    """Return a read-only, contiguous copy as an array of indices or float64."""
    array = np.array(values, order="C")
    array = array.astype(np.float64 if array.dtype.kind == "f" else np.intp)
    array.flags.writeable = False
    return array


def bins_below(parent: Index, bin_node: Index) -> Index:
    """Return the number of bins at or below every node of a tree in post-order."""
    return sums_below(parent, np.bincount(bin_node, minlength=parent.size))


def sums_below(parent: Index, values: NDArray[Any]) -> NDArray[Any]:
    """Return the sum of the nodes' values at or below every node of a tree in post-order."""
    sums = values.tolist()
    for node, above in enumerate(parent[:-1].tolist()):
        sums[above] += sums[node]
    return np.array(sums, values.dtype)


def post_order_arrays(
    argument: str,
    labels: Sequence[Hashable],
    parent: Index,
    lengths_argument: str,
    lengths: object,
    bins: object,
) -> TreeArrays:
    """Validate a tree, its lengths and its bins, and return its arrays in post-order.

    Messages name the constructor's argument that describes the tree, `argument`, and the one that
    holds the lengths, `lengths_argument`.
    """
    children: list[list[int]] = [[] for _ in range(parent.size)]
    for node, above in enumerate(parent.tolist()):
        if above >= 0:
            children[above].append(node)
    order, stack = [], np.flatnonzero(parent < 0).tolist()
    while stack:
        order.append(node := stack.pop())
        stack.extend(children[node])
    order.reverse()
    if len(order) < parent.size:
        raise _cycle_error(argument, labels[min(set(range(parent.size)).difference(order))])
    length = check_lengths(lengths_argument, lengths, labels, "above node", root=order[-1])
    number = np.empty(parent.size, np.intp)
    number[order] = np.arange(parent.size)
    index = {label: i for i, label in enumerate(labels)}
    sorted_parent = np.append(number[parent[order[:-1]]], -1)
    nodes = tuple(labels[i] for i in order)
    return sorted_parent, length[order], number[_bin_indices(bins, index)], nodes


def from_graph(
    graph: Any, root: Hashable | None, bins: object, attribute: str | None
) -> TreeArrays:
    """Read a networkx graph; see `Tree.from_networkx`."""
    import networkx as nx  # already imported by the caller, who built the graph

    if not isinstance(graph, nx.Graph) or graph.is_multigraph():
        raise TypeError(
            f"graph: expected a networkx Graph or DiGraph, got {type(graph).__name__}; "
            "a multigraph becomes one by nx.Graph(graph) or nx.DiGraph(graph)"
        )
    labels = list(graph)
    if not labels:
        raise _tree_error("graph", "there are no nodes; expected at least one")
    for i, label in enumerate(labels):
        _check_label("graph", label, f"label at index {i} of the nodes", "relabel this node")
    index = {label: i for i, label in enumerate(labels)}
    if root is not None:
        _check_node("root", root, index)
    directed = graph.is_directed()
    parent = (_parents_of_digraph if directed else _parents_of_graph)(graph, index, root)
    lengths = _edge_lengths(graph, labels, parent, attribute)
    if bins is None:
        degree = graph.out_degree if directed else graph.degree
        bins = [node for node in labels if degree[node] <= (0 if directed else 1)]
    return post_order_arrays("graph", labels, parent, "weight", lengths, bins)


def _parents_of_digraph(
    graph: "nx.DiGraph[Any]", index: Mapping[Hashable, int], root: Hashable | None
) -> Index:
    """Return the parent pointers of a graph whose edges run from parent to child."""
    parent = np.full(len(index), -1, np.intp)
    for above, node in graph.edges:
        if parent[index[node]] >= 0:
            raise _tree_error(
                "graph",
                f"node {quoted(node)} has more than one parent; expected edges from parent to "
                "child; graph.reverse() turns them",
            )
        parent[index[node]] = index[above]
    roots = [label for label, i in index.items() if parent[i] < 0]
    if len(roots) > 1:
        raise _connection_error(roots[1], roots[0])
    if root is not None and roots and roots != [root]:
        raise ValueError(
            f"root: node {quoted(root)} has a parent; expected {quoted(roots[0])}, the root of the "
            "directed graph, or None"
        )
    return parent


def _parents_of_graph(
    graph: "nx.Graph[Any]", index: Mapping[Hashable, int], root: Hashable | None
) -> Index:
    """Return the parent pointers of an undirected tree; its root is by default its centre."""
    import networkx as nx

    start = next(iter(index)) if root is None else root
    if root is None and nx.is_tree(graph):  # otherwise the search below finds the reason
        start = min(nx.tree.center(graph), key=index.__getitem__)
    parent = np.full(len(index), -1, np.intp)
    reached = {start}
    for node in (queue := [start]):  # breadth first: the list grows during the iteration
        for neighbour in graph.adj[node]:
            if neighbour not in reached:
                reached.add(neighbour)
                queue.append(neighbour)
                parent[index[neighbour]] = index[node]
            elif index[neighbour] != parent[index[node]]:
                raise _cycle_error("graph", neighbour)
    for label in index:
        if label not in reached:
            raise _connection_error(label, start)
    return parent


def _edge_lengths(
    graph: "nx.Graph[Any]", labels: Sequence[Hashable], parent: Index, attribute: str | None
) -> list[Any]:
    """Return the length of the edge above every node; 1 if no edge has the default attribute."""
    lengths: list[Any] = [1.0] * len(labels)
    if attribute is None:
        return lengths
    above = {i: labels[j] for i, j in enumerate(parent.tolist()) if j >= 0}
    edges = {i: graph.edges[label, labels[i]] for i, label in above.items()}
    missing = [i for i, edge in edges.items() if edge.get(attribute) is None]
    if len(missing) == len(edges):
        if edges and attribute != "weight":
            others = ", ".join(map(quoted, dict.fromkeys(key for e in edges.values() for key in e)))
            raise ValueError(
                f"weight: no edge has the attribute {quoted(attribute)}; expected an attribute "
                "that all edges have; "
                f"{f'the edges have {others}' if others else 'the edges have no attributes'}"
            )
        return lengths
    for i in missing:
        raise ValueError(
            f"weight: no attribute {quoted(attribute)} on the edge between {quoted(above[i])} and "
            f"{quoted(labels[i])}; expected it on every edge; add it to this one"
        )
    for i, edge in edges.items():
        lengths[i] = edge[attribute]
    return lengths


def from_parents(values: object, weights: object, bins: object) -> TreeArrays:
    """Read parent pointers; see `Tree.from_parents`."""
    try:
        parents = np.asarray(values)
    except ValueError:  # lists of different lengths
        raise TypeError(f"parents: {_kind(values)}; expected a list of integers") from None
    if parents.ndim != 1:
        raise ValueError(f"parents: shape {parents.shape}; expected one axis, (n_nodes,)")
    if parents.size == 0:
        raise _tree_error("parents", "there are no nodes; expected at least the root, [-1]")
    if np.ma.is_masked(values):
        raise TypeError("parents: some entries are masked; expected an integer for every node")
    if parents.dtype.kind == "O":
        for node, above in enumerate(parents):
            if isinstance(above, bool) or not isinstance(above, numbers.Integral):
                raise TypeError(
                    f"parents: the parent of node {node} is of type {type(above).__name__}; "
                    "expected an integer"
                )
    elif parents.dtype.kind not in "iu":
        raise TypeError(
            f"parents: an array of dtype {parents.dtype}; expected integers, with -1 for the root"
        )
    for node in np.flatnonzero((parents < -1) | (parents >= parents.size)).tolist():
        raise _tree_error(
            "parents",
            f"node {node} has parent {quoted(int(parents[node]))}; "
            f"expected -1 for the root or a node from 0 to {parents.size - 1}",
        )
    roots = np.flatnonzero(parents == -1)
    if roots.size != 1:
        problem = f"nodes {roots[0]} and {roots[1]} both have" if roots.size else "no node has"
        raise _tree_error("parents", f"{problem} parent -1; expected exactly one, the root")
    parent = parents.astype(np.intp)
    if weights is None:
        weights = np.ones(parent.size)
    if bins is None:
        bins = np.setdiff1d(np.arange(parent.size), parent).tolist()
    return post_order_arrays("parents", range(parent.size), parent, "weights", weights, bins)


def from_paths(paths: object, weights: Any) -> TreeArrays:
    """Read one path of names per bin; see `Tree.from_paths`."""
    if not isinstance(paths, Iterable):
        raise TypeError(f"paths: expected an iterable of paths, got {_kind(paths)}")
    bins: dict[Path, None] = {}  # an ordered set
    for i, names in enumerate(paths):
        if isinstance(names, str | bytes) or not isinstance(names, Iterable):
            raise TypeError(
                f"paths: path {i} is {_kind(names)}; "
                "expected a sequence of names such as ('animal', 'cat')"
            )
        path = tuple(names)
        _check_names("paths", path, f"path {i}")
        if path in bins:
            raise ValueError(
                f"paths: duplicate path {quoted(path)} at index {i}; each path may appear once"
            )
        bins[path] = None
    if not bins:
        raise ValueError("paths: no paths; expected at least one")
    index: dict[Path, int] = {(): 0}
    parent = [-1]
    for path in bins:
        for end in range(1, len(path) + 1):
            if path[:end] not in index:
                index[path[:end]] = len(index)
                parent.append(index[path[: end - 1]])
    labels = list(index)
    lengths = [1.0] * len(labels)
    if weights is not None:
        if not hasattr(weights, "items"):
            raise TypeError(
                f"weights: expected a mapping from prefixes to lengths, got {_kind(weights)}"
            )
        length_of = dict(weights.items())  # of a mapping or a pandas Series
        for i, key in enumerate(length_of):
            _check_names("weights", key if isinstance(key, tuple) else (key,), f"key {i}")
        for prefix in labels[1:]:
            if prefix not in length_of:
                raise ValueError(
                    f"weights: no length for {quoted(prefix)}; "
                    "expected one for every prefix of a path"
                )
        lengths[1:] = [length_of[prefix] for prefix in labels[1:]]
    return post_order_arrays("paths", labels, np.array(parent, np.intp), "weights", lengths, bins)


def _check_names(argument: str, path: tuple[object, ...], place: str) -> None:
    for i, name in enumerate(path):
        hint = "leave missing names out or replace them by strings"
        _check_label(argument, name, f"name at index {i} of {place}", hint)


def from_linkage(linkage: Any) -> TreeArrays:
    """Read scipy's linkage matrix; see `Tree.from_linkage`.

    The length of an edge is half the difference of the heights at its ends, so that the path
    between two observations is as long as their cophenetic distance.
    """
    from scipy.cluster.hierarchy import is_valid_linkage  # slow to import, seldom needed

    entries = np.asarray(linkage)
    if np.ma.is_masked(linkage):
        count = int(np.ma.getmaskarray(linkage).sum())
        raise ValueError(f"Z: {count} of {entries.size} entries masked; expected numbers only")
    try:
        matrix = entries.astype(np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"Z: expected a linkage matrix of numbers, got {_kind(linkage)}") from None
    is_valid_linkage(matrix, throw=True, name="Z")
    n_bins = matrix.shape[0] + 1
    parts = matrix[:, :2].astype(np.intp)
    heights = [0.0] * n_bins + matrix[:, 2].tolist()
    precision = np.finfo(entries.dtype if entries.dtype.kind == "f" else np.float64).eps
    lowest = 1.0 - math.sqrt(max(precision, np.finfo(np.float64).eps))
    for row, pair in enumerate(parts.tolist()):
        cluster = n_bins + row
        if max(pair) >= cluster:  # scipy accepts this in a matrix of one row
            raise ValueError(
                f"Z: row {row} merges cluster {max(pair)}, which does not exist yet; "
                f"expected numbers below {cluster}"
            )
        if not 0.0 <= heights[cluster] < math.inf:
            raise ValueError(
                f"Z: row {row} has height {heights[cluster]}; expected a finite number >= 0"
            )
        part = max(pair, key=heights.__getitem__)
        if heights[cluster] < lowest * heights[part]:
            raise ValueError(
                f"Z: cluster {cluster} at height {heights[cluster]} lies below its part {part} at "
                f"{heights[part]}; expected heights that do not decrease; the methods 'centroid' "
                "and 'median' do not guarantee that, use another one"
            )
        heights[cluster] = max(heights[cluster], heights[part])
    height = np.array(heights)
    parent = np.full(height.size, -1, np.intp)
    parent[parts] = np.arange(n_bins, height.size)[:, None]
    lengths = np.append((height[parent[:-1]] - height[:-1]) / 2.0, 0.0)
    return post_order_arrays("Z", range(height.size), parent, "Z", lengths, range(n_bins))


def check_lengths(
    argument: str, values: Any, owners: Sequence[object], place: str, root: int | None = None
) -> Floats:
    """Return edge lengths as float64: one per owner, finite, >= 0; the root's is set to 0.

    `place` is the position of an edge relative to its owner: "after bin" or "above node".
    """
    dtype = getattr(values, "dtype", None)
    if isinstance(dtype, np.dtype) and dtype.kind in "mM":
        raise TypeError(f"{argument}: an array of dtype {dtype}; expected real numbers")
    entries = np.array(values.tolist() if isinstance(values, np.ma.MaskedArray) else values, object)
    if entries.shape != (len(owners),):
        raise ValueError(f"{argument}: shape {entries.shape}; expected ({len(owners)},)")
    if root is not None:
        entries[root] = 0.0
    for owner, value in zip(owners, entries, strict=True):
        if type(value) is not float and not isinstance(value, numbers.Real | Decimal):
            kind = "None or masked" if value is None else f"of type {type(value).__name__}"
            raise TypeError(
                f"{argument}: the length {place} {quoted(owner)} is {kind}; expected a real number"
            )
    lengths = np.array([as_float(value) for value in entries], np.float64)
    for i in np.flatnonzero(~(np.isfinite(lengths) & (lengths >= 0.0))).tolist():
        raise ValueError(
            f"{argument}: the length {place} {quoted(owners[i])} is {lengths[i]}; "
            "expected a finite number >= 0"
        )
    if lengths.max(initial=0.0) > MAX_TOTAL_LENGTH or math.fsum(lengths) > MAX_TOTAL_LENGTH:
        raise ValueError(
            f"{argument}: the lengths sum to more than {MAX_TOTAL_LENGTH:g}; "
            "divide all by a common unit"
        )
    return lengths


def scale_lengths(lengths: Floats, current: float, requested: object) -> Floats:
    """Multiply edge lengths by one factor; see `GroundSpace.scaled`."""
    amount = check_amount("mean_distance", requested, zero=False)
    if current == 0.0:
        raise ValueError(
            "mean_distance: all bins are at distance 0; expected two bins at a distance > 0; "
            "build the space with other lengths"
        )
    factor = amount / current
    smallest = min(factor * lengths[lengths > 0.0].min(), factor, amount, current)
    if factor * math.fsum(lengths) > MAX_TOTAL_LENGTH:
        fault = f"sum to more than {MAX_TOTAL_LENGTH:g}"
    elif smallest < np.finfo(np.float64).tiny:
        fault = "are too small for float64"
    else:
        return lengths * factor
    raise ValueError(
        f"mean_distance: multiplied by {amount} / {current}, the lengths {fault}; "
        f"expected a number nearer to {current}, the mean distance of this space"
    )


def _bin_indices(bins: object, index: Mapping[Hashable, int]) -> Index:
    """Return the node index of every bin."""
    if not isinstance(bins, Iterable):
        raise TypeError(f"bins: expected an iterable of nodes, got {_kind(bins)}")
    indices: dict[int, None] = {}  # an ordered set
    for label in bins:
        _check_node("bins", label, index)
        if index[label] in indices:
            raise ValueError(f"bins: duplicate node {quoted(label)}; each node may appear once")
        indices[index[label]] = None
    if not indices:
        raise ValueError("bins: no nodes; expected at least one")
    return np.array(list(indices), np.intp)


def _check_node(argument: str, label: object, index: Mapping[Any, int]) -> None:
    try:
        known = label in index
    except TypeError:  # not hashable, or a comparison without a truth value
        known = False
    if not known:
        raise ValueError(
            f"{argument}: {quoted(label)} is not a node; expected one of the tree's {len(index)} "
            f"nodes, such as {quoted(next(iter(index)))}"
        )


def _check_label(argument: str, label: object, place: str, hint: str) -> None:
    """Refuse labels that a dictionary would not find: they are looked up by hash and ==."""
    kind = type(label).__name__
    try:
        hash(label)
    except TypeError:
        raise TypeError(
            f"{argument}: the {place} is not hashable (type {kind}); "
            "expected strings, numbers or tuples of them"
        ) from None
    if _differs_from_itself(label):
        raise ValueError(
            f"{argument}: the {place} is or contains NaN, NaT or NA (type {kind}); "
            f"expected a label that equals itself; {hint}"
        )


def _differs_from_itself(label: object) -> bool:
    # Tuples and frozensets take items that are the same object for equal.
    if isinstance(label, tuple | frozenset):
        return any(map(_differs_from_itself, label))
    try:
        return bool(label != label)
    except Exception:  # pandas.NA == pandas.NA has no truth value
        return True


def quoted(label: object) -> str:
    """Return the repr of a node's label, cut to `MAX_LABEL_SIZE` characters."""
    text = repr(label)
    return text if len(text) <= MAX_LABEL_SIZE else f"{text[: MAX_LABEL_SIZE - 3]}..."


def _tree_error(argument: str, reason: str) -> ValueError:
    return ValueError(f"{argument}: not a tree: {reason}")


def _cycle_error(argument: str, label: object) -> ValueError:
    return _tree_error(
        argument, f"node {quoted(label)} is on or below a cycle; expected one path to every node"
    )


def _connection_error(label: object, root: object) -> ValueError:
    return _tree_error(
        "graph",
        f"node {quoted(label)} is not connected to node {quoted(root)}; expected one piece; "
        "connect both below a common root",
    )
