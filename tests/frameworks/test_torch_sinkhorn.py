"""fastemd.torch.sinkhorn: gradients, transforms, types, errors."""

import numpy as np
import pytest

import fastemd
from tests.support.frameworks import needed
from tests.support.torch_cases import (
    TORCH_DEVICE,
    TREE,
    as_numpy,
    as_tensor,
    assert_close,
    random_logits,
    synchronized,
)

pytestmark = pytest.mark.torch_backend
torch = needed("torch")
adapter = needed("fastemd.torch")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("method", ["paper", "log"])
def test_sinkhorn_has_gradient_of_paper(method, dtype, rng, backend):
    p, q = (x.detach().softmax(-1).to(dtype) for x in random_logits(rng))
    p.requires_grad_()
    cost = as_tensor(rng.random((5, 5)), dtype)
    for ground in (cost, TREE):
        options = {"lam": 4.0, "max_iter": 300, "method": method}
        matrix = as_numpy(cost) if ground is cost else TREE
        ref = backend.sinkhorn(as_numpy(p), as_numpy(q), matrix, **options)
        value = adapter.sinkhorn(p, q, ground, **options)
        weights = torch.arange(4.0, dtype=dtype, device=TORCH_DEVICE)
        (grad,) = torch.autograd.grad((value * weights).sum(), p)
        assert value.dtype == grad.dtype == dtype
        assert_close(value, ref.value)
        centred = ref.grad - ref.grad.mean(-1, keepdims=True)
        assert_close(grad, as_numpy(weights)[:, None] * centred, rtol=1e-6)
    double = adapter.sinkhorn(p, q, TREE, lam=4.0, dtype=torch.float64)
    double.sum().backward()
    assert double.dtype == torch.float64
    assert p.grad.dtype == dtype


def test_sinkhorn_gradient_descent_converges(rng):
    """To the minimum of the cost; an empty bin gives no NaN."""
    x = as_tensor([0.0] * 5, torch.float64).requires_grad_()
    q = as_tensor([0.0, 0.7, 0.3, 0.0, 0.0], torch.float64)
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
    p, q = (x.detach().softmax(-1) for x in random_logits(rng))

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
    costs = torch.ones(2, 5, 5, device=TORCH_DEVICE)
    with pytest.raises(TypeError, match="cost: vmap cannot map over it"):
        torch.func.vmap(lambda cost: adapter.sinkhorn(p, q, cost, lam=2.0))(costs)


def test_sinkhorn_gradient_is_nan_for_failed_rows():
    p = as_tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]]).requires_grad_()
    q = as_tensor([[0.0, 0.5, 0.5], [0.5, 0.5, 0.0]])
    value = adapter.sinkhorn(p, q, fastemd.Chain(3), lam=200.0, max_iter=3)
    value.sum().backward()
    assert value.isnan().tolist() == [True, False]
    assert p.grad.isnan().any(-1).tolist() == [True, False]


def test_sinkhorn_ignores_autocast(rng):
    p, q = (x.detach().softmax(-1).float() for x in random_logits(rng))
    ref = adapter.sinkhorn(p, q, TREE, lam=2.0)
    with torch.autocast(TORCH_DEVICE, torch.bfloat16):
        torch.testing.assert_close(adapter.sinkhorn(p, q, TREE, lam=2.0), ref)


def test_sinkhorn_rejects_invalid_input(rng):
    p, q = (x.softmax(-1) for x in random_logits(rng))
    value = adapter.sinkhorn(p, q.detach(), TREE, lam=2.0)
    (grad,) = torch.autograd.grad(value.square().sum(), p, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
    cost = torch.ones(5, 5, device=TORCH_DEVICE, requires_grad=True)
    for invalid, error, message in (
        ({"q": q}, TypeError, "q: it requires grad"),
        ({"cost": cost}, TypeError, "cost: it requires grad"),
        ({"cost": np.ones((5, 5))}, TypeError, "cost: expected a torch.Tensor"),
        ({"p": 2 * p}, ValueError, "p and q: row 0 has unequal masses|row 0 of an earlier call"),
        ({"dtype": torch.float16}, TypeError, "dtype"),
    ):
        with pytest.raises(error, match=message):
            synchronized(
                adapter.sinkhorn(**{"p": p, "q": q.detach(), "cost": TREE, "lam": 2} | invalid)
            )
    wide = {"p": 1.001 * p, "q": q.detach(), "cost": TREE, "lam": 2.0}
    assert adapter.sinkhorn(**wide, validate=0.01).isfinite().all()
