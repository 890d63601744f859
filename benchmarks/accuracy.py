"""Print the table of docs/accuracy.md: the error against exact rational arithmetic.

    python -m benchmarks.accuracy

Every row holds the largest error over some pairs of random histograms: of the value relative to
the exact value, of the gradient relative to its largest exact entry. The reference of powers that
are not integers has 50 digits. Takes a minute or two; the same seeds give the same table.
"""

from fractions import Fraction

import numpy as np
from scipy.cluster.hierarchy import linkage

import fastemd
from tests.support import naive

SIZES = [10, 100, 1000]
POWERS = [1, 2, 3.7]


def random_space(kind, n_bins, rng):
    """Return a chain with random gaps, or the tree of a clustering of random points."""
    if kind == "chain":
        return fastemd.Chain(n_bins, rng.exponential(size=n_bins - 1))
    return fastemd.Tree.from_linkage(linkage(rng.normal(size=(n_bins, 4)), "average"))


def histograms(n_bins, dtype, rng):
    """Return two histograms that use all digits of the type."""
    return rng.dirichlet(np.ones(n_bins), 2).astype(dtype)


def relative_error(computed, exact):
    errors = [abs(Fraction(float(c)) - e) for c, e in zip(computed, exact, strict=True)]
    return float(max(errors) / max(abs(e) for e in exact))


def largest_errors(kind, n_bins, dtype, rho):
    rng = np.random.default_rng(n_bins)
    value_error = grad_error = 0.0
    for _ in range(20 if n_bins < 1000 else 3):
        space = random_space(kind, n_bins, rng)
        p, q = histograms(n_bins, dtype, rng)
        value, grad = fastemd.emd_value_and_grad(p, q, space, rho)
        ground = naive.ground(space)
        exact_value, exact_grad = (
            f(p, q, ground, rho) for f in (naive.exact_emd, naive.exact_grad)
        )
        value_error = max(value_error, relative_error([value], [exact_value]))
        grad_error = max(grad_error, relative_error(grad, exact_grad))
    return value_error, grad_error


def main():
    results = ["value, float64", "gradient, float64", "value, float32", "gradient, float32"]
    print("| space | bins | rho |", " | ".join(results), "|")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for kind in ("chain", "tree"):
        for n_bins in SIZES:
            for rho in POWERS:
                errors = [
                    error
                    for dtype in (np.float64, np.float32)
                    for error in largest_errors(kind, n_bins, dtype, rho)
                ]
                cells = " | ".join(f"{error:.1e}" for error in errors)
                print(f"| {kind} | {n_bins} | {rho} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
