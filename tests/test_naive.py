"""The oracles against one another, so that a mistake is not made twice in the same place."""

import itertools

import naive
import numpy as np
import pytest
from hypothesis import given
from operations import assert_close
from strategies import problems, rhos

SMALL = naive.Ground([2, 2, 4, 4, -1], [1.0, 1.5, 2.0, 3.0, 0.0], [0, 1, 3])
P, Q = np.array([0.7, 0.1, 0.2]), np.array([0.15, 0.25, 0.6])


@given(problems(), rhos)
def test_naive__dense_matrices_agree_with_exact_loops(problem, rho):
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
def test_naive__tree_formula_agrees_with_the_linear_programme(problem):
    case, p, q = problem
    cost = naive.cost_matrix(case.ground)
    ref = [naive.linear_programme(*row, cost) for row in zip(p, q, strict=True)]
    assert_close(naive.emd(p, q, case.ground, 1), ref, rtol=1e-9)


def test_exact_transport_agrees_with_every_vertex(rng):
    """Every vertex of a problem of 3 bins is a plan on five of the nine arcs."""
    sums = np.array(
        [np.kron(np.eye(3)[k], np.ones(3)) for k in range(3)]
        + [np.tile(row, 3) for row in np.eye(3)]
    )
    for _ in range(5):
        p, q = rng.multinomial(60, [0.2, 0.3, 0.5], 2)
        cost = rng.integers(0, 9, (3, 3))
        values = []
        for arcs in itertools.combinations(range(9), 5):
            columns = sums[:5, arcs]
            if abs(np.linalg.det(columns)) > 0.5:
                masses = np.linalg.solve(columns, np.concatenate([p, q])[:5])
                if masses.min() > -0.5:
                    values.append(masses @ cost.ravel()[list(arcs)])
        assert naive.exact_transport(p, q, cost) == round(min(values))


@pytest.mark.parametrize("rho", [1, 1.5, 2, 3, 3.7])
@pytest.mark.parametrize("project", [True, False])
def test_naive__derivatives_agree_with_differences(rho, project):
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


def test_naive__trees_changed_without_effect_keep_their_distances(rng):
    cost = naive.cost_matrix(SMALL)
    for same in (
        naive.reroot(SMALL, 0),
        naive.relabel(SMALL, [3, 0, 4, 1, 2]),
        naive.subdivide(SMALL, [1, 2, 3, 4, 1]),
    ):
        np.testing.assert_array_equal(naive.cost_matrix(same), cost)
