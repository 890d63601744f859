"""EMD^rho as functions and losses of JAX: differentiable, under ``jit`` and ``vmap``."""

import math
from typing import Any

import numpy as np

from fastemd import validation

try:
    import jax
except ModuleNotFoundError as error:
    validation.not_installed("jax", error)

import jax.numpy as jnp
from jax.typing import ArrayLike

from fastemd.ground import GroundSpace
from fastemd.jax.programs import values
from fastemd.registry import number_of, space_of

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
    ``jvp``, ``jacfwd``, ``jacrev``, ``hessian``, ``vmap`` and ``shard_map`` work in any order.
    Third derivatives exist for `rho` 1 and 2, where they are 0.

    On CUDA bad histograms are complained of later, by `fastemd.synchronize`. On other devices the
    arrays go to the host and the results back.

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
    return values(p, (q,), "emd", _number_of(space), *constants)


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
    losses = values(x, (target,), "loss", _number_of(space), *constants)
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
