"""Bad numbers: the error names the argument, the first bad row and what is wrong."""

import re

import numpy as np
import pytest
from device import SIMULATED, cpu
from operations import BY_NAME, OPERATIONS

import fastemd

SENTINEL = -123.456
# Work for all threads, and many good rows before the bad one.
B = 6 if SIMULATED else 14001

PAIRS = [operation for operation in OPERATIONS if "q" in operation.arrays]
each = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
each_of_two = pytest.mark.parametrize("operation", PAIRS, ids=lambda operation: operation.name)

NOT_FINITE = [np.nan, np.inf, -np.inf]


def _spoil(arrays, operation, name, row, bin_, value):
    arrays[operation.arrays.index(name)][row, bin_] = value


def _assert_refused(operation, arrays, space, match, error=ValueError, rho=1.5):
    """The error, with and without `out`, and that `out` was not touched."""
    with pytest.raises(error, match=match):
        operation(arrays, space, rho)
    batch = np.broadcast_shapes(*(x.shape[:-1] for x in arrays))
    dtype = np.float32 if all(x.dtype == np.float32 for x in arrays) else np.float64
    buffers = [np.full(shape, SENTINEL, dtype) for shape in operation.shapes(batch, space)]
    with pytest.raises(error, match=match):
        operation(arrays, space, rho, out=operation.out(buffers))
    for buffer in buffers:
        np.testing.assert_array_equal(buffer, np.full_like(buffer, SENTINEL))


@each
@pytest.mark.parametrize("name", ["p", "q"])
@pytest.mark.parametrize("row", [0, 3, B - 1])
@pytest.mark.parametrize("bin_", [0, 3, 4])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_functions__refuse_a_negative_mass(operation, name, row, bin_, dtype, small_case, rng):
    name = name if name in operation.arrays else "p"
    arrays = operation.draw(rng, (B,), small_case.n_bins, dtype)
    _spoil(arrays, operation, name, row, bin_, -0.25)
    _assert_refused(operation, arrays, small_case.space, rf"\b{name}\b.*\brow {row}\b.*negative")


@each
@pytest.mark.parametrize("name", ["p", "q", "v"])
@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("bin_", [0, 3, 4])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_functions__refuse_what_is_not_finite(operation, name, value, bin_, dtype, small_case, rng):
    name = name if name in operation.arrays else "p"
    arrays = operation.draw(rng, (B,), small_case.n_bins, dtype)
    _spoil(arrays, operation, name, B - 1, bin_, value)
    _assert_refused(operation, arrays, small_case.space, rf"\b{name}\b.*\brow {B - 1}\b.*finite")


@each_of_two
@pytest.mark.parametrize("row", [0, 3, B - 1])
@pytest.mark.parametrize("factor", [0.0, 0.8, 1.01])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_functions__refuse_unequal_masses(operation, row, factor, dtype, small_case, rng):
    arrays = operation.draw(rng, (B,), small_case.n_bins, dtype)
    arrays[1][row] *= dtype(factor)
    _assert_refused(operation, arrays, small_case.space, rf"\brow {row}\b.*mass")


@each_of_two
def test_functions__equal_infinite_masses_are_not_finite(operation, small_case, rng):
    """inf - inf is not a number, which compares with nothing."""
    arrays = operation.draw(rng, (3,), small_case.n_bins)
    arrays[0][1, 2] = arrays[1][1, 2] = np.inf
    _assert_refused(operation, arrays, small_case.space, r"\brow 1\b.*finite")


@each
def test_functions__name_the_first_bad_row(operation, small_case, rng):
    arrays = operation.draw(rng, (B,), small_case.n_bins)
    first, second = B * 2 // 3, B // 3
    arrays[0][first, 1] = -1.0
    arrays[-1][[first + 1, B - 1], 0] = np.nan
    match = rf"\bp\b.*\brow {first}\b.*negative"
    _assert_refused(operation, arrays, small_case.space, match)
    arrays[-1][second, 0] = np.nan
    match = rf"\b{operation.arrays[-1]}\b.*\brow {second}\b.*finite"
    _assert_refused(operation, arrays, small_case.space, match)


@each_of_two
def test_functions__count_the_rows_of_the_broadcast_batch(operation, small_case, rng):
    n = small_case.n_bins
    p, q, v = BY_NAME["emd_hvp"].draw(rng, (4, 3), n)
    p, q, v = p[:, :1].copy(), q[:1].copy(), v
    arrays = [p, q, v][: len(operation.arrays)]
    p[2, 0, 1] = np.nan
    _assert_refused(operation, arrays, small_case.space, r"\bp\b.*row \(2, 0\).*finite")
    p[2, 0, 1] = 0.0
    p[2] = q[0, 0]
    q[0, 2, 0] = -1.0
    _assert_refused(operation, arrays, small_case.space, r"\bq\b.*row \(0, 2\).*negative")


@each_of_two
def test_functions__of_one_row_name_no_row(operation, small_case, rng):
    for name, value, word in [("p", np.nan, "finite"), ("q", -1.0, "negative"), ("p", 2.0, "mass")]:
        arrays = operation.draw(rng, (), small_case.n_bins)
        arrays[operation.arrays.index(name)][1] = value
        with pytest.raises(ValueError, match=word) as caught:
            operation(arrays, small_case.space, 2)
        assert re.search(r"\brow\b", str(caught.value)) is None
        assert re.search(rf"\b{name}\b", str(caught.value))


@pytest.mark.parametrize("text", ["-0.25", "bin 3"])
def test_functions__say_which_number_is_wrong(text, small_case, rng):
    p, q = BY_NAME["emd"].draw(rng, (5,), small_case.n_bins)
    p[2, 3] = -0.25
    with pytest.raises(ValueError, match=text):
        fastemd.emd(p, q, small_case.space, 2)


@each_of_two
@pytest.mark.parametrize(
    ("dtypes", "off", "refused"),
    [
        ((np.float64, np.float64), 1e-9, False),
        ((np.float64, np.float64), 1e-7, True),
        ((np.float32, np.float32), 1e-4, False),
        ((np.float32, np.float32), 1e-3, True),
        ((np.float32, np.float64), 1e-4, False),  # the coarser one counts
        ((np.float64, np.float32), 1e-3, True),
        ((np.float16, np.float64), 1e-2, False),
        ((np.float64, np.float16), 1e-1, True),
        ((np.int64, np.float64), 1e-9, False),  # whole numbers have no rounding to forgive
        ((np.int64, np.float64), 1e-7, True),
    ],
)
@pytest.mark.parametrize("mass", [1.0, 2.0**-13, 2.0**15])
def test_functions__equal_mass_is_relative_to_the_type_and_the_mass(
    operation, dtypes, off, refused, mass, small_case
):
    if np.int64 in dtypes:
        mass = max(mass, 1.0)
    arrays = [np.zeros((3, small_case.n_bins), dtype) for dtype in (*dtypes, np.float64)]
    arrays[0][:, 1], arrays[1][:, 4] = mass, mass * (1 + off)
    arrays = arrays[: len(operation.arrays)]
    if refused:
        _assert_refused(operation, arrays, small_case.space, r"row 0\b.*mass")
    else:
        assert all(np.isfinite(x).all() for x in operation(arrays, small_case.space, 1.5))


@each
@pytest.mark.parametrize("value", [-0.0, 0.0, 5e-324, 1e-300, 1e100])
def test_functions__accept_what_only_looks_wrong(operation, value, small_case):
    """Minus zero, rows without any mass, the tiniest and large masses; and any finite v."""
    arrays = [np.full((3, small_case.n_bins), value) for _ in operation.arrays]
    if "v" in operation.arrays:
        arrays[2][...] = -7.0
    # At rho = 3 everything vanishes with the flow.
    for result in operation(arrays, small_case.space, 3):
        assert np.isfinite(result).all()
        assert (not result.any()) == (value == 0.0 or "q" in operation.arrays)


@each
def test_functions__refuse_the_tiniest_negative_mass(operation, small_case, rng):
    arrays = operation.draw(rng, (3,), small_case.n_bins)
    arrays[0][2, 3] = -1e-300
    _assert_refused(operation, arrays, small_case.space, r"\bp\b.*\brow 2\b.*negative")


@each
@pytest.mark.parametrize("dtype", [np.int64, np.float16])
def test_functions__look_at_numbers_of_other_types(operation, dtype, small_case):
    arrays = [np.ones((5, small_case.n_bins), dtype) for _ in operation.arrays]
    arrays[0][4, 0] = -1
    _assert_refused(operation, arrays, small_case.space, r"\bp\b.*\brow 4\b.*negative")


@each
def test_functions__look_at_numbers_in_any_layout(operation, small_case, rng):
    arrays = operation.draw(rng, (40, 3), small_case.n_bins)
    arrays[0][39, 1, 2] = -1.0
    for view in (np.asfortranarray, lambda x: x[..., ::-1].copy()[..., ::-1]):
        views = [view(x) for x in arrays]
        _assert_refused(operation, views, small_case.space, r"\bp\b.*row \(39, 1\).*negative")


@each
def test_functions__leave_an_overlapping_out_alone(operation, small_case, rng):
    """On an error the memory shared by p and out still holds p."""
    arrays = operation.draw(rng, (40,), small_case.n_bins)
    shapes = operation.shapes((40,), small_case.space)
    memory = np.zeros(max(arrays[0].size, int(np.prod(shapes[-1]))))
    p = memory[: arrays[0].size].reshape(arrays[0].shape)
    p[...] = arrays[0]
    p[39, 1] = -1.0
    before = memory.copy()
    last = memory[: int(np.prod(shapes[-1]))].reshape(shapes[-1])
    buffers = [*(np.full(shape, SENTINEL) for shape in shapes[:-1]), last]
    with pytest.raises(ValueError, match=r"\bp\b.*row 39\b.*negative"):
        operation([p, *arrays[1:]], small_case.space, 1.5, out=operation.out(buffers))
    np.testing.assert_array_equal(memory, before)
    assert all((buffer == SENTINEL).all() for buffer in buffers[:-1])


@pytest.mark.parametrize("name", ["emd", "embed"])
def test_functions__refuse_a_mass_that_overflows(name):
    huge = np.full((3, 2), 1.5e308)
    huge[:2] = 1.0
    with pytest.raises(ValueError, match="row 2: the mass is beyond"):
        BY_NAME[name]([huge] * len(BY_NAME[name].arrays), fastemd.Chain(2), 1)


def test_emd__one_pair_is_blamed_without_a_row():
    with pytest.raises(ValueError, match=r"^p and q have unequal masses, p sums to 1"):
        fastemd.emd([1.0, 0.0], [0.0, 0.5], fastemd.Chain(2), 1)
    with pytest.raises(ValueError, match=r"^q is not finite, nan at bin 1"):
        fastemd.emd([1.0, 0.0], [0.0, np.nan], fastemd.Chain(2), 1)


@cpu  # a million bins
def test_emd__sums_the_masses_of_many_bins_exactly_enough():
    """A million float32 masses of 1e-6 sum to 1; adding them up in float32 would miss by 1e-3."""
    chain = fastemd.Chain(1_000_000)
    p, q = np.full(chain.n_bins, 1e-6, np.float32), np.zeros(chain.n_bins, np.float32)
    q[7] = 1.0
    fastemd.emd(p, q, chain, 1)
    q[7] = 0.9994
    with pytest.raises(ValueError, match="unequal masses"):
        fastemd.emd(p, q, chain, 1)


@cpu  # see test_cuda.py
def test_validate__a_tolerance_of_one_s_own():
    p, q, chain = [0.5, 0.5], [0.5, 0.51], fastemd.Chain(2)
    assert fastemd.emd(p, q, chain, 1, validate=0.02) >= 0
    with pytest.raises(ValueError, match=r"unequal masses.*tolerance 5.0e-03"):
        fastemd.emd(p, q, chain, 1, validate=0.005)
    with pytest.raises(ValueError, match="unequal masses"):
        fastemd.emd(p, np.nextafter(p, 1), chain, 1, validate=0.0)
    with pytest.raises(ValueError, match="p is not finite"):
        fastemd.emd([np.nan, 0.5], q, chain, 1, validate=1e9)
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="validate: expected a bool or a tolerance >= 0"):
            fastemd.emd(p, q, chain, 1, validate=bad)
