"""Sums over the edges of a space for all pairs of rows of two tables, block by block.

The masses of some rows below all edges are computed by the sweep up of `embed`, those of sparse
rows along the edges that have some. An edge is dense if many pairs of rows have mass below it,
judged by a sample of rows, and sparse otherwise; see `fastemd.kernels.cpu.pairwise`. Sums of
squares need no kernel on dense edges: they are products of matrices.

No accuracy is lost by the sums of minima in which sparse edges result. At most half of the rows
have mass below one, so the mean distance of a row to the others is at least half of the row's sum
over these edges: no rounding error is larger than a few times that of the largest distance.

Where only differences of masses count, a row of the table is subtracted from all rows before the
sweep. Otherwise the masses below edges would have rounding errors relative to the masses, which are
larger than all distances if the rows are nearly equal. No row is further from it than the largest
distance, so sums of squares lose nothing as products either.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastemd.kernels.cpu import driver
from fastemd.kernels.cpu.pairwise import LANES, Lengths, Rows
from fastemd.layout import EdgeLayout, by_levels, contracted_layout
from fastemd.progress import Progress
from fastemd.spaces import GroundSpace
from fastemd.tables import Table

Array = NDArray[Any]

# An edge is dense if this share of the pairs of rows has mass below it: eight pairs of a dense edge
# take 1.5 cycles, and each of a sparse one about 5. (1 / 12 and 1 / 100 take 1.1 times as long.)
DENSE_SHARE = 1 / 24
MOST_SPARSE = 0.5  # of the rows of a table have mass below a sparse edge: see above

SAMPLE, BLOCK_ROWS = 128, 512
BLOCK_NUMBERS = 5 << 20  # masses of a block: 40 MB of memory that is used again
CACHE_BYTES = 1 << 30  # packed blocks of this size are kept; others are packed again for each pair
PROGRESS_AFTER = 3.0  # seconds


class Measure(NamedTuple):
    """What is summed over the edges for a pair of rows."""

    term: str  # a name of `fastemd.kernels.cpu.pairwise.TERMS`
    exponent: float = 1.0
    root: float = 1.0  # masses are multiplied by the length to this power
    values: str = "mass"  # a name of `fastemd.kernels.cpu.pairwise.EDGE_VALUES`
    relative: bool = False  # only differences of masses count
    single: Callable[[Array, Array, float], Array] = lambda mass, length, exponent: np.abs(mass)
    denominator: str = ""  # "both" or "union": a length; or "norm": the second sum of the term


def _power_of(mass: Array, length: Array, exponent: float) -> Array:
    return np.abs(mass) ** exponent


def distance(rho: float) -> Measure:
    """Return the measure whose sum is EMD^rho."""
    if rho == 1.0:
        return Measure("difference", relative=True)
    term = "square" if rho == 2.0 else "power"
    return Measure(term, rho, 1.0 / rho, single=_power_of, relative=True)


class Packed(NamedTuple):
    """A block of rows as the kernels read it."""

    rows: Rows
    matrix: Array  # (n, D) of the dense edges, for products
    squares: Array  # (n,) the sums of their squares
    length: Array  # (n,) the sum over all edges, for denominators


class PairSums:
    """The sums of a measure for all pairs of rows of two tables, or of one.

    The tables have the bins of the layout. `totals` are the counts of the rows of a table, for
    "variance_adjusted".
    """

    def __init__(
        self, measure: Measure, layout: EdgeLayout, tables: list[Table], tolerance: float,
        totals: Array | None = None,
    ) -> None:  # fmt: skip
        self.measure, self.tolerance, self.totals = measure, tolerance, totals
        self.a, self.b, self.is_same = tables[0], tables[-1], len(tables) == 1
        self.lengths = layout.edges.length[:-1]  # the last edge is above the root
        self.layout = layout.raised(measure.root)
        self._buffer = np.empty((0, 0, LANES))
        for table in tables:
            if table.is_sparse:
                table.check_sparse_rows(tolerance)
        self._split(tables)
        self._packed: dict[tuple[int, int], Packed] = {}
        self._room = CACHE_BYTES

    def _block_size(self, n_edges: int) -> int:
        """Return how many rows of numbers for so many edges are held at a time, at most."""
        n_panels = max(1, BLOCK_NUMBERS // (LANES * max(1, n_edges)))
        return LANES << (n_panels.bit_length() - 1)  # a power of 2, as users choose for chunks

    def _split(self, tables: list[Table]) -> None:
        self.reference = np.zeros(self.layout.n_bins)
        self.dense, self.sparse = np.empty(0, np.intp), np.arange(self.lengths.size)
        shares = []
        for table in tables:
            sample = np.linspace(0, table.n_rows - 1, min(SAMPLE, table.n_rows)).astype(np.intp)
            counts, step = np.zeros(self.lengths.size), self._block_size(self.lengths.size)
            for first in range(0, sample.size, step):
                part = sample[first : first + step]
                if table.is_sparse:
                    entries = self._sparse_masses(table, part)[1]
                    counts += np.bincount(entries.indices, minlength=counts.size)
                else:
                    counts += driver.rows_below(self._masses(table, part))
            shares.append(counts / max(1, sample.size))
        is_dense = shares[0] * shares[-1] >= DENSE_SHARE
        is_dense |= np.maximum(shares[0], shares[-1]) > MOST_SPARSE
        if self.measure.term == "variance_adjusted":  # depends on the totals of both rows
            is_dense[:] = True
        self.dense, self.sparse = np.flatnonzero(is_dense), np.flatnonzero(~is_dense)
        in_panels = self.dense[: 0 if self.measure.term == "square" else None]
        self.edge_lengths = Lengths(self.lengths[in_panels], self.lengths[self.sparse])
        if self.measure.relative:
            rows = (tables[-1].rows([i])[0] for i in sample)
            finite = next((row for row in rows if np.isfinite(row).all()), 0.0)
            reference = np.where(self._is_below(is_dense), finite, 0.0)
            if any(table.values.dtype.type is np.float32 for table in tables):
                reference = reference.astype(np.float32)  # the same for rows of both types
            self.reference = reference.astype(np.float64)

    def _is_below(self, chosen: Array) -> Array:
        """Return which bins are below chosen edges, judged by the first edge that has a length."""
        parent, length, _ = self.layout.edges
        above = np.where(length[:-1] == 0.0, parent[:-1], np.arange(self.lengths.size))
        above = np.append(above, self.lengths.size)  # the last edge stands for itself
        while not np.array_equal(above, further := above[above]):
            above = further
        is_below: Array = np.append(chosen, True)[above[: self.layout.n_bins]]
        return is_below

    def _masses(self, table: Table, part: Any) -> Array:
        """Return the masses of some rows below all edges as panels, until the next call."""
        rows = table.rows(part)
        n_rows, n_panels = len(rows), -(-len(rows) // LANES)
        if len(self._buffer) < max(1, n_panels):  # new memory per block took a tenth of the time
            self._buffer = driver.on_cache_lines(max(1, n_panels), self.lengths.size, LANES)
        masses = self._buffer[:n_panels]
        if not n_rows:
            return masses
        invalid = driver.masses_below(
            self.layout, rows, self.reference, self.tolerance, masses, self.measure.values
        )
        if invalid < n_rows:
            row = int(np.arange(table.n_rows)[part][invalid])
            table.raise_invalid(row, self.tolerance)
        return masses

    def _sorted(self, table: Table, part: Any) -> tuple[Array, Array, Array, Array]:
        """Return the masses of some rows in panels, and the entries of sparse edges."""
        if not table.is_sparse:
            return driver.pack_masses(self._masses(table, part), self.dense, self.sparse)
        panels, entries = self._sparse_masses(table, part)
        by_edge = entries.tocsc()
        start, row = by_edge.indptr.astype(np.int64), by_edge.indices.astype(np.int32)
        return panels, start, row, by_edge.data

    def _sparse_masses(self, table: Table, part: Any) -> tuple[Array, Any]:
        rows, edges = table.values[part], (self.dense, self.sparse)
        values = self.measure.values
        return driver.sweep_sparse_rows(self.layout, rows, self.reference, *edges, values)

    def packed(self, table: Table, block: slice) -> Packed:
        """Return a block of rows, sorted for the kernels."""
        key = id(table), block.start
        if key not in self._packed:
            result = self._pack(table, block)
            size = result.rows.panels.nbytes + result.rows.mass.nbytes * 3 + result.matrix.nbytes
            if size > self._room:
                return result
            self._room -= size
            self._packed[key] = result
        return self._packed[key]

    def _pack(self, table: Table, block: slice) -> Packed:
        measure, n_rows = self.measure, block.stop - block.start
        panels, start, row, mass = self._sorted(table, block)
        matrix = np.empty((0, 0))
        if measure.term == "square":
            columns = panels.transpose(0, 2, 1)
            matrix = columns.reshape(LANES * len(panels), self.dense.size)[:n_rows]
            panels = panels[:, :0].copy()
        entry_lengths = np.repeat(self.edge_lengths.sparse, np.diff(start))
        with np.errstate(all="ignore"):
            single = measure.single(mass, entry_lengths, measure.exponent)
        n_all = LANES * len(panels)
        own, totals = _padded(np.bincount(row, single, n_rows), n_all), np.zeros(n_rows)
        if self.totals is not None:
            totals = self.totals[block]
        rows = Rows(panels, start, row, mass, single, own, _padded(totals, n_all))
        length = np.zeros(n_all)
        if measure.denominator in ("both", "union"):
            length = (np.ones(panels.shape[1]) @ panels).ravel() + own
        squares = np.einsum("ij,ij->i", matrix, matrix)
        return Packed(rows, matrix, squares, length[:n_rows])

    def blocks(self, table: Table) -> list[slice]:
        """Return consecutive blocks of the rows of a table."""
        n_edges = self.dense.size if table.is_sparse else self.lengths.size
        step = min(BLOCK_ROWS, self._block_size(n_edges))
        return [slice(i, min(i + step, table.n_rows)) for i in range(0, table.n_rows, step)]

    def block(self, a: Packed, b: Packed) -> Array:
        """Return the results for a block of pairs; of the same rows, both triangles."""
        n, m = len(a.length), len(b.length)
        measure = self.measure
        sums, norms = driver.sum_over_edges(
            measure.term, measure.exponent, a.rows, b.rows, self.edge_lengths
        )
        sums, norms = sums[:n, :m], norms[:n, :m]
        if measure.term == "square" and self.dense.size:
            with np.errstate(all="ignore"):  # rows that are not validated
                products = a.matrix @ b.matrix.T
                products *= -2.0
                products += a.squares[:, None]
                products += b.squares
                sums += np.maximum(products, 0.0, out=products)
        result = sums
        if measure.denominator:
            denominator = norms
            if measure.denominator != "norm":
                denominator = a.length[:, None] + b.length
            if measure.denominator == "union":
                denominator = (denominator + sums) / 2.0
            result = np.divide(sums, denominator, out=np.zeros((n, m)), where=sums > 0.0)
            np.minimum(result, 1.0, out=result)  # rounding errors may have left > 1
        if a is b:
            result = np.triu(result, 1)
            result += result.T
        return result

    def block_pairs(self) -> list[tuple[slice, slice]]:
        """Return the rows of both tables of every block; of one table, those with i <= j."""
        rows, columns = self.blocks(self.a), self.blocks(self.b)
        return [(i, j) for n, i in enumerate(rows) for j in columns[n if self.is_same else 0 :]]

    def results(
        self, pairs: list[tuple[slice, slice]] | None = None, progress: bool | None = None
    ) -> Iterator[tuple[slice, slice, Array]]:
        """Yield blocks of pairs, by default all, and their results."""
        pairs = self.block_pairs() if pairs is None else pairs
        sizes = [(i.stop - i.start) * (j.stop - j.start) for i, j in pairs]
        last = None  # the rows `i` of the block before, which are packed once if they are the same
        with contextlib.closing(Progress(sum(sizes), after=PROGRESS_AFTER)) as bar:
            for (i, j), size in zip(pairs, sizes, strict=True):
                if i != last:
                    a, last = self.packed(self.a, i), i
                yield i, j, self.block(a, a if self.is_same and i == j else self.packed(self.b, j))
                if progress is not False:
                    bar.add(size)


def used_part(
    space: GroundSpace, tables: list[Table], bins: Array | None = None
) -> tuple[EdgeLayout, list[Table]]:
    """Return the edges above the bins in which a table has mass, and the tables of these bins.

    `bins` are those of the tables' columns, by default all.
    """
    if all(table.is_sparse for table in tables):
        used = np.unique(np.concatenate([table.used_bins() for table in tables]))
        if 0 < used.size < tables[0].n_bins // 2:
            tables = [table.with_columns(used) for table in tables]
            bins = used if bins is None else bins[used]
    if bins is None:
        return space.layout("levels"), tables
    layout = contracted_layout(space.parent, space.weight, space.bin_node[bins])
    return by_levels(layout), tables


def _padded(values: Array, n: int) -> Array:
    padded = driver.on_cache_lines(n)
    padded[: len(values)] = values
    return padded
