"""Sums over all edges for all pairs of rows, from the masses below the edges.

The mass of a row below an edge is ``a``, and an edge adds a term ``f(a, b)`` to the sum of a pair
of rows. An edge is dense or sparse, for all rows alike. Dense edges lie in panels of eight rows,
and the sums of eight by four pairs stay in registers. Below a sparse edge most rows have no mass:
with ``s(a) = f(a, 0)`` the sum over all of them is that of ``s(a) + s(b)``, which is computed once
per row, and of ``f(a, b) - s(a) - s(b)`` over the edges below which both rows have mass.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastemd.kernels.cpu.simd import (
    address,
    at,
    has_any,
    integer_at,
    lane,
    least,
    load,
    lowest_bit,
    number_at,
    place_like,
    put_number,
    splat,
    store,
)
from fastemd.kernels.cpu.sweeps import differences, read_row, read_rows, sweeps
from fastemd.kernels.edges import COSTS, coordinate_edge
from fastemd.kernels.jitable import jitable

LANES, TILE = 8, 4  # rows of a panel, and rows of the first panel that a tile takes
lanes_at = at(LANES)

# So many edges of two panels stay in the first cache: 256 and 512 take the same time, 4,000 take
# 1.3 times as long.
EDGES_AT_A_TIME = 256

NO_COUNTS = 1e-12  # this share of the counts of two samples is a rounding error
SMALLEST = 1e-300


class Rows(NamedTuple):
    """The masses of some rows below all edges: P panels, D dense edges, S sparse ones."""

    panels: Any  # (P, D, 8)
    start: Any  # (S + 1,) where the entries of a sparse edge start
    row: Any  # (entries,) the rows with mass below this edge, ascending
    mass: Any  # (entries,)
    single: Any  # (entries,) s(mass)
    own: Any  # (8 P,) sum of `single` over the entries of a row
    total: Any  # (8 P,) the counts of a row, for "variance_adjusted"


class Lengths(NamedTuple):
    """The lengths of the edges, for terms that need them."""

    dense: Any  # (D,)
    sparse: Any  # (S,)


# --------------------------------------------------------------------------------- terms of an edge
#
# Functions of the masses of two rows, which are numbers or lanes, the length of the edge, an
# exponent, and the totals of the rows. They return the terms of two sums, of which the second one
# may be unused.


@jitable
def difference(a, b, length, exponent, total_a, total_b):
    """``|a - b|``, of masses times the length."""
    term = abs(a - b)
    return term, term


@jitable
def power(a, b, length, exponent, total_a, total_b):
    """``|a - b|^rho``, of masses times the length to the power 1 / rho."""
    term = abs(a - b) ** exponent
    return term, term


@jitable
def square(a, b, length, exponent, total_a, total_b):
    """``(a - b)^2``, of masses times the root of the length."""
    term = (a - b) * (a - b)
    return term, term


@jitable
def generalized(a, b, length, exponent, total_a, total_b):
    """Return the terms of numerator and denominator of the generalized UniFrac."""
    both = a + b
    weight = length * both ** (exponent - 1.0)
    return weight * abs(a - b), weight * both


@jitable
def variance_adjusted(a, b, length, exponent, total_a, total_b):
    """Return the terms of numerator and denominator of the variance adjusted UniFrac, of counts.

    Both terms are those of shares times both totals. So the counts that are not below the edge, a
    small difference, have no rounding errors if counts are integers. Those of other numbers are
    smaller than `NO_COUNTS`. The total of an empty sample is replaced by 1.
    """
    count, total = a + b, total_a + total_b
    others = total - count
    weight = length * (NO_COUNTS * total < others) * max(count * others, SMALLEST) ** -0.5
    a, b = a * (total_b + (total_b < SMALLEST)), b * (total_a + (total_a < SMALLEST))
    return weight * abs(a - b), weight * (a + b)


TERMS = {
    "difference": (difference, 1),  # and the number of sums
    "power": (power, 1),
    "square": (square, 1),
    "generalized": (generalized, 2),
    "variance_adjusted": (variance_adjusted, 2),
}


# ------------------------------------------------------------------------------ masses, and packing


@jitable
def presence(edge, flow):
    """Edge function: the length of an edge below which there is mass."""
    return edge.length * (0.0 < flow), None, None  # noqa: SIM300  # lanes have no `>`


EDGE_VALUES = {"mass": coordinate_edge(COSTS["any"]), "presence": presence}


def masses_sweep(is_chain: bool, name: str) -> Callable[..., Any]:
    """Make the sweep that writes the edge values of rows as panels, (panels, edges, 8)."""
    sweep_up, _, _ = sweeps(is_chain)
    edge_values = EDGE_VALUES[name]

    @jitable
    def sweep(tile):
        x = tile.scratch.x
        sums = sweep_up(tile, x, read_rows, read_row, differences(tile), edge_values)
        panel = place_like(x, integer_at(tile.out.rows, 0))
        for e in range(tile.out.n_columns):
            store(panel, e, load(x, e))
        return sums[0]

    return sweep


@jitable
def count_rows(chunk, n_chunks, masses, counts):
    """Count the rows with mass below the edges of a chunk, lane by lane: (edges, 8)."""
    n_panels, n_edges = masses.shape[:2]
    begin, end = chunk * n_edges // n_chunks, (chunk + 1) * n_edges // n_chunks
    totals = lanes_at(address(counts))
    for p in range(n_panels):
        panel = lanes_at(address(masses) + p * masses.strides[0])
        for e in range(begin, end):
            has_none = 0.0 >= abs(load(panel, e))  # noqa: SIM300  # lanes have no `<=`
            store(totals, e, load(totals, e) + (1.0 - has_none))  # 1 for NaN, as in `fill_rows`
    return 0


@jitable
def fill_rows(chunk, n_chunks, masses, dense, sparse, panels, end_of, row, mass):
    """Write the panels of dense edges, and the entries of sparse ones, of a chunk of edges.

    `end_of` holds where the entries of every edge start, and then where they end.
    """
    d_begin, d_end = chunk * dense.size // n_chunks, (chunk + 1) * dense.size // n_chunks
    s_begin, s_end = chunk * sparse.size // n_chunks, (chunk + 1) * sparse.size // n_chunks
    for p in range(masses.shape[0]):
        panel = lanes_at(address(masses) + p * masses.strides[0])
        target = lanes_at(address(panels) + p * panels.strides[0])
        for d in range(d_begin, d_end):
            store(target, d, load(panel, dense[d]))
        for s in range(s_begin, s_end):
            x = load(panel, sparse[s])
            if has_any(x):  # most often not: 0.06 of the time of a look at every number
                for r in range(LANES):
                    if lane(x, r) != 0.0:
                        row[end_of[s]] = LANES * p + r
                        mass[end_of[s]] = lane(x, r)
                        end_of[s] += 1
    return 0


@jitable
def add_mass(x, bits, e, mass, n_edges):
    """Add mass below an edge, and remember it; edge `n_edges`, above the root, is not counted."""
    if e < n_edges:
        x[e] += mass
        bits[e // 64] |= 1 << e % 64


@jitable
def sweep_sparse_rows(
    chunk, n_chunks, parent, length, indptr, indices, data, bins, reference, slot, presence,
    start, panels, edge, mass,
):  # fmt: skip
    """Sweep up sparse rows, along the edges below which they have mass alone.

    A set of bits has these edges. The lowest one is next, since the parent of an edge is after it.
    The mass of a dense edge is written to the panels, at ``slot[e]``, and that of sparse edge
    ``-1 - slot[e]`` is appended to the entries of its row, from `start` on. Without panels, `start`
    of the next row becomes the number of entries.
    """
    n_rows, n_edges, counts = indptr.size - 1, length.size, panels.size == 0 and mass.size == 0
    x, bits = np.empty(n_edges + 1), np.empty(n_edges // 64 + 1, np.int64)
    for e in range(x.size):
        x[e] = 0.0
    for word in range(bits.size):
        bits[word] = 0
    for r in range(chunk * n_rows // n_chunks, (chunk + 1) * n_rows // n_chunks):
        for k in range(indptr[r], indptr[r + 1]):
            if data[k] != 0.0:
                add_mass(x, bits, indices[k], data[k], n_edges)
        for k in range(bins.size):
            add_mass(x, bits, bins[k], -reference[k], n_edges)
        t = 0 if counts else start[r]
        for word in range(bits.size):
            while bits[word] != 0:
                e = 64 * word + lowest_bit(bits[word])
                bits[word] &= bits[word] - 1
                flow = x[e]
                x[e] = 0.0
                add_mass(x, bits, parent[e], flow, n_edges)
                value = length[e] * (flow > 0.0 if presence else flow)
                if counts:
                    t += slot[e] < 0
                elif slot[e] >= 0:
                    panels[r // LANES, slot[e], r % LANES] = value
                else:
                    edge[t], mass[t] = -1 - slot[e], value
                    t += 1
        if counts:
            start[r + 1] = t
    return 0


# ------------------------------------------------------------------------------------------ sums


def sums_over_edges(term: Callable[..., Any], n_sums: int) -> Callable[..., Any]:
    """Make the function that adds the terms of all edges for some rows and all others."""
    two_sums = n_sums == 2

    @jitable
    def add_sparse(a, b, first_row, last_row, lengths, exponent, same, sums, norms):
        """Add the terms of the sparse edges that both rows have, to rows of `a`."""
        for s in range(lengths.sparse.size):
            t, end, end_b = a.start[s], a.start[s + 1], b.start[s + 1]
            while t < end and a.row[t] < first_row:
                t += 1
            while t < end and a.row[t] < last_row:
                i, x, single = a.row[t], a.mass[t], a.single[t]
                row = address(sums) + i * sums.strides[0]
                norm_row = address(norms) + i * norms.strides[0]
                t += 1
                for u in range(t if same else b.start[s], end_b):
                    j, both = b.row[u], single + b.single[u]
                    f, g = term(x, b.mass[u], lengths.sparse[s], exponent, 0.0, 0.0)
                    put_number(row, j, number_at(row, j) + (f - both))
                    if two_sums:
                        put_number(norm_row, j, number_at(norm_row, j) + (g - both))

    @jitable
    def add_own(a, b, first_row, last_row, sums):
        """Add the terms of the sparse edges that one row has; rounding may have left < 0."""
        own, n_vectors = lanes_at(address(b.own)), b.own.size // LANES
        for i in range(first_row, last_row):
            row = lanes_at(address(sums) + i * sums.strides[0])
            for k in range(n_vectors):
                both = a.own[i] + load(own, k)
                store(row, k, max(load(row, k) + both, 0.0))

    @jitable
    def add_tile(a, b, total_a, total_b, first, last, lengths, exponent, sums, norms, step):
        """Add the terms of some dense edges for eight rows of `b` and `TILE` of `a`."""
        f0 = f1 = f2 = f3 = g0 = g1 = g2 = g3 = splat(b, 0.0)
        m0, m1 = number_at(total_a, 0), number_at(total_a, 1)
        m2, m3 = number_at(total_a, 2), number_at(total_a, 3)
        m = load(total_b, 0)
        for d in range(first, last):
            x, length = load(b, d), number_at(lengths, d)
            a0, a1 = number_at(a, LANES * d), number_at(a, LANES * d + 1)
            a2, a3 = number_at(a, LANES * d + 2), number_at(a, LANES * d + 3)
            # These terms are expensive, and 0 without mass. (Variance adjusted: 0.45 of the time.)
            if two_sums and a0 + a1 + a2 + a3 == 0.0 and not has_any(x):
                continue
            f, g = term(a0, x, length, exponent, m0, m)
            f0, g0 = f0 + f, g0 + g
            f, g = term(a1, x, length, exponent, m1, m)
            f1, g1 = f1 + f, g1 + g
            f, g = term(a2, x, length, exponent, m2, m)
            f2, g2 = f2 + f, g2 + g
            f, g = term(a3, x, length, exponent, m3, m)
            f3, g3 = f3 + f, g3 + g
        store(sums, 0, load(sums, 0) + f0)
        store(sums, step, load(sums, step) + f1)
        store(sums, 2 * step, load(sums, 2 * step) + f2)
        store(sums, 3 * step, load(sums, 3 * step) + f3)
        if two_sums:
            store(norms, 0, load(norms, 0) + g0)
            store(norms, step, load(norms, step) + g1)
            store(norms, 2 * step, load(norms, 2 * step) + g2)
            store(norms, 3 * step, load(norms, 3 * step) + g3)

    @jitable
    def add_pairs(chunk, n_chunks, a, b, lengths, exponent, same, sums, norms):
        """Add the terms of all edges to the rows of a chunk; of `same` rows, to pairs i < j."""
        n_a, n_b, n_dense = a.panels.shape[0], b.panels.shape[0], lengths.dense.size
        begin, end = chunk * n_a // n_chunks, (chunk + 1) * n_a // n_chunks
        first_row, last_row = LANES * begin, LANES * end
        add_sparse(a, b, first_row, last_row, lengths, exponent, same, sums, norms)
        add_own(a, b, first_row, last_row, sums)
        if two_sums:
            add_own(a, b, first_row, last_row, norms)
        step = n_b
        size = 8 * LANES
        for first in range(0, n_dense, EDGES_AT_A_TIME):
            last = least(first + EDGES_AT_A_TIME, n_dense)
            for i in range(begin, end):
                for j in range(i if same else 0, n_b):
                    for r in range(0, LANES, TILE):
                        offset = ((LANES * i + r) * n_b + j) * size
                        add_tile(
                            address(a.panels) + i * n_dense * size + 8 * r,
                            lanes_at(address(b.panels) + j * n_dense * size),
                            address(a.total) + 8 * (LANES * i + r),
                            lanes_at(address(b.total) + j * size), first, last,
                            address(lengths.dense), exponent, lanes_at(address(sums) + offset),
                            lanes_at(address(norms) + offset), step,
                        )  # fmt: skip
        return 0

    return add_pairs
