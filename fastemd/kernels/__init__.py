"""Which kernel serves an operation, and how it is launched."""

import functools
import os
import threading
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from fastemd.kernels import compiling
from fastemd.plan import Plan

Array = NDArray[Any]

# Below this many elements one thread is done before a second has been woken (measured on two
# cores: break-even at 8,000 elements in rows of 32, at 16,000 to 32,000 in rows of 1000).
PARALLEL_FROM = 1 << 15

# Two parallel kernels at once abort the process under Numba's workqueue layer, and a forked child
# that runs one is killed under GNU OpenMP: whoever does not hold the lock, and every child, runs
# the serial kernel, which needs no threads and gives the same bits.
_one_parallel_kernel = threading.Lock()
_forked = False


def _in_child() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


@functools.cache
def _serial(operation: str, dtype: np.dtype[Any]) -> Any:
    return compiling.serial_kernel(operation, dtype)


@functools.cache
def _parallel(operation: str, dtype: np.dtype[Any]) -> Any:
    address = compiling.address_of(_serial(operation, dtype))  # compiling keeps the kernel alive
    return functools.partial(compiling.parallel_launcher(operation, dtype), address)


def launch(operation: str, n_elements: int, dtype: np.dtype[Any], *args: Any) -> Any:
    """Run the kernel of `operation` on arrays of `dtype`; `n_elements` measures the work."""
    alone = n_elements < PARALLEL_FROM or _forked or (n_threads := numba.get_num_threads()) == 1
    if alone or not _one_parallel_kernel.acquire(blocking=False):
        return _serial(operation, dtype)(0, 1, *args)
    try:
        return _parallel(operation, dtype)(n_threads, *args)
    finally:
        _one_parallel_kernel.release()


def run(
    operation: str,
    plan: Plan,
    rows: tuple[Array, Array, Array],
    rho: float,
    value: Array,
    out: Array,
    project: bool,
    tolerance: float,
) -> int:
    """Run one operation over all rows.

    Parameters
    ----------
    operation : {"gradient", "hessian_diag", "hvp", "flow", "embed", "curvature", "check"}
    plan : Plan
        Which edges to walk.
    rows : three ndarrays (G, R, N)
        ``p``, ``q`` and ``v``, of one dtype; ``v`` may be empty.
    rho : float
    value : ndarray (G * R,)
        EMD^rho of every row (only of "gradient"); may be empty.
    out : ndarray (G, R, columns)
        The operation's result; may be empty.
    project : bool
        Whether the derivatives conserve the total mass.
    tolerance : float
        For the masses of ``p`` and ``q``; negative: no check of the numbers at all.

    Returns
    -------
    int
        The first row that failed the checks, or ``G * R``.
    """
    arguments = plan, *rows, rho, value, out, float(bool(project)), tolerance
    return int(launch(operation, rows[0].size, rows[0].dtype, *arguments))


def fill_hessian(plan: Plan, curvatures: Array, out: Array, project: bool) -> None:
    """Write the dense Hessians `out` (..., N, N) from what "curvature" gave, (..., N + I)."""
    n_bins = out.shape[-1]
    n_matrices = out.size // (n_bins * n_bins)
    if n_matrices:
        curvatures = curvatures.reshape(n_matrices, curvatures.shape[-1])
        matrices = out.reshape(n_matrices, n_bins, n_bins)
        launch("hessian", out.size, out.dtype, plan, curvatures, matrices, float(bool(project)))
