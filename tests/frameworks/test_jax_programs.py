"""JAX programs with fastemd: versions, interrupts, errors, threads, several devices."""

import concurrent.futures
import ctypes
import sys

import numpy as np
import pytest

import fastemd
from tests.support.frameworks import growth, needed
from tests.support.jax_cases import (
    TREE,
    dense_emd_of_softmax,
    emd_of_softmax,
    random_logits,
    run_on_devices,
)
from tests.support.operations import assert_close

jax = needed("jax")
jax.config.update("jax_enable_x64", True)
jnp = jax.numpy
adapter = needed("fastemd.jax")
c_api = needed("fastemd.jax.c_api")
registry = needed("fastemd.jax.registry")
xla = needed("fastemd.jax.xla")
programs = needed("fastemd.jax.programs")


@pytest.mark.parametrize("known", [True, False])
def test_emd_with_other_default_device(known, monkeypatch, rng):
    """The program has a branch for each device and runs that of the CPU."""
    monkeypatch.setattr(programs, "only_the_cpu", lambda: False)
    monkeypatch.setattr(programs, "KNOWN", known)
    jax.clear_caches()
    x, y = random_logits(rng)
    for function in (
        jax.vmap(jax.grad(emd_of_softmax)),
        jax.jit(jax.vmap(jax.grad(emd_of_softmax))),
    ):
        assert_close(function(x, y), jax.grad(lambda x: dense_emd_of_softmax(x, y).sum())(x))
    with pytest.raises(
        ValueError if known else Exception, match=r"(^|ValueError: )p and q: row 0 "
    ):
        jax.block_until_ready(adapter.emd(jnp.exp(x), jnp.exp(y), TREE, 2))
    text = str(jax.make_jaxpr(emd_of_softmax)(x, y))
    assert ("platform_index" in text) == known
    assert "pure_callback" in text
    jax.clear_caches()


def test_version_of_ffi_is_supported():
    """With an unknown version everything works, but ten times slower."""
    assert c_api.version(jax.ffi.include_dir()) in c_api.KNOWN
    assert c_api.version("nowhere") is None
    assert programs.KNOWN


def test_emd_adds_no_operation_without_mesh(rng):
    x, y = random_logits(rng)
    assert " add " not in str(jax.make_jaxpr(lambda x: emd_of_softmax(x, y))(x))


def test_emd_interrupted_raises(ffi_or_callback, monkeypatch):
    def interrupted(*args, **keywords):
        raise KeyboardInterrupt

    p = jnp.full((2, TREE.n_bins), 1 / TREE.n_bins)
    monkeypatch.setattr(programs, "resolve", interrupted)
    with pytest.raises((Exception, KeyboardInterrupt), match=r"KeyboardInterrupt|^$"):
        adapter.emd(p, p, TREE, 2).block_until_ready()


def _interrupt(*args):
    raise KeyboardInterrupt


@pytest.fixture
def dropped(monkeypatch):
    """Record the names of exceptions that Python could not raise."""
    names = []
    monkeypatch.setattr(
        sys, "unraisablehook", lambda unraisable: names.append(unraisable.exc_type.__name__)
    )
    return names


def test_handler_interrupted_at_start_returns_error(dropped):
    """An interrupted callback returns NULL, which XLA would treat as success."""
    codes, calls = [], []

    def create_error(error):
        codes.append(error.contents.errc)
        return 4711

    name = "XLA_FFI_Error_Create"
    api = c_api.XLA_FFI_Api(**{name: dict(c_api.XLA_FFI_Api._fields_)[name](create_error)})
    text = ctypes.create_string_buffer(b"text")
    texts = ctypes.pointer(c_api.XLA_FFI_ByteSpan(ctypes.addressof(text), 4))
    frame = c_api.XLA_FFI_CallFrame(api=ctypes.pointer(api))
    frame.attrs.attrs = ctypes.pointer(texts)
    handler = xla.handler(lambda *inputs: calls.append(inputs))
    assert handler(frame) is None
    tracer = sys.gettrace()
    sys.settrace(_interrupt)  # like Ctrl-C at the start of the callback
    try:
        result = handler(frame)
    finally:
        sys.settrace(tracer)
    assert result == 4711
    assert codes == [c_api.XLA_FFI_Error_Code_CANCELLED]
    assert calls == [([], [], "text")]
    assert dropped == ["KeyboardInterrupt"]


def test_emd_interrupted_while_reporting_error_raises(dropped, monkeypatch):
    p = jnp.full((2, TREE.n_bins), 1 / TREE.n_bins)
    monkeypatch.setattr(xla, "_error", _interrupt)
    with pytest.raises(jax.errors.JaxRuntimeError, match="interrupted, there is no result"):
        adapter.emd(p, 2 * p, TREE, 2).block_until_ready()
    assert dropped == ["KeyboardInterrupt"]


def test_emd_registers_equal_spaces_once(rng):
    p = jnp.full(TREE.n_bins, 1 / TREE.n_bins)
    adapter.emd(p, p, fastemd.Chain(5), 2)
    n_spaces = len(registry._spaces)
    adapter.emd(p, p, fastemd.Chain(5), 2)
    assert len(registry._spaces) == n_spaces


def test_emd_space_lives_as_long_as_program(rng):
    x, y = random_logits(rng)
    call = jax.jit(lambda x, y: adapter.emd(x, y, fastemd.Chain(TREE.n_bins, [1, 2, 3, 4]), 2))
    first = call(jax.nn.softmax(x), jax.nn.softmax(y))
    np.testing.assert_array_equal(first, call(jax.nn.softmax(x), jax.nn.softmax(y)))


def test_emd_from_several_threads(rng):
    tree = fastemd.datasets.imagenet_tree()
    p, q = rng.dirichlet(np.ones(tree.n_bins), (2, 512)).astype(np.float32)
    call = jax.jit(jax.value_and_grad(lambda p: adapter.emd(p, q, tree, 2).sum()))
    ref = call(p)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for comp in pool.map(lambda _: call(p), range(40)):
            np.testing.assert_array_equal(comp[1], ref[1])


def test_emd_does_not_leak_memory(rng):
    x, y = jax.nn.softmax(random_logits(rng, (100,)))
    call = jax.jit(jax.grad(lambda x: adapter.emd(x, y, TREE, 2).sum()))
    assert growth(lambda: call(x).block_until_ready()) < 8_000


def test_emd_on_several_devices():
    """XLA runs one program per device, concurrently in its threads."""
    run_on_devices(
        4,
        """
import jax, numpy as np, fastemd, fastemd.jax
chain = fastemd.Chain(100)
p, q = np.random.default_rng(0).dirichlet(np.ones(100), (2, 4, 3000))
comp = jax.pmap(lambda p, q: fastemd.jax.emd(p, q, chain, 2))(p.astype("f"), q.astype("f"))
ref = fastemd.emd(p.astype("f"), q.astype("f"), chain, 2)
np.testing.assert_array_equal(comp, ref)
for device in jax.devices():
    a, b = (jax.device_put(x, device) for x in (p, q))
    np.testing.assert_array_equal(fastemd.emd(a, b, chain, 2), fastemd.emd(a, b, chain, 2))
""",
    )


SPREAD = """
import jax, numpy as np, fastemd, fastemd.jax
from jax.sharding import PartitionSpec as P

chain = fastemd.Chain(6)
x, y = np.random.default_rng(0).standard_normal((2, 4, 6)).astype("f")
labels = np.array([0, 1, 2, 3])

def emd(x, y):
    return fastemd.jax.emd(jax.nn.softmax(x), jax.nn.softmax(y), chain, 1.5)

def loss(x, target):
    return fastemd.jax.emd_loss(x, target, chain, 1.5, cross_entropy=0.5, reduction="none")

def weighted(x, target):
    options = dict(ignore_index=2, sample_weight=x.sum(-1) > 0, reduction="none")
    return fastemd.jax.emd_loss(x, target, chain, 1.5, **options)

def along(function):
    return lambda x, y: jax.jvp(lambda x: function(x, y), (x,), (x,))[1]

def grad(function, argnums=0):
    return jax.grad(lambda *args: (function(*args) ** 2).sum(), argnums)

def agree(comp, ref):
    np.testing.assert_allclose(comp, ref, rtol=1e-5, atol=1e-6)
"""


@pytest.mark.parametrize(("known", "compiled"), [(True, True), (False, True), (True, False)])
def test_emd_under_shard_map(known, compiled):
    """Derivatives inside and outside, also if only one argument is sharded."""
    run_on_devices(
        2,
        f"""{SPREAD}
fastemd.jax.programs.KNOWN = {known}
mesh = jax.sharding.Mesh(np.array(jax.devices()), "b")
whole, parts = P(), P("b")
cases = [
    (emd, y, parts), (weighted, labels, parts), (emd, y[0], whole), (loss, labels, parts),
    (loss, labels[0], whole),
]
for function, second, spec in cases if {compiled} else cases[:2]:  # slow without jit
    def spread(function):
        spread = jax.shard_map(function, mesh=mesh, in_specs=(parts, spec), out_specs=parts)
        return jax.jit(spread) if {compiled} else spread
    agree(spread(function)(x, second), function(x, second))
    for derivative in (grad, lambda function: grad(grad(function)), along):
        ref = derivative(function)(x, second)
        agree(spread(derivative(function))(x, second), ref)
        agree(derivative(spread(function))(x, second), ref)
    if function is emd:
        agree(grad(spread(emd), 1)(x, second), grad(emd, 1)(x, second))
""",
    )


def test_emd_on_arrays_with_explicit_sharding():
    run_on_devices(
        2,
        f"""{SPREAD}
jax.set_mesh(jax.make_mesh((2,), ("b",)))
for function, second in ((emd, y), (loss, labels), (weighted, labels)):
    for derivative in (grad, lambda function: grad(grad(function)), along):
        ref = derivative(function)(x, second)
        for a, b in ((P("b"), P("b")), (P("b"), P()), (P(), P("b")), (P(None, "b"), P())):
            args = jax.device_put(x, a), jax.device_put(second, b)
            agree(derivative(function)(*args), ref)
            agree(jax.jit(derivative(function))(*args), ref)
""",
    )


def test_emd_raises_value_error_outside_of_jit(rng):
    """With the message of the NumPy function; under jit, XLA adds a status code in front."""
    p = jnp.full((2, TREE.n_bins), 1 / TREE.n_bins)
    q = p.at[1].multiply(2)
    with pytest.raises(ValueError) as numpy:  # noqa: PT011
        fastemd.emd(p, q, TREE, 2)
    message = str(numpy.value)
    assert message.startswith("p and q: row 1 has unequal masses")

    def loss(q):
        return adapter.emd(p, q, TREE, 2).sum()

    for function in (loss, jax.grad(loss), jax.value_and_grad(loss)):
        with pytest.raises(ValueError) as eager:  # noqa: PT011
            function(q)
        assert str(eager.value) == message
        assert eager.value.__context__ is None
        with pytest.raises(jax.errors.JaxRuntimeError) as compiled:
            jax.block_until_ready(jax.jit(function)(q))
        assert str(compiled.value) == f"INVALID_ARGUMENT: {message}"


def test_emd_reports_internal_error_with_type(monkeypatch):
    """Other errors are not reported as invalid arguments."""

    def fail(*args, **keywords):
        raise KeyError("lost")

    p = jnp.full((2, TREE.n_bins), 1 / TREE.n_bins)
    monkeypatch.setattr(programs, "resolve", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL: KeyError: 'lost'"):
        adapter.emd(p, p, TREE, 2).block_until_ready()
