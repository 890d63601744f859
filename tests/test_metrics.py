"""Metrics of labels and probabilities against the matrix of distances and explicit loops."""

import networkx as nx
import numpy as np
import pytest

import fastemd
from fastemd import metrics

INNER = fastemd.Tree.from_networkx(  # bins on inner nodes and on the root, edges of length 0
    nx.DiGraph([(0, 1), (0, 2), (1, 3), (3, 4), (3, 5), (2, 6)]), bins=[6, 4, 1, 0, 5, 2]
)
SPACES = {
    "chain": fastemd.Chain(6, gaps=[0.5, 2.0, 0.0, 1.0, 3.0]),
    "inner": INNER,
    "imagenet": fastemd.datasets.imagenet_tree(),
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


def test_ground_distance_of_single_labels():
    assert metrics.ground_distance(0, 2, TREE) == 4.0
    assert metrics.ground_distance([], [], TREE).shape == (0,)
    assert metrics.ground_distance(np.uint8([0]), np.int16(1), TREE).tolist() == [2.0]


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
            r"y_true: 3 at \(1,\) is not a bin; labels are 0 to 2",
        ),
        (([0, 1], [0, -1], TREE), ValueError, r"y_pred: -1 at \(1,\) is not a bin"),
        (([0.0], [0], TREE), TypeError, "y_true: expected labels of an integer type, got float64"),
        (([0, 1], [0, 1, 2], TREE), ValueError, "y_true"),
        (([0], [0], "tree"), TypeError, "space: expected a fastemd.Chain"),
    ],
)
def test_label_metrics_reject(function, arguments, error, message):
    with pytest.raises(error, match=message):
        function(*arguments)


def test_mean_ground_distance_is_weighted_mean(space, rng):
    true, predicted = rng.integers(0, space.n_bins, (2, 30))
    weights = rng.random(30)
    distances = space.cost_matrix()[true, predicted]
    comp = metrics.mean_ground_distance(true, predicted, space)
    assert comp == pytest.approx(distances.mean())
    comp = metrics.mean_ground_distance(true, predicted, space, sample_weight=weights)
    assert type(comp) is float
    assert comp == pytest.approx((weights * distances).sum() / weights.sum())


def test_mean_ground_distance_rejects_weights():
    with pytest.raises(ValueError, match="sample_weight"):
        metrics.mean_ground_distance([0, 1], [0, 1], TREE, sample_weight=[1.0, -1.0])
    with pytest.raises(ValueError, match="sample_weight"):
        metrics.mean_ground_distance([0, 1], [0, 1], TREE, sample_weight=[1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="sample_weight"):
        metrics.mean_ground_distance([0, 1], [0, 1], TREE, sample_weight=[0.0, 0.0])


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


def test_emd_scorer_rejects_estimators():
    scorer = metrics.emd_scorer(TREE)
    with pytest.raises(ValueError, match="Estimator was fitted to 2 classes"):
        scorer(Estimator([0, 2], [[0.5, 0.5]]), None, [0])
    with pytest.raises(TypeError, match="object has no predict_proba"):
        scorer(object(), None, [0])
    with pytest.raises(TypeError, match="space"):
        metrics.emd_scorer(3)
    with pytest.raises(ValueError, match="rho"):
        metrics.emd_scorer(TREE, rho=0.5)
