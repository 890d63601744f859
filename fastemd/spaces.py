"""Chain and Tree: the ground spaces a user builds."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from fastemd import flatten, validation
from fastemd.flatten import Index
from fastemd.ground import GroundSpace, restore
from fastemd.layout import EdgeLayout, chain_layout

if TYPE_CHECKING:
    import networkx as nx


class Chain(GroundSpace):
    """Bins in a row: ordered classes, time, the bins of a one-dimensional histogram.

    Parameters
    ----------
    n_bins : int
        Number of bins, at least 1.
    gaps : array_like of float, (n_bins - 1,), optional
        Distance between each bin and the next, finite and >= 0; 1 by default.

    Raises
    ------
    ValueError, TypeError
        If `n_bins` is not a positive integer or the gaps are not that many lengths >= 0.

    Examples
    --------
    >>> import fastemd
    >>> fastemd.Chain(4, gaps=[1.0, 2.0, 0.5])
    Chain(n_bins=4, n_nodes=4, depth=3, diameter=3.5)
    """

    def __init__(self, n_bins: int, gaps: ArrayLike | None = None) -> None:
        n_bins = validation.check_count("n_bins", n_bins)
        if gaps is None:
            gaps = np.ones(n_bins - 1)
        lengths = validation.check_lengths("gaps", gaps, range(n_bins - 1), "after bin")
        parent = np.append(np.arange(1, n_bins), -1)
        super().__init__(parent, np.append(lengths, 0.0), np.arange(n_bins), range(n_bins))

    def _new_layout(self, kind: str) -> EdgeLayout:
        """The same for all kinds: there are no inner nodes, and every gap has its flow."""
        return self.layout("levels") if kind != "levels" else chain_layout(self.weight[:-1])


class Tree(GroundSpace):
    """A tree with bins on its leaves or on any of its nodes: hierarchical classes, taxonomies.

    Built by `from_networkx`, `from_parents`, `from_paths` or `from_linkage`.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        raise TypeError(
            "build a Tree with Tree.from_networkx, Tree.from_parents, Tree.from_paths or "
            "Tree.from_linkage"
        )

    @classmethod
    def from_networkx(
        cls,
        graph: "nx.Graph[Any]",
        *,
        root: Hashable | None = None,
        bins: Iterable[Hashable] | None = None,
        weight: str | None = "weight",
    ) -> Self:
        """Build a tree from a networkx graph.

        Parameters
        ----------
        graph : networkx.DiGraph or networkx.Graph
            Edges of a DiGraph run from parent to child. An undirected tree is hung up at `root`.
        root : node, optional
            For an undirected tree, by default its centre, which gives the fewest levels. The
            choice changes the signs of some flows and no distance.
        bins : iterable of nodes, optional
            The nodes that carry mass, in column order; inner nodes may. By default the leaves,
            in the graph's own node order: nodes without children, or in an undirected tree with
            one neighbour, be it the root or not.
        weight : str or None
            The edge attribute that holds the length, a finite number >= 0. Every edge has it. If
            no edge has the default ``"weight"``, or for None, every edge has length 1.

        Returns
        -------
        Tree

        Raises
        ------
        ValueError
            If the graph is no tree, a length is missing, negative or not finite, no edge has an
            attribute `weight` other than the default, a bin is not a node or appears twice, or a
            node is or contains NaN, NaT or pandas' NA; the message names the node.
        TypeError
            If `graph` is not a networkx graph.

        Examples
        --------
        >>> import fastemd, networkx as nx
        >>> graph = nx.DiGraph([("all", "animal"), ("animal", "cat"), ("animal", "dog")])
        >>> tree = fastemd.Tree.from_networkx(graph)
        >>> tree.bins
        ('cat', 'dog')
        """
        import networkx as nx  # who calls this has imported it

        if not isinstance(graph, nx.Graph) or graph.is_multigraph():
            raise TypeError(
                f"graph: expected a networkx Graph or DiGraph, got {type(graph).__name__}; "
                "a multigraph becomes one by nx.Graph(graph) or nx.DiGraph(graph)"
            )
        nodes = list(graph)
        if not nodes:
            validation.not_a_tree("graph", "there are no nodes; expected at least one")
        validation.check_labels(nodes)
        index = {label: i for i, label in enumerate(nodes)}
        if root is not None:
            validation.check_node("root", root, index)
        directed = graph.is_directed()
        orient = flatten.parents_of_digraph if directed else flatten.parents_of_graph
        parent = orient(graph, index, root)
        lengths = flatten.edge_attribute(graph, nodes, parent, weight)
        if bins is None:
            degree = graph.out_degree if directed else graph.degree
            bins = [node for node in nodes if degree[node] <= (0 if directed else 1)]
        return cls._build("graph", parent, ("weight", lengths), nodes, bins)

    @classmethod
    def from_parents(
        cls,
        parents: ArrayLike,
        weights: ArrayLike | None = None,
        *,
        bins: Iterable[int] | None = None,
    ) -> Self:
        """Build a tree from parent pointers.

        Parameters
        ----------
        parents : array_like of int, (n_nodes,)
            The node above every node, in any order; -1 for the root.
        weights : array_like of float, (n_nodes,), optional
            Length of the edge above every node, finite and >= 0; the root's is not used. 1 by
            default.
        bins : iterable of int, optional
            The nodes that carry mass, in column order; by default the leaves in index order.

        Returns
        -------
        Tree

        Raises
        ------
        ValueError
            If there is not exactly one root, a parent does not exist, there is a cycle, or a
            length or a bin is bad; the message names the node.

        Examples
        --------
        >>> import fastemd
        >>> tree = fastemd.Tree.from_parents([-1, 0, 0, 1, 1], bins=[3, 4, 2])
        >>> tree.cost_matrix()
        array([[0., 2., 3.],
               [2., 0., 3.],
               [3., 3., 0.]])
        """
        parent = validation.check_parents(parents)
        if weights is None:
            weights = np.ones(parent.size)
        if bins is None:
            n_children = np.bincount(parent[parent >= 0], minlength=parent.size)
            bins = np.flatnonzero(n_children == 0).tolist()
        return cls._build("parents", parent, ("weights", weights), range(parent.size), bins)

    @classmethod
    def from_paths(
        cls,
        paths: Iterable[Sequence[Hashable]],
        *,
        weights: Mapping[tuple[Hashable, ...], float] | None = None,
    ) -> Self:
        """Build a tree from one path of names per bin, from the top of the hierarchy down.

        Parameters
        ----------
        paths : iterable of sequences of names
            ``("animal", "cat")`` puts a bin on node cat below animal below a common root. A path
            that another one continues is a bin on an inner node. Names are hashable and equal to
            themselves: None is a name, NaN is not.
        weights : mapping of tuple to float, optional
            Length of the edge above every prefix: ``{("animal",): 2.0, ("animal", "cat"): 1.0}``;
            1 by default.

        Returns
        -------
        Tree
            Its node labels are the prefixes, as tuples; the root is ``()``.

        Raises
        ------
        ValueError, TypeError
            If a path appears twice, is a plain string, or has no length in `weights`, or if a name
            is not hashable or is or contains NaN, NaT or pandas' NA; the message gives the index
            of the path.

        Examples
        --------
        >>> import fastemd
        >>> tree = fastemd.Tree.from_paths([("animal", "cat"), ("animal", "dog"), ("car",)])
        >>> tree.cost_matrix()
        array([[0., 2., 3.],
               [2., 0., 3.],
               [3., 3., 0.]])
        """
        nodes, parent, lengths, bins = flatten.tree_of_paths(paths, weights)
        return cls._build("paths", parent, ("weights", lengths), nodes, bins)

    @classmethod
    def from_linkage(cls, Z: ArrayLike) -> Self:  # noqa: N803  # scipy's name
        """Build a tree from a hierarchical clustering; every observation is a bin.

        Parameters
        ----------
        Z : array_like of float, (N - 1, 4)
            The matrix of `scipy.cluster.hierarchy.linkage`.

        Returns
        -------
        Tree
            The path between two observations is as long as their cophenetic distance. Nodes are
            numbered as in scipy: observations first, then clusters.

        Raises
        ------
        ValueError, TypeError
            If `Z` is no valid linkage matrix, or a cluster lies below one of its parts by more
            than rounding.

        Notes
        -----
        Rounding may put a cluster slightly below one of its parts, for example in Ward linkages
        of ``fastcluster.linkage_vector``. A cluster whose height is smaller by at most the square
        root of the precision of `Z`, relative (1.5e-8 in float64, 3.5e-4 in float32), is raised to
        its highest part: the length of that edge is 0.

        Examples
        --------
        >>> import fastemd
        >>> from scipy.cluster.hierarchy import linkage
        >>> tree = fastemd.Tree.from_linkage(linkage([[0.0], [1.0], [5.0]], "single"))
        >>> tree.cost_matrix()
        array([[0., 1., 4.],
               [1., 0., 4.],
               [4., 4., 0.]])
        """
        parent, lengths = flatten.tree_of_linkage(Z)
        bins = range((parent.size + 1) // 2)
        return cls._build("Z", parent, ("Z", lengths), range(parent.size), bins)

    @classmethod
    def _build(
        cls,
        argument: str,
        parent: Index,
        lengths: tuple[str, object],
        labels: Sequence[Hashable],
        bins: object,
    ) -> Self:
        """Check the tree, its lengths (with the argument's name) and bins; put it in post-order.

        `argument` is what the user described the tree by.
        """
        order = flatten.tree_order(parent, labels, argument)
        weight = validation.check_lengths(*lengths, labels, "above node", root=int(order[-1]))
        number = np.empty(parent.size, np.intp)
        number[order] = np.arange(order.size)
        index = {label: i for i, label in enumerate(labels)}
        bin_node = number[validation.check_bins(bins, index)]
        above = np.append(number[parent[order[:-1]]], -1)
        return restore(
            cls, above, weight[order], bin_node, tuple(labels[i] for i in order.tolist())
        )
