"""Arrays of JAX on a CUDA device, and the handlers that XLA calls with device memory."""

import ctypes
import json

import numpy as np
import pytest

import fastemd
from fastemd import backends
from tests.support.device import DeviceArray, DeviceBackend, emd_loss_hvp, on_host, simulator
from tests.support.frameworks import needed
from tests.support.strategies import random_pair

pytestmark = pytest.mark.any_backend
CHAIN = fastemd.Chain(3)


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
            return Pending(np.array(np.broadcast_to(array.numbers, shape), order="C"))

    monkeypatch.setitem(backends.BACKENDS, "device", backends.Row(cuda=PendingBackend))
    backends._row.cache_clear()
    p, q = random_pair(rng, (1, 3, 1, 3))[0], random_pair(rng, (2, 1, 2, 3), np.float32)[1]
    value = fastemd.emd(Pending(p), Pending(q), CHAIN, 2)
    np.testing.assert_allclose(on_host(value), fastemd.emd(p, q, CHAIN, 2), rtol=1e-12)
    x, labels, weights = rng.normal(size=(2, 3)), np.array([[1], [2]]), np.array([[1], [2]])
    inputs = {"x": x[:, None], "target": labels.astype(np.int32), "sample_weight": weights}
    loss, _ = fastemd.emd_loss(**{k: Pending(v) for k, v in inputs.items()}, space=CHAIN)
    np.testing.assert_allclose(
        on_host(loss), fastemd.emd_loss(**inputs, space=CHAIN)[0], rtol=1e-12
    )
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
        inputs = [jax.numpy.asarray(x) for x in operation.draw(rng, (2,), small_case.n_bins)]
        comp = getattr(fastemd, operation.name)(*inputs, small_case.space, *rho, validate=False)
        ref = getattr(fastemd, operation.name)(
            *map(np.asarray, inputs), small_case.space, *rho, validate=False
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
@pytest.mark.parametrize("wide", [True, False])
def test_sinkhorn_returns_arrays_of_jax(method, wide, jax_on_device, rng):
    jax = jax_on_device
    with jax.enable_x64(wide):
        dtype = np.float64 if wide else np.float32
        inputs = [x.astype(dtype) for x in (*random_pair(rng, (3, 5)), rng.random((5, 5)))]
        options = {"lam": 5.0, "max_iter": 30, "tol": 1e-3, "method": method}
        comp = fastemd.sinkhorn(*map(jax.numpy.asarray, inputs), **options)
        ref = [jax.numpy.asarray(x) for x in fastemd.sinkhorn(*inputs, **options)]  # or int32
        for ours, theirs in zip(comp, ref, strict=True):
            assert isinstance(ours, jax.Array)
            assert ours.dtype == theirs.dtype
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


class OnDevice:
    """Calls a handler like XLA, with memory of the host in place of device memory."""

    def __init__(self, name):
        self.c_api, programs = needed("fastemd.jax.c_api"), needed("fastemd.jax.programs")
        self.handler, self.messages, self.held = programs.HANDLERS[name, "CUDA"], [], {}
        api = self.c_api.XLA_FFI_Api
        types = dict(api._fields_)

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

        functions = {
            "XLA_FFI_Error_Create": create_error,
            "XLA_FFI_DeviceMemory_Allocate": allocate,
            "XLA_FFI_DeviceMemory_Free": free,
            "XLA_FFI_Stream_Get": lambda question: None,
            "XLA_FFI_DeviceOrdinal_Get": lambda question: None,
        }
        self.api = api(**{k: types[k](function) for k, function in functions.items()})

    def buffers(self, arrays):
        numbers = {str(dtype): number for number, dtype in self.c_api.DTYPES.items()}
        structures = [
            self.c_api.XLA_FFI_Buffer(
                dtype=numbers[str(array.dtype)], data=array.ctypes.data, rank=array.ndim,
                dims=(ctypes.c_int64 * array.ndim)(*array.shape),
            )
            for array in arrays
        ]  # fmt: skip
        kind = ctypes.POINTER(self.c_api.XLA_FFI_Buffer)
        return (kind * len(structures))(*map(ctypes.pointer, structures))

    def __call__(self, arguments, results, constants):
        text = ctypes.create_string_buffer(json.dumps(constants).encode())
        texts = ctypes.pointer(self.c_api.XLA_FFI_ByteSpan(ctypes.addressof(text), len(text) - 1))
        frame = self.c_api.XLA_FFI_CallFrame(api=ctypes.pointer(self.api))
        frame.args.size, frame.args.args = len(arguments), self.buffers(arguments)
        frame.rets.size, frame.rets.rets = len(results), self.buffers(results)
        frame.attrs.attrs = ctypes.pointer(texts)
        code = self.handler(frame)
        assert not self.held
        return code


@simulator
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_handler_of_emd_writes_to_buffers_of_xla(small_case, dtype, rng, backend):
    space, n = small_case.space, small_case.n_bins
    p, q = random_pair(rng, (3, n), dtype)
    value, grad = np.zeros(3, dtype), np.zeros((3, n), dtype)
    constants = [needed("fastemd.jax.registry").number_of(space), 1.5, 1e-3]
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
@pytest.mark.parametrize("weighted", [True, False])
def test_handler_of_loss_writes_to_buffers_of_xla(
    small_case, labels, weighted, dtype, rng, backend
):
    space, n = small_case.space, small_case.n_bins
    x = rng.normal(size=(3, n)).astype(dtype)
    target = np.array([0, 2, 1], labels) if labels else random_pair(rng, (3, n), dtype)[0]
    others = [np.array([True, False, True])] if weighted else []
    if weighted:
        x[1] = np.nan
    loss, grad = np.ones(3, dtype), np.ones((3, n), dtype)
    registry = needed("fastemd.jax.registry")
    options = {"cross_entropy": 0.5, "reduction": "none"}
    if weighted:
        options |= {"class_weight": np.arange(n) + 1.0, "label_smoothing": 0.25, "root": True}
        options["ignore_index"] = 2 if labels else None
    of_classes = registry.number_of_weights(options.get("class_weight"))
    constants = [registry.number_of(space), 2.0, 1e-3, of_classes, options.get("ignore_index")]
    constants += ["softmax", 0.5, 0.25 * weighted, weighted, -1]
    assert OnDevice("loss")([x, target, *others], [loss, grad], constants) is None
    if weighted:
        options["sample_weight"] = others[0]
    ref = backend.emd_loss(x, target, space, **options)
    np.testing.assert_array_equal(loss, ref[0])
    np.testing.assert_array_equal(grad, ref[1])
    v, product = rng.normal(size=(3, n)).astype(dtype), np.ones((3, n), dtype)
    assert OnDevice("loss_product")([x, target, *others, v], [product], constants) is None
    ref = emd_loss_hvp(x, target, v, space, 2, **options)
    np.testing.assert_allclose(product, ref, rtol=1e-5 if dtype == np.float32 else 1e-12, atol=1e-6)
    fastemd.synchronize()
