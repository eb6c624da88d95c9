"""Effects of single cases: what is planted is found, what is not told apart is said, intervals hold."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cri import statistics
from cri.data import splits
from cri.data.memberships import (
    ANSWER,
    NEAR,
    NEAR_ANSWER,
    ONE_TOKEN,
    OPERAND,
    Memberships,
    memberships,
    number_tokens,
    offsets,
    steps_by_column,
    token_distance,
)
from cri.errors import CriError
from cri.statistics.case_effects import Halves, kind_effects, membership_effects, offset_kernel
from cri.statistics.coverage import coverage_table
from cri.statistics.errors import differences, error_shares, paired_t
from cri.statistics.intervals import Interval, with_runs
from cri.statistics.mechanisms import PLANTED, outputs
from cri.statistics.readings import NOTHING, Score, holm, mechanism_scores, p_values, reading, supported, z_score
from cri.studies.case_effects import calibration
from cri.studies.leave_x_out.tables import contrast_table, image_table
from cri.tasks import make_task

ADDITION = make_task("addition")


def _ids(*pairs: tuple[int, int]) -> np.ndarray:
    return np.array([ADDITION.id_of(a, b) for a, b in pairs])


def test_token_distance_is_hammings_by_tokenizer():
    test, train = _ids((3, 42)), _ids((3, 52), (4, 42), (13, 42), (3, 2), (42, 3), (99, 99))
    assert token_distance(ADDITION, "digit", train, test)[:, 0].tolist() == [1, 1, 1, 1, 4, 4]
    assert token_distance(ADDITION, "number", train, test)[:, 0].tolist() == [1, 1, 1, 1, 2, 2]
    assert number_tokens(ADDITION, "digit")[ADDITION.id_of(3, 42)].tolist() == ["", "3", "4", "2"]
    with pytest.raises(CriError, match="tokenizer"):
        token_distance(ADDITION, "byte", train, test)


def test_steps_are_told_apart_by_column():
    # 57 + 42: units 7 + 2, tens 5 + 4
    test = _ids((57, 42))
    train = _ids((37, 22), (53, 41), (75, 24), (58, 44), (11, 11))
    found = {name: mask[:, 0].tolist() for name, mask in steps_by_column(ADDITION, train, test).items()}
    assert found["step of the units"] == [True, False, False, False, False]
    assert found["step of the tens"] == [False, True, False, False, False]  # 58 + 44 carries: another step
    assert found["step elsewhere"] == [False, False, True, False, False]  # 7 + 2 in the column of tens


def _halves(task, split, test_ids, effects, *, n_seeds=2, noise=0.5, n_subsets=80):
    """Outputs that are linear in the training cases, with known effects of every pair."""
    rng = np.random.default_rng(0)
    n = len(split.train_ids)
    kept = rng.random((n_subsets, n)).argsort(axis=1) < n // 2
    clean = kept.astype(float) @ effects
    noisy = clean + noise * rng.standard_normal((n_seeds, *clean.shape))
    return Halves(kept, noisy, np.arange(len(test_ids)))


@pytest.fixture(scope="module")
def small():
    task = make_task("addition", size=40)
    split = splits.random(task)
    test_ids = np.sort(np.random.default_rng(1).choice(split.test_ids, 120, replace=False))
    groups = statistics.make_groups(task, split.train_ids, test_ids, [task.answers[i] for i in test_ids])
    return task, split, test_ids, groups, memberships(task, "digit", groups)


def test_the_kernel_shows_at_which_offsets_cases_count(small):
    task, split, test_ids, *_ = small
    off = offsets(task, split.train_ids, test_ids)
    planted = (off == (0, 10)).all(axis=2) * 0.8 + (off == (1, -1)).all(axis=2) * -0.5
    halves = _halves(task, split, test_ids, planted)
    kernel = offset_kernel(halves, off, 12).set_index(["d_row", "d_col"])
    for offset, effect in (((0, 10), 0.8), ((1, -1), -0.5), ((10, 0), 0.0), ((0, -10), 0.0)):
        row = kernel.loc[offset]
        assert abs(row["effect"] - effect) < 4 * row["se"]
    assert kernel.drop([(0, 10), (1, -1)])["effect"].abs().max() < 0.3
    assert kernel.loc[(0, 10), "n_pairs"] == (off == (0, 10)).all(axis=2).sum()


def test_kinds_have_effects_totals_and_leave_out_queries_without_any(small):
    task, split, test_ids, groups, _ = small
    effects = np.where(groups.answer, 0.3, 0.0)
    half = groups.answer.copy()
    half[:, ::2] = False  # every other query has no case of this kind: no zeros are averaged in
    halves = _halves(task, split, test_ids, effects)
    table = kind_effects(halves, {"answer": groups.answer, "half": half, "none": np.zeros_like(half)}, 200)
    assert table["kind"].tolist() == ["answer", "half"]
    assert np.allclose(table["effect"], 0.3, atol=0.06)
    assert ((table["low"] < 0.3) & (table["high"] > 0.3)).all()
    assert np.allclose(table["total"], table["effect"] * table["size"])
    assert table["n_queries"].tolist() == [(groups.answer.any(axis=0)).sum(), (half.any(axis=0)).sum()]


def test_overlapping_memberships_do_not_hide_each_other(small):
    task, split, test_ids, groups, members = small
    # near cases share steps of the tens; only the step counts, wherever it is near
    step = members["step of the tens"]
    fit = membership_effects(_halves(task, split, test_ids, 0.2 * step), members, 300)
    table = fit.table().set_index("membership")
    assert table.loc["step of the tens", "low"] > 0.1
    assert table.loc[NEAR, "low"] < 0 < table.loc[NEAR, "high"]
    assert abs(table.loc[NEAR, "effect"]) < 0.05
    # and the other way round
    fit = membership_effects(_halves(task, split, test_ids, 0.2 * (groups.near & groups.answer)), members, 300)
    table = fit.table().set_index("membership")
    assert abs(table.loc["step of the tens", "effect"]) < 0.05
    assert np.isclose(table.loc[NEAR_ANSWER, "effect"], 0.2, atol=0.1)
    difference = fit.interval({NEAR_ANSWER: 1.0, "step of the tens": -1.0}).estimate
    assert difference == pytest.approx(table.loc[NEAR_ANSWER, "effect"] - table.loc["step of the tens", "effect"])


def test_what_the_design_cannot_tell_apart_is_said(small):
    task, split, test_ids, groups, members = small
    by_number = memberships(task, "number", groups)
    fit = membership_effects(_halves(task, split, test_ids, 0.1 * groups.answer), by_number, 100)
    assert f"{OPERAND} = {ONE_TOKEN}" in fit.names
    assert fit.index(ONE_TOKEN) == fit.index(OPERAND)
    # a membership that nearly is another one has its variance inflated
    twin = groups.answer.copy()
    twin[:80] = False
    both = Memberships((ANSWER, "twin"), np.stack([groups.answer, twin]))
    table = membership_effects(_halves(task, split, test_ids, 0.1 * groups.answer), both, 100).table()
    assert table["vif"].min() > 10
    assert not table["told_apart"].any()
    assert table["closest"].tolist() == ["twin", ANSWER]
    assert members.only((ANSWER, "hundreds")).names == (ANSWER,)
    with pytest.raises(CriError, match="membership"):
        fit.index("colour")


def test_the_vectorised_regression_is_least_squares(small):
    task, split, test_ids, groups, members = small
    chosen = members.only((NEAR, ANSWER, "step of the units"))
    halves = _halves(task, split, test_ids, 0.1 * groups.near, n_seeds=1)
    fit = membership_effects(halves, chosen, 20)
    counts = np.stack([halves.kept.astype(float) @ mask for mask in chosen.masks], axis=-1)
    x = (counts - counts.mean(axis=0)).reshape(-1, 3)
    slow, *_ = np.linalg.lstsq(x, halves.centered[0].ravel(), rcond=None)
    assert np.allclose(fit.samples[0, 0], slow, atol=1e-8)


def test_intervals_with_few_runs_cover():
    table = coverage_table((3,), (25,), (0.0, 1.0), n_experiments=150, n_boot=100)
    new = table[table["interval"] == "blocks resampled, t over runs"]
    assert (new["high"] > 0.95).all()  # Wilson's interval of the coverage does not exclude 0.95 from below
    old = table[(table["interval"] == "runs and blocks resampled") & (table["n_runs"] == 3) & (table["run_sd"] == 1.0)]
    assert (old["high"] < 0.9).all()
    alone = with_runs(np.array([[1.0, 0.9, 1.1, 1.0, 0.95]]))
    assert alone.low < 1 < alone.high
    wide = with_runs(np.array([[1.0, 1.0, 1.0], [3.0, 3.0, 3.0]]))
    assert np.allclose((wide.estimate, wide.high), (2.0, 2.0 + 12.706), atol=0.01)  # t with one degree of freedom


def test_holm_stops_at_the_first_that_fails():
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == [True, False, False, True]
    assert not holm([0.03, 0.03]).any()
    assert z_score(Interval(2.0, 1.0, 5.0)) == pytest.approx(3.92, abs=0.01)
    assert z_score(Interval(0.0, 0.0, 0.0)) == 0
    assert p_values(np.array([1.96]))[0] == pytest.approx(0.05, abs=1e-3)
    values = {"a": 5.0, "b": -6.0, "c": 0.1}
    scores = {name: Score(Interval(z, z - 1, z + 1), z) for name, z in values.items()}
    assert supported(scores) == ["a"]
    assert reading({"c": scores["c"]}) == NOTHING


@pytest.fixture(scope="module")
def planted_design():
    return calibration.design(size=50, n_queries=60)


@pytest.mark.parametrize("planted", list(PLANTED))
def test_planted_mechanisms_are_read_as_what_they_are(planted, planted_design):
    given = planted_design
    kept = calibration.random_halves(60, len(given.train_ids), 0)
    response = PLANTED[planted](given.task, kept, given.train_ids, given.test_ids)
    halves = Halves(kept, outputs(response, 0.3, 3, 0), np.arange(len(given.test_ids)))
    assert reading(mechanism_scores(membership_effects(halves, given.members, 200))) == planted


def test_calibration_tables(planted_design, monkeypatch):
    monkeypatch.setattr(calibration, "N_BOOT", 50)
    found = calibration.experiments(2, planted_design)
    assert len(found) == 3 * 2 * len(PLANTED)
    table = calibration.confusion(found)
    assert (table.groupby(["instrument", "planted"])["count"].sum() == 2).all()
    halves = table[table["instrument"] == "random halves"]
    assert halves[halves["planted"] == halves["reading"]]["share"].min() >= 1 / 2
    pairs = calibration.separation(found)
    assert len(pairs) == 3 * 15
    assert (pairs[pairs["instrument"] == "random halves"]["auc"] > 0.95).all()
    assert (pairs["low"] <= pairs["auc"]).all()


def test_halves_refuse_what_does_not_fit():
    with pytest.raises(CriError, match="two subsets"):
        Halves(np.ones((1, 5), bool), np.zeros((1, 1, 2)), np.zeros(2, int))


def test_how_wrong_answers_are_wrong():
    found = differences(["12", "22", "", "13", "12 rabbits"], ["12", "12", "12", "12", "12"])
    assert found.tolist()[:2] == [0, 10]
    assert np.isnan(found[2])
    shares = error_shares(found)
    assert shares["n_wrong"] == 3
    for name, share in (("unread", 1 / 3), ("within_1", 1 / 3), ("multiple_of_10", 1 / 3)):
        assert shares[name] == pytest.approx(share)
    assert error_shares(np.zeros(3))["n_wrong"] == 0


def test_paired_t_is_students():
    found = paired_t([0.27, -0.52, -0.86])
    assert found["mean"] == pytest.approx(-0.37, abs=1e-9)
    assert found["p"] == pytest.approx(0.39, abs=0.01)  # as the audit had it
    assert found["low"] < found["mean"] < found["high"]
    assert np.isnan(paired_t([0.5])["p"])


def test_cells_without_their_image_are_compared_at_equal_distance():
    names = {"task": "addition", "format": "direct", "tokenizer": "number", "center_row": 5, "center_col": 9, "seed": 0}
    cells = pd.DataFrame({
        "distance": [1, 1, 1, 2, 2, 3], "image": [False, False, True, True, False, True],
        "correct": [False, True, True, True, False, False],
    })  # fmt: skip
    row = image_table(cells.assign(**names)).iloc[0]
    assert (row["n_without"], row["n_with"]) == (3, 3)
    assert row["without"] == pytest.approx(1 / 3)
    assert row["matched_without"] == pytest.approx((2 * 0.5 + 0) / 3)
    assert row["matched_with"] == 1
    assert image_table(cells.assign(**{**names, "center_col": 5})).empty  # on the diagonal


def test_contrasts_pair_seeds():
    rows = [
        {"task": "addition", "format": "direct", "tokenizer": "number", "seed": seed, "design": design, "accuracy": a}
        for seed, pair in enumerate([(0.5, 0.9), (0.4, 0.8), (0.6, 0.9)])
        for design, a in zip(("mirrored", "one_sided"), pair, strict=True)
    ]
    row = contrast_table(pd.DataFrame(rows)).iloc[0]
    assert row["mean"] == pytest.approx(-11 / 30)
    assert row["n"] == 3
    assert row["significant"]
