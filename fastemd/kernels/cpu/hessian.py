"""The dense Hessian on the CPU, from the curvatures of all edges.

Raw entry (k, m) is the sum of the curvatures from the root to the node where the paths of bins k
and m meet. The means of its row and column are subtracted from it, and the grand mean is added. The
raw rows of neighbouring bins hardly differ, so one row is kept, and updated on a walk over the
tree.
"""

import numpy as np

from fastemd.kernels.cpu.row_io import write_along
from fastemd.kernels.cpu.simd import (
    address,
    aligned,
    at,
    load,
    n_lanes,
    number_at,
    put_number,
    splat,
    store,
)
from fastemd.kernels.jitable import jitable

lanes_at = at(8)


@jitable
def path_sums(edges, curvatures, path, mean):
    """Put the sums of the curvatures up to the root into `path`; return the grand mean.

    For bins, put the means of the rows of the raw Hessian into `mean`.
    """
    n_edges, grand_mean = edges.length.size, 0.0
    path[n_edges], mean[n_edges] = 0.0, 0.0
    for e in range(n_edges - 1, -1, -1):
        h, parent, share = curvatures[e], edges.parent[e], edges.share[e]
        path[e] = path[parent] + h
        mean[e] = mean[parent] + h * share
        grand_mean += h * share * share
    return grand_mean


@jitable
def write_row(out, matrix, k, raw, mean):
    """Write row `k` from its raw entries, eight columns at a time."""
    n_bins, step, own_mean = out.shape[1], n_lanes(raw), number_at(mean, k)
    row = address(out) + (matrix * n_bins + k) * n_bins * out.itemsize
    whole = n_bins - n_bins % step
    for m in range(0, whole, step):
        i = m // step
        write_along(load(raw, i) - (load(mean, i) + own_mean), row, m, out.dtype.type(0))
    for m in range(whole, n_bins):
        out[matrix, k, m] = number_at(raw, m) - (number_at(mean, m) + own_mean)


@jitable
def fill_chain(out, matrix, path, mean, raw, part, n_parts):
    """Write matrices of a chain, where the longer one of two paths contains the shorter."""
    n_bins = out.shape[1]
    for k in range(n_bins):
        put_number(raw, k, path[k])
    for k in range(n_bins):
        if k % n_parts == part:
            step = n_lanes(raw)
            for i in range(k // step):
                store(raw, i, splat(raw, path[k]))
            for m in range(k - k % step, k):
                put_number(raw, m, path[k])
            write_row(out, matrix, k, raw, mean)


@jitable
def fill_tree(edges, order, out, matrix, path, mean, raw, part, n_parts):
    """Write matrices of a tree: all bins below a node meet the others at the same nodes."""
    n_bins, n_edges = out.shape[1], edges.length.size
    bins, start, lowest = order.bins, order.start, order.lowest
    last = n_edges
    for node in range(n_edges - 1, n_bins - 1, -1):  # the root first, subtree by subtree
        parent = edges.parent[node]
        while last != parent and edges.parent[last] != parent:
            last = edges.parent[last]
        if last != parent:  # leave the subtree before this one
            for b in range(start[lowest[last]], start[last + 1]):
                put_number(raw, bins[b], path[parent])
        for b in range(start[lowest[node]], start[node + 1]):
            put_number(raw, bins[b], path[node])
        for b in range(start[node], start[node + 1]):
            k = bins[b]
            if b % n_parts == part:
                write_row(out, matrix, k, raw, mean)
                out[matrix, k, k] = path[k] - (number_at(mean, k) + number_at(mean, k))
        last = node


@jitable
def fill_matrices(chunk, n_chunks, edges, order, curvatures, out, project):
    """Write one of `n_chunks` parts: whole matrices if there are many, else some rows of each."""
    n_parts = 1 if out.shape[0] >= 4 * n_chunks else n_chunks
    n_bins, n_edges = out.shape[1], edges.length.size
    path, means = np.empty(n_edges + 1), np.empty(n_edges + 1)
    line = (n_bins + 7) // 8 * 8
    scratch = np.empty(2 * line + 8)
    raw = lanes_at(aligned(address(scratch)))
    mean = lanes_at(address(raw) + 8 * line)
    for task in range(chunk, out.shape[0] * n_parts, n_chunks):
        matrix, part = task // n_parts, task % n_parts
        half_grand_mean = path_sums(edges, curvatures[matrix], path, means) / 2.0
        for k in range(n_bins):
            put_number(mean, k, project * (means[k] - half_grand_mean))
        if n_edges == n_bins:
            fill_chain(out, matrix, path, mean, raw, part, n_parts)
        else:
            fill_tree(edges, order, out, matrix, path, mean, raw, part, n_parts)
    scratch[0] = 0.0  # Numba frees an array after its last use by name
    return out.shape[0]
