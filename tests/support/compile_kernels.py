"""Compile all CUDA kernels for a kind of space and a type to PTX, and print one line for each.

``python tests/support/compile_kernels.py chain f``, for example.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

CC = (9, 0)
KINDS = ((32, True), (8, True), (128, True), (128, False))  # threads per row, shared scratch


def main(space, char):
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from numba import cuda
    from numba.cuda import dispatcher

    # Numba asks the device for its compute capability, although `cc` is passed.
    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=CC)
    from fastemd.kernels.cuda import driver
    from fastemd.kernels.edges import COSTS, Cost

    def compile_only(function, signature):
        ptx, _ = cuda.compile_ptx(function, signature, cc=CC)
        assert ".entry" in ptx
        return ptx

    driver.compiled = compile_only
    costs = [Cost(name, {"1": 1.0, "2": 2.0}.get(name, 3.7)) for name in COSTS]
    variants = {driver.variant(name, cost)[:2] for name in driver.OPERATIONS for cost in costs}
    for operation, cost in sorted(variants):
        out = "d" if operation == "curvature" else char
        # Other teams and other memory differ in a few functions, which all kernels share.
        for kind in KINDS if operation in ("gradient", "loss") and cost == "2" else KINDS[:1]:
            ptx = driver._row_kernel(operation, cost, space == "chain", char, out, *kind)
            print(operation, cost, *kind, len(ptx))
    for name in driver.TEAM_FUNCTIONS:
        for pair in ("dd", char + "d", "li") if name == "convert" else (char + "d",):
            print(name, len(driver._team_kernel(name, *pair)))


if __name__ == "__main__":
    main(*sys.argv[1:])
