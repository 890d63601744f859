"""Arguments of the losses, and their results as arrays."""

import numpy as np

import fastemd

NORMALIZE = ["softmax", "l1", None]


def random_inputs(rng, shape, normalize="softmax", labelled=True, dtype=np.float64):
    x = rng.standard_normal(shape)
    if normalize != "softmax":
        x = np.abs(x) + 0.01
    if normalize is None:
        x /= x.sum(-1, keepdims=True)
    target = rng.integers(0, shape[-1], shape[:-1])
    if not labelled:
        target = rng.random(shape) * (rng.random(shape) < 0.7) + 1e-3 * np.eye(shape[-1])[target]
        target /= target.sum(-1, keepdims=True)
    return x.astype(dtype), target


def loss_rows(backend, x, target, case, rho=2, **keywords):
    return backend.emd_loss(x, target, case.space, rho, reduction="none", **keywords)


def loss_and_gradient(backend, x, target, space):
    loss, grad = backend.emd_loss(x, target, space, cross_entropy=0.5, reduction="none")
    return np.concatenate([np.asarray(loss)[..., None], grad], axis=-1)


def loss_hessian_diag(backend, x, target, space):
    return backend.emd_loss_hessian_diag(x, target, space, cross_entropy=0.5, reduction="none")


def loss_hvp(backend, x, target, space):
    return backend.emd_loss_hvp(x, target, x, space, cross_entropy=0.5, reduction="none")


CHAIN = fastemd.Chain(3)
ZEROS = np.zeros((4, 3))


def with_entry(entry, value, of=ZEROS):
    array = np.array(of)
    array[entry] = value
    return array


THIRDS = np.full((4, 3), 1 / 3)
FLAT = fastemd.Chain(2, gaps=[0])  # only the cross entropy remains
