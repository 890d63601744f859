"""The dense Hessian, filled from the curvatures of all edges."""

import numpy as np
from numba.extending import register_jitable


@register_jitable
def path_sums(plan, curvatures, n_bins, node_sum, mean):
    """Fill in what every entry needs and return the grand mean of the raw Hessian.

    `node_sum` is the curvature between the root and every inner node (on a chain: every bin),
    `mean` the means of the raw Hessian's rows: scalar sweeps for one pair of histograms.
    """
    grand, total, total_mean = 0.0, 0.0, 0.0
    for k in range(n_bins):
        grand += curvatures[k] * plan.bin_share[k] ** 2
    if plan.weight.size == 0:
        for k in range(n_bins - 1, -1, -1):
            total += curvatures[k]
            total_mean += curvatures[k] * plan.bin_share[k]
            node_sum[k], mean[k] = total, total_mean
        return grand
    node_mean = np.zeros(plan.weight.size)
    node_sum[plan.weight.size - 1] = 0.0
    for i in range(plan.weight.size - 2, -1, -1):
        h, above = curvatures[n_bins + i], plan.parent[i]
        node_sum[i] = node_sum[above] + h
        node_mean[i] = node_mean[above] + h * plan.share[i]
        grand += h * plan.share[i] ** 2
    for k in range(n_bins):
        mean[k] = node_mean[plan.bin_parent[k]] + curvatures[k] * plan.bin_share[k]
    return grand


@register_jitable
def fill_matrix(plan, curvatures, out, project, part, n_parts, node_sum, mean, meet, on_path):
    """Write every entry once.

    Raw entry (k, m) is the curvature from the root to where the paths of k and m meet; from it go
    the means of row and column, and the grand mean is added.
    """
    n_bins = out.shape[0]
    half_grand = path_sums(plan, curvatures, n_bins, node_sum, mean) / 2.0
    for k in range(n_bins):
        mean[k] = project * (mean[k] - half_grand)
    if plan.weight.size == 0:
        for k in range(part, n_bins, n_parts):
            for m in range(n_bins):
                out[k, m] = node_sum[max(k, m)] - (mean[k] + mean[m])
        return
    root = plan.weight.size - 1
    on_path[:] = False
    for i in range(part, plan.weight.size, n_parts):
        if plan.bin_start[i] == plan.bin_start[i + 1]:
            continue
        mark_path(plan, i, on_path, True)
        meet[root] = node_sum[root]
        for j in range(root - 1, -1, -1):
            meet[j] = node_sum[j] if on_path[j] else meet[plan.parent[j]]
        mark_path(plan, i, on_path, False)
        for b in range(plan.bin_start[i], plan.bin_start[i + 1]):
            k = plan.column[b]
            for m in range(n_bins):
                out[k, m] = meet[plan.bin_parent[m]] - (mean[k] + mean[m])
            out[k, k] = node_sum[i] + curvatures[k] - 2.0 * mean[k]


@register_jitable
def mark_path(plan, node, on_path, mark):
    while node >= 0:
        on_path[node] = mark
        node = plan.parent[node]


@register_jitable
def matrices(plan, curvatures, out, project, chunk, n_chunks):
    """The share of one thread: whole matrices if there are many, else some rows of each."""
    n_parts = 1 if out.shape[0] >= 4 * n_chunks else n_chunks
    n_bins, n_inner = out.shape[1], plan.weight.size
    node_sum, mean = np.empty(max(n_bins, n_inner)), np.empty(n_bins)
    meet, on_path = np.empty(n_inner), np.empty(n_inner, np.bool_)
    for task in range(chunk, out.shape[0] * n_parts, n_chunks):
        row, part = task // n_parts, task % n_parts
        fill_matrix(
            plan, curvatures[row], out[row], project, part, n_parts, node_sum, mean, meet, on_path
        )
    return out.shape[0]
