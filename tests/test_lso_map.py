"""The map study in miniature: its tables are consistent with the runs, its figures drawn from tables alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from cri.errors import CriError
from cri.studies.lso_map.config import PRESETS
from cri.studies.lso_map.figures import draw_prediction
from cri.studies.lso_map.study import draw, run
from cri.studies.lso_map.tables import case_table, region_table, ring_table, square_table, step_table
from cri.tasks import make_task
from cri.training.runs import load_run, train_run


@pytest.fixture(scope="module")
def study(runs, tmp_path_factory):
    where = tmp_path_factory.mktemp("study")
    config = dataclasses.replace(PRESETS["test"], seeds=(0, 1), steps=60, samples=2, runs=runs, out=where)
    return config, run(config)


def test_tables_agree_with_the_runs(study):
    config, folder = study
    table = pd.read_csv(folder / "runs.csv")
    assert len(table) == 4
    for run_config, row in zip(config.run_configs(), table.itertuples(), strict=True):
        opened = load_run(train_run(run_config, config.runs, progress=False))
        held_out = opened.predictions[~opened.predictions["train"]]
        assert row.test_accuracy == pytest.approx(held_out["correct"].mean(), abs=1e-4)
        assert row.n_test == len(held_out) == row.right + row.wrong + row.truncated + row.malformed
    cases = pd.read_csv(folder / "cases.csv", keep_default_na=False)
    assert (cases.groupby("split")["id"].apply(lambda ids: sorted(ids) == list(range(576)))).all()
    assert cases.groupby("split")["n_seeds"].sum().eq(2 * 576).all()
    assert (cases["difference"].eq(0) | cases["accuracy"].lt(1)).all()
    assert (cases[["units", "tens"]].min(axis=1) >= cases["accuracy"]).all()
    assert set(cases["sampled"]) <= {0, 0.25, 0.5, 0.75, 1}  # two samples, two seeds
    # the share of a model's own samples that are right follows how sure it is: seldom above the greedy answer's
    assert cases["sampled"].mean() == pytest.approx(cases["accuracy"].mean(), abs=0.25)
    regions = pd.read_csv(folder / "regions.csv")
    assert regions.groupby("split")["n"].sum().eq(2 * 576).all()


def test_finished_runs_are_mapped_as_they_are(study, tmp_path):
    config, folder = study
    paths = tuple(train_run(c, config.runs, progress=False) for c in config.run_configs())
    used = dataclasses.replace(config, use=paths, samples=0, out=tmp_path, runs=tmp_path / "none")
    again, first = (pd.read_csv(f / "cases.csv", keep_default_na=False) for f in (run(used), folder))
    pd.testing.assert_frame_equal(again, first.drop(columns="sampled"))
    assert not (tmp_path / "none").exists()
    with pytest.raises(CriError, match=r"use: .* has size 24 and half side 3; give --size 24 --half-side 3"):
        run(dataclasses.replace(used, size=30))


def test_runs_that_differ_in_more_than_their_seed_are_not_averaged(tmp_path):
    """Two runs of the same task, format and split, with other positions each."""
    (first, *_) = PRESETS["test"].run_configs()
    base = first.replace(model="nano-rope", steps=2)
    paths = tuple(train_run(base.replace(positions=kind), tmp_path, progress=False) for kind in ("plain", "none"))
    config = dataclasses.replace(PRESETS["test"], use=paths, out=tmp_path)
    with pytest.raises(CriError, match="would be averaged in one map"):
        run(config)


def test_figures_come_from_the_tables_alone(study, tmp_path):
    _, folder = study
    drawn = draw(folder, tmp_path)
    assert {p.name for p in drawn} == {
        f"lso_{what}_test.{kind}" for what in ("map", "rings", "errors") for kind in ("png", "pdf")
    }
    assert all(p.stat().st_size > 5000 for p in drawn)


def planted(config, correct):
    """A prediction table of one run of `config` in which exactly the cases `correct` are answered rightly."""
    from cri.data.splits import make_split

    task = make_task(config.task, **config.task_params)
    split = make_split(task, config.split, **config.split_params)
    return pd.DataFrame(
        {
            "id": np.arange(task.n_cases), "row": task.coords[:, 0], "col": task.coords[:, 1], "train": split.train,
            "correct": correct(task, split), "error": "carry", "difference": np.where(correct(task, split), 0.0, 10.0),
            "units": True, "tens": correct(task, split),
            "status": np.where(correct(task, split), "right", "wrong"),
            "task": config.task, "format": config.format, "tokenizer": config.tokenizer, "model": config.model,
            "split": config.split, "run": "planted", "seed": 0,
        }
    )  # fmt: skip


def test_a_model_that_fails_exactly_on_unseen_steps_is_recognised():
    """On the paper's grid, and with its count of failing cells that have a unit carry."""
    from cri.config import RunConfig
    from cri.data.step_coverage import step_coverage

    config = RunConfig(format="scratchpad")
    unseen = lambda task, split: step_coverage(task, split)["n_unseen"].to_numpy() > 0  # noqa: E731
    cases = planted(config, lambda task, split: split.train | ~unseen(task, split))
    steps = step_table(cases, [config]).set_index("prediction")
    assert steps.loc["unseen step", "mcc"] == 1
    assert steps.loc["unseen step", "accuracy"] == 1
    assert (steps["mcc"].iloc[1:] < 0.7).all()  # by column, and by depth
    failing = cases[~cases["correct"]]
    # with digit pairs of one place held out whole only where the units carry into them
    assert (failing["row"] % 10 + failing["col"] % 10 >= 10).all()
    assert len(failing) == 180
    # a round hole is not mistaken for it
    hole = planted(config, lambda task, split: np.abs(task.coords - 50).max(axis=1) > 6)
    assert step_table(hole, [config]).set_index("prediction").loc["unseen step", "mcc"] < 0.3
    rings = ring_table(hole, 10, [config]).set_index("ring")["accuracy"]
    assert rings[3] == 1
    assert rings[4] == 0
    table = case_table(hole, [config])
    assert (table["failure"] == "").eq(table["accuracy"] == 1).all()
    regions = region_table(hole, [config])
    assert regions["n"].sum() == 10_000
    assert regions["wrong"].sum() == 169


def test_seeds_that_fail_in_different_places_are_drawn_apart(tmp_path):
    """Two planted scratchpad models, one right in the upper half of the square, one in the lower."""
    from matplotlib.colors import to_rgb
    from matplotlib.image import imread

    from cri import plots
    from cri.config import RunConfig

    colors = {"right": plots.RIGHT, "wrong": plots.WRONG}

    config = RunConfig(format="scratchpad")
    cases = pd.concat(
        planted(config, lambda task, split, i=i: split.train | ((task.coords[:, 0] < 50) ^ bool(i))).assign(seed=i)
        for i in (0, 1)
    )
    square = square_table(cases)
    assert square.groupby("seed")["correct"].sum().tolist() == [210, 231]
    table, steps = case_table(cases, [config]), step_table(cases, [config])
    assert (table.loc[~table["train"], "accuracy"] == 0.5).all()  # which tells nothing of this
    drawn = draw_prediction(square, table, steps, {"name": "planted", "size": 0, "half_side": 10}, tmp_path)
    picture = imread(drawn[0])[:, :, :3]
    for half, upper in zip(np.array_split(picture, 2, axis=1), ("right", "wrong"), strict=True):
        where = {name: np.abs(half - to_rgb(color)).max(axis=2) < 0.01 for name, color in colors.items()}
        height = {name: np.argwhere(mask)[:, 0].mean() for name, mask in where.items()}
        assert min(height, key=lambda name: height[name]) == upper
    assert square_table(cases.assign(format="direct")).empty  # no steps, no such table


def test_an_empty_choice_is_refused(tmp_path):
    with pytest.raises(CriError, match="at least one of each"):
        run(dataclasses.replace(PRESETS["test"], seeds=(), out=tmp_path))
