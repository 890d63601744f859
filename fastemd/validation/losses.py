"""Invalid arguments of the training losses, and invalid rows of logits and targets."""

import numbers
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fastemd.validation.arguments import (
    _kind,
    as_float,
    broadcasts,
    check_amount,
    check_bins_axis,
)
from fastemd.validation.histograms import _check_masses, _check_vector, _not_one, _row_name

Array = NDArray[Any]


def not_a_target(target: object) -> NoReturn:
    if getattr(target, "requires_grad", False):
        raise TypeError(
            "target: it requires grad, but no gradient flows to a target; pass target.detach(), "
            "or use fastemd.torch.emd"
        )
    raise TypeError(f"target: expected a torch.Tensor, got {_kind(target)}")


def check_cross_entropy(value: object, normalize: str | None = "softmax") -> float:
    """Return the amount of cross entropy, which is > 0 for logits only."""
    amount = check_amount("cross_entropy", value, zero=True)
    if amount and normalize != "softmax":
        raise ValueError(
            f"cross_entropy: available with normalize='softmax' only, got {amount:g} with "
            f"normalize={normalize!r}; set it to 0 and add the framework's own cross entropy"
        )
    return amount


def check_label_smoothing(value: Any) -> float:
    """Return a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"label_smoothing: expected a number from 0 to 1, got {_kind(value)}")
    share = as_float(value)
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"label_smoothing: expected a number from 0 to 1, got {share:g}")
    return share


def traced_class_weight() -> NoReturn:
    raise TypeError(
        "class_weight: it is being traced; pass a NumPy array, known when the function is compiled"
    )


def check_class_weight_shape(shape: tuple[int, ...], n_bins: int) -> None:
    if shape != (n_bins,):
        raise ValueError(
            f"class_weight: expected one number for each of the {n_bins} bins of the ground space, "
            f"got an array of shape {shape}"
        )


def check_class_weights(weights: Array) -> Array:
    """Return the weights of the classes as float64, or raise."""
    for k in np.flatnonzero(~((weights >= 0) & (weights < np.inf)))[:1]:
        raise ValueError(f"class_weight: {weights[k]} at bin {k}; weights must be finite and >= 0")
    return np.ascontiguousarray(weights, np.float64)


def check_length_shape(shape: tuple[int, ...], n_nodes: int) -> None:
    if shape != (n_nodes - 1,):
        raise ValueError(
            f"length: expected one number for each of the {n_nodes - 1} edges of the ground space, "
            f"in the order of fastemd.emd_flow, got an array of shape {shape}"
        )


def check_normalize(value: object) -> None:
    if value is not None and not (isinstance(value, str) and value in ("softmax", "l1")):
        raise ValueError(f"normalize: expected 'softmax', 'l1' or None, got {value!r:.60}")


def check_ignore_index(value: object, labelled: bool) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"ignore_index: expected an integer, got {_kind(value)}")
    if not labelled:
        raise ValueError(
            "ignore_index: needs labels as targets, got histograms; "
            "set sample_weight to 0 to ignore rows"
        )
    return int(value)


def check_target(dtype: np.dtype[Any]) -> None:
    if dtype.kind == "b":
        raise TypeError(
            "target: expected classes of an integer type or floating point histograms, got an "
            f"array of dtype {dtype}"
        )


def check_target_shape(
    shape: tuple[int, ...], x_shape: tuple[int, ...], labelled: bool, axis: int = -1,
    keyword: str = "axis",
) -> None:  # fmt: skip
    """Raise unless a target broadcasts to the rows of `x`, and its type fits its shape.

    `axis` (< 0) holds the bins in both shapes, unless the target is labels.
    """
    rows, n_bins = without_axis(x_shape, axis), x_shape[axis]
    has_bins = len(shape) >= -axis and shape[axis] == n_bins
    if not labelled:
        if not has_bins or shape == rows:
            _check_float_labels(shape, x_shape, rows, has_bins)
        check_bins_axis("target", shape, n_bins, axis, keyword)
    elif shape == x_shape and n_bins != 1:
        raise ValueError(
            f"target: integers are labels, one per row of x, got the shape of x, {shape}; "
            "expected histograms as floating point numbers, for example target.astype(float)"
        )
    target_rows = shape if labelled else without_axis(shape, axis)
    if target_rows != rows and not broadcasts(target_rows, rows):
        _does_not_fit(shape, x_shape, labelled)


def without_axis(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """Return a shape without one axis (< 0)."""
    return (*shape[:axis], *shape[len(shape) + axis + 1 :])


def _check_float_labels(
    shape: tuple[int, ...], x_shape: tuple[int, ...], rows: tuple[int, ...], has_bins: bool
) -> None:
    """Raise if a floating point target has the shape of labels."""
    labels = [shape, shape[:-1]] if shape[-1:] == (1,) else [shape]
    if not any(broadcasts(x, rows) for x in labels):
        return
    one = "; histograms for several rows are target[None]" if has_bins else ""
    raise ValueError(
        f"target: floating point numbers of shape {shape}, which is that of labels of x "
        f"{x_shape}; labels must be integers, for example target.astype(int){one}"
    )


def _does_not_fit(shape: tuple[int, ...], x_shape: tuple[int, ...], labelled: bool) -> NoReturn:
    kind, axis = ("labels", -1) if labelled else ("histograms", -2)
    hint = f"pass one of the {kind} per row of x"
    if len(shape) >= -axis and shape[axis] == 1:
        hint = f"remove the axis of length 1 by target.squeeze({axis})"
    raise ValueError(
        f"target: {kind} of shape {shape} do not broadcast to the rows of x, of shape {x_shape}; "
        f"{hint}"
    )


def check_weights(weights: Array, batch: tuple[int, ...]) -> None:
    for row in np.flatnonzero(~((weights >= 0.0) & (weights < np.inf)))[:1]:
        raise ValueError(
            f"sample_weight{_row_name(batch, int(row))} is {weights.flat[row]}; weights must be "
            "finite and >= 0"
        )


def check_boosted_scores(shape: tuple[int, ...], n_bins: int, metric: bool) -> None:
    """Refuse scores of a boosting library that are not (rows, classes)."""
    if len(shape) == 2 and shape[1] == n_bins:
        return
    got = f"scores: expected shape (rows, {n_bins}), the classes of the ground space, got {shape}"
    fit = "LGBMClassifier and XGBClassifier have one score per row if y has two classes"
    if n_bins > 2:
        fit = (
            "LGBMClassifier and XGBClassifier count the classes of y instead, so fit them to rows "
            f"of all {n_bins} classes (one of sample_weight 0 is enough)"
        )
    if len(shape) == 1 and metric:
        raise ValueError(
            f"{got}, as metrics do under 'multi:softmax' and the objectives of two classes; use "
            f"'multi:softprob', 'multiclass' or an objective of fastemd; {fit}"
        )
    raise ValueError(f"{got}; {fit}; lightgbm.train and xgboost.train need num_class={n_bins}")


def check_boosted_labels(labels: Array, weights: Array | None, n_rows: int, n_bins: int) -> Array:
    """Return labels of a boosting library, which are floats, as integers; rows of weight 0 any."""
    for name, array in {"labels": labels, "sample_weight": weights}.items():
        if array is not None and array.shape != (n_rows,):
            raise ValueError(f"{name}: expected one per row, shape ({n_rows},), got {array.shape}")
    if labels.dtype.kind not in "iuf":
        raise TypeError(f"labels: expected whole numbers, got {_kind(labels)}")
    whole = (labels >= 0) & (labels < n_bins) & (labels == np.trunc(labels))
    for row in np.flatnonzero(~whole if weights is None else ~whole & (weights != 0))[:1]:
        raise ValueError(
            f"labels: row {row} is {labels[row]}, expected a whole number from 0 to {n_bins - 1}"
        )
    return np.where(whole, labels, 0).astype(np.int64)


def check_not_renumbered(labels: Array, n_bins: int) -> None:
    """Refuse labels that `LGBMClassifier` may have made of any two classes."""
    if n_bins > 2 and labels.max(initial=0) <= 1:
        raise ValueError(
            f"labels: expected some of class 2 or above, got classes 0 and 1 of {n_bins} only, "
            "which LGBMClassifier makes of any two classes of y; fit it to rows of all "
            f"{n_bins} classes (one of sample_weight 0 is enough) or use lightgbm.train"
        )


def check_not_ambiguous(scores: Array) -> None:
    """Refuse scores of two classes that sum to 1 unless they and their softmax are the same."""
    if scores.shape[1] == 2 and (scores[:, 0] != scores[:, 1]).any():
        raise ValueError(
            "scores: those of two classes are >= 0 and sum to 1, so they may be raw scores or "
            "probabilities; use an objective of fastemd, in XGBoost with the parameter "
            "base_score=0, or call fastemd.emd_loss with normalize=None for probabilities"
        )


def check_not_one_vs_all(scores: Array) -> None:
    """Refuse what LightGBM's objective 'multiclassova' gives metrics."""
    if ((scores >= 0.0) & (scores <= 1.0)).all() and scores.any(axis=1).all():
        raise ValueError(
            "scores: expected raw scores, or probabilities that sum to 1, got numbers from 0 to 1 "
            "that do not, as under 'multiclassova'; use 'multiclass' or an objective of fastemd"
        )


def check_derivatives(*derivatives: Array) -> None:
    """Refuse derivatives that float32, in which the boosting libraries compute, cannot hold."""
    for array in derivatives:
        if not array.max(initial=0.0) <= np.finfo(np.float32).max:
            row = int(np.argmax(array.max(axis=1)))
            raise ValueError(
                f"scores: the derivatives of row {row} are beyond the range of float32; make the "
                "lengths of the ground space, cross_entropy or the sample weights smaller"
            )


def raise_invalid_loss_row(
    inputs: Mapping[str, Array],
    labels: Array | None,
    batch: tuple[int, ...],
    row: int,
    normalize: str | None,
    cross_entropy: float,
    label_smoothing: float,
    tolerance: float,
) -> NoReturn:
    """Raise for a row that the kernel of a loss found invalid; see `raise_invalid_row`."""
    row_name = _row_name(batch, row)
    index = np.unravel_index(row, batch)
    n_bins = inputs["x"].shape[-1]
    rows = {
        name: np.broadcast_to(array, (*batch, n_bins))[index].astype(np.float64)
        for name, array in inputs.items()
    }
    x = rows["x"]
    if normalize == "softmax":
        for k in np.flatnonzero(np.isnan(x) | (x == np.inf)):
            raise ValueError(
                f"x{row_name} has a logit {x[k]} at bin {k}; logits must be finite or -inf"
            )
        if (x == -np.inf).all():
            raise ValueError(f"x{row_name} has no class left, all logits are -inf")
    else:
        mass = _check_masses("x", row_name, x, tolerance)
        if normalize == "l1" and mass < np.finfo(np.float64).tiny:
            raise ValueError(f"x{row_name} sums to {mass} and cannot be divided by its sum")
        if normalize is None and not abs(mass - 1.0) <= tolerance:
            _not_one("x", row_name, mass, tolerance)
    if labels is not None:
        label = int(np.broadcast_to(labels, batch)[index])
        if not 0 <= label < n_bins:
            raise ValueError(
                f"target{row_name} is class {label}; classes are 0..{n_bins - 1}; "
                "set ignore_index to ignore the rows of another label"
            )
        q = np.zeros(n_bins)
        q[label] = 1.0
    else:
        q = rows["target"]
        mass = _check_masses("target", row_name, q, tolerance)
        if not abs(mass - 1.0) <= tolerance:
            _not_one("target", row_name, mass, tolerance)
    if cross_entropy:
        mend = "set sample_weight to 0 to ignore the row"
        if label_smoothing:
            mend = "a smoothed target has mass at all bins; set label_smoothing to 0"
        for k in np.flatnonzero(((q > 0.0) | (label_smoothing > 0.0)) & (x == -np.inf)):
            raise ValueError(
                f"target{row_name} has mass at bin {k}, which x excludes by {x[k]}: the cross "
                f"entropy is infinite; {mend}"
            )
    if "v" in rows:
        _check_vector("v", row_name, rows["v"])
    raise ValueError(f"x and target{row_name}: beyond the range of float64")
