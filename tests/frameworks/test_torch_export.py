"""fastemd.torch: ground spaces as tensors, in exported programs, buffers and caches."""

import copy
import gc
import io
import pickle
import subprocess
import sys
import weakref

import numpy as np
import pytest

import fastemd
from tests.support.device import cpu
from tests.support.frameworks import needed

torch = needed("torch")
adapter = needed("fastemd.torch")
operators = needed("fastemd.torch.operators")

TREE = fastemd.Tree.from_parents([-1, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0.5, 1, 3, 1, 1])
BUFFERS = ("parents", "lengths", "shares")
pytestmark = cpu


def _histograms(rng, n_rows=4):
    return torch.from_numpy(rng.dirichlet(np.ones(TREE.n_bins), (2, n_rows)))


def _edges(space):
    return [torch.tensor(array) for array in space.layout("levels").edges]


class Distance(torch.nn.Module):
    def __init__(self, space):
        super().__init__()
        self.space = space

    def forward(self, p, q):
        return adapter.emd(p, q, self.space, 1.5)


RELOAD = """
import sys, torch, fastemd.torch
inputs, *paths = sys.argv[1:]
inputs = torch.load(inputs)
for path in paths:
    program = torch.export.load(path).module()
    torch.save(program(*inputs[path]), path)
"""


def test_exported_programs_run_in_another_process(tmp_path, rng):
    """A program holds the ground space, which no variable of the other process does."""
    p, q = _histograms(rng)
    loss = adapter.EMDLoss(TREE, 1.5, cross_entropy=0.5)
    labels = torch.tensor([0, 3, 4, 3])
    programs = {
        "emd": (Distance(TREE), (p, q)),
        "labels": (loss, (p.log(), labels)),
        "histograms": (loss, (p.log(), q)),
        "weights": (adapter.EMDLoss(TREE, ignore_index=3), (p.log(), labels, q[:, 0])),
        "options": (
            adapter.EMDLoss(TREE, class_weight=[1, 2, 0, 3, 4], label_smoothing=0.1, root=True),
            (p.log(), labels),
        ),
        "dim": (adapter.EMDLoss(TREE, dim=0), (p.log().T.contiguous(), labels)),
    }
    paths = {name: str(tmp_path / f"{name}.pt2") for name in programs}
    for name, (module, inputs) in programs.items():
        torch.export.save(torch.export.export(module, inputs), paths[name])
    of_path = {paths[name]: inputs for name, (_, inputs) in programs.items()}
    torch.save(of_path, tmp_path / "inputs.pt")
    command = [sys.executable, "-W", "ignore", "-c", RELOAD, str(tmp_path / "inputs.pt")]
    subprocess.run([*command, *of_path], check=True)
    for name, (module, inputs) in programs.items():
        result = torch.load(paths[name])
        torch.testing.assert_close(result, module(*inputs), rtol=0, atol=0)


def test_exported_program_holds_no_layout_of_another_space(rng):
    p, q = _histograms(rng)
    chain = fastemd.Chain(5, [1, 2, 3, 4])
    programs = [torch.export.export(Distance(space), (p, q)).module() for space in (TREE, chain)]
    for program, space in zip(programs, (TREE, chain), strict=True):
        torch.testing.assert_close(program(p, q), adapter.emd(p, q, space, 1.5))


@pytest.mark.parametrize(
    "move",
    [
        lambda loss: loss.half(),
        lambda loss: loss.to(torch.bfloat16),
        lambda loss: loss.float().double().to(torch.float16),
        lambda loss: torch.nn.Sequential(loss).half()[0],
        lambda loss: loss.to("meta").to_empty(device="cpu"),
        lambda loss: copy.deepcopy(loss).half(),
        lambda loss: pickle.loads(pickle.dumps(loss)),
    ],
)
def test_emd_loss_module_buffers_hold_the_space(move, rng):
    space = fastemd.Chain(5, [0.1, 1 / 3, 1e-9, 7e8])  # lengths that coarser types do not hold
    p, _ = _histograms(rng)
    labels = torch.tensor([0, 3, 4, 3])
    ref = adapter.EMDLoss(space)(p.log(), labels)
    loss = move(adapter.EMDLoss(space))
    for name, array in zip(BUFFERS, space.layout("levels").edges, strict=True):
        np.testing.assert_array_equal(getattr(loss, name), array)
        assert getattr(loss, name).numpy().dtype == array.dtype
    assert loss(p.log(), labels) == ref


def test_emd_loss_module_buffers_follow_the_device():
    loss = adapter.EMDLoss(TREE).to("meta")
    assert {tensor.device.type for tensor in loss.buffers()} == {"meta"}
    x, labels = torch.zeros(4, 5, device="meta"), torch.zeros(4, device="meta", dtype=torch.int64)
    assert loss(x, labels).device.type == "meta"
    with torch.device("meta"):
        assert adapter.EMDLoss(TREE).lengths.device.type == "meta"


def test_emd_loss_module_computes_where_the_data_are():
    """As before it had buffers: nothing has to be moved."""
    x, labels = torch.zeros(4, 5), torch.zeros(4, dtype=torch.int64)
    loss = adapter.EMDLoss(TREE)
    assert loss.to("meta")(x, labels) == adapter.EMDLoss(TREE)(x, labels)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    assert compiled(x, labels) == adapter.EMDLoss(TREE)(x, labels)


def test_emd_loss_module_loads_a_state_without_buffers():
    model = torch.nn.ModuleDict({"net": torch.nn.Linear(3, 5), "loss": adapter.EMDLoss(TREE)})
    state = {"net.weight": torch.ones(5, 3), "net.bias": torch.zeros(5)}  # of version 0.1
    assert list(model.state_dict()) == list(state)
    model.load_state_dict(state, strict=True)
    np.testing.assert_array_equal(model["loss"].lengths, TREE.layout("levels").edges.length)


def test_emd_loss_module_saved_whole_needs_no_cache(rng):
    p, _ = _histograms(rng)
    labels, buffer = torch.tensor([0, 3, 4, 3]), io.BytesIO()
    loss = adapter.EMDLoss(TREE)
    torch.save(loss, buffer)
    buffer.seek(0)
    copied = torch.load(buffer, weights_only=False)
    assert copied.lengths is not loss.lengths
    assert copied(p.log(), labels) == loss(p.log(), labels)


def _under_fake_tensors(call):
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        call(torch.full((5,), 0.2, dtype=torch.float64))


def _under_inference(call):
    with torch.inference_mode():
        call(torch.full((5,), 0.2, dtype=torch.float64))


def _under_grad(call):
    torch.func.grad(call)(torch.full((5,), 0.2, dtype=torch.float64))


def _under_vmap(call):
    torch.func.vmap(call)(torch.full((2, 5), 0.2, dtype=torch.float64))


@pytest.mark.parametrize("first", [_under_fake_tensors, _under_inference, _under_grad, _under_vmap])
def test_emd_first_called_under_a_mode_works_after_it(first, rng):
    """The cached tensors of the space are ordinary ones."""
    space = fastemd.Chain(5, [1, 2, 3, 0.5])
    p, q = _histograms(rng)
    first(lambda p: adapter.emd(p, p, space, 1.5))
    p.requires_grad_()
    value = adapter.emd(p, q, space, 1.5)
    ref, grad = fastemd.emd_value_and_grad(p.detach(), q, space, 1.5)
    torch.testing.assert_close(value.detach(), ref, rtol=0, atol=0)
    (first_order,) = torch.autograd.grad(value.sum(), p, create_graph=True)
    torch.testing.assert_close(first_order.detach(), grad, rtol=0, atol=0)
    assert torch.autograd.grad(first_order.square().sum(), p)[0].isfinite().all()


def test_edges_are_cached_as_long_as_the_space_lives(rng):
    p, q = _histograms(rng)
    gc.collect()  # of other tests
    n_cached = len(operators._layouts)
    space = fastemd.Chain(5, [1, 2, 3, 0.25])
    device = torch.device("cpu")
    tensors = operators.edges_of(space, device)
    assert operators.edges_of(space, device) is tensors
    value = adapter.emd(p.requires_grad_(), q, space, 1.5)
    lengths, layout = weakref.ref(tensors[1]), weakref.ref(space.layout("levels"))
    del space, tensors
    gc.collect()
    first = torch.autograd.grad(value.square().sum(), p, create_graph=True)[0]
    torch.autograd.grad(first.square().sum(), p)  # the graph holds the tensors
    del value, first
    gc.collect()
    assert lengths() is None
    assert layout() is None
    assert len(operators._layouts) == n_cached


def test_operator_reads_edges_from_tensors(rng):
    """The layout is contracted: it has fewer edges than the tree."""
    p, q = _histograms(rng)
    edges = _edges(TREE)
    value, grad = torch.ops.fastemd.emd(p, q, *edges, 1.5, 1e-5)
    ref = fastemd.emd_value_and_grad(p, q, TREE, 1.5)
    torch.testing.assert_close((value, grad), ref, rtol=0, atol=0)
    assert edges[1].numpy().flags.writeable


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda parents, lengths, shares: (parents, lengths[1:], shares), ValueError, "one per"),
        (lambda parents, lengths, shares: (parents.int(), lengths, shares), TypeError, "int32"),
        (lambda parents, lengths, shares: (parents, lengths.half(), shares), TypeError, "float16"),
        (lambda parents, lengths, shares: (parents.flip(0), lengths, shares), ValueError, "5 bins"),
        (lambda parents, lengths, shares: (parents + 1, lengths, shares), ValueError, "5 bins"),
        (lambda *edges: _edges(fastemd.Chain(4)), ValueError, "5 bins"),
        (lambda *edges: _edges(fastemd.Chain(6)), ValueError, "5 bins"),
    ],
)
def test_operator_refuses_what_is_no_layout(change, error, message, rng):
    p, q = _histograms(rng)
    edges = change(*_edges(TREE))
    with pytest.raises(error, match=f"^parents.*{message}"):
        torch.ops.fastemd.emd(p, q, *edges, 1.5, 1e-5)


def test_emd_loss_module_is_not_mapped_over_spaces(rng):
    p, _ = _histograms(rng)
    loss = adapter.EMDLoss(TREE)
    buffers = {name: torch.stack([tensor] * 2) for name, tensor in loss.named_buffers()}

    def call(buffers):
        return torch.func.functional_call(loss, buffers, (p.log(), torch.tensor([0, 3, 4, 3])))

    with pytest.raises(TypeError, match="space: vmap cannot map over it"):
        torch.func.vmap(call)(buffers)


@pytest.mark.parametrize("normalize", ["l1", None])
def test_emd_loss_module_has_cross_entropy_of_logits_only(normalize):
    adapter.EMDLoss(TREE, normalize=normalize, cross_entropy=0)
    message = "cross_entropy: .* 'softmax' only, got 0.5 .* add the framework's own cross entropy"
    with pytest.raises(ValueError, match=message.replace("'softmax'", "normalize='softmax'")):
        adapter.EMDLoss(TREE, normalize=normalize, cross_entropy=0.5)


def test_emd_and_loss_accept_fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    loss = adapter.EMDLoss(TREE)
    with FakeTensorMode() as mode:
        x = mode.from_tensor(torch.rand(3, TREE.n_bins))
        p = x.softmax(-1)
        assert adapter.emd(p, p, TREE, 2).shape == (3,)
        assert loss(x, p).shape == ()


def test_loss_made_in_inference_mode_trains():
    with torch.inference_mode():
        loss = adapter.EMDLoss(TREE)
    x = torch.rand(3, TREE.n_bins, requires_grad=True)
    loss(x, torch.tensor([0, 1, 2])).backward()
    assert x.grad.isfinite().all()


def test_loss_moves_from_meta_to_cpu():
    loss = adapter.EMDLoss(TREE).to("meta").to("cpu")
    x, target = torch.rand(3, TREE.n_bins), torch.tensor([0, 1, 2])
    assert loss(x, target) == adapter.EMDLoss(TREE)(x, target)


def test_loss_reads_buffers_that_are_written_to():
    loss = adapter.EMDLoss(TREE)
    x, target = torch.rand(3, TREE.n_bins), torch.tensor([0, 1, 2])
    before = loss(x, target)
    loss.lengths.mul_(2)
    torch.testing.assert_close(loss(x, target), 2 * before)
