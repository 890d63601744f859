"""The kernels in the programs of JAX, and their derivatives."""

import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from numpy.typing import NDArray

from fastemd import validation
from fastemd.call import Call
from fastemd.jax import xla
from fastemd.losses import LossCall
from fastemd.registry import space_of

Array = NDArray[Any]

# -- derivatives -----------------------------------------------------------------------------------


def values(first: Any, second: Any, operation: str, *constants: Any) -> jax.Array:
    """What an operation finds for every row; `constants` as its function below takes them."""
    first, second = _spread_as(second, first), _spread_as(first, second)
    value: jax.Array = _values_and_grads(first, second, operation, constants)[0]
    return value


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _values_and_grads(
    first: jax.Array, second: jax.Array, operation: str, constants: tuple[Any, ...]
) -> tuple[jax.Array, jax.Array]:
    """That the derivatives are an output makes this differentiable twice."""
    value, grad = _launch(operation, constants, first, second)
    return value, grad


def _forward(first: Any, second: Any, operation: str, constants: Any) -> tuple[Any, Any]:
    first, second = first.value, second.value
    value, grad = _values_and_grads(first, second, operation, constants)
    return (value, grad), (first, second, grad)


def _backward(operation: str, constants: Any, kept: Any, to: Any) -> tuple[Any, Any]:
    first, second, grad = kept
    to_value, to_grad = to
    to_first = jnp.zeros_like(first)
    if not isinstance(to_value, SymbolicZero):
        to_first = to_value[..., None] * grad
    if not isinstance(to_grad, SymbolicZero):
        to_first = to_first + _product(first, second, to_grad, operation, constants)
    return to_first, -to_first if operation == "emd" else None


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _product(
    first: jax.Array, second: jax.Array, v: jax.Array, operation: str, constants: tuple[Any, ...]
) -> jax.Array:
    """Second derivatives times vectors `v`, differentiable in `v`."""
    product: jax.Array
    (product,) = _launch(f"{operation}_product", constants, first, second, v)
    return product


def _product_forward(first: Any, second: Any, v: Any, *rest: Any) -> tuple[Any, Any]:
    operation, (_, rho, *_) = rest
    if (first.perturbed or second.perturbed) and (operation != "emd" or rho not in (1.0, 2.0)):
        validation.no_third_derivative(operation, rho)
    first, second, v = first.value, second.value, v.value
    return _product(first, second, v, *rest), (first, second)


def _product_backward(operation: str, constants: Any, kept: Any, to: Any) -> tuple[Any, Any, Any]:
    return None, None, _product(*kept, to, operation, constants)


_values_and_grads.defvjp(_forward, _backward, symbolic_zeros=True)
_product.defvjp(_product_forward, _product_backward, symbolic_zeros=True)


# -- the kernels in JAX's programs -----------------------------------------------------------------


def _run_emd(arguments: list[Any], results: list[Array], constants: str) -> None:
    number, rho, tolerance = json.loads(constants)
    space = space_of(number)
    names = dict(zip(("p", "q"), arguments, strict=True))
    call = Call(space, rho, tolerance >= 0.0 and tolerance, **names)
    value, grad = results
    call.run("gradient", value, grad)


def _run_emd_product(arguments: list[Any], results: list[Array], constants: str) -> None:
    number, rho, _ = json.loads(constants)
    space = space_of(number)
    call = Call(space, rho, False, **dict(zip(("p", "q", "v"), arguments, strict=True)))
    call.run("hvp", None, results[0])


def _run_loss(arguments: list[Any], results: list[Array], constants: str) -> None:
    _loss("loss", arguments, results, constants)


def _run_loss_product(arguments: list[Any], results: list[Array], constants: str) -> None:
    _loss("loss_product", arguments, results, constants)


def _loss(operation: str, arguments: list[Any], results: list[Array], constants: str) -> None:
    number, rho, tolerance, normalize, cross_entropy, ignore_index = json.loads(constants)
    names = dict(zip(("x", "target", "v"), arguments, strict=False))
    call = LossCall(space_of(number), rho, normalize, cross_entropy, tolerance=tolerance, **names)
    values = call.values_and_derivatives(operation, ignore_index, "none", results[-1])[0]
    if len(results) == 2:
        call.put(values, results[0])


_RUN = {
    "emd": _run_emd,
    "emd_product": _run_emd_product,
    "loss": _run_loss,
    "loss_product": _run_loss_product,
}
HANDLERS = {
    (name, platform): xla.handler(run, on_device=platform == "CUDA")
    for name, run in _RUN.items()
    for platform in ("cpu", "CUDA")
}
KNOWN = xla.version(jax.ffi.include_dir()) in xla.KNOWN
if KNOWN:
    for (_name, _platform), _handler in HANDLERS.items():
        jax.ffi.register_ffi_target(f"fastemd_{_name}", jax.ffi.pycapsule(_handler), _platform)


def _launch(operation: str, constants: tuple[Any, ...], *arguments: Any) -> Any:
    """The results of one of the functions above: maybe a number per row, then rows."""

    def results(kind: Any, like: Any) -> list[Any]:
        rows = kind(like.shape, like.dtype)
        return (
            [rows]
            if operation in ("emd_product", "loss_product")
            else [kind(like.shape[:-1], like.dtype), rows]
        )

    def call_back(*given: Any) -> list[Array]:
        out: list[Array] = results(np.empty, given[0])
        _RUN[operation]([np.asarray(array) for array in given], out, text)
        return out

    def directly(*given: Any) -> Any:
        launch = jax.ffi.ffi_call(f"fastemd_{operation}", kinds, vmap_method="broadcast_all")
        return launch(*given, constants=text)

    def by_host(*given: Any) -> Any:
        return jax.pure_callback(call_back, kinds, *given, vmap_method="broadcast_all")

    kinds, text = results(jax.ShapeDtypeStruct, arguments[0]), json.dumps(constants)
    if not KNOWN:
        out = by_host(*arguments)
    elif only_the_cpu():
        out = directly(*arguments)
    else:
        out = jax.lax.platform_dependent(*arguments, cpu=directly, cuda=directly, default=by_host)
    return [_spread_as(arguments[0], array) for array in out]


@functools.cache
def only_the_cpu() -> bool:
    """Whether JAX has no other device."""
    return bool(jax.default_backend() == "cpu")


def _spread_as(other: Any, array: Any) -> Any:
    """Rows or a number per row, over all axes of a mesh over which the rows `other` are spread.

    JAX sees to that in operations of its own, such as the addition of zeros, which costs nothing
    in a compiled program but does elsewhere: without a mesh it is left out.
    """
    if jax.typeof(other) == jax.core.ShapedArray(other.shape, other.dtype):
        return array
    zeros = jnp.zeros_like(other, array.dtype)
    if array.ndim < other.ndim:
        zeros = zeros.max(-1)
    elif array.ndim > other.ndim:
        zeros = zeros[..., None]
    return array + zeros
