"""emd_flow and embed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastemd
from tests.support import naive
from tests.support.operations import BY_NAME, assert_agrees, assert_close
from tests.support.strategies import cases, histograms, problems, random_pair, rhos

pytestmark = pytest.mark.any_backend

FLOW, EMBED = BY_NAME["emd_flow"], BY_NAME["embed"]


def test_emd_flow_agrees_with_naive(case, rng):
    assert_agrees(FLOW, random_pair(rng, (5, case.n_bins)), case, 1)


@given(problems())
def test_emd_flow_agrees_with_naive_on_drawn_problems(problem):
    assert_agrees(FLOW, (problem.p, problem.q), problem.case, 1)


def test_emd_flow_of_chain_is_difference_of_cumulative_sums(rng, backend):
    p, q = random_pair(rng, (4, 60))
    comp = backend.emd_flow(p, q, fastemd.Chain(60, rng.random(59)))
    np.testing.assert_array_equal(comp, np.cumsum(p - q, axis=-1)[:, :-1])


def test_emd_flow_is_ordered_like_nodes(backend):
    """Two leaves below an inner node, one beside it; every edge has another flow."""
    space = fastemd.Tree.from_parents([-1, 0, 1, 1, 0], [0, 5, 1, 2, 4])
    comp = backend.emd_flow([0.5, 0.25, 0.25], [0.0, 0.0, 1.0], space)
    flow_of_length = {1: 0.5, 2: 0.25, 4: -0.75, 5: 0.75}
    assert comp.tolist() == [flow_of_length[w] for w in space.weight[:-1]]


def test_emd_flow_of_float32_and_one_node(case, rng, backend):
    p, q = random_pair(rng, (5, case.n_bins), np.float32)
    comp = backend.emd_flow(p, q, case.space)
    assert comp.dtype == np.float32
    assert comp.shape == (5, case.space.n_nodes - 1)
    assert_agrees(FLOW, (p, q), case, 1, rtol=2.0**-24)


@given(problems(), rhos)
def test_emd_flow_determines_emd(backend, problem, rho):
    """The lengths times powers of the flows sum to the value, also with edges of length 0."""
    case, p, q = problem
    flow = backend.emd_flow(p, q, case.space)
    comp = (case.space.weight[:-1] * np.abs(flow) ** rho).sum(axis=-1)
    assert_close(comp, backend.emd(p, q, case.space, rho))


@given(problems())
def test_emd_flow_is_antisymmetric_and_linear(backend, problem):
    case, p, q = problem
    flow = backend.emd_flow(p, q, case.space)
    np.testing.assert_array_equal(backend.emd_flow(q, p, case.space), -flow)
    middle = (p + q) / 2
    first = backend.emd_flow(p, middle, case.space)
    second = backend.emd_flow(middle, q, case.space)
    np.testing.assert_array_equal(first + second, flow)


def test_embed_agrees_with_naive(case, rho, rng):
    assert_agrees(EMBED, random_pair(rng, (5, case.n_bins))[:1], case, rho)


@given(problems(), rhos)
def test_embed_agrees_with_naive_on_drawn_problems(problem, rho):
    assert_agrees(EMBED, (problem.p,), problem.case, rho)


@given(problems(), rhos)
def test_embed_is_isometry(backend, problem, rho):
    case, p, q = problem
    points = backend.embed(p, case.space, rho), backend.embed(q, case.space, rho)
    comp = (np.abs(points[0] - points[1]) ** rho).sum(axis=-1)
    # The error of a difference of rounded coordinates is relative to the coordinates.
    size = (np.abs(points[0]) ** rho).sum(axis=-1).max()
    assert_close(comp, backend.emd(p, q, case.space, rho), size, rtol=1e-11)


@given(st.data(), cases())
def test_embed_at_rho_2_gives_all_pairs_by_matrix_product(backend, data, case):
    p, q = data.draw(histograms(case.n_bins, 3))
    some = p.sum(axis=-1) > 0
    p, q = (x[some] / x[some].sum(axis=-1, keepdims=True) for x in (p, q))
    x, y = backend.embed(p, case.space, 2), backend.embed(q, case.space, 2)
    comp = (x**2).sum(-1)[:, None] + (y**2).sum(-1) - 2 * x @ y.T
    ref = backend.emd(p[:, None], q[None], case.space, 2)
    assert_close(comp, ref, size=(x**2).sum(-1).max(initial=1.0), rtol=1e-11)


def test_embed_accepts_any_mass(small_case, rho, backend):
    p = np.arange(small_case.n_bins) * 10.0
    comp = backend.embed(p, small_case.space, rho)
    assert comp.shape == (small_case.space.n_nodes - 1,)
    assert_close(comp, naive.embed(p, naive.ground(small_case.space), rho))
    np.testing.assert_array_equal(backend.embed(0 * p, small_case.space, rho), 0 * comp)


@pytest.mark.parametrize("function", ["emd_flow", "embed"])
def test_flows_without_validation_are_nan_in_row_of_nan_only(function, small_case, rng):
    operation = BY_NAME[function]
    arrays = operation.draw(rng, (40,), small_case.n_bins)
    clean = operation(arrays, small_case.space, 2)[0]
    bin_off_root = int(np.flatnonzero(small_case.space.bin_node != small_case.space.n_nodes - 1)[0])
    arrays[0][17, bin_off_root] = np.nan
    comp = operation(arrays, small_case.space, 2, validate=False)[0]
    assert np.isnan(comp[17, small_case.space.bin_node[bin_off_root]])
    np.testing.assert_array_equal(np.delete(comp, 17, 0), np.delete(clean, 17, 0))
