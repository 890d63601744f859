"""Choose the CUDA kernel of an operation and its threads, and launch it.

Arrays on a device are of `fastemd.backends.DeviceArray` here. `start_of` of
`fastemd.kernels.cuda.numba_cuda` turns them into arguments of kernels, and `argument` into those of
kernels that take arrays. The functions share some parameters: `empty` allocates a number of float64
on the device, `index` is the number of the device, `stream` the handle of a stream, and `errors` an
array of Numba's, where the first invalid row (slot 0) and the first row of invalid weight (slot 1)
will be.
"""

import functools
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numba import from_dtype, types
from numpy.typing import NDArray

from fastemd.backends import DeviceArray
from fastemd.kernels.cuda import block, hessian, losses, sweeps, weighting
from fastemd.kernels.cuda.lanes import lane_functions
from fastemd.kernels.cuda.memory import VECTOR_BYTES, Rows, Steps
from fastemd.kernels.cuda.numba_cuda import (
    SIMULATED,
    argument,
    compiled,
    configure,
    n_multiprocessors,
    on_device,
    start_of,
    upload,
)
from fastemd.kernels.edges import COSTS, Cost, Numbers
from fastemd.kernels.operations import NORMALIZATIONS, OPERATIONS, SOFTMAX, variant
from fastemd.layout import BIN_LANES, EdgeLayout

Empty = Callable[[int], Any]

NO_ARRAY = np.empty((1, 1, 0))
SHARED_BYTES = 48 * 1024  # the most per block, but it leaves less room for other blocks
MAX_GLOBAL_ROWS = 1024  # rows that are processed at the same time if their scratch does not fit
MOST_TEAMS = 1024  # of a conversion
THREADS_PER_BLOCK, MOST_BLOCKS = 64, (1 << 31) - 1
# A quarter of a warp processes a row of few edges. Four warps process a row of many if a
# multiprocessor would have fewer warps otherwise than hide the latency of memory: if there are few
# rows, or few that fit into its shared memory, of which GPUs have at least so much.
FEW_EDGES, MANY_EDGES, FEW_WARPS = 16, 128, 8
SHARED_OF_MULTIPROCESSOR = 200 * 1024
PARTS, ROWS_PER_PART = 256, 1024  # most blocks of a sum over rows, and rows that one block sums

_int, _float, _labels = types.int64, types.float64, types.int64[::1]
_ints, _floats, _matrix = types.int32[::1], types.float64[::1], types.float64[:, ::1]
_type_of = types.BaseTuple.from_types
_int32, _pointer = types.int32, types.CPointer
_layout = _type_of((_pointer(_int32), _pointer(_float)), block.Tables)
_tables = _type_of((_ints, _floats, _ints, _ints, _ints), hessian.Tables)
_steps = _type_of((_int32, _int32, _int32, _int32, _int, _int), Steps)
_numbers = _type_of([_float] * len(Numbers._fields), Numbers)
_options = _float, _float, _pointer(types.int64), _pointer(_float), _float
_extras = _type_of((_float, _float, _int, _pointer(_float), _int), block.Extras)

# The functions of teams, and the types of their arguments. A string stands for arrays whose type
# depends on the call.
TEAM_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "find_row_weights": (
        weighting.find_row_weights,
        _floats,
        _labels,
        _int,
        _floats,
        _floats,
        _floats,
        _labels,
    ),
    "divide_by_sum": (weighting.divide_by_sum, _floats, _floats),
    "sum_rows": (block.sum_rows, _pointer(_float), "out", _int),
    "convert": (block.convert, "values", "out array"),
    "sum_paths": (hessian.sum_paths, _tables, _matrix, _matrix, _matrix, _float),
    "fill_chain": (hessian.fill_chain, _tables, _matrix, _matrix, "hessians"),
    "fill_tree": (hessian.fill_tree, _tables, _matrix, _matrix, "hessians"),
}


# --------------------------------------------------------------------------------- rows of a layout


def rows_at(array: Any) -> Rows:
    """Return an array (G, R, columns) as kernels take it."""
    group_stride, row_stride, _ = array.strides
    return Rows(start_of(array), group_stride, row_stride)


def steps_of(*arrays: Any) -> Steps | tuple[()]:
    """Return the steps of p, q, v and the output, or () if all their bins are side by side."""
    steps = [array.strides[2] // array.dtype.itemsize if array.size else 1 for array in arrays]
    if all(step == 1 or array.shape[2] <= 1 for step, array in zip(steps, arrays, strict=True)):
        return ()
    reach = max(step * x.shape[2] for step, x in zip(steps, arrays, strict=True))
    if reach >= 1 << 31:
        raise ValueError("the bins are too far apart for a CUDA kernel; make them the last axis")
    if SIMULATED:  # a row is a view, which knows its stride
        steps = [1] * len(steps)
    return Steps(*steps, *arrays[-1].strides[:2])


def launch(
    operation: str, layout: EdgeLayout, rows: Sequence[Any], cost: Cost, value: Any, out: Any,
    project: bool, tolerance: float, errors: Any, empty: Empty, index: int, stream: int,
) -> None:  # fmt: skip
    """Launch an operation on histograms over all rows.

    Parameters
    ----------
    operation : str
        One of `fastemd.kernels.operations.OPERATIONS`.
    layout : EdgeLayout
    rows : three arrays (G, R, N)
        ``p``, ``q`` and ``v``, of one type, or without elements.
    cost : Cost
    value : array (G * R,)
        The values, or without elements.
    out : array (G, R, columns)
        The output, or without elements.
    project : bool
        Whether derivatives conserve the total mass.
    tolerance : float
        For the masses; if it is negative, rows are not checked.
    """
    with on_device(index):
        _launch(
            operation, layout, rows, cost, value, out, project, _without_loss(tolerance), None, (),
            errors, empty, index, stream,
        )  # fmt: skip


def _without_loss(tolerance: float) -> block.Options:
    return block.Options(tolerance, 0.0, NO_ARRAY, NO_ARRAY, 1.0, ())


def launch_loss(
    operation: str, layout: EdgeLayout, rows: Sequence[Any], labels: Any, row_weights: Any,
    row_weight: float, cost: Cost, value: Any, out: Any, class_weights: Any,
    normalize: str | None, cross_entropy: float, label_smoothing: float, root: bool,
    tolerance: float, errors: Any, empty: Empty, index: int, stream: int,
) -> None:  # fmt: skip
    """Launch a loss over all rows.

    Parameters
    ----------
    operation : {"loss", "loss_diagonal", "loss_product"}
    layout : EdgeLayout
    rows : three arrays (G, R, N)
        ``x``, the target and ``v``, of one type, or without elements.
    labels : array of int64 (G * R,)
        The target if it is labels, or without elements.
    row_weights : array (G * R,)
        Multiply every row's loss and derivatives; a row of weight 0 is not read.
    row_weight : float
        Takes the place of `row_weights` without elements.
    cost : Cost
    value : array of float64 (G * R,)
        The losses.
    out : array (G, R, N)
        The derivatives.
    class_weights : array of float64 (N,)
        The weights of the classes, or without elements.
    normalize : {"softmax", "l1", None}
    cross_entropy : float
        The weight of the cross entropy; 0 unless `normalize` is "softmax".
    label_smoothing : float
        The share of the targets that is spread over all bins.
    root : bool
        Whether the rho-th root of every row's EMD is taken.
    tolerance : float
        For masses that should be 1.
    """
    with on_device(index):
        extras: block.Extras | tuple[()] = ()
        if class_weights.size or label_smoothing or root:
            extras = block.Extras(
                1.0 - label_smoothing, label_smoothing / layout.n_bins, int(root),
                start_of(class_weights), int(class_weights.size > 0),
            )  # fmt: skip
        options = block.Options(tolerance, cross_entropy, labels, row_weights, row_weight, extras)
        kind = losses.LossKind(NORMALIZATIONS[normalize], labels.size > 0, extras != ())
        _launch(
            operation, layout, rows, cost, value, out, True, options, kind, (class_weights,),
            errors, empty, index, stream,
        )  # fmt: skip


def _launch(
    operation: str, layout: EdgeLayout, rows: Sequence[Any], cost: Cost, value: Any, out: Any,
    project: bool, options: block.Options, loss: losses.LossKind | None, others: Sequence[Any],
    errors: Any, empty: Empty, index: int, stream: int,
) -> None:  # fmt: skip
    """Launch an operation on the current device.

    It reads `others` as well, one number per bin.
    """
    operation, name, numbers = variant(operation, cost)
    (n_groups, rows_per_group), out_char = rows[0].shape[:2], out.dtype.char
    n_rows = n_groups * rows_per_group
    tables = block.Tables(*map(start_of, _uploaded(layout, index, _sweep_tables)))
    n_threads, rows_per_block = block_of(operation, layout, n_rows, index)
    size, in_shared = _scratch_of(operation, layout, n_threads)
    scratch = NO_ARRAY
    if in_shared:
        rows_per_block = min(rows_per_block, SHARED_BYTES // (8 * size))
    n_blocks = min(-(-n_rows // rows_per_block), MOST_BLOCKS)
    if not in_shared:
        n_blocks = min(n_blocks, -(-MAX_GLOBAL_ROWS // rows_per_block))
        n_slots = n_blocks * rows_per_block
        scratch = empty(n_slots * size)
    present = (
        block.WITH_VALUE * (value.size > 0) + block.WITH_LABELS * (options.labels.size > 0)
        + block.WITH_ROW_WEIGHTS * (options.row_weights.size > 0)
    )  # fmt: skip
    p, q, v = map(rows_at, rows)
    steps = steps_of(*rows, out)
    read_by_bins = (*rows, *others, *[out] * (OPERATIONS[operation].output == "bins"))
    batch = block.Batch(
        p, q, v, start_of(out), start_of(value), start_of(scratch), n_groups, rows_per_group,
        out.shape[2] if out.size else 0, present, steps,
    )  # fmt: skip
    options = options._replace(
        labels=start_of(options.labels), row_weights=start_of(options.row_weights)
    )
    kind = (
        layout.is_chain, rows[0].dtype.char, out_char, n_threads, in_shared,
        lane_count(layout, read_by_bins, steps), steps != (), loss,
    )  # fmt: skip
    threads, shared_bytes = (n_threads, rows_per_block), 8 * in_shared * rows_per_block * size
    launch = configure(
        _row_kernel(operation, name, *kind), index, n_blocks, threads, stream, shared_bytes
    )
    launch(tables, batch, Numbers(*numbers, float(project)), options, errors)


def block_of(operation: str, layout: EdgeLayout, n_rows: float, index: int) -> tuple[int, int]:
    """Return the threads per row and the rows per block."""
    n_edges = layout.cuda.n_edges
    n_threads = 8 if n_edges <= FEW_EDGES else 32
    if n_edges > MANY_EDGES:
        size, in_shared = _scratch_of(operation, layout, n_threads)
        most = FEW_WARPS * n_multiprocessors(index)
        if not in_shared:
            n_rows = min(n_rows, MAX_GLOBAL_ROWS)
        if n_rows < most or (in_shared and FEW_WARPS * 8 * size > SHARED_OF_MULTIPROCESSOR):
            n_threads = 128
    return n_threads, max(THREADS_PER_BLOCK // n_threads, 1)


def lane_count(layout: EdgeLayout, arrays: Sequence[Any], steps: Steps | tuple[()]) -> int:
    """Return how many bins a thread processes side by side: several, if they are aligned."""
    if steps or layout.cuda.n_edges <= FEW_EDGES or layout.n_bins % BIN_LANES:
        return 1
    for array in arrays:
        places = (array.pointer, *array.strides[:-1]) if array.size else ()
        if any(place % VECTOR_BYTES for place in places):
            return 1
    return BIN_LANES


def scratch_arrays(operation: str) -> tuple[int, int]:
    """Return how many arrays of edges and of bins an operation needs, see `block.Scratch`."""
    row = OPERATIONS[operation]
    if row.start == "loss":
        return losses.LOSSES[operation][1]
    return 2 if row.other else 1, 0


def _scratch_of(operation: str, layout: EdgeLayout, n_threads: int) -> tuple[int, bool]:
    """Return the number of float64 that a row needs, and whether they are in shared memory."""
    size = _scratch_size(operation, layout.cuda.n_edges, layout.n_bins, n_threads)
    return size, 8 * size <= SHARED_BYTES


@functools.lru_cache(maxsize=1024)
def _scratch_size(operation: str, *sizes: int) -> int:
    return int(block.scratch_per_row(scratch_arrays(operation), *sizes))


def prepare(operation: str, layout: EdgeLayout, cost: Cost, char: str, index: int) -> None:
    """Compile the kernels that an operation may launch, and copy the layout to the device."""
    with on_device(index):
        if operation == "hessian":
            fill = "fill_chain" if layout.is_chain else "fill_tree"
            kernels = [("sum_paths", "d"), (fill, char)]
            _uploaded(layout, index, _hessian_tables)
        else:
            operation, name, _ = variant(operation, cost)
            is_loss = operation in losses.LOSSES
            sums = [("sum_rows", char), ("sum_rows", "d"), ("convert", char)]
            weights = [("find_row_weights", "d"), ("divide_by_sum", "d")]
            kernels = [*sums, *weights] if is_loss else []
            out = "d" if operation == "curvature" else char
            blocks = (block_of(operation, layout, n_rows, index) for n_rows in (0, math.inf))
            for n_threads in dict.fromkeys(n_threads for n_threads, _ in blocks):
                _, in_shared = _scratch_of(operation, layout, n_threads)
                lanes = lane_count(layout, (), ())
                of_labels, of_histograms = (
                    losses.LossKind(SOFTMAX, labelled, False) for labelled in (True, False)
                )
                for loss in (of_labels, of_histograms) if is_loss else (None,):
                    _row_kernel(
                        operation, name, layout.is_chain, char, out, n_threads, in_shared, lanes,
                        False, loss,
                    )  # fmt: skip
            _uploaded(layout, index, _sweep_tables)
        for function, kind in kernels:
            _team_kernel(function, kind, "d")


@functools.cache
def _row_kernel(
    operation: str, cost: str, is_chain: bool, char: str, out_char: str, n_threads: int,
    in_shared: bool, lanes: int, strided: bool, loss: losses.LossKind | None,
) -> Any:  # fmt: skip
    """Return the kernel for types of arrays, threads per row, and the place of the scratch.

    A thread processes `lanes` bins side by side. The bins of a row are side by side in the user's
    arrays, unless `strided`.
    """
    row, real = OPERATIONS[operation], from_dtype(np.dtype(char))
    team, value = block.team_functions(n_threads), real
    arguments = row, COSTS[cost], is_chain, team, lane_functions(lanes)
    if loss:
        sweep, value = losses.LOSSES[operation][0](*arguments, loss), _float
    else:
        sweep = sweeps.histogram_sweep(*arguments)
    kernel = block.row_kernel(sweep, scratch_arrays(operation), n_threads, in_shared, strided)
    kernel.__qualname__ = f"{operation}_{cost}_{'chain' if is_chain else 'tree'}"  # for profilers
    inputs = _type_of((_pointer(real), _int, _int), Rows)
    memory = map(_pointer, (from_dtype(np.dtype(out_char)), value, _float))
    steps = _steps if strided else types.Tuple(())
    batch = inputs, inputs, inputs, *memory, _int, _int, _int32, _int32, steps
    extras = _extras if loss and loss.extended else types.Tuple(())
    options = _type_of((*_options, extras), block.Options)
    signature = _layout, _type_of(batch, block.Batch), _numbers, options, _labels
    return compiled(kernel, signature)


@functools.cache
def _empty_array(char: str, index: int) -> Any:
    """Return an array without elements on the current device."""
    return argument(np.empty(0, char))


_uploads: weakref.WeakKeyDictionary[EdgeLayout, dict[Any, Any]] = weakref.WeakKeyDictionary()


def _uploaded(layout: EdgeLayout, index: int, tables: Callable[[EdgeLayout], Any]) -> Any:
    """Return tables of a layout on the current device, uploaded once."""
    copies, key = _uploads.setdefault(layout, {}), (index, tables)
    if key not in copies:
        copies.setdefault(key, tables(layout))  # the first copy stays if threads race
    return copies[key]


@functools.lru_cache(maxsize=64)
def uploaded(content: bytes, index: int) -> DeviceArray:
    """Return an array of float64 on a device, uploaded once."""
    with on_device(index):
        return _copy_to_device(np.frombuffer(content))


def _copy_to_device(numbers: NDArray[Any]) -> DeviceArray:
    """Return a copy of a contiguous array on the current device."""
    array = upload(numbers)
    pointer = numbers.ctypes.data if SIMULATED else array.__cuda_array_interface__["data"][0]
    return DeviceArray((array, numbers), numbers.shape, numbers.dtype, pointer)


def _sweep_tables(layout: EdgeLayout) -> block.Tables:
    cuda = layout.cuda
    return block.Tables(_copy_to_device(cuda.numbers), _copy_to_device(cuda.lengths))


def _hessian_tables(layout: EdgeLayout) -> hessian.Tables:
    arrays = layout.edges.parent, layout.edges.share, *layout.bin_order
    return hessian.Tables(*(upload(x if x.dtype == float else x.astype(np.int32)) for x in arrays))


# --------------------------------------------------------------------------- teams without a layout


@functools.cache
def _team_kernel(name: str, char: str, values_char: str) -> Any:
    """Return a kernel for types of the results and of `values`."""
    function, *kinds = TEAM_FUNCTIONS[name]
    real, values = from_dtype(np.dtype(char)), from_dtype(np.dtype(values_char))
    arrays = {"out": _pointer(real), "hessians": real[:, :, :], "values": values[::1]}
    arrays["out array"] = real[::1]
    kernel = block.team_kernel(function)
    kernel.__qualname__ = name  # for profilers
    kinds = [arrays[kind] if isinstance(kind, str) else kind for kind in kinds]
    return compiled(kernel, (types.Tuple(kinds),))


def _launch_teams(
    name: str, n_blocks: int, index: int, stream: int, *arguments: Any, char: str = "d",
    values_char: str = "d",
) -> None:  # fmt: skip
    """Launch a function of `TEAM_FUNCTIONS` on the current device."""
    kernel, shared = _team_kernel(name, char, values_char), 16 * (block.TEAM // block.WARP)
    configure(kernel, index, n_blocks, block.TEAM, stream, shared)(arguments)


def launch_hessian(
    layout: EdgeLayout, rows: Sequence[Any], cost: Cost, out: Any, project: bool,
    tolerance: float, errors: Any, empty: Empty, index: int, stream: int,
) -> None:  # fmt: skip
    """Fill the dense Hessians `out`, one per row: (G * R, N, N), contiguous.

    The layout is one whose subtrees are contiguous. For the other parameters see `launch`.
    """
    n_rows, n_bins, n_edges = rows[0].shape[0] * rows[0].shape[1], layout.n_bins, layout.n_edges
    with on_device(index):
        memory, paths, means = (empty(n_rows * size) for size in (n_edges, n_edges, n_bins))
        curvatures, paths, means = (
            argument(array).reshape(n_rows, size)
            for array, size in ((memory, n_edges), (paths, n_edges), (means, n_bins))
        )
        _launch(
            "curvature", layout, rows, cost, NO_ARRAY,
            memory.reshape(*rows[0].shape[:2], n_edges), project, _without_loss(tolerance), None,
            (), errors, empty, index, stream,
        )  # fmt: skip
        tables = _uploaded(layout, index, _hessian_tables)
        _launch_teams(
            "sum_paths", n_rows, index, stream, tables, curvatures, paths, means, float(project)
        )
        fill = "fill_chain" if layout.is_chain else "fill_tree"
        n_blocks = min(n_rows * n_bins, MOST_BLOCKS)
        _launch_teams(
            fill, n_blocks, index, stream, tables, paths, means, argument(out),
            char=out.dtype.char,
        )  # fmt: skip


def _n_parts(n_rows: int) -> int:
    """Return the number of blocks that share the rows of a sum."""
    return min(-(-n_rows // ROWS_PER_PART), PARTS)


def find_row_weights(
    weights: Any, labels: Any, ignore_index: int, class_weights: Any, mean: bool, row_weights: Any,
    errors: Any, empty: Empty, index: int, stream: int,
) -> None:  # fmt: skip
    """Fill `row_weights` from sample weights and labels, either of which may have no elements.

    With `mean` they are divided by their sum, in which they count times those of their classes, if
    there are any.
    """
    n_parts = _n_parts(row_weights.size)
    with on_device(index):
        both = (
            argument(row_weights),
            argument(empty(2 * n_parts)) if mean else _empty_array("d", index),
        )
        _launch_teams(
            "find_row_weights", n_parts, index, stream, argument(weights), argument(labels),
            ignore_index, argument(class_weights), *both, errors,
        )  # fmt: skip
        if mean:
            _launch_teams("divide_by_sum", n_parts, index, stream, *both)


def sum_rows(values: Any, out: Any, empty: Empty, index: int, stream: int) -> None:
    """Write the sum of `values` to ``out[0]``; if they are many, sum parts of them first.

    The order of the summands depends on their number only, so the sum has the same bits every time.
    """
    with on_device(index):
        n_parts = _n_parts(values.size)
        if n_parts > 1:
            parts = empty(n_parts)
            _launch_sum("d", n_parts, values, parts, index, stream)
            values = parts
        _launch_sum(out.dtype.char, 1, values, out, index, stream)


def _launch_sum(char: str, n_blocks: int, values: Any, out: Any, index: int, stream: int) -> None:
    arguments = start_of(values), start_of(out), values.size
    _launch_teams("sum_rows", n_blocks, index, stream, *arguments, char=char)


def convert(values: Any, out: Any, index: int, stream: int) -> None:
    """Write `values` to an array of another type."""
    if values.size:
        n_blocks = min(-(-values.size // block.TEAM), MOST_TEAMS)
        with on_device(index):
            _launch_teams(
                "convert", n_blocks, index, stream, argument(values), argument(out),
                char=out.dtype.char, values_char=values.dtype.char,
            )  # fmt: skip
