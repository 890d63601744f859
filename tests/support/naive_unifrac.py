"""Oracle of UniFrac: plain loops over the edges, from the formulas of the papers.

A tree is three sequences, with nodes in any order: `parent`, -1 for the root; `length` of the edge
above every node, whose entry for the root is ignored; and `bin_node`, the node of every taxon. Two
samples have the counts A and B below an edge of length l, and the counts A_T and B_T in total. The
proportions are a = A / A_T and b = B / B_T; those of an empty sample are 0. All sums are over the
edges with a + b > 0:

unweighted           sum of l where a = 0 or b = 0, over sum of l           Lozupone & Knight 2005
weighted             sum of l |a - b|                                       Lozupone et al. 2007
weighted_normalized  sum of l |a - b|, over sum of l (a + b)                Lozupone et al. 2007
generalized          sum of l (a + b)^(alpha - 1) |a - b|,                  Chen et al. 2012
                     over sum of l (a + b)^alpha
variance_adjusted    sum of l |a - b| / s, over sum of l (a + b) / s,       Chang et al. 2011
                     where s = sqrt(m (M - m)), m = A + B, M = A_T + B_T;
                     edges with s = 0 are ignored

A ratio 0 / 0 is 0. Lozupone et al. write the denominator of the normalised distance as a sum over
taxa: their proportions times their distances from the root. Both sums are equal.

C. Lozupone and R. Knight, Appl. Environ. Microbiol. 71, 8228-8235 (2005).
C. Lozupone, M. Hamady, S. Kelley and R. Knight, Appl. Environ. Microbiol. 73, 1576-1585 (2007).
Q. Chang, Y. Luan and F. Sun, BMC Bioinformatics 12, 118 (2011).
J. Chen et al., Bioinformatics 28, 2106-2113 (2012).
"""

import math

import numpy as np

METRICS = ("weighted", "weighted_normalized", "unweighted", "generalized", "variance_adjusted")


def unifrac(counts, parent, length, bin_node, metric="weighted", alpha=1.0):
    """Return the (n, n) distances between the rows of the counts."""
    edges = [length[node] for node, above in enumerate(parent) if above != -1]
    below = [counts_below(row, parent, bin_node) for row in counts]
    result = np.zeros((len(below), len(below)))
    for i, (first, first_total) in enumerate(below):
        for j, (second, second_total) in enumerate(below[:i]):
            result[i, j] = result[j, i] = distance(
                edges, first, second, first_total, second_total, metric, alpha
            )
    return result


def unifrac_pair(first, second, parent, length, bin_node, metric="weighted", alpha=1.0):
    """Return the distance between two samples."""
    return unifrac([first, second], parent, length, bin_node, metric, alpha)[0, 1]


def counts_below(row, parent, bin_node):
    """Return the counts below all edges, in the order of their lower nodes, and the total."""
    terms = [[] for _ in parent]
    for count, node in zip(row, bin_node, strict=True):
        while node != -1:
            terms[node].append(float(count))
            node = parent[node]
    sums = [math.fsum(node_terms) for node_terms in terms]
    return [x for x, above in zip(sums, parent, strict=True) if above != -1], sums[
        list(parent).index(-1)
    ]


def distance(edges, first, second, first_total, second_total, metric, alpha):
    """Return the distance of two samples from their counts below all edges."""
    numerator, denominator = [], []
    for length, count_1, count_2 in zip(edges, first, second, strict=True):
        a = count_1 / first_total if first_total > 0 else 0.0
        b = count_2 / second_total if second_total > 0 else 0.0
        if a + b == 0:
            continue
        if metric == "unweighted":
            term, norm = float(a == 0 or b == 0), 1.0
        elif metric in ("weighted", "weighted_normalized"):
            term, norm = abs(a - b), a + b
        elif metric == "generalized":
            norm = (a + b) ** alpha
            term = norm * (abs(a - b) / (a + b))
        elif metric == "variance_adjusted":
            m, total = count_1 + count_2, first_total + second_total
            if m >= total:
                continue
            s = math.sqrt(m * (total - m))
            term, norm = abs(a - b) / s, (a + b) / s
        else:
            raise ValueError(f"metric {metric!r} is unknown; expected one of {METRICS}")
        numerator.append(length * term)
        denominator.append(length * norm)
    value = math.fsum(numerator)
    if metric == "weighted":
        return value
    return value / math.fsum(denominator) if any(denominator) else 0.0
