"""The compiled CUDA kernels, interpreted on the host; that needs no GPU, but numba-cuda.

In other processes, as Numba finds either CUDA or its simulator when it is imported.

The order of the tests balances two processes, which get two tests each.
"""

from pathlib import Path

from tests.support.device import numba_cuda, run_without_simulator

SUPPORT = Path(__file__).parents[1] / "support"

pytestmark = numba_cuda


def run_script(*command):
    done = run_without_simulator(*command)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_compiled_kernels_agree_with_cpu_in_float32():
    run_script(str(SUPPORT / "run_kernels.py"), "f")


def test_interpreter_runs_kernels_and_reports_errors():
    run_script(str(SUPPORT / "run_small_kernels.py"))


def test_compiled_kernels_agree_with_cpu_in_float64():
    run_script(str(SUPPORT / "run_kernels.py"), "d")


def test_cuda_code_prints_counts():
    _, gradient, loss = run_script("-m", "benchmarks.cuda_code", "--count").splitlines()
    assert gradient.startswith("value and gradient: ")
    assert loss.startswith("loss of labels and its gradient: ")
