"""The study of the geometry inside, small: every table is made, and bad input is one line."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from cri.errors import CriError
from cri.storage.compression import read_table
from cri.studies.representation_geometry.config import PRESETS, Geometry
from cri.studies.representation_geometry.study import run


@pytest.mark.slow
def test_the_miniature_study_makes_every_table_and_reuses_it(tmp_path: Path) -> None:
    config = dataclasses.replace(
        PRESETS["test"], out=tmp_path / "out", runs=tmp_path / "runs", device="cpu", jobs=1, planted=True
    )
    figures = run(config)
    assert figures
    assert all(path.exists() for path in figures)
    folder = config.tables("representation_geometry", "test")
    accuracy = read_table(folder / "accuracy.csv")
    planted = accuracy[accuracy["run"] == "planted"].set_index("region")["accuracy"]
    assert planted.to_dict() == {"inside": 0, "outside": 1}
    patches = read_table(folder / "patches.csv")
    filled = patches[(patches["run"] == "planted") & (patches["region"] == "inside")]
    assert (filled.loc[filled["site"].str.endswith("resid_post"), "accuracy"] == 1).all()
    moved = read_table(folder / "components.csv")
    moved = moved[(moved["run"] == "planted") & (moved["region"] == "inside") & (moved["period"] == "all")]
    by_edit = moved.set_index("edit")["accuracy"]
    assert by_edit["moved"] == 1
    assert by_edit["random moved"] == 0
    arms = read_table(folder / "arms.csv")
    assert arms["arm"].tolist() == ["untied", "smooth", "bent"]
    summary = read_table(folder / "summary.csv")
    assert set(summary["table"]) >= {"accuracy", "readouts", "phases", "patches", "arms"}
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
    ],
)
def test_bad_options_name_their_field(options: dict[str, object], field: str) -> None:
    with pytest.raises(CriError, match=f"^{field}: "):
        Geometry(**options)  # pyright: ignore[reportArgumentType]
