"""emd: the value."""

import math

import numpy as np
import pytest
from hypothesis import given

import fastemd
from tests.support import naive
from tests.support.operations import BY_NAME, assert_agrees, assert_close
from tests.support.strategies import chain_case, problems, random_pair, rhos, tree_case

pytestmark = pytest.mark.any_backend

EMD = BY_NAME["emd"]
STAR = fastemd.Tree.from_parents([-1, 0, 0, 0], [0, 1, 2, 4])
# Two pairs of leaves at distance 1 from their parents, which are at distance 3 from the root.
PAIRS = fastemd.Tree.from_parents([-1, 0, 0, 1, 1, 2, 2], [0, 3, 3, 1, 1, 1, 1])


def test_emd_agrees_with_naive(case, rho, rng):
    assert_agrees(EMD, random_pair(rng, (5, case.n_bins)), case, rho)


@given(problems(), rhos)
def test_emd_agrees_with_naive_on_drawn_problems(problem, rho):
    assert_agrees(EMD, (problem.p, problem.q), problem.case, rho)


def test_emd_float32_is_rounded_float64(case, rho, rng, backend):
    p, q = random_pair(rng, (5, case.n_bins), np.float32)
    comp = backend.emd(p, q, case.space, rho)
    assert comp.dtype == np.float32
    ref = naive.emd(p, q, case.ground, rho)
    # Half a unit in the last place, and a margin for values that round the other way.
    np.testing.assert_allclose(comp, ref, rtol=2.0**-24 * 1.01, atol=0)


# By hand: space, p, q, flows times lengths.
WORKED = [
    (fastemd.Chain(2), [1, 0], [0, 1], {1: 1, 1.5: 1, 2: 1, 3: 1}),
    (fastemd.Chain(3), [1, 0, 0], [0, 0, 1], {1: 2, 2: 2, 3.7: 2}),
    (fastemd.Chain(3), [4, 0, 0], [0, 0, 4], {1: 8, 1.5: 16, 2: 32, 3: 128}),
    (fastemd.Chain(3, [2, 0.5]), [1, 0, 1], [0, 2, 0], {1: 2.5, 2: 2.5}),
    (fastemd.Chain(4), [0.5, 0, 0, 0.5], [0.25] * 4, {1: 0.5, 2: 0.125}),
    (fastemd.Chain(4, [1, 10, 100]), [0, 3, 0, 0], [1, 0, 0, 2], {1: 221, 2: 441}),
    (STAR, [1, 0, 0], [0, 0, 1], {1: 5, 1.5: 5, 2: 5}),
    (STAR, [0.5, 0.5, 0], [0, 0, 1], {1: 5.5, 2: 4.75}),
    (PAIRS, [1, 0, 0, 0], [0, 1, 0, 0], {1: 2, 2: 2}),
    (PAIRS, [1, 0, 0, 0], [0, 0, 0, 1], {1: 8, 2: 8}),
    (PAIRS, [0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5], {1: 8, 2: 7}),
    (fastemd.Tree.from_parents([-1]), [3], [3], {1: 0, 2: 0}),
    (fastemd.Chain(1), [3], [3], {1: 0, 2: 0}),
]


@pytest.mark.parametrize(("space", "p", "q", "values"), WORKED)
def test_emd_worked_by_hand(space, p, q, values, backend):
    for rho, value in values.items():
        assert backend.emd(p, q, space, rho) == pytest.approx(value, rel=1e-15)


def test_emd_between_single_bins_is_ground_distance_for_every_rho(case, rho, backend):
    one_hot = np.eye(case.n_bins)
    comp = backend.emd(one_hot[:, None], one_hot[None], case.space, rho)
    assert_close(comp, naive.cost_matrix(case.ground), rtol=1e-13)


def test_emd_is_exactly_zero_if_p_equals_q(case, rho, rng, backend):
    p = rng.random((5, case.n_bins))  # masses whose sums round
    np.testing.assert_array_equal(backend.emd(p, p, case.space, rho), np.zeros(5))
    np.testing.assert_array_equal(backend.emd(0 * p, 0 * p, case.space, rho), np.zeros(5))


@pytest.mark.parametrize("mass", [2.0**-40, 255.0, 2.0**30])
def test_emd_of_histograms_of_any_mass(case, rho, rng, mass, backend):
    p, q = random_pair(rng, (4, case.n_bins))
    comp = backend.emd(p * mass, q * mass, case.space, rho)
    np.testing.assert_allclose(comp, mass**rho * naive.emd(p, q, case.ground, rho), rtol=1e-12)


def test_emd_of_tiny_flows_is_positive(small_case, backend):
    n = small_case.n_bins
    p, q = np.full(n, 1.0), np.full(n, 1.0)
    p[0], q[-1] = 1 + 2.0**-40, 1 + 2.0**-40
    for rho in (1, 1.5, 2, 3.7):
        ref = float(naive.exact_emd(p, q, small_case.ground, rho))
        assert backend.emd(p, q, small_case.space, rho) == pytest.approx(ref, rel=1e-12, abs=0)


@pytest.mark.parametrize("rho", [1.0, np.float32(1.5), np.int64(2), np.float64(3.7), 40])
def test_emd_accepts_rho_of_any_real_type(small_case, rho, rng):
    p, q = random_pair(rng, (3, small_case.n_bins))
    assert_agrees(EMD, (p, q), small_case, rho)


@pytest.mark.parametrize("rho", [1 + 2.0**-52, 2 - 2.0**-52, 2 + 2.0**-51, 1.0001, 1.9999])
def test_emd_is_continuous_in_rho(small_case, rho, rng):
    p, q = random_pair(rng, (3, small_case.n_bins))
    assert_agrees(EMD, (p, q), small_case, rho)


@pytest.mark.parametrize("name", ["emd", "emd_grad", "emd_value_and_grad"])
@pytest.mark.parametrize("invalid", [0, 3, -1])
@pytest.mark.parametrize("argument", [0, 1])
def test_emd_without_validation_is_nan_in_row_of_nan_only(
    name, invalid, argument, small_case, rho, rng
):
    arrays = random_pair(rng, (40, small_case.n_bins))
    clean = BY_NAME[name](arrays, small_case.space, rho)
    arrays[argument][17, invalid] = np.nan
    for comp, ref in zip(
        BY_NAME[name](arrays, small_case.space, rho, validate=False), clean, strict=True
    ):
        assert np.isnan(comp[17]).all()
        np.testing.assert_array_equal(np.delete(comp, 17, 0), np.delete(ref, 17, 0))


def test_emd_without_validation_evaluates_formula_for_any_values(case, rho, rng):
    p, q = (rng.integers(-9, 10, (2, 5, case.n_bins)) / 8).astype(float)
    q[:, 0] += (p - q).sum(axis=-1)
    assert_agrees(EMD, (p, q), case, rho, validate=False)


def test_emd_of_one_row_is_numpy_scalar(small_case, rng, backend):
    for dtype in (np.float64, np.float32):
        p, q = random_pair(rng, (small_case.n_bins,), dtype)
        comp = backend.emd(p, q, small_case.space, 2)
        assert type(comp) is dtype
        assert math.isclose(comp, naive.emd(p, q, small_case.ground, 2), rel_tol=1e-7)


@pytest.mark.parametrize("name", ["emd", "emd_grad", "emd_hessian", "emd_hessian_diag", "emd_hvp"])
@pytest.mark.parametrize("kind", ["chain", "tree"])
def test_functions_are_finite_if_power_overflows_on_edge_of_length_0(name, kind):
    """3^999 and 2^998 exceed float64; on an edge of length 0 the cost is 0."""
    if kind == "chain":
        case = chain_case(3, [0.0, 1.0])
    else:  # bins on inner nodes have edges of length 0
        case = tree_case(naive.Ground([1, 3, 3, -1], [0.0, 1.0, 1.0, 0.0], [0, 1, 2]))
    arrays = [np.array(x) for x in ([3.0, 0.0, 1.0], [0.0, 3.0, 1.0], [1.0, 2.0, -1.0])]
    operation = BY_NAME[name]
    arrays = arrays[: len(operation.arrays)]
    for rho in (1000, 2.5):
        assert_agrees(operation, arrays, case, rho)
        assert all(np.isfinite(x).all() for x in operation(arrays, case.space, rho))
