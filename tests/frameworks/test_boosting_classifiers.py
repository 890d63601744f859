"""The scikit-learn classifiers of fastemd.boosting, compared with the native interfaces."""

import pickle
import re
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
from scipy.special import softmax

import fastemd
from fastemd import boosting
from tests.support.boosting_interfaces import (
    CHAIN,
    INTERFACES,
    LIGHTGBM,
    LOSS,
    XGBOOST,
    Half,
    N,
    split_halves,
)
from tests.support.frameworks import needed

sklearn = needed("sklearn")
lightgbm, xgboost = needed("lightgbm"), needed("xgboost")
selection = needed("sklearn.model_selection")
NAMES = ["low", "fair", "good", "fine", "best"]  # not sorted
ROUNDS = 20


class Library(NamedTuple):
    name: str
    classifier: type
    parameters: dict
    fit: dict  # arguments of fit that prevent output

    def new(self, *arguments, space=CHAIN, **parameters):
        parameters = {**self.parameters, "n_estimators": ROUNDS, **parameters}
        return self.classifier(space, *arguments, **parameters)

    def trees(self, model):
        """Return the trees of a fitted model of the library."""
        if self.name == "lightgbm":
            booster = model if isinstance(model, lightgbm.Booster) else model.booster_
            return booster.dump_model()["tree_info"]
        booster = model if isinstance(model, xgboost.Booster) else model.get_booster()
        return booster.get_dump(with_stats=True)

    def log(self, model):
        """Return the record of the metrics of one evaluation set."""
        estimator = model.estimator_
        records = estimator.evals_result_ if self.name == "lightgbm" else estimator.evals_result()
        (record,) = records.values()
        return record

    def best_iteration(self, model):
        """Return it, counted from 0."""
        if self.name == "lightgbm":
            return model.estimator_.best_iteration_ - 1
        return model.estimator_.best_iteration


LIBRARIES = [
    Library("lightgbm", boosting.LightGBMClassifier, LIGHTGBM, {}),
    Library(
        "xgboost",
        boosting.XGBoostClassifier,
        {key: value for key, value in XGBOOST.items() if key != "disable_default_eval_metric"},
        {"verbose": False},
    ),
]


@pytest.fixture(params=LIBRARIES, ids=lambda library: library.name)
def library(request):
    return request.param


def _named(y):
    return np.array(NAMES)[y]


def _without(half, *missing):
    keep = ~np.isin(half.y, missing)
    return Half(half.x[keep], half.y[keep], None)


def _native(library, halves, monkeypatch, **loss):
    """Return model and scores of the native interface."""
    monkeypatch.setitem(XGBOOST, "base_score", 0)
    model, _, scores = INTERFACES[library.name].run(halves, rounds=ROUNDS, **loss)
    return model, scores


def _of_bins(model, x):
    """Return probabilities in the order of the bins."""
    return model.predict_proba(x)[:, model.bins_.argsort()]


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("named", [False, True], ids=["numbers", "names"])
def test_fit_grows_trees_of_native_interface(library, named, weighted, rng, monkeypatch):
    halves = split_halves(rng, weighted)
    native, scores = _native(library, halves, monkeypatch, **LOSS)
    half, other = halves
    model = library.new(NAMES, **LOSS) if named else library.new(**LOSS)
    model.fit(half.x, _named(half.y) if named else half.y, half.weight)
    assert library.trees(model.estimator_) == library.trees(native)
    np.testing.assert_allclose(_of_bins(model, other.x), softmax(scores, axis=1), rtol=1e-5)


def test_predictions_have_sorted_classes_as_columns(library, rng):
    half, other = split_halves(rng)
    model, reference = library.new(NAMES).fit(half.x, _named(half.y)), library.new()
    p, wanted = model.predict_proba(other.x), reference.fit(half.x, half.y).predict_proba(other.x)
    assert model.classes_.tolist() == sorted(NAMES)
    assert reference.classes_.tolist() == list(range(N))
    for column, name in enumerate(model.classes_):
        np.testing.assert_array_equal(p[:, column], wanted[:, NAMES.index(name)])
        assert NAMES[model.bins_[column]] == name
    assert p.dtype == np.float64
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-14)
    np.testing.assert_array_equal(model.predict(other.x), _named(reference.predict(other.x)))
    np.testing.assert_array_equal(model.predict(other.x), model.classes_[p.argmax(1)])
    assert model.score(other.x, _named(other.y)) == (reference.predict(other.x) == other.y).mean()
    assert model.score(other.x, _named(other.y)) > 0.4


@pytest.mark.parametrize(
    "classes", [[50, 40, 30, 20, 10], range(N)[::-1], [1.5, 1.0, 3.0, 2.0, 9.0], (True, 5, 2, 3, 4)]
)
def test_classes_may_be_any_numbers(library, classes, rng):
    half, _ = split_halves(rng)
    y = np.array(classes)[half.y]
    if not all(isinstance(label, int) for label in classes):
        with pytest.raises(ValueError, match="Unknown label type"):
            library.new(classes).fit(half.x, y)
        return
    model = library.new(np.array(classes)).fit(half.x, y)
    wanted = library.new().fit(half.x, half.y)
    np.testing.assert_array_equal(_of_bins(model, half.x), wanted.predict_proba(half.x))
    np.testing.assert_array_equal(model.predict(half.x), np.array(classes)[wanted.predict(half.x)])


TREES = {
    "names": fastemd.Tree.from_networkx(
        needed("networkx").DiGraph([("all", "b"), ("all", "z"), ("z", "d"), ("z", "a")])
    ),
    "paths": fastemd.Tree.from_paths([("x", "b"), ("x", "d"), ("y", "a")]),
}


@pytest.mark.parametrize("space", TREES.values(), ids=TREES)
def test_labels_may_be_names_of_bins_of_tree(library, space, rng):
    half, _ = split_halves(rng)
    y = np.minimum(half.y, 2)
    model = library.new(space=space).fit(half.x, np.array(["b", "d", "a"])[y])
    wanted = library.new(space=space, classes=range(3)).fit(half.x, y)
    assert model.classes_.tolist() == ["a", "b", "d"]
    assert wanted.classes_.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(_of_bins(model, half.x), _of_bins(wanted, half.x))


NUMBERED = fastemd.Tree.from_parents([-1, 0, 0, 1, 1])  # the bins are nodes 2, 3 and 4
AMBIGUOUS_PATHS = fastemd.Tree.from_paths([("x", "a"), ("y", "a"), ("y", "b")])


@pytest.mark.parametrize(
    ("space", "classes", "labels", "message"),
    [
        (CHAIN, None, NAMES, "classes: needed for labels that are no integers, .* not known"),
        (AMBIGUOUS_PATHS, None, ["a", "b"], "classes: needed for labels that are no integers"),
        (NUMBERED, None, [0, 1, 2], "classes: needed for this space.* as names, 2, 3, 4; pass"),
        (NUMBERED, [4, 3, 2], [2, 3, 4], "classes: these are the bins.* another order.* 2, 3, 4"),
        (TREES["names"], ["a", "b", "d"], ["a", "b"], "another order; .* space.bins, 'b', 'd', 'a"),
        (TREES["paths"], ["a", "b", "d"], ["a", "b"], "classes: these are the bins of the space"),
        (CHAIN, NAMES[:4], NAMES[:4], "classes: expected the labels of 5 bins, got 4; list"),
        (CHAIN, [0, 1, 2, 3, 3.0], [0, 1], "classes: duplicate label 3.0; every bin has"),
        (CHAIN, None, [1, 2, 5], r"y: the class of row 2, 5, is not one of.* 0, 1, 2, 3, 4; pass"),
        (CHAIN, None, [0, -1], "y: the class of row 1, -1, is not one of"),
        (CHAIN, NAMES, ["low", "bad"], "y: the class of row 1, 'bad', is not one of.* 'low', 'fa"),
        (CHAIN, NAMES, [0, 1], "y: the class of row 0, 0, is not one of"),
        (CHAIN, range(5), ["0", "1"], "y: the class of row 0, '0', is not one of"),
    ],
)
def test_fit_rejects_labels_of_uncertain_bins(library, space, classes, labels, message, rng):
    x = rng.standard_normal((len(labels), 2))
    with pytest.raises(ValueError, match=message) as raised:
        library.new(classes, space=space).fit(x, labels)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ("abcde", r"classes: expected a list, the label of every bin, got 'abcde' \(str\)"),
        (5, r"classes: expected a list, the label of every bin, got 5 \(int\)"),
        (set(NAMES), "classes: expected a list, the label of every bin, got set of length 5"),
        (dict.fromkeys(NAMES), "classes: expected a list, .* got dict of length 5"),
        (["a", "b", "c", "d", 1], "all strings or all numbers, got int, str"),
        ([("a",), ("b",), ("c",), ("d",), ("e",)], "all strings or all numbers, got tuple"),
    ],
)
def test_fit_rejects_classes_of_other_types(library, classes, message):
    with pytest.raises(TypeError, match=message):
        library.new(classes).fit([[0.0], [1.0]], [0, 1])


def test_classes_of_numbered_tree_are_explicit(library, rng):
    x, labels = rng.standard_normal((60, 2)), rng.integers(0, 3, 60)
    first = library.new(NUMBERED.bins, space=NUMBERED).fit(x, labels + 2)
    second = library.new(range(3), space=NUMBERED).fit(x, labels)
    np.testing.assert_array_equal(first.predict_proba(x), second.predict_proba(x))
    assert first.classes_.tolist() == [2, 3, 4]


@pytest.mark.parametrize(
    ("parameters", "wrong", "message"),
    [
        ({"space": 5}, TypeError, "space: expected a fastemd.Chain or fastemd.Tree, got 5"),
        ({"space": fastemd.Chain(1)}, ValueError, "space: expected two or more bins"),
        ({"rho": 0.5}, ValueError, "rho: expected a finite number >= 1"),
        ({"cross_entropy": -1}, ValueError, "cross_entropy: expected a finite number >= 0"),
        ({"objective": "multiclass"}, ValueError, "objective: the classifier sets it by its space"),
        ({"num_class": 5}, ValueError, "num_class: the classifier sets it"),
        ({"metric": "multi_logloss"}, ValueError, "metric: the classifier sets it"),
    ],
)
def test_fit_rejects_invalid_parameters(library, parameters, wrong, message):
    model = library.new().set_params(**parameters)  # raises in fit, as scikit-learn's estimators
    with pytest.raises(wrong, match=message):
        model.fit([[0.0], [1.0]], [0, 1])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"eval_X": 0}, r"eval_X: pass eval_set=\[\(X, y\), ...\]"),
        ({"eval_y": 0}, r"eval_y: pass eval_set=\[\(X, y\), ...\]"),
        ({"eval_set": ([[0.0]], [0])}, r"eval_set: expected a list of pairs \(X, y\), got tuple"),
        ({"eval_set": [[0.0]]}, r"eval_set: expected a list of pairs \(X, y\), got list"),
        ({"eval_class_weight": ["balanced"]}, "eval_class_weight: pass eval_sample_weight"),
        ({"init_score": [0.0]}, "init_score: predictions would not include it; use the native"),
        ({"base_margin": [0.0]}, "base_margin: predictions would not include it; use the native"),
    ],
)
def test_fit_rejects_arguments_that_bypass_classes(library, argument, message):
    with pytest.raises(TypeError, match=message):
        library.new().fit([[0.0], [1.0]], [0, 1], **argument)


@pytest.mark.parametrize("metric", ["mlogloss", ["mlogloss"]])
def test_fit_rejects_built_in_metrics(library, metric):
    in_fit = {"eval_metric": metric} if library.name == "lightgbm" else {}
    model = library.new(**({} if in_fit else {"eval_metric": metric}))
    with pytest.raises(ValueError, match="eval_metric: 'mlogloss' expects probabilities"):
        model.fit([[0.0], [1.0]], [0, 1], **in_fit)


@pytest.mark.parametrize("missing", [[2], [4], [0, 4], [2, 3, 4], [1, 2, 4], [0, 1, 3]])
def test_fit_keeps_columns_of_missing_classes(library, missing, rng, monkeypatch):
    half, other = split_halves(rng)
    part = _without(half, *missing)
    native, scores = _native(library, [part, other], monkeypatch)
    model = library.new(NAMES).fit(part.x, _named(part.y))
    assert library.trees(model.estimator_) == library.trees(native)
    assert model.classes_.tolist() == sorted(NAMES)
    p = _of_bins(model, other.x)
    np.testing.assert_allclose(p, softmax(scores, axis=1), rtol=1e-5)
    assert p[:, missing].mean() < 0.15


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
def test_early_stopping_uses_emd(library, weighted, rng):
    half, other = split_halves(rng, weighted)
    fit = dict(library.fit)
    if weighted:
        names = {"lightgbm": "eval_sample_weight", "xgboost": "sample_weight_eval_set"}
        fit[names[library.name]] = [other.weight]
    model = library.new(NAMES, n_estimators=500, early_stopping_rounds=5, **LOSS)
    model.fit(half.x, _named(half.y), half.weight, eval_set=[(other.x, _named(other.y))], **fit)
    (name,) = log = library.log(model)
    best = int(np.argmin(log[name]))
    assert name == "emd"
    assert library.best_iteration(model) == best
    assert len(log[name]) == best + 1 + 5 < 300
    logits = np.log(_of_bins(model, other.x))
    loss = fastemd.emd_loss(logits, other.y, CHAIN, sample_weight=other.weight, **LOSS)[0]
    np.testing.assert_allclose(log[name][best], loss, rtol=1e-5)


def test_early_stopping_by_callback_of_lightgbm(rng):
    half, other = split_halves(rng)
    model = LIBRARIES[0].new(n_estimators=500)
    model.fit(
        half.x, half.y, eval_set=[(other.x, other.y), (half.x, half.y)],
        callbacks=[lightgbm.early_stopping(5, verbose=False)],
    )  # fmt: skip
    records = model.estimator_.evals_result_
    assert list(records) == ["training", "valid_0"]  # LightGBM recognises the training rows
    assert len(records["valid_0"]["emd"]) == model.estimator_.best_iteration_ + 5


def test_early_stopping_reads_labels_of_eval_set(library, rng):
    half, other = split_halves(rng)
    model = library.new(NAMES)
    with pytest.raises(ValueError, match=r"eval_set\[1\]: the class of row 0, 'bad', is not one"):
        model.fit(
            half.x, _named(half.y),
            eval_set=[(other.x, _named(other.y)), (other.x[:1], ["bad"])], **library.fit,
        )  # fmt: skip


def test_fit_uses_other_metric(library, rng):
    def accuracy(labels, scores, *weight):
        value = float((scores.argmax(1) == labels).mean())
        return ("accuracy", value, True) if library.name == "lightgbm" else value

    half, other = split_halves(rng)
    in_fit = {"eval_metric": accuracy} if library.name == "lightgbm" else {}
    model = library.new(NAMES, **({} if in_fit else {"eval_metric": accuracy}))
    eval_set = [(other.x, _named(other.y))]
    model.fit(half.x, _named(half.y), eval_set=eval_set, **in_fit, **library.fit)
    log = library.log(model)
    assert list(log) == ["accuracy"]
    assert log["accuracy"][-1] == model.score(other.x, _named(other.y))


def test_class_weight_multiplies_sample_weight(library, rng):
    half, _ = split_halves(rng, weighted=True)
    y = _named(half.y)
    factor = {"best": 3.0, "low": 0.5}
    for class_weight, weight in (
        ({**dict.fromkeys(NAMES, 1.0), **factor}, np.array([factor.get(label, 1) for label in y])),
        ("balanced", 200 / (N * np.bincount(half.y)[half.y])),
    ):
        model = library.new(NAMES, class_weight=class_weight)
        for own in (None, half.weight):
            wanted = library.new(NAMES).fit(half.x, y, weight if own is None else weight * own)
            p = model.fit(half.x, y, own).predict_proba(half.x)
            np.testing.assert_allclose(p, wanted.predict_proba(half.x), rtol=1e-5)
    assert abs(p - library.new(NAMES).fit(half.x, y).predict_proba(half.x)).max() > 0.01


@pytest.mark.parametrize("class_weight", ["balanced", dict.fromkeys(NAMES, 2.0), {"low": 2.0}])
def test_class_weight_with_missing_classes(library, class_weight, rng):
    part = _without(split_halves(rng)[0], 0, 3)
    model = library.new(NAMES, class_weight=class_weight)
    assert np.isfinite(model.fit(part.x, _named(part.y)).predict_proba(part.x)).all()


def test_class_weight_rejects_unknown_label(library):
    with pytest.raises(ValueError, match="class_weight"):
        library.new(NAMES, class_weight={"bad": 2.0}).fit([[0.0], [1.0]], ["low", "fair"])


def test_fit_rejects_negative_weight(library):
    with pytest.raises(ValueError, match="sample_weight: row 1 is -1"):
        library.new().fit([[0.0], [1.0]], [0, 1], [1.0, -1.0])


def _few_rows(library):
    return {"min_child_samples": 1} if library.name == "lightgbm" else {}


@pytest.mark.parametrize("scoring", ["neg_log_loss", "roc_auc_ovr", None])
def test_scorers_read_right_columns(library, scoring, rng):
    half, other = split_halves(rng)
    named = library.new(NAMES, cross_entropy=1).fit(half.x, _named(half.y))
    numbered = library.new(cross_entropy=1).fit(half.x, half.y)
    scorer = sklearn.metrics.check_scoring(named, scoring)
    value = scorer(named, other.x, _named(other.y))
    np.testing.assert_allclose(value, scorer(numbered, other.x, other.y), rtol=1e-12)
    if scoring == "neg_log_loss":
        p = numbered.predict_proba(other.x)[np.arange(len(other.y)), other.y]
        np.testing.assert_allclose(value, np.log(p).mean(), rtol=1e-12)


def test_grid_search_tunes_parameters_of_both(library, rng):
    half, other = split_halves(rng)
    grid = {"learning_rate": [1e-4, 0.2], "rho": [1, 2]}
    search = selection.GridSearchCV(
        library.new(), grid, scoring=fastemd.metrics.emd_scorer(CHAIN), cv=3
    )
    search.fit(half.x, half.y)
    assert search.best_params_["learning_rate"] == 0.2
    assert search.best_estimator_.get_params()["learning_rate"] == 0.2
    model = library.new(**search.best_params_).fit(half.x, half.y)
    np.testing.assert_array_equal(search.predict_proba(other.x), model.predict_proba(other.x))


def test_grid_search_with_folds_that_lack_class(library, rng):
    half, _ = split_halves(rng)
    order = np.argsort(half.y, kind="stable")  # every fold lacks one class
    x, y = half.x[order], _named(half.y[order])
    folds = selection.KFold(N)
    search = selection.GridSearchCV(
        library.new(NAMES), {"learning_rate": [0.1, 0.2]}, cv=folds, error_score="raise"
    )
    assert np.isfinite(search.fit(x, y).cv_results_["mean_test_score"]).all()
    with pytest.raises(ValueError, match="y: the class of row 0, 1, is not one of the labels"):
        selection.cross_val_predict(  # scikit-learn numbers the labels in their sorted order
            library.new(NAMES), x, y, cv=folds, method="predict_proba"
        )
    numbers = np.sort(half.y)
    p = selection.cross_val_predict(library.new(), x, numbers, cv=folds, method="predict_proba")
    assert p.shape == (len(x), N)
    assert p[np.arange(len(x)), numbers].mean() < 0.15  # no fold has seen its class


def test_calibration_keeps_classes(library, rng):
    calibration = needed("sklearn.calibration")
    half, other = split_halves(rng)
    named, numbered = (
        calibration.CalibratedClassifierCV(model, cv=3).fit(half.x, y)
        for model, y in ((library.new(NAMES), _named(half.y)), (library.new(), half.y))
    )
    p, wanted = named.predict_proba(other.x), numbered.predict_proba(other.x)
    for column, name in enumerate(named.classes_):
        np.testing.assert_allclose(p[:, column], wanted[:, NAMES.index(name)], rtol=1e-12)
    assert (named.predict(other.x) == _named(other.y)).mean() > 0.4


def test_pipeline_passes_arguments_of_fit(library, rng):
    pipeline = needed("sklearn.pipeline")
    half, other = split_halves(rng)
    scaler = needed("sklearn.preprocessing").StandardScaler()
    model = pipeline.Pipeline([("scale", scaler), ("model", library.new(NAMES))])
    model.set_params(model__early_stopping_rounds=3, model__n_estimators=300)
    scaled = needed("sklearn.preprocessing").StandardScaler().fit(half.x).transform(other.x)
    fit = {f"model__{name}": value for name, value in library.fit.items()}
    fit["model__eval_set"] = [(scaled, _named(other.y))]
    model.fit(half.x, _named(half.y), **fit)
    (log,) = library.log(model[-1]).values()
    assert len(log) < 300
    assert model.classes_.tolist() == sorted(NAMES)
    assert model.score(other.x, _named(other.y)) > 0.4


def test_parameters_of_library_are_those_of_estimator(library):
    model = library.classifier(CHAIN, NAMES, learning_rate=0.1)
    own = {"space": CHAIN, "classes": NAMES, "rho": 2, "cross_entropy": 0.0}
    assert model.get_params() == {**own, "learning_rate": 0.1}
    assert model.set_params(rho=1, learning_rate=0.3, n_estimators=7) is model
    assert model.get_params() == {**own, "rho": 1, "learning_rate": 0.3, "n_estimators": 7}
    twin = sklearn.clone(model)
    assert twin.get_params()["n_estimators"] == 7
    assert repr(twin) == repr(model)
    twin.set_params(learning_rate=0.5)
    assert model.get_params()["learning_rate"] == 0.3
    text = re.sub(r"\s+", " ", repr(model))
    for part in (
        library.classifier.__name__,
        f"space={CHAIN!r}",
        "'low', 'fair'",
        "n_estimators=7",
    ):
        assert part in text


def test_fit_changes_no_parameter(library, rng):
    half, _ = split_halves(rng)
    model = library.new(NAMES, class_weight="balanced")
    before = model.get_params()
    model.fit(half.x, _named(half.y))
    assert model.get_params() == before


def test_pickle_predicts_in_other_process(library, rng, tmp_path):
    joblib = needed("joblib")
    half, other = split_halves(rng)
    model = library.new(NAMES, **LOSS).fit(half.x, _named(half.y))
    p = pickle.loads(pickle.dumps(model)).predict_proba(other.x)
    np.testing.assert_array_equal(p, model.predict_proba(other.x))
    joblib.dump((model, other.x), tmp_path / "model")
    code = (
        "import joblib, sys, numpy as np\n"
        f"model, x = joblib.load({str(tmp_path / 'model')!r})\n"
        f"np.save({str(tmp_path / 'p.npy')!r}, model.predict_proba(x))\n"
        "print(model.classes_.tolist(), model.get_params()['rho'])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == f"{sorted(NAMES)} {LOSS['rho']}\n", run.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), p)


def test_fit_accepts_data_frames(library, rng):
    pandas = needed("pandas")
    half, other = split_halves(rng)
    kinds = pandas.Series(pandas.Categorical(["x", "y", "z", "x"] * 50))
    frame, test = (
        pandas.DataFrame(h.x, columns=list("abcd")).assign(e=kinds) for h in (half, other)
    )
    extra = {"enable_categorical": True} if library.name == "xgboost" else {}
    model = library.new(NAMES, **extra).fit(frame, pandas.Series(_named(half.y)))
    assert model.feature_names_in_.tolist() == list("abcde")
    assert model.feature_importances_.shape == (model.n_features_in_,) == (5,)
    assert model.score(test, pandas.Series(_named(other.y))) > 0.4
    with pytest.raises(ValueError, match="feature names"):
        model.predict(test[list("bacde")])


def test_two_bins(library, rng):
    half, other = split_halves(rng)
    model = library.new(["no", "yes"], space=fastemd.Chain(2), early_stopping_rounds=5)
    answers = [np.array(["no", "yes"])[h.y // 3] for h in (half, other)]
    model.fit(half.x, answers[0], eval_set=[(other.x, answers[1])], **library.fit)
    assert model.score(other.x, answers[1]) > 0.7


def test_predict_before_fit_raises(library):
    with pytest.raises(sklearn.exceptions.NotFittedError):
        library.new().predict([[0.0]])
    assert not hasattr(library.new(), "feature_importances_")


class _AnyLabels:
    """A classifier on a chain of the labels of `y`; scikit-learn's checks use several."""

    def __init__(self, space=None, classes=None, rho=2, cross_entropy=0.0, **parameters):
        super().__init__(space, classes, rho, cross_entropy, **parameters)

    def fit(self, X, y, sample_weight=None):  # noqa: N803
        space, classes, labels = fastemd.Chain(2), None, np.array(y).ravel()
        kind = labels.dtype.kind
        if y is not None and (kind in "OU" or (kind in "iuf" and np.isfinite(labels).all())):
            classes = np.unique(labels)
            if len(classes) == 1:
                classes = np.append(classes, classes + 1)
            space = fastemd.Chain(len(classes))
        library = next(x for x in LIBRARIES if isinstance(self, x.classifier))
        parameters = {**library.parameters, **_few_rows(library), **self._parameters}
        model = library.new(classes, self.rho, self.cross_entropy, space=space, **parameters)
        model.fit(X, y, sample_weight)
        vars(self).update({key: x for key, x in vars(model).items() if key.endswith("_")})
        return self


class LightGBMOfAnyLabels(_AnyLabels, boosting.LightGBMClassifier):
    pass


class XGBoostOfAnyLabels(_AnyLabels, boosting.XGBoostClassifier):
    pass


ROWS_COUNT = (
    "rows of weight 0 and repeated rows change counts of rows and the bins of features, and the "
    "libraries sum derivatives in float32"
)
EXCLUDED = {
    "check_sample_weight_equivalence_on_dense_data": ROWS_COUNT,
    "check_sample_weight_equivalence_on_sparse_data": ROWS_COUNT,
    "check_array_api_input": "skipped by scikit-learn unless SCIPY_ARRAY_API is set",
}


@pytest.mark.filterwarnings("ignore:Converting data to scipy sparse matrix")  # by LightGBM
@pytest.mark.parametrize("classifier", [LightGBMOfAnyLabels, XGBoostOfAnyLabels])
def test_check_estimator_passes(classifier):
    """All checks of scikit-learn but `EXCLUDED`, with the labels of each check as classes."""
    checks = needed("sklearn.utils.estimator_checks")
    results = checks.check_estimator(classifier(), on_fail=None, on_skip=None)
    failed = {x["check_name"]: x["exception"] for x in results if x["status"] != "passed"}
    assert {name: x for name, x in failed.items() if name not in EXCLUDED} == {}
    assert len(results) > 50


@pytest.mark.parametrize("classes", [[1, 0, 2], ["low", "middle", "high"]], ids=str)
def test_emd_scorer_knows_the_bins_of_labels(classes, rng):
    chain, x = fastemd.Chain(3, [1, 10]), rng.standard_normal((60, 2))
    bins = np.digitize(x[:, 0], [-0.5, 0.5])
    y = np.array(classes)[bins]
    model = boosting.LightGBMClassifier(chain, classes, n_estimators=3, verbose=-1, n_jobs=1)
    model.fit(x, y)
    prob = np.zeros((60, 3))
    prob[:, model.bins_] = model.predict_proba(x)
    expected = -fastemd.metrics.emd_score(bins, prob, chain)
    assert fastemd.metrics.emd_scorer(chain)(model, x, y) == pytest.approx(expected)


def test_fit_refuses_eval_set_of_other_features(rng):
    x, y = rng.standard_normal((60, 3)), rng.integers(0, 3, 60)
    model = boosting.LightGBMClassifier(fastemd.Chain(3), n_estimators=2, verbose=-1)
    with pytest.raises(ValueError, match="X has 2 features"):
        model.fit(x, y, eval_set=[(x[:, :2], y)])


def test_fit_refuses_numbers_where_bins_have_names(rng):
    tree = fastemd.Tree.from_paths([("a", "low"), ("a", "mid"), ("high",)])
    x, y = rng.standard_normal((60, 3)), rng.integers(0, 3, 60)
    with pytest.raises(ValueError, match=r"classes: needed .* pass classes=range\(3\)"):
        boosting.LightGBMClassifier(tree).fit(x, y)
    boosting.LightGBMClassifier(tree, range(3), n_estimators=2, verbose=-1).fit(x, y)


@pytest.mark.parametrize("name", ["app", "num_classes", "metrics"])
def test_fit_refuses_aliases_of_what_the_classifier_sets(name, rng):
    x, y = rng.standard_normal((60, 3)), rng.integers(0, 3, 60)
    with pytest.raises(ValueError, match=f"{name}: the classifier sets it"):
        boosting.LightGBMClassifier(fastemd.Chain(3), **{name: 3}).fit(x, y)
