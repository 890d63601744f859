"""The example that learns the lengths of a tree."""

import runpy
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from tests.support.frameworks import needed

EXAMPLE = Path(__file__).parents[2] / "examples" / "plot_learned_lengths.py"


def test_example_recovers_lengths(monkeypatch, capsys):
    needed("torch")
    plt.switch_backend("agg")
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    variables = runpy.run_path(str(EXAMPLE))
    np.testing.assert_allclose(variables["lengths"][-1], variables["true"], atol=1e-3)
    assert np.ptp(variables["true"]) > 1.0
    assert "largest error of a length: " in capsys.readouterr().out
