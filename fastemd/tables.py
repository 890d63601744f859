"""Tables of histograms, one per row: arrays, sparse arrays and data frames, read in blocks."""

import copy
from collections.abc import Hashable
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fastemd import backends, validation, views
from fastemd.backends import NUMPY, Backend
from fastemd.spaces import Chain, GroundSpace

Array = NDArray[Any]


class Table:
    """Rows of masses, (n, N): a NumPy array or a sparse array of SciPy."""

    def __init__(self, name: str, values: Any) -> None:
        self.name, self.whole = name, self  # `whole` has the columns that errors name
        self.backend: Backend = NUMPY
        self.names = column_names(values)
        self.values = as_matrix(name, values)
        if self.values is None:
            self.backend = backends.backend_of({name: values})
            self.values = views.as_array(name, values)
        validation.check_table_shape(name, self.values.shape)
        self.divisors: Array | None = None  # of the rows

    def over(self, space: GroundSpace) -> "Table":
        """Return the table with the bins of a space as columns, in their order."""
        names, columns = self.names, None
        if isinstance(space, Chain) and not set(space.bins).intersection(names or ()):
            names = None  # the bins of a chain are numbered, so the names are the user's
        if names is not None:
            columns = validation.columns_of(self.name, names, space.bins)
        validation.check_bins_axis(self.name, self.values.shape, space.n_bins)
        table = self if columns is None else self.with_columns(np.array(columns))
        table.whole = table
        return table

    @property
    def n_rows(self) -> int:
        """The number of rows."""
        return int(self.values.shape[0])

    @property
    def n_bins(self) -> int:
        """The number of columns."""
        return int(self.values.shape[1])

    @property
    def is_sparse(self) -> bool:
        """Whether the values are a sparse array."""
        return not isinstance(self.values, np.ndarray)

    def masses(self) -> Array:
        """Return the sums of the rows."""
        with np.errstate(all="ignore"):
            sums = self.values.sum(axis=1, dtype=np.float64)
        return np.asarray(sums).reshape(-1)

    def raise_invalid(self, row: int, tolerance: float) -> NoReturn:
        """Raise for a row that is invalid in the user's table."""
        values = self.whole.rows([row])[0]
        everywhere = {self.name: np.broadcast_to(values, (self.n_rows, values.size))}
        validation.raise_invalid_row(everywhere, (self.n_rows,), row, tolerance)

    def check_sparse_rows(self, tolerance: float) -> None:
        """Raise for the first invalid row of a sparse table."""
        if tolerance < 0.0:
            return
        with np.errstate(all="ignore"):
            masses: Array = self.masses()
            negative: Array = np.zeros(self.n_rows)
            if self.values.data.size and not self.values.data.min() >= 0.0:
                entries = np.repeat(np.arange(self.n_rows), np.diff(self.values.indptr))
                negative = -np.bincount(entries, np.minimum(self.values.data, 0.0), self.n_rows)
            is_valid = (2.0 * masses < np.inf) & (negative <= tolerance * masses)
        if not is_valid.all():
            self.raise_invalid(int(np.argmin(is_valid)), tolerance)

    def used_bins(self) -> Array:
        """Return the columns in which a row has mass, of a sparse table."""
        return np.flatnonzero(np.bincount(self.values.indices, minlength=self.n_bins))

    def with_columns(self, columns: Array) -> "Table":
        """Return a table of some columns."""
        other = copy.copy(self)
        other.values, other.names = self.values[:, columns], None
        return other

    def divided_by(self, divisors: Array) -> "Table":
        """Return a table whose rows are divided by numbers; rows of 0 stay 0."""
        divisors = np.where(divisors == 0.0, 1.0, divisors)
        other = copy.copy(self)
        if self.is_sparse:
            other.values = self.values.copy()
            other.values.data = self.values.data / np.repeat(divisors, np.diff(self.values.indptr))
        else:
            other.divisors = divisors
        return other

    def rows(self, part: Any) -> Array:
        """Return some rows as a dense, contiguous array of float32 or float64."""
        rows = self.values[part]
        rows = rows.toarray() if self.is_sparse else rows
        if self.divisors is not None:
            rows = rows / self.divisors[part, None]
        single = rows.dtype.type is np.float32
        return np.require(rows, np.float32 if single else np.float64, ("C", "A"))


def column_names(values: Any) -> list[Hashable] | None:
    """Return the names of a data frame's columns, None if it has none."""
    names = getattr(values, "column_names", getattr(values, "columns", None))
    if names is None or type(names).__name__ == "RangeIndex" or callable(names):
        return None
    return list(names)


def as_matrix(name: str, values: Any) -> Any:
    """Return a sparse matrix, array or data frame as a sparse array; None if it is not sparse."""
    frame: Any = getattr(values, "sparse", None)
    matrix = values
    if hasattr(frame, "to_coo") and values.ndim == 2:
        try:
            matrix = frame.to_coo()
        except ValueError:  # there are no columns, or entries that are not stored are not 0
            return None
    if not hasattr(matrix, "tocsr"):
        return None
    from scipy.sparse import csr_array  # SciPy's sparse arrays are slow to import

    if matrix.ndim != 2 or matrix.dtype.kind not in "fiub":
        validation.not_an_array(name, values)
    array = csr_array(matrix)
    if not array.has_canonical_format:  # has duplicates, which are summed in place
        array = array.copy() if array.format == getattr(matrix, "format", "") else array
        array.sum_duplicates()
    return array
