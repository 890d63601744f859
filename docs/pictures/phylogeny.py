import matplotlib.pyplot as plt

import fastemd
from fastemd import plotting

tree = fastemd.Tree.from_newick(
    "((((cat:1,lion:1.5):2,(dog:1,wolf:0.8):1.8):3,(horse:2,donkey:1.8):4):5,(crow:3,hen:4.5):6);"
)
figure, ax = plt.subplots(figsize=(8, 3.2), layout="constrained")
plotting.plot_flow(
    [0.3, 0.1, 0.2, 0, 0.1, 0, 0.3, 0],
    [0.1, 0, 0.2, 0.1, 0, 0.4, 0.1, 0.1],
    tree,
    ax=ax,
    to_scale=True,
)
