"""The class axis of the losses, anywhere in their arrays."""

import tracemalloc

import numpy as np
import pytest

import fastemd
from fastemd.losses import Loss, resolve_loss, run_loss
from tests.support.device import DEVICE, cpu
from tests.support.losses import random_inputs

pytestmark = pytest.mark.any_backend
FUNCTIONS = ["emd_loss", "emd_loss_hessian_diag", "emd_loss_hvp"]
SHAPES = [(3,), (2, 9), (3, 2, 5)]


def assert_same(comp, ref):
    """On CUDA a thread adds up neighbouring bins first, so the sums are not the same bits."""
    tolerance = 0.0 if DEVICE == "cpu" else 1e-6 if ref.dtype == np.float32 else 1e-13
    np.testing.assert_allclose(comp, ref, rtol=tolerance, atol=0.01 * tolerance)


def results(backend, name, x, target, space, **keywords):
    more = (np.cos(x),) if name == "emd_loss_hvp" else ()
    result = getattr(backend, name)(x, target, *more, space, cross_entropy=0.5, **keywords)
    return result if name == "emd_loss" else (None, result)


@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "histograms"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_loss_axis_equals_moved_axis(name, shape, dtype, labelled, small_case, rng, backend):
    x, target = random_inputs(rng, (*shape, small_case.n_bins), labelled=labelled)
    x, target = x.astype(dtype), target if labelled else target.astype(dtype)
    weight = rng.random(shape) * (rng.random(shape) < 0.8)
    keywords = {"sample_weight": weight, "reduction": "none"}
    value, rows = results(backend, name, x, target, small_case.space, **keywords)
    for axis in range(-len(shape) - 1, len(shape) + 1):
        moved = np.ascontiguousarray(np.moveaxis(x, -1, axis))
        other = target if labelled else np.ascontiguousarray(np.moveaxis(target, -1, axis))
        at_axis = results(backend, name, moved, other, small_case.space, axis=axis, **keywords)
        assert at_axis[1].shape == moved.shape
        assert_same(np.moveaxis(at_axis[1], axis, -1), rows)
        if value is not None:
            assert_same(at_axis[0], value)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(8,), (2, 16), (3, 40), (2, 5, 8), (1, 70), (2, 36)], ids=str)
@pytest.mark.parametrize("n_bins", [7, 8, 11, 16])
def test_emd_loss_axis_of_neighbouring_rows(n_bins, shape, dtype, rng, backend):
    """Rows that fill tiles, that leave a rest, and whose strips reach over groups."""
    chain, (x, target) = fastemd.Chain(n_bins), random_inputs(rng, (*shape, n_bins), labelled=False)
    x, target = x.astype(dtype), target.astype(dtype)
    value, rows = backend.emd_loss(x, target, chain, reduction="none")
    for axis in range(len(shape)):
        moved, other = (np.ascontiguousarray(np.moveaxis(a, -1, axis)) for a in (x, target))
        loss, grad = backend.emd_loss(moved, other, chain, reduction="none", axis=axis)
        assert_same(loss, value)
        assert_same(np.moveaxis(grad, axis, -1), rows)


def test_emd_loss_axis_broadcasts_targets(rng, backend):
    chain = fastemd.Chain(4)
    x, q = rng.standard_normal((2, 4, 3, 5)), rng.dirichlet(np.ones(4), (3, 5))
    loss, grad = backend.emd_loss(x, np.moveaxis(q, -1, 0), chain, axis=1)
    expected, rows = backend.emd_loss(np.moveaxis(x, 1, -1), q, chain)
    np.testing.assert_allclose(loss, expected, rtol=1e-14)
    np.testing.assert_allclose(grad, np.moveaxis(rows, -1, 1), rtol=1e-13, atol=1e-16)
    labels = rng.integers(0, 4, (3, 1))
    loss, _ = backend.emd_loss(x, labels, chain, axis=1)
    assert loss == pytest.approx(backend.emd_loss(np.moveaxis(x, 1, -1), labels, chain)[0])


@pytest.mark.parametrize("order", ["channels last", "every second", "reversed", "broadcast"])
def test_emd_loss_axis_takes_any_strides(order, rng, backend):
    chain, x = fastemd.Chain(4), rng.standard_normal((2, 4, 3, 8))
    target = rng.integers(0, 4, (2, 3, 8))
    expected = backend.emd_loss(x, target, chain, axis=1)
    if order == "channels last":
        x = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
    elif order == "every second":
        x = np.repeat(x, 2, axis=3)[..., ::2]
    elif order == "reversed":
        x = np.ascontiguousarray(x[::-1])[::-1]
    else:
        x = np.broadcast_to(x[:1, :, :1], x.shape)
        expected = backend.emd_loss(np.array(x), target, chain, axis=1)
    loss, grad = backend.emd_loss(x, target, chain, axis=1)
    assert loss == pytest.approx(expected[0], rel=1e-14)
    np.testing.assert_array_equal(grad, expected[1])
    assert grad.flags.c_contiguous


@pytest.mark.parametrize("name", ["emd_value_and_grad", "emd_hessian_diag", "emd_flow"])
@pytest.mark.parametrize("n_rows", [21, 40])
@pytest.mark.parametrize("n_bins", [2, 5, 8, 19])
def test_functions_take_rows_whose_bins_are_apart(name, n_bins, n_rows, rng, backend):
    chain, p = fastemd.Chain(n_bins), rng.dirichlet(np.ones(n_bins), (2, n_rows))
    rest = () if name == "emd_flow" else (2,)
    function = getattr(backend, name)
    expected = function(p[0], p[1], chain, *rest)
    for q in (np.asfortranarray(p[1]), np.repeat(p[1], 3, axis=1)[:, ::3]):
        for first in (p[0], np.asfortranarray(p[0])):
            for ours, theirs in zip(function(first, q, chain, *rest), expected, strict=True):
                np.testing.assert_array_equal(ours, theirs)


@cpu
@pytest.mark.parametrize("n_rows", [16, 21])
@pytest.mark.parametrize("n_bins", [3, 8, 11])
def test_loss_writes_no_more_than_its_rows(n_bins, n_rows, rng):
    chain, x = fastemd.Chain(n_bins), rng.standard_normal((1, n_bins, n_rows))
    memory = np.full((3, n_bins, n_rows), 7.0)
    batch = resolve_loss(chain, Loss.checked(2, axis=1), x, np.zeros((1, n_rows), int))
    run_loss("loss", chain.layout("levels"), batch, "mean", memory[1:2])
    assert (memory[[0, 2]] == 7.0).all()
    assert (memory[1] != 7.0).all()


@cpu
def test_emd_loss_axis_does_not_copy_x(rng):
    chain, x = fastemd.Chain(64), rng.standard_normal((2, 64, 32, 32)).astype("f4")
    target = rng.integers(0, 64, (2, 32, 32))
    fastemd.emd_loss(x, target, chain, axis=1)
    tracemalloc.start()
    fastemd.emd_loss(x, target, chain, axis=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * x.nbytes  # the gradient, and a few numbers per row


@pytest.mark.parametrize(
    ("shape", "target", "axis", "error", "message"),
    [
        ((2, 5, 3, 4), (2, 3, 4), -1, ValueError, "x: the last axis .* is axis 1: pass axis=1"),
        ((2, 5, 3, 4), (2, 3, 4), 0, ValueError, "x: axis -4 must hold the 5 bins"),
        ((), (), 0, ValueError, "axis: expected an axis of x, but it has none"),
        ((2, 5, 3, 4), (2, 3, 4), 4, ValueError, "axis: .* from -4 to 3, got 4"),
        ((2, 5, 3, 4), (2, 3, 4), 1.0, TypeError, "axis: expected an integer, got"),
        ((2, 5, 3, 4), (2, 4, 3), 1, ValueError, r"target: labels of shape \(2, 4, 3\) do not"),
        ((2, 5, 3, 4), (2, 5, 3, 4), 1, ValueError, "target: integers are labels"),
    ],
)
def test_emd_loss_axis_rejects(shape, target, axis, error, message):
    with pytest.raises(error, match=message):
        fastemd.emd_loss(np.zeros(shape), np.zeros(target, int), fastemd.Chain(5), axis=axis)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((2, 3, 4), "which is that of labels"), ((2, 5), "target: axis -3 must hold the 5 bins")],
)
def test_emd_loss_axis_rejects_histograms(shape, message):
    with pytest.raises(ValueError, match=message):
        fastemd.emd_loss(np.zeros((2, 5, 3, 4)), np.zeros(shape), fastemd.Chain(5), axis=1)
