"""Scikit-learn classifiers on chains and trees that train with LightGBM and XGBoost."""

import importlib
import inspect
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax

from fastemd import validation
from fastemd.boosting import BinObjective, LightGBMMetric, XGBoostMetric
from fastemd.spaces import GroundSpace

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
except ModuleNotFoundError as error:
    validation.not_installed("sklearn", error, "fastemd.boosting", "boosting")

from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
    validate_data,
)

Array = NDArray[Any]


class _BoostedClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Base of the classifiers, which train a model of a library on the bins of the labels."""

    _raw_scores: str  # the argument of the model's predict that asks for scores

    def __init__(
        self,
        space: GroundSpace,
        classes: ArrayLike | None,
        rho: float,
        cross_entropy: float,
        parameters: dict[str, Any],
    ) -> None:
        self.space = space
        self.classes = classes
        self.rho = rho
        self.cross_entropy = cross_entropy
        self._parameters = parameters

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name, those of the library included.

        Parameters
        ----------
        deep : bool
            Has no effect: no parameter is an estimator.

        Returns
        -------
        dict
            The values. Parameters of the library that were not set are left out.
        """
        return {**super().get_params(deep), **self._parameters}

    def set_params(self, **params: Any) -> Self:
        """Set parameters, those of the library included.

        Parameters
        ----------
        **params
            Values by name. Names unknown here are passed to the library.

        Returns
        -------
        self
        """
        own = self._get_param_names()
        super().set_params(**{name: params.pop(name) for name in own if name in params})
        self._parameters = {**self._parameters, **params}
        return self

    def fit(
        self,
        X: Any,  # noqa: N803
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        eval_set: list[tuple[Any, ArrayLike]] | None = None,
        **fit_params: Any,
    ) -> Self:
        """Train on rows with labels.

        Parameters
        ----------
        X : array_like, sparse matrix or data frame, (rows, features)
            The features. NaN is a missing value. The library gets data frames as they are.
        y : array_like, (rows,)
            The labels. Not all classes need to occur.
        sample_weight : array_like of float, (rows,), optional
            The weight of every row, >= 0.
        eval_set : list of pairs (X, y), optional
            Rows for the metric "emd", which `early_stopping_rounds` of the classifier uses.
        **fit_params
            Other arguments of the library's ``fit``, for example ``callbacks`` of LightGBM.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            If a parameter or label is invalid; the message says what to change.
        ModuleNotFoundError
            If the library is not installed.
        """
        objective = BinObjective(self.space, self.rho, self.cross_entropy)
        validation.check_boosted_space(self.space.n_bins)
        parameters = dict(self._parameters)
        class_weight = parameters.pop("class_weight", None)
        validation.check_boosting_parameters(parameters)
        validation.check_fit_arguments(fit_params)
        rows, labels = validate_data(self, X, y, **_options(X))
        labels = _checked_labels(labels)
        check_consistent_length(rows, labels)
        classes = validation.check_classes(self.classes, self.space.bins, labels)
        bins = validation.bins_of_labels("y", labels, classes)
        weight = _row_weights(sample_weight, class_weight, classes, labels, bins)
        if eval_set is not None:
            validation.check_eval_set(eval_set)
            eval_set = [  # the libraries recognise the rows of the training by their identity
                (
                    rows if x is X else validate_data(self, x, reset=False, **_options(x)),
                    bins if other is y else _bins_of(i, other, classes),
                )
                for i, (x, other) in enumerate(eval_set)
            ]
        fit_params |= {"sample_weight": weight, "eval_set": eval_set}
        self.estimator_ = self._train(objective, parameters, rows, bins, fit_params)
        self.bins_ = np.argsort(classes)
        self.classes_ = classes[self.bins_]
        return self

    def _train(
        self, objective: BinObjective, parameters: dict[str, Any], rows: Any, bins: Array, fit: Any
    ) -> Any:
        """Return a fitted model of the library."""
        raise NotImplementedError

    def predict_proba(self, X: Any) -> NDArray[np.float64]:  # noqa: N803
        """Compute probabilities, the softmax of the scores.

        Parameters
        ----------
        X : array_like, sparse matrix or data frame, (rows, features)
            The features.

        Returns
        -------
        ndarray of float64, (rows, N)
            A column for every label in the order of ``classes_``; column j is bin ``bins_[j]``.
        """
        check_is_fitted(self)
        rows = validate_data(self, X, reset=False, **_options(X))
        scores = self.estimator_.predict(rows, **{self._raw_scores: True})
        probabilities: NDArray[np.float64] = softmax(scores.astype(np.float64), axis=1)
        return probabilities[:, self.bins_]

    def predict(self, X: Any) -> Array:  # noqa: N803
        """Predict the most probable labels.

        Parameters
        ----------
        X : array_like, sparse matrix or data frame, (rows, features)
            The features.

        Returns
        -------
        ndarray, (rows,)
            Labels, entries of ``classes_``.
        """
        columns = self.predict_proba(X).argmax(axis=1)
        labels: Array = self.classes_[columns]
        return labels

    @property
    def feature_importances_(self) -> Array:
        """The importance of every feature, as the library defines it."""
        importances: Array = self.estimator_.feature_importances_
        return importances

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = tags.input_tags.sparse = True
        return tags


class LightGBMClassifier(_BoostedClassifier):
    """Classify on a chain or tree with LightGBM: EMD^rho is objective and metric.

    Parameters
    ----------
    space : Chain or Tree
        The ground space of N >= 2 bins.
    classes : array_like of str or number, (N,), optional
        The label of every bin, in the order of the bins. By default the integers 0 to N - 1; or,
        on a tree whose bins have strings as names, these names. For a tree of
        `fastemd.Tree.from_paths`, they are the ends of the paths.
    rho : float
        The power of the flow, >= 1.
    cross_entropy : float
        Add this many times the cross entropy to the loss.
    **lightgbm
        Parameters of `lightgbm.LGBMClassifier`, for example `n_estimators`, `learning_rate`,
        `class_weight` or `early_stopping_rounds`. The objective and its metric are set.

    Attributes
    ----------
    classes_ : ndarray, (N,)
        The labels of all bins, also of those without rows, sorted: scikit-learn's scorers expect
        this order of columns.
    bins_ : ndarray of int, (N,)
        The bin of every entry of ``classes_``. ``predict_proba(X)[:, bins_.argsort()]`` are the
        probabilities in the order of the bins.
    estimator_ : lightgbm.LGBMModel
        The fitted model, for example with ``best_iteration_`` and ``evals_result_``. Its labels
        are bins, and its predictions scores.
    feature_importances_ : ndarray, (features,)
        Of ``estimator_``.
    n_features_in_ : int
        The number of features.
    feature_names_in_ : ndarray of str, (features,)
        The names of the features, of a data frame only.

    Raises
    ------
    ModuleNotFoundError
        If scikit-learn is not installed.

    See Also
    --------
    lightgbm_objective : The objective, for other interfaces of LightGBM.

    Notes
    -----
    ``fit`` raises an error if the order of the labels is not certain: for strings without
    `classes`, unless they name the bins; for a tree whose bins have numbers as names; and if
    `classes` are the names of the bins in another order. ``score`` is the accuracy. See
    :doc:`/boosting`.

    Examples
    --------
    >>> import fastemd, fastemd.boosting
    >>> x = [[i % 10] for i in range(300)]
    >>> y = ["low" if i < 3 else "middle" if i < 7 else "high" for [i] in x]
    >>> model = fastemd.boosting.LightGBMClassifier(
    ...     fastemd.Chain(3), ["low", "middle", "high"], n_estimators=30, n_jobs=1, verbose=-1
    ... )
    >>> model.fit(x, y).predict([[0], [5], [9]])
    array(['low', 'middle', 'high'], dtype='<U6')
    >>> model.classes_
    array(['high', 'low', 'middle'], dtype='<U6')
    """

    _raw_scores = "raw_score"

    def __init__(
        self,
        space: GroundSpace,
        classes: ArrayLike | None = None,
        rho: float = 2,
        cross_entropy: float = 0.0,
        **lightgbm: Any,
    ) -> None:
        super().__init__(space, classes, rho, cross_entropy, lightgbm)

    def _train(
        self, objective: BinObjective, parameters: dict[str, Any], rows: Any, bins: Array, fit: Any
    ) -> Any:
        lightgbm = _imported("lightgbm")
        fit.setdefault("eval_metric", LightGBMMetric(self.space, self.rho, self.cross_entropy))
        validation.check_eval_metric(fit["eval_metric"])
        model = lightgbm.LGBMModel(objective=objective, num_class=self.space.n_bins, **parameters)
        if fit["eval_set"] and "eval_X" in inspect.signature(model.fit).parameters:
            # LightGBM 4.7 deprecates eval_set.
            fit["eval_X"], fit["eval_y"] = zip(*fit.pop("eval_set"), strict=True)
        return model.fit(rows, bins, **fit)


class XGBoostClassifier(_BoostedClassifier):
    """Classify on a chain or tree with XGBoost: EMD^rho is objective and metric.

    It is the same as `LightGBMClassifier` otherwise.

    Parameters
    ----------
    space, classes, rho, cross_entropy
        As for `LightGBMClassifier`.
    **xgboost
        Parameters of `xgboost.XGBClassifier`, for example `n_estimators`, `learning_rate` or
        `early_stopping_rounds`, and `class_weight`. The objective is set; `base_score` is 0 by
        default.

    Attributes
    ----------
    classes_, bins_, feature_importances_, n_features_in_, feature_names_in_
        As of `LightGBMClassifier`.
    estimator_ : xgboost.XGBModel
        The fitted model, for example with ``best_iteration`` and ``evals_result()``. Its labels
        are bins, and its predictions scores.

    Raises
    ------
    ModuleNotFoundError
        If scikit-learn is not installed.

    See Also
    --------
    xgboost_objective : The objective, for other interfaces of XGBoost.

    Examples
    --------
    >>> import fastemd, fastemd.boosting
    >>> x = [[i % 10] for i in range(300)]
    >>> y = ["low" if i < 3 else "middle" if i < 7 else "high" for [i] in x]
    >>> model = fastemd.boosting.XGBoostClassifier(
    ...     fastemd.Chain(3), ["low", "middle", "high"], n_estimators=30, n_jobs=1
    ... )
    >>> model.fit(x, y).predict([[0], [5], [9]])
    array(['low', 'middle', 'high'], dtype='<U6')
    """

    _raw_scores = "output_margin"

    def __init__(
        self,
        space: GroundSpace,
        classes: ArrayLike | None = None,
        rho: float = 2,
        cross_entropy: float = 0.0,
        **xgboost: Any,
    ) -> None:
        super().__init__(space, classes, rho, cross_entropy, xgboost)

    def _train(
        self, objective: BinObjective, parameters: dict[str, Any], rows: Any, bins: Array, fit: Any
    ) -> Any:
        xgboost = _imported("xgboost")
        metric = XGBoostMetric(self.space, self.rho, self.cross_entropy)
        defaults = {"base_score": 0.0, "disable_default_eval_metric": True, "eval_metric": metric}
        parameters = {**defaults, **parameters}
        validation.check_eval_metric(parameters["eval_metric"])
        model = xgboost.XGBModel(objective=objective, num_class=self.space.n_bins, **parameters)
        return model.fit(rows, bins, **fit)


def _imported(library: str) -> Any:
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        validation.not_installed(library, error, "fastemd.boosting", "boosting")


def _options(x: Any) -> dict[str, Any]:
    """Return options of `validate_data`: the libraries read data frames, NaN and sparse arrays."""
    if hasattr(x, "columns"):
        return {"skip_check_array": True}
    return {"accept_sparse": ["csr", "csc"], "ensure_all_finite": False}


def _checked_labels(labels: Any) -> Array:
    array: Array = column_or_1d(labels, warn=True)
    check_classification_targets(array)
    return array


def _bins_of(i: int, labels: Any, classes: Array) -> Array:
    return validation.bins_of_labels(f"eval_set[{i}]", _checked_labels(labels), classes)


def _row_weights(
    sample_weight: Any, class_weight: Any, classes: Array, labels: Array, bins: Array
) -> Array | None:
    """Return the product of the weights of rows and of their classes, or None for neither."""
    weights: Array | None = None
    if sample_weight is not None:
        weights = _check_sample_weight(sample_weight, bins)
        validation.check_weights(weights, bins.shape)
    if class_weight is None:
        return weights
    of_class: Array
    if isinstance(class_weight, str):
        of_class = compute_sample_weight(class_weight, labels)
    else:  # of all classes, since some may have no rows
        of_class = compute_class_weight(class_weight, classes=classes, y=labels)[bins]
    return of_class if weights is None else weights * of_class
