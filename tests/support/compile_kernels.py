"""Compile all CUDA kernels for a kind of space and a type to PTX, and print one line for each.

``python tests/support/compile_kernels.py chain f``, for example.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

CC = (9, 0)


def main(space, char):
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from numba import cuda
    from numba.cuda import dispatcher

    # Numba asks the device for its compute capability, although `cc` is passed.
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=CC)
    from fastemd.kernels import cuda_sinkhorn as operations_of_sinkhorn
    from fastemd.kernels.cuda import driver

    def state_of(operation, real, result):
        """Return the type of the state and of its fields, for matrices of a type."""
        matrix, log_matrix, result_matrix = (real, 2), ("d", 2), (result, 2)
        row, count, number, whole = ("d", 1), ("l", 1), ("d", 0), ("l", 0)
        if "prepare" in operation:
            kinds = *[matrix] * 6, number, number, count
            return operations_of_sinkhorn.Costs, kinds
        if "start" in operation:
            kinds = log_matrix, log_matrix, number, log_matrix, row, count, count, whole
            return operations_of_sinkhorn.Start, kinds
        if "finish" in operation:
            kinds = matrix, matrix, log_matrix, row, matrix, matrix, number, number, number
            return operations_of_sinkhorn.End, (*kinds, (result, 1), result_matrix, row, ("?", 1))
        kinds = matrix, matrix, matrix, log_matrix, row, log_matrix, row, matrix, whole
        return operations_of_sinkhorn.Step, (*kinds, row, count, count, number, whole)

    def compile_only(function, signature):
        ptx, _ = cuda.compile_ptx(function, signature, cc=CC)
        assert ".entry" in ptx
        return ptx

    driver.compiled = compile_only
    variants = {driver.variant(name, rho)[:2] for name in driver.OPERATIONS for rho in (1, 2, 3.7)}
    for operation, cost in sorted(variants):
        out = "d" if operation == "curvature" else char
        ptx, _ = driver._row_kernel(operation, cost, space, char, out)
        print(operation, cost, len(ptx))
    for operation in operations_of_sinkhorn.OPERATIONS:
        made = "d" if "log" in operation else char
        print(operation, len(driver._block_kernel(operation, *state_of(operation, made, char))))
    for name in driver.TEAM_FUNCTIONS:
        for pair in ("dd", char + "d", "li") if name == "convert" else (char + "d",):
            print(name, len(driver._team_kernel(name, *pair)))


if __name__ == "__main__":
    main(*sys.argv[1:])
