"""Shared by PyTorch and JAX: checks, computing types, rows that are read, weights, reduction."""

from collections.abc import Callable
from typing import Any, NamedTuple

from fastemd import validation
from fastemd.spaces import GroundSpace


class Framework(NamedTuple):
    """A framework for arrays: its functions where PyTorch and JAX do not agree on the name."""

    namespace: Any  # torch or jax.numpy, where they agree
    is_floating: Callable[[Any], bool]  # whether a dtype is a floating point type
    default_type: Callable[[], Any]  # in which integers are computed
    cast: Callable[[Any, Any], Any]  # an array to a dtype; the same array if it has it
    broadcast: Callable[..., Any]  # several arrays to one shape
    constant: Callable[[Any], Any]  # an array without its derivatives
    scalar: Callable[[int, Any], Any]  # an integer to compare with arrays of a dtype


def check_space(space: object) -> None:
    """Raise unless `space` is a ground space."""
    if not isinstance(space, GroundSpace):
        validation.not_a_space(space)


def computing_type(framework: Framework, a: Any, b: Any) -> Any:
    """Return the common type of two arrays, at least float32; the default type of integers."""
    common = framework.namespace.promote_types(a.dtype, b.dtype)
    if not framework.is_floating(common):
        return framework.default_type()
    return framework.namespace.float32 if common.itemsize < 4 else common


def mass_tolerance(framework: Framework, *arrays: Any) -> float:
    """Return the tolerance of masses, also for types that NumPy does not have."""
    types = [array.dtype for array in arrays if framework.is_floating(array.dtype)]
    return validation.tolerance_of(*(float(framework.namespace.finfo(x).eps) for x in types))


def pairs(framework: Framework, p: Any, q: Any) -> Any:
    """Return two arrays of histograms in their computing type, broadcast to one shape."""
    dtype = computing_type(framework, p, q)
    p, q = framework.cast(p, dtype), framework.cast(q, dtype)
    if p.shape == q.shape:
        return p, q
    try:
        return framework.broadcast(p, q)
    except (RuntimeError, ValueError):
        validation.do_not_broadcast({"p": tuple(p.shape[:-1]), "q": tuple(q.shape[:-1])})


def kept_labels(framework: Framework, target: Any, ignore_index: int | None) -> Any:
    """Return whether labels are not the ignored one; None if none is ignored.

    A number that the type of the labels cannot hold ignores none.
    """
    if ignore_index is None:
        return None
    labelled = not framework.is_floating(target.dtype)
    number = validation.check_ignore_index(ignore_index, labelled)
    limits = framework.namespace.iinfo(target.dtype)
    if not limits.min <= number <= limits.max:
        return None
    return target != framework.scalar(number, target.dtype)


def loss_rows(
    framework: Framework, x: Any, target: Any, kept: Any, sample_weight: Any, class_weight: Any,
    axis: int, keyword: str,
) -> tuple[Any, Any, Any, Any, Any]:  # fmt: skip
    """Broadcast the arguments of a loss to the rows of `x`, in their computing types.

    `kept` says which rows have another label than the ignored one. Returned are `x`, the target,
    which rows have a weight that is not 0 (None if all do), the weights, 0 for rows that are not
    read (None if all are 1), and what the rows count in the mean (None if all count 1).
    `axis` (< 0) holds the bins; messages call it `keyword`.
    """
    xp, rows = framework.namespace, validation.without_axis(tuple(x.shape), axis)
    labelled = not framework.is_floating(target.dtype)
    validation.check_target_shape(tuple(target.shape), tuple(x.shape), labelled, axis, keyword)
    dtype = computing_type(framework, x, target)
    if not labelled:
        target = framework.constant(framework.cast(target, dtype))
    x = framework.cast(x, dtype)
    target = _broadcast_to(framework, target, rows if labelled else x.shape)
    counted, weight = None, None
    counts = None if kept is None else _broadcast_to(framework, kept, rows)
    if sample_weight is not None:
        wide = xp.promote_types(sample_weight.dtype, dtype)
        try:
            weight = _broadcast_to(framework, framework.cast(sample_weight, wide), rows)
        except (RuntimeError, ValueError):
            shapes = {"sample_weight": tuple(sample_weight.shape), "x": tuple(rows)}
            validation.do_not_broadcast(shapes)
        counted = weight != 0 if counts is None else counts & (weight != 0)
        counts = weight = xp.where(counted, weight, 0)
    if labelled and class_weight is not None:
        labels = framework.cast(target, xp.int32)  # torch takes uint8 for a mask
        of_class = framework.cast(class_weight, dtype)[labels.clip(0, len(class_weight) - 1)]
        counts = of_class if counts is None else counts * of_class
    return x, target, counted, weight, counts


def _broadcast_to(framework: Framework, array: Any, shape: Any) -> Any:
    return array if array.shape == shape else framework.namespace.broadcast_to(array, shape)


def reduced(framework: Framework, losses: Any, weight: Any, counts: Any, reduction: str) -> Any:
    """Return the weighted losses of all rows, their sum or their mean.

    The weights and counts are those of `loss_rows`. The mean of nothing is 0.
    """
    mean, dtype = reduction == "mean" and 0 not in losses.shape, losses.dtype
    if weight is None and (counts is None or not mean):
        return losses if reduction == "none" else losses.mean() if mean else losses.sum()
    if mean and weight is not None:  # of weights whose sum might overflow
        limits = framework.namespace.finfo(weight.dtype)
        largest = framework.constant(weight.max())
        # XLA multiplies by the reciprocal, and takes it for 0 if it is subnormal.
        scale = largest.clip(float(limits.tiny), float(limits.max) / 8)
        weight, counts = weight / scale, counts / scale
    if weight is not None:
        losses = losses * weight
    if reduction != "none":
        losses = losses.sum()
    if mean:
        total = counts.sum()
        if framework.is_floating(counts.dtype):
            losses = losses / framework.namespace.where(total > 0, total, 1)
        else:  # the rows that are not ignored
            losses = losses / total.clip(1)
    return framework.cast(losses, dtype)
