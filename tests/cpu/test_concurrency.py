"""Threads, forks and spawned processes, under every threading layer of Numba."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "support" / "concurrency.py"
SCENES = ["threads", "nested", "spawned", "users_threads_stay"]
LAYERS = ["workqueue", "default"]
if sys.platform == "linux":
    # Windows has no fork. On macOS, system libraries do not support fork without exec.
    SCENES += ["forked", "forked_while_busy"]
if sys.platform != "darwin":  # where Numba's wheel does not include an OpenMP library
    LAYERS.append("omp")
if sys.platform == "linux" and platform.machine() == "x86_64":  # others have no wheel of tbb
    LAYERS.append("tbb")


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("scene", SCENES)
def test_functions_are_correct_from_threads_and_processes(scene, layer):
    environment = {**os.environ, "NUMBA_NUM_THREADS": "2"}
    if layer != "default":
        environment["NUMBA_THREADING_LAYER"] = layer
    command = [sys.executable, str(SCRIPT), scene, layer]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
