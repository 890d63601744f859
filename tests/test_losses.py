"""The training losses: values, gradients and second derivatives in the logits."""

import tracemalloc

import numpy as np
import pytest

import fastemd
from fastemd.losses import Loss, resolve_loss, run_loss
from tests.support import naive
from tests.support.device import SIMULATED, cpu, hardware
from tests.support.losses import (
    NORMALIZE,
    loss_and_gradient,
    loss_hessian_diag,
    loss_hvp,
    loss_rows,
    random_inputs,
)
from tests.support.operations import assert_close
from tests.support.strategies import RHOS, chain_case, tree_case

pytestmark = pytest.mark.any_backend


@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "histograms"])
@pytest.mark.parametrize(
    ("normalize", "cross_entropy"), [*((name, 0.0) for name in NORMALIZE), ("softmax", 0.7)]
)
@pytest.mark.parametrize("rho", RHOS)
def test_emd_loss_agrees_with_naive(
    small_case, rho, normalize, labelled, cross_entropy, rng, backend
):
    x, target = random_inputs(rng, (11, small_case.n_bins), normalize, labelled)
    keywords = {"normalize": normalize, "cross_entropy": cross_entropy}
    ref = naive.emd_loss_rows(x, target, small_case.ground, rho, **keywords)
    comp = loss_rows(backend, x, target, small_case, rho, **keywords)
    for ours, theirs in zip(comp, ref, strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "histograms"])
@pytest.mark.parametrize(
    ("normalize", "cross_entropy"), [*((name, 0.0) for name in NORMALIZE), ("softmax", 0.7)]
)
@pytest.mark.parametrize("rho", RHOS)
def test_emd_loss_derivatives_agree_with_torch(
    small_case, rho, normalize, labelled, cross_entropy, rng, backend
):
    torch = pytest.importorskip("torch")
    n = small_case.n_bins
    x, target = random_inputs(rng, (5, n), normalize, labelled)
    keywords = {"normalize": normalize, "cross_entropy": cross_entropy}
    q = torch.tensor(naive.one_hot(target, n))

    def loss(x):
        return naive.torch_loss(x, q, small_case.ground, rho, **keywords).sum()

    inputs = torch.tensor(x)
    gradient = torch.func.jacrev(loss)(inputs).numpy()
    hessian = torch.func.jacrev(torch.func.jacrev(loss))(inputs).numpy()
    hessian = np.einsum("bkbl->bkl", hessian)
    if normalize is None:  # derivatives along directions that conserve the mass
        centre = np.eye(n) - 1 / n
        gradient, hessian = gradient @ centre, centre @ hessian @ centre
    keywords["reduction"] = "sum"
    assert_close(backend.emd_loss(x, target, small_case.space, rho, **keywords)[1], gradient)
    diagonal = backend.emd_loss_hessian_diag(x, target, small_case.space, rho, **keywords)
    size = max(np.abs(hessian).max(), np.abs(gradient).max())
    assert_close(diagonal, np.einsum("bkk->bk", hessian), size)
    v = rng.standard_normal(x.shape)
    product = backend.emd_loss_hvp(x, target, v, small_case.space, rho, **keywords)
    assert_close(product, np.einsum("bkl,bl->bk", hessian, v), size)


@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "histograms"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_rows", [0, 1, 2, 3, 7, 8, 9, 17])
def test_losses_of_batch_equal_losses_of_rows(small_case, n_rows, dtype, labelled, rng, backend):
    x, target = random_inputs(rng, (n_rows, small_case.n_bins), "softmax", labelled, dtype)
    target = target if labelled else target.astype(dtype)
    for function in (loss_and_gradient, loss_hessian_diag, loss_hvp):
        whole = function(backend, x, target, small_case.space)
        for row in range(n_rows):
            one = function(backend, x[row], target[row], small_case.space)
            np.testing.assert_array_equal(whole[row], one)
            assert one.dtype == dtype


@pytest.mark.parametrize("n_bins", [1, 2, 15, 16, 17, 33, 100])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_emd_loss_of_any_number_of_bins(n_bins, dtype, rng, backend):
    """Numbers of bins around the sizes of cache lines and tiles."""
    for case in (
        chain_case(n_bins),
        tree_case(naive.Ground([n_bins] * n_bins + [-1], [1.0] * n_bins + [0.0], range(n_bins))),
    ):
        x, target = random_inputs(rng, (9, n_bins), dtype=dtype)
        ref = naive.emd_loss_rows(x, target, case.ground, cross_entropy=1.0)
        comp = loss_rows(backend, x, target, case, cross_entropy=1.0)
        for ours, theirs in zip(comp, ref, strict=True):
            assert_close(ours, theirs, rtol=1e-12 if dtype == np.float64 else 1e-7)


def test_losses_float32_is_rounded_float64(rng, backend):
    space = fastemd.Chain(9) if SIMULATED else fastemd.datasets.imagenet_tree()
    x, target = random_inputs(rng, (64, space.n_bins), dtype=np.float32)
    x *= 5
    for function in (loss_and_gradient, loss_hessian_diag, loss_hvp):
        single = function(backend, x, target, space)
        double = function(backend, x.astype(np.float64), target, space)
        error = np.abs(single - double) / np.abs(double)
        assert error.max() <= 3 * 2.0**-24 * (1 + 1e-3 * (function is not loss_and_gradient))


@hardware
@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "histograms"])
def test_emd_loss_of_large_batch_equals_parts(labelled, rng, backend):
    """In parallel, prefetched and streamed, and with rows one page apart."""
    space = fastemd.Chain(1024)
    x, target = random_inputs(rng, (2501, 1024), "softmax", labelled, np.float32)
    target = target if labelled else target.astype(np.float32)
    grad = loss_and_gradient(backend, x, target, space)
    for part in (slice(0, 16), slice(1200, 1211), slice(2480, 2501)):
        np.testing.assert_array_equal(
            grad[part], loss_and_gradient(backend, x[part], target[part], space)
        )


@cpu
def test_emd_loss_allocates_only_the_gradient(rng, backend):
    space = fastemd.Chain(1000)
    x, target = random_inputs(rng, (2000, 1000), dtype=np.float32)
    backend.emd_loss(x, target, space, cross_entropy=1.0)
    tracemalloc.start()
    try:
        backend.emd_loss(x, target, space, cross_entropy=1.0)
        assert tracemalloc.get_traced_memory()[1] <= 1.1 * x.nbytes
    finally:
        tracemalloc.stop()


@hardware
def test_emd_loss_decreases_from_bad_start(rng, backend):
    """Softmax regression by gradient descent, with all predictions wrong at first."""
    n, space = 8, fastemd.Chain(8)
    labels = np.repeat(np.arange(n), 4)
    features = np.eye(n)[labels] + 0.05 * rng.standard_normal((labels.size, n))
    weights = 4.0 * np.eye(n)[::-1]
    first = backend.emd_loss(features @ weights, labels, space)[0]
    for _ in range(2000):
        loss, grad = backend.emd_loss(features @ weights, labels, space)
        weights -= 2.0 * features.T @ grad
    assert first > 1.0
    assert loss < 1e-3
    assert ((features @ weights).argmax(1) == labels).all()


@pytest.mark.parametrize("normalize", NORMALIZE)
def test_emd_loss_derivatives_with_target_mass_close_to_1(normalize, rng, backend):
    torch = pytest.importorskip("torch")
    case = chain_case(5)
    x, target = random_inputs(rng, (6, 5), normalize, labelled=False)
    target *= 1 + 1e-8 * rng.standard_normal((6, 1)).clip(-1, 1)
    keywords = {"normalize": normalize, "cross_entropy": 1.0 if normalize == "softmax" else 0.0}
    inputs = torch.tensor(x)

    def loss(x):
        return naive.torch_loss(x, torch.tensor(target), case.ground, **keywords).sum()

    keywords["reduction"] = "sum"
    comp, grad = backend.emd_loss(x, target, case.space, **keywords)
    diagonal = backend.emd_loss_hessian_diag(x, target, case.space, **keywords)
    del keywords["reduction"]
    assert_close(comp, loss(inputs).item())
    ref = torch.func.jacrev(loss)(inputs).numpy()
    hessian = np.einsum("bkbl->bkl", torch.func.jacrev(torch.func.jacrev(loss))(inputs).numpy())
    if normalize is None:
        centre = np.eye(5) - 1 / 5
        ref, hessian = ref @ centre, centre @ hessian @ centre
    assert_close(grad, ref)
    assert_close(diagonal, np.einsum("bkk->bk", hessian))


def test_losses_do_not_modify_arguments(rng):
    x, target = random_inputs(rng, (6, 4))
    before, keywords = (x.copy(), target.copy()), {"cross_entropy": 1.0}
    fastemd.emd_loss(x, target, fastemd.Chain(4), ignore_index=int(target[0]), **keywords)
    fastemd.emd_loss_hessian_diag(x, target, fastemd.Chain(4), **keywords)
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(target, before[1])


@cpu
@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "histograms"])
@pytest.mark.parametrize(
    ("normalize", "cross_entropy"), [*((name, 0.0) for name in NORMALIZE), ("softmax", 0.7)]
)
def test_run_loss_without_columns_gives_the_same_losses(
    small_case, normalize, labelled, cross_entropy, rng
):
    x, target = random_inputs(rng, (11, small_case.n_bins), normalize, labelled)
    loss, layout = Loss.checked(1.5, normalize, cross_entropy), small_case.space.layout("levels")
    batch = resolve_loss(small_case.space, loss, x, target)
    ref, previous = run_loss("loss", layout, batch, "none")
    previous[:] = 7.0  # its addresses may still be in the kernel's scratch
    comp, grad = run_loss("loss", layout, batch, "none", np.empty((11, 0)))
    np.testing.assert_array_equal(comp, ref)
    assert grad.size == 0
    assert (previous == 7.0).all()
