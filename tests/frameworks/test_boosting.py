"""fastemd.boosting in four interfaces: LightGBM, XGBoost, and their scikit-learn classifiers."""

import copy
import pickle
import re
from typing import ClassVar

import numpy as np
import pytest

import fastemd
from fastemd import boosting
from tests.support import boosting_interfaces, naive
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
from tests.support.operations import assert_close

lightgbm = needed("lightgbm")
xgboost = needed("xgboost")
each_library = pytest.mark.parametrize("library", ["lightgbm", "xgboost"])
each_weight = pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
pytestmark = pytest.mark.filterwarnings("ignore:The argument 'eval_set' is deprecated")


@pytest.fixture(params=INTERFACES.values(), ids=INTERFACES)
def interface(request):
    return request.param


class Recorder(boosting.Objective):
    """Records the results passed to the library, and their inputs."""

    calls: ClassVar[list] = []  # the library trains with a copy

    def __call__(self, first, second, sample_weight=None):
        result = super().__call__(first, second, sample_weight)
        scores = first if hasattr(second, "get_label") else second
        self.calls.append((np.array(scores), *result))
        return result


@each_weight
def test_objective_agrees_with_emd_loss(interface, weighted, rng, monkeypatch):
    """The derivatives of every round, with the rows in order and their weights."""
    monkeypatch.setattr(Recorder, "calls", [])
    halves = split_halves(rng, weighted)
    interface.run(halves, rounds=3, objective=Recorder(CHAIN, **LOSS))
    _, labels, weight = halves[0]
    weight = np.ones((200, 1)) if weight is None else weight[:, None].astype("f8")
    assert len(Recorder.calls) == 3
    for scores, grad, hess in Recorder.calls:
        wanted = naive.emd_loss_rows(scores.astype("f8"), labels, naive.ground(CHAIN), **LOSS)[1]
        rtol = 1e-6 if scores.dtype == "f4" else 1e-12
        assert_close(grad, weight * wanted, rtol=rtol)
        exact = fastemd.emd_loss_hessian_diag(scores, labels, CHAIN, reduction="none", **LOSS)
        floored = np.maximum(np.abs(exact), np.abs(wanted) / 4)
        assert_close(hess, weight * floored, rtol=rtol)
    first, *_, last = (scores for scores, *_ in Recorder.calls)
    assert np.ptp(first, axis=1).max() == 0  # all classes start with equal scores
    assert np.ptp(last, axis=1).min() > 0


@each_weight
def test_metric_is_mean_loss(interface, weighted, rng):
    halves = split_halves(rng, weighted)
    _, log, scores = interface.run(halves, **LOSS)
    _, labels, weight = halves[1]
    ref = fastemd.emd_loss(scores, labels, CHAIN, sample_weight=weight, **LOSS)[0]
    np.testing.assert_allclose(log[-1], ref, rtol=1e-6)


def test_training_lowers_loss_of_test_rows(interface, rng):
    """To less than 0.6 of the untrained loss; measured: 0.48."""
    halves = split_halves(rng)
    untrained = fastemd.emd_loss(np.zeros((200, N)), halves[1].y, CHAIN)[0]
    _, log, scores = interface.run(halves, rounds=40)
    assert log[-1] < 0.6 * untrained
    assert log[-1] < 0.9 * log[4]
    assert np.abs(scores.argmax(1) - halves[1].y).mean() < 0.8  # the middle class has 1.2


def test_training_on_tree(interface, rng):
    tree = fastemd.Tree.from_parents([-1, 0, 0, 1, 1, 2, 2, 2])
    halves = split_halves(rng)
    _, log, _ = interface.run(halves, rounds=20, space=tree)
    assert log[-1] < 0.75 * fastemd.emd_loss(np.zeros((200, N)), halves[1].y, tree)[0]


def test_training_stops_early(interface, rng):
    halves = split_halves(rng)
    _, log, scores = interface.run(halves, rounds=500, stopping=5)
    assert len(log) < 300
    best = int(np.argmin(log))
    assert len(log) == best + 1 + 5
    ref = fastemd.emd_loss(scores, halves[1].y, CHAIN)[0]
    np.testing.assert_allclose(min(log), ref, rtol=1e-6)


@each_weight
@each_library
def test_classifier_agrees_with_native_interface(library, weighted, rng):
    halves = split_halves(rng, weighted)
    classifier = {"lightgbm": "LGBMClassifier", "xgboost": "XGBClassifier"}[library]
    (_, log, scores), (_, same, others) = (
        INTERFACES[name].run(halves, **LOSS) for name in (library, classifier)
    )
    np.testing.assert_allclose(log, same, rtol=1e-6)
    np.testing.assert_allclose(scores - scores[:, :1], others - others[:, :1], atol=1e-4)


@pytest.mark.filterwarnings("ignore:Cannot compute class probabilities")  # of LGBMClassifier
def test_pickle_preserves_objective_metric_and_model(interface, rng):
    halves = split_halves(rng)
    scores = rng.standard_normal((200, N))
    for function in (interface.objective(CHAIN, **LOSS), interface.metric(CHAIN, **LOSS)):
        for twin in (pickle.loads(pickle.dumps(function)), copy.deepcopy(function)):
            for ours, its in zip(
                np.atleast_1d(function(halves[0].y, scores)),
                np.atleast_1d(twin(halves[0].y, scores)),
                strict=True,
            ):
                np.testing.assert_array_equal(ours, its)
    model, _, _ = interface.run(halves)
    twin = pickle.loads(pickle.dumps(model))
    x = xgboost.DMatrix(halves[1].x) if isinstance(model, xgboost.Booster) else halves[1].x
    np.testing.assert_array_equal(model.predict(x), twin.predict(x))


def test_classifiers_work_with_scikit_learn(rng):
    """Clone them and cross-validate."""
    selection = needed("sklearn.model_selection")
    half, _ = split_halves(rng)
    objective = boosting.xgboost_objective(CHAIN)
    model = xgboost.XGBClassifier(n_estimators=5, n_jobs=1, objective=objective)
    assert (selection.cross_val_score(model, half.x, half.y, cv=3) > 0.25).all()
    np.testing.assert_allclose(model.fit(half.x, half.y).predict_proba(half.x).sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("rho", [1, 1.5, 2, 3.7])
def test_objective_is_finite_for_extreme_scores(interface, rho, rng):
    """Second derivatives are positive, and no step exceeds 4."""
    objective = interface.objective(CHAIN, rho, cross_entropy=0.0)
    for dtype in ("f4", "f8"):
        scores = rng.choice([-1e4, -3, 0, 1, 30], (300, N)).astype(dtype)
        grad, hess = objective(rng.integers(0, N, 300), scores)
        assert np.isfinite(grad).all()
        assert np.isfinite(hess).all()
        assert (hess.astype("f4") > 0).all()
        assert (np.abs(grad) <= 4 * hess * (1 + 1e-6)).all()


@pytest.mark.parametrize(
    ("labels", "wrong", "message"),
    [
        ([0, 1, 5], ValueError, r"labels: row 2 is 5\.?0?, expected a whole number from 0 to 4"),
        ([0, -1, 1], ValueError, "labels: row 1 is -1"),
        ([0.5, 1, 1], ValueError, "labels: row 0 is 0.5"),
        ([0, 1, np.nan], ValueError, "labels: row 2 is nan"),
        ([0, 1], ValueError, r"labels: expected one per row, shape \(3,\), got \(2,\)"),
        ([0, 1, np.inf], ValueError, "labels: row 2 is inf"),
        (["a", "b", "c"], TypeError, "labels: expected an array of real numbers, got"),
        ([True, False, True], TypeError, "labels: expected whole numbers, got ndarray of shape"),
    ],
)
def test_objective_rejects_invalid_labels(labels, wrong, message, interface):
    for function in (interface.objective(CHAIN), interface.metric(CHAIN)):
        with pytest.raises(wrong, match=message), np.errstate(all="raise"):
            function(labels, np.zeros((3, N)))


@pytest.mark.parametrize("shape", [(3,), (3, N + 1), (3, N - 1), (3 * N,)])
def test_objective_rejects_other_number_of_classes(shape, interface):
    message = (
        rf"scores: expected shape \(rows, 5\).*got {re.escape(str(shape))}; .* need num_class=5"
    )
    with pytest.raises(ValueError, match=message):
        interface.objective(CHAIN)([0, 1, 2], np.zeros(shape))


def test_objective_rejects_invalid_weights_and_scores(interface):
    objective = interface.objective(CHAIN)
    with pytest.raises(ValueError, match="sample_weight: row 1 is -1"):
        objective([0, 1], np.zeros((2, N)), [1.0, -1.0])
    with pytest.raises(ValueError, match=r"sample_weight: expected one per row, shape \(2,\)"):
        objective([0, 1], np.zeros((2, N)), [1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="x: row 0 has a logit nan"):
        objective([0, 1], np.full((2, N), np.nan))


@pytest.mark.parametrize(
    ("arguments", "wrong", "message"),
    [
        ((3,), TypeError, "space: expected a fastemd.Chain"),
        ((CHAIN, 0.5), ValueError, "rho: expected a finite number >= 1"),
        ((CHAIN, 2, -1.0), ValueError, "cross_entropy: expected a finite number >= 0"),
    ],
)
def test_objective_and_metric_validate_arguments_on_construction(
    arguments, wrong, message, interface
):
    for function in (interface.objective, interface.metric):
        with pytest.raises(wrong, match=message):
            function(*arguments)


def test_training_raises_error_of_objective(interface, rng):
    """The libraries pass on the error."""
    halves = split_halves(rng)
    with pytest.raises(ValueError, match=r"scores: expected shape \(rows, 7\)"):
        interface.run(halves, space=fastemd.Chain(7))


@each_weight
@pytest.mark.parametrize("loss", [{"rho": 1.5}, LOSS], ids=["", "cross_entropy"])
def test_metric_reads_probabilities_of_built_in_objective(interface, weighted, loss, rng):
    halves = split_halves(rng, weighted)
    _, log, scores = interface.run(halves, objective=interface.built_in, **loss)
    ref = fastemd.emd_loss(scores, halves[1].y, CHAIN, sample_weight=halves[1].weight, **loss)[0]
    np.testing.assert_allclose(log[-1], ref, rtol=2e-6)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("n_bins", [3, 1000])
def test_metric_recognises_probabilities_rounded_to_float32(n_bins, dtype, interface, rng):
    chain = fastemd.Chain(n_bins)
    scores = rng.standard_normal((50, n_bins))
    p = np.exp(scores)
    p = (p / p.sum(1, keepdims=True)).astype("f4").astype(dtype)
    labels = rng.integers(0, n_bins, 50)
    value = _value(interface.metric(chain)(labels, p))
    np.testing.assert_allclose(value, fastemd.emd_loss(scores, labels, chain)[0], rtol=1e-6)


def test_metric_reads_raw_scores_unless_all_rows_are_probabilities(interface):
    metric = interface.metric(CHAIN)
    for scores in (
        [[0.2, 0.2, 0.2, 0.2, 0.2], [0.2, 0.2, 0.2, 0.2, 1.2]],
        [[0.2, 0.2, 0.2, 0.2, 0.2], [0.5, 0.3, 0.4, 0.5, -0.7]],
        [[0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0]],
    ):
        ref = fastemd.emd_loss(scores, [0, 4], CHAIN)[0]
        np.testing.assert_allclose(_value(metric([0, 4], scores)), ref, rtol=1e-12)


def _value(result):
    """Return the value in the result of any metric."""
    entries = result if isinstance(result, tuple) else (result,)
    return next(entry for entry in entries if isinstance(entry, float))


@pytest.mark.parametrize("name", ["xgboost", "XGBClassifier"])
def test_metric_rejects_classes_of_softmax(name, rng):
    message = r"scores: expected shape \(rows, 5\).*got \(200,\).*use 'multi:softprob'"
    with pytest.raises(ValueError, match=message):
        INTERFACES[name].run(split_halves(rng), objective="multi:softmax")


@pytest.mark.parametrize("name", ["lightgbm", "LGBMClassifier"])
def test_metric_rejects_one_vs_all_probabilities(name, rng):
    with pytest.raises(ValueError, match="that do not, as under 'multiclassova'; use 'multiclass'"):
        INTERFACES[name].run(split_halves(rng), objective="multiclassova")


def test_metric_rejects_ambiguous_scores_of_two_classes(interface):
    """[0.5, 0.5] is the same as scores and as probabilities."""
    metric = interface.metric(fastemd.Chain(2))
    with pytest.raises(ValueError, match=r"may be raw scores or probabilities; use.*base_score=0"):
        metric([0, 1], [[0.5, 0.5], [0.44, 0.56]])
    assert _value(metric([0, 1], [[0.5, 0.5], [0.5, 0.5]])) == 0.25


@each_library
def test_training_with_two_classes(library, rng, monkeypatch):
    """In XGBoost the scores start at 0.5 and sum to 1, unless base_score is set."""
    halves = [half._replace(y=half.y // 3) for half in split_halves(rng)]
    run, chain = INTERFACES[library].run, fastemd.Chain(2)
    monkeypatch.setattr(boosting_interfaces, "N", 2)
    if library == "xgboost":
        with pytest.raises(ValueError, match="base_score=0"):
            run(halves, space=chain)
        monkeypatch.setitem(XGBOOST, "base_score", 0)
    _, log, scores = run(halves, space=chain)
    ref = fastemd.emd_loss(scores, halves[1].y, chain)[0]
    np.testing.assert_allclose(log[-1], ref, rtol=1e-5)


def test_metric_is_inf_for_probability_0_at_label(interface):
    """Only with cross entropy, and if the row has a weight."""
    p, labels = np.array([[0.5, 0.5, 0, 0, 0], [0, 0, 0, 0.5, 0.5]]), [0, 0]
    assert np.isinf(_value(interface.metric(CHAIN, **LOSS)(labels, p)))
    for metric, read in ((interface.metric(CHAIN), 2), (interface.metric(CHAIN, **LOSS), 1)):
        weight = np.array([1.0, read - 1])
        loss = {"rho": metric.rho, "cross_entropy": metric.cross_entropy}
        with np.errstate(divide="ignore"):
            ref = fastemd.emd_loss(np.log(p[:read]), labels[:read], CHAIN, **loss)[0]
        np.testing.assert_allclose(_value(metric(labels, p, weight)), ref, rtol=1e-12)


@pytest.mark.parametrize("label", [np.nan, np.inf, -1.0, 17.0])
def test_functions_ignore_rows_of_weight_0(label, interface):
    """For any labels and scores, also if other rows are probabilities."""
    labels, weight = np.array([1.0, label, 3.0]), [1.0, 0.0, 2.0]
    for scores in (np.arange(15.0).reshape(3, 5) % 4, np.full((3, 5), 0.2)):
        scores[1] = 7.0
        metric = interface.metric(CHAIN)
        value = _value(metric(labels, scores, weight))
        others = labels[::2], scores[::2], weight[::2]
        np.testing.assert_allclose(value, _value(metric(*others)), rtol=1e-12)
        objective = interface.objective(CHAIN)
        for array, other in zip(objective(labels, scores, weight), objective(*others), strict=True):
            np.testing.assert_array_equal(array[::2], other)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i4"])
def test_functions_accept_pandas(dtype, interface, rng):
    pandas = needed("pandas")
    labels, scores = rng.integers(0, N, 20), rng.standard_normal((20, N))
    weight = rng.integers(1, 9, 20)
    series = pandas.Series(labels), pandas.DataFrame(scores), pandas.Series(weight.astype(dtype))
    for function in (interface.objective(CHAIN), interface.metric(CHAIN)):
        np.testing.assert_array_equal(function(labels, scores, weight), function(*series))


@pytest.mark.parametrize("weight", [1.0, 1e-30, 1e-38, 1e-44, 1e-300, 1e30])
def test_functions_raise_no_floating_point_error(weight, interface, rng):
    """LightGBM casts the derivatives to float32, which may raise as well."""
    scores = rng.choice([-1e4, -300, -100, 0, 1, 30], (300, N))
    labels, weights = rng.integers(0, N, 300), np.full(300, weight)
    weights[::7] *= 1e-5
    with np.errstate(all="raise"):
        interface.metric(CHAIN)(labels, scores, weights)
        grad, hess = interface.objective(CHAIN)(labels, scores, weights)
        grad, hess = grad.astype("f4"), hess.astype("f4")
    assert (hess > 0).all()
    wanted = fastemd.emd_loss(scores, labels, CHAIN, sample_weight=weights, reduction="none")[1]
    np.testing.assert_allclose(grad, wanted, rtol=1e-6, atol=np.finfo("f4").tiny)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_objective_rejects_derivatives_beyond_float32(dtype, interface):
    scores = np.zeros((3, N), dtype)
    with pytest.raises(ValueError, match=r"scores: the derivatives of row 1 are beyond.*float32"):
        interface.objective(CHAIN)([0, 4, 1], scores, [1, 1e39, 1])


def _without(halves, *missing):
    keep = [~np.isin(half.y, missing) for half in halves]
    return [Half(h.x[k], h.y[k], None) for h, k in zip(halves, keep, strict=True)]


@pytest.mark.parametrize("missing", [[2], [4], [0, 4], [1, 2, 3]])
@each_library
def test_training_with_missing_classes(library, missing, rng):
    """The native interfaces have `num_class`."""
    halves = _without(split_halves(rng), *missing)
    _, log, scores = INTERFACES[library].run(halves)
    ref = fastemd.emd_loss(scores, halves[1].y, CHAIN)[0]
    np.testing.assert_allclose(log[-1], ref, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("LGBMClassifier", [2]),
        ("LGBMClassifier", [4]),
        ("LGBMClassifier", [1, 2, 3]),
        ("XGBClassifier", [4]),
        ("XGBClassifier", [2, 3, 4]),
    ],
)
@pytest.mark.parametrize("built_in", [False, True])
def test_classifier_rejects_missing_classes(built_in, name, missing, rng, monkeypatch):
    """Although it has `num_class`; XGBClassifier itself rejects a gap."""
    interface = INTERFACES[name]
    halves = _without(split_halves(rng), *missing)
    if len(missing) < 3:
        monkeypatch.setitem(LIGHTGBM, "num_class", N)
    objective = {True: interface.built_in, False: None}[built_in]
    if built_in and len(missing) == 3:
        objective = {"LGBMClassifier": "binary", "XGBClassifier": "binary:logistic"}[name]
    rows = len(halves[built_in].y)
    got = rf"\({rows},\)" if len(missing) == 3 else rf"\({rows}, {N - len(missing)}\)"
    with pytest.raises(ValueError, match=rf"got {got}.*count the classes of y.*rows of all 5"):
        interface.run(halves, objective=objective)


@pytest.mark.parametrize("name", ["LGBMClassifier", "XGBClassifier"])
def test_classifier_accepts_missing_class_in_row_of_weight_0(name, rng):
    halves = _without(split_halves(rng), 2)
    half = halves[0]
    weight = np.append(np.ones(len(half.y)), 0)
    halves[0] = Half(np.vstack([half.x, np.zeros(4)]), np.append(half.y, 2), weight)
    halves[1] = halves[1]._replace(weight=np.ones(len(halves[1].y)))
    _, log, scores = INTERFACES[name].run(halves)
    ref = fastemd.emd_loss(scores, halves[1].y, CHAIN)[0]
    np.testing.assert_allclose(log[-1], ref, rtol=1e-6)


def test_objective_rejects_two_renumbered_classes(rng, monkeypatch):
    """LGBMClassifier maps the classes 0 and 3 to 0 and 1, with five scores."""
    monkeypatch.setitem(LIGHTGBM, "num_class", N)
    halves = _without(split_halves(rng), 1, 2, 4)
    with pytest.raises(ValueError, match="which LGBMClassifier makes of any two classes"):
        INTERFACES["LGBMClassifier"].run(halves)


def test_repr_of_objective_and_metric(interface):
    objective, metric = interface.objective(CHAIN), interface.metric(CHAIN, **LOSS)
    assert repr(objective) == f"Objective({CHAIN!r}, rho=2)"
    assert repr(metric) == f"{type(metric).__name__}({CHAIN!r}, rho=1.5, cross_entropy=0.3)"
    assert type(metric).__name__ in ("LightGBMMetric", "XGBoostMetric")
    clone = needed("sklearn.base").clone
    for twin in (pickle.loads(pickle.dumps(metric)), copy.deepcopy(metric)):
        assert repr(twin) == repr(metric)
    assert repr(clone(objective, safe=False)) == repr(objective)
