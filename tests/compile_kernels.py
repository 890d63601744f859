"""Compile all CUDA kernels for a kind of space and a type to PTX; a line for each.

``python tests/compile_kernels.py chain f``, for example.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

CC = (9, 0)


def main(space, char):
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from numba import cuda
    from numba.cuda import dispatcher

    # It asks the device for what it is told by `cc`, also where there is none.
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=CC)
    from fastemd.kernels import cuda as operations
    from fastemd.kernels import cuda_losses, device

    def compile_only(function, signature):
        ptx, _ = cuda.compile_ptx(function, signature, cc=CC)
        assert ".entry" in ptx
        return ptx

    device.compiled = compile_only
    for operation in (*operations.ROWS, *cuda_losses.LOSS_ROWS):
        powers = ("any",) if operation in ("flow", "embed", "check") else ("1", "2", "any")
        for rho in powers:
            ptx, _ = device._kernel(operation, space, rho, char)
            print(operation, rho, len(ptx))
    print("factors", len(device._factors_kernel(char)))
    print("sum", len(device._sum_kernel(char)))


if __name__ == "__main__":
    main(*sys.argv[1:])
