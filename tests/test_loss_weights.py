"""Weights, ignored rows and reductions of the losses."""

import numpy as np
import pytest

import fastemd
from tests.support import naive
from tests.support.device import cpu
from tests.support.losses import CHAIN, NORMALIZE, THIRDS, random_inputs, with_entry
from tests.support.operations import assert_close

pytestmark = pytest.mark.any_backend


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignore_index", [None, -100, 2])
def test_emd_loss_reduces_like_torch(small_case, reduction, weighted, ignore_index, rng, backend):
    x, target = random_inputs(rng, (13, small_case.n_bins))
    if ignore_index is not None:
        target[[1, 5]] = ignore_index
    weight = rng.random(13) if weighted else None
    keywords = {"reduction": reduction, "cross_entropy": 1.0}
    comp = backend.emd_loss(
        x, target, small_case.space, sample_weight=weight, ignore_index=ignore_index, **keywords
    )
    counts = np.ones(13) if weight is None else weight.copy()
    counts[target == ignore_index] = 0.0
    if reduction == "mean":
        counts /= counts.sum()
    valid = np.where(target == ignore_index, 0, target)
    loss, grad = naive.emd_loss_rows(x, valid, small_case.ground, cross_entropy=1.0)
    assert_close(comp[0], loss * counts if reduction == "none" else (loss * counts).sum())
    assert_close(comp[1], grad * counts[:, None])


def test_emd_loss_reductions_agree_with_cross_entropy_of_torch(rng, backend):
    """On a space with lengths 0 only the cross entropy remains."""
    torch = pytest.importorskip("torch")
    space, (x, target) = fastemd.Chain(6, np.zeros(5)), random_inputs(rng, (13, 6))
    target[3] = -100
    by_class = rng.random(6)
    for reduction in ("none", "sum", "mean"):
        inputs = torch.tensor(x, requires_grad=True)
        ref = torch.nn.functional.cross_entropy(
            inputs, torch.tensor(target), torch.tensor(by_class), reduction=reduction
        )
        ref.sum().backward()
        loss, grad = backend.emd_loss(
            x, target, space, cross_entropy=1.0, reduction=reduction,
            sample_weight=by_class[target.clip(0)], ignore_index=-100,
        )  # fmt: skip
        assert_close(loss, ref.detach().numpy())
        assert_close(grad, inputs.grad.numpy())


@pytest.mark.parametrize("shape", [(0,), (3,)])
def test_emd_loss_mean_of_no_rows_is_0(shape, backend):
    x, target = np.zeros((*shape, 2)), np.full(shape, -1)
    loss, grad = backend.emd_loss(x, target, fastemd.Chain(2), ignore_index=-1)
    assert loss == 0.0
    assert grad.shape == x.shape
    assert (grad == 0.0).all()


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("kind", ["labels", "histograms", "ignored labels"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -3.0])
def test_losses_do_not_read_ignored_rows(normalize, kind, reduction, value, dtype, rng, backend):
    """A row of weight 0 or with the ignored label has loss 0 and gradient 0, for any content."""
    x, target = random_inputs(rng, (20, 7), normalize, kind != "histograms", dtype)
    ignored_rows = rng.random(20) < 0.5
    ignored_rows[[3, 4]] = True, False
    x[ignored_rows] = value
    x[3] = -np.inf if normalize == "softmax" else 0.0
    added = 1.0 if normalize == "softmax" else 0.0
    keywords = {"normalize": normalize, "cross_entropy": added, "reduction": reduction}
    counts = {"sample_weight": 1.0 - ignored_rows}
    if kind == "ignored labels":
        counts, target = {"ignore_index": -100}, np.where(ignored_rows, -100, target)
        counts["sample_weight"] = np.where(
            ignored_rows, rng.choice([np.nan, np.inf, -1.0], 20), 1.0
        )
    elif kind == "labels":
        target = np.where(ignored_rows, -5, target)
    else:
        target = np.where(ignored_rows[:, None], value, target).astype(dtype)
    space = fastemd.Chain(7)
    loss, grad = backend.emd_loss(x, target, space, **keywords, **counts)
    ref = backend.emd_loss(x[~ignored_rows], target[~ignored_rows], space, **keywords)
    assert_close(loss if reduction != "none" else loss[~ignored_rows], ref[0])
    assert_close(grad[~ignored_rows], ref[1])
    assert (grad[ignored_rows] == 0.0).all()
    assert reduction != "none" or (loss[ignored_rows] == 0.0).all()
    v = np.where(ignored_rows[:, None], value, rng.standard_normal(x.shape)).astype(dtype)
    second = backend.emd_loss_hessian_diag(x, target, space, **keywords, **counts)
    product = backend.emd_loss_hvp(x, target, v, space, **keywords, **counts)
    assert (second[ignored_rows] == 0.0).all()
    assert (product[ignored_rows] == 0.0).all()
    ref = backend.emd_loss_hessian_diag(x[~ignored_rows], target[~ignored_rows], space, **keywords)
    np.testing.assert_allclose(second[~ignored_rows], ref, rtol=1e-6)
    ref = backend.emd_loss_hvp(
        x[~ignored_rows], target[~ignored_rows], v[~ignored_rows], space, **keywords
    )
    np.testing.assert_allclose(
        product[~ignored_rows], ref, rtol=1e-4 if dtype == np.float32 else 1e-7
    )


@pytest.mark.parametrize("n_rows", [1, 2, 9])
def test_losses_of_ignored_rows_only_are_0(n_rows, backend):
    x, target = np.full((n_rows, 3), np.nan), np.full(n_rows, 99)
    for function in (backend.emd_loss, backend.emd_loss_hessian_diag):
        for counts in ({"sample_weight": 0.0}, {"ignore_index": 99}):
            result = function(x, target, CHAIN, cross_entropy=1.0, **counts)
            loss, derivatives = result if isinstance(result, tuple) else (0.0, result)
            assert loss == 0.0
            assert (derivatives == 0.0).all()


def test_emd_loss_ignores_rows_before_scaling_weights(rng, backend):
    x, target = random_inputs(rng, (4, 3))
    target[1] = -100
    weight = np.array([1.0, 1e300, 2.0, 3.0])
    keywords = {"ignore_index": -100, "sample_weight": weight}
    kept = [0, 2, 3]
    for reduction in ("mean", "sum"):
        loss, grad = backend.emd_loss(x, target, CHAIN, reduction=reduction, **keywords)
        ref = backend.emd_loss(
            x[kept], target[kept], CHAIN, sample_weight=weight[kept], reduction=reduction
        )
        assert_close(loss, ref[0])
        assert_close(grad[kept], ref[1])
        assert (grad[1] == 0.0).all()


@pytest.mark.parametrize(
    ("kind", "label", "ignored"),
    [("uint8", 156, -100), ("int8", 0, 256), ("int8", 1, 2**40 + 1), ("int64", 1, 2**64 + 1),
     ("uint64", 1, 1 - 2**64), ("uint64", 0, -(2**70))],
)  # fmt: skip
def test_emd_loss_ignores_equal_labels_only(kind, label, ignored, backend):
    """An index outside the range of the label type ignores no row."""
    x, target = np.zeros((3, 200)), np.array([label] * 3, kind)
    space, keywords = fastemd.Chain(200), {"reduction": "none", "cross_entropy": 1.0}
    loss = backend.emd_loss(x, target, space, ignore_index=ignored, **keywords)[0]
    np.testing.assert_array_equal(loss, backend.emd_loss(x, target, space, **keywords)[0])
    assert (loss > 0.0).all()


def test_emd_loss_ignores_large_unsigned_labels(backend):
    target = np.array([0, 2**64 - 1, 2], np.uint64)
    loss = backend.emd_loss(
        np.zeros((3, 3)), target, CHAIN, ignore_index=2**64 - 1, reduction="none"
    )[0]
    assert (loss > 0.0).tolist() == [True, False, True]


def test_emd_loss_with_ignored_rows_and_masked_classes_agrees_with_torch(backend):
    torch = pytest.importorskip("torch")
    x, target = np.array([[-np.inf, 0.0, 1.0], [0.0, 1.0, 2.0]]), [-100, 1]
    inputs = torch.tensor(x, requires_grad=True)
    ref = torch.nn.functional.cross_entropy(inputs, torch.tensor(target))
    ref.backward()
    loss, grad = backend.emd_loss(
        x, target, fastemd.Chain(3, [0, 0]), cross_entropy=1.0, ignore_index=-100
    )
    assert_close(loss, ref.item())
    assert_close(grad, inputs.grad.numpy())


@cpu
def test_losses_name_first_invalid_row_that_is_not_ignored(backend):
    x = with_entry((slice(1, 4), 0), -np.inf)
    keywords = {"cross_entropy": 1.0, "sample_weight": [1, 0, 1, 1]}
    for target in ([0] * 4, THIRDS):
        with pytest.raises(ValueError, match="target: row 2 has mass at bin 0"):
            backend.emd_loss(x, target, CHAIN, **keywords)
    with pytest.raises(ValueError, match="x: row 2 has a logit nan"):
        backend.emd_loss(with_entry((slice(1, 3), 2), np.nan, x), [0] * 4, CHAIN, **keywords)
    v = with_entry((slice(1, 3), 2), np.inf)
    with pytest.raises(ValueError, match="v: row 2 is not finite"):
        backend.emd_loss_hvp(x, [0, 0, 1, 1], v, CHAIN, **keywords)


@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "histograms"])
@pytest.mark.parametrize("size", [1.7e308, 1e-320])
def test_emd_loss_mean_accepts_weights_of_any_size(labelled, size, rng, backend):
    x, target = random_inputs(rng, (20, 7), labelled=labelled)
    keywords = {"cross_entropy": 3.0}
    ref = backend.emd_loss(x, target, fastemd.Chain(7), **keywords)
    comp = backend.emd_loss(x, target, fastemd.Chain(7), sample_weight=[size], **keywords)
    for ours, theirs in zip(comp, ref, strict=True):
        assert_close(ours, theirs)
    _, grad = backend.emd_loss(
        x, target, fastemd.Chain(7), sample_weight=size, reduction="sum", **keywords
    )
    assert not np.isnan(grad).any()


def test_losses_read_rows_of_smallest_weight(backend):
    """A mean divides the weights: a positive weight must not underflow to 0."""
    x = with_entry((0, 1), np.nan)
    for reduction in ("mean", "sum", "none"):
        with pytest.raises(ValueError, match="row 0"):
            backend.emd_loss(
                x, [0] * 4, CHAIN, sample_weight=[1e-320, 1e10, 1, 1], reduction=reduction
            )
