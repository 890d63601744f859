"""Distances of all pairs as a graph of Dask, in threads and in worker processes."""

import os
import pickle
import weakref
from unittest import mock

import numba
import numpy as np
import pytest
import scipy.sparse

import fastemd
from tests.support.frameworks import needed

dask = needed("dask")
da = needed("dask.array")
distances = needed("fastemd.dask").pairwise

TREE = fastemd.Tree.from_parents(
    [2, 2, 6, 5, 5, 6, -1], [1.0, 2, 0.5, 1, 0, 3, 0], bins=[0, 1, 3, 4]
)
CHAIN = fastemd.Chain(4, gaps=[1.0, 0.5, 2.0])
CHUNKS = {"uneven": (3, 1, 5, 2), "even": (4, 4, 3), "one": (11,), "empty": (0, 6, 0, 5)}


def histograms(n_rows, seed=0, dtype="float64"):
    rng = np.random.default_rng(seed)
    masses = rng.random((n_rows, 4)) * (rng.random((n_rows, 4)) < 0.5) + [0.125, 0, 0, 0]
    return (masses / masses.sum(axis=1, keepdims=True)).astype(dtype)


def lazy(array, rows=4, bins=4):
    return da.from_array(array, chunks=(rows, bins))


@pytest.fixture
def calls(monkeypatch):
    """Record the shapes of the blocks, and pass the calls on."""
    shapes = []

    def recorded(*blocks, **options):
        shapes.append([block.shape for block in blocks])
        return fastemd.pairwise(*blocks, **options)

    monkeypatch.setattr(fastemd.dask, "pairwise_of_arrays", recorded)
    return shapes


@pytest.mark.parametrize("rows", CHUNKS.values(), ids=CHUNKS.keys())
@pytest.mark.parametrize("rho", [1, 1.5, 2])
@pytest.mark.parametrize("space", [CHAIN, TREE], ids=["chain", "tree"])
def test_pairwise_equals_that_of_arrays(space, rho, rows):
    p, q = histograms(11), histograms(7, seed=1)
    a, b = lazy(p, rows), lazy(q, 3)
    for lazily, ref in [
        (distances(a, space=space, rho=rho), fastemd.pairwise(p, space=space, rho=rho)),
        (distances(a, b, space=space, rho=rho), fastemd.pairwise(p, q, space=space, rho=rho)),
    ]:
        assert lazily.chunks == (rows, rows if lazily.shape[1] == 11 else (3, 3, 1))
        result = lazily.compute()
        assert result.dtype == lazily.dtype == np.float64
        np.testing.assert_allclose(result, ref, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "dtypes", [("float32", None), ("float32", "float32"), ("float32", "float64")]
)
def test_pairwise_of_float32_is_float32(dtypes):
    arrays = [histograms(5, dtype=dtype) for dtype in dtypes if dtype]
    lazily = distances(*map(lazy, arrays), space=TREE, rho=1)
    ref = fastemd.pairwise(*arrays, space=TREE, rho=1)
    assert lazily.dtype == ref.dtype
    result = lazily.compute()
    assert result.dtype == ref.dtype
    np.testing.assert_allclose(result, ref, rtol=1e-6)


def test_pairwise_joins_chunks_of_bins():
    p = histograms(6)
    ref = fastemd.pairwise(p, space=TREE, rho=1)
    result = distances(lazy(p, 4, 3), space=TREE, rho=1)
    np.testing.assert_allclose(result.compute(), ref, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("to_sparse", [scipy.sparse.csr_array, scipy.sparse.csr_matrix])
@pytest.mark.parametrize("bins", [4, 3])
def test_pairwise_accepts_sparse_chunks(to_sparse, bins, calls):
    p = histograms(6)
    sparse = lazy(p, 4, bins).map_blocks(to_sparse)
    result = distances(sparse, space=TREE, rho=1).compute()
    ref = fastemd.pairwise(p, space=TREE, rho=1)
    np.testing.assert_allclose(result, ref, rtol=1e-12, atol=1e-13)
    assert type(result) is np.ndarray


def test_pairwise_computes_each_pair_of_blocks_once(calls):
    table = lazy(histograms(10), 3)  # 4 blocks
    symmetric, both = (
        distances(table, space=TREE, rho=1),
        distances(table, lazy(histograms(5)), space=TREE, rho=1),
    )
    assert calls == []  # lazy
    symmetric.compute()
    assert len(calls) == 4 * 5 // 2
    assert sorted(len(blocks) for blocks in calls) == [1] * 4 + [2] * 6
    calls.clear()
    both.compute()
    assert len(calls) == 4 * 2
    calls.clear()
    symmetric[:3, 3:].compute()  # reads 1 x 3 blocks
    assert len(calls) == 3


def test_pairwise_reads_every_chunk_once():
    reads = []

    def read(block):
        reads.append(block.shape)
        return block

    table = lazy(histograms(12), 3).map_blocks(read, meta=np.empty((0, 0)))
    distances(table, space=TREE, rho=1).compute()
    assert reads == [(3, 4)] * 4


def test_pairwise_releases_stored_blocks(monkeypatch):
    alive, counts = set(), []

    def watched(*blocks, **options):
        result = fastemd.pairwise(*blocks, **options)
        alive.add(number := len(counts))
        counts.append(len(alive))
        weakref.finalize(result, alive.discard, number)
        return result

    monkeypatch.setattr(fastemd.dask, "pairwise_of_arrays", watched)
    p = histograms(60)
    stored = np.empty((60, 60))
    with dask.config.set(scheduler="threads", num_workers=2):
        da.store(distances(lazy(p, 3), space=TREE, rho=1), stored, lock=True)
    assert len(counts) == 20 * 21 // 2
    assert max(counts) <= 6
    np.testing.assert_allclose(stored, fastemd.pairwise(p, space=TREE, rho=1), atol=1e-13)


def test_pairwise_has_one_copy_of_the_space_in_its_graph():
    space = fastemd.Tree.from_paths([(f"{i} {'name' * 50}",) for i in range(5000)])
    table = da.zeros((50, 5000), chunks=(2, -1))
    lazily = distances(table, space=space, rho=1)
    size = sum(array.nbytes for array in (space.parent, space.weight, space.bin_node))
    assert size == 120_016
    for array in (lazily, dask.optimize(lazily)[0]):
        graph = dict(array.__dask_graph__())
        assert len(graph) == 25 + 25**2 + 1
        assert len(pickle.dumps(graph)) < size + 200 * len(graph)


def test_pairwise_has_deterministic_keys():
    p = histograms(6)
    first, again = (distances(lazy(p), space=TREE, rho=1) for _ in range(2))
    assert first.name == again.name
    others = [
        distances(lazy(p), space=TREE, rho=2),
        distances(lazy(p), space=CHAIN, rho=1),
        distances(lazy(p), lazy(p), space=TREE, rho=1),
        distances(lazy(p), space=TREE, rho=1, validate=False),
    ]
    assert len({first.name, *(other.name for other in others)}) == 5


P = lazy(histograms(6))
UNKNOWN = P[P[:, 0] > 0.5]


@pytest.mark.parametrize(
    ("tables", "options", "error", "message"),
    [
        ([histograms(3)], {}, TypeError, r"P: expected a dask.array.Array, got ndarray of shape"),
        ([lazy(histograms(3)), [[1]]], {}, TypeError, r"Q: expected a dask.array.Array, got"),
        ([lazy(histograms(3))[0]], {}, ValueError, r"P: shape \(4,\); expected two axes"),
        ([lazy(histograms(3))[:, :3]], {}, ValueError, "P: the last axis must hold the 4 bins"),
        ([UNKNOWN], {}, ValueError, r"P: chunks of unknown size; .* P.compute_chunk_sizes\(\)"),
        ([lazy(histograms(3)), UNKNOWN], {}, ValueError, "Q: chunks of unknown size"),
        ([lazy(histograms(3))], {"rho": 0.5}, ValueError, "rho: expected a finite number >= 1"),
        ([lazy(histograms(3))], {"space": 4}, TypeError, "space: expected a fastemd.Chain"),
        ([lazy(histograms(3))], {"validate": "no"}, TypeError, "validate: expected True, False"),
    ],
)  # fmt: skip
def test_pairwise_validates_arguments_before_computing(tables, options, error, message, calls):
    with pytest.raises(error, match=message):
        distances(*tables, **{"space": TREE, "rho": 1, **options})
    assert calls == []


def test_pairwise_accepts_computed_chunk_sizes():
    p = histograms(6)
    known = lazy(p)[lazy(p)[:, 0] > 0.5].compute_chunk_sizes()
    ref = fastemd.pairwise(p[p[:, 0] > 0.5], space=TREE, rho=1)
    result = distances(known, space=TREE, rho=1).compute()
    np.testing.assert_allclose(result, ref, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("row", "value", "message"),
    [
        (7, np.nan, r"P\[6:9\]: row 1 is not finite, nan at bin 2"),
        (7, 5.0, r"P\[[036]:[369]\].*: unequal masses, .*row 1 of P\[6:9\] to"),
    ],
)
def test_pairwise_names_block_of_invalid_row(row, value, message):
    p = histograms(10)
    p[row, 2] = value
    with pytest.raises(ValueError, match=message):
        distances(lazy(p, 3), space=TREE, rho=1).compute()
    with pytest.raises(
        ValueError, match=message.replace("P", "Q").replace("Q[[036]", "[PQ][[036]")
    ):
        distances(lazy(histograms(3)), lazy(p, 3), space=TREE, rho=1).compute()


def test_pairwise_validates_masses_across_blocks():
    p = histograms(6)
    p[3:] *= 2.0  # equal within each block
    message = (
        r"P\[0:3\] and P\[3:6\]: unequal masses, row \d of P\[0:3\] sums to .* of P\[3:6\] to 2"
    )
    with pytest.raises(ValueError, match=message):
        distances(lazy(p, 3), space=TREE, rho=1).compute()
    free = distances(lazy(p, 3), space=TREE, rho=1, validate=False).compute()
    np.testing.assert_allclose(free, fastemd.pairwise(p, space=TREE, rho=1, validate=False))


def test_pairwise_on_worker_processes_is_stored_in_zarr(tmp_path):
    distributed, zarr = needed("distributed"), needed("zarr")
    p = histograms(10)
    with (
        mock.patch.dict(os.environ, NUMBA_NUM_THREADS="1"),  # distributed sets variables, too
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, scheduler_port=0, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        lazily = distances(lazy(p, 5), space=TREE, rho=1)
        lazily.to_zarr(str(tmp_path / "distances.zarr"))
        with pytest.raises(ValueError, match=r"P\[0:5\] and Q\[0:4\]: unequal masses"):
            distances(lazy(p[:5], 5), lazy(2 * p[:4]), space=TREE, rho=1).compute()
        n_threads = client.submit(numba.get_num_threads).result()
    assert n_threads == 1
    stored = zarr.open_array(tmp_path / "distances.zarr", mode="r")
    assert stored.chunks == (5, 5)
    ref = fastemd.pairwise(p, space=TREE, rho=1)
    np.testing.assert_allclose(stored[...], ref, rtol=1e-12, atol=1e-13)
