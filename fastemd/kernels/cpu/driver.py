"""Choose the CPU kernel of an operation and launch it, on one thread or on all.

Arrays without elements stand for what an operation does not have.
"""

import functools
import math
import os
import threading
from time import perf_counter
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from fastemd.kernels.cpu import compiling, pairwise
from fastemd.kernels.cpu.losses import LOSSES
from fastemd.kernels.edges import Cost
from fastemd.kernels.operations import NORMALIZATIONS, variant
from fastemd.layout import EdgeLayout

Array = NDArray[Any]

# Least elements per thread, since waking a thread takes 10 to 20 us. On two cores, 1 ms after the
# previous call, break-even is between 25,000 and 32,000 elements, of losses at 16,000; there is a
# margin, as it differs from hour to hour. An element of a loss counts more: its exponential takes
# most of the time, and two threads take 0.79 of the time of one for 512 rows of 100 classes.
ELEMENTS_PER_THREAD = 20_000
LOSS_ELEMENTS = 2

# Rows are processed one by one, not eight at a time, if there are hardly any (value and gradient,
# and losses; break-even at two rows), and if the scratch of eight would be so large that the system
# allocates it again for every call (break-even at 150,000 edges; at 750,000, 2.5 times as fast).
FEW_ROWS = 2
MANY_EDGES = 200_000


def run(
    operation: str,
    layout: EdgeLayout,
    rows: tuple[Array, Array, Array],
    cost: Cost,
    value: Array,
    out: Array,
    project: bool,
    tolerance: float,
) -> int:
    """Run an operation on histograms.

    Parameters
    ----------
    operation : str
        A row of `OPERATIONS` that is no loss.
    layout : EdgeLayout
        The edges to sweep.
    rows : three ndarrays (G, R, N)
        ``p``, ``q`` and ``v``, of one dtype; ``v`` may be empty.
    cost : Cost
    value : ndarray (G * R,)
        The EMD of every row (only of "gradient"); may be empty.
    out : ndarray (G, R, columns)
        The result; may be empty. float64 if the columns are edges.
    project : bool
        Whether the derivatives conserve the total mass.
    tolerance : float
        For the masses of ``p`` and ``q``; if negative, no row is checked.

    Returns
    -------
    int
        The first invalid row, or ``G * R``.
    """
    p, q, v = rows
    n_rows = p.shape[0] * p.shape[1]
    narrow = _is_narrow(operation, layout, n_rows)
    kernel, numbers = _kernel(operation, cost, layout.is_chain, narrow, p.dtype.char)
    arguments = layout.edges, p, q, v, *numbers, value, out, float(project), tolerance
    return _launch(kernel, n_rows, p.size, arguments)


def run_loss(
    operation: str,
    layout: EdgeLayout,
    rows: tuple[Array, Array, Array],
    labels: Array,
    row_weights: Array,
    cost: Cost,
    value: Array,
    out: Array,
    class_weights: Array | None,
    normalize: str | None,
    cross_entropy: float,
    label_smoothing: float,
    root: bool,
    tolerance: float,
) -> int:
    """Run a loss.

    Parameters
    ----------
    operation : {"loss", "loss_diagonal", "loss_product"}
    layout : EdgeLayout
        The edges to sweep.
    rows : three ndarrays (G, R, N)
        ``x``, the target and ``v``, of one dtype; the target is empty if there are labels, and
        ``v`` may be empty.
    labels : ndarray of int64 (G * R,)
        Empty if the targets are histograms.
    row_weights : ndarray of float64 (G * R,)
        What multiplies the derivatives of every row; a row of weight 0 is not read.
    cost : Cost
    value : ndarray of float64 (G * R,)
        The loss of every row, not multiplied by its row_weight (only of "loss"); may be empty.
    out : ndarray (G, R, N)
        The derivatives; of "loss", without columns if they are not wanted.
    class_weights : ndarray of float64 (N,), or None
        What the classes weigh.
    normalize : {"softmax", "l1", None}
    cross_entropy : float
        0 without softmax.
    label_smoothing : float
        The share of the targets that is spread over all bins.
    root : bool
        Whether the rho-th root of every row's EMD is taken.
    tolerance : float
        For masses that should be 1.

    Returns
    -------
    int
        The first invalid row, or ``G * R``.
    """
    x = rows[0]
    n_rows = x.shape[0] * x.shape[1]
    narrow = _is_narrow(operation, layout, n_rows)
    kernel, numbers = _kernel(operation, cost, layout.is_chain, narrow, x.dtype.char)
    weighted, n_bins = class_weights is not None, x.shape[2]
    weights, total = _ones(n_bins), float(n_bins)
    if class_weights is not None:
        weights, total = class_weights, float(class_weights.sum())
    options = int(weighted), total, NORMALIZATIONS[normalize], int(root), cross_entropy
    rest = value, out, weights, *options, label_smoothing, tolerance
    arguments = layout.edges, *rows, labels, row_weights, *numbers, *rest
    return _launch(kernel, n_rows, LOSS_ELEMENTS * x.size, arguments)


@functools.lru_cache(maxsize=64)
def _ones(n: int) -> Array:
    return np.ones(n)


def fill_hessian(layout: EdgeLayout, curvatures: Array, out: Array, project: bool) -> None:
    """Write dense Hessians `out` (..., N, N) from the result of "curvature", (..., edges)."""
    n_bins = out.shape[-1]
    n_matrices = out.size // (n_bins * n_bins)
    if n_matrices:
        curvatures = curvatures.reshape(n_matrices, curvatures.shape[-1])
        matrices = out.reshape(n_matrices, n_bins, n_bins)
        kernel = compiling.kernel(*_hessian_key(out.dtype.char))
        arguments = layout.edges, layout.bin_order, curvatures, matrices, float(project)
        # Not counted as rows: for a chunk of few matrices the kernel walks over the whole tree.
        _launch(kernel, 0, out.size, arguments)


def masses_below(
    layout: EdgeLayout, rows: Array, reference: Array, tolerance: float, out: Array, values: str
) -> int:
    """Compute the masses of rows, minus a reference, below all edges, times their lengths.

    Parameters
    ----------
    layout : EdgeLayout
    rows : ndarray (R, N)
    reference : ndarray (N,)
    tolerance : float
        As in `run`.
    out : ndarray of float64 (panels, edges, 8)
        For all edges but the last, of `on_cache_lines`. The lanes after the last row become 0.
    values : {"mass", "presence"}
        "presence" is the length of every edge below which there is mass.

    Returns
    -------
    int
        The first invalid row, or ``R``.
    """
    n_rows = len(rows)
    p, none = rows[None], np.empty((1, 1, 0), rows.dtype)
    q = np.broadcast_to(reference.astype(rows.dtype), p.shape)
    numbers = 1.0, 1.0, 1.0, 1.0
    # A panel takes the place of eight rows.
    as_rows = out.reshape(1, pairwise.LANES * len(out), out.shape[1])
    arguments = layout.edges, p, q, none, *numbers, none[0, 0], as_rows, 1.0, tolerance
    kernel = compiling.kernel("masses", layout.is_chain, values, False, rows.dtype.char)
    invalid = _launch(kernel, ROWS_PER_CHUNK * len(out), n_rows * layout.n_edges, arguments)
    out[-1, :, n_rows - pairwise.LANES * (len(out) - 1) :] = 0.0
    return invalid


def rows_below(masses: Array) -> Array:
    """Return how many rows have mass below every edge, from panels."""
    counts = on_cache_lines(masses.shape[1], pairwise.LANES)
    _launch(_pairwise_kernel("count"), len(masses), masses.size, (masses, counts))
    total: Array = counts.sum(axis=1)
    return total


def pack_masses(masses: Array, dense: Array, sparse: Array) -> tuple[Array, Array, Array, Array]:
    """Sort the masses of rows below edges for `sum_over_edges`.

    Parameters
    ----------
    masses : ndarray of float64 (panels, edges, 8)
    dense, sparse : ndarray of int64
        Which edges are stored for all rows, and which for the rows with mass alone.

    Returns
    -------
    panels, start, row, mass
        Fields of `pairwise.Rows`.
    """
    n_rows = pairwise.LANES * len(masses)
    panels = on_cache_lines(len(masses), dense.size, pairwise.LANES)
    start = np.zeros(sparse.size + 1, np.int64)
    if sparse.size:
        start[1:] = np.cumsum(rows_below(masses)[sparse])
    row, mass = np.empty(start[-1], np.int32), np.empty(start[-1])
    arguments = masses, dense, sparse, panels, start[:-1].copy(), row, mass
    _launch(_pairwise_kernel("fill"), n_rows, masses.size, arguments)
    return panels, start, row, mass


def sweep_sparse_rows(
    layout: EdgeLayout, rows: Any, reference: Array, dense: Array, sparse: Array, values: str
) -> tuple[Array, Any]:
    """Do what `masses_below` does for sparse rows, and sort the masses.

    The work is proportional to the number of edges below which the rows have mass. (1,000 samples
    of 10,000 taxa, 3 % of them: a fifth of the time.)

    Parameters
    ----------
    layout : EdgeLayout
    rows : scipy.sparse.csr_array (R, N)
    reference : ndarray (N,)
    dense, sparse : ndarray of int64
        As in `pack_masses`.
    values : {"mass", "presence"}

    Returns
    -------
    panels : ndarray
        As in `pairwise.Rows`.
    entries : scipy.sparse.csr_array (R, sparse edges)
    """
    n_rows = rows.shape[0]
    n_panels = -(-n_rows // pairwise.LANES)
    indptr, indices = (array.astype(np.int64) for array in (rows.indptr, rows.indices))
    bins = np.flatnonzero(reference)
    slot = np.empty(layout.n_edges - 1, np.int64)
    slot[dense], slot[sparse] = np.arange(dense.size), -1 - np.arange(sparse.size)
    data, presence = rows.data.astype(np.float64), int(values == "presence")
    lengths = layout.edges.length[:-1]
    read = layout.edges.parent, lengths, indptr, indices, data, bins, reference[bins], slot

    def launch(start: Array, panels: Array, edge: Array, mass: Array) -> None:
        arguments = *read, presence, start, panels, edge, mass
        _launch(_pairwise_kernel("sparse"), n_rows, n_rows * lengths.size, arguments)

    start = np.zeros(n_rows + 1, np.int64)
    launch(start, np.empty((0, 0, 0)), np.empty(0, np.int32), np.empty(0))
    np.cumsum(start, out=start)
    panels = on_cache_lines(n_panels, dense.size, pairwise.LANES)
    edge, mass = np.empty(start[-1], np.int32), np.empty(start[-1])
    if panels.size or mass.size:
        launch(start, panels, edge, mass)
    return panels, type(rows)((mass, edge, start), shape=(n_rows, sparse.size))


def sum_over_edges(
    term: str, exponent: float, a: pairwise.Rows, b: pairwise.Rows, lengths: pairwise.Lengths
) -> tuple[Array, Array]:
    """Sum the terms of all edges for all pairs of rows of `a` and `b`.

    Parameters
    ----------
    term : str
        A name of `pairwise.TERMS`.
    exponent : float
        A parameter of the term.
    a, b : Rows
        If they are the same, only the sums of pairs ``i < j`` are computed.
    lengths : Lengths

    Returns
    -------
    sums, norms : ndarray of float64, (rows of a, rows of b)
        Rounded up to whole panels. The norms are the sums if the term has one sum.
    """
    shape = a.own.size, b.own.size
    sums = norms = on_cache_lines(*shape)
    if pairwise.TERMS[term][1] == 2:
        norms = on_cache_lines(*shape)
    n_terms = shape[0] * shape[1] * max(1, lengths.dense.size)
    arguments = a, b, lengths, exponent, int(a is b), sums, norms
    _launch(_pairwise_kernel("pairs", term), shape[0], n_terms, arguments)
    return sums, norms


def _pairwise_kernel(operation: str, term: str = "any") -> Any:
    return compiling.kernel(operation, False, term, False, "d")


def on_cache_lines(*shape: int) -> Array:
    """Return zeros, the first of which starts a cache line, as the vectors of a kernel do."""
    n = math.prod(shape)
    numbers = np.zeros(n + 8)
    first = -numbers.ctypes.data % 64 // 8
    return numbers[first : first + n].reshape(shape)


def keys(operation: str, layout: EdgeLayout, cost: Cost, char: str) -> list[tuple[Any, ...]]:
    """Return the arguments of `compiling.kernel` for the kernels that an operation may launch."""
    if operation == "hessian":
        return [_hessian_key(char)]
    widths = {_is_narrow(operation, layout, n_rows): None for n_rows in (1, FEW_ROWS + 1)}
    operation, name, _ = variant(operation, cost)
    return [(operation, layout.is_chain, name, narrow, char) for narrow in widths]


def pair_keys(layout: EdgeLayout, term: str, char: str) -> list[tuple[Any, ...]]:
    """Return the same for the sums of a term over all pairs of rows."""
    names = [("count", "any"), ("fill", "any"), ("sparse", "any"), ("pairs", term)]
    kernels = [(operation, False, name, False, "d") for operation, name in names]
    return [("masses", layout.is_chain, "mass", False, char), *kernels]


def _is_narrow(operation: str, layout: EdgeLayout, n_rows: int) -> bool:
    """Return whether the kernel processes rows one by one."""
    few = n_rows <= FEW_ROWS and (operation == "gradient" or operation in LOSSES)
    return few or layout.n_edges > MANY_EDGES


def _hessian_key(char: str) -> tuple[Any, ...]:
    return "hessian", False, "any", False, char


def prepare_threads() -> None:
    """Compile the function that runs kernels in all threads."""
    if numba.get_num_threads() > 1:
        compiling.launcher()


@functools.lru_cache(maxsize=1024)
def _kernel(
    operation: str, cost: Cost, is_chain: bool, narrow: bool, char: str
) -> tuple[Any, tuple[float, float, float, float]]:
    """Return the kernel of an operation, and its `Numbers`."""
    operation, name, numbers = variant(operation, cost)
    return compiling.kernel(operation, is_chain, name, narrow, char), numbers


# ----------------------------------------------------------------------------------------- threads

# Two parallel kernels at once abort the process under Numba's workqueue layer, and a forked child
# that runs one is killed under GNU OpenMP. Callers without the lock, and forked children, run the
# serial kernel, which needs no threads and gives the same bits.
_one_parallel_kernel = threading.Lock()
_forked = False

# Parts of the batch per thread, so that a thread that shares its core with another process takes
# fewer of them. (On idle cores 1 to 8 make no difference.)
CHUNKS_PER_THREAD, ROWS_PER_CHUNK = 4, 64

# If other processes occupy cores, a thread may wait for one longer than the work takes, and the
# caller waits for the thread. After a call in which threads came too late for a chunk, calls of
# that size run without them, for this many times its duration. (512 rows on two cores, 0.36 ms:
# 0.68 ms in the mean beside a busy process, before 3.6 ms.)
WITHOUT_LATE_THREADS = 10
_late = 0.0, 0, 0  # until when, up to how many elements, and how many threads were in time


def _in_child() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def take_threads(n_elements: int) -> int:
    """Return how many threads a kernel may use; after more than one, call `give_threads_back`."""
    if n_elements < 2 * ELEMENTS_PER_THREAD or _forked:
        return 1
    n_threads = min(n_elements // ELEMENTS_PER_THREAD, numba.get_num_threads())
    until, size, n_in_time = _late
    if n_elements <= size and perf_counter() < until:
        n_threads = min(n_threads, n_in_time)
    if n_threads > 1 and not _one_parallel_kernel.acquire(blocking=False):
        return 1
    return n_threads


def give_threads_back() -> None:
    """Allow the next parallel kernel."""
    _one_parallel_kernel.release()


def _launch(kernel: Any, n_rows: int, n_elements: int, arguments: tuple[Any, ...]) -> int:
    """Run a kernel, in parallel if there are many elements; return the first invalid row."""
    global _late
    n_threads = take_threads(n_elements)
    if n_threads == 1:
        return kernel(0, 1, 1, *arguments)[0]  # type: ignore[no-any-return]  # Numba has no types
    n_chunks = max(n_threads, min(CHUNKS_PER_THREAD * n_threads, n_rows // ROWS_PER_CHUNK))
    n_all = numba.get_num_threads()
    try:
        launcher = compiling.launcher()
        if n_threads < n_all:
            numba.set_num_threads(n_threads)
        start = perf_counter()
        result, n_active = kernel(launcher, n_threads, n_chunks, *arguments)
        if n_active < n_threads:
            end = perf_counter()
            _late = end + WITHOUT_LATE_THREADS * (end - start), n_elements, n_active
        return result  # type: ignore[no-any-return]
    finally:
        if n_threads < n_all:
            numba.set_num_threads(n_all)
        give_threads_back()
