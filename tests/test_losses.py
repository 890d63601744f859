"""The training losses: values, gradients and second derivatives in the logits."""

import tracemalloc

import numpy as np
import pytest

import fastemd
from tests.support import naive
from tests.support.device import SIMULATED, cpu, hardware
from tests.support.operations import assert_close
from tests.support.strategies import RHOS, chain_case, tree_case

pytestmark = pytest.mark.any_backend

NORMALIZE = ["softmax", "l1", None]


def _problem(rng, shape, normalize="softmax", labelled=True, dtype=np.float64):
    x = rng.standard_normal(shape)
    if normalize != "softmax":
        x = np.abs(x) + 0.01
    if normalize is None:
        x /= x.sum(-1, keepdims=True)
    target = rng.integers(0, shape[-1], shape[:-1])
    if not labelled:
        target = rng.random(shape) * (rng.random(shape) < 0.7) + 1e-3 * np.eye(shape[-1])[target]
        target /= target.sum(-1, keepdims=True)
    return x.astype(dtype), target


def _rows(backend, x, target, case, rho=2, **keywords):
    return backend.emd_loss(x, target, case.space, rho, reduction="none", **keywords)


@pytest.mark.parametrize("cross_entropy", [0.0, 0.7])
@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "histograms"])
@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("rho", RHOS)
def test_emd_loss_agrees_with_naive(
    small_case, rho, normalize, labelled, cross_entropy, rng, backend
):
    x, target = _problem(rng, (11, small_case.n_bins), normalize, labelled)
    keywords = {"normalize": normalize, "cross_entropy": cross_entropy}
    ref = naive.emd_loss_rows(x, target, small_case.ground, rho, **keywords)
    comp = _rows(backend, x, target, small_case, rho, **keywords)
    for ours, theirs in zip(comp, ref, strict=True):
        assert_close(ours, theirs)


@pytest.mark.parametrize("cross_entropy", [0.0, 0.7])
@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "histograms"])
@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("rho", RHOS)
def test_emd_loss_derivatives_agree_with_torch(
    small_case, rho, normalize, labelled, cross_entropy, rng, backend
):
    torch = pytest.importorskip("torch")
    n = small_case.n_bins
    x, target = _problem(rng, (5, n), normalize, labelled)
    keywords = {"normalize": normalize, "cross_entropy": cross_entropy}
    q = torch.tensor(naive.one_hot(target, n))

    def loss(x):
        return naive.torch_loss(x, q, small_case.ground, rho, **keywords).sum()

    given = torch.tensor(x)
    gradient = torch.func.jacrev(loss)(given).numpy()
    hessian = torch.func.jacrev(torch.func.jacrev(loss))(given).numpy()
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
    x, target = _problem(rng, (n_rows, small_case.n_bins), "softmax", labelled, dtype)
    target = target if labelled else target.astype(dtype)
    for function in (_loss_and_gradient, _diagonal, _product):
        whole = function(backend, x, target, small_case.space)
        for row in range(n_rows):
            one = function(backend, x[row], target[row], small_case.space)
            np.testing.assert_array_equal(whole[row], one)
            assert one.dtype == dtype


def _loss_and_gradient(backend, x, target, space):
    loss, grad = backend.emd_loss(x, target, space, cross_entropy=0.5, reduction="none")
    return np.concatenate([np.asarray(loss)[..., None], grad], axis=-1)


def _diagonal(backend, x, target, space):
    return backend.emd_loss_hessian_diag(x, target, space, cross_entropy=0.5, reduction="none")


def _product(backend, x, target, space):
    return backend.emd_loss_hvp(x, target, x, space, cross_entropy=0.5, reduction="none")


@pytest.mark.parametrize("n_bins", [1, 2, 15, 16, 17, 33, 100])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_emd_loss_of_any_number_of_bins(n_bins, dtype, rng, backend):
    """Numbers of bins around the sizes of cache lines and tiles."""
    for case in (
        chain_case(n_bins),
        tree_case(naive.Ground([n_bins] * n_bins + [-1], [1.0] * n_bins + [0.0], range(n_bins))),
    ):
        x, target = _problem(rng, (9, n_bins), dtype=dtype)
        ref = naive.emd_loss_rows(x, target, case.ground, cross_entropy=1.0)
        comp = _rows(backend, x, target, case, cross_entropy=1.0)
        for ours, theirs in zip(comp, ref, strict=True):
            assert_close(ours, theirs, rtol=1e-12 if dtype == np.float64 else 1e-7)


def test_losses_float32_is_rounded_float64(rng, backend):
    space = fastemd.Chain(9) if SIMULATED else fastemd.datasets.imagenet_tree()
    x, target = _problem(rng, (64, space.n_bins), dtype=np.float32)
    x *= 5
    for function in (_loss_and_gradient, _diagonal, _product):
        single = function(backend, x, target, space)
        double = function(backend, x.astype(np.float64), target, space)
        error = np.abs(single - double) / np.abs(double)
        assert error.max() <= 3 * 2.0**-24 * (1 + 1e-3 * (function is not _loss_and_gradient))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "histograms"])
def test_emd_loss_of_extreme_logits(small_case, labelled, dtype, rng, backend):
    n = small_case.n_bins
    logits = rng.choice([-1e4, 0.0, 1e4], (40, n)).astype(dtype)
    logits[0], logits[1], logits[2] = 1e4, -1e4, 0.0
    _, target = _problem(rng, (40, n), "softmax", labelled)
    target = target if labelled else target.astype(dtype)
    rtol = 1e-12 if dtype == np.float64 else 1e-7
    ref = naive.emd_loss_rows(logits, target, small_case.ground, cross_entropy=1.0)
    comp = _rows(backend, logits, target, small_case, cross_entropy=1.0)
    for ours, theirs in zip(comp, ref, strict=True):
        assert_close(ours, theirs, rtol=rtol)
    for second in (_diagonal, _product):
        assert np.isfinite(second(backend, logits, target, small_case.space)).all()


def test_emd_loss_of_masked_classes_equals_low_logits(small_case, rng, backend):
    """Logits of -inf give the same as very low logits."""
    n = small_case.n_bins
    x, target = _problem(rng, (20, n))
    masked = rng.random((20, n)) < 0.4
    masked[np.arange(20), target] = False
    low, gone = np.where(masked, -1e5, x), np.where(masked, -np.inf, x)
    for function in (_diagonal, lambda *args: _loss_and_gradient(*args)[:, 1:]):
        np.testing.assert_array_equal(
            function(backend, gone, target, small_case.space),
            function(backend, low, target, small_case.space),
        )
        assert (function(backend, gone, target, small_case.space)[masked] == 0).all()
    soft = np.where(masked, 0.0, rng.random((20, n)) + 0.1)
    soft /= soft.sum(-1, keepdims=True)
    np.testing.assert_array_equal(
        _loss_and_gradient(backend, gone, soft, small_case.space),
        _loss_and_gradient(backend, low, soft, small_case.space),
    )
    # Without cross entropy the target may be a masked class.
    loss, grad = backend.emd_loss([-np.inf, 0.0], 0, fastemd.Chain(2))
    assert loss == 1.0
    assert (grad == 0.0).all()


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignore_index", [None, -100, 2])
def test_emd_loss_reduces_like_torch(small_case, reduction, weighted, ignore_index, rng, backend):
    x, target = _problem(rng, (13, small_case.n_bins))
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
    space, (x, target) = fastemd.Chain(6, np.zeros(5)), _problem(rng, (13, 6))
    target[3] = -100
    by_class = rng.random(6)
    for reduction in ("none", "sum", "mean"):
        given = torch.tensor(x, requires_grad=True)
        ref = torch.nn.functional.cross_entropy(
            given, torch.tensor(target), torch.tensor(by_class), reduction=reduction
        )
        ref.sum().backward()
        loss, grad = backend.emd_loss(
            x, target, space, cross_entropy=1.0, reduction=reduction,
            sample_weight=by_class[target.clip(0)], ignore_index=-100,
        )  # fmt: skip
        assert_close(loss, ref.detach().numpy())
        assert_close(grad, given.grad.numpy())


@pytest.mark.parametrize("shape", [(0,), (3,)])
def test_emd_loss_mean_of_no_rows_is_0(shape, backend):
    x, target = np.zeros((*shape, 2)), np.full(shape, -1)
    loss, grad = backend.emd_loss(x, target, fastemd.Chain(2), ignore_index=-1)
    assert loss == 0.0
    assert grad.shape == x.shape
    assert (grad == 0.0).all()


def test_emd_loss_broadcasts_target_to_rows_of_x(small_case, rng, backend):
    n = small_case.n_bins
    x, weight = rng.standard_normal((3, 4, n)), rng.random((3, 1))
    labels, soft = rng.integers(0, n, (3, 4)), rng.dirichlet(np.ones(n), (3, 4))
    keywords = {"reduction": "none", "sample_weight": weight}
    for whole, rows in ((labels, (3, 4)), (soft, (3, 4, n))):
        for target in (whole, whole[:, :1], whole[:1], whole[1], whole[1, 2], whole[1, 2:3]):
            loss, grad = backend.emd_loss(x, target, small_case.space, **keywords)
            assert loss.shape == (3, 4)
            wide = np.array(np.broadcast_to(target, rows))
            ref = backend.emd_loss(x, wide, small_case.space, **keywords)
            np.testing.assert_array_equal(loss, ref[0])
            np.testing.assert_array_equal(grad, ref[1])
    one = backend.emd_loss(x[0, 0], labels[0, 0], small_case.space, reduction="none")
    assert one[0].shape == ()
    assert one[1].shape == (n,)


@pytest.mark.parametrize(
    ("x", "target", "message"),
    [
        ((4, 3), [[0], [1], [2], [0]], r"labels of shape \(4, 1\) .* x, of shape \(4, 3\); "
         r".*target.squeeze\(-1\)"),
        ((4, 3), np.eye(3)[[[0], [1], [2], [0]]], r"histograms of shape \(4, 1, 3\) .* "
         r"of shape \(4, 3\); .*target.squeeze\(-2\)"),
        ((3,), [1], r"labels of shape \(1,\) .* of shape \(3,\); .*squeeze"),
        ((3,), np.eye(3)[[1]], r"histograms of shape \(1, 3\) .* of shape \(3,\); .*squeeze"),
        ((1, 3), [0, 1], r"labels of shape \(2,\) .* of shape \(1, 3\); give one"),
        ((2, 1, 3), [0, 1], r"labels of shape \(2,\) .* of shape \(2, 1, 3\)"),
        ((3, 3), np.eye(3)[:2], r"histograms of shape \(2, 3\) .* of shape \(3, 3\); give one"),
        ((0, 3), [0, 1], r"labels of shape \(2,\) .* of shape \(0, 3\)"),
    ],
)  # fmt: skip
def test_emd_loss_rejects_target_larger_than_x(x, target, message, backend):
    for function in (backend.emd_loss, backend.emd_loss_hessian_diag):
        with pytest.raises(ValueError, match="target: " + message):
            function(np.zeros(x), target, CHAIN, reduction="none")


@pytest.mark.parametrize(
    ("x", "target"),
    [((3, 3), (3,)), ((4, 3), (4,)), ((3,), ()), ((4, 3), ()), ((4, 3), (4, 1)),
     ((2, 3, 3), (2, 3)), ((2, 4, 3), (2, 1)),
     ((2, 4, 3), (2, 4, 1))],
)  # fmt: skip
def test_emd_loss_rejects_floating_point_labels(x, target, backend):
    with pytest.raises(ValueError, match="labels must be integers") as caught:
        backend.emd_loss(np.zeros(x), np.zeros(target), CHAIN)
    assert str(target) in str(caught.value)
    assert str(x) in str(caught.value)
    assert ("target[None]" in str(caught.value)) == (target[-1:] == (3,))


def test_emd_loss_of_one_bin_has_column_histograms(backend):
    loss, grad = backend.emd_loss(np.zeros((4, 1)), np.ones((4, 1)), fastemd.Chain(1))
    assert loss == 0.0
    assert grad.shape == (4, 1)
    assert backend.emd_loss(np.zeros((4, 1)), np.zeros(4, int), fastemd.Chain(1))[0] == 0.0


@pytest.mark.parametrize("kind", ["int8", "int32", "uint16", "uint64", ">i4"])
def test_emd_loss_accepts_labels_of_any_integer_type(kind, rng, backend):
    x, target = _problem(rng, (20, 7))
    ref = backend.emd_loss(x, target, fastemd.Chain(7))
    strided = np.repeat(target.astype(kind), 2)[::2]
    comp = backend.emd_loss(x, strided, fastemd.Chain(7))
    np.testing.assert_array_equal(comp[1], ref[1])


def test_emd_loss_accepts_any_memory_layout(rng, backend):
    """Fortran order, strides, read-only, float16: as with a copy, and inputs are unchanged."""
    x, target = _problem(rng, (20, 14))
    space = fastemd.Chain(7)
    for given in (np.asfortranarray(x[:, :7]), x[:, ::2], x[::-1, :7], x[:, :7].astype("f2")):
        before = given.copy()
        given.flags.writeable = False
        comp = backend.emd_loss(given, target % 7, space)
        ref = backend.emd_loss(before.astype(np.float64), target % 7, space)
        np.testing.assert_array_equal(comp[1], ref[1])
        np.testing.assert_array_equal(given, before)


@hardware
@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "histograms"])
def test_emd_loss_of_large_batch_equals_parts(labelled, rng, backend):
    """In parallel, prefetched and streamed, and with rows one page apart."""
    space = fastemd.Chain(1024)
    x, target = _problem(rng, (2501, 1024), "softmax", labelled, np.float32)
    target = target if labelled else target.astype(np.float32)
    grad = _loss_and_gradient(backend, x, target, space)
    for part in (slice(0, 16), slice(1200, 1211), slice(2480, 2501)):
        np.testing.assert_array_equal(
            grad[part], _loss_and_gradient(backend, x[part], target[part], space)
        )


@cpu
def test_emd_loss_allocates_only_the_gradient(rng, backend):
    space = fastemd.Chain(1000)
    x, target = _problem(rng, (2000, 1000), dtype=np.float32)
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


CHAIN = fastemd.Chain(3)
GOOD = np.zeros((4, 3))


def _with(entry, value, of=GOOD):
    array = np.array(of)
    array[entry] = value
    return array


THIRDS = np.full((4, 3), 1 / 3)


@cpu  # other backends raise later with less detail, see test_cuda.py
@pytest.mark.parametrize(
    ("x", "target", "keywords", "message"),
    [
        (_with((2, 1), np.nan), [0] * 4, {}, "x: row 2 has a logit nan at bin 1"),
        (_with((2, 1), np.inf), [0] * 4, {}, "x: row 2 has a logit inf at bin 1"),
        (_with(1, -np.inf), [0] * 4, {}, "x: row 1 has no class left"),
        (GOOD, [0, 1, 2, 3], {}, r"target: row 3 is class 3; classes are 0..2; set ignore_index"),
        (GOOD, [0, -1, 2, 3], {}, "target: row 1 is class -1"),
        (GOOD, np.uint64([0, 1, 2**63, 0]), {}, "target: row 2 is class 9223372036854775808"),
        (GOOD, _with((1, 1), 0.5, THIRDS), {}, "target: row 1 sums to 1.16.*, not to 1"),
        (GOOD, _with((1, 1), -0.5, THIRDS), {}, "target: row 1 has a negative mass"),
        (GOOD, _with((1, 1), np.nan, THIRDS), {}, "target: row 1 is not finite"),
        (
            _with((3, 0), -np.inf),
            [0] * 4,
            {"cross_entropy": 1.0},
            "target: row 3 has mass at bin 0, which x excludes by -inf",
        ),
        (
            _with((3, 0), -np.inf),
            THIRDS,
            {"cross_entropy": 1.0},
            "target: row 3 has mass at bin 0, which x excludes by -inf",
        ),
        (
            _with((3, 0), 0.0, GOOD + 1),
            [0] * 4,
            {"cross_entropy": 1.0, "normalize": "l1"},
            "target: row 3 has mass at bin 0, which x excludes by 0.0",
        ),
        (_with((3, 0), -1.0, THIRDS), [0] * 4, {"normalize": "l1"}, "x: row 3 has a negative mass"),
        (_with(slice(3), 1.0), [0] * 4, {"normalize": "l1"}, "x: row 3 sums to 0"),
        (_with((3, 0), 0.5, THIRDS), [0] * 4, {"normalize": None}, "x: row 3 sums to 1.1"),
        (GOOD, [0] * 3, {}, "do not broadcast"),
        (
            GOOD,
            np.eye(3, dtype=int)[[0, 1, 2, 0]],
            {},
            r"target: integers are labels, .* got the shape of x, \(4, 3\)",
        ),
        (GOOD[0], np.eye(3, dtype=int)[0], {}, r"target: .* the shape of x, \(3,\)"),
        (GOOD, THIRDS[:, :2], {}, "target: the last axis must hold the 3 bins"),
        (
            GOOD.T,
            [0] * 4,
            {},
            r"x: .* the 3 bins .* \(3, 4\); the axis of 3 .* axis 0: move it last",
        ),
        (GOOD[:, :2], [0] * 4, {}, "x: the last axis must hold the 3 bins"),
        (GOOD, [0] * 4, {"sample_weight": [1, 1, -1, 1]}, "sample_weight: row 2 is -1.0"),
        (GOOD, [0] * 4, {"sample_weight": [1, np.nan, 1, 1]}, "sample_weight: row 1 is nan"),
        (GOOD, [0] * 4, {"sample_weight": [1, 1]}, "sample_weight and x: .* do not broadcast"),
        (
            GOOD,
            THIRDS,
            {"ignore_index": 0},
            "ignore_index: needs labels .*; set sample_weight to 0",
        ),
        (GOOD, [0] * 4, {"cross_entropy": -1.0}, "cross_entropy: expected"),
        (GOOD, [0] * 4, {"reduction": "max"}, "reduction: expected one of"),
        (GOOD, [0] * 4, {"normalize": "l2"}, "normalize: expected"),
        (GOOD, [0] * 4, {"normalize": np.zeros(2)}, "normalize: expected .*array"),
        (GOOD, [0] * 4, {"rho": 0.5}, "rho: expected"),
    ],
)
def test_losses_reject_invalid_input(x, target, keywords, message, backend):
    for function in (backend.emd_loss, backend.emd_loss_hessian_diag):
        with pytest.raises(ValueError, match=message):
            function(x, target, CHAIN, **keywords)


@cpu
@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"cross_entropy": True}, "cross_entropy: expected a number >= 0"),
        ({"ignore_index": 1.0}, "ignore_index: expected an integer"),
        ({"reduction": None}, "reduction: expected one of"),
        ({"sample_weight": "heavy"}, "sample_weight: expected an array"),
        ({"space": "chain"}, "space: expected"),
        ({"target": [True] * 4}, "target: expected .*, got an array of dtype bool"),
        ({"target": np.eye(3, dtype=bool)[[0, 1, 2, 0]]}, "target: expected"),
    ],
)
def test_losses_reject_invalid_types(keywords, message, backend):
    with pytest.raises(TypeError, match=message):
        backend.emd_loss(GOOD, **{"target": [0] * 4, "space": CHAIN, **keywords})


@cpu
def test_emd_loss_hvp_names_invalid_row_of_v(backend):
    with pytest.raises(ValueError, match="v: row 1 is not finite, inf at bin 2"):
        backend.emd_loss_hvp(GOOD, [0] * 4, _with((1, 2), np.inf), CHAIN)


FLAT = fastemd.Chain(2, gaps=[0])  # only the cross entropy remains


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("kind", ["labels", "histograms", "ignored labels"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf, -3.0])
def test_losses_do_not_read_ignored_rows(normalize, kind, reduction, junk, dtype, rng, backend):
    """A row of weight 0 or with the ignored label has loss 0 and gradient 0, for any content."""
    x, target = _problem(rng, (20, 7), normalize, kind != "histograms", dtype)
    idle = rng.random(20) < 0.5
    idle[[3, 4]] = True, False
    x[idle] = junk
    x[3] = -np.inf if normalize == "softmax" else 0.0
    keywords = {"normalize": normalize, "cross_entropy": 1.0, "reduction": reduction}
    counts = {"sample_weight": 1.0 - idle}
    if kind == "ignored labels":
        counts, target = {"ignore_index": -100}, np.where(idle, -100, target)
        counts["sample_weight"] = np.where(idle, rng.choice([np.nan, np.inf, -1.0], 20), 1.0)
    elif kind == "labels":
        target = np.where(idle, -5, target)
    else:
        target = np.where(idle[:, None], junk, target).astype(dtype)
    space = fastemd.Chain(7)
    loss, grad = backend.emd_loss(x, target, space, **keywords, **counts)
    ref = backend.emd_loss(x[~idle], target[~idle], space, **keywords)
    assert_close(loss if reduction != "none" else loss[~idle], ref[0])
    assert_close(grad[~idle], ref[1])
    assert (grad[idle] == 0.0).all()
    assert reduction != "none" or (loss[idle] == 0.0).all()
    v = np.where(idle[:, None], junk, rng.standard_normal(x.shape)).astype(dtype)
    second = backend.emd_loss_hessian_diag(x, target, space, **keywords, **counts)
    product = backend.emd_loss_hvp(x, target, v, space, **keywords, **counts)
    assert (second[idle] == 0.0).all()
    assert (product[idle] == 0.0).all()
    ref = backend.emd_loss_hessian_diag(x[~idle], target[~idle], space, **keywords)
    np.testing.assert_allclose(second[~idle], ref, rtol=1e-6)
    ref = backend.emd_loss_hvp(x[~idle], target[~idle], v[~idle], space, **keywords)
    np.testing.assert_allclose(product[~idle], ref, rtol=1e-4 if dtype == np.float32 else 1e-7)


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
    x, target = _problem(rng, (4, 3))
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


@cpu
def test_losses_do_not_raise_under_errstate(backend):
    x = np.array([[0.0, -800.0, 1.0], [3e38, -3e38, 0.0], [1e-320, 0.0, 0.0]])
    weight = np.array([1e308, 1e-320, 1e308])
    with np.errstate(all="ignore"):
        kinds = [x, x.astype(np.longdouble), x.clip(-1e38, 1e38).astype(np.float32)]
    with np.errstate(all="raise"):
        for given in kinds:
            for reduction in ("mean", "sum", "none"):
                keywords = {"sample_weight": weight, "reduction": reduction, "cross_entropy": 1.0}
                backend.emd_loss(given, [0, 1, 2], CHAIN, **keywords)
                backend.emd_loss_hessian_diag(given, [0, 1, 2], CHAIN, **keywords)


def test_losses_reject_cross_entropy_beyond_float64(backend):
    with pytest.raises(ValueError, match="cross_entropy: expected a finite number >= 0, got inf"):
        backend.emd_loss(GOOD, [0] * 4, CHAIN, cross_entropy=10**400)


def test_emd_loss_with_ignored_rows_and_masked_classes_agrees_with_torch(backend):
    torch = pytest.importorskip("torch")
    x, target = np.array([[-np.inf, 0.0, 1.0], [0.0, 1.0, 2.0]]), [-100, 1]
    given = torch.tensor(x, requires_grad=True)
    ref = torch.nn.functional.cross_entropy(given, torch.tensor(target))
    ref.backward()
    loss, grad = backend.emd_loss(
        x, target, fastemd.Chain(3, [0, 0]), cross_entropy=1.0, ignore_index=-100
    )
    assert_close(loss, ref.item())
    assert_close(grad, given.grad.numpy())


@cpu
def test_losses_name_first_invalid_row_that_is_not_ignored(backend):
    x = _with((slice(1, 4), 0), -np.inf)
    keywords = {"cross_entropy": 1.0, "sample_weight": [1, 0, 1, 1]}
    for target in ([0] * 4, THIRDS):
        with pytest.raises(ValueError, match="target: row 2 has mass at bin 0"):
            backend.emd_loss(x, target, CHAIN, **keywords)
    with pytest.raises(ValueError, match="x: row 2 has a logit nan"):
        backend.emd_loss(_with((slice(1, 3), 2), np.nan, x), [0] * 4, CHAIN, **keywords)
    v = _with((slice(1, 3), 2), np.inf)
    with pytest.raises(ValueError, match="v: row 2 is not finite"):
        backend.emd_loss_hvp(x, [0, 0, 1, 1], v, CHAIN, **keywords)


def test_emd_loss_accepts_labels_if_rows_equal_bins(backend):
    loss, _ = backend.emd_loss(np.zeros((4, 4)), np.zeros(4, int), fastemd.Chain(4))
    assert loss.shape == ()
    loss, _ = backend.emd_loss(np.zeros((4, 4, 4)), np.zeros((4, 4), int), fastemd.Chain(4))
    assert loss.shape == ()


@pytest.mark.parametrize("least", [1e-100, 1e-160, 1e-300, 5e-324])
@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "histograms"])
def test_cross_entropy_of_tiny_shares(least, labelled, backend):
    """Derivatives are exact up to overflow, and never NaN."""
    x = np.array([least, 1.0, 1.0])
    v, n = np.array([1.0, 2.0, -4.0]), 3
    space, target = fastemd.Chain(n, [0, 0]), 0 if labelled else np.array([0.5, 0.5, 0.0])
    q = naive.one_hot(target, n)
    keywords = {"normalize": "l1", "cross_entropy": 1.0}
    total, where = x.sum(), q > 0
    loss, grad = backend.emd_loss(x, target, space, **keywords)
    assert_close(loss, (q[where] * (np.log(total) - np.log(x[where]))).sum())
    with np.errstate(over="ignore"):
        first, second = q / x, q / x / x
    np.testing.assert_allclose(grad[1:], (1 / total - first)[1:])
    diagonal = backend.emd_loss_hessian_diag(x, target, space, **keywords)
    np.testing.assert_allclose(diagonal[1:], (second - 1 / total**2)[1:])
    product = backend.emd_loss_hvp(x, target, v, space, **keywords)
    np.testing.assert_allclose(product[1:], (second * v - v.sum() / total**2)[1:])
    if least > 1e-290:
        np.testing.assert_allclose(grad[0], -first[0])
    if least > 1e-145:
        np.testing.assert_allclose([diagonal[0], product[0]], second[0])
    p = np.array([least, 0.5, 0.5])
    keywords["normalize"] = None
    loss, grad = backend.emd_loss(p, target, space, **keywords)
    assert_close(loss, -(q[where] * np.log(p[where])).sum())
    second = backend.emd_loss_hessian_diag(p, target, space, **keywords)
    for result in (grad, second, backend.emd_loss_hvp(p, target, v, space, **keywords)):
        assert (np.abs(result) > min(0.1 / least, 1e280)).all()
    second = backend.emd_loss_hessian_diag([least, 1.0], 0, FLAT, **keywords)
    assert (second > min(0.1 / least, 1e280)).all()


@pytest.mark.parametrize("total", [1e-160, 1e-300, 1e300])
def test_l1_of_any_total(total, backend):
    x, ones = np.array([[total, 0.0], [total / 2, total / 2]]), np.ones((2, 2))
    keywords = {"normalize": "l1", "reduction": "sum"}
    flat, soft = FLAT, np.full((2, 2), 0.5)
    for c in (0.0, 1.0):
        loss, grad = backend.emd_loss(x, [0, 0], flat, cross_entropy=c, **keywords)
        assert_close(loss, c * np.log(2))
        assert_close(grad * total, c * np.array([[0.0, 1.0], [-1.0, 1.0]]))
        for results in (
            backend.emd_loss_hessian_diag(x, [0, 0], flat, cross_entropy=c, **keywords),
            backend.emd_loss_hvp(x, [0, 0], ones, flat, cross_entropy=c, **keywords),
            backend.emd_loss_hessian_diag(x[1:], soft[1:], flat, cross_entropy=c, **keywords),
        ):
            assert not np.isnan(results).any()
    x[1] = total, max(total * 1e-157, 5e-324)
    assert not np.isnan(
        backend.emd_loss_hvp(x, [0, 1], ones, flat, cross_entropy=1.0, **keywords)
    ).any()


@pytest.mark.parametrize("normalize", NORMALIZE)
def test_emd_loss_derivatives_with_target_mass_close_to_1(normalize, rng, backend):
    torch = pytest.importorskip("torch")
    case = chain_case(5)
    x, target = _problem(rng, (6, 5), normalize, labelled=False)
    target *= 1 + 1e-8 * rng.standard_normal((6, 1)).clip(-1, 1)
    given, keywords = torch.tensor(x), {"normalize": normalize, "cross_entropy": 1.0}

    def loss(x):
        return naive.torch_loss(x, torch.tensor(target), case.ground, **keywords).sum()

    keywords["reduction"] = "sum"
    comp, grad = backend.emd_loss(x, target, case.space, **keywords)
    diagonal = backend.emd_loss_hessian_diag(x, target, case.space, **keywords)
    del keywords["reduction"]
    assert_close(comp, loss(given).item())
    ref = torch.func.jacrev(loss)(given).numpy()
    hessian = np.einsum("bkbl->bkl", torch.func.jacrev(torch.func.jacrev(loss))(given).numpy())
    if normalize is None:
        centre = np.eye(5) - 1 / 5
        ref, hessian = ref @ centre, centre @ hessian @ centre
    assert_close(grad, ref)
    assert_close(diagonal, np.einsum("bkk->bk", hessian))


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


@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "histograms"])
@pytest.mark.parametrize("size", [1.7e308, 1e-320])
def test_emd_loss_mean_accepts_weights_of_any_size(labelled, size, rng, backend):
    x, target = _problem(rng, (20, 7), labelled=labelled)
    keywords = {"cross_entropy": 3.0}
    ref = backend.emd_loss(x, target, fastemd.Chain(7), **keywords)
    comp = backend.emd_loss(x, target, fastemd.Chain(7), sample_weight=[size], **keywords)
    for ours, theirs in zip(comp, ref, strict=True):
        assert_close(ours, theirs)
    _, grad = backend.emd_loss(
        x, target, fastemd.Chain(7), sample_weight=size, reduction="sum", **keywords
    )
    assert not np.isnan(grad).any()


def test_losses_do_not_modify_arguments(rng):
    x, target = _problem(rng, (6, 4))
    before, keywords = (x.copy(), target.copy()), {"cross_entropy": 1.0}
    fastemd.emd_loss(x, target, fastemd.Chain(4), ignore_index=int(target[0]), **keywords)
    fastemd.emd_loss_hessian_diag(x, target, fastemd.Chain(4), **keywords)
    np.testing.assert_array_equal(x, before[0])
    np.testing.assert_array_equal(target, before[1])


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


def test_losses_read_rows_of_smallest_weight(backend):
    """A mean divides the weights: a positive weight must not underflow to 0."""
    x = _with((0, 1), np.nan)
    for reduction in ("mean", "sum", "none"):
        with pytest.raises(ValueError, match="row 0"):
            backend.emd_loss(
                x, [0] * 4, CHAIN, sample_weight=[1e-320, 1e10, 1, 1], reduction=reduction
            )
