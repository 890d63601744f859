"""Metrics of predictions over ordered or hierarchical classes.

They have scikit-learn's order of arguments: what is true, then what is predicted.
"""

import functools
import importlib.util
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastemd import backends, validation, views
from fastemd.backends import CudaBackend
from fastemd.losses import Loss, resolve_loss, row_weights, run_loss
from fastemd.spaces import Chain, GroundSpace

if TYPE_CHECKING:
    from fastemd.torch.metric import EMDMetric as EMDMetric

Labels = NDArray[np.intp]
Distances = NDArray[np.float64]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name == "EMDMetric":  # imports torch and torchmetrics
            from fastemd.torch.metric import EMDMetric

            return EMDMetric
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    lazy = ["EMDMetric"] if importlib.util.find_spec("torchmetrics") else []
    return sorted([*globals(), *lazy])


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
    O(depth) per pair, without the matrix of all distances; O(log N) on a chain.

    Examples
    --------
    >>> import fastemd
    >>> paths = [("animal", "cat"), ("animal", "dog"), ("vehicle", "car")]
    >>> tree = fastemd.Tree.from_paths(paths)
    >>> fastemd.metrics.ground_distance([0, 0, 0], [0, 1, 2], tree)
    array([0., 2., 4.])
    """
    true, predicted = _labels(y_true, y_pred, space)
    return _distances(true, predicted, space)[()]


def mean_ground_distance(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    space: GroundSpace,
    *,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None,
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
    ignore_index : int, optional
        Samples with this true label are left out.

    Returns
    -------
    float
        The weighted mean of `ground_distance`: on a chain with gaps of 1, the mean absolute error
        of the labels.

    Raises
    ------
    ValueError, TypeError
        As `ground_distance`; if the shapes differ, a weight is negative or not finite, or no sample
        has a positive weight.

    Examples
    --------
    >>> import fastemd
    >>> fastemd.metrics.mean_ground_distance([0, 3], [1, 3], fastemd.Chain(4))
    0.5
    """
    true, predicted = _array("y_true", y_true), _array("y_pred", y_pred)
    validation.check_same_shape("y_true", true, "y_pred", predicted)
    if sample_weight is not None:
        sample_weight = _array("sample_weight", sample_weight)
        validation.check_broadcast("sample_weight", sample_weight.shape, "y_true", true.shape)
    weights = _weights(true.shape, true, sample_weight, ignore_index)
    is_read = weights > 0.0
    true, predicted = _labels(true[is_read], predicted[is_read], space)
    return float(_distances(true, predicted, space) @ weights[is_read])


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
        As `ground_distance`; if `space` is a chain, which has no hierarchy.

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
    if isinstance(space, Chain):
        validation.not_a_tree()
    true, predicted = _labels(y_true, y_pred, space)
    ancestor, _ = _climb(space, true, predicted)
    return space.heights[ancestor]


def emd_score(
    y_true: ArrayLike,
    prob: ArrayLike,
    space: GroundSpace,
    rho: float = 2,
    *,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None,
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
    ignore_index : int, optional
        Samples with this label are left out.

    Returns
    -------
    float
        The weighted mean. At ``rho=2`` on a chain with gaps of 1 it is the ranked probability score
        (RPS), not divided by N - 1; at ``rho=1`` and for labels, the expected ground distance.

    Raises
    ------
    ValueError, TypeError
        As `fastemd.emd_loss`; a row of `prob` must have mass 1, and a sample a positive weight.

    Examples
    --------
    >>> import fastemd
    >>> fastemd.metrics.emd_score([0, 2], [[1, 0, 0], [0, 0.5, 0.5]], fastemd.Chain(3), rho=1)
    0.25
    """
    loss = Loss.checked(rho, None, 0.0)
    with validation.renaming({"x": "prob", "target": "y_true"}):
        batch = resolve_loss(space, loss, prob, y_true, sample_weight, ignore_index)
        if isinstance(batch.backend, CudaBackend):
            validation.only_on_cpu("metrics")
        batch.sample_weight = _weights(
            batch.shape, batch.labels, batch.sample_weight, batch.ignore_index
        )
        no_grad = np.empty((*batch.shape, 0), batch.dtype)
        value, _ = run_loss("loss", space.layout("levels"), batch, "sum", no_grad)
    return float(value)


def emd_scorer(space: GroundSpace, rho: float = 2) -> Any:
    """Make a scorer of scikit-learn: minus `emd_score` of an estimator's probabilities.

    Parameters
    ----------
    space : Chain or Tree
        The ground space. The labels of the data must be its bins, 0 to N - 1, unless the estimator
        is one of `fastemd.boosting`, which knows the bins of its labels.
    rho : float
        The power of the flow, >= 1.

    Returns
    -------
    callable
        ``(estimator, x, y, sample_weight=None)``, to be passed as ``scoring=`` to `GridSearchCV`,
        `cross_val_score` and others. A bin that does not occur in the data of a fold has
        probability 0. It raises a TypeError for an estimator without ``predict_proba``, and a
        ValueError if a class is not a bin.

    Raises
    ------
    TypeError, ValueError
        If `space` is not a ground space, or `rho` is < 1.

    Examples
    --------
    >>> import fastemd
    >>> from types import SimpleNamespace
    >>> scorer = fastemd.metrics.emd_scorer(fastemd.Chain(3))
    >>> fitted = SimpleNamespace(classes_=[0, 1, 2], predict_proba=lambda x: [[0.5, 0.5, 0.0]])
    >>> scorer(fitted, None, [0])  # as ``cross_val_score(model, x, y, scoring=scorer)`` does
    -0.25
    """
    if not isinstance(space, GroundSpace):
        validation.not_a_space(space)
    return functools.partial(_score, space=space, rho=validation.check_rho(rho))


def _score(
    estimator: Any, x: Any, y: Any, sample_weight: Any = None, *, space: GroundSpace, rho: float
) -> float:
    model = estimator[-1] if hasattr(estimator, "steps") else estimator  # of a Pipeline
    if hasattr(model, "bins_"):  # one of fastemd.boosting, whose labels may be anything
        bins, classes = np.asarray(model.bins_), np.asarray(model.classes_)
        y = bins[validation.bins_of_labels("y", np.asarray(y), classes)]
    else:
        bins = validation.check_classifier(estimator, space.n_bins)
    columns = np.asarray(estimator.predict_proba(x))
    prob = np.zeros((len(columns), space.n_bins), columns.dtype)
    prob[:, bins] = columns
    return -emd_score(y, prob, space, rho, sample_weight=sample_weight)


def _array(name: str, value: Any) -> NDArray[Any]:
    """Return an argument as a NumPy array."""
    if isinstance(backends.backend_of({name: value}), CudaBackend):
        validation.only_on_cpu("metrics")
    array: NDArray[Any] = views.as_array(name, value)
    return array


def _labels(y_true: Any, y_pred: Any, space: GroundSpace) -> tuple[Labels, Labels]:
    """Return labels as integers, broadcast to one shape."""
    if not isinstance(space, GroundSpace):
        validation.not_a_space(space)
    true = validation.check_labels("y_true", _array("y_true", y_true), space.n_bins)
    predicted = validation.check_labels("y_pred", _array("y_pred", y_pred), space.n_bins)
    try:
        true, predicted = np.broadcast_arrays(true, predicted)
    except ValueError:
        validation.do_not_broadcast({"y_true": true.shape, "y_pred": predicted.shape})
    return true, predicted


def _distances(true: Labels, predicted: Labels, space: GroundSpace) -> Distances:
    if isinstance(space, Chain):
        start, end = np.minimum(true, predicted), np.maximum(true, predicted)
        return _sums_between(space.weight[:-1], start, end)
    return _climb(space, true, predicted)[1]


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


def _sums_between(gaps: Distances, start: Labels, end: Labels) -> Distances:
    """Return the sums of the gaps from `start` to before `end`, without differences of sums."""
    sums, step, total = gaps, 1, np.zeros(start.shape)  # sums of `step` gaps
    while (end - start >= step).any():
        takes = (end - start) & step != 0
        total[takes] += sums[start[takes]]
        start = np.where(takes, start + step, start)
        sums = sums[:-step] + sums[step:]
        step *= 2
    return total


def _weights(
    shape: tuple[int, ...], labels: Any, sample_weight: Any, ignore_index: int | None
) -> Distances:
    """Return the weights of rows, divided by their sum; raise if no weight is positive."""
    weights, _ = row_weights(shape, labels, sample_weight, ignore_index, "mean")
    if not weights.any():
        validation.no_weight()
    return weights.reshape(shape)
