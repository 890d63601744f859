"""metrics.EMDMetric: batches, weights, devices, collections and processes of torchmetrics."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest

import fastemd
from fastemd import metrics
from tests.support.frameworks import needed

torch = needed("torch")
torchmetrics = needed("torchmetrics")
TREE = fastemd.Tree.from_paths([("a", "x"), ("a", "y"), ("b", "z"), ("b", "v"), ("c",)])
N = TREE.n_bins
LABELS = np.array([0, 4, 2, 2, 1, 3, 0])


@pytest.fixture
def prob(rng):
    return rng.dirichlet(np.ones(N), len(LABELS))


def _updated(metric, *arrays, batches=(slice(0, 3), slice(3, 4), slice(4, 7)), **keywords):
    for rows in batches:
        tensors = (torch.as_tensor(x[rows]) for x in arrays)
        metric.update(*tensors, **{k: torch.as_tensor(x[rows]) for k, x in keywords.items()})
    return metric


@pytest.mark.parametrize("rho", [1, 2, 3.7])
@pytest.mark.parametrize("space", [TREE, fastemd.Chain(N)], ids=["tree", "chain"])
@pytest.mark.parametrize("soft", [False, True])
def test_emd_metric_agrees_with_emd_score(rho, space, soft, prob, rng):
    target = rng.dirichlet(np.ones(N), len(LABELS)) if soft else LABELS
    metric = _updated(metrics.EMDMetric(space, rho), prob, target)
    comp = metric.compute()
    assert (comp.dtype, comp.shape) == (torch.float64, ())
    assert comp.item() == pytest.approx(metrics.emd_score(target, prob, space, rho))


def test_emd_metric_has_rho_2_by_default(prob):
    comp = _updated(metrics.EMDMetric(TREE), prob, LABELS).compute()
    assert comp.item() == pytest.approx(metrics.emd_score(LABELS, prob, TREE, rho=2))


def test_emd_metric_is_weighted_mean(prob, rng):
    weights = rng.random(len(LABELS))
    weights[3], prob[3] = 0.0, np.nan  # not read
    metric = _updated(metrics.EMDMetric(TREE), prob, LABELS, sample_weight=weights)
    ref = metrics.emd_score(LABELS, prob, TREE, sample_weight=weights)
    assert metric.compute().item() == pytest.approx(ref)


def test_emd_metric_ignores_label(prob):
    labels = np.where(LABELS == 2, -100, LABELS)
    metric = _updated(metrics.EMDMetric(TREE, ignore_index=-100), prob, labels)
    ref = metrics.emd_score(labels, prob, TREE, ignore_index=-100)
    assert metric.compute().item() == pytest.approx(ref)
    batch = torch.tensor(prob), torch.tensor(labels), torch.arange(7)
    metric = metrics.EMDMetric(TREE, ignore_index=-100)
    metric.update(*batch)
    ref = metrics.emd_score(labels, prob, TREE, ignore_index=-100, sample_weight=np.arange(7))
    assert metric.compute().item() == pytest.approx(ref)


@pytest.mark.parametrize("normalize", ["softmax", "l1"])
def test_emd_metric_normalizes(normalize, rng):
    x = rng.exponential(size=(len(LABELS), N))
    metric = _updated(metrics.EMDMetric(TREE, 1.5, normalize=normalize), x, LABELS)
    ref, _ = fastemd.emd_loss(x, LABELS, TREE, 1.5, normalize=normalize)
    assert metric.compute().item() == pytest.approx(ref)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_emd_metric_accumulates_in_float64(dtype):
    """In float32, a sum of 2^24 and ones does not grow."""
    metric = metrics.EMDMetric(fastemd.Chain(2), normalize="softmax")
    x = torch.tensor([[100.0, -100.0]], dtype=dtype)
    metric.update(x, torch.tensor([1]), torch.tensor([2.0**24]))
    for _ in range(3):
        metric.update(x, torch.tensor([0]))
        metric.update(x, torch.tensor([1]))
    assert metric.compute().item() == pytest.approx((2.0**24 + 3) / (2.0**24 + 6), rel=1e-12)


def test_emd_metric_sums_rows_in_float64():
    """Sums of 25 bits: 16 + 2^-20, and 2^24 + 1."""
    chain = fastemd.Chain(2)
    x = torch.tensor([[1.0, 0.0]] * 16 + [[2.0**-10, 1 - 2.0**-10]])
    metric = metrics.EMDMetric(chain)
    metric.update(x, torch.ones(17, dtype=torch.int64))
    assert metric.total.item() == 16 + 2.0**-20
    metric = metrics.EMDMetric(chain)
    metric.update(x[:2], torch.tensor([1, 1]), torch.tensor([2.0**24, 1.0]))
    assert metric.total.item() == metric.weight.item() == 2.0**24 + 1


def test_emd_metric_forward_returns_value_of_batch_and_accumulates(prob):
    metric, batches = metrics.EMDMetric(TREE), (slice(0, 3), slice(3, 7))
    for rows in batches:
        x = torch.tensor(prob[rows], requires_grad=True)
        comp = metric(x, torch.tensor(LABELS[rows]))
        assert not comp.requires_grad
        assert comp.item() == pytest.approx(metrics.emd_score(LABELS[rows], prob[rows], TREE))
    assert metric.compute().item() == pytest.approx(metrics.emd_score(LABELS, prob, TREE))
    assert metric.weight == 7.0


def test_emd_metric_resets_and_is_nan_without_rows(prob):
    metric = _updated(metrics.EMDMetric(TREE), prob, LABELS)
    metric.reset()
    metric.update(torch.empty(0, N), torch.empty(0, dtype=torch.int64))
    assert metric.compute().isnan()
    _updated(metric, prob, LABELS, batches=[slice(2, 5)])
    ref = metrics.emd_score(LABELS[2:5], prob[2:5], TREE)
    assert metric.compute().item() == pytest.approx(ref)


def test_emd_metric_describes_itself():
    metric = metrics.EMDMetric(TREE)
    assert isinstance(metric, torchmetrics.Metric)
    assert (metric.higher_is_better, metric.is_differentiable) == (False, False)
    assert metric.full_state_update is False
    assert metrics.EMDMetric is type(metric)
    assert "EMDMetric" in dir(metrics)


def test_emd_metric_is_pickled_copied_and_restored(prob):
    metric = _updated(metrics.EMDMetric(TREE, 1.5), prob, LABELS, batches=[slice(0, 3)])
    stored = metrics.EMDMetric(TREE, 1.5)
    for each in (metric, stored):
        assert each.state_dict() == {}
        each.persistent(True)
    stored.load_state_dict(metric.state_dict())
    stored._update_count = 1
    copies = [pickle.loads(pickle.dumps(metric)), copy.deepcopy(metric), metric.clone(), stored]
    for each in copies:
        _updated(each, prob, LABELS, batches=[slice(3, 7)])
        ref = metrics.emd_score(LABELS, prob, TREE, 1.5)
        assert each.compute().item() == pytest.approx(ref)


def test_emd_metric_moves_to_device_and_keeps_types(prob):
    metric = metrics.EMDMetric(TREE).to("meta")
    assert metric.total.device.type == metric.weight.device.type == "meta"
    metric = metrics.EMDMetric(TREE).half().to(torch.float32).to("cpu")
    comp = _updated(metric, prob, LABELS).compute()
    assert comp.item() == pytest.approx(metrics.emd_score(LABELS, prob, TREE))


def test_emd_metric_in_collection_does_not_share_states():
    """Flows of 1 give equal states for every power, which would join them in a compute group."""
    collection = torchmetrics.MetricCollection(
        {"one": metrics.EMDMetric(fastemd.Chain(3), 1), "two": metrics.EMDMetric(fastemd.Chain(3))}
    )
    prob, labels = np.array([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]), np.array([0, 2])
    for row in (slice(0, 1), slice(1, 2)):
        collection.update(torch.tensor(prob[row]), torch.tensor(labels[row]))
    comp = collection.compute()
    assert comp["one"].item() == pytest.approx(metrics.emd_score(labels, prob, fastemd.Chain(3), 1))
    assert comp["two"].item() == pytest.approx(metrics.emd_score(labels, prob, fastemd.Chain(3), 2))
    collection.reset()
    assert collection(torch.tensor(prob), torch.tensor(labels))["one"].item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"space": "tree"}, TypeError, "space: expected a fastemd.Chain"),
        ({"rho": 0.5}, ValueError, "rho: expected a finite number >= 1"),
        ({"normalize": "softmin"}, ValueError, "normalize: expected 'softmax', 'l1' or None"),
        ({"gamma": 1}, ValueError, "gamma"),
    ],
)
def test_emd_metric_rejects_options(options, error, message):
    with pytest.raises(error, match=message):
        metrics.EMDMetric(**{"space": TREE, **options})


HALVES = torch.full((2, 5), 0.2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((HALVES * 2, torch.tensor([0, 1])), ValueError, r"^preds: row 0 sums to 2"),
        ((HALVES[:, :4], torch.tensor([0, 1])), ValueError, r"^preds: the last axis must hold"),
        ((HALVES.numpy(), torch.tensor([0, 1])), TypeError, r"^preds: expected a torch.Tensor"),
        ((HALVES, torch.tensor([0, 5])), ValueError, r"^target: row 1 is class 5"),
        (
            (HALVES, torch.tensor([[0], [1]])),
            ValueError,
            r"^target: .* the rows of preds, of shape \(2, 5\)",
        ),
        (
            (HALVES, torch.tensor([0, 1]), torch.tensor([1.0, -1.0])),
            ValueError,
            r"^sample_weight: row 1 is -1.0",
        ),
        (
            (HALVES, torch.tensor([0, 1]), torch.ones(3)),
            ValueError,
            r"^sample_weight and preds: the batch shapes do not broadcast",
        ),
    ],
)
def test_emd_metric_rejects_arguments(arguments, error, message):
    metric = metrics.EMDMetric(TREE)
    with pytest.raises(error, match=message):
        metric.update(*arguments)
    assert metric.weight == 0.0


WORKER = """
import sys
import torch, fastemd
rank, file = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", f"file://{file}", world_size=2, rank=rank)
prob, labels, weights = torch.load(file + ".data")
rows = slice(0, 5) if rank == 0 else slice(5, 7)
metric = fastemd.metrics.EMDMetric(fastemd.Chain(5), 1.5)
for row in range(rows.start, rows.stop):
    metric.update(prob[row, None], labels[row, None], weights[row, None])
print(metric.compute().item())
torch.distributed.destroy_process_group()
"""


def test_emd_metric_is_mean_over_processes(prob, rng, tmp_path):
    weights = rng.random(len(LABELS))
    torch.save([torch.tensor(x) for x in (prob, LABELS, weights)], tmp_path / "store.data")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    ref = metrics.emd_score(LABELS, prob, fastemd.Chain(5), 1.5, sample_weight=weights)
    for process in processes:
        printed, message = process.communicate(timeout=120)
        assert process.returncode == 0, message
        assert float(printed) == pytest.approx(ref, rel=1e-12)
