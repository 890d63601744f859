"""Powers and exponentials in SIMD lanes, edge functions, and the order of the edges."""

import math

import numba
import numpy as np
import pytest

import fastemd
from fastemd.kernels import edges
from fastemd.kernels.cpu.simd import (
    address,
    aligned,
    at,
    exp_below,
    load,
    number_at,
    put_number,
    store,
)
from fastemd.kernels.jitable import KernelCompiler, jitable

LANES = 8


def _in_lanes(function, single):
    """Return a function that applies one of lanes and a number to arrays."""
    lanes_at = at(LANES, single)

    @numba.njit(pipeline_class=KernelCompiler)
    def apply(x, y, out):
        scratch = np.empty(2 * LANES)
        lanes = lanes_at(aligned(address(scratch)))
        for i in range(0, x.size, LANES):
            for r in range(LANES):
                put_number(lanes, r, x[i + r])
            store(lanes, 0, function(load(lanes, 0), y))
            for r in range(LANES):
                out[i + r] = number_at(lanes, r)
        scratch[0] = 0.0

    def applied(x, y=0.0):
        out = np.empty_like(x)
        apply(x, y, out)
        return out

    return applied


@jitable
def _raise(x, y):
    return x**y


@jitable
def _exp(x, y):
    return exp_below(x)


POWER = {single: _in_lanes(_raise, single) for single in (False, True)}
EXP = {single: _in_lanes(_exp, single) for single in (False, True)}


requires_long_double = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant <= np.finfo(np.float64).nmant, reason="long double is float64"
)


@requires_long_double
@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("y", [1e-12, 0.5, 1.7, 2.7, 10.0, 100.0, 1000.0, -0.01, -0.99])
def test_power_error_is_within_bound(y, single, rng):
    x = np.concatenate([10.0 ** rng.uniform(-300, 300, 4000), rng.uniform(0.5, 2.0, 4000)])
    with np.errstate(over="ignore", under="ignore"):
        exact = x.astype(np.longdouble) ** np.longdouble(y)
    within = (exact > 1e-300) & (exact < 1e300)
    assert within.sum() > 100
    error = np.abs(POWER[single](x, y)[within] / exact[within] - 1).max()
    assert error <= ((1 + abs(y) / 4) * 2.0**-43 if single else (1.5 + abs(y) / 2) * 2.0**-52)


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize(
    ("a", "y", "result"),
    [
        (0.0, 0.5, 0.0),
        (5e-324, 0.5, 0.0),  # subnormal
        (2.0**-1022, 0.5, 2.0**-511),
        (1.0, 1e300, 1.0),
        (4.0, 1.7e308, np.inf),
        (0.25, 1.7e308, 0.0),
        (1e200, 2.0, np.inf),
        (1e-200, 2.0, 0.0),
        (2.0, 1023.0, 2.0**1023),
        (2.0, -1021.0, 2.0**-1021),
        (3.0, 0.0, 1.0),
        (np.nan, 0.5, np.nan),
    ],
)
def test_power_of_special_values(a, y, result, single):
    comp = POWER[single](np.full(LANES, a), y)
    np.testing.assert_array_equal(comp, np.full(LANES, result))


@pytest.mark.parametrize(("single", "result"), [(False, 5e-324), (True, 0.0)])
def test_power_below_normal_numbers(single, result):
    assert (POWER[single](np.full(LANES, 2.0), -1074.0) == result).all()


@requires_long_double
@pytest.mark.parametrize(("single", "bound"), [(True, 2.0**-43), (False, 2.0**-51.5)])
def test_exp_below_error_is_within_bound(single, bound, rng):
    x = -np.concatenate([10.0 ** rng.uniform(-20, 2.84, 4000), rng.uniform(0.0, 1.0, 4000)])
    within = x > -707
    exact = np.exp(x.astype(np.longdouble))
    if single:  # the error of log2(e) grows with the argument
        bound = bound * np.maximum(1.0, -x / 64)
    assert (np.abs(EXP[single](x) / exact - 1) <= bound)[within].all()


@pytest.mark.parametrize("single", [False, True])
def test_exp_below_of_special_values(single):
    x = np.array([0.0, -0.0, -708.5, -1e308, -np.inf, -800.0, -5e-324, -708.0])
    out = EXP[single](x)
    np.testing.assert_array_equal(out[:7], [1, 1, 0, 0, 0, 0, 1])
    assert out[7] > 0


def test_layout_orders_edges_by_level():
    """Inner edges start with the deepest level, so that no edge waits for the one before."""
    space = fastemd.datasets.imagenet_tree()
    parent, n_bins = space.layout("levels").edges.parent, space.n_bins
    level = np.zeros(parent.size + 1, int)
    for edge in range(parent.size - 1, -1, -1):
        assert parent[edge] > edge
        level[edge] = level[parent[edge]] + 1
    assert (np.diff(level[n_bins:]) <= 0).all()
    assert sorted(space.layout("levels").edges.length) == sorted(
        space.layout("subtrees").edges.length
    )


@pytest.mark.parametrize("x", [-0.3, 0.0, 2.0])
@pytest.mark.parametrize("rho", [1.0, 1.5, 2.0, 3.7])
def test_edge_functions_run_on_python_floats(x, rho):
    """Lanes, CUDA and Python share one source; the chain of two bins has one edge."""
    p, q, chain = [max(x, 0.0), 2.0], [max(-x, 0.0), 2.0 + x], fastemd.Chain(2, [0.7])
    grad = fastemd.emd_grad(p, q, chain, rho, project=False)
    name, _ = edges.power(rho)
    cost, length = edges.COSTS[name], 0.7 * edges.COSTS[name].slope_factor(rho)
    slope = cost.slope(x, length, rho)
    np.testing.assert_allclose(slope, grad[0], rtol=1e-14)
    value = math.prod(cost.cost(x, slope, length, rho)) * cost.cost_factor(rho)
    np.testing.assert_allclose(value, fastemd.emd(p, q, chain, rho), rtol=1e-14)
    hessian = fastemd.emd_hessian(p, q, chain, rho, project=False)
    curvature = cost.curvature_ratio(rho) * cost.curvature(x, length, rho)
    np.testing.assert_allclose(curvature, hessian[0, 0], rtol=1e-14)
