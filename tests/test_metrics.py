"""Metrics of labels and probabilities against the matrix of distances and explicit loops."""

import pickle
import tracemalloc

import networkx as nx
import numpy as np
import pytest

import fastemd
from fastemd import metrics

EDGES = [(0, 1, 0.5), (0, 2, 3.0), (1, 3, 0.0), (3, 4, 2.0), (3, 5, 0.25), (2, 6, 1.5)]
GRAPH = nx.DiGraph()
GRAPH.add_weighted_edges_from(EDGES)
INNER = fastemd.Tree.from_networkx(GRAPH, bins=[6, 4, 1, 0, 5, 2])  # on inner nodes and the root
SPACES = {
    "chain": fastemd.Chain(6, gaps=[0.5, 2.0, 0.0, 1.0, 3.0]),
    "inner": INNER,
    "imagenet": fastemd.datasets.imagenet_tree(),
    "one bin": fastemd.Chain(1),
}
PATHS = [("animal", "cat"), ("animal", "dog"), ("vehicle", "car")]
TREE = fastemd.Tree.from_paths(PATHS)


@pytest.fixture(params=SPACES.values(), ids=SPACES.keys())
def space(request):
    return request.param


def test_ground_distance_agrees_with_cost_matrix(space, rng):
    true, predicted = rng.integers(0, space.n_bins, (2, 40))
    cost = space.cost_matrix()
    comp = metrics.ground_distance(true, predicted, space)
    np.testing.assert_allclose(comp, cost[true, predicted], rtol=1e-13, atol=1e-13)
    every = np.arange(min(space.n_bins, 50))
    table = metrics.ground_distance(every[:, None], every, space)
    np.testing.assert_allclose(table, cost[np.ix_(every, every)], rtol=1e-13, atol=1e-13)
    assert (np.diag(table) == 0).all()


def test_ground_distance_on_chain_does_not_cancel():
    gaps = [1e17, 1.0, 1e-9, 3.0, 1e-9]
    chain = fastemd.Chain(6, gaps)
    every = np.arange(6)
    table = metrics.ground_distance(every[:, None], every, chain)
    np.testing.assert_allclose(table, chain.cost_matrix(), rtol=1e-15, atol=0)


def test_ground_distance_of_single_labels():
    assert metrics.ground_distance(0, 2, TREE) == 4.0
    assert isinstance(metrics.ground_distance(0, 2, TREE), np.float64)
    assert metrics.ground_distance([], [], TREE).shape == (0,)
    assert metrics.ground_distance(np.uint8([0]), np.int16(1), TREE).tolist() == [2.0]


@pytest.mark.parametrize("space", [TREE, INNER, SPACES["imagenet"]])
def test_lca_height_agrees_with_networkx(space, rng):
    graph = space.to_networkx()
    true, predicted = rng.integers(0, space.n_bins, (2, 40))
    comp = metrics.lca_height(true, predicted, space)
    for a, b, height in zip(true, predicted, comp, strict=True):
        ancestor = nx.lowest_common_ancestor(graph, space.bins[a], space.bins[b])
        assert height == max(nx.single_source_shortest_path_length(graph, ancestor).values())


@pytest.mark.parametrize("function", [metrics.ground_distance, metrics.lca_height])
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            ([0, 3], [0, 1], TREE),
            ValueError,
            "y_true: 3 at index 1 is not a bin; labels are 0 to 2",
        ),
        (([0, 1], [0, -1], TREE), ValueError, "y_pred: -1 at index 1 is not a bin"),
        ((np.uint8([200]), [0], TREE), ValueError, "y_true: 200 at index 0 is not a bin"),
        (([0.0], [0], TREE), TypeError, "y_true: expected labels of an integer type, got float64"),
        (([0, 1], [0, 1, 2], TREE), ValueError, "y_true"),
        (([0], [0], "tree"), TypeError, "space: expected a fastemd.Chain"),
    ],
)
def test_metrics_of_labels_reject_arguments(function, arguments, error, message):
    with pytest.raises(error, match=message):
        function(*arguments)


def test_lca_height_computes_heights_once():
    tree = fastemd.Tree.from_paths(PATHS)
    assert "heights" not in vars(tree)
    first = metrics.lca_height([0, 0], [1, 2], tree)
    assert tree.heights is vars(tree)["heights"]
    np.testing.assert_array_equal(tree.heights[tree.parent[tree.bin_node[:2]]], [1, 1])
    assert not tree.heights.flags.writeable
    first[:] = 7
    assert metrics.lca_height([0, 0], [1, 2], tree).tolist() == [1, 2]
    assert metrics.lca_height(0, 2, tree) == 2


def test_mean_ground_distance_is_weighted_mean(space, rng):
    true, predicted = rng.integers(0, space.n_bins, (2, 30))
    weights = rng.random(30)
    distances = space.cost_matrix()[true, predicted]
    comp = metrics.mean_ground_distance(true, predicted, space)
    assert comp == pytest.approx(distances.mean())
    comp = metrics.mean_ground_distance(true, predicted, space, sample_weight=weights)
    assert type(comp) is float
    assert comp == pytest.approx((weights * distances).sum() / weights.sum())


def test_means_leave_ignored_labels_and_rows_of_weight_0_out():
    labels, prob = [0, -100, 2, 9], np.array([[1, 0, 0], [np.nan] * 3, [0, 1, 0], [9, 9, 9]])
    options = {"sample_weight": [1.0, 1.0, 3.0, 0.0], "ignore_index": -100}
    comp = metrics.mean_ground_distance(labels, [0, 7, 1, 0], fastemd.Chain(3), **options)
    assert comp == pytest.approx(0.75)
    assert metrics.emd_score(labels, prob, fastemd.Chain(3), **options) == pytest.approx(0.75)


def _mean_ground_distance(labels, **options):
    return metrics.mean_ground_distance(labels, labels, TREE, **options)


def _emd_score(labels, **options):
    return metrics.emd_score(labels, np.eye(3)[np.zeros(len(labels), int)], TREE, **options)


@pytest.mark.parametrize("mean", [_mean_ground_distance, _emd_score])
@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, -1.0], "sample_weight"),
        ([1.0, np.inf], "sample_weight"),
        ([1.0, 1.0, 1.0], "sample_weight"),
        ([0.0, 0.0], "sample_weight: there is no row of positive weight"),
    ],
)
def test_means_reject_weights(mean, weights, message):
    with pytest.raises(ValueError, match=message):
        mean([0, 1], sample_weight=weights)


@pytest.mark.parametrize("mean", [_mean_ground_distance, _emd_score])
def test_means_of_nothing_and_of_huge_weights(mean):
    with pytest.raises(ValueError, match="no row of positive weight"):
        mean(np.empty(0, int))
    assert mean([0, 0], sample_weight=[1.5e308, 1.5e308]) == 0.0


def test_mean_ground_distance_rejects_columns():
    with pytest.raises(ValueError, match=r"y_pred: expected the shape of y_true, \(2, 1\)"):
        metrics.mean_ground_distance([[0], [1]], [0, 1], TREE)


def test_emd_score_is_loss_to_the_last_bit_without_memory_for_gradient(rng):
    prob, labels = rng.dirichlet(np.ones(500), 2000), rng.integers(0, 500, 2000)
    loss, _ = fastemd.emd_loss(prob, labels, fastemd.Chain(500), normalize=None)
    tracemalloc.start()
    try:
        assert metrics.emd_score(labels, prob, fastemd.Chain(500)) == loss
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


def test_emd_score_takes_coarse_types():
    prob = np.array([[0.1, 0.2, 0.7]], np.float16)
    assert metrics.emd_score([2], prob, TREE) == pytest.approx(
        fastemd.emd_loss(prob, [2], TREE, normalize=None)[0], rel=1e-6
    )


def test_emd_score_rejects_frame_in_another_order():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([[1.0, 0.0, 0.0]], columns=[2, 1, 0])
    with pytest.raises(ValueError, match=r"^prob: .*order"):
        metrics.emd_score([0], frame, fastemd.Chain(3))


@pytest.mark.parametrize(
    ("labels", "prob", "message"),
    [
        ([3], [[1.0, 0.0, 0.0]], "^y_true: "),
        ([0], [[0.5, 0.0, 0.0]], "^prob: "),
        ([0], [[0.5, 0.5]], "^prob: "),
        ([[0], [1]], np.eye(3)[:2], r"^y_true: labels .* the rows of prob, of shape \(2, 3\)"),
    ],
)
def test_emd_score_names_its_arguments(labels, prob, message):
    with pytest.raises(ValueError, match=message):
        metrics.emd_score(labels, prob, TREE)


@pytest.mark.parametrize("rho", [1, 2, 3.7])
def test_emd_score_is_mean_of_emd(space, rho, rng):
    prob = rng.dirichlet(np.ones(space.n_bins), 20)
    labels, weights = rng.integers(0, space.n_bins, 20), rng.random(20)
    distances = fastemd.emd(prob, np.eye(space.n_bins)[labels], space, rho)
    comp = metrics.emd_score(labels, prob, space, rho)
    assert type(comp) is float
    assert comp == pytest.approx(distances.mean())
    assert metrics.emd_score(np.eye(space.n_bins)[labels], prob, space, rho) == pytest.approx(comp)
    comp = metrics.emd_score(labels, prob, space, rho, sample_weight=weights)
    assert comp == pytest.approx((weights * distances).sum() / weights.sum())


def test_emd_score_is_expected_distance_and_ranked_probability_score(rng):
    prob, labels = rng.dirichlet(np.ones(5), 9), rng.integers(0, 5, 9)
    chain = fastemd.Chain(5)
    expected = (prob * np.abs(np.arange(5) - labels[:, None])).sum(-1).mean()
    assert metrics.emd_score(labels, prob, chain, rho=1) == pytest.approx(expected)
    steps = np.cumsum(prob, -1) - (np.arange(5) >= labels[:, None])
    assert metrics.emd_score(labels, prob, chain) == pytest.approx((steps**2).sum(-1).mean())


class Estimator:
    def __init__(self, classes, prob):
        self.classes_, self.prob = np.array(classes), np.array(prob)

    def predict_proba(self, x):
        return self.prob


def test_emd_scorer_scores_probabilities():
    prob = [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]
    scorer = metrics.emd_scorer(TREE, rho=1)
    assert scorer(Estimator([0, 1, 2], prob), None, [0, 2]) == -0.5
    assert scorer(Estimator([0, 1, 2], prob), None, [0, 2], sample_weight=[1.0, 3.0]) == -0.25


def test_emd_scorer_gives_missing_classes_probability_0():
    scorer = metrics.emd_scorer(TREE, rho=1)
    assert scorer(Estimator([0, 2], [[0.5, 0.5]]), None, [2]) == -2.0


def test_emd_scorer_is_pickled():
    scorer = pickle.loads(pickle.dumps(metrics.emd_scorer(TREE, rho=1)))
    assert scorer(Estimator([0, 1, 2], [[0.5, 0.5, 0.0]]), None, [0]) == -1.0


def test_emd_scorer_in_grid_search(rng):
    linear_model = pytest.importorskip("sklearn.linear_model")
    selection = pytest.importorskip("sklearn.model_selection")
    x, y = rng.normal(size=(60, 2)), rng.integers(0, 3, 60)
    search = selection.GridSearchCV(
        linear_model.LogisticRegression(), {"C": [1e-3, 1.0]}, scoring=metrics.emd_scorer(TREE)
    )
    search.fit(x, y)
    expected = -metrics.emd_score(y, search.predict_proba(x), TREE)
    assert search.score(x, y) == pytest.approx(expected)
    assert pickle.loads(pickle.dumps(search)).score(x, y) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("estimator", "error", "message"),
    [
        (Estimator([0, 3], [[0.5, 0.5]]), ValueError, r"Estimator was fitted to \[0, 3\]; encode"),
        (Estimator([0.0, 1.0], [[0.5, 0.5]]), ValueError, "encode the labels as integers"),
        (Estimator([[0, 1]], [[0.5, 0.5]]), TypeError, "has no classes_ of one output"),
        (object(), TypeError, "object has no predict_proba"),
    ],
)
def test_emd_scorer_rejects_estimators(estimator, error, message):
    with pytest.raises(error, match=message):
        metrics.emd_scorer(TREE)(estimator, None, [0])


def test_emd_scorer_rejects_arguments():
    with pytest.raises(TypeError, match="space"):
        metrics.emd_scorer(3)
    with pytest.raises(ValueError, match="rho"):
        metrics.emd_scorer(TREE, rho=0.5)


def test_lca_height_rejects_chains():
    with pytest.raises(TypeError, match=r"expected a fastemd.Tree; a chain has no hierarchy"):
        metrics.lca_height([0], [1], fastemd.Chain(3))
