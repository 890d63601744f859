"""
UniFrac and PCoA of microbiomes
===============================

Samples share few taxa, even within a group, and two groups of samples differ in the share of one
clade of the phylogeny. Metrics that weight the edges of the tree by abundance separate the groups.
Bray-Curtis, which has no tree, separates them less. The data are synthetic. :doc:`/unifrac`
describes the metrics.
"""

import matplotlib.pyplot as plt
import numpy as np
from scipy.spatial.distance import pdist, squareform

import fastemd

rng = np.random.default_rng(0)
n_taxa, n_samples = 1000, 60

# %%
# The phylogeny is random: two lineages are joined until one is left. It is written as a linkage
# matrix of SciPy, one row per join: the two lineages, their height, and the number of tips below.

lineages, tips, height, joins = list(range(n_taxa)), [[i] for i in range(n_taxa)], 0.0, []
while len(lineages) > 1:
    height += rng.exponential(1 / len(lineages))
    a, b = (lineages.pop(rng.integers(len(lineages))) for _ in range(2))
    lineages.append(len(tips))
    tips.append(tips[a] + tips[b])
    joins.append([a, b, height, len(tips[-1])])
linkage = np.array(joins)
tree = fastemd.Tree.from_linkage(linkage)
print(tree)

# %%
# A sample has about one of 25 taxa, drawn at random. In the second group the taxa of one clade are
# three times as frequent, and three times as abundant where they are. The counts are those of 2,000
# reads.

clade = next(below for below in tips if 100 <= len(below) <= 150)
is_second = np.arange(n_samples) >= n_samples // 2
factor = np.ones((n_samples, n_taxa))
factor[np.ix_(is_second, clade)] = 3
present = rng.random((n_samples, n_taxa)) < 0.04 * factor
abundance = present * factor * rng.lognormal(0, 1, (n_samples, n_taxa))
counts = rng.multinomial(2000, abundance / abundance.sum(axis=1, keepdims=True))
for name, group in (("first", ~is_second), ("second", is_second)):
    share = counts[group][:, clade].sum() / counts[group].sum()
    print(f"{name} group: {len(clade)} taxa of {n_taxa} have {share:.0%} of the reads")

# %%
# The distances of all pairs of samples, by three metrics of UniFrac and by Bray-Curtis.

frequencies = counts / counts.sum(axis=1, keepdims=True)
distances = {
    "Bray-Curtis (no tree)": squareform(pdist(frequencies, "braycurtis")),
    "unweighted UniFrac": fastemd.unifrac(counts, tree, metric="unweighted"),
    "generalized UniFrac": fastemd.unifrac(counts, tree, metric="generalized", alpha=0.5),
    "weighted UniFrac": fastemd.unifrac(counts, tree, metric="weighted"),
}

# %%
# Principal coordinates (PCoA) are points whose distances approximate the given ones. The labels of
# the axes have their shares of the variance.


def principal_coordinates(distance):
    """Return the first two principal coordinates, and the share of the variance of each."""
    centring = np.eye(len(distance)) - 1 / len(distance)
    values, vectors = np.linalg.eigh(-0.5 * centring @ distance**2 @ centring)
    points = vectors[:, :-3:-1] * np.sqrt(values[:-3:-1])
    return points, values[:-3:-1] / values.clip(0).sum()


groups = [(~is_second, "first group", "o"), (is_second, "second group", "^")]
figure, panels = plt.subplots(2, 2, figsize=(7, 6), layout="constrained")
for axes, (name, distance) in zip(panels.flat, distances.items(), strict=True):
    points, variance = principal_coordinates(distance)
    for group, label, marker in groups:
        axes.scatter(*points[group].T, s=28, marker=marker, alpha=0.8, label=label)
    axes.set(title=name, xlabel=f"PCo 1 ({variance[0]:.0%})", ylabel=f"PCo 2 ({variance[1]:.0%})")
    axes.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
plt.show()

# %%
# Most pairs of samples have hardly a taxon in common, so their Bray-Curtis distances are near 1.
# Unweighted UniFrac depends on presence alone, and with so few taxa in a sample, the lineages that
# it has are mostly a matter of chance.

print(f"median of Bray-Curtis: {np.median(distances['Bray-Curtis (no tree)']):.2f}")

# %%
# The five nearest of the other samples: every sample is its own nearest, so it is dropped.

for name, distance in distances.items():
    nearest = np.argsort(distance, axis=1)[:, 1:6]
    share = (is_second[nearest] == is_second[:, None]).mean()
    print(f"{name:22} {share:.0%} of the neighbours are of the same group")

# %%
# Weighted UniFrac is the Earth Mover's Distance on the tree, so ``neighbors`` finds its neighbours
# without the matrix of all distances.

_, nearest = fastemd.neighbors(frequencies, frequencies, space=tree, rho=1, k=6)
share = (is_second[nearest[:, 1:]] == is_second[:, None]).mean()
print(f"{share:.0%} of the neighbours are of the same group")
