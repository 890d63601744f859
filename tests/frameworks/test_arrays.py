"""Functions accept arrays of every library and return arrays of the same library without a copy."""

import gc
import types
import weakref

import numpy as np
import pytest

import fastemd
from fastemd import backends
from tests.support.frameworks import LIBRARIES, each_library, framework, growth, needed
from tests.support.operations import OPERATIONS

CHAIN = fastemd.Chain(7)
each_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda x: x.name)


def _pair(rng, shape=(3, 7), dtype=np.float64):
    return rng.dirichlet(np.ones(shape[-1]), (2, *shape[:-1])).astype(dtype)


@each_library
@each_operation
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("batch", [(), (5,), (2, 3)])
def test_functions_return_arrays_of_input_library(
    library, operation, dtype, batch, rng, small_case
):
    theirs = framework(library)
    inputs = operation.draw(rng, batch, small_case.n_bins, dtype)
    ref = operation(inputs, small_case.space, 1.5)
    comp = operation([theirs.of(x) for x in inputs], small_case.space, 1.5)
    assert theirs.holds(*comp)
    for ours, wanted in zip(comp, ref, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), wanted)
        assert np.asarray(ours).dtype == dtype


@each_library
def test_functions_broadcast_and_promote_types(library, rng):
    theirs = framework(library)
    p, q = _pair(rng)
    p = p.astype(np.float32)
    ref = fastemd.emd(p[:, None], q, CHAIN, 2)
    comp = fastemd.emd(theirs.of(p[:, None]), theirs.of(q), CHAIN, 2)
    np.testing.assert_array_equal(np.asarray(comp), ref)
    whole = fastemd.emd(theirs.of([1, 0, 0]), theirs.of([0, 0, 1]), fastemd.Chain(3), 1)
    assert theirs.holds(whole)
    assert whole == 2.0


@each_library
def test_functions_accept_empty_batch(library):
    theirs = framework(library)
    nothing = theirs.of(np.empty((0, 7)))
    value, grad = fastemd.emd_value_and_grad(nothing, nothing, CHAIN, 2)
    assert theirs.holds(value, grad)
    assert tuple(value.shape) == (0,)
    assert tuple(grad.shape) == (0, 7)


@each_library
def test_exact_emd_and_sinkhorn_return_arrays_of_input_library(library, rng):
    theirs = framework(library)
    p, q = _pair(rng)
    cost = rng.random((7, 7))
    for ground in (cost, CHAIN):
        cost_or_space = theirs.of(ground) if ground is cost else ground
        for method in ("paper", "log"):
            ref = fastemd.sinkhorn(p, q, ground, lam=5, method=method)
            comp = fastemd.sinkhorn(theirs.of(p), theirs.of(q), cost_or_space, lam=5, method=method)
            assert theirs.holds(*comp)
            for ours, wanted in zip(comp, ref, strict=True):
                np.testing.assert_array_equal(np.asarray(ours), wanted)
        comp = fastemd.exact_emd(theirs.of(p), theirs.of(q), cost_or_space)
        assert theirs.holds(*comp)
        for ours, wanted in zip(comp, fastemd.exact_emd(p, q, ground), strict=True):
            np.testing.assert_array_equal(np.asarray(ours), wanted)
    with pytest.raises(TypeError, match=r"different libraries: .* cost from numpy"):
        fastemd.exact_emd(theirs.of(p), theirs.of(q), cost)


@each_library
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_emd_length_grad_returns_array_of_input_library(library, dtype, small_case, rng):
    theirs, space = framework(library), small_case.space
    p, q = _pair(rng, (3, space.n_bins), dtype)
    upstream = rng.normal(size=3)
    arrays = [theirs.of(x) for x in (p, q, upstream)]
    comp = fastemd.emd_length_grad(*arrays[:2], space, 1.5, upstream=arrays[2])
    assert theirs.holds(comp)
    assert np.asarray(comp).dtype == dtype
    ref = fastemd.emd_length_grad(p, q, space, 1.5, upstream=upstream)
    np.testing.assert_array_equal(np.asarray(comp), ref)
    with pytest.raises(TypeError, match=r"p and upstream: .* upstream from numpy"):
        fastemd.emd_length_grad(*arrays[:2], space, 1.5, upstream=upstream)


@each_library
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_losses_return_arrays_of_input_library(library, reduction, rng):
    theirs = framework(library)
    x, soft = rng.standard_normal((3, 7)), _pair(rng)[0]
    weight, labels = rng.random(3), np.array([0, 6, 3])
    options = {"cross_entropy": 0.5, "reduction": reduction}
    for target in (soft, labels):
        inputs = [theirs.of(array) for array in (x, target, weight)]
        ref = fastemd.emd_loss(x, target, CHAIN, sample_weight=weight, **options)
        comp = fastemd.emd_loss(*inputs[:2], CHAIN, sample_weight=inputs[2], **options)
        diagonal = fastemd.emd_loss_hessian_diag(*inputs[:2], CHAIN, **options)
        assert theirs.holds(*comp, diagonal)
        for ours, wanted in zip(comp, ref, strict=True):
            np.testing.assert_array_equal(np.asarray(ours), wanted)
    with pytest.raises(TypeError, match=r"different libraries: .* sample_weight from numpy"):
        fastemd.emd_loss(*inputs[:2], CHAIN, sample_weight=weight)


@each_library
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rho", [1, 2])
def test_pairwise_and_neighbors_return_arrays_of_input_library(library, dtype, rho, rng):
    theirs, keywords = framework(library), {"space": CHAIN, "rho": rho}
    p, q = _pair(rng, dtype=dtype)
    comp = [
        fastemd.pairwise(theirs.of(p), **keywords),
        fastemd.pairwise(theirs.of(p), condensed=True, **keywords),
        fastemd.pairwise(theirs.of(p), theirs.of(q), **keywords),
        fastemd.pairwise(theirs.of(p[:0]), **keywords),
        *fastemd.neighbors(theirs.of(p), theirs.of(q), k=2, **keywords),
    ]
    ref = [
        fastemd.pairwise(p, **keywords),
        fastemd.pairwise(p, condensed=True, **keywords),
        fastemd.pairwise(p, q, **keywords),
        fastemd.pairwise(p[:0], **keywords),
        *fastemd.neighbors(p, q, k=2, **keywords),
    ]
    assert theirs.holds(*comp)
    for ours, wanted in zip(comp, ref, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), wanted, strict=True)


@each_library
def test_pairwise_and_neighbors_reject_arrays_of_different_libraries(library, rng):
    theirs, keywords = framework(library), {"space": CHAIN, "rho": 1}
    p, q = _pair(rng)
    with pytest.raises(TypeError, match="P and Q: arrays of different libraries"):
        fastemd.pairwise(theirs.of(p), q, **keywords)
    with pytest.raises(TypeError, match="P and out: arrays of different libraries"):
        fastemd.pairwise(theirs.of(p), out=np.empty((3, 3)), **keywords)
    with pytest.raises(TypeError, match="queries and P: arrays of different libraries"):
        fastemd.neighbors(theirs.of(p), q, k=1, **keywords)
    p[1, 3] = np.nan
    with pytest.raises(ValueError, match=r"^P: row 1 is not finite, nan at bin 3"):
        fastemd.pairwise(theirs.of(p), **keywords)


def test_pairwise_writes_to_tensors(rng):
    torch = needed("torch")
    p, _ = _pair(rng)
    ref = fastemd.pairwise(p, space=CHAIN, rho=1)
    for dtype in (torch.float32, torch.float64):
        out = torch.full((3, 3), 7.0, dtype=dtype)
        version = out._version
        assert fastemd.pairwise(torch.tensor(p), space=CHAIN, rho=1, out=out) is out
        np.testing.assert_array_equal(out.numpy(), ref.astype(out.numpy().dtype))
        assert out._version > version
    square = torch.tensor(np.eye(7))
    ref = fastemd.pairwise(np.eye(7), space=CHAIN, rho=1)
    assert fastemd.pairwise(square, space=CHAIN, rho=1, out=square) is square
    np.testing.assert_array_equal(square.numpy(), ref)


def test_pairwise_of_tensors_that_require_grad_asks_to_detach(rng):
    p = needed("torch").tensor(_pair(rng)[0], requires_grad=True)
    with pytest.raises(TypeError, match=r"P: .* requires grad; pass P.detach\(\)"):
        fastemd.pairwise(p, space=CHAIN, rho=1)


@each_library
def test_functions_name_invalid_row(library, rng):
    theirs = framework(library)
    p, q = _pair(rng)
    p[1, 3] = np.nan
    with pytest.raises(ValueError, match=r"p: row 1 is not finite, nan at bin 3"):
        fastemd.emd(theirs.of(p), theirs.of(q), CHAIN, 2)
    with pytest.raises(ValueError, match=r"last axis must hold the 7 bins"):
        fastemd.emd(theirs.of(p[0, 0]), theirs.of(q), CHAIN, 2)


@each_library
@each_operation
def test_functions_release_inputs_and_results_outlive_them(library, operation, rng):
    theirs = framework(library)
    inputs = operation.draw(rng, (64,), 7)
    before = [x.copy() for x in inputs]
    arrays = [theirs.of(x) for x in inputs]
    references = [weakref.ref(x) for x in arrays]
    ref = operation(before, CHAIN, 2)
    comp = operation(arrays, CHAIN, 2)
    for x, y in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(np.asarray(x), y)
    del arrays, x
    gc.collect()
    assert all(x() is None for x in references)
    scratch = [np.full((64, 7), 7.0) for _ in range(20)]  # overwrites memory freed too early
    for ours, wanted in zip(comp, ref, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), wanted)
    del scratch


@pytest.mark.parametrize("other", LIBRARIES)
def test_functions_reject_arrays_of_two_libraries(other, rng):
    p, q = _pair(rng)
    theirs = framework(other).of(q)
    with pytest.raises(TypeError, match=r"p and q: .* p from numpy, q from " + other):
        fastemd.emd(p, theirs, CHAIN, 2)
    with pytest.raises(TypeError, match=r"p and q: .* q from numpy"):
        fastemd.emd(theirs, q.tolist(), CHAIN, 2)
    with pytest.raises(TypeError, match=r"p and out: .* out from numpy"):
        fastemd.emd(theirs, theirs, CHAIN, 2, out=np.empty(3))
    with pytest.raises(TypeError, match=r"p and out: .* p from numpy"):
        fastemd.emd(p, q, CHAIN, 2, out=theirs)
    if other != "torch":
        with pytest.raises(TypeError, match=r"from torch"):
            fastemd.emd(framework("torch").of(p), theirs, CHAIN, 2)


@each_operation
def test_out_accepts_tensors(operation, rng):
    torch = needed("torch")
    inputs = operation.draw(rng, (5,), 7)
    ref = operation(inputs, CHAIN, 1.5)
    tensors = [torch.from_numpy(x) for x in inputs]
    for step in (1, 2):  # contiguous, and every other entry
        buffers = [torch.full((*x.shape[:-1], x.shape[-1] * step), 7.0, dtype=torch.float64)
                   for x in ref]  # fmt: skip
        outs = [x[..., ::step] for x in buffers]
        comp = operation(tensors, CHAIN, 1.5, out=operation.out(outs))
        for ours, out, wanted in zip(comp, outs, ref, strict=True):
            assert ours is out
            np.testing.assert_array_equal(out.numpy(), wanted)
        if step == 2:
            assert all((x[..., 1::2] == 7).all() for x in buffers)


@each_operation
def test_out_increments_version_of_tensors(operation, rng):
    """Autograd then raises if it needs the previous values."""
    torch = needed("torch")
    inputs = operation.draw(rng, (5,), 7)
    outs = [torch.ones(x.shape, dtype=torch.float64) for x in operation(inputs, CHAIN, 1.5)]
    versions = [out._version for out in outs]
    operation([torch.from_numpy(x) for x in inputs], CHAIN, 1.5, out=operation.out(outs))
    assert all(out._version > old for out, old in zip(outs, versions, strict=True))
    factor = torch.ones(5, requires_grad=True)
    product = factor * outs[0].reshape(5, -1)[:, 0]
    operation([torch.from_numpy(x) for x in inputs], CHAIN, 1.5, out=operation.out(outs))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


def test_out_rejects_arrays_that_cannot_be_written(rng):
    torch, jax = needed("torch"), framework("jax")
    p, q = _pair(rng)
    with pytest.raises(ValueError, match=r"out: the array is read-only"):
        fastemd.emd(jax.of(p), jax.of(q), CHAIN, 2, out=jax.of(np.empty(3)))
    tensors = torch.from_numpy(p), torch.from_numpy(q)
    with pytest.raises(TypeError, match=r"out: cannot read this torch.Tensor: it requires grad"):
        fastemd.emd(*tensors, CHAIN, 2, out=torch.empty(3, requires_grad=True))
    minus = torch.zeros(3, dtype=torch.complex128).conj().imag
    with pytest.raises(TypeError, match=r"out: cannot read this .* negative bit"):
        fastemd.emd(*tensors, CHAIN, 2, out=minus)
    with pytest.raises(TypeError, match=r"out: expected dtype float64, got float32"):
        fastemd.emd(*tensors, CHAIN, 2, out=torch.empty(3))


@each_library
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bin_of_returns_array_of_input_library(library, dtype):
    theirs = framework(library)
    chain = fastemd.Chain.from_edges([0.0, 1.0, 2.0, 4.0])
    values = np.array([[0.5, 1.0], [4.0, 7.0]], dtype)
    comp = chain.bin_of(theirs.of(values), clip=True)
    assert theirs.holds(comp)
    assert np.asarray(comp).dtype == np.int64
    np.testing.assert_array_equal(np.asarray(comp), [[0, 1], [2, 2]])
    with pytest.raises(ValueError, match=r"values: 7.0 at index 1, 1 is not within \[0.0, 4.0\]"):
        chain.bin_of(theirs.of(values))


# -- features of single frameworks ----------------------------------------------------------------


def test_functions_reject_tensors_that_require_grad(rng):
    torch = needed("torch")
    p, q = (torch.from_numpy(x) for x in _pair(rng))
    for leaf in (p.requires_grad_(), torch.nn.Parameter(p.detach())):
        with pytest.raises(TypeError, match=r"it requires grad; pass p.detach\(\), or use"):
            fastemd.emd(leaf, q, CHAIN, 2)
    with torch.no_grad():
        assert fastemd.emd(p.detach(), q, CHAIN, 2).shape == (3,)


def test_functions_accept_negative_bit_and_reject_complex_tensors(rng):
    torch = needed("torch")
    p, q = _pair(rng)
    lazy = torch.complex(torch.from_numpy(p), -torch.from_numpy(p)).conj()
    assert lazy.imag.is_neg()
    comp = fastemd.emd(lazy.imag, torch.from_numpy(q), CHAIN, 2)
    np.testing.assert_array_equal(comp, fastemd.emd(p, q, CHAIN, 2))
    with pytest.raises(TypeError, match=r"p: "):
        fastemd.emd(lazy, torch.from_numpy(q), CHAIN, 2)


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_functions_accept_half_precision(library, rng):
    theirs = framework(library)
    p, q = (theirs.of(x) for x in _pair(rng))
    half, brain = (
        (p.half(), p.bfloat16())
        if library == "torch"
        else (p.astype("float16"), p.astype("bfloat16"))
    )
    comp = fastemd.emd(half, q, CHAIN, 2, validate=False)
    ref = fastemd.emd(np.asarray(half), np.asarray(q), CHAIN, 2, validate=False)
    np.testing.assert_array_equal(np.asarray(comp), ref)
    assert ref.dtype == np.float64
    with pytest.raises(TypeError, match=r"p: .*bfloat16; convert it to float32 first"):
        fastemd.emd(brain, q, CHAIN, 2)


def test_functions_accept_strided_tensors(rng):
    torch = needed("torch")
    p, q = _pair(rng, (6, 7))
    ref = fastemd.emd_grad(p[:1], q, CHAIN, 2)
    expanded = torch.from_numpy(p[:1]).expand(6, 7)
    np.testing.assert_array_equal(fastemd.emd_grad(expanded, torch.from_numpy(q), CHAIN, 2), ref)
    for inputs in (
        torch.from_numpy(np.asfortranarray(q)),
        torch.from_numpy(np.repeat(q, 2, axis=1))[:, ::2],
        torch.from_numpy(np.pad(q, 1))[1:-1, 1:-1],
        torch.from_numpy(np.concatenate((p, q)))[6:],
    ):
        np.testing.assert_array_equal(fastemd.emd_grad(expanded, inputs, CHAIN, 2), ref)


def test_functions_accept_strided_swapped_and_read_only_arrays(rng):
    p, q = _pair(rng, (6, 7))
    ref = fastemd.emd_grad(p, q, CHAIN, 2)
    frozen = q.copy()
    frozen.flags.writeable = False
    for inputs in (q[::-1, ::-1].copy()[::-1, ::-1], q.astype(q.dtype.newbyteorder()), frozen):
        np.testing.assert_array_equal(fastemd.emd_grad(p, inputs, CHAIN, 2), ref)


@each_operation
@pytest.mark.parametrize("inside", [True, False])
def test_functions_are_not_traced_by_torch_compile(operation, inside, rng):
    torch = needed("torch")
    torch._dynamo.reset()
    space = fastemd.Tree.from_parents([-1, 0, 0, 1, 1, 2, 2], [0, 1, 2, 0.5, 1, 3, 1])
    inputs = [torch.from_numpy(x) for x in operation.draw(rng, (3,), space.n_bins)]
    function = getattr(fastemd, operation.name)

    def call(*inputs):
        result = function(*inputs, space, *((1.5,) if operation.takes_rho else ()))
        return result if isinstance(result, tuple) else (result,)

    if inside:
        compiled = torch.compile(call, backend="eager")
    else:
        function = torch.compile(function, backend="eager")
        compiled = call
    for _ in range(3):
        comp = compiled(*inputs)
    for ours, wanted in zip(comp, operation(inputs, space, 1.5), strict=True):
        np.testing.assert_array_equal(ours, wanted)
    assert not any(
        x.flags.writeable for kind in ("levels", "full") for x in space.layout(kind).edges
    )


def test_exact_emd_and_sinkhorn_are_not_traced_by_torch_compile(rng):
    torch = needed("torch")
    p, q = (torch.from_numpy(x) for x in _pair(rng))
    for function in (fastemd.exact_emd, lambda *args: fastemd.sinkhorn(*args, lam=5.0)):
        torch._dynamo.reset()
        compiled = torch.compile(
            lambda p, q, f=function: f(2.0 * p / 2.0, q, CHAIN)[0], backend="eager"
        )
        np.testing.assert_array_equal(compiled(p, q), function(p, q, CHAIN)[0])


def test_functions_reject_tensors_without_memory(rng):
    torch = needed("torch")
    from torch._subclasses import FakeTensorMode

    p = torch.from_numpy(_pair(rng)[0])
    with FakeTensorMode():
        fake = torch.rand(3, 7)
    for q in (p.to("meta"), fake):  # of sparse ones, see test_tables.py
        with pytest.raises(TypeError, match=r"q: cannot read this torch"):
            fastemd.emd(p, q, CHAIN, 2)
    with pytest.raises(TypeError, match=r"p: cannot read this torch.Tensor"):
        torch.vmap(lambda x: fastemd.emd(x, x, CHAIN, 2))(p)


def test_functions_reject_tracers_and_deleted_arrays_of_jax(rng):
    jax, theirs = needed("jax"), framework("jax")
    p = theirs.of(_pair(rng)[0])
    for transform in (jax.jit, jax.vmap, jax.grad):
        with pytest.raises(TypeError, match=r"p: .* it is being traced; use fastemd.jax"):
            transform(lambda x: fastemd.emd(x, x, CHAIN, 2).sum())(p)
    q = theirs.of(_pair(rng)[1])
    q.delete()
    with pytest.raises(TypeError, match=r"q: .* deleted"):
        fastemd.emd(p, q, CHAIN, 2)


def test_functions_return_arrays_of_jax_without_copy(rng, monkeypatch):
    theirs = framework("jax")
    allocated = []
    jax_backend = type(backends.BACKENDS["jax"].cpu)
    empty = jax_backend.empty
    monkeypatch.setattr(
        jax_backend, "empty", lambda *args: allocated.append(empty(*args)) or allocated[-1]
    )
    results = fastemd.emd_value_and_grad(*map(theirs.of, _pair(rng)), CHAIN, 2)
    for result, memory in zip(results, allocated, strict=True):
        assert result.unsafe_buffer_pointer() == memory.ctypes.data


def test_functions_return_writable_tensors_without_copy(rng):
    torch = needed("torch")
    grad = fastemd.emd_grad(*map(torch.from_numpy, _pair(rng)), CHAIN, 2)
    grad += 1.0
    assert grad.is_contiguous()


def test_out_written_in_place_is_detected_by_autograd(rng):
    """Autograd raises in a backward pass that needs the previous values."""
    torch = needed("torch")
    pair = list(map(torch.from_numpy, _pair(rng)))
    out = torch.ones(pair[0].shape, dtype=pair[0].dtype)
    factor = torch.ones_like(out, requires_grad=True)
    product = factor * out
    fastemd.emd_grad(*pair, CHAIN, 2, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()


class _OnlyDLPack:
    """An array with DLPack only, without a namespace."""

    def __init__(self, array, device=(1, 0)):
        self.array, self.device = array, device

    def __dlpack__(self, **keywords):
        if self.device[0] != 1:
            raise BufferError(f"cannot export from device {self.device}")
        return self.array.__dlpack__(**keywords)

    def __dlpack_device__(self):
        return self.device


def test_functions_return_numpy_for_dlpack_objects_without_library(rng):
    p, q = _pair(rng)
    comp = fastemd.emd_grad(_OnlyDLPack(p), q, CHAIN, 2)
    assert type(comp) is np.ndarray
    np.testing.assert_array_equal(comp, fastemd.emd_grad(p, q, CHAIN, 2))


def test_functions_reject_dlpack_objects_on_other_device(rng):
    p, q = _pair(rng)
    for device, why in (((10, 0), r"\(10, 0\)"), ((2, 0), "CUDA device")):
        with pytest.raises(TypeError, match=rf"q: cannot read this [\w.]+\._OnlyDLPack: .*{why}"):
            fastemd.emd(p, _OnlyDLPack(q, device), CHAIN, 2)


class _OfLibrary(_OnlyDLPack):
    """An array of a library with the namespace that `namespace` returns."""

    def __init__(self, array, namespace):
        super().__init__(array)
        self.namespace = namespace

    def __array_namespace__(self):
        return self.namespace()


def _failing():
    raise RuntimeError("no namespace today")


def test_functions_reject_namespace_without_from_dlpack(rng):
    p, q = _pair(rng)
    for namespace, message in (
        (_failing, r"its __array_namespace__\(\) raised RuntimeError: no namespace today"),
        (lambda: types.SimpleNamespace(), r"its library has no from_dlpack to take the results"),
        (lambda: None, r"its library has no from_dlpack to take the results"),
    ):
        invalid = _OfLibrary(q, namespace)
        kind = r" cannot read this [\w.]+\._OfLibrary: "
        with pytest.raises(TypeError, match="q:" + kind + message):
            fastemd.emd(p, invalid, CHAIN, 2)
        with pytest.raises(TypeError, match="q:" + kind + message):
            fastemd.sinkhorn(p, invalid, CHAIN, lam=1.0)
        with pytest.raises(TypeError, match="sample_weight:" + kind + message):
            fastemd.emd_loss(p, q, CHAIN, sample_weight=invalid)
        with pytest.raises(TypeError, match="out:" + kind + message):
            fastemd.emd(p, q, CHAIN, 2, out=invalid)


def test_functions_accept_namespace_without_name(rng):
    p, q = _pair(rng)
    nameless = types.SimpleNamespace(from_dlpack=np.from_dlpack)
    pair = [_OfLibrary(x, lambda: nameless) for x in (p, q)]
    np.testing.assert_array_equal(fastemd.emd(*pair, CHAIN, 2), fastemd.emd(p, q, CHAIN, 2))
    with pytest.raises(TypeError, match=r"p from numpy, q from tests"):
        fastemd.emd(p, pair[1], CHAIN, 2)


def test_functions_name_type_of_dlpack_error_without_message(rng):
    class Silent(_OnlyDLPack):
        def __dlpack__(self, **keywords):
            raise BufferError

    p, q = _pair(rng)
    with pytest.raises(TypeError, match=r"q: cannot read this .*Silent: BufferError$"):
        fastemd.emd(p, Silent(q), CHAIN, 2)


@pytest.mark.parametrize("library", ["torch", "jax"])
def test_functions_do_not_leak_memory(library, rng):
    theirs = framework(library)
    p, q = (theirs.of(x) for x in _pair(rng, (40, 7)))
    assert growth(lambda: fastemd.emd_value_and_grad(p, q, CHAIN, 2)) < 8_000
