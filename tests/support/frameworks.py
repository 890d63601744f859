"""Arrays of other libraries, to call fastemd with."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

LIBRARIES = ("torch", "jax", "array_api_strict")
each_library = pytest.mark.parametrize("library", LIBRARIES)


def needed(name):
    """Return the module, or skip the test if it is missing, except on CI."""
    return importlib.import_module(name) if os.environ.get("CI") else pytest.importorskip(name)


class Framework(NamedTuple):
    array: type
    of: Callable[[Any], Any]  # converts a NumPy array

    def holds(self, *results):
        return all(isinstance(result, self.array) for result in results)


def framework(name):
    if name == "torch":
        torch = needed("torch")
        return Framework(torch.Tensor, lambda x: torch.from_numpy(np.array(x)))
    if name == "jax":
        jax = needed("jax")
        jax.config.update("jax_enable_x64", True)
        return Framework(jax.Array, lambda x: jax.numpy.array(x))
    strict = needed(name)
    return Framework(type(strict.zeros(1)), lambda x: strict.asarray(x))


def growth(run, calls=100_000):
    """Return by how many kB the process grows over a number of calls."""
    resource = pytest.importorskip("resource")  # Windows has none
    unit = 1024 if sys.platform == "darwin" else 1
    for _ in range(1000):
        run()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(calls):
        run()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / unit
