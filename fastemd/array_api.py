"""Computation on CUDA devices with the functions of the arrays' library, by the array API."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import array_api_compat

from fastemd import validation


def namespace_of(function: str, array: Any) -> Any:
    """Return the namespace of an array on a CUDA device, or raise if it has no arithmetic."""
    if not array_api_compat.is_array_api_obj(array):
        validation.no_arithmetic(function)
    return array_api_compat.array_namespace(array)


@contextlib.contextmanager
def computing_with(xp: Any, array: Any) -> Iterator[None]:
    """Compute at once, on the array's device, in the types that the functions ask for."""
    with contextlib.ExitStack() as stack:
        if array_api_compat.is_torch_namespace(xp):
            torch = sys.modules["torch"]
            stack.enter_context(torch.autocast(array.device.type, enabled=False))
        elif array_api_compat.is_cupy_namespace(xp):
            stack.enter_context(array.device)
        elif array_api_compat.is_jax_namespace(xp):
            jax = sys.modules["jax"]
            scope = jax if hasattr(jax, "enable_x64") else jax.experimental
            stack.enter_context(scope.enable_x64(True))
            stack.enter_context(jax.default_matmul_precision("highest"))
            stack.enter_context(jax.ensure_compile_time_eval())  # also while a function is traced
        yield
