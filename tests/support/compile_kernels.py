"""Compile all CUDA kernels for a kind of space and a type to PTX; a line for each.

``python tests/support/compile_kernels.py chain f``, for example.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

CC = (9, 0)


def main(space, char):
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from numba import cuda, float64
    from numba.cuda import dispatcher

    # It asks the device for what it is told by `cc`, also where there is none.
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=CC)
    from fastemd.kernels import cuda as operations
    from fastemd.kernels import cuda_losses, device
    from fastemd.kernels import cuda_sinkhorn as operations_of_sinkhorn

    def state_of(operation, real, result):
        """The type of the state and of its fields, for matrices of a type."""
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

    def edge_function(function):
        def call(x, w, rho):
            return function(x, w, rho)

        ptx, _ = cuda.compile_ptx(call, (float64, float64, float64), device=True, cc=CC)
        assert "min.f64" not in ptx, f"{function.__name__} drops NaN"
        assert "max.f64" not in ptx, f"{function.__name__} drops NaN"
        return ptx

    for table in (operations.SLOPE, operations.CURVATURE, operations.BEND):
        for rho, function in table.items():
            print(function.__name__, rho, len(edge_function(function)))
    device.compiled = compile_only
    for operation in (*operations.ROWS, *cuda_losses.LOSS_ROWS):
        powers = ("any",) if operation in ("flow", "embed", "check") else ("1", "2", "any")
        for rho in powers:
            ptx, _ = device._kernel(operation, space, rho, char)
            print(operation, rho, len(ptx))
    for operation in operations_of_sinkhorn.OPERATIONS:
        made = "d" if "log" in operation else char
        print(operation, len(device._block_kernel(operation, *state_of(operation, made, char))))
    print("factors", len(device._factors_kernel()))
    print("mean", len(device._mean_kernel()))
    for chars in (char + char, "d" + char, "il"):
        print("convert", len(device._convert_kernel(chars)))
    print("sum", len(device._sum_kernel(char)))


if __name__ == "__main__":
    main(*sys.argv[1:])
