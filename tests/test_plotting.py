"""The pictures show the right numbers at the right places."""

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection, PathCollection

import fastemd
from fastemd import plotting

mpl.use("Agg")
TREE = fastemd.Tree.from_paths([("a", "b", "x"), ("a", "b", "y"), ("a", "z"), ("c",)])
P, Q = np.array([0.5, 0.1, 0.4, 0.0]), np.array([0.1, 0.2, 0.2, 0.5])


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def _collection(ax, kind):
    """The first collection of a kind that was drawn."""
    return next(c for c in ax.collections if isinstance(c, kind))


def _values(ax, kind):
    """The numbers that a kind of collection is coloured by."""
    (values,) = [
        c.get_array() for c in ax.collections if type(c) is kind and c.get_array() is not None
    ]
    return np.asarray(values)


def test_plot_flow__shows_every_edge_and_bin():
    ax = plotting.plot_flow(P, Q, TREE)
    np.testing.assert_array_equal(_values(ax, LineCollection), fastemd.emd_flow(P, Q, TREE))
    np.testing.assert_allclose(_values(ax, PathCollection), P - Q)
    assert {text.get_text() for text in ax.texts} == {str(label) for label in TREE.bins}


def test_plot_flow__a_part_starts_where_its_paths_meet():
    ax = plotting.plot_flow(P, Q, TREE, columns=[1, 0])
    shown = [("a", "b", "x"), ("a", "b", "y")]
    flow = fastemd.emd_flow(P, Q, TREE)[[TREE.nodes.index(node) for node in shown]]
    np.testing.assert_array_equal(_values(ax, LineCollection), flow)


def test_plot_gradient__shows_every_bin():
    ax = plotting.plot_gradient(P, Q, TREE, 2)
    np.testing.assert_array_equal(_values(ax, PathCollection), fastemd.emd_grad(P, Q, TREE, 2))


@pytest.mark.parametrize("rho", [1, 2.5])
def test_plot_gradient__of_equal_histograms_is_zero(rho):
    ax = plotting.plot_gradient(P, P, TREE, rho)
    assert not _values(ax, PathCollection).any()


def test_plot_tree__children_hang_below_their_parents():
    ax = plotting.plot_tree(TREE)
    segments = np.array(_collection(ax, LineCollection).get_segments())
    assert len(segments) == TREE.n_nodes - 1
    assert (segments[:, 0, 1] == segments[:, 1, 1] - 1).all()
    bins = _collection(ax, PathCollection).get_offsets()
    assert len({tuple(xy) for xy in bins.tolist()}) == TREE.n_bins


def test_plot_tree__a_chain_lies_flat_with_its_gaps():
    ax = plotting.plot_tree(fastemd.Chain(3, gaps=[1, 4]))
    bins = _collection(ax, PathCollection).get_offsets()
    np.testing.assert_array_equal(bins, [[0, 0], [1, 0], [5, 0]])


def test_plot_tree__uses_labels_and_axes_of_the_user():
    ax = plt.figure().add_subplot()
    assert plotting.plot_tree(TREE, labels={("c",): "sea"}, ax=ax) is ax
    assert "sea" in {text.get_text() for text in ax.texts}


@pytest.mark.parametrize("columns", [[], [-1], [4], ["a"], [0.5]])
def test_plot_tree__refuses_columns_that_do_not_exist(columns):
    with pytest.raises(ValueError, match="columns: expected integers between 0 and 3"):
        plotting.plot_tree(TREE, columns=columns)


def test_plot_flow__refuses_batches_and_what_is_no_space():
    with pytest.raises(ValueError, match=r"p: expected one histogram, got shape \(1, 4\)"):
        plotting.plot_flow([P], Q, TREE)
    with pytest.raises(TypeError, match="space: expected"):
        plotting.plot_tree("tree")
