"""The plots show the right values at the right places."""

import itertools

import matplotlib as mpl
import networkx as nx
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection, PathCollection, PolyCollection

import fastemd
from fastemd import plotting

mpl.use("Agg")
TREE = fastemd.Tree.from_paths([("a", "b", "x"), ("a", "b", "y"), ("a", "z"), ("c",)])
P, Q = np.array([0.5, 0.1, 0.4, 0.0]), np.array([0.1, 0.2, 0.2, 0.5])


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def _collection(ax, kind):
    """Return the first collection of a kind in the axes."""
    return next(c for c in ax.collections if isinstance(c, kind))


def _values(ax, kind):
    """Return the values that colour a collection."""
    (values,) = [
        c.get_array() for c in ax.collections if type(c) is kind and c.get_array() is not None
    ]
    return np.asarray(values)


def _wide_first(flow):
    return flow[np.argsort(-np.abs(flow), kind="stable")]


def test_plot_flow_draws_every_edge_and_bin():
    ax = plotting.plot_flow(P, Q, TREE)
    flow = fastemd.emd_flow(P, Q, TREE)
    np.testing.assert_array_equal(_values(ax, LineCollection), _wide_first(flow))
    np.testing.assert_allclose(_values(ax, PathCollection), P - Q)
    assert {text.get_text() for text in ax.texts} == {"x", "y", "z", "c"}


def test_plot_flow_of_columns_starts_at_common_ancestor():
    ax = plotting.plot_flow(P, Q, TREE, columns=[1, 0])
    shown = [("a", "b", "x"), ("a", "b", "y")]
    flow = fastemd.emd_flow(P, Q, TREE)[[TREE.nodes.index(node) for node in shown]]
    np.testing.assert_array_equal(_values(ax, LineCollection), _wide_first(flow))


def test_plot_gradient_draws_every_bin():
    ax = plotting.plot_gradient(P, Q, TREE, 2)
    np.testing.assert_array_equal(_values(ax, PathCollection), fastemd.emd_grad(P, Q, TREE, 2))


@pytest.mark.parametrize("rho", [1, 2.5])
def test_plot_gradient_of_equal_histograms_is_zero(rho):
    ax = plotting.plot_gradient(P, P, TREE, rho)
    assert not _values(ax, PathCollection).any()


def test_plot_tree_draws_children_below_parents():
    ax = plotting.plot_tree(TREE)
    segments = np.array(_collection(ax, LineCollection).get_segments())
    assert len(segments) == TREE.n_nodes - 1
    assert (segments[:, 0, 1] == segments[:, -1, 1] - 1).all()
    bins = _collection(ax, PathCollection).get_offsets()
    assert len({tuple(xy) for xy in bins.tolist()}) == TREE.n_bins


def test_plot_tree_draws_chain_on_horizontal_line():
    ax = plotting.plot_tree(fastemd.Chain(3, gaps=[1, 4]))
    bins = _collection(ax, PathCollection).get_offsets()
    np.testing.assert_array_equal(bins, [[0, 0], [1, 0], [5, 0]])


def test_plot_tree_uses_labels_and_axes_of_user():
    ax = plt.figure().add_subplot()
    assert plotting.plot_tree(TREE, labels={("c",): "sea"}, ax=ax) is ax
    assert "sea" in {text.get_text() for text in ax.texts}


@pytest.mark.parametrize("columns", [[], [-1], [4], ["a"], [0.5]])
def test_plot_tree_rejects_missing_columns(columns):
    with pytest.raises(ValueError, match="columns: expected integers between 0 and 3"):
        plotting.plot_tree(TREE, columns=columns)


def test_plot_flow_rejects_batches_and_non_spaces():
    with pytest.raises(ValueError, match=r"p: expected one histogram, got shape \(1, 4\)"):
        plotting.plot_flow([P], Q, TREE)
    with pytest.raises(TypeError, match="space: expected"):
        plotting.plot_tree("tree")


def _texts(ax):
    return {text.get_text() for text in ax.texts}


def test_plot_tree_labels_path_by_last_name():
    tree = fastemd.Tree.from_paths([("animal", "cat"), ("toy", "cat"), ("toy", 3), ("animal",)])
    assert _texts(plotting.plot_tree(tree)) == {"cat", "3", "animal"}
    labels = {("toy", 3): "three"}
    assert _texts(plotting.plot_tree(tree, labels=labels)) == {"cat", "three", "animal"}
    again = fastemd.Tree.from_networkx(tree.to_networkx(), bins=tree.bins)
    assert _texts(plotting.plot_tree(again)) == {"cat", "3", "animal"}


def test_plot_tree_labels_other_tuples_in_full():
    tree = fastemd.Tree.from_networkx(nx.DiGraph([("r", ("r", 1)), ("r", (0, 1))]))
    assert _texts(plotting.plot_tree(tree)) == {"('r', 1)", "(0, 1)"}
    root = fastemd.Tree.from_paths([(), ("a",)])
    assert _texts(plotting.plot_tree(root)) == {"()", "a"}


NAMES = ["a", "a name of thirty characters, ab", "Canis lupus familiaris (long)"]
SPACES = {
    "wide": fastemd.Tree.from_paths([(name, str(i)) for i, name in enumerate(NAMES)]),
    "long names": fastemd.Tree.from_paths([("x", name) for name in NAMES] + [("y",)]),
    "one column": fastemd.Tree.from_paths([("x", NAMES[1])]),
    "one node": fastemd.Tree.from_paths([()]),
    "chain": fastemd.Chain(30, gaps=np.linspace(0.1, 1, 29)),
    "chain of one": fastemd.Chain(1),
}


def _plots(space, keywords):
    p, q = np.eye(space.n_bins)[[0, -1]]
    yield plotting.plot_tree(space, **keywords())
    yield plotting.plot_flow(p, q, space, **keywords())
    yield plotting.plot_gradient(p, q, space, 2, **keywords())


def _assert_inside(text, box):
    (x0, y0), (x1, y1) = text.get_window_extent().get_points()
    assert box.x0 - 1 <= x0 < x1 <= box.x1 + 1, text.get_text()
    assert box.y0 - 1 <= y0 < y1 <= box.y1 + 1, text.get_text()


def _assert_labels_inside(ax, box):
    ax.figure.canvas.draw()
    assert ax.texts
    for text in ax.texts:
        _assert_inside(text, box)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())
def test_plots_draw_labels_inside_figure(space):
    for ax in _plots(space, dict):
        _assert_labels_inside(ax, ax.figure.bbox)
        for bar in ax.figure.axes[1:]:
            _assert_inside(bar.yaxis.label, ax.figure.bbox)


@pytest.mark.parametrize("layout", [None, "constrained", "tight"])
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())
def test_plots_draw_labels_inside_axes_of_user(space, layout):
    labels = {} if isinstance(space, fastemd.Tree) else dict.fromkeys(space.bins, NAMES[2])

    def keywords():
        figure = plt.figure(figsize=(5, 4), layout=layout)
        return {"ax": figure.subplots(1, 2)[0], "labels": labels}

    for ax in _plots(space, keywords):
        ax.set_title("flow")
        _assert_labels_inside(ax, ax.bbox)


def test_plot_tree_enlarges_margins_for_long_names():
    tree = fastemd.Tree.from_paths([("a", "x" * 150), ("b", "y")])
    ax = plotting.plot_tree(tree)
    _assert_labels_inside(ax, ax.figure.bbox)
    nodes = np.concatenate(_collection(ax, LineCollection).get_segments())
    heights = ax.transData.transform(nodes)[:, 1]
    assert np.ptp(heights) > 72.0  # the tree remains visible, in pixels


def test_plot_tree_does_not_shrink_limits_of_axes_of_user():
    ax = plt.figure().add_subplot()
    ax.plot([-5, 9], [-7, 3])
    plotting.plot_tree(TREE, ax=ax)
    (x0, x1), (y0, y1) = ax.get_xlim(), ax.get_ylim()
    assert x0 <= -5 < 9 <= x1
    assert y0 <= -7 < 3 <= y1


NOT_TO_SCALE = "edge lengths not to scale"


@pytest.mark.parametrize("lengths", [(1, 2, 1, 1), (1, 1, 1, 0)])
def test_plots_state_that_lengths_are_not_to_scale(lengths):
    weights = dict(zip([("a",), ("a", "x"), ("a", "y"), ("b",)], lengths, strict=True))
    tree = fastemd.Tree.from_paths([("a", "x"), ("a", "y"), ("b",)], weights=weights)
    for ax in _plots(tree, dict):
        assert [text.get_text() for text in ax.texts].count(NOT_TO_SCALE) == 1
        _assert_labels_inside(ax, ax.figure.bbox)


def test_plots_omit_statement_if_lengths_are_to_scale():
    equal = fastemd.Tree.from_parents([-1, 0, 0], [7.0, 0.1 + 0.2, 0.3])
    part = fastemd.Tree.from_paths(
        [("a", "x"), ("a", "y"), ("b",)],
        weights={("a",): 5, ("a", "x"): 2, ("a", "y"): 2, ("b",): 1},
    )
    for space, columns in ((equal, None), (part, [0, 1]), (SPACES["chain"], None)):
        assert NOT_TO_SCALE not in _texts(plotting.plot_tree(space, columns=columns))
    assert NOT_TO_SCALE in _texts(plotting.plot_tree(part))


STAR = fastemd.Tree.from_parents([-1] + [0] * 500)
PATH = fastemd.Tree.from_networkx(nx.path_graph(100, nx.DiGraph), bins=range(100))
CLADES = fastemd.Tree.from_paths([(f"clade {i // 10}", f"taxon {i}") for i in range(1000)])


def _assert_labels_apart(ax):
    ax.figure.canvas.draw()
    boxes = sorted((text.get_window_extent() for text in ax.texts), key=lambda box: box.x0)
    assert len(boxes) > 1
    assert all(a.x1 <= b.x0 + 1 or not a.overlaps(b) for a, b in itertools.pairwise(boxes))


@pytest.mark.parametrize("space", [STAR, PATH, CLADES], ids=["star", "path", "clades"])
@pytest.mark.parametrize("to_scale", [False, True])
def test_plots_draw_at_most_max_bins_and_label_all(space, to_scale):
    p, q = np.random.default_rng(0).dirichlet(np.ones(space.n_bins), 2)
    for ax in (
        plotting.plot_tree(space, to_scale=to_scale),
        plotting.plot_flow(p, q, space, to_scale=to_scale),
        plotting.plot_gradient(p, q, space, 2, to_scale=to_scale),
    ):
        _assert_labels_apart(ax)
        _assert_labels_inside(ax, ax.figure.bbox)
        texts = [text.get_text() for text in ax.texts]
        assert len([text for text in texts if not text.startswith("length ")]) == 60


def test_plot_flow_of_group_shows_sum():
    p, q = np.zeros((2, 1000))
    p[[0, 11, 12]], q[[1, 500]] = [0.5, 0.2, 0.3], [0.4, 0.6]
    ax = plotting.plot_flow(p, q, CLADES, max_bins=5)
    names = ["clade 0 (10 bins)", "clade 1 (10 bins)", "taxon 500", "9 more", "970 more"]
    assert [text.get_text() for text in ax.texts] == names
    np.testing.assert_allclose(_values(ax, PathCollection), [0.1, 0.5, -0.6, 0, 0], atol=1e-15)


def test_plot_flow_joins_siblings_without_flow():
    p, q = np.zeros((2, 500))
    p[:10], q[10:20] = 0.1, 0.1
    texts = _texts(plotting.plot_flow(p, q, STAR))
    assert texts == {"480 more"} | {str(i) for i in range(1, 21)}


def test_plot_gradient_of_group_shows_mean():
    p, q = np.eye(1000)[[0, 500]]
    grad = fastemd.emd_grad(p, q, CLADES, 2)
    ax = plotting.plot_gradient(p, q, CLADES, 2, max_bins=3)
    rest = np.delete(grad, np.r_[:10, 500:510])
    means = [grad[:10].mean(), grad[500:510].mean(), rest.mean()]
    np.testing.assert_allclose(_values(ax, PathCollection), means, atol=1e-15)
    assert _texts(ax) == {"clade 0 (10 bins)", "clade 50 (10 bins)", "980 more"}


def test_plot_tree_of_columns_ignores_max_bins():
    ax = plotting.plot_tree(CLADES, columns=range(80), max_bins=1)
    assert len(_collection(ax, PathCollection).get_offsets()) == 80
    assert not _collection(ax, PolyCollection).get_paths()
    _assert_labels_apart(ax)


def _crosses(across, up):
    """Return whether a horizontal and a vertical line, (2, 2) each, cross away from their ends."""
    (x0, y), (x1, _) = across[np.argsort(across[:, 0])]
    (x, y0), (_, y1) = up[np.argsort(up[:, 1])]
    return x0 < x < x1 and y0 < y < y1


@pytest.mark.parametrize("to_scale", [False, True])
def test_plot_flow_draws_lines_that_do_not_cross(to_scale):
    parent = [-1] + [max(0, i - 1 - i**3 % 7) for i in range(1, 200)]
    tree = fastemd.Tree.from_parents(parent, np.arange(200) % 5, bins=range(3, 200))
    p, q = np.random.default_rng(0).dirichlet(np.ones(tree.n_bins), 2)
    ax = plotting.plot_flow(p, q, tree, to_scale=to_scale)
    lines = np.array(_collection(ax, LineCollection).get_segments())
    up, across = lines[:, :2], lines[:, 1:]
    assert (up[:, 0, 0] == up[:, 1, 0]).all()
    assert (across[:, 0, 1] == across[:, 1, 1]).all()
    assert not any(_crosses(a, b) for a in across for b in up)
    tops = {tuple(corner) for corner in up[:, 1].tolist()}
    triangles = [path.vertices for path in _collection(ax, PolyCollection).get_paths()]
    assert triangles
    assert all(tuple(triangle[0].tolist()) in tops for triangle in triangles)


def test_plot_flow_of_many_columns_omits_labels_of_small_discs():
    p, q = np.eye(1000)[[7, 151]]
    ax = plotting.plot_flow(p, q, CLADES, columns=range(300))
    assert _values(ax, PathCollection).size == 300
    _assert_labels_apart(ax)
    assert {"taxon 7", "taxon 151"} < _texts(ax)
    assert 40 < len(ax.texts) < 120


def test_plot_flow_omits_overlapping_labels_on_wider_axes_of_user():
    figure = plt.figure(figsize=(10, 6))
    ax = figure.subplots()
    ax.plot([-100, 200], [0, 0])
    star = fastemd.Tree.from_parents([-1] + [0] * 200)
    plotting.plot_flow(*np.eye(200)[[0, 100]], star, columns=range(200), ax=ax)
    _assert_labels_apart(ax)
    assert len(ax.texts) > 10


def test_plot_tree_draws_dollars_in_names():
    ax = plotting.plot_tree(fastemd.Tree.from_paths([("a", "$x_{$"), ("a", "y")]))
    ax.figure.canvas.draw()
    labelled = plotting.plot_tree(fastemd.Chain(2), labels={0: "$x_0$"})
    assert _texts(ax) == {r"\$x_{\$", "y"}
    assert _texts(labelled) == {"$x_0$", "1"}


def test_plot_tree_draws_all_bins_of_chain():
    ax = plotting.plot_tree(fastemd.Chain(300, gaps=np.geomspace(1e-3, 1, 299)))
    assert len(_collection(ax, PathCollection).get_offsets()) == 300
    _assert_labels_apart(ax)


def test_plot_tree_to_scale_places_nodes_by_distance():
    weights = {("a",): 1e-6, ("a", "x"): 1000.0, ("a", "y"): 0.0, ("b",): 3.0}
    tree = fastemd.Tree.from_paths([("a", "x"), ("a", "y"), ("b",)], weights=weights)
    ax = plotting.plot_tree(tree, to_scale=True)
    bins = _collection(ax, PathCollection).get_offsets()
    np.testing.assert_allclose(bins[:, 1], [-1000 - 1e-6, -1e-6, -3])
    assert _texts(ax) == {"x", "y", "b", "length 500"}
    _assert_labels_apart(ax)
    flat = fastemd.Tree.from_parents([-1, 0, 0], [0.0, 0.0, 0.0])
    assert _texts(plotting.plot_tree(flat, to_scale=True)) == {"1", "2"}


def test_plot_tree_to_scale_places_group_at_its_farthest_bin():
    paths = [("a", "x"), ("a", "y", "z"), ("a", "w"), ("b",)]
    weights = {path[:k]: k for path in paths for k in range(1, len(path) + 1)}
    tree = fastemd.Tree.from_paths(paths, weights=weights)
    ax = plotting.plot_tree(tree, max_bins=2, to_scale=True)
    assert _texts(ax) == {"a (3 bins)", "b", "length 2"}
    (triangle,) = _collection(ax, PolyCollection).get_paths()
    np.testing.assert_array_equal(triangle.vertices[:3, 1], [-1, -6, -6])


@pytest.mark.parametrize(("max_bins", "error"), [(0, ValueError), (2.5, TypeError)])
def test_plot_tree_rejects_invalid_max_bins(max_bins, error):
    with pytest.raises(error, match="max_bins: expected"):
        plotting.plot_tree(TREE, max_bins=max_bins)
