"""Phylogenies with counts, and the programs that compute UniFrac: oracle, scikit-bio and ssu."""

import os
import shutil
import subprocess

import numpy as np
import pytest
from skbio import TreeNode
from skbio.diversity import beta_diversity

from tests.support import naive, naive_unifrac
from tests.support.frameworks import needed
from tests.support.strategies import random_ground

N_SAMPLES = 7
SCIKIT_BIO = {
    "weighted": ("weighted_unifrac", {"normalized": False}),
    "weighted_normalized": ("weighted_unifrac", {"normalized": True}),
    "unweighted": ("unweighted_unifrac", {}),
}
SSU = {
    "weighted": ["weighted_unnormalized_fp64"],
    "weighted_normalized": ["weighted_normalized_fp64"],
    "unweighted": ["unweighted_fp64"],
    "generalized": ["generalized_fp64"],
    "variance_adjusted": ["weighted_normalized_fp64", "--vaw"],
}
each_metric = pytest.mark.parametrize("metric", naive_unifrac.METRICS)
each_engine = pytest.mark.parametrize("engine", ["cython", "numba"])
needs_ssu = pytest.mark.skipif(shutil.which("ssu") is None, reason="ssu is not on the PATH")

# Three samples of the taxa a, b and c, with the proportions 1/3 2/3 0, 0 1/6 5/6 and 3/4 0 1/4.
COUNTS = [[1, 2, 0], [0, 1, 5], [3, 0, 1]]
SMALL = naive.Ground([3, 3, 4, 4, -1], [1.0, 2.0, 4.0, 3.0, 0.0], [0, 1, 2])  # ((a:1,b:2):3,c:4);


def problem(seed, n_nodes=60):
    """Return a tree, the names of its taxa, and counts; not all leaves are taxa.

    The tree has polytomies, unary nodes and zero lengths; three of four seeds have a unary root.
    """
    rng = np.random.default_rng(seed)
    ground = random_ground(rng, n_nodes)
    if seed % 4:
        ground = with_stem(ground, [0.0, 1.5, 0.25][seed % 4 - 1])
    leaves = sorted(set(range(len(ground.parent))) - set(ground.parent))
    taxa = rng.permutation(leaves)[: max(2, 3 * len(leaves) // 4)].tolist()
    counts = rng.negative_binomial(0.5, 0.1, (N_SAMPLES, len(taxa)))
    counts[:, 0] += counts.sum(axis=1) == 0
    return ground._replace(bin_node=taxa), counts


def with_stem(ground, length):
    """Return the tree with another root, above the present one."""
    root, above = ground.parent.index(-1), len(ground.parent)
    parent, weight = [*ground.parent, -1], [*ground.weight, 0.0]
    parent[root], weight[root] = above, length
    return ground._replace(parent=parent, weight=weight)


def reference(counts, ground, metric, alpha=1.0):
    return naive_unifrac.unifrac(
        counts, ground.parent, ground.weight, ground.bin_node, metric, alpha
    )


def newick(ground, root_length=""):
    """Return the tree as text; the name of a leaf is t and its number."""
    children = [[] for _ in ground.parent]
    for node, above in enumerate(ground.parent):
        if above != -1:
            children[above].append(node)

    def text(node):
        inner = f"({','.join(map(text, children[node]))})" if children[node] else f"t{node}"
        return inner if ground.parent[node] == -1 else f"{inner}:{ground.weight[node]!r}"

    return f"{text(ground.parent.index(-1))}{root_length};"


def names(ground):
    return [f"t{node}" for node in ground.bin_node]


def scikit_bio(counts, ground, metric, engine, root_length=""):
    """Return the distances of scikit-bio.

    Its validation rejects a root with more than two children, and missing lengths.
    """
    name, keywords = SCIKIT_BIO[metric]
    tree = TreeNode.read([newick(ground, root_length)])
    distances = beta_diversity(
        name, np.asarray(counts), taxa=names(ground), tree=tree, validate=False, engine=engine,
        **keywords,
    )  # fmt: skip
    return distances.data


def ssu(folder, counts, tree, taxa, metric, alpha=1.0):
    """Return the distances of ssu, which reads lengths in float32."""
    biom = needed("biom")
    h5py = needed("h5py")
    ids = [f"s{i}" for i in range(len(counts))]
    with h5py.File(folder / "table.biom", "w") as file:
        biom.Table(np.asarray(counts, np.float64).T, taxa, ids).to_hdf5(file, "tests")
    (folder / "tree.nwk").write_text(tree)
    out = folder / "distances.tsv"
    command = ["ssu", "-i", folder / "table.biom", "-t", folder / "tree.nwk", "-o", out]
    command += ["-a", str(alpha), "-m", *SSU[metric]]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "UNIFRAC_USE_GPU": "N"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    header, *lines = [line.split("\t") for line in out.read_text().splitlines()]
    assert [line[0] for line in lines] == header[1:]
    order = [header[1:].index(name) for name in ids]
    return np.array([line[1:] for line in lines], np.float64)[np.ix_(order, order)]
