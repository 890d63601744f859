"""Arrays on a CUDA device.

They are described by NumPy arrays of their shape, strides and address, which nobody may read or
write, so that what is to be found out about shapes and broadcasting is found out in one way. Memory
comes from the caller's library, on the stream that is its current one.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Device:
    """What a library can do on the device where its array is."""

    index: int
    empty: Callable[[Shape, np.dtype[Any]], Any]
    cast: Callable[[Any, np.dtype[Any]], Any]  # an array to a type
    spread: Callable[[Any, Shape], Any]  # an array broadcast to a shape, contiguous
    assign: Callable[[Any, Any], object]  # to an array the numbers of another one
    product: Callable[[Any, Any], Any] | None  # of two matrices that `empty` made, in their type
    stream: Callable[[], int]  # the handle of its current stream, 0 for the default one
    finish: Callable[[Any], Any] = lambda result: result  # what the user gets of `empty`'s


def description(value: Any) -> Array:
    """The NumPy array that describes one on a device, which is computed if it is JAX's."""
    if hasattr(value, "block_until_ready"):  # the kernels run on another stream than JAX
        value.block_until_ready()
    if hasattr(value, "__cuda_array_interface__"):
        interface = value.__cuda_array_interface__
    else:
        interface = _interface_of(value)
    return np.asarray(_Described(interface))


class _Described:
    def __init__(self, interface: dict[str, Any]) -> None:
        wanted = {key: interface[key] for key in ("shape", "typestr", "data")}
        self.__array_interface__ = {**wanted, "strides": interface.get("strides"), "version": 3}


def _interface_of(value: Any) -> dict[str, Any]:
    """Of an array that has DLPack only."""
    from cuda.core.utils import StridedMemoryView  # numba-cuda brings it

    # 0 is handed on as None, the default stream; JAX takes -1 for the handle of a stream.
    view = StridedMemoryView.from_dlpack(value, stream_ptr=0)
    strides = None
    if view.strides is not None:
        strides = tuple(step * view.dtype.itemsize for step in view.strides)
    return {
        "shape": tuple(view.shape),
        "typestr": view.dtype.str,
        "data": (view.ptr, view.readonly),
        "strides": strides,
    }


def is_on_device(value: Any) -> bool:
    """Whether an array that is no NumPy array is on a CUDA device."""
    try:
        if hasattr(value, "__cuda_array_interface__"):
            return True
        return int(value.__dlpack_device__()[0]) in (2, 13)  # kDLCUDA, kDLCUDAManaged
    except Exception:  # each library has its own for what is no array any more, or not yet
        return False


def device_of(value: Any) -> Device | None:
    """None if it is of a library that is not known here."""
    roots = {base.__module__.partition(".")[0] for base in type(value).__mro__}
    for root, make in LIBRARIES.items():
        if root in roots:
            return make(value)
    return None


def _torch(value: Any) -> Device:
    torch = sys.modules["torch"]
    device = value.device

    def product(left: Any, right: Any) -> Any:
        with torch.autocast(device.type, enabled=False):
            return torch.matmul(left, right)

    return Device(
        device.index,
        lambda shape, dtype: torch.empty(shape, dtype=getattr(torch, dtype.name), device=device),
        lambda array, dtype: array.to(getattr(torch, dtype.name)),
        lambda array, shape: array.expand(shape).contiguous(),
        lambda array, numbers: array.copy_(numbers),
        product,
        lambda: int(torch.cuda.current_stream(device).cuda_stream),
    )


def _cupy(value: Any) -> Device:
    cupy = sys.modules["cupy"]
    index = value.device.id

    def there(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            with cupy.cuda.Device(index):
                return function(*args)

        return call

    return Device(
        index,
        there(cupy.empty),
        there(lambda array, dtype: array.astype(dtype)),
        there(lambda array, shape: cupy.ascontiguousarray(cupy.broadcast_to(array, shape))),
        there(lambda array, numbers: array.__setitem__(..., numbers)),
        there(cupy.matmul),
        lambda: int(cupy.cuda.get_current_stream(index).ptr),
    )


def _numba(value: Any) -> Device:
    """Numba's own arrays are in the current context; they know no arithmetic."""
    from fastemd import target

    index = target.index_of(value)

    def refuse(array: Any, wanted: Any) -> Any:
        raise TypeError(
            f"Numba's device arrays cannot be brought to {wanted}; give arrays of one type, whose "
            "batch shapes need no copy to broadcast"
        )

    return Device(
        index,
        functools.partial(target.empty, index),
        refuse,
        refuse,
        functools.partial(target.assign, index),
        None,
        lambda: 0,
    )


def _jax(value: Any) -> Device:
    """JAX does not expose its stream, so `description` waits for its arrays, and `finish` for ours.

    Kernels write to memory of JAX's, because arrays of others that JAX takes do not keep their
    memory alive. Arrays inside may be of float64 where the user has not enabled that.
    """
    import jax  # is there, the array brought it
    import jax.numpy as jnp

    from fastemd import target

    index = int(value.__dlpack_device__()[1])
    (place,) = value.devices()
    scope: Any = jax if hasattr(jax, "enable_x64") else jax.experimental
    products: list[Any] = []  # the last one; a kernel may read it until the next wait

    def in_float64(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            # Of arrays that are known, also inside a function that is being traced.
            with scope.enable_x64(True), jax.ensure_compile_time_eval():
                return function(*args)

        return call

    def empty(shape: Shape, dtype: np.dtype[Any]) -> Any:
        with jax.default_device(place):
            return jnp.empty(shape, dtype)

    def refuse_out(array: Any, numbers: Any) -> Any:
        raise TypeError("out: JAX arrays cannot be written to")

    def finish(result: Any) -> Any:
        target.wait(index)
        return jnp.asarray(result, jax.dtypes.canonicalize_dtype(result.dtype))

    def product(left: Any, right: Any) -> Any:
        target.wait(index)
        products[:] = [jnp.matmul(left, right, precision="highest")]
        return products[0]

    return Device(
        index,
        in_float64(empty),
        in_float64(lambda array, dtype: array.astype(dtype)),
        in_float64(lambda array, shape: jnp.array(jnp.broadcast_to(array, shape))),
        refuse_out,
        in_float64(product),
        lambda: 0,
        finish,
    )


# By the module that the class of an array comes from.
LIBRARIES: dict[str, Callable[[Any], Device]] = {
    "torch": _torch,
    "cupy": _cupy,
    "jax": _jax,
    "jaxlib": _jax,
    "numba": _numba,
    "numba_cuda": _numba,
}
