"""What all ground spaces have in common."""

import functools
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastemd.flatten import bins_below, frozen
from fastemd.layout import EdgeLayout, by_levels, contracted_layout, full_layout

if TYPE_CHECKING:
    import networkx as nx


class GroundSpace:
    """A rooted tree with lengths on its edges and bins on its nodes; immutable.

    Build one with `Chain` or with one of `Tree`'s constructors.

    Attributes
    ----------
    n_bins : int
        Number of bins N, the length of a histogram.
    n_nodes : int
        Number of nodes; there are ``n_nodes - 1`` edges.
    parent : ndarray of intp, (n_nodes,)
        The node above every node, in post-order: ``parent[i] > i``, root last with -1.
    weight : ndarray of float64, (n_nodes,)
        Length of the edge above every node; 0 for the root.
    bin_node : ndarray of intp, (n_bins,)
        The node on which every bin sits.
    nodes : sequence of Hashable
        The user's label of every node, in the order of `parent`.
    """

    n_bins: int
    n_nodes: int
    parent: NDArray[np.intp]
    weight: NDArray[np.float64]
    bin_node: NDArray[np.intp]
    nodes: Sequence[Hashable]

    def __init__(
        self, parent: ArrayLike, weight: ArrayLike, bin_node: ArrayLike, nodes: Sequence[Hashable]
    ) -> None:
        fields = {"parent": frozen(parent), "weight": frozen(weight), "bin_node": frozen(bin_node)}
        self.__dict__.update(fields, nodes=nodes)
        self.__dict__.update(n_bins=self.bin_node.size, n_nodes=self.parent.size)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a {type(self).__name__} is immutable; build a new one")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a {type(self).__name__} is immutable; build a new one")

    def __reduce__(self) -> tuple[Any, ...]:
        return restore, (type(self), self.parent, self.weight, self.bin_node, self.nodes)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(n_bins={self.n_bins}, n_nodes={self.n_nodes}, "
            f"depth={self.depth}, diameter={self.diameter:g})"
        )

    @functools.cached_property
    def bins(self) -> tuple[Hashable, ...]:
        """The user's label of every bin, in column order."""
        return tuple(self.nodes[node] for node in self.bin_node)

    @functools.cached_property
    def depth(self) -> int:
        """Largest number of edges between the root and a node."""
        depth = [0] * self.n_nodes
        for node in range(self.n_nodes - 2, -1, -1):
            depth[node] = depth[self.parent[node]] + 1
        return max(depth)

    @functools.cached_property
    def diameter(self) -> float:
        """Largest ground distance between two bins."""
        reach = [-np.inf] * self.n_nodes  # to the farthest bin below
        for node in self.bin_node.tolist():
            reach[node] = 0.0
        widest = 0.0
        weight = self.weight.tolist()
        for node, above in enumerate(self.parent[:-1].tolist()):
            through = reach[node] + weight[node]
            widest = max(widest, reach[above] + through)
            reach[above] = max(reach[above], through)
        return widest

    def cost_matrix(self) -> NDArray[np.float64]:
        """Path lengths between all bins.

        Returns
        -------
        ndarray of float64, (n_bins, n_bins)
            The ground distance M of the paper's eq. 1, in the unit of the edge lengths.

        Examples
        --------
        >>> import fastemd
        >>> fastemd.Chain(3).cost_matrix()
        array([[0., 1., 2.],
               [1., 0., 1.],
               [2., 1., 0.]])
        """
        # In the order of their nodes the bins of a subtree are neighbours, [start, end). A node
        # takes in its subtrees one by one: `climb` is how far their bins are below it.
        order = np.argsort(self.bin_node, kind="stable")
        ends = np.searchsorted(self.bin_node[order], np.arange(self.n_nodes), side="right")
        starts = ends - bins_below(self.parent, self.bin_node)
        cost = np.zeros((self.n_bins, self.n_bins))
        climb = np.zeros(self.n_bins)

        def meet(left: slice, right: slice) -> None:
            cost[left, right] = climb[left, None] + climb[right]
            cost[right, left] = cost[left, right].T

        own = np.bincount(self.bin_node, minlength=self.n_nodes)
        for node, above in enumerate(self.parent.tolist()):
            start, end = starts[node], ends[node]
            meet(slice(start, end - own[node]), slice(end - own[node], end))
            if above >= 0:
                climb[start:end] += self.weight[node]
                meet(slice(starts[above], start), slice(start, end))
        back = np.argsort(order)
        return cost[np.ix_(back, back)]

    def to_networkx(self) -> "nx.DiGraph[Hashable]":
        """The tree as a graph whose edges run from parent to child.

        Returns
        -------
        networkx.DiGraph
            Nodes carry the user's labels, edges their ``weight``, nodes with a bin its column
            as ``bin``.
        """
        import networkx as nx  # takes half as long to import as all of fastemd

        graph: nx.DiGraph[Hashable] = nx.DiGraph()
        graph.add_nodes_from(self.nodes)
        for node, above in enumerate(self.parent[:-1].tolist()):
            weight = float(self.weight[node])
            graph.add_edge(self.nodes[above], self.nodes[node], weight=weight)
        for column, label in enumerate(self.bins):
            graph.nodes[label]["bin"] = column
        return graph

    def layout(self, kind: str) -> EdgeLayout:
        """Return the edges as the kernels read them.

        Parameters
        ----------
        kind : {"levels", "subtrees", "full"}
            Of the contracted tree, level by level or every subtree contiguous; or of all nodes.
        """
        layouts: dict[str, EdgeLayout] = self.__dict__.setdefault("_layouts", {})
        if kind not in layouts:
            layouts[kind] = self._new_layout(kind)
        return layouts[kind]

    def _new_layout(self, kind: str) -> EdgeLayout:
        if kind == "levels":
            return by_levels(self.layout("subtrees"))
        make = full_layout if kind == "full" else contracted_layout
        return make(self.parent, self.weight, self.bin_node)


Space = TypeVar("Space", bound=GroundSpace)


def restore(cls: type[Space], *fields: Any) -> Space:
    """A space of class `cls` from the arguments of `GroundSpace`, already checked."""
    space = cls.__new__(cls)
    GroundSpace.__init__(space, *fields)
    return space
