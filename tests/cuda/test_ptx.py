"""Every CUDA kernel compiles, for both types; that needs no GPU, but numba-cuda.

In a process of its own, as Numba finds either CUDA or its simulator when it is imported.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "support" / "compile_kernels.py"


@pytest.mark.skipif(find_spec("numba_cuda") is None, reason="numba-cuda is not installed")
@pytest.mark.parametrize("char", ["f", "d"])
@pytest.mark.parametrize("space", ["chain", "tree"])
def test_kernels__compile_to_ptx(char, space):
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_ENABLE_CUDASIM"}
    command = [sys.executable, str(SCRIPT), space, char]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3 * 3 + 4 * 3 + 3 + 3 * 3 + 8 + 3 + 3
