"""fastemd.jax.emd: derivatives, transforms, types, errors."""

import numpy as np
import pytest

import fastemd
from tests.support.frameworks import needed
from tests.support.jax_cases import TREE, dense_emd_of_softmax, emd_of_softmax, random_logits
from tests.support.operations import assert_close

jax = needed("jax")
jax.config.update("jax_enable_x64", True)
jnp = jax.numpy
adapter = needed("fastemd.jax")
programs = needed("fastemd.jax.programs")
each_rho = pytest.mark.parametrize("rho", [1, 1.5, 2, 3.7])


@each_rho
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_emd_agrees_with_numpy_function(rho, dtype, ffi_or_callback, rng):
    p, q = rng.dirichlet(np.ones(TREE.n_bins), (2, 5)).astype(dtype)
    value, grad = fastemd.emd_value_and_grad(p, q, TREE, rho)
    comp = adapter.emd(p, q, TREE, rho)
    assert comp.dtype == dtype
    np.testing.assert_array_equal(comp, value)
    comp = jax.jit(jax.grad(lambda p: adapter.emd(p, q, TREE, rho).sum()))(p)
    np.testing.assert_array_equal(comp, grad)


@each_rho
def test_emd_derivatives_agree_with_numpy_functions(rho, ffi_or_callback, rng):
    x, y = random_logits(rng)
    order = 1 if rho == 1 else 2
    check_grads = needed("jax.test_util").check_grads
    check_grads(lambda x, y: emd_of_softmax(x, y, rho), (x, y), order=order)
    check_grads(jax.jit(lambda x, y: emd_of_softmax(x, y, rho)), (x, y), order=order)


@each_rho
def test_emd_supports_jit_grad_and_vmap(rho, ffi_or_callback, rng):
    x, y = random_logits(rng)
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
        comp = transform(lambda x, y: emd_of_softmax(x, y, rho))(x, y)
        ref = transform(lambda x, y: dense_emd_of_softmax(x, y, rho))(x, y)
        for ours, wanted in zip(*map(jax.tree.leaves, (comp, ref)), strict=True):
            assert_close(ours, wanted, 1.0, 1e-11)


def test_emd_broadcasts_and_sums_gradients(rng):
    x, y = random_logits(rng, (3,))
    comp = jax.grad(lambda x, y: emd_of_softmax(x[:, None], y).sum() ** 2, (0, 1))(x, y)
    ref = jax.grad(lambda x, y: dense_emd_of_softmax(x[:, None], y).sum() ** 2, (0, 1))(x, y)
    for ours, wanted in zip(comp, ref, strict=True):
        assert_close(ours, wanted, 1.0)


@pytest.mark.parametrize("rho", [1.5, 2])
@pytest.mark.parametrize("wrapper", ["map", "checkpoint", "cond"])
def test_emd_is_differentiable_twice_in_control_flow(wrapper, rho, rng):
    x, y = random_logits(rng)

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
        assert_close(
            transform(whole(emd_of_softmax))(x),
            transform(whole(dense_emd_of_softmax))(x),
            1.0,
            1e-11,
        )


def test_emd_third_derivative_exists_at_rho_2_only(rng):
    x, y = random_logits(rng, ())

    def third(loss, rho):
        return jax.grad(jax.grad(jax.grad(lambda t: loss(t * x, y, rho))))(1.0)

    assert_close(third(emd_of_softmax, 2), third(dense_emd_of_softmax, 2), 1.0, 1e-11)
    message = r"third derivatives of emd with rho=1.5"
    with pytest.raises(NotImplementedError, match=message):
        third(emd_of_softmax, 1.5)
    for f in (emd_of_softmax, jax.jit(emd_of_softmax)):
        with pytest.raises(NotImplementedError, match=message):
            jax.jacfwd(jax.hessian(f))(x, y)


def test_emd_gradient_takes_one_pass(rng):
    """A gradient computes no Hessian, and the value needs no second pass."""
    x, y = random_logits(rng)
    text = str(jax.make_jaxpr(jax.value_and_grad(lambda x: emd_of_softmax(x, y).sum()))(x))
    assert text.count("ffi_call") == 1


def test_emd_returns_type_of_inputs(ffi_or_callback):
    p = jnp.full(TREE.n_bins, 1 / TREE.n_bins)
    for input_type, dtype in (("float16", "float32"), ("bfloat16", "float32"), ("int8", "float64")):
        q = jnp.eye(TREE.n_bins, dtype=input_type)[0]
        assert adapter.emd(q, q, TREE, 2).dtype == dtype
        assert adapter.emd(p.astype("float32"), q, TREE, 2).dtype == "float32"
    grad = jax.grad(lambda q: adapter.emd(q, p, TREE, 2))(jnp.eye(TREE.n_bins, dtype="bfloat16")[0])
    assert grad.dtype == "bfloat16"


def test_emd_accepts_empty_batch(ffi_or_callback):
    nothing = jnp.zeros((0, TREE.n_bins))
    assert adapter.emd(nothing, nothing, TREE, 2).shape == (0,)
    grad = jax.grad(lambda p: adapter.emd(p, nothing, TREE, 2).sum())(nothing)
    assert grad.shape == nothing.shape


def test_emd_rejects_invalid_input(ffi_or_callback):
    p = jnp.full((2, TREE.n_bins), 1 / TREE.n_bins)
    valid = {"p": p, "q": p, "space": TREE, "rho": 2}
    for invalid, wrong, message in (
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
            call = transform(lambda invalid=invalid: adapter.emd(**{**valid, **invalid}))
            with pytest.raises(wrong, match=message):
                np.asarray(call())
    assert np.isnan(adapter.emd(p * np.nan, p, TREE, 2, validate=False)).all()


def test_emd_names_invalid_row_under_jit(ffi_or_callback):
    p = jnp.full((2, TREE.n_bins), 1 / TREE.n_bins)
    call = jax.jit(lambda p, q: adapter.emd(p, q, TREE, 2))
    with pytest.raises(Exception, match="q: row 1 has a negative mass"):  # of a type of JAX
        call(p, p.at[1].multiply(-1)).block_until_ready()
    np.testing.assert_array_equal(call(p, p), 0.0)  # and continues
