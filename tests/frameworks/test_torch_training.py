"""Whole training steps with fastemd.torch.EMDLoss: compiled, under autocast, saved and loaded."""

import subprocess
import sys

import pytest

import fastemd
from tests.support.device import cpu
from tests.support.frameworks import needed

torch = needed("torch")
adapter = needed("fastemd.torch")
pytestmark = [
    cpu,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of inductor, about torch itself
]

TREE = fastemd.Tree.from_parents([-1, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0.5, 1, 3, 1, 1])
LOSSES = {
    "labels": {"cross_entropy": 0.5},
    "options": {"class_weight": [1, 2, 0, 3, 4], "label_smoothing": 0.1, "root": True},
    "images": {"dim": 1, "rho": 1.5},
}
each_loss = pytest.mark.parametrize("name", LOSSES)


class Model(torch.nn.Module):
    """A classifier of rows, or of the pixels of images, with its loss as a submodule."""

    def __init__(self, name):
        super().__init__()
        torch.manual_seed(3)
        images = name == "images"
        self.hidden = torch.nn.Conv2d(3, 8, 1) if images else torch.nn.Linear(3, 8)
        self.out = torch.nn.Conv2d(8, 5, 1) if images else torch.nn.Linear(8, 5)
        self.loss = adapter.EMDLoss(TREE, **LOSSES[name])

    def logits(self, x):
        return self.out(self.hidden(x).relu())

    def forward(self, x, target):
        return self.loss(self.logits(x), target)


def _case(name):
    torch.manual_seed(4)
    shape = (6, 4, 2) if name == "images" else (16,)
    x, target = torch.randn(*shape[:1], 3, *shape[1:]), torch.randint(0, 5, shape)
    target[1] = -100
    return Model(name), x, target


@each_loss
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_functional_training_step_compiles_to_one_graph(compiler, name):
    model, x, target = _case(name)

    def step(parameters):
        def loss(parameters):
            return torch.func.functional_call(model, parameters, (x, target))

        gradients, value = torch.func.grad_and_value(loss)(parameters)
        return {k: p - 0.1 * gradients[k] for k, p in parameters.items()}, value

    results = []
    for run in (step, torch.compile(step, fullgraph=True, backend=compiler)):
        parameters = {k: p.detach().clone() for k, p in model.named_parameters()}
        for _ in range(3):
            parameters, value = run(parameters)
        results.append((value, *parameters.values()))
    torch.testing.assert_close(*results)


@each_loss
def test_training_step_with_backward_compiles_to_one_graph(name, monkeypatch):
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        pytest.skip("this torch does not trace backward()")
    monkeypatch.setattr(torch._dynamo.config, "trace_autograd_ops", True)

    def step(model, x, target):
        value = model(x, target)
        value.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(0.1 * parameter.grad)
                parameter.grad = None
        return value.detach()

    results = []
    for run in (step, torch.compile(step, fullgraph=True)):
        model, x, target = _case(name)
        for _ in range(3):
            value = run(model, x, target)
        results.append((value, *model.parameters()))
    torch.testing.assert_close(*results)


@each_loss
def test_training_step_under_autocast(name):
    """The loss is computed in float32 from logits in bfloat16, and their gradient is bfloat16."""
    model, x, target = _case(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model.logits(x)
        logits.retain_grad()
        value = model.loss(logits, target)
    value.backward()
    assert logits.dtype == logits.grad.dtype == torch.bfloat16
    assert value.dtype == torch.float32
    exact = logits.detach().double().requires_grad_()
    model.loss(exact, target).backward()
    torch.testing.assert_close(logits.grad, exact.grad.bfloat16(), rtol=2**-8, atol=1e-6)
    assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())


LOAD = """
import sys, torch
from tests.frameworks.test_torch_training import _case
model, x, target = _case(sys.argv[2])
for parameter in model.parameters():
    parameter.data.zero_()
model.load_state_dict(torch.load(sys.argv[1], weights_only=True))
print(float(model(x, target)))
"""


@each_loss
def test_state_loads_with_weights_only_in_another_process(name, tmp_path):
    model, x, target = _case(name)
    assert set(model.state_dict()) == {"hidden.weight", "hidden.bias", "out.weight", "out.bias"}
    torch.save(model.state_dict(), tmp_path / "state.pt")
    command = [sys.executable, "-c", LOAD, str(tmp_path / "state.pt"), name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(model(x, target).item(), rel=1e-6)
