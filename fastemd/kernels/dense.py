"""The dense Hessian, filled from the curvatures of all edges.

Raw entry (k, m) is the curvature between the root and the point where the paths of bins k and m
meet; from it go the means of row and column, and the grand mean is added. The raw rows of
neighbouring bins hardly differ: one is kept, and changed where need be, on a walk over the tree.
"""

import numpy as np
from numba.extending import register_jitable

from fastemd.kernels.blocks import write_along
from fastemd.kernels.lanes import (
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

_columns_at = at(8)


@register_jitable
def path_sums(layout, curvatures, path, mean):
    """Sum the curvatures between every edge and the root; return the grand mean.

    `mean` becomes, for a bin, the mean of its row of the raw Hessian.
    """
    n_edges, grand = layout.length.size, 0.0
    path[n_edges], mean[n_edges] = 0.0, 0.0
    for e in range(n_edges - 1, -1, -1):
        h, above, share = curvatures[e], layout.parent[e], layout.share[e]
        path[e] = path[above] + h
        mean[e] = mean[above] + h * share
        grand += h * share * share
    return grand


@register_jitable
def write_row(out, matrix, k, raw, mean):
    """Write row `k` from its raw entries; eight columns at once, by address."""
    n_bins, step, own_mean = out.shape[1], n_lanes(raw), number_at(mean, k)
    row = address(out) + (matrix * n_bins + k) * n_bins * out.itemsize
    whole = n_bins - n_bins % step
    for m in range(0, whole, step):
        i = m // step
        write_along(load(raw, i) - (load(mean, i) + own_mean), row, m, out.dtype.type(0))
    for m in range(whole, n_bins):
        out[matrix, k, m] = number_at(raw, m) - (number_at(mean, m) + own_mean)


@register_jitable
def fill_chain(out, matrix, path, mean, raw, part, n_parts):
    """The longer one of two paths on a chain holds the shorter."""
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


@register_jitable
def fill_tree(layout, out, matrix, path, mean, raw, part, n_parts, bins, lowest, start):
    """All bins of an inner node meet the others at the same points."""
    n_bins, n_edges = out.shape[1], layout.length.size
    last = n_edges
    for node in range(n_edges - 1, n_bins - 1, -1):  # the root first, every subtree in one piece
        above = layout.parent[node]
        while last != above and layout.parent[last] != above:
            last = layout.parent[last]
        if last != above:  # leave the subtree before this one
            for b in range(start[lowest[last]], start[last + 1]):
                put_number(raw, bins[b], path[above])
        for b in range(start[lowest[node]], start[node + 1]):
            put_number(raw, bins[b], path[node])
        for b in range(start[node], start[node + 1]):
            k = bins[b]
            if b % n_parts == part:
                write_row(out, matrix, k, raw, mean)
                out[matrix, k, k] = path[k] - (number_at(mean, k) + number_at(mean, k))
        last = node


@register_jitable
def bins_in_order(layout, n_bins):
    """The bins by the node above, the first node of every subtree, where a node's bins start."""
    n_edges = layout.length.size
    start, bins = np.zeros(n_edges + 2, np.intp), np.empty(n_bins, np.intp)
    lowest = np.arange(n_edges + 1)
    for e in range(n_bins):
        start[layout.parent[e] + 1] += 1
    for e in range(n_edges + 1):
        start[e + 1] += start[e]
    for e in range(n_bins - 1, -1, -1):
        above = layout.parent[e]
        start[above + 1] -= 1
        bins[start[above + 1]] = e
    for e in range(n_bins, n_edges):
        above = layout.parent[e]
        lowest[above] = min(lowest[above], lowest[e])
    return bins, lowest, start[1:]


@register_jitable
def matrices(layout, curvatures, out, project, chunk, n_chunks):
    """The share of one thread: whole matrices if there are many, else some rows of each."""
    n_parts = 1 if out.shape[0] >= 4 * n_chunks else n_chunks
    n_bins, n_edges = out.shape[1], layout.length.size
    path, means = np.empty(n_edges + 1), np.empty(n_edges + 1)
    line = (n_bins + 7) // 8 * 8
    scratch = np.empty(2 * line + 8)
    raw = _columns_at(aligned(address(scratch)))
    mean = _columns_at(address(raw) + 8 * line)
    bins, lowest, start = bins_in_order(layout, n_bins)
    for task in range(chunk, out.shape[0] * n_parts, n_chunks):
        matrix, part = task // n_parts, task % n_parts
        half_grand = path_sums(layout, curvatures[matrix], path, means) / 2.0
        for k in range(n_bins):
            put_number(mean, k, project * (means[k] - half_grand))
        if n_edges == n_bins:
            fill_chain(out, matrix, path, mean, raw, part, n_parts)
        else:
            fill_tree(layout, out, matrix, path, mean, raw, part, n_parts, bins, lowest, start)
    scratch[0] = 0.0  # Numba frees an array after its last use by name
    return out.shape[0]
