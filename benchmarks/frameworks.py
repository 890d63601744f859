"""Calls and training in the frameworks, with the losses commonly used there as baselines.

Every function returns runs by name, to be interleaved, or raises NotImplementedError if the
framework is not installed.
"""

import numpy as np

import fastemd
from benchmarks.common import histograms, logits, peak_growth
from fastemd.backends import BACKENDS
from fastemd.demo.baselines import ancestor_matrix, installed


def small_calls():
    """Return value and gradient of eight rows of ten bins, where overhead is all of the time."""
    torch, jax = installed("torch"), installed("jax")
    import fastemd.jax
    import fastemd.torch

    chain = fastemd.Chain(10)
    p, q = (histograms((8, 10), np.float32, seed) for seed in (0, 1))
    tensors = torch.from_numpy(p), torch.from_numpy(q)
    arrays = jax.numpy.asarray(p), jax.numpy.asarray(q)
    sum_of_products = jax.jit(lambda p, q: (p * q).sum(-1))
    jitted = jax.jit(lambda p, q: fastemd.jax.emd(p, q, chain, 2))
    gradient = jax.jit(jax.grad(lambda p, q: fastemd.jax.emd(p, q, chain, 2).sum()))
    leaf = tensors[0].clone().requires_grad_()
    result = BACKENDS["jax"].cpu.empty(p.shape, p.dtype)

    def backward():
        leaf.grad = None
        fastemd.torch.emd(leaf, tensors[1], chain, 2).sum().backward()

    return {
        "emd_grad, NumPy": lambda: fastemd.emd_grad(p, q, chain, 2),
        "emd_grad, PyTorch": lambda: fastemd.emd_grad(*tensors, chain, 2),
        "emd_grad, JAX": lambda: fastemd.emd_grad(*arrays, chain, 2),
        "jax.dlpack.from_dlpack of a result": lambda: jax.dlpack.from_dlpack(result),
        "fastemd.torch.emd": lambda: fastemd.torch.emd(*tensors, chain, 2),
        "fastemd.torch.emd, forward and backward": backward,
        "jit of (p * q).sum(-1)": lambda: sum_of_products(*arrays).block_until_ready(),
        "jit of fastemd.jax.emd": lambda: jitted(*arrays).block_until_ready(),
        "jit of its gradient": lambda: gradient(*arrays).block_until_ready(),
    }


def backward_of(loss, x, labels):
    """Return a run of a loss in torch, forward and backward to the logits."""
    torch = installed("torch")
    x, labels = torch.from_numpy(x).requires_grad_(), torch.from_numpy(labels)

    def run():
        x.grad = None
        loss(x, labels).backward()

    return run


def cross_entropy(x, labels):
    """Return the run that losses are compared with."""
    return backward_of(installed("torch").nn.functional.cross_entropy, x, labels)


def training(space, batch, dtype):
    """Return runs of losses in torch with labels, forward and backward to the logits."""
    torch = installed("torch")
    from fastemd.torch import EMDLoss

    problem = logits((batch, space.n_bins), dtype)
    ancestors, length = (torch.from_numpy(a.astype(dtype)) for a in ancestor_matrix(space))
    descendants = ancestors.T.contiguous()

    def dense(x, target):
        """Compute EMD^2 by a product with the matrix of ancestors."""
        p = x.softmax(-1)
        flow = (p - torch.nn.functional.one_hot(target, p.shape[-1]).to(p.dtype)) @ descendants
        return (length * flow.square()).sum(-1).mean()

    return {
        "cross_entropy": cross_entropy(*problem),
        "EMDLoss": backward_of(EMDLoss(space), *problem),
        "EMDLoss + CE": backward_of(EMDLoss(space, cross_entropy=1.0), *problem),
        "dense EMD^2": backward_of(dense, *problem),
    }


def binned_regression(n_rows, n_bins, device="cpu"):
    """Return runs of the CRPS of unequal bins in float32, with labels, forward and backward."""
    torch = installed("torch")
    from fastemd.torch import EMDLoss

    edges = np.append(0.0, np.random.default_rng(0).exponential(size=n_bins).cumsum())
    chain = fastemd.Chain.from_edges(edges)
    gaps = torch.from_numpy(np.append(chain.weight[:-1], 0.0)).to(device, torch.float32)
    bins = torch.arange(n_bins, device=device)
    x, labels = (torch.from_numpy(a).to(device) for a in logits((n_rows, n_bins), np.float32))
    x.requires_grad_()

    def plain(x, target):
        """Compute the CRPS by cumulative sums."""
        reached = (bins >= target[:, None]).to(x.dtype)
        return (gaps * (x.softmax(-1).cumsum(-1) - reached).square()).sum(-1).mean()

    def training_step(loss):
        def run():
            x.grad = None
            loss(x, labels).backward()
            if device == "cuda":
                torch.cuda.synchronize()

        return run

    losses = {"plain torch": plain, "EMDLoss": EMDLoss(chain).to(device)}
    return {name: training_step(loss) for name, loss in losses.items()}


def memory_of_binned_regression(name, n_rows, n_bins, device="cpu"):
    """Return by how many bytes a new process grows in runs of a loss, compiled before."""
    binned_regression(64, n_bins, device)[name]()
    return peak_growth(binned_regression(n_rows, n_bins, device)[name], device)
