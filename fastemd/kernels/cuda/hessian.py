"""The dense Hessian, filled from the curvatures of all edges as on the CPU.

Raw entry (k, m) is the sum of the curvatures between the root and the edge where the paths of bins
k and m meet. The means of row and column are subtracted from it, and the grand mean is added.
"""

from typing import NamedTuple

import numpy as np

from fastemd.kernels.cuda.block import TEAM, scan, sums
from fastemd.kernels.cuda.memory import int32, pointer
from fastemd.kernels.cuda.numba_cuda import device


class Tables(NamedTuple):
    """A layout whose subtrees are contiguous; see `fastemd.layout.Edges` and `BinOrder`."""

    parent: np.ndarray
    share: np.ndarray
    bins: np.ndarray
    start: np.ndarray
    lowest: np.ndarray


sum_backwards = scan(True)


@device
def sum_paths(team, arguments):
    """Sum the curvatures between every edge and the root; one block per matrix.

    `paths` (rows, E) receives the sums, `means` (rows, N) the mean of every row of the raw Hessian
    less half the grand mean, or 0 if `project` is 0.
    """
    tables, curvatures, paths, means, project = arguments
    parent, share, n_edges, n_bins = tables.parent, tables.share, paths.shape[1], means.shape[1]
    h, path, mean, grand = curvatures[team.block], paths[team.block], means[team.block], 0.0
    is_chain = n_edges == n_bins
    for e in range(team.thread, n_edges, TEAM):
        path_sum, mean_sum, edge = 0.0, 0.0, e
        while edge < n_edges:
            path_sum += h[edge]
            mean_sum += h[edge] * share[edge]
            edge = n_edges if is_chain else parent[edge]
        path[e] = path_sum
        if e < n_bins:
            mean[e] = mean_sum
        grand += h[e] * share[e] * share[e]
    grand, _ = sums(team, grand, 0.0)
    if is_chain:
        for sums_of_paths in (path, mean):
            sum_backwards(team, pointer(sums_of_paths, int32(0)), int32(n_bins), 0.0)
    for k in range(team.thread, n_bins, TEAM):
        mean[k] = project * (mean[k] - 0.5 * grand)


@device
def fill_chain(team, arguments):
    """Fill the Hessians of a chain, where the longer of two paths contains the shorter."""
    _, paths, means, out = arguments
    n_bins = out.shape[1]
    for task in range(team.block, out.shape[0] * n_bins, team.n_blocks):
        row, k = task // n_bins, task % n_bins
        path, mean = paths[row], means[row]
        for m in range(team.thread, n_bins, TEAM):
            out[row, k, m] = path[max(k, m)] - (mean[m] + mean[k])


@device
def fill_tree(team, arguments):
    """Fill the Hessians of a tree.

    Walk up from bin k. Its path meets those of the bins that are below an edge, but not below the
    edge before it, at that edge.
    """
    tables, paths, means, out = arguments
    n_bins, root = out.shape[1], paths.shape[1] - 1
    for task in range(team.block, out.shape[0] * n_bins, team.n_blocks):
        row, k = task // n_bins, task % n_bins
        path, mean = paths[row], means[row]
        edge, before, n_before = k, 0, 0
        while edge < root:
            edge = tables.parent[edge]
            first = tables.start[tables.lowest[edge]]
            n_below = tables.start[edge + 1] - first
            for i in range(team.thread, n_below - n_before, TEAM):
                place = first + i
                if place >= before:
                    place += n_before
                m = tables.bins[place]
                raw = path[k] if m == k else path[edge]
                out[row, k, m] = raw - (mean[m] + mean[k])
            before, n_before = first, n_below
