"""Sinkhorn distances agree with NumPy, POT and the linear programme, and report failures."""

import importlib
import itertools

import numpy as np
import pytest

import fastemd
from fastemd.demo.baselines import SINKHORN_BASELINES
from tests.support import naive
from tests.support.device import SIMULATED, arithmetic, cpu, hardware
from tests.support.frameworks import needed
from tests.support.operations import assert_close
from tests.support.strategies import random_ground

pytestmark = [pytest.mark.any_backend, arithmetic]
module = importlib.import_module("fastemd.sinkhorn")

METHODS = ("paper", "log")
each_method = pytest.mark.parametrize("method", METHODS)


def _problem(rng, n_rows=5, n=12):
    """Return histograms, some with empty bins, and a cost that is not symmetric."""
    p, q = rng.dirichlet(np.ones(n), (2, n_rows))
    p[1, 3] = q[2, 4] = q[1, 3] = 0.0
    p, q = (x / x.sum(axis=-1, keepdims=True) for x in (p, q))
    return p, q, rng.random((n, n))


def _centred(x):
    return x - x.mean(axis=-1, keepdims=True)


@each_method
@pytest.mark.parametrize("n_iter", [1, 2, 7])
@pytest.mark.parametrize("lam", [0.01, 1, 30])
def test_sinkhorn_agrees_with_naive(method, n_iter, lam, rng, backend):
    p, q, cost = _problem(rng)
    comp = backend.sinkhorn(p, q, cost, lam=lam, max_iter=n_iter, method=method)
    ref = [naive.sinkhorn(a, b, cost, lam, n_iter) for a, b in zip(p, q, strict=True)]
    assert_close(comp.value, [value for value, _ in ref])
    np.testing.assert_allclose(comp.grad, [grad for _, grad in ref], rtol=1e-12, atol=1e-12 / lam)
    assert np.isneginf(comp.grad[1, 3])
    assert np.isfinite(comp.grad).sum() == comp.grad.size - 1
    np.testing.assert_array_equal(comp.n_iter, n_iter)
    assert not comp.converged.any()


@pytest.mark.parametrize("n_iter", [1, 4, 25, pytest.param(600, marks=hardware)])
@pytest.mark.parametrize("lam", [0.1, 100, 1e3, 1e5])
def test_sinkhorn_log_accepts_any_lambda(lam, n_iter, rng, backend):
    p, q, cost = _problem(rng, n=30)
    comp = backend.sinkhorn(p, q, cost, lam=lam, max_iter=n_iter, method="log")
    ref = [naive.log_sinkhorn(a, b, cost, lam, n_iter)[:2] for a, b in zip(p, q, strict=True)]
    assert_close(comp.value, [value for value, _ in ref], rtol=1e-14 * max(lam, 100))
    np.testing.assert_allclose(comp.grad, [grad for _, grad in ref], rtol=1e-11, atol=1e-13)
    np.testing.assert_array_equal(comp.n_iter, n_iter)


@pytest.mark.parametrize("n_iter", [1, 4])
def test_sinkhorn_error_is_violation_of_marginal_p(n_iter, rng, backend):
    p, q, cost = _problem(rng)
    p, q = 3 * p, 3 * q
    before = [naive.log_sinkhorn(a, b, cost, 5, n_iter - 1)[2] for a, b in zip(p, q, strict=True)]
    ref = np.abs(np.sum(before, axis=-1) - p).sum(axis=-1) / 3
    for method in METHODS:
        comp = backend.sinkhorn(p, q, cost, lam=5, max_iter=n_iter, method=method)
        assert_close(comp.error, ref)


@each_method
def test_sinkhorn_rows_stop_independently(method, rng, backend):
    n_rows = 6 if SIMULATED else 40
    p, q, cost = _problem(rng, n_rows)
    keywords = {"lam": 20, "max_iter": 500, "tol": 1e-4, "method": method}
    comp = backend.sinkhorn(p, q, cost, **keywords)
    assert comp.converged.all()
    assert (comp.error <= 1e-4).all()
    assert np.unique(comp.n_iter).size > (1 if SIMULATED else 5)
    for row, (a, b) in enumerate(zip(p, q, strict=True)):
        alone = backend.sinkhorn(a, b, cost, **keywords)
        assert alone.n_iter == comp.n_iter[row]
        assert_close(alone.value, comp.value[row])
        np.testing.assert_allclose(alone.grad, comp.grad[row], rtol=1e-10)
        sooner = backend.sinkhorn(a, b, cost, **keywords | {"max_iter": int(alone.n_iter) - 1})
        assert not sooner.converged
        assert sooner.error > 1e-4


@each_method
def test_sinkhorn_broadcasts(method, rng, backend):
    p, q, cost = _problem(rng)
    comp = backend.sinkhorn(p[:, None], q[:3], cost, lam=5, method=method)
    assert comp.value.shape == comp.n_iter.shape == comp.error.shape == (5, 3)
    assert comp.converged.shape == (5, 3)
    assert comp.grad.shape == (5, 3, 12)
    for i, j in itertools.product(range(5), range(3)):
        assert_close(
            comp.value[i, j], backend.sinkhorn(p[i], q[j], cost, lam=5, method=method).value
        )
    turned = [np.asfortranarray(x) for x in (p, q, cost)]
    np.testing.assert_array_equal(
        backend.sinkhorn(*turned, lam=5, method=method).value,
        backend.sinkhorn(p, q, cost, lam=5, method=method).value,
    )
    empty = backend.sinkhorn(p[:0], q[0], cost, lam=5, method=method)
    assert empty.value.shape == (0,)
    assert empty.grad.shape == (0, 12)


@each_method
@pytest.mark.parametrize(
    "space",
    [fastemd.Chain(6), pytest.param(fastemd.datasets.imagenet_tree(), marks=hardware)],
    ids=repr,
)
def test_sinkhorn_accepts_space_as_cost(method, space, rng, backend):
    p, q = rng.dirichlet(np.ones(space.n_bins), (2, 2)).astype(np.float32)
    comp = backend.sinkhorn(p, q, space, lam=1, max_iter=3, method=method)
    cost = space.cost_matrix().astype(np.float32)
    ref = backend.sinkhorn(p, q, cost, lam=1, max_iter=3, method=method)
    assert comp.value.dtype == comp.grad.dtype == np.float32
    for ours, theirs in zip(comp, ref, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_sinkhorn_accepts_tolerance(rng, backend):
    p, q, cost = _problem(rng)
    with pytest.raises(ValueError, match="row 0 has unequal masses"):
        backend.sinkhorn(1.001 * p, q, cost, lam=5)
    with pytest.raises(ValueError, match=r"tolerance 1\.0e-04"):
        backend.sinkhorn(1.001 * p, q, cost, lam=5, validate=1e-4)
    for validate in (0.01, False):
        assert np.isfinite(
            backend.sinkhorn(1.001 * p, q, cost, lam=5, validate=validate).value
        ).all()


@each_method
@pytest.mark.parametrize(
    "cost",
    [pytest.param(np.array([[0, 1e39], [1, 0]]), id="matrix"), fastemd.Chain(2, gaps=[1e39])],
    ids=repr,
)
def test_sinkhorn_rejects_costs_beyond_float32(cost, method, backend):
    p, q = np.eye(2, dtype=np.float32)
    with pytest.raises(ValueError, match=r"cost: not finite, inf from bin 0 to 1; .* in float32"):
        backend.sinkhorn(p, q, cost, lam=1, dtype=np.float32, method=method)


@cpu
@each_method
def test_sinkhorn_converts_long_double_if_floating_point_errors_raise(method, backend):
    tiny = np.longdouble("1e-320")
    arguments = np.array([1, tiny]), np.array([tiny, 1]), np.array([[0, tiny], [1, 1]])
    ref = backend.sinkhorn(*arguments, lam=1, method=method)
    with np.errstate(all="raise"):
        comp = backend.sinkhorn(*arguments, lam=1, method=method)
    for ours, wanted in zip(comp, ref, strict=True):
        np.testing.assert_array_equal(ours, wanted)


def test_sinkhorn_returns_type_of_inputs(rng, backend):
    p, q, cost = _problem(rng)
    single = [x.astype(np.float32) for x in (p, q, cost)]
    assert backend.sinkhorn(*single, lam=1).value.dtype == np.float32
    assert backend.sinkhorn(*single[:2], cost, lam=1).grad.dtype == np.float64
    for method, dtype in itertools.product(METHODS, [np.float32, "float64"]):
        comp = backend.sinkhorn(p, q, cost, lam=1, method=method, dtype=dtype)
        assert comp.value.dtype == comp.grad.dtype == np.dtype(dtype)
        assert comp.error.dtype == np.float64
        ref = backend.sinkhorn(p, q, cost, lam=1)
        assert_close(comp.value, ref.value, rtol=2e-6)


@pytest.mark.parametrize(("dtype", "lam"), [(np.float32, 110.0), (np.float64, 800.0)])
def test_sinkhorn_reports_failure_without_warning(dtype, lam, rng, backend):
    p, q, _ = _problem(rng)
    cost = 0.9 + 0.1 * np.arange(144).reshape(12, 12) / 144
    good = np.ones((12, 12)) / 1000
    failed = backend.sinkhorn(p, q, cost, lam=lam, tol=1e-9, dtype=dtype)
    assert not np.isfinite(failed.value).any()
    assert not np.isfinite(failed.error).any()
    assert not failed.converged.any()
    assert (failed.n_iter < 5).all()
    keywords = {"lam": lam, "tol": 1e-5, "dtype": dtype}
    assert backend.sinkhorn(p, q, good, **keywords).converged.all()
    assert backend.sinkhorn(p, q, cost, **keywords, method="log").converged.all()


def test_sinkhorn_paper_fails_and_log_converges_if_kernel_underflows(backend):
    """All kernel entries between the two halves underflow to 0, but nothing overflows."""
    cost = np.kron(1 - np.eye(2), np.ones((2, 2)))
    p, q = np.array([0.3, 0.3, 0.2, 0.2]), np.full(4, 0.25)
    printed = backend.sinkhorn(p, q, cost, lam=1000, max_iter=50)
    assert not printed.converged
    assert printed.error > 0.19
    log = backend.sinkhorn(p, q, cost, lam=1000, max_iter=4000, tol=1e-3, method="log")
    assert log.converged
    assert_close(log.value, 0.1, rtol=2e-2)


@each_method
def test_sinkhorn_of_zero_mass_is_zero(method, backend):
    comp = backend.sinkhorn(np.zeros(3), np.zeros(3), fastemd.Chain(3), lam=1, method=method)
    assert comp.value == 0.0
    assert comp.converged
    assert np.isneginf(comp.grad).all()


@each_method
def test_sinkhorn_gradient_is_gradient_of_regularised_minimum(method, rng, backend):
    p, q, cost = (x[0] if x.ndim == 2 and len(x) == 5 else x for x in _problem(rng))
    lam, direction = 8.0, _centred(rng.standard_normal(12)) / 50 * p.min()

    def minimum(x):
        plan = naive.log_sinkhorn(x, q, cost, lam, 400)[2]
        return (plan * cost).sum() + (plan * np.log(plan)).sum() / lam

    ref = naive.central_difference(minimum, p, direction, 1.0)
    comp = backend.sinkhorn(p, q, cost, lam=lam, max_iter=400, method=method)
    np.testing.assert_allclose(comp.grad @ direction, ref, rtol=1e-4)


@cpu
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["matrix", "tree"])
def test_sinkhorn_at_large_lambda_equals_exact_emd(kind, seed, backend):
    """Integer costs, so that the second-best transport plan costs 1 more: 50 problems in all."""
    rng = np.random.default_rng(seed)
    if kind == "matrix":
        cost, n = rng.integers(1, 10, (8, 8)).astype(float), 8
    else:
        ground = random_ground(rng, 16)
        ground = ground._replace(weight=[float(np.ceil(w)) for w in ground.weight])
        cost = naive.cost_matrix(ground)
        n = len(cost)
    p, q = rng.dirichlet(np.ones(n), (2, 5))
    ref = [naive.linear_programme(*row, cost) for row in zip(p, q, strict=True)]
    comp = backend.sinkhorn(p, q, cost, lam=30, max_iter=100_000, tol=1e-9, method="log")
    assert comp.converged.all(), comp.error
    np.testing.assert_allclose(comp.value, ref, rtol=1e-6)
    np.testing.assert_allclose(fastemd.exact_emd(p, q, cost)[0], ref, rtol=1e-9)


@cpu
@pytest.mark.parametrize("finest", [False, True])
def test_sinkhorn_of_continuous_costs_at_large_lambda_equals_exact_emd(finest, backend):
    """50 problems. The entropy adds at most log(N) / lam to the cost, which determines lam."""
    rng = np.random.default_rng(1)
    for _ in range(50):
        p, q = rng.dirichlet(np.ones(8), 2)
        cost = rng.random((8, 8))
        ref = naive.linear_programme(p, q, cost)
        lam = 1e300 if finest else np.log(8) / (5e-7 * ref)
        comp = backend.sinkhorn(p, q, cost, lam=lam, max_iter=40_000, tol=1e-8, method="log")
        assert comp.converged, comp
        np.testing.assert_allclose(comp.value, ref, rtol=1e-6)
        np.testing.assert_allclose(fastemd.exact_emd(p, q, cost)[0], ref, rtol=1e-9)


def test_sinkhorn_rows_change_stages_independently(rng, backend):
    n_rows = 3 if SIMULATED else 20
    p, q, cost = _problem(rng, n_rows)
    keywords = {"lam": 5e4, "max_iter": 3000, "tol": 1e-3, "method": "log"}
    comp = backend.sinkhorn(p, q, cost, **keywords)
    assert np.unique(comp.n_iter).size > n_rows // 2
    for row, (a, b) in enumerate(zip(p, q, strict=True)):
        alone = backend.sinkhorn(a, b, cost, **keywords)
        assert alone.n_iter == comp.n_iter[row]
        assert_close(alone.value, comp.value[row], rtol=1e-9)
        np.testing.assert_allclose(alone.grad, comp.grad[row], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("lam", [3.0, 350.0, 690.0, 30_000.0])
@pytest.mark.parametrize("mass", [1e-300, 1e300])
@pytest.mark.parametrize("unit", [1e-290, 1.0, 1e290])
def test_sinkhorn_log_accepts_any_units(lam, mass, unit, rng, backend):
    p, q, cost = _problem(rng)
    keywords = {"max_iter": 30 if SIMULATED else 300, "method": "log"}
    ref = backend.sinkhorn(p, q, cost, lam=lam, **keywords)
    if mass * unit > 1e300:  # the value would overflow
        mass = 1.0
    comp = backend.sinkhorn(p * mass, q * mass, cost * unit, lam=lam / unit, **keywords)
    np.testing.assert_allclose(comp.error, ref.error, rtol=1e-6, atol=1e-9)
    assert_close(comp.value, ref.value * mass * unit, rtol=1e-8)
    grad, ref_grad = (_centred(np.delete(x, 3, axis=-1)) for x in (comp.grad / unit, ref.grad))
    np.testing.assert_allclose(grad, ref_grad, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("lam", [1e-300, 1.0, 1e4, 1e300])
@pytest.mark.parametrize("n", [1, 4])
def test_sinkhorn_log_accepts_zero_costs(lam, n, backend):
    p, q = np.full(n, 1 / n), np.eye(n)[0]
    comp = backend.sinkhorn(p, q, np.zeros((n, n)), lam=lam, tol=1e-12, method="log")
    assert comp.value == 0.0
    assert comp.converged
    np.testing.assert_allclose(_centred(comp.grad), 0.0, atol=1e-12)


@cpu
@each_method
@pytest.mark.parametrize("pots", ["sinkhorn", "sinkhorn_log"])
@pytest.mark.parametrize("lam", [0.5, 5, 50])
def test_sinkhorn_agrees_with_pot(method, pots, lam, rng, backend):
    import ot  # may be missing on a machine with a GPU

    p, q, cost = _problem(rng)
    p, q = p[[0, 3, 4]], q[[0, 3, 4]]  # the log domain of POT does not support empty bins
    comp = backend.sinkhorn(p, q, cost, lam=lam, max_iter=20_000, tol=1e-13, method=method)
    for row, (a, b) in enumerate(zip(p, q, strict=True)):
        options = {"numItermax": 20_000, "stopThr": 1e-13, "log": True, "warn": False}
        plan, log = ot.sinkhorn(a, b, cost, 1 / lam, method=pots, **options)
        np.testing.assert_allclose(comp.value[row], (plan * cost).sum(), rtol=1e-8)
        theirs = np.log(log["u"]) if "log_u" not in log else log["log_u"]
        np.testing.assert_allclose(
            _centred(comp.grad[row]), _centred(theirs / lam), rtol=1e-8, atol=1e-8 / lam
        )


@cpu
@pytest.mark.parametrize("name", SINKHORN_BASELINES)
def test_baselines_agree_with_naive(name, rng):
    if "torch" in name:
        needed("torch")
    p, q, cost = _problem(rng)
    p, q = p[[0, 3, 4]], q[[0, 0, 0]]
    value, grad = SINKHORN_BASELINES[name](p, q, cost, 5.0, 300)()
    ref = [naive.sinkhorn(a, b, cost, 5.0, 300) for a, b in zip(p, q, strict=True)]
    assert_close(value, [x for x, _ in ref], rtol=1e-9)
    assert_close(_centred(grad), _centred(np.array([x for _, x in ref])), rtol=1e-9)


@cpu
def test_batched_pot_requires_one_target(rng):
    p, q, cost = _problem(rng)
    with pytest.raises(NotImplementedError, match="share"):
        SINKHORN_BASELINES["sinkhorn, batched (POT)"](p, q, cost, 5.0, 3)


def _namespace(name):
    needed(name.removeprefix("array_api_compat.").partition(".")[0])
    if name == "jax.numpy":
        importlib.import_module("jax").config.update("jax_enable_x64", True)
    return importlib.import_module(name)


@cpu
@pytest.mark.parametrize(
    ("namespace", "lam", "dtype"),
    [
        *itertools.product(
            ("array_api_strict", "array_api_compat.torch"),
            (5.0, 500.0, 3e4),
            (np.float32, np.float64),
        ),
        ("jax.numpy", 500.0, np.float64),  # one, since JAX compiles for long
    ],
)
def test_iterations_agree_in_all_namespaces(namespace, lam, dtype, rng, monkeypatch):
    """These run on a device; here on the CPU, with the BLAS and with blocks of exact sums."""
    xp = _namespace(namespace)
    monkeypatch.setattr(module, "FEW", 0)
    for block in ("BLOCK", "BLOCK_ON_DEVICE"):
        monkeypatch.setattr(module, block, 100)
    rows = [x.astype(dtype) for x in _problem(rng, n_rows=4)]
    for iterate in (module._iterate_as_printed, module._iterate_on_logarithms):
        with np.errstate(all="ignore"):
            ref = iterate(np, *rows, lam, 60, 1e-4)
            comp = iterate(xp, *map(xp.asarray, rows), lam, 60, 1e-4)
        assert isinstance(comp[0], type(xp.asarray(rows[0])))
        rtol = 1e-5 if iterate is module._iterate_as_printed and dtype == np.float32 else 1e-10
        for ours, theirs in zip(comp, ref, strict=True):
            assert np.asarray(ours).dtype == theirs.dtype
            np.testing.assert_allclose(np.asarray(ours), theirs, rtol=rtol, atol=rtol)


@cpu
@pytest.mark.parametrize("lam", [5.0, 400.0, 700.0, 3e4])
def test_sinkhorn_log_sums_agree_by_blas_and_exactly(lam, rng, monkeypatch):
    problem, results = _problem(rng, n_rows=20, n=30), []
    for few, block in ((1 << 60, 1), (0, 1 << 60), (0, 7)):
        monkeypatch.setattr(module, "FEW", few)
        monkeypatch.setattr(module, "BLOCK", block)
        results.append(fastemd.sinkhorn(*problem, lam=lam, max_iter=60, method="log"))
    for result in results[1:]:
        for ours, theirs in zip(result, results[0], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


@cpu
def test_sinkhorn_rows_that_stop_do_not_change(rng):
    p, q, cost = _problem(rng, n_rows=9)
    comp = fastemd.sinkhorn(p, q, cost, lam=20, max_iter=500, tol=1e-4)
    last = int(np.sort(comp.n_iter)[-2])
    sooner = fastemd.sinkhorn(p, q, cost, lam=20, max_iter=last, tol=1e-4)
    same = comp.n_iter <= last
    assert same.sum() == 8
    for ours, theirs in zip(comp, sooner, strict=True):
        np.testing.assert_array_equal(ours[same], theirs[same])


@each_method
def test_sinkhorn_stops_when_all_rows_converged(method, rng, backend):
    p, q, cost = _problem(rng)
    result = backend.sinkhorn(p, q, cost, lam=5, max_iter=10**9, tol=1e-3, method=method)
    assert result.converged.all()
