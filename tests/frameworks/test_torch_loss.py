"""fastemd.torch.EMDLoss: derivatives, transforms, compiler, weights, training."""

import copy
import io
import pickle
import subprocess
import sys

import numpy as np
import pytest

import fastemd
from tests.support.device import cpu, hardware
from tests.support.frameworks import growth, needed
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
LABELS = [0, 3, 4, 3]
OPTIONS = [
    {},
    {"rho": 1.5, "cross_entropy": 0.5},
    {"cross_entropy": 1.0, "ignore_index": 3},
    {"normalize": "l1", "rho": 3.7},
    {"normalize": None, "rho": 1.5},
    {
        "rho": 1.5, "cross_entropy": 0.5, "class_weight": [1.0, 0.5, 2.0, 0.0, 3.0],
        "label_smoothing": 0.2, "root": True,
    },
]  # fmt: skip
each_option = pytest.mark.parametrize("options", OPTIONS, ids=str)
each_target = pytest.mark.parametrize("kind", ["labels", "histograms"])


def _case(rng, kind, options, shape=(4,)):
    x, y = (tensor.detach() for tensor in random_logits(rng, shape))
    if options.get("normalize", "softmax") != "softmax":
        x = x.softmax(-1) * (3 if options["normalize"] else 1)
    if kind == "labels":
        return x, as_tensor(LABELS).expand(shape).contiguous()
    if "ignore_index" in options:
        pytest.skip("for labels")
    return x, y.softmax(-1)


@each_option
@each_target
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_emd_loss_agrees_with_numpy_function(options, kind, reduction, weighted, rng, backend):
    x, target = _case(rng, kind, options)
    weight = as_tensor(rng.random(4)) if weighted else None
    options = {"reduction": reduction, **options}
    x.requires_grad_()
    comp = adapter.EMDLoss(TREE, **options)(x, target, weight)
    options["sample_weight"] = as_numpy(weight)
    value, grad = backend.emd_loss(as_numpy(x), as_numpy(target), TREE, **options)
    assert_close(comp, value)
    comp.sum().backward()
    assert_close(x.grad, grad)


@each_option
@each_target
def test_emd_loss_derivatives(options, kind, rng):
    x, target = _case(rng, kind, options)
    loss = adapter.EMDLoss(TREE, **{"reduction": "none", **options})
    weight = as_tensor(rng.random(4)).requires_grad_()

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
    flow = (x.softmax(-1) - target) @ ancestors(x.dtype).T
    emd = (as_tensor(TREE.weight[:-1]) * flow.abs() ** rho).sum(-1)
    return (emd - cross_entropy * (target * x.log_softmax(-1)).sum(-1)).mean()


@each_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_emd_loss_compiles_to_one_graph(compiler, rng):
    torch._dynamo.reset()
    x, target = _case(rng, "labels", {})
    loss = adapter.EMDLoss(TREE, cross_entropy=1.0, ignore_index=0)
    compiled = torch.compile(loss, fullgraph=True, backend=compiler)
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
        ({"cross_entropy": 1, "normalize": "l1"}, ValueError, "cross_entropy: .*='softmax' only"),
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
    weight, place = torch.ones(4, device=TORCH_DEVICE), x.device
    devices = "x and target: on different devices:"
    for inputs, message in (
        ((x, target.to("meta")), f"{devices} x on {place}, target on meta"),
        ((x, x.softmax(-1).to("meta")), f"{devices} .* target on meta"),
        ((x.to("meta"), target), f"{devices} x on meta, target on {place}"),
        ((x, target, weight.to("meta")), f".* target on {place}, sample_weight on meta"),
    ):
        with pytest.raises(TypeError, match=message):
            adapter.EMDLoss(TREE)(*inputs)


@pytest.mark.parametrize("kind", ["labels", "histograms"])
@pytest.mark.parametrize("weighted", [False, True])
def test_emd_loss_dim_equals_last_axis(kind, weighted, rng):
    """As for images: values, first and second derivatives, and transforms."""
    x, y = (tensor.detach() for tensor in random_logits(rng, (2, 3, 4)))
    target = y.argmax(-1) if kind == "labels" else y.softmax(-1)
    weight = as_tensor(rng.random((2, 3, 4))) if weighted else None
    options = {"cross_entropy": 0.5, "class_weight": [1.0, 0.5, 2.0, 0.0, 3.0]}
    last, first = adapter.EMDLoss(TREE, **options), adapter.EMDLoss(TREE, dim=1, **options)
    moved = target if kind == "labels" else target.movedim(-1, 1).contiguous()

    def at_dim(x):
        return first(x.movedim(-1, 1).contiguous(), moved, weight)

    def at_end(x):
        return last(x, target, weight)

    assert_close(at_dim(x), at_end(x))
    for transform in (torch.func.grad, lambda f: torch.func.grad(_squared_gradient(f))):
        assert_close(transform(at_dim)(x), transform(at_end)(x))
    mapped = torch.func.vmap(adapter.EMDLoss(TREE, dim=0))(x.movedim(-1, 1), y.argmax(-1))
    one_by_one = [adapter.EMDLoss(TREE)(a, b) for a, b in zip(x, y.argmax(-1), strict=True)]
    assert_close(mapped, torch.stack(one_by_one))
    if kind == "histograms":
        p = x.softmax(-1)
        ours = adapter.emd(p.movedim(-1, 1), moved, TREE, 2, dim=1)
        assert_close(ours, adapter.emd(p, target, TREE, 2))


def _squared_gradient(function):
    return lambda x: torch.func.grad(function)(x).square().sum()


def test_emd_loss_dim_rejects_other_shapes():
    with pytest.raises(ValueError, match=r"x: the last axis .* axis 1: pass dim=1"):
        adapter.EMDLoss(TREE)(torch.zeros(2, 5, 3), torch.zeros(2, 3, dtype=int))
    with pytest.raises(ValueError, match=r"dim: expected an axis of x, from -2 to 1, got 2"):
        adapter.EMDLoss(TREE, dim=2)(torch.zeros(2, 5), torch.zeros(2, dtype=int))
    with pytest.raises(TypeError, match="dim: expected an integer"):
        adapter.EMDLoss(TREE, dim=1.0)
    with pytest.raises(ValueError, match="class_weight: expected one number for each of the 5"):
        adapter.EMDLoss(TREE, class_weight=torch.ones(4))
    with pytest.raises(ValueError, match="class_weight: -1 at bin 2"):
        adapter.EMDLoss(TREE, class_weight=[1, 1, -1, 1, 1])
    with pytest.raises(TypeError, match="class_weight: vmap cannot map over it"):
        torch.func.vmap(_loss_with_weight)(torch.ones(2, 5))


def _loss_with_weight(weight):
    loss = adapter.EMDLoss(TREE)
    loss.class_weight = weight
    return loss(torch.zeros(3, 5), torch.zeros(3, dtype=int))


def test_emd_loss_ignores_the_label_that_torch_ignores(rng):
    """By default, and no histograms."""
    x, target = _case(rng, "labels", {})
    target[1] = -100
    kept = target != -100
    loss = adapter.EMDLoss(TREE)
    assert_close(loss(x, target), loss(x[kept], target[kept]))
    assert_close(loss(x, x.softmax(-1)), 0.0, 1.0)
    with pytest.raises(ValueError, match=r"class -100|row 1"):
        synchronized(adapter.EMDLoss(TREE, ignore_index=None)(x, target))
    for reduction in ("mean", "sum", "none"):
        comp = adapter.EMDLoss(fastemd.Chain(5, [0] * 4), reduction=reduction, cross_entropy=1.0)
        ref = torch.nn.CrossEntropyLoss(reduction=reduction)
        assert_close(comp(x, target), ref(x, target))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64"])
def test_emd_loss_takes_labels_of_any_type_with_class_weight(dtype):
    """As many rows as classes: torch takes an index of uint8 for a mask."""
    x, weight = torch.eye(5)[:, [1, 0, 2, 4, 3]], [1.0, 0.5, 2.0, 0.0, 3.0]
    labels = torch.tensor([0, 1, 1, 4, 2])
    loss = adapter.EMDLoss(TREE, class_weight=weight)
    assert_close(loss(x, labels.to(getattr(torch, dtype))), loss(x, labels))


def test_emd_loss_keeps_its_class_weight():
    x, y = torch.eye(5), torch.tensor([0, 1, 1, 4, 2])
    given = torch.tensor([1e5, 0.5, 2.0, 0.0, 3.0], dtype=torch.bfloat16)
    loss = adapter.EMDLoss(TREE, class_weight=given)
    expected = loss(x, y)
    for change in (
        lambda loss: loss.half(), lambda loss: loss.to("meta").to_empty(device="cpu"),
        copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss)),
    ):  # fmt: skip
        assert_close(change(adapter.EMDLoss(TREE, class_weight=given))(x, y), expected)
    with torch.device("meta"):
        on_meta = adapter.EMDLoss(TREE, class_weight=[1e5, 0.5, 2.0, 0.0, 3.0])
    assert_close(on_meta(x, y), expected, rtol=1e-2)
    given.zero_()
    assert_close(loss(x, y), expected)
    with pytest.raises(TypeError, match="class_weight: it requires grad"):
        adapter.EMDLoss(TREE, class_weight=torch.ones(5, requires_grad=True))


def test_emd_loss_does_not_store_its_class_weight():
    loss = adapter.EMDLoss(TREE, class_weight=[1, 2, 3, 4, 5])
    assert loss.state_dict() == {}
    assert "class_weight" in repr(loss)
    assert dict(loss.named_buffers())["class_weight"].device == torch.device("cpu")


def test_emd_loss_ignore_index_applies_to_labels_only(rng):
    x, target = _case(rng, "labels", {})
    for ignored, labels in ((0.5, target), (0, x.softmax(-1).detach())):
        with pytest.raises((TypeError, ValueError), match="ignore_index"):
            adapter.EMDLoss(TREE, ignore_index=ignored)(x, labels)


@hardware
def test_emd_loss_trains_network():
    torch.manual_seed(0)
    inputs = torch.randn(64, 8)
    target = (inputs @ torch.randn(8, TREE.n_bins)).argmax(-1).to(TORCH_DEVICE)
    net = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Tanh(), torch.nn.Linear(64, 5))
    with torch.no_grad():
        net[2].bias += torch.tensor([3.0, -3, 0, 1, -1])  # most classes are wrong at first
    inputs, net = inputs.to(TORCH_DEVICE), net.to(TORCH_DEVICE)
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


@pytest.mark.parametrize("kind", ["labels", "histograms", "ignored labels"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_emd_loss_module_does_not_read_ignored_rows(kind, reduction, value, rng):
    """Loss, gradient and second derivatives of a row of weight 0 are 0, for any content."""
    x, _ = random_logits(rng)
    labels, ignored_rows = as_tensor([0, 3, 4, 4]), as_tensor([False, True, False, True])
    soft = as_tensor(rng.dirichlet(np.ones(TREE.n_bins), 4))
    keep = ~ignored_rows
    arguments = x.detach().where(keep[:, None], value).requires_grad_()
    valid = x.detach()[keep].requires_grad_()
    options, weight = {"cross_entropy": 1.0, "reduction": reduction}, keep.double()
    target, rest = labels.where(keep, 77), labels[keep]
    if kind == "histograms":
        target, rest = soft.where(keep[:, None], value), soft[keep]
    if kind == "ignored labels":
        options["ignore_index"], weight = 77, torch.where(keep, 1.0, value)
    loss = adapter.EMDLoss(TREE, **options)(arguments, target, weight)
    ref = adapter.EMDLoss(TREE, cross_entropy=1.0, reduction=reduction)(valid, rest)
    torch.testing.assert_close(loss[keep] if reduction == "none" else loss, ref)
    assert reduction != "none" or (loss[ignored_rows] == 0.0).all()
    first, product = _first_and_second(loss, arguments, x.detach())
    ref_first, ref_product = _first_and_second(ref, valid, x.detach()[keep])
    torch.testing.assert_close(first[keep], ref_first)
    torch.testing.assert_close(product[keep], ref_product)
    assert (first[ignored_rows] == 0.0).all()
    assert (product[ignored_rows] == 0.0).all()


def _first_and_second(loss, x, v):
    """Return the gradient of the sum of the losses, and the second derivatives times v."""
    (grad,) = torch.autograd.grad(loss.sum(), x, create_graph=True)
    return grad, torch.autograd.grad((grad * v).sum(), x)[0]


def test_emd_loss_module_does_not_read_ignored_rows_under_transforms(rng):
    x, _ = random_logits(rng)
    x = x.detach()
    x[1] = torch.nan
    labels, weight = as_tensor([0, -100, 4, 4]), as_tensor([1.0, 2.0, 3.0, 0.0])
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
    x, target = (
        torch.zeros(3, 200, device=TORCH_DEVICE),
        as_tensor([label] * 3, getattr(torch, kind)),
    )
    options = {"reduction": reduction, "cross_entropy": 1.0}
    loss = adapter.EMDLoss(fastemd.Chain(200), ignore_index=ignored, **options)(x, target)
    assert (loss > 0.0).all()
    ref = adapter.EMDLoss(fastemd.Chain(200), **options)(x, target)
    torch.testing.assert_close(loss, ref)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_emd_loss_module_accepts_weights_of_any_size(dtype, rng):
    x, _ = random_logits(rng)
    x, labels = x.detach().float(), as_tensor([0, -100, 4, 4])
    loss = adapter.EMDLoss(TREE, ignore_index=-100)
    ref = loss(x, labels, as_tensor([1.0, 7.0, 2.0, 2.0], dtype))
    huge = torch.finfo(dtype).max / 2
    weight = as_tensor([huge / 2, 2 * huge, huge, huge], dtype)
    torch.testing.assert_close(loss(x, labels, weight), ref)
    tiny = as_tensor([1.0, huge, 2.0, 2.0], dtype)
    torch.testing.assert_close(loss(x, labels, tiny), ref)


def test_emd_loss_module_differentiates_weights(rng):
    """The gradient in the weights is the loss of each row, minus the mean loss for a mean."""
    x, _ = random_logits(rng)
    x, labels = x.detach(), as_tensor([0, 3, 4, 4])
    rows = adapter.EMDLoss(TREE, reduction="none")(x, labels)
    for weight in ([1.0, 2.0, 0.5, 3.0], [1.0, 1.0, 1.0, 1.0]):
        weight = as_tensor(weight, torch.float64).requires_grad_()
        mean = adapter.EMDLoss(TREE)(x, labels, weight)
        (grad,) = torch.autograd.grad(mean, weight)
        total = weight.detach().sum()
        torch.testing.assert_close(grad, (rows - mean.detach()) / total)
