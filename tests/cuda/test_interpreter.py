"""The compiled CUDA kernels, interpreted on the host; that needs no GPU, but numba-cuda.

In other processes, as Numba finds either CUDA or its simulator when it is imported.
"""

from pathlib import Path

import pytest

from tests.support.device import numba_cuda, run_without_simulator

SUPPORT = Path(__file__).parents[1] / "support"

pytestmark = numba_cuda


@pytest.mark.parametrize("char", ["f", "d"])
def test_compiled_kernels_agree_with_cpu(char):
    done = run_without_simulator(str(SUPPORT / "run_kernels.py"), char)
    assert done.returncode == 0, done.stderr


def test_interpreter_runs_kernels_and_reports_errors():
    done = run_without_simulator(str(SUPPORT / "run_small_kernels.py"))
    assert done.returncode == 0, done.stderr


def test_cuda_code_prints_counts():
    done = run_without_simulator("-m", "benchmarks.cuda_code", "--count")
    assert done.returncode == 0, done.stderr
    _, gradient, loss = done.stdout.splitlines()
    assert gradient.startswith("value and gradient: ")
    assert loss.startswith("loss of labels and its gradient: ")
