"""EMD^rho as functions and losses of JAX: differentiable, under ``jit`` and ``vmap``."""

import functools
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike
from numpy.typing import NDArray

from fastemd import validation, xla
from fastemd.call import Call
from fastemd.ground import GroundSpace
from fastemd.losses import LossCall
from fastemd.registry import number_of, space_of

Array = NDArray[Any]

_kept: set[GroundSpace] = set()  # the programs that JAX compiles know them by number only


def emd(
    p: ArrayLike, q: ArrayLike, space: GroundSpace, rho: float, *, validate: bool | float = True
) -> jax.Array:
    """EMD^rho between histograms on a chain or tree, differentiable twice in both.

    Parameters
    ----------
    p, q : array_like, (..., N)
        Histograms over the N bins of `space`: finite, >= 0 and of equal mass. Leading axes
        broadcast. They are computed in their common type, but float16 and bfloat16 in float32 and
        integers in JAX's default float type.
    space : Chain or Tree
        The ground space; it stays in memory until the process ends.
    rho : float
        The power of the flow, >= 1.
    validate : bool or float
        Whether to check the numbers; a float is the relative tolerance between two masses, by
        default the root of the precision of the coarser type given.

    Returns
    -------
    jax.Array, (...)
        The sum over all edges of length times ``|flow|^rho``.

    Raises
    ------
    ValueError
        If shapes do not fit or `rho` is < 1.
    TypeError
        If an argument is of another kind.
    jax.errors.JaxRuntimeError
        When the result is waited for, if a histogram is bad; the message names the row. (Where the
        version of JAX is not known here, another error with this message.)

    Notes
    -----
    The first derivative is `fastemd.emd_grad`, projected onto what conserves the mass; it comes
    with the value, in one pass. The second derivative is `fastemd.emd_hvp`. ``jit``, ``grad``,
    ``vmap`` and ``jacrev`` work in any order; forward mode (``jvp``, ``jacfwd``) does not.
    On the CPU only.

    Examples
    --------
    >>> import jax, fastemd, fastemd.jax
    >>> logits, target = jax.numpy.array([[0, 1, 2], [1, 0, 0]], "float32")
    >>> def loss(logits):
    ...     return fastemd.jax.emd(jax.nn.softmax(logits), target, fastemd.Chain(3), rho=2)
    >>> jax.grad(loss)(logits).round(4)
    Array([-0.2288, -0.1765,  0.4053], dtype=float32)
    """
    p, q = _arrays(space, p=p, q=q)
    dtype = _computing_type(p, q)
    tolerance = validation.check_validate(validate, _mass_tolerance(p, q))
    p, q = jnp.broadcast_arrays(p.astype(dtype), q.astype(dtype))
    constants = validation.check_rho(rho), tolerance
    return _values(p, q, "emd", _number_of(space), *constants)


def emd_loss(
    x: ArrayLike,
    target: ArrayLike,
    space: GroundSpace,
    rho: float = 2,
    *,
    normalize: str | None = "softmax",
    cross_entropy: float = 0.0,
    sample_weight: ArrayLike | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> jax.Array:
    """EMD^rho between the histograms that logits stand for and targets, as a loss to train with.

    Parameters
    ----------
    x : array_like, (..., N)
        Logits, or masses, as `normalize` says. float16 and bfloat16 are computed in float32.
    target : array_like of int, (...), or of float, (..., N)
        Classes or histograms; no gradient flows to it. Leading axes broadcast with those of `x`.
    space : Chain or Tree
        The ground space; it stays in memory until the process ends.
    rho : float
        The power of the flow, >= 1.
    normalize : {"softmax", "l1", None}
        How `x` becomes a histogram.
    cross_entropy : float
        Add this many times the cross entropy.
    sample_weight : array_like, (...), optional
        What every row counts, >= 0 (not checked).
    ignore_index : int, optional
        Rows with this class count nothing.
    reduction : {"mean", "sum", "none"}
        The mean is the weighted sum divided by the sum of the weights of the rows that are not
        ignored, and 0 if that is 0.

    Returns
    -------
    jax.Array
        The loss; (...) if `reduction` is "none". Unlike `fastemd.emd_loss` it comes without its
        gradient: `jax.grad` gives that.

    Raises
    ------
    ValueError
        If shapes or options do not fit.
    TypeError
        If an argument is of another kind.
    jax.errors.JaxRuntimeError
        When the result is waited for, if the numbers are bad; as for `emd`.

    See Also
    --------
    fastemd.emd_loss : The same on arrays; says more about the options and the errors.

    Notes
    -----
    Loss and gradient take one pass. Transforms as for `emd`.

    Examples
    --------
    >>> import jax, fastemd, fastemd.jax
    >>> logits = jax.numpy.array([[0, 1, 2], [1, 0, 0]], "float32")
    >>> labels = jax.numpy.array([0, 1])
    >>> fastemd.jax.emd_loss(logits, labels, fastemd.Chain(3), cross_entropy=1.0).round(4)
    Array(2.8032, dtype=float32)
    """
    validation.check_normalize(normalize)
    validation.check_choice("reduction", reduction, ("mean", "sum", "none"))
    cross_entropy = validation.check_cross_entropy(cross_entropy)
    (x,), target = _arrays(space, x=x), jnp.asarray(target)
    validation.check_target(target.dtype)
    labelled = jnp.issubdtype(target.dtype, jnp.integer)
    if ignore_index is not None:
        validation.check_ignore_index(ignore_index, labelled)
    if labelled:
        validation.check_labels_shape(target.shape, x.shape)
    dtype, tolerance = _computing_type(x, target), _mass_tolerance(x, target)
    rows = jnp.broadcast_shapes(target.shape if labelled else target.shape[:-1], x.shape[:-1])
    x = jnp.broadcast_to(x.astype(dtype), (*rows, space.n_bins))
    if labelled:
        # From here on no class exists; a small type cannot hold that number.
        far = min(jnp.iinfo("int32").max, jnp.iinfo(target.dtype).max)
        target = jnp.broadcast_to(jnp.clip(target, max=far).astype("int32"), rows)
    else:
        validation.check_bins_axis("target", target.shape, space.n_bins)
        target = jnp.broadcast_to(target.astype(dtype), x.shape)
    target = jax.lax.stop_gradient(target)
    constants = validation.check_rho(rho), tolerance, normalize, cross_entropy, ignore_index
    losses = _values(x, target, "loss", _number_of(space), *constants)
    weight = jnp.ones(rows, dtype)
    if sample_weight is not None:
        weight = jnp.asarray(sample_weight, dtype)
        try:
            weight = jnp.broadcast_to(weight, rows)
        except ValueError:
            validation.do_not_broadcast({"sample_weight": weight.shape, "x": rows})
    losses = losses * weight
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if ignore_index is not None:
        weight = jnp.where(target == ignore_index, 0.0, weight)
    total = weight.sum()
    return losses.sum() / jnp.where(total > 0.0, total, 1.0)


def _arrays(space: GroundSpace, **given: ArrayLike) -> list[jax.Array]:
    if not isinstance(space, GroundSpace):
        validation.not_a_space(space)
    arrays = [jnp.asarray(array) for array in given.values()]
    for name, array in zip(given, arrays, strict=True):
        validation.check_bins_axis(name, array.shape, space.n_bins)
    return arrays


def _number_of(space: GroundSpace) -> int:
    number = number_of(space)
    _kept.add(space_of(number))
    return number


def _computing_type(a: jax.Array, b: jax.Array) -> Any:
    common = jnp.promote_types(a.dtype, b.dtype)
    if jnp.issubdtype(common, jnp.complexfloating):
        validation.complex_numbers(common)
    if not jnp.issubdtype(common, jnp.floating):
        return jnp.asarray(0.0).dtype
    return jnp.float32 if common.itemsize < 4 else common


def _mass_tolerance(*arrays: jax.Array) -> float:
    """As `validation.mass_tolerance`, also for types that NumPy does not have."""
    floats = [x.dtype for x in arrays if jnp.issubdtype(x.dtype, jnp.floating)]
    return math.sqrt(max(float(jnp.finfo(x).eps) for x in (*floats, np.float64)))


# -- derivatives -----------------------------------------------------------------------------------


def _values(first: Any, second: Any, operation: str, *constants: Any) -> jax.Array:
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


def _run_emd(arguments: list[Array], results: list[Array], constants: str) -> None:
    number, rho, tolerance = json.loads(constants)
    space = space_of(number)
    names = dict(zip(("p", "q"), arguments, strict=True))
    call = Call(space, rho, tolerance >= 0.0 and tolerance, **names)
    value, grad = results
    call.run("gradient", value, grad)


def _run_emd_product(arguments: list[Array], results: list[Array], constants: str) -> None:
    number, rho, _ = json.loads(constants)
    space = space_of(number)
    call = Call(space, rho, False, **dict(zip(("p", "q", "v"), arguments, strict=True)))
    call.run("hvp", None, results[0])


def _run_loss(arguments: list[Array], results: list[Array], constants: str) -> None:
    results[0][...] = _loss("loss", arguments, results[1], constants)


def _run_loss_product(arguments: list[Array], results: list[Array], constants: str) -> None:
    _loss("loss_product", arguments, results[0], constants)


def _loss(operation: str, arguments: list[Array], out: Array, constants: str) -> Array:
    number, rho, tolerance, normalize, cross_entropy, ignore_index = json.loads(constants)
    names = dict(zip(("x", "target", "v"), arguments, strict=False))
    call = LossCall(space_of(number), rho, normalize, cross_entropy, tolerance=tolerance, **names)
    values: Array = call.values_and_derivatives(operation, ignore_index, "none", out)[0]
    return values


_RUN = {
    "emd": _run_emd,
    "emd_product": _run_emd_product,
    "loss": _run_loss,
    "loss_product": _run_loss_product,
}
_HANDLERS = {name: xla.handler(run) for name, run in _RUN.items()}
_KNOWN = xla.version(jax.ffi.include_dir()) in xla.KNOWN
if _KNOWN:
    for _name, _handler in _HANDLERS.items():
        jax.ffi.register_ffi_target(f"fastemd_{_name}", jax.ffi.pycapsule(_handler), "cpu")


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

    kinds, text = results(jax.ShapeDtypeStruct, arguments[0]), json.dumps(constants)
    if _KNOWN:
        launch = jax.ffi.ffi_call(f"fastemd_{operation}", kinds, vmap_method="broadcast_all")
        out = launch(*arguments, constants=text)
    else:
        out = jax.pure_callback(call_back, kinds, *arguments, vmap_method="broadcast_all")
    return [_spread_as(arguments[0], array) for array in out]


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
