"""Launches by numba-cuda, as far as they need no GPU.

Launches are tested in another process, as Numba finds either CUDA or its simulator when it
is imported.
"""

import tomllib
from pathlib import Path

import numpy as np

from fastemd import backends
from tests.support.device import numba_cuda, run_without_simulator

SCRIPT = Path(__file__).parents[1] / "support" / "launch_kernels.py"

pytestmark = numba_cuda


def test_launches_are_configured_once_without_warning():
    done = run_without_simulator(str(SCRIPT))
    assert done.returncode == 0, done.stderr


class Exporter:
    """An array on a device that treats any stream as a handle, like JAX."""

    array = np.arange(6.0).reshape(2, 3)

    def __dlpack_device__(self):
        return 2, 0

    def __dlpack__(self, stream=None, **keywords):
        assert stream is None or stream > 0, f"no stream has the handle {stream}"
        return self.array.__dlpack__(**keywords)


def test_description_passes_valid_stream_to_dlpack():
    view, array = backends.DeviceArray.of(Exporter()), Exporter.array
    assert (view.shape, view.strides, view.dtype) == (array.shape, array.strides, array.dtype)
    assert view.pointer == array.ctypes.data


COMPILE_WITHOUT_ROW_STACK = """
import numpy
vars(numpy).pop("row_stack", None)
from numba import cuda
cuda.compile_ptx(lambda: None, (), cc=(9, 0))
"""


def test_cuda_extras_exclude_numpy_2_5_while_numba_cuda_fails_with_it():
    """If this fails, numba-cuda no longer needs `numpy.row_stack`: remove the limit."""
    done = run_without_simulator("-c", COMPILE_WITHOUT_ROW_STACK)
    assert done.returncode == 0 or "row_stack" in done.stderr, done.stderr
    project = tomllib.loads(
        (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    )
    extras = project["project"]["optional-dependencies"]
    for name in ("cuda12", "cuda13"):
        assert ("numpy<2.5" in extras[name]) == (done.returncode != 0)
