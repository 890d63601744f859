"""Calls on arrays that are on a CUDA device: how they are launched, and when they complain.

A launch returns before its kernel has run. The number of a bad row is left on the device, where it
costs nothing; `synchronize` looks, and so does a call with ``validate=True``.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastemd import arrays, validation
from fastemd.devices import Device, description
from fastemd.kernels.operations import NORMALIZATIONS
from fastemd.layout import EdgeLayout

Array = NDArray[Any]

NO_ROW = np.iinfo(np.int64).max

# By device, and whether calls wait: the first bad row, and the first one of bad weight.
_complaints: dict[tuple[int, bool], Any] = {}


def synchronize() -> None:
    """Wait for the CUDA devices that calls have used, and tell if a row was bad.

    Functions on arrays on a CUDA device return before it has computed anything, so they cannot
    raise for what is in the arrays, unless they are called with ``validate=True``, which waits.

    Raises
    ------
    ValueError
        If a row of a call since the last time was bad: the first one on its device. Its results
        are those of the formula, or NaN.

    Examples
    --------
    >>> import fastemd
    >>> fastemd.synchronize()  # nothing was computed on a device
    """
    for (index, waits), complaints in list(_complaints.items()):
        row = None if waits else _first_bad(index, complaints)
        if row is not None:
            validation.bad_on_device(index, row)


def _first_bad(index: int, complaints: Any) -> int | None:
    """The first bad row that was noted since the last time."""
    from fastemd import target

    with target.on_device(index):
        target.wait(index)
        first = int(complaints.copy_to_host().min())
    if first == NO_ROW:
        return None
    target.assign(index, complaints, np.full(2, NO_ROW))
    return first


def _key(operation: str, is_chain: bool, rho: float, char: str) -> tuple[str, str, str, str]:
    """Return the key of a kernel, see `fastemd.kernels.device.launch`."""
    power = {1.0: "1", 2.0: "2"}.get(rho, "any")
    if operation == "hvp" and power != "any":
        operation = "constant_hvp"  # the curvature does not depend on the flow
    if operation in ("flow", "embed", "check"):
        power = "any"
    elif operation in ("hessian_diag", "constant_hvp") and power == "1":
        power = "2"  # times 0
    return operation, "chain" if is_chain and operation != "check" else "tree", power, char


class Launch:
    """One call on a device: what its kernels need besides the arrays.

    `given` are the user's arrays by name, in the order of the rows of a kernel.
    """

    def __init__(
        self, device: Device, given: Mapping[str, Any], validate: bool | float | None = None
    ) -> None:
        try:
            from fastemd import target
            from fastemd.kernels import device as launcher
        except ImportError as error:
            validation.no_cuda(str(error))
        self.device, self.given = device, dict(given)
        self.waits = isinstance(validate, bool | np.bool_) and bool(validate)
        self.launcher, self.target = launcher, target
        self.made: dict[int, Any] = {}  # new arrays, by the id of what describes them
        self._descriptions: list[Array] = []  # whose ids are taken
        self.stream = device.stream()
        key = device.index, self.waits
        if key not in _complaints:
            with target.on_device(device.index):
                _complaints[key] = target.upload(np.full(2, NO_ROW))
        self.complaints = _complaints[key]

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """Describes a new array."""
        return self.note(self.device.empty(shape, dtype))

    def scratch(self, size: int) -> Array:
        """Describes new memory for float64."""
        return self.empty((size,), np.dtype(np.float64))

    def note(self, made: Any) -> Array:
        """Describes an array that is kept as long as the launch."""
        self._descriptions.append(description(made))
        self.made[id(self._descriptions[-1])] = made
        return self._descriptions[-1]

    def described(self, dtype: np.dtype[Any]) -> dict[str, Array]:
        """The user's arrays as arrays of one type."""
        result = {name: description(value) for name, value in self.given.items()}
        for name, array in result.items():
            if array.dtype != dtype:
                self.given[name] = self.device.cast(self.given[name], dtype)
                result[name] = description(self.given[name])
        return result

    def rows(
        self, dtype: np.dtype[Any], batch: tuple[int, ...], per_bin: bool = False
    ) -> list[Array]:
        """The user's arrays as (groups, rows, N), by their strides or, if need be, copied.

        With `per_bin` every row of the batch is a group of N rows.
        """
        described = list(self.described(dtype).values())
        n_bins = described[0].shape[-1]
        shape = (*batch, n_bins) if per_bin else batch
        spread = [x[..., None, :] for x in described] if per_bin else described
        rows = arrays.broadcast_rows(spread, shape)
        if rows is None:
            copies = (self.device.spread(x, (*batch, n_bins)) for x in self.given.values())
            rows = [self.note(copy).reshape(-1, 1, n_bins) for copy in copies]
            if per_bin:
                return [np.broadcast_to(x, (len(x), n_bins, n_bins)) for x in rows]
            return [x.reshape(1, -1, n_bins) for x in rows]
        return rows

    def run(
        self, operation: str, layout: EdgeLayout, rows: Sequence[Array], rho: float, value: Array,
        out: Array, project: bool, tolerance: float,
    ) -> int | None:  # fmt: skip
        """Launch an operation; if it waits, return the first bad row, or None."""
        rest = rho, value, out, float(bool(project)), tolerance
        self._launch(operation, layout, rows, rest)
        return self.first_bad()

    def first_bad(self) -> int | None:
        """If the call waits: the first bad row that was noted."""
        return _first_bad(self.device.index, self.complaints) if self.waits else None

    def _launch(
        self, operation: str, layout: EdgeLayout, rows: Sequence[Array], rest: tuple[Any, ...]
    ) -> None:
        rho, char = rest[0], rows[0].dtype.char
        self.launcher.launch(
            _key(operation, layout.is_chain, rho, char), layout, rows, rest,
            self.complaints, self.scratch, self.device.index, self.stream,
        )  # fmt: skip

    def run_blocks(self, operation: str, state: Any, n_rows: int) -> None:
        """Launch an operation of Sinkhorn's, a block of threads for every row."""
        if n_rows:
            where = self.device.index, self.stream
            self.launcher.run_blocks(operation, state, n_rows, *where)

    def product(self, left: Array, right: Array) -> tuple[Array, Any]:
        """Describes the product of two matrices that `empty` made; and the product itself."""
        assert self.device.product is not None
        made = self.device.product(self.made[id(left)], self.made[id(right)])
        return description(made), made

    def read(self, array: Array) -> Array:
        """Wait, and copy to the host what is described."""
        with self.target.on_device(self.device.index):
            self.target.wait(self.device.index)
            result: Array = self.target.argument(array).copy_to_host()
        return result

    def check(
        self, layout: EdgeLayout, dtype: np.dtype[Any], batch: tuple[int, ...], tolerance: float
    ) -> int | None:
        """Only look at the user's histograms; if it waits, return the first bad row, or None."""
        nothing = np.empty((1, 1, 0), dtype)
        rows = [*self.rows(dtype, batch), nothing]
        return self.run("check", layout, rows, 1.0, nothing[0, 0], nothing, False, tolerance)

    def contiguous(self, value: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """A user's array of a type, spread to a shape, in one piece; a copy if need be."""
        array = description(value)
        if array.dtype != dtype:
            value = self.device.cast(value, dtype)
            array = description(value)
        if array.shape != shape or not array.flags.c_contiguous:
            value = self.device.spread(value, shape)
        return self.note(value)

    def run_loss(
        self, operation: str, layout: EdgeLayout, rho: float, labels: Array | None,
        ignore_index: int | None, weights: Array | None, reduction: str, out: Array,
        normalize: str | None, cross_entropy: float, tolerance: float,
    ) -> Any:  # fmt: skip
        """Launch a loss into `out`; return the user's array of values."""
        batch, dtype, where = out.shape[:-1], out.dtype, (self.device.index, self.stream)
        n_rows, nothing = math.prod(batch), np.empty((1, 1, 0), dtype)
        if labels is None:
            labels = np.empty(0, np.int64)
        if weights is None:
            weights = np.empty(0)
        ignored = labels[:0] if ignore_index is None else labels
        values, mean = self.empty(batch, np.dtype(np.float64)), reduction == "mean"
        factors, factor = np.empty(0), 1.0
        if n_rows:
            if weights.size or ignored.size:
                factors = self.scratch(n_rows)
                self.launcher.find_factors(
                    weights, ignored, ignore_index or 0, mean, factors, self.complaints,
                    self.scratch, *where,
                )  # fmt: skip
            elif mean:
                factor = 1.0 / n_rows
            x, *others = self.rows(dtype, batch)
            others = [*([nothing] if labels.size else []), *others, nothing]
            rest = (
                rho, values.reshape(-1), out.reshape(*x.shape[:2], -1), labels, factors, factor,
                NORMALIZATIONS[normalize], cross_entropy, tolerance,
            )  # fmt: skip
            self._launch(operation, layout, [x, *others[:2]], rest)
        if reduction != "none":
            total = self.empty((), dtype)
            self.launcher.add_up(values.reshape(-1), total.reshape(1), self.scratch, *where)
            return self.made[id(total)]
        made = self.made[id(values)]
        return made if values.dtype == dtype else self.device.cast(self.device.finish(made), dtype)

    def on_host(self, batch: tuple[int, ...]) -> dict[str, Array]:
        """Copies of the user's arrays."""
        result = {}
        for name, value in self.given.items():
            spread = self.device.spread(value, (*batch, description(value).shape[-1]))
            result[name] = self.read(description(spread))
        return result
