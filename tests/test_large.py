"""Sizes at which recursion, quadratic work or 32-bit overflow would fail."""

import networkx as nx
import numpy as np
import pytest

import fastemd
from fastemd.kernels.cpu import driver
from tests.support.operations import assert_close
from tests.support.strategies import random_pair


def _oracle(parent, weight, bin_node, p, q, rho):
    """Compute value and projected gradient, with nodes in topological order, by level in NumPy."""
    depth = np.zeros(len(parent), np.int64)
    ancestor, alive = parent.copy(), np.flatnonzero(parent >= 0)
    while alive.size:
        depth[alive] += 1
        ancestor[alive] = parent[ancestor[alive]]
        alive = alive[ancestor[alive] >= 0]
    levels = np.split(np.argsort(depth, kind="stable"), np.cumsum(np.bincount(depth))[:-1])
    phi = np.zeros((len(p), len(parent)))
    np.add.at(phi, (slice(None), bin_node), p - q)
    for nodes in levels[:0:-1]:
        np.add.at(phi, (slice(None), parent[nodes]), phi[:, nodes])
    slope = rho * weight * np.sign(phi) * np.abs(phi) ** (rho - 1)
    value = (weight * np.abs(phi) ** rho).sum(axis=-1)
    for nodes in levels[1:]:
        slope[:, nodes] += slope[:, parent[nodes]]
    raw = slope[:, bin_node]
    return value, raw - raw.mean(axis=-1, keepdims=True)


def _assert_agrees(space, parent, weight, bin_node, rng):
    p, q = random_pair(rng, (2, len(bin_node)), total=2**30)
    for rho in (1, 1.5):
        value, grad = _oracle(parent, weight, bin_node, p, q, rho)
        comp = fastemd.emd_value_and_grad(p, q, space, rho)
        assert np.isfinite(comp[1]).all()
        assert_close(comp[0], value, rtol=1e-11)
        assert_close(comp[1], grad, rtol=1e-10)
        assert_close(fastemd.emd(p, q, space, rho), value, rtol=1e-11)


def test_functions_on_star_of_100_000_leaves(rng):
    n = 100_000
    parent = np.append(-1, np.zeros(n, np.int64))
    weight = np.append(0.0, rng.exponential(size=n))
    space = fastemd.Tree.from_parents(parent, weight)
    _assert_agrees(space, parent, weight, np.arange(1, n + 1), rng)
    assert (space.n_bins, space.n_nodes, space.depth) == (n, n + 1, 1)
    assert space.diameter == pytest.approx(np.sort(weight)[-2:].sum())


def test_functions_on_path_of_100_000_nodes(rng):
    n = 100_000
    gaps = rng.exponential(size=n - 1)
    parent, weight = np.arange(-1, n - 1), np.append(0.0, gaps)
    tree = fastemd.Tree.from_parents(parent, weight, bins=np.arange(n).tolist())
    assert tree.depth == n - 1
    assert tree.diameter == pytest.approx(gaps.sum())
    p, q = random_pair(rng, (2, n), total=2**30)
    for space in (tree, fastemd.Chain(n, gaps)):
        for rho in (1, 1.5):
            flow = np.cumsum(p - q, axis=-1)[:, :-1]
            comp = fastemd.emd(p, q, space, rho)
            assert_close(comp, (gaps * np.abs(flow) ** rho).sum(axis=-1), rtol=1e-11)
            slope = rho * gaps * np.sign(flow) * np.abs(flow) ** (rho - 1)
            raw = np.append(np.cumsum(slope[:, ::-1], axis=-1)[:, ::-1], [[0.0]] * 2, axis=-1)
            comp = fastemd.emd_grad(p, q, space, rho)
            assert_close(comp, raw - raw.mean(axis=-1, keepdims=True), rtol=1e-10)


def test_functions_on_tree_of_1_000_000_nodes(rng):
    n = 1_000_000
    parent = np.append(-1, rng.integers(np.arange(n - 1) // 2, np.arange(1, n)))
    weight = np.append(0.0, rng.exponential(size=n - 1))
    space = fastemd.Tree.from_parents(parent, weight)
    leaves = np.flatnonzero(np.bincount(parent[1:], minlength=n) == 0)
    assert space.n_nodes == n
    np.testing.assert_array_equal(space.bins, leaves)  # pytest's diff would fill the memory
    _assert_agrees(space, parent, weight, leaves, rng)


def test_second_derivatives_on_large_tree(rng):
    """No function forms an N x N matrix, which would need 80 GB for 100,000 bins."""
    n = 100_000
    space = fastemd.Chain(n)
    p, q = random_pair(rng, (2, n), total=2**30)
    v = rng.integers(-4, 5, (2, n)) / 4
    centred = v - v.mean(axis=-1, keepdims=True)
    flow = np.cumsum(p - q, axis=-1)[:, :-1]
    h = 3 * 2 * np.abs(flow)
    raw = np.cumsum((h * np.cumsum(centred, axis=-1)[:, :-1])[:, ::-1], axis=-1)[:, ::-1]
    raw = np.append(raw, [[0.0]] * 2, axis=-1)
    comp = fastemd.emd_hvp(p, q, v, space, 3)
    assert_close(comp, raw - raw.mean(axis=-1, keepdims=True), rtol=1e-9)
    np.testing.assert_array_equal(fastemd.emd_flow(p, q, space), flow)
    # diag = sum_i h_i (a_ik - n_i / N)^2 = S_k - 2 sum_{i >= k} h_i n_i / N + sum_i h_i (n_i / N)^2
    share = np.arange(1, n) / n
    below = np.append(np.cumsum((h * (1 - 2 * share))[:, ::-1], axis=-1)[:, ::-1], [[0.0]] * 2, -1)
    ref = below + (h * share**2).sum(axis=-1, keepdims=True)
    assert_close(fastemd.emd_hessian_diag(p, q, space, 3), ref, rtol=1e-9)


def test_functions_of_many_edges_compute_rows_one_by_one(rng, monkeypatch):
    """Eight rows at once would need too much scratch; the bits of the results are the same."""
    space = fastemd.Tree.from_parents(np.append(-1, rng.integers(0, np.arange(1, 500))))
    p, q = random_pair(rng, (11, space.n_bins))
    v = rng.integers(-4, 5, p.shape) / 4

    def results():
        arrays = fastemd.emd_hvp(p, q, v, space, 3), fastemd.emd_hessian_diag(p, q, space, 3)
        flow, values = fastemd.emd_flow(p, q, space), fastemd.emd_value_and_grad(p, q, space, 3)
        return [*arrays, flow, *values, fastemd.emd_hvp(p, q, v, space, 2)]

    side_by_side = results()
    monkeypatch.setattr(driver, "MANY_EDGES", 0)
    for comp, ref in zip(results(), side_by_side, strict=True):
        np.testing.assert_array_equal(comp, ref)


def test_constructors_accept_deep_trees():
    """100,000 levels, beyond the recursion limit of Python; 5,000 single merges."""
    graph = nx.path_graph(100_000, create_using=nx.DiGraph)
    tree = fastemd.Tree.from_networkx(graph)
    assert (tree.depth, tree.bins) == (99_999, (99_999,))
    tree = fastemd.Tree.from_networkx(graph.to_undirected())
    assert (tree.depth, tree.n_bins) == (50_000, 2)
    n = 5000
    merges = np.arange(1.0, n)
    other = np.append(0, np.arange(n, 2 * n - 2))
    linkage = np.column_stack([np.arange(1, n), other, merges, np.arange(2, n + 1)])
    tree = fastemd.Tree.from_linkage(linkage)
    assert (tree.n_nodes, tree.n_bins, tree.diameter) == (2 * n - 1, n, n - 1)
    # Observations 0 and 1 meet at height 1, observation n - 1 joins at height n - 1.
    one_hot = np.eye(n)[[0, 1, n - 1]]
    comp = fastemd.emd(one_hot[[0, 0]], one_hot[[1, 2]], tree, 1)
    np.testing.assert_allclose(comp, [1.0, n - 1.0])
