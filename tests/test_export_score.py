"""The two command lines: exports equal the public rows; scores need every id once."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cri.cli import run_command
from cri.config import RunConfig
from cri.errors import CriError
from cri.export import ExportConfig, export
from cri.score import ScoreConfig, score
from cri.sweep import sweep
from cri.tasks import make_task

ROWS = [json.loads(line) for line in (Path(__file__).parent / "reference_cases.jsonl").read_text().splitlines()]


def run_export(*argv: str) -> None:
    run_command(ExportConfig, export, argv=argv)


def run_score(*argv: str) -> None:
    run_command(ScoreConfig, score, argv=argv)


def load(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def one_line(capsys: pytest.CaptureFixture[str], function, *argv: str) -> str:
    """Runs a command that must fail with one line and exit code 2."""
    with pytest.raises(SystemExit) as stop:
        function(*argv)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


@pytest.mark.parametrize(("task", "fmt"), sorted({(r["task"], r["format"]) for r in ROWS}))
def test_export_equals_the_public_rows(tmp_path: Path, task: str, fmt: str):
    run_export(task, "--format", fmt, "--split", "square", "--out", str(tmp_path / "x.jsonl"))
    rows = load(tmp_path / "x.jsonl")
    assert [row["id"] for row in rows] == list(range(make_task(task).n_cases))
    assert sum(row["part"] == "test" for row in rows) == 441
    for expected in (r for r in ROWS if (r["task"], r["format"]) == (task, fmt)):
        assert rows[expected["id"]] == expected


def test_rfft_export_has_the_prompt(tmp_path: Path):
    run_export("addition", "--format", "rfft", "--task-params", "size=9", "--split-params", "half_side=1",
               "--out", str(tmp_path / "x.jsonl"))  # fmt: skip
    row = load(tmp_path / "x.jsonl")[80]
    assert row["question"].startswith("Follow the code step by step to answer the question:\n8+8=\ndef add_digits(")
    assert row["answer"].endswith("return [1,6]")


def test_chat_export(tmp_path: Path):
    out = tmp_path / "chat.jsonl"
    run_export("addition", "--format", "scratchpad", "--chat", "--part", "train", "--out", str(out))
    rows = load(out)
    assert len(rows) == 9559
    assert {tuple(row) for row in rows} == {("messages",)}
    ids = list(csv.DictReader((tmp_path / "chat.jsonl.ids.csv").read_text().splitlines()))
    assert [int(row["line"]) for row in ids] == list(range(1, len(rows) + 1))
    assert {row["part"] for row in ids} == {"train"}
    a, b = make_task("addition").operands[int(ids[700]["id"])]
    user, assistant = rows[700]["messages"]
    assert user == {"role": "user", "content": f"{a}+{b}="}
    assert assistant["role"] == "assistant"
    assert assistant["content"].endswith(f"\n{a + b}")


def test_export_refuses_to_overwrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "x.jsonl"
    out.write_text("mine")
    argv = ["addition", "--task-params", "size=8", "--split-params", "half_side=1", "--out", str(out)]
    assert "exists; add --force" in one_line(capsys, run_export, *argv)
    assert out.read_text() == "mine"
    run_export(*argv, "--force")
    assert len(load(out)) == 64
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["adition"], "task: unknown 'adition'; choose from addition,"),
        (["addition", "--format", "cot"], "format: unknown 'cot'; choose from direct, scratchpad, rfft"),
        (["addition", "--split", "sqare"], "split: unknown 'sqare'"),
        (["addition", "--task-params", "sise=8"], "parameter of task addition: unknown 'sise'; choose from size"),
        (["addition", "--task-params", "size"], "task_params: 'size' is not KEY=VALUE"),
        (["addition", "--split-params", "half_side=60"], "leaves the grid"),
        (["base_addition", "--task-params", "base=12"], "base: 12 is not allowed; must be in 2..10"),
        (["addition", "--part", "validation"], "validation"),
    ],
)
def test_bad_exports(tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str):
    assert message in one_line(capsys, run_export, *argv, "--out", str(tmp_path / "x.jsonl"))
    assert list(tmp_path.iterdir()) == []


SMALL = ("--task-params", "size=24", "--split-params", "half_side=2")


def answers(tmp_path: Path, fmt: str = "scratchpad") -> list[dict]:
    run_export("addition", "--format", fmt, *SMALL, "--out", str(tmp_path / "reference.jsonl"))
    return [{**row, "output": row["answer"]} for row in load(tmp_path / "reference.jsonl")]


def test_score(tmp_path: Path):
    task = make_task("addition", size=24)
    rows = answers(tmp_path)
    dropped, wrong, cut, junk = task.id_of(5, 7), task.id_of(12, 12), task.id_of(13, 11), task.id_of(0, 0)
    rows[dropped]["output"] = rows[dropped]["output"].replace("C:1", "C:0", 1)
    rows[wrong]["output"] = rows[wrong]["output"].removesuffix("24") + "25"
    rows[cut] = {"id": cut, "output": rows[cut]["output"][:9], "finished": False}
    rows[junk]["output"] = "no idea"
    path = write(tmp_path / "model.jsonl", rows[::-1])
    run_score(str(path), *SMALL)
    cases = pd.read_csv(tmp_path / "model.cases.csv", keep_default_na=False)
    assert cases["id"].tolist() == list(range(task.n_cases))
    assert cases[["row", "col"]].to_numpy().tolist() == task.coords.tolist()
    found = {
        i: tuple(cases.loc[i, ["part", "status", "error", "step", "first_deviation"]])
        for i in (dropped, wrong, cut, junk)
    }
    assert found == {
        dropped: ("train", "right", "carry", "add(5,7,0)", 1),
        wrong: ("test", "wrong", "answer", "", 3),
        cut: ("test", "truncated", "", "", -1),
        junk: ("train", "malformed", "loop_count", "", 0),
    }
    accuracy = pd.read_csv(tmp_path / "model.accuracy.csv").set_index("part")
    assert accuracy.loc["test", ["n", "right", "wrong", "truncated", "malformed"]].tolist() == [25, 23, 1, 1, 0]
    assert accuracy.loc["test", "accuracy"] == pytest.approx(23 / 25)
    assert accuracy.loc["train", "accuracy"] == pytest.approx(550 / 551)
    assert accuracy.loc["train", "exact"] == pytest.approx(549 / 551)
    errors = pd.read_csv(tmp_path / "model.errors.csv", keep_default_na=False)
    assert errors["n"].sum() == 4
    assert set(errors.columns) == {"part", "status", "error", "step", "n"}


def test_score_without_task_in_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [{"id": row["id"], "output": row["output"]} for row in answers(tmp_path, "direct") if row["part"] == "test"]
    path = write(tmp_path / "model.jsonl", rows)
    run_score(str(path), *SMALL, "--part", "test", "--task", "addition", "--format", "direct")
    assert pd.read_csv(tmp_path / "model.accuracy.csv")["accuracy"].tolist() == [1.0, 1.0]
    capsys.readouterr()
    assert "task: no row names it; add --task" in one_line(capsys, run_score, str(path), *SMALL, "--part", "test")


@pytest.mark.parametrize(
    ("line", "change", "message"),
    [
        (3, {"id": 1}, "line 3: id 1 is there twice, first on line 2"),
        (3, {"id": 576}, "line 3: unknown id 576"),
        (3, {"id": "2"}, "line 3: id must be an integer"),
        (3, {"output": None}, "line 3: output must be a string"),
        (3, {"finished": "yes"}, "line 3: finished must be true or false"),
        (3, {"task": "mod_addition"}, "line 3: task is 'mod_addition', not 'addition'"),
        (3, {"format": "rfft"}, "line 3: format is 'rfft', not 'direct'"),
        (3, {"question": "1+1="}, "line 3: question is not that of case 2"),
        (3, None, "ends at line 575 with 1 ids missing: 2 "),
        (3, "{", "line 3: not valid JSON"),
        (3, "7", "line 3: not a JSON object"),
    ],
)
def test_bad_score_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: int, change: dict | str | None, message: str
):
    path = write(tmp_path / "model.jsonl", answers(tmp_path, "direct"))
    lines = path.read_text().splitlines()
    if change is None:
        del lines[line - 1]
    elif isinstance(change, str):
        lines[line - 1] = change
    else:
        lines[line - 1] = json.dumps({**json.loads(lines[line - 1]), **change})
    path.write_text("\n".join(lines) + "\n")
    assert message in one_line(capsys, run_score, str(path), *SMALL)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.jsonl", "reference.jsonl"]


def test_score_of_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert "cannot be read" in one_line(capsys, run_score, str(tmp_path / "none.jsonl"))
    assert "holds no answers" in one_line(capsys, run_score, str(write(tmp_path / "empty.jsonl", [])))


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_force_replaces_regular_files_alone(tmp_path, kind):
    out = tmp_path / "out.jsonl"
    if kind == "link":
        out.symlink_to(tmp_path / "elsewhere")
    elif kind == "fifo":
        os.mkfifo(out)
    else:
        out.mkdir()
    with pytest.raises(CriError, match=r"out: .*out\.jsonl is not a regular file"):
        export(ExportConfig("addition", out, task_params=("size=12",), split_params=("half_side=2",), force=True))
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_file_cannot_lie_below_a_file(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(CriError, match=r"out: .* cannot be written to"):
        export(ExportConfig("addition", tmp_path / "f" / "x" / "out.jsonl", split="random"))
    with pytest.raises(CriError, match=r"out: .* cannot be written to"):
        sweep([RunConfig()], tmp_path / "f" / "x", jobs=1, device="cpu")


def test_how_far_off_an_answer_is_in_the_base_of_its_task():
    from cri.evaluation.scoring import value_errors
    from cri.tasks import make_task

    for name, answers, expected in (
        ("addition", ("13", "12", "23", ""), ((0, True, True), (-1, False, True), (10, True, False), (None,) * 3)),
        ("base_addition", ("14", "15", "24", "9"), ((0, True, True), (1, False, True), (9, True, False), (None,) * 3)),
        ("chicken_rabbit", ("There are 0 rabbits and 3 chickens.", "There are 11 rabbits and 3 chickens.", "", "no"),
         ((0, True, True), (11, False, False), (None,) * 3, (None,) * 3)),
    ):  # fmt: skip
        task = make_task(name, size=20)
        pair = (6, 3) if name == "chicken_rabbit" else (6, 7)
        table = pd.DataFrame({"id": [task.id_of(*pair)] * 4, "prediction": answers})
        found = value_errors(task, table)
        for row, (difference, units, tens) in zip(found.itertuples(), expected, strict=True):
            assert (row.difference == difference) if difference is not None else np.isnan(row.difference)
            assert (row.units, row.tens) == (bool(units), bool(tens))
    assert task.read_value(task.answer(6, 3)) == task.value(6, 3)
