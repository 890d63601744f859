"""The protocol of every call: `resolve` the inputs to a `Batch`, `run` an operation, `Batch.wrap`.

On a CUDA device a launch returns before its kernel has run. The number of the first invalid row is
left in an error slot on the device, which `synchronize` reads, and so does a call with
``validate=True``.
"""

import copy
import itertools
import math
from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastemd import backends, validation, views
from fastemd.backends import NUMPY, Backend, CudaBackend
from fastemd.kernels.cpu import driver as cpu
from fastemd.kernels.edges import Cost, power
from fastemd.layout import EdgeLayout
from fastemd.spaces import GroundSpace

Array = NDArray[Any]

_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
_EMPTY = {char: np.empty((1, 1, 0), char) for char in "fd"}  # where a kernel may get an array
NO_ROW = np.iinfo(np.int64).max

# By device, and whether calls wait: the first invalid row, and the first one of invalid weight.
_error_slots: dict[tuple[int, bool], Any] = {}


class Output(NamedTuple):
    """A result: the view that a kernel writes to, and the user's `out` if it is another array."""

    view: Any
    out: Any = None
    out_view: Any = None


class Batch:
    """The validated inputs of a call as views, whose rows have one type on one backend."""

    def __init__(
        self, backend: Backend, inputs: dict[str, Any], shape: tuple[int, ...],
        dtype: np.dtype[Any], tolerance: float, validate: object = None,
        rows: list[Any] | None = None,
    ) -> None:  # fmt: skip
        self.backend, self.inputs, self.shape, self.dtype = backend, inputs, shape, dtype
        self.tolerance = tolerance  # between masses; < 0: no validation
        self.validate = validate
        self.n_rows, self.first_row = math.prod(shape), 0  # the first one is of a larger batch
        self.launch: Launch | None = None  # whose scratch lives until the results are wrapped
        self._rows = rows

    def rows(self) -> list[Any]:
        """Return the inputs as (groups, rows, N)."""
        if self._rows is None:
            inputs = self.inputs.values()
            self._rows = views.as_rows(inputs, self.shape, self.dtype, self.backend)
        return self._rows

    def blocks(self, most_rows: int) -> Iterator["Batch"]:
        """Yield consecutive rows, at most so many at a time, in the order of the batch."""
        rows = self.rows()
        n_groups, group_size = rows[0].shape[:2]
        n_together = max(1, most_rows // max(1, group_size))  # groups, if they are so small
        starts = itertools.product(
            range(0, n_groups, n_together), range(0, group_size, max(1, most_rows))
        )
        for group, row in starts:
            block = copy.copy(self)
            part = slice(group, group + n_together), slice(row, row + max(1, most_rows))
            block._rows = [array[part] for array in rows]
            block.n_rows = math.prod(block._rows[0].shape[:2])
            block.first_row = self.first_row + group * group_size + row
            yield block

    def output(self, name: str, out: Any, *columns: int, other: Output | None = None) -> Output:
        """Return where to compute (*shape, *columns): in the user's `out` if that is possible.

        `other` is the call's other output, with which `out` must not overlap.
        """
        shape = (*self.shape, *columns)
        if out is None:
            return Output(self.backend.empty(shape, self.dtype))
        view = views.writable_view(name, out, self.backend)
        validation.check_out(name, view, shape, self.dtype)
        if other is not None and other.out is not None and views.overlap(view, other.out_view):
            validation.outs_overlap()
        direct = view.contiguous if isinstance(self.backend, CudaBackend) else _is_plain(view)
        if direct and not any(views.overlap(view, x) for x in self.inputs.values()):
            return Output(view, out, view)
        return Output(self.backend.empty(shape, self.dtype), out, view)

    def wrap(self, output: Output) -> Any:
        """Return a result as the user's kind of array, or the user's `out` with the result."""
        view, out, out_view = output
        if out is None:
            return self.backend.wrap(view)
        if view is not out_view:
            self.backend.assign(out_view, view)
        self.backend.mark_written(out)
        return out


def _is_plain(array: Array) -> bool:
    return type(array) is np.ndarray and array.flags.c_contiguous and array.flags.aligned


def resolve(space: GroundSpace | EdgeLayout, validate: bool | float | None, **inputs: Any) -> Batch:
    """Return the batch of histograms ``p`` and ``q`` and vectors ``v`` over the bins of a space.

    Without ``q`` no masses are compared.
    """
    if not isinstance(space, (GroundSpace, EdgeLayout)):
        validation.not_a_space(space)
    backend = NUMPY
    rows = _ready_rows(inputs.values(), space.n_bins)
    if rows is None:
        backend = backends.backend_of(inputs)
        for name, value in inputs.items():
            inputs[name] = views.as_histograms(name, value, space)
        if backend is not NUMPY:
            rows = _ready_rows(inputs.values(), space.n_bins)
    if rows is None:
        shape, dtype = batch_shape(inputs), result_type(inputs.values())
        chars = [inputs[name].dtype.char for name in ("p", "q") if name in inputs]
    else:
        p = inputs["p"]
        shape, dtype = p.shape[:-1], p.dtype
        chars = [dtype.char]
    tolerance = validation.check_validate(validate, validation.mass_tolerance(*chars))
    return Batch(backend, inputs, shape, dtype, tolerance, validate, rows)


def _ready_rows(values: Collection[Any], n_bins: int) -> list[Array] | None:
    """Return NumPy arrays that are alike as (1, rows, N), in a quarter of the time of the rest."""
    first = next(iter(values))
    if type(first) is not np.ndarray or len(values) == 1:
        return None
    shape, dtype = first.shape, first.dtype
    if not (dtype is _FLOAT32 or dtype is _FLOAT64) or not shape or shape[-1] != n_bins:
        return None
    rows = []
    for value in values:
        if type(value) is not np.ndarray or value.dtype is not dtype or value.shape != shape:
            return None
        flags = value.flags
        if not flags.c_contiguous or not flags.aligned:
            return None
        rows.append(value.reshape(1, -1, n_bins))
    return rows


def edge_cost(rho: object) -> Cost:
    """Return the cost of an edge for a power, or raise; a `Cost` is returned as it is."""
    return rho if isinstance(rho, Cost) else power(validation.check_rho(rho))


def result_type(views: Iterable[Any]) -> np.dtype[Any]:
    """Return float32 if all arrays are float32, float64 for anything else."""
    single = all(view.dtype.type is np.float32 for view in views)  # of any byte order
    return _FLOAT32 if single else _FLOAT64


def batch_shape(views: dict[str, Any]) -> tuple[int, ...]:
    """Return the leading shape to which all arrays broadcast."""
    shapes = {name: view.shape[:-1] for name, view in views.items()}
    first, *others = shapes.values()
    if all(shape == first for shape in others):
        return first  # type: ignore[no-any-return]
    try:
        return np.broadcast_shapes(*shapes.values())
    except ValueError:
        validation.do_not_broadcast(shapes)


def run(
    operation: str, layout: EdgeLayout, batch: Batch, cost: Cost, value: Output | None = None,
    columns: Output | None = None, project: bool = True,
) -> None:  # fmt: skip
    """Compute `value`, one number per row, and `columns`, and validate the rows in the same pass.

    Parameters
    ----------
    operation : str
        A name of `fastemd.kernels.operations.OPERATIONS`, or "hessian".
    layout : EdgeLayout
        The edges to sweep, of the kind that the operation asks for.
    batch : Batch
    cost : Cost
        That of an edge, see `edge_cost`.
    value, columns : Output, optional
        The results, or None if they are not wanted.
    project : bool
        Whether derivatives conserve the total mass.

    Raises
    ------
    ValueError
        If a row is invalid; on a CUDA device only if the call waits.
    """
    if not batch.n_rows:
        return
    project = bool(project)
    rows, empty = batch.rows(), _EMPTY[batch.dtype.char]
    p, q, v = (*rows, empty, empty)[:3]
    n_groups, n_rows = p.shape[:2]
    values = empty[0, 0] if value is None else value.view.reshape(-1)
    out = empty
    if columns is not None:
        out = columns.view.reshape(n_groups, n_rows, -1)
    if isinstance(batch.backend, CudaBackend):
        launch = batch.launch = Launch(batch.backend, batch.validate)
        rest = project, batch.tolerance, launch.errors, launch.scratch, launch.index, launch.stream
        if operation == "hessian":
            matrices = out.reshape(batch.n_rows, layout.n_bins, layout.n_bins)
            launch.driver.launch_hessian(layout, (p, q, v), cost, matrices, *rest)
        else:
            launch.driver.launch(operation, layout, (p, q, v), cost, values, out, *rest)
        invalid = launch.first_invalid_row()
        if invalid is not None:
            validation.raise_invalid_row(on_host(batch), batch.shape, invalid, batch.tolerance)
        return
    if len(rows) == 1:
        q = np.broadcast_to(np.zeros(p.shape[2], p.dtype), p.shape)
    results = (values, out)
    if operation == "hessian":
        curvatures = np.empty((n_groups, n_rows, layout.n_edges))
        operation, results = "curvature", (values, curvatures)
    invalid = cpu.run(operation, layout, (p, q, v), cost, *results, project, batch.tolerance)
    if invalid < batch.n_rows:
        row = batch.first_row + invalid
        validation.raise_invalid_row(batch.inputs, batch.shape, row, batch.tolerance)
    if operation == "curvature":
        cpu.fill_hessian(layout, curvatures, columns.view, project)  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------ CUDA devices


def cuda_driver() -> Any:
    """Return the module that launches CUDA kernels, whose import loads the CUDA driver."""
    try:
        from fastemd.kernels.cuda import driver
    except ImportError as error:
        validation.no_cuda(str(error))
    return driver


class Launch:
    """The device, stream and error slots of a call on a CUDA device."""

    def __init__(self, backend: CudaBackend, validate: object = None) -> None:
        self.driver, self.backend = cuda_driver(), backend
        self.index, self.stream = backend.index, backend.stream()
        self.waits = isinstance(validate, bool | np.bool_) and bool(validate)
        key = self.index, self.waits
        if key not in _error_slots:
            from fastemd.kernels.cuda import numba_cuda

            with numba_cuda.on_device(self.index):
                _error_slots[key] = numba_cuda.upload(np.full(2, NO_ROW))
        self.errors = _error_slots[key]
        self.scratches: list[Any] = []

    def scratch(self, size: int) -> Any:
        """Allocate float64 numbers."""
        self.scratches.append(self.backend.empty((size,), _FLOAT64))
        return self.scratches[-1]

    def first_invalid_row(self) -> int | None:
        """Return the first invalid row if the call waits and there is one, else None."""
        return _first_invalid(self.index, self.errors) if self.waits else None


def synchronize() -> None:
    """Wait for pending CUDA work, and raise if a row was invalid.

    Functions on arrays on a CUDA device return before it has computed anything. Without
    ``validate=True``, which waits, they cannot raise for the values of the arrays.

    Raises
    ------
    ValueError
        If a row of a call since the last time was invalid: the first one on its device. Its results
        are those of the formula, or NaN.

    Examples
    --------
    >>> import fastemd
    >>> fastemd.synchronize()  # nothing was computed on a device
    """
    for (index, waited), errors in list(_error_slots.items()):
        row = None if waited else _first_invalid(index, errors)
        if row is not None:
            validation.invalid_row_on_cuda(index, row)


def _first_invalid(index: int, errors: Any) -> int | None:
    """Wait, and return the first invalid row since the last time."""
    from fastemd.kernels.cuda import numba_cuda

    with numba_cuda.on_device(index):
        numba_cuda.wait(index)
        first = int(errors.copy_to_host().min())
    if first == NO_ROW:
        return None
    numba_cuda.assign(index, errors, np.full(2, NO_ROW))
    return first


def on_host(batch: Batch) -> dict[str, Array]:
    """Return copies of the inputs of a batch on a CUDA device."""
    from fastemd.kernels.cuda import numba_cuda

    backend: Any = batch.backend
    copies = {}
    with numba_cuda.on_device(backend.index):
        for name, view in batch.inputs.items():
            spread = backend.spread(view, (*batch.shape, view.shape[-1]))
            numba_cuda.wait(backend.index)
            copies[name] = numba_cuda.argument(spread).copy_to_host()
    return copies
