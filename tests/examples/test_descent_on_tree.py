"""The numbers in the text of examples/plot_descent_on_tree.py."""

import runpy
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

EXAMPLE = Path(__file__).parents[2] / "examples" / "plot_descent_on_tree.py"


def test_descent_on_tree_takes_mass_from_vehicles_first_under_emd(monkeypatch):
    plt.switch_backend("agg")
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    names = runpy.run_path(str(EXAMPLE))
    is_vehicle = names["distance"] == 6
    halfway = {name: path[np.argmax(path[:, 0] >= 0.5)] for name, path in names["paths"].items()}
    far = {name: round(p[is_vehicle].sum(), 2) for name, p in halfway.items()}
    assert far == {
        "cross entropy": 0.30, "squared error": 0.29, "EMD": 0.11, "EMD^2": 0.17, "CE + 3 EMD": 0.27
    }  # fmt: skip
    assert names["start"][1] == 0.1
    assert round(halfway["EMD"][1], 2) == 0.27
