"""Histograms against any cost matrix: what `sinkhorn` and `exact_emd` take and check alike."""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastemd import arrays, validation
from fastemd.ground import GroundSpace

Array = NDArray[Any]


class Pairs(NamedTuple):
    """Checked arguments: rows of histograms and their costs, of one dtype."""

    p: Array  # (rows, N)
    q: Array  # (rows, N)
    cost: Array  # (N, N)
    batch: tuple[int, ...]  # the shape whose rows they are
    library: arrays.Library  # that they came from


def library_of(p: ArrayLike, q: ArrayLike, cost: ArrayLike | GroundSpace) -> arrays.Library:
    """The library that all arrays come from."""
    costs = {} if isinstance(cost, GroundSpace) else {"cost": cost}
    return arrays.library_of({"p": p, "q": q, **costs})


@np.errstate(all="ignore")  # sums and conversions may overflow or underflow
def checked(
    p: ArrayLike,
    q: ArrayLike,
    cost: ArrayLike | GroundSpace,
    validate: bool | float | None,
    dtype: object = None,
) -> Pairs:
    """The arguments as arrays of `dtype`, by default of the type they call for, or an error."""
    given = None if dtype is None else validation.check_dtype(dtype)
    library = library_of(p, q, cost)
    if isinstance(cost, GroundSpace):
        matrix, deciding = cost.cost_matrix(), []
    else:
        matrix = arrays.real("cost", cost)
        validation.check_cost(matrix)
        deciding = [matrix]
    inputs: dict[str, Any] = {"p": p, "q": q}
    for name, value in inputs.items():
        if isinstance(cost, GroundSpace):
            inputs[name] = arrays.histograms(name, value, cost)
        else:
            inputs[name] = arrays.unwrap(name, value, len(matrix))
    batch = arrays.batch_shape(inputs)
    result_type = given or arrays.result_type([*inputs.values(), *deciding])
    usual = validation.mass_tolerance(*(array.dtype.char for array in inputs.values()))
    tolerance = validation.check_validate(validate, usual)
    if tolerance >= 0.0:
        check_masses(inputs, batch, tolerance)
    shape = math.prod(batch), len(matrix)
    p_rows, q_rows = (
        np.broadcast_to(array, (*batch, len(matrix))).astype(result_type, order="C").reshape(shape)
        for array in inputs.values()
    )
    for rows in (p_rows, q_rows):
        rows[rows < 0.0] = 0.0  # within the tolerance
    costs = np.ascontiguousarray(matrix, result_type)
    validation.check_cost(costs)  # finite in that type, too
    return Pairs(p_rows, q_rows, costs, batch, library)


def check_masses(inputs: dict[str, Array], batch: tuple[int, ...], tolerance: float) -> None:
    """Finite, non-negative, of equal mass: the kernels' own rules, without a plan."""
    p_mass, q_mass = (array.sum(axis=-1, dtype=np.float64) for array in inputs.values())
    highest = np.maximum(p_mass, q_mass)
    good: Any = (np.abs(p_mass - q_mass) <= tolerance * highest) & (highest < np.inf)
    for array, mass in zip(inputs.values(), (p_mass, q_mass), strict=True):
        negative = -np.minimum(array, 0).sum(axis=-1, dtype=np.float64)
        good = good & (negative <= tolerance * mass)
    for row in np.flatnonzero(~np.broadcast_to(good, batch)):
        validation.blame(inputs, batch, int(row), tolerance)
