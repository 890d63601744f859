"""Every CUDA kernel compiles, for both types; that needs no GPU, but numba-cuda.

In another process, as Numba finds either CUDA or its simulator when it is imported.
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
def test_kernels_compile_to_ptx(char, space):
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_ENABLE_CUDASIM"}
    command = [sys.executable, str(SCRIPT), space, char]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    variants = {"gradient": 3, "hessian_diag": 2, "hvp": 1, "constant_hvp": 2, "curvature": 2}
    variants |= {"flow": 1, "embed": 1, "loss": 3, "loss_diagonal": 3, "loss_product": 3}
    n_teams = 7 + 2  # "convert" for three pairs of types
    assert len(done.stdout.splitlines()) == sum(variants.values()) + 2 * 3 + n_teams
