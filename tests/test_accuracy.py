"""The measured error against exact rational arithmetic."""

from fractions import Fraction

import numpy as np
import pytest

import fastemd
from tests.support import naive
from tests.support.device import SIMULATED, hardware
from tests.support.operations import assert_close
from tests.support.strategies import chain_case, random_ground, random_pair, tree_case

pytestmark = pytest.mark.any_backend

SEEDS = range(40 if SIMULATED else 200)
# float32: 1e-6 is documented, but float64 inside leaves only the rounding of the result.
ONE_ROUNDING = 2.0**-24 * 1.001
RHO = [1, 2, 3, 1.5]  # integers are exact, 1.5 is computed to 50 digits


def _problem(seed):
    """Return a chain or a tree of up to 60 bins and the power, for a seed."""
    rng = np.random.default_rng(seed)
    n_bins = int(rng.integers(2, 61))
    if seed % 2:
        case = chain_case(n_bins, rng.exponential(size=n_bins - 1).tolist())
    else:
        case = tree_case(random_ground(rng, 2 * n_bins, n_bins))
    return rng, case, RHO[seed // 2 % len(RHO)]


def _dirichlet(rng, case, rho):
    """Return masses with all digits, whose sums round. At rho = 1, where a flow's sign matters, as
    well: no random flow is as small as the rounding errors, which is asserted."""
    p, q = rng.dirichlet(np.full(case.n_bins, 0.5), 2)
    flows = [abs(x) for x in naive.exact_flow(p, q, case.ground).values()]
    # The flow of edges above all bins or none is the rounding error of the two sums.
    assert all(x > Fraction(10) ** -9 for x in flows if x > Fraction(10) ** -15)
    return p, q


def _relative(comp, exact):
    """Return the largest error of `comp` relative to the largest exact entry."""
    errors = [abs(Fraction(float(c)) - e) for c, e in zip(comp, exact, strict=True)]
    largest = max(abs(e) for e in exact)
    return float(max(errors) / largest) if largest else float(max(errors))


@pytest.mark.parametrize("seed", SEEDS)
def test_emd_float64_has_relative_error_below_1e_13(seed, backend):
    rng, case, rho = _problem(seed)
    for p, q in (random_pair(rng, (case.n_bins,)), _dirichlet(rng, case, rho)):
        comp = backend.emd(p, q, case.space, rho)
        assert _relative([comp], [naive.exact_emd(p, q, case.ground, rho)]) <= 1e-13


def _float32_pair(rng, n_bins):
    """Return masses of 24 binary digits, in other bins for q: no difference and no sum of them
    fit into float32, but all are exact in float64."""
    p = (rng.integers(2**24, size=n_bins) * rng.choice([1.0, 2.0**-6], n_bins)).astype(np.float32)
    return p, rng.permutation(p)


@pytest.mark.parametrize("seed", SEEDS)
def test_emd_float32_is_exact_to_last_digit(seed, backend):
    rng, case, rho = _problem(seed)
    p, q = _float32_pair(rng, case.n_bins)
    comp = backend.emd(p, q, case.space, rho)
    assert _relative([comp], [naive.exact_emd(p, q, case.ground, rho)]) <= ONE_ROUNDING


@pytest.mark.parametrize("seed", SEEDS)
def test_emd_grad_float64_has_relative_error_below_1e_12(seed, backend):
    rng, case, rho = _problem(seed)
    for p, q in (random_pair(rng, (case.n_bins,)), _dirichlet(rng, case, rho)):
        exact = naive.exact_grad(p, q, case.ground, rho)
        assert _relative(backend.emd_grad(p, q, case.space, rho), exact) <= 1e-12


@pytest.mark.parametrize("seed", SEEDS)
def test_emd_grad_float32_is_exact_to_last_digit(seed, backend):
    rng, case, rho = _problem(seed)
    p, q = _float32_pair(rng, case.n_bins)
    exact = naive.exact_grad(p, q, case.ground, rho)
    comp = backend.emd_grad(p, q, case.space, rho)
    assert _relative(comp, exact) <= ONE_ROUNDING
    total = float(comp.astype(np.float64).sum())
    assert abs(total) <= case.n_bins * ONE_ROUNDING * np.abs(comp).max()


@pytest.mark.parametrize("n_bins", [3, 60, 300, pytest.param(30_000, marks=hardware)])
@pytest.mark.parametrize("kind", ["chain", "tree"])
def test_functions_float32_does_not_accumulate_rounding_errors(n_bins, kind, backend):
    """Every third flow is 0. With p - q rounded to float32 before it is summed, all of them would
    be off in the same direction, more so the longer the chain."""
    ground = naive.chain(n_bins)
    case = chain_case(n_bins) if kind == "chain" else tree_case(ground)
    masses = np.array([0.7, 0.2, 0.1], np.float32)
    p, q = np.tile(masses, n_bins // 3), np.tile(np.roll(masses, 1), n_bins // 3)
    wide = p.astype(np.float64), q.astype(np.float64)
    flow = np.cumsum(wide[0] - wide[1])[:-1]
    assert_close(backend.emd_flow(p, q, case.space), flow, rtol=ONE_ROUNDING)
    for rho in (1, 2, 3):
        assert_close(
            backend.emd(p, q, case.space, rho), (np.abs(flow) ** rho).sum(), rtol=ONE_ROUNDING
        )
        slope = rho * np.sign(flow) * np.abs(flow) ** (rho - 1)
        raw = np.append(np.cumsum(slope[::-1])[::-1], 0.0)
        assert_close(backend.emd_grad(p, q, case.space, rho), raw - raw.mean(), rtol=ONE_ROUNDING)


@hardware
def test_emd_float32_preserves_small_flows_in_large_sums(backend):
    """A prefix sum in float32 would be off by far more than the flow at the far end."""
    n = 4096
    p = np.full(n, 1 / n, np.float32)
    q = p.copy()
    p[-2] += np.float32(2.0**-20)
    q[-1] += np.float32(2.0**-20)
    case = chain_case(n)
    for rho in (1, 2):
        assert backend.emd(p, q, case.space, rho) == np.float32(2.0 ** (-20 * rho))


@hardware
@pytest.mark.parametrize("rho", [1, 1.5, 2, 3.7])
def test_emd_of_long_chain_is_accurate(rho, rng, backend):
    n = 10_000
    p, q = rng.dirichlet(np.ones(n), 2)
    flow, exact = Fraction(0), Fraction(0)
    for a, b in zip(p.tolist(), q.tolist(), strict=True):
        flow += Fraction(a) - Fraction(b)
        exact += Fraction(abs(float(flow)) ** rho)
    exact -= Fraction(abs(float(flow)) ** rho)  # no edge follows the last bin
    assert _relative([backend.emd(p, q, fastemd.Chain(n), rho)], [exact]) <= 1e-12


@pytest.mark.parametrize("rho", [1, 1.5, 2, 3.7])
def test_functions_float32_is_rounded_float64(operation, small_case, rho, rng):
    """Masses with all digits reveal double rounding."""
    n = small_case.n_bins
    single = [rng.dirichlet(np.ones(n), 40).astype(np.float32) for _ in operation.arrays]
    double = [x.astype(np.float64) for x in single]
    comp = operation(single, small_case.space, rho, validate=False)
    ref = operation(double, small_case.space, rho, validate=False)
    for ours, theirs in zip(comp, ref, strict=True):
        np.testing.assert_array_equal(ours, theirs.astype(np.float32), strict=True)
