"""The one door for arrays: a user's array in, rows that the kernels read, results out."""

import decimal
import functools
import math
import numbers
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastemd import devices, validation

Array = NDArray[Any]
_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)


class Library(NamedTuple):
    """Whose arrays a call was given, and where."""

    name: str
    view: Callable[[Any], Array]  # one of its arrays as NumPy's, of the same memory
    take: Callable[[Array], Any]  # the way back
    alignment: int = 1  # of memory that it takes without a copy, in bytes
    written: Callable[[Any], object] = lambda array: None  # tell it that one of its arrays changed
    elsewhere: Callable[[Any], bool] = lambda array: False  # whether an array is on a device
    device: devices.Device | None = None  # then a view describes and may not be read


NUMPY = Library("numpy", np.asarray, lambda result: result[()])  # a scalar if it has no axes


def library_of(values: Mapping[str, object]) -> Library:
    """The library that all arguments come from; what is no array yet counts as NumPy's."""
    first: Library | None = None
    for argument, value in values.items():
        library = _library(argument, value)
        if first is not None and library.name != first.name:
            validation.mixed_libraries({n: _library(n, x).name for n, x in values.items()})
        first = library
    return first or NUMPY


def _library(argument: str, value: Any) -> Library:
    known = _known_library(type(value))  # type: ignore[arg-type]  # classes are hashable
    if known is not None and not known.elsewhere(value):
        return known
    if known is not None or devices.is_on_device(value):
        return _library_on_device(argument, value, known)
    if not hasattr(value, "__array_namespace__"):
        return Library("numpy", np.from_dlpack, NUMPY.take)
    try:
        namespace = value.__array_namespace__()
    except Exception as error:
        why = f"its __array_namespace__() raised {type(error).__name__}: {error}"
        validation.not_readable(argument, value, why)
    if not hasattr(namespace, "from_dlpack"):
        validation.not_readable(
            argument, value, "its library has no from_dlpack to take the results"
        )
    name = getattr(namespace, "__name__", type(value).__module__)
    return Library(name.partition(".")[0], np.from_dlpack, namespace.from_dlpack)


@functools.lru_cache
def _known_library(cls: type) -> Library | None:
    """None if it depends on more than the type."""
    on_device = hasattr(cls, "__cuda_array_interface__")
    if issubclass(cls, np.ndarray) or not (on_device or hasattr(cls, "__dlpack__")):
        return NUMPY
    roots = {base.__module__.partition(".")[0] for base in cls.__mro__}
    if "torch" in roots:
        torch = sys.modules["torch"]
        # 0.7 us where np.from_dlpack takes 2.4, and refuses what has the lazy minus of
        # `Tensor.is_neg`, which DLPack does not carry.
        return Library(
            "torch",
            torch.Tensor.numpy,
            torch.from_numpy,
            written=torch.autograd.graph.increment_version,
            elsewhere=lambda tensor: tensor.is_cuda,
        )
    if not roots.isdisjoint({"jax", "jaxlib"}):
        from jax.dlpack import from_dlpack  # is there, the array brought it

        library = Library("jax", np.from_dlpack, from_dlpack, alignment=64)
        if _jax_has_cuda():  # to ask every array takes 14 us
            library = library._replace(elsewhere=devices.is_on_device)
        return library
    return None


def _jax_has_cuda() -> bool:
    try:
        return bool(sys.modules["jax"].devices("cuda"))
    except RuntimeError:
        return False


def _library_on_device(argument: str, value: Any, known: Library | None) -> Library:
    device = devices.device_of(value)
    if device is None:
        why = "it is on a CUDA device, where arrays of PyTorch, CuPy, JAX and Numba are taken"
        validation.not_readable(argument, value, why)
    name = known.name if known else type(value).__module__.partition(".")[0]
    written = known.written if known else NUMPY.written
    name = f"{name} on cuda:{device.index}"
    return Library(name, devices.description, device.finish, written=written, device=device)


def _view(name: str, value: Any, library: Library) -> Array:
    try:
        return library.view(value)
    except Exception as error:  # each library has its own
        validation.not_readable(name, value, str(error) or type(error).__name__)


@functools.cache
def nothing(char: str) -> Array:
    """No rows of a type known by its character, where a kernel may get some."""
    return np.empty((1, 1, 0), char)


def real(name: str, value: object) -> Array:
    """The argument `name` as an array of real numbers, no copy if it is one."""
    library = _library(name, value)
    if library is NUMPY:
        array = _on_host(name, value)
    else:
        plain = value.resolve_neg() if hasattr(value, "resolve_neg") else value
        array = _view(name, plain, library)
    if array.dtype.kind not in "fiub":
        validation.not_an_array(name, array if isinstance(value, np.ndarray) else value)
    return array


def _on_host(name: str, value: Any) -> Array:
    """What NumPy makes of an array, a list or a data frame."""
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
    return _numbers(name, array) if array.dtype == object and array.ndim else array


def _numbers(name: str, array: Array) -> Array:
    """An array of objects that are numbers, as columns of data frames may be."""
    kinds = {type(x) for x in array.flat}
    if kinds <= {bool, np.bool_}:
        return array.astype(bool)
    if all(issubclass(kind, numbers.Integral) for kind in kinds):
        for integer in (np.int64, np.uint64):
            try:
                return array.astype(integer)
            except OverflowError:
                continue
    wanted = numbers.Real, decimal.Decimal
    if not all(issubclass(kind, wanted) for kind in kinds):
        for index in np.ndindex(array.shape):
            if not isinstance(array[index], wanted):
                validation.not_a_number(name, index, array[index])
    return np.array([validation.as_float(x) for x in array.flat]).reshape(array.shape)


def unwrap(name: str, value: object, n_bins: int) -> Array:
    """The same, of shape (..., n_bins)."""
    array = real(name, value)
    validation.check_bins_axis(name, array.shape, n_bins)
    return array


def histograms(name: str, value: object, space: Any) -> Array:
    """The same, over the bins of a ground space; the names of a data frame are in their order."""
    if hasattr(value, "iloc") or hasattr(value, "columns") or hasattr(value, "column_names"):
        validation.check_order(name, value, list(space.bins))
    return unwrap(name, value, space.n_bins)


def ready_rows(values: Collection[Any], n_bins: int) -> list[Array] | None:
    """The arguments as (1, rows, n_bins) if they are alike and as a kernel reads them, else None.

    What the other functions here find out, for the usual case, in a quarter of their time.
    """
    first = next(iter(values))
    if type(first) is not np.ndarray or len(values) == 1:
        return None
    shape, dtype = first.shape, first.dtype
    if not (dtype is _FLOAT32 or dtype is _FLOAT64) or not shape or shape[-1] != n_bins:
        return None
    rows = []
    for value in values:
        if type(value) is not np.ndarray or value.dtype is not dtype or value.shape != shape:
            return None
        flags = value.flags
        if not flags.c_contiguous or not flags.aligned:
            return None
        rows.append(value.reshape(1, -1, n_bins))
    return rows


def as_int64(number: int, dtype: np.dtype[Any]) -> int | None:
    """What an entry of an integer type that equals `number` becomes as int64; None: none does."""
    limits = np.iinfo(dtype)
    if not limits.min <= number <= limits.max:
        return None
    return number if number < 2**63 else number - 2**64


def result_type(arrays: Iterable[Array]) -> np.dtype[Any]:
    """float32 if all arrays are float32, float64 for anything else."""
    single = all(array.dtype.type is np.float32 for array in arrays)  # of any byte order
    return np.dtype(np.float32 if single else np.float64)


def batch_shape(arrays: dict[str, Array]) -> tuple[int, ...]:
    """The leading shape to which all arrays broadcast."""
    shapes = {name: array.shape[:-1] for name, array in arrays.items()}
    first, *others = shapes.values()
    if all(shape == first for shape in others):
        return first
    try:
        return np.broadcast_shapes(*shapes.values())
    except ValueError:
        validation.do_not_broadcast(shapes)


def as_rows(arrays: list[Array], batch: tuple[int, ...], dtype: np.dtype[Any]) -> list[Array]:
    """Every array as (groups, rows, N) of one shape, whose rows are contiguous in memory.

    Strides of 0 broadcast, so nothing is copied as long as two levels of rows are enough (which
    they are for one broadcast axis on each side, as in all-pairs) and the bins lie side by side.
    """
    ready = [_native_rows(array, dtype) for array in arrays]
    n_rows = math.prod(batch)
    if all(a.shape[:-1] == batch and a.flags.c_contiguous for a in ready):
        return [a.reshape(1, n_rows, a.shape[-1]) for a in ready]
    rows = broadcast_rows(ready, batch)
    if rows is not None:
        return rows
    return [np.broadcast_to(a, (*batch, a.shape[-1])).reshape(1, n_rows, -1) for a in ready]


def broadcast_rows(arrays: list[Array], batch: tuple[int, ...]) -> list[Array] | None:
    """The same by strides alone, of any kind; None if it takes a copy."""
    spread = [np.broadcast_to(a, (*batch, a.shape[-1])) for a in arrays]
    for split in range(max(len(batch), 1)):
        shape = math.prod(batch[:split]), math.prod(batch[split:])
        try:
            return [a.reshape(*shape, a.shape[-1], copy=False) for a in spread]
        except ValueError:  # this split would copy
            continue
    return None


def empty(shape: tuple[int, ...], dtype: np.dtype[Any], alignment: int) -> Array:
    """Memory for a result, aligned to so many bytes."""
    if alignment == 1:
        return np.empty(shape, dtype)
    raw = np.empty(math.prod(shape) * dtype.itemsize + alignment, np.uint8)
    return np.ndarray(shape, dtype, raw, -raw.__array_interface__["data"][0] % alignment)


def writable(name: str, out: Any, library: Library) -> Any:
    """The user's `out` as a NumPy array of the same memory; it must be one of `library`'s."""
    own = _library(name, out)
    if own.name != library.name:
        validation.mixed_libraries({"p": library.name, name: own.name})
    return out if own is NUMPY else _view(name, out, own)


def can_hold(out: Array, inputs: Iterable[Array]) -> bool:
    """Whether a kernel can write to `out` while it reads the inputs."""
    plain = type(out) is np.ndarray and out.flags.c_contiguous and out.flags.aligned
    return plain and not any(np.may_share_memory(out, array) for array in inputs)


def _native_rows(array: Array, dtype: np.dtype[Any]) -> Array:
    if array.dtype != dtype or not array.flags.aligned:
        array = np.require(array, dtype, "A")
    if array.strides[-1] != array.itemsize and array.shape[-1] > 1:
        array = np.ascontiguousarray(array)
    return array
