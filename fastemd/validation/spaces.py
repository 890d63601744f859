"""Bad ground spaces."""

import math
import numbers
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from fastemd.validation.arguments import _kind

LONGEST = 1e150  # of all edges together: no result overflows as long as masses are not huge, too


def not_a_space(space: object) -> NoReturn:
    raise TypeError(f"space: expected a fastemd.Chain or fastemd.Tree, got {_kind(space)}")


def space_is_gone(number: int) -> NoReturn:
    raise ValueError(
        f"space: the ground space of this compiled program (number {number}) does not exist "
        "any more, or not in this process; keep a reference to it"
    )


def check_lengths(
    name: str, values: object, owners: Sequence[object], root: int | None = None
) -> NDArray[np.float64]:
    """Edge lengths as float64: one per owner, finite, >= 0; the root has none and gets 0."""
    if isinstance(values, np.ma.MaskedArray):
        raise TypeError(f"{name}: masked arrays are not supported")
    given = np.array(values, object)
    if given.shape != (len(owners),):
        raise ValueError(f"{name}: expected shape ({len(owners)},), got {given.shape}")
    if root is not None:
        given[root] = 0.0
    for owner, value in zip(owners, given, strict=True):
        if not isinstance(value, numbers.Real):
            raise TypeError(f"{name}: {owner!r} has length {value!r:.60}, expected a number")
    lengths = given.astype(np.float64)
    for i in np.flatnonzero(~(np.isfinite(lengths) & (lengths >= 0.0))).tolist():
        raise ValueError(
            f"{name}: {owners[i]!r} has length {lengths[i]}; lengths must be finite and >= 0"
        )
    if lengths.max(initial=0.0) > LONGEST or math.fsum(lengths) > LONGEST:
        raise ValueError(f"{name}: the lengths sum to more than {LONGEST:g}; use another unit")
    return lengths


def check_parents(values: object) -> NDArray[np.intp]:
    """Parent pointers with one root."""
    parents = np.asarray(values)
    if parents.dtype.kind not in "iu" or parents.ndim != 1:
        raise TypeError(f"parents: expected a list of integers, got {_kind(values)}")
    if parents.size == 0:
        not_a_tree("there are no nodes")
    for node in np.flatnonzero((parents < -1) | (parents >= parents.size)):
        not_a_tree(f"node {node} has parent {parents[node]}, which does not exist")
    roots = np.flatnonzero(parents == -1)
    if roots.size == 0:
        not_a_tree("no node has parent -1, which marks the root; some lie on a cycle")
    if roots.size > 1:
        not_a_tree(f"nodes {roots[0]} and {roots[1]} are both roots (parent -1)")
    return parents.astype(np.intp)


def check_bins(labels: object, index: Mapping[Hashable, int]) -> NDArray[np.intp]:
    """The node index of every bin."""
    if not isinstance(labels, Iterable):
        raise TypeError(f"bins: expected nodes, got {_kind(labels)}")
    bins = list(labels)
    if not bins:
        raise ValueError("bins: a ground space needs at least one bin")
    seen = set()
    for label in bins:
        if not isinstance(label, Hashable) or label not in index:
            raise ValueError(f"bins: {label!r} is not a node of the tree")
        if label in seen:
            raise ValueError(f"bins: {label!r} stands twice")
        seen.add(label)
    return np.array([index[label] for label in bins], np.intp)


def not_a_tree(why: str) -> NoReturn:
    raise ValueError(f"not a tree: {why}")
