"""The kernels in the programs of JAX, and their derivatives."""

import functools
import json
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from numpy.typing import NDArray

from fastemd import validation
from fastemd.call import Output, resolve, run
from fastemd.jax import c_api, xla
from fastemd.jax.registry import space_of, weights_of
from fastemd.kernels.edges import power
from fastemd.layout import EdgeLayout
from fastemd.length_gradients import loss_length_gradient
from fastemd.losses import Loss, resolve_loss, run_loss

Array = NDArray[Any]

# -- derivatives -----------------------------------------------------------------------------------


def values(first: Any, second: tuple[Any, ...], operation: str, *constants: Any) -> jax.Array:
    """Return the value of every row.

    Parameters
    ----------
    first : jax.Array, (..., N)
        Rows in which the values are differentiable.
    second : tuple of jax.Array
        The other arrays of the operation: for "emd" histograms, in which the values are
        differentiable, too; for "loss" the target and, optionally, whether a row is read (...,).
    operation : {"emd", "loss"}
        The name of one of the functions below.
    *constants
        What that function reads from its text.
    """
    first, second = _spread_alike(first, second)
    # Without a transform there is nothing to differentiate, and JAX's rules take half of the time.
    run = _values if _are_traced(first, *second) else _launch_values
    value: jax.Array = run(first, second, operation, constants)
    return value


def losses_of_lengths(x: Any, second: tuple[Any, ...], length: Any, *constants: Any) -> jax.Array:
    """Return the loss of every row, differentiable once, by reverse mode, in `x` and `length`.

    The arguments are those of `values` for "loss", and the lengths >= 0, (n_nodes - 1,), that
    replace those of the space.
    """
    x, second = _spread_alike(x, second)
    if _is_spread(x):
        length = length + jnp.zeros_like(x, length.dtype).sum()
    traced = _are_traced(x, *second, length)
    run = _losses_of_lengths if traced else _launch_losses_of_lengths
    losses: jax.Array = run(x, length, second, constants)
    return losses


def _are_traced(*arrays: Any) -> bool:
    return any(isinstance(array, jax.core.Tracer) for array in arrays)


def _spread_alike(first: Any, second: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """Spread all arrays over the axes of a mesh over which one of them is."""
    for array in second:
        first = _spread_as(array, first)
    return first, tuple(_spread_as(first, array) for array in second)


def _differentiable(function: Callable[..., Any], jvp: Callable[..., Any]) -> Any:
    """Return the function with a rule for both modes, which `jvp` gives.

    JAX drops the rules of custom_jvp, but not those of custom_vjp, where it moves what is constant
    out of a loop. So the rule for reverse mode is attached a second time.
    """

    @functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
    def both(first: Any, second: Any, operation: str, constants: Any) -> Any:
        return reverse(first, second, operation, constants)

    @functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
    def reverse(first: Any, second: Any, operation: str, constants: Any) -> Any:
        return function(first, second, operation, constants)

    def forward(first: Any, second: Any, operation: str, constants: Any) -> tuple[Any, Any]:
        return jax.vjp(lambda *at: both(*at, operation, constants), first, second)

    def backward(operation: str, constants: Any, pullback: Any, to: Any) -> Any:
        return pullback(to)

    both.defjvp(jvp, symbolic_zeros=True)
    reverse.defvjp(forward, backward)
    return both


def _launch_values(first: Any, second: Any, operation: str, constants: Any) -> Any:
    return _launch(operation, constants, first, *second)[0]


def _launch_both(first: Any, second: Any, operation: str, constants: Any) -> Any:
    return _launch(operation, constants, first, *second)


def _values_jvp(operation: str, constants: Any, at: Any, tangents: Any) -> tuple[Any, Any]:
    value, grad = _values_and_grads(*at, operation, constants)
    axis = _axis_of(operation, constants)
    return value, (grad * _direction(operation, tangents)).sum(axis)


def _both_jvp(operation: str, constants: Any, at: Any, tangents: Any) -> tuple[Any, Any]:
    value, grad = _values_and_grads(*at, operation, constants)
    v = _direction(operation, tangents)
    along = (grad * v).sum(_axis_of(operation, constants))
    return (value, grad), (along, _product(at, v, operation, constants))


_values = _differentiable(_launch_values, _values_jvp)
_values_and_grads = _differentiable(_launch_both, _both_jvp)


def _axis_of(operation: str, constants: Any) -> int:
    """Return the axis of the bins (< 0)."""
    return constants[-1] if operation.startswith("loss") else -1


def _direction(operation: str, tangents: Any) -> Any:
    """Return the tangent of the rows; emd depends on the difference of its arguments only."""
    first, second = tangents
    if operation != "emd" or isinstance(second[0], SymbolicZero):
        return first
    return -second[0] if isinstance(first, SymbolicZero) else first - second[0]


def _product(at: Any, v: Any, operation: str, constants: Any) -> jax.Array:
    """Return second derivatives times vectors `v`, differentiable in `v`."""
    rho = constants[1]
    if operation == "emd" and rho in (1.0, 2.0):  # its third derivative is 0
        first, second = jax.lax.stop_gradient(at)
    else:
        first, second = _constant(at, operation, rho)

    def multiply(matvec: Any, v: jax.Array) -> Any:
        product = _launch(f"{operation}_product", constants, first, *second, v)[0]
        return _spread_as(v, product)  # outside of jit, no mesh is known of `first` here

    # The only linear function in JAX's public interface that is declared to be its own transpose
    # and works under vmap. Its first argument, the inverse, would be evaluated for derivatives in
    # `first` only, which are excluded above.
    product: jax.Array = jax.lax.custom_linear_solve(lambda v: v, v, multiply, symmetric=True)
    return product


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _constant(arrays: Any, operation: str, rho: float) -> Any:
    return arrays


@_constant.defjvp
def _constant_jvp(operation: str, rho: float, at: Any, tangents: Any) -> NoReturn:
    validation.no_third_derivative(operation, rho)


def _launch_losses_of_lengths(x: Any, length: Any, second: Any, constants: Any) -> Any:
    return _launch("loss_of_lengths", constants, x, *second, length)[0]


_losses_of_lengths = jax.custom_vjp(_launch_losses_of_lengths, nondiff_argnums=(3,))


def _forward_of_lengths(x: Any, length: Any, second: Any, constants: Any) -> tuple[Any, Any]:
    x, length, second = _differentiated((x, length, second))
    losses, grad = _launch("loss_of_lengths", constants, x, *second, length)
    return losses, (x, length, second, losses, grad)


def _backward_of_lengths(constants: Any, saved: Any, to_losses: Any) -> tuple[Any, Any, None]:
    (x, length, second, losses, grad), to_losses = saved, _differentiated(to_losses)
    to_x = jnp.expand_dims(to_losses, _axis_of("loss", constants)) * grad
    # `losses` is an argument so that XLA keeps their computation, which validates the rows.
    arguments = length, x, *second, losses, to_losses
    return to_x, _launch("loss_length_gradient", constants, *arguments)[0], None


_losses_of_lengths.defvjp(_forward_of_lengths, _backward_of_lengths)


@jax.custom_jvp
def _differentiated(arrays: Any) -> Any:
    """Return the arrays that a first derivative depends on, which has no derivatives itself."""
    return arrays


@_differentiated.defjvp
def _differentiated_jvp(at: Any, tangents: Any) -> NoReturn:
    validation.no_second_derivative_in_lengths("length")


# -- the kernels in JAX's programs -----------------------------------------------------------------


def _run_emd(operation: str, arguments: list[Any], results: list[Any], constants: str) -> None:
    number, rho, tolerance = json.loads(constants)
    layout = space_of(number).layout("levels")
    validate = operation == "gradient" and tolerance >= 0.0 and tolerance
    batch = resolve(layout, validate, **dict(zip("pqv", arguments, strict=False)))
    *value, rows = map(Output, results)
    run(operation, layout, batch, power(rho), value[0] if value else None, rows)


def _run_loss(operation: str, arguments: list[Any], results: list[Any], constants: str) -> None:
    number, rho, tolerance, of_classes, ignored, *options = json.loads(constants)
    layout, loss = space_of(number).layout("levels"), Loss(power(rho), *options)
    if operation == "loss_of_lengths":
        operation, (*arguments, length) = "loss", arguments
        layout = _layout_of_lengths(number, length)
    x, target, *others = arguments
    v = others.pop() if operation == "loss_product" else None
    counted = others[0] if others else None
    batch = resolve_loss(
        layout, loss, x, target, counted, ignored, weights_of(of_classes), v=v, tolerance=tolerance
    )
    losses, _ = run_loss(operation, layout, batch, "none", results[-1])
    if len(results) == 2:
        batch.backend.assign(results[0], losses)


def _run_loss_length_gradient(arguments: list[Any], results: list[Any], constants: str) -> None:
    number, rho, _, of_classes, ignored, *options = json.loads(constants)
    layout, loss = _layout_of_lengths(number, arguments[0]), Loss(power(rho), *options)
    _, x, target, *others, _, upstream = arguments
    counted = others[0] if others else None
    arrays = upstream, x, target, counted, weights_of(of_classes)
    results[0][...] = loss_length_gradient(layout, loss, *arrays, ignored=ignored)


def _layout_of_lengths(number: int, length: Array) -> EdgeLayout:
    return space_of(number).layout("full").with_lengths(length)


_RUN: dict[str, xla.Function] = {
    "emd": functools.partial(_run_emd, "gradient"),
    "emd_product": functools.partial(_run_emd, "hvp"),
    "loss": functools.partial(_run_loss, "loss"),
    "loss_product": functools.partial(_run_loss, "loss_product"),
    "loss_of_lengths": functools.partial(_run_loss, "loss_of_lengths"),
    "loss_length_gradient": _run_loss_length_gradient,
}
_ON_HOST = "loss_of_lengths", "loss_length_gradient"  # those that have no handler for CUDA
HANDLERS = {
    (name, platform): xla.handler(run, on_device=platform == "CUDA")
    for name, run in _RUN.items()
    for platform in (("cpu",) if name in _ON_HOST else ("cpu", "CUDA"))
}
KNOWN = c_api.version(jax.ffi.include_dir()) in c_api.KNOWN
if KNOWN:
    for (_name, _platform), _handler in HANDLERS.items():
        jax.ffi.register_ffi_target(f"fastemd_{_name}", jax.ffi.pycapsule(_handler), _platform)


def _launch(operation: str, constants: tuple[Any, ...], *arguments: Any) -> Any:
    """Return the results of one of the functions above: maybe a number per row, then rows.

    The ValueError of an invalid row is raised as such where it is known at once.
    """
    try:
        results = _program(operation, constants, *arguments)
        return jax.block_until_ready(results) if only_the_cpu() else results
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        code, _, message = str(error).partition(": ")
        if code != "INVALID_ARGUMENT":
            raise
    raise ValueError(message)


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _program(operation: str, constants: tuple[Any, ...], *arguments: Any) -> tuple[Any, ...]:
    def results(kind: Any, like: Any) -> list[Any]:
        rows = kind(like.shape, like.dtype)
        if operation in ("emd_product", "loss_product", "loss_length_gradient"):
            return [rows]
        shape = validation.without_axis(like.shape, _axis_of(operation, constants))
        return [kind(shape, like.dtype), rows]

    def call_back(*on_host: Any) -> list[Array]:
        out: list[Array] = results(np.empty, on_host[0])
        _RUN[operation]([np.asarray(array) for array in on_host], out, text)
        return out

    def directly(*traced: Any) -> Any:
        launch = jax.ffi.ffi_call(f"fastemd_{operation}", kinds, vmap_method=vmap_method)
        return launch(*traced, constants=text)

    def by_host(*traced: Any) -> Any:
        return jax.pure_callback(call_back, kinds, *traced, vmap_method=vmap_method)

    kinds, text = results(jax.ShapeDtypeStruct, arguments[0]), json.dumps(constants)
    vmap_method = "sequential" if operation in _ON_HOST else "broadcast_all"
    if not KNOWN:
        out = by_host(*arguments)
    elif only_the_cpu():
        out = directly(*arguments)
    else:
        on_cuda = by_host if operation in _ON_HOST else directly
        out = jax.lax.platform_dependent(*arguments, cpu=directly, cuda=on_cuda, default=by_host)
    return tuple(_spread_as(arguments[0], array) for array in out)


@functools.cache
def only_the_cpu() -> bool:
    """Return whether JAX has no other device."""
    return bool(jax.default_backend() == "cpu")


def _spread_as(other: Any, array: Any) -> Any:
    """Spread rows or a number per row over all axes of a mesh over which the rows `other` are.

    JAX does so in its own operations, such as the addition of zeros, which costs nothing in a
    compiled program but does elsewhere: without a mesh it is left out.
    """
    if not _is_spread(other):
        return array
    zeros = jnp.zeros_like(other, array.dtype)
    if array.ndim < other.ndim:
        zeros = zeros.max(-1)
    elif array.ndim > other.ndim:
        zeros = zeros[..., None]
    return array + zeros


def _is_spread(array: Any) -> bool:
    """Return whether an array is spread over axes of a mesh."""
    return bool(jax.typeof(array) != jax.core.ShapedArray(array.shape, array.dtype))
