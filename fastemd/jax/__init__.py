"""EMD^rho as functions and losses of JAX: differentiable, under ``jit`` and ``vmap``."""

import functools
from typing import Any

import numpy as np

from fastemd import adapters, validation, views

try:
    import jax
except ModuleNotFoundError as error:
    validation.not_installed("jax", error)

import jax.numpy as jnp
from jax.typing import ArrayLike

from fastemd.jax.programs import losses_of_lengths, values
from fastemd.jax.registry import number_of, number_of_weights
from fastemd.losses import Loss
from fastemd.spaces import GroundSpace

_FRAMEWORK = adapters.Framework(
    jnp,
    is_floating=lambda dtype: jnp.issubdtype(dtype, jnp.floating),
    default_type=lambda: jnp.result_type(float),
    cast=lambda array, dtype: array if array.dtype == dtype else array.astype(dtype),
    broadcast=jnp.broadcast_arrays,
    constant=jax.lax.stop_gradient,
    scalar=lambda number, dtype: dtype.type(number),
)
# Outside of jit every operation is launched alone. Compiled together they take one launch.
_loss_rows = jax.jit(
    functools.partial(adapters.loss_rows, _FRAMEWORK), static_argnums=(5, 6), inline=True
)
_reduced = jax.jit(functools.partial(adapters.reduced, _FRAMEWORK), static_argnums=3, inline=True)


def emd(
    p: ArrayLike, q: ArrayLike, space: GroundSpace, rho: float, *, axis: int = -1,
    validate: bool | float = True,
) -> jax.Array:  # fmt: skip
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
    axis : int
        The axis of `p`, and counted from the end of `q`, that holds the bins.
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
    Only in ``lax.scan`` and ``lax.map`` forward over reverse mode does not: use
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
    adapters.check_space(space)
    p, q = _array("p", p, space), _array("q", q, space)
    axis = validation.check_axis("axis", axis, p.ndim, "p")
    for name, array in {"p": p, "q": q}.items():
        validation.check_bins_axis(name, array.shape, space.n_bins, axis, "axis")
    if axis != -1:
        p, q = jnp.moveaxis(p, axis, -1), jnp.moveaxis(q, axis, -1)
    tolerance = adapters.mass_tolerance(_FRAMEWORK, p, q)
    constants = validation.check_rho(rho), validation.check_validate(validate, tolerance)
    p, q = adapters.pairs(_FRAMEWORK, p, q)
    return values(p, (q,), "emd", number_of(space), *constants)


def emd_loss(
    x: ArrayLike,
    target: ArrayLike,
    space: GroundSpace,
    rho: float = 2,
    *,
    normalize: str | None = "softmax",
    cross_entropy: float = 0.0,
    sample_weight: ArrayLike | None = None,
    class_weight: Any = None,
    label_smoothing: float = 0.0,
    root: bool = False,
    ignore_index: int | None = None,
    reduction: str = "mean",
    axis: int = -1,
    length: ArrayLike | None = None,
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
    rho, normalize, cross_entropy, label_smoothing, root, ignore_index, reduction, axis
        As for `fastemd.emd_loss`.
    class_weight : array_like, (N,), optional
        As for `fastemd.emd_loss`: numbers that are known when the program is traced. They stay in
        memory until the process ends.
    sample_weight : array_like, (...), optional
        Weight of every row, >= 0 (not checked); broadcasts to the rows. A row of weight 0 is not
        read: its loss and its derivatives, also in the weight, are 0, even if it contains NaN.
    length : array_like, (n_nodes - 1,), optional
        Lengths to learn, which replace those of `space`, in the order of `fastemd.emd_flow`. Their
        absolute values are taken, so that an optimiser may change them freely; a length of 0 has
        the derivative 0. Alone the loss is smallest without lengths: learn them with a term that
        holds them, as :doc:`/losses` shows.

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

    With `length` the loss is differentiable once, by reverse mode, in `x` and in `length`. It is
    computed on the CPU, also for arrays on CUDA, and ``vmap`` computes one element after the other.

    Examples
    --------
    >>> import jax, fastemd, fastemd.jax
    >>> logits = jax.numpy.array([[0, 1, 2], [1, 0, 0]], "float32")
    >>> labels = jax.numpy.array([0, 1])
    >>> fastemd.jax.emd_loss(logits, labels, fastemd.Chain(3), cross_entropy=1.0).round(4)
    Array(2.8032, dtype=float32)
    """
    adapters.check_space(space)
    validation.check_choice("reduction", reduction, ("mean", "sum", "none"))
    loss = Loss.checked(rho, normalize, cross_entropy, label_smoothing, root)
    x = _array("x", x, space)
    axis = validation.check_axis("axis", axis, x.ndim)
    validation.check_bins_axis("x", x.shape, space.n_bins, axis, "axis")
    target, kept = _target(target, ignore_index)
    if sample_weight is not None:
        sample_weight = _array("sample_weight", sample_weight)
    if class_weight is not None:
        if isinstance(class_weight, jax.core.Tracer):
            validation.traced_class_weight()
        class_weight = views.as_class_weights(class_weight, space.n_bins)
    if length is not None:
        length = _array("length", length)
        validation.check_length_shape(length.shape, space.n_nodes)
        dtype = adapters.computing_type(_FRAMEWORK, length, length)
        length = _FRAMEWORK.cast(length, dtype)
        length = length * jnp.sign(length)  # the absolute value; its derivative at 0 is 0
    tolerance = adapters.mass_tolerance(_FRAMEWORK, x, target)
    x, target, counted, weight, counts = _loss_rows(
        x, target, kept, sample_weight, class_weight, axis, "axis"
    )
    ignored = None if kept is None else ignore_index
    of_classes = number_of_weights(class_weight)
    constants = loss.cost.rho, tolerance, of_classes, ignored, *loss[1:5], axis
    second = (target,) if counted is None else (target, counted)
    if length is None:
        losses = values(x, second, "loss", number_of(space), *constants)
    else:
        losses = losses_of_lengths(x, second, length, number_of(space), *constants)
    result: jax.Array = _reduced(losses, weight, counts, reduction)
    return result


def _array(name: str, value: Any, space: GroundSpace | None = None) -> jax.Array:
    """Return an argument as an array of real numbers; of a data frame, check the columns."""
    if isinstance(value, jax.Array):
        array = value
    else:
        with np.errstate(all="ignore"):
            array = jnp.asarray(_host_array(name, value, space))
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        validation.not_an_array(name, array)
    return array


def _host_array(name: str, value: Any, space: GroundSpace | None) -> Any:
    """Return what is not JAX's as a NumPy array, or as an array that only JAX can read."""
    leaves = jax.tree.leaves(value) if isinstance(value, list | tuple) else []
    if any(isinstance(leaf, jax.Array) for leaf in leaves):  # NumPy cannot read traced ones
        try:
            return jnp.asarray(value)
        except (TypeError, ValueError):
            validation.not_an_array(name, value)
    kind = getattr(getattr(value, "dtype", None), "name", "")
    if kind.startswith(("bfloat16", "float8", "int4", "uint4", "int2", "uint2")):
        return value  # types that NumPy does not have
    if space is not None:
        views.check_columns(name, value, space)
    return views.as_array(name, value)


def _target(value: Any, ignore_index: int | None) -> tuple[jax.Array, Any]:
    """Return the target, labels in their own type, and whether a row has another label."""
    if not isinstance(value, jax.Array):
        value = _host_array("target", value, None)
    validation.check_target(value.dtype)
    kept = adapters.kept_labels(_FRAMEWORK, value, ignore_index)
    labelled = jnp.issubdtype(value.dtype, jnp.integer)
    if labelled and isinstance(value, np.ndarray):
        # Without jax_enable_x64 JAX keeps the last 32 bits only, which may be another label.
        limits = jnp.iinfo(jax.dtypes.canonicalize_dtype(value.dtype))
        value = value.clip(limits.min, limits.max)
    target = _array("target", value)
    if labelled and jnp.iinfo(target.dtype).bits < 8:
        target = target.astype(jnp.int8)  # the smallest that NumPy has
    return target, kept
