"""Bad ground spaces."""

import math
import numbers
from collections.abc import Hashable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fastemd.validation.arguments import _kind, as_float

LONGEST = 1e150  # of all edges together: no result overflows as long as masses are not huge, too
LONGEST_LABEL = 60


def not_a_space(space: object) -> NoReturn:
    raise TypeError(f"space: expected a fastemd.Chain or fastemd.Tree, got {_kind(space)}")


def space_is_gone(number: int) -> NoReturn:
    raise ValueError(
        f"space: the ground space of this compiled program (number {number}) does not exist "
        "any more, or not in this process; keep a reference to it"
    )


def quoted(label: object) -> str:
    """The repr of a node's label, cut to `LONGEST_LABEL` characters."""
    text = repr(label)
    return text if len(text) <= LONGEST_LABEL else f"{text[: LONGEST_LABEL - 3]}..."


def check_lengths(
    name: str, values: object, owners: Sequence[object], place: str, root: int | None = None
) -> NDArray[np.float64]:
    """Edge lengths as float64: one per owner, finite, >= 0; the root has none and gets 0.

    `place` is what an edge is to its owner: "after bin" or "above node".
    """
    dtype = getattr(values, "dtype", None)
    if isinstance(dtype, np.dtype) and dtype.kind in "mM":
        raise TypeError(f"{name}: an array of dtype {dtype}; expected real numbers")
    given = np.array(values.tolist() if isinstance(values, np.ma.MaskedArray) else values, object)
    if given.shape != (len(owners),):
        raise ValueError(f"{name}: shape {given.shape}; expected ({len(owners)},)")
    if root is not None:
        given[root] = 0.0
    for owner, value in zip(owners, given, strict=True):
        if not isinstance(value, numbers.Real | Decimal):
            kind = "None or masked" if value is None else f"of type {type(value).__name__}"
            raise TypeError(
                f"{name}: the length {place} {quoted(owner)} is {kind}; expected a real number"
            )
    lengths = np.array([as_float(value) for value in given], np.float64)
    for i in np.flatnonzero(~(np.isfinite(lengths) & (lengths >= 0.0))).tolist():
        raise ValueError(
            f"{name}: the length {place} {quoted(owners[i])} is {lengths[i]}; "
            "expected a finite number >= 0"
        )
    if lengths.max(initial=0.0) > LONGEST or math.fsum(lengths) > LONGEST:
        raise ValueError(
            f"{name}: the lengths sum to more than {LONGEST:g}; divide all by a common unit"
        )
    return lengths


def check_parents(values: object) -> NDArray[np.intp]:
    """Parent pointers with one root."""
    try:
        parents = np.asarray(values)
    except ValueError:  # lists of different lengths
        raise TypeError(f"parents: {_kind(values)}; expected a list of integers") from None
    if parents.ndim != 1:
        raise ValueError(f"parents: shape {parents.shape}; expected one axis, (n_nodes,)")
    if parents.size == 0:
        not_a_tree("parents", "there are no nodes; expected at least the root, [-1]")
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
        not_a_tree(
            "parents",
            f"node {node} has parent {quoted(int(parents[node]))}; "
            f"expected -1 for the root or a node from 0 to {parents.size - 1}",
        )
    roots = np.flatnonzero(parents == -1)
    if roots.size == 0:
        not_a_tree("parents", "no node has parent -1; expected exactly one, the root")
    if roots.size > 1:
        not_a_tree(
            "parents",
            f"nodes {roots[0]} and {roots[1]} both have parent -1; expected exactly one, the root",
        )
    return parents.astype(np.intp)


def check_bins(labels: object, index: Mapping[Hashable, int]) -> NDArray[np.intp]:
    """The node index of every bin."""
    if not isinstance(labels, Iterable):
        raise TypeError(f"bins: expected an iterable of nodes, got {_kind(labels)}")
    bins = list(labels)
    if not bins:
        raise ValueError("bins: no nodes; expected at least one")
    seen = set()
    for label in bins:
        check_node("bins", label, index)
        if label in seen:
            raise ValueError(f"bins: duplicate node {quoted(label)}; each node may appear once")
        seen.add(label)
    return np.array([index[label] for label in bins], np.intp)


def check_node(name: str, label: object, index: Mapping[Any, int]) -> None:
    try:
        known = label in index
    except TypeError:  # not hashable, or a comparison without a truth value
        known = False
    if not known:
        raise ValueError(
            f"{name}: {quoted(label)} is not a node; expected one of the tree's {len(index)} "
            f"nodes, such as {quoted(next(iter(index)))}"
        )


def check_paths(paths: object) -> list[tuple[Hashable, ...]]:
    """The paths as tuples, all different."""
    if not isinstance(paths, Iterable):
        raise TypeError(f"paths: expected an iterable of paths, got {_kind(paths)}")
    different: dict[tuple[Hashable, ...], None] = {}  # a set that keeps its order
    for number, names in enumerate(paths):
        if isinstance(names, str | bytes) or not isinstance(names, Iterable):
            raise TypeError(
                f"paths: path {number} is {_kind(names)}; "
                "expected a sequence of names such as ('animal', 'cat')"
            )
        path = tuple(names)
        _check_names("paths", path, f"path {number}")
        if path in different:
            raise ValueError(
                f"paths: duplicate path {quoted(path)} at index {number}; each path may appear once"
            )
        different[path] = None
    if not different:
        raise ValueError("paths: no paths; expected at least one")
    return list(different)


def check_prefix_lengths(weights: Any, prefixes: Iterable[tuple[Hashable, ...]]) -> list[Any]:
    """The length of the edge above every prefix, from a mapping or a pandas Series."""
    if not hasattr(weights, "items"):
        raise TypeError(
            f"weights: expected a mapping from prefixes to lengths, got {_kind(weights)}"
        )
    lengths = dict(weights.items())
    for number, key in enumerate(lengths):
        _check_names("weights", key if isinstance(key, tuple) else (key,), f"key {number}")
    for prefix in prefixes:
        if prefix not in lengths:
            raise ValueError(
                f"weights: no length for {quoted(prefix)}; expected one for every prefix of a path"
            )
    return [lengths[prefix] for prefix in prefixes]


def _check_names(argument: str, path: tuple[object, ...], place: str) -> None:
    for i, name in enumerate(path):
        hint = "leave missing names out or replace them by strings"
        check_label(argument, name, f"name at index {i} of {place}", hint)


def check_labels(labels: Iterable[object]) -> None:
    """Nodes of a graph."""
    for i, label in enumerate(labels):
        check_label("graph", label, f"label at index {i} of the nodes", "relabel this node")


def check_label(argument: str, label: object, place: str, hint: str) -> None:
    """Labels are looked up by their hash and by ==."""
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


def no_edge_has(attribute: object, others: Iterable[object]) -> NoReturn:
    listed = ", ".join(map(quoted, others))
    raise ValueError(
        f"weight: no edge has the attribute {quoted(attribute)}; expected an attribute that all "
        f"edges have; {f'the edges have {listed}' if listed else 'the edges have no attributes'}"
    )


def edge_without(attribute: object, above: object, node: object) -> NoReturn:
    raise ValueError(
        f"weight: no attribute {quoted(attribute)} on the edge between {quoted(above)} and "
        f"{quoted(node)}; expected it on every edge; add it to this one"
    )


def check_linkage(linkage: Any) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The parts of every cluster, and the height of every node, no part above its cluster."""
    from scipy.cluster.hierarchy import is_valid_linkage  # slow to import, seldom needed

    given = np.asarray(linkage)
    if np.ma.is_masked(linkage):
        count = int(np.ma.getmaskarray(linkage).sum())
        raise ValueError(f"Z: {count} of {given.size} entries masked; expected numbers only")
    try:
        matrix = given.astype(np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"Z: expected a linkage matrix of numbers, got {_kind(linkage)}") from None
    is_valid_linkage(matrix, throw=True, name="Z")
    n_observations = matrix.shape[0] + 1
    parts = matrix[:, :2].astype(np.intp)
    height = [0.0] * n_observations + matrix[:, 2].tolist()
    precision = np.finfo(given.dtype if given.dtype.kind == "f" else np.float64).eps
    lowest = 1.0 - math.sqrt(max(precision, np.finfo(np.float64).eps))
    for cluster, pair in enumerate(parts.tolist(), n_observations):
        row = cluster - n_observations
        if max(pair) >= cluster:  # scipy lets this pass in a matrix of one row
            raise ValueError(
                f"Z: row {row} merges cluster {max(pair)}, which does not exist yet; "
                f"expected numbers below {cluster}"
            )
        if not 0.0 <= height[cluster] < math.inf:
            raise ValueError(
                f"Z: row {row} has height {height[cluster]}; expected a finite number >= 0"
            )
        part = max(pair, key=height.__getitem__)
        if height[cluster] < lowest * height[part]:
            raise ValueError(
                f"Z: cluster {cluster} at height {height[cluster]} lies below its part {part} at "
                f"{height[part]}; expected heights that do not decrease; the methods 'centroid' "
                "and 'median' do not guarantee that, use another one"
            )
        height[cluster] = max(height[cluster], height[part])
    return parts, np.array(height)


def not_a_tree(argument: str, why: str) -> NoReturn:
    raise ValueError(f"{argument}: not a tree: {why}")


def on_a_cycle(argument: str, label: object) -> NoReturn:
    not_a_tree(
        argument, f"node {quoted(label)} is on or below a cycle; expected one path to every node"
    )


def two_parents(label: object) -> NoReturn:
    not_a_tree(
        "graph",
        f"node {quoted(label)} has more than one parent; expected edges from parent to child; "
        "graph.reverse() turns them",
    )


def not_connected(label: object, root: object) -> NoReturn:
    not_a_tree(
        "graph",
        f"node {quoted(label)} is not connected to node {quoted(root)}; expected one piece; "
        "connect both below a common root",
    )


def not_the_root(label: object, root: object) -> NoReturn:
    raise ValueError(
        f"root: node {quoted(label)} has a parent; expected {quoted(root)}, the root of the "
        "directed graph, or None"
    )
