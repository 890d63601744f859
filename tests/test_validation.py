"""Invalid values: the error names the argument, the first invalid row and the reason."""

import re

import numpy as np
import pytest

import fastemd
from tests.support.device import DEVICE, SIMULATED, cpu, hardware
from tests.support.operations import BY_NAME, OPERATIONS, assert_close

pytestmark = pytest.mark.any_backend

# Work for all threads, and many valid rows before the invalid one.
B = 6 if SIMULATED else 14001

PAIRS = [operation for operation in OPERATIONS if "q" in operation.arrays]
each = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
each_of_two = pytest.mark.parametrize("operation", PAIRS, ids=lambda operation: operation.name)

NOT_FINITE = [np.nan, np.inf, -np.inf]


def _invalidate(arrays, operation, name, row, bin_, value):
    arrays[operation.arrays.index(name)][row, bin_] = value


def _assert_rejected(operation, arrays, space, match, error=ValueError, rho=1.5):
    """Assert the error, with and without `out`, whose contents are then undefined."""
    with pytest.raises(error, match=match):
        operation(arrays, space, rho)
    batch = np.broadcast_shapes(*(x.shape[:-1] for x in arrays))
    dtype = np.float32 if all(x.dtype == np.float32 for x in arrays) else np.float64
    buffers = [np.empty(shape, dtype) for shape in operation.shapes(batch, space)]
    with pytest.raises(error, match=match):
        operation(arrays, space, rho, out=operation.out(buffers))


def _deferred(match):
    """Return the message of calls with a tolerance, which devices validate later."""
    return match if DEVICE == "cpu" else r"^row \d+ of an earlier call"


@each
@pytest.mark.parametrize("name", ["p", "q"])
@pytest.mark.parametrize("row", [0, 3, B - 1])
@pytest.mark.parametrize("bin_", [0, 3, 4])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_functions_reject_negative_mass(operation, name, row, bin_, dtype, small_case, rng):
    name = name if name in operation.arrays else "p"
    arrays = operation.draw(rng, (B,), small_case.n_bins, dtype)
    _invalidate(arrays, operation, name, row, bin_, -0.25)
    _assert_rejected(operation, arrays, small_case.space, rf"\b{name}\b.*\brow {row}\b.*negative")


@each
@pytest.mark.parametrize("name", ["p", "q", "v"])
@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("bin_", [0, 3, 4])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_functions_reject_nonfinite_values(operation, name, value, bin_, dtype, small_case, rng):
    name = name if name in operation.arrays else "p"
    arrays = operation.draw(rng, (B,), small_case.n_bins, dtype)
    _invalidate(arrays, operation, name, B - 1, bin_, value)
    _assert_rejected(operation, arrays, small_case.space, rf"\b{name}\b.*\brow {B - 1}\b.*finite")


@each_of_two
@pytest.mark.parametrize("row", [0, 3, B - 1])
@pytest.mark.parametrize("factor", [0.0, 0.8, 1.01])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_functions_reject_unequal_masses(operation, row, factor, dtype, small_case, rng):
    arrays = operation.draw(rng, (B,), small_case.n_bins, dtype)
    arrays[1][row] *= dtype(factor)
    _assert_rejected(operation, arrays, small_case.space, rf"\brow {row}\b.*mass")


@each_of_two
def test_functions_reject_equal_infinite_masses(operation, small_case, rng):
    """inf - inf is NaN, which is not larger than any tolerance."""
    arrays = operation.draw(rng, (3,), small_case.n_bins)
    arrays[0][1, 2] = arrays[1][1, 2] = np.inf
    _assert_rejected(operation, arrays, small_case.space, r"\brow 1\b.*finite")


@each
def test_functions_name_first_invalid_row(operation, small_case, rng):
    arrays = operation.draw(rng, (B,), small_case.n_bins)
    first, second = B * 2 // 3, B // 3
    arrays[0][first, 1] = -1.0
    arrays[-1][[first + 1, B - 1], 0] = np.nan
    match = rf"\bp\b.*\brow {first}\b.*negative"
    _assert_rejected(operation, arrays, small_case.space, match)
    arrays[-1][second, 0] = np.nan
    match = rf"\b{operation.arrays[-1]}\b.*\brow {second}\b.*finite"
    _assert_rejected(operation, arrays, small_case.space, match)


@each_of_two
def test_functions_name_invalid_row_of_broadcast_batch(operation, small_case, rng):
    n = small_case.n_bins
    p, q, v = BY_NAME["emd_hvp"].draw(rng, (4, 3), n)
    p, q, v = p[:, :1].copy(), q[:1].copy(), v
    arrays = [p, q, v][: len(operation.arrays)]
    p[2, 0, 1] = np.nan
    _assert_rejected(operation, arrays, small_case.space, r"\bp\b.*row \(2, 0\).*finite")
    p[2, 0, 1] = 0.0
    p[2] = q[0, 0]
    q[0, 2, 0] = -1.0
    _assert_rejected(operation, arrays, small_case.space, r"\bq\b.*row \(0, 2\).*negative")


@each_of_two
def test_functions_of_one_row_name_no_row(operation, small_case, rng):
    for name, value, word in [("p", np.nan, "finite"), ("q", -1.0, "negative"), ("p", 2.0, "mass")]:
        arrays = operation.draw(rng, (), small_case.n_bins)
        arrays[operation.arrays.index(name)][1] = value
        with pytest.raises(ValueError, match=word) as caught:
            operation(arrays, small_case.space, 2)
        assert re.search(r"\brow\b", str(caught.value)) is None
        assert re.search(rf"\b{name}\b", str(caught.value))


@pytest.mark.parametrize("text", ["-0.25", "bin 3"])
def test_emd_names_invalid_value_and_bin(text, small_case, rng, backend):
    p, q = BY_NAME["emd"].draw(rng, (5,), small_case.n_bins)
    p[2, 3] = -0.25
    with pytest.raises(ValueError, match=text):
        backend.emd(p, q, small_case.space, 2)


@each_of_two
@pytest.mark.parametrize(
    ("dtypes", "off", "refused"),
    [
        ((np.float64, np.float64), 9e-6, False),
        ((np.float64, np.float64), 1.1e-5, True),
        ((np.float32, np.float32), 1e-4, False),
        ((np.float32, np.float32), 1e-3, True),
        ((np.float32, np.float64), 1e-4, False),  # the coarser type determines it
        ((np.float64, np.float32), 1e-3, True),
        ((np.float16, np.float64), 1e-2, False),
        ((np.float64, np.float16), 1e-1, True),
        ((np.int64, np.float64), 9e-6, False),
        ((np.int64, np.float64), 1.1e-5, True),
    ],
)
@pytest.mark.parametrize("mass", [1.0, 2.0**-13, 2.0**15])
def test_functions_tolerance_is_relative_to_type_and_mass(
    operation, dtypes, off, refused, mass, small_case
):
    if np.int64 in dtypes:
        mass = max(mass, 1.0)
    arrays = [np.zeros((3, small_case.n_bins), dtype) for dtype in (*dtypes, np.float64)]
    arrays[0][:, 1], arrays[1][:, 4] = mass, mass * (1 + off)
    arrays = arrays[: len(operation.arrays)]
    if refused:
        _assert_rejected(operation, arrays, small_case.space, r"row 0\b.*mass")
    else:
        assert all(np.isfinite(x).all() for x in operation(arrays, small_case.space, 1.5))


@each
@pytest.mark.parametrize("value", [-0.0, 0.0, 5e-324, 1e-300, 1e100])
def test_functions_accept_unusual_valid_values(operation, value, small_case):
    """Minus zero, rows of mass 0, subnormal and large masses, and any finite v."""
    arrays = [np.full((3, small_case.n_bins), value) for _ in operation.arrays]
    if "v" in operation.arrays:
        arrays[2][...] = -7.0
    # At rho = 3 all results vanish with the flow.
    for result in operation(arrays, small_case.space, 3):
        assert np.isfinite(result).all()
        assert (not result.any()) == (value == 0.0 or "q" in operation.arrays)


@each
@pytest.mark.parametrize("name", ["p", "q"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-5), (np.float32, 2**-11.5)])
def test_functions_accept_negative_masses_within_the_tolerance(
    operation, name, dtype, tolerance, small_case, rng
):
    """The negative entries of a row may sum to the tolerance times its mass."""
    name = name if name in operation.arrays else "p"
    arrays = operation.draw(rng, (9,), small_case.n_bins, dtype)
    row = arrays[operation.arrays.index(name)][8]
    row *= 1024  # relative to the mass
    row[3] = row[4] = 0.0
    mass = np.float64(row.sum())
    if "q" in operation.arrays:
        arrays[1 - "pq".index(name)][8] = row
    row[3] = row[4] = dtype(-0.49 * tolerance * mass)
    ref = operation.naive(arrays, small_case, 2.5)
    for ours, theirs in zip(operation(arrays, small_case.space, 2.5), ref, strict=True):
        assert_close(ours, theirs, rtol=1e-12 if dtype == np.float64 else 1e-6)
    row[4] *= dtype(1.2)
    match = rf"\b{name}\b.*\brow 8\b.*negative"
    _assert_rejected(operation, arrays, small_case.space, match)
    operation(arrays, small_case.space, 2.5, validate=2 * tolerance)
    row[3], row[4] = 0.0, dtype(-1e-300 if dtype == np.float64 else -1e-38)
    operation(arrays, small_case.space, 2.5)
    with pytest.raises(ValueError, match=_deferred(match)):
        operation(arrays, small_case.space, 2.5, validate=0.0)


@pytest.mark.parametrize("name", ["emd_grad", "emd_hvp"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("exponent", range(-22, -8))
def test_functions_compare_masses_up_to_any_tolerance(name, dtype, exponent):
    """Including tolerances below the rounding errors of sums in the type of the rows."""
    operation, off = BY_NAME[name], 2.0**exponent
    chain = fastemd.Chain(20_000 if not SIMULATED else 200)
    arrays = [np.zeros((9, chain.n_bins), dtype) for _ in operation.arrays]
    arrays[0][:], arrays[1][:] = 1 / 1024, 1 / 1024
    arrays[0][8, 0] += dtype(off * arrays[0][8].sum(dtype=np.float64))
    exact = arrays[0][8].sum(dtype=np.float64) - arrays[1][8].sum(dtype=np.float64)
    exact /= arrays[0][8].sum(dtype=np.float64)
    operation(arrays, chain, 2, validate=float(1.01 * exact))
    with pytest.raises(ValueError, match=_deferred("row 8 has unequal masses")):
        operation(arrays, chain, 2, validate=float(0.99 * exact))


def test_functions_accept_float32_probabilities_as_float64(rng, backend):
    logits = rng.standard_normal((400, 1000)).astype(np.float32)
    p = np.exp(logits)
    p = (p / p.sum(-1, keepdims=True)).astype(np.float64)
    q = np.eye(1000)[rng.integers(0, 1000, 400)]
    chain = fastemd.Chain(1000)
    assert np.isfinite(backend.emd(p, q, chain, 2)).all()
    loss = backend.emd_loss(p, q, chain, normalize=None)[0]
    assert np.isfinite(loss)
    p[7, 4] += p[7, 3]
    p[7, 3] = -2e-16
    assert np.isfinite(backend.emd_grad(p, q, chain, 1)).all()
    assert np.isfinite(backend.emd_loss(p, q, chain, normalize="l1")[0])


@each
@pytest.mark.parametrize("dtype", [np.int64, np.float16])
def test_functions_validate_other_types(operation, dtype, small_case):
    arrays = [np.ones((5, small_case.n_bins), dtype) for _ in operation.arrays]
    arrays[0][4, 0] = -1
    _assert_rejected(operation, arrays, small_case.space, r"\bp\b.*\brow 4\b.*negative")


@each
def test_functions_validate_any_memory_layout(operation, small_case, rng):
    arrays = operation.draw(rng, (40, 3), small_case.n_bins)
    arrays[0][39, 1, 2] = -1.0
    for view in (np.asfortranarray, lambda x: x[..., ::-1].copy()[..., ::-1]):
        views = [view(x) for x in arrays]
        _assert_rejected(operation, views, small_case.space, r"\bp\b.*row \(39, 1\).*negative")


@pytest.mark.parametrize("name", ["emd", "embed"])
def test_functions_reject_mass_that_overflows(name):
    huge = np.full((3, 2), 1.5e308)
    huge[:2] = 1.0
    with pytest.raises(ValueError, match="row 2: the mass is beyond"):
        BY_NAME[name]([huge] * len(BY_NAME[name].arrays), fastemd.Chain(2), 1)


def test_emd_of_one_pair_names_no_row(backend):
    with pytest.raises(ValueError, match=r"^p and q have unequal masses, p sums to 1"):
        backend.emd([1.0, 0.0], [0.0, 0.5], fastemd.Chain(2), 1)
    with pytest.raises(ValueError, match=r"^q is not finite, nan at bin 1"):
        backend.emd([1.0, 0.0], [0.0, np.nan], fastemd.Chain(2), 1)


@hardware  # a million bins
def test_emd_sums_masses_of_many_bins_in_float64(backend):
    """A million float32 masses of 1e-6 sum to 1; adding them up in float32 would miss by 1e-3."""
    chain = fastemd.Chain(1_000_000)
    p, q = np.full(chain.n_bins, 1e-6, np.float32), np.zeros(chain.n_bins, np.float32)
    q[7] = 1.0
    backend.emd(p, q, chain, 1)
    q[7] = 0.9994
    with pytest.raises(ValueError, match="unequal masses"):
        backend.emd(p, q, chain, 1)


@each
def test_validate_must_be_bool_or_float(operation, small_case, rng):
    arrays = operation.draw(rng, (3,), small_case.n_bins)
    for validate in (True, False, np.True_, np.False_, 1e-6, np.float32(1e-3)):
        operation(arrays, small_case.space, 2, validate=validate)
    for validate in (0, 1, "no", "yes", [], np.array(1e-6), 1j):
        with pytest.raises(TypeError, match=r"validate: expected True, False or .* as a float"):
            operation(arrays, small_case.space, 2, validate=validate)


@pytest.mark.parametrize("validate", [0.0, 1e-6, 1.0])
def test_embed_does_not_compare_masses(validate, small_case, rng, backend):
    p = BY_NAME["embed"].draw(rng, (9,), small_case.n_bins)[0]
    ref = backend.embed(p, small_case.space, 2)
    np.testing.assert_array_equal(backend.embed(p, small_case.space, 2, validate=validate), ref)
    p[8, 2] = -2.0 * p[8].sum()
    with pytest.raises(ValueError, match=_deferred("p: row 8 has a negative mass")):
        backend.embed(p, small_case.space, 2, validate=validate)


@cpu  # see cuda/test_validation.py
def test_validate_accepts_tolerance(backend):
    p, q, chain = [0.5, 0.5], [0.5, 0.51], fastemd.Chain(2)
    assert backend.emd(p, q, chain, 1, validate=0.02) >= 0
    with pytest.raises(ValueError, match=r"unequal masses.*tolerance 5.0e-03"):
        backend.emd(p, q, chain, 1, validate=0.005)
    with pytest.raises(ValueError, match="unequal masses"):
        backend.emd(p, np.nextafter(p, 1), chain, 1, validate=0.0)
    with pytest.raises(ValueError, match="p is not finite"):
        backend.emd([np.nan, 0.5], q, chain, 1, validate=1e9)
    for invalid in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="validate: expected a bool or a tolerance >= 0"):
            backend.emd(p, q, chain, 1, validate=invalid)


@pytest.mark.parametrize("size", [1e308, 1.7e308])
def test_embed_names_row_with_mass_beyond_range(size, backend):
    with pytest.raises(ValueError, match=r"^p: row 1: the mass is beyond"):
        backend.embed([[1.0, 0.0], [size, 0.0]], fastemd.Chain(2), 1, validate=True)
