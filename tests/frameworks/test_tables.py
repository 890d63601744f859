"""Data frames, columns of objects, masked and sparse arrays as inputs."""

import decimal
import fractions

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

import fastemd
from fastemd import pair_sums
from tests.support.frameworks import needed

TREE = fastemd.Tree.from_paths([("a", "x"), ("a", "y"), ("b",)])
NAMED = fastemd.Tree.from_networkx(TREE.to_networkx(), bins=TREE.bins)
SPACE = fastemd.Tree.from_parents([-1, 0, 0, 1, 1], bins=[3, 4, 2])


def _star(names):
    import networkx as nx

    return fastemd.Tree.from_networkx(nx.DiGraph([("root", name) for name in names]))


STAR = _star(["cat", "dog", "ant"])
P = np.array([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]])
Q = np.array([[0.25, 0.25, 0.5], [0.5, 0.0, 0.5]])


def _frame(dtype, array=P, columns=("cat", "dog", "ant")):
    if "pyarrow" in str(dtype):
        needed("pyarrow")
    return pd.DataFrame(array, columns=list(columns)).astype(dtype)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: _frame("float64", x),
        lambda x: _frame("Float64", x),
        lambda x: _frame("double[pyarrow]", x),
        lambda x: _frame(object, x),
        lambda x: pd.DataFrame(x),
        lambda x: x.astype(object),
        lambda x: np.vectorize(fractions.Fraction, otypes=[object])(x),
        lambda x: np.vectorize(decimal.Decimal, otypes=[object])(x),
        lambda x: np.ma.masked_array(x),
        lambda x: np.ma.masked_array(x, mask=np.zeros_like(x, bool)),
        lambda x: [[fractions.Fraction(v) for v in row] for row in x.tolist()],
    ],
    ids=["frame", "nullable", "pyarrow", "objects in a frame", "unnamed frame", "objects",
         "fractions", "decimals", "masked", "masked nowhere", "lists"],
)  # fmt: skip
def test_functions_accept_tables_of_numbers(make):
    value, grad = fastemd.emd_value_and_grad(make(P), make(Q), STAR, 1.5)
    ref = fastemd.emd_value_and_grad(P, Q, STAR, 1.5)
    for ours, theirs in zip((value, grad), ref, strict=True):
        assert type(ours) is np.ndarray
        np.testing.assert_array_equal(ours, theirs)
    loss, grad = fastemd.emd_loss(make(P), make(Q), STAR, normalize="l1")
    ref = fastemd.emd_loss(P, Q, STAR, normalize="l1")
    assert loss == ref[0]
    np.testing.assert_array_equal(grad, ref[1])
    result = fastemd.sinkhorn(make(P), make(Q), STAR, lam=3)
    np.testing.assert_array_equal(result.value, fastemd.sinkhorn(P, Q, STAR, lam=3).value)
    assert fastemd.exact_emd(make(P), make(Q), make(np.eye(3)))[0].shape == (2,)


@pytest.mark.parametrize("dtype", ["int64", "Int64", "int8[pyarrow]", object, "category"])
def test_emd_loss_accepts_columns_of_labels(dtype):
    if "pyarrow" in str(dtype):
        needed("pyarrow")
    labels = pd.Series([2, 0]).astype(dtype)
    weight = pd.Series([0.5, 1.5], dtype="Float64")
    loss, grad = fastemd.emd_loss(P, labels, STAR, sample_weight=weight, ignore_index=7)
    ref = fastemd.emd_loss(P, [2, 0], STAR, sample_weight=[0.5, 1.5])
    assert loss == ref[0]
    np.testing.assert_array_equal(grad, ref[1])


def test_functions_reject_missing_entries_in_tables():
    nullable = _frame("Float64")
    nullable.iloc[1, 2] = pd.NA
    with pytest.raises((TypeError, ValueError), match=r"^q\b.*(index \(1, 2\)|nan at bin 2)"):
        fastemd.emd(P, nullable, STAR, 1)
    for entry, name in ((None, "NoneType"), ("0.5", "str"), (1j, "complex"), ([0.5], "list")):
        objects = P.astype(object)
        objects[1, 2] = entry
        message = rf"^p: expected real numbers, .* with {name} at index \(1, 2\); (fill|encode)"
        with pytest.raises(TypeError, match=message) as caught:
            fastemd.emd(objects, Q, STAR, 1)
        assert "0.5" not in str(caught.value)
    masked = np.ma.masked_array(P, mask=[[0, 0, 0], [0, 0, 1]])
    with pytest.raises(TypeError, match=r"^p: .* fill the masked entries first"):
        fastemd.emd(masked, Q, STAR, 1)
    labels = pd.Series([2, pd.NA], dtype="Int64")
    with pytest.raises((TypeError, ValueError), match=r"^target: .*(index 1|must be integers)"):
        fastemd.emd_loss(P, labels, STAR)


@pytest.mark.parametrize("function", ["emd", "emd_loss", "embed", "sinkhorn", "exact_emd"])
def test_functions_reject_columns_in_other_order(function):
    frame = _frame("float64", columns=("dog", "cat", "ant"))
    calls = {
        "emd": lambda x: fastemd.emd(P, x, STAR, 1),
        "emd_loss": lambda x: fastemd.emd_loss(P, x, STAR)[0],
        "embed": lambda x: fastemd.embed(x, STAR, 1),
        "sinkhorn": lambda x: fastemd.sinkhorn(x, Q, STAR, lam=1).value,
        "exact_emd": lambda x: fastemd.exact_emd(x, Q, STAR)[0],
    }
    call = calls[function]
    with pytest.raises(
        ValueError, match=r"^\w+: the columns .* another order .* pass df\[list\(space.bins\)\]"
    ):
        call(frame)
    np.testing.assert_array_equal(call(frame[list(STAR.bins)]), call(P[:, [1, 0, 2]]))
    unrelated = _frame("float64", columns=("dog", "cat", "bee"))
    np.testing.assert_array_equal(call(unrelated), call(P))


def test_emd_rejects_series_in_other_order():
    series = pd.Series(P[0], ["dog", "cat", "ant"])
    message = r"^q: the index of this Series .* another order .* pass series\[list\(space.bins\)\]"
    with pytest.raises(ValueError, match=message):
        fastemd.emd(Q[0], series, STAR, 1)
    ordered = series[list(STAR.bins)]
    np.testing.assert_array_equal(
        fastemd.emd(Q[0], ordered, STAR, 1), fastemd.emd(Q[0], P[0, [1, 0, 2]], STAR, 1)
    )


def test_functions_ignore_default_index():
    """A RangeIndex is a position, also if nodes have such numbers as names."""
    space = fastemd.Tree.from_parents([3, 3, 3, -1], bins=[2, 0, 1])
    value = fastemd.emd(pd.DataFrame(P), pd.DataFrame(Q), space, 1)
    np.testing.assert_array_equal(value, fastemd.emd(P, Q, space, 1))
    chain, shuffled = fastemd.Chain(3), pd.DataFrame(P)[[2, 0, 1]]
    with pytest.raises(ValueError, match="another order"):
        fastemd.emd(shuffled, Q, chain, 1)


def test_functions_accept_columns_named_by_paths():
    frame = pd.DataFrame(P, columns=pd.Index([("a", "y"), ("a", "x"), ("b",)], tupleize_cols=False))
    with pytest.raises(ValueError, match="another order"):
        fastemd.emd(frame, Q, TREE, 1)
    ordered = pd.DataFrame(P, columns=pd.Index(list(TREE.bins), tupleize_cols=False))
    np.testing.assert_array_equal(fastemd.emd(ordered, Q, TREE, 1), fastemd.emd(P, Q, TREE, 1))


@pytest.mark.parametrize("make", [scipy.sparse.csr_array, scipy.sparse.csr_matrix,
                                  scipy.sparse.coo_array])  # fmt: skip
def test_functions_reject_sparse_arrays_of_scipy(make):
    for call in (
        lambda x: fastemd.emd(P, x, STAR, 1),
        lambda x: fastemd.emd_loss(P, x, STAR),
        lambda x: fastemd.sinkhorn(P, x, STAR, lam=1),
    ):
        with pytest.raises(TypeError, match=r"^(q|target): sparse .* pass (q|target).toarray\(\)"):
            call(make(Q))


def test_functions_reject_sparse_tensors():
    torch = needed("torch")
    p, q = torch.tensor(P), torch.tensor(Q)
    for sparse in (q.to_sparse(), q[0].to_sparse()):
        with pytest.raises(TypeError, match=r"^q: sparse .* got Tensor; pass q.to_dense\(\)"):
            fastemd.emd(p, sparse, STAR, 1)
    sparse = needed("jax.experimental.sparse").BCOO.fromdense(Q)
    with pytest.raises(TypeError, match=r"^q: sparse .* pass q.todense\(\)"):
        fastemd.emd(P, sparse, STAR, 1)


def test_errors_contain_types_and_shapes_but_no_data():
    secret = "4711.5"
    for invalid in (
        [[secret] * 3] * 2,
        np.full((2, 3), secret),
        {"p": secret},
        np.full(3, 4711.5j),
    ):
        with pytest.raises(
            TypeError, match=r"^p: expected an array of real numbers, got"
        ) as caught:
            fastemd.emd(invalid, Q, STAR, 1)
        assert "4711" not in str(caught.value)
    with pytest.raises(TypeError, match=r"ndarray of shape \(2, 3\) and dtype <U6"):
        fastemd.emd(np.full((2, 3), secret), Q, STAR, 1)
    with pytest.raises(TypeError, match="rho: expected a number >= 1, got list of length 2"):
        fastemd.emd(P, Q, STAR, [4711.5, 2])


def test_functions_reject_columns_of_arrow_in_other_order():
    arrow = needed("pyarrow")
    columns = dict(zip(("dog", "cat", "ant"), P.T, strict=True))
    with pytest.raises(ValueError, match="another order"):
        fastemd.emd(arrow.table(columns), Q, STAR, 1)
    ordered = arrow.table({name: columns[name] for name in STAR.bins})
    ref = fastemd.emd(P[:, [1, 0, 2]], Q, STAR, 1)
    np.testing.assert_array_equal(fastemd.emd(ordered, Q, STAR, 1), ref)


def test_functions_reject_numbered_columns_in_other_order():
    space = fastemd.Tree.from_parents([3, 3, 3, -1], bins=[2, 0, 1])
    with pytest.raises(ValueError, match="another order"):
        fastemd.emd(pd.DataFrame(P, columns=pd.Index([0, 1, 2])), Q, space, 1)


def test_plots_reject_series_in_other_order():
    series = pd.Series([1.0, 0.0, 0.0], ["dog", "cat", "ant"])
    for plot in (fastemd.plotting.plot_flow, lambda *x: fastemd.plotting.plot_gradient(*x, 2)):
        with pytest.raises(ValueError, match="another order"):
            plot(series, Q[0], STAR)


def test_functions_treat_objects_beyond_float64_as_infinite():
    huge = [[10**400, 0, 0]]
    with pytest.raises(ValueError, match="p: row 0 is not finite, inf at bin 0"):
        fastemd.emd(huge, Q[0], STAR, 1)
    with pytest.raises(ValueError, match="q: row 0 is not finite, -inf at bin 1"):
        fastemd.emd(Q[0], [[0, fractions.Fraction(-(10**400)), 1]], STAR, 1)
    with pytest.raises(ValueError, match="p is not finite, nan at bin 0"):
        fastemd.emd([decimal.Decimal("sNaN"), 0, 1], Q[0], STAR, 1)
    with pytest.raises(ValueError, match="sample_weight: row 1 is inf"):
        fastemd.emd_loss(P, [0, 1], STAR, sample_weight=[1, 10**400])
    with pytest.raises(ValueError, match="cost: not finite"):
        fastemd.exact_emd([1, 0], [0, 1], [[0, 10**400], [1, 0]])


def test_emd_loss_rejects_boolean_objects():
    with pytest.raises(TypeError, match="target: expected classes of an integer type"):
        fastemd.emd_loss(P, np.array([True, False], object), STAR)


@pytest.mark.parametrize("dtype", ["Float64", object, "float64"])
def test_jax_functions_accept_tables(dtype):
    needed("jax")
    frame, labels = _frame(dtype), pd.Series([2, 0]).astype("Int64")
    value = fastemd.jax.emd(frame, Q, STAR, 1)
    np.testing.assert_allclose(value, fastemd.emd(P, Q, STAR, 1), rtol=1e-6)
    loss = fastemd.jax.emd_loss(frame, labels, STAR, normalize="l1")
    ref = fastemd.emd_loss(P, [2, 0], STAR, normalize="l1")[0]
    np.testing.assert_allclose(loss, ref, rtol=1e-6)
    with pytest.raises(ValueError, match="another order"):
        fastemd.jax.emd(_frame(dtype, columns=("dog", "cat", "ant")), Q, STAR, 1)
    masked = np.ma.masked_array(P, mask=[[0, 0, 0], [0, 0, 1]])
    with pytest.raises(TypeError, match=r"p: .* fill the masked entries first"):
        fastemd.jax.emd(masked, Q, STAR, 1)


# -- all pairs -------------------------------------------------------------------------------------

PAIRS = fastemd.pairwise(P, space=STAR, rho=1)


def _frames(columns, array=P):
    """Return tables with named columns: data frames, sparse ones, and Arrow's."""
    frame = pd.DataFrame(array, columns=list(columns))
    yield frame
    yield frame.astype("Float64")
    yield frame.astype(pd.SparseDtype(float, 0.0))
    if len(set(columns)) == len(columns):
        yield needed("pyarrow").table({name: frame[name] for name in columns})


def test_pairwise_matches_columns_by_name():
    order = [1, 2, 0]
    names = [list(STAR.bins)[i] for i in order]
    for frame in _frames(names, P[:, order]):
        comp = fastemd.pairwise(frame, space=STAR, rho=1)
        assert type(comp) is np.ndarray
        np.testing.assert_array_equal(comp, PAIRS)
        np.testing.assert_array_equal(fastemd.pairwise(P, frame, space=STAR, rho=1), PAIRS)
        distances, indices = fastemd.neighbors(frame, P, space=STAR, rho=1, k=2)
        assert indices.tolist() == [[0, 1], [1, 0]]
        np.testing.assert_array_equal(distances, np.sort(PAIRS, axis=1))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["cat", "dog"], "there is no column 'ant'"),
        (["cat", "dog", "bee"], "there is no column 'ant'"),
        (["cat", "dog", "ant", "bee"], "column 'bee' is not a bin"),
        (["cat", "dog", "ant", "dog"], "duplicate column 'dog'"),
        (["cat", "dog", "dog"], "there is no column 'ant'"),
        ([], "there is no column 'cat'"),
    ],
)
def test_pairwise_rejects_other_columns(columns, message):
    array = np.full((2, len(columns)), 1 / max(1, len(columns)))
    for frame in _frames(columns, array):
        for name in ("P", "Q"):
            tables = {"P": P, name: frame}
            match = f"^{name}: {message}; expected one column for each of space.bins"
            with pytest.raises(ValueError, match=match):
                fastemd.pairwise(**tables, space=STAR, rho=1)


def test_pairwise_names_bins_of_space_not_columns():
    array = P.copy()
    array[1, 1] = np.nan
    frame = pd.DataFrame(array[:, [1, 2, 0]], columns=["dog", "ant", "cat"])
    with pytest.raises(ValueError, match=r"P: row 1 is not finite, nan at bin 1"):
        fastemd.pairwise(frame, space=STAR, rho=1)


def test_pairwise_ignores_names_on_chains():
    chain = fastemd.Chain(3)
    ref = fastemd.pairwise(P, space=chain, rho=1)
    for columns in (["young", "old", "older"], ["0", "1", "2"]):
        for frame in _frames(columns):
            np.testing.assert_array_equal(fastemd.pairwise(frame, space=chain, rho=1), ref)
    frame = pd.DataFrame(P)
    np.testing.assert_array_equal(fastemd.pairwise(frame, space=chain, rho=1), ref)
    shuffled = frame[[2, 0, 1]]  # numbers of bins are names
    np.testing.assert_array_equal(fastemd.pairwise(shuffled, space=chain, rho=1), ref)
    with pytest.raises(ValueError, match="P: the last axis must hold the 3 bins"):
        fastemd.pairwise(pd.DataFrame(np.eye(4), columns=list("abcd")), space=chain, rho=1)


def test_pairwise_ignores_default_index():
    space = fastemd.Tree.from_parents([3, 3, 3, -1], bins=[2, 0, 1])
    ref = fastemd.pairwise(P, space=space, rho=1)
    for frame in (pd.DataFrame(P), pd.DataFrame(P).astype(pd.SparseDtype(float, 0.0))):
        np.testing.assert_array_equal(fastemd.pairwise(frame, space=space, rho=1), ref)
    frame = pd.DataFrame(P[:, [1, 2, 0]], columns=pd.Index([0, 1, 2]))  # names of nodes
    np.testing.assert_array_equal(fastemd.pairwise(frame, space=space, rho=1), ref)


def test_pairwise_accepts_columns_named_by_paths():
    columns = pd.Index([("a", "y"), ("a", "x"), ("b",)], tupleize_cols=False)
    comp = fastemd.pairwise(pd.DataFrame(P[:, [1, 0, 2]], columns=columns), space=TREE, rho=1)
    np.testing.assert_array_equal(comp, fastemd.pairwise(P, space=TREE, rho=1))


def test_pairwise_accepts_column_named_sparse():
    space = _star(["sparse", "columns", "to_coo"])
    frame = pd.DataFrame(P, columns=["sparse", "columns", "to_coo"])
    np.testing.assert_array_equal(fastemd.pairwise(frame, space=space, rho=1), PAIRS)


def test_pairwise_accepts_sparse_data_frame_with_other_fill_value():
    frame = pd.DataFrame(P, columns=list(STAR.bins)).astype(pd.SparseDtype(float, 0.25))
    np.testing.assert_array_equal(fastemd.pairwise(frame, space=STAR, rho=1), PAIRS)


def test_pairwise_rejects_series():
    for dtype in (float, pd.SparseDtype(float, 0.0)):
        series = pd.Series(P[0], list(STAR.bins)).astype(dtype)
        with pytest.raises(ValueError, match=r"^P: shape \(3,\); expected two axes"):
            fastemd.pairwise(series, space=STAR, rho=1)


def test_pairwise_rejects_missing_entries():
    nullable = _frame("Float64")
    nullable.iloc[1, 2] = pd.NA
    with pytest.raises((TypeError, ValueError), match=r"^P\b.*(index \(1, 2\)|nan at bin 2)"):
        fastemd.pairwise(nullable, space=STAR, rho=1)
    masked = np.ma.masked_array(P, mask=[[0, 0, 0], [0, 0, 1]])
    with pytest.raises(TypeError, match=r"^P: .* fill the masked entries first"):
        fastemd.pairwise(masked, space=STAR, rho=1)


def test_pairwise_rejects_sparse_tensors():
    torch = needed("torch")
    with pytest.raises(TypeError, match=r"^P: sparse .* got Tensor; pass P.to_dense\(\)"):
        fastemd.pairwise(torch.tensor(P).to_sparse(), space=STAR, rho=1)


def test_pairwise_writes_to_zarr_array(tmp_path, monkeypatch, rng):
    zarr = needed("zarr")
    monkeypatch.setattr(pair_sums, "BLOCK_NUMBERS", 1)
    p = rng.dirichlet(np.ones(3), 21)
    for condensed in (False, True):
        ref = fastemd.pairwise(p, space=STAR, rho=1, condensed=condensed)
        chunks = (8,) * ref.ndim
        folder = tmp_path / str(condensed)
        out = zarr.create_array(folder, shape=ref.shape, dtype="f8", chunks=chunks)
        comp = fastemd.pairwise(p, space=STAR, rho=1, condensed=condensed, out=out)
        assert comp is out
        np.testing.assert_array_equal(out[...], ref)
