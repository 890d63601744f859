"""The experiment on breathing spectra, in its quick form."""

import sys
from pathlib import Path

import numba
import numpy as np
import pytest

from tests.support.frameworks import needed

sys.path.append(str(Path(__file__).parents[2] / "examples"))


@pytest.fixture
def breathing():
    """Import the script, and restore the numbers of threads that it sets."""
    torch = needed("torch")
    threads = torch.get_num_threads(), numba.get_num_threads()
    import breathing_psd

    yield breathing_psd
    torch.set_num_threads(threads[0])
    numba.set_num_threads(threads[1])


def run(module, folder, monkeypatch, stop_after=None):
    """Run the quick form and return the folds of each training."""
    seen, train = [], module.train

    def spy(clips, loss, rate, seed, training, test, n_steps):
        if len(seen) == stop_after:
            raise KeyboardInterrupt
        seen.append((set(training), set(test)))
        return train(clips, loss, rate, seed, training, test, n_steps)

    monkeypatch.setattr(sys, "argv", ["breathing_psd.py", "--quick", "--folder", str(folder)])
    with monkeypatch.context() as patch:
        patch.setattr(module, "train", spy)
        module.main()
    return seen


def test_main_quick_resumes_and_saves_results(breathing, tmp_path, monkeypatch, capsys):
    with pytest.raises(KeyboardInterrupt):
        run(breathing, tmp_path, monkeypatch, stop_after=5)
    seen = run(breathing, tmp_path, monkeypatch)
    chosen = breathing.QUICK
    per_loss = len(chosen["folds"]) * (len(chosen["rates"]) + 2 * len(chosen["seeds"]))
    assert len(seen) == per_loss * len(breathing.LOSSES) - 5
    assert all(not training & test for training, test in seen)
    assert run(breathing, tmp_path, monkeypatch) == []

    folds = np.genfromtxt(
        tmp_path / "breathing-folds.csv", delimiter=",", names=True, dtype=None, encoding="utf-8"
    )
    assert folds["fold"].tolist() == ["b01", "c"]
    assert (folds["EMD"] < folds["mean_spectrum"]).all()
    for name in ("breathing-curves.csv", "breathing-table.csv", "breathing.png"):
        assert (tmp_path / name).stat().st_size > 1000
    assert "tuned for   30, step   30: EMD^2" in capsys.readouterr().out


def test_split_excludes_test_fold_from_tuning(breathing):
    for fold in breathing.FOLDS:
        training, validation = breathing.split(fold)
        assert sorted([fold, *training, *validation]) == sorted(breathing.FOLDS)


def test_clips_of_one_patient_are_in_one_fold(breathing):
    clips, patient = breathing.Clips(1), np.load(breathing.DATA)["patient"]
    folds = [set(patient[clips.of(fold)]) for fold in breathing.FOLDS]
    assert folds == [{0}, {1}, {2}, {3}, {4}, {5, 6, 7}]
    sums = clips.spectrum.sum(-1)
    np.testing.assert_allclose(sums, 1, rtol=1e-6)


def test_spectrum_finds_frequency_of_sine(breathing):
    clip = 7 + np.sin(2 * np.pi * 15 / 60 * np.arange(60))
    assert breathing.spectrum(clip).argmax() == 15


def test_check_fails_for_untrained_model(breathing):
    constant, chest, untrained = 4.3, 2.1, 5.8
    rows = [("b01", 469, constant, chest, untrained, 2.5, 1.8, 1.8, 2.0)]
    breathing.check(rows)
    with pytest.raises(AssertionError, match="did not learn"):
        breathing.check([(*rows[0][:-1], untrained)])
    with pytest.raises(AssertionError, match="untrained net beats the mean spectrum"):
        breathing.check([("b01", 469, 6.0, *rows[0][3:])])


def test_sinkhorn_distance_decreases_along_negative_gradient_and_conserves_mass(breathing):
    torch = needed("torch")
    distance = breathing.LOSSES["SD"]
    p, q = torch.full((1, 31), 1 / 31), torch.linspace(1, 3, 31)[None] / 62
    p.requires_grad_()
    before = distance(p, q).sum()
    before.backward()
    assert abs(p.grad.sum()) < 1e-4
    assert distance(p.detach() - 1e-4 * p.grad, q) < before
    assert distance(p.detach() + 1e-4 * p.grad, q) > before
