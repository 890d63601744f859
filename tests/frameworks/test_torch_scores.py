"""EMDLoss on chains equals plain implementations in torch by cumulative sums."""

import numpy as np
import pytest

import fastemd
from tests.support.device import cpu
from tests.support.frameworks import needed
from tests.support.torch_cases import as_tensor, assert_close, synchronized

pytestmark = pytest.mark.torch_backend
torch = needed("torch")
adapter = needed("fastemd.torch")

N_ROWS, N_BINS = 12, 8
EDGES = np.cumsum(np.random.default_rng(2).exponential(size=N_BINS + 1))
MIDPOINTS = (EDGES[:-1] + EDGES[1:]) / 2
CHAINS = {
    "equal bins": (fastemd.Chain(N_BINS), np.ones(N_BINS - 1)),
    "unequal bins": (fastemd.Chain.from_edges(EDGES), np.diff(MIDPOINTS)),
    "positions": (fastemd.Chain.from_positions(EDGES[:-1]), np.diff(EDGES[:-1])),
}
BARS, GAPS = CHAINS["unequal bins"]
TOLERANCES = {torch.float32: 1e-6, torch.float64: 1e-12}
each_chain = pytest.mark.parametrize(("chain", "gaps"), CHAINS.values(), ids=CHAINS)
each_target = pytest.mark.parametrize("kind", ["labels", "histograms"])
each_dtype = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)


def _case(rng, kind, dtype, shape=(N_ROWS,)):
    """Return logits, a target and the cumulative sums of the target, with the bins last."""
    x = as_tensor(2 * rng.standard_normal((*shape, N_BINS)), dtype).requires_grad_()
    if kind == "histograms":
        target = as_tensor(rng.standard_normal((*shape, N_BINS)), dtype).softmax(-1)
        return x, target, target.cumsum(-1)
    target = as_tensor(rng.integers(0, N_BINS, shape))
    reached = torch.arange(N_BINS, device=x.device) >= target[..., None]
    return x, target, reached.to(dtype)


def _plain_crps(x, cdf, gaps):
    difference = (x.softmax(-1).cumsum(-1) - cdf)[..., :-1]
    return (as_tensor(gaps, x.dtype) * difference.square()).sum(-1)


def _plain_nima(x, cdf, r):
    """Return the loss of NIMA (Talebi and Milanfar, arXiv:1709.05424, eq. 1) of every row."""
    difference = x.softmax(-1).cumsum(-1) - cdf
    return difference.abs().pow(r).mean(-1).pow(1 / r)


def _nima(r):
    gaps = np.full(N_BINS - 1, 1 / N_BINS)
    return adapter.EMDLoss(fastemd.Chain(N_BINS, gaps), r, root=True, reduction="none")


def _assert_same(comp, ref, x, tolerance):
    """Compare losses per row and their gradients, with an upstream gradient per row."""
    upstream = torch.linspace(0.5, 2.0, comp.numel(), dtype=x.dtype, device=x.device)
    upstream = upstream.reshape(comp.shape)
    (comp_grad,), (ref_grad,) = (torch.autograd.grad(y, x, upstream) for y in (comp, ref))
    assert comp.dtype == ref.dtype
    assert_close(synchronized(comp), ref, rtol=tolerance)
    assert_close(comp_grad, ref_grad, rtol=tolerance)


@each_chain
@each_target
@each_dtype
def test_emd_loss_equals_plain_crps(chain, gaps, kind, dtype, rng):
    x, target, cdf = _case(rng, kind, dtype)
    comp = adapter.EMDLoss(chain, reduction="none")(x, target)
    _assert_same(comp, _plain_crps(x, cdf, gaps), x, TOLERANCES[dtype])


@each_target
def test_emd_loss_equals_plain_crps_along_axis_1(kind, rng):
    x, target, cdf = _case(rng, kind, torch.float64, (2, 3, 4))
    ref = _plain_crps(x, cdf, GAPS)
    images = x.movedim(-1, 1).contiguous()
    target = target.movedim(-1, 1) if kind == "histograms" else target
    comp = adapter.EMDLoss(BARS, dim=1, reduction="none")(images, target)
    _assert_same(comp, ref, x, 1e-12)


def test_emd_loss_ignores_nan_targets(rng):
    x, _, _ = _case(rng, "labels", torch.float32)
    values = rng.uniform(EDGES[0], EDGES[-1], N_ROWS)
    values[::3] = np.nan
    target, known = as_tensor(BARS.bin_of(values)), as_tensor(~np.isnan(values))
    reached = torch.arange(N_BINS, device=x.device) >= target[known][:, None]
    ref = _plain_crps(x[known], reached.to(x.dtype), GAPS).mean()
    _assert_same(adapter.EMDLoss(BARS)(x, target), ref, x, 1e-6)


@cpu
def test_bin_of_tensor_equals_bucketize_of_torch(rng):
    values = torch.tensor(rng.uniform(EDGES[0], EDGES[-1], 100), dtype=torch.float32)
    inner = torch.tensor(EDGES[1:-1], dtype=torch.float32)
    labels = BARS.bin_of(values)
    assert torch.equal(labels, torch.bucketize(values, inner, right=True))


@pytest.mark.parametrize("r", [1.0, 2.0, 3.5])
@each_target
@each_dtype
def test_emd_loss_with_root_equals_plain_nima(r, kind, dtype, rng):
    x, target, cdf = _case(rng, kind, dtype)
    _assert_same(_nima(r)(x, target), _plain_nima(x, cdf, r), x, TOLERANCES[dtype])


def test_emd_loss_with_root_has_gradient_zero_where_plain_nima_has_nan():
    """A row whose prediction equals its target; the gradient of other rows is not affected."""
    x = as_tensor([[0.0] * N_BINS, [0.5] * N_BINS], torch.float64).requires_grad_()
    target = as_tensor([[1 / N_BINS] * N_BINS, [0.0, 1.0] + [0.0] * (N_BINS - 2)], torch.float64)
    comp, ref = _nima(2)(x, target), _plain_nima(x, target.cumsum(-1), 2)
    (comp_grad,), (ref_grad,) = (torch.autograd.grad(y.sum(), x) for y in (comp, ref))
    assert_close(synchronized(comp), ref)
    assert torch.isnan(ref_grad[0]).all()
    assert (comp_grad[0] == 0).all()
    assert_close(comp_grad[1], ref_grad[1])
