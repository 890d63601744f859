"""Distances of all pairs of rows, and nearest neighbours."""

import functools
import itertools
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import squareform

import fastemd
from fastemd import pair_sums
from tests.support import naive
from tests.support.operations import assert_close
from tests.support.strategies import (
    RHOS,
    chain_case,
    histograms,
    problems,
    random_ground,
    random_pair,
    rhos,
    tree_case,
)

CHAIN = fastemd.Chain(5)
SENTINEL = -123.0
BIG = tree_case(random_ground(np.random.default_rng(7), 400))


def _masses(rng, n_rows, n_bins, share=0.3, dtype=np.float64):
    """Return histograms of exact mass 1 in which most bins are empty."""
    counts = rng.integers(1, 9, (n_rows, n_bins)) * (rng.random((n_rows, n_bins)) < share)
    counts[np.arange(n_rows), rng.integers(n_bins, size=n_rows)] += 16 * n_bins - counts.sum(axis=1)
    return (counts / (16 * n_bins)).astype(dtype)


def _uneven(rng, n_rows, n_bins):
    """Return rows in which some bins are used by many rows and others by few."""
    counts = rng.integers(1, 9, (n_rows, n_bins)) * (
        rng.random((n_rows, n_bins)) < rng.random(n_bins) ** 4
    )
    counts[:, 0] += 16 * n_bins - counts.sum(axis=1)
    return counts / (16 * n_bins)


def _reference(p, q, case, rho):
    return naive.emd(p[:, None], q[None], case.ground, rho)


def _by_emd(p, q, space, rho, validate=None):
    return fastemd.emd(p[:, None], q[None], space, rho, validate=validate)


def _pairwise(p, q=None, *, space, rho, **keywords):
    return fastemd.pairwise(p, q, space=space, rho=rho, **keywords)


@pytest.fixture
def small_blocks(monkeypatch):
    """Use many blocks, which are packed again for every pair, and a sample of a few rows."""
    for name, value in (("BLOCK_ROWS", 5), ("CACHE_BYTES", 2000), ("SAMPLE", 7)):
        monkeypatch.setattr(pair_sums, name, value)


# -- values ----------------------------------------------------------------------------------------


def test_pairwise_agrees_with_naive(case, rho, rng):
    p, q = random_pair(rng, (9, case.n_bins))
    comp = _pairwise(p, space=case.space, rho=rho)
    assert_close(comp, _reference(p, p, case, rho))
    assert_close(_pairwise(p, q[:5], space=case.space, rho=rho), _reference(p, q[:5], case, rho))


@given(problems(), rhos)
def test_pairwise_agrees_with_naive_on_drawn_problems(problem, rho):
    p, q, space = problem.p, problem.q, problem.case.space
    p, q = p[:1].repeat(2, axis=0), q[:1]  # rows of other masses are invalid
    assert_close(_pairwise(p, q, space=space, rho=rho), _reference(p, q, problem.case, rho))


@given(st.data(), rhos, st.sampled_from([1, 3, 12]))
def test_pairwise_agrees_with_emd_on_drawn_tables(data, rho, copies):
    case = data.draw(st.sampled_from([chain_case(6), chain_case(3, [0.0, 2.0]), BIG_STAR]))
    rows = np.concatenate(data.draw(histograms(case.n_bins, n_rows=1, count=8)))
    rows = np.repeat(rows, copies, axis=0)  # few rows of a table have mass below an edge
    ref = _by_emd(rows, rows, case.space, rho)
    for table in (rows, sp.csr_array(rows)):
        assert_close(_pairwise(table, space=case.space, rho=rho), ref)
        comp, indices = fastemd.neighbors(rows[:2], table, space=case.space, rho=rho, k=2)
        assert_close(comp, np.take_along_axis(ref[:2], indices, axis=1))


BIG_STAR = tree_case(naive.Ground([5] * 5 + [-1], [1, 2, 0, 0.5, 3, 0], [4, 0, 1, 2, 3]))


@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("kind", ["dense", "mixed", "few"])
def test_pairwise_of_many_blocks(kind, rho, rng, small_blocks):
    n_bins = BIG.n_bins
    make = {"dense": lambda n: _masses(rng, n, n_bins, 0.9), "mixed": lambda n: _uneven(
        rng, n, n_bins), "few": lambda n: _masses(rng, n, n_bins, 0.01)}[kind]  # fmt: skip
    p, q = make(33), make(18)
    for table, other in itertools.product((p, sp.csr_array(p)), (q, sp.csr_array(q))):
        comp = _pairwise(table, space=BIG.space, rho=rho)
        assert_close(comp, _by_emd(p, p, BIG.space, rho))
        np.testing.assert_array_equal(comp, comp.T)
        np.testing.assert_array_equal(np.diag(comp), np.zeros(33))
        condensed = _pairwise(table, space=BIG.space, rho=rho, condensed=True)
        np.testing.assert_array_equal(condensed, squareform(comp, checks=False))
        comp = _pairwise(table, other, space=BIG.space, rho=rho)
        assert_close(comp, _by_emd(p, q, BIG.space, rho))
        comp = _pairwise(other, table, space=BIG.space, rho=rho)
        assert_close(comp, _by_emd(q, p, BIG.space, rho))


@pytest.mark.parametrize("n_rows", [*range(18), 31, 32, 33])
@pytest.mark.parametrize("rho", RHOS)
def test_pairwise_of_any_number_of_rows(n_rows, rho, small_case, rng, monkeypatch):
    p = _masses(rng, n_rows, small_case.n_bins, 0.2)
    q = _masses(rng, 11, small_case.n_bins, 0.2)
    ref, other = (_by_emd(p, x, small_case.space, rho) for x in (p, q))
    comp = _pairwise(p, space=small_case.space, rho=rho)
    assert_close(comp, ref)
    condensed = _pairwise(p, space=small_case.space, rho=rho, condensed=True)
    np.testing.assert_array_equal(condensed, comp[np.triu_indices(n_rows, 1)])
    assert_close(_pairwise(p, q, space=small_case.space, rho=rho), other)
    assert_close(_pairwise(q, p, space=small_case.space, rho=rho), other.T)
    monkeypatch.setattr(pair_sums, "BLOCK_NUMBERS", 1)  # blocks of one panel
    assert_close(_pairwise(p, space=small_case.space, rho=rho), ref)
    assert_close(_pairwise(p, q, space=small_case.space, rho=rho), other)
    assert_close(_pairwise(sp.csr_array(p), space=small_case.space, rho=rho), ref)


@pytest.mark.parametrize("n_edges", [255, 256, 257, 511, 513, 1025])
def test_pairwise_of_any_number_of_edges(n_edges, rng):
    """The kernels process 256 edges at a time."""
    p, chain = _masses(rng, 9, n_edges + 1), fastemd.Chain(n_edges + 1)
    for rho in (1, 1.5):
        assert_close(_pairwise(p, space=chain, rho=rho), _by_emd(p, p, chain, rho))


@pytest.mark.parametrize("rho", RHOS)
def test_pairwise_in_parallel_agrees_with_emd(rho, rng):
    p, chain = _uneven(rng, 300, 300), fastemd.Chain(300)
    assert_close(_pairwise(p, space=chain, rho=rho), _by_emd(p, p, chain, rho))


def test_pairwise_in_threads_of_caller(rng):
    p, chain = _uneven(rng, 200, 100), fastemd.Chain(100)
    ref = _pairwise(p, space=chain, rho=1)
    with ThreadPoolExecutor(4) as pool:
        for comp in pool.map(lambda _: _pairwise(p, space=chain, rho=1), range(8)):
            np.testing.assert_array_equal(comp, ref)


@pytest.mark.parametrize(
    "rho", [1.0, np.float32(1.5), np.int64(2), 40, 1 + 2.0**-52, 2 - 2.0**-52, 2 + 2.0**-51]
)
def test_pairwise_accepts_any_rho(rho, small_case, rng):
    p = _masses(rng, 9, small_case.n_bins)
    comp = _pairwise(p, space=small_case.space, rho=rho)
    assert_close(comp, _reference(p, p, small_case, rho))


@pytest.mark.parametrize("rho", [1, 1.5, 2, 1000])
def test_pairwise_is_finite_if_power_overflows_on_edge_of_length_0(rho):
    case = chain_case(3, [0.0, 1.0])
    p = np.array([[3.0, 0.0, 1.0], [0.0, 3.0, 1.0], [1.0, 2.0, 1.0]])
    assert not _pairwise(p, space=case.space, rho=rho).any()


def test_pairwise_of_unnormalized_counts(rho, rng):
    """Counts of many digits, in any integer type."""
    p = rng.multinomial(1000, np.ones(30) / 30, 9)
    ref = _by_emd(p, p, fastemd.Chain(30), rho)
    for dtype in (np.uint8, np.int16, np.uint64):
        comp = _pairwise(p.astype(dtype), space=fastemd.Chain(30), rho=rho)
        assert_close(comp, ref)


def test_pairwise_does_not_depend_on_blocks(rho, rng, monkeypatch):
    p = _uneven(rng, 70, BIG.n_bins)
    ref = _pairwise(p, space=BIG.space, rho=rho)
    for numbers in (1, 20 * BIG.n_bins):
        monkeypatch.setattr(pair_sums, "BLOCK_NUMBERS", numbers)
        assert_close(_pairwise(p, space=BIG.space, rho=rho), ref, rtol=1e-14)


@pytest.mark.parametrize("rho", RHOS)
def test_pairwise_of_identical_rows_is_zero(rho, rng, small_blocks):
    p = _uneven(rng, 12, BIG.n_bins) + rng.random(BIG.n_bins) / 7  # masses whose sums round
    p = np.concatenate([p, p])
    for table in (p, sp.csr_array(p), _masses(rng, 24, BIG.n_bins, 0.01)):
        table[12:] = table[:12]
        comp = _pairwise(table, space=BIG.space, rho=rho)
        limit = 0.0 if rho != 2 else 1e-15 * comp.max()  # a product of matrices
        assert (np.diag(comp, 12) <= limit).all()
        assert (np.diag(_pairwise(table, table, space=BIG.space, rho=rho)) <= limit).all()
        assert (comp >= 0.0).all()


@pytest.mark.parametrize("mass", [0.0, 2.0**-40, 255.0, 2.0**30])
def test_pairwise_of_histograms_of_any_mass(mass, rho, small_case, rng):
    p = mass * _masses(rng, 9, small_case.n_bins)
    comp = _pairwise(p, space=small_case.space, rho=rho)
    assert_close(comp, _by_emd(p, p, small_case.space, rho))


@pytest.mark.parametrize("n_bins", [1, 2])
def test_pairwise_of_smallest_spaces(n_bins, rho):
    p = np.eye(n_bins)[[0, -1, 0]]
    for space in (fastemd.Chain(n_bins), fastemd.Tree.from_parents([-1] + [0] * n_bins)):
        for table in (p, sp.csr_array(p)):
            comp = _pairwise(table, space=space, rho=rho)
            assert_close(comp, _by_emd(p, p, space, rho), rtol=1e-15)


@pytest.mark.parametrize("rho", RHOS)
@pytest.mark.parametrize("n_used", [1, 2, 5, 99, 100, 101, 199])
def test_pairwise_of_sparse_table_with_unused_bins(n_used, rho, rng):
    """Edges above unused bins are removed if fewer than half of the bins are used."""
    p = np.zeros((12, BIG.n_bins))
    p[:, rng.permutation(BIG.n_bins)[:n_used]] = _masses(rng, 12, n_used)
    q = np.roll(p[:4], 3, axis=1)
    table, other = sp.csr_array(p), sp.csr_array(q)
    for a, b in ((table, other), (table, q), (p, other)):
        comp = _pairwise(a, b, space=BIG.space, rho=rho)
        assert_close(comp, _by_emd(p, q, BIG.space, rho))
    assert_close(_pairwise(table, space=BIG.space, rho=rho), _by_emd(p, p, BIG.space, rho))


@pytest.mark.parametrize("rho", RHOS)
def test_pairwise_of_sparse_table_on_chain(rho, rng):
    p, chain = np.zeros((12, 40)), fastemd.Chain(40, rng.integers(0, 4, 39).astype(float))
    p[:, rng.permutation(40)[:7]] = _masses(rng, 12, 7)
    comp = _pairwise(sp.csr_array(p), space=chain, rho=rho)
    assert_close(comp, _by_emd(p, p, chain, rho))


# -- accuracy --------------------------------------------------------------------------------------


def _exact(p, q, case, rho):
    return [[naive.exact_emd(a, b, case.ground, rho) for b in q] for a in p]


def _assert_accurate(comp, exact):
    largest = max(max(row) for row in exact)
    errors = [
        abs(Fraction(float(x)) - y)
        for ours, row in zip(comp, exact, strict=True)
        for x, y in zip(ours, row, strict=True)
    ]
    assert float(max(errors) / largest) <= 1e-12


def _nearly_equal(rng, n_rows, n_bins, change):
    """Return rows that differ by a small change of a few bins."""
    base = rng.dirichlet(np.ones(n_bins))
    p = np.tile(base, (n_rows, 1))
    for row in p:
        i, j = rng.permutation(n_bins)[:2]
        moved = change * base[i]
        row[i] -= moved
        row[j] += moved
    return p


@pytest.mark.parametrize("rho", [1, 1.5, 2, 3])
@pytest.mark.parametrize("change", [1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("kind", ["chain", "tree"])
def test_pairwise_of_nearly_equal_rows_is_accurate(kind, change, rho, rng):
    """Masses below edges round relative to the masses, but distances are as small as the change."""
    case = chain_case(30) if kind == "chain" else tree_case(random_ground(rng, 60, 30))
    p = _nearly_equal(rng, 7, 30, change)
    _assert_accurate(_pairwise(p, space=case.space, rho=rho), _exact(p, p, case, rho))
    comp = _pairwise(p[:3], p[3:], space=case.space, rho=rho)
    _assert_accurate(comp, _exact(p[:3], p[3:], case, rho))


@pytest.mark.parametrize("rho", [1, 1.5, 2, 3])
def test_pairwise_of_nearly_equal_rows_and_sparse_edges_is_accurate(rho, rng):
    """Some rows have a little mass in bins that the others do not use."""
    case = tree_case(random_ground(rng, 60, 30))
    p = np.zeros((40, 30))
    p[:, :20] = _nearly_equal(rng, 40, 20, 1e-9)
    for row in range(3):
        p[row, row] -= 1e-9
        p[row, 20 + row] += 1e-9
    few = [0, 1, 2, 3, 20, 39]
    for table in (p, sp.csr_array(p)):
        comp = _pairwise(table, space=case.space, rho=rho)[few][:, few]
        _assert_accurate(comp, _exact(p[few], p[few], case, rho))


@pytest.mark.parametrize("rho", [1, 1.5, 2, 3])
def test_pairwise_of_lengths_of_any_size_is_accurate(rho, rng):
    ground = random_ground(rng, 60, 30)
    lengths = 10.0 ** rng.uniform(-12, 12, 60)
    ground = ground._replace(
        weight=[x if w else 0.0 for x, w in zip(lengths, ground.weight, strict=True)]
    )
    for case in (tree_case(ground), chain_case(30, (10.0 ** rng.uniform(-12, 12, 29)).tolist())):
        p = rng.dirichlet(np.full(30, 0.2), 8)
        _assert_accurate(_pairwise(p, space=case.space, rho=rho), _exact(p, p, case, rho))


@pytest.mark.parametrize("rho", [1, 2, 3])
def test_pairwise_of_rows_far_from_first_row_is_accurate(rho, rng):
    case = chain_case(20)
    p = _nearly_equal(rng, 9, 20, 1e-8)
    p[0] = np.eye(20)[19]
    _assert_accurate(_pairwise(p, space=case.space, rho=rho), _exact(p, p, case, rho))


# -- types -----------------------------------------------------------------------------------------

FORMATS = [
    sp.csr_array,
    sp.csr_matrix,
    sp.coo_array,
    sp.coo_matrix,
    sp.csc_array,
    sp.lil_array,
    sp.bsr_array,
    sp.dok_array,
]


@pytest.mark.parametrize("make", FORMATS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8, bool])
def test_pairwise_of_sparse_formats(make, dtype, small_case, rng):
    n_bins = small_case.n_bins
    p = rng.permuted(np.repeat([[1, 1] + [0] * (n_bins - 2)], 6, axis=0), axis=1).astype(dtype)
    before = p.copy()
    table = make(p)
    ref = _pairwise(p.astype(np.float64), space=small_case.space, rho=1)
    for comp in (
        _pairwise(table, space=small_case.space, rho=1),
        _pairwise(p, table, space=small_case.space, rho=1),
    ):
        assert type(comp) is np.ndarray
        assert comp.dtype == (np.float32 if dtype == np.float32 else np.float64)
        np.testing.assert_allclose(comp, ref, rtol=1e-7)
    np.testing.assert_array_equal(table.toarray(), before)


@pytest.mark.parametrize("rho", RHOS)
def test_pairwise_float32_is_rounded_float64(rho, small_case, rng):
    p = rng.dirichlet(np.ones(small_case.n_bins), 9).astype(np.float32)
    ref = _pairwise(p.astype(np.float64), space=small_case.space, rho=rho, validate=False)
    for table in (p, sp.csr_array(p), p.astype(">f4")):
        comp = _pairwise(table, space=small_case.space, rho=rho)
        np.testing.assert_array_equal(comp, ref.astype(np.float32), strict=True)
    mixed = _pairwise(p, p.astype(np.float64), space=small_case.space, rho=rho)
    assert mixed.dtype == np.float64


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.tolist(),
        lambda x: np.repeat(x, 2, axis=0)[::2],
        lambda x: np.repeat(x, 3, axis=1)[:, 1::3],
        lambda x: x[::-1].copy()[::-1],
        np.asfortranarray,
        lambda x: np.frombuffer(x.tobytes()).reshape(x.shape),  # read-only
        lambda x: x.astype(">f8"),
        lambda x: x.astype(object),
        np.matrix,
        np.ma.masked_array,
    ],
    ids=["lists", "rows", "columns", "reversed", "fortran", "read-only", "bytes", "objects",
         "matrix", "masked"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_pairwise_of_any_memory_layout(make, small_case, rho, rng):
    p = _masses(rng, 6, small_case.n_bins)
    ref = _pairwise(p, space=small_case.space, rho=rho)
    np.testing.assert_array_equal(_pairwise(make(p), space=small_case.space, rho=rho), ref)


def test_pairwise_of_empty_tables(rho, rng):
    p, none = _masses(rng, 3, 5), np.empty((0, 5))
    for empty in (none, sp.csr_array(none)):
        assert _pairwise(empty, space=CHAIN, rho=rho).shape == (0, 0)
        assert _pairwise(empty, space=CHAIN, rho=rho, condensed=True).shape == (0,)
        assert _pairwise(p, empty, space=CHAIN, rho=rho).shape == (3, 0)
        assert _pairwise(empty, p, space=CHAIN, rho=rho).shape == (0, 3)
        for result in fastemd.neighbors(empty, p, space=CHAIN, rho=rho, k=2):
            assert result.shape == (0, 2)
    assert _pairwise(p[:1], space=CHAIN, rho=rho).tolist() == [[0.0]]
    assert _pairwise(p[:1], space=CHAIN, rho=rho, condensed=True).shape == (0,)


def _with_duplicates(values, columns, starts):
    values, columns, starts = np.array(values), np.array(columns), np.array(starts)
    return sp.csr_array((values, columns, starts), shape=(len(starts) - 1, 5))


def test_pairwise_of_sparse_table_with_duplicates_leaves_it_unchanged():
    table = _with_duplicates([0.5, 0.5, 1.0, 0.0, 0.75, 0.25], [0, 0, 1, 3, 2, 0], [0, 2, 4, 6])
    parts = [x.copy() for x in (table.data, table.indices, table.indptr)]
    comp = _pairwise(table, space=CHAIN, rho=1)
    for ours, before in zip((table.data, table.indices, table.indptr), parts, strict=True):
        np.testing.assert_array_equal(ours, before, strict=True)
    dense = table.toarray()
    np.testing.assert_array_equal(comp, _pairwise(dense, space=CHAIN, rho=1))
    for part in (table.data, table.indices, table.indptr):
        part.flags.writeable = False
    np.testing.assert_array_equal(_pairwise(table, space=CHAIN, rho=1), comp)


def test_pairwise_of_tiny_negative_masses(rho, rng, small_blocks):
    p = _uneven(rng, 20, BIG.n_bins)
    p[:, 5] -= 1e-9
    p[::7, 9] -= 1e-9
    for table in (p, sp.csr_array(p)):
        comp = _pairwise(table, space=BIG.space, rho=rho)
        assert_close(comp, _by_emd(p, p, BIG.space, rho))


@pytest.mark.parametrize("rho", RHOS)
def test_pairwise_without_validation_is_nan_in_row_of_nan_only(rho, rng, small_blocks):
    p = _uneven(rng, 20, BIG.n_bins)
    ref = _pairwise(p, space=BIG.space, rho=rho)
    for row, value in ((0, np.nan), (7, np.inf)):
        invalid = p.copy()
        invalid[row, 3] = value
        comp = _pairwise(invalid, space=BIG.space, rho=rho, validate=False)
        others = np.delete(np.arange(20), row)
        assert np.isnan(comp[row, others]).all() or np.isinf(comp[row, others]).all()
        assert_close(comp[others][:, others], ref[others][:, others])


def test_pairwise_without_validation_evaluates_formula(case, rho, rng):
    p = rng.integers(-9, 10, (6, case.n_bins)) / 8
    p[:, 0] -= p.sum(axis=1)
    comp = _pairwise(p, space=case.space, rho=rho, validate=False)
    assert_close(comp, _by_emd(p, p, case.space, rho, validate=False))


# -- out -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f8"])
@pytest.mark.parametrize("condensed", [False, True])
def test_pairwise_writes_to_out(condensed, dtype, rng, tmp_path, small_blocks):
    p = _masses(rng, 17, 5)
    ref = _pairwise(p, space=CHAIN, rho=1, condensed=condensed)
    buffers = [
        np.full(ref.shape, SENTINEL, dtype),
        np.full((2 * ref.shape[0], *ref.shape[1:]), SENTINEL, dtype)[::2],
        np.memmap(tmp_path / "out", dtype, "w+", shape=ref.shape),
    ]
    for out in buffers:
        comp = _pairwise(p, space=CHAIN, rho=1, condensed=condensed, out=out)
        assert comp is out
        np.testing.assert_array_equal(out, ref.astype(dtype))
    out = np.full((17, 4), SENTINEL, dtype)
    assert _pairwise(p, p[:4], space=CHAIN, rho=1, out=out) is out
    np.testing.assert_array_equal(out, _pairwise(p, p[:4], space=CHAIN, rho=1).astype(dtype))


class BlockArray:
    """An array on disk, of which parts can be assigned to."""

    def __init__(self, shape):
        self.array = np.full(shape, SENTINEL)
        self.shape, self.dtype, self.largest = shape, self.array.dtype, 0

    def __setitem__(self, part, block):
        self.largest = max(self.largest, block.size)
        self.array[part] = block


@pytest.mark.parametrize("condensed", [False, True])
def test_pairwise_writes_blocks_to_out(condensed, rng, small_blocks):
    p = _masses(rng, 17, 5)
    ref = _pairwise(p, space=CHAIN, rho=1, condensed=condensed)
    out = BlockArray(ref.shape)
    assert _pairwise(p, space=CHAIN, rho=1, condensed=condensed, out=out) is out
    np.testing.assert_array_equal(out.array, ref)
    assert out.largest <= 25


@pytest.mark.parametrize("rho", [1, 2])
def test_pairwise_writes_to_out_that_overlaps_with_histograms(rho, rng, small_blocks):
    p = _masses(rng, 30, 30)
    ref = _pairwise(p, space=fastemd.Chain(30), rho=rho)
    assert _pairwise(p, space=fastemd.Chain(30), rho=rho, out=p) is p
    np.testing.assert_array_equal(p, ref)


def _read_only(shape):
    out = np.zeros(shape)
    out.flags.writeable = False
    return out


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.zeros((4, 3)), ValueError, r"shape \(4, 3\); expected an array of shape \(4, 4\)"),
        (np.zeros(16), ValueError, r"shape \(16,\); expected an array of shape \(4, 4\)"),
        (np.zeros((4, 4), int), TypeError, "expected an array of floating point numbers, got int"),
        (np.zeros((4, 4), complex), TypeError, "floating point numbers, got complex128"),
        (_read_only((4, 4)), ValueError, "read-only"),
        ([[0.0] * 4] * 4, ValueError, r"list of length 4; expected an array of shape \(4, 4\)"),
        (3.0, ValueError, "3.0"),
    ],
)
def test_pairwise_rejects_out(out, error, message, rng):
    with pytest.raises(error, match=rf"^out: .*{message}"):
        _pairwise(_masses(rng, 4, 5), space=CHAIN, rho=1, out=out)


# -- errors ----------------------------------------------------------------------------------------

NAN = np.full((4, 5), 0.2)
NAN[2, 3] = np.nan
NEGATIVE = np.full((4, 5), 0.2)
NEGATIVE[1, :2] = -0.2, 0.6
UNEQUAL = np.full((4, 5), 0.2)
UNEQUAL[3] = 0.4
GOOD = np.full((4, 5), 0.2)
HUGE = np.full((4, 5), 1e308)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"P": GOOD[0]}, ValueError, r"P: shape \(5,\); expected two axes, \(rows, bins\)"),
        ({"P": GOOD[None]}, ValueError, r"P: shape \(1, 4, 5\); expected two axes"),
        ({"P": 3.0}, ValueError, r"P: shape \(\); expected two axes"),
        ({"Q": GOOD[0]}, ValueError, r"Q: shape \(5,\); expected two axes"),
        ({"P": GOOD[:, :4]}, ValueError, "P: the last axis must hold the 5 bins"),
        ({"Q": GOOD.T}, ValueError, "Q: the last axis must hold the 5 bins.* axis 0: move it last"),
        ({"P": sp.csr_array(GOOD.T)}, ValueError, "P: the last axis must hold the 5 bins"),
        ({"P": NAN}, ValueError, "P: row 2 is not finite, nan at bin 3"),
        ({"P": sp.csr_array(NAN)}, ValueError, "P: row 2 is not finite, nan at bin 3"),
        ({"Q": NAN}, ValueError, "Q: row 2 is not finite, nan at bin 3"),
        ({"P": NEGATIVE}, ValueError, "P: row 1 has a negative mass, -0.2 at bin 0"),
        ({"Q": NEGATIVE}, ValueError, "Q: row 1 has a negative mass, -0.2 at bin 0"),
        ({"P": -GOOD}, ValueError, "P: row 0 has a negative mass, -0.2 at bin 0"),
        ({"P": UNEQUAL}, ValueError, r"P: unequal masses, row \d of P sums to 1.0 and row 3 of P"),
        ({"Q": UNEQUAL}, ValueError, r"P and Q: unequal .*, row \d of P .* 1.0 and row 3 of Q"),
        ({"Q": 0 * GOOD}, ValueError, r"Q and P: unequal masses, row 0 of Q sums to 0.0"),
        ({"P": HUGE}, ValueError, "P: row 0: the mass is beyond the range of float64"),
        ({"condensed": True, "Q": GOOD}, ValueError, "condensed: expected False .* leave out Q"),
        ({"rho": 0.5}, ValueError, "rho: "),
        ({"rho": None}, TypeError, "rho: "),
        ({"rho": float("nan")}, ValueError, "rho: "),
        ({"space": 5}, TypeError, "space: expected a fastemd.Chain or fastemd.Tree, got 5"),
        ({"P": GOOD.astype(complex)}, TypeError, "P: expected an array of real numbers"),
        ({"P": sp.csr_array(GOOD.astype(complex))}, TypeError, "P: expected .* of real numbers"),
        ({"P": sp.coo_array(GOOD[0])}, (TypeError, ValueError), "P: "),
        ({"P": "histograms"}, TypeError, "P: expected an array of real numbers"),
        ({"P": None}, TypeError, "P: expected an array of real numbers"),
        ({"P": [[1.0] * 5, [1.0] * 4]}, TypeError, "P: expected an array of real numbers"),
        ({"validate": 1}, TypeError, "validate: "),
        ({"validate": -1.0}, ValueError, "validate: "),
    ],
)
def test_pairwise_rejects(arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        fastemd.pairwise(**{"P": GOOD, "space": CHAIN, "rho": 1, **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": 0}, ValueError, "k: expected 1 to 4, the number of rows of P, got 0"),
        ({"k": 5}, ValueError, "k: expected 1 to 4, the number of rows of P, got 5"),
        ({"k": -1}, ValueError, "k: expected 1 to 4"),
        ({"k": 2.0}, TypeError, r"k: expected an integer, got 2.0 \(float\)"),
        ({"k": True}, TypeError, "k: expected an integer"),
        ({"k": None}, TypeError, "k: expected an integer"),
        ({"P": GOOD[:0]}, ValueError, "k: expected 1 to 0"),
        ({"queries": GOOD[0]}, ValueError, r"queries: shape \(5,\); expected two axes"),
        ({"queries": NAN}, ValueError, "queries: row 2 is not finite"),
        (
            {"queries": UNEQUAL[3:]},
            ValueError,
            "P and queries: unequal masses, row 0 of P sums to 1.0",
        ),
        ({"P": NAN}, ValueError, "P: row 2 is not finite"),
        ({"rho": 0.5}, ValueError, "rho: "),
        ({"space": "chain"}, TypeError, "space: "),
    ],
)
def test_neighbors_rejects(arguments, error, message):
    with pytest.raises(error, match=f"^{message}"):
        fastemd.neighbors(
            **{"queries": GOOD, "P": GOOD, "space": CHAIN, "rho": 1, "k": 1, **arguments}
        )


@pytest.mark.parametrize("row", [0, 511, 512, 700, 999])
@pytest.mark.parametrize("make", [np.array, sp.csr_array])
def test_pairwise_names_invalid_row_of_later_block(make, row, rng, monkeypatch):
    monkeypatch.setattr(pair_sums, "SAMPLE", 3)
    p = np.zeros((1000, 30))
    p[:, 4:9] = _masses(rng, 1000, 5)
    for value, message in ((np.nan, "is not finite, nan at bin 6"), (np.inf, "is not finite, inf")):
        p[row, 6] = value
        for name in "PQ":
            tables = {"P": make(np.eye(30)[4:6]), name: make(p)}
            with pytest.raises(ValueError, match=f"^{name}: row {row} {message}"):
                fastemd.pairwise(**tables, space=fastemd.Chain(30), rho=2)
    p[row] = 0.0
    p[row, 4:6] = 1.5, -0.5
    with pytest.raises(ValueError, match=f"^P: row {row} has a negative mass, -0.5 at bin 5"):
        fastemd.pairwise(make(p), space=fastemd.Chain(30), rho=1)
    p[row, 4] = 1.0
    with pytest.raises(ValueError, match=rf"^P: unequal masses, row {row} of P sums to 0.5"):
        fastemd.pairwise(make(p), space=fastemd.Chain(30), rho=1)


def test_pairwise_validates_with_tolerance(rng):
    p = _masses(rng, 4, 5)
    p[1] *= 1.001
    with pytest.raises(ValueError, match=r"relative tolerance 1.0e-05"):
        _pairwise(p, space=CHAIN, rho=1)
    comp = _pairwise(p, space=CHAIN, rho=1, validate=0.01)
    assert_close(comp, fastemd.emd(p[:, None], p[None], CHAIN, 1, validate=0.01))
    p[1] = p[0]
    assert _pairwise(p, space=CHAIN, rho=1, validate=0.0).shape == (4, 4)


# -- progress --------------------------------------------------------------------------------------


def _show_progress(monkeypatch):
    """Pretend to be on a terminal. Pytest replaces the stream of a fixture before the test."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr(pair_sums, "PROGRESS_AFTER", 0.0)


def test_pairwise_shows_progress_on_terminal(monkeypatch, rng, capsys, small_blocks):
    _show_progress(monkeypatch)
    p = _masses(rng, 17, 5)
    _pairwise(p, space=CHAIN, rho=1)
    shown = capsys.readouterr().err
    assert "s left" in shown
    assert shown.endswith("\033[K")
    fastemd.neighbors(p, p, space=CHAIN, rho=1, k=1)
    assert "s left" in capsys.readouterr().err
    _pairwise(p, space=CHAIN, rho=1, progress=False)
    fastemd.neighbors(p, p, space=CHAIN, rho=1, k=1, progress=False)
    assert capsys.readouterr().err == ""


def test_pairwise_shows_no_progress_for_short_work(monkeypatch, rng, capsys, small_blocks):
    _show_progress(monkeypatch)
    monkeypatch.setattr(pair_sums, "PROGRESS_AFTER", 60.0)
    _pairwise(_masses(rng, 17, 5), space=CHAIN, rho=1)
    assert capsys.readouterr().err == ""


def test_pairwise_removes_progress_if_interrupted(monkeypatch, rng, capsys, small_blocks):
    _show_progress(monkeypatch)
    p, blocks = _masses(rng, 17, 5), itertools.count()
    block = pair_sums.PairSums.block

    @functools.wraps(block)
    def interrupted(*arguments):
        if next(blocks) == 4:
            raise KeyboardInterrupt
        return block(*arguments)

    monkeypatch.setattr(pair_sums.PairSums, "block", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _pairwise(p, space=CHAIN, rho=1)
    shown = capsys.readouterr().err
    assert "s left" in shown
    assert shown.endswith("\033[K")
    monkeypatch.undo()
    assert_close(_pairwise(p, space=CHAIN, rho=1), _by_emd(p, p, CHAIN, 1))


# -- neighbours ------------------------------------------------------------------------------------


def _assert_neighbors(queries, p, space, rho, k):
    ref = _pairwise(queries, p, space=space, rho=rho)
    order = np.argsort(ref, axis=1, kind="stable")[:, :k]
    distances, indices = fastemd.neighbors(queries, p, space=space, rho=rho, k=k)
    assert distances.dtype == ref.dtype
    assert indices.dtype == np.int64
    np.testing.assert_array_equal(distances, np.take_along_axis(ref, order, axis=1))
    np.testing.assert_array_equal(indices, order)


@pytest.mark.parametrize("k", [1, 2, 7, 16, 40])
@pytest.mark.parametrize("rho", RHOS)
def test_neighbors_are_smallest_entries_of_pairwise(k, rho, rng, small_blocks):
    p = _uneven(rng, 40, BIG.n_bins)
    for table in (p, sp.csr_array(p)):
        _assert_neighbors(p[:9], table, BIG.space, rho, k)


@pytest.mark.parametrize("block_rows", [1, 3, 8, 100])
@pytest.mark.parametrize("k", [1, 3, 10, 59, 60])
def test_neighbors_with_ties_have_smaller_index_first(
    k, block_rows, rng, monkeypatch, small_blocks
):
    monkeypatch.setattr(pair_sums, "BLOCK_ROWS", block_rows)
    p = np.eye(5)[rng.integers(5, size=60)]
    _assert_neighbors(np.eye(5), p, CHAIN, 1, np.int64(k))
    _assert_neighbors(np.eye(5), np.repeat(p[:1], 60, axis=0), CHAIN, 2, k)


def test_neighbors_float32_are_sorted_in_float64(rng):
    p = rng.dirichlet(np.ones(5), 30).astype(np.float32)
    distances, indices = fastemd.neighbors(p[:3], p, space=CHAIN, rho=1, k=30)
    assert distances.dtype == np.float32
    wide = p.astype(np.float64)
    ref, order = fastemd.neighbors(wide[:3], wide, space=CHAIN, rho=1, k=30, validate=False)
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_array_equal(distances, ref.astype(np.float32))


@pytest.mark.parametrize("block_rows", [1, 4, 100])
def test_neighbors_without_validation_sort_nan_last(block_rows, rng, monkeypatch, small_blocks):
    monkeypatch.setattr(pair_sums, "BLOCK_ROWS", block_rows)
    p = _masses(rng, 30, 5)
    p[[0, 3, 17], 1] = np.nan
    for k in (1, 2, 28, 30):
        distances, indices = fastemd.neighbors(p[1:3], p, space=CHAIN, rho=1, k=k, validate=False)
        ref = _pairwise(p[1:3], p, space=CHAIN, rho=1, validate=False)
        order = np.argsort(ref, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(indices, order)
        np.testing.assert_array_equal(distances, np.take_along_axis(ref, order, axis=1))


def test_neighbors_at_infinite_distance_have_valid_indices():
    p = np.eye(3) * 1e200
    distances, indices = fastemd.neighbors(p, p, space=fastemd.Chain(3), rho=1.9, k=3)
    assert np.isinf(distances[:, 1:]).all()
    assert np.sort(indices, axis=1).tolist() == [[0, 1, 2]] * 3


def test_pairwise_float32_may_be_infinite():
    p = np.eye(3, dtype=np.float32) * np.float32(1e30)
    comp = _pairwise(p, space=fastemd.Chain(3), rho=2)
    np.testing.assert_array_equal(comp, np.where(np.eye(3), 0.0, np.inf))
    distances, _ = fastemd.neighbors(p, p, space=fastemd.Chain(3), rho=2, k=2)
    assert distances.tolist() == [[0.0, np.inf]] * 3


@pytest.fixture
def recorded(monkeypatch):
    """Return a function that records the results of a method of PairSums."""

    def record(name):
        results, method = [], getattr(pair_sums.PairSums, name)

        def recording(*arguments):
            results.append(method(*arguments))
            return results[-1]

        monkeypatch.setattr(pair_sums.PairSums, name, recording)
        return results

    return record


def test_pairwise_sweeps_one_block_at_a_time(rng, monkeypatch, recorded):
    """Also of the sample of rows by which edges are called dense or sparse."""
    masses = recorded("_masses")
    monkeypatch.setattr(pair_sums, "BLOCK_NUMBERS", 10 * 4)
    p = _masses(rng, 33, 5)
    p[:9] = p[0]  # the first blocks have no mass below some edges
    assert_close(_pairwise(p, space=CHAIN, rho=1), _by_emd(p, p, CHAIN, 1))
    assert max(each.size for each in masses) <= 10 * 4


def test_pairwise_packs_rows_once_for_their_pairs(rng, small_blocks, monkeypatch, recorded):
    """Rows beyond the cache are packed for each pair, but not for both of its sides."""
    monkeypatch.setattr(pair_sums, "CACHE_BYTES", 0)
    packed = recorded("_pack")
    _pairwise(_masses(rng, 20, 5), space=CHAIN, rho=1)  # four blocks
    assert len(packed) == 4 + 3 + 2 + 1


def test_neighbors_hold_one_block_in_memory(rng, small_blocks, recorded):
    blocks = recorded("block")
    p = _masses(rng, 33, 5)
    fastemd.neighbors(p, p, space=CHAIN, rho=1, k=2)
    assert max(each.size for each in blocks) <= 25


@pytest.mark.parametrize("make", [np.asarray, sp.csr_array])
@pytest.mark.parametrize("rho", [1, 1.5, 2])
def test_pairwise_without_validation_is_nan_if_few_rows_have_mass(make, rho):
    """The edge of the first bin is sparse: NaN is one of its entries."""
    p = np.zeros((40, 3))
    p[:, 2], p[5] = 1.0, [np.nan, 0.0, 1.0]
    distances = _pairwise(make(p), space=fastemd.Chain(3), rho=rho, validate=False)
    others = np.arange(40) != 5
    assert np.isnan(distances[5, others]).all()
    assert (distances[np.ix_(others, others)] == 0.0).all()
