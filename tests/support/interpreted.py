"""Have the library run its compiled CUDA kernels on the host, see `tests.support.ptx`.

`install` replaces what needs a device. Afterwards the public functions compute on `DeviceArray`s
of `on_device`, whose memory is that of the host. Kernels are compiled by numba-cuda, and launched
with the arguments that numba-cuda passes to the CUDA driver.
"""

import contextlib
import ctypes
from types import SimpleNamespace

import numpy as np

from tests.support import ptx, threads
from tests.support.device import DeviceArray, DeviceBackend

CC = (9, 0)
ALIGNMENT = 256  # of what the CUDA driver allocates


class Device:
    """The replacement of a device, and the options of all launches."""

    def __init__(self):
        self.memory, self.n_multiprocessors, self.offset = threads.Memory(), 1, 0
        self.observer, self.last_blocks = threads.Races, None  # of every launch; None: all blocks
        self.launches = []  # name of the kernel, grid, block, bytes of shared memory, observer

    def copy(self, array):
        """Return a NumPy array that the interpreter knows.

        It starts like memory of a device, or `offset` bytes later.
        """
        array = np.asarray(array)
        first, last = np.lib.array_utils.byte_bounds(array)
        memory = np.empty(last - first + ALIGNMENT + self.offset, np.uint8)
        start = -memory.ctypes.data % ALIGNMENT + self.offset + array.ctypes.data - first
        copy = np.ndarray(array.shape, array.dtype, memory.data, start, array.strides)
        copy[...] = array
        self.memory.add(copy)
        return copy

    def on_device(self, array):
        """Return a copy of an array on the device, with the same strides."""
        return DeviceArray(self.copy(array))


def install():
    """Replace what needs a device; return the `Device`."""
    from numba import cuda
    from numba.cuda import api, dispatcher
    from numba.cuda.cudadrv import devices
    from numba.cuda.cudadrv import driver as bindings

    from fastemd.kernels.cuda import driver, numba_cuda

    device = Device()

    class Kernel:
        """A kernel that gets what numba-cuda passes to the driver."""

        def __init__(self, function, signature):
            self.name, self.argument_types, self.extensions = function.__qualname__, signature, ()
            self.kernel = ptx.Kernel(cuda.compile_ptx(function, signature, cc=CC)[0])

        def launch(self, arguments, griddim, blockdim, stream, sharedmem):
            passed = []
            for kind, argument in zip(self.argument_types, arguments, strict=True):
                self._prepare_args(kind, argument, stream, [], passed)
            for kind, value in zip(self.kernel.parameters, passed, strict=True):
                if not isinstance(value, int) and 8 * ctypes.sizeof(value) != int(kind[1:]):
                    raise threads.KernelError(f"{value} passed as {kind}")
            passed = [getattr(value, "value", value) for value in passed]
            seed, observer = len(device.launches), device.observer()
            device.launches.append((self.name, griddim, blockdim, sharedmem, observer))
            first = 0 if device.last_blocks is None else griddim[0] - device.last_blocks
            threads.launch(
                self.kernel, griddim, blockdim, passed, device.memory, sharedmem, seed, observer,
                first,
            )  # fmt: skip

        _prepare_args = dispatcher._Kernel._prepare_args

    def compiled(function, signature):
        kernel = cuda.jit(function)
        kernel.overloads[signature] = Kernel(function, signature)
        return kernel

    def upload(array):
        copy = device.copy(np.ascontiguousarray(array))
        return cuda.from_cuda_array_interface({**copy.__array_interface__, "version": 2}, copy)

    def copy_to_host(to, array, size, stream=0):
        ctypes.memmove(to.ctypes.data, int(array.__cuda_array_interface__["data"][0]), size)

    def assign(index, array, numbers):
        address = array.__cuda_array_interface__["data"][0]
        ctypes.memmove(int(address), numbers.ctypes.data, numbers.nbytes)

    def registered(method):
        return lambda *args: device.on_device(method(*args).numpy())

    dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=CC)
    devices._runtime.ensure_context = contextlib.nullcontext
    devices.get_context = SimpleNamespace
    api.current_context = SimpleNamespace
    bindings.device_to_host = copy_to_host
    numba_cuda.wait, numba_cuda.assign = (lambda index: None), assign
    driver.compiled, driver.n_multiprocessors = compiled, lambda index: device.n_multiprocessors
    for module in (numba_cuda, driver):
        module.on_device, module.upload = lambda index: contextlib.nullcontext(), upload
    for name in ("new", "convert", "expand"):
        setattr(DeviceBackend, name, registered(getattr(DeviceBackend, name)))
    return device
