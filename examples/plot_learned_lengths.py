r"""
Learning the lengths of edges
=============================

The shape of a tree is known, but not the lengths of its edges. Pairs of histograms and their
distances determine the lengths: :math:`EMD = \sum_i w_i |\phi_i|` is linear in them. Gradient
descent in PyTorch recovers them from a hundred pairs.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

import fastemd
import fastemd.torch

# %%
# A tree with three families of leaves. Every edge has another length. On the tree that is learned
# all lengths are 1.

families = {
    "pets": ["cat", "dog", "fish"],
    "birds": ["owl", "hen"],
    "insects": ["ant", "bee", "fly"],
}
paths = [(family, leaf) for family, leaves in families.items() for leaf in leaves]
tree = fastemd.Tree.from_paths(paths)
rng = np.random.default_rng(0)
true = rng.uniform(0.2, 3.0, tree.n_nodes - 1)
p, q = torch.tensor(rng.dirichlet(np.full(tree.n_bins, 0.3), (2, 100)))

# %%
# With ``learn_lengths=True`` the lengths are a parameter, ``length``, that torch differentiates and
# stores in the ``state_dict``. For ``normalize=None`` and ``reduction="none"``, the loss is the EMD
# of every pair of rows. We copy the true lengths into a second module to compute the distances.


def distance():
    """Return a module for the EMD between rows of histograms."""
    options = {"normalize": None, "reduction": "none", "learn_lengths": True}
    return fastemd.torch.EMDLoss(tree, rho=1, **options).double()


unknown, learned = distance(), distance()
unknown.load_state_dict({"length": torch.tensor(true)})
distances = unknown(p, q).detach()

# %%
# We minimise the squared errors of the distances. The EMD alone would be no objective: it is
# smallest, 0, if all lengths are 0. It needs a term that holds the lengths, here the distances.

optimizer = torch.optim.Adam(learned.parameters(), lr=0.1)
lengths, errors = [], []
for _ in range(600):
    error = (learned(p, q) - distances).square().mean()
    lengths.append(learned.length.detach().abs().numpy().copy())
    errors.append(error.item())
    optimizer.zero_grad()
    error.backward()
    optimizer.step()

# sphinx_gallery_thumbnail_path = "images/thumbs/learned_lengths.png"
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.5), layout="constrained")
colors = plt.cm.viridis(np.linspace(0, 0.95, len(true)))
for values, value, color in zip(np.transpose(lengths), true, colors, strict=True):
    left.plot(values, color=color)
    left.plot(len(values) + 15, value, "o", color=color)
left.set(xlabel="step", ylabel="length", title="lengths in training; dots: true lengths")
right.semilogy(errors, color="black")
right.set(xlabel="step", title="mean squared error of the distances")
plt.show()

# %%
# All lengths are recovered:

print(f"largest error of a length: {np.abs(lengths[-1] - true).max():.1e}")

# %%
# Distances do not determine all lengths. If a node has one child and no bin, the same mass
# flows through the edges above and below it. If the root has two children and no bin, what leaves
# one enters the other. In both cases only the sum of the two lengths is determined.
