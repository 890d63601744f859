"""Exact optimal transport: the value is minimal and the transport plan valid."""

import numpy as np
import ot
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastemd
from tests.support import naive
from tests.support.operations import assert_close
from tests.support.strategies import problems, random_pair

ROUNDING = 1e-14


def assert_are_plans(plans, p, q):
    for plan, *masses in zip(plans, p, q, strict=True):
        assert naive.is_transport_plan(plan, *masses)


def assert_is_optimal(value, plan, p, q, cost):
    assert naive.is_transport_plan(plan, p, q)
    assert naive.is_optimal_transport(plan, cost)
    np.testing.assert_allclose(value, (plan * cost).sum(), rtol=ROUNDING)


def test_exact_emd_equals_emd_on_every_space(case, rng):
    p, q = random_pair(rng, (3, case.n_bins))
    value, plan = fastemd.exact_emd(p, q, case.space)
    assert_close(value, naive.emd(p, q, case.ground, 1), rtol=ROUNDING)
    assert_close(value, (plan * case.space.cost_matrix()).sum(axis=(-2, -1)))
    assert plan.shape == (3, case.n_bins, case.n_bins)
    assert_are_plans(plan, p, q)


@given(problems())
def test_exact_emd_of_space_agrees_with_emd_and_cost_matrix(problem):
    case, p, q = problem
    value, plan = fastemd.exact_emd(p, q, case.space)
    assert_close(value, fastemd.emd(p, q, case.space, rho=1), rtol=ROUNDING)
    assert_close(value, fastemd.exact_emd(p, q, case.space.cost_matrix())[0], rtol=ROUNDING)
    assert_are_plans(plan, p, q)


def test_exact_emd_of_space_does_not_move_common_mass(case, rng):
    p, q = random_pair(rng, (3, case.n_bins))
    plan = fastemd.exact_emd(p, q, case.space)[1]
    assert_close(np.einsum("...kk->...k", plan), np.minimum(p, q), rtol=ROUNDING)


def test_exact_emd_of_long_chain():
    n = 1500
    p, q = np.eye(n)[[0, 1]]
    p, q = (p + 1) / (n + 1), (q + 1) / (n + 1)
    assert_close(fastemd.exact_emd(p, q, fastemd.Chain(n))[0], 1 / (n + 1))


BIG = 1e10
BLOCKED = np.full((4, 4), 1e18)
np.fill_diagonal(BLOCKED, 0.0)
BLOCKED[0, 1] = 1.0
WIDE = [
    ([1 / 3] * 3, [1 / 3] * 3, [[6, 3, BIG], [1, 8, 0], [2, 5, 0]], 4 / 3),
    ([0.5, 0, 0.25, 0.25], [0, 0.5, 0.25, 0.25], fastemd.Chain(4, gaps=[1, 1, 1e12]), 0.5),
    ([0.5, 0, 0.25, 0.25], [0, 0.5, 0.25, 0.25], BLOCKED, 0.5),
    ([1.0, 1e-13], [1.0, 1e-13], [[1e-6, 1], [1, 1e12]], 2e-13 + (1 - 1e-13) * 1e-6),
    ([1.0, 2.0**-43], [1 + 2.0**-43, 0.0], [[0, 1], [1e12, 0]], 1e12 * 2.0**-43),
    ([1.0, 1e-300], [1.0, 1e-300], [[0, 1e300], [1e300, 1e200]], 1e-100),
    ([1.0, 1e-300], [1.0, 1e-300], [[0, 1], [1, 1e200]], 2e-300),
]  # fmt: skip


@pytest.mark.parametrize(("p", "q", "cost", "ref"), WIDE)
def test_exact_emd_with_costs_and_masses_of_very_different_size(p, q, cost, ref):
    value, plan = fastemd.exact_emd(p, q, cost)
    assert_close(value, ref, rtol=ROUNDING)
    assert naive.is_transport_plan(plan, p, q)


@st.composite
def wide_problems(draw):
    """Draw masses over 12 decades and costs over 20, some of them 0."""
    n = draw(st.integers(2, 6))

    def numbers(lowest, highest, count):
        powers = st.floats(lowest, highest).map(lambda exponent: 10.0**exponent)
        return np.array(draw(st.lists(powers | st.just(0.0), min_size=count, max_size=count)))

    p, q = numbers(-12, 0, n), numbers(-12, 0, n)
    for masses in (p, q):
        masses[draw(st.integers(0, n - 1))] = 1.0
    return p, q * (p.sum() / q.sum()), numbers(-10, 10, n * n).reshape(n, n)


@given(wide_problems())
def test_exact_emd_is_optimal_for_any_scale(problem):
    p, q, cost = problem
    value, plan = fastemd.exact_emd(p, q, cost)
    assert_is_optimal(value, plan, p, q, cost)
    if len(p) <= 3:
        ref = naive.exact_transport(p, q, cost)
        np.testing.assert_allclose(value, float(ref), rtol=ROUNDING)


@pytest.mark.parametrize("n_bins", [10, 40])
def test_exact_emd_is_optimal_for_many_bins(n_bins, rng):
    """Most costs are tied in the second problem, and most masses in the third.

    The integers of the last are beyond the range of float64.
    """
    p, q = rng.dirichlet(np.ones(n_bins), 2)
    tiny = np.append(p[:-1], 1e-300)
    shape = n_bins, n_bins
    even = np.full(n_bins, 1 / n_bins)
    for a, b, cost in [
        (p, q, 10.0 ** rng.uniform(-12, 12, shape)),
        (p, q, rng.integers(0, 3, shape).astype(float)),
        (even, even, rng.random(shape)),
        (tiny, q / q.sum() * tiny.sum(), rng.random(shape)),
    ]:
        assert_is_optimal(*fastemd.exact_emd(a, b, cost), a, b, cost)


@pytest.mark.parametrize("kind", ["space", "matrix"])
def test_exact_emd_scales_q_to_mass_of_p(kind, rng):
    """Rows of a float32 softmax sum to 1 only up to its rounding."""
    logits = rng.normal(size=(2, 50, 12)).astype(np.float32)
    p, q = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    assert p.dtype == q.dtype == np.float32
    chain = fastemd.Chain(12)
    value, plan = fastemd.exact_emd(p, q, chain if kind == "space" else chain.cost_matrix())
    assert_close(value, fastemd.emd(p, q, chain, rho=1), rtol=1e-5)
    p_mass, q_mass = (x.sum(axis=-1, dtype=np.float64) for x in (p, q))
    assert (abs(p_mass / q_mass - 1) > 1e-10).any()
    assert_are_plans(plan, p, q)


@pytest.mark.parametrize("cost", [fastemd.Chain(3), 1 - np.eye(3)], ids=["space", "matrix"])
def test_exact_emd_treats_tolerated_negative_masses_as_zero(cost):
    p, q = [[1.0, -1e-9, 0.0], [0.0, 0.0, -0.0]], [[-1e-9, 1.0, -1e-30], [0.0, -0.0, 0.0]]
    value, plan = fastemd.exact_emd(p, q, cost)
    np.testing.assert_array_equal(value, [1.0, 0.0])
    np.testing.assert_array_equal(plan[0], [[0, 1, 0], [0, 0, 0], [0, 0, 0]])
    assert not plan[1].any()


TINY = np.longdouble("1e-320")
EXTREMES = [
    ([1e-300, 1], [0, 1], [[0, 1e-300], [1e-300, 0]]),
    ([1e-200, 0], [0, 1e-200], [[0, 1e-200], [1e-200, 0]]),
    ([1e-200, 0], [0, 1e-200], fastemd.Chain(2, gaps=[1e-200])),
    ([1e300, 0], [0, 1e300], [[0, 1e300], [1, 1]]),
    ([1e300, 0], [0, 1e300], fastemd.Chain(2, gaps=[1e150])),
    ([5e-324, 0], [0, 5e-324], [[0, 0.5], [1, 1]]),
    (np.array([1, TINY]), np.array([TINY, 1]), np.array([[0, TINY], [1, 1]])),
]


@pytest.mark.parametrize(("p", "q", "cost"), EXTREMES)
def test_exact_emd_does_not_depend_on_error_state_of_numpy(p, q, cost):
    with np.errstate(all="ignore"):
        ref = fastemd.exact_emd(p, q, cost)
    with np.errstate(all="raise"):
        comp = fastemd.exact_emd(p, q, cost)
    with np.errstate(all="warn"):
        fastemd.exact_emd(p, q, cost)
    for ours, wanted in zip(comp, ref, strict=True):
        np.testing.assert_array_equal(ours, wanted)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_exact_emd_agrees_with_pot_in_any_units(scale, rng):
    p, q = rng.dirichlet(np.ones(15), (2, 4)) * scale
    p[:, 2] = 0.0
    p *= q.sum(axis=-1, keepdims=True) / p.sum(axis=-1, keepdims=True)
    cost = rng.random((15, 15)) / scale
    value, plan = fastemd.exact_emd(p, q, cost)
    assert_close(value, (plan * cost).sum(axis=(-2, -1)))
    # POT gets costs of order 1: with costs of 1e-12 it stops before the optimum.
    p, q, cost = p / scale, q / scale, cost * scale
    ref = [ot.emd2(a / a.sum(), b / b.sum(), cost) * a.sum() for a, b in zip(p, q, strict=True)]
    assert_close(value, ref, rtol=1e-9)


def test_exact_emd_broadcasts(rng):
    p, q = rng.dirichlet(np.ones(4), (2, 3))
    value, plan = fastemd.exact_emd(p[:, None].astype(np.float32), q, fastemd.Chain(4))
    assert value.shape == (3, 3)
    assert value.dtype == plan.dtype == np.float64
    assert plan.shape == (3, 3, 4, 4)
    assert_close(value, fastemd.emd(p[:, None], q, fastemd.Chain(4), 1), rtol=1e-6)
    assert fastemd.exact_emd(p[:0], q[0], fastemd.Chain(4))[1].shape == (0, 4, 4)


def test_exact_emd_of_zero_mass_is_zero():
    value, plan = fastemd.exact_emd(np.zeros(3), np.zeros(3), fastemd.Chain(3))
    assert value == 0.0
    assert not plan.any()


with np.errstate(over="ignore"):  # inf where long double is float64
    HUGE = np.diag([0, np.longdouble(1e300), 0]) ** 2
INVALID = [
    ({"cost": np.ones((3, 4))}, ValueError, r"cost: .*square.*\(3, 4\)"),
    ({"cost": np.ones(3)}, ValueError, r"cost: .*square.*\(3,\)"),
    ({"cost": np.empty((0, 0))}, ValueError, r"cost: .*square"),
    ({"cost": np.ones((4, 4))}, ValueError, r"p: the last axis must hold the 4 bins"),
    ({"cost": np.diag([0, 0, -1.0])}, ValueError, r"cost: a negative cost, -1.0 from bin 2 to 2"),
    ({"cost": np.diag([0, np.nan, 0])}, ValueError, r"cost: not finite, nan from bin 1 to 1"),
    ({"cost": np.diag([0, np.inf, 0])}, ValueError, r"cost: not finite, inf"),
    ({"cost": HUGE}, ValueError, r"cost: not finite, inf from bin 1 to 1; costs must be finite in"),
    ({"cost": "matrix"}, TypeError, r"cost: expected"),
    ({"cost": np.eye(3) * 1j}, TypeError, r"cost: expected"),
    ({"cost": np.ma.array(np.eye(3), mask=np.eye(3))}, TypeError, r"cost: .*masked"),
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
INVALID_FOR_SINKHORN = [
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
VALID = {"p": [1, 0, 0], "q": [0, 0.5, 0.5], "cost": 1 - np.eye(3)}


@pytest.mark.parametrize(("invalid", "error", "match"), INVALID)
def test_exact_emd_and_sinkhorn_reject_invalid_problems(invalid, error, match):
    with pytest.raises(error, match=match):
        fastemd.exact_emd(**VALID | invalid)
    with pytest.raises(error, match=match):
        fastemd.sinkhorn(**VALID | invalid, lam=1)


@pytest.mark.parametrize(("invalid", "error", "match"), INVALID_FOR_SINKHORN)
def test_sinkhorn_rejects_invalid_options(invalid, error, match):
    with pytest.raises(error, match=match):
        fastemd.sinkhorn(**VALID, **{"lam": 1} | invalid)
