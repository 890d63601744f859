"""fastemd.jax: derivatives, transforms, FFI and callback, errors."""

import concurrent.futures
import ctypes
import os
import subprocess
import sys

import numpy as np
import pytest

import fastemd
from tests.support.frameworks import growth, needed
from tests.support.operations import assert_close

jax = needed("jax")
jax.config.update("jax_enable_x64", True)
jnp = jax.numpy
adapter = needed("fastemd.jax")
xla = needed("fastemd.jax.xla")
programs = needed("fastemd.jax.programs")

TREE = fastemd.Tree.from_parents([-1, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0.5, 1, 3, 1, 1])
each_rho = pytest.mark.parametrize("rho", [1, 1.5, 2, 3.7])


@pytest.fixture(params=[True, False], ids=["XLA's interface", "pure_callback"])
def way(request, monkeypatch):
    """Run a test with the FFI and with the callback."""
    jax.clear_caches()
    monkeypatch.setattr(programs, "KNOWN", request.param)
    yield
    jax.clear_caches()


@pytest.mark.parametrize("known", [True, False])
def test_emd_with_other_default_device(known, monkeypatch, rng):
    """The program has a branch for each device and runs that of the CPU."""
    monkeypatch.setattr(programs, "only_the_cpu", lambda: False)
    monkeypatch.setattr(programs, "KNOWN", known)
    jax.clear_caches()
    x, y = _logits(rng)
    for function in (jax.vmap(jax.grad(_loss)), jax.jit(jax.vmap(jax.grad(_loss)))):
        assert_close(function(x, y), jax.grad(lambda x: _dense(x, y).sum())(x))
    with pytest.raises(
        ValueError if known else Exception, match=r"(^|ValueError: )p and q: row 0 "
    ):
        jax.block_until_ready(adapter.emd(jnp.exp(x), jnp.exp(y), TREE, 2))
    text = str(jax.make_jaxpr(_loss)(x, y))
    assert ("platform_index" in text) == known
    assert "pure_callback" in text
    jax.clear_caches()


def _logits(rng, shape=(4,)):
    return jnp.array(rng.standard_normal((2, *shape, TREE.n_bins)))


def _loss(x, y, rho=1.5):
    return adapter.emd(jax.nn.softmax(x), jax.nn.softmax(y), TREE, rho)


def _ancestors():
    matrix = np.zeros((TREE.n_nodes - 1, TREE.n_bins))
    for column, node in enumerate(TREE.bin_node.tolist()):
        while TREE.parent[node] >= 0:
            matrix[node, column] = 1.0
            node = TREE.parent[node]
    return matrix


def _dense(x, y, rho=1.5):
    """Compute the EMD in plain JAX."""
    flow = (jax.nn.softmax(x) - jax.nn.softmax(y)) @ _ancestors().T
    return (TREE.weight[:-1] * jnp.abs(flow) ** rho).sum(-1)


def test_version_of_ffi_is_supported():
    """With an unknown version everything works, but ten times slower."""
    assert xla.version(jax.ffi.include_dir()) in xla.KNOWN
    assert xla.version("nowhere") is None
    assert programs.KNOWN


@each_rho
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_emd_agrees_with_numpy_function(rho, dtype, way, rng):
    p, q = rng.dirichlet(np.ones(TREE.n_bins), (2, 5)).astype(dtype)
    value, grad = fastemd.emd_value_and_grad(p, q, TREE, rho)
    comp = adapter.emd(p, q, TREE, rho)
    assert comp.dtype == dtype
    np.testing.assert_array_equal(comp, value)
    comp = jax.jit(jax.grad(lambda p: adapter.emd(p, q, TREE, rho).sum()))(p)
    np.testing.assert_array_equal(comp, grad)


@each_rho
def test_emd_derivatives_agree_with_numpy_functions(rho, way, rng):
    x, y = _logits(rng)
    order = 1 if rho == 1 else 2
    check_grads = needed("jax.test_util").check_grads
    check_grads(lambda x, y: _loss(x, y, rho), (x, y), order=order)
    check_grads(jax.jit(lambda x, y: _loss(x, y, rho)), (x, y), order=order)


@each_rho
def test_emd_supports_jit_grad_and_vmap(rho, way, rng):
    x, y = _logits(rng)
    for transform in (
        jax.jit,
        jax.vmap,
        lambda f: jax.vmap(f, in_axes=(0, None)),
        lambda f: jax.vmap(jax.vmap(f, in_axes=(None, 0)), in_axes=(0, None)),
        lambda f: jax.jit(jax.vmap(jax.grad(f, argnums=1))),
        lambda f: jax.vmap(jax.jacrev(jax.jacrev(f))),
        lambda f: jax.jacrev(jax.vmap(jax.grad(f))),
        lambda f: lambda x, y: jax.jvp(f, (x, y), (y, x)),
        lambda f: jax.vmap(jax.jacfwd(jax.jacfwd(jax.jit(f)))),
        lambda f: jax.jit(jax.vmap(jax.hessian(f, argnums=(0, 1)))),
    ):
        comp = transform(lambda x, y: _loss(x, y, rho))(x, y)
        ref = transform(lambda x, y: _dense(x, y, rho))(x, y)
        for ours, wanted in zip(*map(jax.tree.leaves, (comp, ref)), strict=True):
            assert_close(ours, wanted, 1.0, 1e-11)


def test_emd_broadcasts_and_sums_gradients(rng):
    x, y = _logits(rng, (3,))
    comp = jax.grad(lambda x, y: _loss(x[:, None], y).sum() ** 2, (0, 1))(x, y)
    ref = jax.grad(lambda x, y: _dense(x[:, None], y).sum() ** 2, (0, 1))(x, y)
    for ours, wanted in zip(comp, ref, strict=True):
        assert_close(ours, wanted, 1.0)


@pytest.mark.parametrize("rho", [1.5, 2])
@pytest.mark.parametrize("wrapper", ["map", "checkpoint", "cond"])
def test_emd_is_differentiable_twice_in_control_flow(wrapper, rho, rng):
    x, y = _logits(rng)

    def whole(loss):
        def value(x):
            if wrapper == "map":
                return jax.lax.map(lambda pair: loss(*pair, rho), (x, y)).sum()
            if wrapper == "checkpoint":
                return jax.checkpoint(lambda x: loss(x, y, rho).sum())(x)
            return jax.lax.cond(x[0, 0] < 9, lambda x: loss(x, y, rho).sum(), jnp.sum, x)

        return value

    for transform in (
        jax.grad,
        jax.jacfwd,
        lambda f: jax.jacrev(jax.grad(f)),
        lambda f: jax.jit(jax.grad(lambda x: jnp.square(jax.grad(f)(x)).sum())),
        lambda f: jax.jacfwd(jax.jacfwd(f)),
        lambda f: jax.jacrev(jax.jacfwd(f)),
    ):
        assert_close(transform(whole(_loss))(x), transform(whole(_dense))(x), 1.0, 1e-11)


def test_emd_has_no_third_derivative(rng):
    x, y = _logits(rng, ())

    def third(loss, rho):
        return jax.grad(jax.grad(jax.grad(lambda t: loss(t * x, y, rho))))(1.0)

    assert_close(third(_loss, 2), third(_dense, 2), 1.0, 1e-11)
    message = r"third derivatives of emd with rho=1.5"
    with pytest.raises(NotImplementedError, match=message):
        third(_loss, 1.5)
    for f in (_loss, jax.jit(_loss)):
        with pytest.raises(NotImplementedError, match=message):
            jax.jacfwd(jax.hessian(f))(x, y)


def test_emd_gradient_takes_one_pass(rng):
    """A gradient computes no Hessian, and the value needs no second pass."""
    x, y = _logits(rng)
    text = str(jax.make_jaxpr(jax.value_and_grad(lambda x: _loss(x, y).sum()))(x))
    assert text.count("ffi_call") == 1


def test_emd_adds_no_collectives_without_mesh(rng):
    x, y = _logits(rng)
    assert " add " not in str(jax.make_jaxpr(lambda x: _loss(x, y))(x))


def test_emd_returns_type_of_inputs(way):
    p = jnp.full(TREE.n_bins, 1 / TREE.n_bins)
    for given, dtype in (("float16", "float32"), ("bfloat16", "float32"), ("int8", "float64")):
        q = jnp.eye(TREE.n_bins, dtype=given)[0]
        assert adapter.emd(q, q, TREE, 2).dtype == dtype
        assert adapter.emd(p.astype("float32"), q, TREE, 2).dtype == "float32"
    grad = jax.grad(lambda q: adapter.emd(q, p, TREE, 2))(jnp.eye(TREE.n_bins, dtype="bfloat16")[0])
    assert grad.dtype == "bfloat16"


def test_emd_accepts_empty_batch(way):
    nothing = jnp.zeros((0, TREE.n_bins))
    assert adapter.emd(nothing, nothing, TREE, 2).shape == (0,)
    grad = jax.grad(lambda p: adapter.emd(p, nothing, TREE, 2).sum())(nothing)
    assert grad.shape == nothing.shape


def test_emd_rejects_invalid_input(way):
    p = jnp.full((2, TREE.n_bins), 1 / TREE.n_bins)
    good = {"p": p, "q": p, "space": TREE, "rho": 2}
    for bad, wrong, message in (
        ({"q": p[:, 1:]}, ValueError, "q: the last axis must hold the 5 bins"),
        ({"space": 3}, TypeError, "space: expected a fastemd.Chain"),
        ({"rho": 0.5}, ValueError, "rho: expected a finite number >= 1"),
        ({"p": jnp.tile(p, (2, 1))}, ValueError, r"p and q: .* broadcast: p \(4,\), q \(2,\)"),
        ({"p": p * 1j}, TypeError, "p: expected an array of real numbers, .* complex128"),
        ({"q": "rows"}, TypeError, "q: expected an array of real numbers, got 'rows'"),
        ({"q": [[1], [1, 2]]}, TypeError, "q: expected an array of real numbers, got list"),
        ({"q": 1.01 * p, "validate": True}, Exception, "unequal masses"),
        ({"q": p, "validate": 1}, TypeError, "validate: expected True, False or"),
    ):
        for transform in (lambda f: f, jax.jit):
            call = transform(lambda bad=bad: adapter.emd(**{**good, **bad}))
            with pytest.raises(wrong, match=message):
                np.asarray(call())
    assert np.isnan(adapter.emd(p * np.nan, p, TREE, 2, validate=False)).all()


def test_emd_names_invalid_row_under_jit(way):
    p = jnp.full((2, TREE.n_bins), 1 / TREE.n_bins)
    call = jax.jit(lambda p, q: adapter.emd(p, q, TREE, 2))
    with pytest.raises(Exception, match="q: row 1 has a negative mass"):  # of a type of JAX
        call(p, p.at[1].multiply(-1)).block_until_ready()
    np.testing.assert_array_equal(call(p, p), 0.0)  # and continues


def test_emd_interrupted_raises(way, monkeypatch):
    def interrupted(*args, **keywords):
        raise KeyboardInterrupt

    p = jnp.full((2, TREE.n_bins), 1 / TREE.n_bins)
    monkeypatch.setattr(programs, "Call", interrupted)
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
        codes.append(error.contents.code)
        return 4711

    api = xla._Api(create_error=dict(xla._Api._fields_)["create_error"](create_error))
    text = ctypes.create_string_buffer(b"text")
    texts = ctypes.pointer(xla._Text(ctypes.addressof(text), 4))
    frame = xla._Frame(api=ctypes.pointer(api))
    frame.attributes.texts = ctypes.pointer(texts)
    handler = xla.handler(lambda *given: calls.append(given))
    assert handler(frame) is None
    tracer = sys.gettrace()
    sys.settrace(_interrupt)  # like Ctrl-C at the start of the callback
    try:
        result = handler(frame)
    finally:
        sys.settrace(tracer)
    assert result == 4711
    assert codes == [xla.CANCELLED]
    assert calls == [([], [], "text")]
    assert dropped == ["KeyboardInterrupt"]


def test_emd_interrupted_while_reporting_error_raises(dropped, monkeypatch):
    p = jnp.full((2, TREE.n_bins), 1 / TREE.n_bins)
    monkeypatch.setattr(xla, "_error", _interrupt)
    with pytest.raises(jax.errors.JaxRuntimeError, match="interrupted, there is no result"):
        adapter.emd(p, 2 * p, TREE, 2).block_until_ready()
    assert dropped == ["KeyboardInterrupt"]


def test_emd_registers_space_once(rng):
    p = jnp.full(TREE.n_bins, 1 / TREE.n_bins)
    adapter.emd(p, p, fastemd.Chain(5), 2)
    kept = len(adapter._kept)
    adapter.emd(p, p, fastemd.Chain(5), 2)
    assert len(adapter._kept) == kept


def test_emd_space_lives_as_long_as_program(rng):
    x, y = _logits(rng)
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
    x, y = jax.nn.softmax(_logits(rng, (100,)))
    call = jax.jit(jax.grad(lambda x: adapter.emd(x, y, TREE, 2).sum()))
    assert growth(lambda: call(x).block_until_ready()) < 8_000


def _run_on_devices(count, code):
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, env=environment)


def test_emd_on_several_devices():
    """XLA runs one program per device, concurrently in its threads."""
    _run_on_devices(
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
    _run_on_devices(
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
    _run_on_devices(
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


# -- the loss --------------------------------------------------------------------------------------

OPTIONS = [
    {},
    {"rho": 1.5, "cross_entropy": 0.5},
    {"cross_entropy": 1.0, "ignore_index": 3},
    {"normalize": "l1", "rho": 3.7},
    {"normalize": None, "cross_entropy": 0.5},
]
each_option = pytest.mark.parametrize("options", OPTIONS, ids=str)
each_target = pytest.mark.parametrize("kind", ["labels", "histograms"])


def _case(rng, kind, options):
    x, y = _logits(rng)
    if options.get("normalize", "softmax") != "softmax":
        x = jax.nn.softmax(x) * (3 if options["normalize"] else 1)
    if kind == "labels":
        return x, jnp.array([0, 3, 4, 3])
    if "ignore_index" in options:
        pytest.skip("for labels")
    return x, jax.nn.softmax(y)


@each_option
@each_target
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_emd_loss_agrees_with_numpy_function(options, kind, reduction, weighted, way, rng):
    x, target = _case(rng, kind, options)
    weight = jnp.array(rng.random(4)) if weighted else None
    options = {"reduction": reduction, "sample_weight": weight, **options}
    value, grad = fastemd.emd_loss(x, target, TREE, **options)
    assert_close(adapter.emd_loss(x, target, TREE, **options), value)
    comp = jax.jit(jax.grad(lambda x: adapter.emd_loss(x, target, TREE, **options).sum()))(x)
    assert_close(comp, grad)


@each_target
def test_emd_loss_derivatives_under_transforms(kind, way, rng):
    x, target = _case(rng, kind, {})

    def loss(x, target):
        return adapter.emd_loss(x, target, TREE, 1.5, cross_entropy=0.5)

    def dense(x, target):
        soft = jax.nn.one_hot(target, TREE.n_bins) if kind == "labels" else target
        flow = (jax.nn.softmax(x) - soft) @ _ancestors().T
        emd = (TREE.weight[:-1] * jnp.abs(flow) ** 1.5).sum(-1)
        return (emd - 0.5 * (soft * jax.nn.log_softmax(x)).sum(-1)).mean()

    for transform in (
        lambda f: f,
        lambda f: jax.jit(jax.grad(f)),
        lambda f: jax.vmap(jax.grad(f)),
        lambda f: lambda x, t: jax.vmap(jax.grad(f), in_axes=(0, None))(x, t[1]),
        lambda f: jax.vmap(jax.jacrev(jax.jacrev(f))),
        lambda f: jax.jit(jax.vmap(jax.hessian(f))),
        lambda f: lambda x, t: jax.jvp(lambda x: f(x, t), (x,), (x,))[1],
        lambda f: jax.grad(lambda x, t: jnp.square(jax.grad(f)(x, t)).sum()),
    ):
        assert_close(transform(loss)(x, target), transform(dense)(x, target), 1.0, 1e-10)


def test_emd_loss_has_no_gradient_in_target(rng):
    x, target = _case(rng, "histograms", {})
    grad = jax.grad(lambda t: adapter.emd_loss(x, t, TREE))(target)
    np.testing.assert_array_equal(grad, 0.0)


def test_emd_loss_accepts_shapes_and_types(way, rng):
    x, labels = _case(rng, "labels", {})
    pairs = jnp.broadcast_to(x[:, None], (4, *x.shape))
    whole = adapter.emd_loss(pairs, labels, TREE, reduction="none")
    assert whole.shape == (4, 4)
    assert_close(jnp.diag(whole), adapter.emd_loss(x, labels, TREE, reduction="none"))
    assert adapter.emd_loss(x.astype("bfloat16"), labels.astype("int8"), TREE).dtype == "float32"
    assert adapter.emd_loss(x[:0], labels[:0], TREE) == 0.0


def test_emd_loss_rejects_invalid_input(way, rng):
    x, labels = _case(rng, "labels", {})
    good = {"x": x, "target": labels, "space": TREE}
    for bad, wrong, message in (
        ({"space": 3}, TypeError, "space: expected"),
        ({"rho": 0.5}, ValueError, "rho: expected"),
        ({"normalize": "max"}, ValueError, "normalize: expected"),
        ({"reduction": "min"}, ValueError, "reduction: expected"),
        ({"cross_entropy": -1}, ValueError, "cross_entropy: expected"),
        ({"x": x[:, 1:]}, ValueError, "x: the last axis must hold the 5 bins"),
        ({"target": x[:, 1:]}, ValueError, "target: the last axis must hold the 5 bins"),
        ({"target": labels * 1.0}, ValueError, "labels must be integers"),
        ({"target": labels + 1}, Exception, "target: row 2 is class 5; classes are 0..4"),
        ({"x": x * jnp.nan}, Exception, "x: row 0"),
        ({"target": jnp.eye(5, dtype=int)[labels]}, ValueError, "integers are labels"),
        ({"target": jnp.eye(5, dtype=bool)[labels]}, TypeError, "classes of an integer type"),
        ({"target": jnp.ones((4, 5)) * 1j}, TypeError, "target: expected an array of real"),
        ({"sample_weight": jnp.ones((2, 4))}, ValueError, "do not broadcast: sample_weight"),
        ({"sample_weight": jnp.ones(4) * 1j}, TypeError, "sample_weight: expected an array of"),
        ({"ignore_index": 0.5}, TypeError, "ignore_index"),
        ({"target": x, "ignore_index": 1}, ValueError, "ignore_index: needs labels"),
    ):
        for transform in (lambda f: f, jax.jit):
            call = transform(lambda bad=bad: adapter.emd_loss(**{**good, **bad}))
            with pytest.raises(wrong, match=message):
                np.asarray(call())


@pytest.mark.parametrize("container", [list, tuple])
def test_emd_and_emd_loss_accept_lists_of_traced_numbers(container):
    """Like the functions of jax.numpy."""
    chain, x = fastemd.Chain(3), jnp.zeros((2, 3))

    def distance(a, to_array):
        return adapter.emd(to_array([a, 1 - a, 0.0]), [0.0, 0.0, 1.0], chain, 2)

    def loss(a, to_array):
        options = {"normalize": "l1", "sample_weight": to_array([a, 1.0])}
        return adapter.emd_loss(to_array([[a, 1.0, a], [1.0, 1.0, a]]), [0, 1], chain, **options)

    for function in (distance, loss):
        for transform in (jax.jit, jax.grad):
            comp = transform(lambda a, f=function: f(a, container))(0.3)
            assert_close(comp, transform(lambda a, f=function: f(a, jnp.array))(0.3))
    with pytest.raises(TypeError, match="p: expected an array of real numbers, got list"):
        jax.jit(lambda a: adapter.emd([a, [a, a]], x, chain, 2))(0.3)


@pytest.mark.parametrize("name", ["x", "target", "sample_weight"])
def test_emd_loss_rejects_sparse_arrays(name, rng):
    sparse = needed("jax.experimental.sparse")
    x, target = _case(rng, "histograms", {})
    arrays = {"x": x, "target": target, "sample_weight": jnp.ones(4)}
    arrays[name] = sparse.BCOO.fromdense(arrays[name])
    with pytest.raises(TypeError, match=rf"{name}: .* got BCOO; pass {name}.todense\(\)"):
        adapter.emd_loss(space=TREE, **arrays)


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
    monkeypatch.setattr(programs, "Call", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL: KeyError: 'lost'"):
        adapter.emd(p, p, TREE, 2).block_until_ready()


@pytest.mark.parametrize("shape", [(4, 1), (2, 4), (4, 4), (3,), (5,)])
@each_target
def test_emd_loss_rejects_target_larger_than_batch(shape, kind, rng):
    x, target = _case(rng, kind, {})
    target = jnp.broadcast_to(target[0], (*shape, *target.shape[1:]))
    hint = f"target.squeeze({-1 if kind == 'labels' else -2})"
    for function in (adapter.emd_loss, jax.jit(adapter.emd_loss, static_argnums=2)):
        with pytest.raises(ValueError, match=r"target: .*do not broadcast to the rows") as info:
            function(x, target, TREE)
        assert str(target.shape) in str(info.value)
        assert str(x.shape) in str(info.value)
        assert (hint in str(info.value)) == (shape == (4, 1))


@each_target
def test_emd_loss_broadcasts_target_to_batch(kind, rng):
    x, target = _case(rng, kind, {})
    x = jnp.stack([x, 2 * x])
    tail = target.shape[1:]
    for shape in ((4,), (1,), (), (2, 1), (1, 4), (2, 4)):
        small = target[: shape[-1]] if shape else target[0]
        small = jnp.broadcast_to(small, (*shape, *tail))
        comp = adapter.emd_loss(x, small, TREE, reduction="none")
        whole = jnp.broadcast_to(small, (2, 4, *tail))
        np.testing.assert_array_equal(comp, adapter.emd_loss(x, whole, TREE, reduction="none"))


@pytest.mark.parametrize(
    "dtype",
    ["int4", "uint4", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"],
)
def test_emd_loss_accepts_labels_of_every_integer_type(dtype, way, rng):
    x, labels = _case(rng, "labels", {})
    options = {"reduction": "none", "ignore_index": 3}
    comp = adapter.emd_loss(x, labels.astype(dtype), TREE, **options)
    np.testing.assert_array_equal(comp, adapter.emd_loss(x, labels, TREE, **options))
    limits = jnp.iinfo(dtype)
    for wrong in {int(limits.min), int(limits.max)} - {0}:
        with pytest.raises(Exception, match=f"target: row 1 is class {wrong};"):
            adapter.emd_loss(x, labels.astype(dtype).at[1].set(wrong), TREE, **options)


@pytest.mark.parametrize("offset", [-(2**40), -(2**32), 2**32, 2**40])
def test_emd_loss_labels_do_not_wrap(offset, way, rng):
    x, labels = _case(rng, "labels", {})
    for function in (adapter.emd_loss, jax.jit(adapter.emd_loss, static_argnums=2)):
        with pytest.raises(Exception, match=f"target: row 0 is class {offset};"):
            jax.block_until_ready(function(x, labels + offset, TREE))


def test_emd_loss_labels_of_64_bits_do_not_wrap_without_x64():
    _run_on_devices(
        1,
        """
import numpy as np, fastemd, fastemd.jax
for label, dtype in ((-2**32, "int64"), (2**32, "int64"), (2**63, "uint64"), (2**40, None)):
    labels = np.array([label, 0], dtype) if dtype else [label, 0]
    try:
        fastemd.jax.emd_loss(np.zeros((2, 3)), labels, fastemd.Chain(3))
    except ValueError as error:
        assert "target: row 0 is class" in str(error)
    else:
        raise AssertionError(label)
""",
    )


@pytest.mark.parametrize(
    ("dtype", "ignored", "labels", "losses"),
    [
        ("int64", -(2**32), [0, -(2**32), 2], [True, False, True]),
        ("int64", 2**32, [0, 2**32, 2], [True, False, True]),
        ("int64", 2**32, [0, 1, 2], [True, True, True]),
        ("int32", -(2**32), [0, 1, 2], [True, True, True]),
        ("int8", 256, [0, 1, 2], [True, True, True]),
        ("uint8", 255, [0, 255, 2], [True, False, True]),
        ("uint8", -254, [0, 1, 2], [True, True, True]),
        ("uint64", 2**64 - 1, [0, 2**64 - 1, 2], [True, False, True]),
        ("uint64", -1, [0, 1, 2], [True, True, True]),
        ("int64", 2**70, [0, 1, 2], [True, True, True]),
    ],
)
def test_emd_loss_compares_ignore_index_in_type_of_labels(dtype, ignored, labels, losses, way):
    labels = jnp.array(np.array(labels, dtype))
    options = {"ignore_index": ignored, "reduction": "none"}
    comp = adapter.emd_loss(jnp.zeros((3, 3)), labels, fastemd.Chain(3), **options)
    np.testing.assert_array_equal(comp > 0.0, losses)


def test_emd_loss_does_not_ignore_label_that_is_equal_after_cast():
    labels = jnp.array([0, 255, 2], "uint8")
    with pytest.raises(ValueError, match="target: row 1 is class 255"):
        adapter.emd_loss(jnp.zeros((3, 3)), labels, fastemd.Chain(3), ignore_index=-1)


UNREAD = [  # x, the target, its weight; the label 9 is ignored, class 77 does not exist
    (np.nan, 1, 0.0),
    (np.nan, 9, 1.0),
    ([0, -np.inf, 0, 0, 0], 1, 0.0),
    (-np.inf, 9, 1.0),
    (0.0, 77, 0.0),
    (np.inf, 9, np.nan),
    (0.0, 9, np.inf),
    (0.0, 9, 1e300),
    (0.0, 9, -1.0),
]


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_emd_loss_does_not_read_ignored_rows(reduction, way, rng):
    x, labels = _case(rng, "labels", {})
    weights = jnp.array([1.0, 3.0, 2.0, 0.5])
    options = {"cross_entropy": 1.0, "reduction": reduction, "ignore_index": 9}
    contents, others, factors = zip(*UNREAD, strict=True)
    unread = jnp.stack([jnp.broadcast_to(jnp.array(a), TREE.n_bins) for a in contents])
    all_labels = jnp.concatenate([labels, jnp.array(others)])
    all_weights = jnp.concatenate([weights, jnp.array(factors)])

    def loss(x):
        return adapter.emd_loss(x, labels, TREE, sample_weight=weights, **options)

    def whole(x):
        return adapter.emd_loss(x, all_labels, TREE, sample_weight=all_weights, **options)

    comp, ref = whole(jnp.concatenate([x, unread])), loss(x)
    if reduction == "none":
        np.testing.assert_array_equal(comp[4:], 0.0)
        comp = comp[:4]
    assert_close(comp, ref)
    comp = jax.grad(lambda x: whole(x).sum())(jnp.concatenate([x, unread]))
    np.testing.assert_array_equal(comp[4:], 0.0)
    assert_close(comp[:4], jax.grad(lambda x: loss(x).sum())(x), 1.0)
    comp = jax.jit(jax.hessian(lambda x: whole(x).sum()))(jnp.concatenate([x, unread]))
    np.testing.assert_array_equal(comp[4:], 0.0)
    np.testing.assert_array_equal(comp[:, :, 4:], 0.0)
    assert_close(comp[:4, :, :4], jax.hessian(lambda x: loss(x).sum())(x), 1.0)


def test_emd_loss_does_not_read_histograms_of_weight_0(way, rng):
    x, target = _case(rng, "histograms", {})
    weights = jnp.array([1.0, 0.0, 2.0, 0.5])
    options = {"sample_weight": weights, "normalize": "l1"}
    x = jnp.exp(x)
    ref = jax.value_and_grad(lambda x: adapter.emd_loss(x, target, TREE, **options))(x)
    x, target = x.at[1].set(-1.0), target.at[1].set(jnp.nan)
    comp = jax.value_and_grad(lambda x: adapter.emd_loss(x, target, TREE, **options))(x)
    assert_close(comp[0], ref[0])
    assert_close(comp[1], ref[1], 1.0)


@pytest.mark.parametrize(
    ("dtype", "weight"),
    [("float32", 3e38), ("float64", 1e300), ("float64", 1.7e308), ("float64", 1e-300)],
)
@pytest.mark.parametrize("single", [False, True])
def test_emd_loss_mean_accepts_weights_of_any_size(dtype, weight, single, rng):
    x, labels = _case(rng, "labels", {})
    x = x.astype("float32" if single else "float64")
    weights = jnp.array([1.0, 0.25, 0.0, 0.5], dtype)

    def loss(weights):
        return adapter.emd_loss(x, labels, TREE, sample_weight=weights)

    for function in (loss, jax.jit(loss)):
        comp = function(weights * weight)
        assert comp.dtype == x.dtype
        np.testing.assert_allclose(comp, loss(weights), 1e-6 if single else 1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_emd_loss_is_differentiable_in_weights(reduction, rng):
    x, labels = _case(rng, "labels", {})
    losses = adapter.emd_loss(x, labels, TREE, reduction="none")
    weights = jnp.array([1.0, 3.0, 0.5, 2.0])

    def loss(weights):
        return adapter.emd_loss(x, labels, TREE, sample_weight=weights, reduction=reduction)

    mean = (losses * weights).sum() / weights.sum()
    ref = losses if reduction == "sum" else (losses - mean) / weights.sum()
    assert_close(jax.grad(loss)(weights), ref, 1.0)
    assert jax.grad(loss)(weights.at[1].set(0.0))[1] == 0.0


def test_emd_loss_and_emd_ignore_error_state_of_numpy(way):
    chain = fastemd.Chain(3)
    x = jnp.array([[0.0, -800.0, 300.0], [-jnp.inf, 0.0, 1.0]], "float32")
    p, q = jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], "float32")

    def run():
        loss = jax.value_and_grad(lambda x: adapter.emd_loss(x, [0, 1], chain, 3.7, **options))
        pairs = jax.value_and_grad(lambda p: adapter.emd(p, q, chain, 3.7, validate=False))
        return loss(x), pairs(p * 1e-30), pairs(p * jnp.nan), pairs(p * 1e30)

    options = {"cross_entropy": 1e30, "sample_weight": [1e300, 1e-300]}
    ref = run()
    with np.errstate(all="raise"):
        jax.clear_caches()
        comp = run()
    jax.tree.map(np.testing.assert_array_equal, comp, ref)


def test_emd_loss_and_emd_ignore_error_state_of_numpy_without_x64():
    """NumPy would raise in the cast from float64 to float32."""
    _run_on_devices(
        1,
        """
import numpy as np, fastemd, fastemd.jax
chain = fastemd.Chain(3)
p, q = np.array([1.0, 1e-60, 1e-300]), np.array([0.0, 1.0, 0.0])
with np.errstate(all="raise"):
    assert fastemd.jax.emd(p, q, chain, 2) == 1.0
    assert fastemd.jax.emd_loss(p[None], [1], chain, sample_weight=[1e-300]) == 0.0
    assert fastemd.jax.emd_loss(p, p, chain, normalize=None) == 0.0
""",
    )
