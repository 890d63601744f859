"""Shapes, types and validation of the arguments of the losses."""

import numpy as np
import pytest

import fastemd
from tests.support.device import cpu
from tests.support.losses import CHAIN, THIRDS, ZEROS, random_inputs, with_entry

pytestmark = pytest.mark.any_backend


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
        ((1, 3), [0, 1], r"labels of shape \(2,\) .* of shape \(1, 3\); pass one"),
        ((2, 1, 3), [0, 1], r"labels of shape \(2,\) .* of shape \(2, 1, 3\)"),
        ((3, 3), np.eye(3)[:2], r"histograms of shape \(2, 3\) .* of shape \(3, 3\); pass one"),
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
    x, target = random_inputs(rng, (20, 7))
    ref = backend.emd_loss(x, target, fastemd.Chain(7))
    strided = np.repeat(target.astype(kind), 2)[::2]
    comp = backend.emd_loss(x, strided, fastemd.Chain(7))
    np.testing.assert_array_equal(comp[1], ref[1])


def test_emd_loss_accepts_any_memory_layout(rng, backend):
    """Fortran order, strides, read-only, float16: as with a copy, and inputs are unchanged."""
    x, target = random_inputs(rng, (20, 14))
    space = fastemd.Chain(7)
    for inputs in (np.asfortranarray(x[:, :7]), x[:, ::2], x[::-1, :7], x[:, :7].astype("f2")):
        before = inputs.copy()
        inputs.flags.writeable = False
        comp = backend.emd_loss(inputs, target % 7, space)
        ref = backend.emd_loss(before.astype(np.float64), target % 7, space)
        np.testing.assert_array_equal(comp[1], ref[1])
        np.testing.assert_array_equal(inputs, before)


@cpu  # other backends raise later with less detail, see cuda/test_validation.py
@pytest.mark.parametrize(
    ("x", "target", "keywords", "message"),
    [
        (with_entry((2, 1), np.nan), [0] * 4, {}, "x: row 2 has a logit nan at bin 1"),
        (with_entry((2, 1), np.inf), [0] * 4, {}, "x: row 2 has a logit inf at bin 1"),
        (with_entry(1, -np.inf), [0] * 4, {}, "x: row 1 has no class left"),
        (ZEROS, [0, 1, 2, 3], {}, r"target: row 3 is class 3; classes are 0..2; set ignore_index"),
        (ZEROS, [0, -1, 2, 3], {}, "target: row 1 is class -1"),
        (ZEROS, np.uint64([0, 1, 2**63, 0]), {}, "target: row 2 is class 9223372036854775808"),
        (ZEROS, with_entry((1, 1), 0.5, THIRDS), {}, "target: row 1 sums to 1.16.*, not to 1"),
        (ZEROS, with_entry((1, 1), -0.5, THIRDS), {}, "target: row 1 has a negative mass"),
        (ZEROS, with_entry((1, 1), np.nan, THIRDS), {}, "target: row 1 is not finite"),
        (
            with_entry((3, 0), -np.inf),
            [0] * 4,
            {"cross_entropy": 1.0},
            "target: row 3 has mass at bin 0, which x excludes by -inf",
        ),
        (
            with_entry((3, 0), -np.inf),
            THIRDS,
            {"cross_entropy": 1.0},
            "target: row 3 has mass at bin 0, which x excludes by -inf",
        ),
        (
            with_entry((3, 0), -1.0, THIRDS),
            [0] * 4,
            {"normalize": "l1"},
            "x: row 3 has a negative mass",
        ),
        (with_entry(slice(3), 1.0), [0] * 4, {"normalize": "l1"}, "x: row 3 sums to 0"),
        (with_entry((3, 0), 0.5, THIRDS), [0] * 4, {"normalize": None}, "x: row 3 sums to 1.1"),
        (ZEROS, [0] * 3, {}, "do not broadcast"),
        (
            ZEROS,
            np.eye(3, dtype=int)[[0, 1, 2, 0]],
            {},
            r"target: integers are labels, .* got the shape of x, \(4, 3\)",
        ),
        (ZEROS[0], np.eye(3, dtype=int)[0], {}, r"target: .* the shape of x, \(3,\)"),
        (ZEROS, THIRDS[:, :2], {}, "target: the last axis must hold the 3 bins"),
        (
            ZEROS.T,
            [0] * 4,
            {},
            r"x: .* the 3 bins .* \(3, 4\); the axis of 3 .* axis 0: pass axis=0",
        ),
        (ZEROS[:, :2], [0] * 4, {}, "x: the last axis must hold the 3 bins"),
        (ZEROS, [0] * 4, {"sample_weight": [1, 1, -1, 1]}, "sample_weight: row 2 is -1.0"),
        (ZEROS, [0] * 4, {"sample_weight": [1, np.nan, 1, 1]}, "sample_weight: row 1 is nan"),
        (ZEROS, [0] * 4, {"sample_weight": [1, 1]}, "sample_weight and x: .* do not broadcast"),
        (
            ZEROS,
            THIRDS,
            {"ignore_index": 0},
            "ignore_index: needs labels .*; set sample_weight to 0",
        ),
        (ZEROS, [0] * 4, {"cross_entropy": -1.0}, "cross_entropy: expected"),
        (
            THIRDS,
            [0] * 4,
            {"cross_entropy": 1.0, "normalize": "l1"},
            "cross_entropy: available with normalize='softmax' only, got 1 .*='l1'; set it to 0",
        ),
        (
            THIRDS,
            [0] * 4,
            {"cross_entropy": 0.5, "normalize": None},
            "got 0.5 with normalize=None; ",
        ),
        (ZEROS, [0] * 4, {"reduction": "max"}, "reduction: expected one of"),
        (ZEROS, [0] * 4, {"normalize": "l2"}, "normalize: expected"),
        (ZEROS, [0] * 4, {"normalize": np.zeros(2)}, "normalize: expected .*array"),
        (ZEROS, [0] * 4, {"rho": 0.5}, "rho: expected"),
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
        backend.emd_loss(ZEROS, **{"target": [0] * 4, "space": CHAIN, **keywords})


@cpu
def test_emd_loss_hvp_names_invalid_row_of_v(backend):
    with pytest.raises(ValueError, match="v: row 1 is not finite, inf at bin 2"):
        backend.emd_loss_hvp(ZEROS, [0] * 4, with_entry((1, 2), np.inf), CHAIN)


def test_emd_loss_accepts_labels_if_rows_equal_bins(backend):
    loss, _ = backend.emd_loss(np.zeros((4, 4)), np.zeros(4, int), fastemd.Chain(4))
    assert loss.shape == ()
    loss, _ = backend.emd_loss(np.zeros((4, 4, 4)), np.zeros((4, 4), int), fastemd.Chain(4))
    assert loss.shape == ()
