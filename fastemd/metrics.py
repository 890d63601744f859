"""Metrics of predictions over ordered or hierarchical classes.

They have scikit-learn's order of arguments: what is true, then what is predicted.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastemd import validation
from fastemd.losses import emd_loss
from fastemd.spaces import Chain, GroundSpace

Labels = NDArray[np.intp]
Distances = NDArray[np.float64]


def ground_distance(
    y_true: ArrayLike, y_pred: ArrayLike, space: GroundSpace
) -> NDArray[np.float64]:
    """Compute the ground distance between true and predicted labels.

    Parameters
    ----------
    y_true, y_pred : array_like of int, (...)
        Labels, numbers of bins of `space`. They broadcast.
    space : Chain or Tree
        The ground space.

    Returns
    -------
    ndarray of float64, (...)
        The length of the path between the two bins, 0 if they are equal.

    Raises
    ------
    ValueError, TypeError
        If a label is not an integer or not a bin, or the shapes do not broadcast.

    Notes
    -----
    O(depth) per pair, without the matrix of all distances; O(1) on a chain.

    Examples
    --------
    >>> import fastemd
    >>> paths = [("animal", "cat"), ("animal", "dog"), ("vehicle", "car")]
    >>> tree = fastemd.Tree.from_paths(paths)
    >>> fastemd.metrics.ground_distance([0, 0, 0], [0, 1, 2], tree)
    array([0., 2., 4.])
    """
    true, predicted = _labels(y_true, y_pred, space)
    if isinstance(space, Chain):
        gaps = space.weight[:-1]
        return _sums_between(gaps, np.minimum(true, predicted), np.maximum(true, predicted))
    _, distance = _climb(space, true, predicted)
    return distance


def mean_ground_distance(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    space: GroundSpace,
    *,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Compute the mean ground distance between true and predicted labels.

    Parameters
    ----------
    y_true, y_pred : array_like of int, (n,)
        Labels, numbers of bins of `space`.
    space : Chain or Tree
        The ground space.
    sample_weight : array_like of float, (n,), optional
        The weight of every sample, >= 0.

    Returns
    -------
    float
        The weighted mean of `ground_distance`: on a chain with gaps of 1, the mean absolute error
        of the labels.

    Raises
    ------
    ValueError, TypeError
        As `ground_distance`; if the weights are negative, not finite or sum to 0.

    Examples
    --------
    >>> import fastemd
    >>> fastemd.metrics.mean_ground_distance([0, 3], [1, 3], fastemd.Chain(4))
    0.5
    """
    return _mean(ground_distance(y_true, y_pred, space), sample_weight)


def lca_height(y_true: ArrayLike, y_pred: ArrayLike, space: GroundSpace) -> NDArray[np.intp]:
    """Compute the height of the lowest common ancestor of true and predicted labels.

    Parameters
    ----------
    y_true, y_pred : array_like of int, (...)
        Labels, numbers of bins of `space`. They broadcast.
    space : Tree
        The ground space.

    Returns
    -------
    ndarray of int, (...)
        The number of edges between the lowest node that is above both bins (or one of them) and
        the farthest leaf below it: 0 for a correct prediction of a leaf.

    Raises
    ------
    ValueError, TypeError
        As `ground_distance`.

    Notes
    -----
    The "hierarchical distance of a mistake" of Bertinetto et al., "Making Better Mistakes" (CVPR
    2020), is its mean over the wrong predictions. It does not depend on the lengths of the edges.

    Examples
    --------
    >>> import fastemd
    >>> paths = [("animal", "cat"), ("animal", "dog"), ("vehicle", "car")]
    >>> tree = fastemd.Tree.from_paths(paths)
    >>> fastemd.metrics.lca_height([0, 0, 0], [0, 1, 2], tree)
    array([0, 1, 2])
    """
    true, predicted = _labels(y_true, y_pred, space)
    height = np.zeros(space.n_nodes, np.intp)
    for node, parent in enumerate(space.parent[:-1].tolist()):
        height[parent] = max(height[parent], height[node] + 1)
    if isinstance(space, Chain):
        return height[np.maximum(true, predicted)]
    ancestor, _ = _climb(space, true, predicted)
    return height[ancestor]


def emd_score(
    y_true: ArrayLike,
    prob: ArrayLike,
    space: GroundSpace,
    rho: float = 2,
    *,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Compute the mean EMD^rho between targets and predicted probabilities; lower is better.

    Parameters
    ----------
    y_true : array_like of int, (n,), or of float, (n, N)
        Labels, or histograms over the N bins of `space`.
    prob : array_like of float, (n, N)
        Predicted probabilities.
    space : Chain or Tree
        The ground space.
    rho : float
        The power of the flow, >= 1.
    sample_weight : array_like of float, (n,), optional
        The weight of every sample, >= 0.

    Returns
    -------
    float
        The weighted mean. At ``rho=2`` on a chain with gaps of 1 it is the ranked probability score
        (RPS); at ``rho=1`` and for labels, the expected ground distance.

    Raises
    ------
    ValueError, TypeError
        As `fastemd.emd_loss`; a row of `prob` must have mass 1.

    Examples
    --------
    >>> import fastemd
    >>> fastemd.metrics.emd_score([0, 2], [[1, 0, 0], [0, 0.5, 0.5]], fastemd.Chain(3), rho=1)
    0.25
    """
    target, x = np.asarray(y_true), np.asarray(prob, np.float64)
    value, _ = emd_loss(x, target, space, rho, normalize=None, sample_weight=sample_weight)
    return float(value)


def emd_scorer(space: GroundSpace, rho: float = 2) -> Any:
    """Make a scorer of scikit-learn: minus `emd_score` of an estimator's probabilities.

    Parameters
    ----------
    space : Chain or Tree
        The ground space. The labels of the data must be its bins, 0 to N - 1, and all of them must
        occur in the data that an estimator is fitted to.
    rho : float
        The power of the flow, >= 1.

    Returns
    -------
    callable
        ``(estimator, x, y, sample_weight=None)``, to be passed as ``scoring=`` to `GridSearchCV`,
        `cross_val_score` and others. It raises a TypeError for an estimator without
        ``predict_proba``, and a ValueError if the estimator's classes are not the bins.

    Raises
    ------
    TypeError, ValueError
        If `space` is not a ground space, or `rho` is < 1.

    Examples
    --------
    >>> import fastemd
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.model_selection import cross_val_score
    >>> x, y = [[0.0], [0.1], [1.0], [1.2], [2.0], [2.1]], [0, 0, 1, 1, 2, 2]
    >>> scorer = fastemd.metrics.emd_scorer(fastemd.Chain(3))
    >>> bool((cross_val_score(LogisticRegression(), x, y, scoring=scorer, cv=2) < 0).all())
    True
    """
    if not isinstance(space, GroundSpace):
        validation.not_a_space(space)
    validation.check_rho(rho)

    def score(estimator: Any, x: Any, y: Any, sample_weight: Any = None) -> float:
        validation.check_classifier(estimator, space.n_bins)
        prob = estimator.predict_proba(x)
        return -emd_score(y, prob, space, rho, sample_weight=sample_weight)

    return score


def _labels(y_true: Any, y_pred: Any, space: GroundSpace) -> tuple[Labels, Labels]:
    if not isinstance(space, GroundSpace):
        validation.not_a_space(space)
    true = validation.check_labels("y_true", y_true, space.n_bins)
    predicted = validation.check_labels("y_pred", y_pred, space.n_bins)
    try:
        true, predicted = np.broadcast_arrays(true, predicted)
    except ValueError:
        validation.do_not_broadcast({"y_true": true.shape, "y_pred": predicted.shape})
    return true, predicted


def _climb(space: GroundSpace, true: Labels, predicted: Labels) -> tuple[Labels, Distances]:
    """Return the lowest common ancestors of bins, and the lengths of the paths over them."""
    a: Labels = space.bin_node[true]
    b: Labels = space.bin_node[predicted]
    distance = np.zeros(true.shape)
    while (climbs := a != b).any():
        # In post-order a parent comes after its children: the lower number is not above the other.
        lower = np.minimum(a, b)
        distance += np.where(climbs, space.weight[lower], 0.0)
        a, b = np.where(climbs, space.parent[lower], a), np.maximum(a, b)
    return a, distance


def _sums_between(gaps: NDArray[np.float64], start: Any, end: Any) -> NDArray[np.float64]:
    """Return the sums of the gaps from `start` to before `end`."""
    positions = np.concatenate([[0.0], np.cumsum(gaps)])
    return np.asarray(positions[end] - positions[start])


def _mean(values: NDArray[np.float64], sample_weight: ArrayLike | None) -> float:
    if sample_weight is None:
        return float(np.mean(values))
    weights = np.asarray(sample_weight, np.float64)
    validation.check_broadcast("sample_weight", weights.shape, "y_true", values.shape)
    weights = np.broadcast_to(weights, values.shape)
    validation.check_weights(weights.ravel(), values.shape)
    if not weights.any():
        raise ValueError("sample_weight: all weights are 0")
    return float(np.average(values, weights=weights))
