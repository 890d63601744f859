"""Ground spaces: rooted trees with lengths on their edges and bins on their nodes."""

import copy
import functools
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastemd import backends, phylogenies, tree_input, validation, views
from fastemd.layout import EdgeLayout, by_levels, chain_layout, contracted_layout, full_layout
from fastemd.tree_input import bins_below, freeze

if TYPE_CHECKING:
    import os
    from typing import TextIO

    import networkx as nx


class GroundSpace:
    """A rooted tree with lengths on its edges and bins on its nodes; immutable.

    Build one with `Chain` or with one of `Tree`'s constructors.
    """

    n_bins: int
    """Number of bins N, the length of a histogram."""
    n_nodes: int
    """Number of nodes; there are ``n_nodes - 1`` edges."""
    parent: NDArray[np.intp]
    """Node above every node, in post-order: ``parent[i] > i``, root last with -1.

    ndarray of intp, (n_nodes,)
    """
    weight: NDArray[np.float64]
    """Length of the edge above every node; 0 for the root.

    ndarray of float64, (n_nodes,)
    """
    bin_node: NDArray[np.intp]
    """Node on which every bin sits.

    ndarray of intp, (n_bins,)
    """
    nodes: Sequence[Hashable]
    """The user's label of every node, in the order of `parent`.

    sequence of Hashable, of length n_nodes
    """

    def __init__(
        self, parent: ArrayLike, length: ArrayLike, bin_node: ArrayLike, nodes: Sequence[Hashable]
    ) -> None:
        fields = {"parent": freeze(parent), "weight": freeze(length), "bin_node": freeze(bin_node)}
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
    def heights(self) -> NDArray[np.intp]:
        """Number of edges between every node and the farthest leaf below it.

        ndarray of intp, (n_nodes,)
        """
        heights = [0] * self.n_nodes
        for node, parent in enumerate(self.parent[:-1].tolist()):
            heights[parent] = max(heights[parent], heights[node] + 1)
        return freeze(heights)

    @functools.cached_property
    def diameter(self) -> float:
        """Largest ground distance between two bins."""
        radius = [-np.inf] * self.n_nodes  # distance to the farthest bin at or below a node
        for node in self.bin_node.tolist():
            radius[node] = 0.0
        diameter = 0.0
        for node, parent in enumerate(self.parent[:-1].tolist()):
            distance = radius[node] + float(self.weight[node])
            diameter = max(diameter, radius[parent] + distance)
            radius[parent] = max(radius[parent], distance)
        return diameter

    @functools.cached_property
    def mean_distance(self) -> float:
        """Mean ground distance between two different bins, over all pairs of them.

        Raises
        ------
        ValueError
            If there is one bin only.

        Notes
        -----
        An edge with m of the n bins below it is on the paths of m (n - m) pairs. The time is
        therefore linear in the number of nodes, without the matrix of the distances.

        Examples
        --------
        >>> import fastemd
        >>> fastemd.Chain(5).mean_distance
        2.0
        """
        if self.n_bins == 1:
            validation.no_mean_distance()
        n_below = bins_below(self.parent, self.bin_node).astype(np.float64)
        n_pairs = n_below * (self.n_bins - n_below)  # exact, and no overflow of 32-bit integers
        return math.fsum(self.weight * n_pairs) / math.comb(self.n_bins, 2)

    def scaled(self, *, mean_distance: float = 1.0) -> Self:
        """Return the same space with all lengths multiplied by one factor.

        Parameters
        ----------
        mean_distance : float
            The `mean_distance` of the new space, finite and > 0.

        Returns
        -------
        Chain or Tree
            A new space of the same class, with the same nodes and bins in the same order. The
            `bin_edges` of a chain are also the same: they are in the unit of its values.

        Raises
        ------
        ValueError
            If `mean_distance` is not finite and > 0, the space has one bin only or all its bins
            are at distance 0, or the new lengths sum to more than 1e150 or are too small for
            float64.
        TypeError
            If `mean_distance` is not a number.

        Notes
        -----
        EMD^rho is linear in the lengths for every rho. A factor of the lengths is therefore a
        factor of EMD^rho, its derivatives and the EMD^rho part of a loss: ``mean_distance=w`` is
        `w` times the loss on the space with mean distance 1. With `root=True` the factor is
        ``w ** (1 / rho)``.

        Examples
        --------
        Cross entropy plus three times the EMD, the same share on every tree:

        >>> import fastemd
        >>> tree = fastemd.Tree.from_paths([("animal", "cat"), ("animal", "dog"), ("car",)])
        >>> space = tree.scaled(mean_distance=3)
        >>> space
        Tree(n_bins=3, n_nodes=5, depth=2, diameter=3.375)
        >>> loss, grad = fastemd.emd_loss([[0.5, 2.0, 0.1]], [0], space, rho=1, cross_entropy=1)
        >>> loss.round(4)
        np.float64(3.8236)
        """
        lengths = tree_input.scale_lengths(self.weight, self.mean_distance, mean_distance)
        space = copy.copy(self)  # without cached attributes
        space.__dict__["weight"] = freeze(lengths)
        return space

    def cost_matrix(self) -> NDArray[np.float64]:
        """Compute the path lengths between all bins.

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
        # Sorted by their nodes, the bins of a subtree are contiguous, [start, end). Subtrees are
        # joined one by one; `distance` is from every bin to the root of its subtree so far.
        order = np.argsort(self.bin_node, kind="stable")
        ends = np.searchsorted(self.bin_node[order], np.arange(self.n_nodes), side="right")
        starts = ends - bins_below(self.parent, self.bin_node)
        cost = np.zeros((self.n_bins, self.n_bins))
        distance = np.zeros(self.n_bins)

        def set_costs(left: slice, right: slice) -> None:
            cost[left, right] = distance[left, None] + distance[right]
            cost[right, left] = cost[left, right].T

        n_own_bins = np.bincount(self.bin_node, minlength=self.n_nodes)
        for node, parent in enumerate(self.parent.tolist()):
            start, end = starts[node], ends[node]
            set_costs(slice(start, end - n_own_bins[node]), slice(end - n_own_bins[node], end))
            if parent >= 0:
                distance[start:end] += self.weight[node]
                set_costs(slice(starts[parent], start), slice(start, end))
        columns = np.argsort(order)
        return cost[np.ix_(columns, columns)]

    def to_networkx(self) -> "nx.DiGraph[Hashable]":
        """Return the tree as a graph whose edges run from parent to child.

        Returns
        -------
        networkx.DiGraph
            Nodes carry the user's labels, edges their ``weight``, nodes with a bin its column
            as ``bin``.
        """
        import networkx as nx  # takes half as long to import as all of fastemd

        graph: nx.DiGraph[Hashable] = nx.DiGraph()
        graph.add_nodes_from(self.nodes)
        for node, parent in enumerate(self.parent[:-1].tolist()):
            length = float(self.weight[node])
            graph.add_edge(self.nodes[parent], self.nodes[node], weight=length)
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
    """Return a space of class `cls` from validated arguments of `GroundSpace`."""
    space = cls.__new__(cls)
    GroundSpace.__init__(space, *fields)
    return space


class Chain(GroundSpace):
    """Bins in a row: ordered classes, time, the bins of a one-dimensional histogram.

    It is a tree without branches. The arrays `parent` and `weight` describe its `n_nodes` nodes,
    `bin_node` its `n_bins` bins, and `nodes` has the labels of the nodes. `bin_edges` has the edges
    of the bins.

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

    bin_edges: NDArray[np.float64] | None = None
    """Where the bins start and end; None unless built from positions or edges.

    ndarray of float64, (n_bins + 1,), or None
    """

    def __init__(self, n_bins: int, gaps: ArrayLike | None = None) -> None:
        n_bins = validation.check_count("n_bins", n_bins)
        if gaps is None:
            gaps = np.ones(n_bins - 1)
        lengths = tree_input.check_lengths("gaps", gaps, range(n_bins - 1), "after bin")
        parent = np.append(np.arange(1, n_bins), -1)
        super().__init__(parent, np.append(lengths, 0.0), np.arange(n_bins), range(n_bins))

    @classmethod
    def from_positions(cls, x: ArrayLike) -> Self:
        """Build a chain from the positions of its bins.

        Parameters
        ----------
        x : array_like of float, (N,)
            Where the bins are, increasing and finite: the values of ordered classes, for example.

        Returns
        -------
        Chain
            Its gaps are the differences of the positions. For `bin_of`, the inner edges of the bins
            are half-way between two of them, and an outer edge is as far from its bin as the other
            edge of this bin; 0.5 for a single bin.

        Raises
        ------
        ValueError, TypeError
            If the positions are not real numbers, finite and increasing; the message names the
            first that is not.

        See Also
        --------
        from_edges : The same for bins of a histogram of real values.

        Examples
        --------
        >>> import fastemd
        >>> ages = fastemd.Chain.from_positions([1.0, 2.0, 5.0, 10.0])
        >>> ages
        Chain(n_bins=4, n_nodes=4, depth=3, diameter=9)
        >>> ages.bin_of([2.2, 8.0])
        array([1, 3])
        """
        positions = validation.check_increasing("x", views.as_array("x", x), 1)
        half_gaps = np.diff(positions) / 2
        if not half_gaps.size:
            half_gaps = np.array([0.5])
        below = np.concatenate([half_gaps[:1], half_gaps])[: positions.size]
        edges = np.append(positions - below, positions[-1] + half_gaps[-1])
        return cls._with_edges(positions, validation.check_increasing("x", edges, 2))

    @classmethod
    def from_edges(cls, edges: ArrayLike) -> Self:
        """Build a chain from the edges between the bins of a histogram of real values.

        Parameters
        ----------
        edges : array_like of float, (N + 1,)
            Where the bins start and end, increasing and finite, as of `numpy.histogram`.

        Returns
        -------
        Chain
            Its gaps are the distances between the midpoints of neighbouring bins.

        Raises
        ------
        ValueError, TypeError
            If the edges are not at least two real numbers, finite and increasing; the message names
            the first that is not.

        Examples
        --------
        >>> import fastemd
        >>> heights = fastemd.Chain.from_edges([0.0, 1.0, 3.0, 7.0])
        >>> heights.weight[:-1]
        array([1.5, 3. ])
        >>> heights.bin_of([0.2, 3.0, 7.0])
        array([0, 2, 2])
        """
        bin_edges = validation.check_increasing("edges", views.as_array("edges", edges), 2)
        return cls._with_edges(bin_edges[:-1] + np.diff(bin_edges) / 2, bin_edges)

    @classmethod
    def _with_edges(cls, positions: NDArray[np.float64], edges: NDArray[np.float64]) -> Self:
        chain = cls.__new__(cls)
        Chain.__init__(chain, positions.size, np.diff(positions))
        chain.__dict__["bin_edges"] = freeze(edges)
        return chain

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore_chain, (super().__reduce__()[1], self.bin_edges)

    def bin_of(self, values: Any, *, clip: bool = False) -> Any:
        """Return the bins of real values, as labels for a loss.

        Parameters
        ----------
        values : array_like of float, (...)
            Bin k starts at ``bin_edges[k]`` and ends before ``bin_edges[k + 1]``; the last bin
            contains its end. The edges are rounded to the type of the values.
        clip : bool
            Whether values beyond the outer edges belong to the first or the last bin.

        Returns
        -------
        array of int64, (...)
            The number of the bin of every value; -100, the ignored label of PyTorch, for NaN. Of
            the same backend as `values`.

        Raises
        ------
        ValueError
            If the chain was not built by `from_positions` or `from_edges`, or a value is beyond the
            outer edges without `clip`; the message gives the value.
        TypeError
            If `values` are not real numbers, or on a CUDA device.

        Examples
        --------
        >>> import fastemd, numpy as np
        >>> chain = fastemd.Chain.from_edges([0.0, 1.0, 2.0])
        >>> chain.bin_of([0.5, np.nan, 9.0], clip=True)
        array([   0, -100,    1])
        """
        if self.bin_edges is None:
            validation.no_bin_edges()
        backend = backends.backend_of({"values": values})
        if isinstance(backend, backends.CudaBackend):
            validation.only_on_cpu("bins of values")
        x = views.as_array("values", values)
        x = x if x.dtype.kind == "f" else x.astype(np.float64)
        edges = self.bin_edges.astype(x.dtype)
        is_outside = (x < edges[0]) | (x > edges[-1])
        if is_outside.any() and not clip:
            validation.beyond_edges(x, is_outside, edges)
        bins = np.searchsorted(edges, x, side="right") - 1
        bins = np.where(np.isnan(x), -100, bins.clip(0, self.n_bins - 1))
        return backend.wrap(bins.astype(np.int64))

    def _new_layout(self, kind: str) -> EdgeLayout:
        # All kinds are the same: there are no inner nodes, and every gap has a flow.
        return self.layout("levels") if kind != "levels" else chain_layout(self.weight[:-1])


def _restore_chain(fields: Any, edges: NDArray[np.float64] | None) -> Chain:
    chain: Chain = restore(*fields)
    if edges is not None:
        chain.__dict__["bin_edges"] = freeze(edges)
    return chain


class Tree(GroundSpace):
    """A tree with bins on its leaves or on any of its nodes: hierarchical classes, taxonomies.

    Build one with `from_networkx`, `from_parents`, `from_paths`, `from_linkage`, `from_newick` or
    `from_skbio`. The arrays `parent` and `weight` describe its `n_nodes` nodes, `bin_node` its
    `n_bins` bins, and `nodes` has the labels of the nodes.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        raise TypeError(
            "build a Tree with Tree.from_networkx, Tree.from_parents, Tree.from_paths, "
            "Tree.from_linkage, Tree.from_newick or Tree.from_skbio"
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
            Edges of a DiGraph run from parent to child. An undirected tree is rooted at `root`.
        root : node, optional
            For an undirected tree, by default its centre, which gives the fewest levels. The
            choice changes the signs of some flows and no distance.
        bins : iterable of nodes, optional
            The nodes that carry mass, in column order; inner nodes may. By default the leaves,
            in the graph's node order: nodes without children or, in an undirected tree, with one
            neighbour, the root included.
        weight : str or None
            The attribute of every edge that holds its length, a finite number >= 0. If no edge has
            the default ``"weight"``, or for None, every edge has length 1.

        Returns
        -------
        Tree

        Raises
        ------
        ValueError
            If the graph is not a tree, a length is missing, negative or not finite, no edge has an
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
        return restore(cls, *tree_input.from_graph(graph, root, bins, weight))

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
            length or a bin is invalid; the message names the node.

        Examples
        --------
        >>> import fastemd
        >>> tree = fastemd.Tree.from_parents([-1, 0, 0, 1, 1], bins=[3, 4, 2])
        >>> tree.cost_matrix()
        array([[0., 2., 3.],
               [2., 0., 3.],
               [3., 3., 0.]])
        """
        return restore(cls, *tree_input.from_parents(parents, weights, bins))

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
        return restore(cls, *tree_input.from_paths(paths, weights))

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
            If `Z` is not a valid linkage matrix, or a cluster lies below one of its parts by more
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
        return restore(cls, *tree_input.from_linkage(Z))

    @classmethod
    def from_newick(
        cls,
        source: "str | os.PathLike[str] | TextIO",
        *,
        bins: Iterable[Hashable] | None = None,
        missing_length: float | None = None,
        negative_length: float | None = None,
    ) -> Self:
        """Build a tree from a phylogeny in Newick format.

        Parameters
        ----------
        source : str, path or text file
            One tree. A string that contains ``(`` or ``;`` is Newick text, any other string is the
            path of a file in UTF-8; so is every `os.PathLike`.
        bins : iterable of labels, optional
            The nodes that carry mass, in column order; inner nodes may. By default the tips, in
            the order of the text.
        missing_length : float, optional
            Length >= 0 of the edges without one. By default they are an error.
        negative_length : float, optional
            Length >= 0 that replaces negative ones. By default they are an error.

        Returns
        -------
        Tree
            The label of a tip is its name. An inner node keeps its name if no other node has it;
            otherwise, and without a name, its label is an integer, its index in `nodes`.

        Raises
        ------
        ValueError
            If the text is not one tree in Newick format, a tip has no name or that of another tip,
            a length is missing, negative or not finite, or a bin is not a node or appears twice;
            the message names the node.
        TypeError
            If `source` is neither text, path nor text file, or a keyword is not a number.
        FileNotFoundError
            If there is no such file.
        ModuleNotFoundError
            If the package newick is missing, which ``pip install 'fastemd[bio]'`` installs.

        See Also
        --------
        to_newick : The inverse.
        from_skbio : The same for a tree of scikit-bio.

        Notes
        -----
        The format is that of [1]_, read with the package newick. Names with blanks or punctuation
        are in single quotes, in which ``''`` is a quote. Underscores are kept; the standard reads
        those of unquoted names as blanks. Comments in brackets are ignored, also ``[&U]``: the tree
        is rooted where the text begins, which changes no EMD. The length of the root is ignored.

        References
        ----------
        .. [1] J. Felsenstein, "The Newick tree format",
           https://phylipweb.github.io/phylip/newicktree.html

        Examples
        --------
        >>> import fastemd
        >>> tree = fastemd.Tree.from_newick("((cat:1,dog:1)pets:2,'wild boar':3);")
        >>> tree.bins
        ('cat', 'dog', 'wild boar')
        >>> tree.cost_matrix()
        array([[0., 2., 6.],
               [2., 0., 6.],
               [6., 6., 0.]])
        """
        fields = phylogenies.from_newick(source, bins, missing_length, negative_length)
        return restore(cls, *fields)

    @classmethod
    def from_skbio(
        cls,
        node: Any,
        *,
        bins: Iterable[Hashable] | None = None,
        missing_length: float | None = None,
        negative_length: float | None = None,
    ) -> Self:
        """Build a tree from a phylogeny of scikit-bio.

        Parameters
        ----------
        node : skbio.TreeNode
            The root of the tree, or of a subtree: only the nodes below it are read.
        bins, missing_length, negative_length
            As for `from_newick`.

        Returns
        -------
        Tree
            Labels are those of `from_newick`.

        Raises
        ------
        ValueError
            If a tip has no name or that of another tip, a length is missing, negative or not
            finite, or a bin is not a node or appears twice; the message names the node.
        TypeError
            If `node` is not a TreeNode, a name is not a string or a length is not a number.

        See Also
        --------
        from_newick : The same for text and files.

        Notes
        -----
        The length of `node` is ignored. scikit-bio is not imported: any object with the attributes
        `children`, `name` and `length` is a node.

        Examples
        --------
        >>> import fastemd, io, skbio
        >>> node = skbio.TreeNode.read(io.StringIO("((a:1,b:2):0.5,c:4);"))
        >>> fastemd.Tree.from_skbio(node)
        Tree(n_bins=3, n_nodes=5, depth=2, diameter=6.5)
        """
        return restore(cls, *phylogenies.from_skbio(node, bins, missing_length, negative_length))

    def to_newick(self) -> str:
        """Return the tree in Newick format.

        Returns
        -------
        str
            One line that ends with ``;``. Children are in the order of `nodes`, lengths are exact.
            Names are `str` of the labels, in quotes if they contain blanks, punctuation or
            underscores. Inner nodes with an integer label are unnamed.

        Raises
        ------
        ValueError
            If two labels are the same as text, or one is empty.

        See Also
        --------
        from_newick : The inverse.

        Notes
        -----
        The format has no bins. ``Tree.from_newick(text, bins=tree.bins)`` reads the text of a tree
        of `from_newick` or `from_skbio` as the same tree; `bins` is not necessary if the bins are
        the tips in the order of `nodes`. Labels of other types come back as strings.

        Examples
        --------
        >>> import fastemd
        >>> fastemd.Tree.from_parents([4, 3, 3, 4, -1], [3.0, 1.0, 1.5, 2.0, 0.0]).to_newick()
        '(0:3.0,(1:1.0,2:1.5):2.0);'
        """
        return phylogenies.to_newick(self.parent, self.weight, self.nodes)
