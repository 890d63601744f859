"""
Near and far mistakes
=====================

Predicting dog for a cat is a smaller error than predicting truck. The Earth Mover's Distance on a
tree of classes and its gradient reflect this.
"""

import matplotlib.pyplot as plt
import numpy as np

import fastemd

# %%
# The classes are the leaves of a small hierarchy. The distance between two classes is the length of
# the path between them.

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
# The true class is cat. All three predictions assign 0.4 to it, and 0.6 to another class. Their
# cross entropy is the same.

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
# Gradient descent removes mass where the gradient is positive (bars to the right) and adds mass
# where it is negative. The farther the predicted class, the longer the bars.

grad = fastemd.emd_grad(predictions, truth, tree, rho=2)
figure, axes = plt.subplots(1, 3, figsize=(9, 3), sharex=True, sharey=True, layout="constrained")
for ax, row, title in zip(axes, grad, ["dog", "wolf", "truck"], strict=True):
    ax.barh(names, row, color=np.where(row > 0, "tab:red", "tab:green"))
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set(title=f"0.4 cat + 0.6 {title}", xlabel="gradient of EMD²")
axes[0].invert_yaxis()
plt.show()
