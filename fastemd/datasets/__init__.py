"""Ground spaces that ship with the package."""

import csv
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from fastemd.spaces import Tree

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["imagenet_graph", "imagenet_tree"]


def imagenet_graph() -> "nx.DiGraph[str]":
    """Return the 1000 ILSVRC2012 classes under WordNet as a graph with names.

    Returns
    -------
    networkx.DiGraph
        A new graph with 1374 nodes and 1373 edges, parent -> child, without weights. A node is a
        WordNet id (``"n01440764"``) with the attribute ``name`` (``"tench"``); the 1000 leaves
        also carry ``class_index``, 0 .. 999. Names are the synset's first lemma and may repeat:
        ``"crane"`` is a bird (134) and a machine (517).

    See Also
    --------
    imagenet_tree : The same tree as a ground space, with its source and licence.

    Examples
    --------
    >>> from fastemd.datasets import imagenet_graph
    >>> graph = imagenet_graph()
    >>> graph.nodes["n01440764"]
    {'name': 'tench', 'class_index': 0}
    >>> [graph.nodes[parent]["name"] for parent in graph.predecessors("n01440764")]
    ['cyprinid']
    """
    import networkx as nx  # takes half as long to import as all of fastemd

    graph: nx.DiGraph[str] = nx.DiGraph()
    table = files(__name__).joinpath("imagenet_tree.tsv").read_text(encoding="utf-8")
    for row in csv.DictReader(table.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE):
        graph.add_node(row["child"], name=row["name"])
        if (index := int(row["class_index"])) >= 0:  # -1: an inner node
            graph.nodes[row["child"]]["class_index"] = index
        if row["parent"]:
            graph.add_edge(row["parent"], row["child"])
    return graph


@cache
def imagenet_tree() -> Tree:
    """Return the 1000 ILSVRC2012 classes under WordNet as a ground space.

    Returns
    -------
    Tree
        1374 nodes, 1000 bins on its leaves, every edge of length 1. Bin ``k`` is class ``k`` in
        the usual order (that of the sorted WordNet ids), ``tree.bins[k]`` its id. Height 13; the
        largest distance between two classes is 20. Every call returns the same object.

    See Also
    --------
    imagenet_graph : The same tree with the names of classes and inner nodes.

    Notes
    -----
    WordNet is not a tree: 75 of the 1860 synsets at and above these classes have several parents,
    so a rule selects one. Inner nodes with a single child are contracted. The rule is documented
    in ``tools/build_imagenet_tree.py`` in the source repository, which rebuilds the table from
    WordNet 3.0. The paper reports the same 1374 nodes and a maximum distance of 26,
    twice the height of this tree; no two of its classes are that far apart.

    The names and links are WordNet's, copyright 2006 by Princeton University, under the WordNet
    3.0 licence: see ``WORDNET_LICENSE.txt`` next to the table.

    Examples
    --------
    >>> from fastemd.datasets import imagenet_tree
    >>> tree = imagenet_tree()
    >>> print(tree.n_nodes, tree.n_bins, tree.depth, tree.diameter)
    1374 1000 13 20.0
    >>> tree.bins[0], tree.bins[999]
    ('n01440764', 'n15075141')
    """
    graph = imagenet_graph()
    leaves = ((node, data) for node, data in graph.nodes(data=True) if "class_index" in data)
    classes = {data["class_index"]: node for node, data in leaves}
    return Tree.from_networkx(graph, bins=[classes[k] for k in range(len(classes))])
