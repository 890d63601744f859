"""emd_length_grad: the derivative of sums of EMD^rho in the lengths of the edges."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given

import fastemd
from fastemd import functions
from tests.support import naive
from tests.support.device import arithmetic, device, on_device, simulator
from tests.support.operations import assert_close
from tests.support.strategies import problems, random_pair, rhos

CHAIN = fastemd.Chain(3)
P, Q = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), np.array([0.0, 0.5, 0.5])


def on_any_backend(test):
    return pytest.mark.any_backend(arithmetic(test))


def _naive(p, q, space, rho, upstream=1.0):
    return naive.emd_length_grad(p, q, naive.ground(space), rho, upstream)


def _with_lengths(space, lengths):
    """Return the same space with other lengths; the nodes are in post-order already."""
    if isinstance(space, fastemd.Chain):
        return fastemd.Chain(space.n_bins, lengths)
    return fastemd.Tree.from_parents(
        space.parent.tolist(), [*lengths, 0.0], bins=space.bin_node.tolist()
    )


@on_any_backend
def test_emd_length_grad_agrees_with_naive(case, rho, rng, backend):
    p, q = random_pair(rng, (5, case.n_bins))
    comp = backend.emd_length_grad(p, q, case.space, rho)
    assert comp.dtype == np.float64
    assert_close(comp, _naive(p, q, case.space, rho))


@on_any_backend
@given(problems(), rhos)
def test_emd_length_grad_agrees_with_naive_on_drawn_problems(backend, problem, rho):
    case, p, q = problem
    upstream = np.arange(len(p)) - 1.5
    comp = backend.emd_length_grad(p, q, case.space, rho, upstream=upstream)
    size = _naive(p, q, case.space, rho, np.abs(upstream)).max(initial=0.0)
    assert_close(comp, _naive(p, q, case.space, rho, upstream), size)


@on_any_backend
def test_emd_length_grad_float32_accumulates_in_float64(case, rho, rng, backend):
    p, q = random_pair(rng, (400, case.n_bins), np.float32)
    comp = backend.emd_length_grad(p, q, case.space, rho)
    assert comp.dtype == np.float32
    assert_close(comp, _naive(p, q, case.space, rho), rtol=2.0**-23)
    comp = backend.emd_length_grad(p, q, case.space, rho, upstream=np.ones(400))
    assert comp.dtype == np.float32
    assert_close(comp, _naive(p, q, case.space, rho), rtol=2.0**-23)


@on_any_backend
@pytest.mark.parametrize(
    "upstream", [2.0, [0.5], [[1.0], [-2.0]], [[1, 2, 3]], np.float32([[1, 0, 3], [4, -5, 6]])]
)
def test_emd_length_grad_broadcasts(upstream, small_case, rng, backend):
    p, q = random_pair(rng, (2, 3, small_case.n_bins))
    for a, b in ((p, q[:, :1]), (p[:, :1], q[:1]), (p, q[0, 0])):
        comp = backend.emd_length_grad(a, b, small_case.space, 1.5, upstream=upstream)
        assert_close(comp, _naive(a, b, small_case.space, 1.5, upstream), 10.0)


@on_any_backend
def test_emd_length_grad_of_single_pair_and_of_no_rows(small_case, rho, rng, backend):
    p, q = random_pair(rng, (4, small_case.n_bins))
    comp = backend.emd_length_grad(p[0], q[0], small_case.space, rho)
    assert_close(comp, _naive(p[0], q[0], small_case.space, rho))
    comp = backend.emd_length_grad(p[0], q[0], small_case.space, rho, upstream=np.array(-0.5))
    assert_close(comp, -0.5 * _naive(p[0], q[0], small_case.space, rho))
    for shape in ((0,), (3, 0), (0, 3)):
        p, nothing = np.empty((*shape, small_case.n_bins)), np.zeros(small_case.space.n_nodes - 1)
        comp = backend.emd_length_grad(p, p, small_case.space, rho, upstream=np.empty(shape))
        np.testing.assert_array_equal(comp, nothing)


@on_any_backend
@pytest.mark.parametrize("most", [1, 7, 20, 100])
@pytest.mark.parametrize("with_upstream", [False, True])
def test_emd_length_grad_does_not_depend_on_blocks(
    most, with_upstream, small_case, rng, backend, monkeypatch
):
    p, q = random_pair(rng, (3, 5, small_case.n_bins))
    upstream = rng.normal(size=(3, 5)) if with_upstream else None
    for name in ("BLOCK", "BLOCK_ON_DEVICE"):
        monkeypatch.setattr(functions, name, most)
    for a, b in ((p, q), (p[:, :1], q[:1]), (p[0], q[:, 0, None]), (p, q[1, 2])):
        ref = _naive(a, b, small_case.space, 2, 1.0 if upstream is None else upstream)
        comp = backend.emd_length_grad(a, b, small_case.space, 2, upstream=upstream)
        assert_close(comp, ref, 10.0)


@on_any_backend
def test_emd_length_grad_is_derivative_of_emd(small_case, rho, rng, backend):
    """Also where the lengths are 0, from above."""
    space, (p, q) = small_case.space, random_pair(rng, (4, small_case.n_bins))
    upstream = rng.normal(size=4)
    comp = backend.emd_length_grad(p, q, space, rho, upstream=upstream)

    def loss(lengths):
        return upstream @ backend.emd(p, q, _with_lengths(space, lengths), rho)

    lengths = space.weight[:-1] + 1.0
    ref = [naive.central_difference(loss, lengths, axis, 0.25) for axis in np.eye(len(lengths))]
    assert_close(comp, ref, 10.0, rtol=1e-11)


@on_any_backend
@given(problems(), rhos)
def test_emd_length_grad_times_lengths_sums_to_emd(backend, problem, rho):
    case, p, q = problem
    comp = case.space.weight[:-1] @ backend.emd_length_grad(p, q, case.space, rho)
    assert_close(comp, backend.emd(p, q, case.space, rho).sum())


@on_any_backend
@pytest.mark.parametrize("rho", [1, 1.0001, 2, 300.0])
def test_emd_length_grad_is_zero_without_flow(rho, small_case, rng, backend):
    p, _ = random_pair(rng, (4, small_case.n_bins))
    comp = backend.emd_length_grad(p, p, small_case.space, rho)
    np.testing.assert_array_equal(comp, np.zeros(small_case.space.n_nodes - 1))


def test_emd_length_grad_memory_is_bounded(rng):
    """Of 32 MB of flows a few MB are held at a time."""
    chain, p = fastemd.Chain(1000), rng.dirichlet(np.ones(1000), 4000)
    fastemd.emd_length_grad(p[:8], p[8], chain, 2)
    tracemalloc.start()
    try:
        fastemd.emd_length_grad(p, p[0], chain, 2)
        assert tracemalloc.get_traced_memory()[1] < 6e6
    finally:
        tracemalloc.stop()


@device
@on_any_backend
def test_emd_length_grad_numbers_invalid_rows_of_all_blocks(rng, monkeypatch):
    """If it does not wait, `synchronize` raises later."""
    monkeypatch.setattr(functions, "BLOCK_ON_DEVICE", 8)
    p, q = random_pair(rng, (18, 3))
    p[16, 0] = np.nan
    fastemd.emd_length_grad(on_device(p), on_device(q), CHAIN, 2)
    with pytest.raises(ValueError, match="row 16 of an earlier call"):
        fastemd.synchronize()


@on_any_backend
@pytest.mark.parametrize("upstream", [None, [[1.0], [2.0]]])
def test_emd_length_grad_names_invalid_row(upstream, rng, backend, monkeypatch):
    for name in ("BLOCK", "BLOCK_ON_DEVICE"):
        monkeypatch.setattr(functions, name, 8)
    p, q = random_pair(rng, (2, 9, 3))
    p[1, 7, 0] = np.nan
    p[1, 8, 0] = -1.0
    with pytest.raises(ValueError, match=r"p: row \(1, 7\) is not finite, nan at bin 0"):
        backend.emd_length_grad(p, q, CHAIN, 2, upstream=upstream)
    comp = backend.emd_length_grad(p, q, CHAIN, 2, validate=False)
    assert np.isnan(comp).all()


def test_emd_length_grad_compares_masses_up_to_tolerance():
    p = P * [[1.0], [1.01]]
    with pytest.raises(ValueError, match="p and q: row 1 has unequal masses"):
        fastemd.emd_length_grad(p, Q, CHAIN, 2)
    comp = fastemd.emd_length_grad(p, Q, CHAIN, 2, validate=0.1)
    assert_close(comp, _naive(p, Q, CHAIN, 2))


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        ((P, Q, "chain", 2), {}, TypeError, "space: expected a fastemd.Chain"),
        ((P, Q, CHAIN, 0.5), {}, ValueError, "rho: expected a finite number >= 1"),
        ((P, Q[:2], CHAIN, 2), {}, ValueError, "q: the last axis must hold the 3 bins"),
        ((P, Q[[0, 0, 0]], CHAIN, 2), {}, ValueError, "q"),
        ((P, Q, CHAIN, 2), {"validate": "yes"}, TypeError, "validate: "),
        (
            (P, Q, CHAIN, 2),
            {"upstream": [1, 2, 3]},
            ValueError,
            r"upstream and p and q: the batch shapes do not broadcast: upstream \(3,\), p and q",
        ),
        ((P, Q, CHAIN, 2), {"upstream": [[1, 2]]}, ValueError, r"upstream .* upstream \(1, 2\)"),
        ((P, Q, CHAIN, 2), {"upstream": "ones"}, TypeError, "upstream: expected an array of real"),
        ((P, Q, CHAIN, 2), {"upstream": [1j, 0]}, TypeError, "upstream: expected an array of real"),
    ],
)
def test_emd_length_grad_rejects_arguments(arguments, keywords, error, message):
    with pytest.raises(error, match=message):
        fastemd.emd_length_grad(*arguments, **keywords)


@simulator
@pytest.mark.any_backend
def test_emd_length_grad_rejects_arrays_without_arithmetic():
    p, q = on_device(P), on_device(P[::-1].copy())
    message = "emd_length_grad: Numba's device arrays have no arithmetic; pass arrays of PyTorch"
    with pytest.raises(TypeError, match=message):
        fastemd.emd_length_grad(p, q, CHAIN, 2)
