"""The weights of the rows of a loss, computed by teams of threads."""

import numpy as np

from fastemd.kernels.cuda.block import TEAM, grid_range, larger, largest, report_row, sums
from fastemd.kernels.cuda.numba_cuda import device

SMALLEST_WEIGHT = 2.0**-1022  # that is not 0


@device
def ratio(a, b):
    """Return ``a / b``, and 0 for 0 / 0."""
    return a / b if b != 0.0 else 0.0


@device
def find_row_weights(team, arguments):
    """Compute the weight of every row from its `sample_weight` and its label.

    `weights` and `labels` are (rows,), without elements if there are no weights, or labels do not
    matter. The first row of invalid weight goes to ``errors[1]``. If `parts` (2 * blocks,) has
    elements, it receives for `divide_by_sum` the largest weight of every block, then the sums of
    the weights divided by it, since the sum itself might overflow. A weight counts in the sum times
    that of its class, if there are `class_weights`.
    """
    weights, labels, ignore_index, class_weights, row_weights, parts, errors = arguments
    most, total = 0.0, 0.0
    for i in grid_range(team, row_weights.size):
        row_weight = 1.0
        if labels.size > 0 and labels[i] == ignore_index:
            row_weight = 0.0
        elif weights.size > 0:
            row_weight = weights[i]
            if not 0.0 <= row_weight < np.inf:
                report_row(errors, 1, i)
        row_weights[i] = row_weight
        most = larger(most, row_weight)
    if parts.size > 0:
        most = largest(team, most)
        for i in grid_range(team, row_weights.size):
            counted = ratio(row_weights[i], most)
            if class_weights.size > 0:
                label = labels[i]
                inside = 0 <= label < class_weights.size
                counted *= class_weights[label] if inside else 1.0
            total += counted
        total, _ = sums(team, total, 0.0)
        if team.thread == 0:
            parts[team.block] = most
            parts[team.n_blocks + team.block] = total


@device
def divide_by_sum(team, arguments):
    """Divide the weights by their sum, for the weighted mean.

    Every block adds up the `parts` that all blocks of `find_row_weights` left, in the same order.
    """
    row_weights, parts = arguments
    most, total, n_parts = 0.0, 0.0, parts.size // 2
    for i in range(team.thread, n_parts, TEAM):
        most = larger(most, parts[i])
    most = largest(team, most)
    for i in range(team.thread, n_parts, TEAM):
        total += parts[n_parts + i] * ratio(parts[i], most)
    total, _ = sums(team, total, 0.0)
    for i in grid_range(team, row_weights.size):
        row_weight = row_weights[i]
        if row_weight > 0.0:  # a row of another weight is read
            row_weight = larger(SMALLEST_WEIGHT, ratio(ratio(row_weight, most), total))
        row_weights[i] = row_weight
