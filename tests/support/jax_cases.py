"""Arrays and references of the tests of fastemd.jax."""

import os
import subprocess
import sys

import numpy as np

import fastemd
from tests.support.frameworks import needed

jax = needed("jax")
jax.config.update("jax_enable_x64", True)
jnp = jax.numpy
adapter = needed("fastemd.jax")
TREE = fastemd.Tree.from_parents([-1, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0.5, 1, 3, 1, 1])


def random_logits(rng, shape=(4,)):
    return jnp.array(rng.standard_normal((2, *shape, TREE.n_bins)))


def emd_of_softmax(x, y, rho=1.5):
    return adapter.emd(jax.nn.softmax(x), jax.nn.softmax(y), TREE, rho)


def ancestors():
    matrix = np.zeros((TREE.n_nodes - 1, TREE.n_bins))
    for column, node in enumerate(TREE.bin_node.tolist()):
        while TREE.parent[node] >= 0:
            matrix[node, column] = 1.0
            node = TREE.parent[node]
    return matrix


def dense_emd_of_softmax(x, y, rho=1.5):
    """Compute the EMD in plain JAX."""
    flow = (jax.nn.softmax(x) - jax.nn.softmax(y)) @ ancestors().T
    return (TREE.weight[:-1] * jnp.abs(flow) ** rho).sum(-1)


def run_on_devices(count, code):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}"
    environment = {**os.environ, "XLA_FLAGS": flags}
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, env=environment)
