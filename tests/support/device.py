"""Where the tests compute: on the CPU, in Numba's simulator of CUDA, or on a GPU.

With NUMBA_ENABLE_CUDASIM=1 in the environment it is the simulator. With FASTEMD_DEVICE it is a GPU,
and it says whose arrays are used: "torch", "cupy", "jax" or "numba". With both, the simulator takes
torch's tensors on the CPU for tensors on CUDA. Tests know NumPy arrays only. Off the CPU, `install`
has the functions of fastemd take them to the device, wait, and bring the results back.
"""

import ctypes
import functools
import inspect
import os
from types import SimpleNamespace

import numpy as np
import pytest

import fastemd

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
DEVICE = os.environ.get("FASTEMD_DEVICE", "simulator" if SIMULATED else "cpu")
cpu = pytest.mark.skipif(DEVICE != "cpu", reason="about the CPU")
simulator = pytest.mark.skipif(DEVICE != "simulator", reason="runs in Numba's simulator of CUDA")
device = pytest.mark.skipif(DEVICE == "cpu", reason="about devices")
hardware = pytest.mark.skipif(SIMULATED, reason="takes too long in Numba's simulator of CUDA")
# Where arrays that share memory on the host share memory on the device.
SHARES_MEMORY = DEVICE in ("cpu", "simulator", "torch")

# ------------------------------------------------------------------------------- the simulator's


class DeviceArray:
    """An array of a backend that is known by its interface only."""

    __module__ = "device"  # backends are found by the top-level module of their class

    def __init__(self, array):
        self._array = array
        self.dtype, self.shape = array.dtype, array.shape

    @property
    def __cuda_array_interface__(self):
        return {**self._array.__array_interface__, "strides": self._array.strides}

    def numpy(self):
        return self._array

    def __array__(self, *args, **keywords):
        raise AssertionError("somebody reads what is on the device")


# ------------------------------------------------------------------------------ there and back


def _torch():
    import torch

    def upload(array):
        tensor = torch.from_numpy(array)
        return tensor if SIMULATED else tensor.cuda()

    def there(array, memories):
        first, last = np.lib.array_utils.byte_bounds(array)
        root = _root(array)
        start, end = np.lib.array_utils.byte_bounds(root)
        steps = [step // array.itemsize for step in array.strides]
        aligned = all(x % array.itemsize == 0 for x in (first - start, *array.strides))
        if not array.size or min(steps, default=0) < 0 or not aligned:
            return upload(np.array(array, order="C"))  # torch has no such views
        if start not in memories:
            copy = upload(_copy_of_memory(start, max(end, last)))
            memories[start] = copy, root  # as long as it lives, its address is its own
        memory = memories[start][0].view(getattr(torch, array.dtype.name))
        return memory.as_strided(array.shape, steps, (first - start) // array.itemsize)

    return there, lambda tensor: tensor.cpu().numpy()


def _root(array):
    """The array whose memory an array is a view of."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _copy_of_memory(start, end):
    """A copy of the bytes at these addresses, with padding to whole float64."""
    size = end - start
    result = np.zeros(-(-size // 8) * 8, np.uint8)
    result[:size] = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(start))
    return result


def _cupy():
    import cupy

    return lambda x, _: cupy.asarray(x), cupy.asnumpy


def _jax():
    import jax

    jax.config.update("jax_enable_x64", True)
    gpu = jax.devices("cuda")[0]
    return lambda x, _: jax.device_put(x, gpu), np.asarray


def _numba():
    from numba import cuda

    def there(array, _):
        return cuda.to_device(np.array(array, order="C"))

    return there, lambda x: x.copy_to_host()


TRIPS = {
    "simulator": lambda: (lambda x, _: DeviceArray(x), DeviceArray.numpy),
    "torch": _torch,
    "cupy": _cupy,
    "jax": _jax,
    "numba": _numba,
}
_there, _back = TRIPS[DEVICE]() if DEVICE != "cpu" else (None, None)


def on_device(value, memories=None):
    """An array on the device, which in the simulator is of the same memory; None stays.

    Calls with the same dictionary `memories` copy memory that arrays share once, for torch.
    """
    if value is None:
        return None
    array = np.asarray(value)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype == np.longdouble and DEVICE != "simulator":  # no library has it on a device
        with np.errstate(all="ignore"):
            array = array.astype(np.float64)
    return _there(array, {} if memories is None else memories)


def on_host(value):
    return _back(value)


def through(function):
    """The function on arrays on the device, for NumPy arrays."""
    parameters = inspect.signature(function).parameters
    arrays = ("p", "q", "v", "cost", "x", "target", "sample_weight")

    @functools.wraps(function)
    def call(*args, **keywords):
        bound = inspect.signature(function).bind(*args, **keywords)
        given, memories = bound.arguments, {}
        for name in arrays:
            if name in given and not isinstance(given[name], fastemd.Chain | fastemd.Tree):
                given[name] = on_device(given[name], memories)
        out = given.get("out")
        buffers = () if out is None else tuple(out) if isinstance(out, tuple | list) else (out,)
        if buffers:
            made = [on_device(buffer, memories) for buffer in buffers]
            given["out"] = made[0] if isinstance(out, np.ndarray) else type(out)(made)
        if "validate" in parameters and given.get("validate") is None:
            given["validate"] = True
        result = function(*bound.args, **bound.kwargs)
        fastemd.synchronize()
        if not buffers:
            return _all(lambda array: on_host(array)[()], result)
        if DEVICE != "simulator":
            for buffer, array in zip(buffers, made, strict=True):
                buffer[...] = on_host(array)
        return buffers if isinstance(result, tuple) else buffers[0]

    return call


def _all(function, result):
    if not isinstance(result, tuple):
        return function(result)
    values = map(function, result)
    return type(result)(*values) if hasattr(result, "_fields") else tuple(values)


FUNCTIONS = (
    "emd", "emd_grad", "emd_value_and_grad", "emd_hessian", "emd_hessian_diag", "emd_hvp",
    "emd_flow", "embed", "emd_loss", "emd_loss_hessian_diag",
)  # fmt: skip


plain = SimpleNamespace(**{name: getattr(fastemd, name) for name in FUNCTIONS})


def install():
    """Have the functions of fastemd compute on the device; `plain` has them as they are."""
    for name in FUNCTIONS:
        setattr(fastemd, name, through(getattr(plain, name)))
    if SIMULATED:
        from tests.support import simulator

        simulator.install()
        if DEVICE == "torch":
            simulator.take_tensors()
