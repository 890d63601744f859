"""Checks on a GPU: results against dense references in float64, and the behaviour of calls.

A check is a function of the device, "cuda" or "cpu", that raises if something does not hold.
`CHECKS` is the table of them. The references are the oracles of the tests, on the host.
"""

import functools
import gc
import threading
import warnings
from importlib.util import find_spec
from unittest import mock

import numpy as np
import torch

import fastemd
import fastemd.torch
from benchmarks.common import random_tree
from benchmarks.gpu_check.runner import UnavailableError
from tests.support import naive

SMALL = fastemd.Tree.from_parents([-1, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0.5, 1, 3, 1, 1])
SPACES = {"tree": fastemd.datasets.imagenet_tree, "chain": lambda: fastemd.Chain(1000)}
TOLERANCES = {np.float32: 3e-7, np.float64: 1e-12}
MASS = 2**12  # masses are multiples of 1 / MASS, so that their sums are exact in float32


# Arrays -------------------------------------------------------------------------------------------


def histograms(n_rows, space, dtype=np.float64, count=2):
    """Return random histograms (n_rows, N) whose flows are exact."""
    rng = np.random.default_rng(n_rows)
    weights = rng.dirichlet(np.ones(space.n_bins), (count, n_rows))
    return (rng.multinomial(MASS, weights) / MASS).astype(dtype)


def logits(n_rows, space, dtype):
    rng = np.random.default_rng(n_rows)
    return rng.normal(size=(n_rows, space.n_bins)).astype(dtype)


def tensors(device, *arrays):
    return [torch.tensor(array, device=device) for array in arrays]


def host(array):
    return array.detach().cpu().numpy()


def assert_close(results, references, tolerance):
    """Compare with a tolerance relative to the largest entry of the reference."""
    for result, reference in zip(results, references, strict=True):
        reference = np.asarray(reference)
        size = np.abs(reference).max(initial=0.0)
        result = result if isinstance(result, np.ndarray) else host(result)
        np.testing.assert_allclose(result, reference, rtol=tolerance, atol=tolerance * size)


# Results ------------------------------------------------------------------------------------------


def value_and_grad(kind, rho, dtype, device):
    space = SPACES[kind]()
    p, q = histograms(65, space, dtype)
    results = fastemd.emd_value_and_grad(*tensors(device, p, q), space, rho, validate=True)
    references = naive.emd_value_and_grad(p, q, naive.ground(space), rho)
    assert_close(results, references, TOLERANCES[dtype])


def nan_at_rho_1(device):
    """Check that NaN in a row is in all of its gradient, and in no other row."""
    for kind, space in (("tree", SMALL), ("chain", fastemd.Chain(9))):
        p, q = histograms(3, space)
        p[1, 0] = np.nan
        grad = fastemd.emd_grad(*tensors(device, p, q), space, 1, validate=False)
        assert np.isnan(host(grad)).all(-1).tolist() == [False, True, False], kind
        assert np.isfinite(host(grad)[[0, 2]]).all(), kind


def loss_of_many_rows(n_rows, device):
    """Check that weights, ignored labels and values are summed in one or several blocks."""
    space, rng = fastemd.Chain(5), np.random.default_rng(n_rows)
    x, labels = rng.normal(size=(n_rows, 5)), rng.integers(0, 5, n_rows)
    weight, one_hot = rng.exponential(size=n_rows), np.eye(5)[labels]
    labels[::7], weight[::7] = -100, 0.0
    p = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    rows = ((p - one_hot).cumsum(-1)[:, :-1] ** 2).sum(-1)
    x, labels, weights = tensors(device, x, labels, np.where(labels < 0, 3.0, weight))
    options = {"sample_weight": weights, "ignore_index": -100}
    first, second = (fastemd.emd_loss(x, labels, space, **options) for _ in range(2))
    assert_close([first[0]], [(weight * rows).sum() / weight.sum()], 1e-12)
    for a, b in zip(first, second, strict=True):  # the order of the sums is fixed
        np.testing.assert_array_equal(host(a), host(b))


def without_warnings(device):
    """Check that launches of small grids do not warn."""
    space, (p, q) = fastemd.Chain(31), tensors(device, *histograms(3, fastemd.Chain(31)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastemd.emd_value_and_grad(p, q, space, 2, validate=True)
        fastemd.emd_loss(p, q, space)


def loss(labelled, dtype, device):
    """Check all reductions; rows of weight 0 and ignored rows hold NaN."""
    space = fastemd.datasets.imagenet_tree()
    x, labels = logits(33, space, dtype), np.arange(33) * 29
    target, weight = histograms(33, space, dtype)[0], np.linspace(0.5, 2.0, 33)
    soft = np.eye(space.n_bins)[labels] if labelled else target.astype(np.float64)
    keep = np.arange(33) % 4 > 0
    weight[~keep] = 0.0
    if labelled:
        labels[::8], weight[::8], target = -100, 1.0, labels
    else:
        target[~keep] = np.nan
    x[~keep] = np.nan
    options = {"cross_entropy": 0.5, "ignore_index": -100 if labelled else None}
    for reduction in ("none", "sum", "mean"):
        results = fastemd.emd_loss(
            *tensors(device, x, target), space, sample_weight=tensors(device, weight)[0],
            reduction=reduction, **options,
        )  # fmt: skip
        references = _loss(x, soft, space, weight * keep, reduction)
        assert_close(results, references, 1e-5 if dtype is np.float32 else 1e-11)


def _loss(x, soft, space, weight, reduction):
    """Return the loss and its gradient by torch on the host."""
    keep = torch.tensor(weight > 0)
    x = torch.tensor(x, dtype=torch.float64).where(keep[:, None], 0.0).requires_grad_()
    rows = naive.torch_loss(x, torch.tensor(soft), naive.ground(space), cross_entropy=0.5)
    rows, total = rows * torch.tensor(weight), weight.sum()
    value = {"none": rows, "sum": rows.sum(), "mean": rows.sum() / total}[reduction]
    return value.detach(), torch.autograd.grad(value.sum(), x)[0]


def plain_loss(device):
    """Check the loss without weights and ignored labels."""
    x, labels = logits(17, SMALL, np.float64), np.arange(17) % SMALL.n_bins
    for reduction in ("none", "sum", "mean"):
        results = fastemd.emd_loss(
            *tensors(device, x, labels), SMALL, cross_entropy=0.5, reduction=reduction
        )
        soft = np.eye(SMALL.n_bins)[labels]
        assert_close(results, _loss(x, soft, SMALL, np.ones(17), reduction), 1e-11)


def other_normalizations(device):
    p, q = histograms(9, SMALL)
    p = 0.9 * p + 0.1 * p.mean(-1, keepdims=True)
    for normalize, x in (("l1", 3 * p), (None, p)):
        results = fastemd.emd_loss(
            *tensors(device, x, q), SMALL, normalize=normalize, reduction="none"
        )
        references = naive.emd_loss_rows(x, q, naive.ground(SMALL), normalize=normalize)
        assert_close(results, references, 1e-11)


def loss_hessian_diag(device):
    x, labels = logits(5, SMALL, np.float64), np.arange(5) % SMALL.n_bins
    result = fastemd.emd_loss_hessian_diag(*tensors(device, x, labels), SMALL, reduction="sum")
    q = torch.eye(SMALL.n_bins, dtype=torch.float64)[labels]
    hessian = torch.func.hessian(lambda x: naive.torch_loss(x, q, naive.ground(SMALL)).sum())
    reference = torch.einsum("bkbk->bk", hessian(torch.tensor(x)))
    assert_close([result], [reference], 1e-11)


def second_derivatives(name, device):
    """Check `emd_hvp`, `emd_hessian_diag` or `emd_hessian` at rho = 2 and another rho."""
    p, q, v = histograms(5, SMALL, count=3)
    inputs = (p, q, v) if name == "emd_hvp" else (p, q)
    for rho in (2, 3.7):
        result = getattr(fastemd, name)(*tensors(device, *inputs), SMALL, rho)
        reference = getattr(naive, name)(*inputs, naive.ground(SMALL), rho)
        assert_close([result], [reference], 1e-12)


def flow(device):
    p, q = histograms(5, SMALL)
    result = fastemd.emd_flow(*tensors(device, p, q), SMALL)
    assert_close([result], [naive.emd_flow(p, q, naive.ground(SMALL))], 1e-12)


def embed(device):
    p = histograms(5, SMALL)[0]
    result = fastemd.embed(*tensors(device, p), SMALL, 2)
    assert_close([result], [naive.embed(p, naive.ground(SMALL), 2)], 1e-12)


def sinkhorn(method, device):
    p, q = histograms(6, SMALL)
    p, q = 0.9 * p + 0.1 / SMALL.n_bins, 0.9 * q + 0.1 / SMALL.n_bins
    matrix = naive.cost_matrix(naive.ground(SMALL))
    references = [naive.sinkhorn(*pair, matrix, 2.0, 50) for pair in zip(p, q, strict=True)]
    for cost in (SMALL, *tensors(device, matrix)):
        result = fastemd.sinkhorn(
            *tensors(device, p, q), cost, lam=2.0, max_iter=50, method=method, validate=True
        )
        grad = result.grad - result.grad.mean(-1, keepdim=True)
        grads = np.stack([grad - grad.mean() for _, grad in references])
        assert_close([result.value, grad], [[value for value, _ in references], grads], 1e-9)


def _value_and_grad_by_loops(p, q, space, rho=2):
    """Compute value and gradient by loops over the nodes, for trees too large for a matrix."""
    flows = np.zeros((len(p), space.n_nodes))
    np.add.at(flows, (slice(None), space.bin_node), p.astype(np.float64) - q)
    for node in range(space.n_nodes - 1):
        flows[:, space.parent[node]] += flows[:, node]
    slopes = rho * space.weight * np.sign(flows) * np.abs(flows) ** (rho - 1)
    for node in reversed(range(space.n_nodes - 1)):
        slopes[:, node] += slopes[:, space.parent[node]]
    grad = slopes[:, space.bin_node]
    return (space.weight * np.abs(flows) ** rho).sum(-1), grad - grad.mean(-1, keepdims=True)


def large_rows(kind, device):
    """Check rows whose scratch does not fit into shared memory."""
    space = fastemd.Chain(70_001) if kind == "chain" else random_tree(70_001)
    p, q = histograms(3, space, np.float32)
    results = fastemd.emd_value_and_grad(*tensors(device, p, q), space, 2, validate=True)
    assert_close(results, _value_and_grad_by_loops(p, q, space), TOLERANCES[np.float32])


def strides(device):
    p, q = histograms(4, SMALL)
    reference = naive.emd_value_and_grad(p, q, naive.ground(SMALL), 2)
    p, q = tensors(device, p, q)
    for view in (
        lambda x: x.repeat_interleave(2, 0)[::2],
        lambda x: x.repeat_interleave(3, 1)[:, ::3],
        lambda x: x.T.contiguous().T,
        lambda x: torch.nn.functional.pad(x, (1, 2))[:, 1:-2],
    ):
        results = fastemd.emd_value_and_grad(view(p), view(q), SMALL, 2, validate=True)
        assert_close(results, reference, 1e-12)
        out = torch.empty(4, device=p.device, dtype=p.dtype), view(torch.empty_like(p))
        fastemd.emd_value_and_grad(p, q, SMALL, 2, out=out)
        assert_close(out, reference, 1e-12)


def broadcasting(device):
    p, q = histograms(12, SMALL)
    p, q = p.reshape(2, 1, 3, 1, 2, -1), q[:8].reshape(4, 1, 2, 1, -1)
    result = fastemd.emd(*tensors(device, p, q), SMALL, 2)
    assert_close([result], [naive.emd(p, q, naive.ground(SMALL), 2)], 1e-12)


def empty_batch(device):
    (p,) = tensors(device, histograms(1, SMALL)[0][:0])
    value, grad = fastemd.emd_value_and_grad(p, p, SMALL, 2, validate=True)
    assert value.shape == (0,)
    assert grad.shape == p.shape
    total, _ = fastemd.emd_loss(p, p, SMALL)
    assert total == 0.0


# PyTorch ------------------------------------------------------------------------------------------


def autograd_of_emd(device):
    x, y = (x.requires_grad_() for x in tensors(device, *histograms(3, SMALL)))

    def distance(x, y):
        return fastemd.torch.emd(x.softmax(-1), y.softmax(-1), SMALL, 2)

    assert torch.autograd.gradcheck(distance, (x, y))
    assert torch.autograd.gradgradcheck(distance, (x, y))


def autograd_of_the_loss(device):
    x, labels = tensors(device, logits(3, SMALL, np.float64), np.arange(3))
    loss = fastemd.torch.EMDLoss(SMALL, cross_entropy=1.0)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), x)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, labels), x)


def float16(device):
    x, labels = tensors(device, logits(4, SMALL, np.float16), np.arange(4))
    loss, single = fastemd.torch.EMDLoss(SMALL), x.float().requires_grad_()
    x.requires_grad_()
    value = loss(x, labels)
    value.backward()
    loss(single, labels).backward()
    assert value.dtype == torch.float32
    assert x.grad.dtype == torch.float16
    assert_close([x.grad.float()], [host(single.grad)], 2e-3)


def torch_compile(backend, device):
    """Check `emd` and `EMDLoss`, forward and backward, as one graph of torch.compile."""
    space, dtype = SMALL, np.float32
    x, y, labels = tensors(device, logits(4, space, dtype), logits(4, space, dtype), np.arange(4))
    loss = fastemd.torch.EMDLoss(space, cross_entropy=1.0)

    def total(x):
        p, q = x.softmax(-1), y.softmax(-1)
        return fastemd.torch.emd(p, q, space, 2).sum() + loss(x, labels)

    program, x = torch.compile(total, fullgraph=True, backend=backend), x.requires_grad_()
    result, reference = program(x), total(x)
    torch.testing.assert_close(result, reference)
    torch.testing.assert_close(torch.autograd.grad(result, x), torch.autograd.grad(reference, x))


# Streams, threads, memory, graphs -----------------------------------------------------------------


def side_stream(device):
    """Check the first use of a space, on a stream that is not the default one."""
    space = fastemd.Chain(777)
    p, q = histograms(64, space, np.float32)
    inputs = tensors(device, p, q)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        results = fastemd.emd_value_and_grad(*inputs, space, 2, validate=False)
    torch.cuda.synchronize()
    assert_close(results, _value_and_grad_by_loops(p, q, space), TOLERANCES[np.float32])


def thread(device):
    """Check the first use of the device by the library, in a thread."""
    space, results = fastemd.Chain(778), []
    p, q = histograms(64, space, np.float32)
    inputs = tensors(device, p, q)

    def call():
        results.extend(fastemd.emd_value_and_grad(*inputs, space, 2, validate=True))

    worker = threading.Thread(target=call)
    worker.start()
    worker.join()
    assert_close(results, _value_and_grad_by_loops(p, q, space), TOLERANCES[np.float32])


def memory(device):
    """Check that 300 calls leave no memory allocated."""
    space = fastemd.datasets.imagenet_tree()
    p, q = tensors(device, *histograms(64, space, np.float32))
    (labels,) = tensors(device, np.arange(64))

    def call():
        fastemd.emd_value_and_grad(p, q, space, 2, validate=False)
        fastemd.emd_loss(p, labels, space, cross_entropy=1.0)
        torch.cuda.synchronize()

    call()
    before = torch.cuda.memory_allocated()
    for _ in range(300):
        call()
    leaked = torch.cuda.memory_allocated() - before
    assert leaked == 0, f"{leaked} bytes"


def graph_of_emd(device):
    """Check that a replayed call computes new numbers and reports an invalid row."""
    space = fastemd.datasets.imagenet_tree()
    p, q = tensors(device, *histograms(64, space, np.float32))
    fastemd.emd_value_and_grad(p, q, space, 2)  # compile, allocate, upload
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = fastemd.emd_value_and_grad(p, q, space, 2)
    for array, new in zip((p, q), histograms(64, space, np.float32)[::-1], strict=True):
        array.copy_(torch.tensor(new))
    graph.replay()
    fastemd.synchronize()
    references = naive.emd_value_and_grad(host(p), host(q), naive.ground(space), 2)
    assert_close(results, references, TOLERANCES[np.float32])
    p[3, 0] = -1.0
    graph.replay()
    assert "row 3" in message_of(fastemd.synchronize)
    fastemd.synchronize()  # each error is raised once


def graph_of_the_loss(device):
    space = fastemd.datasets.imagenet_tree()
    x, labels = tensors(device, logits(64, space, np.float32), np.arange(64))

    def call():
        return fastemd.emd_loss(x, labels, space, cross_entropy=0.5)

    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()
    x.copy_(x.flip(0))
    graph.replay()
    fastemd.synchronize()
    assert_close(results, [host(result) for result in call()], 1e-6)
    soft = np.eye(space.n_bins)[host(labels)]
    assert_close(results, _loss(host(x), soft, space, np.ones(64), "mean"), 1e-5)


def message_of(call):
    """Return the message of the ValueError that a call raises."""
    try:
        call()
    except ValueError as error:
        return str(error)
    raise AssertionError("no ValueError was raised")


def deferred_errors(device):
    """Check that `synchronize` reports an invalid row, and with `validate` the call itself."""
    p, q = histograms(5, SMALL)
    p[2, 1] = -1.0
    inputs = tensors(device, p, q)
    fastemd.emd(*inputs, SMALL, 2)
    assert "row 2" in message_of(fastemd.synchronize)
    x, labels = tensors(device, logits(5, SMALL, np.float64), np.array([0, 1, 99, 0, 1]))
    fastemd.emd_loss(x, labels, SMALL)
    assert "row 2" in message_of(fastemd.synchronize)
    message = message_of(lambda: fastemd.emd(*inputs, SMALL, 2, validate=True))
    assert "p: row 2 has a negative mass" in message, message
    fastemd.synchronize()  # the error was raised


# Other backends -----------------------------------------------------------------------------------


def _jax(device):
    if find_spec("jax") is None:
        raise UnavailableError("JAX is not installed")
    import jax

    try:
        return jax, jax.devices(device)[0]
    except RuntimeError as error:
        raise UnavailableError(f"JAX has no device for {device}: {error}") from error


def jax_arrays(device):
    jax, place = _jax(device)
    space = fastemd.datasets.imagenet_tree()
    p, q = histograms(9, space, np.float32)
    inputs = [jax.device_put(x, place) for x in (p, q)]
    references = naive.emd_value_and_grad(p, q, naive.ground(space), 2)
    for _ in range(20):  # results whose memory was freed would be overwritten
        results = fastemd.emd_value_and_grad(*inputs, space, 2, validate=True)
    assert all(isinstance(x, jax.Array) and x.devices() == {place} for x in results)
    assert_close(map(np.asarray, results), references, TOLERANCES[np.float32])


def jax_jit(device):
    jax, place = _jax(device)
    import fastemd.jax

    p, q = histograms(9, SMALL, np.float32)
    inputs = [jax.device_put(x, place) for x in (p, q)]
    program = jax.jit(jax.value_and_grad(lambda p, q: fastemd.jax.emd(p, q, SMALL, 2).sum()))
    value, grad = program(*inputs)
    references = naive.emd_value_and_grad(p, q, naive.ground(SMALL), 2)
    results = np.asarray(value), np.asarray(grad)
    assert_close(results, [references[0].sum(), references[1]], 1e-6)
    x, labels = (jax.device_put(x, place) for x in (logits(4, SMALL, np.float32), np.arange(4)))
    loss = jax.jit(jax.value_and_grad(lambda x: fastemd.jax.emd_loss(x, labels, SMALL)))
    tensor = torch.tensor(np.asarray(x)).requires_grad_()
    reference = fastemd.torch.EMDLoss(SMALL)(tensor, torch.arange(4))
    reference.backward()
    assert_close(map(np.asarray, loss(x)), [host(reference), host(tensor.grad)], 1e-5)


def _round_trip(put, get, kind):
    """Check value and gradient of arrays made by `put`; the results are of the same kind."""
    p, q = histograms(9, SMALL, np.float32)
    results = fastemd.emd_value_and_grad(put(p), put(q), SMALL, 2, validate=True)
    assert all(isinstance(result, kind) for result in results)
    references = naive.emd_value_and_grad(p, q, naive.ground(SMALL), 2)
    assert_close(map(get, results), references, TOLERANCES[np.float32])


def cupy_arrays(device):
    if find_spec("cupy") is None:
        raise UnavailableError("CuPy is not installed")
    import cupy

    _round_trip(cupy.asarray, cupy.asnumpy, cupy.ndarray)


def numba_arrays(device):
    from numba import cuda

    _round_trip(cuda.to_device, lambda x: x.copy_to_host(), type(cuda.to_device(np.ones(1))))


def registers(device):
    """Print registers and local memory per thread of the main kernels."""
    for kind in ("tree", "chain"):
        space = SPACES[kind]()
        p, q, labels = tensors(device, *histograms(5, space, np.float32), np.arange(5))
        fastemd.emd_value_and_grad(p, q, space, 2, validate=True)
        fastemd.emd_loss(p, labels, space, cross_entropy=1.0)
    fastemd.synchronize()
    lines = list(_kernels())
    assert lines, "no compiled kernel was found"
    print(*lines, sep="\n")


def _kernels():
    """Describe all kernels that this process has compiled."""
    from numba.cuda.dispatcher import CUDADispatcher

    dispatchers = [x for x in gc.get_objects() if issubclass(type(x), CUDADispatcher)]
    for kernel in dispatchers:
        if kernel.targetoptions.get("device"):  # a device function, part of kernels
            continue
        cells = [cell.cell_contents for cell in kernel.py_func.__closure__ or ()]
        names = [cell.py_func.__name__ for cell in cells if isinstance(cell, CUDADispatcher)]
        for variant in kernel.overloads.values():
            yield (
                f"{kernel.py_func.__qualname__} of {', '.join(names)}: "
                f"{variant.regs_per_thread} registers, "
                f"{variant.local_mem_per_thread} bytes of local memory"
            )


def teams(n_threads, in_shared, device):
    """Check results by all sizes of teams, of which a call chooses one by the number of rows."""
    from fastemd.kernels.cuda import driver

    with (
        mock.patch.object(driver, "block_of", return_value=(n_threads, 128 // n_threads)),
        mock.patch.object(driver, "SHARED_BYTES", driver.SHARED_BYTES if in_shared else 0),
    ):
        for kind in ("tree", "chain"):
            for dtype in (np.float32, np.float64):
                value_and_grad(kind, 1.5, dtype, device)
        plain_loss(device)
        loss_hessian_diag(device)
        second_derivatives("emd_hvp", device)
        flow(device)


# The table ----------------------------------------------------------------------------------------

CHECKS = {
    **{
        f"value and gradient, {kind}, rho {rho}, {dtype.__name__}": functools.partial(
            value_and_grad, kind, rho, dtype
        )
        for kind in SPACES
        for rho in (1, 1.5, 2)
        for dtype in (np.float32, np.float64)
    },
    "NaN at rho 1": nan_at_rho_1,
    "loss of labels, float32": functools.partial(loss, True, np.float32),
    "loss of labels, float64": functools.partial(loss, True, np.float64),
    "loss of histograms, float32": functools.partial(loss, False, np.float32),
    "loss without weights": plain_loss,
    "loss of 1,024 rows": functools.partial(loss_of_many_rows, 1024),
    "loss of 1,025 rows": functools.partial(loss_of_many_rows, 1025),
    "loss of 300,001 rows": functools.partial(loss_of_many_rows, 300_001),
    "no warnings": without_warnings,
    "loss, other normalizations": other_normalizations,
    "loss, diagonal of the Hessian": loss_hessian_diag,
    "Hessian-vector product": functools.partial(second_derivatives, "emd_hvp"),
    "diagonal of the Hessian": functools.partial(second_derivatives, "emd_hessian_diag"),
    "Hessian": functools.partial(second_derivatives, "emd_hessian"),
    "flow": flow,
    "embedding": embed,
    "sinkhorn, paper": functools.partial(sinkhorn, "paper"),
    "sinkhorn, log": functools.partial(sinkhorn, "log"),
    "large rows, chain": functools.partial(large_rows, "chain"),
    "large rows, tree": functools.partial(large_rows, "tree"),
    "strides": strides,
    "broadcasting": broadcasting,
    "empty batch": empty_batch,
    "autograd of emd": autograd_of_emd,
    "autograd of EMDLoss": autograd_of_the_loss,
    "EMDLoss in float16": float16,
    "torch.compile, aot_eager": functools.partial(torch_compile, "aot_eager"),
    "JAX arrays": jax_arrays,
    "JAX under jit": jax_jit,
}
NEED_A_GPU = {
    **{
        f"teams of {n_threads}, {'shared' if in_shared else 'global'}": functools.partial(
            teams, n_threads, in_shared
        )
        for n_threads in (8, 32, 128)
        for in_shared in (True, False)
    },
    "torch.compile, inductor": functools.partial(torch_compile, "inductor"),
    "side stream": side_stream,
    "thread": thread,
    "memory of 300 calls": memory,
    "CUDA graph of emd": graph_of_emd,
    "CUDA graph of the loss": graph_of_the_loss,
    "deferred errors": deferred_errors,
    "CuPy arrays": cupy_arrays,
    "Numba arrays": numba_arrays,
    "registers": registers,
}
