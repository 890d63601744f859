"""CUDA: what is not as on the CPU. That the results are the same, the other tests show.

They run on a device as device.py says, say ``NUMBA_ENABLE_CUDASIM=1 python -m pytest tests``.
"""

import contextlib
import ctypes
import json
import sys

import numpy as np
import pytest

import fastemd
from fastemd import backends
from fastemd.layout import MAX_CHILDREN
from fastemd.registry import number_of
from tests.support.device import (
    DeviceArray,
    DeviceBackend,
    device,
    emd_loss_hvp,
    on_device,
    on_host,
    simulator,
)
from tests.support.frameworks import needed
from tests.support.operations import OPERATIONS, assert_agrees
from tests.support.strategies import random_pair

pytestmark = pytest.mark.any_backend

CHAIN = fastemd.Chain(3)


@pytest.mark.parametrize(
    "n_leaves", [1, 2, MAX_CHILDREN, MAX_CHILDREN + 1, 2 * MAX_CHILDREN - 1, 100, MAX_CHILDREN**3]
)
def test_layout_bounds_number_of_children(n_leaves):
    star = fastemd.Tree.from_parents([-1] + [0] * n_leaves)
    found = star.layout("levels").cuda
    n_inner = found.n_edges - n_leaves
    ends = found.numbers[found.n_edges : found.n_edges + n_inner + 1]
    sizes = np.diff(ends)
    assert sizes.min() >= 1
    assert sizes.max() <= MAX_CHILDREN
    assert ends[-1] == found.n_edges - 1
    full = np.ceil(np.log(n_leaves) / np.log(MAX_CHILDREN) - 1e-9)
    assert found.n_levels == max(full, 1)


@device
def test_functions_return_arrays_on_device(operation, small_case, rng):
    """The results have the type of the inputs; in the simulator, reading an array is an error."""
    given = [on_device(x) for x in operation.draw(rng, (2,), small_case.n_bins)]
    rho = (2,) if operation.takes_rho else ()
    results = getattr(fastemd, operation.name)(*given, small_case.space, *rho)
    results = results if isinstance(results, tuple) else (results,)
    assert all(type(result) is type(given[0]) for result in results)
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
    """Rows that share scratch, one after the other."""
    from fastemd.kernels.cuda import driver

    monkeypatch.setattr(driver, "SHARED_BYTES", 0)
    monkeypatch.setattr(driver, "BLOCKS_WITHOUT", 2)
    arrays = operation.draw(rng, (9,), small_case.n_bins)
    for validate in (True, False):
        assert_agrees(operation, arrays, small_case, 3.7, validate=validate)


@simulator
def test_functions_do_not_synchronize(small_case, rng, monkeypatch):
    from fastemd.kernels.cuda import numba_cuda

    def synchronise(index):
        raise AssertionError("synchronised")

    space = small_case.space
    given = {op: [on_device(x) for x in op.draw(rng, (2,), space.n_bins)] for op in OPERATIONS}
    x, labels = on_device(rng.normal(size=(2, space.n_bins))), on_device([0, 1])
    with monkeypatch.context() as patch:
        patch.setattr(numba_cuda, "wait", synchronise)
        for operation, arrays in given.items():
            rho = (2,) if operation.takes_rho else ()
            getattr(fastemd, operation.name)(*arrays, space, *rho)
        fastemd.emd_loss(x, labels, space, sample_weight=on_device([0.5, 1]), ignore_index=-1)
        for method in ("paper", "log"):
            fastemd.sinkhorn(*given[OPERATIONS[0]], space, lam=1, max_iter=20, method=method)
        with pytest.raises(AssertionError, match="synchronised"):
            fastemd.emd(*given[OPERATIONS[0]], space, 2, validate=True)
    fastemd.synchronize()


@simulator
def test_functions_compile_and_allocate_in_context_of_device(rng, monkeypatch):
    """Outside, numba-cuda uses the first device in a thread that has none."""
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
    fastemd.sinkhorn(p, q, space, lam=1.0, max_iter=2)
    made = numba_cuda.empty(0, (3,), np.int64)
    numba_cuda.assign(0, made, np.arange(3))
    assert made.copy_to_host().tolist() == [0, 1, 2]
    fastemd.synchronize()


@simulator
def test_upload_and_assign_synchronize(monkeypatch):
    """The kernels that read them may run on a stream that does not wait for the default one."""
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


# ------------------------------------------------------------------------------------ reductions


@pytest.fixture
def grids(monkeypatch):
    """The number of blocks of every launch by the name of the kernel."""
    from fastemd.kernels.cuda import driver

    found, configure = {}, driver.configure

    def spy(kernel, index, n_blocks, *rest):
        found.setdefault(kernel.fn.__qualname__, []).append(n_blocks)
        return configure(kernel, index, n_blocks, *rest)

    monkeypatch.setattr(driver, "configure", spy)
    return found


@simulator
@pytest.mark.parametrize("n_rows", [1, 3, 4, 17, 50])
def test_emd_loss_sums_over_rows_in_several_blocks(n_rows, grids, rng, backend):
    x, labels = rng.normal(size=(n_rows, 3)), rng.integers(0, 3, n_rows)
    weights = np.where(rng.random(n_rows) < 0.3, 0.0, 1.7e308 * rng.random(n_rows))
    given = {"space": CHAIN, "sample_weight": weights, "ignore_index": 2}
    for comp, ref in zip(
        backend.emd_loss(x, labels, **given), fastemd.emd_loss(x, labels, **given), strict=True
    ):
        np.testing.assert_allclose(comp, ref, rtol=1e-13, atol=1e-15)
    n_blocks = min(-(-n_rows // 3), 6)
    assert grids["find_factors"] == grids["divide_by_sum"] == [n_blocks]
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
        assert ("find_factors" in grids) == (ignored is not None)
        assert ("divide_by_sum" in grids) == (ignored is not None and reduction == "mean")


@device
@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
@pytest.mark.parametrize("row", [0, 5, 9])
def test_emd_loss_reports_invalid_weights_except_of_ignored_rows(row, bad, rng):
    x, labels, weights = rng.normal(size=(10, 3)), np.zeros(10, np.int64), np.ones(10)
    weights[row] = bad
    given = on_device(x), on_device(labels), CHAIN
    loss, grad = fastemd.emd_loss(*given, sample_weight=on_device(weights))
    if bad >= 0.0 or bad != bad:
        assert np.isnan(on_host(loss))
        assert np.isnan(on_host(grad)[row]).all()
    with pytest.raises(ValueError, match=f"row {row} of an earlier call"):
        fastemd.synchronize()
    labels[row] = 2
    given = on_device(x), on_device(labels), CHAIN
    comp = fastemd.emd_loss(*given, sample_weight=on_device(weights), ignore_index=2)
    fastemd.synchronize()
    ref = fastemd.emd_loss(x, labels, CHAIN, ignore_index=2)
    for on_cuda, on_cpu in zip(comp, ref, strict=True):
        np.testing.assert_allclose(on_host(on_cuda), on_cpu, rtol=1e-13, atol=1e-15)


# ------------------------------------------------------------------------------------- invalid rows


@device
@pytest.mark.parametrize("name", ["emd_grad", "emd_hessian"])
def test_functions_raise_for_invalid_row_on_synchronize(name, small_case, rng):
    p, q = random_pair(rng, (3, small_case.n_bins))
    p[1, 2] = -1.0
    function, given = getattr(fastemd, name), (on_device(p), on_device(q), small_case.space, 2)
    with pytest.raises(ValueError, match="p: row 1 has a negative mass"):
        function(*given, validate=True)
    fastemd.synchronize()  # the error was raised already
    function(*given)
    with pytest.raises(ValueError, match=r"row \d+ of an earlier call on cuda:0 was bad"):
        fastemd.synchronize()
    fastemd.synchronize()
    function(*given, validate=False)
    fastemd.synchronize()


@device
def test_functions_with_tolerance_do_not_synchronize(small_case, rng):
    p, q = random_pair(rng, (3, small_case.n_bins))
    fastemd.emd(on_device(p * 1.01), on_device(q), small_case.space, 2, validate=0.1)
    fastemd.synchronize()
    fastemd.emd(on_device(p * 1.01), on_device(q), small_case.space, 2, validate=1e-3)
    with pytest.raises(ValueError, match="row 0"):
        fastemd.synchronize()


@device
@pytest.mark.parametrize(
    "spoil",
    [
        lambda x, t, w: x.__setitem__((1, 0), np.nan),
        lambda x, t, w: t.__setitem__(1, 99),
        lambda x, t, w: t.__setitem__(1, -1),
        lambda x, t, w: w.__setitem__(1, -0.5),
        lambda x, t, w: x.__setitem__((1, t[1]), -np.inf),
    ],
    ids=["logit", "class", "negative class", "weight", "excluded"],
)
def test_losses_raise_for_invalid_row_on_synchronize(spoil, small_case, rng):
    x, t, w = rng.normal(size=(3, small_case.n_bins)), np.array([0, 1, 2]), np.ones(3)
    spoil(x, t, w)
    x, t, w = map(on_device, (x, t, w))
    fastemd.emd_loss(x, t, small_case.space, sample_weight=w, cross_entropy=1.0)
    with pytest.raises(ValueError, match="row 1 of an earlier call"):
        fastemd.synchronize()


@simulator
@pytest.mark.parametrize("tol", [0.0, 1e-3])
@pytest.mark.parametrize("lam", [20.0, 3000.0, 50_000.0])
def test_sinkhorn_agrees_with_cpu_stage_by_stage(lam, tol, rng, backend):
    p, q = random_pair(rng, (4, 7))
    cost = rng.random((7, 7))
    keywords = {"lam": lam, "max_iter": 400, "tol": tol, "method": "log"}
    comp = backend.sinkhorn(p, q, cost, **keywords)
    ref = fastemd.sinkhorn(p, q, cost, **keywords)
    np.testing.assert_array_equal(comp.n_iter, ref.n_iter)
    np.testing.assert_array_equal(comp.converged, ref.converged)
    np.testing.assert_allclose(comp.error, ref.error, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(comp.value, ref.value, rtol=1e-9)


@device
@pytest.mark.parametrize("method", ["paper", "log"])
def test_sinkhorn_stops_when_all_rows_converged(method, rng, backend):
    p, q = random_pair(rng, (3, 5))
    comp = backend.sinkhorn(
        p, q, rng.random((5, 5)), lam=5, max_iter=10**9, tol=1e-3, method=method
    )
    assert comp.converged.all()


@device
def test_sinkhorn_with_validate_raises_for_invalid_cost(rng, backend):
    p, q, cost = *random_pair(rng, (3, 4)), rng.random((4, 4))
    cost[2, 1] = -1.0
    for method in ("paper", "log"):
        with pytest.raises(ValueError, match=r"cost: a negative cost, -1\.0 from bin 2 to 1"):
            backend.sinkhorn(p, q, cost, lam=1.0, method=method)
    assert backend.emd(p, q, fastemd.Chain(4), 2, validate=True).shape == (3,)


@device
@pytest.mark.parametrize("bad", [np.nan, -1.0, np.inf])
def test_sinkhorn_raises_for_invalid_cost_on_synchronize(bad, rng):
    p, q, cost = *random_pair(rng, (3, 4)), rng.random((4, 4))
    cost[2, 1] = bad
    fastemd.sinkhorn(*map(on_device, (p, q, cost)), lam=1.0, max_iter=2)
    with pytest.raises(ValueError, match="row 2 of an earlier call"):
        fastemd.synchronize()
    with pytest.raises(ValueError, match=r"cost: expected a square matrix \(N, N\), got"):
        fastemd.sinkhorn(*map(on_device, (p, q, cost[:3])), lam=1.0)


@device
@pytest.mark.parametrize("weights", [[np.nan, 1, 1], [1, np.inf, 1], [1, 1, np.nan]])
def test_emd_loss_is_nan_for_nonfinite_weight(weights, small_case, rng):
    x, labels = on_device(rng.normal(size=(3, small_case.n_bins))), on_device([0, 1, 2])
    loss, _ = fastemd.emd_loss(x, labels, small_case.space, sample_weight=on_device(weights))
    assert np.isnan(on_host(loss))
    with pytest.raises(ValueError, match=r"row \d of an earlier call"):
        fastemd.synchronize()


# ------------------------------------------------------------------------------ invalid arrays


@simulator
def test_out_must_be_on_device(small_case, rng):
    p, q = random_pair(rng, (3, small_case.n_bins))
    with pytest.raises(TypeError, match="different libraries"):
        fastemd.emd_grad(on_device(p), on_device(q), small_case.space, 2, out=np.zeros_like(p))


@device
def test_functions_reject_arrays_on_different_devices(small_case, rng):
    p, q = random_pair(rng, (3, small_case.n_bins))
    with pytest.raises(TypeError, match=r"p from .* on cuda:0, q from numpy"):
        fastemd.emd(on_device(p), q, small_case.space, 2)
    with pytest.raises(TypeError, match="computed on the CPU only"):
        fastemd.exact_emd(on_device(p), on_device(q), small_case.space)


class UnknownArray:
    """An array on a device, of an unknown library."""

    @property
    def __cuda_array_interface__(self):
        return {"shape": (3,), "typestr": "<f8", "data": (8, False), "version": 3}


def test_functions_reject_device_array_of_unknown_library():
    with pytest.raises(TypeError, match=r"p: cannot read .* on a CUDA device, where arrays of"):
        fastemd.emd(UnknownArray(), UnknownArray(), CHAIN, 2)


def test_functions_without_numba_cuda_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastemd.kernels.cuda", None)
    with pytest.raises(ImportError, match=r"pip install 'fastemd\[cuda12\]'"):
        fastemd.emd(DeviceArray(np.ones(3)), DeviceArray(np.ones(3)), CHAIN, 2)


# ----------------------------------------------------------------------------------------- JAX


class Pending(DeviceArray):
    """An array whose values are ready only after synchronisation, like those of JAX."""

    def __init__(self, array):
        super().__init__(np.full(array.shape, -7).astype(array.dtype))
        self.numbers = array

    def block_until_ready(self):
        self._array[...] = self.numbers


@simulator
def test_functions_synchronize_arrays_of_jax(monkeypatch, rng):
    """Both the arrays of the user and their casts and broadcasts."""

    class PendingBackend(DeviceBackend):
        def convert(self, array, dtype):
            return Pending(array.numbers.astype(dtype))

        def expand(self, array, shape):
            return Pending(np.array(np.broadcast_to(array.numbers, shape)))

    monkeypatch.setitem(backends.BACKENDS, "device", backends.Row(cuda=PendingBackend))
    backends._row.cache_clear()
    p, q = random_pair(rng, (1, 3, 1, 3))[0], random_pair(rng, (2, 1, 2, 3), np.float32)[1]
    value = fastemd.emd(Pending(p), Pending(q), CHAIN, 2)
    np.testing.assert_allclose(on_host(value), fastemd.emd(p, q, CHAIN, 2), rtol=1e-12)
    x, labels, weights = rng.normal(size=(2, 3)), np.array([[1], [2]]), np.array([[1], [2]])
    given = {"x": x[:, None], "target": labels.astype(np.int32), "sample_weight": weights}
    loss, _ = fastemd.emd_loss(**{k: Pending(v) for k, v in given.items()}, space=CHAIN)
    np.testing.assert_allclose(on_host(loss), fastemd.emd_loss(**given, space=CHAIN)[0], rtol=1e-12)
    fastemd.synchronize()


@pytest.fixture
def jax_on_device(monkeypatch):
    jax = needed("jax")
    from fastemd.kernels.cuda import numba_cuda
    from tests.support import simulator

    def refuse(*args):
        raise AssertionError("memory that JAX does not own")

    simulator.take_jax(monkeypatch)
    monkeypatch.setattr(numba_cuda, "empty", refuse)
    return jax


def _assert_computed_by_jax(jax, comp, ref):
    comp, ref = (x if isinstance(x, tuple) else (x,) for x in (comp, ref))
    for on_cuda, on_cpu in zip(comp, ref, strict=True):
        assert isinstance(on_cuda, jax.Array)
        assert on_cuda.dtype == np.asarray(on_cpu).dtype
        np.testing.assert_allclose(on_cuda, on_cpu, rtol=1e-6, atol=1e-7)


@simulator
@pytest.mark.parametrize("wide", [True, False])
def test_functions_return_arrays_of_jax(operation, wide, small_case, jax_on_device, rng):
    jax, rho = jax_on_device, (2,) if operation.takes_rho else ()
    with jax.enable_x64(wide):
        given = [jax.numpy.asarray(x) for x in operation.draw(rng, (2,), small_case.n_bins)]
        comp = getattr(fastemd, operation.name)(*given, small_case.space, *rho, validate=False)
        ref = getattr(fastemd, operation.name)(
            *map(np.asarray, given), small_case.space, *rho, validate=False
        )
        _assert_computed_by_jax(jax, comp, ref)


@simulator
@pytest.mark.parametrize("wide", [True, False])
def test_functions_cast_and_broadcast_arrays_of_jax(wide, jax_on_device):
    jax = jax_on_device
    with jax.enable_x64(wide):
        p = jax.numpy.ones((1, 3, 1, 3), np.float32)
        q = jax.numpy.arange(12).reshape(2, 1, 2, 3) % 3
        comp = fastemd.emd_grad(p, q, CHAIN, 2)
        ref = fastemd.emd_grad(np.asarray(p, np.float64), np.asarray(q), CHAIN, 2)
        _assert_computed_by_jax(jax, comp, ref if wide else ref.astype(np.float32))
    fastemd.synchronize()


@simulator
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_losses_return_arrays_of_jax(reduction, jax_on_device, rng):
    jax = jax_on_device
    x, labels = jax.numpy.asarray(rng.normal(size=(5, 3)), np.float32), jax.numpy.arange(5) % 3
    weights = jax.numpy.arange(5)
    options = {"sample_weight": weights, "reduction": reduction}
    comp = fastemd.emd_loss(x, labels, CHAIN, **options)
    options["sample_weight"] = np.asarray(weights)
    ref = fastemd.emd_loss(np.asarray(x), np.asarray(labels), CHAIN, **options)
    _assert_computed_by_jax(jax, comp, ref)


@simulator
@pytest.mark.parametrize("method", ["paper", "log"])
def test_sinkhorn_returns_arrays_of_jax(method, jax_on_device, rng):
    jax = jax_on_device
    with jax.enable_x64(True):
        given = [*random_pair(rng, (3, 5)), rng.random((5, 5))]
        options = {"lam": 5.0, "max_iter": 30, "method": method}
        comp = fastemd.sinkhorn(*map(jax.numpy.asarray, given), **options)
        _assert_computed_by_jax(jax, tuple(comp), tuple(fastemd.sinkhorn(*given, **options)))


# ----------------------------------------------------------------------------------------- XLA


class OnDevice:
    """Calls a handler like XLA, with memory of the host in place of device memory."""

    def __init__(self, name):
        self.xla, programs = needed("fastemd.jax.xla"), needed("fastemd.jax.programs")
        self.handler, self.messages, self.held = programs.HANDLERS[name, "CUDA"], [], {}
        types, xla = dict(self.xla._Api._fields_), self.xla

        def create_error(error):
            self.messages.append(error.contents.message.decode())
            return 4711

        def allocate(question):
            size = question.contents.size
            memory = ctypes.create_string_buffer(b"\7" * size, size + 8)
            question.contents.data = ctypes.addressof(memory)
            self.held[question.contents.data] = memory
            return

        def free(question):
            del self.held[question.contents.data]
            return

        functions = {"create_error": create_error, "allocate": allocate, "free": free}
        functions |= dict.fromkeys(("get_stream", "get_ordinal"), lambda question: None)
        self.api = xla._Api(**{k: types[k](function) for k, function in functions.items()})

    def buffers(self, arrays):
        numbers = {str(dtype): number for number, dtype in self.xla.DTYPES.items()}
        made = [
            self.xla._Buffer(
                dtype=numbers[str(array.dtype)], data=array.ctypes.data, rank=array.ndim,
                dims=(ctypes.c_int64 * array.ndim)(*array.shape),
            )
            for array in arrays
        ]  # fmt: skip
        pointers = (ctypes.POINTER(self.xla._Buffer) * len(made))(*map(ctypes.pointer, made))
        return self.xla._Buffers(size=len(made), buffers=pointers)

    def __call__(self, arguments, results, constants):
        text = ctypes.create_string_buffer(json.dumps(constants).encode())
        texts = ctypes.pointer(self.xla._Text(ctypes.addressof(text), len(text) - 1))
        frame = self.xla._Frame(api=ctypes.pointer(self.api))
        frame.arguments, frame.results = self.buffers(arguments), self.buffers(results)
        frame.attributes.texts = ctypes.pointer(texts)
        code = self.handler(frame)
        assert not self.held
        return code


@simulator
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_handler_of_emd_writes_to_buffers_of_xla(small_case, dtype, rng, backend):
    space, n = small_case.space, small_case.n_bins
    p, q = random_pair(rng, (3, n), dtype)
    value, grad = np.zeros(3, dtype), np.zeros((3, n), dtype)
    constants = [number_of(space), 1.5, 1e-3]
    assert OnDevice("emd")([p, q], [value, grad], constants) is None
    for comp, ref in zip((value, grad), backend.emd_value_and_grad(p, q, space, 1.5), strict=True):
        np.testing.assert_array_equal(comp, ref)
    v, product = rng.normal(size=(3, n)).astype(dtype), np.zeros((3, n), dtype)
    assert OnDevice("emd_product")([p, q, v], [product], constants) is None
    np.testing.assert_array_equal(product, backend.emd_hvp(p, q, v, space, 1.5))
    nothing = p[:0], q[:0]
    assert OnDevice("emd")(nothing, [value[:0], grad[:0]], constants) is None
    assert OnDevice("emd")([2 * p, q], [value, grad], constants) is None
    with pytest.raises(ValueError, match="row 0 of an earlier call"):
        fastemd.synchronize()
    call = OnDevice("emd")
    assert call([p, q], [value, grad], [12345, 1.5, 1e-3]) == 4711
    assert "space" in call.messages[0]


@simulator
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("labels", [np.int8, np.uint16, np.int32, np.int64, None])
@pytest.mark.parametrize("counted", [True, False])
def test_handler_of_loss_writes_to_buffers_of_xla(small_case, labels, counted, dtype, rng, backend):
    space, n = small_case.space, small_case.n_bins
    x = rng.normal(size=(3, n)).astype(dtype)
    target = np.array([0, 2, 1], labels) if labels else random_pair(rng, (3, n), dtype)[0]
    others = [np.array([True, False, True])] if counted else []
    if counted:
        x[1] = np.nan
    loss, grad = np.ones(3, dtype), np.ones((3, n), dtype)
    constants = [number_of(space), 2.0, 1e-3, "softmax", 0.5]
    assert OnDevice("loss")([x, target, *others], [loss, grad], constants) is None
    weights = {"sample_weight": others[0]} if counted else {}
    ref = backend.emd_loss(x, target, space, cross_entropy=0.5, reduction="none", **weights)
    np.testing.assert_array_equal(loss, ref[0])
    np.testing.assert_array_equal(grad, ref[1])
    v, product = rng.normal(size=(3, n)).astype(dtype), np.ones((3, n), dtype)
    assert OnDevice("loss_product")([x, target, *others, v], [product], constants) is None
    ref = emd_loss_hvp(x, target, v, space, 2, cross_entropy=0.5, reduction="none", **weights)
    np.testing.assert_allclose(product, ref, rtol=1e-5 if dtype == np.float32 else 1e-12, atol=1e-6)
    fastemd.synchronize()


# ------------------------------------------------------------------------------------------- NaN


@device
@pytest.mark.parametrize("rho", [1, 2, 3.7])
def test_functions_propagate_nan(operation, small_case, rho, rng):
    """Where the CPU does."""
    function, rho = getattr(fastemd, operation.name), (rho,) if operation.takes_rho else ()
    for i, _ in enumerate(operation.draw(rng, (2,), small_case.n_bins)):
        given = operation.draw(rng, (2,), small_case.n_bins)
        given[i][1, 2] = np.nan
        comp = function(*map(on_device, given), small_case.space, *rho, validate=False)
        ref = function(*given, small_case.space, *rho, validate=False)
        pairs = zip(comp, ref, strict=True) if isinstance(ref, tuple) else [(comp, ref)]
        for on_cuda, on_cpu in pairs:
            spoiled = np.isnan(on_cpu)
            np.testing.assert_array_equal(np.isnan(on_host(on_cuda)), spoiled)
            assert not spoiled[0].any()


@device
@pytest.mark.parametrize("rho", [1, 2, 3.7])
@pytest.mark.parametrize("normalize", ["softmax", "l1", None])
@pytest.mark.parametrize("spoiled", ["x", "target"])
def test_losses_propagate_nan(spoiled, normalize, rho, small_case, rng):
    given = {name: rng.dirichlet(np.ones(small_case.n_bins), 2) for name in ("x", "target")}
    given[spoiled][1, 2] = np.nan
    given = {name: on_device(array) for name, array in given.items()}
    keywords = {"normalize": normalize, "reduction": "none"}
    keywords |= {"cross_entropy": 1.0} if normalize == "softmax" else {}
    results = (
        *fastemd.emd_loss(**given, space=small_case.space, rho=rho, **keywords),
        fastemd.emd_loss_hessian_diag(**given, space=small_case.space, rho=rho, **keywords),
    )
    for result in map(on_host, results):
        assert np.isfinite(result[0]).all()
        assert np.isnan(result[1]).all()
    with pytest.raises(ValueError, match="row 1"):
        fastemd.synchronize()
