"""Array backends: the libraries whose arrays are taken, on the CPU and on CUDA devices.

On the CPU every array is viewed as a NumPy array of the same memory. On a CUDA device it is viewed
as a `DeviceArray`, which knows where the elements are and does not read them. New memory comes from
the caller's library, on its current stream. `BACKENDS` has one row per library.
"""

import functools
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastemd import validation

Array = NDArray[Any]
Shape = tuple[int, ...]


class Backend:
    """NumPy arrays, and the base of all backends."""

    name = "numpy"
    alignment = 1  # in bytes, of memory that `wrap` takes without a copy

    def view(self, array: Any) -> Any:
        """Return an array of the same memory that the library can work with."""
        return np.asarray(array)

    def wrap(self, result: Any) -> Any:
        """Return a result as an array of the backend; a NumPy scalar if it has no axes."""
        return result[()]

    def empty(self, shape: Shape, dtype: np.dtype[Any]) -> Any:
        """Allocate a view."""
        if self.alignment == 1:
            return np.empty(shape, dtype)
        raw = np.empty(math.prod(shape) * dtype.itemsize + self.alignment, np.uint8)
        start = -raw.__array_interface__["data"][0] % self.alignment
        return np.ndarray(shape, dtype, raw, start)

    def assign(self, out: Any, result: Any) -> None:
        """Copy a view to another one of the same shape."""
        out[...] = result

    def mark_written(self, out: Any) -> None:
        """Notify the library that one of its arrays was written to."""


class _ArrayApi(Backend):
    """Any library of the array API standard, by DLPack."""

    def __init__(self, name: str, from_dlpack: Callable[[Any], Any]) -> None:
        self.name, self.from_dlpack = name, from_dlpack

    def view(self, array: Any) -> Any:
        return np.from_dlpack(array)

    def wrap(self, result: Any) -> Any:
        return self.from_dlpack(result)


class _Torch(Backend):
    name = "torch"

    def view(self, array: Any) -> Any:
        # 0.7 us where np.from_dlpack takes 2.4; raises for tensors with the lazy minus sign of
        # `Tensor.is_neg`, which DLPack does not carry.
        return array.numpy()

    def wrap(self, result: Any) -> Any:
        return sys.modules["torch"].from_numpy(result)

    def mark_written(self, out: Any) -> None:
        sys.modules["torch"].autograd.graph.increment_version(out)


class _Jax(Backend):
    name, alignment = "jax", 64

    def view(self, array: Any) -> Any:
        return np.from_dlpack(array)

    def wrap(self, result: Any) -> Any:
        return sys.modules["jax"].dlpack.from_dlpack(result)


# ------------------------------------------------------------------------------------ CUDA devices


class DeviceArray:
    """An array in the memory of a CUDA device: the library's array, and where its elements are."""

    def __init__(
        self, array: Any, shape: Shape, dtype: np.dtype[Any], pointer: int,
        strides: Shape | None = None, writeable: bool = True, axis: int = -1,
    ) -> None:  # fmt: skip
        self.array, self.shape, self.dtype = array, shape, dtype  # `array` owns the memory
        self.axis = axis  # of `array`, which is the last axis here
        self.pointer, self.writeable, self.size = pointer, writeable, math.prod(shape)
        wanted = _contiguous_strides(shape, dtype.itemsize)
        self.strides = wanted if strides is None else strides
        # Whether the elements are in the order of C, without gaps.
        self.contiguous = (
            self.strides == wanted
            or self.size == 0
            or all(n == 1 or a == b for n, a, b in zip(shape, self.strides, wanted, strict=True))
        )

    @classmethod
    def of(cls, array: Any) -> "DeviceArray":
        """Return the view of a library's array, which JAX has computed before."""
        if hasattr(array, "block_until_ready"):  # the kernels run on another stream than JAX
            array.block_until_ready()
        interface = getattr(array, "__cuda_array_interface__", None) or _interface_of(array)
        pointer, read_only = interface["data"]
        dtype, strides = np.dtype(interface["typestr"]), interface.get("strides")
        return cls(array, tuple(interface["shape"]), dtype, pointer, strides, not read_only)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape, "strides": self.strides, "typestr": self.dtype.str,
            "data": (self.pointer, not self.writeable), "version": 2,
        }  # fmt: skip

    def strided(self, shape: Shape, strides: Shape | None = None) -> "DeviceArray":
        """Return a view of the same memory, contiguous without `strides`."""
        return DeviceArray(self.array, shape, self.dtype, self.pointer, strides, self.writeable)

    def moved(self, axis: int) -> "DeviceArray":
        """Return a view of the same memory with an axis (< 0) moved to the end."""
        shape, strides = (
            (*validation.without_axis(numbers, axis), numbers[axis])
            for numbers in (self.shape, self.strides)
        )
        array, dtype, pointer = self.array, self.dtype, self.pointer
        return DeviceArray(array, shape, dtype, pointer, strides, self.writeable, axis)

    def reshape(self, *shape: int) -> "DeviceArray":
        """Return a view of another shape; the array must be contiguous."""
        if not self.contiguous:
            raise ValueError("an array on a CUDA device that is not contiguous cannot be reshaped")
        if -1 in shape:
            known = -math.prod(shape) or 1
            shape = tuple(self.size // known if n == -1 else n for n in shape)
        return self.strided(shape)

    def __getitem__(self, part: tuple[slice, ...]) -> "DeviceArray":
        """Return a view of a part; the slices of the first axes have no steps."""
        ends = [axis.indices(n)[:2] for axis, n in zip(part, self.shape, strict=False)]
        shape = *(end - start for start, end in ends), *self.shape[len(part) :]
        offset = sum(start * step for (start, _), step in zip(ends, self.strides, strict=False))
        pointer = self.pointer + offset
        return DeviceArray(self.array, shape, self.dtype, pointer, self.strides, self.writeable)

    def bounds(self) -> tuple[int, int]:
        """Return the first address, and the one after the last."""
        reaches = [(n - 1) * step for n, step in zip(self.shape, self.strides, strict=True)]
        low = sum(x for x in reaches if x < 0)
        return self.pointer + low, self.pointer + sum(reaches) - low + self.dtype.itemsize


def axis_at(shape: Shape, axis: int) -> Shape:
    """Return a shape whose last axis is moved to `axis` (< 0)."""
    if axis == -1:
        return shape
    rows = shape[:-1]
    before = len(rows) + axis + 1
    return (*rows[:before], *shape[-1:], *rows[before:])


@functools.lru_cache(maxsize=1024)
def _contiguous_strides(shape: Shape, step: int) -> Shape:
    strides = []
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


def _interface_of(array: Any) -> dict[str, Any]:
    """Return the interface of an array that has DLPack only."""
    from cuda.core.utils import StridedMemoryView  # a dependency of numba-cuda

    # 0 is handed on as None, the default stream; JAX takes -1 for the handle of a stream.
    view = StridedMemoryView.from_dlpack(array, stream_ptr=0)
    strides = view.strides and tuple(step * view.dtype.itemsize for step in view.strides)
    data = view.ptr, view.readonly
    return {"shape": view.shape, "typestr": view.dtype.str, "data": data, "strides": strides}


def is_on_cuda(array: Any) -> bool:
    """Return whether an array that is not NumPy's is on a CUDA device."""
    try:
        if hasattr(array, "__cuda_array_interface__"):
            return True
        return int(array.__dlpack_device__()[0]) in (2, 13)  # kDLCUDA, kDLCUDAManaged
    except Exception:  # each library has its own for deleted and for traced arrays
        return False


class CudaBackend(Backend):
    """The base of backends on a CUDA device; `array` is one of the library's arrays there."""

    index: int

    def __init__(self, array: Any) -> None:
        self.index = self.index_of(array)

    # What a library implements, on its own arrays:

    def index_of(self, array: Any) -> int:
        """Return the number of the device."""
        raise NotImplementedError

    def new(self, shape: Shape, dtype: np.dtype[Any]) -> Any:
        """Allocate an array."""
        raise NotImplementedError

    def convert(self, array: Any, dtype: np.dtype[Any]) -> Any:
        """Return an array of another type."""
        raise NotImplementedError

    def expand(self, array: Any, shape: Shape) -> Any:
        """Return an array broadcast to a shape, contiguous."""
        raise NotImplementedError

    def copy(self, out: Any, array: Any) -> None:
        """Copy the elements of an array to `out`."""
        raise NotImplementedError

    def stream(self) -> int:
        """Return the handle of the current stream, 0 for the default one."""
        return 0

    def finish(self, result: Any) -> Any:
        """Return an array of `new` as the user gets it."""
        return result

    # And the protocol of all backends, on views:

    def view(self, array: Any) -> DeviceArray:  # noqa: D102  # as in Backend
        return DeviceArray.of(array)

    def wrap(self, result: DeviceArray) -> Any:  # noqa: D102
        return self.finish(result.array)

    def empty(self, shape: Shape, dtype: np.dtype[Any]) -> DeviceArray:  # noqa: D102
        return DeviceArray.of(self.new(shape, dtype))

    def assign(self, out: DeviceArray, result: DeviceArray) -> None:  # noqa: D102
        self.copy(out.array, result.array)

    def cast(self, view: DeviceArray, dtype: np.dtype[Any]) -> DeviceArray:
        """Return the view of an array of a type, the same if it is of that type."""
        if view.dtype == dtype:
            return view
        return self.view(self.convert(view.array, dtype)).moved(view.axis)

    def spread(self, view: DeviceArray, shape: Shape) -> DeviceArray:
        """Return the view of a contiguous array of a shape to which the array broadcasts."""
        if view.shape == shape and view.contiguous:
            return view
        return self.view(self.expand(view.array, axis_at(shape, view.axis))).moved(view.axis)


class _TorchCuda(CudaBackend):
    def __init__(self, array: Any) -> None:
        super().__init__(array)
        self.torch, self.device = sys.modules["torch"], array.device

    def index_of(self, array: Any) -> int:
        return int(array.device.index or 0)

    def new(self, shape: Shape, dtype: np.dtype[Any]) -> Any:
        dtype = getattr(self.torch, dtype.name)
        return self.torch.empty(shape, dtype=dtype, device=self.device)

    def convert(self, array: Any, dtype: np.dtype[Any]) -> Any:
        return array.to(getattr(self.torch, dtype.name))

    def expand(self, array: Any, shape: Shape) -> Any:
        return array.expand(shape).contiguous()

    def copy(self, out: Any, array: Any) -> None:
        out.copy_(array)

    def stream(self) -> int:
        return int(self.torch.cuda.current_stream(self.device).cuda_stream)

    def mark_written(self, out: Any) -> None:
        self.torch.autograd.graph.increment_version(out)


class _CupyCuda(CudaBackend):
    def __init__(self, array: Any) -> None:
        super().__init__(array)
        self.cupy = sys.modules["cupy"]

    def index_of(self, array: Any) -> int:
        return int(array.device.id)

    def new(self, shape: Shape, dtype: np.dtype[Any]) -> Any:
        with self.cupy.cuda.Device(self.index):
            return self.cupy.empty(shape, dtype)

    def convert(self, array: Any, dtype: np.dtype[Any]) -> Any:
        with self.cupy.cuda.Device(self.index):
            return array.astype(dtype)

    def expand(self, array: Any, shape: Shape) -> Any:
        with self.cupy.cuda.Device(self.index):
            return self.cupy.ascontiguousarray(self.cupy.broadcast_to(array, shape))

    def copy(self, out: Any, array: Any) -> None:
        with self.cupy.cuda.Device(self.index):
            out[...] = array

    def stream(self) -> int:
        return int(self.cupy.cuda.get_current_stream(self.index).ptr)


class _JaxCuda(CudaBackend):
    """JAX does not expose its stream, so `DeviceArray.of` and `finish` synchronise.

    Kernels write to memory of JAX, because JAX does not keep the memory of other arrays alive.
    Types of 64 bits are enabled inside the library.
    """

    def __init__(self, array: Any) -> None:
        super().__init__(array)
        (self.device,) = array.devices()

    def index_of(self, array: Any) -> int:
        return int(array.__dlpack_device__()[1])

    def _in_float64(self, function: Callable[[], Any]) -> Any:
        """Compute with known arrays, also inside a function that is being traced."""
        import jax

        scope: Any = jax if hasattr(jax, "enable_x64") else jax.experimental
        with (
            scope.enable_x64(True),
            jax.ensure_compile_time_eval(),
            jax.default_device(self.device),
        ):
            return function()

    def new(self, shape: Shape, dtype: np.dtype[Any]) -> Any:
        return self._in_float64(lambda: sys.modules["jax"].numpy.empty(shape, dtype))

    def convert(self, array: Any, dtype: np.dtype[Any]) -> Any:
        return self._in_float64(lambda: array.astype(dtype))

    def expand(self, array: Any, shape: Shape) -> Any:
        jnp = sys.modules["jax"].numpy
        return self._in_float64(lambda: jnp.array(jnp.broadcast_to(array, shape)))

    def copy(self, out: Any, array: Any) -> None:
        raise TypeError("out: JAX arrays cannot be written to; use the result")

    def finish(self, result: Any) -> Any:
        from fastemd.kernels.cuda import numba_cuda

        jax = sys.modules["jax"]
        numba_cuda.wait(self.index)
        return jax.numpy.asarray(result, jax.dtypes.canonicalize_dtype(result.dtype))


class _NumbaCuda(CudaBackend):
    """Numba's arrays have no arithmetic."""

    def __init__(self, array: Any) -> None:
        from fastemd.kernels.cuda import numba_cuda

        self.numba_cuda = numba_cuda
        super().__init__(array)

    def index_of(self, array: Any) -> int:
        return int(self.numba_cuda.index_of(array))

    def new(self, shape: Shape, dtype: np.dtype[Any]) -> Any:
        return self.numba_cuda.empty(self.index, shape, dtype)

    def convert(self, array: Any, dtype: np.dtype[Any]) -> Any:
        raise TypeError(
            f"Numba's device arrays cannot be converted to {dtype}; pass arrays of one type"
        )

    def expand(self, array: Any, shape: Shape) -> Any:
        raise TypeError(
            f"Numba's device arrays cannot be broadcast to {shape}; pass contiguous arrays whose "
            "batch shapes need no copy to broadcast"
        )

    def copy(self, out: Any, array: Any) -> None:
        self.numba_cuda.assign(self.index, out, array)


# ------------------------------------------------------------------------------------- the table


class Row(NamedTuple):
    """The backends of a library."""

    cpu: Backend | None = None
    cuda: Callable[[Any], CudaBackend] | None = None  # from one of its arrays
    is_on_cuda: Callable[[Any], bool] = is_on_cuda


def _jax_array_is_on_cuda(array: Any) -> bool:
    return _jax_has_cuda() and is_on_cuda(array)  # every array asked takes 14 us


@functools.cache
def _jax_has_cuda() -> bool:
    try:
        return bool(sys.modules["jax"].devices("cuda"))
    except RuntimeError:
        return False


NUMPY = Backend()
# By the top-level module of an array's class, of which some libraries have two.
BACKENDS = {
    "numpy": Row(NUMPY, is_on_cuda=lambda array: False),
    "torch": Row(_Torch(), _TorchCuda, lambda tensor: tensor.is_cuda),
    "cupy": Row(cuda=_CupyCuda),
    "jax": Row(_Jax(), _JaxCuda, _jax_array_is_on_cuda),
    "numba": Row(cuda=_NumbaCuda),
}
ALIASES = {"jaxlib": "jax", "numba_cuda": "numba"}


def backend_of(inputs: Mapping[str, object]) -> Backend:
    """Return the backend of all arguments; what is not an array yet counts as NumPy's."""
    first: Backend | None = None
    for argument, value in inputs.items():
        backend = backend_for(argument, value)
        if first is not None and backend.name != first.name:
            validation.mixed_backends({n: backend_for(n, x).name for n, x in inputs.items()})
        first = first or backend
    return first or NUMPY


def backend_for(argument: str, value: Any) -> Backend:
    """Return the backend of one argument."""
    row = _row(type(value))  # type: ignore[arg-type]  # classes are hashable
    if row.is_on_cuda(value):
        if row.cuda is None:
            why = "it is on a CUDA device, where arrays of PyTorch, CuPy, JAX and Numba are taken"
            validation.not_readable(argument, value, why)
        backend = row.cuda(value)
        backend.name = f"{_root(type(value))} on cuda:{backend.index}"  # type: ignore[arg-type]
        return backend
    return row.cpu or _array_api_backend(argument, value)


@functools.lru_cache
def _row(cls: type) -> Row:
    return BACKENDS.get(_root(cls), Row())


@functools.lru_cache
def _root(cls: type) -> str:
    """Return the name of a class's row; "" if there is none, and "numpy" for what is no array."""
    has_interface = hasattr(cls, "__cuda_array_interface__") or hasattr(cls, "__dlpack__")
    if issubclass(cls, np.ndarray) or not has_interface:
        return "numpy"
    modules = {base.__module__.partition(".")[0] for base in cls.__mro__}
    roots = {ALIASES.get(module, module) for module in modules}
    return next((root for root in BACKENDS if root in roots), "")


def _array_api_backend(argument: str, value: Any) -> Backend:
    if not hasattr(value, "__array_namespace__"):  # there is nothing that takes results
        return _ArrayApi("numpy", NUMPY.wrap)
    try:
        namespace = value.__array_namespace__()
    except Exception as error:
        why = f"its __array_namespace__() raised {type(error).__name__}: {error}"
        validation.not_readable(argument, value, why)
    if not hasattr(namespace, "from_dlpack"):
        why = "its library has no from_dlpack to take the results"
        validation.not_readable(argument, value, why)
    name = getattr(namespace, "__name__", type(value).__module__).partition(".")[0]
    return _ArrayApi(name, namespace.from_dlpack)
