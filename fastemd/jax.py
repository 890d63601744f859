"""EMD^rho as functions of JAX: differentiable, under ``jit`` and ``vmap``."""

import functools
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
        If shapes do not fit or `rho` is < 1; or, when the result is waited for, if a histogram is
        bad: the message names the row.
    TypeError
        If an argument is of another kind.

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
    if not isinstance(space, GroundSpace):
        validation.not_a_space(space)
    p, q = jnp.asarray(p), jnp.asarray(q)
    for name, array in (("p", p), ("q", q)):
        validation.check_bins_axis(name, array.shape, space.n_bins)
    dtype = _computing_type(p.dtype, q.dtype)
    if validate is True:
        types = [x for x in (p.dtype, q.dtype, np.float64) if jnp.issubdtype(x, jnp.floating)]
        validate = math.sqrt(max(float(jnp.finfo(x).eps) for x in types))
    tolerance = validation.check_validate(validate)
    p, q = jnp.broadcast_arrays(p.astype(dtype), q.astype(dtype))
    _kept.add(space)
    result: jax.Array = _emd(p, q, number_of(space), validation.check_rho(rho), tolerance)[0]
    return result


def _computing_type(a: Any, b: Any) -> Any:
    common = jnp.promote_types(a, b)
    if not jnp.issubdtype(common, jnp.floating):
        return jnp.asarray(0.0).dtype
    return jnp.float32 if common.itemsize < 4 else common


# -- derivatives -----------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _emd(
    p: jax.Array, q: jax.Array, number: int, rho: float, tolerance: float
) -> tuple[jax.Array, jax.Array]:
    """Values and gradients. That the gradients are an output makes it differentiable twice."""
    value, grad = _launch(_run_emd, f"{number} {rho!r} {tolerance!r}", p, q)
    return value, grad


def _emd_forward(p: Any, q: Any, *constants: Any) -> tuple[Any, Any]:
    p, q = p.value, q.value
    value, grad = _emd(p, q, *constants)
    return (value, grad), (p, q, grad)


def _emd_backward(number: int, rho: float, _: float, kept: Any, to: Any) -> tuple[Any, Any]:
    p, q, grad = kept
    to_value, to_grad = to
    to_p = jnp.zeros_like(p)
    if not isinstance(to_value, SymbolicZero):
        to_p = to_value[..., None] * grad
    if not isinstance(to_grad, SymbolicZero):
        to_p = to_p + _product(p, q, to_grad, number, rho)
    return to_p, -to_p


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _product(p: jax.Array, q: jax.Array, v: jax.Array, number: int, rho: float) -> jax.Array:
    """Hessians times vectors `v`, differentiable in `v`."""
    product: jax.Array
    (product,) = _launch(_run_product, f"{number} {rho!r}", p, q, v)
    return product


def _product_forward(p: Any, q: Any, v: Any, *constants: Any) -> tuple[Any, Any]:
    if (p.perturbed or q.perturbed) and constants[1] not in (1.0, 2.0):
        validation.no_third_derivative(constants[1])
    p, q, v = p.value, q.value, v.value
    return _product(p, q, v, *constants), (p, q)


def _product_backward(number: int, rho: float, kept: Any, to: Any) -> tuple[Any, Any, Any]:
    p, q = kept
    return jnp.zeros_like(p), jnp.zeros_like(q), _product(p, q, to, number, rho)


_emd.defvjp(_emd_forward, _emd_backward, symbolic_zeros=True)
_product.defvjp(_product_forward, _product_backward, symbolic_zeros=True)


# -- the kernels in JAX's programs -----------------------------------------------------------------


def _run_emd(arguments: list[Array], results: list[Array], constants: str) -> None:
    number, rho, tolerance = constants.split()
    p, q = arguments
    space = space_of(int(number))
    call = Call(space, float(rho), float(tolerance) >= 0.0 and float(tolerance), p=p, q=q)
    value, grad = results
    call.run("gradient", space.plan, value, grad)


def _run_product(arguments: list[Array], results: list[Array], constants: str) -> None:
    number, rho = constants.split()
    p, q, v = arguments
    space = space_of(int(number))
    call = Call(space, float(rho), False, p=p, q=q, v=v)
    call.run("hvp", space.plan, None, results[0])


_HANDLERS = {run: xla.handler(run) for run in (_run_emd, _run_product)}
_KNOWN = xla.version(jax.ffi.include_dir()) in xla.KNOWN
if _KNOWN:
    for _run, _handler in _HANDLERS.items():
        jax.ffi.register_ffi_target(f"fastemd{_run.__name__}", jax.ffi.pycapsule(_handler), "cpu")


def _launch(run: xla.Function, constants: str, *arguments: Any) -> Any:
    """The results of one of the functions above, as it is described by `_results`."""
    results = _results(run, jax.ShapeDtypeStruct, arguments[0])
    if _KNOWN:
        launch = jax.ffi.ffi_call(f"fastemd{run.__name__}", results, vmap_method="broadcast_all")
        return launch(*arguments, constants=constants)

    def call_back(*given: Any) -> list[Array]:
        out: list[Array] = _results(run, np.empty, given[0])
        run([np.asarray(array) for array in given], out, constants)
        return out

    return jax.pure_callback(call_back, results, *arguments, vmap_method="broadcast_all")


def _results(run: xla.Function, kind: Any, like: Any) -> list[Any]:
    rows = kind(like.shape, like.dtype)
    return [rows] if run is _run_product else [kind(like.shape[:-1], like.dtype), rows]
