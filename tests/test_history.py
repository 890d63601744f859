"""The committed results of the benchmarks of releases, and the picture of them."""

import json
import re
import runpy
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from benchmarks.airspeed import history

ROOT = Path(__file__).parents[1]
HISTORY = ROOT / "benchmarks" / "results"
RESULTS = sorted(HISTORY.glob("xeon-2-cores/*-*.json"))


def _json(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name[:8])
def test_results_are_small_and_neutral(path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < 60_000
    assert "/" not in text  # no path of the machine
    assert "\\" not in text
    for machine in _json(path)["params"], _json(HISTORY / "xeon-2-cores" / "machine.json"):
        assert (machine["machine"], machine["os"]) == ("xeon-2-cores", "Linux")


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name[:8])
def test_results_are_of_benchmarks_in_history(path):
    described = _json(HISTORY / "benchmarks.json")
    for name, (_, values, *_) in _json(path)["results"].items():
        module, group, method = name.split(".")
        assert module == "history"
        assert callable(getattr(getattr(history, group), method))
        assert described[name]["params"] == values


def test_releases_are_those_of_results():
    commits = {_json(path)["commit_hash"] for path in RESULTS}
    assert set(_json(ROOT / "benchmarks" / "releases.json")) == commits


def test_history_picture_adds_release(tmp_path, monkeypatch):
    folder = tmp_path / "benchmarks" / "results" / "xeon-2-cores"
    shutil.copytree(HISTORY, folder.parent)
    releases = _json(ROOT / "benchmarks" / "releases.json") | {"abc": "0.10"}
    (tmp_path / "benchmarks" / "releases.json").write_text(json.dumps(releases), encoding="utf-8")
    added = _json(RESULTS[0]) | {"commit_hash": "abc"}
    added["results"]["history.Hessian.time_hessian"][0] = None  # failed
    added["results"]["history.Tree.time_value_and_gradient"][0][0] = None
    del added["results"]["history.Start.time_import"]
    (folder / "abc-env.json").write_text(json.dumps(added), encoding="utf-8")
    (tmp_path / "docs" / "pictures").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "docs" / "pictures")
    drawn = runpy.run_path(str(ROOT / "docs" / "pictures" / "history.py"))
    plt.close("all")
    assert drawn["releases"][:2] == ["0.1", "0.2"]
    assert drawn["releases"][-1] == "0.10"  # in the order of versions
    assert len(drawn["releases"]) == len(releases)
    times = drawn["times"]
    assert times["Tree"]["rows 512, rho 2"]["0.10"] > 0
    assert np.isnan(times["Tree"]["rows 1, rho 1"]["0.10"])
    assert np.isnan(times["Hessian"]["hessian"]["0.10"])
    assert np.isnan(times["Start"]["import"]["0.10"])
    texts = [text.get_text() for ax in drawn["axes"] for text in ax.texts]
    assert len(texts) == sum(map(len, times.values()))
    assert any(re.fullmatch(r"([\d.]+ m?s → )+-", text) for text in texts)
