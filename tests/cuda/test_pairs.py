"""All pairs of rows on CUDA: a product of matrices by the arrays' library."""

import numpy as np
import pytest

import fastemd
from tests.support.device import arithmetic, device, on_device, on_host, simulator
from tests.support.strategies import random_pair

pytestmark = pytest.mark.any_backend


def _assert_close(comp, ref, rtol=1e-12):
    fastemd.synchronize()
    comp = on_host(comp)
    assert comp.dtype == ref.dtype
    np.testing.assert_allclose(comp, ref, rtol=rtol, atol=rtol * ref.max(initial=0.0))


@arithmetic
@device
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_pairwise_equals_pairwise_on_cpu(dtype, case, rng):
    p, q = random_pair(rng, (6, case.n_bins), dtype)
    keywords = {"space": case.space, "rho": 2}
    for tables in ((p,), (p, q[:4]), (p[:1], q), (q[:0],), (p, q[:0]), (p[:0], q)):
        comp = fastemd.pairwise(*map(on_device, tables), **keywords)
        assert type(comp) is type(on_device(p))
        _assert_close(
            comp, fastemd.pairwise(*tables, **keywords), 2e-7 if dtype is np.float32 else 1e-12
        )
    comp = on_host(fastemd.pairwise(on_device(p), **keywords))
    np.testing.assert_array_equal(comp, comp.T)
    np.testing.assert_array_equal(np.diag(comp), np.zeros(6))
    condensed = on_host(fastemd.pairwise(on_device(p), condensed=True, **keywords))
    np.testing.assert_array_equal(condensed, comp[np.triu_indices(6, 1)])


@arithmetic
@device
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("condensed", [False, True])
def test_pairwise_writes_to_out(dtype, condensed, small_case, rng):
    p, _ = random_pair(rng, (6, small_case.n_bins), dtype)
    keywords = {"space": small_case.space, "rho": 2, "condensed": condensed}
    ref = fastemd.pairwise(p, **keywords)
    out = on_device(np.full_like(ref, 7.0))
    assert fastemd.pairwise(on_device(p), out=out, **keywords) is out
    _assert_close(out, ref, 2e-7)
    with pytest.raises(ValueError, match=r"^out: shape \(2, 2\); expected an array of shape"):
        fastemd.pairwise(on_device(p), out=on_device(np.ones((2, 2))), **keywords)
    with pytest.raises(TypeError, match=r"^P and out: .* out from numpy"):
        fastemd.pairwise(on_device(p), out=ref, **keywords)


@arithmetic
@device
def test_pairwise_of_nearly_equal_rows_is_accurate(rng):
    p = np.tile(rng.dirichlet(np.ones(20)), (7, 1))
    for row in p[1:]:
        i, j = rng.permutation(20)[:2]
        moved = 1e-8 * row[i]
        row[i] -= moved
        row[j] += moved
    keywords = {"space": fastemd.Chain(20), "rho": 2}
    comp = fastemd.pairwise(on_device(p), **keywords)
    _assert_close(comp, fastemd.emd(p[:, None], p[None], **keywords))


@arithmetic
@device
def test_pairwise_rejects_invalid_rows(small_case, rng):
    p, q = random_pair(rng, (6, small_case.n_bins))
    keywords = {"space": small_case.space, "rho": 2}
    for spoil in (np.nan, -1.0, 9.0):
        invalid = p.copy()
        invalid[4, 1] = spoil
        for tables in ((invalid,), (q, invalid), (invalid, q)):
            with pytest.raises(ValueError, match="row 4"):
                fastemd.pairwise(*map(on_device, tables), validate=True, **keywords)
            fastemd.pairwise(*map(on_device, tables), **keywords)
            with pytest.raises(ValueError, match="row 4 of an earlier call"):
                fastemd.synchronize()
            fastemd.pairwise(*map(on_device, tables), validate=False, **keywords)
            fastemd.synchronize()
    with pytest.raises(ValueError, match=r"^P: shape \(7?5?,\); expected two axes"):
        fastemd.pairwise(on_device(p[0]), **keywords)
    with pytest.raises(ValueError, match=r"^Q: the last axis must hold"):
        fastemd.pairwise(on_device(p), on_device(p[:, 1:].copy()), **keywords)


@device
def test_pairwise_and_neighbors_on_device_ask_for_copies(small_case, rng):
    p, q = (on_device(x) for x in random_pair(rng, (3, small_case.n_bins)))
    with pytest.raises(TypeError, match=r"^P: .* for rho=2 only, got rho=1; copy the arrays to"):
        fastemd.pairwise(p, space=small_case.space, rho=1)
    message = "^nearest neighbours are computed on the CPU only; copy the arrays to the CPU first"
    with pytest.raises(TypeError, match=message):
        fastemd.neighbors(p, q, space=small_case.space, rho=2, k=1)
    with pytest.raises(TypeError, match="rho=2 only, got rho=3"):
        fastemd.warm_up(small_case.space, rho=[2, 3], functions="pairwise", device=0)
    with pytest.raises(TypeError, match="nearest neighbours are computed on the CPU only"):
        fastemd.warm_up(small_case.space, functions="neighbors", device=0)


@simulator
def test_pairwise_rejects_arrays_without_arithmetic(small_case, rng):
    p = on_device(random_pair(rng, (3, small_case.n_bins))[0])
    with pytest.raises(TypeError, match="have no arithmetic; pass arrays of PyTorch"):
        fastemd.pairwise(p, space=small_case.space, rho=2)


@device
def test_unifrac_on_device_asks_for_copies(small_case, rng):
    counts = on_device(random_pair(rng, (3, small_case.n_bins))[0])
    with pytest.raises(TypeError, match=r"^UniFrac distances are computed on the CPU only; copy"):
        fastemd.unifrac(counts, small_case.space)


@device
@arithmetic
def test_pairwise_on_device_names_arguments_in_errors(small_case, rng):
    p, q = random_pair(rng, (3, small_case.n_bins))
    keywords = {"space": small_case.space, "rho": 2, "validate": True}
    with pytest.raises(ValueError, match=r"^Q and the first row of Q: row 1 has unequal masses"):
        fastemd.pairwise(on_device(p), on_device(np.concatenate([q[:1], 2 * q])), **keywords)
    q[1, 0] = np.nan
    with pytest.raises(ValueError, match=r"^Q: row 1 is not finite"):
        fastemd.pairwise(on_device(p), on_device(q), **keywords)
