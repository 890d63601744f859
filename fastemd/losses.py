"""Training losses of logits and targets, and their derivatives with respect to the logits."""

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastemd import backends, validation, views
from fastemd.backends import CudaBackend, axis_at
from fastemd.call import Batch, Launch, batch_shape, cuda_driver, edge_cost, result_type
from fastemd.docstrings import documented
from fastemd.kernels.cpu import driver as cpu
from fastemd.kernels.edges import Cost
from fastemd.layout import EdgeLayout
from fastemd.spaces import GroundSpace

Array = NDArray[Any]
_FLOAT64 = np.dtype(np.float64)
NO_LABEL = np.iinfo(np.int64).min  # no label is equal to it
TINY = np.finfo(np.float64).tiny


@documented
def emd_loss(
    x: ArrayLike,
    target: ArrayLike,
    space: GroundSpace,
    rho: float = 2,
    *,
    normalize: str | None = "softmax",
    cross_entropy: float = 0.0,
    sample_weight: ArrayLike | None = None,
    class_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    root: bool = False,
    ignore_index: int | None = None,
    reduction: str = "mean",
    axis: int = -1,
) -> tuple[Any, Any]:
    """Compute the EMD^rho loss between normalised predictions and targets, with its gradient.

    Parameters
    ----------
    {loss}

    Returns
    -------
    loss : number or array, (...)
        One number, or one per row if `reduction` is "none".
    grad_x : array of the shape of x
        Gradient of the loss with respect to `x`. Without reduction, the gradient of each row's
        loss.

    {loss_raises}

    Notes
    -----
    Let ``p = softmax(x)`` and g be the gradient of ``EMD^rho(p, target)`` (eq. 9, 11 and 15 of
    Martinez et al., arXiv:1611.07573). Then the gradient of the loss is ``p * (g - <p, g>)``. It
    is computed in one pass over the rows. No array of the size of `x` is allocated except
    `grad_x`. O(nodes) per row.

    Examples
    --------
    >>> import fastemd
    >>> logits = [[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    >>> loss, grad = fastemd.emd_loss(logits, [0, 2], fastemd.Chain(3))
    >>> loss.round(6)
    np.float64(0.337862)
    >>> grad.round(6)
    array([[-0.079941,  0.052516,  0.027425],
           [ 0.148148,  0.037037, -0.185185]])
    """
    loss = Loss.checked(rho, normalize, cross_entropy, label_smoothing, root, axis)
    batch = resolve_loss(space, loss, x, target, sample_weight, ignore_index, class_weight)
    value, grad = run_loss("loss", space.layout("levels"), batch, reduction)
    return batch.backend.wrap(value), batch.backend.wrap(grad)


@documented
def emd_loss_hessian_diag(
    x: ArrayLike,
    target: ArrayLike,
    space: GroundSpace,
    rho: float = 2,
    *,
    normalize: str | None = "softmax",
    cross_entropy: float = 0.0,
    sample_weight: ArrayLike | None = None,
    class_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    root: bool = False,
    ignore_index: int | None = None,
    reduction: str = "mean",
    axis: int = -1,
) -> Any:
    """Compute the exact diagonal of the Hessian of `emd_loss` with respect to `x`.

    Parameters
    ----------
    {loss}

    Returns
    -------
    array of the shape of x
        Second derivatives of the loss with respect to every entry of `x`. Without reduction, those
        of each row's loss.

    {loss_raises}

    Notes
    -----
    Let g and H be the gradient and the Hessian of ``EMD^rho`` with respect to ``p = softmax(x)``
    (eq. 12 of Martinez et al., arXiv:1611.07573, divided by the ``N^2`` that is missing in print).
    Then the diagonal is ``p^2 (diag(H) - 2 H p + <p, H p>) + p (1 - 2 p) (g - <p, g>)``. It
    contains more than the Gauss-Newton part, so entries may be negative. The conventions are those
    of `emd_hessian`. O(nodes) per row.

    Examples
    --------
    >>> import fastemd
    >>> fastemd.emd_loss_hessian_diag([[0.0, 0.0, 0.0]], [2], fastemd.Chain(3)).round(6)
    array([[0.222222, 0.074074, 0.      ]])
    """
    loss = Loss.checked(rho, normalize, cross_entropy, label_smoothing, root, axis)
    batch = resolve_loss(space, loss, x, target, sample_weight, ignore_index, class_weight)
    _, diagonal = run_loss("loss_diagonal", space.layout("levels"), batch, reduction)
    return batch.backend.wrap(diagonal)


class Loss(NamedTuple):
    """The validated options of a loss."""

    cost: Cost
    normalize: str | None = "softmax"
    cross_entropy: float = 0.0
    label_smoothing: float = 0.0
    root: bool = False
    axis: int = -1  # of the bins in the user's arrays and in the results

    @classmethod
    def checked(
        cls, rho: object, normalize: Any = "softmax", cross_entropy: object = 0.0,
        label_smoothing: object = 0.0, root: object = False, axis: Any = -1,
    ) -> "Loss":  # fmt: skip
        """Return the options, or raise; the axis is checked when there is an array."""
        options = rho, normalize, cross_entropy, label_smoothing, root, axis
        hashable = all(getattr(type(option), "__hash__", None) for option in options)
        return (_checked_loss if hashable else _checked_loss.__wrapped__)(*options)


@functools.lru_cache(maxsize=256, typed=True)  # the checks take a quarter of a small call
def _checked_loss(
    rho: object, normalize: Any, cross_entropy: object, label_smoothing: object, root: object,
    axis: Any,
) -> Loss:  # fmt: skip
    validation.check_normalize(normalize)
    added = validation.check_cross_entropy(cross_entropy, normalize)
    smoothing = validation.check_label_smoothing(label_smoothing)
    validation.check_flag("root", root)
    return Loss(edge_cost(rho), normalize, added, smoothing, bool(root), axis)


class LossBatch(Batch):
    """The validated inputs of a loss: ``x``, histograms as targets or labels, and vectors ``v``.

    The bins are the last axis of all `inputs`.
    """

    loss: Loss
    labels: Any = None  # (...,) of integers, if the targets are no histograms
    sample_weight: Any = None  # (...,)
    class_weight: Any = None  # (N,)
    ignore_index: int | None = None


def resolve_loss(
    space: GroundSpace | EdgeLayout, loss: Loss, x: Any, target: Any, sample_weight: Any = None,
    ignore_index: int | None = None, class_weight: Any = None, *, v: Any = None,
    tolerance: float | None = None,
) -> LossBatch:  # fmt: skip
    """Return the batch of a loss.

    `v` are vectors, for "loss_product". `tolerance` is for masses that should be 1, by default that
    of their types. Of the batch's loss, `axis` is counted from the end.
    """
    if not isinstance(space, (GroundSpace, EdgeLayout)):
        validation.not_a_space(space)
    arrays = {"x": x, "target": target, "v": v, "sample_weight": sample_weight}
    backend = backends.backend_of({k: a for k, a in arrays.items() if a is not None})
    x_view = views.as_array("x", x)
    axis = validation.check_axis("axis", loss.axis, len(x_view.shape))
    inputs = {"x": views.over_bins("x", x, x_view, space, axis)}
    labels = views.as_array("target", target)
    validation.check_target(labels.dtype)
    labelled = labels.dtype.kind in "iu"
    if v is not None:
        inputs["v"] = views.as_histograms("v", v, space, axis)
    shape = batch_shape(inputs)
    full_shape = axis_at((*shape, space.n_bins), axis)
    validation.check_target_shape(labels.shape, full_shape, labelled, axis)
    if not labelled:
        inputs["target"] = views.over_bins("target", target, labels, space, axis)
    if ignore_index is not None:
        ignore_index = validation.check_ignore_index(ignore_index, labelled)
    if tolerance is None:
        chars = (view.dtype.char for name, view in inputs.items() if name != "v")
        tolerance = validation.mass_tolerance(*chars)
    dtype = result_type(inputs.values())
    batch = LossBatch(backend, inputs, shape, dtype, tolerance)
    batch.loss, batch.ignore_index = loss._replace(axis=axis), ignore_index
    batch.labels = labels if labelled else None
    if sample_weight is not None:
        batch.sample_weight = weights = views.as_array("sample_weight", sample_weight)
        validation.check_broadcast("sample_weight", weights.shape, "x", shape)
    if class_weight is not None:
        batch.class_weight = _class_weights(class_weight, space.n_bins, backend)
    return batch


def _class_weights(class_weight: Any, n_bins: int, backend: Any) -> Any:
    """Return the weights of the classes as float64 where the kernels read them.

    For arrays on a CUDA device they may be on the host.
    """
    own = backends.backend_for("class_weight", class_weight)
    if isinstance(own, CudaBackend):
        if own.name != backend.name:
            validation.mixed_backends({"x": backend.name, "class_weight": own.name})
        weights = views.as_array("class_weight", class_weight)
        validation.check_class_weight_shape(weights.shape, n_bins)
        return backend.spread(backend.cast(weights, _FLOAT64), weights.shape)
    weights = views.as_class_weights(class_weight, n_bins)
    if isinstance(backend, CudaBackend):
        return cuda_driver().uploaded(weights.tobytes(), backend.index)
    return weights


def run_loss(
    operation: str, layout: EdgeLayout, batch: LossBatch, reduction: str, out: Any = None
) -> tuple[Any, Any]:
    """Return the loss, one per row without reduction, and its derivatives, as views.

    Parameters
    ----------
    operation : {"loss", "loss_diagonal", "loss_product"}
    layout : EdgeLayout
    batch : LossBatch
    reduction : {"mean", "sum", "none"}
    out : view, optional
        Where to write the derivatives, an array in the order of C. On the CPU, "loss" does not
        compute them if it is (..., 0).
    """
    validation.check_choice("reduction", reduction, ("mean", "sum", "none"))
    if out is None:
        shape = axis_at((*batch.shape, layout.n_bins), batch.loss.axis)
        out = batch.backend.empty(shape, batch.dtype)
    if isinstance(batch.backend, CudaBackend):
        return _run_on_cuda(operation, layout, batch, reduction, out), out
    multipliers, weights = row_weights(
        batch.shape, batch.labels, batch.sample_weight, batch.ignore_index, reduction,
        batch.class_weight,
    )  # fmt: skip
    values = np.zeros(batch.n_rows)
    if batch.n_rows:
        labels = np.empty(0, np.int64)
        if batch.labels is not None:
            labels = batch.labels
            if labels.shape != batch.shape:  # this test takes a tenth of the time of broadcast_to
                labels = np.broadcast_to(labels, batch.shape)
            labels = np.ascontiguousarray(labels, np.int64)
        x, target, v, rows_out = _rows(batch, out)
        invalid = cpu.run_loss(
            operation, layout, (x, target, v), labels.reshape(-1), multipliers, batch.loss.cost,
            values, rows_out, batch.class_weight, *batch.loss[1:5],
            batch.tolerance,
        )  # fmt: skip
        if invalid < batch.n_rows:
            validation.raise_invalid_loss_row(
                batch.inputs,
                batch.labels,
                batch.shape,
                invalid,
                batch.loss.normalize,
                batch.loss.cross_entropy,
                batch.loss.label_smoothing,
                batch.tolerance,
            )
    with np.errstate(all="ignore"):  # results beyond the type are infinite
        if reduction == "none":
            values = (values * weights).reshape(batch.shape)
        else:
            values = values @ multipliers
        return np.asarray(values, batch.dtype), out


def _rows(batch: LossBatch, out: Any) -> tuple[Any, Any, Any, Any]:
    """Return x, the targets, v and the derivatives as (groups, rows, N).

    Those that are missing are without elements.
    """
    if batch.loss.axis == -1:
        arrays = batch.rows()
        rows_out = out.reshape(*arrays[0].shape[:2], -1)
    else:
        moved = views.bins_last(out, batch.loss.axis)
        inputs = batch.inputs.values()
        *arrays, rows_out = views.as_rows(inputs, batch.shape, batch.dtype, batch.backend, moved)
    rows = dict(zip(batch.inputs, arrays, strict=True))
    empty = np.empty((1, 1, 0), batch.dtype)
    return rows["x"], rows.get("target", empty), rows.get("v", empty), rows_out


def row_weights(
    shape: tuple[int, ...], labels: Any, sample_weight: Any, ignore_index: int | None,
    reduction: str, class_weight: Array | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """Return what multiplies every row's derivatives, and the weights before the reduction.

    The mean divides by the sum of the weights, times those of the classes if there are labels.
    """
    n_rows, weighted = math.prod(shape), sample_weight is not None
    weights = np.ones(n_rows)
    by_class = None if labels is None else class_weight
    if ignore_index is not None and not (labels == ignore_index).any():
        ignore_index = None
    # Without weights the rest gives the same, in 7 us.
    if not weighted and ignore_index is None and by_class is None:
        mean = reduction == "mean" and n_rows
        return np.full(n_rows, 1.0 / n_rows) if mean else weights, weights
    with np.errstate(all="ignore"):
        if weighted:
            weights = np.broadcast_to(sample_weight, shape).astype(np.float64).ravel()
        if ignore_index is not None:
            weights[np.broadcast_to(labels == ignore_index, shape).ravel()] = 0.0
        if weighted:
            validation.check_weights(weights, shape)
        if reduction != "mean":
            return weights, weights
        if weighted:  # the sum of the weights might overflow
            weights = _divided(weights, weights.max(initial=0.0) or 1.0)
        counted = weights
        if by_class is not None:
            of_labels = np.take(by_class, labels, mode="clip")
            counted = weights * np.broadcast_to(of_labels, shape).ravel()
        total = counted.sum()
        if total == 0.0:
            return weights, weights
        return _divided(weights, total) if weighted else weights / total, weights


def _divided(weights: Array, divisor: float) -> Array:
    """Divide weights, so that none becomes 0 that was not: rows are read unless it is 0."""
    return np.where(weights > 0.0, np.maximum(weights / divisor, TINY), 0.0)


def _run_on_cuda(
    operation: str, layout: EdgeLayout, batch: LossBatch, reduction: str, out: Any
) -> Any:
    """Launch a loss into `out`; return the view of the values."""
    backend: Any = batch.backend
    launch = batch.launch = Launch(backend)
    driver, place = launch.driver, (launch.index, launch.stream)
    labels, weights, mean = np.empty(0, np.int64), np.empty(0), reduction == "mean"
    class_weights = np.empty(0) if batch.class_weight is None else batch.class_weight
    values = backend.empty(batch.shape, np.dtype(np.float64))
    if batch.n_rows:
        counted_labels, ignored, by_class = labels, None, np.empty(0)
        if batch.labels is not None:
            ignored = _as_int64(batch.ignore_index, batch.labels.dtype)
            labels = backend.cast(batch.labels, np.dtype(np.int64))
            labels = backend.spread(labels, batch.shape).reshape(-1)
            by_class = class_weights if mean else by_class
            counted_labels = counted_labels if ignored is None and not by_class.size else labels
        if batch.sample_weight is not None:
            weights = backend.cast(batch.sample_weight, np.dtype(np.float64))
            weights = backend.spread(weights, batch.shape).reshape(-1)
        row_weights, row_weight = np.empty(0), 1.0
        if weights.size or counted_labels.size:
            row_weights = launch.scratch(batch.n_rows)
            ignored = NO_LABEL if ignored is None else ignored
            driver.find_row_weights(
                weights, counted_labels, ignored, by_class, mean, row_weights, launch.errors,
                launch.scratch, *place,
            )  # fmt: skip
        elif mean:
            row_weight = 1.0 / batch.n_rows
        x, target, v, rows_out = _rows(batch, out)
        driver.launch_loss(
            operation, layout, (x, target, v), labels, row_weights, row_weight, batch.loss.cost,
            values.reshape(-1), rows_out, class_weights, *batch.loss[1:5], batch.tolerance,
            launch.errors, launch.scratch, *place,
        )  # fmt: skip
    if reduction != "none":
        total = backend.empty((), batch.dtype)
        driver.sum_rows(values.reshape(-1), total.reshape(1), launch.scratch, *place)
        return total
    result = backend.empty(batch.shape, batch.dtype)
    driver.convert(values.reshape(-1), result.reshape(-1), *place)
    return result


def _as_int64(number: int | None, dtype: np.dtype[Any]) -> int | None:
    """Return what an entry of an integer type that equals `number` becomes; None: none does."""
    limits = np.iinfo(dtype)
    if number is None or not limits.min <= number <= limits.max:
        return None
    return number if number < 2**63 else number - 2**64
