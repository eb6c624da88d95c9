"""What a user brings along: a task, a rule, an attribution method; what a run remembers of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cri
from cri.__main__ import main
from cri.errors import CriError

EXAMPLE = Path(__file__).parents[1] / "examples" / "times_mod.py"
TRAIN = ["train", "--task", "times_mod", "--task-params", "size=12", "--split-params", "half_side=2", "--steps", "10"]


def test_the_example_does_everything_in_sixty_lines_of_public_names(tmp_path: Path) -> None:
    source = EXAMPLE.read_text()
    assert len(source.splitlines()) <= 60
    assert "._" not in source
    assert {line for line in source.splitlines() if line.startswith(("import cri", "from cri"))} == {"import cri"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(tmp_path / "runs"), "60"], capture_output=True, text=True, check=False,
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for word in ("answer_logprob", "similarity", "score", "elements"):
        assert word in done.stdout
    assert (tmp_path / "runs" / "map.png").stat().st_size > 5000
    (folder,) = (tmp_path / "runs").glob("times_mod-*")
    assert json.loads((folder / "manifest.json").read_text())["plugin"]["file"] == str(EXAMPLE)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plugin file and the run that a command made with it."""
    place = tmp_path_factory.mktemp("own")
    shutil.copy(EXAMPLE, place / "times_mod.py")
    done = subprocess.run(
        [sys.executable, "-m", "cri", *TRAIN, "--plugin", "times_mod.py"], capture_output=True, text=True, check=False,
        cwd=place,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return place


def _open(place: Path) -> subprocess.CompletedProcess[str]:
    code = "import cri; run = cri.load_run('times_mod'); print(run.task.rule.run(7, 15).result, run.config.task)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=place)


def test_a_run_finds_the_file_of_its_task_again(place: Path, tmp_path: Path) -> None:
    assert _open(place).stdout == "[8] times_mod\n"  # 105 mod 97
    shutil.copytree(place, tmp_path / "moved")
    shutil.move(place / "times_mod.py", place / "away.py")
    try:
        assert _open(tmp_path / "moved").stdout == "[8] times_mod\n"  # beside the runs
        missing = _open(place)
    finally:
        shutil.move(place / "away.py", place / "times_mod.py")
    assert missing.returncode != 0
    assert "times_mod.py, which defines the task 'times_mod', and the file is missing" in missing.stderr
    with (tmp_path / "moved" / "times_mod.py").open("a") as file:
        file.write("# changed\n")
    shutil.move(place / "times_mod.py", place / "away.py")
    try:
        changed = _open(tmp_path / "moved")
    finally:
        shutil.move(place / "away.py", place / "times_mod.py")
    assert "was changed since" in changed.stderr


def test_a_task_of_a_notebook_is_asked_for() -> None:
    from cri.tasks.plugins import origin, require_origin

    made: dict[str, Any] = {"__name__": "a_cell", "cri": cri}
    exec("class Cell: pass", made)
    assert origin(made["Cell"]) == {"file": "", "sha256": ""}
    assert origin(cri.SquareGrid) is None
    with pytest.raises(CriError, match=r"^task: 'cell' .*defined in a notebook"):
        require_origin("cell", {"file": "", "sha256": ""}, False, Path("run"))
    require_origin("cell", {"file": "", "sha256": ""}, True, Path("run"))


def test_bad_plugins_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "text.txt").write_text("")
    for words, said in (
        (["--plugin", str(tmp_path / "none.py")], "not a Python file"),
        (["--plugin", str(tmp_path / "text.txt")], "not a Python file"),
        (["--plugin", str(tmp_path / "broken.py")], "ZeroDivisionError"),
        (["--plugin"], "needs a Python file"),
        (["--task", "nobody_has_this"], "unknown"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["train", *words])
        err = capsys.readouterr().err
        assert stop.value.code == 2
        assert said in err
        assert err.count("\n") == 1


def plus(num1: list[int], num2: list[int], *, base: int) -> list[int]:
    total = num1.pop() + num2.pop()
    if total >= base:
        return [1, total - base]
    return [total]


def test_a_rule_of_one_s_own_is_traced_and_edited() -> None:
    own = cri.rule(plus, base=10)
    assert own.run(7, 8).result == [1, 5]
    assert own.run([7], [8]).text == own.run(7, 8).text
    table = own.trace(7, 8)
    assert table.columns.tolist() == ["line", "text", "elements"]
    edited = own.edit((7, 8), "total", "9")
    at = edited.index[edited["elements"].map(lambda e: e.get("total") == "9")][0]
    assert edited["text"][: at - 1].tolist() == table["text"][: at - 1].tolist()
    assert edited["text"].iloc[-1] == "return [9]"  # goes on from the changed total
    with pytest.raises(CriError, match=r"^element: .*total"):
        own.edit((7, 8), "carry", "1")
    with pytest.raises(CriError, match=r"^rule"):
        cri.rule(lambda x: open(x), base=10)  # noqa: SIM115
    with pytest.raises(CriError, match="base"):
        cri.rule(plus)


def test_a_method_of_one_s_own_is_known_by_name() -> None:
    from cri.attribution.methods import METHODS

    before = dict(METHODS)
    try:

        @cri.attribution_method
        def far_cases(question: Any) -> np.ndarray:
            a = question.task.cases
            return np.abs(a[question.train_ids][:, None] - a[question.query_ids][None]).max(-1)

        @cri.attribution_method(name="flat", kind="model-free", label="nothing", needs="cases")
        def _(question: Any) -> np.ndarray:
            return np.zeros((2, 2))

        truth = cri.ground_truth("addition/number/random", grid="small")
        METHODS.pop("flat")
        table = cri.benchmark("far_cases", truth, n_boot=20).set_index("method")
        near = cri.benchmark(-far_cases(truth.question), truth, n_boot=20).set_index("method")
        assert table["lds"]["far_cases"] == pytest.approx(-near["lds"]["yours"])
        cri.attribution_method(lambda question: np.zeros(3), name="few")
        with pytest.raises(CriError, match=r"^method few: its scores are \[3\]"):
            cri.benchmark("few", truth)
        with pytest.raises(CriError, match=r"^method EK-FAC: "):
            cri.attribution_method(lambda question: 0, name="EK-FAC")
    finally:
        METHODS.clear()
        METHODS.update(before)
