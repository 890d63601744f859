"""`out=` of every memory layout, and overlapping the inputs."""

import numpy as np
import pytest

import fastemd
from tests.support.device import DEVICE, SHARES_MEMORY
from tests.support.frameworks import needed
from tests.support.operations import OPERATIONS

pytestmark = pytest.mark.any_backend

SENTINEL = -123.456

each = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
# Results with one entry per bin fit into the memory of the inputs.
PER_BIN = [operation for operation in OPERATIONS if operation.tails[-1] == "N"]


def _misaligned(shape):
    raw = np.zeros(int(np.prod(shape)) * 8 + 1, np.uint8)
    return raw[1:].view(np.float64).reshape(shape)


def _backwards(shape):
    return np.empty(shape)[(slice(None, None, -1),) * len(shape)]


KINDS = {
    "contiguous": np.empty,
    "Fortran order": lambda shape: np.empty(shape, order="F"),
    "every other row": lambda shape: np.empty((2 * shape[0], *shape[1:]))[::2],
    "every other entry": lambda shape: np.empty((*shape[:-1], 2 * shape[-1]))[..., ::2],
    "inside a larger array": lambda shape: np.empty([n + 2 for n in shape])[
        tuple(slice(1, n + 1) for n in shape)
    ],
    "backwards": _backwards,
    "misaligned": _misaligned,
    "transposed": lambda shape: np.empty(shape[::-1]).T,
}


def _memory(array):
    """Return a copy of all bytes of the array that `array` is a view of."""
    while array.base is not None:
        array = array.base
    return array.ravel(order="K").view(np.uint8).copy()


@each
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_out_accepts_any_memory_layout(operation, small_case, kind, rng):
    arrays = operation.draw(rng, (3, 7), small_case.n_bins)
    ref = operation(arrays, small_case.space, 1.5)
    buffers = [kind(x.shape) for x in ref]
    for buffer in buffers:
        buffer[...] = SENTINEL
    around = [_memory(x) for x in buffers]
    comp = operation(arrays, small_case.space, 1.5, out=operation.out(buffers))
    for ours, buffer, theirs, before in zip(comp, buffers, ref, around, strict=True):
        assert ours is buffer
        np.testing.assert_array_equal(buffer, theirs)
        buffer[...] = SENTINEL  # memory around the buffer is unchanged
        np.testing.assert_array_equal(_memory(buffer), before)


@each
def test_out_of_one_row(operation, small_case, rng):
    arrays = operation.draw(rng, (), small_case.n_bins)
    ref = operation(arrays, small_case.space, 2)
    buffers = [np.empty(x.shape) for x in ref]
    comp = operation(arrays, small_case.space, 2, out=operation.out(buffers))
    for ours, buffer, theirs in zip(comp, buffers, ref, strict=True):
        assert ours is buffer
        np.testing.assert_array_equal(buffer, theirs)


@each
def test_out_of_float32(operation, small_case, rng):
    arrays = operation.draw(rng, (9,), small_case.n_bins, np.float32)
    ref = operation(arrays, small_case.space, 2)
    buffers = [np.empty(x.shape, np.float32) for x in ref]
    operation(arrays, small_case.space, 2, out=operation.out(buffers))
    for buffer, theirs in zip(buffers, ref, strict=True):
        np.testing.assert_array_equal(buffer, theirs)


@each
def test_out_of_empty_batch(operation, small_case, rng):
    arrays = operation.draw(rng, (0,), small_case.n_bins)
    buffers = [np.empty(shape) for shape in operation.shapes((0,), small_case.space)]
    comp = operation(arrays, small_case.space, 2, out=operation.out(buffers))
    assert all(ours is buffer for ours, buffer in zip(comp, buffers, strict=True))


def _shifted(x, rows):
    """Return a copy of x and a buffer of its size, `rows` rows apart in the same memory."""
    memory = np.empty((len(x) + abs(rows), *x.shape[1:]))
    first, second = memory[: len(x)], memory[abs(rows) :]
    view, buffer = (first, second) if rows >= 0 else (second, first)
    view[...] = x
    return view, buffer


@pytest.mark.parametrize("operation", PER_BIN, ids=lambda operation: operation.name)
@pytest.mark.parametrize("rows", [0, 1, -1, 5])
def test_out_may_overlap_input(operation, small_case, rows, rng):
    drawn = operation.draw(rng, (37,), small_case.n_bins)
    ref = operation(drawn, small_case.space, 1.5)
    for i in range(len(drawn)):
        arrays = list(drawn)
        arrays[i], buffer = _shifted(drawn[i], rows)
        buffers = [*(np.empty(x.shape) for x in ref[:-1]), buffer]
        comp = operation(arrays, small_case.space, 1.5, out=operation.out(buffers))
        assert comp[-1] is buffer
        for ours, theirs in zip(buffers, ref, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@each
def test_out_may_start_at_address_of_p(operation, small_case, rng):
    """The buffer starts at the address of p, for any shape of the result."""
    drawn = operation.draw(rng, (37,), small_case.n_bins)
    ref = operation(drawn, small_case.space, 1.5)
    for buffer_of in range(len(ref)):
        shape = ref[buffer_of].shape
        memory = np.zeros(max(ref[buffer_of].size, drawn[0].size))
        p = memory[: drawn[0].size].reshape(drawn[0].shape)
        p[...] = drawn[0]
        buffers = [np.empty(x.shape) for x in ref]
        buffers[buffer_of] = memory[: ref[buffer_of].size].reshape(shape)
        operation([p, *drawn[1:]], small_case.space, 1.5, out=operation.out(buffers))
        for ours, theirs in zip(buffers, ref, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_out_may_overlap_broadcast_input(small_case, rng):
    operation = next(x for x in PER_BIN if x.name == "emd_grad")
    p, q = operation.draw(rng, (37,), small_case.n_bins)
    memory = np.empty_like(q)
    memory[3] = p[0]
    ref = operation((p[0], np.broadcast_to(p[0], q.shape)), small_case.space, 2)[0]
    comp = operation((memory[3], np.broadcast_to(p[0], q.shape)), small_case.space, 2, out=memory)
    np.testing.assert_array_equal(comp[0], ref)
    memory[3] = p[0]
    ref = operation((p[0], q), small_case.space, 2)[0]
    operation((memory[3], q), small_case.space, 2, out=memory)
    np.testing.assert_array_equal(memory, ref)


def test_out_of_value_and_grad_may_be_list(small_case, rng):
    operation = next(x for x in OPERATIONS if x.name == "emd_value_and_grad")
    p, q = operation.draw(rng, (5,), small_case.n_bins)
    ref = operation((p, q), small_case.space, 2)
    value, grad = np.empty(5), np.empty_like(p)
    comp = operation((p, q), small_case.space, 2, out=[value, grad])
    assert comp[0] is value
    assert comp[1] is grad
    np.testing.assert_array_equal(value, ref[0])
    np.testing.assert_array_equal(grad, ref[1])


def test_out_of_value_and_grad_must_not_share_memory(backend):
    memory = np.zeros((2, 3))
    p, q, chain = np.eye(3)[:2], np.eye(3)[1:], fastemd.Chain(3)
    with pytest.raises(ValueError, match="out: the arrays for value and grad share memory"):
        backend.emd_value_and_grad(p, q, chain, 2, out=(memory[0, :2], memory))
    assert not memory.any()


@pytest.mark.parametrize("kind", [np.matrix, np.memmap])
def test_out_accepts_subclasses_of_ndarray(kind, tmp_path, backend):
    grad = (
        np.zeros((2, 3)).view(kind)
        if kind is np.matrix
        else np.memmap(tmp_path / "grad", np.float64, "w+", shape=(2, 3))
    )
    p, q, chain = np.eye(3)[:2], np.eye(3)[1:], fastemd.Chain(3)
    assert backend.emd_grad(p, q, chain, 2, out=grad) is grad
    np.testing.assert_array_equal(np.asarray(grad), backend.emd_grad(p, q, chain, 2))


OVERLAPPING = {
    "broadcast rows": lambda shape: np.lib.stride_tricks.as_strided(
        np.zeros(shape[1:]), shape, (0, *np.zeros(shape[1:]).strides)
    ),
    "broadcast entries": lambda shape: np.lib.stride_tricks.as_strided(
        np.zeros(shape), shape, (*np.zeros(shape).strides[:-1], 0)
    ),
    "sliding window": lambda shape: np.lib.stride_tricks.as_strided(
        np.zeros(int(np.prod(shape)) * 2), shape, (8,) * len(shape)
    ),
}


@each
@pytest.mark.parametrize("make", OVERLAPPING.values(), ids=OVERLAPPING.keys())
def test_out_must_not_overlap_itself(operation, small_case, make, rng):
    if not SHARES_MEMORY:
        pytest.skip("copies to a device do not overlap")
    arrays = operation.draw(rng, (4,), small_case.n_bins)
    shapes = operation.shapes((4,), small_case.space)
    for i, shape in enumerate(shapes):
        if len(shape) == 1 and make is OVERLAPPING["sliding window"]:
            continue  # one axis in steps of one entry does not overlap
        buffers = [np.zeros(x) for x in shapes]
        buffers[i] = make(shape)
        with pytest.raises(ValueError, match=r"out.*: several entries share memory .*pass a copy"):
            operation(arrays, small_case.space, 2, out=operation.out(buffers))


@pytest.mark.skipif(DEVICE != "cpu", reason="tensors on the CPU")
def test_out_rejects_expanded_tensors(backend):
    torch = needed("torch")
    p, q = torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([0.0, 1.0])
    for out in (torch.zeros(1).expand(2), torch.zeros(2, 1).T[0].expand(2)):
        if out.stride(0) == 0:
            with pytest.raises(ValueError, match="out: several entries share memory"):
                backend.emd(p, q, fastemd.Chain(2), 1, out=out)
    with pytest.raises(ValueError, match="out: several entries share memory"):
        backend.emd_grad(p, q, fastemd.Chain(2), 1, out=torch.zeros(2).expand(2, 2))


@each
def test_functions_do_not_raise_under_errstate(operation, small_case, rng):
    """Overflow and underflow inside are no errors of the user."""
    tiny, huge = np.finfo(np.float64).smallest_subnormal, 1e300
    for size in (tiny, 1e-200, 1.0, huge):
        for dtype in (np.float64, np.float32, np.longdouble):
            arrays = operation.draw(rng, (3,), small_case.n_bins)
            with np.errstate(all="ignore"):
                arrays = [(x * size).astype(dtype) for x in arrays]
                arrays = [np.where(np.isfinite(x), x, 0) for x in arrays]
            with np.errstate(all="raise"):
                operation(arrays, small_case.space, 1.5, validate=size != tiny)
