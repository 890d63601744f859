"""emd_grad and emd_value_and_grad."""

import numpy as np
import pytest
from hypothesis import given

import fastemd
from tests.support import naive
from tests.support.operations import BY_NAME, assert_agrees, assert_close
from tests.support.strategies import problems, random_pair, rhos

pytestmark = pytest.mark.any_backend

GRAD, BOTH = BY_NAME["emd_grad"], BY_NAME["emd_value_and_grad"]
both = pytest.mark.parametrize("operation", [GRAD, BOTH], ids=lambda operation: operation.name)
project = pytest.mark.parametrize("project", [True, False])


@both
@project
def test_emd_grad_agrees_with_naive(operation, case, rho, project, rng):
    assert_agrees(operation, random_pair(rng, (5, case.n_bins)), case, rho, project=project)


@both
@project
@given(problem=problems(), rho=rhos)
def test_emd_grad_agrees_with_naive_on_drawn_problems(operation, project, problem, rho):
    assert_agrees(operation, (problem.p, problem.q), problem.case, rho, project=project)


@both
def test_emd_grad_float32_is_rounded_float64(operation, case, rho, rng):
    arrays = random_pair(rng, (5, case.n_bins), np.float32)
    assert all(result.dtype == np.float32 for result in operation(arrays, case.space, rho))
    assert_agrees(operation, arrays, case, rho, rtol=2.0**-24 * 1.01)


@given(problems(), rhos)
def test_emd_grad_projects_by_default(backend, problem, rho):
    case, p, q = problem
    raw = backend.emd_grad(p, q, case.space, rho, project=False)
    comp = backend.emd_grad(p, q, case.space, rho)
    size = naive.size("emd_grad", (p, q), case.ground, rho)
    assert_close(comp, raw - raw.mean(axis=-1, keepdims=True), size)
    np.testing.assert_array_equal(comp, backend.emd_grad(p, q, case.space, rho, project=True))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_emd_grad_rows_sum_to_zero(case, rho, dtype, rng, backend):
    p, q = random_pair(rng, (6, case.n_bins), dtype)
    comp = backend.emd_grad(p, q, case.space, rho).astype(np.float64)
    size = naive.size("emd_grad", (p, q), case.ground, rho)
    # Every entry is rounded once to the type, after arithmetic in float64.
    bound = case.n_bins * size * (np.finfo(dtype).eps + 1e-14)
    assert np.abs(comp.sum(axis=-1)).max() <= bound


def test_emd_grad_is_derivative_of_emd(small_case, rho, rng, backend):
    """Along every bin, centred to conserve mass, without flows near a kink."""
    space, n = small_case.space, small_case.n_bins
    p, q = _pair_with_flows_off_zero(rng, small_case)

    def value(x):
        return backend.emd(x, q, space, rho)

    ref = [naive.central_difference(value, p, direction, 1e-6) for direction in np.eye(n) - 1 / n]
    assert_close(backend.emd_grad(p, q, space, rho), ref, 1.0, rtol=1e-7)


def _pair_with_flows_off_zero(rng, case):
    while True:
        p, q = rng.dirichlet(np.ones(case.n_bins), 2) * 0.9 + 0.1 / case.n_bins
        if np.abs(naive.emd_flow(p, q, case.ground)).min() > 0.02:
            return p, q


def test_emd_grad_in_q_has_opposite_sign(case, rho, rng, backend):
    p, q = random_pair(rng, (5, case.n_bins))
    np.testing.assert_array_equal(
        backend.emd_grad(q, p, case.space, rho), -backend.emd_grad(p, q, case.space, rho)
    )


@project
def test_emd_grad_is_exactly_zero_if_p_equals_q(case, rho, project, rng, backend):
    """The subgradient has sgn(0) = 0, not rho w at rho = 1 or NaN below 2."""
    p = rng.random((5, case.n_bins))
    comp = backend.emd_grad(p, p, case.space, rho, project=project)
    np.testing.assert_array_equal(comp, np.zeros((5, case.n_bins)))


def test_emd_grad_of_edges_without_flow_is_zero(backend):
    space = fastemd.Chain(5)
    p, q = [0.5, 0.0, 0.0, 0.0, 0.5], [0.0, 0.5, 0.0, 0.5, 0.0]  # flows .5, 0, 0, -.5
    comp = backend.emd_grad(p, q, space, 1, project=False)
    np.testing.assert_array_equal(comp, [0.0, -1.0, -1.0, -1.0, 0.0])


# By hand, raw: space, p, q, rho, gradient.
STAR = fastemd.Tree.from_parents([-1, 0, 0, 0], [0, 1, 2, 4])
WORKED = [
    (fastemd.Chain(2), [1, 0], [0, 1], 1, [1, 0]),
    (fastemd.Chain(3), [2, 0, 0], [0, 0, 2], 2, [8, 4, 0]),
    (fastemd.Chain(3, [3, 5]), [0, 0, 1], [1, 0, 0], 2, [-16, -10, 0]),
    (STAR, [1, 0, 0], [0, 0, 1], 1, [1, 0, -4]),
    (STAR, [0.5, 0.5, 0], [0, 0, 1], 2, [1, 2, -8]),
]


@pytest.mark.parametrize(("space", "p", "q", "rho", "raw"), WORKED)
def test_emd_grad_worked_by_hand(space, p, q, rho, raw, backend):
    comp = backend.emd_grad(p, q, space, rho, project=False)
    np.testing.assert_allclose(comp, raw, rtol=1e-15)
    comp = backend.emd_grad(p, q, space, rho)
    np.testing.assert_allclose(comp, raw - np.mean(raw), rtol=1e-14)


@pytest.mark.parametrize("mass", [1e-303, 1.0, 1e300])
def test_emd_grad_signs_do_not_depend_on_scale(mass, backend):
    """rho = 1, a long edge."""
    value, grad = backend.emd_value_and_grad([mass, 0], [0, mass], fastemd.Chain(2, [1e6]), 1)
    np.testing.assert_allclose(value, 1e6 * mass, rtol=1e-14)
    np.testing.assert_array_equal(grad, [5e5, -5e5])


@pytest.mark.parametrize("n_bins", [1, 2, 30])
def test_emd_grad_projected_does_not_depend_on_edge_above_all_bins(n_bins, rng, backend):
    star = [-1] + [0] * n_bins
    stem = [-1, 0] + [1] * n_bins
    p, q = random_pair(rng, (4, n_bins))
    for rho in (1, 2):
        ref = backend.emd_grad(p, q, fastemd.Tree.from_parents(star), rho)
        comp = backend.emd_grad(p, q, fastemd.Tree.from_parents(stem), rho)
        assert_close(comp, ref, 1.0)


def test_emd_value_and_grad_equals_emd_and_emd_grad(case, rho, rng, backend):
    p, q = random_pair(rng, (5, case.n_bins))
    result = backend.emd_value_and_grad(p, q, case.space, rho)
    assert isinstance(result, tuple)
    value, grad = result
    np.testing.assert_allclose(value, backend.emd(p, q, case.space, rho), rtol=1e-14)
    size = naive.size("emd_grad", (p, q), case.ground, rho)
    assert_close(grad, backend.emd_grad(p, q, case.space, rho), size, rtol=1e-14)


def test_emd_grad_descent_step_lowers_value(case, rng, backend):
    """A step along the negative gradient lowers the value."""
    p, q = random_pair(rng, (5, case.n_bins))
    value, grad = backend.emd_value_and_grad(p, q, case.space, 2)
    moved = p - 1e-7 * grad
    lower = backend.emd(moved, q, case.space, 2, validate=False)
    assert (lower <= value * (1 + 1e-14)).all()
    changed = np.abs(grad).max(axis=-1) > 1e-3
    assert (lower[changed] < value[changed]).all()
