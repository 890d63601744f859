"""CUDA: the same results as on the CPU, the arrays left where they are, complaints later.

Without a GPU the kernels run in Numba's simulator, which must be chosen before Numba is imported:
``NUMBA_ENABLE_CUDASIM=1 python -m pytest tests/test_cuda.py``.
"""

import os
import sys

import naive
import numpy as np
import pytest
from conftest import CASES
from devices import DeviceArray, on_device
from operations import BY_NAME, OPERATIONS, assert_agrees, assert_close
from strategies import random_pair

import fastemd
from fastemd.levels import FAN, levels
from fastemd.losses import LossCall

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the simulator's arithmetic
simulated = pytest.mark.skipif(
    os.environ.get("NUMBA_ENABLE_CUDASIM") != "1", reason="runs in Numba's simulator of CUDA"
)
SMALL = ["chain of 1", "chain of 7", "one node", "star", "unary path", "every node a bin"]


@pytest.fixture(params=SMALL)
def case(request):
    return CASES[request.param]


@pytest.fixture(autouse=True)
def few_threads(monkeypatch):
    """So few that every loop over bins and rows has a tail."""
    if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1":
        from fastemd.kernels import threads

        monkeypatch.setattr(threads, "block_of", lambda n_edges: (2, 2))
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        yield
        sys.setswitchinterval(interval)
    else:
        yield


class OnDevice:
    """An operation whose arguments go to the device, and whose results come back."""

    def __init__(self, operation):
        self.operation = operation
        self.name, self.naive = operation.name, operation.naive

    def __call__(self, arrays, space, rho, **keywords):
        results = self.operation([on_device(a) for a in arrays], space, rho, **keywords)
        assert all(type(result) is DeviceArray for result in results)
        return [result.numpy() for result in results]


# ------------------------------------------------------------------------------------------ levels


@pytest.mark.parametrize("n_leaves", [1, 2, FAN, FAN + 1, 2 * FAN - 1, 100, FAN**3])
def test_levels__no_edge_has_many_below_it(n_leaves):
    star = fastemd.Tree.from_parents([-1] + [0] * n_leaves)
    found = levels(star.plan, n_leaves)
    n_inner = found.n_edges - n_leaves
    ends = found.numbers[found.n_edges : found.n_edges + n_inner + 1]
    sizes = np.diff(ends)
    assert sizes.min() >= 1
    assert sizes.max() <= FAN
    assert ends[-1] == found.n_edges - 1
    full = np.ceil(np.log(n_leaves) / np.log(FAN) - 1e-9)
    assert found.n_levels == max(full, 1)


# --------------------------------------------------------------------- functions and losses, agree


@simulated
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
@pytest.mark.parametrize("rho", [1, 1.5, 2, 3.7])
def test_functions__agree_with_naive_on_cuda(operation, case, rho, rng):
    if not operation.takes_rho and rho != 1:
        pytest.skip("has no power")
    arrays = operation.draw(rng, (3,), case.n_bins)
    assert_agrees(OnDevice(operation), arrays, case, rho)
    fastemd.synchronize()


@simulated
@pytest.mark.parametrize("name", ["emd_value_and_grad", "emd_hessian", "emd_hvp", "embed"])
def test_functions__on_cuda_round_float32_once(name, small_case, rng):
    operation = BY_NAME[name]
    arrays = operation.draw(rng, (3,), small_case.n_bins, np.float32)
    comp = OnDevice(operation)(arrays, small_case.space, 2)
    ref = operation.naive(arrays, small_case, 2)
    for ours, theirs in zip(comp, ref, strict=True):
        assert ours.dtype == np.float32
        assert_close(ours, theirs, rtol=2.0**-23)


@simulated
@pytest.mark.parametrize("project", [False, True])
def test_functions__on_cuda_project(project, small_case, rng):
    for operation in OPERATIONS:
        if operation.projects:
            arrays = operation.draw(rng, (2,), small_case.n_bins)
            assert_agrees(OnDevice(operation), arrays, small_case, 3.7, project=project)


@simulated
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
@pytest.mark.parametrize(
    ("batch", "other"), [((), ()), ((2, 1), (3,)), ((2, 1, 2), (3, 1)), ((2,), ())]
)
def test_functions__on_cuda_broadcast(operation, batch, other, small_case, rng):
    arrays = operation.draw(rng, batch, small_case.n_bins)
    for i, array in enumerate(operation.draw(rng, other, small_case.n_bins)[1:], 1):
        arrays[i] = array
    assert_agrees(OnDevice(operation), arrays, small_case, 2)


@simulated
def test_functions__on_cuda_of_an_empty_batch(small_case, rng):
    for operation in OPERATIONS:
        given = operation.draw(rng, (2, 0), small_case.n_bins)
        results = OnDevice(operation)(given, small_case.space, 2)
        shapes = [result.shape for result in results]
        assert shapes == operation.shapes((2, 0), small_case.space)


@simulated
def test_functions__on_cuda_compute_in_the_common_type(small_case, rng):
    p, q = random_pair(rng, (3, small_case.n_bins))
    value = fastemd.emd(on_device(p.astype(np.float32)), on_device(q), small_case.space, 2)
    assert value.dtype == np.float64
    assert_close(value.numpy(), naive.emd(p.astype(np.float32), q, small_case.ground, 2))


@simulated
def test_functions__on_cuda_without_room_in_shared_memory(small_case, rng, monkeypatch):
    from fastemd.kernels import device

    monkeypatch.setattr(device, "SHARED_BYTES", 0)
    monkeypatch.setattr(device, "BLOCKS_WITHOUT", 2)
    for name in ("emd_value_and_grad", "emd_hvp"):
        arrays = BY_NAME[name].draw(rng, (9,), small_case.n_bins)
        assert_agrees(OnDevice(BY_NAME[name]), arrays, small_case, 3.7)


@simulated
@pytest.mark.parametrize("normalize", ["softmax", "l1", None])
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "histograms"])
@pytest.mark.parametrize("cross_entropy", [0.0, 0.5])
@pytest.mark.parametrize("rho", [1, 2, 3.7])
def test_losses__on_cuda_are_those_of_the_cpu(normalize, soft, cross_entropy, rho, small_case, rng):
    n, space = small_case.n_bins, small_case.space
    x = rng.normal(size=(3, n)) if normalize == "softmax" else rng.random((3, n)) + 0.1
    if normalize is None:
        x /= x.sum(axis=-1, keepdims=True)
    target = random_pair(rng, (3, n))[0] if soft else rng.integers(0, n, 3)
    v = rng.normal(size=(3, n))

    def losses(convert):
        given = {"x": convert(x), "target": convert(target)}
        options = {"normalize": normalize, "cross_entropy": cross_entropy, "reduction": "none"}
        value, grad = fastemd.emd_loss(**given, space=space, rho=rho, **options)
        diagonal = fastemd.emd_loss_hessian_diag(**given, space=space, rho=rho, **options)
        call = LossCall(space, rho, normalize, cross_entropy, **given, v=convert(v))
        product = call.values_and_derivatives("loss_product", None, "none")[1]
        return value, grad, diagonal, product

    for comp, ref in zip(losses(on_device), losses(np.array), strict=True):
        assert_close(comp.numpy(), ref)
    fastemd.synchronize()


@simulated
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("ignore_index", [None, -100, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_losses__on_cuda_reduce_as_on_the_cpu(reduction, ignore_index, weighted, small_case, rng):
    x = rng.normal(size=(2, 3, small_case.n_bins))
    target = np.array([1, 2, 0], np.int32)
    if ignore_index is not None:
        target[1] = ignore_index
    weight = rng.random((2, 1)) if weighted else None
    options = {"reduction": reduction, "ignore_index": ignore_index, "cross_entropy": 1.0}
    ref = fastemd.emd_loss(x, target, small_case.space, sample_weight=weight, **options)
    weight = None if weight is None else on_device(weight)
    comp = fastemd.emd_loss(
        on_device(x), on_device(target), small_case.space, sample_weight=weight, **options
    )
    for ours, theirs in zip(comp, ref, strict=True):
        assert_close(ours.numpy(), theirs)
    fastemd.synchronize()


@simulated
def test_losses__on_cuda_of_masked_classes_and_no_rows(small_case):
    x = np.array([[0.0, -np.inf, 1.0] + [0.5] * (small_case.n_bins - 3)] * 2, np.float32)
    for rows in (2, 0):
        given = x[:rows], np.array([0, 2])[:rows]
        ref = fastemd.emd_loss(*given, small_case.space, cross_entropy=1.0)
        comp = fastemd.emd_loss(*map(on_device, given), small_case.space, cross_entropy=1.0)
        for ours, theirs in zip(comp, ref, strict=True):
            assert ours.dtype == np.float32
            assert_close(ours.numpy(), theirs, rtol=1e-6)
    fastemd.synchronize()


# --------------------------------------------------------------------------------- complaints, out


@simulated
@pytest.mark.parametrize(
    ("bad", "why"),
    [(np.nan, "not finite, nan"), (-1.0, "negative"), (np.inf, "not finite"), (3, "")],
)
@pytest.mark.parametrize("name", ["emd_grad", "emd_hessian"])
def test_functions__on_cuda_complain_when_they_are_waited_for(name, bad, why, small_case, rng):
    p, q = random_pair(rng, (3, small_case.n_bins))
    p[1, 2] = bad
    function, given = getattr(fastemd, name), (on_device(p), on_device(q), small_case.space, 2)
    with pytest.raises(ValueError, match=f"row 1.*{why}"):
        function(*given, validate=True)
    fastemd.synchronize()  # nothing is left of that
    function(*given)
    with pytest.raises(ValueError, match=r"row \d+ of an earlier call on cuda:0 was bad"):
        fastemd.synchronize()
    fastemd.synchronize()
    function(*given, validate=False)
    fastemd.synchronize()


@simulated
def test_functions__on_cuda_take_a_tolerance(small_case, rng):
    p, q = random_pair(rng, (3, small_case.n_bins))
    fastemd.emd(on_device(p * 1.01), on_device(q), small_case.space, 2, validate=0.1)
    fastemd.synchronize()
    fastemd.emd(on_device(p * 1.01), on_device(q), small_case.space, 2, validate=1e-3)
    with pytest.raises(ValueError, match="row 0"):
        fastemd.synchronize()


@simulated
@pytest.mark.parametrize(
    "spoil",
    [
        lambda x, t, w: x.__setitem__((1, 0), np.nan),
        lambda x, t, w: t.__setitem__(1, 99),
        lambda x, t, w: t.__setitem__(1, -1),
        lambda x, t, w: w.__setitem__(1, -0.5),
        lambda x, t, w: x.__setitem__((1, t[1]), -np.inf),
    ],
    ids=["logit", "class", "negative class", "weight", "excluded"],
)
def test_losses__on_cuda_complain_when_they_are_waited_for(spoil, small_case, rng):
    x, t, w = rng.normal(size=(3, small_case.n_bins)), np.array([0, 1, 2]), np.ones(3)
    spoil(x, t, w)
    fastemd.emd_loss(
        on_device(x), on_device(t), small_case.space, sample_weight=on_device(w), cross_entropy=1.0
    )
    with pytest.raises(ValueError, match="row 1 of an earlier call"):
        fastemd.synchronize()


@simulated
def test_functions__on_cuda_write_to_out(small_case, rng):
    p, q = random_pair(rng, (3, small_case.n_bins))
    value, wide = on_device(np.zeros(3)), np.zeros((3, 2 * small_case.n_bins))
    grad = DeviceArray(wide[:, ::2])  # not contiguous
    given = on_device(p), on_device(q), small_case.space, 2
    result = fastemd.emd_value_and_grad(*given, out=(value, grad))
    assert result[0] is value
    assert result[1] is grad
    assert_close(value.numpy(), naive.emd(p, q, small_case.ground, 2))
    assert_close(wide[:, ::2], naive.emd_grad(p, q, small_case.ground, 2))
    assert not wide[:, 1::2].any()
    p[0, 0] = -1.0
    kept = wide.copy()
    with pytest.raises(ValueError, match="row 0"):
        fastemd.emd_grad(on_device(p), on_device(q), small_case.space, 2, out=grad, validate=True)
    np.testing.assert_array_equal(wide, kept)
    with pytest.raises(TypeError, match="different libraries"):
        fastemd.emd_grad(*given, out=np.zeros_like(p))


@simulated
def test_functions__refuse_to_mix_devices(small_case, rng):
    p, q = random_pair(rng, (3, small_case.n_bins))
    with pytest.raises(TypeError, match="p from devices on cuda:0, q from numpy"):
        fastemd.emd(on_device(p), q, small_case.space, 2)
    with pytest.raises(TypeError, match="computed on the CPU only"):
        fastemd.exact_emd(on_device(p), on_device(q), small_case.space)
    with pytest.raises(TypeError, match="computed on the CPU only"):
        fastemd.sinkhorn(on_device(p), on_device(q), small_case.space, lam=1.0)


class Stranger:
    """An array on a device whose library nobody knows."""

    @property
    def __cuda_array_interface__(self):
        return {"shape": (3,), "typestr": "<f8", "data": (8, False), "version": 3}


def test_functions__of_an_unknown_array_on_a_device():
    with pytest.raises(TypeError, match=r"p: cannot read .* on a CUDA device, where arrays of"):
        fastemd.emd(Stranger(), Stranger(), fastemd.Chain(3), 2)


def test_functions__on_cuda_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastemd.target", None)
    monkeypatch.delattr(fastemd, "target", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'fastemd\[cuda12\]'"):
        fastemd.emd(on_device(np.ones(3)), on_device(np.ones(3)), fastemd.Chain(3), 2)
