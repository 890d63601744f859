"""
Near and far mistakes
=====================

A classifier that takes a cat for a dog is less wrong than one that takes it for a truck. The Earth
Mover's Distance on a tree of classes says so, and its gradient does, too.
"""

import matplotlib.pyplot as plt
import numpy as np

import fastemd

# %%
# The classes are the leaves of a small hierarchy. Two classes are as far apart as the path between
# them is long.

tree = fastemd.Tree.from_paths(
    [
        ("animal", "pet", "cat"),
        ("animal", "pet", "dog"),
        ("animal", "wild", "wolf"),
        ("vehicle", "road", "car"),
        ("vehicle", "road", "truck"),
        ("vehicle", "ship"),
    ]
)
names = [path[-1] for path in tree.bins]
print(names)
print(tree.cost_matrix())

# %%
# The truth is a cat. All three predictions give it 0.4, and 0.6 to something else. Cross entropy
# sees no difference between them.

truth = np.array([1.0, 0, 0, 0, 0, 0])
predictions = np.array(
    [
        [0.4, 0.6, 0, 0, 0, 0],  # nearly a dog
        [0.4, 0, 0.6, 0, 0, 0],  # nearly a wolf
        [0.4, 0, 0, 0, 0.6, 0],  # nearly a truck
    ]
)
for rho in (1, 2):
    print(f"EMD^{rho}:", fastemd.emd(predictions, truth, tree, rho))

# %%
# Downhill is against the gradient. A bar to the right is mass to remove, a bar to the left mass to
# add. The farther the mistake, the longer the bars.

grad = fastemd.emd_grad(predictions, truth, tree, rho=2)
figure, axes = plt.subplots(1, 3, figsize=(9, 3), sharex=True, sharey=True, layout="constrained")
for ax, row, title in zip(axes, grad, ["dog", "wolf", "truck"], strict=True):
    ax.barh(names, row, color=np.where(row > 0, "tab:red", "tab:green"))
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set(title=f"0.4 cat + 0.6 {title}", xlabel="gradient of EMD²")
axes[0].invert_yaxis()
plt.show()
