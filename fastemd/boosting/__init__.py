"""EMD^rho as objective and metric of LightGBM and XGBoost, and classifiers; imports neither."""

import importlib
import importlib.util
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastemd import validation, views
from fastemd.losses import emd_loss, emd_loss_hessian_diag
from fastemd.spaces import GroundSpace

if TYPE_CHECKING:
    from fastemd.boosting.classifiers import LightGBMClassifier as LightGBMClassifier
    from fastemd.boosting.classifiers import XGBoostClassifier as XGBoostClassifier

Array = NDArray[Any]
MAX_STEP = 4.0  # of a logit, see `lightgbm_objective`
FLOAT32 = np.finfo(np.float32)  # the type of the derivatives in LightGBM and XGBoost
_NOT_PASSED = object()
_CLASSIFIERS = ("LightGBMClassifier", "XGBoostClassifier")  # import scikit-learn


if not TYPE_CHECKING:  # type checkers resolve the classifiers by the imports above

    def __getattr__(name: str) -> object:
        if name in _CLASSIFIERS:
            return getattr(importlib.import_module(f"{__name__}.classifiers"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    # help() reads every name listed here, so exclude the classifiers without scikit-learn.
    classifiers = _CLASSIFIERS if importlib.util.find_spec("sklearn") else ()
    return sorted({*globals(), *classifiers})


class _Loss:
    """A loss that LightGBM and XGBoost call; they also copy and pickle it."""

    def __init__(self, space: GroundSpace, rho: float, cross_entropy: float) -> None:
        if not isinstance(space, GroundSpace):
            validation.not_a_space(space)
        self.space, self.rho = space, validation.check_rho(rho)
        self.cross_entropy = validation.check_cross_entropy(cross_entropy)

    def __repr__(self) -> str:
        suffix = f", cross_entropy={self.cross_entropy:g}" if self.cross_entropy else ""
        return f"{type(self).__name__}({self.space!r}, rho={self.rho:g}{suffix})"

    def _arguments(
        self, first: Any, second: Any, sample_weight: Any, *, metric: bool
    ) -> dict[str, Any]:
        """Return the arguments of `emd_loss` from those of an objective or a metric."""
        if hasattr(second, "get_label"):
            scores, labels, sample_weight = first, second.get_label(), second.get_weight()
        else:
            scores, labels = second, first
        scores = views.as_array("scores", scores)
        validation.check_boosted_scores(scores.shape, self.space.n_bins, metric)
        # XGBoost passes an empty array for no weights.
        if sample_weight is not None:
            weighted = len(sample_weight) > 0
            sample_weight = views.as_array("sample_weight", sample_weight) if weighted else None
        labels = views.as_array("labels", labels)
        labels = validation.check_boosted_labels(labels, sample_weight, *scores.shape)
        return {
            "x": scores, "target": labels, "space": self.space, "rho": self.rho,
            "cross_entropy": self.cross_entropy, "sample_weight": sample_weight,
        }  # fmt: skip


class BinObjective(_Loss):
    """Called by both libraries, as (scores, data set) or (labels, scores[, weights])."""

    @np.errstate(all="ignore")
    def __call__(
        self, first: Any, second: Any, sample_weight: ArrayLike | None = None
    ) -> tuple[Array, Array]:
        """Return gradients and positive second derivatives of weighted rows, (rows, classes)."""
        arguments = self._arguments(first, second, sample_weight, metric=False)
        grad = emd_loss(**arguments, reduction="none")[1]
        curvature = np.abs(emd_loss_hessian_diag(**arguments, reduction="none"))
        magnitude = np.abs(grad)
        np.maximum(curvature, magnitude / MAX_STEP + FLOAT32.tiny, out=curvature)
        grad[magnitude < FLOAT32.tiny] = 0.0  # LightGBM casts to float32, which would underflow
        validation.check_derivatives(magnitude, curvature)
        return grad, curvature


class Objective(BinObjective):
    """The same for labels that `LGBMClassifier` may have renumbered; it also passes a group."""

    @np.errstate(all="ignore")
    def __call__(
        self,
        first: Any,
        second: Any,
        sample_weight: ArrayLike | None = None,
        group: Any = _NOT_PASSED,
    ) -> tuple[Array, Array]:
        """Return the derivatives of `BinObjective`."""
        if group is not _NOT_PASSED:  # only LightGBM's scikit-learn interface passes it
            arguments = self._arguments(first, second, sample_weight, metric=False)
            validation.check_not_renumbered(arguments["target"], self.space.n_bins)
        return super().__call__(first, second, sample_weight)


class _Metric(_Loss):
    """The mean loss of raw scores, or of the probabilities of built-in objectives."""

    has_one_vs_all = False  # a built-in objective of probabilities that do not sum to 1

    @np.errstate(all="ignore")
    def _value(self, first: Any, second: Any, sample_weight: Any) -> float:
        arguments = self._arguments(first, second, sample_weight, metric=True)
        scores, labels, weights = (arguments[k] for k in ("x", "target", "sample_weight"))
        if weights is not None:  # rows of weight 0 are not read
            scores, labels = scores[weights != 0], labels[weights != 0]
        if self._are_probabilities(scores):
            if self.cross_entropy and not scores[np.arange(len(labels)), labels].all():
                return math.inf
            arguments["x"] = np.log(arguments["x"], dtype=np.float64)  # logits of the same softmax
        return float(emd_loss(**arguments)[0])

    def _are_probabilities(self, scores: Array) -> bool:
        if scores.size == 0 or not scores.min() >= 0.0:
            return False
        rounding = self.space.n_bins * FLOAT32.eps
        if (np.abs(scores.sum(axis=1, dtype=np.float64) - 1.0) <= rounding).all():
            validation.check_not_ambiguous(scores)
            return True
        if self.has_one_vs_all:
            validation.check_not_one_vs_all(scores)
        return False


class LightGBMMetric(_Metric):
    """Called by LightGBM, as (scores, data set) or (labels, scores[, weights])."""

    has_one_vs_all = True

    def __call__(
        self, first: Any, second: Any, weight: ArrayLike | None = None
    ) -> tuple[str, float, bool]:
        """Return the name, the value, and False: lower is better."""
        return "emd", self._value(first, second, weight), False


class XGBoostMetric(_Metric):
    """Called by XGBoost, as (scores, data set) or (labels, scores[, weights])."""

    __name__ = "emd"  # XGBClassifier reads it

    def __call__(
        self, first: Any, second: Any, sample_weight: ArrayLike | None = None
    ) -> tuple[str, float] | float:
        """Return name and value to `xgboost.train`, only the value to its classifiers."""
        value = self._value(first, second, sample_weight)
        return (self.__name__, value) if hasattr(second, "get_label") else value


def lightgbm_objective(space: GroundSpace, rho: float = 2, cross_entropy: float = 0.0) -> Objective:
    """Return an objective for LightGBM over the classes of a chain or tree.

    Pass it as ``params["objective"]`` to `lightgbm.train` (with ``num_class``) or to
    ``LGBMClassifier(objective=...)``. It uses sample weights and can be pickled.

    Parameters
    ----------
    space : Chain or Tree
        The ground space. Class k of the labels, 0 to N - 1, is its bin k.
    rho : float
        The power of the flow, >= 1.
    cross_entropy : float
        Add this many times the cross entropy.

    Returns
    -------
    Objective
        A function that computes gradients and second derivatives, (rows, N) of the type of the
        scores, from the scores (rows, N), labels and weights in the order of either interface.

    Raises
    ------
    ValueError
        If `rho` or `cross_entropy` is out of range. When called: if there are not N scores per
        row, a label is not one of the N classes, a weight is negative, or a derivative is beyond
        the range of float32; or if LightGBM's scikit-learn interface passes labels of classes 0 and
        1 only although N > 2, since `LGBMClassifier` numbers any two classes in this way.
    TypeError
        If an argument is of another kind.

    Notes
    -----
    Gradients g are those of `fastemd.emd_loss`. The exact second derivatives h of
    `fastemd.emd_loss_hessian_diag` may be 0 or negative, but trees divide by their sums. The
    objective returns ``max(|h|, |g| / 4)`` instead: no leaf can move a score by more than 4 times
    the learning rate.

    Rows of weight 0 are not read. Predictions are scores; their softmax are the probabilities. See
    :doc:`/boosting`.

    Examples
    --------
    >>> import fastemd, fastemd.boosting
    >>> objective = fastemd.boosting.lightgbm_objective(fastemd.Chain(3))
    >>> grad, hess = objective([2, 0], [[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    >>> grad.round(3)
    array([[ 0.296,  0.074, -0.37 ],
           [-0.089,  0.033,  0.056]])
    >>> hess.round(3)
    array([[0.222, 0.074, 0.093],
           [0.121, 0.041, 0.076]])
    """
    return Objective(space, rho, cross_entropy)


def xgboost_objective(space: GroundSpace, rho: float = 2, cross_entropy: float = 0.0) -> Objective:
    """Return an objective for XGBoost over the classes of a chain or tree.

    Pass it as ``obj`` to `xgboost.train` (with ``num_class`` in its parameters) or to
    ``XGBClassifier(objective=...)``. It is the same as `lightgbm_objective` otherwise.

    Parameters
    ----------
    space, rho, cross_entropy
        As for `lightgbm_objective`.

    Returns
    -------
    Objective
        See `lightgbm_objective`.

    Raises
    ------
    ValueError, TypeError
        As `lightgbm_objective`.

    Examples
    --------
    >>> import fastemd, fastemd.boosting
    >>> objective = fastemd.boosting.xgboost_objective(fastemd.Chain(3), cross_entropy=1)
    >>> objective([2], [[0.0, 0.0, 0.0]])[0].round(3)
    array([[ 0.63 ,  0.407, -1.037]])
    """
    return Objective(space, rho, cross_entropy)


def lightgbm_metric(
    space: GroundSpace, rho: float = 2, cross_entropy: float = 0.0
) -> LightGBMMetric:
    """Return a metric "emd" for LightGBM: the mean loss of `lightgbm_objective`; lower is better.

    Pass it as ``feval`` to `lightgbm.train` or as ``eval_metric`` to ``LGBMClassifier.fit``, with
    `lightgbm_objective` or LightGBM's "multiclass".

    Parameters
    ----------
    space, rho, cross_entropy
        As for `lightgbm_objective`.

    Returns
    -------
    LightGBMMetric
        A function that returns ("emd", value, False) for scores, labels and weights. The mean is
        weighted, too.

    Raises
    ------
    ValueError
        As for `lightgbm_objective`. When called: if the scores of two classes may be raw scores
        or probabilities, or all scores are between 0 and 1 without summing to 1, as with
        "multiclassova".

    Notes
    -----
    LightGBM passes raw scores with a custom objective and probabilities with a built-in one. If
    all rows are >= 0 and sum to 1 within the rounding of float32, they are probabilities;
    otherwise the metric computes their softmax. Rows of weight 0 are not read. With
    `cross_entropy` the value is inf if the probability of a label is 0.

    Examples
    --------
    >>> import fastemd, fastemd.boosting
    >>> metric = fastemd.boosting.lightgbm_metric(fastemd.Chain(3), rho=1)
    >>> metric([2, 0], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    ('emd', 1.0, False)
    """
    return LightGBMMetric(space, rho, cross_entropy)


def xgboost_metric(space: GroundSpace, rho: float = 2, cross_entropy: float = 0.0) -> XGBoostMetric:
    """Return a metric "emd" for XGBoost: the mean loss of `xgboost_objective`; lower is better.

    Pass it as ``custom_metric`` to `xgboost.train` or to ``XGBClassifier(eval_metric=...)``, with
    `xgboost_objective` or XGBoost's "multi:softprob".

    Parameters
    ----------
    space, rho, cross_entropy
        As for `lightgbm_objective`.

    Returns
    -------
    XGBoostMetric
        A function that returns ("emd", value) for scores, labels and weights; called by
        ``XGBClassifier``, the value only. The mean is weighted, too.

    Raises
    ------
    ValueError
        As for `xgboost_objective`. When called: if the scores of two classes may be raw scores or
        probabilities (with `xgboost_objective` the parameter ``base_score=0`` avoids that), or
        there is one number per row, as with "multi:softmax".

    Notes
    -----
    Raw scores and probabilities are distinguished as by `lightgbm_metric`.

    Examples
    --------
    >>> import fastemd, fastemd.boosting
    >>> metric = fastemd.boosting.xgboost_metric(fastemd.Chain(3), rho=1)
    >>> metric([2, 0], [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    1.0
    """
    return XGBoostMetric(space, rho, cross_entropy)
