"""The experiment on the glosses of WordNet, in examples/wordnet_glosses.py."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fastemd
from tests.support.frameworks import needed

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.append(str(EXAMPLES))
torch, experiment = needed("torch"), needed("wordnet_glosses")
gloss_texts = needed("gloss_texts")


def test_wordnet_glosses_quick_learns_and_saves_results(tmp_path):
    command = [sys.executable, EXAMPLES / "wordnet_glosses.py", "--quick", "--folder", tmp_path]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert printed.count("| CE | 2 |") == 2
    with (tmp_path / "wordnet_glosses.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2 * 2 * 2  # losses, rates, seeds, epochs
    at_end = [float(row["top-1"]) for row in rows if row["epoch"] == "2"]
    assert 0.03 < min(at_end) < max(at_end) < 0.5
    assert (tmp_path / "wordnet_glosses.png").read_bytes().startswith(b"\x89PNG")


def test_check_fails_for_untrained_network():
    untrained, trained = np.array([[0.001, 11.0, 11.0]]), np.array([[0.2, 6.0, 9.0]])
    experiment.check("trained", "CE", trained)
    with pytest.raises(AssertionError, match="untrained: did not learn"):
        experiment.check("untrained", "EMD²", untrained)
    with pytest.raises(AssertionError, match="half: did not learn"):
        experiment.check("half", "EMD² + CE", np.where([True, False, False], untrained, trained))


def test_task_splits_are_disjoint_and_contain_every_class():
    tree, words, label, parts = gloss_texts.task()
    assert tree.n_bins == 982
    assert tree.n_nodes == 1339
    everything = np.concatenate(list(parts.values()))
    np.testing.assert_array_equal(np.sort(everything), np.arange(len(words)))
    counts = {name: np.bincount(label[rows], minlength=982) for name, rows in parts.items()}
    assert counts["training"].min() >= experiment.FEW
    assert counts["validation"].min() >= 1
    assert counts["test"].min() >= 1


def test_sinkhorn_loss_agrees_with_iterations():
    tree = fastemd.Tree.from_paths([("a", "b"), ("a", "c"), ("d",), ("e", "f", "g")])
    logits = torch.randn((5, 4), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    label, cost = torch.tensor([0, 1, 2, 3, 0]), tree.cost_matrix()
    logits.requires_grad_()
    loss = 4 * experiment.SinkhornLoss(tree, lam=3.0)(logits, label)
    entropies = torch.nn.functional.cross_entropy(logits, label)
    (gradient,) = torch.autograd.grad(loss - 3 * entropies, logits)

    p = logits.softmax(-1).detach().numpy()
    one_hot = np.eye(4)[label.numpy()]
    ref = fastemd.sinkhorn(p, one_hot, cost, lam=3.0, max_iter=1)
    entropy = -(p * np.log(p)).sum(axis=-1)
    comp = (loss - 3 * entropies).item()
    assert comp == pytest.approx((ref.value - entropy / 3).mean(), rel=1e-6)
    through_softmax = p * (ref.grad - (p * ref.grad).sum(axis=-1, keepdims=True)) / len(p)
    np.testing.assert_allclose(gradient, through_softmax, atol=1e-7)
    more = fastemd.sinkhorn(p, one_hot, cost, lam=3.0, max_iter=50)
    np.testing.assert_allclose(more.value, ref.value, rtol=1e-12)
