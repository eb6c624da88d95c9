"""Statistics against brute force, and against planted structure that they must (or must not) find."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from cri import statistics
from cri.attribution import baselines
from cri.data import case_relations, splits
from cri.errors import CriError
from cri.statistics.verdict import BOTH, MIN_TESTS, NEARBY, OUTPUT, STEPS, UNDECIDED, decide, overall, verdicts
from cri.tasks import Task, make_task

K = 10


@pytest.fixture(scope="module")
def task() -> Task:
    return make_task("addition", size=60)


@pytest.fixture(scope="module")
def split(task: Task) -> splits.Split:
    return splits.square(task, half_side=8)


def wrong_by_one(task: Task, ids: np.ndarray, share: float = 0.5) -> list[str]:
    """Predictions of which a share misses the answer by one, as models in the hole do."""
    miss = np.random.default_rng(1).random(len(ids)) < share
    return [str(task.values[i] + m) for i, m in zip(ids, miss, strict=True)]


@pytest.fixture(scope="module")
def groups(task: Task, split: splits.Split) -> statistics.Groups:
    return statistics.make_groups(task, split.train_ids, split.test_ids, wrong_by_one(task, split.test_ids))


def enriched(task: Task, groups: statistics.Groups, scores: np.ndarray) -> pd.DataFrame:
    table = statistics.enrichment(scores, groups, K)
    table["block"], table["run"] = np.repeat(statistics.grid_blocks(task, groups.test_ids), 5), 0
    return statistics.estimate(table, "share", ["group"], "base").set_index("group")


def contrasts(task: Task, groups: statistics.Groups, scores: np.ndarray, value: str = "auc") -> pd.DataFrame:
    table = statistics.matched(scores, groups, K)
    table["block"], table["run"] = np.repeat(statistics.grid_blocks(task, groups.test_ids), 3), 0
    return statistics.estimate(table, value, ["contrast"]).set_index("contrast")


# --- groups


@pytest.mark.parametrize("name", ["addition", "mod_addition", "base_addition", "linear_regression", "chicken_rabbit"])
def test_groups_are_a_partition_by_precedence(name: str) -> None:
    task = make_task(name, size=40)
    split = splits.square(task, half_side=4)
    answers = [task.answers[i] for i in split.test_ids]
    g = statistics.make_groups(task, split.train_ids, split.test_ids, answers)
    steps = [set(s) for s in task.case_steps]
    informative = case_relations.informative_steps(task)
    for j in (0, 40, 80):
        t = split.test_ids[j]
        for i in range(0, len(split.train_ids), 37):
            c = split.train_ids[i]
            distance = np.abs(task.coords[c] - task.coords[t]).max()
            label = statistics.labels([task.answers[c], answers[j]])
            shares_step = (informative[int(c)].multiply(informative[int(t)])).nnz > 0
            assert not shares_step or steps[c] & steps[t]
            traits = [
                distance <= g.radius[j],
                label[0] == label[1],
                bool((task.cases[c] == task.cases[t]).any()),
                shares_step,
            ]
            expected = statistics.GROUPS[traits.index(True)] if any(traits) else "rest"
            assert statistics.GROUPS[g.codes[i, j]] == expected
    near = (g.codes == 0).sum(axis=0)
    assert (near >= g.n_near).all()
    # one ring less would have been too few
    inner = case_relations.grid_distance(task, split.train_ids, split.test_ids) < g.radius
    assert (inner.sum(axis=0) < g.n_near).all()
    base = g.base_rates()
    assert base["base"].sum() == pytest.approx(1)
    assert base["size"].sum() == pytest.approx(len(split.train_ids))


def test_groups_by_answer_are_a_partition_that_knows_mirror_images(task: Task, split: splits.Split) -> None:
    g = statistics.make_groups(task, split.train_ids, split.test_ids, [task.answers[i] for i in split.test_ids])
    names = np.array(statistics.BY_ANSWER)[statistics.by_answer(g)]
    np.testing.assert_array_equal(np.isin(names, ("near_same_answer", "near_other_answer")), g.near)
    np.testing.assert_array_equal(
        np.char.endswith(names, "same_answer") | np.char.startswith(names, "same_answer"), g.answer
    )
    image = {operands: i for i, operands in enumerate(task.operands)}
    for column, test in enumerate(split.test_ids[::7].tolist()):
        a, b = task.operands[test]
        away = case_relations.grid_distance(task, split.train_ids, np.array([image[b, a]]))[:, 0]
        own = names[:, 7 * column]
        close = (away <= g.radius[7 * column]) & ~g.near[:, 7 * column] & g.answer[:, 7 * column] & (a != b)
        np.testing.assert_array_equal(own == "mirror_same_answer", close)


def test_the_deepest_cell_is_near_the_ring_beyond_the_border(task: Task, split: splits.Split) -> None:
    g = statistics.make_groups(task, split.train_ids, split.test_ids, ["60"] * len(split.test_ids), n_near=1)
    centre = np.searchsorted(split.test_ids, task.id_of(*task.center))
    assert g.radius[centre] == 9
    assert (g.codes[:, centre] == 0).sum() == 4 * 18


def test_labels_are_the_first_number() -> None:
    found = statistics.labels(["57", "There are 12 rabbits and 3 chickens.", "", "007"])
    assert found.tolist() == ["57", "12", "", "007"]


def test_near_is_matched_to_the_size_of_same_answer(task: Task, split: splits.Split) -> None:
    train = statistics.labels(task.answers[i] for i in split.train_ids)
    assert statistics.matched_size(train, np.array(["60", "60", "0"])) == (train == "60").sum()
    assert statistics.matched_size(train, np.array(["", ""])) == 1
    assert statistics.matched_size(train, np.array(["999"])) == 1


def test_groups_refuse_bad_input(task: Task, split: splits.Split) -> None:
    train, test = split.train_ids, split.test_ids
    with pytest.raises(CriError, match="some are training cases"):
        statistics.make_groups(task, train, train[:3], ["1"] * 3)
    with pytest.raises(CriError, match="must be positive"):
        statistics.make_groups(task, train, test[:0], [])
    with pytest.raises(CriError, match="n_near"):
        statistics.make_groups(task, train, test, ["1"] * len(test), n_near=0)
    with pytest.raises(CriError, match="predictions"):
        statistics.make_groups(task, train, test, ["1"])


# --- enrichment


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 12), st.data())
def test_top_k_weights_are_the_mean_over_random_tie_breaking(n: int, data: st.DataObject) -> None:
    scores = np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)), dtype=float)[:, None]
    k = data.draw(st.integers(1, n))
    best = statistics.top_k(scores, k)
    weights = np.zeros(n)
    weights[best.rows] = best.weights
    rng = np.random.default_rng(0)
    seen = np.zeros(n)
    for _ in range(400):
        seen[np.lexsort((rng.random(n), -scores[:, 0]))[:k]] += 1 / 400
    assert weights.sum() == pytest.approx(k)
    np.testing.assert_allclose(weights, seen, atol=0.15)
    assert best.kth_score[0] == np.sort(scores[:, 0])[n - k]


def test_enrichment_against_sorting(groups: statistics.Groups) -> None:
    scores = np.random.default_rng(0).normal(size=groups.codes.shape).astype(np.float32)
    table = statistics.enrichment(scores, groups, K)
    for j in (0, 100, 200):
        best = np.argsort(-scores[:, j])[:K]
        rows = table[table["test_id"] == groups.test_ids[j]].set_index("group")
        for g, name in enumerate(statistics.GROUPS):
            members = groups.codes[:, j] == g
            assert rows.loc[name, "share"] == pytest.approx((groups.codes[best, j] == g).mean())
            assert rows.loc[name, "base"] == pytest.approx(members.mean())
            positive = np.maximum(scores[:, j], 0)
            assert rows.loc[name, "mass"] == pytest.approx(positive[members].sum() / positive.sum(), rel=1e-4)


def test_shares_of_kinds_against_counting(groups: statistics.Groups) -> None:
    scores = np.random.default_rng(3).integers(0, 30, groups.codes.shape).astype(float)  # many ties
    kinds = {"near": groups.near, "operand": groups.operand, "none": np.zeros_like(groups.near)}
    table = statistics.kind_shares(scores, kinds, groups.test_ids, k=7).set_index(["kind", "test_id"])
    assert set(table.index.get_level_values("kind")) == {"near", "operand"}  # no case has any of the third
    for j, test_id in enumerate(groups.test_ids[:20]):
        order = np.sort(scores[:, j])[::-1]
        above, tied = scores[:, j] > order[6], scores[:, j] == order[6]
        for kind in ("near", "operand"):
            mask = kinds[kind][:, j]
            expected = (mask[above].sum() + mask[tied].mean() * (7 - above.sum())) / 7
            row = table.loc[(kind, test_id)]
            assert row["share"] == pytest.approx(expected)
            assert row["base"] == pytest.approx(mask.mean())
            assert row["size"] == mask.sum()


def test_planted_distance_enriches_near_and_holds_among_equal_outputs(task: Task, groups: statistics.Groups) -> None:
    scores = baselines.nearest_operands(task, groups.train_ids, groups.test_ids)
    table = enriched(task, groups, scores)
    assert table.loc["near", "estimate"] > 20
    assert (table.drop("near")["estimate"] < 0.5).all()
    assert contrasts(task, groups, scores).loc["near", "estimate"] == 1
    assert contrasts(task, groups, scores, "excess").loc["near", "low"] > 0.2
    assert statistics.enrichment(scores, groups, K)["mass"].isna().all()  # a distance has no positive mass


def test_planted_answer_enriches_same_answer_and_nothing_among_equal_outputs(
    task: Task, groups: statistics.Groups
) -> None:
    scores = case_relations.same_answer(groups.train_labels, groups.test_labels)
    table = enriched(task, groups, scores)
    assert table.loc["same_answer", "low"] > 20
    assert table.loc["near", "low"] > 1  # near cases with the answer: what the matched contrast is for
    for contrast in ("near", "step"):
        row = contrasts(task, groups, scores).loc[contrast]
        assert row["estimate"] == row["low"] == row["high"] == 0.5
        excess = contrasts(task, groups, scores, "excess").loc[contrast]
        # for steps, windows of distance balance only on average
        tolerance = 1e-9 if contrast == "near" else 0.005
        np.testing.assert_allclose(excess[["estimate", "low", "high"]].astype(float), 0, atol=tolerance)


def test_planted_steps_and_operands_enrich_their_groups(task: Task, groups: statistics.Groups) -> None:
    steps = case_relations.shared_steps(task, groups.train_ids, groups.test_ids)
    assert enriched(task, groups, steps).loc["same_step", "low"] > 5
    assert contrasts(task, groups, steps).loc["step", "low"] > 0.99
    operands = case_relations.shared_operands(task, groups.train_ids, groups.test_ids)
    table = enriched(task, groups, operands)
    assert table["estimate"].idxmax() == "same_operand"


def test_random_scores_are_at_the_base_rate(task: Task, groups: statistics.Groups) -> None:
    covered = matched = 0
    for seed in range(100, 108):
        scores = np.random.default_rng(seed).normal(size=groups.codes.shape).astype(np.float32)
        table = enriched(task, groups, scores).drop("rest")
        covered += ((table["low"] <= 1) & (table["high"] >= 1)).sum()
        rows = contrasts(task, groups, scores, "excess")
        matched += ((rows["low"] <= 0) & (rows["high"] >= 0)).sum()
        np.testing.assert_allclose(table["estimate"], 1, atol=0.6)
    assert covered >= 26  # of 32 intervals at 95 %
    assert matched >= 13  # of 16


def test_matched_against_loops(groups: statistics.Groups) -> None:
    scores = np.random.default_rng(3).integers(0, 5, size=groups.codes.shape).astype(float)
    table = statistics.matched(scores, groups, K)
    best = statistics.top_k(scores, K)
    for j in (0, 57, 288):
        weight = dict(zip(best.rows[best.columns == j], best.weights[best.columns == j], strict=True))
        everyone = [
            {"near": groups.near[i, j], "step": groups.step[i, j], "d": int(groups.distance[i, j]), "i": i}
            | {"answer": groups.train_labels[i], "s": scores[i, j]}
            for i in np.flatnonzero(~groups.operand[:, j])
        ]
        for contrast, other in (("near", "step"), ("step", "near")):
            pool = [c for c in everyone if not c[other]]
            share = expected = 0.0
            for c in pool:
                if c["i"] in weight:
                    like = [
                        x
                        for x in pool
                        if x["answer"] == c["answer"] and (contrast == "near" or abs(x["d"] - c["d"]) <= 2)
                    ]
                    share += weight[c["i"]] * c[contrast] / K
                    expected += weight[c["i"]] * np.mean([x[contrast] for x in like]) / K
            same = [c for c in pool if c["answer"] == groups.test_labels[j]]
            wins = [
                (x["s"] > y["s"]) + 0.5 * (x["s"] == y["s"])
                for x in same
                for y in same
                if x[contrast] and not y[contrast] and (contrast == "near" or abs(x["d"] - y["d"]) <= 2)
            ]
            row = table[(table["test_id"] == groups.test_ids[j]) & (table["contrast"] == contrast)].iloc[0]
            assert row["share"] == pytest.approx(share)
            assert row["expected"] == pytest.approx(expected)
            assert row["excess"] == pytest.approx(share - expected)
            assert row["n_pairs"] == len(wins)
            assert row["auc"] == pytest.approx(np.mean(wins) if wins else np.nan, nan_ok=True)


def test_near_cases_around_the_mirror_image_can_be_set_apart(task: Task, groups: statistics.Groups) -> None:
    """A score that knows near cases only where they are no mirror images, and one that knows mirror images only."""
    apart = contrasts(task, groups, (groups.near & ~groups.mirror).astype(float), "excess")["estimate"]
    assert apart["near, mirror apart"] > 0.1
    mirror = contrasts(task, groups, groups.mirror.astype(float), "excess")
    assert mirror.loc["near", "estimate"] > 0.02  # near the diagonal they are near cases as well
    assert mirror.loc["near, mirror apart", "estimate"] == pytest.approx(0, abs=1e-9)


def test_contrasts_hold_each_other_and_graded_outputs_fixed(task: Task, groups: statistics.Groups) -> None:
    steps = case_relations.shared_steps(task, groups.train_ids, groups.test_ids)
    assert contrasts(task, groups, steps).loc["near", "estimate"] == 0.5
    assert contrasts(task, groups, steps, "excess").loc["near", "estimate"] == pytest.approx(0, abs=1e-9)
    distance = baselines.nearest_operands(task, groups.train_ids, groups.test_ids)
    assert contrasts(task, groups, distance).loc["step", "estimate"] == pytest.approx(0.5, abs=0.05)
    assert abs(contrasts(task, groups, distance, "excess").loc["step", "estimate"]) < 0.02
    likeness = -np.abs(groups.train_labels.astype(int)[:, None] - groups.test_labels.astype(int)[None])
    excess = contrasts(task, groups, likeness.astype(float), "excess")
    assert excess.loc["near", "estimate"] == pytest.approx(0, abs=1e-9)
    assert excess.loc["step", "estimate"] == pytest.approx(0, abs=0.005)


def test_scores_are_checked(groups: statistics.Groups) -> None:
    bad = np.full(groups.codes.shape, np.nan)
    with pytest.raises(CriError, match="not finite"):
        statistics.enrichment(bad, groups, K)
    with pytest.raises(CriError, match="shape"):
        statistics.enrichment(bad[:-1], groups, K)
    with pytest.raises(CriError, match="k:"):
        statistics.top_k(np.zeros((3, 2)), 4)


# --- the vote


def test_vote_against_counting(groups: statistics.Groups, task: Task) -> None:
    true = statistics.labels(task.answers[i] for i in groups.test_ids)
    scores = np.random.default_rng(4).normal(size=groups.codes.shape)
    table = statistics.vote(scores, groups, true, K)
    for j in (0, 150, 288):
        names, counts = np.unique(groups.train_labels[np.argsort(-scores[:, j])[:K]], return_counts=True)
        lead = names[counts == counts.max()]
        for column, label in (("agrees", groups.test_labels[j]), ("agrees_true", true[j])):
            assert table[column].iloc[j] == pytest.approx((lead == label).sum() / len(lead))
        assert table["base"].iloc[j] == pytest.approx((groups.train_labels == groups.test_labels[j]).mean())
    assert (table["correct"] == (groups.test_labels == true)).all()


def test_vote_of_planted_neighbours(groups: statistics.Groups, task: Task) -> None:
    true = statistics.labels(task.answers[i] for i in groups.test_ids)
    table = statistics.vote(case_relations.same_answer(groups.train_labels, groups.test_labels), groups, true, K)
    assert (table["agrees"] == 1).all()
    assert (table["agrees_true"] == table["correct"]).all()


def test_neighbor_distance_is_the_kth(groups: statistics.Groups) -> None:
    scores = -np.random.default_rng(5).random(groups.codes.shape)
    np.testing.assert_array_equal(statistics.neighbor_distance(scores, K), np.sort(-scores, axis=0)[K - 1])


# --- intervals


def test_wilson_against_its_equation() -> None:
    low, high = statistics.wilson(8, 10)
    for p in (low, high):  # the ends solve |k - np| = z sqrt(n p (1 - p))
        assert abs(8 - 10 * p) == pytest.approx(1.959964 * np.sqrt(10 * p * (1 - p)), rel=1e-5)
    assert statistics.wilson(0, 0) == (0, 1)
    assert statistics.wilson(5, 5)[1] == 1
    with pytest.raises(CriError):
        statistics.wilson(3, 2)


def test_bootstrap_of_independent_cases_has_the_normal_width() -> None:
    x = np.random.default_rng(0).normal(size=400)
    interval = statistics.bootstrap_ratio(x, np.ones(400), np.zeros(400), np.arange(400))
    half = 1.96 * x.std() / 20
    assert interval.estimate == pytest.approx(x.mean())
    assert interval.low == pytest.approx(x.mean() - half, abs=0.02)
    assert interval.high == pytest.approx(x.mean() + half, abs=0.02)


def test_blocks_and_runs_widen_the_interval_as_they_should() -> None:
    rng = np.random.default_rng(0)
    block = np.repeat(np.arange(20), 20)
    x = rng.normal(size=20)[block]  # cases of one block are copies: twenty observations, not four hundred
    naive = statistics.bootstrap_ratio(x, np.ones(400), np.zeros(400), np.arange(400))
    honest = statistics.bootstrap_ratio(x, np.ones(400), np.zeros(400), block)
    assert 3.5 < (honest.high - honest.low) / (naive.high - naive.low) < 5.5
    # ten runs that differ as a whole: the interval covers the spread of the runs
    run = np.repeat(np.arange(10), 40)
    x = 5.0 * run
    interval = statistics.bootstrap_ratio(x, np.ones(400), run, np.tile(np.arange(40), 10))
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * x.std() / np.sqrt(10), rel=0.15)


def test_nothing_to_resample_gives_no_interval() -> None:
    one = statistics.bootstrap_ratio(np.ones(5), np.ones(5), np.zeros(5), np.zeros(5, dtype=int))
    assert one.estimate == 1
    assert np.isnan(one.low)
    empty = statistics.bootstrap_ratio(np.full(3, np.nan), np.ones(3), np.zeros(3), np.arange(3))
    assert np.isnan(empty.estimate)


def test_bootstrap_is_reproducible_and_paired_differences_cancel_the_case() -> None:
    rng = np.random.default_rng(0)
    case = rng.normal(size=100) * 10
    rows = [
        pd.DataFrame(
            {"model": m, "test_id": np.arange(100), "run": 0, "block": np.arange(100), "m": "x", "v": case + d}
        )
        for m, d in (("square", 1.0), ("random", 0.0))
    ]
    table = pd.concat(rows)
    found = statistics.paired(table, "v", ("square", "random"), ["m"])
    assert found["estimate"][0] == pytest.approx(1)
    assert found["high"][0] - found["low"][0] < 1e-4
    pd.testing.assert_frame_equal(
        statistics.estimate(table, "v", ["model"]), statistics.estimate(table, "v", ["model"])
    )


def test_stratified_auc_takes_the_confounder_out() -> None:
    rng = np.random.default_rng(0)
    ring = np.repeat(np.arange(10), 60)
    score = ring + rng.normal(size=600) * 0.1  # tells the ring, nothing else
    right = rng.random(600) < ring / 10
    zeros = np.zeros(600)
    plain = statistics.stratified_auc(score, right, zeros, zeros, np.arange(600))
    within = statistics.stratified_auc(score, right, ring, zeros, np.arange(600))
    assert plain.low > 0.75
    assert within.low < 0.5 < within.high
    assert plain.estimate == pytest.approx(roc_auc_score(right, score))


def test_ring_accuracy(task: Task, split: splits.Split) -> None:
    row, col = task.center
    ring = splits.depth(task, task.center, 8)
    cases = pd.DataFrame({"row": task.coords[:, 0], "col": task.coords[:, 1], "correct": ring < 4})
    both = pd.concat([cases.assign(run=0), cases.assign(run=1)])
    table = statistics.ring_accuracy(both, (row, col, 8), outside=3)
    assert table["ring"].tolist() == list(range(-3, 9))
    assert (table["accuracy"] == (table["ring"] < 4)).all()
    assert table.set_index("ring").loc[0, "n"] == 2 * 4 * 16
    assert table.set_index("ring").loc[8, "n"] == 2
    assert (table["n_runs"] == 2).all()
    assert (table["wilson_low"] < 1).all()
    with pytest.raises(CriError, match="none lies"):
        statistics.ring_accuracy(both.iloc[:1], (row, col, 8))


# --- the verdict


def evidence(
    near: tuple[float, ...], step: tuple[float, ...], output: tuple[float, float], n: int = 100, half: float = 0.02
) -> dict:
    """A row with (excess, vs random, vs untrained) as centres of intervals."""
    row: dict = {"output_enrichment_low": output[0], "output_vs_untrained_low": output[1]}
    for c, values in (("near", near), ("step", step)):
        for name, value in zip(("excess", "vs_random", "vs_untrained"), values, strict=True):
            row |= {f"{c}_{name}_low": value - half, f"{c}_{name}_high": value + half, f"{c}_{name}_n": n}
    return row


NONE, STRONG = (0.0, 0.0, 0.0), (0.3, 0.2, 0.2)


@pytest.mark.parametrize(
    ("near", "step", "output", "expected"),
    [
        (STRONG, NONE, (5.0, 0.1), NEARBY),
        (NONE, STRONG, (5.0, 0.1), STEPS),
        (STRONG, STRONG, (5.0, 0.1), BOTH),
        (NONE, NONE, (5.0, 0.1), OUTPUT),
        (NONE, NONE, (0.9, 0.1), UNDECIDED),
        (NONE, NONE, (5.0, -0.1), UNDECIDED),
        ((0.3, 0.0, 0.2), NONE, (5.0, 0.1), UNDECIDED),  # the random split shows it as well
        ((0.3, 0.0, 0.2), STRONG, (5.0, 0.1), UNDECIDED),
        ((0.3, 0.2, 0.0), NONE, (5.0, 0.1), OUTPUT),  # an untrained model shows it as well
        ((0.04, 0.06, 0.06), (0.04, 0.06, 0.06), (5.0, 0.1), BOTH),
        ((0.01, 0.06, 0.06), NONE, (5.0, 0.1), OUTPUT),
    ],
)
def test_decide(near: tuple[float, ...], step: tuple[float, ...], output: tuple[float, float], expected: str) -> None:
    assert decide(evidence(near, step, output))[0] == expected


def test_wide_intervals_decide_nothing() -> None:
    assert decide(evidence((0.05, 0.05, 0.05), NONE, (5.0, 0.1), half=0.1))[0] == UNDECIDED
    assert decide(evidence(NONE, NONE, (5.0, 0.1), half=0.1))[0] == UNDECIDED


def test_decide_needs_cases_and_intervals() -> None:
    assert decide(evidence(STRONG, NONE, (5.0, 0.1), n=MIN_TESTS - 1))[0] == UNDECIDED
    row = evidence(STRONG, NONE, (5.0, 0.1))
    row["near_vs_random_low"] = row["near_vs_random_high"] = np.nan
    assert decide(row)[0] == UNDECIDED


def planted_tables(task: Task, split: splits.Split, kind: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables of a square model with planted scores beside controls that know the answer (random split) or
    nothing (untrained), with noise everywhere."""
    control = splits.random(task, fraction=0.5)
    common = np.flatnonzero(split.train & control.train)
    shared = np.intersect1d(split.test_ids, control.test_ids)
    cases = {"full": (split.train_ids, split.test_ids), "common": (common, shared)}
    matched, enrichment = [], []
    for seed, (model, which) in enumerate(
        [("square", "full"), ("square", "common"), ("random", "common"), ("untrained", "full")]
    ):
        train, test = cases[which]
        predicted = [task.answers[i] for i in test]
        g = statistics.make_groups(task, train, test, predicted)
        noise = np.random.default_rng(seed).normal(size=g.codes.shape)
        plant = {
            "near": -0.3 * case_relations.grid_distance(task, train, test),
            "step": 3 * case_relations.shared_steps(task, train, test),
            "output": np.zeros(g.codes.shape),
        }[kind]
        scores = noise + (model != "untrained") * 5 * g.answer + (model == "square") * plant
        keys = {
            "task": "addition",
            "format": "direct",
            "method": "m",
            "site": "s",
            "model": model,
            "set": which,
            "run": 0,
        }
        for into, table in (
            (matched, statistics.matched(scores, g)),
            (enrichment, statistics.enrichment(scores, g, K)),
        ):
            block = np.repeat(statistics.grid_blocks(task, test), len(table) // len(test))
            into.append(table.assign(**keys, block=block))
    return pd.concat(matched), pd.concat(enrichment)


@pytest.mark.parametrize(("kind", "expected"), [("near", NEARBY), ("step", STEPS), ("output", OUTPUT)])
def test_verdicts_on_planted_mechanisms(task: Task, split: splits.Split, kind: str, expected: str) -> None:
    table = verdicts(*planted_tables(task, split, kind))
    assert table["verdict"].tolist() == [expected], table["why"].tolist()
    assert table["n"].tolist() == [len(split.test_ids)]
    assert overall(table, [("m", "s")])["verdict"].tolist() == [expected]
    assert overall(table, [("m", "s"), ("other", "s")])["verdict"].tolist() == [UNDECIDED]
