"""Weights of classes, smoothed targets and roots in the losses."""

import numpy as np
import pytest

import fastemd
from tests.support import naive
from tests.support.device import cpu
from tests.support.losses import FLAT, NORMALIZE, random_inputs
from tests.support.operations import assert_close
from tests.support.strategies import RHOS

pytestmark = pytest.mark.any_backend

OPTIONS = {
    "weights": {"class_weight": True},
    "smoothing": {"label_smoothing": 0.2},
    "root": {"root": True},
    "all": {"class_weight": True, "label_smoothing": 0.3, "root": True},
}


@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "histograms"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize(
    ("normalize", "cross_entropy"), [*((name, 0.0) for name in NORMALIZE), ("softmax", 0.7)]
)
@pytest.mark.parametrize("rho", RHOS)
def test_emd_loss_options_agree_with_torch(
    small_case, rho, normalize, cross_entropy, options, labelled, rng, backend
):
    """Values and first and second derivatives."""
    torch = pytest.importorskip("torch")
    n, options = small_case.n_bins, dict(options)
    x, target = random_inputs(rng, (5, n), normalize, labelled)
    v = rng.standard_normal((5, n))
    if "class_weight" in options:
        options["class_weight"] = rng.random(n)
    keywords = {"normalize": normalize, "cross_entropy": cross_entropy, **options}
    q = torch.tensor(naive.one_hot(target, n))

    def losses(x):
        return naive.torch_loss(x, q, small_case.ground, rho, **keywords)

    inputs = torch.tensor(x)
    gradient = torch.func.jacrev(lambda x: losses(x).sum())(inputs).numpy()
    hessian = torch.func.jacrev(torch.func.jacrev(lambda x: losses(x).sum()))(inputs).numpy()
    hessian = np.stack([hessian[i, :, i] for i in range(5)])
    if normalize is None:  # the derivatives conserve the mass
        projection = np.eye(n) - 1 / n
        gradient, hessian = gradient @ projection, projection @ hessian @ projection
    arguments = small_case.space, rho
    loss, grad = backend.emd_loss(x, target, *arguments, reduction="none", **keywords)
    diagonal = backend.emd_loss_hessian_diag(x, target, *arguments, reduction="none", **keywords)
    product = backend.emd_loss_hvp(x, target, v, *arguments, reduction="none", **keywords)
    size = np.abs(hessian).max()
    assert_close(loss, losses(inputs).numpy())
    assert_close(grad, gradient, rtol=1e-11)
    assert_close(diagonal, np.diagonal(hessian, axis1=1, axis2=2), size, rtol=1e-11)
    assert_close(product, np.einsum("ijk,ik->ij", hessian, v), size, rtol=1e-11)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "histograms"])
def test_emd_loss_options_agree_with_cross_entropy_of_torch(
    labelled, weighted, smoothing, reduction, rng, backend
):
    """On a space with lengths 0 only the cross entropy remains."""
    torch = pytest.importorskip("torch")
    space, (x, target) = (
        fastemd.Chain(6, np.zeros(5)),
        random_inputs(rng, (13, 6), labelled=labelled),
    )
    ignored = {}
    if labelled:
        target[3], ignored = -100, {"ignore_index": -100}
    weight = rng.random(6) if weighted else None
    inputs = torch.tensor(x, requires_grad=True)
    ref = torch.nn.functional.cross_entropy(
        inputs, torch.tensor(target), None if weight is None else torch.tensor(weight),
        reduction=reduction, label_smoothing=smoothing,
    )  # fmt: skip
    ref.sum().backward()
    loss, grad = backend.emd_loss(
        x, target, space, cross_entropy=1.0, reduction=reduction, class_weight=weight,
        label_smoothing=smoothing, **ignored,
    )  # fmt: skip
    assert_close(loss, ref.detach().numpy())
    assert_close(grad, inputs.grad.numpy())


def test_emd_loss_mean_counts_class_and_sample_weights(small_case, rng, backend):
    x, target = random_inputs(rng, (13, small_case.n_bins))
    weight, sample_weight = rng.random(small_case.n_bins), rng.random(13)
    loss, grad = backend.emd_loss(
        x, target, small_case.space, class_weight=weight, sample_weight=sample_weight
    )
    counts = weight[target] * sample_weight
    rows, grads = naive.emd_loss_rows(x, target, small_case.ground)
    assert_close(loss, rows @ counts / counts.sum())
    assert_close(grad, grads * (counts / counts.sum())[:, None])


@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "histograms"])
def test_emd_loss_of_classes_without_weight_is_0(labelled, rng, backend):
    x, target = np.zeros((3, 4)), np.array([1, 1, 1])
    target = target if labelled else np.eye(4)[target]
    weight = np.array([1.0, 0.0, 2.0, 3.0])
    loss, grad = backend.emd_loss(
        x, target, fastemd.Chain(4), class_weight=weight, cross_entropy=1.0
    )
    assert loss == 0.0
    np.testing.assert_array_equal(grad, np.zeros((3, 4)))


@pytest.mark.parametrize("rho", RHOS)
def test_emd_loss_root_has_gradient_0_at_0(rho, backend):
    q = np.array([[0.25, 0.5, 0.25], [1.0, 0.0, 0.0]])
    keywords = {"normalize": None, "root": True, "reduction": "none"}
    arguments = q, q, fastemd.Chain(3), rho
    loss, grad = backend.emd_loss(*arguments, **keywords)
    np.testing.assert_array_equal(loss, [0.0, 0.0])
    np.testing.assert_array_equal(grad, np.zeros((2, 3)))
    diagonal = backend.emd_loss_hessian_diag(*arguments, **keywords)
    np.testing.assert_array_equal(diagonal, np.zeros((2, 3)))


@pytest.mark.parametrize("scale", [1e-70, 1e-8, 1e8, 1e70])
def test_emd_loss_root_is_homogeneous(scale, rng, backend):
    """The root at rho = 2 of lengths that are `scale` squared times as long."""
    x, target = random_inputs(rng, (5, 4))
    gaps = np.array([1.0, 2.0, 0.5])
    loss, grad = backend.emd_loss(x, target, fastemd.Chain(4, gaps), root=True)
    other = backend.emd_loss(x, target, fastemd.Chain(4, gaps * scale**2), root=True)
    assert_close(other[0], loss * scale)
    assert_close(other[1], grad * scale)


def test_emd_loss_options_of_float32_agree_with_float64(small_case, rng, backend):
    x, target = random_inputs(rng, (9, small_case.n_bins))
    keywords = {"class_weight": rng.random(small_case.n_bins).astype("f4"), "root": True}
    keywords |= {"label_smoothing": 0.1, "cross_entropy": 0.5}
    single = backend.emd_loss(x.astype("f4"), target, small_case.space, **keywords)
    double = backend.emd_loss(x.astype("f4").astype("f8"), target, small_case.space, **keywords)
    for a, b in zip(single, double, strict=True):
        assert a.dtype == np.float32
        assert_close(a, b, rtol=1e-6)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"class_weight": [1.0, 2.0]}, ValueError, r"class_weight: .* each of the 3 bins .*\(2,\)"),
        ({"label_smoothing": 1.5}, ValueError, "label_smoothing: .* from 0 to 1, got 1.5"),
        (
            {"label_smoothing": -0.5},
            ValueError,
            "label_smoothing: expected a number from 0 to 1, got -0.5",
        ),
        ({"label_smoothing": True}, TypeError, "label_smoothing: expected a number"),
        ({"root": 2}, TypeError, "root: expected True or False"),
    ],
)
def test_emd_loss_options_reject(keywords, error, message):
    with pytest.raises(error, match=message):
        fastemd.emd_loss(np.zeros((2, 3)), [0, 1], fastemd.Chain(3), **keywords)


@cpu
@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf])
def test_emd_loss_rejects_class_weight(weight):
    with pytest.raises(ValueError, match=r"class_weight: \S+ at bin 1; weights must be finite"):
        fastemd.emd_loss(np.zeros((2, 3)), [0, 1], fastemd.Chain(3), class_weight=[1, weight, 1])


@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "histograms"])
def test_emd_loss_rejects_smoothing_onto_masked_class(labelled, backend):
    x, target = np.array([[0.0, -np.inf]]), np.array([0])
    target = target if labelled else np.eye(2)[target]
    keywords = {"label_smoothing": 0.1, "cross_entropy": 1.0}
    with pytest.raises(ValueError, match=r"row|label_smoothing to 0"):
        backend.emd_loss(x, target, FLAT, **keywords)
    backend.emd_loss(x, target, FLAT, cross_entropy=1.0)
    backend.emd_loss(x, target, FLAT, label_smoothing=0.1)
