"""Tensors, references and comparisons of the tests of fastemd.torch."""

import pytest

import fastemd
from tests.support import operations
from tests.support.device import DEVICE, SIMULATED
from tests.support.frameworks import needed

torch = needed("torch")
TORCH_DEVICE = "cpu" if SIMULATED or DEVICE == "cpu" else "cuda"
TREE = fastemd.Tree.from_parents([-1, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0.5, 1, 3, 1, 1])
each_compiler = pytest.mark.parametrize("compiler", ["eager", "aot_eager", "inductor"])


def as_tensor(data, dtype=None):
    """Return a tensor on the device of the tests."""
    return torch.tensor(data, dtype=dtype, device=TORCH_DEVICE)


def as_numpy(x):
    return x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else x


def assert_close(comp, ref, *tolerances, **keywords):
    operations.assert_close(as_numpy(comp), as_numpy(ref), *tolerances, **keywords)


def random_logits(rng, shape=(4,), n=TREE.n_bins):
    tensors = as_tensor(rng.standard_normal((2, *shape, n)))
    return [tensor.requires_grad_() for tensor in tensors]


def synchronized(result):
    fastemd.synchronize()  # on a device, calls are asynchronous
    return result


def ancestors(dtype):
    matrix = torch.zeros(TREE.n_nodes - 1, TREE.n_bins, dtype=dtype, device=TORCH_DEVICE)
    for column, node in enumerate(TREE.bin_node.tolist()):
        while TREE.parent[node] >= 0:
            matrix[node, column] = 1.0
            node = TREE.parent[node]
    return matrix
