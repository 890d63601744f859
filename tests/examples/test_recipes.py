"""The recipes of the documentation run, where their framework is installed."""

import runpy
from pathlib import Path

import pytest

from tests.support.frameworks import needed

RECIPES = Path(__file__).parents[2] / "examples" / "recipes"


@pytest.mark.parametrize(
    ("recipe", "framework"), [("torch_function", "torch"), ("jax_custom_vjp", "jax")]
)
def test_recipes_run(recipe, framework, capsys):
    needed(framework)
    runpy.run_path(str(RECIPES / f"{recipe}.py"))
    assert "classes [0, 3]" in capsys.readouterr().out
