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

    `inputs` are ``p``, ``q`` and ``v`` by name; without ``q`` there is no mass to compare.
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
            paired = "q" in inputs
            self.tolerance = validation.mass_tolerance(self.inputs.values(), paired)
        self.writes_to_user = False

    def target(self, name: str, out: Array | None, *columns: int) -> Array:
        """Where to compute (*batch, *columns): in the user's `out` if that is possible."""
        shape = (*self.batch, *columns)
        if out is not None:
            validation.check_out(name, out, shape, self.dtype)
            if arrays.can_hold(out, self.inputs.values()):
                self.writes_to_user = True
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
        zeros = np.zeros(self.space.n_bins, self.dtype)
        given = [self.inputs["p"], self.inputs.get("q", zeros)]
        given += [self.inputs[name] for name in self.inputs.keys() - {"p", "q"}]
        p, q, *others = arrays.as_rows(given, self.batch, self.dtype)
        none = np.empty((0, 0, 0), self.dtype)
        v = others[0] if others else none
        values = none.reshape(0) if value is None else value.reshape(n_rows)
        out = none if rows is None else rows.reshape(*p.shape[:2], rows.shape[-1])
        tolerance = self.tolerance
        if tolerance >= 0.0 and self.writes_to_user:
            nowhere = none.reshape(0), none
            bad = kernels.run("check", plan, (p, q, v), 1.0, *nowhere, True, tolerance)
            self._report(bad)
            tolerance = -1.0
        arguments = plan, (p, q, v), self.rho, values, out, project
        bad = kernels.run(operation, *arguments, tolerance)
        if bad < n_rows:
            self._report(bad)
            # The kernel's quick check can overflow where the exact one does not.
            kernels.run(operation, *arguments, -1.0)

    def _report(self, bad_row: int) -> None:
        if bad_row < math.prod(self.batch):
            validation.blame(self.inputs, self.batch, bad_row, self.tolerance)
