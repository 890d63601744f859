"""The oracle of UniFrac agrees with scikit-bio, with ssu and with distances computed by hand.

Where the programs differ from the oracle, a test states the difference.
"""

from math import sqrt

import numpy as np
import pytest

from tests.support import naive, naive_unifrac
from tests.support.operations import assert_close
from tests.support.unifrac_cases import (
    COUNTS,
    SCIKIT_BIO,
    SMALL,
    each_engine,
    each_metric,
    names,
    needs_ssu,
    newick,
    problem,
    reference,
    scikit_bio,
    ssu,
    with_stem,
)

# The oracle --------------------------------------------------------------------------------------


def test_oracle_gives_distances_by_hand():
    value = {metric: reference(COUNTS, SMALL, metric)[0, 1] for metric in naive_unifrac.METRICS}
    assert value["unweighted"] == pytest.approx((1 + 4) / 10)
    weighted = 1 / 3 + 2 / 2 + 3 * 5 / 6 + 4 * 5 / 6
    assert value["weighted"] == pytest.approx(weighted)
    from_root = (1 + 3) * 1 / 3 + (2 + 3) * (2 / 3 + 1 / 6) + 4 * 5 / 6
    assert value["weighted_normalized"] == pytest.approx(weighted / from_root)
    assert value["generalized"] == pytest.approx(weighted / from_root)
    # Below the edges are m = 1, 3, 5 and 4 of M = 9 individuals.
    s = [sqrt(m * (9 - m)) for m in (1, 3, 5, 4)]
    terms = 1 / 3 / s[0] + 2 / 2 / s[1] + 4 * 5 / 6 / s[2] + 3 * 5 / 6 / s[3]
    norms = 1 / 3 / s[0] + 2 * 5 / 6 / s[1] + 4 * 5 / 6 / s[2] + 3 * 7 / 6 / s[3]
    assert value["variance_adjusted"] == pytest.approx(terms / norms)
    edges = 1 * 1 + 2 * 3 / 5 + 4 * 1 + 3 * 5 / 7
    assert reference(COUNTS, SMALL, "generalized", 0.0)[0, 1] == pytest.approx(edges / 10)
    edges = 1 / sqrt(3) + 2 * sqrt(5 / 6) * 3 / 5 + 4 * sqrt(5 / 6) + 3 * sqrt(7 / 6) * 5 / 7
    norms = 1 / sqrt(3) + 2 * sqrt(5 / 6) + 4 * sqrt(5 / 6) + 3 * sqrt(7 / 6)
    assert reference(COUNTS, SMALL, "generalized", 0.5)[0, 1] == pytest.approx(edges / norms)


@each_metric
@pytest.mark.parametrize("seed", range(3))
def test_oracle_depends_neither_on_order_of_nodes_nor_on_unary_nodes(metric, seed):
    ground, counts = problem(seed)
    rng = np.random.default_rng(seed)
    ref = reference(counts, ground, metric, 0.5)
    divided = naive.subdivide(ground, rng.integers(1, 4, len(ground.parent)).tolist())
    other = naive.relabel(divided, rng.permutation(len(divided.parent)).tolist())
    assert_close(reference(counts, other, metric, 0.5), ref)


@each_metric
def test_oracle_ignores_taxa_without_counts(metric):
    ground, counts = problem(3)
    counts[:, :3] = 0
    ref = reference(counts, ground, metric, 0.5)
    fewer = ground._replace(bin_node=ground.bin_node[3:])
    assert_close(reference(counts[:, 3:], fewer, metric, 0.5), ref)


@each_metric
def test_oracle_of_empty_samples(metric):
    counts = [*COUNTS, [0, 0, 0], [0, 0, 0]]
    comp = reference(counts, SMALL, metric, 0.5)
    assert comp[3, 4] == 0
    from_root = [1 * 4 / 3 + 2 * 5 / 3, 5 / 6 + 4 * 5 / 6, 3 * 4 / 4 + 4 / 4]
    np.testing.assert_allclose(comp[3, :3], from_root if metric == "weighted" else 1.0)


@each_metric
def test_oracle_without_lengths_is_zero(metric):
    ground = SMALL._replace(weight=[0.0] * 5)
    assert (reference(COUNTS, ground, metric, 0.5) == 0).all()


def test_oracle_of_pair_is_entry_of_matrix():
    ground, counts = problem(1)
    pair = naive_unifrac.unifrac_pair(*counts[:2], *ground, "unweighted")
    assert pair == reference(counts, ground, "unweighted")[0, 1]


def test_oracle_rejects_unknown_metric():
    with pytest.raises(ValueError, match="metric 'wrong' is unknown"):
        reference(COUNTS, SMALL, "wrong")


# scikit-bio --------------------------------------------------------------------------------------


@each_engine
@pytest.mark.parametrize("metric", SCIKIT_BIO)
@pytest.mark.parametrize("seed", range(8))
def test_oracle_equals_scikit_bio(seed, metric, engine):
    ground, counts = problem(seed)
    ref = scikit_bio(counts, ground, metric, engine)
    assert_close(reference(counts, ground, metric), ref, rtol=1e-10)


@each_engine
@pytest.mark.parametrize("metric", SCIKIT_BIO)
def test_oracle_equals_scikit_bio_for_empty_samples(metric, engine):
    counts = [*COUNTS, [0, 0, 0], [0, 0, 0]]
    ref = scikit_bio(counts, SMALL, metric, engine)
    assert_close(reference(counts, SMALL, metric), ref, rtol=1e-10)


@pytest.mark.parametrize("metric", SCIKIT_BIO)
def test_scikit_bio_adds_root_length_to_denominators(metric):
    """The oracle and ssu ignore the length of the root; a stem below a unary root counts."""
    ground, counts = problem(4)
    ref = scikit_bio(counts, ground, metric, "cython", ":2.5")
    assert_close(reference(counts, with_stem(ground, 2.5), metric), ref, rtol=1e-10)


# ssu ---------------------------------------------------------------------------------------------


@needs_ssu
@each_metric
@pytest.mark.parametrize("seed", range(8))
def test_oracle_equals_ssu(seed, metric, tmp_path):
    ground, counts = problem(seed)
    alpha = [0.0, 0.25, 0.5, 1.0][seed // 2]
    root_length = ["", ":2.5"][seed % 2]  # ignored
    ref = ssu(tmp_path, counts, newick(ground, root_length), names(ground), metric, alpha)
    assert_close(reference(counts, ground, metric, alpha), ref, rtol=1e-6)


@needs_ssu
@each_metric
def test_oracle_equals_ssu_for_frequencies(metric, tmp_path):
    ground, counts = problem(5)
    rows = counts / counts.sum(axis=1, keepdims=True)
    ref = ssu(tmp_path, rows, newick(ground), names(ground), metric, 0.5)
    assert_close(reference(rows, ground, metric, 0.5), ref, rtol=1e-6)


@needs_ssu
@each_metric
def test_oracle_equals_ssu_for_empty_samples_except_nan(metric, tmp_path):
    counts = [*COUNTS, [0, 0, 0], [0, 0, 0]]
    ref = ssu(tmp_path, counts, newick(SMALL), names(SMALL), metric, 0.5)
    assert np.isnan(ref[3, 4]) == (metric != "weighted")
    assert_close(reference(counts, SMALL, metric, 0.5), np.nan_to_num(ref), rtol=1e-6)


@needs_ssu
@each_metric
def test_ssu_reads_missing_lengths_as_zero(metric, tmp_path):
    ref = ssu(tmp_path, COUNTS, "((t0:1,t1:2),t2:4);", names(SMALL), metric, 0.5)
    ground = SMALL._replace(weight=[1.0, 2.0, 4.0, 0.0, 0.0])
    assert_close(reference(COUNTS, ground, metric, 0.5), ref, rtol=1e-6)
