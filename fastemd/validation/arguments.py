"""Bad arguments of any function: of another kind, library, shape or range."""

import contextlib
import numbers
import re
from collections.abc import Hashable, Iterator, Mapping, Sequence, Sized
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


# A repr of text; an apostrophe within a word starts none.
QUOTED = r"""(?<!\w)'(?:[^'\\]|\\.)*'|(?<!\w)"(?:[^"\\]|\\.)*\""""


@contextlib.contextmanager
def renaming(names: Mapping[str, str]) -> Iterator[None]:
    """Replace the names of arguments in the messages of errors; quoted text is the user's."""
    try:
        yield
    except (TypeError, ValueError) as error:
        words = rf"{QUOTED}|\b(?:{'|'.join(names)})\b"
        text = re.sub(words, lambda match: names.get(match[0], match[0]), str(error))
        raise type(error)(text) from None


def check_rho(rho: object) -> float:
    """Return the power as a float, or raise."""
    if type(rho) in (int, float) and 1.0 <= rho < 1e300:  # type: ignore[operator]  # the usual case
        return float(rho)  # type: ignore[arg-type]
    if isinstance(rho, bool) or not isinstance(rho, numbers.Real):
        raise TypeError(f"rho: expected a number >= 1, got {_kind(rho)}")
    power = as_float(rho)
    if not 1.0 <= power < np.inf:
        raise ValueError(f"rho: expected a finite number >= 1, got {power}")
    return power


def not_a_space(space: object) -> NoReturn:
    raise TypeError(f"space: expected a fastemd.Chain or fastemd.Tree, got {_kind(space)}")


def space_is_unknown(number: int) -> NoReturn:
    raise ValueError(
        f"space: the ground space or class_weight of this compiled program (number {number}) is "
        "unknown in this process; call a function of fastemd.jax with it first"
    )


def not_an_array(name: str, value: object, why: str = "") -> NoReturn:
    wanted = "a fastemd.Chain, a fastemd.Tree or a matrix" if name == "cost" else "an array"
    raise TypeError(f"{name}: expected {wanted} of real numbers, got {_kind(value)}{why}")


def sparse(name: str, value: object, method: str) -> NoReturn:
    raise TypeError(
        f"{name}: sparse arrays are not supported, got {type(value).__name__}; "
        f"pass {name}.{method}()"
    )


def not_a_number(name: str, index: tuple[int, ...], entry: object) -> NoReturn:
    place, kind = index[0] if len(index) == 1 else index, type(entry).__name__
    mend = "fill missing entries first" if kind in ("NoneType", "NAType") else "encode it first"
    raise TypeError(
        f"{name}: expected real numbers, got an array of objects with {kind} at index {place}; "
        f"{mend}"
    )


def as_float(value: Any) -> float:
    """Return a real number as a float, which is infinite beyond the range of float64."""
    try:
        return float(value)
    except OverflowError:
        return np.inf if value > 0 else -np.inf
    except ValueError:  # Decimal("sNaN")
        return np.nan


def check_order(name: str, value: Any, bins: list[Hashable]) -> None:
    """Refuse a data frame or series whose names are the bins in another order."""
    attribute = next(x for x in ("column_names", "columns", "index") if hasattr(value, x))
    names = getattr(value, attribute)
    if type(names).__name__ == "RangeIndex" or len(names) != len(bins) or list(names) == bins:
        return
    if set(names) == set(bins):
        short = "series" if attribute == "index" else "df"
        raise ValueError(
            f"{name}: the {attribute} of this {type(value).__name__} are in another order than the "
            f"bins of the space; pass {short}[list(space.bins)]"
        )


def mixed_backends(names: Mapping[str, str]) -> NoReturn:
    listed = ", ".join(f"{argument} from {backend}" for argument, backend in names.items())
    raise TypeError(f"{' and '.join(names)}: arrays of different libraries: {listed}")


def not_readable(name: str, value: Any, why: str) -> NoReturn:
    """Raise for an array of another library that NumPy cannot read."""
    kinds = [base.__name__ for base in type(value).__mro__]
    dtype = str(getattr(value, "dtype", ""))
    if "sparse" in str(getattr(value, "layout", "")):
        sparse(name, value, "to_dense")
    elif getattr(value, "requires_grad", False):
        why = f"it requires grad; pass {name}.detach(), or use fastemd.torch to differentiate"
    elif "Tracer" in kinds:
        why = "it is being traced; use fastemd.jax, which works under jit, grad and vmap"
    elif "bfloat16" in dtype or "float8" in dtype:
        why = f"of dtype {dtype}; convert it to float32 first"
    raise TypeError(f"{name}: cannot read this {type(value).__module__}.{kinds[0]}: {why}")


def no_cuda(why: str) -> NoReturn:
    raise ImportError(
        "arrays on a CUDA device need the package numba-cuda; install it for your version of CUDA "
        f"by pip install 'fastemd[cuda12]' or 'fastemd[cuda13]' ({why})"
    )


def not_installed(
    package: str, error: ModuleNotFoundError, name: str = "", extra: str = ""
) -> NoReturn:
    """Raise for the missing package of `name`; other import errors are raised as they are."""
    if error.name != package:
        raise error
    raise ModuleNotFoundError(
        f"{name or f'fastemd.{package}'}: the package {package} is not installed; "
        f"install it by pip install 'fastemd[{extra or package}]'",
        name=package,
    ) from error


def only_on_cpu(what: str) -> NoReturn:
    raise TypeError(f"{what} are computed on the CPU only; copy the arrays to the CPU first")


def not_a_tensor(name: str, value: object) -> NoReturn:
    raise TypeError(f"{name}: expected a torch.Tensor, got {_kind(value)}")


def mixed_devices(devices: Mapping[str, str]) -> NoReturn:
    listed = ", ".join(f"{name} on {device}" for name, device in devices.items())
    raise TypeError(f"{' and '.join(devices)}: on different devices: {listed}")


def unknown_device(name: str, device: str) -> NoReturn:
    raise TypeError(
        f"{name}: on {device}, but fastemd.torch computes on the CPU and on CUDA only; "
        f"pass {name}.cpu()"
    )


def no_gradient(name: str) -> NoReturn:
    raise TypeError(f"{name}: it requires grad, but there is none with respect to it; detach it")


def not_mapped(name: str) -> NoReturn:
    raise TypeError(f"{name}: vmap cannot map over it, all rows share one; loop over it")


def check_edges(n_bins: int, parents: Array, lengths: Array, shares: Array) -> None:
    """Raise unless arrays are an edge layout over so many bins, as far as kernels rely on it."""
    shape = parents.shape
    if len(shape) != 1 or lengths.shape != shape or shares.shape != shape:
        shapes = f"{shape}, {lengths.shape} and {shares.shape}"
        raise ValueError(f"parents, lengths and shares: expected one per edge, got shapes {shapes}")
    types = [str(array.dtype) for array in (parents, lengths, shares)]
    if types != ["int64", "float64", "float64"]:
        raise TypeError(
            "parents, lengths and shares: expected int64, float64 and float64, got "
            f"{', '.join(types)}"
        )
    n_edges, edge = parents.size, np.arange(parents.size)
    chain = n_edges == n_bins
    lowest = edge + 1 if chain else np.maximum(edge + 1, n_bins)
    if n_edges < n_bins or not ((parents >= lowest) & (parents <= n_edges)).all():
        raise ValueError(
            f"parents: expected the edges of a ground space of {n_bins} bins, each before its "
            "parent and those of the bins first; use the buffers of fastemd.torch.EMDLoss"
        )


def no_arithmetic(function: str) -> NoReturn:
    raise TypeError(
        f"{function}: Numba's device arrays have no arithmetic; pass arrays of PyTorch, CuPy or JAX"
    )


def no_third_derivative(operator: str, rho: float) -> NoReturn:
    raise NotImplementedError(
        f"third derivatives of {operator} with rho={rho:g} are not available; "
        "emd has them for rho=2, where they are 0"
    )


def no_second_derivative_in_lengths(keyword: str) -> NoReturn:
    raise NotImplementedError(
        "length: second derivatives are not available where lengths are learned; use a loss "
        f"without {keyword}, on a space with these lengths"
    )


def check_increasing(name: str, array: Array, n_least: int) -> Array:
    """Return at least so many finite, increasing numbers as float64, or raise."""
    if array.ndim != 1 or array.size < n_least:
        raise ValueError(
            f"{name}: expected {n_least} or more numbers, got an array of shape {array.shape}"
        )
    numbers = array.astype(np.float64)
    with np.errstate(all="ignore"):
        steps = np.diff(numbers)
    is_valid = np.isfinite(numbers)
    is_valid[1:] &= (steps > 0) & (steps < np.inf)
    if not is_valid.all():
        i = int(np.flatnonzero(~is_valid)[0])
        before = f" after {numbers[i - 1]}" if i else ""
        raise ValueError(
            f"{name}: expected finite, increasing numbers, got {numbers[i]}{before} at index {i}; "
            "sort them and remove duplicates, for example by numpy.unique"
        )
    return numbers


def no_mean_distance() -> NoReturn:
    raise ValueError(
        "mean_distance: 1 bin; expected a space with at least 2 bins, the ends of a distance; "
        "build it with more bins"
    )


def no_bin_edges() -> NoReturn:
    raise ValueError(
        "this chain has no bin edges; build it by Chain.from_edges or Chain.from_positions"
    )


def beyond_edges(values: Array, is_outside: Array, edges: Array) -> NoReturn:
    raise ValueError(
        f"values: {_entry(values, is_outside)} is not within [{edges[0]}, {edges[-1]}]; use wider "
        "edges, or clip=True for the first and the last bin"
    )


def check_labels(name: str, labels: Array, n_bins: int) -> Array:
    """Return labels of bins as integers of the machine, or raise."""
    if labels.dtype.kind not in "iu" and labels.size:
        raise TypeError(
            f"{name}: expected labels of an integer type, got {labels.dtype}; encode them as "
            f"0 to {n_bins - 1}, for example {name}.astype(int)"
        )
    is_outside = (labels < 0) | (labels >= n_bins)
    if is_outside.any():
        raise ValueError(
            f"{name}: {_entry(labels, is_outside)} is not a bin; labels are 0 to {n_bins - 1}"
        )
    return labels.astype(np.intp)


def _entry(array: Array, chosen: Array) -> str:
    """Return the first chosen entry of an array, and where it is."""
    index = ", ".join(str(i) for i in np.argwhere(chosen)[0]) if array.ndim else ""
    return f"{array[chosen].flat[0]}" + (f" at index {index}" if index else "")


def not_a_tree() -> NoReturn:
    raise TypeError("space: expected a fastemd.Tree; a chain has no hierarchy, use ground_distance")


def check_same_shape(first: str, a: Array, second: str, b: Array) -> None:
    if a.shape != b.shape:
        raise ValueError(
            f"{second}: expected the shape of {first}, {a.shape}, got {b.shape}; flatten columns, "
            f"for example by {second}.ravel()"
        )


def no_weight() -> NoReturn:
    raise ValueError(
        "sample_weight: there is no row of positive weight, so no mean; pass at least one row"
    )


def check_classifier(estimator: Any, n_bins: int) -> Array:
    """Return the bins of the columns of an estimator's probabilities, or raise."""
    name = type(estimator).__name__
    if not hasattr(estimator, "predict_proba"):
        raise TypeError(f"estimator: {name} has no predict_proba; use one that has probabilities")
    classes = np.asarray(getattr(estimator, "classes_", None))
    if classes.ndim != 1:
        raise TypeError(f"estimator: {name} has no classes_ of one output; fit a classifier first")
    if classes.dtype.kind not in "iu" or not ((classes >= 0) & (classes < n_bins)).all():
        raise ValueError(
            f"estimator: expected classes that are bins, 0 to {n_bins - 1}, {name} was fitted to "
            f"{classes.tolist()[:5]}; encode the labels as integers"
        )
    return classes


def check_axis(keyword: str, axis: object, n_axes: int | None, name: str = "x") -> int:
    """Return an axis of an array as a number < 0; without an array, check its type only."""
    if type(axis) is int and axis == -1:  # the usual case
        return -1
    if isinstance(axis, bool) or not isinstance(axis, numbers.Integral):
        raise TypeError(f"{keyword}: expected an integer, got {_kind(axis)}")
    number = int(axis)
    if n_axes is None:
        return number
    if not -n_axes <= number < n_axes:
        allowed = f"from {-n_axes} to {n_axes - 1}" if n_axes else "but it has none"
        raise ValueError(f"{keyword}: expected an axis of {name}, {allowed}, got {number}")
    return number if number < 0 else number - n_axes


def check_bins_axis(
    name: str, shape: tuple[int, ...], n_bins: int, axis: int | None = None, keyword: str = ""
) -> None:
    """Raise unless an axis (< 0) holds the bins; None if the caller has no such argument."""
    at = -1 if axis is None else axis
    if len(shape) >= -at and shape[at] == n_bins:
        return
    hint, place = "", "the last axis" if at == -1 else f"axis {at}"
    if n_bins in shape:
        found = shape.index(n_bins)
        mend = f"pass {keyword}={found}" if name in ("x", "p") else f"move it to axis {at}"
        mend = "move it last" if axis is None else mend
        hint = f"; the axis of {n_bins} entries is axis {found}: {mend}"
    raise ValueError(
        f"{name}: {place} must hold the {n_bins} bins of the ground space, "
        f"got an array of shape {shape}{hint}"
    )


def do_not_broadcast(shapes: Mapping[str, tuple[int, ...]]) -> NoReturn:
    listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    mend = ""
    for name, shape in shapes.items():
        if shape[-1:] == (1,) and any(len(other) < len(shape) for other in shapes.values()):
            mend = f"; remove the axis of length 1 of {name}, for example by squeeze"
    raise ValueError(f"{' and '.join(shapes)}: the batch shapes do not broadcast: {listed}{mend}")


def check_out(name: str, out: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Raise unless a view of the user's `out` can hold a result."""
    host = isinstance(out, np.ndarray)
    if not host and not hasattr(out, "pointer"):
        raise TypeError(f"{name}: expected a numpy array, got {_kind(out)}")
    if out.dtype != dtype:
        raise TypeError(f"{name}: expected dtype {dtype}, got {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {out.shape}")
    if not (out.flags.writeable if host else out.writeable):
        raise ValueError(f"{name}: the array is read-only")
    if _overlaps_itself(out):
        raise ValueError(
            f"{name}: several entries share memory (strides {out.strides}); pass a copy of it"
        )


def _overlaps_itself(view: Any) -> bool:
    """Return whether entries may share memory; False for every slice and transpose of an array."""
    if view.size == 0 or (isinstance(view, np.ndarray) and view.flags.c_contiguous):
        return False
    reach = view.dtype.itemsize
    axes = sorted((abs(step), n) for step, n in zip(view.strides, view.shape, strict=True))
    for step, n in axes:
        if n > 1 and step < reach:
            return True
        reach += (n - 1) * step
    return False


def outs_overlap() -> NoReturn:
    raise ValueError("out: the arrays for value and grad share memory")


def check_broadcast(name: str, shape: tuple[int, ...], other: str, rows: tuple[int, ...]) -> None:
    """Raise unless an argument of one number per row broadcasts to the rows of another."""
    if not broadcasts(shape, rows):
        do_not_broadcast({name: shape, other: rows})


def broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Return whether a shape broadcasts to another one without changing it."""
    trailing = to[len(to) - len(shape) :]
    return len(shape) <= len(to) and all(n in (1, m) for n, m in zip(shape, trailing, strict=True))


def check_out_pair(out: object) -> tuple[Any, Any]:
    if out is None:
        return None, None
    if not isinstance(out, tuple | list) or len(out) != 2:
        raise TypeError(f"out: expected a pair (value, grad) of arrays, got {_kind(out)}")
    return out[0], out[1]


def check_cost_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise ValueError(f"cost: expected a square matrix (N, N), got shape {shape}")


def check_cost(matrix: Array) -> None:
    check_cost_shape(matrix.shape)
    if matrix.min() >= 0 and matrix.max() < np.inf:
        return
    for bad in np.argwhere(~np.isfinite(matrix))[:1]:
        raise ValueError(
            f"cost: not finite, {matrix[tuple(bad)]} from bin {bad[0]} to {bad[1]}; "
            f"costs must be finite in {matrix.dtype}"
        )
    for bad in np.argwhere(matrix < 0)[:1]:
        raise ValueError(
            f"cost: a negative cost, {matrix[tuple(bad)]} from bin {bad[0]} to {bad[1]}; "
            "costs must be >= 0"
        )


def check_dtype(dtype: object) -> np.dtype[Any]:
    try:
        wanted = np.dtype(dtype)  # type: ignore[call-overload]
    except TypeError:
        wanted = None
    if wanted not in (np.float32, np.float64):
        raise TypeError(f"dtype: expected float32 or float64, got {_kind(dtype)}")
    return wanted.newbyteorder("=")  # type: ignore[no-any-return]


def check_amount(name: str, value: object, *, zero: bool) -> float:
    """Return a finite number > 0 or, with `zero`, >= 0, as a float."""
    wanted = "number >= 0" if zero else "number > 0"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a {wanted}, got {_kind(value)}")
    amount = as_float(value)
    if not 0.0 <= amount < np.inf or (amount == 0.0 and not zero):
        raise ValueError(f"{name}: expected a finite {wanted}, got {amount}")
    return amount


def check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: expected True or False, got {_kind(value)}")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    listed = ", ".join(map(repr, choices))
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected one of {listed}, got {_kind(value)}")
    if value not in choices:
        raise ValueError(f"{name}: expected one of {listed}, got {value!r}")


def check_columns(columns: Array, n_bins: int) -> None:
    good = columns.dtype.kind in "iu" and columns.size and 0 <= columns[0] <= columns[-1] < n_bins
    if not good:
        raise ValueError(f"columns: expected integers between 0 and {n_bins - 1}")


def check_one_histogram(name: str, shape: tuple[int, ...]) -> None:
    if len(shape) != 1:
        raise ValueError(f"{name}: expected one histogram, got shape {shape}")


def check_count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: expected an integer, got {_kind(value)}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")
    return int(value)


def _kind(value: object) -> str:
    """Describe an option by its value, and anything else by its type and shape."""
    name = type(value).__name__
    if value is None or isinstance(value, bool | numbers.Number | str | type):
        return f"{value!r:.60} ({name})"
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple):
        dtype = f" and dtype {value.dtype}" if hasattr(value, "dtype") else ""
        return f"{name} of shape {shape}{dtype}"
    return f"{name} of length {len(value)}" if isinstance(value, Sized) else name
