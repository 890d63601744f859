"""Random tables of counts on random phylogenies."""

from typing import NamedTuple

import numpy as np
from scipy import sparse

from benchmarks.common import yule_tree

LARGEST_PREVALENCE = 0.95


class Problem(NamedTuple):
    """A table of counts, and a tree whose first nodes are the taxa."""

    table: sparse.csr_array  # samples x taxa
    parents: np.ndarray  # greater than the node, except for the root, the last one
    lengths: np.ndarray

    @property
    def samples(self):
        return [f"s{i}" for i in range(self.table.shape[0])]

    @property
    def taxa(self):
        return [f"t{i}" for i in range(self.table.shape[1])]

    @property
    def histograms(self):
        """Return the dense histograms of the samples; an empty sample has the first taxon."""
        counts = self.table.toarray()
        counts[:, 0] += counts.sum(axis=1) == 0
        return counts / counts.sum(axis=1, keepdims=True)

    @property
    def newick(self):
        texts = [[] for _ in self.parents]
        for node, (parent, length) in enumerate(
            zip(self.parents, self.lengths.tolist(), strict=True)
        ):
            text = f"({','.join(texts[node])})" if texts[node] else f"t{node}"
            texts[node] = None
            if parent == -1:
                return f"{text};"
            texts[parent].append(f"{text}:{length!r}")
        raise AssertionError("no root")

    @property
    def edge_prevalence(self):
        """Return the share of samples with a count below every edge."""
        present = np.zeros((len(self.parents), self.table.shape[0]), bool)
        present[: self.table.shape[1]] = self.table.toarray().T > 0
        for node, parent in enumerate(self.parents[:-1]):
            present[parent] |= present[node]
        return present[:-1].mean(axis=1)


def problem(n_samples, n_taxa, density, seed=0):
    """Return a random problem with a share of non-zero counts of about `density`."""
    rng = np.random.default_rng(seed)
    parents = yule_tree(n_taxa, rng)
    lengths = rng.exponential(0.05, len(parents))
    log_prevalence = 1.65 * rng.standard_normal(n_taxa)
    prevalence = scaled_to_mean(np.exp(log_prevalence), density)
    present = rng.random((n_samples, n_taxa)) < prevalence
    # Common taxa are abundant where they are present, and samples differ in depth.
    log_count = 1.0 + 0.5 * log_prevalence + 1.2 * rng.standard_normal(present.shape)
    log_count += 0.5 * rng.standard_normal((n_samples, 1))
    counts = np.where(present, 1 + np.floor(np.exp(log_count)), 0.0)
    return Problem(sparse.csr_array(counts), parents, lengths)


def scaled_to_mean(prevalence, density):
    """Scale prevalences, which have an upper bound, to a mean."""
    for _ in range(100):
        prevalence = np.minimum(prevalence * density / prevalence.mean(), LARGEST_PREVALENCE)
    return prevalence
