"""Validation on CUDA: invalid rows are reported on synchronisation, invalid arrays at once."""

import sys

import numpy as np
import pytest

import fastemd
from tests.support.device import DeviceArray, arithmetic, device, on_device, on_host, simulator
from tests.support.strategies import random_pair

pytestmark = pytest.mark.any_backend
CHAIN = fastemd.Chain(3)


@device
@pytest.mark.parametrize("invalid", [np.nan, np.inf, -1.0])
@pytest.mark.parametrize("row", [0, 5, 9])
def test_emd_loss_reports_invalid_weights_except_of_ignored_rows(row, invalid, rng):
    x, labels, weights = rng.normal(size=(10, 3)), np.zeros(10, np.int64), np.ones(10)
    weights[row] = invalid
    inputs = on_device(x), on_device(labels), CHAIN
    loss, grad = fastemd.emd_loss(*inputs, sample_weight=on_device(weights))
    if invalid >= 0.0 or invalid != invalid:
        assert np.isnan(on_host(loss))
        assert np.isnan(on_host(grad)[row]).all()
    with pytest.raises(ValueError, match=f"row {row} of an earlier call"):
        fastemd.synchronize()
    labels[row] = 2
    inputs = on_device(x), on_device(labels), CHAIN
    comp = fastemd.emd_loss(*inputs, sample_weight=on_device(weights), ignore_index=2)
    fastemd.synchronize()
    ref = fastemd.emd_loss(x, labels, CHAIN, ignore_index=2)
    for on_cuda, on_cpu in zip(comp, ref, strict=True):
        np.testing.assert_allclose(on_host(on_cuda), on_cpu, rtol=1e-13, atol=1e-15)


@device
@pytest.mark.parametrize("name", ["emd_grad", "emd_hessian"])
def test_functions_raise_for_invalid_row_on_synchronize(name, small_case, rng):
    p, q = random_pair(rng, (3, small_case.n_bins))
    p[1, 2] = -1.0
    function, inputs = getattr(fastemd, name), (on_device(p), on_device(q), small_case.space, 2)
    with pytest.raises(ValueError, match="p: row 1 has a negative mass"):
        function(*inputs, validate=True)
    fastemd.synchronize()  # the error was raised already
    function(*inputs)
    with pytest.raises(ValueError, match="row 1 of an earlier call on cuda:0 is invalid"):
        fastemd.synchronize()
    fastemd.synchronize()
    function(*inputs, validate=False)
    fastemd.synchronize()


@device
def test_functions_with_tolerance_raise_on_synchronize(small_case, rng):
    p, q = random_pair(rng, (3, small_case.n_bins))
    fastemd.emd(on_device(p * 1.01), on_device(q), small_case.space, 2, validate=0.1)
    fastemd.synchronize()
    fastemd.emd(on_device(p * 1.01), on_device(q), small_case.space, 2, validate=1e-3)
    with pytest.raises(ValueError, match="row 0"):
        fastemd.synchronize()


@device
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
def test_losses_raise_for_invalid_row_on_synchronize(spoil, small_case, rng):
    x, t, w = rng.normal(size=(3, small_case.n_bins)), np.array([0, 1, 2]), np.ones(3)
    spoil(x, t, w)
    x, t, w = map(on_device, (x, t, w))
    fastemd.emd_loss(x, t, small_case.space, sample_weight=w, cross_entropy=1.0)
    with pytest.raises(ValueError, match="row 1 of an earlier call"):
        fastemd.synchronize()


@arithmetic
@device
@pytest.mark.parametrize("invalid", [np.nan, -1.0, np.inf])
def test_sinkhorn_raises_at_once(invalid, rng):
    p, q, cost = map(on_device, (*random_pair(rng, (3, 4)), rng.random((4, 4))))
    for name, match in (("p", "p: row 2"), ("cost", "cost: .* from bin 2 to 1")):
        inputs = {"p": p, "q": q, "cost": cost}
        changed = np.array(on_host(inputs[name]))
        changed[2, 1] = invalid
        with pytest.raises(ValueError, match=match):
            fastemd.sinkhorn(**inputs | {name: on_device(changed)}, lam=1.0)
    with pytest.raises(ValueError, match=r"cost: expected a square matrix \(N, N\), got"):
        fastemd.sinkhorn(p, q, on_device(np.ones((3, 4))), lam=1.0)
    fastemd.synchronize()


@simulator
def test_sinkhorn_rejects_arrays_without_arithmetic(rng):
    p, q = map(on_device, random_pair(rng, (2, 3)))
    with pytest.raises(TypeError, match="have no arithmetic; pass arrays of PyTorch"):
        fastemd.sinkhorn(p, q, CHAIN, lam=1.0)


@device
@pytest.mark.parametrize("weights", [[np.nan, 1, 1], [1, np.inf, 1], [1, 1, np.nan]])
def test_emd_loss_is_nan_for_nonfinite_weight(weights, small_case, rng):
    x, labels = on_device(rng.normal(size=(3, small_case.n_bins))), on_device([0, 1, 2])
    loss, _ = fastemd.emd_loss(x, labels, small_case.space, sample_weight=on_device(weights))
    assert np.isnan(on_host(loss))
    with pytest.raises(ValueError, match=r"row \d of an earlier call"):
        fastemd.synchronize()


@simulator
def test_out_must_be_on_device(small_case, rng):
    p, q = random_pair(rng, (3, small_case.n_bins))
    with pytest.raises(TypeError, match="different libraries"):
        fastemd.emd_grad(on_device(p), on_device(q), small_case.space, 2, out=np.zeros_like(p))


@device
def test_functions_reject_arrays_on_different_devices(small_case, rng):
    p, q = random_pair(rng, (3, small_case.n_bins))
    with pytest.raises(TypeError, match=r"p from .* on cuda:0, q from numpy"):
        fastemd.emd(on_device(p), q, small_case.space, 2)
    with pytest.raises(TypeError, match="computed on the CPU only"):
        fastemd.exact_emd(on_device(p), on_device(q), small_case.space)


class UnknownArray:
    """An array on a device, of an unknown library."""

    @property
    def __cuda_array_interface__(self):
        return {"shape": (3,), "typestr": "<f8", "data": (8, False), "version": 3}


def test_functions_reject_device_array_of_unknown_library():
    with pytest.raises(TypeError, match=r"p: cannot read .* on a CUDA device, where arrays of"):
        fastemd.emd(UnknownArray(), UnknownArray(), CHAIN, 2)


def test_functions_without_numba_cuda_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastemd.kernels.cuda", None)
    with pytest.raises(ImportError, match=r"pip install 'fastemd\[cuda12\]'"):
        fastemd.emd(DeviceArray(np.ones(3)), DeviceArray(np.ones(3)), CHAIN, 2)


@device
@pytest.mark.parametrize("rho", [1, 2, 3.7])
def test_functions_propagate_nan(operation, small_case, rho, rng):
    """Results are NaN where those of the CPU are."""
    function = getattr(fastemd, operation.name)
    rho = (rho,) if operation.takes_rho else ()
    for i, _ in enumerate(operation.draw(rng, (2,), small_case.n_bins)):
        inputs = operation.draw(rng, (2,), small_case.n_bins)
        inputs[i][1, 2] = np.nan
        comp = function(*map(on_device, inputs), small_case.space, *rho, validate=False)
        ref = function(*inputs, small_case.space, *rho, validate=False)
        pairs = zip(comp, ref, strict=True) if isinstance(ref, tuple) else [(comp, ref)]
        for on_cuda, on_cpu in pairs:
            np.testing.assert_array_equal(np.isnan(on_host(on_cuda)), np.isnan(on_cpu))
            assert not np.isnan(on_cpu[0]).any()


@device
@pytest.mark.parametrize("rho", [1, 2, 3.7])
@pytest.mark.parametrize("normalize", ["softmax", "l1", None])
@pytest.mark.parametrize("spoiled", ["x", "target"])
def test_losses_propagate_nan(spoiled, normalize, rho, small_case, rng):
    inputs = {name: rng.dirichlet(np.ones(small_case.n_bins), 2) for name in ("x", "target")}
    inputs[spoiled][1, 2] = np.nan
    inputs = {name: on_device(array) for name, array in inputs.items()}
    added = 1.0 if normalize == "softmax" else 0.0
    keywords = {"normalize": normalize, "cross_entropy": added, "reduction": "none"}
    results = (
        *fastemd.emd_loss(**inputs, space=small_case.space, rho=rho, **keywords),
        fastemd.emd_loss_hessian_diag(**inputs, space=small_case.space, rho=rho, **keywords),
    )
    for result in map(on_host, results):
        assert np.isfinite(result[0]).all()
        assert np.isnan(result[1]).all()
    with pytest.raises(ValueError, match="row 1"):
        fastemd.synchronize()
