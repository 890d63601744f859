"""Every CUDA kernel compiles, within limits; that needs no GPU, but numba-cuda and its ptxas.

In another process, as Numba finds either CUDA or its simulator when it is imported.
"""

import pytest

from tests.support.device import numba_cuda, run_without_simulator

pytestmark = numba_cuda


@pytest.mark.parametrize("char", ["f", "d"])
@pytest.mark.parametrize("space", ["chain", "tree"])
def test_kernels_compile_within_limits(char, space):
    done = run_without_simulator("-m", "benchmarks.cuda_code", "--space", space, "--dtype", char)
    assert done.returncode == 0, done.stderr
    variants = {"gradient": 3, "hessian_diag": 2, "hvp": 1, "constant_hvp": 2, "curvature": 2}
    variants |= {"flow": 1, "embed": 1, "loss": 3, "loss_diagonal": 3, "loss_product": 3}
    n_teams = 7 + 2  # "convert" for three pairs of types
    _, *lines = done.stdout.splitlines()
    assert len(lines) == sum(variants.values()) + 5 + 12 + 3 * 2 + n_teams  # more kinds of some


def test_cuda_code_fails_beyond_limits():
    code = "from benchmarks import cuda_code; cuda_code.LIMITS[''] = 9, 9; cuda_code.main()"
    options = "--space", "chain", "--dtype", "f", "--operations", "sum_rows"
    done = run_without_simulator("-c", code, *options)
    assert done.returncode == 1
    assert "beyond the limits: sum_rows_fd" in done.stderr


def test_cuda_code_fails_if_rows_execute_more():
    code = "from benchmarks import cuda_code; most = cuda_code.MOST_EXECUTED; "
    code += "name = 'value and gradient'; most[name] = (*most[name][:2], 9); cuda_code.main()"
    done = run_without_simulator("-c", code, "--count")
    assert done.returncode == 1
    assert done.stderr.strip().endswith("beyond the limits: value and gradient")
