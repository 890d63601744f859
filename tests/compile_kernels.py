"""Compile all CUDA kernels for a kind of space and a type to PTX; a line for each."""

import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[1]))

from numba import cuda
from numba.cuda import dispatcher

# It asks the device for what it is told by `cc`, also where there is none.
CC = (9, 0)
dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=CC)

from fastemd import target  # noqa: E402
from fastemd.kernels import cuda as operations  # noqa: E402
from fastemd.kernels import cuda_losses, device  # noqa: E402


def compile_only(function, signature):
    ptx, _ = cuda.compile_ptx(function, signature, cc=CC)
    assert ".entry" in ptx
    return ptx


device.compiled = compile_only
space, char = sys.argv[1:]
assert not target.SIMULATED
for operation in (*operations.ROWS, *cuda_losses.LOSS_ROWS):
    powers = ("any",) if operation in ("flow", "embed", "check") else ("1", "2", "any")
    for rho in powers:
        ptx, _ = device._kernel(operation, space, rho, char)
        print(operation, rho, len(ptx))
print("factors", len(device._factors_kernel(char)))
print("sum", len(device._sum_kernel(char)))
