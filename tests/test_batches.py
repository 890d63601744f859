"""Shapes, memory layouts and types: a batch gives the results of its rows."""

from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest

import fastemd
from fastemd.kernels.cpu.tiles import STREAM_FROM
from tests.support.device import SIMULATED, cpu, hardware
from tests.support.operations import assert_agrees, assert_close
from tests.support.strategies import chain_case, random_ground, tree_case

pytestmark = pytest.mark.any_backend

BATCH_SIZES = range(1, 10) if SIMULATED else [*range(1, 35), 63, 64, 65]


def _assert_equal(comp, ref):
    assert len(comp) == len(ref)
    for ours, theirs in zip(comp, ref, strict=True):
        np.testing.assert_array_equal(ours, theirs, strict=True)


@pytest.mark.parametrize("rho", [1, 1.5, 2])
def test_functions_of_batch_equal_functions_of_rows(operation, small_case, rho, rng):
    most = max(BATCH_SIZES)
    arrays = operation.draw(rng, (most,), small_case.n_bins)
    ref = [operation([x[i] for x in arrays], small_case.space, rho) for i in range(most)]
    for size in BATCH_SIZES:
        comp = operation([x[:size] for x in arrays], small_case.space, rho)
        _assert_equal(comp, [np.stack(rows) for rows in zip(*ref[:size], strict=True)])


@pytest.mark.parametrize("kind", ["chain", "tree"])
def test_functions_of_any_number_of_bins(operation, kind, rng):
    for n_bins in range(1, 18) if SIMULATED else (*range(1, 35), 63, 64, 65, 130):
        case = (
            chain_case(n_bins)
            if kind == "chain"
            else tree_case(random_ground(rng, n_bins + n_bins // 2, n_bins))
        )
        for batch in ((), (3,), (20,)):
            arrays = operation.draw(rng, batch, n_bins)
            assert_agrees(operation, arrays, case, 3.7)


@hardware
def test_functions_of_large_batch(operation, small_case, rng):
    """Enough work for several threads or blocks, each with an incomplete last tile."""
    arrays = operation.draw(rng, (14001,), small_case.n_bins)
    assert_agrees(operation, arrays, small_case, 1.5)
    whole = operation(arrays, small_case.space, 1.5)
    for rows in (slice(0, 40), slice(6990, 7030), slice(-3, None)):
        part = operation([x[rows] for x in arrays], small_case.space, 1.5)
        _assert_equal(part, [x[rows] for x in whole])


@cpu
@pytest.mark.parametrize("kind", ["chain", "tree"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_bins", [3, 4, 33, 66, 1025])
def test_functions_with_streaming_stores_agree_with_small_batch(kind, dtype, n_bins, rng, backend):
    """Results of 8 MiB and more are staged and streamed in cache lines, at any alignment."""
    space = fastemd.Chain(n_bins)
    if kind == "tree":
        space = tree_case(random_ground(rng, n_bins + n_bins // 2, n_bins)).space
    batch = STREAM_FROM // (n_bins * np.dtype(dtype).itemsize) + 6  # the last tile is not full
    p, q = rng.dirichlet(np.ones(n_bins), (2, 50)).astype(dtype)
    p, q = (np.resize(array, (batch, n_bins)) for array in (p, q))
    v = (p - 2 * q).astype(dtype)
    room = np.full(batch * n_bins + 16, 7.0, dtype)
    for shift in (0, 3):
        for name, arrays in (("emd_grad", (p, q)), ("emd_hvp", (p, q, v))):
            function = getattr(backend, name)
            out = room[shift : shift + batch * n_bins].reshape(batch, n_bins)
            function(*arrays, space, 3, out=out)
            ref = function(*(array[:50] for array in arrays), space, 3)
            np.testing.assert_array_equal(out, np.resize(ref, out.shape))
            assert (room[:shift] == 7.0).all()
            assert (room[shift + batch * n_bins :] == 7.0).all()
            room[:] = 7.0


@cpu
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("invalid", [0, 8, 777, 4500, 11111, -9, -1])
def test_functions_with_streaming_stores_raise_for_invalid_row(invalid, n_threads, rng, backend):
    """Staged results of the tile before it must not be written elsewhere."""
    n_bins = 1001
    batch = 2 * STREAM_FROM // (4 * n_bins) + 5
    p, q = np.resize(rng.dirichlet(np.ones(n_bins), 50).astype(np.float32), (2, batch, n_bins))
    invalid = range(batch)[invalid % batch]
    p[invalid, 3] = -1.0
    before = numba.get_num_threads()
    numba.set_num_threads(min(n_threads, before))
    around = [np.zeros(1 << 20, np.float32) for _ in range(8)]
    try:
        with pytest.raises(ValueError, match=f"p: row {invalid} has a negative mass"):
            backend.emd_grad(p, q, fastemd.Chain(n_bins), 2)
    finally:
        numba.set_num_threads(before)
    assert not any(array.any() for array in around)


@cpu
@pytest.mark.parametrize(("n_bins", "dtype"), [(1024, np.float32), (512, np.float64)])
def test_functions_of_rows_one_page_apart(n_bins, dtype, rng, backend):
    """Rows that map to the same cache sets are copied before the sweep."""
    space = fastemd.Chain(n_bins)
    p, q = rng.dirichlet(np.ones(n_bins), (2, 21)).astype(dtype)
    v = rng.normal(size=p.shape).astype(dtype)
    wide = [np.zeros((21, n_bins + 1), dtype)[:, :n_bins] for _ in range(3)]
    for target, array in zip(wide, (p, q, v), strict=True):
        target[...] = array
    for other in (wide[1], q, q[:1]):
        comp = backend.emd_hvp(p, other, v, space, 3, validate=False)
        ref = backend.emd_hvp(wide[0], other, wide[2], space, 3, validate=False)
        np.testing.assert_array_equal(comp, ref)
    comp, ref = (backend.emd_value_and_grad(*pair, space, 2) for pair in ((p, q), wide[:2]))
    _assert_equal(comp, ref)
    p[17, 5] = np.nan
    with pytest.raises(ValueError, match=r"row 17"):
        backend.emd(p, q, space, 2)


@hardware
def test_functions_are_thread_safe(operation, small_case, rng):
    arrays = operation.draw(rng, (14001,), small_case.n_bins)
    ref = operation(arrays, small_case.space, 1.5)
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(operation, arrays, small_case.space, 1.5) for _ in range(16)]
        for call in calls:
            _assert_equal(call.result(), ref)


# Batch shapes of p and q (and, for three arrays, v).
BROADCAST = [
    ((), (), ()),
    ((5,), (), ()),
    ((), (5,), (1,)),
    ((1,), (5,), ()),
    ((5,), (1,), (5,)),
    ((4, 1), (1, 3), (4, 3)),  # all pairs
    ((4, 1), (3,), (1, 1)),
    pytest.param(((40, 1), (1, 33), ()), marks=hardware),
    ((2, 3, 4), (4,), (3, 1)),
    ((2, 1, 4), (1, 3, 1), (2, 3, 4)),
    ((2, 1, 3, 1), (1, 4, 1, 5), (5,)),  # no two axes can be merged
    ((2, 1, 3, 1, 2), (4, 1, 5, 1), (4, 1, 1, 2)),
    ((0,), (), ()),
    ((0,), (1,), (0,)),
    ((2, 0, 3), (1, 1, 3), ()),
    ((3, 1), (1, 0), (1,)),
]


@pytest.mark.parametrize("shapes", BROADCAST, ids=str)
def test_functions_broadcast_like_numpy(operation, small_case, shapes, rng):
    batch = np.broadcast_shapes(*shapes[: len(operation.arrays)])
    whole = [
        operation.draw(rng, shape, small_case.n_bins)[i]
        for i, shape in enumerate(shapes[: len(operation.arrays)])
    ]
    spread = [np.ascontiguousarray(np.broadcast_to(x, (*batch, small_case.n_bins))) for x in whole]
    ref = operation(spread, small_case.space, 1.5)
    assert [x.shape for x in ref] == operation.shapes(batch, small_case.space)
    _assert_equal(operation(whole, small_case.space, 1.5), ref)


def _gap_before(x):
    """Return the same values at an address one byte off any alignment."""
    raw = np.zeros(x.nbytes + 1, np.uint8)
    view = raw[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    assert not view.flags.aligned
    return view


def _read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


LAYOUTS = {
    "every other row": lambda x: np.repeat(x, 2, axis=0)[::2],
    "every third column": lambda x: np.repeat(x, 3, axis=-1)[..., ::3],
    "rows backwards": lambda x: x[::-1].copy()[::-1],
    "columns backwards": lambda x: x[..., ::-1].copy()[..., ::-1],
    "columns of a wider array": lambda x: np.pad(x, [(0, 0), (0, 0), (2, 3)])[..., 2:-3],
    "Fortran order": np.asfortranarray,
    "axes of the batch swapped": lambda x: x.swapaxes(0, 1).copy().swapaxes(0, 1),
    "read-only": _read_only,
    "misaligned": _gap_before,
    "big-endian": lambda x: x.astype(">f8"),
    "nested lists": lambda x: x.tolist(),
    "subclass of ndarray": lambda x: x.view(type("Subclass", (np.ndarray,), {})),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_functions_do_not_depend_on_memory_layout(operation, small_case, layout, rng):
    arrays = operation.draw(rng, (5, 4), small_case.n_bins)
    ref = operation(arrays, small_case.space, 1.5)
    _assert_equal(operation([layout(x) for x in arrays], small_case.space, 1.5), ref)
    # Only one array has the layout, the others are contiguous.
    _assert_equal(operation([layout(arrays[0]), *arrays[1:]], small_case.space, 1.5), ref)


@pytest.mark.parametrize(
    "dtype", [np.float16, np.int8, np.int64, np.uint8, np.uint64, bool, np.longdouble]
)
def test_functions_cast_other_types_to_float64(operation, small_case, dtype, rng):
    n = small_case.n_bins
    arrays = [np.eye(n)[rng.integers(n, size=6)].astype(dtype) for _ in operation.arrays]
    ref = operation([x.astype(np.float64) for x in arrays], small_case.space, 1.5)
    comp = operation(arrays, small_case.space, 1.5)
    assert all(x.dtype == np.float64 for x in comp)
    _assert_equal(comp, ref)


def test_functions_return_float32_only_if_all_inputs_are(operation, small_case, rng):
    arrays = operation.draw(rng, (6,), small_case.n_bins)
    single = [x.astype(np.float32) for x in arrays]
    ref = operation(arrays, small_case.space, 1.5)
    for i in range(1, len(arrays)):
        mixed = [*single[:i], *arrays[i:]]
        _assert_equal(operation(mixed, small_case.space, 1.5), ref)
    ref = operation(single, small_case.space, 1.5)
    assert all(x.dtype == np.float32 for x in ref)
    swapped = [x.astype(">f4") for x in single]  # still float32, only its bytes are swapped
    _assert_equal(operation(swapped, small_case.space, 1.5), ref)


def test_functions_do_not_modify_inputs(operation, small_case, rng):
    for dtype in (np.float64, np.float32):
        arrays = operation.draw(rng, (33,), small_case.n_bins, dtype)
        before = [x.copy() for x in arrays]
        operation(arrays, small_case.space, 1.5)
        operation(arrays, small_case.space, 1.5, validate=False)
        _assert_equal(arrays, before)


@cpu
def test_functions_return_new_writeable_contiguous_arrays(operation, small_case, rng):
    arrays = operation.draw(rng, (4, 5), small_case.n_bins)
    for result in operation(arrays, small_case.space, 2):
        assert result.flags.c_contiguous
        assert result.flags.writeable
        assert not any(np.shares_memory(result, x) for x in arrays)


def test_functions_accept_read_only_broadcast_row(operation, small_case, rng):
    arrays = operation.draw(rng, (), small_case.n_bins)
    spread = [np.broadcast_to(x, (40, small_case.n_bins)) for x in arrays]
    for comp, ref in zip(
        operation(spread, small_case.space, 1.5),
        operation(arrays, small_case.space, 1.5),
        strict=True,
    ):
        np.testing.assert_array_equal(comp, np.stack([ref] * 40))


@cpu
def test_functions_do_not_depend_on_number_of_threads(operation, small_case, rng):
    """Enough work for several threads."""
    arrays = operation.draw(rng, (9001,), small_case.n_bins)
    ref = operation(arrays, small_case.space, 3.7)
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        comp = operation(arrays, small_case.space, 3.7)
    finally:
        numba.set_num_threads(threads)
    _assert_equal(comp, ref)


@pytest.mark.parametrize("validate", [True, False])
def test_functions_do_not_depend_on_validate(operation, case, validate, rng):
    arrays = operation.draw(rng, (9,), case.n_bins)
    for comp, ref in zip(
        operation(arrays, case.space, 1.5, validate=validate),
        operation(arrays, case.space, 1.5),
        strict=True,
    ):
        assert_close(comp, ref, rtol=1e-14)
