"""Ablations of the held-out square: every arm holds the paper's main split, and tables agree with the runs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from cri.config import RunConfig
from cri.data.splits import make_split
from cri.errors import CriError
from cri.storage import config_hash
from cri.studies.ablations import study
from cri.studies.ablations.config import ARMS, PRESETS, Ablations
from cri.studies.ablations.figures import draw_arm
from cri.studies.ablations.tables import by_condition
from cri.tasks import make_task
from cri.training.recipes import recipe
from cri.training.runs import load_predictions


def _split(config: RunConfig):
    return make_split(make_task(config.task, **config.task_params), config.split, **config.split_params)


def test_conditions_differ_in_one_thing_and_share_the_main_split():
    points = list(Ablations().run_configs())
    main = config_hash(recipe("addition").to_dict())
    for arm in ARMS:
        own = [config_hash(config.to_dict()) for condition, config in points if condition.arm == arm]
        assert len(set(own)) == len(own)
        assert own.count(main) == (arm != "share")
    held_out = {(c.arm, c.value): _split(config).test for c, config in points}
    assert [int(held_out["half-side", f"{h}"].sum()) for h in (5, 10, 15, 20)] == [121, 441, 961, 1681]
    assert int(held_out["shape", "scattered"].sum()) == 441
    assert [int(held_out["share", f"{f}"].sum()) for f in (0.3, 0.9)] == [7000, 1000]
    # the square of a smaller grid takes about the same share of it
    assert int(held_out["grid", "40"].sum()) == 81
    # off the diagonal a square and its mirror image have no case in common
    off = held_out["place", "(25, 75)"].reshape(100, 100)
    assert not (off & off.T).any()


def test_a_small_study_agrees_with_its_runs(tmp_path):
    config = dataclasses.replace(PRESETS["test"], runs=tmp_path / "runs", out=tmp_path)
    folder = study.run(config)
    runs = pd.read_csv(folder / "runs.csv").set_index("value")
    assert len(list((tmp_path / "runs").iterdir())) == len(runs) == 3
    for condition, run_config in config.run_configs():
        row = runs.loc[condition.value]
        cases = load_predictions(tmp_path / "runs" / row["run"])
        split = _split(run_config)
        assert row["test_accuracy"] == pytest.approx(cases["correct"].to_numpy()[split.test].mean(), abs=1e-6)
    square = runs.loc["square"]
    assert square["test_accuracy"] * 441 == pytest.approx(square["border"] * 80 + square["inside"] * 361, abs=1e-3)
    assert np.isnan(runs.loc["scattered", "border"])
    assert (tmp_path / "figures" / "ablations_test.png").stat().st_size > 1000


def test_seeds_are_averaged_and_runs_that_have_not_learnt_are_counted():
    common = {"format": "direct", "arm": "grid", "value": "40", "n_test": 100, "n_train": 900, "border": 0.5}
    rows = [
        common | {"train_accuracy": 1.0, "test_accuracy": 0.2, "inside": 0.1},
        common | {"train_accuracy": 0.9, "test_accuracy": 0.4, "inside": 0.3},
    ]
    (row,) = by_condition(pd.DataFrame(rows)).to_dict("records")
    assert row["test_accuracy"] == pytest.approx(0.3)
    assert row["low"] < 0.3 < row["high"]
    assert (row["runs"], row["learnt"]) == (2, 1)


def test_every_format_has_a_colour():
    """Also the control, whose runs would have been trained for nothing if it ended the drawing."""
    row = {"format": "shuffled_scratchpad", "arm": "grid", "value": "40", "seed": 0, "test_accuracy": 0.3, "low": 0.2,
           "high": 0.4, "runs": 1, "learnt": 0}  # fmt: skip
    ax = draw_arm(pd.DataFrame([row]), pd.DataFrame([row]))
    assert [label.get_text() for label in ax.get_xticklabels()] == ["40"]


@pytest.mark.parametrize(
    ("options", "said"),
    [({"arms": ("places",)}, "half-side, place, shape, grid, share, model"), ({"task": "adition"}, "addition"),
     ({"seeds": ()}, "give at least one of each"), ({"steps": -1}, "at least 0")],
)  # fmt: skip
def test_bad_input_names_the_field_and_the_choices(options, said):
    with pytest.raises(CriError, match=said):
        Ablations(**options)
