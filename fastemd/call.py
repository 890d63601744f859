"""One call of a function on histograms: check, launch, hand back."""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastemd import arrays, kernels, validation
from fastemd.ground import GroundSpace
from fastemd.plan import Plan

Array = NDArray[Any]


class Call:
    """One call of a function: its checked arguments and the launch of its kernel.

    `inputs` are ``p``, ``q`` and ``v`` by name, in this order; without ``q`` no masses are
    compared.
    """

    def __init__(self, space: GroundSpace, rho: float, validate: bool, **inputs: ArrayLike) -> None:
        if not isinstance(space, GroundSpace):
            validation.not_a_space(space)
        self.space = space
        self.rho = validation.check_rho(rho)
        n_bins = space.n_bins
        self.inputs = {name: arrays.unwrap(name, a, n_bins) for name, a in inputs.items()}
        self.batch = arrays.batch_shape(self.inputs)
        self.dtype = arrays.result_type(self.inputs.values())
        self.tolerance = -1.0  # the numbers are not looked at
        if validate:
            histograms = [array for name, array in self.inputs.items() if name != "v"]
            self.tolerance = validation.mass_tolerance(histograms)
        self.outs: list[Array] = []  # what the user gave to compute into

    def target(self, name: str, out: Array | None, *columns: int) -> Array:
        """Where to compute (*batch, *columns): in the user's `out` if that is possible."""
        shape = (*self.batch, *columns)
        if out is not None:
            validation.check_out(name, out, shape, self.dtype)
            if any(np.may_share_memory(out, other) for other in self.outs):
                validation.outs_overlap()
            self.outs.append(out)
            if arrays.can_hold(out, self.inputs.values()):
                return out
        return np.empty(shape, self.dtype)

    def run(
        self,
        operation: str,
        plan: Plan,
        value: Array | None = None,
        rows: Array | None = None,
        project: bool = True,
    ) -> None:
        """Launch into `value` (batch,) and `rows` (*batch, columns), and check in the same pass.

        Only if that pass would write to the user's `out`, a checking pass goes first.
        """
        n_rows = math.prod(self.batch)
        if n_rows == 0:
            return
        nothing = np.empty((0, 0, 0), self.dtype)
        given = list(self.inputs.values())
        if len(given) == 1:  # p against nothing
            given.append(np.zeros(self.space.n_bins, self.dtype))
        p, q, *others = arrays.as_rows(given, self.batch, self.dtype)
        triple = p, q, others[0] if others else nothing
        groups = p.shape[:2]
        values = nothing.reshape(0) if value is None else value.reshape(n_rows)
        columns = nothing if rows is None else rows.reshape(*groups, rows.shape[-1])
        tolerance = self.tolerance
        if tolerance >= 0.0 and any(out is value or out is rows for out in self.outs):
            nowhere = nothing.reshape(0), nothing
            self._report(kernels.run("check", plan, triple, 1.0, *nowhere, True, tolerance))
            tolerance = -1.0
        bad = kernels.run(operation, plan, triple, self.rho, values, columns, project, tolerance)
        self._report(bad)

    def _report(self, bad_row: int) -> None:
        if bad_row < math.prod(self.batch):
            validation.blame(self.inputs, self.batch, bad_row, self.tolerance)
