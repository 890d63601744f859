"""Identities: metric, homogeneity, and equivalent trees."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastemd
from tests.support import naive
from tests.support.operations import BY_NAME, OPERATIONS, assert_close
from tests.support.strategies import (
    Case,
    cases,
    chain_case,
    grounds,
    histograms,
    problems,
    random_ground,
    random_pair,
    rhos,
    tree_case,
)

pytestmark = pytest.mark.any_backend

# Operations whose results depend on the distances only, not on the edges of a tree.
INVARIANT = [operation for operation in OPERATIONS if operation.tails != ("E",)]
each = pytest.mark.parametrize("operation", INVARIANT, ids=lambda operation: operation.name)


@given(problems(), rhos)
def test_emd_is_symmetric_and_non_negative(backend, problem, rho):
    case, p, q = problem
    value = backend.emd(p, q, case.space, rho)
    np.testing.assert_array_equal(value, backend.emd(q, p, case.space, rho))
    assert (value >= 0).all()


@given(st.data(), cases(), rhos)
def test_emd_root_is_metric(backend, data, case, rho):
    """The triangle inequality; at rho = 1 that of the distance itself."""
    p, q, r = data.draw(histograms(case.n_bins, count=3))
    pq, qr, pr = (
        backend.emd(a, b, case.space, rho) ** (1 / rho) for a, b in [(p, q), (q, r), (p, r)]
    )
    assert (pr <= (pq + qr) * (1 + 1e-12)).all()


@given(problems(), rhos, st.sampled_from([2.0**-20, 0.3, 5.0, 2.0**20]))
def test_emd_is_homogeneous_in_mass(backend, problem, rho, factor):
    case, p, q = problem
    comp = backend.emd(p * factor, q * factor, case.space, rho)
    ref = factor**rho * backend.emd(p, q, case.space, rho)
    # Powers of two, as other factors turn flows of zero into rounding errors.
    size = case.space.weight.sum() * (factor * p.sum(axis=-1).max()) ** rho
    assert_close(comp, ref, size)


@given(problems(), rhos)
def test_emd_is_linear_in_edge_lengths(backend, problem, rho):
    """Its derivative with respect to the length of an edge is |flow|^rho."""
    case, p, q = problem
    ground = naive.ground(case.space)
    flow = backend.emd_flow(p, q, case.space)
    for edge in range(min(len(ground.parent) - 1, 3)):
        weight = list(ground.weight)
        weight[edge] += 2.0
        longer = tree_case(ground._replace(weight=weight))
        ref = backend.emd(p, q, case.space, rho) + 2.0 * np.abs(flow[:, edge]) ** rho
        assert_close(backend.emd(p, q, longer.space, rho), ref)


@given(problems(), rhos)
def test_derivatives_satisfy_euler_identity(backend, problem, rho):
    """Euler: <D, p - q> = rho EMD and H (p - q) = (rho - 1) D, unprojected."""
    case, p, q = problem
    value, raw = backend.emd_value_and_grad(p, q, case.space, rho, project=False)
    size = naive.size("emd_grad", (p, q), case.ground, rho)
    mass = p.sum(axis=-1).max()
    assert_close((raw * (p - q)).sum(axis=-1), rho * value, size * mass)
    grad = backend.emd_grad(p, q, case.space, rho)
    assert_close((grad * (p - q)).sum(axis=-1), rho * value, size * mass)
    comp = backend.emd_hvp(p, q, p - q, case.space, rho, project=False)
    assert_close(comp, (rho - 1) * raw, size)


@given(st.data(), cases(), rhos)
def test_emd_grad_is_subgradient(backend, data, case, rho):
    """EMD(r) >= EMD(p) + <grad(p), r - p>: a subgradient even at the kinks of rho = 1."""
    p, q, r = data.draw(histograms(case.n_bins, count=3))
    value, grad = backend.emd_value_and_grad(p, q, case.space, rho)
    tangent = value + (grad * (r - p)).sum(axis=-1)
    size = naive.size("emd", (p, q), case.ground, rho) * (1 + p.sum(axis=-1).max())
    assert (backend.emd(r, q, case.space, rho) >= tangent - 1e-12 * size).all()


def _assert_same(operation, arrays, ref_case, cases_, rho, **keywords):
    ref = operation(arrays, ref_case.space, rho, **keywords)
    size = naive.size(operation.name, arrays, ref_case.ground, rho)
    for case in cases_:
        comp = operation(arrays, case.space, rho, **keywords)
        for ours, theirs in zip(comp, ref, strict=True):
            assert_close(ours, theirs, size, rtol=2e-12)


def _arrays(data, operation, n_bins):
    p, q = data.draw(histograms(n_bins))
    return [p, q, np.cos(np.arange(p.size)).reshape(p.shape)][: len(operation.arrays)]


@each
@given(data=st.data(), ground=grounds(), rho=rhos)
def test_functions_do_not_depend_on_root(operation, data, ground, rho):
    arrays = _arrays(data, operation, len(ground.bin_node))
    root = data.draw(st.integers(0, len(ground.parent) - 1))
    again = tree_case(naive.reroot(ground, root))
    graph = fastemd.Tree.from_networkx(naive.graph(ground), bins=ground.bin_node)
    _assert_same(operation, arrays, tree_case(ground), [again, Case(graph, ground)], rho)


@each
@given(data=st.data(), ground=grounds(), rho=rhos)
def test_functions_do_not_depend_on_node_names(operation, data, ground, rho):
    arrays = _arrays(data, operation, len(ground.bin_node))
    order = data.draw(st.permutations(range(len(ground.parent))))
    again = tree_case(naive.relabel(ground, order))
    for keywords in [{"project": False}] if operation.projects else [{}]:
        _assert_same(operation, arrays, tree_case(ground), [again], rho, **keywords)


@each
@given(data=st.data(), ground=grounds(max_nodes=8), rho=rhos)
def test_functions_do_not_depend_on_unary_nodes(operation, data, ground, rho):
    arrays = _arrays(data, operation, len(ground.bin_node))
    pieces = data.draw(st.lists(st.integers(1, 4), min_size=8, max_size=8))
    again = tree_case(naive.subdivide(ground, pieces[: len(ground.parent)]))
    for keywords in [{}, {"project": False}] if operation.projects else [{}]:
        _assert_same(operation, arrays, tree_case(ground), [again], rho, **keywords)


@each
@given(data=st.data(), ground=grounds(max_nodes=8), rho=rhos)
def test_functions_do_not_depend_on_stems_and_leaves_without_bins(operation, data, ground, rho):
    """A new root above the old one and a branch without bins, through which no mass flows."""
    arrays = _arrays(data, operation, len(ground.bin_node))
    n, where = len(ground.parent), data.draw(st.integers(0, len(ground.parent) - 1))
    root = ground.parent.index(-1)
    parent, weight = list(ground.parent), list(ground.weight)
    parent[root], weight[root] = n, 3.0
    again = naive.Ground([*parent, -1, where, n + 1], [*weight, 0.0, 2.0, 1.0], ground.bin_node)
    _assert_same(operation, arrays, tree_case(ground), [tree_case(again)], rho)


@each
@given(data=st.data(), gaps=st.lists(st.sampled_from([0.0, 0.5, 1.0, 4.0]), max_size=12), rho=rhos)
def test_functions_of_chain_equal_functions_of_path(operation, data, gaps, rho):
    chain = chain_case(len(gaps) + 1, gaps)
    arrays = _arrays(data, operation, chain.n_bins)
    path = tree_case(chain.ground)
    for keywords in [{}, {"project": False}] if operation.projects else [{}]:
        _assert_same(operation, arrays, chain, [path], rho, **keywords)


@each
def test_functions_permute_columns_with_bins(operation, rng):
    ground = random_ground(rng, 40)
    order = rng.permutation(len(ground.bin_node))
    arrays = operation.draw(rng, (3,), len(order))
    ref = operation(arrays, tree_case(ground).space, 1.5)
    permuted = tree_case(ground._replace(bin_node=[ground.bin_node[k] for k in order]))
    comp = operation([x[:, order] for x in arrays], permuted.space, 1.5)
    for ours, theirs, tail in zip(comp, ref, operation.tails, strict=True):
        theirs = theirs[:, order] if tail else theirs
        assert_close(ours, theirs[..., order] if tail == "NN" else theirs, 10.0)


@pytest.mark.parametrize("name", [operation.name for operation in OPERATIONS])
def test_functions_agree_in_float32(name, case, rho, rng):
    operation = BY_NAME[name]
    arrays = operation.draw(rng, (4,), case.n_bins)
    ref = operation(arrays, case.space, rho)
    comp = operation([x.astype(np.float32) for x in arrays], case.space, rho)
    size = naive.size(name, arrays, case.ground, rho)
    for ours, theirs in zip(comp, ref, strict=True):
        assert_close(ours, theirs, size, rtol=2.0**-24 * 1.01)


def test_emd_does_not_depend_on_common_mass(case, rho, rng, backend):
    p, q = random_pair(rng, (4, case.n_bins))
    common = rng.integers(0, 9, (4, case.n_bins)) / 8
    assert_close(
        backend.emd(p + common, q + common, case.space, rho), backend.emd(p, q, case.space, rho)
    )
