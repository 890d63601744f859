"""Compile kernels before the first call: `warm_up`."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from fastemd import validation
from fastemd.call import edge_cost
from fastemd.docstrings import documented
from fastemd.kernels.caching import config
from fastemd.kernels.cpu import compiling, driver
from fastemd.kernels.operations import OPERATIONS
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
    "embed": ["embed"],
    "emd_loss": ["loss"],
    "emd_loss_hessian_diag": ["loss_diagonal"],
}

_COMPILE = """
import json, sys
sys.path[:], keys = json.loads(sys.argv[1])
from fastemd.kernels.cpu import compiling
for key in keys:
    compiling.kernel(*key)
"""


@documented
def warm_up(
    space: GroundSpace,
    *,
    rho: float = 2,
    dtype: Any = "float32",
    functions: str | Sequence[str] = ("emd_value_and_grad", "emd_loss"),
) -> None:
    """Compile what functions need on the CPU, so that their first calls are fast.

    Call it when a server starts, before worker processes are started, or while a container image is
    built. The machine code is cached on disk, where later processes find it.

    Parameters
    ----------
    space : Chain or Tree
        The ground space of the calls.
    {rho}
    dtype : float32, float64 or a sequence of them, optional
        The types of the arrays that will be passed.
    functions : str or sequence of str, optional
        The names of the functions that will be called, in this package, `fastemd.torch` or
        `fastemd.jax`; for ``EMDLoss``, "emd_loss".

    Raises
    ------
    TypeError
        If `space` is not a ground space, or a type is another one.
    ValueError
        If a function has no kernels on the CPU.

    Notes
    -----
    Several kernels are compiled at once, by one process for each of Numba's threads.

    Examples
    --------
    >>> import fastemd
    >>> fastemd.warm_up(fastemd.Chain(10), dtype="float64", functions="emd")
    >>> fastemd.emd([1] + 9 * [0], 9 * [0] + [1], fastemd.Chain(10), rho=2)
    np.float64(9.0)
    """
    cost = edge_cost(rho)
    if not isinstance(space, GroundSpace):
        validation.not_a_space(space)
    names = [functions] if isinstance(functions, str) else list(functions)
    for name in names:
        if name not in FUNCTIONS:
            raise ValueError(f"functions: expected names of {', '.join(FUNCTIONS)}, got {name!r}")
    dtypes = dtype if isinstance(dtype, list | tuple) else [dtype]
    chars = [validation.check_dtype(each).char for each in dtypes]
    keys = []
    for operation in {each: None for name in names for each in FUNCTIONS[name]}:
        kind = OPERATIONS[operation].layout if operation in OPERATIONS else "subtrees"
        layout = space.layout(kind)
        for char in chars:
            keys += driver.keys(operation, layout, cost, char)
    _compile_in_processes([key for key in keys if not compiling.is_cached(*key)])
    for key in keys:
        compiling.kernel(*key)
    driver.prepare_threads()


def _compile_in_processes(keys: list[tuple[Any, ...]]) -> None:
    """Compile kernels in other processes, all but those of this process; ignore their failures."""
    n_processes = min(len(keys), config.NUMBA_NUM_THREADS)
    if n_processes < 2 or getattr(sys, "frozen", False) or not sys.executable:
        return
    environment = {**os.environ}
    if config.CACHE_DIR:
        environment["NUMBA_CACHE_DIR"] = config.CACHE_DIR
    processes = []
    for i in range(1, n_processes):
        argument = json.dumps([sys.path, keys[i::n_processes]])
        with contextlib.suppress(OSError):
            command = [sys.executable, "-c", _COMPILE, argument]
            processes.append(subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL))
    for key in keys[::n_processes]:
        compiling.kernel(*key)
    for process in processes:
        process.wait()
