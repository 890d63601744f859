"""Every message a user can get for bad input."""

import functools
import math
import numbers
import sys
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
LONGEST = 1e150  # of all edges together: no result overflows as long as masses are not huge, too

# -- functions on histograms ---------------------------------------------------------------------


def check_rho(rho: object) -> float:
    """The power as a float, or an error."""
    if type(rho) in (int, float) and 1.0 <= rho < 1e300:  # type: ignore[operator]  # the usual case
        return float(rho)  # type: ignore[arg-type]
    if isinstance(rho, bool) or not isinstance(rho, numbers.Real):
        raise TypeError(f"rho: expected a number >= 1, got {_kind(rho)}")
    try:
        power = float(rho)
    except OverflowError:
        power = np.inf
    if not 1.0 <= power < np.inf:
        raise ValueError(f"rho: expected a finite number >= 1, got {power}")
    return power


def not_a_space(space: object) -> NoReturn:
    raise TypeError(f"space: expected a fastemd.Chain or fastemd.Tree, got {_kind(space)}")


def not_an_array(name: str, value: object, why: str = "") -> NoReturn:
    wanted = "a fastemd.Chain, a fastemd.Tree or a matrix" if name == "cost" else "an array"
    raise TypeError(f"{name}: expected {wanted} of real numbers, got {_kind(value)}{why}")


def mixed_libraries(names: Mapping[str, str]) -> NoReturn:
    listed = ", ".join(f"{name} from {library}" for name, library in names.items())
    raise TypeError(f"{' and '.join(names)}: arrays of different libraries: {listed}")


def not_readable(name: str, value: Any, why: str) -> NoReturn:
    """An array of another library that NumPy cannot see."""
    kinds = [base.__name__ for base in type(value).__mro__]
    dtype = str(getattr(value, "dtype", ""))
    if getattr(value, "requires_grad", False):
        why = f"it requires grad; pass {name}.detach(), or take fastemd.torch to differentiate"
    elif "Tracer" in kinds:
        why = "it is being traced; take fastemd.jax, which works under jit, grad and vmap"
    elif "bfloat16" in dtype or "float8" in dtype:
        why = f"of dtype {dtype}; convert it to float32 first"
    raise TypeError(f"{name}: cannot read this {type(value).__module__}.{kinds[0]}: {why}")


def not_a_tensor(name: str, value: object) -> NoReturn:
    raise TypeError(f"{name}: expected a torch.Tensor, got {_kind(value)}")


def space_is_gone(number: int) -> NoReturn:
    raise ValueError(
        f"space: the ground space of this compiled program (number {number}) does not exist "
        "any more, or not in this process; keep a reference to it"
    )


def no_third_derivative(operator: str, rho: float) -> NoReturn:
    raise NotImplementedError(
        f"third derivatives of {operator} with rho={rho:g} are not available; "
        "emd has them for rho=2, where they are 0"
    )


def bad_target(target: object) -> NoReturn:
    if getattr(target, "requires_grad", False):
        raise TypeError(
            "target: it requires grad, but no gradient flows to a target; pass target.detach(), "
            "or take fastemd.torch.emd"
        )
    raise TypeError(f"target: expected a torch.Tensor, got {_kind(target)}")


def check_bins_axis(name: str, shape: tuple[int, ...], n_bins: int) -> None:
    if not shape or shape[-1] != n_bins:
        raise ValueError(
            f"{name}: the last axis must hold the {n_bins} bins of the ground space, "
            f"got an array of shape {shape}"
        )


def do_not_broadcast(shapes: Mapping[str, tuple[int, ...]]) -> NoReturn:
    listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    raise ValueError(f"{' and '.join(shapes)}: the batch shapes do not broadcast: {listed}")


def check_out(name: str, out: object, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{name}: expected a numpy array, got {_kind(out)}")
    if out.dtype != dtype:
        raise TypeError(f"{name}: expected dtype {dtype}, got {out.dtype}")
    if out.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {out.shape}")
    if not out.flags.writeable:
        raise ValueError(f"{name}: the array is read-only")


def outs_overlap() -> NoReturn:
    raise ValueError("out: the arrays for value and grad share memory")


def check_out_pair(out: object) -> tuple[Any, Any]:
    if out is None:
        return None, None
    if not isinstance(out, tuple | list) or len(out) != 2:
        raise TypeError(f"out: expected a pair (value, grad) of arrays, got {_kind(out)}")
    return out[0], out[1]


@functools.cache
def mass_tolerance(*chars: str) -> float:
    """How far two masses may differ, relative: the root of the coarser type's precision.

    The types are known by their characters.
    """
    if len(chars) == 1:  # nothing to compare
        return sys.float_info.max
    dtypes = [np.dtype(char) for char in (*chars, "d")]
    return math.sqrt(max(np.finfo(dtype).eps for dtype in dtypes if dtype.kind == "f"))


def check_validate(validate: bool | float, *chars: str) -> float:
    """The tolerance between two masses of types known by their characters; < 0: no checks."""
    if not isinstance(validate, float):
        return mass_tolerance(*chars) if validate else -1.0
    if not 0.0 <= validate < np.inf:
        raise ValueError(f"validate: expected a bool or a tolerance >= 0, got {validate}")
    return validate


def blame(
    inputs: Mapping[str, Array], batch: tuple[int, ...], row: int, tolerance: float
) -> NoReturn:
    """Say what is wrong with a row of the batch that a kernel refused.

    Parameters
    ----------
    inputs : mapping of str to ndarray (..., N)
        The arguments by name; all but ``v`` are histograms.
    batch : tuple of int
        The shape to which their leading axes broadcast.
    row : int
        The flat index of the row in that shape.
    tolerance : float
        Relative tolerance between the masses.

    Raises
    ------
    ValueError
        Names the argument, the row, what was found and what was expected.
    """
    index = np.unravel_index(row, batch)
    row_name = _row_name(batch, row)
    masses = {}
    for name, array in inputs.items():
        values = np.broadcast_to(array, (*batch, array.shape[-1]))[index].astype(np.float64)
        if name == "v":
            _blame_vector(name, row_name, values)
        else:
            masses[name] = _blame_masses(name, row_name, values)
    if sum(masses.values()) == np.inf:
        names = " and ".join(masses)
        raise ValueError(f"{names}{row_name}: the mass is beyond the range of float64")
    sums = " and ".join(f"{name} sums to {mass}" for name, mass in masses.items())
    raise ValueError(
        f"p and q{row_name} {'has' if index else 'have'} unequal masses, {sums}; normalise both, "
        f"for example by p / p.sum(-1, keepdims=True) (relative tolerance {tolerance:.1e})"
    )


# -- training losses -------------------------------------------------------------------------------


def check_cross_entropy(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"cross_entropy: expected a number >= 0, got {_kind(value)}")
    if not 0.0 <= float(value) < np.inf:
        raise ValueError(f"cross_entropy: expected a finite number >= 0, got {value}")
    return float(value)


def check_normalize(value: object) -> None:
    if value is not None and not (isinstance(value, str) and value in ("softmax", "l1")):
        raise ValueError(f"normalize: expected 'softmax', 'l1' or None, got {value!r:.60}")


def check_ignore_index(value: object, labelled: bool) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"ignore_index: expected an integer, got {_kind(value)}")
    if not labelled:
        raise ValueError("ignore_index: needs integer targets, got histograms")


def check_target(dtype: np.dtype[Any]) -> None:
    if dtype.kind == "b":
        raise TypeError(
            "target: expected classes of an integer type or floating point histograms, got an "
            f"array of dtype {dtype}"
        )


def check_labels_shape(shape: tuple[int, ...], x_shape: tuple[int, ...]) -> None:
    if shape == x_shape:
        raise ValueError(
            f"target: integers are class indices, one per row of x, of shape {x_shape[:-1]}, but "
            f"got them of x's whole shape {shape}; histograms must be floating point"
        )


def check_weights(weights: Array, batch: tuple[int, ...]) -> None:
    for row in np.flatnonzero(~((weights >= 0.0) & (weights < np.inf)))[:1]:
        raise ValueError(
            f"sample_weight{_row_name(batch, int(row))} is {weights.flat[row]}; weights must be "
            "finite and >= 0"
        )


def check_boosted(labels: Array, scores: tuple[int, ...], n_bins: int) -> Array:
    """Labels of a boosting library, which are floats, as integers."""
    if len(scores) != 2 or scores[1] != n_bins:
        raise ValueError(
            f"the ground space has {n_bins} classes, the scores have shape {scores}: give the "
            f"library num_class={n_bins}, and its classifier labels of all classes (of > 2)"
        )
    if labels.shape != scores[:1]:
        raise ValueError(f"labels: expected one per row, shape {scores[:1]}, got {labels.shape}")
    if labels.dtype.kind not in "iuf":
        raise TypeError(f"labels: expected whole numbers, got {_kind(labels)}")
    whole = (labels >= 0) & (labels < n_bins) & (labels % 1 == 0)
    for row in np.flatnonzero(~whole)[:1]:
        raise ValueError(
            f"labels: row {row} is {labels[row]}, expected a whole number from 0 to {n_bins - 1}"
        )
    return labels.astype(np.int64)


def blame_loss(
    x: Array,
    target: Array,
    v: Array | None,
    batch: tuple[int, ...],
    row: int,
    labelled: bool,
    normalize: str | None,
    cross_entropy: float,
    tolerance: float,
) -> NoReturn:
    """Say what is wrong with a row that the kernel of a loss refused; as `blame`."""
    row_name = _row_name(batch, row)
    index = np.unravel_index(row, batch)
    n_bins = x.shape[-1]
    x = np.broadcast_to(x, (*batch, n_bins))[index].astype(np.float64)
    if normalize == "softmax":
        for bad in np.flatnonzero(np.isnan(x) | (x == np.inf)):
            raise ValueError(f"x{row_name} has a logit {x[bad]} at bin {bad}")
        if (x == -np.inf).all():
            raise ValueError(f"x{row_name} has no class left, all logits are -inf")
    else:
        mass = _blame_masses("x", row_name, x)
        if normalize == "l1" and mass < np.finfo(np.float64).tiny:
            raise ValueError(f"x{row_name} sums to {mass} and cannot be divided by its sum")
        if normalize is None and not abs(mass - 1.0) <= tolerance:
            _not_one("x", row_name, mass, tolerance)
    if labelled:
        label = int(np.broadcast_to(target, batch)[index])
        if not 0 <= label < n_bins:
            raise ValueError(f"target{row_name} is class {label}; there are {n_bins}")
        q = np.zeros(n_bins)
        q[label] = 1.0
    else:
        q = np.broadcast_to(target, (*batch, n_bins))[index].astype(np.float64)
        mass = _blame_masses("target", row_name, q)
        if not abs(mass - 1.0) <= tolerance:
            _not_one("target", row_name, mass, tolerance)
    for bad in np.flatnonzero((q > 0.0) & (x == (-np.inf if normalize == "softmax" else 0.0))):
        if cross_entropy:
            raise ValueError(
                f"target{row_name} has mass at bin {bad}, which x excludes by {x[bad]}: the cross "
                "entropy is infinite"
            )
    if v is not None:
        _blame_vector("v", row_name, np.broadcast_to(v, (*batch, n_bins))[index])
    raise ValueError(f"x and target{row_name}: beyond the range of float64")


def _blame_vector(name: str, row_name: str, values: Array) -> None:
    for bad in np.flatnonzero(~np.isfinite(values)):
        raise ValueError(f"{name}{row_name} is not finite, {values[bad]} at bin {bad}")


def _blame_masses(name: str, row_name: str, values: Array) -> float:
    """The sum of a histogram, if it is one."""
    _blame_vector(name, row_name, values)
    for bad in np.flatnonzero(values < 0.0):
        raise ValueError(
            f"{name}{row_name} has a negative mass, {values[bad]} at bin {bad}; "
            "histograms must be >= 0"
        )
    with np.errstate(over="ignore"):
        return float(values.sum())


def _not_one(name: str, row_name: str, mass: float, tolerance: float) -> NoReturn:
    raise ValueError(
        f"{name}{row_name} sums to {mass}, not to 1; normalise it, for example by "
        f"p / p.sum(-1, keepdims=True) (tolerance {tolerance:.1e})"
    )


def _row_name(batch: tuple[int, ...], row: int) -> str:
    index = tuple(int(i) for i in np.unravel_index(row, batch))
    return f": row {index[0] if len(index) == 1 else index}" if index else ""


# -- references: any cost matrix ------------------------------------------------------------------


def check_cost(matrix: Array) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
        raise ValueError(f"cost: expected a square matrix (N, N), got shape {matrix.shape}")
    if matrix.min() >= 0 and matrix.max() < np.inf:
        return
    for bad in np.argwhere(~np.isfinite(matrix))[:1]:
        raise ValueError(f"cost: not finite, {matrix[tuple(bad)]} from bin {bad[0]} to {bad[1]}")
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
    """A finite number > 0 or, with `zero`, >= 0, as a float."""
    wanted = "number >= 0" if zero else "number > 0"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a {wanted}, got {_kind(value)}")
    try:
        amount = float(value)
    except OverflowError:
        amount = np.inf
    if not 0.0 <= amount < np.inf or (amount == 0.0 and not zero):
        raise ValueError(f"{name}: expected a finite {wanted}, got {amount}")
    return amount


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    listed = ", ".join(map(repr, choices))
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected one of {listed}, got {_kind(value)}")
    if value not in choices:
        raise ValueError(f"{name}: expected one of {listed}, got {value!r}")


def not_solved(row: int, why: str) -> NoReturn:
    raise RuntimeError(f"row {row}: the linear programme was not solved: {why}")


# -- pictures -------------------------------------------------------------------------------------


def check_columns(columns: Array, n_bins: int) -> None:
    good = columns.dtype.kind in "iu" and columns.size and 0 <= columns[0] <= columns[-1] < n_bins
    if not good:
        raise ValueError(f"columns: expected integers between 0 and {n_bins - 1}")


def check_one_histogram(name: str, shape: tuple[int, ...]) -> None:
    if len(shape) != 1:
        raise ValueError(f"{name}: expected one histogram, got shape {shape}")


# -- ground spaces --------------------------------------------------------------------------------


def check_count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}: expected an integer, got {_kind(value)}")
    if value < 1:
        raise ValueError(f"{name}: expected at least 1, got {value}")
    return int(value)


def check_lengths(
    name: str, values: object, owners: Sequence[object], root: int | None = None
) -> NDArray[np.float64]:
    """Edge lengths as float64: one per owner, finite, >= 0; the root has none and gets 0."""
    if isinstance(values, np.ma.MaskedArray):
        raise TypeError(f"{name}: masked arrays are not supported")
    given = np.array(values, object)
    if given.shape != (len(owners),):
        raise ValueError(f"{name}: expected shape ({len(owners)},), got {given.shape}")
    if root is not None:
        given[root] = 0.0
    for owner, value in zip(owners, given, strict=True):
        if not isinstance(value, numbers.Real):
            raise TypeError(f"{name}: {owner!r} has length {value!r:.60}, expected a number")
    lengths = given.astype(np.float64)
    for i in np.flatnonzero(~(np.isfinite(lengths) & (lengths >= 0.0))).tolist():
        raise ValueError(
            f"{name}: {owners[i]!r} has length {lengths[i]}; lengths must be finite and >= 0"
        )
    if math.fsum(lengths) > LONGEST:
        raise ValueError(f"{name}: the lengths sum to more than {LONGEST:g}; use another unit")
    return lengths


def check_parents(values: object) -> NDArray[np.intp]:
    """Parent pointers with one root."""
    parents = np.asarray(values)
    if parents.dtype.kind not in "iu" or parents.ndim != 1:
        raise TypeError(f"parents: expected a list of integers, got {_kind(values)}")
    if parents.size == 0:
        not_a_tree("there are no nodes")
    for node in np.flatnonzero((parents < -1) | (parents >= parents.size)):
        not_a_tree(f"node {node} has parent {parents[node]}, which does not exist")
    roots = np.flatnonzero(parents == -1)
    if roots.size == 0:
        not_a_tree("no node has parent -1, which marks the root; some lie on a cycle")
    if roots.size > 1:
        not_a_tree(f"nodes {roots[0]} and {roots[1]} are both roots (parent -1)")
    return parents.astype(np.intp)


def check_bins(labels: object, index: Mapping[Hashable, int]) -> NDArray[np.intp]:
    """The node index of every bin."""
    if not isinstance(labels, Iterable):
        raise TypeError(f"bins: expected nodes, got {_kind(labels)}")
    bins = list(labels)
    if not bins:
        raise ValueError("bins: a ground space needs at least one bin")
    seen = set()
    for label in bins:
        if not isinstance(label, Hashable) or label not in index:
            raise ValueError(f"bins: {label!r} is not a node of the tree")
        if label in seen:
            raise ValueError(f"bins: {label!r} stands twice")
        seen.add(label)
    return np.array([index[label] for label in bins], np.intp)


def not_a_tree(why: str) -> NoReturn:
    raise ValueError(f"not a tree: {why}")


def _kind(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of dtype {value.dtype}"
    return f"{value!r:.60} ({type(value).__name__})"
