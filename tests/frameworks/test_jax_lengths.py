"""fastemd.jax.emd_loss with learned lengths: gradients, transforms, errors."""

import numpy as np
import pytest

import fastemd
from tests.support import naive
from tests.support.frameworks import needed
from tests.support.jax_cases import TREE, run_on_devices
from tests.support.operations import assert_close

jax = needed("jax")
jax.config.update("jax_enable_x64", True)
jnp = jax.numpy
adapter = needed("fastemd.jax")
programs = needed("fastemd.jax.programs")

# Nodes 1, 4 and 6 have one child; bins are on inner nodes and on the root; two edges have length 0.
UNARY = fastemd.Tree.from_parents(
    [-1, 0, 1, 1, 0, 4, 5, 6, 5], [0, 1, 0, 0.5, 2, 1.5, 1, 0, 3], bins=[3, 1, 7, 0, 8, 6]
)
SPACES = {
    "unary tree": UNARY,
    "chain": fastemd.Chain(6, [1, 2, 0.5, 3, 0]),
    "one bin": fastemd.Chain(1),
}
OPTIONS = [
    {},
    {"rho": 1, "class_weight": True, "ignore_index": 1},
    {"rho": 1.5, "cross_entropy": 0.5, "class_weight": True, "label_smoothing": 0.2},
    {"normalize": "l1", "rho": 1.5, "root": True, "class_weight": True, "label_smoothing": 0.2},
    {"normalize": None, "rho": 3.7},
]
each_space = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
each_option = pytest.mark.parametrize("options", OPTIONS, ids=str)
each_target = pytest.mark.parametrize("kind", ["labels", "histograms"])


def _case(rng, kind, options, space=TREE, n_rows=6):
    x, y = jnp.array(rng.standard_normal((2, n_rows, space.n_bins)))
    if options.get("normalize", "softmax") != "softmax":
        x = jax.nn.softmax(x) * (3 if options["normalize"] else 1)
    return x, y.argmax(-1) if kind == "labels" else jax.nn.softmax(y)


def _lengths(space):
    return jnp.array(space.weight[:-1])


def _loss_of(target, space, **options):
    """Return the loss as a function of x and the lengths."""
    return lambda x, length, **more: adapter.emd_loss(
        x, target, space, length=length, **options, **more
    )


def _dense(
    x,
    target,
    length,
    g,
    rho,
    normalize="softmax",
    cross_entropy=0.0,
    class_weight=None,
    label_smoothing=0.0,
    root=False,
    ignore_index=None,
):
    """Return the mean loss in plain JAX."""
    n_bins, weight = x.shape[-1], jnp.ones(x.shape[:-1])
    of_class = jnp.ones(n_bins) if class_weight is None else jnp.array(class_weight)
    if jnp.issubdtype(target.dtype, jnp.integer):
        weight = weight * of_class[target] * (target != ignore_index)
        kept = target != ignore_index
        target = jax.nn.one_hot(target, n_bins)
    else:
        kept = weight
    q = (1 - label_smoothing) * target + label_smoothing / n_bins
    p = {"softmax": jax.nn.softmax, "l1": lambda x: x / x.sum(-1, keepdims=True), None: jnp.array}
    p = p[normalize](x)
    rows = (length * jnp.sign(length) * jnp.abs((p - q) @ naive.ancestors(g).T) ** rho).sum(-1)
    rows = (q @ of_class) * (rows ** (1 / rho) if root else rows)
    if cross_entropy:
        rows = rows - cross_entropy * (of_class * q * jax.nn.log_softmax(x)).sum(-1)
    return (kept * rows).sum() / weight.sum()


@each_space
@each_option
@each_target
def test_emd_loss_of_lengths_agrees_with_autodiff_of_dense_formula(options, kind, space, rng):
    options = {"rho": 2, **options}
    if kind == "histograms":
        options.pop("ignore_index", None)
    elif space.n_bins == 1 and "ignore_index" in options:
        options["ignore_index"] = -1
    if "class_weight" in options:
        options["class_weight"] = [0.5 * (k % 4) for k in range(1, space.n_bins + 1)]
    x, target = _case(rng, kind, options, space)
    loss, length = _loss_of(target, space, **options), _lengths(space)
    assert_close(loss(x, length), adapter.emd_loss(x, target, space, **options), 1.0)
    length = length * jnp.array(rng.choice([-2.0, 0.5], length.shape))
    ref, grads = jax.value_and_grad(_dense, (0, 2))(
        x, target, length, naive.ground(space), **options
    )
    if options.get("normalize", "") is None:
        grads = grads[0] - grads[0].mean(-1, keepdims=True), grads[1]
    comp = jax.jit(jax.value_and_grad(loss, (0, 1)))(x, length)
    jax.tree.map(lambda a, b: assert_close(a, b, 1.0), comp, (ref, grads))


@each_target
def test_emd_loss_of_lengths_inside_and_outside_of_jit(kind, ffi_or_callback, rng):
    x, target = _case(rng, kind, {})
    loss, length = _loss_of(target, TREE, rho=1.5, root=True), _lengths(TREE) + 0.5
    ref = jax.value_and_grad(_dense, (0, 2))(x, target, length, naive.ground(TREE), 1.5, root=True)
    for transform in (lambda f: f, jax.jit):
        assert_close(transform(loss)(x, length), ref[0])
        comp = transform(jax.value_and_grad(loss, (0, 1)))(x, length)
        jax.tree.map(lambda a, b: assert_close(a, b, 1.0), comp, ref)
        assert_close(transform(jax.grad(loss, 1))(x, length), ref[1][1], 1.0)


def test_emd_loss_of_lengths_has_no_gradient_at_zero(rng):
    x, target = _case(rng, "labels", {}, UNARY)
    grad = jax.grad(_loss_of(target, UNARY), 1)(x, _lengths(UNARY))
    np.testing.assert_array_equal(grad == 0.0, _lengths(UNARY) == 0.0)


@each_target
@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("options", [{}, {"root": True, "label_smoothing": 0.1}], ids=str)
def test_emd_loss_of_lengths_does_not_read_ignored_rows(options, kind, value, rng):
    x, target = _case(rng, kind, {})
    keep, length = np.array([True, False, True, True, False, True]), _lengths(TREE)
    weight = jnp.array(rng.random(6) * keep)
    loss = _loss_of(target[keep], TREE, sample_weight=weight[keep], **options)
    ref = jax.value_and_grad(loss, (0, 1))(x[keep], length)
    x = jnp.where(keep[:, None], x, value)
    invalid = (keep, target, 77) if kind == "labels" else (keep[:, None], target, value)
    loss = _loss_of(jnp.where(*invalid), TREE, sample_weight=weight, **options)
    comp = jax.value_and_grad(loss, (0, 1))(x, length)
    assert_close(comp[0], ref[0], 1.0)
    assert_close(comp[1][0][keep], ref[1][0], 1.0)
    assert_close(comp[1][1], ref[1][1], 1.0)
    np.testing.assert_array_equal(comp[1][0][~keep], 0.0)


@pytest.mark.parametrize("axis", [1, -2])
def test_emd_loss_of_lengths_axis_equals_last_axis(axis, rng):
    x, target = _case(rng, "histograms", {})
    x, target = (jnp.stack([array, array[::-1]]) for array in (x, target))
    moved = (jnp.moveaxis(array, -1, 1) for array in (x, target))
    options = {"rho": 1.5, "label_smoothing": 0.2, "root": True}
    at_axis, *moved = moved
    comp = jax.grad(_loss_of(*moved, TREE, axis=axis, **options), (0, 1))(at_axis, _lengths(TREE))
    ref = jax.grad(_loss_of(target, TREE, **options), (0, 1))(x, _lengths(TREE))
    assert_close(jnp.moveaxis(comp[0], 1, -1), ref[0])
    assert_close(comp[1], ref[1])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "int32"])
def test_emd_loss_of_lengths_of_other_types(dtype, rng):
    x, target = _case(rng, "labels", {})
    length = jnp.array([1, 2, 0, 3, -1, 2, 1]).astype(dtype)
    loss, x = _loss_of(target, TREE, rho=1.5), x.astype("float32")
    ref = loss(x, length.astype("float64"))
    assert loss(x, length).dtype == ref.dtype == "float32"
    np.testing.assert_allclose(loss(x, length), ref, 1e-6)
    if dtype != "int32":
        comp = jax.grad(loss, 1)(x, length)
        assert comp.dtype == dtype
        ref = jax.grad(loss, 1)(x, length.astype("float64"))
        np.testing.assert_allclose(comp.astype(float), ref, 1e-2 if comp.itemsize == 2 else 1e-6)
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(loss(x, list(map(int, length))), loss(x, length))


def test_emd_loss_of_lengths_under_vmap_and_jacrev(ffi_or_callback, rng):
    x, target = _case(rng, "labels", {})
    length = _lengths(TREE)
    several = jnp.array(rng.random((3, TREE.n_nodes - 1)))

    def rows(x, length):
        return adapter.emd_loss(x, target, TREE, length=length, reduction="none")

    def row(x, target, length):
        return adapter.emd_loss(x, target, TREE, length=length)

    jacobian = jnp.stack([jax.grad(row, 2)(*one, length) for one in zip(x, target, strict=True)])
    assert_close(jax.jacrev(rows, 1)(x, length), jacobian)
    for transform in (lambda f: f, jax.jit):
        mapped = transform(jax.vmap(rows, (None, 0)))
        assert_close(mapped(x, several), jnp.stack([rows(x, one) for one in several]))
        assert_close(transform(jax.vmap(row, (0, 0, None)))(x, target, length), rows(x, length))
        mapped = transform(jax.vmap(jax.grad(row, 2), (0, 0, None)))
        assert_close(mapped(x, target, length), jacobian)


@pytest.mark.parametrize("compiled", [False, True])
def test_emd_loss_of_lengths_refuses_other_derivatives(compiled, rng):
    x, target = _case(rng, "labels", {})
    loss, transform = _loss_of(target, TREE), jax.jit if compiled else lambda f: f
    message = "^length: second derivatives are not available .* use a loss without length"
    for first, second in ((0, 0), (0, 1), (1, 0), (1, 1)):
        for derivative in (jax.jacrev, jax.jacfwd):
            with pytest.raises(NotImplementedError, match=message):
                transform(derivative(jax.grad(loss, first), second))(x, _lengths(TREE))
    weights, at = jnp.ones(6), (x, _lengths(TREE))
    for first in (0, 1):
        grad = jax.grad(lambda *at, weight: loss(*at, sample_weight=weight), first)
        with pytest.raises(NotImplementedError, match=message):
            transform(jax.jacrev(lambda w, grad=grad: grad(*at, weight=w)))(weights)
    with pytest.raises(TypeError, match="forward-mode"):
        transform(lambda *at: jax.jvp(loss, at, at))(*at)


@pytest.mark.parametrize("compiled", [False, True])
def test_emd_loss_of_lengths_rejects_invalid_input(compiled, ffi_or_callback, rng):
    x, target = _case(rng, "labels", {})
    length, transform = _lengths(TREE), jax.jit if compiled else lambda f: f
    for wrong, error, message in (
        (length[1:], ValueError, r"^length: expected one number for each of the 7 edges .* \(6,\)"),
        (length[None], ValueError, r"^length: expected .* got an array of shape \(1, 7\)"),
        (length * 1j, TypeError, "^length: expected an array of real numbers"),
    ):
        with pytest.raises(error, match=message):
            transform(_loss_of(target, TREE))(x, wrong)
    # Also where only the derivative in the lengths is needed.
    for function in (_loss_of(target, TREE), jax.grad(_loss_of(target, TREE), 1)):
        with pytest.raises(Exception, match="x: row 0 has a logit nan at bin 0"):
            jax.block_until_ready(transform(function)(x * jnp.nan, length))


@pytest.mark.parametrize("known", [True, False])
def test_emd_loss_of_lengths_with_other_default_device(known, monkeypatch, rng):
    """The branches of other devices go through the host."""
    monkeypatch.setattr(programs, "only_the_cpu", lambda: False)
    monkeypatch.setattr(programs, "KNOWN", known)
    jax.clear_caches()
    x, target = _case(rng, "labels", {})
    function = jax.grad(_loss_of(target, TREE), 1)
    ref = fastemd.emd_length_grad(
        np.array(jax.nn.softmax(x)), np.eye(TREE.n_bins)[target], TREE, 2, upstream=1 / 6
    )
    ref = np.where(TREE.weight[:-1] > 0, ref, 0)
    for transform in (lambda f: f, jax.jit):
        assert_close(transform(function)(x, _lengths(TREE)), ref)
    text = str(jax.make_jaxpr(function)(x, _lengths(TREE)))
    assert text.count("ffi_call[") == (2 if known else 0)
    assert text.count("pure_callback[") == 2
    jax.clear_caches()


def test_emd_loss_of_lengths_computes_on_host_for_cuda(monkeypatch, rng):
    def on_cuda(*arguments, cpu, cuda, default):
        return cuda(*arguments)

    monkeypatch.setattr(programs, "only_the_cpu", lambda: False)
    monkeypatch.setattr(jax.lax, "platform_dependent", on_cuda)
    jax.clear_caches()
    x, target = _case(rng, "labels", {})
    text = str(jax.make_jaxpr(jax.grad(_loss_of(target, TREE), 1))(x, _lengths(TREE)))
    assert text.count("pure_callback[") == 2
    assert "ffi_call" not in text
    jax.clear_caches()


def test_emd_loss_of_lengths_on_several_devices():
    """The derivative in the lengths is the sum over all devices."""
    run_on_devices(
        2,
        """
import jax, numpy as np, fastemd, fastemd.jax
from jax.sharding import PartitionSpec as P

chain, labels = fastemd.Chain(6), np.array([0, 1, 2, 3])
x = np.random.default_rng(0).standard_normal((4, 6)).astype("f")
length = np.arange(1, 6).astype("f")

def loss(x, length, target):
    options = dict(cross_entropy=0.5, reduction="none")
    return fastemd.jax.emd_loss(x, target, chain, 1.5, length=length, **options)

def grad(function):
    return jax.grad(lambda *at: (function(*at) ** 2).sum(), (0, 1))

def agree(comp, ref):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), comp, ref)

value, grads = loss(x, length, labels), grad(loss)(x, length, labels)
mesh, specs = jax.sharding.Mesh(np.array(jax.devices()), "b"), (P("b"), P(), P("b"))
spread = jax.jit(jax.shard_map(loss, mesh=mesh, in_specs=specs, out_specs=P("b")))
agree(spread(x, length, labels), value)
agree(grad(spread)(x, length, labels), grads)
inside = jax.shard_map(grad(loss), mesh=mesh, in_specs=specs, out_specs=(P("b"), P()))
agree(jax.jit(inside)(x, length, labels), grads)
jax.set_mesh(jax.make_mesh((2,), ("b",)))
for spec in (P("b"), P(), P(None, "b")):
    at = jax.device_put(x, spec), length, labels
    for transform in (lambda f: f, jax.jit):
        agree(transform(loss)(*at), value)
        agree(transform(grad(loss))(*at), grads)
""",
    )


def test_emd_loss_of_lengths_recovers_lengths(rng):
    """Gradient descent on squared errors; the program is compiled once."""
    chain, true = fastemd.Chain(4), jnp.array([0.5, 2.0, 1.0])
    p, q = jnp.array(rng.dirichlet(np.ones(4), (2, 30)))

    def distances(length):
        options = {"normalize": None, "reduction": "none"}
        return adapter.emd_loss(p, q, chain, 1, length=length, **options)

    goal, length = distances(true), jnp.ones(3)
    step = jax.jit(lambda length: length - 2 * jax.grad(error)(length))

    def error(length):
        return ((distances(length) - goal) ** 2).mean()

    for _ in range(300):
        length = step(length)
    np.testing.assert_allclose(length, true, 1e-3)
    assert step._cache_size() == 1
