"""The CUDA target of Numba: the only file that imports it.

Importing this loads the bindings of the CUDA driver, so nobody does before there is an array on a
device. A successor of numba-cuda would take its place here.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import cuda
from numba.core import config

SIMULATED = bool(config.ENABLE_CUDASIM)
if not SIMULATED:  # Numba's own target is not kept up
    import numba_cuda  # noqa: F401

Function = Callable[..., Any]


def device(function: Function) -> Any:
    """A function of the device, part of every kernel that calls it; in the simulator itself."""
    return function if SIMULATED else cuda.jit(device=True, forceinline=True)(function)


def view(function: Function) -> Any:
    """The same for one that returns a part of an array, which Numba must inline itself."""
    return function if SIMULATED else cuda.jit(device=True, inline="always")(function)


def compiled(function: Function, signature: tuple[Any, ...]) -> Any:
    """A kernel for the types of a signature only, which makes it quicker to launch."""
    return cuda.jit(function) if SIMULATED else cuda.jit(signature)(function)


def on_device(index: int) -> Any:
    """The context in which the device of this number is the current one."""
    return cuda.gpus[index]


def upload(array: Any) -> Any:
    """A copy in the current device's memory."""
    return cuda.to_device(np.ascontiguousarray(array))


def argument(array: Any) -> Any:
    """An array on the device, described by a NumPy array, as kernels take it."""
    if SIMULATED:
        from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

        return FakeCUDAArray(array)
    return cuda.from_cuda_array_interface(
        {**array.__array_interface__, "strides": array.strides, "version": 2}, sync=False
    )


def stream_of(handle: int) -> Any:
    """The stream of a handle of the CUDA runtime."""
    return cuda.external_stream(handle) if handle and not SIMULATED else 0


def wait(index: int) -> None:
    """Until the device of this number has done all that it was told to."""
    with cuda.gpus[index]:
        cuda.synchronize()


def empty(shape: tuple[int, ...], dtype: Any) -> Any:
    """A new array of Numba's."""
    return cuda.device_array(shape, dtype)


def index_of(array: Any) -> int:
    """The number of the device on which an array of Numba's is."""
    return int(array.gpu_data.context.device.id)
