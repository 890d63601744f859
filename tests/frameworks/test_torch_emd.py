"""fastemd.torch.emd: derivatives, transforms, compiler, types, errors."""

import numpy as np
import pytest

import fastemd
from tests.support.device import cpu
from tests.support.frameworks import needed
from tests.support.torch_cases import (
    TORCH_DEVICE,
    TREE,
    ancestors,
    as_numpy,
    as_tensor,
    assert_close,
    each_compiler,
    random_logits,
    synchronized,
)

pytestmark = pytest.mark.torch_backend
torch = needed("torch")
adapter = needed("fastemd.torch")
each_rho = pytest.mark.parametrize("rho", [1, 1.5, 2, 3.7])


def _loss(x, y, rho=1.5):
    """Return the EMD of softmax outputs: derivatives must conserve the mass."""
    return adapter.emd(x.softmax(-1), y.softmax(-1), TREE, rho)


def _dense(x, y, rho=1.5):
    """Compute the EMD in plain torch."""
    flow = (x.softmax(-1) - y.softmax(-1)) @ ancestors(x.dtype).T
    return (as_tensor(TREE.weight[:-1]) * flow.abs() ** rho).sum(-1)


@each_rho
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_emd_agrees_with_numpy_function(rho, dtype, rng, backend):
    p, q = rng.dirichlet(np.ones(TREE.n_bins), (2, 5)).astype(dtype)
    tensor = as_tensor(p).requires_grad_()
    comp = adapter.emd(tensor, as_tensor(q), TREE, rho)
    value, grad = backend.emd_value_and_grad(p, q, TREE, rho)
    np.testing.assert_array_equal(as_numpy(comp), value)
    comp.sum().backward()
    np.testing.assert_array_equal(as_numpy(tensor.grad), grad)
    assert tensor.grad.dtype == comp.dtype == getattr(torch, dtype)


@each_rho
def test_emd_gradients_in_p_and_q(rho, rng):
    tensors = random_logits(rng)
    assert torch.autograd.gradcheck(lambda x, y: _loss(x, y, rho), tensors)
    if rho != 1:
        assert torch.autograd.gradgradcheck(lambda x, y: _loss(x, y, rho), tensors)


@each_rho
def test_emd_second_derivatives_in_p_and_q(rho, rng):
    """Including mixed ones, and those of a sum whose weights depend on p."""
    x, y = (tensor.detach() for tensor in random_logits(rng, ()))

    def weighed(loss):
        return lambda x, y: loss(x, y, rho) * x.softmax(-1).square().sum()

    comp = torch.autograd.functional.hessian(weighed(_loss), (x, y))
    ref = torch.autograd.functional.hessian(weighed(_dense), (x, y))
    for ours, wanted in zip(sum(comp, ()), sum(ref, ()), strict=True):
        assert_close(ours, wanted, 1.0, 1e-11)


def test_emd_hessian_vector_product(rng):
    x, y = (tensor.detach() for tensor in random_logits(rng, ()))
    v = as_tensor(rng.standard_normal(TREE.n_bins))
    for way in (torch.autograd.functional.vhp, torch.autograd.functional.hvp):
        comp = way(lambda x: _loss(x, y, 2), x, v)[1]
        assert_close(comp, way(lambda x: _dense(x, y, 2), x, v)[1], 1.0, 1e-11)


def test_emd_third_derivative_exists_at_rho_2_only(rng):
    x, y = (tensor.detach() for tensor in random_logits(rng, ()))

    def third(loss, rho):
        grad = torch.func.grad
        return grad(grad(grad(lambda t: loss(t * x, y, rho))))(as_tensor(1.0, torch.float64))

    assert_close(third(_loss, 2), third(_dense, 2), 1.0, 1e-11)
    with pytest.raises(NotImplementedError, match=r"third derivatives of emd with rho=1.5"):
        third(_loss, 1.5)


@each_rho
def test_emd_supports_transforms_of_torch_func(rho, rng):
    x, y = (tensor.detach() for tensor in random_logits(rng))
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


def test_emd_broadcasts_and_sums_gradients(rng):
    x, y = random_logits(rng, (3,))
    comp = torch.autograd.grad(_loss(x[:, None], y).square().sum(), (x, y))
    ref = torch.autograd.grad(_dense(x[:, None], y).square().sum(), (x, y))
    for ours, wanted in zip(comp, ref, strict=True):
        assert_close(ours, wanted, 1.0)


@each_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of inductor, about torch itself
def test_emd_compiles_to_one_graph(compiler, rng):
    torch._dynamo.reset()
    x, y = random_logits(rng)
    compiled = torch.compile(_loss, fullgraph=True, backend=compiler)
    comp, ref = compiled(x, y), _loss(x, y)
    torch.testing.assert_close(comp, ref)
    torch.testing.assert_close(
        torch.autograd.grad(comp.sum(), (x, y)), torch.autograd.grad(ref.sum(), (x, y))
    )


def test_emd_compiled_takes_no_additional_passes(rng, monkeypatch):
    torch._dynamo.reset()
    x, y = random_logits(rng)
    run = adapter.operators.run

    def run_gradient(operation, *args):
        assert operation == "gradient"  # which needs no Hessian
        run(operation, *args)

    monkeypatch.setattr(adapter.operators, "run", run_gradient)
    compiled = torch.compile(_loss, fullgraph=True, backend="aot_eager")
    torch.autograd.grad(compiled(x, y).sum(), x)


def test_emd_compiled_with_derivatives_inside(rng):
    torch._dynamo.reset()
    x, y = (tensor.detach() for tensor in random_logits(rng))

    def second(loss):
        inner = torch.func.grad(lambda z: loss(z, y).sum())
        return torch.func.grad(lambda z: inner(z).square().sum())

    comp = torch.compile(second(_loss), backend="aot_eager")(x)
    assert_close(comp, second(_dense)(x), 1.0, 1e-11)


def test_emd_compiled_depends_on_space(rng):
    """A space is a constant of the program, so another one requires recompilation."""
    torch._dynamo.reset()
    x, y = (tensor.detach().softmax(-1) for tensor in random_logits(rng))
    compiled = torch.compile(adapter.emd, fullgraph=True, backend="eager")
    for space in (TREE, fastemd.Chain(5), fastemd.Chain(5, [1, 2, 3, 4]), TREE):
        torch.testing.assert_close(compiled(x, y, space, 2.0), adapter.emd(x, y, space, 2.0))


@pytest.mark.parametrize("low", ["float16", "bfloat16"])
def test_emd_computes_low_precision_in_float32(low, rng):
    x, y = (tensor.detach() for tensor in random_logits(rng))
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
    with torch.autocast(TORCH_DEVICE, getattr(torch, low)):
        layer = torch.nn.Linear(5, 5, device=TORCH_DEVICE)
        value = adapter.emd(layer(x.float()).softmax(-1), y.float().softmax(-1), TREE, 2)
    with pytest.raises(ValueError, match=r"relative tolerance 1.0e-06|row \d of an earlier call"):
        synchronized(adapter.emd(p, y.softmax(-1), TREE, 2, validate=1e-6))
    assert value.dtype == torch.float32
    value.sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_emd_accepts_integers(rng):
    one_hot = torch.eye(TREE.n_bins, dtype=torch.int64, device=TORCH_DEVICE)
    assert adapter.emd(one_hot[0], one_hot[1], TREE, 1).dtype == torch.float64
    p = torch.full((TREE.n_bins,), 1 / TREE.n_bins, device=TORCH_DEVICE)
    assert adapter.emd(p, one_hot[1], TREE, 1).dtype == torch.float32


@cpu  # other backends report invalid rows later
def test_emd_rejects_invalid_input(rng):
    p = torch.full((2, TREE.n_bins), 1 / TREE.n_bins)
    for invalid, wrong, message in (
        ({"p": p.numpy()}, TypeError, "p: expected a torch.Tensor, got ndarray of shape"),
        ({"q": p[:, 1:]}, ValueError, "q: the last axis must hold the 5 bins"),
        ({"q": torch.stack((p[0], -p[1]))}, ValueError, "q: row 1 has a negative mass"),
        ({"space": 3}, TypeError, "space: expected a fastemd.Chain"),
        ({"rho": 0.5}, ValueError, "rho: expected a finite number >= 1"),
        ({"p": p.repeat(2, 1)}, ValueError, r"p and q: .* do not broadcast: p \(4,\), q \(2,\)"),
        ({"p": p.to_sparse()}, TypeError, r"p: sparse arrays .* pass p.to_dense\(\)"),
        ({"p": p.T}, ValueError, "p: the last axis .* 5 entries is axis 0: pass dim=0"),
        ({"p": p * 1j}, TypeError, "p: expected an array of real numbers, got Tensor"),
        ({"validate": 1}, TypeError, "validate: expected True, False or"),
        ({"q": 1.01 * p, "validate": np.float32(1e-3)}, ValueError, "unequal masses"),
    ):
        with pytest.raises(wrong, match=message):
            adapter.emd(**{"p": p, "q": p, "space": TREE, "rho": 2} | invalid)
    assert torch.isnan(adapter.emd(p * torch.nan, p, TREE, 2, validate=False)).all()
    adapter.emd(p, 1.01 * p, TREE, 2, validate=np.float32(0.1))


def test_emd_rejects_tensors_on_two_devices():
    p = torch.full((2, TREE.n_bins), 1 / TREE.n_bins, device=TORCH_DEVICE)
    devices = "p and q: on different devices:"
    for invalid, message in (
        ({"q": p.to("meta")}, f"{devices} p on {p.device}, q on meta"),
        ({"p": p.double().to("meta")}, f"{devices} p on meta, q on {p.device}"),
    ):
        for call in (adapter.emd, torch.compile(adapter.emd, backend="eager")):
            with pytest.raises(TypeError, match=message):
                call(**{"p": p, "q": p, "space": TREE, "rho": 2} | invalid)


def test_emd_accepts_cuda_and_rejects_other_devices():
    from torch._subclasses import FakeTensorMode

    loss = adapter.EMDLoss(TREE)
    with FakeTensorMode(allow_non_fake_inputs=True):
        ours, another = (torch.empty(2, TREE.n_bins, device=name) for name in ("cuda:0", "xpu:0"))
        for function in (lambda p: adapter.emd(p, p, TREE, 2), lambda p: loss(p, p)):
            assert str(function(ours).device) == "cuda:0"
            with pytest.raises(TypeError, match=r": on xpu:0, .* on the CPU and on CUDA only; "):
                function(another)


def test_emd_of_meta_tensors():
    """Tensors on the device `meta` have no values, and none are computed."""
    p = torch.empty(2, TREE.n_bins, device="meta", dtype=torch.float16)
    value = adapter.emd(p, p[0], TREE, 2)
    assert (value.device.type, value.shape, value.dtype) == ("meta", (2,), torch.float32)


def test_operators_pass_opcheck(rng):
    x, y = (tensor.detach() for tensor in random_logits(rng))
    p, q, edges = x.softmax(-1), y.softmax(-1), adapter.edges_of(TREE, x.device)
    operators, labels = torch.ops.fastemd, as_tensor([0, 3, 4, 4])
    torch.library.opcheck(operators.emd.default, (p, q, *edges, 2.0, 1e-8))
    torch.library.opcheck(operators.emd_hvp.default, (x, p, q, *edges, 2.0, 1e-8))
    for target in (labels, q):
        constants = *edges, 2.0, 1e-5, "softmax", 0.5, 0.1, True, None, -1
        for counted in (None, as_tensor([True, False, True, True])):
            class_weight = None if counted is None else torch.arange(x.shape[-1]) + 1.0
            inputs = x, target, counted, class_weight
            torch.library.opcheck(operators.emd_loss.default, (*inputs, *constants))
            torch.library.opcheck(operators.emd_loss_hvp.default, (y, *inputs, *constants))
