"""Arguments to views, and views to the rows that kernels read.

A view is a NumPy array on the CPU and a `fastemd.backends.DeviceArray` on a CUDA device, of the
memory of the user's array wherever that is possible.
"""

import decimal
import functools
import itertools
import math
import numbers
from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastemd import validation
from fastemd.backends import NUMPY, Backend, CudaBackend, DeviceArray, backend_for

Array = NDArray[Any]
Shape = tuple[int, ...]


def as_array(name: str, value: object) -> Any:
    """Return the argument `name` as a view of real numbers, without a copy if it is an array."""
    backend = backend_for(name, value)
    if backend is NUMPY:
        view = _as_numpy(name, value)
    else:
        plain = value.resolve_neg() if hasattr(value, "resolve_neg") else value
        view = _view(name, plain, backend)
    if view.dtype.kind not in "fiub":
        validation.not_an_array(name, view if isinstance(value, np.ndarray) else value)
    return view


def as_histograms(name: str, value: object, space: Any, axis: int | None = None) -> Any:
    """Return the same over the bins of a space, in the order of a data frame's columns.

    The bins are the last axis. In the array they are `axis` (< 0), if the caller has that argument.
    """
    return over_bins(name, value, as_array(name, value), space, axis)


def over_bins(name: str, value: object, view: Any, space: Any, axis: int | None = None) -> Any:
    """Return the view of an argument as `as_histograms`."""
    check_columns(name, value, space)
    validation.check_bins_axis(name, view.shape, space.n_bins, axis, "axis")
    return view if axis in (None, -1) else bins_last(view, axis)


def as_class_weights(value: object, n_bins: int) -> Array:
    """Return weights of classes on the host as float64, or raise."""
    weights = as_array("class_weight", value)
    validation.check_class_weight_shape(weights.shape, n_bins)
    return validation.check_class_weights(weights)


def check_columns(name: str, value: object, space: Any) -> None:
    """Raise if a data frame has the bins of the space as columns in another order."""
    if hasattr(value, "iloc") or hasattr(value, "columns") or hasattr(value, "column_names"):
        validation.check_order(name, value, list(space.bins))


def bins_last(view: Any, axis: int) -> Any:
    """Return a view with the axis of the bins moved to the end."""
    return np.moveaxis(view, axis, -1) if isinstance(view, np.ndarray) else view.moved(axis)


def writable_view(name: str, out: Any, backend: Backend) -> Any:
    """Return a view of the user's `out`, which must be an array of the backend."""
    own = backend_for(name, out)
    if own.name != backend.name:
        validation.mixed_backends({"p": backend.name, name: own.name})
    return out if own is NUMPY else _view(name, out, own)


def _view(name: str, value: Any, backend: Backend) -> Any:
    try:
        return backend.view(value)
    except Exception as error:  # each library has its own
        validation.not_readable(name, value, str(error) or type(error).__name__)


def _as_numpy(name: str, value: Any) -> Array:
    """Convert an array, a list or a data frame."""
    if np.ma.is_masked(value):
        validation.not_an_array(name, value, "; fill the masked entries first")
    if not hasattr(value, "__array__"):
        for method in ("toarray", "todense"):
            if hasattr(value, method):
                validation.sparse(name, value, method)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        validation.not_an_array(name, value)
    return _as_numbers(name, array) if array.dtype == object and array.ndim else array


def _as_numbers(name: str, array: Array) -> Array:
    """Convert an array of objects that are numbers, as columns of data frames may be."""
    kinds = {type(x) for x in array.flat}
    if kinds <= {bool, np.bool_}:
        return array.astype(bool)
    if all(issubclass(kind, numbers.Integral) for kind in kinds):
        for integer in (np.int64, np.uint64):
            try:
                return array.astype(integer)
            except OverflowError:
                continue
    real = numbers.Real, decimal.Decimal
    if not all(issubclass(kind, real) for kind in kinds):
        for index in np.ndindex(array.shape):
            if not isinstance(array[index], real):
                validation.not_a_number(name, index, array[index])
    return np.array([validation.as_float(x) for x in array.flat]).reshape(array.shape)


def as_rows(
    inputs: Collection[Any], batch: Shape, dtype: np.dtype[Any], backend: Backend, out: Any = None
) -> list[Any]:
    """Return views (..., N) as (groups, rows, N) of one type, copied only if necessary.

    Strides of 0 broadcast, so nothing is copied as long as two levels of rows are enough, as they
    are for one broadcast axis on each side, which gives all pairs. `out` is a new array whose bins
    were moved to the end; it is returned in the same groups. Without it, bins that are not side by
    side are copied on a CUDA device; the CPU's kernels copy them tile by tile.
    """
    on_cuda = isinstance(backend, CudaBackend)
    cast = functools.partial(_cast_on_cuda, backend, out is None) if on_cuda else _aligned
    views: list[Any] = [cast(view, dtype) for view in inputs]
    if out is None and all(v.shape[:-1] == batch and _is_contiguous(v) for v in views):
        return [view.reshape(1, math.prod(batch), view.shape[-1]) for view in views]
    rows = _in_groups(views, batch, out)
    if rows is None:
        spread: Any = backend.spread if isinstance(backend, CudaBackend) else _spread
        rows = _in_groups([spread(view, (*batch, view.shape[-1])) for view in views], batch, out)
    return rows  # type: ignore[return-value]  # after `spread` there are groups


def _is_contiguous(view: Any) -> bool:
    return bool(view.flags.c_contiguous if isinstance(view, np.ndarray) else view.contiguous)


def _in_groups(views: list[Any], batch: Shape, out: Any) -> list[Any] | None:
    """Return views as (groups, rows, N) without a copy; None if two levels are not enough."""
    views = views if out is None else [*views, out]
    for split in range(max(len(batch), 1)):
        strides = [_row_strides(view, batch, split) for view in views]
        if None not in strides:
            shape = math.prod(batch[:split]), math.prod(batch[split:])
            pairs = zip(views, strides, strict=True)
            return [
                _strided(view, (*shape, view.shape[-1]), steps, view is out)
                for view, steps in pairs
            ]
    return None


def _spread(array: Array, shape: Shape) -> Array:
    return np.ascontiguousarray(np.broadcast_to(array, shape))


def _cast_on_cuda(
    backend: Any, contiguous: bool, view: DeviceArray, dtype: np.dtype[Any]
) -> DeviceArray:
    """Return the view of a type, or of a copy that kernels can read; see `steps_of`."""
    view, size = backend.cast(view, dtype), dtype.itemsize
    step = view.strides[-1] if view.shape[-1] > 1 else size
    is_ready = step == size if contiguous else step >= 0
    is_aligned = not any(stride % size for stride in view.strides)
    return view if is_ready and is_aligned else backend.spread(view, view.shape)


def _aligned(array: Array, dtype: np.dtype[Any]) -> Array:
    if array.dtype != dtype or not array.flags.aligned:
        array = np.require(array, dtype, "A")
    return array


def _row_strides(view: Any, batch: Shape, split: int) -> Shape | None:
    """Return the strides as (groups, rows, N), whose groups are the first `split` axes."""
    n_missing = len(batch) - len(view.shape) + 1
    steps = [0] * n_missing + [
        0 if n == 1 else step for n, step in zip(view.shape[:-1], view.strides[:-1], strict=True)
    ]
    groups = _merged_stride(batch[:split], steps[:split])
    rows = _merged_stride(batch[split:], steps[split:])
    return None if groups is None or rows is None else (groups, rows, view.strides[-1])


def _merged_stride(shape: Shape, strides: list[int]) -> int | None:
    """Return the stride of several axes seen as one; None if they are not."""
    axes = [axis for axis in zip(shape, strides, strict=True) if axis[0] != 1]
    if any(outer != n * step for (_, outer), (n, step) in itertools.pairwise(axes)):
        return None
    return axes[-1][1] if axes else 0


def _strided(view: Any, shape: Shape, strides: Any, writeable: bool) -> Any:
    if isinstance(view, DeviceArray):
        return view.strided(shape, strides)
    return np.lib.stride_tricks.as_strided(view, shape, strides, writeable=writeable)


def overlap(a: Any, b: Any) -> bool:
    """Return whether two views may share memory."""
    if isinstance(a, np.ndarray):
        return bool(np.may_share_memory(a, b))
    (a_start, a_end), (b_start, b_end) = a.bounds(), b.bounds()
    return bool(a.size and b.size and a_start < b_end and b_start < a_end)
