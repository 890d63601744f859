"""The four interfaces of LightGBM and XGBoost: train a model and return its scores."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

import fastemd
from fastemd import boosting
from tests.support.frameworks import needed

lightgbm = needed("lightgbm")
xgboost = needed("xgboost")
N = 5
CHAIN = fastemd.Chain(N, [1, 2, 1, 0.5])
LOSS = {"rho": 1.5, "cross_entropy": 0.3}
LIGHTGBM = {"num_leaves": 8, "learning_rate": 0.2, "verbose": -1, "num_threads": 1}
XGBOOST = {"max_depth": 3, "learning_rate": 0.2, "nthread": 1, "disable_default_eval_metric": True}


class Half(NamedTuple):
    """Ordered classes that depend on the features."""

    x: np.ndarray
    y: np.ndarray
    weight: np.ndarray | None


def split_halves(rng, weighted=False):
    x = rng.standard_normal((400, 4))
    hidden = x[:, 0] + x[:, 1] * x[:, 2] + 0.3 * rng.standard_normal(400)
    y = np.searchsorted(np.quantile(hidden, np.arange(1, N) / N), hidden)
    weight = rng.uniform(0.5, 2.0, 400).astype("f4") if weighted else None
    halves = (slice(200), slice(200, 400))
    return [Half(x[h], y[h], weight[h] if weighted else None) for h in halves]


def _lightgbm(halves, objective, metric, rounds, stopping):
    log, (half, other) = {}, halves
    train = lightgbm.Dataset(half.x, half.y, weight=half.weight)
    valid = train.create_valid(other.x, other.y, weight=other.weight)
    params = {**LIGHTGBM, "objective": objective, "num_class": N}
    model = lightgbm.train(
        params, train, rounds, valid_sets=[valid], feval=metric,
        callbacks=_callbacks(log, stopping),
    )  # fmt: skip
    return model, log["valid_0"]["emd"], model.predict(other.x, raw_score=True)


def _lightgbm_classifier(halves, objective, metric, rounds, stopping):
    log, (half, other) = {}, halves
    model = lightgbm.LGBMClassifier(
        **LIGHTGBM, n_estimators=rounds, objective=objective, metric="None"
    )  # otherwise it stops by the logloss of scores that are no probabilities
    model.fit(
        half.x, half.y, sample_weight=half.weight, eval_set=[other[:2]], eval_metric=metric,
        eval_sample_weight=[other.weight], callbacks=_callbacks(log, stopping),
    )  # fmt: skip
    return model, log["valid_0"]["emd"], model.predict_proba(other.x, raw_score=True)


def _callbacks(log, stopping):
    stops = [lightgbm.early_stopping(stopping, verbose=False)] if stopping else []
    return [*stops, lightgbm.record_evaluation(log)]


def _xgboost(halves, objective, metric, rounds, stopping):
    log = {}
    train, valid = (xgboost.DMatrix(h.x, h.y, weight=h.weight) for h in halves)
    built_in = isinstance(objective, str)
    params = {**XGBOOST, "num_class": N, **({"objective": objective} if built_in else {})}
    model = xgboost.train(
        params, train, rounds, obj=None if built_in else objective, custom_metric=metric,
        evals=[(valid, "valid")], early_stopping_rounds=stopping, evals_result=log,
        verbose_eval=False,
    )  # fmt: skip
    best = (0, model.best_iteration + 1) if stopping else (0, 0)
    scores = model.predict(valid, output_margin=True, iteration_range=best)
    return model, log["valid"]["emd"], scores


def _xgboost_classifier(halves, objective, metric, rounds, stopping):
    half, other = halves
    model = xgboost.XGBClassifier(
        **XGBOOST, n_estimators=rounds, objective=objective, eval_metric=metric,
        early_stopping_rounds=stopping,
    )  # fmt: skip
    model.fit(
        half.x, half.y, sample_weight=half.weight, eval_set=[other[:2]], verbose=False,
        sample_weight_eval_set=None if other.weight is None else [other.weight],
    )  # fmt: skip
    log = model.evals_result()["validation_0"]["emd"]
    return model, log, model.predict(other.x, output_margin=True)


class Interface(NamedTuple):
    train: Callable
    objective: Callable
    metric: Callable
    built_in: str  # the objective of the library

    def run(self, halves, rounds=20, stopping=None, objective=None, space=CHAIN, **loss):
        objective = objective or self.objective(space, **loss)
        return self.train(halves, objective, self.metric(space, **loss), rounds, stopping)


OF_LIGHTGBM = boosting.lightgbm_objective, boosting.lightgbm_metric, "multiclass"
OF_XGBOOST = boosting.xgboost_objective, boosting.xgboost_metric, "multi:softprob"
INTERFACES = {
    "lightgbm": Interface(_lightgbm, *OF_LIGHTGBM),
    "LGBMClassifier": Interface(_lightgbm_classifier, *OF_LIGHTGBM),
    "xgboost": Interface(_xgboost, *OF_XGBOOST),
    "XGBClassifier": Interface(_xgboost_classifier, *OF_XGBOOST),
}
