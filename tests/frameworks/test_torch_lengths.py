"""fastemd.torch.EMDLoss with learned lengths: gradients, state, training, errors."""

import copy
import pickle
import subprocess
import sys
import weakref

import numpy as np
import pytest

import fastemd
from tests.support import naive
from tests.support.device import cpu
from tests.support.frameworks import needed
from tests.support.torch_cases import (
    TORCH_DEVICE,
    TREE,
    as_tensor,
    assert_close,
    each_compiler,
    random_logits,
)

pytestmark = pytest.mark.torch_backend
torch = needed("torch")
adapter = needed("fastemd.torch")
operators = needed("fastemd.torch.operators")

# Nodes 1, 4 and 6 have one child; bins are on inner nodes and on the root; two edges have length 0.
UNARY = fastemd.Tree.from_parents(
    [-1, 0, 1, 1, 0, 4, 5, 6, 5], [0, 1, 0, 0.5, 2, 1.5, 1, 0, 3], bins=[3, 1, 7, 0, 8, 6]
)
SPACES = {
    "tree": TREE,
    "tree with unary nodes": UNARY,
    "chain": fastemd.Chain(5, [1, 2, 0.5, 3]),
    "one bin": fastemd.Chain(1),
}
OPTIONS = [
    {},
    {"rho": 1, "class_weight": True},
    {"rho": 1.5, "cross_entropy": 0.5, "class_weight": True, "label_smoothing": 0.2},
    {"rho": 1.5, "root": True, "class_weight": True, "label_smoothing": 0.2},
    {"normalize": "l1", "rho": 3.7},
    {"normalize": "l1", "root": True, "label_smoothing": 0.1},
    {"normalize": None, "rho": 1},
    {"normalize": None, "rho": 1.5, "root": True, "class_weight": True},
]
each_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
each_option = pytest.mark.parametrize("options", OPTIONS, ids=str)
each_target = pytest.mark.parametrize("kind", ["labels", "histograms"])


def _options(options, space):
    """Return the options with a weight for every class."""
    options = {"rho": 2, **options}
    if options.get("class_weight"):
        options["class_weight"] = [0.5 * (k % 4) for k in range(1, space.n_bins + 1)]
    return options


def _case(rng, kind, options, space=TREE, shape=(6,)):
    x, y = (tensor.detach() for tensor in random_logits(rng, shape, space.n_bins))
    if options.get("normalize", "softmax") != "softmax":
        x = x.softmax(-1) * (3 if options["normalize"] else 1)
    return x, y.argmax(-1) if kind == "labels" else y.softmax(-1)


def _learning(space, *args, dtype=torch.float64, **options):
    """Return a loss whose lengths are learned, in the type of the reference."""
    return adapter.EMDLoss(space, *args, learn_lengths=True, **options).to(TORCH_DEVICE, dtype)


def _dense(loss, x, target, weight=None):
    """Return the mean loss and its gradients in x and in `length`, by torch's autograd."""
    x = x.detach().cpu().double().requires_grad_()
    length = loss.length.detach().cpu().double().requires_grad_()
    target = target.cpu()
    if not target.is_floating_point():
        target = torch.nn.functional.one_hot(target, x.shape[-1]).double()
    ground = naive.ground(loss.space)
    options = {name: getattr(loss, name) for name in ("rho", "normalize", "cross_entropy", "root")}
    class_weight = loss.class_weight
    if class_weight is not None:
        options["class_weight"] = class_weight.cpu().numpy()
    rows = naive.torch_loss(
        x, target, ground, label_smoothing=loss.label_smoothing, lengths=length.abs(), **options
    )
    counts = torch.ones(rows.shape, dtype=x.dtype) if weight is None else weight.cpu().double()
    total = counts
    if class_weight is not None and (target.max(-1).values == 1.0).all():  # labels
        total = counts * class_weight.cpu().double()[target.argmax(-1)]
    mean = (rows * counts).sum() / total.sum()
    return mean, *torch.autograd.grad(mean, (x, length), allow_unused=True)


def _values_and_gradients(loss, *inputs):
    x = inputs[0].detach().requires_grad_()
    value = loss(x, *inputs[1:])
    return value, *torch.autograd.grad(value, (x, loss.length))


@each_space
@each_option
@each_target
def test_learned_lengths_gradients_agree_with_autograd_of_dense_formula(options, kind, space, rng):
    options = _options(options, space)
    x, target = _case(rng, kind, options, space)
    loss = _learning(space, **options)
    comp, ref = _values_and_gradients(loss, x, target), _dense(loss, x, target)
    assert loss.length.shape == (space.n_nodes - 1,)
    assert_close(comp[0], ref[0], 1.0)
    if options.get("normalize", "") is None:
        ref[1].sub_(ref[1].mean(-1, keepdim=True))  # fastemd projects the gradient
    assert_close(comp[1], ref[1], 1.0)
    assert_close(comp[2], ref[2], 1.0)


@each_space
@each_option
@each_target
def test_learned_lengths_start_as_plain_loss(options, kind, space, rng):
    options = _options(options, space)
    x, target = _case(rng, kind, options, space)
    comp, grad, _ = _values_and_gradients(_learning(space, **options), x, target)
    x.requires_grad_()
    plain = adapter.EMDLoss(space, **options)(x, target)
    assert_close(comp, plain, 1.0)
    assert_close(grad, torch.autograd.grad(plain, x)[0], 1.0)


@each_option
@each_target
@pytest.mark.parametrize("dim", [-1, 1])
def test_learned_lengths_gradient_agrees_with_central_differences(options, kind, dim, rng):
    options = _options(options, TREE)
    x, target = _case(rng, kind, options, shape=(2, 3))
    x = x.movedim(-1, dim).contiguous()
    if kind == "histograms":
        target = target.movedim(-1, dim).contiguous()
    loss = _learning(TREE, dim=dim, **options)
    with torch.no_grad():
        loss.length += 0.25  # the derivative of the absolute value at 0 is another one
        loss.length[::2] *= -1.0
    _, _, grad = _values_and_gradients(loss, x, target)
    step = 1e-5
    for i in range(len(grad)):
        values = []
        with torch.no_grad():
            for sign in (1.0, -1.0):
                loss.length[i] += sign * step
                values.append(loss(x, target))
                loss.length[i] -= sign * step
        assert_close((values[0] - values[1]) / (2 * step), grad[i], 1.0, rtol=1e-8)


@each_target
def test_learned_lengths_gradients_are_zero_at_zero(kind, rng):
    x, target = _case(rng, kind, {}, UNARY)
    loss = _learning(UNARY)
    zeros = loss.length == 0.0
    assert zeros.sum() == 2
    _, _, grad = _values_and_gradients(loss, x, target)
    np.testing.assert_array_equal(grad.cpu() == 0.0, zeros.cpu())


def test_learned_lengths_are_absolute_values(rng):
    x, target = _case(rng, "labels", {})
    loss = _learning(TREE, 1.5)
    ref = _values_and_gradients(loss, x, target)
    with torch.no_grad():
        loss.length[1:4] *= -1.0
    comp = _values_and_gradients(loss, x, target)
    torch.testing.assert_close(comp[:2], ref[:2])
    signs = as_tensor([1.0, -1.0, -1.0, -1.0, 1.0, 1.0, 1.0])
    torch.testing.assert_close(comp[2], ref[2] * signs)


@each_target
@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("options", [{}, {"root": True, "label_smoothing": 0.1}], ids=str)
def test_learned_lengths_do_not_read_ignored_rows(options, kind, value, rng):
    x, target = _case(rng, kind, {})
    keep = as_tensor([True, False, True, True, False, True])
    weight = as_tensor(rng.random(6)).where(keep, 0.0)
    loss = _learning(TREE, **options)
    ref = _values_and_gradients(loss, x[keep], target[keep], weight[keep])
    x = x.where(keep[:, None], value)
    unread = (keep, 77) if kind == "labels" else (keep[:, None], value)
    target = target.where(*unread)
    comp = _values_and_gradients(loss, x, target, weight)
    assert_close(comp[0], ref[0], 1.0)
    assert_close(comp[2], ref[2], 1.0)
    assert (comp[1][~keep] == 0.0).all()
    if kind == "labels":
        ref = _values_and_gradients(loss, x[keep], target[keep])
        comp = _values_and_gradients(loss, x, target.where(keep, -100))
        assert_close(comp[2], ref[2], 1.0)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_learned_lengths_reductions_and_no_rows(reduction, rng):
    x, target = _case(rng, "labels", {})
    loss = _learning(TREE, reduction=reduction)
    upstream = as_tensor(rng.standard_normal(6))
    value = loss(x, target)
    total = (value * upstream).sum() if reduction == "none" else value
    (comp,) = torch.autograd.grad(total, loss.length)
    factors = {"none": upstream.cpu().numpy(), "sum": 1.0, "mean": 1 / 6}[reduction]
    q = np.eye(TREE.n_bins)[target.cpu()]
    ref = naive.emd_length_grad(x.softmax(-1).cpu(), q, naive.ground(TREE), 2, factors)
    assert_close(comp, ref * (TREE.weight[:-1] > 0), 1.0)
    empty = torch.autograd.grad(loss(x[:0], target[:0]).sum(), loss.length)
    np.testing.assert_array_equal(empty[0].cpu(), 0.0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_learned_lengths_of_other_types(dtype, rng):
    x, target = _case(rng, "histograms", {})
    x, dtype = x.float(), getattr(torch, dtype)
    options = {"rho": 1.5, "root": True}
    loss = _learning(TREE, dtype=dtype, **options)
    value, grad, length_grad = _values_and_gradients(loss, x, target.float())
    assert (value.dtype, grad.dtype, length_grad.dtype) == (x.dtype, x.dtype, dtype)
    ref = _dense(loss, x, target)
    torch.testing.assert_close(value.cpu(), ref[0].float())
    torch.testing.assert_close(grad.cpu(), ref[1].float())
    torch.testing.assert_close(length_grad.cpu(), ref[2].to(dtype))
    assert loss.lengths.dtype == torch.float64


def test_learned_lengths_are_the_state(rng):
    loss, other = _learning(TREE), _learning(TREE)
    assert list(loss.state_dict()) == ["length"]
    assert_close(loss.length, TREE.weight[:-1])
    assert dict(loss.named_parameters()).keys() == {"length"}
    with torch.no_grad():
        loss.length += 1.0
    other.load_state_dict(loss.state_dict(), strict=True)
    assert_close(other.length, loss.length)
    assert repr(loss).endswith("learn_lengths=True)")
    with pytest.raises(RuntimeError, match=r"Missing key.*length"):
        other.load_state_dict({})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*length"):
        adapter.EMDLoss(TREE).load_state_dict(loss.state_dict())
    with pytest.raises(TypeError, match="learn_lengths: expected"):
        adapter.EMDLoss(TREE, learn_lengths="yes")


@cpu
def test_learned_lengths_state_loads_in_another_process(tmp_path, rng):
    """The value of a batch is the same there."""
    x, target = _case(rng, "labels", {})
    loss = _learning(TREE)
    with torch.no_grad():
        loss.length.copy_(torch.arange(1.0, 8.0))
    torch.save([loss.state_dict(), x, target, loss(x, target).detach()], tmp_path / "state.pt")
    code = f"""
import torch, fastemd, fastemd.torch
state, x, target, ref = torch.load({str(tmp_path / "state.pt")!r}, weights_only=True)
tree = fastemd.Tree.from_parents({TREE.parent.tolist()}, bins={TREE.bin_node.tolist()})
loss = fastemd.torch.EMDLoss(tree, learn_lengths=True).double()
assert loss(x, target) != ref
loss.load_state_dict(state, strict=True)
torch.testing.assert_close(loss(x, target), ref)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_learned_lengths_survive_copies_and_moves(rng):
    x, target = _case(rng, "labels", {})
    loss = _learning(TREE)
    with torch.no_grad():
        loss.length *= 2.0
    ref = _values_and_gradients(loss, x, target)
    for copied in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        torch.testing.assert_close(_values_and_gradients(copied, x, target), ref)
        with torch.no_grad():
            copied.length += 1.0
        torch.testing.assert_close(loss(x, target), ref[0])
    moved = copy.deepcopy(loss).to("meta")
    assert moved.length.is_meta
    assert moved(x.to("meta"), target.to("meta")).shape == ()
    back = moved.to_empty(device=TORCH_DEVICE)
    back.load_state_dict(loss.state_dict())
    torch.testing.assert_close(_values_and_gradients(back, x, target), ref)


@each_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_learned_lengths_compile_to_one_graph(compiler, rng):
    torch._dynamo.reset()
    x, target = _case(rng, "labels", {})
    loss = _learning(TREE, 1.5, cross_entropy=1.0, label_smoothing=0.1)
    compiled = torch.compile(loss, fullgraph=True, backend=compiler)

    def of_compiled(x, target):
        return compiled(x, target)

    of_compiled.length = loss.length
    for _ in range(2):
        comp = _values_and_gradients(of_compiled, x, target)
        torch.testing.assert_close(comp, _values_and_gradients(loss, x, target))
        with torch.no_grad():
            loss.length += 0.5


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_learned_lengths_change_in_training(optimizer, rng):
    """A step lowers the squared difference to a given value; lengths of 0 stay 0."""
    x, target = _case(rng, "labels", {}, UNARY)
    loss = _learning(UNARY)
    start = loss.length.detach().clone()
    steps = getattr(torch.optim, optimizer)(loss.parameters(), lr=0.05)
    errors = []
    for _ in range(3):
        error = (loss(x, target) - 2.0) ** 2
        steps.zero_grad()
        error.backward()
        steps.step()
        errors.append(float(error.detach()))
    assert errors == sorted(errors, reverse=True)
    assert ((loss.length != start) == (start != 0.0)).all()


def test_learned_lengths_under_transforms(rng):
    x, target = _case(rng, "labels", {})
    loss = _learning(TREE, 1.5, reduction="none")

    def rows(length, x, target):
        return torch.func.functional_call(loss, {"length": length}, (x, target))

    length, vmap = loss.length.detach(), torch.func.vmap
    jacobian = torch.stack(
        [torch.autograd.grad(row, loss.length, retain_graph=True)[0] for row in loss(x, target)]
    )
    assert_close(torch.func.jacrev(rows)(length, x, target), jacobian)
    assert_close(vmap(torch.func.grad(rows), (None, 0, 0))(length, x, target), jacobian)
    assert_close(vmap(rows, (None, 0, 0))(length, x, target), loss(x, target))
    with pytest.raises(TypeError, match=r"^length: vmap cannot map over it, .* loop over it"):
        vmap(rows, (0, None, None))(length.expand(2, -1), x, target)


@pytest.mark.parametrize("first", ["x", "length"])
@pytest.mark.parametrize("second", ["x", "length"])
def test_learned_lengths_refuse_second_derivatives(first, second, rng):
    x, target = _case(rng, "labels", {})
    loss = _learning(TREE)
    inputs = {"x": x.requires_grad_(), "length": loss.length}
    (grad,) = torch.autograd.grad(loss(x, target), inputs[first], create_graph=True)
    message = "^length: second derivatives are not available .* use a loss without learn_lengths"
    with pytest.raises(NotImplementedError, match=message):
        torch.autograd.grad(grad.square().sum(), inputs[second])


def test_learned_lengths_do_not_leak_memory(rng):
    """Every call makes new lengths, but the other tensors of the edges live on."""
    x, target = _case(rng, "labels", {})
    loss = _learning(TREE, root=True)
    sizes = []
    for _ in range(3):
        for _ in range(5):
            _values_and_gradients(loss, x, target)
        sizes.append((len(weakref.finalize._registry), len(operators._layouts)))
    assert sizes[0] == sizes[1] == sizes[2]
