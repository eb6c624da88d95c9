"""The matrix in miniature: trained, measured, resumed, redrawn; bad input in one line."""

from __future__ import annotations

import dataclasses

import pandas as pd
import pytest

from cri.plots.matrix import effect_rows, verdict_matrix
from cri.studies.matrix import study
from cri.studies.matrix.config import PRESETS, Cell, Matrix


def test_miniature_trains_measures_resumes_and_marks_what_is_not_run(tmp_path, capsys):
    config = dataclasses.replace(PRESETS["test"], runs=tmp_path / "runs", out=tmp_path)
    figures = study.run(config)
    assert figures
    assert all(path.stat().st_size > 1000 for path in figures)
    first = capsys.readouterr().out
    assert first.count("rows made") == 3
    wider = dataclasses.replace(config, formats=("direct", "scratchpad", "rfft"), stage="rows")
    study.run(wider)
    again = capsys.readouterr().out
    assert again.count("rows kept") == 3
    assert "not yet run" in again
    folder = tmp_path / "studies" / "matrix" / "test"
    matrix = pd.read_csv(folder / "matrix.csv")
    assert set(matrix["state"]) <= {"learnt", "not learnt", "not yet run"}
    assert matrix.set_index("format").loc["rfft", "state"] == "not yet run"
    attribution = pd.read_csv(folder / "attribution.csv")
    assert set(attribution["model"]) == {"trained", "untrained", "beyond untrained"}
    assert set(attribution.loc[attribution["format"] == "scratchpad", "unit"]) == {"case", "step"}
    assert set(attribution.loc[attribution["format"] == "direct", "unit"]) == {"case"}
    controls = pd.read_csv(folder / "controls.csv")
    assert set(controls["model"]) == {
        "planted step", "planted case", "shuffled traces, by the step written",
        "shuffled traces, by the step of the case asked",
    }  # fmt: skip
    planted = controls[controls["group"] == "difference"].set_index("model")["effect"]
    assert planted["planted step"] > 0 > planted["planted case"]
    edits = pd.read_csv(folder / "edits.csv")
    assert (abs(edits[["follows", "returns", "neither"]].sum(axis=1) - 1) < 1e-4).all()


def test_cells_of_the_paper_and_of_the_small_grid():
    assert len(list(Matrix(control=False).cells())) == 30
    small = Matrix().run_config(Cell("mod_addition", "rfft", "square"), 1)
    assert small.task_params == {"size": 20, "modulus": 20}
    assert (small.split_params, small.tokenizer, small.seed) == ({"half_side": 3}, "digit", 1)
    paper = PRESETS["gpu"].run_config(Cell("chicken_rabbit", "direct", "square"), 0)
    assert (paper.task_params, paper.split_params, paper.tokenizer) == ({}, {}, "number")


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [("--formats", "rftf", "direct, scratchpad, rfft"), ("--tasks", "adition", "chicken_rabbit"),
     ("--n-boot", "3", "at least 100"), ("--splits", "rows", "square, random")],
)  # fmt: skip
def test_bad_input_is_one_line(option, value, said, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["matrix", "test", option, value])
    with pytest.raises(SystemExit) as stop:
        study.main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert said in error


def test_verdicts_are_written_into_cells():
    rows = [
        {"task": "addition", "format": "direct", "split": "square", "seed": 0, "state": "learnt",
         "verdict": "near case", "train_accuracy": 1.0, "test_accuracy": 0.25, "difference": -1.2,
         "difference_low": -2.0, "difference_high": -0.4},
        {"task": "addition", "format": "rfft", "split": "square", "seed": 0, "state": "not yet run",
         "verdict": "not yet run"},
    ]  # fmt: skip
    texts = [text.get_text() for text in verdict_matrix(pd.DataFrame(rows)).texts]
    assert "near case" in texts
    assert "not yet run" in texts
    assert any("1.000 | 0.250" in text and "[-2.0, -0.4]" in text for text in texts)


def test_panels_that_share_an_axis_have_the_same_rows():
    """A cell that lacks a membership keeps its row empty: the others would stand beside its neighbour's name."""
    columns = ["group", "series", "effect", "low", "high"]
    rows = [("near case", "trained", 1.0, 0.5, 1.5), ("same step", "trained", 3.0, 2.5, 3.5)]
    groups = ["same step", "same digits", "near case"]
    ax = effect_rows(pd.DataFrame(rows, columns=columns), groups=groups)
    assert [label.get_text() for label in ax.get_yticklabels()] == groups
    (points,) = (line for line in ax.lines if line.get_label() == "trained")
    assert dict(zip(points.get_ydata(), points.get_xdata(), strict=True)) == {2: 1.0, 0: 3.0}
