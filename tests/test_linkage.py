"""Trees from linkage matrices: cophenetic distances, inversions, invalid matrices."""

import numpy as np
import pytest
from scipy.cluster.hierarchy import cophenet, linkage
from scipy.spatial.distance import squareform

import fastemd
from fastemd import Tree
from tests.support.operations import assert_close

INVERSION = linkage([[0.0, 0.0], [1.0, 0.0], [0.5, 0.9]], "centroid")
assert INVERSION[1, 2] < INVERSION[0, 2]  # the second merge is lower than the first
LINKAGES = {
    "an inversion": (lambda: Tree.from_linkage(INVERSION), ValueError, r"\b[34]\b"),
    "negative height": (lambda: Tree.from_linkage([[0, 1, -1.0, 2]]), ValueError, None),
    "NaN height": (lambda: Tree.from_linkage([[0, 1, np.nan, 2]]), ValueError, None),
    "three columns": (lambda: Tree.from_linkage(np.ones((2, 3))), ValueError, None),
    "one axis": (lambda: Tree.from_linkage(np.ones(4)), ValueError, None),
    "a cluster before it exists": (lambda: Tree.from_linkage([[0, 5, 1.0, 2]]), ValueError, None),
    "an observation twice": (
        lambda: Tree.from_linkage([[0, 1, 1.0, 2], [0, 2, 2.0, 3]]),
        ValueError,
        None,
    ),
    "strings": (lambda: Tree.from_linkage("linkage"), (TypeError, ValueError), None),
}


def _table(cases):
    return pytest.mark.parametrize(("build", "error", "match"), cases.values(), ids=cases.keys())


@_table(LINKAGES)
def test_from_linkage_rejects_invalid_linkages(build, error, match):
    with pytest.raises(error, match=match):
        build()


def test_from_linkage_explains_inversion():
    points = [[0.0, 0.0], [1.0, 0.0], [0.5, 0.8660254]]
    with pytest.raises(ValueError, match=r"Z: cluster 4 at height .* lies below its part 3"):
        Tree.from_linkage(linkage(points, "centroid"))


@pytest.mark.parametrize("height", [np.inf, np.nan])
def test_from_linkage_names_row_with_nonfinite_height(height):
    with pytest.raises(ValueError, match=r"^Z: row 1 has height (inf|nan); expected"):
        Tree.from_linkage([[0, 1, 1.0, 2], [2, 3, height, 3]])


def test_from_linkage_names_row_with_negative_height():
    with pytest.raises(ValueError, match=r"^Z: row 0 has height -1.0; expected"):
        Tree.from_linkage([[0, 1, -1.0, 2]])


def test_from_linkage_rejects_non_numeric_matrices():
    with pytest.raises(TypeError, match=r"^Z: expected a linkage matrix"):
        Tree.from_linkage([["0", "1", "x", "2"]])


@pytest.mark.parametrize(("dtype", "step"), [(np.float64, 1e-7), (np.float32, 1e-3)])
def test_from_linkage_rejects_inversions_beyond_rounding(dtype, step):
    with pytest.raises(ValueError, match=r"^Z: cluster 4 at height .* lies below its part 3 at"):
        Tree.from_linkage(np.array([[0, 1, 0.1, 2], [2, 3, 0.1 * (1 - step), 3]], dtype))


def test_from_linkage_rejects_inversions_that_add_up_beyond_rounding():
    n = 1000
    heights = 1.0 - 1e-8 * np.arange(n)
    merges = [[max(n + i, i), i + 1, h, i + 2] for i, h in enumerate(heights)]
    merges[0][0] = 0
    with pytest.raises(ValueError, match=r"^Z: cluster .* lies below its part"):
        Tree.from_linkage(merges)


def test_from_linkage_rejects_masked_entries():
    with pytest.raises(ValueError, match=r"^Z: 1 of 4 entries masked"):
        Tree.from_linkage(np.ma.array([[0, 1, 1.0, 2]], mask=[[0, 0, 1, 0]]))


@pytest.mark.parametrize("method", ["single", "complete", "average", "ward"])
@pytest.mark.parametrize("n", [2, 3, 30])
def test_from_linkage_has_cophenetic_distances(method, n, rng):
    points = rng.normal(size=(n, 3))
    merges = linkage(points, method)
    tree = fastemd.Tree.from_linkage(merges)
    assert tree.bins == tuple(range(n))
    assert tree.n_nodes == 2 * n - 1
    assert_close(tree.cost_matrix(), squareform(cophenet(merges)), rtol=1e-13)
    one_hot = np.eye(n)
    assert_close(
        fastemd.emd(one_hot[:, None], one_hot, tree, 2), squareform(cophenet(merges)), rtol=1e-13
    )


@pytest.mark.parametrize(("dtype", "ulps"), [(np.float64, 1), (np.float64, 500), (np.float32, 500)])
def test_from_linkage_accepts_inversions_within_rounding(dtype, ulps):
    """Ward linkage of vectors by fastcluster may give a part that is higher than its cluster."""
    merges = np.array([[0, 1, 0.1, 2], [4, 2, 0.1, 3], [5, 3, 0.3, 4]], dtype)
    merges[0, 2] += ulps * np.spacing(merges[0, 2])
    assert merges[1, 2] < merges[0, 2]
    tree = fastemd.Tree.from_linkage(merges)
    assert (tree.weight >= 0.0).all()
    tolerance = np.sqrt(np.finfo(dtype).eps)
    assert_close(tree.cost_matrix(), squareform(cophenet(merges)), rtol=tolerance)
