"""
What a loss does to a histogram on a tree
=========================================

Gradient descent moves the mass of one prediction to the true class. Under cross entropy (CE) and
the squared error, all wrong classes lose about the same share of their mass. The EMD takes it from
far classes first, and near ones gain for a while. The figures compare predictions that have the
same mass at the true class, so the step sizes do not matter.
"""

import matplotlib.pyplot as plt
import numpy as np

import fastemd
from fastemd import plotting

# %%
# The classes are the leaves of a small hierarchy, and the truth is cat. The prediction has most of
# its mass at vehicles.

tree = fastemd.Tree.from_paths(
    [
        *(("animal", "pet", name) for name in ("cat", "dog", "hamster")),
        *(("animal", "wild", name) for name in ("wolf", "fox", "bear")),
        *(("vehicle", "road", name) for name in ("car", "truck", "bus")),
        *(("vehicle", "water", name) for name in ("ship", "ferry", "raft")),
    ]
)
truth = np.eye(tree.n_bins)[0]
distance = tree.cost_matrix()[0]  # 0 of cat, 2 of other pets, 4 of wild animals, 6 of vehicles
start = np.array([0.05, 0.1, 0.05, 0.1, 0.03, 0.07, 0.2, 0.05, 0.1, 0.15, 0.04, 0.06])
plotting.plot_flow(start, truth, tree)

# %%
# Losses are functions of logits x, whose softmax is the prediction. ``emd_loss`` returns the
# gradients. That of the squared error, which fastemd does not have, is one line. The unit of
# lengths in the sum with cross entropy is the one of :doc:`/which_loss`.

unit = tree.scaled(mean_distance=1)


def squared_error(x, p):
    """Return the gradient of the mean squared error of the probabilities."""
    slope = 2.0 * (p - truth) / p.size
    return p * (slope - p @ slope)


def loss(space, **options):
    """Return the gradient of a loss of fastemd."""
    return lambda x, p: fastemd.emd_loss(x, truth, space, **options)[1]


gradients = {
    "cross entropy": lambda x, p: p - truth,
    "squared error": squared_error,
    "EMD": loss(unit, rho=1),
    "EMD^2": loss(unit, rho=2),
    "CE + 3 EMD": loss(unit.scaled(mean_distance=3), rho=1, cross_entropy=1),
}


def descend(gradient, step=0.02):
    """Return the predictions of gradient descent until 0.9 of the mass is at the truth."""
    x, predictions = np.log(start), [start]
    while predictions[-1][0] < 0.9:
        x = x - step * gradient(x, predictions[-1])
        predictions.append(np.exp(x) / np.exp(x).sum())
    return np.array(predictions)


paths = {name: descend(gradient) for name, gradient in gradients.items()}
for name, path in paths.items():
    print(f"{name:14} {len(path) - 1:6} steps")

# %%
# One row per loss: the predictions at the start, and when a quarter, half, and three quarters of
# the mass are at cat, whose bar is cut off. Colours are distances from cat. When half of the mass
# is at cat, vehicles have 0.30 with CE, 0.27 with CE + 3 EMD, 0.17 with :math:`EMD^2` and 0.11 with
# EMD. With EMD the dog has 0.27, after 0.1 at the start.

# sphinx_gallery_thumbnail_number = 2
stages = (0.05, 0.25, 0.5, 0.75)
figure, axes = plt.subplots(
    len(paths), len(stages), sharex=True, sharey=True, figsize=(9, 7), layout="constrained"
)
colors = {d: plt.get_cmap("viridis")(0.15 * d) for d in (0, 2, 4, 6)}
for row, (name, path) in zip(axes, paths.items(), strict=True):
    row[0].set_ylabel(name)
    for ax, stage in zip(row, stages, strict=True):
        p = path[np.argmax(path[:, 0] >= stage - 1e-12)]
        for d, color in colors.items():
            ax.bar(np.flatnonzero(distance == d), p[distance == d], color=color, label=f"{d:g}")
        ax.set(ylim=(0, 0.3), xticks=[])
        ax.text(0.97, 0.9, f"EMD {p @ distance:.2f}", transform=ax.transAxes, ha="right", va="top")
for ax, stage in zip(axes[0], stages, strict=True):
    ax.set_title(f"{stage:g} at cat")
handles = axes[0, 0].get_legend_handles_labels()
figure.legend(*handles, loc="outside lower center", ncols=4, title="distance from cat")

# %%
# The mean distance from cat of the mass that is still elsewhere shows the same. It hardly changes
# under losses that do not know the tree. A sum of CE and EMD is between them.
#
# The logits of this prediction are free. Those of a network are not, and :doc:`/which_loss`
# measures what the losses change there.

figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
for name, path in paths.items():
    wrong = 1.0 - path[:, 0]
    ax.plot(path[:, 0], path @ distance / wrong, label=name)
    print(f"{name:14} {(path[-1] @ distance) / wrong[-1]:.2f} at the end")
ax.set(xlabel="mass at the true class", ylabel="mean distance of the mass elsewhere")
ax.legend(loc="upper right", bbox_to_anchor=(1, 0.9))
plt.show()
