"""Losses at the limits of floating point: extreme logits, weights and target masses."""

import numpy as np
import pytest

import fastemd
from tests.support import naive
from tests.support.device import cpu
from tests.support.losses import (
    CHAIN,
    ZEROS,
    loss_and_gradient,
    loss_hessian_diag,
    loss_hvp,
    loss_rows,
    random_inputs,
)
from tests.support.operations import assert_close

pytestmark = pytest.mark.any_backend


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "histograms"])
def test_emd_loss_of_extreme_logits(small_case, labelled, dtype, rng, backend):
    n = small_case.n_bins
    logits = rng.choice([-1e4, 0.0, 1e4], (40, n)).astype(dtype)
    logits[0], logits[1], logits[2] = 1e4, -1e4, 0.0
    _, target = random_inputs(rng, (40, n), "softmax", labelled)
    target = target if labelled else target.astype(dtype)
    rtol = 1e-12 if dtype == np.float64 else 1e-7
    ref = naive.emd_loss_rows(logits, target, small_case.ground, cross_entropy=1.0)
    comp = loss_rows(backend, logits, target, small_case, cross_entropy=1.0)
    for ours, theirs in zip(comp, ref, strict=True):
        assert_close(ours, theirs, rtol=rtol)
    for second in (loss_hessian_diag, loss_hvp):
        assert np.isfinite(second(backend, logits, target, small_case.space)).all()


def test_emd_loss_of_masked_classes_equals_low_logits(small_case, rng, backend):
    """Logits of -inf give the same as very low logits."""
    n = small_case.n_bins
    x, target = random_inputs(rng, (20, n))
    masked = rng.random((20, n)) < 0.4
    masked[np.arange(20), target] = False
    low, excluded = np.where(masked, -1e5, x), np.where(masked, -np.inf, x)
    for function in (loss_hessian_diag, lambda *args: loss_and_gradient(*args)[:, 1:]):
        np.testing.assert_array_equal(
            function(backend, excluded, target, small_case.space),
            function(backend, low, target, small_case.space),
        )
        assert (function(backend, excluded, target, small_case.space)[masked] == 0).all()
    soft = np.where(masked, 0.0, rng.random((20, n)) + 0.1)
    soft /= soft.sum(-1, keepdims=True)
    np.testing.assert_array_equal(
        loss_and_gradient(backend, excluded, soft, small_case.space),
        loss_and_gradient(backend, low, soft, small_case.space),
    )
    # Without cross entropy the target may be a masked class.
    loss, grad = backend.emd_loss([-np.inf, 0.0], 0, fastemd.Chain(2))
    assert loss == 1.0
    assert (grad == 0.0).all()


@cpu
def test_losses_do_not_raise_under_errstate(backend):
    x = np.array([[0.0, -800.0, 1.0], [3e38, -3e38, 0.0], [1e-320, 0.0, 0.0]])
    weight = np.array([1e308, 1e-320, 1e308])
    with np.errstate(all="ignore"):
        kinds = [x, x.astype(np.longdouble), x.clip(-1e38, 1e38).astype(np.float32)]
    with np.errstate(all="raise"):
        for inputs in kinds:
            for reduction in ("mean", "sum", "none"):
                keywords = {"sample_weight": weight, "reduction": reduction, "cross_entropy": 1.0}
                backend.emd_loss(inputs, [0, 1, 2], CHAIN, **keywords)
                backend.emd_loss_hessian_diag(inputs, [0, 1, 2], CHAIN, **keywords)


def test_losses_reject_cross_entropy_beyond_float64(backend):
    with pytest.raises(ValueError, match="cross_entropy: expected a finite number >= 0, got inf"):
        backend.emd_loss(ZEROS, [0] * 4, CHAIN, cross_entropy=10**400)


@pytest.mark.parametrize("total", [1e-160, 1e-300, 1e300])
def test_l1_of_any_total(total, backend):
    x, ones = np.array([[1.0, 0.0], [0.5, 0.5]]), np.ones((2, 2))
    space, soft = fastemd.Chain(2), np.full((2, 2), 0.5)
    keywords = {"normalize": "l1", "reduction": "sum"}
    loss, grad = backend.emd_loss(total * x, [0, 0], space, **keywords)
    scaled = backend.emd_loss(x, [0, 0], space, **keywords)
    assert_close(loss, scaled[0])
    assert_close(grad * total, scaled[1])
    for results in (
        backend.emd_loss_hessian_diag(total * x, [0, 0], space, **keywords),
        backend.emd_loss_hvp(total * x, [0, 0], ones, space, **keywords),
        backend.emd_loss_hessian_diag(total * x[1:], soft[1:], space, **keywords),
    ):
        assert not np.isnan(results).any()
    x[1] = 1.0, 1e-157
    product = backend.emd_loss_hvp(total * x, [0, 1], ones, space, **keywords)
    assert not np.isnan(product).any()


def test_emd_loss_of_largest_logits(backend):
    """The cross entropy is infinite if it exceeds float64; other results are exact."""
    x = 1.7e308 * np.array([[1.0, -1.0], [1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    space, keywords = fastemd.Chain(2), {"cross_entropy": 1.0, "reduction": "none"}
    loss, grad = backend.emd_loss(x, [1, 1, 1, 0], space, **keywords)
    np.testing.assert_allclose(loss, [np.inf, np.log(2) + 0.25, np.log(2) + 0.25, 0.0])
    np.testing.assert_allclose(grad, [[1, -1], [0.75, -0.75], [0.75, -0.75], [0, 0]])
    loss, grad = backend.emd_loss(x[0], 1, space, cross_entropy=0.5)
    np.testing.assert_allclose(loss, 1.7e308)
    soft, masked = [[0.5, 0.5]] * 4, [[0.0, 1.7e308, -np.inf], [-1.7e308, 1.7e308, -np.inf]]
    loss, _ = backend.emd_loss(x, soft, space, **keywords)
    np.testing.assert_allclose(loss, [1.7e308, np.log(2), np.log(2), 1.7e308])
    loss, _ = backend.emd_loss(masked, [0.5, 0.5, 0.0], CHAIN, **keywords)
    np.testing.assert_allclose(loss, [0.85e308, 1.7e308])
    loss, _ = backend.emd_loss(x, [1, 1, 1, 0], space, cross_entropy=1.0)
    assert loss == np.inf
    loss, _ = backend.emd_loss(x, [1, 1, 1, 0], space, sample_weight=[0, 1, 1, 1], **keywords)
    assert loss[0] == 0.0


def test_emd_loss_beyond_float32_is_infinite(backend):
    x = np.array([[3e38, -3e38]], np.float32)
    for reduction in ("none", "mean"):
        keywords = {"cross_entropy": 1.0, "reduction": reduction}
        loss, grad = backend.emd_loss(x, [1], fastemd.Chain(2), **keywords)
        assert loss == np.inf
        np.testing.assert_array_equal(grad, [[1.0, -1.0]])


@pytest.mark.parametrize("mask", [-np.inf, -1e9])
def test_cross_entropy_treats_negative_target_masses_as_zero(mask, backend):
    """They are within the tolerance, but their terms of masked classes would be infinite."""
    x = np.array([[0.0, mask, 0.5], [0.0, 1.0, 0.5]])
    target = np.array([[1.0, -4e-6, 4e-6], [-3e-6, 1.0, 3e-6]])
    positive = np.maximum(target, 0.0)
    space = fastemd.Chain(3, [0, 0])  # only the cross entropy remains
    keywords = {"cross_entropy": 1.0, "reduction": "none"}
    comp = backend.emd_loss(x, target, space, **keywords)
    for ours, theirs in zip(comp, backend.emd_loss(x, positive, space, **keywords), strict=True):
        assert_close(ours, theirs)
    diagonal = backend.emd_loss_hessian_diag(x, target, space, **keywords)
    assert_close(diagonal, backend.emd_loss_hessian_diag(x, positive, space, **keywords))
