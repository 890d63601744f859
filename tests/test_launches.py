"""How numba-cuda is used, as far as that needs no GPU.

Launches are tested in a process of their own, as Numba finds either CUDA or its simulator when it
is imported.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("launch_kernels.py")

pytestmark = pytest.mark.skipif(
    find_spec("numba_cuda") is None, reason="numba-cuda is not installed"
)


def _run(*command):
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_ENABLE_CUDASIM"}
    command = [sys.executable, *command]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_launches_are_configured_once_and_do_not_warn():
    done = _run(str(SCRIPT))
    assert done.returncode == 0, done.stderr
