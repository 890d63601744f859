"""fastemd.jax.emd_loss: derivatives, labels, weights, errors."""

import numpy as np
import pytest

import fastemd
from tests.support.frameworks import needed
from tests.support.jax_cases import TREE, ancestors, random_logits, run_on_devices
from tests.support.operations import assert_close

jax = needed("jax")
jax.config.update("jax_enable_x64", True)
jnp = jax.numpy
adapter = needed("fastemd.jax")
programs = needed("fastemd.jax.programs")


OPTIONS = [
    {},
    {"rho": 1.5, "cross_entropy": 0.5},
    {"cross_entropy": 1.0, "ignore_index": 3},
    {"normalize": "l1", "rho": 3.7},
    {"normalize": None, "rho": 1.5},
    {
        "rho": 1.5, "cross_entropy": 0.5, "class_weight": [1.0, 0.5, 2.0, 0.0, 3.0],
        "label_smoothing": 0.2, "root": True,
    },
]  # fmt: skip
each_option = pytest.mark.parametrize("options", OPTIONS, ids=str)
each_target = pytest.mark.parametrize("kind", ["labels", "histograms"])


def _case(rng, kind, options):
    x, y = random_logits(rng)
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
def test_emd_loss_agrees_with_numpy_function(
    options, kind, reduction, weighted, ffi_or_callback, rng
):
    x, target = _case(rng, kind, options)
    weight = jnp.array(rng.random(4)) if weighted else None
    options = {"reduction": reduction, "sample_weight": weight, **options}
    value, grad = fastemd.emd_loss(x, target, TREE, **options)
    assert_close(adapter.emd_loss(x, target, TREE, **options), value)
    comp = jax.jit(jax.grad(lambda x: adapter.emd_loss(x, target, TREE, **options).sum()))(x)
    assert_close(comp, grad)


@each_target
def test_emd_loss_axis_equals_last_axis(kind, ffi_or_callback, rng):
    x, y = random_logits(rng, (2, 3))
    target = y.argmax(-1) if kind == "labels" else jax.nn.softmax(y)
    moved = target if kind == "labels" else jnp.moveaxis(target, -1, 1)
    options = {"cross_entropy": 0.5, "class_weight": [1.0, 0.5, 2.0, 0.0, 3.0]}

    def at_axis(x, target=moved):
        return adapter.emd_loss(jnp.moveaxis(x, -1, 1), target, TREE, axis=1, **options)

    def at_end(x, target=target):
        return adapter.emd_loss(x, target, TREE, **options)

    for transform in (
        lambda f: f,
        lambda f: jax.jit(jax.grad(f)),
        lambda f: jax.grad(lambda x: jnp.square(jax.grad(f)(x)).sum()),
        lambda f: lambda x: jax.jvp(f, (x,), (x,))[1],
    ):
        assert_close(transform(at_axis)(x), transform(at_end)(x))
    mapped = jax.vmap(lambda x, t: adapter.emd_loss(x, t, TREE, axis=0))
    one_by_one = [adapter.emd_loss(a, b, TREE) for a, b in zip(x, target, strict=True)]
    assert_close(mapped(jnp.moveaxis(x, -1, 1), moved), jnp.stack(one_by_one))
    p, q = jax.nn.softmax(x), jax.nn.softmax(y)
    ours = adapter.emd(jnp.moveaxis(p, -1, 1), jnp.moveaxis(q, -1, 1), TREE, 2, axis=1)
    assert_close(ours, adapter.emd(p, q, TREE, 2))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": np.zeros((2, 5, 3))}, ValueError, "axis 1: pass axis=1"),
        ({"axis": 2}, ValueError, "axis: expected an axis of x, from -2 to 1, got 2"),
        ({"class_weight": [1, 2]}, ValueError, "class_weight: expected one number for each"),
        ({"class_weight": [1, 1, -1, 1, 1]}, ValueError, "class_weight: -1 at bin 2"),
        ({"label_smoothing": 2}, ValueError, "label_smoothing: expected a number from 0 to 1"),
    ],
)
def test_emd_loss_options_reject(arguments, error, message):
    arguments = {"x": np.zeros((2, 5)), "target": [0, 1], **arguments}
    with pytest.raises(error, match=message):
        adapter.emd_loss(space=TREE, **arguments)


def test_emd_loss_class_weight_is_constant(rng):
    x, target = _case(rng, "labels", {})
    with pytest.raises(TypeError, match="class_weight: it is being traced"):
        jax.jit(lambda w: adapter.emd_loss(x, target, TREE, class_weight=w))(jnp.ones(5))


@each_target
def test_emd_loss_derivatives_under_transforms(kind, ffi_or_callback, rng):
    x, target = _case(rng, kind, {})

    def loss(x, target):
        return adapter.emd_loss(x, target, TREE, 1.5, cross_entropy=0.5)

    def dense(x, target):
        soft = jax.nn.one_hot(target, TREE.n_bins) if kind == "labels" else target
        flow = (jax.nn.softmax(x) - soft) @ ancestors().T
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


def test_emd_loss_accepts_shapes_and_types(ffi_or_callback, rng):
    x, labels = _case(rng, "labels", {})
    pairs = jnp.broadcast_to(x[:, None], (4, *x.shape))
    whole = adapter.emd_loss(pairs, labels, TREE, reduction="none")
    assert whole.shape == (4, 4)
    assert_close(jnp.diag(whole), adapter.emd_loss(x, labels, TREE, reduction="none"))
    assert adapter.emd_loss(x.astype("bfloat16"), labels.astype("int8"), TREE).dtype == "float32"
    assert adapter.emd_loss(x[:0], labels[:0], TREE) == 0.0


def test_emd_loss_rejects_invalid_input(ffi_or_callback, rng):
    x, labels = _case(rng, "labels", {})
    valid = {"x": x, "target": labels, "space": TREE}
    for invalid, wrong, message in (
        ({"space": 3}, TypeError, "space: expected"),
        ({"rho": 0.5}, ValueError, "rho: expected"),
        ({"normalize": "max"}, ValueError, "normalize: expected"),
        ({"reduction": "min"}, ValueError, "reduction: expected"),
        ({"cross_entropy": -1}, ValueError, "cross_entropy: expected"),
        ({"cross_entropy": 1, "normalize": "l1"}, ValueError, "cross_entropy: .*='softmax' only"),
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
            call = transform(lambda invalid=invalid: adapter.emd_loss(**{**valid, **invalid}))
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
def test_emd_loss_accepts_labels_of_every_integer_type(dtype, ffi_or_callback, rng):
    x, labels = _case(rng, "labels", {})
    options = {"reduction": "none", "ignore_index": 3}
    comp = adapter.emd_loss(x, labels.astype(dtype), TREE, **options)
    np.testing.assert_array_equal(comp, adapter.emd_loss(x, labels, TREE, **options))
    limits = jnp.iinfo(dtype)
    for wrong in {int(limits.min), int(limits.max)} - {0}:
        with pytest.raises(Exception, match=f"target: row 1 is class {wrong};"):
            adapter.emd_loss(x, labels.astype(dtype).at[1].set(wrong), TREE, **options)


@pytest.mark.parametrize("offset", [-(2**40), -(2**32), 2**32, 2**40])
def test_emd_loss_labels_do_not_wrap(offset, ffi_or_callback, rng):
    x, labels = _case(rng, "labels", {})
    for function in (adapter.emd_loss, jax.jit(adapter.emd_loss, static_argnums=2)):
        with pytest.raises(Exception, match=f"target: row 0 is class {offset};"):
            jax.block_until_ready(function(x, labels + offset, TREE))


def test_emd_loss_labels_of_64_bits_do_not_wrap_without_x64():
    run_on_devices(
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
def test_emd_loss_compares_ignore_index_in_type_of_labels(
    dtype, ignored, labels, losses, ffi_or_callback
):
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
def test_emd_loss_does_not_read_ignored_rows(reduction, ffi_or_callback, rng):
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


def test_emd_loss_does_not_read_histograms_of_weight_0(ffi_or_callback, rng):
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


def test_emd_loss_and_emd_ignore_error_state_of_numpy(ffi_or_callback):
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
    run_on_devices(
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
