"""Chain and Tree: attributes, and construction from every kind of description."""

import copy
import pickle
from decimal import Decimal
from fractions import Fraction

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastemd
from tests.support import naive
from tests.support.operations import assert_close
from tests.support.strategies import cases, grounds, random_pair, tree_case

ARRAYS = ["parent", "weight", "bin_node"]


@given(cases())
def test_spaces_preserve_distances_of_description(case):
    space, ground = case
    comp = naive.ground(space)
    assert (space.n_nodes, space.n_bins) == (len(ground.parent), len(ground.bin_node))
    assert space.bins == tuple(ground.bin_node)
    assert_close(naive.cost_matrix(comp), naive.cost_matrix(ground), rtol=1e-14)
    # Equal edges: nodes are identified by the lengths of the edges to the root.
    assert _signatures(comp) == _signatures(ground)


def _signatures(ground):
    def signature(node):
        below = [k for k, at in enumerate(ground.bin_node) if at == node]
        path = []
        while ground.parent[node] != -1:
            path.append(ground.weight[node])
            node = ground.parent[node]
        return path, below

    return sorted(signature(node) for node in range(len(ground.parent)))


@given(cases())
def test_spaces_are_in_post_order(case):
    space, _ = case
    root = space.n_nodes - 1
    assert space.parent[root] == -1
    assert space.weight[root] == 0.0
    assert all(space.parent[i] > i for i in range(root))
    # Every subtree is contiguous and ends with its root.
    below = np.ones(space.n_nodes, int)
    for i in range(root):
        below[space.parent[i]] += below[i]
    for top in range(space.n_nodes):
        inside = range(top - below[top] + 1, top)
        assert all(space.parent[i] <= top for i in inside)


@given(cases())
def test_spaces_have_depth_and_diameter(case):
    space, ground = case
    levels = nx.single_source_shortest_path_length(naive.graph(ground), ground.parent.index(-1))
    assert space.depth == max(levels.values())
    assert space.diameter == pytest.approx(naive.cost_matrix(ground).max(), rel=1e-14)
    assert space.diameter == pytest.approx(space.cost_matrix().max(), rel=1e-14)


@given(cases(max_nodes=20))
def test_cost_matrix_agrees_with_shortest_paths_of_networkx(case):
    comp = case.space.cost_matrix()
    assert_close(comp, naive.cost_matrix(case.ground), rtol=1e-14)
    np.testing.assert_array_equal(comp, comp.T)
    np.testing.assert_array_equal(np.diag(comp), np.zeros(case.n_bins))


@pytest.mark.parametrize("stem", [0.0, 1.0, 1e8, 1e15])
def test_cost_matrix_is_accurate_for_short_paths_far_from_root(stem):
    """Two leaves at distance 0.3 below a stem of any length, without cancellation."""
    tree = fastemd.Tree.from_parents([-1, 0, 1, 1, 0], [0, stem, 0.1, 0.2, 4])
    short, first, second = 0.1 + 0.2, stem + 4.1, stem + 4.2
    ref = [[0, short, first], [short, 0, second], [first, second, 0]]
    np.testing.assert_allclose(tree.cost_matrix(), ref, rtol=1e-14)


def test_spaces_have_arrays_of_documented_types(case):
    space = case.space
    assert all(getattr(space, name).dtype.kind == "i" for name in ("parent", "bin_node"))
    assert space.weight.dtype == np.float64
    assert [getattr(space, name).shape for name in ARRAYS] == [
        (space.n_nodes,),
        (space.n_nodes,),
        (space.n_bins,),
    ]
    assert isinstance(space.bins, tuple)
    assert [type(getattr(space, name)) for name in ("n_bins", "n_nodes", "depth")] == [int] * 3
    assert isinstance(space.diameter, float)


def test_spaces_are_immutable(case):
    space = case.space
    cached = ("bins", "depth", "diameter", "mean_distance")
    for name in (*ARRAYS, "n_bins", "n_nodes", *cached, "anything_new"):
        with pytest.raises(AttributeError):
            setattr(space, name, 1)
    for name in (*ARRAYS, "n_bins", "bins", "depth"):
        with pytest.raises(AttributeError):
            delattr(space, name)
    for name in ARRAYS:
        with pytest.raises(ValueError, match="read-only"):
            getattr(space, name)[0] = 0


def test_spaces_copy_input_arrays():
    gaps, parents, weights = np.ones(2), np.array([-1, 0, 0]), np.array([0.0, 1.0, 2.0])
    chain, tree = fastemd.Chain(3, gaps), fastemd.Tree.from_parents(parents, weights)
    gaps[:], parents[:], weights[:] = 9, 1, 9
    assert chain.diameter == 2
    assert tree.diameter == 3
    assert gaps.flags.writeable


def test_spaces_hash_by_identity(case):
    other = pickle.loads(pickle.dumps(case.space))
    assert {case.space: 1, other: 2}[case.space] == 1
    assert case.space != other


@pytest.mark.parametrize(
    "duplicate", [copy.copy, copy.deepcopy, lambda space: pickle.loads(pickle.dumps(space))]
)
def test_spaces_survive_copying_and_pickling(case, duplicate, rng):
    p, q = random_pair(rng, (3, case.n_bins))
    for used in (False, True):  # without and with cached layouts
        if used:
            fastemd.emd_grad(p, q, case.space, 2)
        other = duplicate(case.space)
        assert type(other) is type(case.space)
        for name in ARRAYS:
            np.testing.assert_array_equal(getattr(other, name), getattr(case.space, name))
            assert not getattr(other, name).flags.writeable
        assert other.bins == case.space.bins
        np.testing.assert_array_equal(
            fastemd.emd_grad(p, q, other, 2), fastemd.emd_grad(p, q, case.space, 2)
        )
        with pytest.raises(AttributeError):
            other.n_bins = 3


def test_spaces_repr_names_kind_and_size(case):
    text = repr(case.space)
    assert type(case.space).__name__ in text
    assert f"n_bins={case.n_bins}" in text.replace("n_bins = ", "n_bins=")
    assert len(text) < 200


@given(cases())
def test_to_networkx_round_trip(case):
    graph = case.space.to_networkx()
    assert isinstance(graph, nx.DiGraph)
    assert nx.is_arborescence(graph)
    assert graph.number_of_nodes() == case.space.n_nodes
    again = fastemd.Tree.from_networkx(graph, bins=case.space.bins)
    assert again.bins == case.space.bins
    assert again.depth == case.space.depth
    np.testing.assert_allclose(again.cost_matrix(), case.space.cost_matrix(), rtol=1e-14)
    assert _signatures(naive.ground(again)) == _signatures(naive.ground(case.space))


def test_to_networkx_preserves_node_names():
    edges = [
        ("all", "animal", 2.0),
        ("animal", "cat", 1.0),
        ("animal", "dog", 3.0),
        ("all", ("a", 1), 0.5),
    ]
    graph = nx.DiGraph()
    graph.add_weighted_edges_from(edges)
    tree = fastemd.Tree.from_networkx(graph)
    assert tree.bins == ("cat", "dog", ("a", 1))
    comp = tree.to_networkx()
    assert sorted(map(str, comp.edges(data="weight"))) == sorted(map(str, edges))


@given(st.data(), grounds())
def test_from_networkx_accepts_directed_and_undirected_graphs(data, ground):
    undirected = naive.graph(ground)
    root = data.draw(st.sampled_from(range(len(ground.parent))))
    directed = nx.DiGraph()
    directed.add_nodes_from(undirected)
    for above, below in nx.bfs_edges(undirected, root):
        directed.add_edge(above, below, weight=undirected.edges[above, below]["weight"])
    ref = naive.reroot(ground, root)
    for tree in (
        fastemd.Tree.from_networkx(directed, bins=ground.bin_node),
        fastemd.Tree.from_networkx(undirected, root=root, bins=ground.bin_node),
    ):
        assert tree.bins == tuple(ground.bin_node)
        assert _signatures(naive.ground(tree)) == _signatures(ref)


@given(grounds(max_nodes=20))
def test_from_networkx_roots_undirected_tree_at_centre(ground):
    tree = fastemd.Tree.from_networkx(naive.graph(ground), bins=ground.bin_node)
    assert tree.depth == nx.radius(naive.graph(ground))


def test_from_networkx_accepts_any_weight_name_or_none(rng):
    graph = nx.DiGraph([("r", "b"), ("r", "a"), ("a", "d"), ("a", "c")])
    tree = fastemd.Tree.from_networkx(graph)
    assert tree.bins == ("b", "d", "c")  # the leaves in the graph's node order
    np.testing.assert_array_equal(tree.cost_matrix(), [[0, 3, 3], [3, 0, 2], [3, 2, 0]])
    nx.set_edge_attributes(graph, dict(zip(graph.edges, [1, 2, 4, 8], strict=True)), "length")
    np.testing.assert_array_equal(
        fastemd.Tree.from_networkx(graph).cost_matrix(), tree.cost_matrix()
    )
    comp = fastemd.Tree.from_networkx(graph, weight="length").cost_matrix()
    np.testing.assert_array_equal(comp, [[0, 7, 11], [7, 0, 12], [11, 12, 0]])


@given(grounds())
def test_from_parents_uses_leaves_as_default_bins(ground):
    tree = fastemd.Tree.from_parents(ground.parent)
    leaves = sorted(set(range(len(ground.parent))) - set(ground.parent))
    assert tree.bins == tuple(leaves)
    ref = ground._replace(weight=[1.0] * len(ground.parent), bin_node=leaves)
    np.testing.assert_array_equal(tree.cost_matrix(), naive.cost_matrix(ref))
    arrays = [np.asarray(x) for x in ground]
    again = fastemd.Tree.from_parents(*arrays[:2], bins=arrays[2])
    assert again.bins == tuple(ground.bin_node)
    assert _signatures(naive.ground(again)) == _signatures(ground)


def test_from_paths_builds_hierarchy_of_names():
    paths = [("animal", "cat"), ("car",), ("animal", "dog", "poodle"), ("animal", "dog")]
    tree = fastemd.Tree.from_paths(paths)
    assert tree.bins == tuple(paths)
    assert (tree.n_nodes, tree.n_bins, tree.depth) == (6, 4, 3)
    ref = [[0, 3, 3, 2], [3, 0, 4, 3], [3, 4, 0, 1], [2, 3, 1, 0]]
    np.testing.assert_array_equal(tree.cost_matrix(), ref)


def test_from_paths_distinguishes_equal_names_by_prefix():
    """The same name under two parents, or twice in one path, denotes different nodes."""
    tree = fastemd.Tree.from_paths([("a", "x"), ("b", "x"), ("x", "x"), (1, 2)])
    ref = np.full((4, 4), 4.0) - 4 * np.eye(4)
    np.testing.assert_array_equal(tree.cost_matrix(), ref)
    assert tree.n_nodes == 9


def test_from_paths_accepts_lengths_by_prefix():
    weights = {("a",): 1.0, ("a", "x"): 2.0, ("a", "y"): 0.0, ("b",): 8}
    tree = fastemd.Tree.from_paths([("a", "x"), ("a", "y"), ("b",)], weights=weights)
    np.testing.assert_array_equal(tree.cost_matrix(), [[0, 2, 11], [2, 0, 9], [11, 9, 0]])


def test_chain_has_bin_k_on_node_k():
    chain = fastemd.Chain(4, [2, 0.5, 3])
    assert chain.parent.tolist() == [1, 2, 3, -1]
    assert chain.weight.tolist() == [2.0, 0.5, 3.0, 0.0]
    assert chain.bin_node.tolist() == [0, 1, 2, 3]
    assert chain.bins == (0, 1, 2, 3)
    assert (chain.depth, chain.diameter) == (3, 5.5)
    assert fastemd.Chain(4).weight.tolist() == [1.0, 1.0, 1.0, 0.0]
    assert fastemd.Chain(np.int64(1)).n_nodes == 1
    assert tree_case(naive.chain(4)).space.parent.tolist() == [1, 2, 3, -1]


def test_from_networkx_ignores_lengths_for_weight_none():
    graph = nx.DiGraph()
    graph.add_weighted_edges_from([("r", "a", 5.0), ("r", "b", 7.0)])
    tree = fastemd.Tree.from_networkx(graph, weight=None)
    np.testing.assert_array_equal(tree.cost_matrix(), [[0, 2], [2, 0]])


def test_from_networkx_accepts_graph_without_edges_for_any_weight():
    graph = nx.Graph()
    graph.add_node("r")
    assert fastemd.Tree.from_networkx(graph, weight="length").bins == ("r",)


NUMBERS = {
    "a tuple": tuple,
    "objects": lambda values: np.array(values, object),
    "fractions": lambda values: [Fraction(value) for value in values],
    "decimals": lambda values: [Decimal(value) for value in values],
    "a masked array": np.ma.array,
    "a masked array with a mask": lambda values: np.ma.array(values, mask=[False] * len(values)),
}


@pytest.mark.parametrize("convert", NUMBERS.values(), ids=NUMBERS.keys())
def test_chain_accepts_numbers_of_any_kind(convert):
    assert fastemd.Chain(3, convert([2, 3])).weight.tolist() == [2.0, 3.0, 0.0]
    assert fastemd.Tree.from_parents([-1, 0, 0], convert([9, 2, 3])).weight.tolist() == [2, 3, 0]


@pytest.mark.parametrize("name", ["objects", "a masked array", "a masked array with a mask"])
def test_from_parents_accepts_integers_of_any_kind(name):
    tree = fastemd.Tree.from_parents(NUMBERS[name]([-1, 0, 0]))
    assert tree.parent.tolist() == [2, 2, -1]


def test_from_parents_ignores_masked_length_of_root():
    weights = np.ma.array([0.0, 2.0, 3.0], mask=[True, False, False])
    assert fastemd.Tree.from_parents([-1, 0, 0], weights).weight.tolist() == [2.0, 3.0, 0.0]


@pytest.mark.parametrize(
    ("real", "integer"), [("float64", "int8"), ("Float64", "Int64"), ("object", "object")]
)
def test_spaces_accept_columns_of_pandas(real, integer):
    pandas = pytest.importorskip("pandas")
    for dtype in (real, integer):
        lengths = pandas.Series([2, 3], dtype=dtype, index=[7, 5])
        assert fastemd.Chain(3, lengths).weight.tolist() == [2.0, 3.0, 0.0]
    weights = pandas.Series([None, 2, 3], dtype=real)
    parents = pandas.Series([-1, 0, 0], dtype=integer, index=[5, 1, 2])
    tree = fastemd.Tree.from_parents(parents, weights, bins=pandas.Series([2, 1]))
    assert tree.weight.tolist() == [2.0, 3.0, 0.0]
    assert tree.bins == (2, 1)
    for gaps in (pandas.Series([2, None], dtype="Int64"), pandas.Series([None, 2], dtype="object")):
        with pytest.raises((TypeError, ValueError), match=r"^gaps: "):
            fastemd.Chain(3, gaps)


def test_from_paths_accepts_weights_in_series():
    pandas = pytest.importorskip("pandas")
    index = pandas.Index([("a",), ("a", "x"), ("b",)], tupleize_cols=False)
    weights = pandas.Series([1.0, 2.0, 3.0], index=index)
    tree = fastemd.Tree.from_paths([("a", "x"), ("b",)], weights=weights)
    np.testing.assert_array_equal(tree.cost_matrix(), [[0, 6], [6, 0]])


# -- chains of real values -------------------------------------------------------------------------


def test_chain_from_edges_has_gaps_between_midpoints(rng):
    edges = np.cumsum(rng.random(8) + 0.1) - 3
    chain = fastemd.Chain.from_edges(edges)
    middles = (edges[1:] + edges[:-1]) / 2
    assert chain.n_bins == 7
    np.testing.assert_allclose(
        chain.cost_matrix(), np.abs(middles[:, None] - middles), rtol=1e-13, atol=1e-13
    )
    np.testing.assert_array_equal(chain.bin_edges, edges)
    edges[0] = -9.0
    assert chain.bin_edges[0] != -9.0
    assert not chain.bin_edges.flags.writeable


def test_chain_from_positions_has_edges_half_way():
    chain = fastemd.Chain.from_positions([1, 2, 4, 8])
    assert chain.weight.tolist() == [1, 2, 4, 0]
    assert chain.bin_edges.tolist() == [0.5, 1.5, 3, 6, 10]
    assert fastemd.Chain.from_positions([3.0]).bin_edges.tolist() == [2.5, 3.5]
    assert fastemd.Chain(4).bin_edges is None


def test_chain_with_edges_is_pickled():
    chain = pickle.loads(pickle.dumps(fastemd.Chain.from_edges([0, 1, 3])))
    assert chain.bin_edges.tolist() == [0, 1, 3]
    assert copy.deepcopy(chain).bin_of(2.0) == 1
    assert pickle.loads(pickle.dumps(fastemd.Chain(3))).bin_edges is None


def test_bin_of_agrees_with_histogram(rng):
    edges = np.sort(rng.random(9))
    chain = fastemd.Chain.from_edges(edges)
    values = np.concatenate([rng.uniform(edges[0], edges[-1], 200), edges])
    labels = chain.bin_of(values)
    assert labels.dtype == np.int64
    counts, _ = np.histogram(values, edges)
    np.testing.assert_array_equal(np.bincount(labels, minlength=8), counts)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_bin_of_rounds_edges_to_type_of_values(dtype):
    edges = np.linspace(0, 1, 11)
    labels = fastemd.Chain.from_edges(edges).bin_of(edges.astype(dtype))
    assert labels.tolist() == [*range(10), 9]


def test_bin_of_scalar_is_a_scalar():
    assert isinstance(fastemd.Chain.from_edges([0.0, 1.0]).bin_of(0.5), np.int64)


class Subclass(fastemd.Chain):
    def __init__(self):
        raise AssertionError


def test_subclass_of_chain_is_built_from_edges_and_pickled():
    chain = pickle.loads(pickle.dumps(Subclass.from_edges([0.0, 1.0, 2.0])))
    assert type(chain) is Subclass
    assert chain.bin_of(1.5) == 1


def test_bin_of_clips_and_ignores_nan():
    chain = fastemd.Chain.from_edges([0.0, 1.0, 2.0])
    values = [[-np.inf, -1.0, 0.0], [2.0, 3.0, np.nan]]
    assert chain.bin_of(values, clip=True).tolist() == [[0, 0, 0], [1, 1, -100]]
    assert chain.bin_of(np.float32(0.5)) == 0
    loss, grad = fastemd.emd_loss(
        np.zeros((2, 2)), chain.bin_of([0.5, np.nan]), chain, ignore_index=-100
    )
    assert loss > 0
    assert (grad[1] == 0).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fastemd.Chain.from_edges([1.0]), ValueError, "edges: expected 2 or more numbers"),
        (
            lambda: fastemd.Chain.from_edges([0, 1, 1]),
            ValueError,
            "got 1.0 after 1.0 at index 2; sort",
        ),
        (lambda: fastemd.Chain.from_edges([0, np.inf]), ValueError, "got inf after 0.0"),
        (lambda: fastemd.Chain.from_edges([[0, 1]]), ValueError, r"an array of shape \(1, 2\)"),
        (lambda: fastemd.Chain.from_positions([]), ValueError, "x: expected 1 or more"),
        (lambda: fastemd.Chain.from_positions([2, 1]), ValueError, "got 1.0 after 2.0"),
        (lambda: fastemd.Chain.from_positions(["a"]), TypeError, "x: expected"),
        (lambda: fastemd.Chain.from_positions(["1", "2"]), TypeError, "x: expected"),
        (
            lambda: fastemd.Chain.from_positions([-1.7e308, 1.7e308]),
            ValueError,
            "x: expected finite",
        ),
        (lambda: fastemd.Chain(3).bin_of(0.5), ValueError, "this chain has no bin edges"),
        (
            lambda: fastemd.Chain.from_edges([0, 1]).bin_of([[0.5, 2.0]]),
            ValueError,
            r"values: 2.0 at index 0, 1 is not within \[0.0, 1.0\]; use wider edges, or clip=True",
        ),
        (lambda: fastemd.Chain.from_edges([0, 1]).bin_of("x"), TypeError, "values"),
    ],
)
def test_chain_rejects_real_values(call, error, message):
    with pytest.raises(error, match=message):
        call()
