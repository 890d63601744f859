"""Trees from Newick text and from scikit-bio, and back to text."""

import io
import math
import pathlib
import types

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastemd
from fastemd import Tree
from tests.support.frameworks import needed
from tests.support.strategies import lengths

needed("newick")
skbio = needed("skbio")

KNOWN = "((A:0.1,B:0.2)E:0.5,C:0.3,(D:1)F:0.25)R:9;"
KNOWN_COSTS = [
    [0.0, 0.3, 0.9, 1.85],
    [0.3, 0.0, 1.0, 1.95],
    [0.9, 1.0, 0.0, 1.55],
    [1.85, 1.95, 1.55, 0.0],
]


def _node(text):
    return skbio.TreeNode.read(io.StringIO(text), format="newick", convert_underscores=False)


def _assert_same(tree, other):
    np.testing.assert_array_equal(tree.parent, other.parent)
    np.testing.assert_array_equal(tree.weight, other.weight)
    np.testing.assert_array_equal(tree.bin_node, other.bin_node)
    np.testing.assert_array_equal(tree.cost_matrix(), other.cost_matrix())


@pytest.mark.parametrize("build", [Tree.from_newick, lambda text: Tree.from_skbio(_node(text))])
def test_from_newick_and_from_skbio_build_known_tree(build):
    tree = build(KNOWN)
    assert tree.bins == ("A", "B", "C", "D")
    assert tree.nodes == ("A", "B", "E", "C", "D", "F", "R")
    assert tree.parent.tolist() == [2, 2, 6, 6, 5, 6, -1]
    assert tree.weight.tolist() == [0.1, 0.2, 0.5, 0.3, 1.0, 0.25, 0.0]
    np.testing.assert_allclose(tree.cost_matrix(), KNOWN_COSTS, rtol=1e-15, atol=1e-15)


NAMES = {
    "blanks and punctuation": ("('a b':1,'c,d(e)':1,'f:g;h[i]':1);", ["a b", "c,d(e)", "f:g;h[i]"]),
    "doubled quotes": ("('it''s':1,'''':1,'''''':1);", ["it's", "'", "''"]),
    "underscores": ("(a_b:1,'c_d':1);", ["a_b", "c_d"]),
    "backslashes": ("('a\\':1,'b\\c':1,\\d:1,'\\''':1);", ["a\\", "b\\c", "\\d", "\\'"]),
    "double quotes": ('("a":1,b:1);', ['"a"', "b"]),
    "numbers": ("(1:1,2.5:1,-3e4:1);", ["1", "2.5", "-3e4"]),
    "letters beyond ASCII": ("(é:1,'b\u00a0c':1,木:1);", ["é", "b\u00a0c", "木"]),
    "a line break in quotes": ("('a\nb':1,c:1);", ["a\nb", "c"]),
    "other signs": ("(a-b.1|x/y:1,k__A{1}=2:1);", ["a-b.1|x/y", "k__A{1}=2"]),
    "outer blanks in quotes": ("(' a ':1,b:1);", [" a ", "b"]),
    "comments": ("[&R](a[x]:1,b:1[y,(z);])r[it's][a[b]c];[end]", ["a", "b"]),
    "comments before lengths": ("(a:[x]1,b[&!c=1]:1);", ["a", "b"]),
    "blanks and line breaks": ("\n(\n  a : 1 ,\r\n\tb:\n1 ) r : 3 ;\n\n", ["a", "b"]),
    "one child": ("((a:1):0);", ["a"]),
}


@pytest.mark.parametrize(("text", "names"), NAMES.values(), ids=NAMES.keys())
def test_from_newick_reads_names(text, names):
    tree = Tree.from_newick(text)
    assert tree.bins == tuple(names)
    assert (tree.weight[tree.bin_node] == 1).all()


def test_from_newick_reads_lengths():
    tree = Tree.from_newick("(a:1e-3,b:2.5E+2,c:.5,d:+0,e:0.1,f:7);")
    assert tree.weight.tolist() == [1e-3, 250.0, 0.5, 0.0, 0.1, 7.0, 0.0]


def test_from_newick_ignores_length_of_root():
    for length in ("", ":-1", ":nan", ":2"):
        assert Tree.from_newick(f"(a:1,b:2)r{length};").weight.tolist() == [1.0, 2.0, 0.0]


def test_from_newick_labels_inner_nodes():
    tree = Tree.from_newick("((a:1,b:1)90:1,((c:1,d:1)90:1,(e:1,f:1)a:1):1,(g:1,h:1)'':1)top;")
    inner = [label for label in tree.nodes if label not in tree.bins]
    assert tree.bins == tuple("abcdefgh")
    assert inner == [2, 5, 8, 9, 12, "top"]
    assert [tree.nodes.index(label) for label in inner] == [2, 5, 8, 9, 12, 13]


def test_from_newick_single_node():
    tree = Tree.from_newick("a;")
    assert (tree.bins, tree.n_nodes) == (("a",), 1)


@pytest.mark.parametrize("build", [Tree.from_newick, lambda *args, **kw: _from_skbio(*args, **kw)])
def test_bins_lists_nodes_in_column_order(build):
    text = "((a:1,b:2):4,c:8);"
    tree = build(text, bins=["c", 2, "a"])
    assert tree.bins == ("c", 2, "a")
    assert tree.cost_matrix()[0].tolist() == [0.0, 12.0, 13.0]
    with pytest.raises(ValueError, match="bins: 'x' is not a node"):
        build(text, bins=["a", "x"])
    with pytest.raises(ValueError, match="bins: duplicate node 'a'"):
        build(text, bins=["a", "a"])


def _from_skbio(text, **keywords):
    return Tree.from_skbio(_node(text), **keywords)


def test_from_newick_reads_paths_and_files(tmp_path, monkeypatch):
    path = tmp_path / "tree (1);.nwk"
    path.write_text("\ufeff(é:1,\n'b c':2);\n", encoding="utf-8")
    assert Tree.from_newick(path).bins == ("é", "b c")
    path = path.rename(tmp_path / "tree.nwk")
    assert Tree.from_newick(str(path)).bins == ("é", "b c")
    with path.open(encoding="utf-8-sig") as file:
        assert Tree.from_newick(file).bins == ("é", "b c")
    assert Tree.from_newick(io.StringIO("(a:1,b:2);")).bins == ("a", "b")
    with pytest.raises(TypeError, match="source: a file in binary mode"):
        Tree.from_newick(io.BytesIO(b"(a:1,b:2);"))
    monkeypatch.chdir(tmp_path)
    for missing in ("no.nwk", pathlib.Path("no.nwk")):
        with pytest.raises(FileNotFoundError, match="source: no such file"):
            Tree.from_newick(missing)


SYNTAX = {
    "open parenthesis": ("(a:1,b:1;", "before the last 1 '\\)'"),
    "closing parenthesis": ("(a:1,b:1));", "brace nesting"),
    "closing parenthesis only": ("a:1,b:1);", "brace nesting"),
    "comma at the top": ("a:1,b:1;", "',' is not allowed at the end of 'a:1,'"),
    "open quote": ("('a:1,b:1);", "quote"),
    "open comment": ("(a[x:1,b:1);", "comment"),
    "closing bracket": ("(a]:1,b:1);", "comment"),
    "no semicolon": ("(a:1,b:1)", "no ';'"),
    "cut": ("(a:1,(b:1,c", "no ';'"),
    "two lengths": ("(a:1:2,b:1);", r"':' is not allowed at the end of '\(a:1:'"),
    "no length after a colon": ("(a:,b:1);", r"',' is not allowed at the end of '\(a:,'"),
    "length of letters": ("(a:x,b:1);", "length 'x'"),
    "length with an underscore": ("(a:1_0,b:1);", "length '1_0'"),
    "quoted length": ("(a:'1',b:1);", "'1'"),
    "two words": ("(a b:1,c:1);", r"'b' is not allowed at the end of '\(a b'.*quotes"),
    "two words after children": ("(a:1,b:1)c d;", "'d' is not allowed"),
    "a quote within a word": ("(it's:1,that's:1);", "not allowed"),
    "a backslash before a quote": ("('it\\'s':1,b:1);", "quote|not allowed"),
    "children after a name": ("(a(b:1,c:1):1);", r"'\(' is not allowed at the end of '\(a\('"),
    "two groups": ("(a:1,b:1)(c:1,d:1);", r"'\(' is not allowed"),
    "two trees": ("(a:1,b:1);(c:1,d:1);", r"'\(' follows the first tree"),
    "text after the tree": ("(a:1,b:1); c", "'c' follows the first tree"),
    "NUL": ("(a\0:1,b:1);", "NUL"),
}


@pytest.mark.parametrize(("text", "match"), SYNTAX.values(), ids=SYNTAX.keys())
def test_from_newick_rejects_malformed_text(text, match):
    with pytest.raises(ValueError, match=f"^source: not Newick: .*(?:{match})"):
        Tree.from_newick(text)


INVALID = {
    "duplicate tips": ("(a:1,(b:1,a:1,b:1):1);", "duplicate tip names 'a', 'b';"),
    "tip without a name": ("(a:1,(:1,c:1):1);", r"1 of 3 tips.*tip 1 \(after 'a'\)"),
    "first tip without a name": ("(:1,a:1);", "1 of 2 tips .*tip 0;"),
    "empty parentheses": ("();", "1 of 1 tips"),
    "no node": (";", "1 of 1 tips"),
    "no lengths": ("((a,b)c,d);", "no edge has a length.*missing_length=1.0"),
    "missing length": ("((a:1,b)c:1,d:1);", "above node 'b', 1 are missing.*missing_length="),
    "missing length, unnamed": (
        "(((a:1,b:1):1,c:1),d:1);",
        r"above node 4 \(above 'a'\), 1 are missing",
    ),
    "negative length": ("(a:1,b:-2.5);", "above node 'b' is -2.5;.*negative_length=0.0"),
    "negative length, unnamed": ("(a:1,(b:1,c:1):-1);", r"above node 3 \(above 'b'\) is -1.0"),
    "NaN length": ("(a:1,b:nan);", "'b' is nan"),
    "infinite length": ("(a:1,b:inf);", "'b' is inf"),
    "negative infinite length": ("(a:1,b:-inf);", "'b' is -inf"),
    "too large a length": ("(a:1,b:1e999);", "'b' is inf"),
}


@pytest.mark.parametrize(("text", "match"), INVALID.values(), ids=INVALID.keys())
def test_from_newick_and_from_skbio_name_invalid_node(text, match):
    with pytest.raises(ValueError, match=f"^source: .*{match}"):
        Tree.from_newick(text)
    if text not in (";", "();"):
        with pytest.raises(ValueError, match=f"^node: .*{match}"):
            Tree.from_skbio(_node(text))


@pytest.mark.parametrize("build", [Tree.from_newick, _from_skbio])
def test_missing_length_and_negative_length_replace(build):
    text = "((a,b:-2)c:-0.0,d:1);"
    tree = build(text, missing_length=1.5, negative_length=0)
    assert tree.weight.tolist() == [1.5, 0.0, 0.0, 1.0, 0.0]
    assert build("(a,b);", missing_length=1).weight.tolist() == [1.0, 1.0, 0.0]
    for value in ("nan", "inf", "-inf"):
        with pytest.raises(ValueError, match=f"'a' is {value}"):
            build(f"(a:{value},b:1);", missing_length=0.0, negative_length=0.0)


@pytest.mark.parametrize("keyword", ["missing_length", "negative_length"])
def test_replacing_lengths_are_validated(keyword):
    for value in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"^{keyword}: expected a finite number >= 0"):
            Tree.from_newick("(a:1,b:1);", **{keyword: value})
    for value in ("0", True, [0.0]):
        with pytest.raises(TypeError, match=f"^{keyword}: expected a number"):
            Tree.from_newick("(a:1,b:1);", **{keyword: value})


@pytest.mark.parametrize("source", [None, 3, b"(a,b);", ["(a,b);"]])
def test_from_newick_rejects_other_types(source):
    with pytest.raises(
        TypeError, match=r"^source: expected Newick text, a path or an open text file"
    ):
        Tree.from_newick(source)


@pytest.mark.parametrize("node", [None, "(a,b);", skbio.TreeNode])
def test_from_skbio_rejects_other_types(node):
    with pytest.raises(TypeError, match=r"^node: expected a skbio\.TreeNode"):
        Tree.from_skbio(node)


def test_from_skbio_rejects_names_that_are_no_strings():
    node = types.SimpleNamespace(children=[], name=3, length=None)
    with pytest.raises(TypeError, match=r"^node: the name 3 is of type int"):
        Tree.from_skbio(node)


def test_from_skbio_reads_subtree():
    tree = Tree.from_skbio(_node(KNOWN).find("E"))
    assert (tree.nodes, tree.weight.tolist()) == (("A", "B", "E"), [0.1, 0.2, 0.0])


def _random_text(rng, n_nodes):
    """Return a tree with polytomies, unary nodes and edges of length 0."""
    parent = [-1, *(int(rng.integers(max(0, node - 5), node)) for node in range(1, n_nodes))]
    below = [[] for _ in parent]
    for node in range(n_nodes - 1, -1, -1):
        length = float(rng.exponential()) if rng.random() < 0.8 else 0.0
        inner = f"({','.join(below[node])})" if below[node] else f"t_{node}"
        if node:
            below[parent[node]].append(f"{inner}:{length!r}")
    return f"{inner};"


@pytest.mark.parametrize("n_nodes", [2, 5, 20, 100])
def test_costs_equal_tip_distances_of_skbio(n_nodes, rng):
    for _ in range(5):
        text = _random_text(rng, n_nodes)
        node = _node(text)
        tree = Tree.from_newick(text)
        distances = node.cophenet() if hasattr(node, "cophenet") else node.tip_tip_distances()
        wanted = distances.filter(tree.bins).data
        np.testing.assert_allclose(tree.cost_matrix(), wanted, rtol=1e-12, atol=1e-12)
        _assert_same(Tree.from_skbio(node), tree)


@pytest.mark.parametrize("text", [KNOWN, "((a_1:1,'b,c':2):0.1,(d:3)90:1,(e:1,f:2)90:2)'top(1)';"])
def test_from_skbio_equals_from_newick(text):
    tree, other = Tree.from_skbio(_node(text)), Tree.from_newick(str(_node(text)))
    assert tree.nodes == other.nodes
    _assert_same(tree, other)


def test_to_newick_writes_known_text():
    text = "(('a b':0.1,c:1e-20):2.0,('it''s':0.30000000000000004,'x_y':0.0)inner:1.0)'top(1)';"
    assert Tree.from_newick(text).to_newick() == text
    assert Tree.from_newick("a;").to_newick() == "a;"


names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
edge_lengths = lengths | st.floats(0, 1e100)


@st.composite
def phylogenies(draw):
    """Draw a graph whose tips have unique names; of the inner nodes, some are unnamed."""
    n_nodes = draw(st.integers(1, 12))
    parent = [draw(st.integers(0, node - 1)) for node in range(1, n_nodes)]
    labels = draw(st.lists(names, min_size=n_nodes, max_size=n_nodes, unique=True))
    for node in set(parent):
        if draw(st.booleans()):
            labels[node] = node
    graph = nx.DiGraph()
    graph.add_nodes_from(labels)
    for node, above in enumerate(parent, 1):
        graph.add_edge(labels[above], labels[node], weight=draw(edge_lengths))
    return Tree.from_networkx(graph)


@given(phylogenies())
def test_to_newick_round_trip_is_exact(tree):
    text = tree.to_newick()
    back = Tree.from_newick(text, bins=tree.bins)
    _assert_same(back, tree)
    again = Tree.from_newick(back.to_newick())
    assert again.to_newick() == text
    assert again.nodes == back.nodes
    assert set(again.bins) == set(tree.bins)
    named = [label if isinstance(label, str) else i for i, label in enumerate(tree.nodes)]
    assert list(back.nodes) == named


@given(st.lists(st.text("ab1_ ()[]{}:;,.-").map("x{}".format), min_size=2, unique=True))
def test_to_newick_writes_names_that_skbio_reads(tips):
    # All names begin with a letter: scikit-bio 0.7.4 takes the name ':' for a colon.
    text = Tree.from_networkx(nx.DiGraph([((), tip) for tip in tips])).to_newick()
    node = skbio.TreeNode.read(io.StringIO(text), format="newick", verify=False)
    assert [tip.name for tip in node.tips()] == tips


def test_to_newick_of_other_trees():
    paths = Tree.from_paths([("a", "x"), ("a", "y"), ("b",)])
    assert (
        paths.to_newick() == "(('(''a'', ''x'')':1.0,'(''a'', ''y'')':1.0)'(''a'',)':1.0,"
        "'(''b'',)':1.0)'()';"
    )
    assert (
        Tree.from_newick(paths.to_newick()).cost_matrix().tolist() == paths.cost_matrix().tolist()
    )
    parents = Tree.from_parents([-1, 0, 0, 1, 1], bins=[1, 3, 4, 2])
    assert parents.to_newick() == "((3:1.0,4:1.0):1.0,2:1.0);"
    graph = nx.DiGraph([("r", 1), ("r", "1")])
    with pytest.raises(ValueError, match=r"^to_newick: nodes 1 and '1' are both written as '1'"):
        Tree.from_networkx(graph).to_newick()
    with pytest.raises(ValueError, match=r"^to_newick: the label '' is empty"):
        Tree.from_networkx(nx.DiGraph([("r", "")])).to_newick()


def test_deep_trees_need_no_recursion():
    n = 100_000
    text = f"{'(' * n}x:1.0{''.join(f',t{i}:1.0):2.0' for i in range(n))}"
    text = text.removesuffix(":2.0") + ";"
    tree = Tree.from_newick(text)
    assert (tree.n_bins, tree.n_nodes, tree.depth) == (n + 1, 2 * n + 1, n)
    assert tree.to_newick() == text
    assert tree.layout("levels").n_edges > n
    node = types.SimpleNamespace(children=[], name="x", length=1.0)
    for i in range(n):
        tip = types.SimpleNamespace(children=[], name=f"t{i}", length=1.0)
        node = types.SimpleNamespace(children=[node, tip], name=None, length=2.0)
    assert Tree.from_skbio(node).to_newick() == text


def test_emd_of_phylogeny_is_weighted_unifrac():
    tree = Tree.from_newick(KNOWN)
    u, v = [3, 1, 0, 4], [0, 2, 5, 1]
    wanted = skbio.diversity.beta.weighted_unifrac(
        u, v, list(tree.bins), _node(KNOWN), validate=False
    )
    p, q = (np.array(counts) / 8 for counts in (u, v))
    np.testing.assert_allclose(fastemd.emd(p, q, tree, rho=1), wanted, rtol=1e-14)
