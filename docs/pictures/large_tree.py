import matplotlib.pyplot as plt
import numpy as np

from fastemd import datasets, plotting

tree = datasets.imagenet_tree()
names = dict(datasets.imagenet_graph().nodes(data="name"))
p, q = np.zeros((2, 1000))
p[[333, 338, 283, 673]] = 0.4, 0.3, 0.2, 0.1
q[333] = 1.0  # hamster
figure, ax = plt.subplots(figsize=(8, 5), layout="constrained")
plotting.plot_flow(p, q, tree, labels=names, max_bins=16, ax=ax)
