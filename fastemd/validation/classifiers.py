"""Invalid arguments of the classifiers of boosted trees: classes, labels and parameters."""

from collections.abc import Hashable, Mapping, Sequence, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastemd.validation.arguments import _kind

Array = NDArray[Any]


def check_classes(classes: Any, bins: Sequence[Hashable], labels: Array) -> Array:
    """Return the label of every bin, or raise if the order of the labels is not certain."""
    names: list[Any] = [name[-1] if isinstance(name, tuple) and name else name for name in bins]
    is_numbered = names == list(range(len(bins)))
    if classes is not None:
        listed = _check_listed(classes, len(bins))
        if set(listed) == set(names) and listed != names and not is_numbered:
            raise ValueError(
                "classes: these are the bins of the space in another order; list them in the order "
                f"of space.bins, {_listed(names)}"
            )
        return np.array(listed)
    if labels.dtype.kind in "OSU":
        if all(isinstance(name, str) for name in names) and len(set(names)) == len(names):
            return np.array(names)
        raise ValueError(
            "classes: needed for labels that are no integers, since their order is not known; "
            "pass the label of every bin, in the order of the bins"
        )
    if all(isinstance(name, str) for name in names):
        raise ValueError(
            "classes: needed for labels that are numbers, since the bins of the space have names, "
            f"{_listed(names)}; pass classes=range({len(bins)}) if they are numbers of bins"
        )
    if not is_numbered and any(isinstance(name, int | np.integer) for name in names):
        raise ValueError(
            f"classes: needed for this space, whose bins have numbers as names, {_listed(names)}; "
            "pass the label of every bin, in the order of the bins"
        )
    return np.arange(len(bins))


def _check_listed(classes: Any, n_bins: int) -> list[Any]:
    has_order = not isinstance(classes, str | bytes | Set | Mapping)
    if not has_order or not hasattr(classes, "__iter__"):
        raise TypeError(f"classes: expected a list, the label of every bin, got {_kind(classes)}")
    listed = [x.item() if isinstance(x, np.generic) else x for x in classes]
    if len(listed) != n_bins:
        raise ValueError(
            f"classes: expected the labels of {n_bins} bins, got {len(listed)}; list the label of "
            "every bin of the space, also of those without rows"
        )
    for kind in (str, int | float):
        if all(isinstance(label, kind) for label in listed):
            break
    else:
        kinds = sorted({type(label).__name__ for label in listed})
        raise TypeError(
            f"classes: expected labels that are all strings or all numbers, got {', '.join(kinds)}"
        )
    if len(set(listed)) < len(listed):
        label = next(label for i, label in enumerate(listed) if label in listed[:i])
        raise ValueError(f"classes: duplicate label {label!r}; every bin has a label of its own")
    return listed


def bins_of_labels(name: str, labels: Array, classes: Array) -> NDArray[np.intp]:
    """Return the bins of labels, or raise for a label of no bin."""
    bins = {label: k for k, label in enumerate(classes.tolist())}
    present, inverse = np.unique(labels, return_inverse=True)
    codes = np.array([bins.get(label, -1) for label in present.tolist()], np.intp)[inverse]
    for row in np.flatnonzero(codes < 0)[:1]:
        raise ValueError(
            f"{name}: the class of row {row}, {labels.tolist()[row]!r}, is not one of the labels "
            f"of the bins, {_listed(classes.tolist())}; pass classes=, the label of every bin in "
            "the order of the bins"
        )
    return codes


def _listed(labels: Sequence[Any]) -> str:
    return f"{', '.join(map(repr, labels[:10]))}{', ...' if len(labels) > 10 else ''}"


def check_boosted_space(n_bins: int) -> None:
    if n_bins < 2:
        raise ValueError("space: expected two or more bins for a classifier, got 1")


_SET_BY_CLASSIFIER = (  # and their aliases in LightGBM
    "objective", "objective_type", "app", "application", "loss", "num_class", "num_classes",
    "metric", "metrics", "metric_types",
)  # fmt: skip


def check_boosting_parameters(parameters: Mapping[str, Any]) -> None:
    """Refuse parameters of a library that are set by the classifier, or contradict it."""
    for name in _SET_BY_CLASSIFIER:
        if name in parameters:
            raise ValueError(
                f"{name}: the classifier sets it by its space, rho and cross_entropy; remove it"
            )


def check_fit_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of a library's fit that would bypass the classes, or have no effect."""
    for name in ("eval_X", "eval_y"):
        if name in arguments:
            raise TypeError(f"{name}: pass eval_set=[(X, y), ...], with labels as in y")
    if "eval_class_weight" in arguments:
        raise TypeError("eval_class_weight: pass eval_sample_weight, a weight per row")
    for name in ("init_score", "base_margin"):
        if name in arguments:
            raise TypeError(
                f"{name}: predictions would not include it; use the native interface with an "
                "objective of fastemd.boosting"
            )


def check_eval_metric(metric: Any) -> None:
    """Refuse built-in metrics, which read raw scores as if they were probabilities."""
    for entry in metric if isinstance(metric, list | tuple) else [metric]:
        if isinstance(entry, str):
            raise ValueError(
                f"eval_metric: {entry!r} expects probabilities, but metrics get raw scores; pass a "
                "function, or nothing for the EMD"
            )


def check_eval_set(eval_set: Any) -> None:
    if not isinstance(eval_set, list) or any(len(pair) != 2 for pair in eval_set):
        raise TypeError(f"eval_set: expected a list of pairs (X, y), got {_kind(eval_set)}")
