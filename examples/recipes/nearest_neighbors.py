"""Find approximate nearest neighbours by pynndescent on the points of fastemd.embed."""

import numpy as np
from pynndescent import NNDescent

import fastemd

tree = fastemd.datasets.imagenet_tree()
rng = np.random.default_rng(0)
P = rng.dirichlet(np.full(1000, 0.05), 2000).astype(np.float32)
queries = rng.dirichlet(np.full(1000, 0.05), 100).astype(np.float32)

# At rho = 1 distances of points are EMD. At rho = 2 they are "euclidean", and their squares EMD^2.
index = NNDescent(fastemd.embed(P, tree, rho=1), metric="manhattan", n_neighbors=15, random_state=0)
nearest, distances = index.query(fastemd.embed(queries, tree, rho=1), k=10, epsilon=0.3)

exact_distances, exact = fastemd.neighbors(queries, P, space=tree, rho=1, k=10)
recall = np.mean([np.isin(a, b).mean() for a, b in zip(nearest, exact, strict=True)])
print(f"recall {recall:.3f}")
assert recall > 0.9
