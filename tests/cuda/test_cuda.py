"""Launches, memory and reductions on CUDA; other tests compare the results.

The device is chosen in support/device.py, for example by ``NUMBA_ENABLE_CUDASIM=1``.
"""

import contextlib
import functools
import itertools

import numpy as np
import pytest

import fastemd
from fastemd import warming
from fastemd.layout import GROUP, MAX_CHILDREN
from tests.support.device import device, on_device, simulator
from tests.support.operations import OPERATIONS, assert_agrees, call_by_name
from tests.support.strategies import random_pair

pytestmark = pytest.mark.any_backend
CHAIN = fastemd.Chain(3)
ELSEWHERE = {"emd_length_grad", "pairwise", "neighbors"}  # need arithmetic or the CPU


@pytest.mark.parametrize(
    "n_leaves", [1, 2, MAX_CHILDREN, MAX_CHILDREN + 1, 2 * MAX_CHILDREN - 1, 100, MAX_CHILDREN**3]
)
def test_layout_bounds_number_of_children(n_leaves):
    star = fastemd.Tree.from_parents([-1] + [0] * n_leaves)
    tables = star.layout("levels").cuda
    groups = tables.numbers[8 : tables.numbers[3]].reshape(-1, 2)
    counts = groups[:, 1].copy().view(np.uint8).reshape(-1, 4)
    assert counts.max() <= GROUP
    assert (np.diff(counts.astype(int)) <= 0).all()
    assert counts.sum() == tables.n_edges
    full = np.ceil(np.log(n_leaves) / np.log(MAX_CHILDREN) - 1e-9)
    assert tables.numbers[2] == max(full, 1) + 1  # and one for the edge above the root


@device
def test_functions_return_arrays_on_device(operation, small_case, rng):
    """The results have the type of the inputs; in the simulator, reading an array is an error."""
    inputs = [on_device(x) for x in operation.draw(rng, (2,), small_case.n_bins)]
    rho = (2,) if operation.takes_rho else ()
    results = getattr(fastemd, operation.name)(*inputs, small_case.space, *rho)
    results = results if isinstance(results, tuple) else (results,)
    assert all(type(result) is type(inputs[0]) for result in results)
    fastemd.synchronize()


@device
def test_losses_return_arrays_on_device(small_case, rng):
    x, labels = on_device(rng.normal(size=(2, small_case.n_bins))), on_device([0, 1])
    results = (
        *fastemd.emd_loss(x, labels, small_case.space),
        fastemd.emd_loss_hessian_diag(x, labels, small_case.space),
    )
    assert all(type(result) is type(x) for result in results)
    fastemd.synchronize()


@simulator
def test_functions_without_shared_memory(operation, small_case, rng, monkeypatch):
    """Rows that share scratch are computed one after the other."""
    from fastemd.kernels.cuda import driver

    monkeypatch.setattr(driver, "SHARED_BYTES", 0)
    monkeypatch.setattr(driver, "MAX_GLOBAL_ROWS", 2)
    arrays = operation.draw(rng, (9,), small_case.n_bins)
    for validate in (True, False):
        assert_agrees(operation, arrays, small_case, 3.7, validate=validate)


@simulator
def test_functions_do_not_synchronize(small_case, rng, monkeypatch):
    from fastemd.kernels.cuda import numba_cuda

    def synchronise(index):
        raise AssertionError("synchronised")

    space = small_case.space
    inputs = {op: [on_device(x) for x in op.draw(rng, (2,), space.n_bins)] for op in OPERATIONS}
    x, labels = on_device(rng.normal(size=(2, space.n_bins))), on_device([0, 1])
    with monkeypatch.context() as patch:
        patch.setattr(numba_cuda, "wait", synchronise)
        for operation, arrays in inputs.items():
            rho = (2,) if operation.takes_rho else ()
            getattr(fastemd, operation.name)(*arrays, space, *rho)
        fastemd.emd_loss(x, labels, space, sample_weight=on_device([0.5, 1]), ignore_index=-1)
        with pytest.raises(AssertionError, match="synchronised"):
            fastemd.emd(*inputs[OPERATIONS[0]], space, 2, validate=True)
    fastemd.synchronize()


@simulator
def test_functions_compile_and_allocate_in_context_of_device(rng, monkeypatch):
    """Without a context, numba-cuda uses the first device."""
    from fastemd.kernels.cuda import driver, numba_cuda

    entered = []

    class Devices:
        @contextlib.contextmanager
        def __getitem__(self, index):
            entered.append(index)
            yield
            entered.pop()

    def inside(function):
        def call(*args, **keywords):
            assert entered
            return function(*args, **keywords)

        return call

    monkeypatch.setattr(numba_cuda.cuda, "gpus", Devices())
    for name in ("jit", "to_device", "device_array", "synchronize"):
        monkeypatch.setattr(numba_cuda.cuda, name, inside(getattr(numba_cuda.cuda, name)))
    for name in ("argument", "configure"):
        monkeypatch.setattr(driver, name, inside(getattr(driver, name)))
    for function in vars(driver).values():  # compile again
        getattr(function, "cache_clear", lambda: None)()
    space, (p, q) = fastemd.Chain(4), map(on_device, random_pair(rng, (3, 4)))
    fastemd.emd(p, q, space, 2, validate=True)
    weights, labels = on_device([1.0, 2.0, 0.0]), on_device([0, 1, 2])
    fastemd.emd_loss(p, labels, space, sample_weight=weights)
    copy = numba_cuda.empty(0, (3,), np.int64)
    numba_cuda.assign(0, copy, np.arange(3))
    assert copy.copy_to_host().tolist() == [0, 1, 2]
    fastemd.synchronize()


@simulator
def test_upload_and_assign_synchronize(monkeypatch):
    """Kernels that read the copy may run on a stream that does not wait for the default one."""
    from fastemd.kernels.cuda import numba_cuda

    events = []

    class Copied:
        def copy_to_device(self, numbers):
            events.append("copy")

    monkeypatch.setattr(numba_cuda.cuda, "to_device", lambda array: events.append("copy"))
    monkeypatch.setattr(numba_cuda.cuda, "synchronize", lambda: events.append("wait"))
    numba_cuda.upload(np.ones(3))
    assert events == ["copy", "wait"]
    numba_cuda.assign(0, Copied(), np.ones(3))
    assert events == ["copy", "wait"] * 2


@pytest.fixture
def grids(monkeypatch):
    """Record the number of blocks of every launch by the name of the kernel."""
    from fastemd.kernels.cuda import driver

    launches, configure = {}, driver.configure

    def spy(kernel, index, n_blocks, *rest):
        launches.setdefault(kernel.fn.__qualname__, []).append(n_blocks)
        return configure(kernel, index, n_blocks, *rest)

    monkeypatch.setattr(driver, "configure", spy)
    return launches


@simulator
@pytest.mark.parametrize("n_rows", [1, 3, 4, 17, 50])
def test_emd_loss_sums_over_rows_in_several_blocks(n_rows, grids, rng, backend):
    x, labels = rng.normal(size=(n_rows, 3)), rng.integers(0, 3, n_rows)
    weights = np.where(rng.random(n_rows) < 0.3, 0.0, 1.7e308 * rng.random(n_rows))
    inputs = {"space": CHAIN, "sample_weight": weights, "ignore_index": 2}
    for comp, ref in zip(
        backend.emd_loss(x, labels, **inputs), fastemd.emd_loss(x, labels, **inputs), strict=True
    ):
        np.testing.assert_allclose(comp, ref, rtol=1e-13, atol=1e-15)
    n_blocks = min(-(-n_rows // 3), 6)
    assert grids["find_row_weights"] == grids["divide_by_sum"] == [n_blocks]
    assert grids["sum_rows"] == ([1] if n_blocks == 1 else [n_blocks, 1])


@simulator
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_emd_loss_computes_row_weights_only_if_needed(reduction, grids, rng, backend):
    x, labels = rng.normal(size=(10, 3)), rng.integers(0, 3, 10)
    for ignored in (None, 2):
        options = {"reduction": reduction, "ignore_index": ignored}
        comp = backend.emd_loss(x, labels, CHAIN, **options)
        ref = fastemd.emd_loss(x, labels, CHAIN, **options)
        for on_cuda, on_cpu in zip(comp, ref, strict=True):
            np.testing.assert_allclose(on_cuda, on_cpu, rtol=1e-13, atol=1e-15)
        assert ("find_row_weights" in grids) == (ignored is not None)
        assert ("divide_by_sum" in grids) == (ignored is not None and reduction == "mean")


@simulator
@pytest.mark.parametrize("is_chain", [True, False])
@pytest.mark.parametrize("name", sorted(warming.FUNCTIONS.keys() - ELSEWHERE))
def test_warm_up_compiles_what_functions_launch(name, is_chain, rng, monkeypatch):
    from fastemd.kernels.cuda import driver

    compiled, make = [], {name: getattr(driver, name) for name in ("_row_kernel", "_team_kernel")}
    for maker, function in make.items():
        record = functools.partial(_record, compiled, function)
        monkeypatch.setattr(driver, maker, record)
    space = fastemd.Chain(5) if is_chain else fastemd.Tree.from_parents([4, 4, 5, 5, 6, 6, -1])
    monkeypatch.setattr(driver, "ROWS_PER_PART", 4)
    teams = iter([(4, 2), (2, 4)])  # few rows, many rows
    monkeypatch.setattr(driver, "block_of", lambda *arguments: next(teams))
    for rho in (2, 3.7):
        for dtype in (np.float32, np.float64):
            compiled.clear()
            teams = iter([(4, 2), (2, 4)])
            fastemd.warm_up(space, rho=rho, dtype=dtype, functions=name, device=0)
            prepared = set(compiled)
            compiled.clear()
            for n_rows in (4, 5):
                teams = itertools.repeat((4, 2) if n_rows == 4 else (2, 4))
                arrays = rng.dirichlet(np.ones(space.n_bins), (3, n_rows)).astype(dtype)
                p, q, v = map(on_device, arrays)
                targets = [q, on_device(np.arange(n_rows) % 2)] if "loss" in name else [q]
                weights = on_device(np.ones(n_rows)) if "loss" in name else None
                for target, reduction in itertools.product(targets, ("mean", "none")):
                    call_by_name(name, p, target, v, space, rho, reduction, weights)
            assert set(compiled) == prepared


def _record(compiled, function, *arguments):
    compiled.append((function.__name__, *arguments))
    return function(*arguments)
