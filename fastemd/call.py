"""One call of a function on histograms: check, launch, hand back."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastemd import arrays, kernels, validation
from fastemd.ground import GroundSpace
from fastemd.on_device import Launch
from fastemd.plan import raised

Array = NDArray[Any]


class Call:
    """One call of a function: its checked arguments and the launch of its kernel.

    `inputs` are ``p``, ``q`` and ``v`` by name, in this order; without ``q`` no masses are
    compared.
    """

    def __init__(
        self, space: GroundSpace, rho: float, validate: bool | float | None, **inputs: Any
    ) -> None:
        if not isinstance(space, GroundSpace):
            validation.not_a_space(space)
        self.space = space
        self.rho = validation.check_rho(rho)
        self.inputs: dict[str, Array] = inputs
        self.library = arrays.NUMPY
        self.launch: Launch | None = None
        self.rows = arrays.ready_rows(inputs.values(), space.n_bins)
        if self.rows is None:
            self.library = arrays.library_of(inputs)
            if self.library.device is not None:
                self.launch = Launch(self.library.device, inputs, validate is True)
            for name, value in inputs.items():
                inputs[name] = arrays.unwrap(name, value, space.n_bins)
            if self.library is not arrays.NUMPY and self.launch is None:
                self.rows = arrays.ready_rows(inputs.values(), space.n_bins)
        if self.rows is None:
            self.batch = arrays.batch_shape(inputs)
            self.dtype = arrays.result_type(inputs.values())
        else:
            self.batch, self.dtype = self.inputs["p"].shape[:-1], self.inputs["p"].dtype
        others = (inputs["q"].dtype.char,) if "q" in inputs else ()
        usual = validation.mass_tolerance(inputs["p"].dtype.char, *others)
        self.tolerance = validation.check_validate(validate, usual)
        self.outs: dict[int, Array] = {}  # the memory of what the user gave, by its id

    def target(self, name: str, out: Any, *columns: int) -> Array:
        """Where to compute (*batch, *columns): in the user's `out` if that is possible."""
        shape = (*self.batch, *columns)
        if out is not None:
            given: Array = arrays.writable(name, out, self.library)
            validation.check_out(name, given, shape, self.dtype)
            if any(np.may_share_memory(given, other) for other in self.outs.values()):
                validation.outs_overlap()
            self.outs[id(out)] = given
            if arrays.can_hold(given, self.inputs.values()):
                return given
        if self.launch is not None:
            return self.launch.empty(shape, self.dtype)
        return arrays.empty(shape, self.dtype, self.library.alignment)

    def deliver(self, result: Array, out: Any) -> Any:
        """The result as the user's kind of array, or in `out` if there is one."""
        made: Any = result if self.launch is None else self.launch.made.get(id(result))
        if out is None:
            return self.library.take(made)
        if self.outs[id(out)] is not result:
            if self.launch is None:
                self.outs[id(out)][...] = result
            else:
                self.launch.device.assign(out, made)
        self.library.written(out)
        return out

    def run(
        self,
        operation: str,
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
        run = self._run if self.launch is None else self._run_on_device
        tolerance, bad = self.tolerance, n_rows
        given = any(out is value or out is rows for out in self.outs.values())
        if given and tolerance >= 0.0 and (self.launch is None or self.launch.waits):
            bad = run("check", None, None, True, tolerance)
            tolerance = -1.0
        if bad == n_rows:
            bad = run(operation, value, rows, project, tolerance)
        if bad < n_rows:
            inputs = self.inputs
            if self.launch is not None:
                inputs = self.launch.on_host(self.batch)
            validation.blame(inputs, self.batch, bad, self.tolerance)

    def _run(
        self,
        operation: str,
        value: Array | None,
        rows: Array | None,
        project: bool,
        tolerance: float,
    ) -> int:
        """The first bad row, or the number of rows."""
        nothing = arrays.nothing(self.dtype.char)
        given = self.rows
        if given is None:
            given = list(self.inputs.values())
            if len(given) == 1:  # p against nothing
                given.append(np.zeros(self.space.n_bins, self.dtype))
            given = arrays.as_rows(given, self.batch, self.dtype)
        p, q, v = (*given, nothing)[:3]
        values = nothing[0, 0] if value is None else value.reshape(-1)
        columns = nothing if rows is None else rows.reshape(*p.shape[:2], rows.shape[-1])
        plan = getattr(self.space, _PLANS.get(operation, "plan"))
        if operation == "embed":
            plan = raised(plan, 1.0 / self.rho)
        return kernels.run(
            operation, plan, (p, q, v), self.rho, values, columns, project, tolerance
        )

    def _run_on_device(
        self,
        operation: str,
        value: Array | None,
        rows: Array | None,
        project: bool,
        tolerance: float,
    ) -> int:
        """The same, if it waits; else the number of rows."""
        launch, n_rows = self.launch, math.prod(self.batch)
        assert launch is not None
        given = launch.rows(self.dtype, self.batch, per_bin=operation == "hessian")
        nothing = arrays.nothing(self.dtype.char)
        p, q, v = (*given, nothing, nothing)[:3]
        values = nothing[0, 0] if value is None else value.reshape(-1)
        columns = nothing if rows is None else rows.reshape(*p.shape[:2], rows.shape[-1])
        levels = self.space.full_levels if operation in ("flow", "embed") else self.space.levels
        name = "hvp" if operation == "hessian" else operation  # without v: with the unit vectors
        bad = launch.run(name, levels, [p, q, v], self.rho, values, columns, project, tolerance)
        if bad is None:
            return n_rows
        return bad // self.space.n_bins if operation == "hessian" else bad


_PLANS = {"flow": "full_plan", "embed": "full_plan", "curvature": "nested_plan"}
