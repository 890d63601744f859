"""Invalid shapes, types, powers, spaces and `out` raise before any value is read."""

import re

import numpy as np
import pytest

import fastemd
from tests.support.operations import OPERATIONS

SENTINEL = -123.456
each = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
each_with_rho = pytest.mark.parametrize(
    "operation", [x for x in OPERATIONS if x.takes_rho], ids=lambda operation: operation.name
)
each_of_two = pytest.mark.parametrize(
    "operation", [x for x in OPERATIONS if "q" in x.arrays], ids=lambda operation: operation.name
)
CHAIN = fastemd.Chain(5)


def _assert_rejected(operation, arrays, error, match=None, rho=2, space=CHAIN, shape=(4,), **keys):
    """Assert an error with and without validation and `out`, which remains unchanged."""
    buffers = [np.full(s, SENTINEL) for s in operation.shapes(shape, CHAIN)]
    for validate in (True, False):
        for out in (None, operation.out(buffers)):
            with pytest.raises(error, match=match):
                operation(arrays, space, rho, **{"out": out, "validate": validate, **keys})
    assert all((buffer == SENTINEL).all() for buffer in buffers)


@each
@pytest.mark.parametrize("shape", [(4, 3), (4, 6), (4, 1), (5, 0), (5, 4)])
def test_functions_reject_wrong_number_of_bins(operation, shape, rng):
    for i, name in enumerate(operation.arrays):
        arrays = operation.draw(rng, (4,), 5)
        arrays[i] = np.ones(shape)
        _assert_rejected(operation, arrays, ValueError, rf"\b{name}\b.*{re.escape(str(shape))}")
        with pytest.raises(ValueError, match=r"\b5\b"):
            operation(arrays, CHAIN, 2)


@each
def test_functions_reject_scalars(operation, rng):
    for i, name in enumerate(operation.arrays):
        arrays = operation.draw(rng, (4,), 5)
        for scalar in (1.0, np.float64(1.0), np.array(1.0)):
            arrays[i] = scalar
            _assert_rejected(operation, arrays, ValueError, rf"\b{name}\b")


@each_of_two
@pytest.mark.parametrize("shapes", [((2, 5), (3, 5)), ((2, 3, 5), (2, 5)), ((0, 5), (3, 5))])
def test_functions_reject_incompatible_batch_shapes(operation, shapes):
    arrays = [np.ones(shapes[0]), np.ones(shapes[1]), np.ones(5)][: len(operation.arrays)]
    # The message has the shapes of the arrays or of the batches.
    first, second = (re.escape(str(s)[:2]) for s in shapes)
    _assert_rejected(operation, arrays, ValueError, rf"{first}.*{second}", shape=(2,))


@pytest.mark.parametrize(
    "invalid",
    [
        np.ones((4, 5), complex),
        np.full((4, 5), "1.0", object),
        np.full((4, 5), None),
        np.full((4, 5), "1.0"),
        np.full((4, 5), b"1"),
        np.zeros((4, 5), "datetime64[s]"),
        np.zeros((4, 5), "timedelta64[s]"),
        np.zeros((4, 5), [("x", float)]),
        np.ma.masked_array(np.ones((4, 5)), mask=np.eye(4, 5, dtype=bool)),
        [[1j] * 5] * 4,
        [["a"] * 5] * 4,
        None,
        "ones",
        {"p": 1},
    ],
    ids=lambda invalid: str(invalid)[:20],
)
@each
def test_functions_reject_non_real_arrays(operation, invalid, rng):
    for i, name in enumerate(operation.arrays):
        arrays = operation.draw(rng, (4,), 5)
        arrays[i] = invalid
        _assert_rejected(operation, arrays, TypeError, rf"\b{name}\b")


@each
def test_functions_reject_ragged_lists(operation, rng):
    for i, name in enumerate(operation.arrays):
        arrays = operation.draw(rng, (2,), 5)
        arrays[i] = [[1.0] * 5, [1.0] * 4]
        _assert_rejected(operation, arrays, (TypeError, ValueError), name, shape=(2,))


@each_with_rho
@pytest.mark.parametrize(
    ("rho", "error"),
    [
        (True, TypeError),
        (np.True_, TypeError),
        ("2", TypeError),
        (None, TypeError),
        ([2], TypeError),
        (np.array([2.0]), TypeError),
        (np.array(2.0), TypeError),
        (2j, TypeError),
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        (-float("inf"), ValueError),
        (0.999, ValueError),
        (np.float32(0.5), ValueError),
        (0, ValueError),
        (-2, ValueError),
    ],
    ids=repr,
)
def test_functions_reject_invalid_rho(operation, rho, error, rng):
    _assert_rejected(operation, operation.draw(rng, (4,), 5), error, r"\brho\b", rho=rho)


@each
@pytest.mark.parametrize("space", [None, 5, "chain", np.eye(5), fastemd.Chain])
def test_functions_reject_invalid_space(operation, space, rng):
    _assert_rejected(operation, operation.draw(rng, (4,), 5), TypeError, r"\bspace\b", space=space)


@each_with_rho
def test_functions_require_rho(operation, rng):
    with pytest.raises(TypeError, match="rho"):
        getattr(fastemd, operation.name)(*operation.draw(rng, (4,), 5), CHAIN)


@each
def test_functions_have_keyword_only_options(operation, rng):
    arrays, rho = operation.draw(rng, (4,), 5), (2,) if operation.takes_rho else ()
    function = getattr(fastemd, operation.name)
    with pytest.raises(TypeError, match="positional"):
        function(*arrays, CHAIN, *rho, None)
    with pytest.raises(TypeError, match="projekt"):
        function(*arrays, CHAIN, *rho, projekt=True)


def _read_only(shape):
    array = np.full(shape, SENTINEL)
    array.flags.writeable = False
    return array


BAD_OUT = {
    "a list": (lambda shape: np.zeros(shape).tolist(), TypeError),
    "a number": (lambda shape: 1.0, TypeError),
    "a string": (lambda shape: "out", TypeError),
    "float32 for float64": (lambda shape: np.full(shape, SENTINEL, np.float32), TypeError),
    "whole numbers": (lambda shape: np.full(shape, -123, np.int64), TypeError),
    "complex": (lambda shape: np.full(shape, SENTINEL, complex), TypeError),
    "objects": (lambda shape: np.full(shape, SENTINEL, object), TypeError),
    "swapped bytes": (lambda shape: np.full(shape, SENTINEL, ">f8"), TypeError),
    "one row more": (lambda shape: np.full((shape[0] + 1, *shape[1:]), SENTINEL), ValueError),
    "one axis more": (lambda shape: np.full((1, *shape), SENTINEL), ValueError),
    "no axes": (lambda shape: np.array(SENTINEL), ValueError),
    "flat": (lambda shape: np.full((1, int(np.prod(shape))), SENTINEL), ValueError),
    "no rows": (lambda shape: np.full((0, *shape[1:]), SENTINEL), ValueError),
    "read-only": (_read_only, ValueError),
}


@each
@pytest.mark.parametrize(("make", "error"), BAD_OUT.values(), ids=BAD_OUT.keys())
def test_functions_reject_invalid_out(operation, make, error, rng):
    arrays = operation.draw(rng, (4,), 5)
    shapes = operation.shapes((4,), CHAIN)
    for i, shape in enumerate(shapes):
        buffers = [np.full(s, SENTINEL) for s in shapes]
        buffers[i] = make(shape)
        with pytest.raises(error, match="out"):
            operation(arrays, CHAIN, 2, out=operation.out(buffers))
        for buffer in buffers:  # the valid array of a pair was not written either
            if isinstance(buffer, np.ndarray):
                assert (buffer.astype(complex) == buffer.dtype.type(SENTINEL)).all()


@each
def test_functions_reject_float64_out_for_float32(operation, rng):
    arrays = operation.draw(rng, (4,), 5, np.float32)
    buffers = [np.full(shape, SENTINEL) for shape in operation.shapes((4,), CHAIN)]
    with pytest.raises(TypeError, match="out"):
        operation(arrays, CHAIN, 2, out=operation.out(buffers))
    assert all((buffer == SENTINEL).all() for buffer in buffers)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_emd_value_and_grad_rejects_out_that_is_no_pair(count, rng):
    p, q = OPERATIONS[0].draw(rng, (2,), 5)
    buffers = tuple(np.full((2, 5), SENTINEL) for _ in range(count))
    with pytest.raises((TypeError, ValueError), match="out"):
        fastemd.emd_value_and_grad(p, q, CHAIN, 2, out=buffers)
    with pytest.raises((TypeError, ValueError), match="out"):
        fastemd.emd_value_and_grad(p, q, CHAIN, 2, out=np.full((2, 5), SENTINEL))
    assert all((buffer == SENTINEL).all() for buffer in buffers)


def test_functions_reject_rho_beyond_float64():
    with pytest.raises(ValueError, match="rho: expected a finite number >= 1, got inf"):
        fastemd.emd([1.0, 0.0], [0.0, 1.0], fastemd.Chain(2), 10**400)


def test_emd_hvp_tolerance_does_not_depend_on_type_of_v():
    p, q = [1.0, 0.0], [0.0, 1.0 + 1e-4]
    with pytest.raises(ValueError, match="unequal masses"):
        fastemd.emd_hvp(p, q, np.float32([1, 0]), fastemd.Chain(2), 2)


@pytest.mark.parametrize("project", [True, 1, "yes"])
def test_emd_grad_accepts_any_truthy_project(project):
    p, q, chain = [1.0, 0.0, 0.0], [0.0, 0.5, 0.5], fastemd.Chain(3)
    ref = fastemd.emd_grad(p, q, chain, 2)
    np.testing.assert_array_equal(fastemd.emd_grad(p, q, chain, 2, project=project), ref)


def test_functions_are_finite_on_longest_chain():
    chain = fastemd.Chain(3, [4e149, 4e149])
    value, grad = fastemd.emd_value_and_grad([1.0, 0, 0], [1.0, 0, 0], chain, 3)
    assert value == 0
    assert not grad.any()
