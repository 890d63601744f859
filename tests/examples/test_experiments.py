"""The recipes of the documentation, and the code that the experiments on real data share."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "examples"))
import experiments

from tests.support.frameworks import needed

RECIPES = Path(__file__).parents[2] / "examples" / "recipes"


@pytest.mark.parametrize(
    ("recipe", "framework"), [("torch_function", "torch"), ("jax_custom_vjp", "jax")]
)
def test_recipes_run(recipe, framework, capsys):
    needed(framework)
    runpy.run_path(str(RECIPES / f"{recipe}.py"))
    assert "classes [0, 3]" in capsys.readouterr().out


def _never():
    raise AssertionError("computed again")


def test_runs_resume_after_interrupt(tmp_path):
    path = tmp_path / "runs.jsonl"
    runs = experiments.Runs(path, {"epochs": 2}, 3)
    assert runs.get("a", 1, lambda: [1.5, np.nan]).tolist()[0] == 1.5
    runs.get("b", 1, lambda x: np.full((2, 2), x), 3.0)
    path.write_text(path.read_text() + '["c", [0.')  # as if killed while writing
    again = experiments.Runs(path, {"epochs": 2}, 3)
    np.testing.assert_array_equal(again.get("a", 1, _never), [1.5, np.nan])
    np.testing.assert_array_equal(again.get("b", 1, _never), np.full((2, 2), 3.0))
    assert again.get("c", 1, lambda: [0.5]).tolist() == [0.5]
    assert experiments.Runs(path, {"epochs": 2}, 3).get("c", 1, _never).tolist() == [0.5]


def test_runs_reject_other_settings(tmp_path):
    experiments.Runs(tmp_path / "runs.jsonl", {"epochs": 2}, 3)
    with pytest.raises(SystemExit, match="other settings"):
        experiments.Runs(tmp_path / "runs.jsonl", {"epochs": 3}, 3)


def test_mean_and_spread_of_two_runs():
    mean, spread = experiments.mean_and_spread([[1.0, 2.0], [3.0, 2.0]])
    np.testing.assert_allclose(mean, [2.0, 2.0])
    np.testing.assert_allclose(spread, [2.0**0.5, 0.0])
