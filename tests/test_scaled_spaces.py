"""mean_distance and scaled: ground spaces with the same bins and lengths in another unit."""

import copy
import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.special import logsumexp

import fastemd
from fastemd import datasets
from tests.conftest import CASES
from tests.support import naive
from tests.support.operations import assert_close
from tests.support.strategies import cases, grounds, random_pair, tree_case

TREE = fastemd.Tree.from_paths(
    [("animal", "cat"), ("car",), ("animal", "dog", "poodle"), ("animal", "dog")]
)
wanted = st.sampled_from([1, 0.3, 3.0, 1e-40, 1e40, Fraction(1, 3), np.float32(2.5), np.int64(2)])


@pytest.fixture(params=[name for name, case in CASES.items() if case.n_bins > 1])
def spread_case(request):
    """A fixed ground space with two or more bins."""
    return CASES[request.param]


def test_mean_distance_agrees_with_naive(spread_case):
    ref = naive.mean_distance(spread_case.ground)
    assert spread_case.space.mean_distance == pytest.approx(ref, rel=1e-14)


@given(cases())
def test_mean_distance_is_mean_over_cost_matrix(case):
    assume(case.n_bins > 1)
    comp = case.space.mean_distance
    assert type(comp) is float
    assert comp == pytest.approx(naive.mean_distance(case.ground), rel=1e-14)
    above = np.triu_indices(case.n_bins, 1)
    assert comp == pytest.approx(case.space.cost_matrix()[above].mean(), rel=1e-13)


@given(st.data(), grounds())
def test_mean_distance_ignores_choice_of_root(data, ground):
    assume(len(ground.bin_node) > 1)
    root = data.draw(st.sampled_from(range(len(ground.parent))))
    ref = tree_case(ground).space.mean_distance
    assert tree_case(naive.reroot(ground, root)).space.mean_distance == ref  # every bit


def test_mean_distance_worked_by_hand():
    assert fastemd.Chain(2, [7.0]).mean_distance == 7
    assert fastemd.Chain(4).mean_distance == (3 * 1 + 2 * 2 + 1 * 3) / 6
    assert TREE.mean_distance == (3 + 3 + 2 + 4 + 3 + 1) / 6  # one bin on an inner node
    assert fastemd.Chain(3, [0.0, 0.0]).mean_distance == 0


def test_mean_distance_ignores_edges_without_flow():
    """A stem above all bins and a leaf without a bin, as long as lengths may be."""
    tree = fastemd.Tree.from_parents([-1, 0, 1, 1, 1], [0, 4e149, 1, 2, 4e149], bins=[2, 3])
    assert tree.mean_distance == 3


def test_mean_distance_is_accurate_for_lengths_of_different_magnitude():
    gaps = [1e16, 1.0, 1.0, 1e-16, 1e16]
    parts = [Fraction(gap) * k * (6 - k) for k, gap in enumerate(gaps, 1)]
    assert fastemd.Chain(6, gaps).mean_distance == float(sum(parts) / 15)


def test_mean_distance_of_1_000_000_bins():
    n = 1_000_000
    assert fastemd.Chain(n).mean_distance == pytest.approx((n + 1) / 3, rel=1e-15)
    star = fastemd.Tree.from_parents(np.append(-1, np.zeros(n, np.int64)))
    assert star.mean_distance == pytest.approx(2, rel=1e-15)
    assert star.scaled(mean_distance=5).weight[0] == pytest.approx(2.5, rel=1e-15)


def test_mean_distance_of_imagenet_tree_agrees_with_cost_matrix():
    tree = datasets.imagenet_tree()
    ref = tree.cost_matrix()[np.triu_indices(tree.n_bins, 1)].mean()
    assert tree.mean_distance == pytest.approx(ref, rel=1e-14)


@given(cases(), wanted)
def test_scaled_has_wanted_mean_distance(case, wanted):
    assume(case.n_bins > 1 and case.space.mean_distance > 0)
    space, lengths = case.space, case.space.weight.copy()
    comp = space.scaled(mean_distance=wanted)
    assert comp.mean_distance == pytest.approx(float(wanted), rel=1e-14)
    assert naive.mean_distance(naive.ground(comp)) == pytest.approx(float(wanted), rel=1e-13)
    factor = float(wanted) / space.mean_distance
    np.testing.assert_array_equal(comp.weight, space.weight * factor)
    assert_close(comp.cost_matrix(), space.cost_matrix() * factor, rtol=1e-14)
    assert comp.diameter == pytest.approx(space.diameter * factor, rel=1e-14)
    assert comp.depth == space.depth
    np.testing.assert_array_equal(space.weight, lengths)


def test_scaled_is_1_by_default(spread_case):
    assert spread_case.space.scaled().mean_distance == pytest.approx(1, rel=1e-14)


def test_scaled_preserves_kind_bins_and_nodes(spread_case):
    space = spread_case.space
    comp = space.scaled(mean_distance=2)
    assert comp is not space
    assert type(comp) is type(space)
    assert comp.nodes == space.nodes
    assert comp.bins == space.bins
    for name in ("parent", "bin_node"):
        np.testing.assert_array_equal(getattr(comp, name), getattr(space, name))
    for name in ("parent", "bin_node", "weight"):
        assert not getattr(comp, name).flags.writeable
    assert comp.weight[-1] == 0
    with pytest.raises(AttributeError, match="immutable"):
        comp.weight = space.weight


def test_scaled_preserves_names():
    comp = TREE.scaled(mean_distance=8)
    assert comp.bins == TREE.bins
    assert comp.to_networkx().nodes["animal", "dog"]["bin"] == 3
    assert list(comp.to_networkx().edges) == list(TREE.to_networkx().edges)
    np.testing.assert_allclose(comp.cost_matrix(), 3 * TREE.cost_matrix(), rtol=1e-15)


def test_scaled_accepts_subclasses():
    class Ages(fastemd.Chain):
        pass

    ages = Ages.from_positions([1.0, 2.0, 5.0])
    assert type(ages.scaled()) is Ages


def test_scaled_chain_preserves_bins_of_values():
    chain = fastemd.Chain.from_edges([0, 10, 20, 50, 100, 500])
    comp = chain.scaled()
    np.testing.assert_array_equal(comp.bin_edges, chain.bin_edges)
    values = [3.0, 19.9, 20.0, 499.0]
    np.testing.assert_array_equal(comp.bin_of(values), chain.bin_of(values))
    assert fastemd.Chain(3).scaled().bin_edges is None


def test_scaled_does_not_share_caches(rng):
    """Layouts and attributes of the original that were computed before are not reused."""
    p, q = random_pair(rng, (3, TREE.n_bins))
    before = fastemd.emd(p, q, TREE, 2), TREE.diameter, TREE.mean_distance
    comp = TREE.scaled(mean_distance=8)
    assert (comp.diameter, comp.mean_distance) == (12, 8)
    assert_close(fastemd.emd(p, q, comp, 2), 3 * before[0], rtol=1e-14)
    np.testing.assert_array_equal(fastemd.emd(p, q, TREE, 2), before[0])
    assert (TREE.diameter, TREE.mean_distance) == before[1:]


def test_scaled_survives_copying_and_pickling(spread_case):
    space = spread_case.space.scaled(mean_distance=0.7)
    for other in (copy.copy(space), copy.deepcopy(space), pickle.loads(pickle.dumps(space))):
        assert type(other) is type(space)
        np.testing.assert_array_equal(other.weight, space.weight)
        assert other.bins == space.bins
        assert other.mean_distance == space.mean_distance


@pytest.mark.any_backend
@pytest.mark.parametrize("rho", [1, 1.5, 2])
def test_scaled_multiplies_values_and_gradients(spread_case, rho, rng, backend):
    space = spread_case.space
    p, q = random_pair(rng, (5, space.n_bins))
    comp = space.scaled(mean_distance=3)
    factor = 3 / naive.mean_distance(spread_case.ground)
    value, grad = backend.emd_value_and_grad(p, q, comp, rho)
    assert_close(value, factor * naive.emd(p, q, spread_case.ground, rho), rtol=1e-12)
    assert_close(grad, factor * naive.emd_grad(p, q, spread_case.ground, rho), rtol=1e-11)


@pytest.mark.any_backend
@pytest.mark.parametrize("rho", [1, 1.5, 2])
def test_scaled_sets_share_of_emd_beside_cross_entropy(rho, rng, backend):
    x, target = rng.normal(size=(6, 4)), rng.integers(4, size=6)
    unit, _ = backend.emd_loss(x, target, TREE.scaled(), rho)
    comp, _ = backend.emd_loss(x, target, TREE.scaled(mean_distance=3), rho, cross_entropy=1)
    cross_entropy = (logsumexp(x, axis=-1) - x[np.arange(6), target]).mean()
    np.testing.assert_allclose(comp, cross_entropy + 3 * unit, rtol=1e-12)


def test_mean_distance_rejects_space_of_one_bin():
    message = "^mean_distance: 1 bin; expected a space with at least 2 bins"
    for space in (fastemd.Chain(1), fastemd.Tree.from_parents([-1, 0, 0], bins=[1])):
        with pytest.raises(ValueError, match=message):
            _ = space.mean_distance
        with pytest.raises(ValueError, match=message):
            space.scaled()


def test_scaled_rejects_mean_distance_0():
    chain = fastemd.Chain(3, [0.0, 0.0])
    stem = fastemd.Tree.from_parents([-1, 0, 1, 1], [0, 5, 0, 0])
    for space in (chain, stem):
        with pytest.raises(ValueError, match=r"^mean_distance: all bins are at distance 0; expect"):
            space.scaled()


@pytest.mark.parametrize("value", [0, 0.0, -1, np.nan, np.inf, -np.inf, 10**400])
def test_scaled_rejects_numbers_that_are_not_positive_and_finite(value):
    with pytest.raises(ValueError, match=r"^mean_distance: expected a finite number > 0, got"):
        TREE.scaled(mean_distance=value)


@pytest.mark.parametrize("value", [None, "1", True, 1j, [1.0], np.ones(2)])
def test_scaled_rejects_other_types(value):
    with pytest.raises(TypeError, match=r"^mean_distance: expected a number > 0, got"):
        TREE.scaled(mean_distance=value)


def test_scaled_requires_keyword():
    with pytest.raises(TypeError, match="positional"):
        TREE.scaled(3.0)


STEM = [-1, 0, 1, 1]


@pytest.mark.parametrize(
    ("space", "value", "fault"),
    [
        (fastemd.Chain(3), 1e150, "sum to more than 1e"),  # they sum to 1.5e150
        (fastemd.Chain(3), 1e308, "sum to more than 1e"),
        (fastemd.Chain(3, [1e-300, 1e-300]), 1e20, "sum to more than 1e"),  # an infinite factor
        (fastemd.Chain(3, [5e-324, 5e-324]), 1.0, "sum to more than 1e"),
        (  # a stem without flow
            fastemd.Tree.from_parents(STEM, [0, 1e149, 1e-170, 1e-170]),
            1.0,
            "sum to more than 1e",
        ),
        (fastemd.Chain(3, [1e149, 1e149]), 1e-300, "are too small"),  # a factor of 0
        (fastemd.Chain(3), 5e-324, "are too small"),
        (fastemd.Chain(3, [5e-324, 0.0]), 1e-300, "are too small"),
        (fastemd.Chain(3, [1e-300, 1.0]), 1e-100, "are too small"),  # only the first one
    ],
)
def test_scaled_rejects_lengths_out_of_range(space, value, fault):
    with pytest.raises(ValueError, match=rf"^mean_distance: multiplied by .* the lengths {fault}"):
        space.scaled(mean_distance=value)


def test_scaled_accepts_all_lengths_in_range():
    chain = fastemd.Chain(3, [1e-300, 0.0])
    comp = chain.scaled(mean_distance=6e-8)
    np.testing.assert_allclose(comp.weight, [9e-8, 0, 0], rtol=1e-14)
    comp = fastemd.Chain(3).scaled(mean_distance=6e149)
    np.testing.assert_allclose(comp.weight, [4.5e149, 4.5e149, 0], rtol=1e-14)
