"""The data set, and the script that rebuilds it, on a WordNet small enough to work out by hand."""

from __future__ import annotations

import importlib.util
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest

from fastemd.datasets import imagenet_graph, imagenet_tree


@pytest.fixture(scope="module")
def graph() -> Any:
    return imagenet_graph()


@pytest.fixture(scope="module")
def classes(graph: Any) -> dict[int, str]:
    """Return class index -> WordNet id."""
    return {k: node for node, k in graph.nodes(data="class_index") if k is not None}


def farthest(graph: Any, node: str) -> tuple[int, str]:
    distances = nx.single_source_shortest_path_length(graph, node)
    return max((distance, other) for other, distance in distances.items())


def test_imagenet_graph_is_one_tree_of_named_synsets(graph: Any) -> None:
    assert nx.is_arborescence(graph)
    assert (graph.number_of_nodes(), graph.number_of_edges()) == (1374, 1373)
    for node, name in graph.nodes(data="name"):
        assert re.fullmatch(r"n\d{8}", node)
        assert name, node
    (root,) = (node for node, degree in graph.in_degree if degree == 0)
    assert graph.nodes[root]["name"] == "entity"


def test_imagenet_graph_classes_are_leaves_in_order_of_ids(
    graph: Any, classes: dict[int, str]
) -> None:
    assert sorted(classes) == list(range(1000))
    assert set(classes.values()) == {node for node, degree in graph.out_degree if degree == 0}
    assert [classes[k] for k in range(1000)] == sorted(classes.values())


def test_imagenet_graph_has_no_unary_node(graph: Any) -> None:
    assert [node for node, degree in graph.out_degree if degree == 1] == []


def test_imagenet_graph_has_height_13_and_longest_path_20(graph: Any) -> None:
    assert nx.dag_longest_path_length(graph) == 13
    undirected = graph.to_undirected()
    # In a tree, the node farthest from any node is an end of a longest path.
    _, end = farthest(undirected, next(iter(graph)))
    distance, other = farthest(undirected, end)
    assert distance == 20
    assert graph.out_degree(end) == graph.out_degree(other) == 0  # both ends are classes


@pytest.mark.parametrize(
    ("index", "wnid", "name"),
    [
        (0, "n01440764", "tench"),
        (1, "n01443537", "goldfish"),
        (134, "n02012849", "crane"),
        (207, "n02099601", "golden retriever"),
        (281, "n02123045", "tabby"),
        (517, "n03126707", "crane"),
        (817, "n04285008", "sports car"),
        (954, "n07753592", "banana"),
        (999, "n15075141", "toilet tissue"),
    ],
)
def test_imagenet_graph_contains_known_classes(
    graph: Any, classes: dict[int, str], index: int, wnid: str, name: str
) -> None:
    assert classes[index] == wnid
    assert graph.nodes[wnid] == {"name": name, "class_index": index}


def test_imagenet_graph_has_118_breeds_below_dog(graph: Any, classes: dict[int, str]) -> None:
    dogs = nx.descendants(graph, "n02084071")
    assert graph.nodes["n02084071"]["name"] == "dog"
    assert {k for k, node in classes.items() if node in dogs} == set(range(151, 269))


def test_imagenet_graph_returns_new_graph() -> None:
    imagenet_graph().clear()
    assert imagenet_graph().number_of_nodes() == 1374


def test_imagenet_tree_has_sizes_and_classes_of_graph(classes: dict[int, str]) -> None:
    tree = imagenet_tree()
    assert (tree.n_nodes, tree.n_bins, tree.depth, tree.diameter) == (1374, 1000, 13, 20)
    assert list(tree.bins) == [classes[k] for k in range(1000)]
    assert np.all(tree.weight[:-1] == 1)


def test_imagenet_tree_measures_path_lengths(graph: Any, classes: dict[int, str]) -> None:
    cost = imagenet_tree().cost_matrix()
    undirected = graph.to_undirected()
    for k in (0, 281, 517, 999):
        lengths = nx.single_source_shortest_path_length(undirected, classes[k])
        np.testing.assert_array_equal(cost[k], [lengths[classes[j]] for j in range(1000)])


def test_imagenet_tree_is_cached() -> None:
    assert imagenet_tree() is imagenet_tree()


def test_imagenet_tree_includes_licence() -> None:
    text = files("fastemd.datasets").joinpath("WORDNET_LICENSE.txt").read_text(encoding="utf-8")
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in text


# --- tools/build_imagenet_tree.py ---

# By hand. Mineral is an ancestor of no class, which leaves entity with one child, like chordate.
# Cat's parent animal is a shortcut past pet. Dog retains pet, its last parent, which leaves
# vertebrate with one child, Rex.
NOUNS = """\
  1 This software and database is being provided to you, the LICENSEE, by
00000001 03 n 01 entity 0 002 ~ 00000002 n 0000 ~ 00000009 n 0000 | what is
00000002 03 n 0a animal 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 j 0 001 @ 00000001 n 0000 | ten lemmas
00000003 05 n 01 chordate 0 001 @ 00000002 n 0000 | one child
00000004 05 n 01 vertebrate 0 001 @ 00000003 n 0000 | dog, and rex through an instance
00000005 05 n 01 pet 0 001 @ 00000002 n 0000 | cat and dog
00000006 05 n 02 house_dog 0 dog 0 003 @ 00000004 n 0000 @ 00000005 n 0000 + 00000001 v 0101 | @
00000007 05 n 01 cat 0 002 @ 00000005 n 0000 @ 00000002 n 0000 | the last parent is a shortcut
00000008 05 n 01 Rex 0 002 @i 00000004 n 0000 @ 00000004 v 0000 | an instance, and not of a verb
00000009 05 n 01 mineral 0 001 @ 00000001 n 0000 | above no class
"""
CLASSES = ["n00000008", "n00000006", "n00000007"]
TABLE = """\
child\tparent\tname\tclass_index
n00000002\t\tanimal\t-1
n00000005\tn00000002\tpet\t-1
n00000006\tn00000005\thouse dog\t1
n00000007\tn00000005\tcat\t2
n00000008\tn00000002\tRex\t0
"""


@pytest.fixture(scope="module")
def build() -> Any:
    path = Path(__file__).parents[2] / "tools" / "build_imagenet_tree.py"
    spec = importlib.util.spec_from_file_location("build_imagenet_tree", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_read_nouns_reads_first_lemmas_and_noun_hypernyms(build: Any) -> None:
    hypernyms, names = build.read_nouns(NOUNS.splitlines())
    assert names["n00000006"] == "house dog"
    assert hypernyms == {
        "n00000001": [],
        "n00000002": ["n00000001"],
        "n00000003": ["n00000002"],
        "n00000004": ["n00000003"],
        "n00000005": ["n00000002"],
        "n00000006": ["n00000004", "n00000005"],
        "n00000007": ["n00000005", "n00000002"],
        "n00000008": ["n00000004"],
        "n00000009": ["n00000001"],
    }


def test_read_nouns_sorts_hypernyms_before_instance_hypernyms(build: Any) -> None:
    line = "00000003 05 n 01 rex 0 002 @i 00000001 n 0000 @ 00000002 n 0000 | both"
    assert build.read_nouns([line])[0] == {"n00000003": ["n00000002", "n00000001"]}


def test_restrict_returns_classes_and_ancestors(build: Any) -> None:
    parents = {"r": [], "a": ["r"], "b": ["r"], "x": ["a"], "y": ["b"]}
    assert build.restrict(parents, ["x"]) == {"r": [], "a": ["r"], "x": ["a"]}


def test_contract_removes_unary_nodes_and_unary_root(build: Any) -> None:
    parents = {"r": [], "a": ["r"], "b": ["a"], "c": ["b"], "x": ["c"], "y": ["a"]}
    assert build.contract(parents, {"x", "y"}) == {"a": [], "x": ["a"], "y": ["a"]}


def test_contract_preserves_class_with_one_child(build: Any) -> None:
    parents = {"r": [], "a": ["r"], "x": ["a"], "y": ["r"]}
    assert build.contract(parents, {"a", "x", "y"}) == parents


def test_contract_preserves_order_of_unique_parents(build: Any) -> None:
    parents = {"r": [], "s": ["r"], "t": ["r"], "u": ["s", "t"]}
    parents |= {"x": ["s", "u", "r"], "y": ["s", "t"], "z": ["t"]}
    spliced = build.contract(parents, {"x", "y", "z"})
    assert spliced["x"] == ["s", "t", "r"]  # u was second; its parents s and t replace it there
    assert "u" not in spliced


def test_drop_shortcuts_drops_parent_that_is_ancestor_of_other_parent(build: Any) -> None:
    parents = {"r": [], "a": ["r"], "b": ["a"], "c": ["r"], "x": ["b", "r", "c", "a"]}
    assert build.drop_shortcuts(parents) == {**parents, "x": ["b", "c"]}


def test_build_tree_uses_last_parent(build: Any) -> None:
    parents = {"r": [], "a": ["r"], "b": ["r"], "x": ["b", "a"], "y": ["a"], "z": ["b"], "w": ["b"]}
    tree = build.build_tree(parents, ["x", "y", "z", "w"])
    assert tree == {"r": [], "a": ["r"], "b": ["r"], "x": ["a"], "y": ["a"], "z": ["b"], "w": ["b"]}


def test_format_table_equals_table_by_hand(build: Any) -> None:
    hypernyms, names = build.read_nouns(NOUNS.splitlines())
    tree = build.build_tree(hypernyms, CLASSES)
    assert build.format_table(tree, names, CLASSES) == TABLE


def test_main_writes_and_checks_table(
    build: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nouns, synsets, table = tmp_path / "nouns", tmp_path / "synsets", tmp_path / "table"
    nouns.write_text(NOUNS, encoding="latin-1")
    synsets.write_text("\n".join(CLASSES) + "\n", encoding="ascii")
    sources = [str(nouns), str(synsets)]
    assert build.main([*sources, "--output", str(table)]) == 0
    assert table.read_bytes() == TABLE.encode()
    assert build.main([*sources, "--check", str(table)]) == 0
    changed = TABLE.replace("\tcat\t", "\tcats\t").encode()
    table.write_bytes(changed)
    assert build.main([*sources, "--check", str(table)]) == 1
    assert "differs" in capsys.readouterr().err
    assert table.read_bytes() == changed  # --check writes nothing


def test_main_names_class_without_synset(
    build: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nouns, synsets = tmp_path / "nouns", tmp_path / "synsets"
    nouns.write_text(NOUNS, encoding="latin-1")
    synsets.write_text("n00000006\nn99999999\n", encoding="ascii")
    with pytest.raises(SystemExit) as stop:
        build.main([str(nouns), str(synsets), "--check", str(nouns)])
    assert stop.value.code == 2
    assert "n99999999" in capsys.readouterr().err
