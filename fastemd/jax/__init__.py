"""EMD^rho as functions and losses of JAX: differentiable, under ``jit`` and ``vmap``."""

from typing import Any

import numpy as np

from fastemd import arrays, validation

try:
    import jax
except ModuleNotFoundError as error:
    validation.not_installed("jax", error)

import jax.numpy as jnp
from jax.typing import ArrayLike

from fastemd.jax.programs import values
from fastemd.registry import number_of, space_of
from fastemd.spaces import GroundSpace

_kept: set[GroundSpace] = set()  # the programs that JAX compiles know them by number only


def emd(
    p: ArrayLike, q: ArrayLike, space: GroundSpace, rho: float, *, validate: bool | float = True
) -> jax.Array:
    """Return EMD^rho between histograms on a chain or tree, differentiable twice in both.

    Parameters
    ----------
    p, q : array_like, (..., N)
        Histograms over the N bins of `space`: finite, >= 0 and of equal mass (see `validate`).
        Leading axes broadcast. They are computed in their common type, but float16 and bfloat16
        in float32 and integers in JAX's default float type.
    space : Chain or Tree
        The ground space; it stays in memory until the process ends.
    rho : float
        The power of the flow, >= 1.
    validate : bool or float
        Whether to check the numbers, as for `fastemd.emd`. A float is the relative tolerance of
        masses, by default the root of the precision of the coarser type, but at least 1e-5.

    Returns
    -------
    jax.Array, (...)
        The sum over all edges of length times ``|flow|^rho``.

    Raises
    ------
    ValueError
        If shapes do not fit or `rho` is < 1. Outside of ``jit``, also if a histogram is invalid;
        the message names the row.
    TypeError
        If an argument is of another kind.
    jax.errors.JaxRuntimeError
        Under ``jit``, if a histogram is invalid, at the latest when the result is used. The
        message is that of the ValueError after XLA's code ``INVALID_ARGUMENT:``. (For a version
        of JAX whose interface is not known to fastemd, it is part of another error.)

    Notes
    -----
    The first derivative is `fastemd.emd_grad`, projected onto what conserves the mass; it comes
    with the value, in one pass. The second derivative is `fastemd.emd_hvp`. ``jit``, ``grad``,
    ``jvp``, ``jacfwd``, ``jacrev``, ``hessian``, ``vmap`` and ``shard_map`` work in any order.
    Only in ``lax.scan`` and ``lax.map`` forward over reverse mode does not: take
    ``jax.jacrev(jax.grad(f))`` in place of ``jax.hessian(f)``. Third derivatives exist for `rho`
    1 and 2, where they are 0.

    On CUDA invalid histograms raise later, in `fastemd.synchronize`. On devices other than CPU
    and CUDA the arrays go to the host and the results back.

    Examples
    --------
    >>> import jax, fastemd, fastemd.jax
    >>> logits, target = jax.numpy.array([[0, 1, 2], [1, 0, 0]], "float32")
    >>> def loss(logits):
    ...     return fastemd.jax.emd(jax.nn.softmax(logits), target, fastemd.Chain(3), rho=2)
    >>> jax.grad(loss)(logits).round(4)
    Array([-0.2288, -0.1765,  0.4053], dtype=float32)
    """
    _check_space(space)
    p, q = _array("p", p, space), _array("q", q, space)
    dtype = _computing_type(p, q)
    tolerance = validation.check_validate(validate, _mass_tolerance(p, q))
    constants = _number_of(space), validation.check_rho(rho), tolerance
    try:
        rows = jnp.broadcast_shapes(p.shape[:-1], q.shape[:-1])
    except ValueError:
        validation.do_not_broadcast({"p": p.shape[:-1], "q": q.shape[:-1]})
    p, q = (jnp.broadcast_to(x.astype(dtype), (*rows, space.n_bins)) for x in (p, q))
    return values(p, (q,), "emd", *constants)


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
    """Return the EMD^rho loss between normalised predictions and targets.

    Parameters
    ----------
    x : array_like, (..., N)
        Logits, or masses, as `normalize` says. float16 and bfloat16 are computed in float32.
    target : array_like of int, (...), or of float, (..., N)
        Labels of any integer type, or histograms; no gradient flows to it. It broadcasts to the
        rows of `x`, never `x` to the target.
    space : Chain or Tree
        The ground space; it stays in memory until the process ends.
    rho : float
        The power of the flow, >= 1.
    normalize : {"softmax", "l1", None}
        How `x` becomes a histogram.
    cross_entropy : float
        Add this many times the cross entropy.
    sample_weight : array_like, (...), optional
        Weight of every row, >= 0 (not checked); broadcasts to the rows. A row of weight 0 is not
        read: whatever it holds, NaN included, its loss and its derivatives, also in the weight,
        are 0.
    ignore_index : int, optional
        Rows with this label are ignored, as if their weight were 0, whatever it is. A number that
        the type of the labels cannot hold ignores none.
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
        If shapes or options do not fit, as for a target that does not broadcast to the rows of
        `x`. Outside of ``jit``, also if a row is invalid; the message names it.
    TypeError
        If an argument is of another kind.
    jax.errors.JaxRuntimeError
        Under ``jit``, if a row is invalid; as for `emd`.

    See Also
    --------
    fastemd.emd_loss : The same on arrays; says more about the options and the errors.

    Notes
    -----
    Loss and gradient take one pass. Transforms as for `emd`; third derivatives do not exist.

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
    _check_space(space)
    x = _array("x", x, space)
    target, ignored = _target(target, ignore_index)
    labelled = jnp.issubdtype(target.dtype, jnp.integer)
    validation.check_target_shape(target.shape, x.shape, labelled)
    dtype, tolerance = _computing_type(x, target), _mass_tolerance(x, target)
    constants = validation.check_rho(rho), tolerance, normalize, cross_entropy
    x, rows = x.astype(dtype), x.shape[:-1]
    target = target if labelled else jax.lax.stop_gradient(target.astype(dtype))
    target = jnp.broadcast_to(target, rows if labelled else x.shape)
    counted, weight = None, jnp.ones(rows, dtype)
    if sample_weight is not None:
        weight = _weight(sample_weight, rows, dtype)
        counted = weight != 0
    if ignored is not None:
        kept = ~jnp.broadcast_to(ignored, rows)
        counted = kept if counted is None else counted & kept
    second = (target,) if counted is None else (target, counted)
    losses = values(x, second, "loss", _number_of(space), *constants)
    if counted is not None:
        weight = jnp.where(counted, weight, 0)
    if reduction == "mean" and sample_weight is not None:
        weight = _scaled(weight)
    losses = losses * weight
    if reduction == "none":
        return losses.astype(dtype)
    total = losses.sum()
    if reduction == "mean":
        weights = weight.sum()
        total = total / jnp.where(weights > 0, weights, 1)
    return total.astype(dtype)


def _array(name: str, value: Any, space: GroundSpace | None = None) -> jax.Array:
    """The argument `name` as an array of real numbers, over the bins of `space` if given."""
    if not isinstance(value, jax.Array):
        value = _host_array(name, value, space)
    with np.errstate(all="ignore"):
        array = jnp.asarray(value)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        validation.not_an_array(name, array)
    if space is not None:
        validation.check_bins_axis(name, array.shape, space.n_bins)
    return array


def _host_array(name: str, value: Any, space: GroundSpace | None) -> Any:
    """A NumPy array of what is not JAX's, or an array that only JAX can read."""
    if isinstance(value, list | tuple) and _holds_jax(value):
        try:
            return jnp.asarray(value)
        except (TypeError, ValueError):
            validation.not_an_array(name, value)
    kind = getattr(getattr(value, "dtype", None), "name", "")
    if kind.startswith(("bfloat16", "float8", "int4", "uint4", "int2", "uint2")):
        return value  # types that NumPy does not have
    return arrays.real(name, value) if space is None else arrays.histograms(name, value, space)


def _holds_jax(value: list[Any] | tuple[Any, ...]) -> bool:
    """Whether a list holds arrays of JAX, which NumPy cannot read while they are traced."""
    return any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(value))


def _target(value: Any, ignore_index: int | None) -> tuple[jax.Array, Any]:
    """The target, labels in their own type; and whether labels are the ignored one."""
    if not isinstance(value, jax.Array):
        value = _host_array("target", value, None)
    validation.check_target(value.dtype)
    labelled, ignored = jnp.issubdtype(value.dtype, jnp.integer), None
    if ignore_index is not None:
        ignored = _equal(value, validation.check_ignore_index(ignore_index, labelled))
    if labelled and isinstance(value, np.ndarray):
        # Without jax_enable_x64 JAX keeps the last 32 bits only, which may be another label.
        limits = jnp.iinfo(jax.dtypes.canonicalize_dtype(value.dtype))
        value = value.clip(limits.min, limits.max)
    target = _array("target", value)
    if labelled and jnp.iinfo(target.dtype).bits < 8:
        target = target.astype(jnp.int8)  # the smallest that NumPy has
    return target, ignored


def _equal(labels: Any, number: int) -> Any:
    """Whether labels equal a number, which may be beyond their type."""
    limits = jnp.iinfo(labels.dtype)
    if not limits.min <= number <= limits.max:
        return np.zeros(labels.shape, bool)
    return labels == (
        number if isinstance(labels, np.ndarray) else jnp.asarray(number, labels.dtype)
    )


def _weight(value: Any, rows: tuple[int, ...], dtype: Any) -> jax.Array:
    """The weights of all rows, in a type that holds them and the losses."""
    weight = _array("sample_weight", value)
    weight = weight.astype(jnp.promote_types(dtype, weight.dtype))
    try:
        return jnp.broadcast_to(weight, rows)
    except ValueError:
        validation.do_not_broadcast({"sample_weight": weight.shape, "x": rows})


def _scaled(weight: jax.Array) -> jax.Array:
    """Weights divided by about the largest, since their sum might overflow."""
    limits = jnp.finfo(weight.dtype)
    largest = jax.lax.stop_gradient(weight.max(initial=0))
    # XLA multiplies by the reciprocal, and takes it for 0 if it is subnormal.
    return weight / largest.clip(limits.tiny, limits.max / 8)


def _check_space(space: GroundSpace) -> None:
    if not isinstance(space, GroundSpace):
        validation.not_a_space(space)


def _number_of(space: GroundSpace) -> int:
    number = number_of(space)
    _kept.add(space_of(number))
    return number


def _computing_type(a: jax.Array, b: jax.Array) -> Any:
    common = jnp.promote_types(a.dtype, b.dtype)
    if not jnp.issubdtype(common, jnp.floating):
        return jnp.asarray(0.0).dtype
    return jnp.float32 if common.itemsize < 4 else common


def _mass_tolerance(*arrays: jax.Array) -> float:
    """As `validation.mass_tolerance`, also for types that NumPy does not have."""
    floats = [x.dtype for x in arrays if jnp.issubdtype(x.dtype, jnp.floating)]
    return validation.tolerance_of(*(float(jnp.finfo(x).eps) for x in floats))
