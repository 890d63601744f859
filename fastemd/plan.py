"""Post-order arrays -> the plan that the kernels read.

A plan describes the tree as the two sweeps walk it. Bins hang, as leaf edges, below inner nodes; a
bin that sits on an inner node hangs there on an edge of length 0. Inner nodes are numbered so that
every parent comes after its children and the children of one parent lie next to each other, hence
``child_start[i]:child_start[i + 1]`` are the children of inner node ``i`` and
``column[bin_start[i]:bin_start[i + 1]]`` its bins. A chain has no inner nodes at all.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fastemd.flatten import Floats, Index, bins_below, children_of, frozen


class Plan(NamedTuple):
    """What a kernel knows of a ground space: N bins, I inner nodes, the root last."""

    column: Index  # (N,) bins grouped by the inner node they hang on
    bin_start: Index  # (I + 1,)
    child_start: Index  # (I + 1,)
    bin_parent: Index  # (N,) the inner node of every bin
    parent: Index  # (I,) the inner node above, -1 for the root
    bin_weight: Floats  # (N,) length of a bin's own edge; on a chain of the gap after it
    bin_share: Floats  # (N,) fraction of the bins below that edge
    weight: Floats  # (I,) length of the edge above an inner node, 0 for the root
    share: Floats  # (I,) fraction of the bins below it
    slot: Index  # (n_nodes - 1,) inner node of every given node but the root, -1 if contracted


def chain_plan(gaps: Floats) -> Plan:
    """The plan of a chain: the flow after bin ``k`` crosses gap ``k``; none follows the last."""
    n_bins = gaps.size + 1
    none = np.empty(0, np.intp)
    return _frozen(
        column=none,
        bin_start=none,
        child_start=none,
        bin_parent=none,
        parent=none,
        bin_weight=np.append(gaps, 0.0),
        bin_share=np.arange(1, n_bins + 1) / n_bins,
        weight=np.empty(0),
        share=np.empty(0),
        slot=none,
    )


def full_plan(parent: Index, weight: Floats, bin_node: Index) -> Plan:
    """The plan in which every node of the given tree keeps its edge (post-order arrays)."""
    nodes = np.arange(parent.size)
    return _plan(
        parent, weight, bins_below(parent, bin_node), nodes, bin_node, np.zeros(bin_node.size)
    )


def compact_plan(parent: Index, weight: Floats, bin_node: Index) -> Plan:
    """The smallest plan with the same EMD, gradients and Hessians (post-order arrays).

    Exact steps: a subtree without bins carries no flow and goes; an edge of length 0 costs nothing
    and its ends become one node; a node with one child and no bin passes its flow on, so its edge
    and its child's become one of their summed length; a leaf with one bin is that bin's own edge.
    """
    n_nodes, root = parent.size, parent.size - 1
    below = bins_below(parent, bin_node)
    above, length = parent.tolist(), weight.tolist()
    merged = list(range(n_nodes))  # the node that stands for each node
    for node in range(n_nodes - 2, -1, -1):
        above[node] = merged[above[node]]
        if length[node] == 0.0:
            merged[node] = above[node]
    kept = (below > 0) & (np.array(merged) == np.arange(n_nodes))
    kept[root] = True
    bin_at = np.array(merged, np.intp)[bin_node]
    bins_here = np.bincount(bin_at, minlength=n_nodes)
    inner_edges = np.flatnonzero(kept[:-1])
    n_children = np.bincount(np.array(above)[inner_edges], minlength=n_nodes)

    unary = kept & (bins_here == 0) & (n_children == 1)
    unary[root] = False
    passes_on = unary.tolist()
    for node in inner_edges[::-1].tolist():
        if passes_on[above[node]]:
            length[node] += length[above[node]]
            above[node] = above[above[node]]
    parent, weight = np.array(above, np.intp), np.array(length)
    leaf = kept & (n_children == 0) & (bins_here == 1)
    leaf[root] = False
    on_leaf = leaf[bin_at]
    bin_weight = np.where(on_leaf, weight[bin_at], 0.0)
    bin_at = np.where(on_leaf, parent[bin_at], bin_at)
    return _plan(parent, weight, below, np.flatnonzero(kept & ~unary & ~leaf), bin_at, bin_weight)


def raised(plan: Plan, exponent: float) -> Plan:
    """The same plan with all lengths raised to a power."""
    bin_weight, weight = frozen(plan.bin_weight**exponent), frozen(plan.weight**exponent)
    return plan._replace(bin_weight=bin_weight, weight=weight)


def _plan(
    parent: Index, weight: Floats, below: Index, inner: Index, bin_at: Index, bin_weight: Floats
) -> Plan:
    """Number the nodes `inner` (the root last) as the kernels want them."""
    n_bins, n_inner = bin_at.size, inner.size
    number = np.full(parent.size + 1, -1, np.intp)  # the last entry serves parent -1
    number[inner] = np.arange(n_inner)
    children = children_of(number[parent[inner]])
    order = [n_inner - 1]
    for node in order:  # breadth first: the list grows while it is walked
        order.extend(children[node])
    order.reverse()
    inner = inner[order]
    number[inner] = np.arange(n_inner)
    bin_parent, node_parent = number[bin_at], number[parent[inner]]
    weight = weight[inner]
    weight[-1] = 0.0
    return _frozen(
        column=np.argsort(bin_parent, kind="stable"),
        bin_start=_starts(bin_parent, n_inner),
        child_start=_starts(node_parent[:-1], n_inner),
        bin_parent=bin_parent,
        parent=node_parent,
        bin_weight=bin_weight,
        bin_share=np.full(n_bins, 1.0 / n_bins),
        weight=weight,
        share=below[inner] / n_bins,
        slot=number[: parent.size - 1],
    )


def _starts(group: Index, n_groups: int) -> Index:
    return np.concatenate(([0], np.cumsum(np.bincount(group, minlength=n_groups))))


def _frozen(**fields: ArrayLike) -> Plan:
    return Plan(**{name: frozen(values) for name, values in fields.items()})
