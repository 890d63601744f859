"""fastemd.torch: derivatives, torch's transforms and compiler, types, errors."""

import gc
import pickle

import numpy as np
import pytest
from frameworks import needed
from operations import assert_close

import fastemd

torch = needed("torch")
adapter = needed("fastemd.torch")

TREE = fastemd.Tree.from_parents([-1, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0.5, 1, 3, 1, 1])
each_rho = pytest.mark.parametrize("rho", [1, 1.5, 2, 3.7])
each_backend = pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])


def _logits(rng, shape=(4,), n=TREE.n_bins):
    tensors = torch.from_numpy(rng.standard_normal((2, *shape, n)))
    return [tensor.requires_grad_() for tensor in tensors]


def _loss(x, y, rho=1.5):
    """Of softmax outputs: what moves the masses apart is not a derivative of anything."""
    return adapter.emd(x.softmax(-1), y.softmax(-1), TREE, rho)


def _dense(x, y, rho=1.5):
    """The same in plain torch."""
    ancestors = torch.zeros(TREE.n_nodes - 1, TREE.n_bins, dtype=x.dtype)
    for column, node in enumerate(TREE.bin_node.tolist()):
        while TREE.parent[node] >= 0:
            ancestors[node, column] = 1.0
            node = TREE.parent[node]
    flow = (x.softmax(-1) - y.softmax(-1)) @ ancestors.T
    return (torch.tensor(TREE.weight[:-1]) * flow.abs() ** rho).sum(-1)


@each_rho
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_emd__is_the_function_on_arrays(rho, dtype, rng):
    p, q = rng.dirichlet(np.ones(TREE.n_bins), (2, 5)).astype(dtype)
    tensor = torch.from_numpy(p).requires_grad_()
    comp = adapter.emd(tensor, torch.from_numpy(q), TREE, rho)
    value, grad = fastemd.emd_value_and_grad(p, q, TREE, rho)
    np.testing.assert_array_equal(comp.detach().numpy(), value)
    comp.sum().backward()
    np.testing.assert_array_equal(tensor.grad.numpy(), grad)
    assert tensor.grad.dtype == comp.dtype == getattr(torch, dtype)


@each_rho
def test_emd__derivatives_to_both(rho, rng):
    tensors = _logits(rng)
    assert torch.autograd.gradcheck(lambda x, y: _loss(x, y, rho), tensors)
    if rho != 1:
        assert torch.autograd.gradgradcheck(lambda x, y: _loss(x, y, rho), tensors)


@each_rho
def test_emd__second_derivative_in_both(rho, rng):
    """Also mixed ones, and those of a sum that weighs values by what depends on p."""
    x, y = (tensor.detach() for tensor in _logits(rng, ()))

    def weighed(loss):
        return lambda x, y: loss(x, y, rho) * x.softmax(-1).square().sum()

    comp = torch.autograd.functional.hessian(weighed(_loss), (x, y))
    ref = torch.autograd.functional.hessian(weighed(_dense), (x, y))
    for ours, wanted in zip(sum(comp, ()), sum(ref, ()), strict=True):
        assert_close(ours, wanted, 1.0, 1e-11)


def test_emd__product_with_the_hessian(rng):
    x, y = (tensor.detach() for tensor in _logits(rng, ()))
    v = torch.from_numpy(rng.standard_normal(TREE.n_bins))
    for way in (torch.autograd.functional.vhp, torch.autograd.functional.hvp):
        comp = way(lambda x: _loss(x, y, 2), x, v)[1]
        assert_close(comp, way(lambda x: _dense(x, y, 2), x, v)[1], 1.0, 1e-11)


def test_emd__third_derivative(rng):
    x, y = (tensor.detach() for tensor in _logits(rng, ()))

    def third(loss, rho):
        grad = torch.func.grad
        return grad(grad(grad(lambda t: loss(t * x, y, rho))))(torch.tensor(1.0).double())

    assert_close(third(_loss, 2), third(_dense, 2), 1.0, 1e-11)
    with pytest.raises(NotImplementedError, match=r"EMD\^1.5 has no third derivative"):
        third(_loss, 1.5)


@each_rho
def test_emd__under_the_transforms_of_torch_func(rho, rng):
    x, y = (tensor.detach() for tensor in _logits(rng))
    grad, vmap, jacrev = torch.func.grad, torch.func.vmap, torch.func.jacrev
    for transform in (
        lambda f: vmap(f),
        lambda f: vmap(f, in_dims=(0, None)),
        lambda f: vmap(vmap(f, in_dims=(None, 0)), in_dims=(0, None)),
        lambda f: lambda x, y: vmap(f, in_dims=(None, 1))(x[0], y.T.contiguous()),
        lambda f: grad(lambda x, y: f(x, y).sum()),
        lambda f: vmap(grad(f, argnums=1)),
        lambda f: vmap(jacrev(jacrev(f))),
    ):
        ref = transform(lambda x, y: _dense(x, y, rho))(x, y)
        assert_close(transform(lambda x, y: _loss(x, y, rho))(x, y), ref, 1.0, 1e-11)


def test_emd__broadcasts_and_sums_the_gradients(rng):
    x, y = _logits(rng, (3,))
    comp = torch.autograd.grad(_loss(x[:, None], y).square().sum(), (x, y))
    ref = torch.autograd.grad(_dense(x[:, None], y).square().sum(), (x, y))
    for ours, wanted in zip(comp, ref, strict=True):
        assert_close(ours, wanted, 1.0)


@each_backend
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of inductor, about torch itself
def test_emd__compiles_as_one_graph(backend, rng):
    torch._dynamo.reset()
    x, y = _logits(rng)
    compiled = torch.compile(_loss, fullgraph=True, backend=backend)
    comp, ref = compiled(x, y), _loss(x, y)
    torch.testing.assert_close(comp, ref)
    torch.testing.assert_close(
        torch.autograd.grad(comp.sum(), (x, y)), torch.autograd.grad(ref.sum(), (x, y))
    )


def test_emd__compiled_takes_no_more_passes(rng, monkeypatch):
    torch._dynamo.reset()
    x, y = _logits(rng)
    monkeypatch.setattr(adapter, "emd_hvp", None)  # a gradient needs no Hessian
    compiled = torch.compile(_loss, fullgraph=True, backend="aot_eager")
    torch.autograd.grad(compiled(x, y).sum(), x)


def test_emd__compiled_with_derivatives_inside(rng):
    torch._dynamo.reset()
    x, y = (tensor.detach() for tensor in _logits(rng))

    def second(loss):
        inner = torch.func.grad(lambda z: loss(z, y).sum())
        return torch.func.grad(lambda z: inner(z).square().sum())

    comp = torch.compile(second(_loss), backend="aot_eager")(x)
    assert_close(comp, second(_dense)(x), 1.0, 1e-11)


def test_emd__compiled_follows_the_space(rng):
    """A space is a constant of the program: another one must not meet the old program."""
    torch._dynamo.reset()
    x, y = (tensor.detach().softmax(-1) for tensor in _logits(rng))
    compiled = torch.compile(adapter.emd, fullgraph=True, backend="eager")
    for space in (TREE, fastemd.Chain(5), fastemd.Chain(5, [1, 2, 3, 4]), TREE):
        torch.testing.assert_close(compiled(x, y, space, 2.0), adapter.emd(x, y, space, 2.0))


@pytest.mark.parametrize("low", ["float16", "bfloat16"])
def test_emd__low_precision_is_computed_in_float32(low, rng):
    x, y = (tensor.detach() for tensor in _logits(rng))
    p = x.softmax(-1).to(getattr(torch, low)).requires_grad_()
    q = y.softmax(-1).to(p.dtype)
    comp = adapter.emd(p, q, TREE, 2)
    assert comp.dtype == torch.float32
    ref = fastemd.emd(p.detach().float(), q.float(), TREE, 2, validate=False)
    torch.testing.assert_close(comp.detach(), ref)
    comp.sum().backward()
    assert p.grad.dtype == p.dtype
    mixed = adapter.emd(p, y.softmax(-1), TREE, 2)
    assert mixed.dtype == torch.float64
    with torch.autocast("cpu", getattr(torch, low)):
        layer = torch.nn.Linear(5, 5)
        value = adapter.emd(layer(x.float()).softmax(-1), y.float().softmax(-1), TREE, 2)
    with pytest.raises(ValueError, match=r"relative tolerance 1.0e-06"):
        adapter.emd(p, y.softmax(-1), TREE, 2, validate=1e-6)
    assert value.dtype == torch.float32
    value.sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_emd__whole_numbers(rng):
    one_hot = torch.eye(TREE.n_bins, dtype=torch.int64)
    assert adapter.emd(one_hot[0], one_hot[1], TREE, 1).dtype == torch.float64
    p = torch.full((TREE.n_bins,), 1 / TREE.n_bins)
    assert adapter.emd(p, one_hot[1], TREE, 1).dtype == torch.float32


def test_emd__bad_input(rng):
    p = torch.full((2, TREE.n_bins), 1 / TREE.n_bins)
    for bad, wrong, message in (
        ({"p": p.numpy()}, TypeError, "p: expected a torch.Tensor, got an array"),
        ({"q": p[:, 1:]}, ValueError, "q: the last axis must hold the 5 bins"),
        ({"q": torch.stack((p[0], -p[1]))}, ValueError, "q: row 1 has a negative mass"),
        ({"space": 3}, TypeError, "space: expected a fastemd.Chain"),
        ({"rho": 0.5}, ValueError, "rho: expected a finite number >= 1"),
        ({"p": p.repeat(2, 1)}, RuntimeError, "must match"),
    ):
        with pytest.raises(wrong, match=message):
            adapter.emd(**{"p": p, "q": p, "space": TREE, "rho": 2} | bad)
    assert torch.isnan(adapter.emd(p * torch.nan, p, TREE, 2, validate=False)).all()


def test_operators__pass_the_checks_of_torch(rng):
    p, q = (tensor.detach().softmax(-1) for tensor in _logits(rng))
    number = adapter.number_of(TREE)
    torch.library.opcheck(torch.ops.fastemd.emd.default, (p, q, number, 2.0, True))
    torch.library.opcheck(torch.ops.fastemd.emd_hvp.default, (p, q, p - q, number, 2.0))


def test_spaces__live_as_long_as_needed(rng):
    p, q = (tensor.detach().softmax(-1).requires_grad_() for tensor in _logits(rng))
    space = fastemd.Chain(5, [1, 2, 3, 0.5])
    number = adapter.number_of(space)
    value = adapter.emd(p, q, space, 1.5)
    twin = pickle.loads(pickle.dumps(space))
    assert adapter.number_of(twin) == number
    del space
    gc.collect()
    assert adapter.space_of(number).n_bins == 5  # its twin answers
    del twin
    gc.collect()
    first = torch.autograd.grad(value.sum(), p, create_graph=True)[0]
    torch.autograd.grad(first.square().sum(), q)
    del value, first
    gc.collect()
    with pytest.raises(ValueError, match="does not exist any more"):
        adapter.space_of(number)
