"""fastemd.torch: derivatives, transforms, compiler, types, errors."""

import copy
import gc
import io
import pickle
import subprocess
import sys

import numpy as np
import pytest

import fastemd
from tests.support import operations
from tests.support.device import DEVICE, SIMULATED, cpu, hardware
from tests.support.frameworks import growth, needed

pytestmark = pytest.mark.torch_backend

torch = needed("torch")
adapter = needed("fastemd.torch")

PLACE = "cpu" if SIMULATED or DEVICE == "cpu" else "cuda"
TREE = fastemd.Tree.from_parents([-1, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0.5, 1, 3, 1, 1])
each_rho = pytest.mark.parametrize("rho", [1, 1.5, 2, 3.7])
each_backend = pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])


def _tensor(data, dtype=None):
    """Return a tensor on the device of the tests."""
    return torch.tensor(data, dtype=dtype, device=PLACE)


def _host(x):
    return x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else x


def assert_close(comp, ref, *tolerances, **keywords):
    operations.assert_close(_host(comp), _host(ref), *tolerances, **keywords)


def _logits(rng, shape=(4,), n=TREE.n_bins):
    tensors = _tensor(rng.standard_normal((2, *shape, n)))
    return [tensor.requires_grad_() for tensor in tensors]


def _waited_for(result):
    fastemd.synchronize()  # on a device, calls are asynchronous
    return result


def _loss(x, y, rho=1.5):
    """Return the EMD of softmax outputs: derivatives must conserve the mass."""
    return adapter.emd(x.softmax(-1), y.softmax(-1), TREE, rho)


def _ancestors(dtype):
    matrix = torch.zeros(TREE.n_nodes - 1, TREE.n_bins, dtype=dtype, device=PLACE)
    for column, node in enumerate(TREE.bin_node.tolist()):
        while TREE.parent[node] >= 0:
            matrix[node, column] = 1.0
            node = TREE.parent[node]
    return matrix


def _dense(x, y, rho=1.5):
    """Compute the EMD in plain torch."""
    flow = (x.softmax(-1) - y.softmax(-1)) @ _ancestors(x.dtype).T
    return (_tensor(TREE.weight[:-1]) * flow.abs() ** rho).sum(-1)


@each_rho
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_emd_agrees_with_numpy_function(rho, dtype, rng):
    p, q = rng.dirichlet(np.ones(TREE.n_bins), (2, 5)).astype(dtype)
    tensor = _tensor(p).requires_grad_()
    comp = adapter.emd(tensor, _tensor(q), TREE, rho)
    value, grad = fastemd.emd_value_and_grad(p, q, TREE, rho)
    np.testing.assert_array_equal(_host(comp), value)
    comp.sum().backward()
    np.testing.assert_array_equal(_host(tensor.grad), grad)
    assert tensor.grad.dtype == comp.dtype == getattr(torch, dtype)


@each_rho
def test_emd_gradients_in_p_and_q(rho, rng):
    tensors = _logits(rng)
    assert torch.autograd.gradcheck(lambda x, y: _loss(x, y, rho), tensors)
    if rho != 1:
        assert torch.autograd.gradgradcheck(lambda x, y: _loss(x, y, rho), tensors)


@each_rho
def test_emd_second_derivatives_in_p_and_q(rho, rng):
    """Including mixed ones, and those of a sum whose weights depend on p."""
    x, y = (tensor.detach() for tensor in _logits(rng, ()))

    def weighed(loss):
        return lambda x, y: loss(x, y, rho) * x.softmax(-1).square().sum()

    comp = torch.autograd.functional.hessian(weighed(_loss), (x, y))
    ref = torch.autograd.functional.hessian(weighed(_dense), (x, y))
    for ours, wanted in zip(sum(comp, ()), sum(ref, ()), strict=True):
        assert_close(ours, wanted, 1.0, 1e-11)


def test_emd_hessian_vector_product(rng):
    x, y = (tensor.detach() for tensor in _logits(rng, ()))
    v = _tensor(rng.standard_normal(TREE.n_bins))
    for way in (torch.autograd.functional.vhp, torch.autograd.functional.hvp):
        comp = way(lambda x: _loss(x, y, 2), x, v)[1]
        assert_close(comp, way(lambda x: _dense(x, y, 2), x, v)[1], 1.0, 1e-11)


def test_emd_has_no_third_derivative(rng):
    x, y = (tensor.detach() for tensor in _logits(rng, ()))

    def third(loss, rho):
        grad = torch.func.grad
        return grad(grad(grad(lambda t: loss(t * x, y, rho))))(_tensor(1.0, torch.float64))

    assert_close(third(_loss, 2), third(_dense, 2), 1.0, 1e-11)
    with pytest.raises(NotImplementedError, match=r"third derivatives of emd with rho=1.5"):
        third(_loss, 1.5)


@each_rho
def test_emd_supports_transforms_of_torch_func(rho, rng):
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


def test_emd_broadcasts_and_sums_gradients(rng):
    x, y = _logits(rng, (3,))
    comp = torch.autograd.grad(_loss(x[:, None], y).square().sum(), (x, y))
    ref = torch.autograd.grad(_dense(x[:, None], y).square().sum(), (x, y))
    for ours, wanted in zip(comp, ref, strict=True):
        assert_close(ours, wanted, 1.0)


@each_backend
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of inductor, about torch itself
def test_emd_compiles_to_one_graph(backend, rng):
    torch._dynamo.reset()
    x, y = _logits(rng)
    compiled = torch.compile(_loss, fullgraph=True, backend=backend)
    comp, ref = compiled(x, y), _loss(x, y)
    torch.testing.assert_close(comp, ref)
    torch.testing.assert_close(
        torch.autograd.grad(comp.sum(), (x, y)), torch.autograd.grad(ref.sum(), (x, y))
    )


def test_emd_compiled_takes_no_additional_passes(rng, monkeypatch):
    torch._dynamo.reset()
    x, y = _logits(rng)
    monkeypatch.setattr(adapter.operators, "emd_hvp", None)  # a gradient needs no Hessian
    compiled = torch.compile(_loss, fullgraph=True, backend="aot_eager")
    torch.autograd.grad(compiled(x, y).sum(), x)


def test_emd_compiled_with_derivatives_inside(rng):
    torch._dynamo.reset()
    x, y = (tensor.detach() for tensor in _logits(rng))

    def second(loss):
        inner = torch.func.grad(lambda z: loss(z, y).sum())
        return torch.func.grad(lambda z: inner(z).square().sum())

    comp = torch.compile(second(_loss), backend="aot_eager")(x)
    assert_close(comp, second(_dense)(x), 1.0, 1e-11)


def test_emd_compiled_recompiles_for_other_space(rng):
    """A space is a constant of the program, so another one requires recompilation."""
    torch._dynamo.reset()
    x, y = (tensor.detach().softmax(-1) for tensor in _logits(rng))
    compiled = torch.compile(adapter.emd, fullgraph=True, backend="eager")
    for space in (TREE, fastemd.Chain(5), fastemd.Chain(5, [1, 2, 3, 4]), TREE):
        torch.testing.assert_close(compiled(x, y, space, 2.0), adapter.emd(x, y, space, 2.0))


@pytest.mark.parametrize("low", ["float16", "bfloat16"])
def test_emd_computes_low_precision_in_float32(low, rng):
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
    with torch.autocast(PLACE, getattr(torch, low)):
        layer = torch.nn.Linear(5, 5, device=PLACE)
        value = adapter.emd(layer(x.float()).softmax(-1), y.float().softmax(-1), TREE, 2)
    with pytest.raises(ValueError, match=r"relative tolerance 1.0e-06|row \d of an earlier call"):
        _waited_for(adapter.emd(p, y.softmax(-1), TREE, 2, validate=1e-6))
    assert value.dtype == torch.float32
    value.sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_emd_accepts_integers(rng):
    one_hot = torch.eye(TREE.n_bins, dtype=torch.int64, device=PLACE)
    assert adapter.emd(one_hot[0], one_hot[1], TREE, 1).dtype == torch.float64
    p = torch.full((TREE.n_bins,), 1 / TREE.n_bins, device=PLACE)
    assert adapter.emd(p, one_hot[1], TREE, 1).dtype == torch.float32


@cpu  # other backends report invalid rows later
def test_emd_rejects_invalid_input(rng):
    p = torch.full((2, TREE.n_bins), 1 / TREE.n_bins)
    for bad, wrong, message in (
        ({"p": p.numpy()}, TypeError, "p: expected a torch.Tensor, got ndarray of shape"),
        ({"q": p[:, 1:]}, ValueError, "q: the last axis must hold the 5 bins"),
        ({"q": torch.stack((p[0], -p[1]))}, ValueError, "q: row 1 has a negative mass"),
        ({"space": 3}, TypeError, "space: expected a fastemd.Chain"),
        ({"rho": 0.5}, ValueError, "rho: expected a finite number >= 1"),
        ({"p": p.repeat(2, 1)}, ValueError, r"p and q: .* do not broadcast: p \(4,\), q \(2,\)"),
        ({"p": p.to_sparse()}, TypeError, r"p: sparse arrays .* pass p.to_dense\(\)"),
        ({"p": p.T}, ValueError, "p: the last axis .* 5 entries is axis 0: move it last"),
        ({"p": p * 1j}, TypeError, "p: expected an array of real numbers, got Tensor"),
        ({"validate": 1}, TypeError, "validate: expected True, False or"),
        ({"q": 1.01 * p, "validate": np.float32(1e-3)}, ValueError, "unequal masses"),
    ):
        with pytest.raises(wrong, match=message):
            adapter.emd(**{"p": p, "q": p, "space": TREE, "rho": 2} | bad)
    assert torch.isnan(adapter.emd(p * torch.nan, p, TREE, 2, validate=False)).all()
    adapter.emd(p, 1.01 * p, TREE, 2, validate=np.float32(0.1))


def test_emd_rejects_tensors_on_two_devices():
    p = torch.full((2, TREE.n_bins), 1 / TREE.n_bins, device=PLACE)
    devices = "p and q: on different devices:"
    for bad, message in (
        ({"q": p.to("meta")}, f"{devices} p on {p.device}, q on meta"),
        ({"p": p.double().to("meta")}, f"{devices} p on meta, q on {p.device}"),
    ):
        for call in (adapter.emd, torch.compile(adapter.emd, backend="eager")):
            with pytest.raises(TypeError, match=message):
                call(**{"p": p, "q": p, "space": TREE, "rho": 2} | bad)


def test_emd_supports_other_devices():
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
    x, y = (tensor.detach() for tensor in _logits(rng))
    p, q, number = x.softmax(-1), y.softmax(-1), adapter.number_of(TREE)
    operators, labels = torch.ops.fastemd, _tensor([0, 3, 4, 4])
    torch.library.opcheck(operators.emd.default, (p, q, number, 2.0, 1e-8))
    torch.library.opcheck(operators.emd_hvp.default, (p, q, x, number, 2.0, 1e-8))
    for target in (labels, q):
        constants = number, 2.0, 1e-5, "softmax", 0.5
        for counted in (None, _tensor([True, False, True, True])):
            given = x, target, counted
            torch.library.opcheck(operators.emd_loss.default, (*given, *constants))
            torch.library.opcheck(operators.emd_loss_hvp.default, (*given, y, *constants))


def test_spaces_live_as_long_as_referenced(rng):
    p, q = (tensor.detach().softmax(-1).requires_grad_() for tensor in _logits(rng))
    space = fastemd.Chain(5, [1, 2, 3, 0.5])
    number = adapter.number_of(space)
    value = adapter.emd(p, q, space, 1.5)
    twin = pickle.loads(pickle.dumps(space))
    assert adapter.number_of(twin) == number
    del space
    gc.collect()
    assert adapter.operators.space_of(number).n_bins == 5  # its equal space remains registered
    del twin
    gc.collect()
    first = torch.autograd.grad(value.square().sum(), p, create_graph=True)[0]
    torch.autograd.grad(first.square().sum(), q)
    del value, first
    gc.collect()
    with pytest.raises(ValueError, match="does not exist any more"):
        adapter.operators.space_of(number)


# -- the loss --------------------------------------------------------------------------------------

LABELS = [0, 3, 4, 3]
OPTIONS = [
    {},
    {"rho": 1.5, "cross_entropy": 0.5},
    {"cross_entropy": 1.0, "ignore_index": 3},
    {"normalize": "l1", "rho": 3.7},
    {"normalize": None, "cross_entropy": 0.5},
]
each_option = pytest.mark.parametrize("options", OPTIONS, ids=str)
each_target = pytest.mark.parametrize("kind", ["labels", "histograms"])


def _case(rng, kind, options, shape=(4,)):
    x, y = (tensor.detach() for tensor in _logits(rng, shape))
    if options.get("normalize", "softmax") != "softmax":
        x = x.softmax(-1) * (3 if options["normalize"] else 1)
    if kind == "labels":
        return x, _tensor(LABELS).expand(shape).contiguous()
    if "ignore_index" in options:
        pytest.skip("for labels")
    return x, y.softmax(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["paper", "log"])
def test_sinkhorn_has_gradient_of_paper(method, dtype, rng):
    p, q = (x.detach().softmax(-1).to(dtype) for x in _logits(rng))
    p.requires_grad_()
    cost = _tensor(rng.random((5, 5)), dtype)
    for ground in (cost, TREE):
        options = {"lam": 4.0, "max_iter": 300, "method": method}
        matrix = _host(cost) if ground is cost else TREE
        ref = fastemd.sinkhorn(_host(p), _host(q), matrix, **options)
        value = adapter.sinkhorn(p, q, ground, **options)
        weights = torch.arange(4.0, dtype=dtype, device=PLACE)
        (grad,) = torch.autograd.grad((value * weights).sum(), p)
        assert value.dtype == grad.dtype == dtype
        assert_close(value, ref.value)
        centred = ref.grad - ref.grad.mean(-1, keepdims=True)
        assert_close(grad, _host(weights)[:, None] * centred, rtol=1e-6)
    double = adapter.sinkhorn(p, q, TREE, lam=4.0, dtype=torch.float64)
    double.sum().backward()
    assert double.dtype == torch.float64
    assert p.grad.dtype == dtype


def test_sinkhorn_gradient_descent_converges(rng):
    """To the minimum of the cost; an empty bin gives no NaN."""
    x = _tensor([0.0] * 5, torch.float64).requires_grad_()
    q = _tensor([0.0, 0.7, 0.3, 0.0, 0.0], torch.float64)
    for _ in range(300):
        loss = adapter.sinkhorn(x.softmax(-1), q, TREE, lam=50.0, max_iter=200, method="log")
        (grad,) = torch.autograd.grad(loss, x)
        x.data -= grad
    assert adapter.emd(x.softmax(-1), q, TREE, 1) < 0.05
    p = q.clone().requires_grad_()
    adapter.sinkhorn(p, q.flip(0), TREE, lam=5.0).backward()
    assert p.grad.isfinite().all()
    assert (p.grad[q == 0] == 0).all()


def test_sinkhorn_broadcasts_and_supports_vmap(rng):
    p, q = (x.detach().softmax(-1) for x in _logits(rng))

    def loss(p, q):
        return adapter.sinkhorn(p, q, TREE, lam=2.0)

    ref = torch.func.vmap(torch.func.grad(loss), in_dims=(0, None))(p, q[0])
    p.requires_grad_()
    loss(p[:, None], q[:1]).sum().backward()
    torch.testing.assert_close(p.grad, ref)
    one = p.detach()[0].requires_grad_()
    loss(one, q).sum().backward()
    assert one.grad.shape == (5,)
    wide = torch.stack([q, q.flip(0), q.flip(1), q])
    mapped = torch.func.vmap(loss)(p.detach(), wide)  # (5,) and (4, 5) inside
    torch.testing.assert_close(mapped, loss(p.detach()[:, None], wide))
    costs = torch.ones(2, 5, 5, device=PLACE)
    with pytest.raises(TypeError, match="cost: vmap cannot map over it"):
        torch.func.vmap(lambda cost: adapter.sinkhorn(p, q, cost, lam=2.0))(costs)


def test_sinkhorn_gradient_is_zero_for_failed_rows():
    p = _tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]]).requires_grad_()
    q = _tensor([[0.0, 0.5, 0.5], [0.5, 0.5, 0.0]])
    value = adapter.sinkhorn(p, q, fastemd.Chain(3), lam=200.0, max_iter=3)
    value.sum().backward()
    assert value.isnan().tolist() == [True, False]
    assert p.grad.isnan().any(-1).tolist() == [True, False]


def test_sinkhorn_ignores_autocast(rng):
    p, q = (x.detach().softmax(-1).float() for x in _logits(rng))
    ref = adapter.sinkhorn(p, q, TREE, lam=2.0)
    with torch.autocast(PLACE, torch.bfloat16):
        torch.testing.assert_close(adapter.sinkhorn(p, q, TREE, lam=2.0), ref)


def test_sinkhorn_rejects_invalid_input(rng):
    p, q = (x.softmax(-1) for x in _logits(rng))
    value = adapter.sinkhorn(p, q.detach(), TREE, lam=2.0)
    (grad,) = torch.autograd.grad(value.square().sum(), p, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
    cost = torch.ones(5, 5, device=PLACE, requires_grad=True)
    for bad, error, message in (
        ({"q": q}, TypeError, "q: it requires grad"),
        ({"cost": cost}, TypeError, "cost: it requires grad"),
        ({"cost": np.ones((5, 5))}, TypeError, "cost: expected a torch.Tensor"),
        ({"p": 2 * p}, ValueError, "p and q: row 0 has unequal masses|row 0 of an earlier call"),
        ({"dtype": torch.float16}, TypeError, "dtype"),
    ):
        with pytest.raises(error, match=message):
            _waited_for(adapter.sinkhorn(**{"p": p, "q": q.detach(), "cost": TREE, "lam": 2} | bad))
    wide = {"p": 1.001 * p, "q": q.detach(), "cost": TREE, "lam": 2.0}
    assert adapter.sinkhorn(**wide, validate=0.01).isfinite().all()


@each_option
@each_target
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_emd_loss_agrees_with_numpy_function(options, kind, reduction, weighted, rng):
    x, target = _case(rng, kind, options)
    weight = _tensor(rng.random(4)) if weighted else None
    options = {"reduction": reduction, **options}
    x.requires_grad_()
    comp = adapter.EMDLoss(TREE, **options)(x, target, weight)
    options["sample_weight"] = _host(weight)
    value, grad = fastemd.emd_loss(_host(x), _host(target), TREE, **options)
    assert_close(comp, value)
    comp.sum().backward()
    assert_close(x.grad, grad)


@each_option
@each_target
def test_emd_loss_derivatives(options, kind, rng):
    x, target = _case(rng, kind, options)
    loss = adapter.EMDLoss(TREE, **{"reduction": "none", **options})
    weight = _tensor(rng.random(4)).requires_grad_()

    def of_any(y):  # l1 and None require positive inputs, None also mass 1
        return loss(x * torch.exp(y) if options.get("normalize") else y, target, weight)

    if options.get("normalize", "") is None:
        of_any = lambda y: loss(y.softmax(-1), target, weight)  # noqa: E731
    at = (x if "normalize" not in options else 0.1 * x.log()).requires_grad_()
    assert torch.autograd.gradcheck(of_any, at)
    assert torch.autograd.gradgradcheck(of_any, at)


@each_target
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.func.hessian, about torch
def test_emd_loss_supports_transforms_of_torch_func(kind, rng):
    x, target = _case(rng, kind, {}, (3, 4))
    loss = adapter.EMDLoss(TREE, 1.5, cross_entropy=0.5)
    grad, vmap, jacrev = torch.func.grad, torch.func.vmap, torch.func.jacrev
    for transform, inputs in (
        (vmap(grad(loss)), (x, target)),
        (vmap(grad(loss), in_dims=(0, None)), (x, target[0])),
        (vmap(vmap(jacrev(jacrev(loss)))), (x, target)),
    ):
        comp = transform(*inputs)
        labels = inputs[1].expand(target.shape)
        rows = [
            (torch.func.hessian if comp.ndim == 4 else grad)(
                lambda z, t=t: _dense_loss(z, t, 1.5, 0.5)
            )(z)
            for z, t in (
                zip(x.flatten(0, 1), labels.flatten(0, 1), strict=True)
                if comp.ndim == 4
                else zip(x, labels, strict=True)
            )
        ]
        assert_close(comp.reshape(len(rows), *rows[0].shape), torch.stack(rows), 1.0, 1e-10)


def _dense_loss(x, target, rho, cross_entropy):
    if not target.is_floating_point():
        target = torch.nn.functional.one_hot(target, TREE.n_bins).to(x.dtype)
    flow = (x.softmax(-1) - target) @ _ancestors(x.dtype).T
    emd = (_tensor(TREE.weight[:-1]) * flow.abs() ** rho).sum(-1)
    return (emd - cross_entropy * (target * x.log_softmax(-1)).sum(-1)).mean()


@each_backend
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_emd_loss_compiles_to_one_graph(backend, rng):
    torch._dynamo.reset()
    x, target = _case(rng, "labels", {})
    loss = adapter.EMDLoss(TREE, cross_entropy=1.0, ignore_index=0)
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    x.requires_grad_()
    comp, ref = compiled(x, target), loss(x, target)
    torch.testing.assert_close(comp, ref)
    torch.testing.assert_close(torch.autograd.grad(comp, x), torch.autograd.grad(ref, x))


@pytest.mark.parametrize("low", ["float16", "bfloat16"])
def test_emd_loss_computes_low_precision_in_float32(low, rng):
    x, target = _case(rng, "histograms", {})
    x, target = (tensor.to(getattr(torch, low)) for tensor in (x, target))
    x.requires_grad_()
    comp = adapter.EMDLoss(TREE)(x, target)
    assert comp.dtype == torch.float32
    comp.backward()
    assert x.grad.dtype == x.dtype


def test_emd_loss_broadcasts_and_accepts_any_batch_shape(rng):
    x, target = _case(rng, "labels", {}, (3, 4))
    loss = adapter.EMDLoss(TREE, reduction="none")
    ref = loss(x, target)
    assert ref.shape == (3, 4)
    torch.testing.assert_close(loss(x, target[0]), ref)
    torch.testing.assert_close(loss(x, target[:1, :1]), loss(x, target[0, 0].expand(3, 4)))
    torch.testing.assert_close(loss(x[0, 0], target[0, 0]), ref[0, 0])
    for reduction in ("mean", "sum"):
        assert adapter.EMDLoss(TREE, reduction=reduction)(x[:0], target[:0]) == 0


def test_emd_loss_is_module(rng):
    loss = adapter.EMDLoss(TREE, 1.5, cross_entropy=0.5, ignore_index=0)
    x, target = _case(rng, "labels", {})
    assert not loss.state_dict()
    loss.load_state_dict(loss.state_dict())
    assert repr(loss) == f"EMDLoss({TREE!r}, rho=1.5, cross_entropy=0.5, ignore_index=0)"
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), loss.double()):
        torch.testing.assert_close(other(x, target), loss(x, target))
    buffer = io.BytesIO()
    torch.save(loss, buffer)
    buffer.seek(0)
    torch.testing.assert_close(torch.load(buffer, weights_only=False)(x, target), loss(x, target))


@cpu
def test_emd_loss_rejects_invalid_input(rng):
    x, target = _case(rng, "labels", {})
    for options, wrong, message in (
        ({"space": 3}, TypeError, "space: expected"),
        ({"rho": 0.5}, ValueError, "rho: expected"),
        ({"normalize": "max"}, ValueError, "normalize: expected"),
        ({"reduction": "min"}, ValueError, "reduction: expected"),
        ({"cross_entropy": -1}, ValueError, "cross_entropy: expected"),
    ):
        with pytest.raises(wrong, match=message):
            adapter.EMDLoss(**{"space": TREE} | options)
    loss = adapter.EMDLoss(TREE)
    soft = x.softmax(-1)
    one_hot = torch.nn.functional.one_hot(target, TREE.n_bins)
    for inputs, wrong, message in (
        ((x.numpy(), target), TypeError, "x: expected a torch.Tensor"),
        ((x, target.tolist()), TypeError, "target: expected a torch.Tensor"),
        ((x, soft.requires_grad_()), TypeError, "target: it requires grad"),
        ((x[:, 1:], target), ValueError, "x: the last axis must hold the 5 bins"),
        ((x, target + 1), ValueError, "target: row 2 is class 5; classes are 0..4; set ignore"),
        ((x * torch.nan, target), ValueError, "x: row 0"),
        ((x, 2 * soft.detach()), ValueError, "target: row 0"),
        ((x, one_hot), ValueError, "target: integers are labels, one per row of x"),
        ((x, target[:, None]), ValueError, r"target: labels of shape \(4, 1\) .*squeeze"),
        ((x, soft.detach()[:, None]), ValueError, r"target: histograms .*squeeze\(-2\)"),
        ((x[0], target), ValueError, r"target: labels of shape \(4,\) .* of shape \(5,\)"),
        ((x, target.float()), ValueError, r"target: .* of shape \(4,\), .* must be integers"),
        ((x.to_sparse(), target), TypeError, r"x: sparse arrays .* x.to_dense\(\)"),
        ((x, target.to_sparse()), TypeError, r"target: sparse arrays .* target.to_dense\(\)"),
        ((x, target, torch.ones(4).to_sparse()), TypeError, "sample_weight: sparse arrays"),
        ((x, soft.detach() * 1j), TypeError, "target: expected an array of real numbers"),
        ((x, target, torch.ones(4) * 1j), TypeError, "sample_weight: expected an array of real"),
        ((x, one_hot.bool()), TypeError, "target: expected classes of an integer type"),
        ((x, target, [1.0] * 4), TypeError, "sample_weight: expected a torch.Tensor"),
        ((x, target, torch.ones(3)), ValueError, "do not broadcast: sample_weight"),
        ((x, target, torch.ones(2, 4)), ValueError, "do not broadcast: sample_weight"),
    ):
        with pytest.raises(wrong, match=message):
            loss(*inputs)


def test_emd_loss_rejects_tensors_on_two_devices(rng):
    x, target = _case(rng, "labels", {})
    weight, place = torch.ones(4, device=PLACE), x.device
    devices = "x and target: on different devices:"
    for inputs, message in (
        ((x, target.to("meta")), f"{devices} x on {place}, target on meta"),
        ((x, x.softmax(-1).to("meta")), f"{devices} .* target on meta"),
        ((x.to("meta"), target), f"{devices} x on meta, target on {place}"),
        ((x, target, weight.to("meta")), f".* target on {place}, sample_weight on meta"),
    ):
        with pytest.raises(TypeError, match=message):
            adapter.EMDLoss(TREE)(*inputs)


def test_emd_loss_ignore_index_applies_to_labels_only(rng):
    x, target = _case(rng, "labels", {})
    for ignored, given in ((0.5, target), (0, x.softmax(-1).detach())):
        with pytest.raises((TypeError, ValueError), match="ignore_index"):
            adapter.EMDLoss(TREE, ignore_index=ignored)(x, given)


@hardware
def test_emd_loss_trains_network():
    torch.manual_seed(0)
    inputs = torch.randn(64, 8)
    target = (inputs @ torch.randn(8, TREE.n_bins)).argmax(-1).to(PLACE)
    net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Tanh(), torch.nn.Linear(64, 5))
    with torch.no_grad():
        net[2].bias += torch.tensor([3.0, -3, 0, 1, -1])  # most classes are wrong at first
    inputs, net = inputs.to(PLACE), net.to(PLACE)
    loss, optimizer = adapter.EMDLoss(TREE), torch.optim.SGD(net.parameters(), lr=0.3)
    for _ in range(1000):
        value = loss(net(inputs), target)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert value < 0.01
    assert (net(inputs).argmax(-1) == target).float().mean() > 0.95


@cpu
def test_operators_preserve_number_of_threads_of_torch():
    """Numba sets it once, when it starts threads of the OpenMP library that both use."""
    code = """
import torch, fastemd, fastemd.torch
torch.set_num_threads(1)
x, target = torch.zeros(512, 1000), torch.zeros(512, dtype=torch.int64)
fastemd.torch.EMDLoss(fastemd.Chain(1000))(x, target)
assert torch.get_num_threads() == 1
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


@cpu
def test_emd_loss_does_not_leak_memory(rng):
    x, target = _case(rng, "labels", {}, (40, 4))
    x.requires_grad_()
    loss = adapter.EMDLoss(TREE)

    def step():
        x.grad = None
        loss(x, target).backward()

    assert growth(step, 30_000) < 8_000


WORKER = """
import sys, torch, fastemd, fastemd.torch
from torch.nn.parallel import DistributedDataParallel
rank, file = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method="file://" + file, rank=rank, world_size=2)
torch.manual_seed(0)
x, target = torch.randn(8, 6), torch.arange(8) % 5
layer = torch.nn.Linear(6, 5)
whole = torch.nn.Linear(6, 5)
whole.load_state_dict(layer.state_dict())
loss = fastemd.torch.EMDLoss(fastemd.Chain(5), cross_entropy=1.0)
loss(whole(x), target).backward()
parallel = DistributedDataParallel(layer)
loss(parallel(x[rank::2]), target[rank::2]).backward()
torch.testing.assert_close(layer.weight.grad, whole.weight.grad)
torch.distributed.barrier()  # or the one that is done first may take the other's threads away
del parallel
torch.distributed.destroy_process_group()
"""


@cpu
def test_emd_loss_in_distributed_data_parallel(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", WORKER]
    workers = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "meeting")], stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for worker in workers:
        _, message = worker.communicate(timeout=300)
        assert worker.returncode == 0, message.decode()[-2000:]


# ----------------------------------------------------------------------------- ignored rows


@pytest.mark.parametrize("kind", ["labels", "histograms", "ignored labels"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf])
def test_emd_loss_module_does_not_read_ignored_rows(kind, reduction, junk, rng):
    """Loss, gradient and second derivatives of a row of weight 0 are 0, for any content."""
    x, _ = _logits(rng)
    labels, idle = _tensor([0, 3, 4, 4]), _tensor([False, True, False, True])
    soft = _tensor(rng.dirichlet(np.ones(TREE.n_bins), 4))
    keep = ~idle
    given = x.detach().where(keep[:, None], junk).requires_grad_()
    good = x.detach()[keep].requires_grad_()
    options, weight = {"cross_entropy": 1.0, "reduction": reduction}, keep.double()
    target, rest = labels.where(keep, 77), labels[keep]
    if kind == "histograms":
        target, rest = soft.where(keep[:, None], junk), soft[keep]
    if kind == "ignored labels":
        options["ignore_index"], weight = 77, torch.where(keep, 1.0, junk)
    loss = adapter.EMDLoss(TREE, **options)(given, target, weight)
    ref = adapter.EMDLoss(TREE, cross_entropy=1.0, reduction=reduction)(good, rest)
    torch.testing.assert_close(loss[keep] if reduction == "none" else loss, ref)
    assert reduction != "none" or (loss[idle] == 0.0).all()
    first, product = _first_and_second(loss, given, x.detach())
    ref_first, ref_product = _first_and_second(ref, good, x.detach()[keep])
    torch.testing.assert_close(first[keep], ref_first)
    torch.testing.assert_close(product[keep], ref_product)
    assert (first[idle] == 0.0).all()
    assert (product[idle] == 0.0).all()


def _first_and_second(loss, x, v):
    """Return the gradient of the sum of the losses, and the second derivatives times v."""
    (grad,) = torch.autograd.grad(loss.sum(), x, create_graph=True)
    return grad, torch.autograd.grad((grad * v).sum(), x)[0]


def test_emd_loss_module_does_not_read_ignored_rows_under_transforms(rng):
    x, _ = _logits(rng)
    x = x.detach()
    x[1] = torch.nan
    labels, weight = _tensor([0, -100, 4, 4]), _tensor([1.0, 2.0, 3.0, 0.0])
    loss = adapter.EMDLoss(TREE, ignore_index=-100)

    def total(x, labels, weight):
        return loss(x, labels, weight)

    ref = torch.func.grad(total)(x, labels, weight)
    assert torch.isfinite(ref).all()
    assert (ref[[1, 3]] == 0.0).all()
    compiled = torch.compile(torch.func.grad(total), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, labels, weight), ref)
    rows = torch.func.vmap(torch.func.grad(lambda *row: loss(*row) * row[2]))(x, labels, weight)
    torch.testing.assert_close(rows / 4.0, ref)


@pytest.mark.parametrize(
    ("kind", "label", "ignored"),
    [("uint8", 156, -100), ("int8", 0, 256), ("int8", 1, 2**40 + 1), ("int64", 1, 2**64 + 1)],
)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_emd_loss_module_ignores_equal_labels_only(kind, label, ignored, reduction):
    """An index outside the range of the label type ignores no row."""
    x, target = torch.zeros(3, 200, device=PLACE), _tensor([label] * 3, getattr(torch, kind))
    options = {"reduction": reduction, "cross_entropy": 1.0}
    loss = adapter.EMDLoss(fastemd.Chain(200), ignore_index=ignored, **options)(x, target)
    assert (loss > 0.0).all()
    ref = adapter.EMDLoss(fastemd.Chain(200), **options)(x, target)
    torch.testing.assert_close(loss, ref)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_emd_loss_module_accepts_weights_of_any_size(dtype, rng):
    x, _ = _logits(rng)
    x, labels = x.detach().float(), _tensor([0, -100, 4, 4])
    loss = adapter.EMDLoss(TREE, ignore_index=-100)
    ref = loss(x, labels, _tensor([1.0, 7.0, 2.0, 2.0], dtype))
    huge = torch.finfo(dtype).max / 2
    weight = _tensor([huge / 2, 2 * huge, huge, huge], dtype)
    torch.testing.assert_close(loss(x, labels, weight), ref)
    tiny = _tensor([1.0, huge, 2.0, 2.0], dtype)
    torch.testing.assert_close(loss(x, labels, tiny), ref)


def test_emd_loss_module_differentiates_weights(rng):
    """The gradient in the weights is the loss of each row, minus the mean loss for a mean."""
    x, _ = _logits(rng)
    x, labels = x.detach(), _tensor([0, 3, 4, 4])
    rows = adapter.EMDLoss(TREE, reduction="none")(x, labels)
    for weight in ([1.0, 2.0, 0.5, 3.0], [1.0, 1.0, 1.0, 1.0]):
        weight = _tensor(weight, torch.float64).requires_grad_()
        mean = adapter.EMDLoss(TREE)(x, labels, weight)
        (grad,) = torch.autograd.grad(mean, weight)
        total = weight.detach().sum()
        torch.testing.assert_close(grad, (rows - mean.detach()) / total)
