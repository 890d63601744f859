"""UniFrac equals the oracle, scikit-bio and ssu, for tables and trees of all types."""

import importlib.util
import io
import re

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from skbio import DistanceMatrix, TreeNode

import fastemd
from fastemd import pair_sums
from tests.support import naive, naive_unifrac
from tests.support.frameworks import needed
from tests.support.operations import assert_close
from tests.support.strategies import tree_case
from tests.support.unifrac_cases import (
    COUNTS,
    SCIKIT_BIO,
    SMALL,
    each_metric,
    names,
    needs_ssu,
    newick,
    problem,
    reference,
    scikit_bio,
    ssu,
)

TAXA = ["a", "b", "c"]
IDS = ["s1", "s2", "s3"]
NEWICK = "((a:1,b:2):3,c:4);"  # SMALL
TREE = fastemd.Tree.from_newick(NEWICK)
EMPTY = [0, 0, 0]
RATIOS = [metric for metric in naive_unifrac.METRICS if metric != "weighted"]
SCALE_FREE = ["weighted", "weighted_normalized", "unweighted", "generalized"]
each_ratio = pytest.mark.parametrize("metric", RATIOS)


def unifrac(counts, ground, metric="weighted", alpha=1.0, **keywords):
    """Return the distances of counts whose taxa are the bins of the tree."""
    return fastemd.unifrac(counts, tree_case(ground).space, metric=metric, alpha=alpha, **keywords)


@pytest.fixture(params=["all dense", "all sparse"])
def split(request, monkeypatch):
    """Treat all edges as dense or as sparse."""
    monkeypatch.setattr(pair_sums, "DENSE_SHARE", 0.0 if request.param == "all dense" else 2.0)
    monkeypatch.setattr(pair_sums, "MOST_SPARSE", 2.0)


# Values ------------------------------------------------------------------------------------------


@each_metric
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_unifrac_equals_oracle(seed, alpha, metric):
    ground, counts = problem(seed)
    comp = fastemd.unifrac(counts, newick(ground), metric=metric, alpha=alpha, taxa=names(ground))
    assert_close(comp, reference(counts, ground, metric, alpha))


@each_metric
@pytest.mark.parametrize("seed", [1, 4])
def test_unifrac_equals_oracle_for_each_split(seed, metric, split):
    ground, counts = problem(seed)
    counts[2:4] = 0
    assert_close(unifrac(counts, ground, metric, 0.5), reference(counts, ground, metric, 0.5))


@each_metric
def test_unifrac_equals_oracle_for_inner_nodes_as_taxa(metric, rng):
    ground, _ = problem(2)
    ground = ground._replace(bin_node=rng.permutation(len(ground.parent)).tolist())
    counts = rng.integers(0, 4, (6, len(ground.parent)))
    assert_close(unifrac(counts, ground, metric, 0.3), reference(counts, ground, metric, 0.3))


@pytest.mark.parametrize("metric", SCIKIT_BIO)
@pytest.mark.parametrize("seed", range(4))
def test_unifrac_equals_scikit_bio(seed, metric):
    ground, counts = problem(seed)
    ref = scikit_bio(counts, ground, metric, "cython")
    comp = fastemd.unifrac(counts, newick(ground), metric=metric, taxa=names(ground))
    assert_close(comp, ref, rtol=1e-10)


@needs_ssu
@each_metric
@pytest.mark.parametrize("seed", [1, 2])
def test_unifrac_equals_ssu(seed, metric, tmp_path):
    ground, counts = problem(seed)
    ref = ssu(tmp_path, counts, newick(ground), names(ground), metric, 0.5)
    comp = fastemd.unifrac(counts, newick(ground), metric=metric, alpha=0.5, taxa=names(ground))
    assert_close(comp, ref, rtol=1e-6)


@each_metric
def test_unifrac_by_blocks_equals_oracle(metric, monkeypatch, rng):
    ground, _ = problem(3)
    counts = rng.negative_binomial(0.3, 0.1, (37, len(ground.bin_node)))
    whole = unifrac(counts, ground, metric, 0.5)
    monkeypatch.setattr(pair_sums, "BLOCK_ROWS", 8)
    monkeypatch.setattr(pair_sums, "CACHE_BYTES", 0)
    comp = unifrac(counts, ground, metric, 0.5)
    assert_close(comp, whole)
    assert_close(comp, reference(counts, ground, metric, 0.5))
    np.testing.assert_array_equal(comp, comp.T)


@each_metric
def test_unifrac_of_sparse_table_on_large_tree_equals_oracle(metric, rng):
    """Only the part of the tree that the table uses is read."""
    n = 3000
    parent = [-1, *(int(rng.integers(max(0, i - 50), i)) for i in range(1, n))]
    length = rng.exponential(size=n).tolist()
    ground = naive.Ground(parent, length, list(range(n)))
    used = rng.permutation(n)[:40]
    counts = np.zeros((9, n), int)
    counts[:, used] = rng.negative_binomial(0.3, 0.1, (9, used.size))
    comp = unifrac(scipy.sparse.csr_array(counts), ground, metric, 0.5)
    few = ground._replace(bin_node=used.tolist())
    assert_close(comp, reference(counts[:, used], few, metric, 0.5))


# Empty samples, equal samples, and the range of counts -------------------------------------------


@each_metric
def test_unifrac_of_empty_samples_equals_oracle(metric):
    counts = [*COUNTS, EMPTY, EMPTY]
    comp = unifrac(counts, SMALL, metric, 0.5)
    assert comp[3, 4] == 0
    assert_close(comp, reference(counts, SMALL, metric, 0.5))


@each_metric
@pytest.mark.parametrize("make", [np.array, scipy.sparse.csr_array])
def test_unifrac_of_table_of_zeros_is_zero(make, metric):
    comp = unifrac(make([EMPTY] * 3), SMALL, metric, 0.5)
    np.testing.assert_array_equal(comp, np.zeros((3, 3)))


@each_metric
def test_unifrac_without_lengths_is_zero(metric):
    ground = SMALL._replace(weight=[0.0] * 5)
    np.testing.assert_array_equal(unifrac(COUNTS, ground, metric, 0.5), np.zeros((3, 3)))


@each_metric
@pytest.mark.parametrize("n_rows", [0, 1])
def test_unifrac_of_few_samples_is_zero(n_rows, metric):
    counts = np.array(COUNTS[:n_rows]).reshape(n_rows, 3)
    comp = unifrac(counts, SMALL, metric, 0.5)
    np.testing.assert_array_equal(comp, np.zeros((n_rows, n_rows)))


@each_metric
def test_unifrac_of_equal_samples_is_zero(metric, split):
    ground, counts = problem(5)
    comp = unifrac(np.concatenate([counts, counts]), ground, metric, 0.5)
    np.testing.assert_array_equal(np.diag(comp[:7, 7:]), np.zeros(7))


@each_ratio
def test_unifrac_of_samples_without_common_edges_is_one(metric, split, rng):
    """Rounding errors do not make a ratio greater than 1."""
    n = 600
    ground = naive.Ground([-1] + [0] * n, [0.0, *rng.exponential(size=n)], list(range(1, n + 1)))
    counts = rng.integers(1, 99, (20, n)) * (np.arange(n) % 20 == np.arange(20)[:, None])
    comp = unifrac(counts, ground, metric, 0.3)
    assert comp.max() <= 1
    assert_close(comp, 1.0 - np.eye(20))


@each_metric
def test_variance_of_edges_above_all_counts_is_ignored(metric):
    """Rounding errors of shares do not decide whether all counts are below an edge."""
    ground = naive.Ground(
        [5, 5, 5, 5, 5, 6, 7, -1], [1.0, 2.0, 0.5, 1.5, 0.75, 3.0, 2.5, 0.0], [0, 1, 2, 3, 4]
    )
    counts = np.random.default_rng(0).integers(0, 1000, (20, 5))
    comp = unifrac(counts, ground, metric, 0.5)
    assert_close(comp, reference(counts, ground, metric, 0.5))
    shares = counts / counts.sum(axis=1, keepdims=True)
    scale_free = ground._replace(weight=[*ground.weight[:5], 0.0, 0.0, 0.0])
    comp = unifrac(shares, ground, "variance_adjusted")
    assert_close(comp, reference(shares, scale_free, "variance_adjusted"))


@each_metric
def test_unifrac_of_counts_of_any_size_equals_oracle(metric):
    counts = [[1e300, 0, 1e290], [0, 3, 5], [1e300, 2e300, 1], [2, 0, 7]]
    if metric != "variance_adjusted":
        comp = unifrac(counts, SMALL, metric, 0.5)
        assert_close(comp, reference(counts, SMALL, metric, 0.5))
    for size in (1e300, 1e-300):
        counts = np.array([*COUNTS, EMPTY]) * size
        ref = reference([*COUNTS, EMPTY], SMALL, metric, 0.5)
        assert_close(unifrac(counts, SMALL, metric, 0.5), ref)


def test_unweighted_unifrac_counts_smallest_numbers():
    counts = [[1e300, 1e-300, 0], [1.0, 0, 5e-324], [1e-300, 1e-300, 0]]
    comp = unifrac(counts, SMALL, "unweighted")
    assert_close(comp, reference(np.sign(counts), SMALL, "unweighted"))
    assert comp[0, 2] == 0


# Invariances -------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", SCALE_FREE)
def test_unifrac_does_not_depend_on_depth_of_samples(metric):
    ground, counts = problem(6)
    scaled = counts * np.array([1, 2, 7, 10, 1000, 3, 0.37])[:, None]
    assert_close(unifrac(scaled, ground, metric, 0.5), unifrac(counts, ground, metric, 0.5))
    shares = counts / counts.sum(axis=1, keepdims=True)
    assert_close(unifrac(shares, ground, metric, 0.5), unifrac(counts, ground, metric, 0.5))


@each_metric
def test_unifrac_does_not_depend_on_order_of_taxa(metric, rng):
    ground, counts = problem(2)
    order = rng.permutation(len(ground.bin_node))
    comp = fastemd.unifrac(
        counts[:, order], newick(ground), metric=metric, alpha=0.5,
        taxa=np.array(names(ground))[order],
    )  # fmt: skip
    assert_close(comp, unifrac(counts, ground, metric, 0.5))


@each_metric
def test_unifrac_does_not_depend_on_unary_nodes(metric, rng):
    ground, counts = problem(4)
    divided = naive.subdivide(ground, rng.integers(1, 4, len(ground.parent)).tolist())
    assert_close(unifrac(counts, divided, metric, 0.5), unifrac(counts, ground, metric, 0.5))


@each_metric
def test_unifrac_prunes_tips_without_column(metric):
    """The result is that of the tree without these tips."""
    ground, counts = problem(3)
    taxa = names(ground)
    sheared = TreeNode.read([newick(ground)]).shear(taxa, prune=False)
    comp = fastemd.unifrac(counts, newick(ground), metric=metric, alpha=0.5, taxa=taxa)
    ref = fastemd.unifrac(counts, sheared, metric=metric, alpha=0.5, taxa=taxa)
    assert_close(comp, ref)


# Types of tables and trees -----------------------------------------------------------------------


def biom_table(counts, taxa=TAXA, ids=IDS):
    return needed("biom").Table(np.asarray(counts, float).T, list(taxa), list(ids))


@pytest.mark.parametrize(
    "make",
    [
        np.array,
        lambda x: np.array(x, np.uint8),
        lambda x: np.array(x, np.float32),
        lambda x: np.array(x, object),
        lambda x: np.array(x, order="F"),
        lambda x: x,
        scipy.sparse.csr_array,
        scipy.sparse.csc_matrix,
        lambda x: scipy.sparse.coo_array(np.array(x, np.float32)),
        pd.DataFrame,
        lambda x: pd.DataFrame(x, IDS, TAXA),
        lambda x: pd.DataFrame(x, IDS, TAXA).astype(pd.SparseDtype("int64", 0)),
        biom_table,
    ],
    ids=["array", "uint8", "float32", "objects", "order F", "lists", "csr_array", "csc_matrix",
         "coo_array", "unnamed frame", "frame", "sparse frame", "biom"],
)  # fmt: skip
@pytest.mark.parametrize("metric", ["weighted", "unweighted"])
def test_unifrac_accepts_tables_of_all_types(metric, make):
    comp = np.asarray(getattr(result := fastemd.unifrac(make(COUNTS), TREE, metric=metric),
                              "data", result))  # fmt: skip
    assert_close(comp, reference(COUNTS, SMALL, metric), rtol=1e-6)


@each_metric
@pytest.mark.parametrize("make", [np.array, scipy.sparse.csr_array])
def test_unifrac_returns_float32_for_float32(make, metric):
    comp = unifrac(make(np.array(COUNTS, np.float32)), SMALL, metric, 0.5)
    assert comp.dtype == np.float32
    assert_close(comp, reference(COUNTS, SMALL, metric, 0.5), rtol=1e-6)
    assert unifrac(make(np.array(COUNTS)), SMALL, metric, 0.5).dtype == np.float64


def test_unifrac_does_not_change_table():
    values, columns, starts = np.arange(1.0, 7.0), np.array([2, 0, 1, 1, 2, 0]), [0, 2, 4, 6]
    table = scipy.sparse.csr_array((values, columns, starts), shape=(3, 3))
    dense = table.toarray()
    ref = unifrac(dense, SMALL)
    for array in (table.data, table.indices, table.indptr):
        array.flags.writeable = False
    assert_close(unifrac(table, SMALL), ref)
    np.testing.assert_array_equal(values, np.arange(1.0, 7.0))
    np.testing.assert_array_equal(table.toarray(), dense)


@pytest.mark.parametrize("order", [[2, 0, 1], [1, 2, 0]])
@pytest.mark.parametrize("make", [lambda *x: pd.DataFrame(*x), lambda x, i, t: biom_table(x, t, i)],
                         ids=["frame", "biom"])  # fmt: skip
def test_unifrac_matches_taxa_by_name(make, order):
    table = make(np.array(COUNTS)[:, order], IDS, [TAXA[i] for i in order])
    comp = fastemd.unifrac(table, "((x:5,(a:1,b:2):3):0,c:4);")
    assert_close(comp.data, reference(COUNTS, SMALL, "weighted"))


@pytest.mark.parametrize(
    "make",
    [
        lambda path: TREE,
        lambda path: TreeNode.read([NEWICK]),
        lambda path: NEWICK,
        lambda path: path,
        str,
        lambda path: io.StringIO(NEWICK),
    ],
    ids=["Tree", "TreeNode", "Newick", "Path", "path", "file"],
)
def test_unifrac_accepts_trees_of_all_types(make, tmp_path):
    (tmp_path / "tree.nwk").write_text(NEWICK)
    comp = fastemd.unifrac(COUNTS, make(tmp_path / "tree.nwk"))
    assert_close(comp, reference(COUNTS, SMALL, "weighted"))


@each_metric
@pytest.mark.parametrize("taxa", [None, [2, 0, 1]])
def test_unifrac_accepts_chain(taxa, metric):
    ground = naive.chain(3, [1.0, 2.5])
    if taxa:
        ground = ground._replace(bin_node=[ground.bin_node[i] for i in taxa])
    comp = fastemd.unifrac(COUNTS, fastemd.Chain(3, [1.0, 2.5]), metric=metric, taxa=taxa)
    assert_close(comp, reference(COUNTS, ground, metric))


# Types of results --------------------------------------------------------------------------------


FRAME = pd.DataFrame(COUNTS, IDS, TAXA)


def without(monkeypatch, *packages):
    """Let fastemd find no packages of these names."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *x: None if name in packages else find(name, *x)
    )


def test_unifrac_returns_distance_matrix_with_names():
    ref = reference(COUNTS, SMALL, "weighted")
    for table, keywords in ((FRAME, {}), (biom_table(COUNTS), {}), (COUNTS, {"ids": IDS})):
        result = fastemd.unifrac(table, TREE, **keywords)
        assert type(result) is DistanceMatrix
        assert list(result.ids) == IDS
        assert_close(result.data, ref)


def test_unifrac_returns_frame_without_scikit_bio(monkeypatch):
    without(monkeypatch, "skbio")
    result = fastemd.unifrac(FRAME.astype(np.float32), TREE, ids=[1, "x", (2, 3)])
    assert type(result) is pd.DataFrame
    assert list(result.index) == list(result.columns) == [1, "x", (2, 3)]
    assert (result.dtypes == np.float32).all()
    assert_close(result.to_numpy(), reference(COUNTS, SMALL, "weighted"), rtol=1e-6)


def test_unifrac_returns_array_without_pandas(monkeypatch):
    without(monkeypatch, "skbio", "pandas")
    assert type(fastemd.unifrac(FRAME, TREE)) is np.ndarray


@pytest.mark.parametrize(
    "table", [COUNTS, pd.DataFrame(COUNTS), pd.DataFrame(COUNTS, columns=TAXA)]
)
def test_unifrac_returns_array_without_names(table):
    assert type(fastemd.unifrac(table, TREE)) is np.ndarray


def test_unifrac_keeps_index_of_frame_with_unnamed_columns():
    table = pd.DataFrame(COUNTS, IDS)
    assert list(fastemd.unifrac(table, TREE).ids) == IDS
    assert list(fastemd.unifrac(table, TREE, taxa=TAXA).ids) == IDS


def test_unifrac_returns_empty_frame_for_no_samples():
    """scikit-bio has no empty matrices."""
    result = fastemd.unifrac(FRAME.iloc[:0], TREE)
    assert type(result) is pd.DataFrame
    assert result.shape == (0, 0)


def test_unifrac_returns_out(tmp_path):
    ref = reference(COUNTS, SMALL, "weighted")
    for out in (
        np.empty((3, 3)),
        np.empty((3, 3), np.float32),
        np.memmap(tmp_path / "distances", np.float64, "w+", shape=(3, 3)),
    ):
        assert fastemd.unifrac(FRAME, TREE, out=out) is out
        assert_close(out, ref, rtol=1e-6)
    with pytest.raises(ValueError, match=r"^out: shape \(3, 2\); expected .* \(3, 3\)"):
        fastemd.unifrac(FRAME, TREE, out=np.empty((3, 2)))


# Errors ------------------------------------------------------------------------------------------


@each_metric
@pytest.mark.parametrize("value", [-1, -0.25, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("make", [np.array, scipy.sparse.csr_array])
def test_unifrac_rejects_invalid_counts(make, value, metric):
    counts = np.zeros((20, 30))
    counts[:, 3:9] = 1
    counts[13, 8] = value
    ground = naive.Ground([-1] + [0] * 30, [1.0] * 31, list(range(1, 31)))
    problem = "has a negative mass" if value in (-1, -0.25) else "is not finite"
    message = rf"^table: row 13 {problem}, {re.escape(str(float(value)))} at bin 8;"
    with pytest.raises(ValueError, match=message):
        unifrac(make(counts), ground, metric, 0.5)


@each_metric
def test_unifrac_rejects_negative_totals(metric):
    with pytest.raises(ValueError, match=r"^table: row 1 has a negative mass, -2.0 at bin 1;"):
        unifrac([[1, 0, 0], [-1, -2, 0]], SMALL, metric)


@each_metric
def test_unifrac_rejects_totals_beyond_float64(metric):
    with pytest.raises(ValueError, match=r"^table: row 1: the mass is beyond the range of float64"):
        unifrac([[1, 0, 0], [1e308, 1e308, 0]], SMALL, metric)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        (
            {"taxa": ["a", "x", "c"]},
            r"^taxa: 1 of 3 are not bins .*: 'x'; expected .* 'a'",
        ),
        (
            {"taxa": list("vwxyz")},
            r"^taxa: 5 names; expected one for each .* 3 columns",
        ),
        ({"taxa": ["a", "b", "b"]}, r"^taxa: duplicate name 'b'; each may appear once"),
        ({"taxa": ["x", "y", "z"]}, r"^taxa: 3 of 3 are not bins of the tree: 'x', 'y', 'z'; "),
        ({"ids": ["s", "t"]}, r"^ids: 2 names; expected one for each of the table's 3 rows"),
        ({"ids": ["s", "t", "s"]}, r"^ids: duplicate name 's'; each may appear once"),
        ({"metric": "euclidean"}, r"^metric: expected one of weighted, .*, got 'euclidean'"),
        ({"metric": None}, r"^metric: expected one of weighted, .*, got None"),
        ({"alpha": 1.5}, r"^alpha: expected a number from 0 to 1, got 1.5"),
        ({"alpha": np.nan}, r"^alpha: expected a number from 0 to 1, got nan"),
    ],
)
def test_unifrac_rejects_invalid_arguments(keywords, message):
    with pytest.raises(ValueError, match=message):
        fastemd.unifrac(COUNTS, TREE, **keywords)


def test_unifrac_counts_missing_taxa():
    tree = fastemd.Tree.from_newick("(a:1,b:1);")
    with pytest.raises(ValueError, match=r"^taxa: 4 of 5 are not bins .* 'v', 'w', 'x', \.\.\.;"):
        fastemd.unifrac(np.ones((1, 5)), tree, taxa=list("vwxay"))


def test_unifrac_rejects_duplicate_names_of_frames():
    with pytest.raises(ValueError, match=r"^ids: duplicate name 's1'"):
        fastemd.unifrac(pd.DataFrame(COUNTS, ["s1", "s2", "s1"], TAXA), TREE)
    with pytest.raises(ValueError, match=r"^taxa: duplicate name 'a'"):
        fastemd.unifrac(pd.DataFrame(COUNTS, IDS, ["a", "b", "a"]), TREE)


def test_unifrac_rejects_unnamed_table_of_other_width():
    with pytest.raises(ValueError, match=r"table: .*2"):
        fastemd.unifrac(np.ones((3, 2)), TREE)
    with pytest.raises(ValueError, match=r"^table: no columns; expected one for each taxon"):
        fastemd.unifrac(np.ones((3, 0)), TREE, taxa=[])
    with pytest.raises(ValueError, match=r"^table: shape \(3,\); expected two axes"):
        fastemd.unifrac([1, 2, 0], TREE)


@pytest.mark.parametrize(("tree", "kind"), [(None, "None"), (3, "3"), ([1, 2], "list")])
def test_unifrac_rejects_trees_of_other_types(tree, kind):
    with pytest.raises(TypeError, match=f"^tree: expected a fastemd.Tree, .* got {kind}"):
        fastemd.unifrac(COUNTS, tree)


def test_unifrac_rejects_missing_and_negative_lengths():
    with pytest.raises(ValueError, match="no length above"):
        fastemd.unifrac(COUNTS, "((a:1,b:2),c:4);")
    with pytest.raises(ValueError, match=r"the length above node 'b' is -2\.0"):
        fastemd.unifrac(COUNTS, "((a:1,b:-2):3,c:4);")
    tree = fastemd.Tree.from_newick("((a:1,b:2),c:4);", missing_length=3.0)
    assert_close(fastemd.unifrac(COUNTS, tree), reference(COUNTS, SMALL, "weighted"))


def test_unifrac_rejects_ids_that_are_the_same_text():
    with pytest.raises(ValueError, match="ids: duplicate name '1'"):
        fastemd.unifrac([[1, 2], [3, 4]], fastemd.Tree.from_parents([-1, 0, 0]), ids=[1, "1"])


def test_unifrac_names_options_of_trees():
    message = r"^tree: no edge has a length; .*; build the tree by Tree.from_newick with missing_le"
    with pytest.raises(ValueError, match=message):
        fastemd.unifrac([[1, 2]], "(a,b);")


@pytest.mark.parametrize("name", ["source", "pass", "a source", "it''s source"])
def test_unifrac_keeps_names_of_tips_in_errors(name):
    label = repr(name.replace("''", "'"))
    with pytest.raises(ValueError, match=rf"^tree: the length above node {re.escape(label)} is -1"):
        fastemd.unifrac([[1, 2]], f"('{name}':-1,b:1);")


def test_unifrac_rejects_trees_of_other_encodings(tmp_path):
    path = tmp_path / "tree.nwk"
    path.write_bytes("(\u00e4:1,b:1);".encode("latin-1"))
    with pytest.raises(ValueError, match=r"^tree: not UTF-8 text; .*; save the file as UTF-8"):
        fastemd.unifrac([[1, 2]], path)
