"""Sinkhorn's iterations on a CUDA device; see `fastemd.sinkhorn` for what they are.

Rows that have come to their end wait for the others. Whether any still goes on is looked at now and
then, and only where a row may end early, since a look waits for the device.
"""

import functools
import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastemd import arrays, validation
from fastemd.on_device import Launch
from fastemd.spaces import Chain, GroundSpace

Array = NDArray[Any]

LOOK = 16  # iterations between two looks

# The cost matrices of spaces and their largest entries, by device and type.
_uploaded: weakref.WeakKeyDictionary[GroundSpace, dict[tuple[int, str], tuple[Any, float]]]
_uploaded = weakref.WeakKeyDictionary()

_any_space = functools.lru_cache(maxsize=8)(Chain)  # to check masses, for which all are alike


class Solver:
    """One call: its checked arguments on the device, and the iterations.

    The results of all methods are the fields of `fastemd.SinkhornResult`, in order.
    """

    def __init__(
        self, library: arrays.Library, p: Any, q: Any, cost: Any, validate: bool | float | None,
        dtype: object, in_float64: bool,
    ) -> None:  # fmt: skip
        assert library.device is not None
        space = cost if isinstance(cost, GroundSpace) else None
        given = {"p": p, "q": q}
        if library.device.product is None:
            validation.no_products()
        self.library, self.launch = library, Launch(library.device, given, validate)
        wanted = None if dtype is None else validation.check_dtype(dtype)
        described = [] if space else [arrays.real("cost", cost)]
        for matrix in described:
            validation.check_cost_shape(matrix.shape)
        self.n_bins = space.n_bins if space else len(described[0])
        inputs = {name: arrays.unwrap(name, x, self.n_bins) for name, x in given.items()}
        self.batch = arrays.batch_shape(inputs)
        self.n_rows = math.prod(self.batch)
        self.dtype = wanted or arrays.result_type([*inputs.values(), *described])
        self.computing = np.dtype(np.float64) if in_float64 else self.dtype
        usual = validation.mass_tolerance(*(array.dtype.char for array in inputs.values()))
        tolerance = validation.check_validate(validate, usual)
        if self.n_rows and tolerance >= 0.0:
            layout = (space or _any_space(self.n_bins)).layout("levels")
            bad = self.launch.check(
                layout, arrays.result_type(inputs.values()), self.batch, tolerance
            )
            if bad is not None:
                validation.blame(self.launch.on_host(self.batch), self.batch, bad, tolerance)
        self.p, self.q = (self._given(x, (*self.batch, self.n_bins)) for x in given.values())
        self.cost, self.highest = self._costs(space, cost)

    def _given(self, value: Any, shape: tuple[int, ...]) -> Array:
        """A user's array, of the type to compute in, as (rows, N)."""
        return self.launch.contiguous(value, shape, self.computing).reshape(-1, self.n_bins)

    def _costs(self, space: GroundSpace | None, cost: Any) -> tuple[Any, Callable[[], float]]:
        """The matrix, on the device, and how to find its largest entry."""
        if space is None:
            matrix = self._given(cost, (self.n_bins, self.n_bins))
            return matrix, lambda: float(self.launch.read(matrix).max())
        target, index = self.launch.target, self.launch.device.index
        kept = _uploaded.setdefault(space, {})
        key = index, self.computing.char
        if key not in kept:
            host = space.cost_matrix()
            with np.errstate(all="ignore"), target.on_device(index):  # costs are checked later
                kept[key] = target.upload(host.astype(self.computing)), float(host.max())
        matrix, highest = kept[key]
        return matrix, lambda: highest

    def _new(self, *shape: int, dtype: Any = None) -> Array:
        return self.launch.empty(shape, np.dtype(dtype or self.computing))

    @functools.cached_property
    def _matrices(self) -> list[Array]:
        return [self._new(self.n_bins, self.n_bins) for _ in range(5)]

    def _prepare(self, operation: str, lam: float, unit: float) -> Any:
        """All that depends on lambda and the costs, which are checked."""
        costs = self.launch.launcher.cuda_sinkhorn.Costs(
            self.cost, *self._matrices, lam, unit, self.launch.errors
        )
        self.launch.run_blocks(operation, costs, self.n_bins)
        if self.launch.first_bad() is not None:
            validation.check_cost(self.launch.read(self.cost))
        return costs

    def _begin(self, tol: float, limit: int) -> None:
        """Everything of `step`, one half of an iteration, but what the halves differ in."""
        rows, n = self.n_rows, self.n_bins
        self.progress = {
            "error": self._new(*self.batch, dtype=np.float64),
            "n_iter": self._new(*self.batch, dtype=np.int64),
            "going": self._new(rows, dtype=np.int64),
        }
        flat = {name: array.reshape(rows) for name, array in self.progress.items()}
        half = {name: self._new(rows, n) for name in ("sums", "scaling")}
        half |= {name: self._new(rows, n, dtype=np.float64) for name in ("potential", "other")}
        half |= {name: self._new(rows, dtype=np.float64) for name in ("shift", "other_shift")}
        step = self.launch.launcher.cuda_sinkhorn.Step(
            mass=self.p, **half, exponents=self.cost, counts=1, **flat, tol=tol, limit=limit
        )
        self.launch.run_blocks("begin", step, rows)
        self.step_p = step
        self.step_q = step._replace(
            mass=self.q, scaling=self._new(rows, n), potential=step.other, shift=step.other_shift,
            other=step.potential, other_shift=step.shift, counts=0,
        )  # fmt: skip

    def _iterate(self, operation: str, costs: Any, n_most: int, looks: bool) -> None:
        for i in range(1, n_most + 1):
            self._half(operation, self.step_q, self.step_p.scaling, costs.kernel)
            self._half(operation, self.step_p, self.step_q.scaling, costs.back)
            if looks and i % LOOK == 0 and not self.launch.read(self.step_p.going).any():
                return

    def _half(self, operation: str, step: Any, other: Array, matrix: Array) -> None:
        sums, product = self.launch.product(other, matrix)
        self.launch.run_blocks(operation, step._replace(sums=sums), self.n_rows)
        del product  # lives until here

    def _end(self, operation: str, step: Any, scaling: Array, costs: Any, tol: float) -> list[Any]:
        """The results; `scaling` is that of p, or its logarithm."""
        value = self._new(*self.batch, dtype=self.dtype)
        grad = self._new(*self.batch, self.n_bins, dtype=self.dtype)
        converged = self._new(*self.batch, dtype=bool)
        sums, product = self.launch.product(self.step_q.scaling, costs.costed)
        end = self.launch.launcher.cuda_sinkhorn.End(
            scaling, sums, self.step_q.potential, self.step_q.shift, costs.cost, costs.exponents,
            costs.lam, costs.unit, tol, value.reshape(-1), grad.reshape(-1, self.n_bins),
            step.error, converged.reshape(-1),
        )  # fmt: skip
        self.launch.run_blocks(operation, end, self.n_rows)
        del product
        n_iter, error = self.progress["n_iter"], self.progress["error"]
        made = [self.launch.made[id(x)] for x in (value, grad, n_iter, converged, error)]
        return [self.library.take(array) for array in made]

    def as_printed(self, lam: float, max_iter: int, tol: float) -> list[Any]:
        """Algorithm 1 in the arithmetic of the type."""
        costs = self._prepare("prepare", lam, 1.0)
        self._begin(tol, max_iter)
        self._iterate("divide", costs, max_iter, looks=tol > 0.0)
        self._half("divide", self.step_q, self.step_p.scaling, costs.kernel)
        return self._end("finish", self.step_p, self.step_p.scaling, costs, tol)

    def with_logarithms(
        self, lams: list[float], highest: float, max_iter: int, tol: float, settled: float
    ) -> list[Any]:
        """On logarithms, through the stages `lams`."""
        self._begin(tol, max_iter)
        unit, before = highest or 1.0, self._new(self.n_rows, self.n_bins)
        lam_before, ratio = 0.0, 0.0
        for stage, lam in enumerate(lams, 1):
            costs = self._prepare("log_prepare", lam, unit)
            until = tol if stage == len(lams) else max(tol, settled)
            limit = max_iter * stage // len(lams)
            change = {"tol": until, "limit": limit}
            self.step_p = self.step_p._replace(exponents=costs.exponents, **change)
            self.step_q = self.step_q._replace(exponents=costs.exponents_back, **change)
            self._start(before, ratio)
            # A row that ended a stage early has all the more iterations left for the next.
            self._iterate("log_divide", costs, limit, looks=until > 0.0 or stage > 1)
            if stage < len(lams):
                ratio = (lams[stage] - lam) / (lam - lam_before)
                lam_before = lam
        self._half("log_divide", self.step_q, self.step_p.scaling, costs.kernel)
        return self._end("log_finish", self.step_p, self.step_p.potential, costs, tol)

    def _start(self, before: Array, ratio: float) -> None:
        step = self.step_p
        start = self.launch.launcher.cuda_sinkhorn.Start(
            step.potential, before, ratio, step.scaling, step.shift, step.n_iter, step.going,
            step.limit,
        )  # fmt: skip
        self.launch.run_blocks("log_start", start, self.n_rows)
