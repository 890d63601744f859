"""One call of a function on histograms: check, launch, hand back."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastemd import arrays, validation
from fastemd.ground import GroundSpace
from fastemd.kernels.cpu import driver
from fastemd.layout import EdgeLayout
from fastemd.on_device import Launch

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
                self.launch = Launch(self.library.device, inputs, validate)
            for name, value in inputs.items():
                inputs[name] = arrays.histograms(name, value, space)
            if self.library is not arrays.NUMPY and self.launch is None:
                self.rows = arrays.ready_rows(inputs.values(), space.n_bins)
        if self.rows is None:
            self.batch = arrays.batch_shape(inputs)
            self.dtype = arrays.result_type(inputs.values())
        else:
            self.batch, self.dtype = self.inputs["p"].shape[:-1], self.inputs["p"].dtype
        chars = [inputs[name].dtype.char for name in ("p", "q") if name in inputs]
        usual = validation.mass_tolerance(*chars)
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
        """Launch into `value` (batch,) and `rows` (*batch, columns), and check in the same pass."""
        n_rows = math.prod(self.batch)
        if n_rows == 0:
            return
        nothing = arrays.nothing(self.dtype.char)
        p, q, v = (*self._rows(operation), nothing, nothing)[:3]
        values = nothing[0, 0] if value is None else value.reshape(-1)
        columns = nothing if rows is None else rows.reshape(*p.shape[:2], rows.shape[-1])
        launch = self._launch if self.launch is None else self._launch_on_device
        n_launched = p.shape[0] * p.shape[1]
        layout, tolerance = self._layout(operation), self.tolerance
        bad = launch(operation, layout, (p, q, v), values, columns, project, tolerance)
        if bad < n_launched:
            inputs = self.inputs if self.launch is None else self.launch.on_host(self.batch)
            bad //= n_launched // n_rows
            validation.blame(inputs, self.batch, bad, self.tolerance)

    def _rows(self, operation: str) -> list[Array]:
        """The arguments as (groups, rows, N)."""
        if self.launch is not None:
            return self.launch.rows(self.dtype, self.batch, per_bin=operation == "hessian")
        if self.rows is not None:
            return self.rows
        given = list(self.inputs.values())
        if len(given) == 1:  # p against nothing
            given.append(np.zeros(self.space.n_bins, self.dtype))
        return arrays.as_rows(given, self.batch, self.dtype)

    def _layout(self, operation: str) -> EdgeLayout:
        """The edges that the operation sweeps."""
        if operation in ("flow", "embed"):
            layout = self.space.layout("full")
            return layout.raised(1.0 / self.rho) if operation == "embed" else layout
        return self.space.layout("subtrees" if operation == "curvature" else "levels")

    def _launch(
        self, operation: str, layout: EdgeLayout, rows: tuple[Array, Array, Array], *results: Any
    ) -> int:
        """Run the kernel; the first bad row, or the number of rows."""
        return driver.run(operation, layout, rows, self.rho, *results)

    def _launch_on_device(
        self, operation: str, layout: EdgeLayout, rows: tuple[Array, Array, Array], *results: Any
    ) -> int:
        """The same; unless the call waits, no row is known to be bad yet."""
        assert self.launch is not None
        name = "hvp" if operation == "hessian" else operation  # without v: with the unit vectors
        bad = self.launch.run(name, layout, rows, self.rho, *results)
        return rows[0].shape[0] * rows[0].shape[1] if bad is None else bad
