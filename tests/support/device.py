"""The backend whose arrays the tests compute with: NumPy, Numba's simulator of CUDA, or a GPU.

NUMBA_ENABLE_CUDASIM=1 in the environment selects the simulator. FASTEMD_DEVICE selects a GPU and
the library of its arrays: "torch", "cupy", "jax" or "numba". With both, the simulator treats
torch's tensors on the CPU as tensors on CUDA. Tests pass NumPy arrays to the functions of
`BACKEND`, which move them to the device, synchronise, and return NumPy arrays.
"""

import ctypes
import functools
import inspect
import os
import subprocess
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest

import fastemd
from fastemd import backends, functions
from fastemd.losses import Loss, resolve_loss, run_loss

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
DEVICE = os.environ.get("FASTEMD_DEVICE", "simulator" if SIMULATED else "cpu")
cpu = pytest.mark.skipif(DEVICE != "cpu", reason="CPU only")
simulator = pytest.mark.skipif(DEVICE != "simulator", reason="runs in Numba's simulator of CUDA")
device = pytest.mark.skipif(DEVICE == "cpu", reason="not on the CPU")
numba_cuda = pytest.mark.skipif(
    find_spec("numba_cuda") is None, reason="numba-cuda is not installed"
)
hardware = pytest.mark.skipif(SIMULATED, reason="too slow in Numba's simulator of CUDA")
# Sinkhorn and gradients of lengths are computed with the functions of the arrays' library.
arithmetic = pytest.mark.skipif(DEVICE in ("simulator", "numba"), reason="arrays lack arithmetic")
# Whether arrays that share memory on the host share memory on the device.
SHARES_MEMORY = DEVICE in ("cpu", "simulator", "torch")

# ------------------------------------------------------------------------ arrays of the simulator


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
        raise AssertionError("memory of the device is read on the host")


class DeviceBackend(backends.CudaBackend):
    """The backend of these arrays."""

    def index_of(self, array):
        return 0

    def new(self, shape, dtype):
        return DeviceArray(np.full(shape, np.nan if dtype.kind == "f" else 7, dtype))

    @np.errstate(over="ignore")
    def convert(self, array, dtype):
        return DeviceArray(array.numpy().astype(dtype))

    def expand(self, array, shape):
        return DeviceArray(np.array(np.broadcast_to(array.numpy(), shape), order="C"))

    def copy(self, out, array):
        out.numpy()[...] = array.numpy()


backends.BACKENDS["device"] = backends.Row(cuda=DeviceBackend)

# ----------------------------------------------------------------------------- copies and calls


def _torch():
    import torch

    def upload(array):
        tensor = torch.from_numpy(array)
        return tensor if SIMULATED else tensor.cuda()

    def to_device(array, memories):
        first, last = np.lib.array_utils.byte_bounds(array)
        root = _root(array)
        start, end = np.lib.array_utils.byte_bounds(root)
        steps = [step // array.itemsize for step in array.strides]
        aligned = all(x % array.itemsize == 0 for x in (first - start, *array.strides))
        if not array.size or min(steps, default=0) < 0 or not aligned:
            return upload(np.array(array, order="C"))  # torch has no such views
        if start not in memories:
            copy = upload(_copy_of_memory(start, max(end, last)))
            memories[start] = copy, root  # a reference to root, so that its address stays unique
        memory = memories[start][0].view(getattr(torch, array.dtype.name))
        return memory.as_strided(array.shape, steps, (first - start) // array.itemsize)

    return to_device, lambda tensor: tensor.cpu().numpy()


def _root(array):
    """Return the array whose memory an array is a view of."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _copy_of_memory(start, end):
    """Return a copy of the bytes at these addresses, with padding to whole float64."""
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

    def to_device(array, _):
        return cuda.to_device(np.array(array, order="C"))

    return to_device, lambda x: x.copy_to_host()


COPIES = {
    "simulator": lambda: (lambda x, _: DeviceArray(x), DeviceArray.numpy),
    "torch": _torch,
    "cupy": _cupy,
    "jax": _jax,
    "numba": _numba,
}
_to_device, _to_host = COPIES[DEVICE]() if DEVICE != "cpu" else (None, None)


def on_device(value, memories=None):
    """Return an array on the device, in the simulator one of the same memory, or None for None.

    Calls with the same dictionary `memories` copy memory that arrays share once, for torch.
    """
    if value is None:
        return None
    array = np.asarray(value)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype == np.longdouble and DEVICE != "simulator":  # no device has long doubles
        with np.errstate(all="ignore"):
            array = array.astype(np.float64)
    return _to_device(array, {} if memories is None else memories)


def on_host(value):
    return _to_host(value)


def through(function):
    """Return the function for NumPy arrays that computes on the device."""
    signature = inspect.signature(function)
    arrays = ("p", "q", "v", "cost", "x", "target", "sample_weight", "class_weight", "upstream")

    @functools.wraps(function)
    def call(*args, **keywords):
        bound = signature.bind(*args, **keywords)
        arguments, memories = bound.arguments, {}
        for name in arrays:
            if name in arguments and not isinstance(arguments[name], fastemd.Chain | fastemd.Tree):
                arguments[name] = on_device(arguments[name], memories)
        out = arguments.get("out")
        buffers = () if out is None else tuple(out) if isinstance(out, tuple | list) else (out,)
        if buffers:
            copies = [on_device(buffer, memories) for buffer in buffers]
            arguments["out"] = copies[0] if isinstance(out, np.ndarray) else type(out)(copies)
        if "validate" in signature.parameters and arguments.get("validate") is None:
            arguments["validate"] = True
        result = function(*bound.args, **bound.kwargs)
        fastemd.synchronize()
        if not buffers:
            return _map(lambda array: on_host(array)[()], result)
        if DEVICE != "simulator":
            for buffer, copy in zip(buffers, copies, strict=True):
                buffer[...] = on_host(copy)
        return buffers if isinstance(result, tuple) else buffers[0]

    return call


def _map(function, result):
    if not isinstance(result, tuple):
        return function(result)
    values = map(function, result)
    return type(result)(*values) if hasattr(result, "_fields") else tuple(values)


def emd_loss_hvp(
    x, target, v, space, rho=2, *, normalize="softmax", cross_entropy=0.0,
    sample_weight=None, class_weight=None, label_smoothing=0.0, root=False, ignore_index=None,
    reduction="mean", axis=-1,
):  # fmt: skip
    """Return the Hessian of the loss times v, which only the frameworks offer."""
    loss = Loss.checked(rho, normalize, cross_entropy, label_smoothing, root, axis)
    batch = resolve_loss(space, loss, x, target, sample_weight, ignore_index, class_weight, v=v)
    _, product = run_loss("loss_product", space.layout("levels"), batch, reduction)
    return batch.backend.wrap(product)


FUNCTIONS = (
    *(getattr(fastemd, name) for name in functions.__all__),
    *(fastemd.emd_loss, fastemd.emd_loss_hessian_diag, emd_loss_hvp, fastemd.sinkhorn),
)
BACKEND = SimpleNamespace(
    **{
        function.__name__: function if DEVICE == "cpu" else through(function)
        for function in FUNCTIONS
    }
)


# ------------------------------------------------------------------------------- other processes


def run_without_simulator(*command):
    """Run Python in a process where Numba finds its CUDA target, if that is installed."""
    environment = {k: v for k, v in os.environ.items() if k != "NUMBA_ENABLE_CUDASIM"}
    command = [sys.executable, *command]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
