"""emd_hessian, emd_hessian_diag and emd_hvp."""

import numpy as np
import pytest
from hypothesis import given

import fastemd
from tests.support import naive
from tests.support.operations import BY_NAME, assert_agrees, assert_close
from tests.support.strategies import problems, random_pair, rhos

pytestmark = pytest.mark.any_backend

HVP = BY_NAME["emd_hvp"]
SECOND_ORDER = [BY_NAME["emd_hessian"], BY_NAME["emd_hessian_diag"], HVP]
each = pytest.mark.parametrize("operation", SECOND_ORDER, ids=lambda operation: operation.name)
project = pytest.mark.parametrize("project", [True, False])


@each
@project
def test_hessians_agree_with_naive(operation, case, rho, project, rng):
    arrays = operation.draw(rng, (3,), case.n_bins)
    assert_agrees(operation, arrays, case, rho, project=project)


@each
@project
@given(problem=problems(), rho=rhos)
def test_hessians_agree_with_naive_on_drawn_problems(operation, project, problem, rho):
    case, p, q = problem
    v = np.cos(1.0 + np.arange(p.size)).reshape(p.shape)
    assert_agrees(operation, [p, q, v][: len(operation.arrays)], case, rho, project=project)


@each
def test_hessians_float32_is_rounded_float64(operation, case, rho, rng):
    arrays = operation.draw(rng, (3,), case.n_bins, np.float32)
    assert operation(arrays, case.space, rho)[0].dtype == np.float32
    assert_agrees(operation, arrays, case, rho, rtol=2.0**-24 * 1.01)


def _pair_with_flows_off_zero(rng, case):
    while True:
        p, q = rng.dirichlet(np.ones(case.n_bins), 2) * 0.9 + 0.1 / case.n_bins
        if np.abs(naive.emd_flow(p, q, case.ground)).min() > 0.02:
            return p, q


@pytest.mark.parametrize("rho", [1.5, 2, 2.5, 3, 3.7])
@project
def test_emd_hessian_is_derivative_of_emd_grad(small_case, rho, project, rng, backend):
    space, n = small_case.space, small_case.n_bins
    p, q = _pair_with_flows_off_zero(rng, small_case)

    def slope(x):
        # Unprojected steps change the mass, which validation would reject.
        return backend.emd_grad(x, q, space, rho, project=project, validate=False)

    ref = [
        naive.central_difference(slope, p, direction, 1e-6) for direction in np.eye(n) - project / n
    ]
    comp = backend.emd_hessian(p, q, space, rho, project=project)
    assert_close(comp, ref, 1.0, rtol=1e-6)


@project
@given(problem=problems(), rho=rhos)
def test_emd_hessian_agrees_with_diagonal_and_products(backend, project, problem, rho):
    case, p, q = problem
    hessian = backend.emd_hessian(p, q, case.space, rho, project=project)
    size = naive.size("emd_hessian", (p, q), case.ground, rho)
    diagonal = backend.emd_hessian_diag(p, q, case.space, rho, project=project)
    assert_close(diagonal, np.einsum("bkk->bk", hessian), size)
    for v in (q, p[::-1], np.sin(1.0 + np.arange(p.size)).reshape(p.shape)):
        comp = backend.emd_hvp(p, q, v, case.space, rho, project=project)
        ref = np.einsum("bkl,bl->bk", hessian, v)
        assert_close(comp, ref, size * np.abs(v).sum(axis=-1).max())


@project
@given(problem=problems(), rho=rhos)
def test_emd_hessian_is_symmetric_and_positive_semidefinite(backend, project, problem, rho):
    case, p, q = problem
    hessian = backend.emd_hessian(p, q, case.space, rho, project=project)
    size = naive.size("emd_hessian", (p, q), case.ground, rho)
    assert_close(hessian, hessian.swapaxes(-1, -2), size, rtol=1e-14)
    assert np.linalg.eigvalsh(hessian).min() >= -1e-12 * size


def test_emd_hessian_projected_conserves_mass(case, rho, rng, backend):
    p, q = random_pair(rng, (3, case.n_bins))
    size = case.n_bins * naive.size("emd_hessian", (p, q), case.ground, rho)
    hessian = backend.emd_hessian(p, q, case.space, rho)
    ones = np.ones(case.n_bins)
    for vanishing in (
        hessian.sum(axis=-1),
        hessian.sum(axis=-2),
        backend.emd_hvp(p, q, ones, case.space, rho),
        backend.emd_hvp(p, q, p, case.space, rho).sum(axis=-1),
    ):
        assert np.abs(vanishing).max() <= 1e-13 * size


@each
@project
def test_hessians_vanish_at_rho_1(operation, case, project, rng):
    arrays = operation.draw(rng, (3,), case.n_bins)
    comp = operation(arrays, case.space, 1, project=project)[0]
    np.testing.assert_array_equal(comp, np.zeros_like(comp))


@each
@pytest.mark.parametrize("rho", [1.5, 2.5, 3.7])
def test_hessians_of_edges_without_flow_are_zero(operation, case, rho, rng):
    """For rho < 2 the curvature is 0 by convention, not infinite."""
    arrays = operation.draw(rng, (3,), case.n_bins)
    arrays[1] = arrays[0]
    comp = operation(arrays, case.space, rho)[0]
    np.testing.assert_array_equal(comp, np.zeros_like(comp))


@pytest.mark.parametrize(
    ("flow", "curvature"),
    [
        (0.0, 0.0),
        (5e-324, 0.0),  # subnormal flows are treated as 0
        (2e-308, 0.0),
        (4.0**-511, 0.75 * 2.0**511),
    ],
)
def test_emd_hessian_of_vanishing_flows_is_finite(flow, curvature, backend):
    p, q, space = [flow, 0.0], [0.0, flow], fastemd.Chain(2)
    raw = np.array([[curvature, 0.0], [0.0, 0.0]])
    comp = backend.emd_hessian(p, q, space, 1.5, project=False)
    np.testing.assert_allclose(comp, raw, rtol=1e-14)
    comp = backend.emd_hessian(p, q, space, 1.5)
    np.testing.assert_allclose(
        comp, curvature * np.array([[0.25, -0.25], [-0.25, 0.25]]), rtol=1e-14
    )


def test_emd_hessian_is_constant_at_rho_2(case, rng, backend):
    p, q = random_pair(rng, (3, case.n_bins))
    comp = backend.emd_hessian(p, q, case.space, 2)
    ref = naive.emd_hessian(p[0], p[0], case.ground, 2)
    assert_close(comp, np.stack([ref] * 3), naive.size("emd_hessian", (p, q), case.ground, 2))


def test_emd_hessian_of_chain_is_equation_12(backend):
    """H[k, l] = sum_i h_i (step(i - k) - i / N) (step(i - l) - i / N), i counted from 1."""
    n = 6
    p, q = [0.5, 0.0, 0.25, 0.25, 0.0, 0.0], [0.0, 0.0, 0.125, 0.0, 0.125, 0.75]
    ref = np.zeros((n, n))
    for i in range(1, n):
        flow = sum(p[:i]) - sum(q[:i])
        rows = np.array([(k < i) - i / n for k in range(n)])
        ref += 3.7 * 2.7 * abs(flow) ** 1.7 * np.outer(rows, rows)
    assert_close(backend.emd_hessian(p, q, fastemd.Chain(n), 3.7), ref, rtol=1e-14)


def test_emd_hvp_is_linear_in_v_and_accepts_any_v(case, rho, rng, backend):
    p, q, v = HVP.draw(rng, (3,), case.n_bins)
    size = naive.size("emd_hvp", (p, q, v), case.ground, rho)
    comp = backend.emd_hvp(p, q, -3 * v + 1e3, case.space, rho)
    ref = -3 * backend.emd_hvp(p, q, v, case.space, rho)
    assert_close(comp, ref, (size + 1.0) * 1e3 * case.n_bins)  # a constant has no effect


@pytest.mark.parametrize("operation", SECOND_ORDER, ids=lambda operation: operation.name)
@pytest.mark.parametrize("rho", [1.5, 3.7])
def test_hessians_without_validation_are_nan_in_row_of_nan_only(operation, small_case, rho, rng):
    arrays = operation.draw(rng, (40,), small_case.n_bins)
    clean = operation(arrays, small_case.space, rho)[0]
    arrays[0][17, 2] = np.nan
    comp = operation(arrays, small_case.space, rho, validate=False)[0]
    assert np.isnan(comp[17]).all()
    np.testing.assert_array_equal(np.delete(comp, 17, 0), np.delete(clean, 17, 0))


def test_hessians_are_symmetric_in_p_and_q(case, rho, rng, backend):
    p, q, v = HVP.draw(rng, (3,), case.n_bins)
    for name, rest in (("emd_hessian", ()), ("emd_hessian_diag", ()), ("emd_hvp", (v,))):
        function = getattr(backend, name)
        np.testing.assert_array_equal(
            function(p, q, *rest, case.space, rho), function(q, p, *rest, case.space, rho)
        )
