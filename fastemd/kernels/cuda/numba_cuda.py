"""The CUDA target of Numba: the only module that imports it.

Its import loads the bindings of the CUDA driver, so it is delayed until an array on a device is
passed. A successor of numba-cuda would be used here.
"""

import ctypes
import functools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda, types
from numba.core import config

from fastemd.kernels.jitable import announced

SIMULATED = bool(config.ENABLE_CUDASIM)
if not SIMULATED:  # Numba's own target is deprecated
    import numba_cuda  # noqa: F401
    from numba.cuda.core import config as cuda_config

Function = Callable[..., Any]
_CTYPES = {
    types.int32: ctypes.c_int32,
    types.int64: ctypes.c_int64,
    types.float64: ctypes.c_double,
}


def device(function: Function) -> Any:
    """Compile a function of the device, inlined in every kernel that calls it."""
    return function if SIMULATED else cuda.jit(device=True, forceinline=True)(function)


def compiled(function: Function, signature: tuple[Any, ...]) -> Any:
    """Compile a kernel for the types of one signature, which makes launches faster."""
    if SIMULATED:
        return cuda.jit(function)
    with announced():
        return cuda.jit(signature)(function)


_configuring = threading.Lock()


def configure(
    kernel: Any, index: int, n_blocks: int, block: Any, stream: int, shared: int = 0
) -> Any:
    """Return the kernel with a launch configuration, to be called with the kernel's arguments.

    `index` is the current device, `block` the number of threads (in x and y), `stream` a handle,
    and `shared` the number of bytes of shared memory.
    """
    if SIMULATED:  # the simulator's kernels hold one configuration, and it has one stream
        return kernel[n_blocks, block, 0, shared]
    return _launcher(kernel, index, n_blocks, block, stream, shared)


@functools.lru_cache(maxsize=1024)
def _launcher(kernel: Any, index: int, n_blocks: int, block: Any, stream: int, shared: int) -> Any:
    """Cache configured kernels: Numba's cache misses for every new `Stream` object.

    A configuration holds a handle, not a stream, so it stays valid if the handle is used again for
    a new stream of the device.
    """
    external = cuda.external_stream(stream) if stream else 0
    with _configuring:  # the setting is global, and read while Numba configures
        warns = cuda_config.CUDA_LOW_OCCUPANCY_WARNINGS
        cuda_config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # small batches have small grids
        try:
            chosen = kernel[n_blocks, block, external, shared]
        finally:
            cuda_config.CUDA_LOW_OCCUPANCY_WARNINGS = warns
    (compiled_kernel,) = kernel.overloads.values()
    compiled_kernel._prepare_args = _preparation(compiled_kernel)

    def launch(*arguments: Any) -> None:
        """Launch without Numba's dispatch on the types of all arguments."""
        compiled_kernel.launch(
            arguments, chosen.griddim, chosen.blockdim, chosen.stream, chosen.sharedmem
        )

    return launch


@functools.cache
def _preparation(kernel: Any) -> Function:
    """Return a method of a compiled kernel that appends an argument to those of the driver.

    Numba's method, which still appends arrays, asks for the type of every number in every launch.
    This one reduces the time of a call in Python by 30 %. It keeps the last tuples of every kind,
    since sizes and options repeat, and often the addresses; that saves another 10 %.
    """
    prepare = functools.partial(type(kernel)._prepare_args, kernel)
    tuples = [kind for kind in kernel.argument_types if isinstance(kind, types.BaseTuple)]
    converters = {id(kind): _tuple_converter(kind) for kind in tuples}

    def prepare_argument(kind: Any, value: Any, stream: Any, retr: Any, arguments: Any) -> None:
        convert = converters.get(id(kind))
        if convert is None:
            prepare(kind, value, stream, retr, arguments)
        else:
            arguments += convert(value)

    return prepare_argument


def _tuple_converter(kind: Any) -> Function | None:
    """Return the function that converts a tuple of a kind; None if it has arrays."""
    constructors = _converters(kind)
    if constructors is None:
        return None

    @functools.lru_cache(maxsize=64)
    def convert(value: tuple[Any, ...]) -> list[Any]:
        leaves: list[Any] = []
        _collect(value, leaves)
        return [make(leaf) for make, leaf in zip(constructors, leaves, strict=True)]

    return convert


def _converters(kind: Any) -> list[Function] | None:
    """Return the constructors of the numbers of an argument; None if it has arrays."""
    if isinstance(kind, types.BaseTuple):
        parts = [_converters(part) for part in kind]
        return None if None in parts else [convert for part in parts for convert in part or ()]
    if isinstance(kind, types.CPointer):
        return [int]
    return [_CTYPES[kind]] if kind in _CTYPES else None


def _collect(value: tuple[Any, ...], leaves: list[Any]) -> None:
    """Append the numbers of nested tuples."""
    for part in value:
        if isinstance(part, tuple):
            _collect(part, leaves)
        else:
            leaves.append(part)


def on_device(index: int) -> Any:
    """Return the context manager in which the device of this number is the current one.

    Outside of it, Numba compiles, allocates and describes arrays for the first device, in a thread
    without a current one.
    """
    return cuda.gpus[index]


@functools.cache
def n_multiprocessors(index: int) -> int:
    """Return the number of multiprocessors of the current device, which has this number."""
    return 1 if SIMULATED else int(cuda.get_current_device().MULTIPROCESSOR_COUNT)


def upload(array: Any) -> Any:
    """Copy an array to the current device; wait for the copy, since other streams do not."""
    uploaded = cuda.to_device(np.ascontiguousarray(array))
    cuda.synchronize()
    return uploaded


def argument(array: Any) -> Any:
    """Return an array on the device as kernels take it; also a NumPy array without elements."""
    if isinstance(array, np.ndarray):
        interface = {**array.__array_interface__, "strides": array.strides, "version": 2}
    else:
        interface = array.__cuda_array_interface__
    if SIMULATED:
        from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

        return FakeCUDAArray(np.asarray(_HostMemory(array, interface)))
    return cuda.from_cuda_array_interface(interface, sync=False)


def start_of(array: Any) -> Any:
    """Return the address of an array on the device, as kernels take pointers.

    It takes a tenth of the time of `argument`. In the simulator it is the array itself.
    """
    if SIMULATED:
        return argument(array)
    return 0 if isinstance(array, np.ndarray) else array.pointer


class _HostMemory:
    """Memory of the host that the simulator uses as device memory."""

    def __init__(self, array: Any, interface: dict[str, Any]) -> None:
        self.array, self.__array_interface__ = array, {**interface, "version": 3}


def wait(index: int) -> None:
    """Wait until a device has completed all work."""
    with cuda.gpus[index]:
        cuda.synchronize()


def empty(index: int, shape: tuple[int, ...], dtype: Any) -> Any:
    """Allocate an array of Numba's on the device of this number."""
    with cuda.gpus[index]:
        return cuda.device_array(shape, dtype)


def assign(index: int, array: Any, numbers: Any) -> None:
    """Copy an array on the device, or a NumPy array, to an array of Numba's on the device."""
    with cuda.gpus[index]:
        array.copy_to_device(numbers)
        if isinstance(numbers, np.ndarray):
            cuda.synchronize()


def index_of(array: Any) -> int:
    """Return the number of the device on which an array of Numba's is."""
    return int(array.gpu_data.context.device.id)
