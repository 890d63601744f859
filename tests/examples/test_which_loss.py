"""The comparison of losses in examples/which_loss.py, and its tasks."""

import csv
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

import fastemd
from tests.support.frameworks import needed

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.append(str(EXAMPLES))
torch, which_loss = needed("torch"), needed("which_loss")
loss_tasks, experiments = needed("loss_tasks"), needed("experiments")
TREE = fastemd.Tree.from_paths([("a", "b"), ("a", "c"), ("d",), ("e", "f", "g")])
LABEL = torch.tensor([0, 1, 2, 3, 0])


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return torch.randn((5, 4), generator=generator, dtype=torch.float64)


def test_which_loss_quick_learns_and_saves_results(tmp_path):
    command = [sys.executable, EXAMPLES / "which_loss.py", "--quick", "--folder", tmp_path]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert printed.count("| CE | rate ") == 2
    with (tmp_path / "which_loss.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == (4 + 6 + 5) * 2 * 2  # values of three losses, seeds, parts
    accuracy = [float(row["top-1"]) for row in rows]
    assert 0.15 < min(accuracy) < max(accuracy) < 0.6
    assert (tmp_path / "which_loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("rho", [1, 1.5, 2])
@pytest.mark.parametrize("share", [0.3, 10.0])
def test_losses_are_cross_entropy_plus_share_of_emd(logits, rho, share):
    loss = which_loss.with_emd(TREE, share, rho)
    entropy = torch.nn.functional.cross_entropy(logits, LABEL).item()
    p, q = logits.softmax(-1).numpy(), np.eye(4)[LABEL]
    mean = TREE.cost_matrix().sum() / 12
    emd = fastemd.emd(p, q, TREE, rho).mean() / mean
    assert loss(logits, LABEL, 0.0).item() == pytest.approx(entropy + share * emd, rel=1e-12)
    assert loss(logits, LABEL, 0.9).item() == loss(logits, LABEL, 0.0).item()
    decaying = which_loss.with_decaying_emd(TREE, share, rho)
    for elapsed in (0.0, 0.25, 1.0):
        expected = entropy + (1 - elapsed) * share * emd
        assert decaying(logits, LABEL, elapsed).item() == pytest.approx(expected, rel=1e-12)
    alone = which_loss.emd_alone(TREE, 0.1, rho)
    assert alone(logits, LABEL, 0.0).item() == pytest.approx(emd * mean, rel=1e-12)


def test_soft_targets_decrease_exponentially_with_distance(logits):
    cost = TREE.cost_matrix()
    target = np.exp(-7 * cost / (cost.sum() / 12))[LABEL]
    target /= target.sum(axis=-1, keepdims=True)
    expected = -(target * logits.log_softmax(-1).numpy()).sum(axis=-1).mean()
    comp = which_loss.soft_targets(TREE, 7.0)(logits.float(), LABEL, 0.0)
    assert comp.item() == pytest.approx(expected, rel=1e-5)


def test_sinkhorn_loss_agrees_with_iterations(logits):
    cost = TREE.cost_matrix()
    logits.requires_grad_()
    entropies = torch.nn.functional.cross_entropy(logits, LABEL)
    loss = 3 * which_loss.with_sinkhorn(TREE, 1 / 3)(logits, LABEL, 0.0) - 3 * entropies
    (gradient,) = torch.autograd.grad(loss, logits)

    p = logits.softmax(-1).detach().numpy()
    one_hot = np.eye(4)[LABEL]
    ref = fastemd.sinkhorn(p, one_hot, cost, lam=3.0, max_iter=1)
    entropy = -(p * np.log(p)).sum(axis=-1)
    assert loss.item() == pytest.approx((ref.value - entropy / 3).mean(), rel=1e-6)
    through_softmax = p * (ref.grad - (p * ref.grad).sum(axis=-1, keepdims=True)) / len(p)
    np.testing.assert_allclose(gradient, through_softmax, atol=1e-7)
    more = fastemd.sinkhorn(p, one_hot, cost, lam=3.0, max_iter=50)
    np.testing.assert_allclose(more.value, ref.value, rtol=1e-12)


def test_measure_agrees_with_metrics(logits):
    label, cost = LABEL.numpy(), TREE.cost_matrix()
    task = loss_tasks.glosses()._replace(
        space=TREE, inputs=lambda rows: (logits[rows],), label=label
    )
    rows = np.array([4, 0, 2, 3])
    p = logits.softmax(-1).numpy()[rows]
    best, nearest = p.argmax(axis=-1), (p @ cost).argmin(axis=-1)
    expected = [
        (best == label[rows]).mean(),
        fastemd.metrics.mean_ground_distance(label[rows], best, TREE),
        fastemd.metrics.mean_ground_distance(label[rows], nearest, TREE),
        fastemd.metrics.emd_score(label[rows], p, TREE, rho=1),
    ]
    comp = which_loss.measure(task, torch.nn.Identity(), rows)
    np.testing.assert_allclose(comp, expected, rtol=1e-6)


def test_changes_are_paired_and_on_test_part():
    reference, results = np.full((5, 2, 4), 7.0), np.full((5, 2, 4), 9.0)
    reference[:, 1] = np.array([[0.5, 0.6, 0.4, 0.5, 0.5], *[[2, 3, 4, 1, 5]] * 3]).T
    step = np.array([1.0, 2.0, 3.0, 2.0, 2.0])  # mean 2, standard deviation sqrt(1 / 2)
    results[:, 1] = reference[:, 1] + 0.01 * step[:, None] * [1, 3, -3, 0]
    results[:, 1, 3] += [1, -1, 1, -1, 0]
    mean, spread, is_clear = which_loss.changes(results, reference)
    np.testing.assert_allclose(mean, [2, 2, -2, 0], atol=1e-12)
    np.testing.assert_allclose(spread, [0.5**0.5, 0.5**0.5, 0.5**0.5, 100 / 3], rtol=1e-12)
    assert is_clear.tolist() == [True, True, True, False]


def test_values_are_chosen_on_validation_part():
    values = np.zeros((2, 2, 4))  # seeds, parts, measures
    by_value = {share: values.copy() for share in (1.0, 3.0, 10.0)}
    by_value[3.0][:, 0, 0] = 0.5  # top-1, validation
    by_value[10.0][:, 1, 0] = 0.9  # top-1, test
    by_value[1.0][:, 0, 1] = -1  # distance, validation
    assert which_loss.best(by_value, "top-1") == 3
    assert which_loss.best(by_value, "distance") == 1


def _completed(function, run):
    """Return a future with a result, without a training."""
    future = Future()
    future.set_result([[run.seed + run.rate] * 4] * 2)
    return future


def test_experiment_computes_total_seconds_and_resumes(tmp_path):
    scale = which_loss.QUICK
    runs = experiments.Runs(tmp_path / "runs", scale, which_loss.total_seconds(scale))
    results = []
    for submit in (_completed, None):  # nothing is submitted again
        experiment = which_loss.Experiment(scale, runs, submit)
        results.append(experiment.measure(experiment.choose_rates()))
        assert runs.progress.done == pytest.approx(runs.progress.total)
        runs = experiments.Runs(tmp_path / "runs", scale, which_loss.total_seconds(scale))
    assert results[0].keys() == results[1].keys() == set(which_loss.cases(scale))
    for key in results[0]:
        np.testing.assert_array_equal(results[0][key], results[1][key])


def test_rates_are_chosen_by_top_1_on_validation_part():
    scale = which_loss.QUICK._replace(losses=("CE", "CE + EMD"))

    class Saved:
        """The second of three rates is the best; nothing is trained."""

        def __init__(self):
            self.results = {}

        def get(self, name, seconds, compute):
            accuracy = 0.5 if f" {rates[2]} 0 " in name else 0.4
            self.results[name] = [[accuracy, 1, 1, 1], [0.45 - accuracy, 1, 1, 1]]

    rates = loss_tasks.diamonds().rates
    experiment = which_loss.Experiment(scale, Saved(), _completed)
    chosen = experiment.choose_rates()
    assert chosen["diamonds", 1, "CE + EMD", 3.0] == rates[2]
    assert [chosen["diamonds", 1, "CE", rate] for rate in rates] == list(rates)


def test_check_fails_for_untrained_network():
    key = "glosses", 0, "CE", 1.0
    untrained, trained = np.full((2, 2, 4), 11.0), np.full((2, 2, 4), 6.0)
    which_loss.check(key, trained)
    with pytest.raises(AssertionError, match="did not learn"):
        which_loss.check(key, untrained)
    with pytest.raises(AssertionError, match="did not learn"):
        which_loss.check(key, np.stack([trained[0], untrained[0]]))


@pytest.mark.parametrize("name", loss_tasks.TASKS)
def test_task_parts_are_disjoint_and_contain_every_class(name):
    task = loss_tasks.TASKS[name]()
    n_classes = task.space.n_bins
    everything = np.concatenate(list(task.parts.values()))
    np.testing.assert_array_equal(np.sort(everything), np.arange(len(task.label)))
    for rows in task.parts.values():
        assert np.bincount(task.label[rows], minlength=n_classes).min() >= 1
    for setting in task.settings:
        rows, other = (loss_tasks.training_rows(task, setting, seed) for seed in (1, 2))
        assert np.isin(rows, task.parts["training"]).all()
        counts = np.bincount(task.label[rows], minlength=n_classes)
        if setting.n_per_class is not None:
            assert (counts == setting.n_per_class).all()
            assert not np.array_equal(np.sort(rows), np.sort(other))
    logits = task.network()(*task.inputs(rows[:3]))
    assert logits.shape == (3, n_classes)


def test_tasks_have_expected_ground_spaces():
    glosses, omniglot, diamonds = (task().space for task in loss_tasks.TASKS.values())
    assert (glosses.n_bins, glosses.n_nodes) == (982, 1339)
    assert (omniglot.n_bins, omniglot.n_nodes) == (242, 251)
    np.testing.assert_array_equal(diamonds.cost_matrix()[0], np.arange(8))


def test_omniglot_parts_have_different_drawers():
    task = loss_tasks.omniglot()
    characters = task.label.reshape(242, 20)  # in the order of the file
    np.testing.assert_array_equal(characters, np.repeat(characters[:, :1], 20, axis=1))
    np.testing.assert_array_equal(np.sort(characters[:, 0]), np.arange(242))
    drawers = [set(np.unique(rows % 20)) for rows in task.parts.values()]
    assert sum(map(len, drawers)) == len(set.union(*drawers)) == 20
