"""The study of the geometry inside, small: every table is made, and bad input is one line."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from cri.config import RunConfig
from cri.errors import CriError
from cri.geometry.planted import HALF_SIDE, PERIODS, planted_subject
from cri.geometry.written import tokens_given, written
from cri.models.activations import Site, collect
from cri.models.loading import to_bridge
from cri.storage.compression import read_table
from cri.studies.representation_geometry.config import PRESETS, Geometry
from cri.studies.representation_geometry.measures import measure
from cri.studies.representation_geometry.study import run
from cri.training.runs import train_run
from cri.training.setup import prepare


@pytest.mark.slow
def test_the_miniature_study_makes_every_table_and_reuses_it(tmp_path: Path) -> None:
    config = dataclasses.replace(
        PRESETS["test"],
        out=tmp_path / "out",
        runs=tmp_path / "runs",
        device="cpu",
        jobs=1,
        arms=("start", "noise", "bent"),
    )
    figures = run(config)
    assert figures
    assert all(path.exists() for path in figures)
    folder = config.tables("representation_geometry", "test")
    accuracy = read_table(folder / "accuracy.csv")
    arms = read_table(folder / "arms.csv")
    assert arms["arm"].tolist() == ["start", "noise", "bent"]
    summary = read_table(folder / "summary.csv")
    assert set(summary["table"]) >= {"accuracy", "readouts", "phases", "patches", "arms", "direct", "digits"}
    direct = read_table(folder / "direct.csv")
    assert {"embed", "L0H0", "L1mlp"} <= set(direct["component"])
    shapes = read_table(folder / "shapes.csv")
    assert shapes.groupby("run")["id"].nunique().eq(24 * 24).all()
    before = (folder / "accuracy.csv").stat().st_mtime_ns, accuracy
    run(config)
    assert np.array_equal(read_table(folder / "accuracy.csv")["accuracy"], before[1]["accuracy"])


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"seeds": (0, 0)}, "seeds"),
        ({"periods": (1,)}, "periods"),
        ({"size": 20, "periods": (50,)}, "periods"),
        ({"smooth": (0,)}, "smooth"),
        ({"arms": ("straight",)}, "arms"),
        ({"written": ("addition:direct:number",)}, "written"),
        ({"written": ("addition:rfft:list",)}, "written"),
        ({"every": 0}, "every"),
        ({"number_models": False}, "number_models"),
    ],
)
def test_bad_options_name_their_field(options: dict[str, object], field: str) -> None:
    with pytest.raises(CriError, match=f"^{field}: "):
        Geometry(**options)  # pyright: ignore[reportArgumentType]


def test_finished_runs_are_asked_digit_by_digit(tmp_path: Path) -> None:
    """Without any model of the study's own, at the last of two layers, and the model before its training beside it."""
    config = RunConfig(tokenizer="digit", task_params={"size": 24}, split_params={"half_side": 2}).replace(steps=20)
    path = train_run(config, tmp_path, progress=False)
    asked = Geometry(
        number_models=False, planted=False, half_side=2, use_written=(path,), every=2, name="used", out=tmp_path
    )
    figures = run(asked)
    assert [file.name for file in figures if file.suffix == ".png"] == ["representation_geometry_used_digits.png"]
    patches = read_table(asked.tables("representation_geometry", "used") / "digit_patches.csv")
    assert set(patches["site"]) == {"blocks.1.hook_resid_mid", "blocks.1.hook_resid_post"}
    assert set(patches["role"]) == {"trained", "untrained"}


def materials(**options: object):
    return prepare(RunConfig(task_params={"size": 24}, split_params={"half_side": 2}).replace(**options))


@pytest.mark.parametrize("options", [{"tokenizer": "digit"}, {"format": "scratchpad", "tokenizer": "digit"}])
@pytest.mark.parametrize("column", ["units", "tens"])
def test_a_digit_lies_where_it_is_predicted(options: dict[str, str], column: str) -> None:
    made = materials(**options)
    place = written(made, column)
    power = 10 if column == "tens" else 1
    sums = made.task.values[place.case_ids]
    assert (place.digits == sums // power % 10).all()
    assert made.tokenizer.convert_ids_to_tokens(place.targets().tolist()) == [str(d) for d in place.digits]
    if made.format.name == "direct":
        assert set(place.case_ids) == set(
            np.flatnonzero(made.task.values >= power if power > 1 else made.task.values >= 0)
        )
        rest = [text[-(power > 1) - 1 :] for text in map(str, sums)]
        after = [made.tokenizer.decode(made.tokens.ids[c, n : made.tokens.lengths[c] - 1])
                 for c, n in zip(place.case_ids, place.tokens.prompt_lengths, strict=True)]  # fmt: skip
        assert [text.replace(" ", "") for text in after] == rest


def test_another_rows_activation_is_written_where_the_digit_is_predicted() -> None:
    made = materials(tokenizer="digit")
    for name, weights in made.model.named_parameters():
        if "attn" in name or "mlp" in name:  # an untrained model would write the same token everywhere
            weights.data.mul_(20)
    place = written(made, "tens")
    bridge = to_bridge(made.model, made.tokenizer)
    site = Site(f"blocks.{bridge.cfg.n_layers - 1}.hook_resid_post")
    acts = np.asarray(collect(bridge, place.tokens, [site])[site])
    rows = np.arange(len(place))
    plain = tokens_given(bridge, place.tokens, rows)
    torch.manual_seed(0)
    sources = torch.randperm(len(rows)).numpy()
    patched = tokens_given(bridge, place.tokens, rows, (site.hook, acts, sources))
    assert (patched == plain[sources]).all()  # after the last layer nothing else decides
    assert len(set(plain)) > 1


def test_models_without_digits_are_refused() -> None:
    for options, column, field in (
        ({"tokenizer": "number"}, "units", "tokenizer"), ({"tokenizer": "digit"}, "myriads", "column"),
        ({"format": "rfft", "tokenizer": "list"}, "units", "format"),
    ):  # fmt: skip
        with pytest.raises(CriError, match=f"^{field}: "):
            written(materials(**options), column)


def test_the_planted_model_is_read_in_the_same_tables() -> None:
    config = dataclasses.replace(
        PRESETS["test"], periods=PERIODS, helix_periods=PERIODS, smooth=(5,), half_side=HALF_SIDE
    )
    tables = measure(planted_subject(), config)
    assert tables["accuracy"].set_index("region")["accuracy"].to_dict() == {"inside": 0, "outside": 1}
    patches = tables["patches"].query("region == 'inside'")
    assert (patches.loc[patches["site"].str.endswith("resid_post"), "accuracy"] == 1).all()
    moved = tables["components"].query("region == 'inside' and period == 'all'").set_index("edit")["accuracy"]
    assert moved["moved"] == 1
    assert moved["random moved"] == 0
