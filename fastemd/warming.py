"""Compile kernels before the first call: `warm_up`."""

import contextlib
import itertools
import json
import logging
import multiprocessing.spawn
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fastemd import validation
from fastemd.call import cuda_driver, edge_cost
from fastemd.kernels.caching import config
from fastemd.kernels.cpu import compiling, driver
from fastemd.kernels.edges import Cost
from fastemd.kernels.operations import OPERATIONS
from fastemd.pair_sums import distance
from fastemd.spaces import GroundSpace

# The operations that each function runs.
FUNCTIONS = {
    "emd": ["gradient"],
    "emd_grad": ["gradient"],
    "emd_value_and_grad": ["gradient"],
    "emd_hessian": ["curvature", "hessian"],
    "emd_hessian_diag": ["hessian_diag"],
    "emd_hvp": ["hvp"],
    "emd_flow": ["flow"],
    "emd_length_grad": ["flow"],
    "embed": ["embed"],
    "pairwise": ["pairs"],
    "neighbors": ["pairs"],
    "emd_loss": ["loss"],
    "emd_loss_hessian_diag": ["loss_diagonal"],
    "emd_loss_hvp": ["loss_product"],
}

_COMPILE = """
import json, sys
sys.path[:], keys = json.loads(sys.argv[1])
from fastemd.kernels.cpu import compiling
for key in keys:
    compiling.kernel(*key)
"""


def warm_up(
    space: GroundSpace,
    *,
    rho: float | Sequence[float] = 2,
    dtype: Any = "float32",
    functions: str | Sequence[str] = ("emd_value_and_grad", "emd_loss"),
    device: int | None = None,
) -> None:
    """Compile the kernels of functions, so that their first calls are fast.

    Call it when a server starts, before worker processes are started, or while a container image is
    built. The machine code is cached on disk, where later processes find it.

    Parameters
    ----------
    space : Chain or Tree
        The ground space of the calls.
    rho : float or sequence of float
        The powers of the flow, each >= 1.
    dtype : float32, float64 or a sequence of them, optional
        The types of the arrays that will be passed.
    functions : str or sequence of str, optional
        The names of the functions that will be called, in this package, `fastemd.torch` or
        `fastemd.jax`; for ``EMDLoss``, "emd_loss". Second derivatives in torch and JAX are
        "emd_hvp" and "emd_loss_hvp". The kernels of "pairwise" and "neighbors" are for arrays of
        any type.
    device : int, optional
        The number of a CUDA device. Then kernels are compiled for its kind, in this process and for
        it alone, as numba-cuda does not cache them on disk, and the ground space is copied there.
        Losses are those with a softmax. Kernels for other normalisations, smoothed labels, weights
        of classes, roots, another class axis, and arrays that are not aligned to 16 bytes are
        compiled when first used.

    Raises
    ------
    TypeError
        If `space` is not a ground space, or another argument is of another kind.
    ValueError
        If a name is not that of a function with kernels, or a power is < 1.
    ImportError
        If there is a `device` but no numba-cuda.
    RuntimeError
        If Numba's compiler is disabled (``NUMBA_DISABLE_JIT``).

    Notes
    -----
    Several kernels are compiled at once, in at most as many processes as Numba has threads. If the
    cache cannot be written to, this process compiles all, and later processes gain nothing. Kernels
    for CUDA have not been compiled on a GPU yet.

    Examples
    --------
    >>> import fastemd
    >>> fastemd.warm_up(fastemd.Chain(10), dtype="float64", functions="emd")
    >>> fastemd.emd([1] + 9 * [0], 9 * [0] + [1], fastemd.Chain(10), rho=2)
    np.float64(9.0)
    """
    if not isinstance(space, GroundSpace):
        validation.not_a_space(space)
    costs = [edge_cost(each) for each in _listed(rho)]
    chars = [validation.check_dtype(each).char for each in _listed(dtype)]
    names = _listed(functions)
    for name in names:
        if name not in FUNCTIONS:
            raise ValueError(f"functions: expected names of {', '.join(FUNCTIONS)}, got {name!r}")
    if device is not None:
        if isinstance(device, bool) or not isinstance(device, int):
            raise TypeError(f"device: expected the number of a CUDA device, got {device!r}")
        names = _on_cuda(names, costs)
    keys: dict[tuple[Any, ...], None] = {}  # in order, each once
    for operation in (each for name in names for each in FUNCTIONS[name]):
        if operation == "pairs":
            layout = space.layout("levels")
            for cost, char in itertools.product(costs, chars):
                keys |= dict.fromkeys(driver.pair_keys(layout, distance(cost.rho).term, char))
            continue
        kind = OPERATIONS[operation].layout if operation in OPERATIONS else "subtrees"
        layout = space.layout(kind)
        for cost, char in itertools.product(costs, chars):
            if device is None:
                keys |= dict.fromkeys(driver.keys(operation, layout, cost, char))
            else:
                cuda_driver().prepare(operation, layout, cost, char, device)
    if device is None:
        _compile(keys)


def _on_cuda(names: list[str], costs: list[Cost]) -> list[str]:
    """Return the functions that compute on a CUDA device, with those that they call."""
    if "neighbors" in names:
        validation.only_on_cpu("nearest neighbours")
    if "pairwise" in names:
        for cost in costs:
            if cost.rho != 2.0:
                validation.only_squares_on_cuda(cost.rho)
    called = {"pairwise": ["emd", "embed"]}
    return [each for name in names for each in called.get(name, [name])]


def _compile(keys: Iterable[tuple[Any, ...]]) -> None:
    """Compile CPU kernels, in this process and in others."""
    with _other_processes([key for key in keys if not compiling.is_cached(*key)]) as own:
        driver.prepare_threads()
        for key in own:
            compiling.kernel(*key)
    for key in keys:
        compiling.kernel(*key)


def _listed(values: Any) -> list[Any]:
    return list(values) if isinstance(values, list | tuple | set) else [values]


@contextlib.contextmanager
def _other_processes(keys: list[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    """Compile kernels in other processes, and wait for them at the end; return the share of this.

    What a process could not compile is missing in the cache.
    """
    executable = multiprocessing.spawn.get_executable()
    alone = not executable or getattr(sys, "frozen", False)  # a bundle is no Python
    n_processes = 1 if alone else max(1, min(len(keys), config.NUMBA_NUM_THREADS))
    processes = []
    with contextlib.ExitStack() as stack:
        for i in range(1, n_processes):
            command = [executable, "-c", _COMPILE, json.dumps([sys.path, keys[i::n_processes]])]
            with contextlib.suppress(OSError):
                processes.append(stack.enter_context(_started(command)))
                stack.callback(processes[-1].kill)
        yield keys[::n_processes]
        for process in processes:
            _, message = process.communicate()
            if process.returncode:
                logging.getLogger("fastemd").debug("warm_up: a process failed: %s", message)


def _started(command: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ}
    if config.CACHE_DIR:
        environment["NUMBA_CACHE_DIR"] = config.CACHE_DIR
    null, pipe = subprocess.DEVNULL, subprocess.PIPE
    return subprocess.Popen(
        command, env=environment, stdin=null, stdout=null, stderr=pipe, text=True
    )
