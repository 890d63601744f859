"""Tables of histograms, one per row: arrays, sparse arrays and data frames, read in blocks."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastemd import backends, validation, views
from fastemd.backends import NUMPY, Backend
from fastemd.spaces import Chain, GroundSpace

Array = NDArray[Any]


class Table:
    """Histograms over the bins of a space: a NumPy array or a sparse array of SciPy, (n, N)."""

    def __init__(self, name: str, values: Any, space: GroundSpace) -> None:
        self.name, self.whole = name, self
        self.backend: Backend = NUMPY
        names = column_names(values)
        self.values = as_matrix(name, values)
        if self.values is None:
            self.backend = backends.backend_of({name: values})
            self.values = views.as_array(name, values)
        validation.check_table_shape(name, self.values.shape)
        is_unnamed = isinstance(space, Chain) and not set(names or ()).intersection(space.bins)
        if names is not None and not is_unnamed:
            columns = validation.columns_of(name, names, space.bins)
            if columns is not None:
                self.values = self.values[:, columns]
        validation.check_bins_axis(name, self.values.shape, space.n_bins)
        self.n_rows, self.n_bins = self.values.shape

    @property
    def is_sparse(self) -> bool:
        """Whether the values are a sparse array."""
        return not isinstance(self.values, np.ndarray)

    def masses(self) -> Array:
        """Return the sums of the rows."""
        with np.errstate(all="ignore"):
            sums = self.values.sum(axis=1, dtype=np.float64)
        return np.asarray(sums).reshape(-1)

    def used_bins(self) -> Array:
        """Return the columns in which a row has mass, of a sparse table."""
        return np.flatnonzero(np.bincount(self.values.indices, minlength=self.n_bins))

    def with_columns(self, columns: Array) -> "Table":
        """Return a table of some columns."""
        other = object.__new__(Table)
        other.__dict__.update(self.__dict__, values=self.values[:, columns], n_bins=columns.size)
        return other

    def rows(self, part: Any) -> Array:
        """Return some rows as a dense, contiguous array of float64."""
        rows = self.values[part]
        return np.ascontiguousarray(rows.toarray() if self.is_sparse else rows, np.float64)


def column_names(values: Any) -> Sequence[Hashable] | None:
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
