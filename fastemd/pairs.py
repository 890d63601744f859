"""Histograms with any cost matrix: the inputs of `sinkhorn` and `exact_emd`."""

import functools
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastemd import backends, validation, views
from fastemd.backends import Backend
from fastemd.call import Batch, batch_shape, result_type, run
from fastemd.kernels.edges import power
from fastemd.spaces import Chain, GroundSpace

Array = NDArray[Any]

_any_space = functools.lru_cache(maxsize=8)(Chain)  # to validate masses, for which all are alike


class Pairs(NamedTuple):
    """Validated inputs: rows of histograms and their costs, NumPy arrays of one type."""

    p: Array  # (rows, N)
    q: Array  # (rows, N)
    cost: Array  # (N, N)
    shape: tuple[int, ...]  # of the batch
    backend: Backend  # of the arguments


@np.errstate(all="ignore")  # sums and conversions may overflow or underflow
def resolve_pairs(
    p: ArrayLike,
    q: ArrayLike,
    cost: ArrayLike | GroundSpace,
    validate: bool | float | None,
    dtype: Any = None,
) -> Pairs:
    """Return arguments on the CPU in a type, by default float32 if all are, else float64."""
    dtype = None if dtype is None else validation.check_dtype(dtype)
    if isinstance(cost, GroundSpace):
        backend, space = backends.backend_of({"p": p, "q": q}), cost
        matrix, of_type = cost.cost_matrix(), []
    else:
        backend = backends.backend_of({"p": p, "q": q, "cost": cost})
        matrix = views.as_array("cost", cost)
        validation.check_cost_shape(matrix.shape)
        space, of_type = _any_space(matrix.shape[0]), [matrix]
    inputs: dict[str, Any] = {"p": p, "q": q}
    for name, value in inputs.items():
        if space is cost:
            inputs[name] = views.as_histograms(name, value, space)
        else:
            inputs[name] = views.as_array(name, value)
            validation.check_bins_axis(name, inputs[name].shape, space.n_bins)
    shape = batch_shape(inputs)
    chars = [view.dtype.char for view in inputs.values()]
    tolerance = validation.check_validate(validate, validation.mass_tolerance(*chars))
    batch = Batch(backend, inputs, shape, result_type(inputs.values()), tolerance, validate)
    if tolerance >= 0.0:
        run("gradient", space.layout("levels"), batch, power(1.0))
    dtype = dtype or result_type([*inputs.values(), *of_type])
    p_rows, q_rows = (
        np.maximum(np.broadcast_to(view, (*shape, space.n_bins)), 0)  # negatives are tolerated
        .astype(dtype, order="C")
        .reshape(math.prod(shape), space.n_bins)
        for view in inputs.values()
    )
    costs = np.ascontiguousarray(matrix, dtype)
    validation.check_cost(costs)
    return Pairs(p_rows, q_rows, costs, shape, backend)
