"""Sums over the edges of a space for all pairs of rows of two tables, block by block.

The masses of some rows below all edges are computed by the sweeps of `embed`. An edge is dense if
many pairs of rows have mass below it, judged by a sample of rows, and sparse otherwise; see
`fastemd.kernels.cpu.pairwise`. Sums of squares need no kernel on dense edges: they are products of
matrices.

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

from fastemd import validation
from fastemd.kernels.cpu import driver
from fastemd.kernels.cpu.pairwise import LANES, Lengths, Rows
from fastemd.kernels.edges import power
from fastemd.layout import EdgeLayout, by_levels, contracted_layout
from fastemd.progress import Progress
from fastemd.spaces import GroundSpace
from fastemd.tables import Table

Array = NDArray[Any]

# An edge is dense if this share of the pairs of rows has mass below it. A pair takes 1.5 cycles for
# eight pairs of a dense edge, and about 5 cycles for each of a sparse one.
DENSE_SHARE = 1 / 24
MOST_SPARSE = 0.5  # of the rows of a table have mass below a sparse edge: see above

SAMPLE, BLOCK_ROWS = 512, 512
BLOCK_NUMBERS = 1 << 25  # at most so many masses of a block are held
CACHE_BYTES = 1 << 30  # packed blocks of this size are kept; others are packed again for each pair
PROGRESS_AFTER = 3.0  # seconds


class Measure(NamedTuple):
    """What is summed over the edges for a pair of rows."""

    term: str  # a name of `fastemd.kernels.cpu.pairwise.TERMS`
    exponent: float = 1.0
    root: float = 1.0  # masses are multiplied by the length to this power
    presence: bool = False  # positive masses count as 1
    relative: bool = False  # only differences of masses count
    single: Callable[[Array, Array, float], Array] = lambda mass, length, exponent: np.abs(mass)
    result: str = "sum"  # a name of `RESULTS`


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
    length: Array  # (n,) sum over all edges, for results


class Sums(NamedTuple):
    """What the kernels have summed for a block of pairs, and the sums of each row."""

    sums: Array  # (n, m)
    norms: Array
    length_a: Array  # (n, 1)
    length_b: Array  # (m,)


RESULTS: dict[str, Callable[[Sums], Array]] = {
    "sum": lambda s: s.sums,
    "of both": lambda s: s.sums / (s.length_a + s.length_b),
    "of union": lambda s: s.sums / ((s.length_a + s.length_b + s.sums) / 2.0),
    "of norm": lambda s: s.sums / s.norms,
}


class PairSums:
    """The sums of a measure for all pairs of rows of `a` and `b`, or of `a` alone."""

    def __init__(
        self, measure: Measure, space: GroundSpace, a: Table, b: Table | None, tolerance: float,
        totals: Array | None = None,
    ) -> None:  # fmt: skip
        self.measure, self.tolerance, self.totals = measure, tolerance, totals
        tables = [a] if b is None else [a, b]
        layout, tables = _used_part(space, tables)
        self.a, self.b = tables[0], tables[-1]
        self.is_same = b is None
        self.lengths = layout.edges.length[:-1]  # the last edge is above the root
        self.layout = layout.raised(measure.root)
        self._split(tables)
        self._packed: dict[tuple[int, int], Packed] = {}
        self._room = CACHE_BYTES

    @property
    def _block_size(self) -> int:
        """How many rows are swept at a time, at most."""
        return max(LANES, BLOCK_NUMBERS // max(1, self.lengths.size))

    def _split(self, tables: list[Table]) -> None:
        self.reference = np.zeros(self.layout.n_bins)
        shares, first = [], None
        for table in tables:
            sample = np.linspace(0, table.n_rows - 1, min(SAMPLE, table.n_rows)).astype(np.intp)
            counts, first = np.zeros(self.lengths.size), None
            for start in range(0, sample.size, self._block_size):
                part = sample[start : start + self._block_size]
                masses = self._masses(table, part)
                counts += np.count_nonzero(masses, axis=0)
                finite = np.flatnonzero(np.isfinite(masses).all(axis=1))
                if first is None and finite.size:
                    first = part[finite[0]]
            shares.append(counts / max(1, sample.size))
        reference = self.reference if first is None else tables[-1].rows([first])[0]
        is_dense = (shares[0] * shares[-1] >= DENSE_SHARE) | (
            np.maximum(shares[0], shares[-1]) > MOST_SPARSE
        )
        if self.measure.term == "variance_adjusted":  # depends on the totals of both rows
            is_dense[:] = True
        self.dense, self.sparse = np.flatnonzero(is_dense), np.flatnonzero(~is_dense)
        in_panels = self.dense[: 0 if self.measure.term == "square" else None]
        self.edge_lengths = Lengths(self.lengths[in_panels], self.lengths[self.sparse])
        self.in_panels = in_panels
        if self.measure.relative:
            self.reference = np.where(self._is_below(is_dense), reference, 0.0)

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
        """Return the masses of some rows below all edges, (rows, edges)."""
        rows = table.rows(part)[None]
        masses = np.empty((1, rows.shape[1], self.lengths.size))
        none, others = np.empty((1, 1, 0)), np.broadcast_to(self.reference, rows.shape)
        arguments = (rows, others, none), power(1.0), none[0, 0], masses, True, self.tolerance
        invalid = driver.run("embed", self.layout, *arguments)
        if invalid < rows.shape[1]:
            row = int(np.arange(table.n_rows)[part][invalid])
            values = table.whole.rows([row])[0]
            everywhere = {table.name: np.broadcast_to(values, (table.n_rows, values.size))}
            validation.raise_invalid_row(everywhere, (table.n_rows,), row, self.tolerance)
        return masses.reshape(masses.shape[1:])

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
        measure, masses = self.measure, self._masses(table, block)
        panels, start, row, mass = driver.pack_masses(masses, self.in_panels, self.sparse)
        matrix = masses[:, self.dense] if measure.term == "square" else np.empty((0, 0))
        entry_lengths = np.repeat(self.edge_lengths.sparse, np.diff(start))
        if measure.presence:
            np.multiply(panels > 0.0, self.edge_lengths.dense[:, None], out=panels)
            mass = entry_lengths
        with np.errstate(all="ignore"):
            single = measure.single(mass, entry_lengths, measure.exponent)
        n_rows, n_all = len(masses), LANES * len(panels)
        own, totals = _padded(np.bincount(row, single, n_rows), n_all), np.zeros(n_rows)
        if self.totals is not None:
            totals = self.totals[block]
        rows = Rows(panels, start, row, mass, single, own, _padded(totals, n_all))
        length = (panels.sum(axis=1).reshape(-1) + own)[:n_rows]
        return Packed(rows, matrix, length)

    def blocks(self, a: Table, n_rows: int = BLOCK_ROWS) -> list[slice]:
        """Return consecutive blocks of the rows of a table."""
        step = min(n_rows, self._block_size)
        return [slice(i, min(i + step, a.n_rows)) for i in range(0, a.n_rows, step)]

    def block(self, i: slice, j: slice) -> Array:
        """Return the results for a block of pairs; of the same rows, both triangles."""
        a = self.packed(self.a, i)
        same = self.is_same and i == j
        b = a if same else self.packed(self.b, j)
        n, m = len(a.length), len(b.length)
        measure = self.measure
        sums, norms = driver.sum_over_edges(
            measure.term, measure.exponent, a.rows, b.rows, self.edge_lengths
        )
        sums, norms = sums[:n, :m], norms[:n, :m]
        if measure.term == "square" and self.dense.size:
            with np.errstate(all="ignore"):  # rows that are not validated
                products = a.matrix @ b.matrix.T
                squares = [np.einsum("ij,ij->i", x.matrix, x.matrix) for x in (a, b)]
                products *= -2.0
                products += squares[0][:, None]
                products += squares[1]
                sums += np.maximum(products, 0.0, out=products)
        with np.errstate(all="ignore"):  # 0 / 0 for two rows without mass
            result = RESULTS[measure.result](Sums(sums, norms, a.length[:, None], b.length))
        if measure.result != "sum":
            result[~(sums > 0.0)] = 0.0
        if same:
            result = np.triu(result, 1)
            result += result.T
        return result

    def all_blocks(self, progress: bool | None = None) -> Iterator[tuple[slice, slice, Array]]:
        """Yield the rows of both tables and the results of every block; of one table, i <= j."""
        rows, columns = self.blocks(self.a), self.blocks(self.b)
        bar = Progress(self.a.n_rows * self.b.n_rows, after=PROGRESS_AFTER)
        with contextlib.closing(bar):
            for n, i in enumerate(rows):
                for j in columns[n if self.is_same else 0 :]:
                    yield i, j, self.block(i, j)
                    if progress is not False:
                        twice = 2 if self.is_same and i != j else 1
                        bar.add(twice * (i.stop - i.start) * (j.stop - j.start))


def _used_part(space: GroundSpace, tables: list[Table]) -> tuple[EdgeLayout, list[Table]]:
    """Return the edges above the bins in which a table has mass, and the tables of these bins."""
    if all(table.is_sparse for table in tables):
        used = np.unique(np.concatenate([table.used_bins() for table in tables]))
        if 0 < used.size < space.n_bins // 2:
            layout = contracted_layout(space.parent, space.weight, space.bin_node[used])
            return by_levels(layout), [table.with_columns(used) for table in tables]
    return space.layout("levels"), tables


def _padded(values: Array, n: int) -> Array:
    return np.concatenate([values, np.zeros(n - len(values))])
