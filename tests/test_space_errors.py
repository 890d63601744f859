"""Invalid spaces: the error names the node."""

from decimal import Decimal

import networkx as nx
import numpy as np
import pytest

from fastemd import Chain, Tree

GAPS = {
    "n_bins 0": (lambda: Chain(0), ValueError, "n_bins"),
    "n_bins negative": (lambda: Chain(-3), ValueError, "n_bins"),
    "n_bins 2.5": (lambda: Chain(2.5), TypeError, "n_bins"),
    "n_bins a string": (lambda: Chain("3"), TypeError, "n_bins"),
    "n_bins None": (lambda: Chain(None), TypeError, "n_bins"),
    "too few gaps": (lambda: Chain(4, [1.0, 1.0]), ValueError, "gaps"),
    "a gap per bin": (lambda: Chain(4, np.ones(4)), ValueError, "gaps"),
    "gaps in a table": (lambda: Chain(4, np.ones((1, 3))), ValueError, "gaps"),
    "one gap for all": (lambda: Chain(4, 1.0), ValueError, "gaps"),
    "negative gap": (lambda: Chain(4, [1, 1, -0.5]), ValueError, r"gaps.*\b2\b.*-0\.5"),
    "NaN gap": (lambda: Chain(4, [1, np.nan, 1]), ValueError, r"gaps.*\b1\b.*nan"),
    "infinite gap": (lambda: Chain(4, [np.inf, 1, 1]), ValueError, r"gaps.*\b0\b.*inf"),
    "gaps of strings": (lambda: Chain(3, ["a", "b"]), TypeError, "gaps"),
    "complex gaps": (lambda: Chain(3, [1j, 1]), TypeError, "gaps"),
}

PARENTS = {
    "no nodes": (lambda: Tree.from_parents(np.array([], int)), ValueError, None),
    "an empty list": (lambda: Tree.from_parents([]), (TypeError, ValueError), None),
    "two roots": (lambda: Tree.from_parents([-1, 0, -1, 2]), ValueError, r"\b[02]\b"),
    "no root": (lambda: Tree.from_parents([1, 2, 0]), ValueError, r"\b[012]\b"),
    "its own parent": (lambda: Tree.from_parents([-1, 0, 2]), ValueError, r"\b2\b"),
    "a cycle": (lambda: Tree.from_parents([-1, 0, 4, 2, 3, 0]), ValueError, r"\b[234]\b"),
    "parent too large": (lambda: Tree.from_parents([-1, 0, 7]), ValueError, r"\b[27]\b"),
    "parent -2": (lambda: Tree.from_parents([-1, 0, -2]), ValueError, r"\b2\b"),
    "parents of fractions": (lambda: Tree.from_parents([-1, 0.5]), TypeError, "parents"),
    "parents of strings": (lambda: Tree.from_parents(["a", "b"]), TypeError, "parents"),
    "parents in a table": (
        lambda: Tree.from_parents([[-1, 0]]),
        (TypeError, ValueError),
        "parents",
    ),
    "too few weights": (lambda: Tree.from_parents([-1, 0, 0], [1, 1]), ValueError, "weight"),
    "negative weight": (
        lambda: Tree.from_parents([-1, 0, 0], [0, 1, -2.5]),
        ValueError,
        r"\b2\b.*-2\.5",
    ),
    "NaN weight": (
        lambda: Tree.from_parents([-1, 0, 0], [0, np.nan, 1]),
        ValueError,
        r"\b1\b.*nan",
    ),
    "infinite weight": (
        lambda: Tree.from_parents([-1, 0, 0], [0, 1, np.inf]),
        ValueError,
        r"\b2\b.*inf",
    ),
    "weights of strings": (lambda: Tree.from_parents([-1, 0], ["a", "b"]), TypeError, "weight"),
    "no bins": (lambda: Tree.from_parents([-1, 0, 0], bins=[]), ValueError, "bin"),
    "bin that is no node": (
        lambda: Tree.from_parents([-1, 0, 0], bins=[1, 17]),
        ValueError,
        r"\b17\b",
    ),
    "bin counted from the end": (
        lambda: Tree.from_parents([-1, 0, 0], bins=[1, -1]),
        ValueError,
        "-1",
    ),
    "bin twice": (
        lambda: Tree.from_parents([-1, 0, 0], bins=[1, 2, 1]),
        ValueError,
        "bins: duplicate node 1; each node may appear once",
    ),
    "bins of fractions": (
        lambda: Tree.from_parents([-1, 0, 0], bins=[1.5]),
        (TypeError, ValueError),
        r"1\.5",
    ),
}


def _digraph(*edges, **weights):
    graph = nx.DiGraph(edges)
    for (above, below), length in zip(edges, weights.get("lengths", []), strict=False):
        if length is not None:
            graph.edges[above, below]["weight"] = length
    return graph


RA, RB, AC = ("r", "a"), ("r", "b"), ("a", "c")
V = _digraph(RA, RB, AC)
U = V.to_undirected()


def _with_nodes(graph, *nodes):
    graph = graph.copy()
    graph.add_nodes_from(nodes)
    return graph


def _from(*edges, lengths=(), directed=True, **keywords):
    graph = _digraph(*edges, lengths=lengths)
    return Tree.from_networkx(graph if directed else graph.to_undirected(), **keywords)


GRAPHS = {
    "no nodes": (lambda: Tree.from_networkx(nx.DiGraph()), ValueError, None),
    "no nodes, undirected": (lambda: Tree.from_networkx(nx.Graph()), ValueError, None),
    "two parents": (lambda: _from(RA, RB, AC, ("b", "c")), ValueError, "'c'"),
    "a directed cycle": (lambda: _from(("a", "b"), ("b", "c"), ("c", "a")), ValueError, "'[abc]'"),
    "a cycle beside a tree": (
        lambda: _from(RA, ("x", "y"), ("y", "z"), ("z", "x")),
        ValueError,
        "'[xyz]'",
    ),
    "a loop": (lambda: _from(RA, ("a", "a")), ValueError, "'a'"),
    "a loop, undirected": (lambda: _from(RA, AC, ("c", "c"), directed=False), ValueError, "'c'"),
    "a loop alone": (lambda: _from(("a", "a")), ValueError, "'a'"),
    "a cycle, undirected": (
        lambda: _from(RA, AC, ("c", "d"), ("d", "a"), directed=False),
        ValueError,
        "'[acd]'",
    ),
    "disconnected": (lambda: Tree.from_networkx(_with_nodes(V, "x")), ValueError, "'[rx]'"),
    "disconnected, undirected": (
        lambda: Tree.from_networkx(_with_nodes(U, "x")),
        ValueError,
        "'[rabcx]'",
    ),
    "as many edges as a tree, but in two pieces": (
        lambda: _from(("a", "b"), ("b", "c"), ("c", "a"), ("x", "y"), directed=False),
        ValueError,
        "'[abcxy]'",
    ),
    "negative weight": (lambda: _from(RA, RB, lengths=[1, -2.5]), ValueError, r"'b'.*-2\.5"),
    "NaN weight": (lambda: _from(RA, RB, lengths=[np.nan, 1]), ValueError, "'a'.*nan"),
    "infinite weight": (lambda: _from(RA, RB, lengths=[1, np.inf]), ValueError, "'b'.*inf"),
    "NaN weight, undirected": (
        lambda: _from(RA, AC, lengths=[1, np.nan], directed=False),
        ValueError,
        "'[ac]'.*nan",
    ),
    "weight partly missing": (lambda: _from(RA, RB, lengths=[1, None]), ValueError, "'b'"),
    "weight missing below only": (
        lambda: _from(RA, RB, AC, lengths=[1, 1, None]),
        ValueError,
        "'c'",
    ),
    "no bins": (lambda: Tree.from_networkx(V, bins=[]), ValueError, "bin"),
    "bin that is no node": (lambda: Tree.from_networkx(V, bins=["b", "x"]), ValueError, "'x'"),
    "bin twice": (
        lambda: Tree.from_networkx(V, bins=["b", "c", "b"]),
        ValueError,
        "duplicate node 'b'",
    ),
    "root that is no node": (lambda: Tree.from_networkx(U, root="x"), ValueError, "'x'"),
    "root that has a parent": (lambda: Tree.from_networkx(V, root="a"), ValueError, "'a'"),
    "no graph": (lambda: Tree.from_networkx([("a", "b")]), TypeError, "graph"),
    "None": (lambda: Tree.from_networkx(None), TypeError, "graph"),
}

PATHS = {
    "no paths": (lambda: Tree.from_paths([]), ValueError, None),
    "path twice": (
        lambda: Tree.from_paths([("a", "x"), ("b",), ("a", "x")]),
        ValueError,
        "'a', 'x'",
    ),
    "missing length": (
        lambda: Tree.from_paths([("a", "x")], weights={("a",): 1}),
        ValueError,
        "'a', 'x'",
    ),
    "missing length of an inner node": (
        lambda: Tree.from_paths([("a", "x")], weights={("a", "x"): 1}),
        ValueError,
        r"'a',\)",
    ),
    "negative length": (
        lambda: Tree.from_paths([("a",), ("b",)], weights={("a",): 1, ("b",): -2.5}),
        ValueError,
        r"'b',\).*-2\.5",
    ),
    "NaN length": (
        lambda: Tree.from_paths([("a",)], weights={("a",): np.nan}),
        ValueError,
        "'a'.*nan",
    ),
    "a plain string": (lambda: Tree.from_paths(["cat", "dog"]), TypeError, "cat"),
    "a number": (lambda: Tree.from_paths([3]), TypeError, "3"),
}


def _table(cases):
    return pytest.mark.parametrize(("build", "error", "match"), cases.values(), ids=cases.keys())


@_table(GAPS)
def test_chain_rejects_invalid_gaps(build, error, match):
    with pytest.raises(error, match=match):
        build()


@_table(PARENTS)
def test_from_parents_rejects_non_trees(build, error, match):
    with pytest.raises(error, match=match):
        build()


@_table(GRAPHS)
def test_from_networkx_rejects_non_trees(build, error, match):
    with pytest.raises(error, match=match):
        build()


@_table(PATHS)
def test_from_paths_rejects_invalid_paths(build, error, match):
    with pytest.raises(error, match=match):
        build()


def test_constructors_do_not_modify_graph():
    graph = _digraph(RA, RB, AC, lengths=[1, 2, 3])
    before = nx.to_dict_of_dicts(graph)
    before = {a: {b: dict(data) for b, data in row.items()} for a, row in before.items()}
    Tree.from_networkx(graph)
    Tree.from_networkx(graph.to_undirected(as_view=True))
    assert nx.to_dict_of_dicts(graph) == before


def test_tree_cannot_be_constructed_directly():
    with pytest.raises(TypeError, match="from_parents"):
        Tree()
    with pytest.raises(TypeError):
        Tree([-1, 0])


def test_constructors_have_keyword_only_options():
    for build in (
        lambda: Tree.from_networkx(V, "r"),
        lambda: Tree.from_parents([-1, 0], None, [1]),
        lambda: Tree.from_paths([("a",)], None),
    ):
        with pytest.raises(TypeError, match="positional"):
            build()


@pytest.mark.parametrize("weights", [["0", "1", "2"], [0, None, 1], [0, 1j, 1], [0, "x", 1.5]])
def test_from_parents_names_node_with_invalid_length(weights):
    message = r"weights: the length above node [12] is .*; expected a real number"
    with pytest.raises(TypeError, match=message):
        Tree.from_parents([-1, 0, 0], weights)


def test_from_parents_rejects_lengths_that_overflow():
    with pytest.raises(ValueError, match="weights: the lengths sum to more than"):
        Tree.from_parents([-1, 0, 0], [0, 1e150, 1e150])
    with pytest.raises(ValueError, match="gaps: the lengths sum to more than"):
        Chain(3, gaps=[1e308, 1e308])


def test_from_networkx_names_node_with_invalid_length():
    graph = nx.DiGraph([("all", "cat"), ("all", "dog")])
    nx.set_edge_attributes(graph, {("all", "cat"): 1.0, ("all", "dog"): "abc"}, "weight")
    with pytest.raises(TypeError, match="weight: the length above node 'dog' is of type str"):
        Tree.from_networkx(graph)


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([(0, 0)], "cycle"),
        ([("cat", "animal"), ("dog", "animal")], r"'animal' has more than one parent.*reverse"),
    ],
)
def test_from_networkx_explains_invalid_edges(edges, message):
    with pytest.raises(ValueError, match=message):
        Tree.from_networkx(nx.DiGraph(edges))


@pytest.mark.parametrize(
    ("bins", "error"), [(5, TypeError), ([["a"]], ValueError), ([], ValueError)]
)
def test_from_networkx_rejects_bins_that_are_no_nodes(bins, error):
    with pytest.raises(error, match="bins: "):
        Tree.from_networkx(nx.DiGraph([(0, 1)]), bins=bins)


def test_from_networkx_leaves_of_undirected_tree_do_not_depend_on_root():
    graph = nx.Graph([("r", "cat"), ("r", "dog"), ("r", "car")])
    for root in (None, "cat", "r"):
        assert Tree.from_networkx(graph, root=root).bins == ("cat", "dog", "car")
    assert Tree.from_networkx(nx.Graph([(0, 1)])).bins == (0, 1)


def test_from_paths_accepts_any_iterables_of_names():
    ref = Tree.from_paths([("a", "b"), ("a", "c")]).cost_matrix()
    for paths in (np.array([["a", "b"], ["a", "c"]]), (iter(x) for x in (["a", "b"], ["a", "c"]))):
        np.testing.assert_array_equal(Tree.from_paths(paths).cost_matrix(), ref)


NAN = float("nan")
MISSING = {"float": NAN, "numpy": np.float32("nan"), "Decimal": Decimal("NaN"), "complex": 1j * NAN}
MISSING |= {
    "datetime64": np.datetime64("NaT", "s"),
    "tuple": ("b", (NAN,)),
    "frozenset": frozenset([NAN]),
}


@pytest.fixture(params=MISSING.values(), ids=MISSING.keys())
def missing(request):
    return request.param


@pytest.fixture(params=["NaT", "NA"])
def missing_of_pandas(request):
    return getattr(pytest.importorskip("pandas"), request.param)


def _refuses_names(missing):
    with pytest.raises(ValueError, match=r"^paths: the name at index 1 of path 2 .* leave"):
        Tree.from_paths([("a", "b"), ("b",), ("a", missing)])
    weights = {("a",): 1.0, ("a", "b"): 1.0, ("a", missing): 2.0}
    with pytest.raises(ValueError, match=r"^weights: the name at index 1 of key 2 "):
        Tree.from_paths([("a", "b")], weights=weights)
    for kind in (nx.Graph, nx.DiGraph):
        with pytest.raises(ValueError, match=r"^graph: the label at index 2 of the nodes "):
            Tree.from_networkx(kind([("a", "b"), ("a", missing)]))
    with pytest.raises(ValueError, match=r"^bins: .* is not a node"):
        Tree.from_networkx(nx.DiGraph([("a", "b")]), bins=[missing])
    with pytest.raises(ValueError, match=r"^root: .* is not a node"):
        Tree.from_networkx(nx.DiGraph([("a", "b")]), root=missing)


def test_tree_rejects_labels_that_do_not_equal_themselves(missing):
    _refuses_names(missing)


def test_tree_rejects_missing_labels_of_pandas(missing_of_pandas):
    _refuses_names(missing_of_pandas)


def test_from_paths_accepts_none_as_name():
    assert Tree.from_paths([("a", None), (None,)]).bins == (("a", None), (None,))


def test_from_paths_names_path_that_is_no_sequence():
    with pytest.raises(TypeError, match=r"^paths: path 1 is nan \(float\)"):
        Tree.from_paths([("a",), NAN])
    with pytest.raises(TypeError, match=r"^paths: expected an iterable of paths"):
        Tree.from_paths(None)


@pytest.mark.parametrize("name", [["x"], ("x", ["y"])])
def test_from_paths_rejects_names_that_are_not_hashable(name):
    with pytest.raises(TypeError, match=r"^paths: the name at index 0 of path 1 .* not hashable"):
        Tree.from_paths([("a",), (name,)])


@pytest.mark.parametrize("weights", [[1.0], 3, "ab"])
def test_from_paths_rejects_weights_that_are_no_mapping(weights):
    with pytest.raises(TypeError, match=r"^weights: expected a mapping"):
        Tree.from_paths([("a",)], weights=weights)


def test_tree_shortens_long_labels_in_messages():
    label = "x" * 1000
    graph = nx.DiGraph([("r", label), ("s", label)])
    with pytest.raises(ValueError, match=r"node 'xxx.*\.\.\. has more than one parent") as caught:
        Tree.from_networkx(graph)
    assert len(str(caught.value)) < 300


MASKED = np.ma.array([1.0, 2.0], mask=[False, True])
LENGTHS = {
    "masked": MASKED,
    "a list with a masked entry": list(MASKED),
    "None": [1.0, None],
    "a string": [1.0, "2"],
    "time spans": np.array([1, 2], "m8[ns]"),
}


@pytest.mark.parametrize("gaps", LENGTHS.values(), ids=LENGTHS.keys())
def test_chain_rejects_gaps_that_are_no_numbers(gaps):
    with pytest.raises(TypeError, match=r"^gaps: .*; expected"):
        Chain(3, gaps)


def test_chain_rejects_gap_beyond_float64():
    with pytest.raises(ValueError, match=r"^gaps: the length after bin 1 is inf; expected"):
        Chain(3, [1, 10**400])


PARENT_ENTRIES = {
    "masked": np.ma.array([-1, 0, 0], mask=[False, False, True]),
    "None": np.array([-1, 0, None], object),
    "bool": np.array([-1, 0, False], object),
    "a fraction": np.array([-1, 0, 0.5], object),
    "of bools": [True, False],
    "lists of children": [[1, 2], []],
}


@pytest.mark.parametrize("parents", PARENT_ENTRIES.values(), ids=PARENT_ENTRIES.keys())
def test_from_parents_rejects_parents_that_are_no_integers(parents):
    with pytest.raises(TypeError, match=r"^parents: .*; expected"):
        Tree.from_parents(parents)


def test_from_parents_rejects_parent_too_large_for_index():
    with pytest.raises(ValueError, match=r"^parents: .*node 1 has parent 1000.*; expected"):
        Tree.from_parents([-1, 10**40])


def test_from_networkx_rejects_weight_that_no_edge_has():
    graph = _digraph(RA, RB, AC, lengths=[1, 2, 3])
    nx.set_edge_attributes(graph, "red", "colour")
    message = r"^weight: no edge has the attribute 'distance'; .*'weight', 'colour'"
    for variant in (graph, graph.to_undirected()):
        with pytest.raises(ValueError, match=message):
            Tree.from_networkx(variant, weight="distance")
    with pytest.raises(
        ValueError, match=r"^weight: no edge has the attribute 'distance'; .* no attr"
    ):
        Tree.from_networkx(V, weight="distance")


def test_from_networkx_names_edge_without_weight():
    graph = nx.DiGraph([RA, RB])
    graph.edges[RA]["length"] = 2.0
    with pytest.raises(
        ValueError, match=r"^weight: no attribute 'length' .* 'r' and 'b'; expected"
    ):
        Tree.from_networkx(graph, weight="length")
