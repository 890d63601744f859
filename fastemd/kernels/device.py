"""Which CUDA kernel serves an operation, and how it is launched.

Arrays on a device are known by NumPy arrays that describe them and are never read; see
`fastemd.target.argument`.
"""

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numba import from_dtype, types
from numpy.typing import NDArray

from fastemd.kernels import cuda, cuda_losses, cuda_sinkhorn, threads
from fastemd.layout import CudaTables, EdgeLayout
from fastemd.target import argument, compiled, configure, on_device, upload

Array = NDArray[Any]

SHARED_BYTES = 48 * 1024  # more needs leave, and leaves less room for other blocks
BLOCKS_WITHOUT = 1024  # of rows whose scratch does not fit: what they need together is bounded
TEAM = 256  # threads of a block of kernels other than those of `launch`
PARTS, ROWS_PER_PART = 256, 1024  # blocks of a sum over rows, and for how many rows one is enough

_int, _float = types.int64, types.float64
_indices, _labels = types.Array(types.int32, 1, "C"), types.Array(types.int64, 1, "C")
_floats = types.Array(types.float64, 1, "C")


@functools.cache
def _kernel(operation: str, space: str, rho: str, char: str) -> tuple[Any, int]:
    """The kernel and how many scratches it needs."""
    real = types.Array(_float if char == "d" else types.float32, 3, "A")
    values = types.Array(real.dtype, 1, "C")
    start: tuple[Any, ...] = _indices, _floats, _int, _int, real, real, real, _float
    if operation in cuda_losses.LOSS_ROWS:
        row, functions, n_scratch = cuda_losses.LOSS_ROWS[operation]
        make, check = threads.loss_kernel, cuda_losses.weigh
        rest: tuple[Any, ...] = (
            _floats,
            real,
            _labels,
            _floats,
            _float,
            _int,
            _float,
            _float,
            _labels,
            _floats,
        )
    else:
        row, functions, n_scratch = cuda.ROWS[operation]
        make, check = threads.histogram_kernel, cuda.is_histogram_pair
        rest = (values, real, _float, _float, _labels, _floats)
    made = make(row, check, *cuda.SWEEPS[space], functions[rho], n_scratch)
    return compiled(made, (*start, *rest)), n_scratch


def launch(
    key: tuple[str, str, str, str],
    layout: EdgeLayout,
    rows: Sequence[Array],
    rest: Sequence[Any],
    complaints: Any,
    empty: Callable[[int], Array],
    index: int,
    stream: int,
) -> None:
    """Launch a kernel over all rows.

    Parameters
    ----------
    key : tuple of str
        Operation, "chain" or "tree", the power as in `fastemd.kernels.edges`, and the character of
        the type.
    layout : EdgeLayout
    rows : three arrays (G, R, N)
        As for `fastemd.kernels.run` and `run_loss`.
    rest : sequence
        What the kernel takes after the rows, up to the complaints; see `fastemd.kernels.threads`.
    complaints : device array
        Where the number of the first bad row goes, some time.
    empty : callable
        Makes memory for so many float64 on the device.
    index, stream : int
        The number of the device and the handle of the stream to use.
    """
    shape = rows[0].shape
    n_rows = shape[0] * shape[1]
    tables = layout.cuda
    n_threads, per_block = threads.block_of(tables.n_edges)
    with on_device(index):
        kernel, n_scratch = _kernel(*key)
        own = 8 * threads.scratch_per_row(n_scratch, tables.n_edges, n_threads)
        shared, scratch = own <= SHARED_BYTES, np.empty(0)
        if shared:
            per_block = min(per_block, SHARED_BYTES // own)
        n_blocks = -(-n_rows // per_block)
        if not shared:
            n_blocks = min(n_blocks, BLOCKS_WITHOUT)
            scratch = empty(n_blocks * per_block * own // 8)
        block = n_threads, per_block
        configure(kernel, index, n_blocks, block, stream, shared * per_block * own)(
            *_uploaded(tables, index), tables.n_edges, tables.n_levels,
            *map(_argument, (*rows, *rest)), complaints, argument(scratch),
        )  # fmt: skip


_tables: weakref.WeakKeyDictionary[CudaTables, dict[int, tuple[Any, Any]]]
_tables = weakref.WeakKeyDictionary()  # on the devices, by their index


def _uploaded(tables: CudaTables, index: int) -> tuple[Any, Any]:
    """Return the tables on the current device."""
    copies = _tables.setdefault(tables, {})
    if index not in copies:
        copies[index] = upload(tables.numbers), upload(tables.lengths)
    return copies[index]


def _argument(value: Any) -> Any:
    """What a kernel takes: numbers, and arrays of Numba's, are it already."""
    return argument(value) if isinstance(value, np.ndarray) else value


@functools.cache
def _factors_kernel() -> Any:
    signature = _floats, _labels, _int, _floats, _floats, _labels
    return compiled(threads.factors_kernel(), signature)


@functools.cache
def _mean_kernel() -> Any:
    return compiled(threads.mean_kernel(), (_floats, _floats))


@functools.cache
def _sum_kernel(char: str) -> Any:
    result = types.Array(_float if char == "d" else types.float32, 1, "C")
    return compiled(threads.sum_kernel(), (_floats, result))


@functools.cache
def _block_kernel(operation: str, state: type[Any], kinds: tuple[tuple[str, int], ...]) -> Any:
    fields = [
        types.Array(from_dtype(np.dtype(char)), ndim, "C") if ndim else from_dtype(np.dtype(char))
        for char, ndim in kinds
    ]
    signature = (types.NamedTuple(fields, state),)
    return compiled(threads.block_kernel(cuda_sinkhorn.OPERATIONS[operation]), signature)


def run_blocks(operation: str, state: Any, n_rows: int, index: int, stream: int) -> None:
    """Launch an operation of `fastemd.kernels.cuda_sinkhorn`, a block of threads a row."""
    kinds = [np.asarray(x) if isinstance(x, float | int) else x for x in state]
    state_type: Any = type(state)
    with on_device(index):
        kernel = _block_kernel(operation, state_type, tuple((x.dtype.char, x.ndim) for x in kinds))
        configure(kernel, index, n_rows, TEAM, stream, 16 * TEAM)(
            state_type(*map(_argument, state))
        )


def _n_parts(n_rows: int) -> int:
    """How many blocks share the rows of a kernel whose results are put together."""
    return min(-(-n_rows // ROWS_PER_PART), PARTS)


def find_factors(
    weights: Array, labels: Array, ignore_index: int, mean: bool, factors: Array, complaints: Any,
    empty: Callable[[int], Array], index: int, stream: int,
) -> None:  # fmt: skip
    """Fill `factors`, one for every row; see `fastemd.kernels.threads.factors_kernel`."""
    n_parts = _n_parts(factors.size)
    launch = index, n_parts, TEAM, stream, 16 * TEAM
    with on_device(index):
        known = argument(factors), argument(empty(2 * n_parts) if mean else np.empty(0))
        configure(_factors_kernel(), *launch)(
            argument(weights), argument(labels), ignore_index, *known, complaints
        )
        if mean:
            configure(_mean_kernel(), *launch)(*known)


@functools.cache
def _convert_kernel(chars: str) -> Any:
    arrays = [types.Array(from_dtype(np.dtype(char)), 1, "C") for char in chars]
    return compiled(threads.convert_kernel(), tuple(arrays))


def convert(values: Array, out: Array, index: int, stream: int) -> None:
    """Put numbers into an array of another type."""
    if values.size:
        with on_device(index):
            kernel = _convert_kernel(values.dtype.char + out.dtype.char)
            n_blocks = min(-(-values.size // TEAM), BLOCKS_WITHOUT)
            configure(kernel, index, n_blocks, TEAM, stream)(argument(values), argument(out))


def add_up(
    values: Array, out: Array, empty: Callable[[int], Array], index: int, stream: int
) -> None:
    """Put the sum of `values` into ``out[0]``, by way of the sums of their parts if they are many.

    The order of the summands depends on their number only, so the sum has the same bits every time.
    """
    with on_device(index):
        n_parts = _n_parts(values.size)
        if n_parts > 1:
            parts = empty(n_parts)
            _add_up_parts(values, parts, n_parts, index, stream)
            values = parts
        _add_up_parts(values, out, 1, index, stream)


def _add_up_parts(values: Array, out: Array, n_parts: int, index: int, stream: int) -> None:
    kernel = _sum_kernel(out.dtype.char)
    configure(kernel, index, n_parts, TEAM, stream, 16 * TEAM)(argument(values), argument(out))
