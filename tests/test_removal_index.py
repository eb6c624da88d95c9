"""The removal index on planted effects, and group effects on planted linear models."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cri.data.case_groups import GROUPS
from cri.errors import CriError
from cri.statistics.datamodels import resamples
from cri.statistics.group_effects import dose_index, effects_by_query, group_effects
from cri.statistics.removal_index import case_table, effects, index, index_table, paired_effects


def outputs(near: float, step: float, noise: float, seed: int = 0, n_tests: int = 12) -> pd.DataFrame:
    """Retrainings of `n_tests` cases with 3 seeds: removing G lowers the output by its effect."""
    rng = np.random.default_rng(seed)
    rows = []
    for test_id in range(n_tests):
        level = rng.normal(3)
        for s in range(3):
            drops = {"near": near, "same_step": step, "same_operand": 0.0}
            removed = [("random", 0.0)] * 3 + list(drops.items())
            rows += [
                {"test_id": test_id, "region": "edge", "seed": s, "size": 60, "group": group,
                 "output": level + s - drop + noise * rng.normal()}
                for group, drop in removed
            ]  # fmt: skip
    return pd.DataFrame(rows)


def test_effects_are_drops_beyond_random_removal():
    table = effects(outputs(2.0, 0.5, 0.0))
    assert (table.loc[table["group"] == "near", "delta"] - 2.0).abs().max() < 1e-12
    assert (table.loc[table["group"] == "same_step", "delta"] - 0.5).abs().max() < 1e-12
    assert table["noise"].max() < 1e-12
    noisy = effects(outputs(2.0, 0.5, 0.7, n_tests=200))
    assert np.sqrt((noisy["noise"] ** 2).mean()) == pytest.approx(0.7, rel=0.05)


@pytest.mark.parametrize(
    ("near", "step", "reading"),
    [(2.0, 0.0, "nearby cases"), (0.0, 2.0, "shared steps"), (0.0, 0.0, "undecided"), (1.0, 1.0, "undecided")],
)
def test_index_reads_planted_effects(near, step, reading):
    row = index_table(paired_effects(effects(outputs(near, step, 0.5))), ["region", "size"]).iloc[0]
    assert row["reading"] == reading
    if near == step:
        assert row["cri_low"] < 0 < row["cri_high"]
        assert row["p_relabelled"] > 0.05
    else:
        assert row["cri"] * np.sign(near - step) > 0.6
        assert row["p_relabelled"] < 0.05
    assert row["n"] == 12
    assert row["n_seeds"] == 3


def test_intervals_of_the_index_without_any_effect_hold_0_as_often_as_they_say():
    held = []
    for seed in range(40):
        pairs = paired_effects(effects(outputs(0.0, 0.0, 1.0, seed)))
        row = index_table(pairs, ["region"], n_boot=400).iloc[0]
        held.append(row["cri_low"] < 0 < row["cri_high"])
    assert np.mean(held) > 0.85


def test_index_of_single_cases_follows_their_noise():
    sure = case_table(effects(outputs(2.0, 0.0, 0.1)))
    assert (sure["cri_low"] > 0.5).all()
    unsure = case_table(effects(outputs(0.1, 0.0, 1.0)))
    assert ((unsure["cri_low"] < 0) & (unsure["cri_high"] > 0)).mean() > 0.8
    assert index(0.0, 0.0) == 0


def test_a_removal_without_its_random_control_is_refused():
    table = outputs(1.0, 0.0, 0.1)
    table = table[~((table["group"] == "random") & (table["seed"] == 1))]
    with pytest.raises(CriError, match="no random removal"):
        effects(table)


def test_group_effects_recover_planted_effects():
    rng = np.random.default_rng(0)
    n_train, n_queries, n_subsets = 200, 24, 120
    codes = rng.integers(0, len(GROUPS), size=(n_train, n_queries)).astype(np.int8)
    codes[:, 0][codes[:, 0] == GROUPS.index("same_step")] = GROUPS.index("rest")  # a query without such cases
    kept = np.zeros((n_subsets, n_train), dtype=bool)
    for row in kept:
        row[rng.choice(n_train, n_train // 2, replace=False)] = True
    planted = {"near": 0.3, "same_answer": -0.1, "same_operand": 0.0, "same_step": 0.05, "rest": 0.0}
    value = np.array([planted[g] for g in GROUPS])[codes]
    out = kept @ value + 0.5 * rng.normal(size=(n_subsets, n_queries))
    draws = resamples(n_subsets, np.arange(n_queries) // 3, 300)
    found = effects_by_query(codes, kept, out, draws)
    table = group_effects(found, codes, draws).set_index("group")
    assert set(table.index) == set(GROUPS) - {"rest"}
    for group, effect in planted.items():
        if group == "rest":
            continue
        expected = 10 * effect
        assert table.loc[group, "low"] - 0.02 <= expected <= table.loc[group, "high"] + 0.02
        assert table.loc[group, "effect"] == pytest.approx(expected, abs=0.15)
    # the query without such cases is absent, not an effect of 0
    assert np.isnan(found["same_step"][:, 0]).all()
    assert table["n_queries"].to_dict() == {g: 23 if g == "same_step" else 24 for g in table.index}
    without = np.where(codes == GROUPS.index("same_answer"), GROUPS.index("rest"), codes).astype(np.int8)
    nowhere = group_effects(effects_by_query(without, kept, out, draws), without, draws).set_index("group")
    assert nowhere.loc["same_answer", ["effect", "low", "high"]].isna().all()
    assert nowhere.loc["same_answer", "n_queries"] == nowhere.loc["same_answer", "size"] == 0
    index = dose_index(found, draws)
    assert index["reading"] == "nearby cases"
    assert index["cri_low"] <= (0.3 - 0.05) / (0.3 + 0.05) + 0.02
    assert index["cri_high"] <= 1
    swapped = {**found, "near": found["same_step"], "same_step": found["near"]}
    assert dose_index(swapped, draws)["cri"] == pytest.approx(-index["cri"])
    assert dose_index(swapped, draws)["reading"] == "shared steps"
    assert dose_index({**found, "near": found["same_operand"], "same_step": found["same_operand"]}, draws)["cri"] == 0


def test_intervals_hold_the_truth_where_seeds_share_the_test_cases():
    held = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        case = rng.normal(size=(20, 2))  # the difficulty of a case is the same for every seed
        pairs = pd.DataFrame(
            {"region": "centre", "test_id": i, "seed": s, "near": case[i, 0], "step": case[i, 1]}
            for s in range(3)
            for i in range(20)
        )
        row = index_table(pairs, ["region"], n_boot=400).iloc[0]
        held += [row["near_low"] < 0 < row["near_high"], row["cri_low"] < 0 < row["cri_high"]]
    assert np.mean(held) > 0.85


def test_index_of_single_cases_holds_no_effect_as_often_as_it_says():
    table = case_table(effects(outputs(0.0, 0.0, 1.0, n_tests=200)))
    assert ((table["cri_low"] < 0) & (table["cri_high"] > 0)).mean() > 0.9
