"""The LDS and its controls on planted linear models, where the truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from cri.errors import CriError
from cri.statistics.datamodels import lds_table, noise_ceiling, rank, rank_correlation, resamples, subset_sums

N_SUBSETS, N_TRAIN, N_QUERIES = 80, 60, 36


@pytest.fixture(scope="module")
def planted():
    rng = np.random.default_rng(0)
    kept = rng.random((N_SUBSETS, N_TRAIN)) < 0.5
    scores = rng.normal(size=(N_TRAIN, N_QUERIES))
    return rng, kept, scores, resamples(N_SUBSETS, np.arange(N_QUERIES) // 4, n_boot=400)


def test_a_planted_linear_model_scores_1_its_opposite_minus_1_and_chance_holds_0(planted):
    rng, kept, scores, draws = planted
    truth = subset_sums(scores, kept)
    methods = {"true": scores, "opposite": -scores, "chance": rng.normal(size=scores.shape), "silent": 0 * scores}
    sums = {name: subset_sums(values, kept) for name, values in methods.items()}
    table = lds_table(sums, {"fixed seed": [truth]}, ("chance", "silent"), draws).set_index("method")
    assert table.loc["true", "lds"] == pytest.approx(1.0)
    assert table.loc["opposite", "lds"] == pytest.approx(-1.0)
    assert table.loc["chance", "lds_low"] < 0 < table.loc["chance", "lds_high"]
    assert table.loc["silent", "lds"] == 0
    assert table.loc["true", "gain_low"] > 0.5


def test_rank_correlation_is_spearmans(planted):
    rng, kept, scores, _ = planted
    x, y = subset_sums(scores, kept), rng.integers(0, 5, size=(N_SUBSETS, N_QUERIES)).astype(float)
    got = rank_correlation(rank(x), rank(y), np.ones((1, N_SUBSETS)))[0]
    want = [spearmanr(x[:, q], y[:, q]).statistic for q in range(N_QUERIES)]
    np.testing.assert_allclose(got, want, atol=1e-12)
    # a weight of two is the subset listed twice
    weights = np.ones((1, N_SUBSETS))
    weights[0, :10] = 2
    twice = np.r_[np.arange(N_SUBSETS), np.arange(10)]
    rx, ry = rank(x), rank(y)
    want = [np.corrcoef(rx[twice, q], ry[twice, q])[0, 1] for q in range(N_QUERIES)]
    np.testing.assert_allclose(rank_correlation(rx, ry, weights)[0], want, atol=1e-10)


def test_partial_lds_is_what_a_method_adds_to_the_best_baseline(planted):
    """f = baseline + method: both have LDS about 0.7; with the baseline given, the method explains the rest, a noisy
    copy of the baseline explains nothing."""
    rng, kept, scores, draws = planted
    other = rng.normal(size=scores.shape)
    truth = subset_sums(scores + other, kept)
    copy = subset_sums(scores, kept)
    copy = copy + 0.3 * copy.std() * rng.normal(size=copy.shape)
    sums = {"baseline": subset_sums(scores, kept), "method": subset_sums(other, kept), "copy": copy}
    table = lds_table(sums, {"fixed seed": [truth]}, ("baseline",), draws).set_index("method")
    assert table.loc["method", "lds"] == pytest.approx(0.69, abs=0.12)
    assert table.loc["method", "partial"] > 0.9
    assert table.loc["copy", "lds"] > 0.5
    assert abs(table.loc["copy", "partial"]) < 0.12
    assert table.loc["copy", "gain_high"] < 0


def test_noise_ceiling_recovers_the_planted_reliability(planted):
    rng, kept, scores, draws = planted
    truth = subset_sums(scores, kept)
    noise = truth.std()
    seeds = [truth + noise * rng.normal(size=truth.shape) for _ in range(3)]
    ceiling = noise_ceiling(seeds, draws)
    # signal and noise of one variance: reliability one half (a little less in ranks)
    assert ceiling["reliability"].estimate == pytest.approx(0.48, abs=0.06)
    best = lds_table({"true": truth}, {"new seed": seeds}, ("true",), draws)["lds"].iloc[0]
    assert ceiling["ceiling"].estimate == pytest.approx(best, abs=0.04)
    with pytest.raises(CriError, match="at least two seeds"):
        noise_ceiling(seeds[:1], draws)


def test_resamples_refuse_what_has_no_interval():
    with pytest.raises(CriError, match="one block"):
        resamples(10, np.zeros(5, dtype=int))
    with pytest.raises(CriError, match="n_subsets"):
        resamples(1, np.arange(5))


def test_subsets_with_as_many_cases_of_a_group_share_a_rank():
    rng = np.random.default_rng(0)
    counted = (rng.random((811, 4)) < 0.03).astype(float) * 0.1  # no binary fraction: sums round
    kept = np.zeros((100, 811), dtype=bool)
    for row in kept:
        row[rng.choice(811, 405, replace=False)] = True
    sums = subset_sums(counted, kept)
    for query in range(4):
        assert len(np.unique(sums[:, query])) == len(np.unique(kept @ (counted[:, query] > 0).astype(int)))
