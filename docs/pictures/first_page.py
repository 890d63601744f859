import matplotlib.pyplot as plt

import fastemd
from fastemd import plotting

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
truth = [1, 0, 0, 0, 0, 0]
predictions = {"dog": [0.4, 0.6, 0, 0, 0, 0], "truck": [0.4, 0, 0, 0, 0.6, 0]}
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for ax, (name, prediction) in zip(axes, predictions.items(), strict=True):
    plotting.plot_flow(prediction, truth, tree, ax=ax)
    distance = fastemd.emd(prediction, truth, tree, rho=1)
    ax.set_title(f"0.4 cat, 0.6 {name}: EMD {distance:.1f}")
