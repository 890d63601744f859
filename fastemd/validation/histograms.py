"""Invalid rows of a batch of histograms."""

import functools
import math
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fastemd.validation.arguments import _kind

Array = NDArray[Any]


@functools.cache
def mass_tolerance(*chars: str) -> float:
    """Default relative tolerance of masses: `tolerance_of` the coarsest type.

    The types are given by their characters.
    """
    dtypes = [np.dtype(char) for char in chars]
    return tolerance_of(*(np.finfo(dtype).eps for dtype in dtypes if dtype.kind == "f"))


def tolerance_of(*epsilons: float) -> float:
    """Relative tolerance of masses for types of these precisions: 1e-5, or the largest root.

    Data of float64 are often rounded to fewer digits on the way, for example to float32.
    """
    return max((1e-5, *map(math.sqrt, epsilons)))


def check_validate(validate: bool | float | None, default: float) -> float:
    """Return the relative tolerance of masses; < 0: no checks. None and True give the default."""
    if validate is None or validate is True:
        return default
    if isinstance(validate, bool | np.bool_):
        return default if validate else -1.0
    if not isinstance(validate, float | np.floating):
        raise TypeError(
            "validate: expected True, False or the relative tolerance of masses as a float, got "
            f"{_kind(validate)}"
        )
    if not 0.0 <= validate < np.inf:
        raise ValueError(f"validate: expected a bool or a tolerance >= 0, got {validate}")
    return float(validate)


def invalid_row_on_cuda(index: int, row: int) -> NoReturn:
    raise ValueError(
        f"row {row} of an earlier call on cuda:{index} is invalid, and so are its results; "
        "call with validate=True to raise in that call, with the reason"
    )


def raise_invalid_row(
    inputs: Mapping[str, Array], batch: tuple[int, ...], row: int, tolerance: float
) -> NoReturn:
    """Raise for a row of the batch that a kernel found invalid.

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
            _check_vector(name, row_name, values)
        else:
            masses[name] = _check_masses(name, row_name, values, tolerance)
    if 2.0 * max(masses.values()) == np.inf:
        names = " and ".join(masses)
        raise ValueError(f"{names}{row_name}: the mass is beyond the range of float64")
    sums = " and ".join(f"{name} sums to {mass}" for name, mass in masses.items())
    raise ValueError(
        f"p and q{row_name} {'has' if index else 'have'} unequal masses, {sums}; normalise both, "
        f"for example by p / p.sum(-1, keepdims=True) (relative tolerance {tolerance:.1e})"
    )


def _check_vector(name: str, row_name: str, values: Array) -> None:
    for k in np.flatnonzero(~np.isfinite(values)):
        raise ValueError(
            f"{name}{row_name} is not finite, {values[k]} at bin {k}; expected finite numbers"
        )


def _check_masses(name: str, row_name: str, values: Array, tolerance: float) -> float:
    """Return the sum of a histogram, if it is one."""
    _check_vector(name, row_name, values)
    with np.errstate(all="ignore"):
        mass, negative = float(values.sum()), -float(values[values < 0.0].sum())
    if negative > tolerance * mass:
        k = values.argmin()
        raise ValueError(
            f"{name}{row_name} has a negative mass, {values[k]} at bin {k}; "
            f"histograms must be >= 0 (relative tolerance {tolerance:.1e})"
        )
    return mass


def _not_one(name: str, row_name: str, mass: float, tolerance: float) -> NoReturn:
    raise ValueError(
        f"{name}{row_name} sums to {mass}, not to 1; normalise it, for example by "
        f"p / p.sum(-1, keepdims=True) (tolerance {tolerance:.1e})"
    )


def _row_name(batch: tuple[int, ...], row: int) -> str:
    index = tuple(int(i) for i in np.unravel_index(row, batch))
    return f": row {index[0] if len(index) == 1 else index}" if index else ""
