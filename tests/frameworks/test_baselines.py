"""The functions agree with other implementations and with the linear programme."""

import networkx as nx
import numpy as np
import ot
import pytest
import skbio
from hypothesis import given
from scipy.stats import energy_distance, wasserstein_distance
from skbio.diversity.beta import weighted_unifrac

import fastemd
from fastemd.demo.baselines import EMD_BASELINES
from tests.support import naive
from tests.support.frameworks import needed
from tests.support.operations import assert_close
from tests.support.strategies import chain_case, problems, random_ground, random_pair, tree_case

N_ROWS = 8


def _positions(case):
    return np.concatenate([[0.0], np.cumsum(case.ground.weight[:-1])])


CHAINS = [
    chain_case(1),
    chain_case(2, [0.5]),
    chain_case(64),
    chain_case(33, (np.arange(32) % 3 + 0.25).tolist()),
    chain_case(50, np.random.default_rng(50).exponential(size=49).tolist()),
]


@pytest.mark.parametrize("chain", CHAINS, ids=repr)
def test_emd_of_chain_equals_wasserstein_distance_of_scipy(chain, rng):
    p, q = random_pair(rng, (N_ROWS, chain.n_bins))
    x = _positions(chain)
    ref = [wasserstein_distance(x, x, *row) for row in zip(p, q, strict=True)]
    assert_close(fastemd.emd(p, q, chain.space, 1), ref)


@pytest.mark.parametrize("chain", CHAINS, ids=repr)
def test_emd_of_chain_at_rho_2_is_half_squared_energy_distance_of_scipy(chain, rng):
    p, q = random_pair(rng, (N_ROWS, chain.n_bins))
    x = _positions(chain)
    ref = [energy_distance(x, x, *row) ** 2 / 2 for row in zip(p, q, strict=True)]
    assert_close(fastemd.emd(p, q, chain.space, 2), ref)


def test_emd_equals_emd2_of_pot(case, rng):
    p, q = random_pair(rng, (N_ROWS, case.n_bins))
    cost = naive.cost_matrix(case.ground)
    ref = [ot.emd2(a, b, cost) for a, b in zip(p, q, strict=True)]
    assert_close(fastemd.emd(p, q, case.space, 1), ref)


@pytest.mark.parametrize("n_bins", [2, 5, 60])
def test_emd_flow_of_chain_equals_emd_1d_of_pot(n_bins, rng):
    """The sum of the transport plan of POT across each gap."""
    p, q = random_pair(rng, (n_bins,))
    x = np.arange(float(n_bins))
    plan = ot.emd_1d(x, x, p, q)
    ref = [plan[: i + 1, i + 1 :].sum() - plan[i + 1 :, : i + 1].sum() for i in range(n_bins - 1)]
    assert_close(fastemd.emd_flow(p, q, fastemd.Chain(n_bins)), ref)


@pytest.mark.parametrize("seed", range(5))
def test_emd_of_leaves_equals_weighted_unifrac_of_scikit_bio(seed):
    rng = np.random.default_rng(seed)
    ground = random_ground(rng, 80)
    parents = set(ground.parent)
    leaves = [node for node in range(80) if node not in parents]
    ground = ground._replace(bin_node=leaves)
    nodes = [skbio.TreeNode(name=str(i), length=w) for i, w in enumerate(ground.weight)]
    for node, parent in zip(nodes, ground.parent, strict=True):
        if parent != -1:
            nodes[parent].append(node)
    root = nodes[ground.parent.index(-1)]
    counts = rng.integers(0, 5, (2, N_ROWS, len(leaves)))
    counts[:, :, 0] += 1
    # scikit-bio rejects unary nodes, although its formula supports them.
    ref = [
        weighted_unifrac(a, b, [str(i) for i in leaves], root, normalized=False, validate=False)
        for a, b in zip(*counts, strict=True)
    ]
    p, q = counts / counts.sum(axis=-1, keepdims=True)
    assert_close(fastemd.emd(p, q, tree_case(ground).space, 1), ref)


@given(problems(max_nodes=7, n_rows=2))
def test_emd_is_optimum_of_linear_programme(problem):
    case, p, q = problem
    cost = naive.cost_matrix(case.ground)
    ref = [naive.linear_programme(*row, cost) for row in zip(p, q, strict=True)]
    assert_close(fastemd.emd(p, q, case.space, 1), ref, rtol=1e-9)


@given(problems(max_nodes=7, n_rows=2))
def test_emd_is_optimum_of_linear_programme_with_cost_matrix(problem):
    """The reference uses the cost matrix and the solver of SciPy, and no tree formula."""
    case, p, q = problem
    ref = [naive.linear_programme(*row, case.space.cost_matrix()) for row in zip(p, q, strict=True)]
    assert_close(fastemd.emd(p, q, case.space, 1), ref, rtol=1e-9)


@given(problems(max_nodes=7, n_rows=1))
def test_emd_equals_min_cost_flow_of_networkx(problem):
    """The value is the cost of the minimum cost flow, by network simplex on integers."""
    case, p, q = problem
    units = np.rint((p - q)[0] * 2**10).astype(int)
    graph = nx.DiGraph(naive.graph(case.ground))
    for _, _, data in graph.edges(data=True):
        data["weight"] = round(data["weight"] * 100)
    for bin_node, dirt in zip(case.ground.bin_node, units.tolist(), strict=True):
        graph.nodes[bin_node]["demand"] = -dirt
    ref = nx.min_cost_flow_cost(graph) / 2**10 / 100
    assert_close(fastemd.emd(p, q, case.space, 1)[0], ref)


@pytest.mark.parametrize("name", EMD_BASELINES)
@pytest.mark.parametrize("rho", [1, 2, 3.7])
def test_baselines_agree_with_naive(name, rho, small_case, rng):
    p, q = random_pair(rng, (5, small_case.n_bins))
    if "torch" in name:
        needed("torch")
    if "POT" in name and rho != 1:
        with pytest.raises(NotImplementedError, match="rho = 1 only"):
            EMD_BASELINES[name](small_case.space, p, q, rho)
        return
    value, grad = EMD_BASELINES[name](small_case.space, p, q, rho)()
    ref_value, ref_grad = naive.emd_value_and_grad(p, q, small_case.ground, rho)
    np.testing.assert_allclose(value, ref_value, rtol=1e-12, atol=1e-14)
    if "POT" in name:  # one of many subgradients: 0 = EMD(q, q) >= EMD(p, q) + grad (q - p)
        assert ((grad * (p - q)).sum(axis=-1) >= ref_value - 1e-12).all()
    else:
        np.testing.assert_allclose(grad, ref_grad, rtol=1e-12, atol=1e-12)
