"""Losses and scores on chains equal the ranked probability scores of other packages."""

import numpy as np
import properscoring
import pytest
import scoringrules

import fastemd
from tests.support.losses import random_inputs
from tests.support.operations import assert_close

N_ROWS, N_BINS = 20, 9
EDGES = np.cumsum(np.random.default_rng(1).exponential(size=N_BINS + 1)) - 3.0
BARS = fastemd.Chain.from_edges(EDGES)
MIDPOINTS, WIDTHS = EDGES[:-1] + np.diff(EDGES) / 2, np.diff(EDGES)
TOLERANCES = {"float32": 3e-7, "float64": 1e-13}
each_dtype = pytest.mark.parametrize("dtype", TOLERANCES)


def _softmax(x):
    p = np.exp(x.astype(np.float64))
    return p / p.sum(-1, keepdims=True)


def _loss(x, target, chain, rho=2, **options):
    return fastemd.emd_loss(x, target, chain, rho, reduction="none", **options)[0]


def _crps_of_scoringrules(value, positions, p, estimator="nrg"):
    positions = np.broadcast_to(positions, p.shape)
    return scoringrules.crps_ensemble(value, positions, ens_w=p, estimator=estimator)


def _crps_of_properscoring(value, positions, p):
    return properscoring.crps_ensemble(value, np.broadcast_to(positions, p.shape), weights=p)


each_crps = pytest.mark.parametrize("crps", [_crps_of_scoringrules, _crps_of_properscoring])


@each_dtype
def test_emd_loss_of_labels_equals_rps_score_of_scoringrules(dtype, rng):
    x, labels = random_inputs(rng, (N_ROWS, N_BINS), dtype=dtype)
    ref = scoringrules.rps_score(labels + 1, _softmax(x), backend="numpy")
    assert_close(_loss(x, labels, fastemd.Chain(N_BINS)), ref, rtol=TOLERANCES[dtype])


def test_emd_loss_of_histograms_equals_rps_score_of_scoringrules(rng):
    x, target = random_inputs(rng, (N_ROWS, N_BINS), labelled=False)
    ref = scoringrules.rps_score(target, _softmax(x), onehot=True, backend="numpy")
    assert_close(_loss(x, target, fastemd.Chain(N_BINS)), ref)


def test_emd_score_equals_mean_rps_score_of_scoringrules(rng):
    p, labels = random_inputs(rng, (N_ROWS, N_BINS), normalize=None)
    ref = scoringrules.rps_score(labels + 1, p, backend="numpy").mean()
    assert_close(fastemd.metrics.emd_score(labels, p, fastemd.Chain(N_BINS), rho=2), ref)


@each_crps
@each_dtype
def test_emd_loss_at_positions_equals_crps_of_discrete_forecast(crps, dtype, rng):
    positions = np.sort(rng.normal(size=N_BINS))
    x, labels = random_inputs(rng, (N_ROWS, N_BINS), dtype=dtype)
    ref = crps(positions[labels], positions, _softmax(x))
    chain = fastemd.Chain.from_positions(positions)
    assert_close(_loss(x, labels, chain), ref, rtol=TOLERANCES[dtype])


@each_crps
@each_dtype
def test_emd_loss_of_binned_values_equals_crps_between_midpoints(crps, dtype, rng):
    values = rng.uniform(EDGES[0], EDGES[-1], N_ROWS)
    x, _ = random_inputs(rng, (N_ROWS, N_BINS), dtype=dtype)
    nearest = MIDPOINTS[np.digitize(values, EDGES[1:-1])]
    comp = _loss(x, BARS.bin_of(values), BARS)
    assert_close(comp, crps(nearest, MIDPOINTS, _softmax(x)), rtol=TOLERANCES[dtype])


@pytest.mark.parametrize("estimator", ["nrg", "qd", "int"])
def test_emd_loss_equals_each_weighted_estimator_of_scoringrules(estimator, rng):
    x, labels = random_inputs(rng, (N_ROWS, N_BINS))
    ref = _crps_of_scoringrules(MIDPOINTS[labels], MIDPOINTS, _softmax(x), estimator)
    assert_close(_loss(x, labels, BARS), ref)


def test_emd_between_ensembles_of_one_size_is_crps_of_members(rng):
    """An ensemble without weights: every member has the same mass."""
    members = np.sort(rng.normal(size=N_BINS))
    p = np.full((N_BINS, N_BINS), 1 / N_BINS)
    comp = fastemd.emd(p, np.eye(N_BINS), fastemd.Chain.from_positions(members), 2)
    ref = scoringrules.crps_ensemble(members, np.tile(members, (N_BINS, 1)), backend="numpy")
    assert_close(comp, ref)


def _crps_of_uniform_bars(values, p):
    """Integrate the squared error of a piecewise linear CDF exactly, by Simpson's rule."""
    cdf = np.concatenate([np.zeros((len(p), 1)), np.cumsum(p, -1)], -1)
    total = []
    for value, row in zip(values, cdf, strict=True):
        knots = np.sort(np.append(EDGES, value))
        middle = (knots[:-1] + knots[1:]) / 2
        outcome = middle > value  # constant between two knots
        at = [(np.interp(x, EDGES, row) - outcome) ** 2 for x in (knots[:-1], middle, knots[1:])]
        total.append(np.diff(knots) @ (at[0] + 4 * at[1] + at[2]) / 6)
    return np.array(total)


def test_crps_of_uniform_bars_differs_by_documented_terms(rng):
    """The formula of the page "CRPS and RPS"."""
    x, _ = random_inputs(rng, (200, N_BINS))
    p, values = _softmax(x), rng.uniform(EDGES[0], EDGES[-1], 200)
    k, rows = BARS.bin_of(values), np.arange(200)
    offset = values - MIDPOINTS[k]
    below = p.cumsum(-1)[rows, k] - p[rows, k] / 2
    own = p[rows, k] * (WIDTHS[k] / 4 + offset**2 / WIDTHS[k])
    comp = _loss(x, k, BARS) + offset * (2 * below - 1) + own - (p**2 @ WIDTHS) / 6
    assert_close(comp, _crps_of_uniform_bars(values, p))
    difference = np.abs(comp - _loss(x, k, BARS))
    assert (difference <= WIDTHS[k] / 2 + WIDTHS.max() / 6).all()


def test_mean_crps_of_uniform_bars_over_values_of_a_bin_differs_by_widths(rng):
    x, _ = random_inputs(rng, (1, N_BINS))
    p = _softmax(x)
    for k in range(N_BINS):
        values = EDGES[k] + WIDTHS[k] * (np.arange(1000) + 0.5) / 1000
        ref = _crps_of_uniform_bars(values, np.tile(p, (1000, 1))).mean()
        comp = _loss(x, [k], BARS) + p[:, k] * WIDTHS[k] / 3 - (p**2 @ WIDTHS) / 6
        assert_close(comp[0], ref, rtol=1e-6)


def test_emd_loss_with_widths_as_gaps_weighs_cdf_by_widths(rng):
    """The CRPS with which TabPFN is fine-tuned."""
    x, labels = random_inputs(rng, (N_ROWS, N_BINS))
    reached = np.arange(N_BINS) >= labels[:, None]
    ref = (WIDTHS * (_softmax(x).cumsum(-1) - reached) ** 2).sum(-1)
    assert_close(_loss(x, labels, fastemd.Chain(N_BINS, gaps=WIDTHS[:-1])), ref)
