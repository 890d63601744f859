"""Numba's simulator of CUDA with cooperative threads, which is faster and finds more errors.

Numba starts a Python thread for every thread of a block, and polls them until all wait at the
barrier. Here they are greenlets: one runs at a time, from barrier to barrier, in an order that
changes at every barrier. A missing barrier between two threads changes the results, and a thread
that ends while another one waits raises an error. A shuffle is an exchange between the threads of a
warp, here of two; as all of them wait for it, a missing barrier next to a shuffle is not found.
`min` and `max` drop NaN, like on a device.
"""

import importlib.util
import random
from types import SimpleNamespace

import numpy as np
from greenlet import getcurrent, greenlet
from numba.cuda.simulator import kernel, kernelapi

from fastemd import backends, layout
from fastemd.kernels import edges
from fastemd.kernels.cuda import block, driver, hessian, losses, sweeps


class Thread(greenlet):
    def __init__(self, function, block, point):
        super().__init__(np.errstate(all="ignore")(function))  # a device has no warnings
        self.blockIdx, self.threadIdx = kernelapi.Dim3(*block), kernelapi.Dim3(*point)

        self.shuffled = []

    def syncthreads(self):
        self.parent.switch()

    def shuffle(self, number, partner):
        """Return what the thread at another place of the team passes to the same shuffle."""
        self.shuffled.append(number)
        self.syncthreads()
        return self.team[partner].shuffled[len(self.shuffled) - 1]


class Block(kernel.BlockManager):
    order = random.Random(0)

    def run(self, grid_point, *args):
        points = np.ndindex(*self._block_dim)
        threads = [Thread(self._f, grid_point, point) for point in points]
        for thread in threads:
            row = [x for x in threads if tuple(x.threadIdx)[1:] == tuple(thread.threadIdx)[1:]]
            thread.team = {x.threadIdx.x: x for x in row}
        arguments = args
        while not all(thread.dead for thread in threads):
            if any(thread.dead for thread in threads):
                raise RuntimeError("a thread ended while another one waits at a barrier")
            self.order.shuffle(threads)
            for thread in threads:
                thread.switch(*arguments)
            arguments = ()


def shuffle_xor(a, lanes):
    thread = getcurrent()
    assert lanes < block.WARP
    return thread.shuffle(a, thread.threadIdx.x ^ lanes)


def shuffle_up(a, lanes):
    thread = getcurrent()
    place, lane = thread.threadIdx.x, thread.threadIdx.x % block.WARP
    return thread.shuffle(a, place - lanes if lane >= lanes else place)


def drop_nan():
    """Have `min` and `max` drop NaN in the kernels, also in the edge functions."""
    spec = importlib.util.find_spec(edges.__name__)
    copy = importlib.util.module_from_spec(spec)  # a copy, as the kernels of the CPU propagate NaN
    spec.loader.exec_module(copy)
    for module in (copy, block, hessian, losses, sweeps):
        module.min, module.max = np.fmin, np.fmax
    driver.COSTS = copy.COSTS
    driver.OPERATIONS = {
        name: operation._replace(edge=getattr(copy, operation.edge.__name__))
        for name, operation in driver.OPERATIONS.items()
    }


def install(tensors=False):
    """Replace Numba's simulator, with so few threads that every loop over bins and rows has a tail.

    With `tensors`, torch's tensors on the CPU are treated as tensors on the device.
    """
    kernel.BlockManager = Block
    kernelapi.threading = SimpleNamespace(current_thread=getcurrent)
    driver.block_of = lambda *arguments: (4, 2)
    layout.GROUP = sweeps.GROUP = block.WARP
    driver.FEW_EDGES = 0
    block.shuffle_xor, block.shuffle_up = shuffle_xor, shuffle_up
    driver.PARTS, driver.ROWS_PER_PART = 6, 3
    drop_nan()
    if tensors:
        take_tensors()


def take_tensors():
    """Treat torch's tensors on the CPU as tensors on the device."""
    import torch

    class Backend(backends._TorchCuda):
        def view(self, tensor):
            array = tensor.numpy()
            pointer, writeable = array.ctypes.data, array.flags.writeable
            return backends.DeviceArray(
                tensor, array.shape, array.dtype, pointer, array.strides, writeable
            )

        def empty(self, shape, dtype):
            return self.view(self.new(shape, dtype))

        def stream(self):
            return 0

    def is_tensor(array):
        return isinstance(array, torch.Tensor)

    backends.BACKENDS["torch"] = backends.Row(cuda=Backend, is_on_cuda=is_tensor)
    backends._row.cache_clear()


def take_jax(patch):
    """Treat JAX's arrays on the CPU as arrays on the device, while a monkeypatch lasts."""

    def interface(array):
        assert array.is_ready()
        data, typestr = array.unsafe_buffer_pointer(), np.dtype(array.dtype).str
        return {"shape": array.shape, "typestr": typestr, "data": (data, False)}

    row = backends.Row(cuda=backends._JaxCuda, is_on_cuda=lambda array: True)
    patch.setitem(backends.BACKENDS, "jax", row)
    backends._row.cache_clear()
    patch.setattr(backends, "_interface_of", interface)
