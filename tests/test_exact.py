"""The linear programme: the value is the least, the plan is a plan."""

import naive
import numpy as np
import ot
import pytest
from operations import assert_close
from strategies import random_pair

import fastemd


def test_exact_emd__is_the_distance_of_every_space(case, rng):
    if case.n_bins > 60:
        pytest.skip("slow on purpose")
    p, q = random_pair(rng, (3, case.n_bins))
    value, plan = fastemd.exact_emd(p, q, case.space)
    assert_close(value, naive.emd(p, q, case.ground, 1), rtol=1e-9)
    assert plan.shape == (3, case.n_bins, case.n_bins)
    np.testing.assert_allclose(plan.sum(axis=-1), p, atol=1e-12)
    np.testing.assert_allclose(plan.sum(axis=-2), q, atol=1e-12)
    assert (plan >= 0).all()


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_exact_emd__agrees_with_pot_whatever_the_units(scale, rng):
    p, q = rng.dirichlet(np.ones(15), (2, 4)) * scale
    p[:, 2] = 0.0
    p *= q.sum(axis=-1, keepdims=True) / p.sum(axis=-1, keepdims=True)
    cost = rng.random((15, 15)) / scale
    value, plan = fastemd.exact_emd(p, q, cost)
    assert_close(value, (plan * cost).sum(axis=(-2, -1)))
    # In POT's own units: with costs of 1e-12 it stops before the optimum.
    p, q, cost = p / scale, q / scale, cost * scale
    ref = [ot.emd2(a / a.sum(), b / b.sum(), cost) * a.sum() for a, b in zip(p, q, strict=True)]
    assert_close(value, ref, rtol=1e-9)


def test_exact_emd__broadcasts(rng):
    p, q = rng.dirichlet(np.ones(4), (2, 3))
    value, plan = fastemd.exact_emd(p[:, None].astype(np.float32), q, fastemd.Chain(4))
    assert value.shape == (3, 3)
    assert value.dtype == plan.dtype == np.float64
    assert plan.shape == (3, 3, 4, 4)
    assert_close(value, fastemd.emd(p[:, None], q, fastemd.Chain(4), 1), rtol=1e-6)
    assert fastemd.exact_emd(p[:0], q[0], fastemd.Chain(4))[1].shape == (0, 4, 4)


def test_exact_emd__no_mass_needs_no_transport():
    value, plan = fastemd.exact_emd(np.zeros(3), np.zeros(3), fastemd.Chain(3))
    assert value == 0.0
    assert not plan.any()


BAD = [
    ({"cost": np.ones((3, 4))}, ValueError, r"cost: .*square.*\(3, 4\)"),
    ({"cost": np.ones(3)}, ValueError, r"cost: .*square.*\(3,\)"),
    ({"cost": np.empty((0, 0))}, ValueError, r"cost: .*square"),
    ({"cost": np.ones((4, 4))}, ValueError, r"p: the last axis must hold the 4 bins"),
    ({"cost": np.diag([0, 0, -1.0])}, ValueError, r"cost: a negative cost, -1.0 from bin 2 to 2"),
    ({"cost": np.diag([0, np.nan, 0])}, ValueError, r"cost: not finite, nan from bin 1 to 1"),
    ({"cost": np.diag([0, np.inf, 0])}, ValueError, r"cost: not finite, inf"),
    ({"cost": "matrix"}, TypeError, r"cost: expected"),
    ({"cost": np.eye(3) * 1j}, TypeError, r"cost: expected"),
    ({"cost": np.ma.array(np.eye(3))}, TypeError, r"cost: .*masked"),
    ({"cost": [[1, 2], [3]]}, TypeError, r"cost: expected"),
    ({"p": [1, 0]}, ValueError, r"p: the last axis"),
    ({"q": np.ones((2, 3)), "p": np.ones((4, 3))}, ValueError, r"do not broadcast"),
    ({"p": [[1, 0, 0], [1.5, -0.5, 0]]}, ValueError, r"p: row 1 has a negative mass, -0.5"),
    ({"q": [0, np.nan, 1]}, ValueError, r"q is not finite, nan at bin 1"),
    ({"q": [0, 0, 1.1]}, ValueError, r"unequal masses"),
    ({"p": [1e308] * 3, "q": [1e308] * 3}, ValueError, r"beyond the range"),
    ({"p": [1e308] * 3, "q": [1e308, 0, 0]}, ValueError, r"beyond the range"),
    ({"p": [np.inf, 0, 0]}, ValueError, r"p is not finite, inf at bin 0"),
    ({"p": None}, TypeError, r"p: expected an array"),
]
BAD_FOR_SINKHORN = [
    ({"lam": 0}, ValueError, r"lam: expected a finite number > 0, got 0"),
    ({"lam": 10**400}, ValueError, r"lam: expected a finite number > 0, got inf"),
    ({"lam": -1.0}, ValueError, r"lam: .*-1.0"),
    ({"lam": np.inf}, ValueError, r"lam: .*inf"),
    ({"lam": np.nan}, ValueError, r"lam: .*nan"),
    ({"lam": "1"}, TypeError, r"lam: expected a number"),
    ({"lam": True}, TypeError, r"lam: expected a number"),
    ({"max_iter": 0}, ValueError, r"max_iter: expected at least 1, got 0"),
    ({"max_iter": 1.5}, TypeError, r"max_iter: expected an integer"),
    ({"tol": -1e-3}, ValueError, r"tol: expected a finite number >= 0"),
    ({"tol": np.nan}, ValueError, r"tol: expected a finite number >= 0"),
    ({"tol": None}, TypeError, r"tol: expected a number"),
    ({"method": "fast"}, ValueError, r"method: expected one of 'paper', 'log', got 'fast'"),
    ({"method": 1}, TypeError, r"method: expected one of"),
    ({"dtype": np.int64}, TypeError, r"dtype: expected float32 or float64"),
    ({"dtype": "nonsense"}, TypeError, r"dtype: expected float32 or float64"),
]
GOOD = {"p": [1, 0, 0], "q": [0, 0.5, 0.5], "cost": 1 - np.eye(3)}


@pytest.mark.parametrize(("bad", "error", "match"), BAD)
def test_references__refuse_bad_problems(bad, error, match):
    with pytest.raises(error, match=match):
        fastemd.exact_emd(**GOOD | bad)
    with pytest.raises(error, match=match):
        fastemd.sinkhorn(**GOOD | bad, lam=1)


@pytest.mark.parametrize(("bad", "error", "match"), BAD_FOR_SINKHORN)
def test_sinkhorn__refuses_bad_options(bad, error, match):
    with pytest.raises(error, match=match):
        fastemd.sinkhorn(**GOOD, **{"lam": 1} | bad)
