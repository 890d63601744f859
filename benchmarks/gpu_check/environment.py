"""Set up the environment of the steps, and print what is installed.

    python -m benchmarks.gpu_check.environment --device cuda

The last line is a summary.
"""

import argparse
import functools
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from benchmarks.gpu_check.runner import ROOT

SHIM = Path(__file__).with_name("shim")
MODULES = (
    "numpy", "numba", "numba_cuda", "llvmlite", "torch", "triton", "jax", "jaxlib", "cupy",
    "cuda.core", "cuda.bindings", "scipy", "pytest", "xdist", "hypothesis",
)  # fmt: skip
DISTRIBUTIONS = {"cuda.core": "cuda-core", "cuda.bindings": "cuda-bindings"}
GPU_FIELDS = "name,driver_version,compute_cap,memory.total,clocks.sm,clocks.max.sm,power.limit"
# Compiling any kernel loads numba-cuda's versions of NumPy's functions.
PROBE = "from numba import cuda, int64; cuda.compile_ptx(lambda x: None, (int64,), cc=(9, 0))"


def cuda_home(environment):
    """Return the folder of the CUDA toolkit, or None."""
    if environment.get("CUDA_HOME"):
        return Path(environment["CUDA_HOME"])
    nvcc = shutil.which("nvcc", path=environment.get("PATH")) or "/usr/local/cuda/bin/nvcc"
    return Path(nvcc).resolve().parents[1] if Path(nvcc).exists() else None


def libnvvm(home):
    """Return the path of libnvvm in a CUDA toolkit, or None."""
    libraries = home and sorted(home.glob("nvvm/lib*/libnvvm.so*"))
    return libraries[0] if libraries else None


def _prepend(environment, name, folder):
    environment[name] = os.pathsep.join(filter(None, [str(folder), environment.get(name)]))


def child_environment(environment, device, cache):
    """Return the variables of the steps; kernels are cached in the folder `cache`."""
    result = dict(environment)
    _prepend(result, "PYTHONPATH", ROOT)
    result["PYTHONUNBUFFERED"] = "1"
    if device == "cpu":
        return result
    result["NUMBA_CACHE_DIR"] = str(cache)
    result["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # several processes share the GPU
    home = cuda_home(result)
    if home is not None:
        result["CUDA_HOME"] = str(home)
        _prepend(result, "PATH", home / "bin")
        if libnvvm(home):
            _prepend(result, "LD_LIBRARY_PATH", libnvvm(home).parent)
    if needs_row_stack(result):
        _prepend(result, "PYTHONPATH", SHIM)
    return result


def needs_row_stack(environment):
    """Return whether numba-cuda fails to compile for lack of ``numpy.row_stack``."""
    if hasattr(np, "row_stack") or find_spec("numba_cuda") is None:
        return False
    command = [sys.executable, "-c", PROBE]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        return False
    return "row_stack" in done.stderr


def version(module):
    """Return the version of an installed module, without importing it."""
    names = [DISTRIBUTIONS[module]] if module in DISTRIBUTIONS else _distributions().get(module)
    try:
        return importlib.metadata.version(names[0]) if names else "not installed"
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


_distributions = functools.cache(importlib.metadata.packages_distributions)


def gpu():
    """Return a line about the first GPU; raise OSError without one."""
    if shutil.which("nvidia-smi") is None:
        raise FileNotFoundError("nvidia-smi is not installed: this machine has no NVIDIA driver")
    command = ["nvidia-smi", f"--query-gpu={GPU_FIELDS}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"nvidia-smi failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout.splitlines()[0]


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check.environment")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    device = parser.parse_args().device
    versions = {"Python": platform.python_version(), **{m: version(m) for m in MODULES}}
    for name, number in versions.items():
        print(f"{name}: {number}")
    summary = [f"NumPy {versions['numpy']}", f"numba {versions['numba']}"]
    if device == "cuda":
        home = cuda_home(os.environ)
        print(f"CUDA_HOME: {home}\nlibnvvm: {libnvvm(home)}")
        restored = getattr(np, "row_stack", None) is np.vstack
        summary = [gpu(), *summary, f"numba-cuda {versions['numba_cuda']}"]
        summary += ["numpy.row_stack restored for numba-cuda"] if restored else []
    print(", ".join([*summary, f"torch {versions['torch']}"]))


if __name__ == "__main__":
    main()
