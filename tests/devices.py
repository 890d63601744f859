"""A stand-in for arrays on a CUDA device, on which Numba's simulator runs the kernels."""

import numpy as np

from fastemd import devices


class DeviceArray:
    """An array of a library that is known by its interface only."""

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


def on_device(value):
    """Arrays on the device, also in tuples and lists."""
    return DeviceArray(np.array(value))


def _make(_):
    return devices.Device(
        0,
        lambda shape, dtype: DeviceArray(np.full(shape, 7, dtype)),
        lambda array, dtype: DeviceArray(array.numpy().astype(dtype)),
        lambda array, shape: DeviceArray(np.array(np.broadcast_to(array.numpy(), shape))),
        lambda array, numbers: array.numpy().__setitem__(..., numbers.numpy()),
        lambda: 0,
    )


devices.LIBRARIES["devices"] = _make
