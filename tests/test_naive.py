"""The oracles agree with one another."""

import numpy as np
import pytest
from hypothesis import given

from tests.support import naive
from tests.support.operations import assert_close
from tests.support.strategies import problems, rhos

SMALL = naive.Ground([2, 2, 4, 4, -1], [1.0, 1.5, 2.0, 3.0, 0.0], [0, 1, 3])
P, Q = np.array([0.7, 0.1, 0.2]), np.array([0.15, 0.25, 0.6])


@given(problems(), rhos)
def test_naive_dense_matrices_agree_with_exact_loops(problem, rho):
    case, p, q = problem
    value, raw = (
        np.array(
            [f(*row, case.ground, rho, **kw) for row in zip(p, q, strict=True)], dtype=np.float64
        )
        for f, kw in [(naive.exact_emd, {}), (naive.exact_grad, {"project": False})]
    )
    size = naive.size("emd", (p, q), case.ground, rho)
    assert_close(naive.emd(p, q, case.ground, rho), value, size)
    assert_close(naive.emd_grad(p, q, case.ground, rho, project=False), raw, size)
    assert_close(
        naive.emd_grad(p, q, case.ground, rho), raw - raw.mean(axis=-1, keepdims=True), size
    )


@given(problems(max_nodes=6, n_rows=2))
def test_naive_tree_formula_agrees_with_linear_programme(problem):
    case, p, q = problem
    cost = naive.cost_matrix(case.ground)
    ref = [naive.linear_programme(*row, cost) for row in zip(p, q, strict=True)]
    assert_close(naive.emd(p, q, case.ground, 1), ref, rtol=1e-9)


@pytest.mark.parametrize("n_bins", [1, 2, 3, 4])
def test_exact_transport_agrees_with_linear_programme(n_bins, rng):
    p, q = rng.multinomial(60, np.ones(n_bins) / n_bins, 2)
    cost = rng.integers(0, 9, (n_bins, n_bins))
    ref = naive.linear_programme(p, q, cost)
    assert_close(float(naive.exact_transport(p, q, cost)), ref, rtol=1e-9)


def test_is_optimal_transport_accepts_cheapest_vertices_only(rng):
    """Costs have few values, so that some problems have several optimal vertices."""
    n_optimal = []
    for _ in range(20):
        p, q = rng.multinomial(60, [0.2, 0.3, 0.5], 2)
        cost = rng.integers(0, 4, (3, 3))
        least = naive.exact_transport(p, q, cost)
        optimal = 0
        for vertex in naive.transport_vertices(p, q):
            plan = np.zeros((3, 3))
            for arc, moved in vertex.items():
                plan[arc] = moved
            assert naive.is_transport_plan(plan, p, q)
            is_cheapest = naive.transport_cost(vertex, cost) == least
            assert naive.is_optimal_transport(plan, cost) == is_cheapest
            optimal += is_cheapest
        n_optimal.append(optimal)
    assert max(n_optimal) > 1


def test_is_optimal_transport_compares_exactly():
    """The sums of both pairs of costs differ by one unit in the last place."""
    one = np.nextafter(1.0, 2.0)
    plan = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert naive.is_optimal_transport(plan, [[1.0, 1e-300], [2.0, 1.0]])
    assert naive.is_optimal_transport(plan, [[one, 1.0], [one, 1.0]])
    assert not naive.is_optimal_transport(plan, [[one, 1.0], [1.0, 1.0]])
    assert not naive.is_optimal_transport(plan, [[1e300, 1e300], [0.0, 1e-300]])


@pytest.mark.parametrize("change", [2.0**-50, -(2.0**-50), -0.25])
def test_is_transport_plan_rejects_other_masses(change):
    p, q = [0.75, 1.25], [2.0, 2.0]
    plan = np.array([[0.75, 0.0], [0.25, 1.0]])
    assert naive.is_transport_plan(plan, p, q)
    assert not naive.is_transport_plan(plan + np.array([[0, 0], [change, 0]]), p, q)
    exchange = abs(change) * np.array([[1, -1], [-1, 1]])
    assert naive.is_transport_plan(plan - exchange, p, q)
    assert not naive.is_transport_plan(plan + exchange, p, q)  # plan[0, 1] is negative


@pytest.mark.parametrize("rho", [1, 1.5, 2, 3, 3.7])
@pytest.mark.parametrize("project", [True, False])
def test_naive_derivatives_agree_with_finite_differences(rho, project):
    for k in range(3):
        direction = np.eye(3)[k] - project / 3

        def value(x):
            return naive.emd(x, Q, SMALL, rho)

        def slope(x):
            return naive.emd_grad(x, Q, SMALL, rho, project)

        grad = naive.central_difference(value, P, direction, 1e-6)
        assert_close(naive.emd_grad(P, Q, SMALL, rho, project)[k], grad, 1.0, rtol=1e-8)
        row = naive.central_difference(slope, P, direction, 1e-6)
        assert_close(naive.emd_hessian(P, Q, SMALL, rho, project)[k], row, 1.0, rtol=1e-8)
        assert_close(naive.emd_hvp(P, Q, direction, SMALL, rho, project), row, 1.0, rtol=1e-8)


def test_naive_tree_transformations_preserve_distances(rng):
    cost = naive.cost_matrix(SMALL)
    for same in (
        naive.reroot(SMALL, 0),
        naive.relabel(SMALL, [3, 0, 4, 1, 2]),
        naive.subdivide(SMALL, [1, 2, 3, 4, 1]),
    ):
        np.testing.assert_array_equal(naive.cost_matrix(same), cost)
