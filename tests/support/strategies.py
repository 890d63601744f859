"""Hypothesis strategies of ground spaces, with their plain arrays, and of histograms.

Masses are small multiples of a power of two, so that every sum of them is exact in float32: flows
that are zero in exact arithmetic are zero, and both histograms have exactly the same mass.
"""

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import fastemd
from tests.support import naive

RHOS = [1, 1.5, 2, 3.7]
rhos = st.sampled_from(RHOS)


class Case(NamedTuple):
    """A space and the tree it was built from."""

    space: object
    ground: naive.Ground

    @property
    def n_bins(self):
        return len(self.ground.bin_node)


class Problem(NamedTuple):
    case: Case
    p: np.ndarray
    q: np.ndarray


def tree_case(ground):
    space = fastemd.Tree.from_parents(ground.parent, ground.weight, bins=ground.bin_node)
    return Case(space, ground)


def chain_case(n_bins, gaps=None):
    return Case(fastemd.Chain(n_bins, gaps), naive.chain(n_bins, gaps))


lengths = st.sampled_from([0.0, 0.1, 0.25, 1.0, 1.0, 1.5, 3.0, 7.0])


@st.composite
def grounds(draw, max_nodes=12):
    """Draw a rooted tree, with unary nodes, edges of length 0, and bins on any nodes."""
    n = draw(st.integers(1, max_nodes))
    parent = [-1] + [draw(st.integers(0, i - 1)) for i in range(1, n)]
    weight = [0.0, *draw(st.lists(lengths, min_size=n - 1, max_size=n - 1))]
    bins = draw(st.permutations(range(n)))[: draw(st.integers(1, n))]
    return naive.relabel(naive.Ground(parent, weight, bins), draw(st.permutations(range(n))))


@st.composite
def chain_cases(draw, max_bins=12):
    n = draw(st.integers(1, max_bins))
    gaps = draw(st.none() | st.lists(lengths, min_size=n - 1, max_size=n - 1))
    return chain_case(n, gaps)


def cases(max_nodes=12):
    return chain_cases(max_nodes) | grounds(max_nodes).map(tree_case)


@st.composite
def histograms(draw, n_bins, n_rows=None, count=2):
    """Draw `count` arrays (n_rows, n_bins), each row of the same mass in all of them."""
    rows = draw(st.integers(1, 4)) if n_rows is None else n_rows
    counts = np.array(
        [
            draw(npst.arrays(np.int64, (rows, n_bins), elements=st.integers(0, 9), fill=st.just(0)))
            for _ in range(count)
        ]
    )
    if draw(st.booleans()):  # one-hot rows: the labels of a classification task
        hot = draw(npst.arrays(np.int64, (rows,), elements=st.integers(0, n_bins - 1)))
        counts[0] = np.eye(n_bins, dtype=np.int64)[hot]
    totals = counts.sum(axis=-1)
    lifted = draw(npst.arrays(np.int64, (count, rows), elements=st.integers(0, n_bins - 1)))
    for i, row in np.ndindex(count, rows):
        counts[i, row, lifted[i, row]] += totals[:, row].max() - totals[i, row]
    return list(counts * draw(st.sampled_from([1.0, 0.125, 2.0**-10])))


@st.composite
def problems(draw, max_nodes=12, n_rows=None):
    case = draw(cases(max_nodes))
    return Problem(case, *draw(histograms(case.n_bins, n_rows)))


def random_pair(rng, shape, dtype=np.float64, total=2**12):
    """Return two batches of random histograms of exact mass 1, a third of the bins empty."""
    pair = []
    for _ in range(2):
        weights = rng.exponential(size=shape) * (rng.random(shape) < 2 / 3)
        weights[..., rng.integers(shape[-1])] += 0.1
        counts = np.floor(weights / weights.sum(axis=-1, keepdims=True) * total)
        counts[..., rng.integers(shape[-1])] += total - counts.sum(axis=-1)
        pair.append((counts / total).astype(dtype))
    return pair


def random_ground(rng, n_nodes, n_bins=None, unary=0.2):
    """Return a random tree with shuffled node numbers; by default half of the nodes are bins."""
    parent, weight = [-1], [0.0]
    for node in range(1, n_nodes):
        parent.append(node - 1 if rng.random() < unary else int(rng.integers(node)))
        weight.append(float(rng.exponential()) if rng.random() < 0.9 else 0.0)
    bins = rng.permutation(n_nodes)[: n_bins or (n_nodes + 1) // 2].tolist()
    return naive.relabel(naive.Ground(parent, weight, bins), rng.permutation(n_nodes).tolist())
