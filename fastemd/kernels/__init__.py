"""Which kernel serves an operation, and how it is launched."""

import functools
import os
import threading
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from fastemd.kernels import compiling
from fastemd.kernels.compiling import Kernel
from fastemd.kernels.normalize import NORMALIZE
from fastemd.layout import EdgeLayout

Array = NDArray[Any]

# Below this many elements one thread is done before a second has been woken (measured on two
# cores: break-even between 16,000 and 80,000, by the space and the hour).
PARALLEL_FROM = 1 << 16

# Rows are done one by one, not eight side by side, where there are hardly any (value and gradient
# only: break-even at two rows), and where the scratch of eight would be so large that the system
# hands it out afresh for every call (break-even at 150,000 edges; at 750,000, 2.5 times as fast).
FEW_ROWS = 2
MANY_EDGES = 200_000

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


def take_threads(they_pay: bool) -> int:
    """How many threads a kernel may use now; if more than one, `give_threads_back` when done."""
    if not they_pay or _forked or (n_threads := numba.get_num_threads()) == 1:
        return 1
    return n_threads if _one_parallel_kernel.acquire(blocking=False) else 1


def give_threads_back() -> None:
    """Let the next kernel have the threads."""
    _one_parallel_kernel.release()


_POWERS = {1.0: "1", 2.0: "2"}


# By the character of the type: a hash of the type itself takes longer than all the rest.
@functools.cache
def _serial(operation: str, chain: bool, rho: str, narrow: bool, char: str) -> Any:
    return compiling.serial_kernel(kernel_for(operation, chain, rho, narrow), np.dtype(char))


@functools.cache
def _parallel(operation: str, chain: bool, rho: str, narrow: bool, char: str) -> Any:
    kernel, dtype = kernel_for(operation, chain, rho, narrow), np.dtype(char)
    address = compiling.address_of_code(kernel, dtype)
    return functools.partial(compiling.parallel_launcher(kernel, dtype), address)


def kernel_for(operation: str, chain: bool, rho: str, narrow: bool) -> Kernel:
    """The kernel that serves an operation on a kind of space, for a power "1", "2" or "any"."""
    if operation == "hvp" and rho != "any":
        operation = "constant_hvp"  # the curvature does not depend on the flow
    if operation in ("flow", "embed", "check", "hessian"):
        rho = "any"
    elif operation in ("hessian_diag", "curvature", "constant_hvp") and rho == "1":
        rho = "2"  # times 0
    space = "any" if operation in ("check", "hessian") else "chain" if chain else "tree"
    return Kernel(operation, space, rho, "narrow" if narrow else "wide")


def key_on_device(operation: str, chain: bool, rho: float, char: str) -> tuple[str, str, str, str]:
    """The CUDA kernel that serves an operation, see `fastemd.kernels.device`."""
    power = _POWERS.get(rho, "any")
    kernel = kernel_for(operation, chain, power, False)
    space = kernel.space if kernel.space != "any" else "tree"
    return kernel.operation, space, kernel.rho, char


def launch(key: tuple[Any, ...], n_elements: int, *args: Any) -> int:
    """Run the kernel of a key (see `_serial`); `n_elements` measures the work."""
    n_threads = take_threads(n_elements >= PARALLEL_FROM)
    if n_threads == 1:
        return _serial(*key)(0, 1, *args)  # type: ignore[no-any-return]  # Numba has no types
    try:
        return _parallel(*key)(n_threads, *args)  # type: ignore[no-any-return]
    finally:
        give_threads_back()


def run(
    operation: str,
    layout: EdgeLayout,
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
    layout : EdgeLayout
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
    p = rows[0]
    n_edges = layout.n_edges
    few = p.shape[0] * p.shape[1] <= FEW_ROWS and operation == "gradient"
    narrow = few or (n_edges > MANY_EDGES and operation != "check")
    key = operation, n_edges == p.shape[2], _POWERS.get(rho, "any"), narrow, p.dtype.char
    terms = False, 0, 0.0
    return launch(
        key, p.size, layout.edges, *rows, rho, value, out, float(bool(project)), tolerance, *terms
    )


def run_loss(
    operation: str,
    layout: EdgeLayout,
    rows: tuple[Array, Array, Array],
    rho: float,
    value: Array,
    out: Array,
    tolerance: float,
    labelled: bool,
    normalize: str | None,
    cross_entropy: float,
) -> int:
    """Run a loss over all rows.

    Parameters
    ----------
    operation : {"loss", "loss_diagonal", "loss_product"}
    layout : EdgeLayout
    rows : three ndarrays (G, R, N)
        ``x``, the target and ``v``, of one dtype; ``v`` may be empty. If `labelled`, the target is
        (G, R, 1) of int64, seen as numbers of that dtype.
    rho : float
    value : ndarray of float64 (G * R,)
        What every row's derivatives count; overwritten by the rows' losses.
    out : ndarray (G, R, N)
        The derivatives.
    tolerance : float
        For masses that should be 1.
    labelled : bool
    normalize : {"softmax", "l1", None}
    cross_entropy : float

    Returns
    -------
    int
        The first row that failed the checks, or ``G * R``.
    """
    x = rows[0]
    n_edges = layout.n_edges
    narrow = x.shape[0] * x.shape[1] <= FEW_ROWS or n_edges > MANY_EDGES
    key = operation, n_edges == x.shape[2], _POWERS.get(rho, "any"), narrow, x.dtype.char
    terms = labelled, NORMALIZE[normalize], cross_entropy
    return launch(key, x.size, layout.edges, *rows, rho, value, out, 1.0, tolerance, *terms)


def fill_hessian(layout: EdgeLayout, curvatures: Array, out: Array, project: bool) -> None:
    """Write the dense Hessians `out` (..., N, N) from what "curvature" gave, (..., edges)."""
    n_bins = out.shape[-1]
    n_matrices = out.size // (n_bins * n_bins)
    if n_matrices:
        curvatures = curvatures.reshape(n_matrices, curvatures.shape[-1])
        matrices = out.reshape(n_matrices, n_bins, n_bins)
        key = "hessian", False, "any", False, out.dtype.char
        launch(key, out.size, layout.edges, curvatures, matrices, float(bool(project)))
