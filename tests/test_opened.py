"""The front door: `import cri`, an opened run's questions, the `cri` command."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cri
from cri.__main__ import COMMANDS, main, studies
from cri.errors import CriError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    config = cri.recipe("addition", task_params={"size": 12}, split_params={"half_side": 2}, steps=150)
    return cri.train_run(config, out, device="cpu", progress=False)


@pytest.fixture(scope="module")
def run(folder: Path) -> cri.OpenRun:
    return cri.load_run(folder)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> cri.OpenRun:
    config = cri.recipe(
        "addition", "scratchpad", tokenizer="digit", task_params={"size": 12}, split_params={"half_side": 1}, steps=20
    )
    return cri.load_run(cri.train_run(config, tmp_path_factory.mktemp("runs"), device="cpu", progress=False))


def test_importing_the_package_takes_no_torch() -> None:
    code = "import sys, cri; assert 'torch' not in sys.modules; print(sorted(set(cri.__all__) - set(dir(cri))))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match=r"it has .*load_run"):
        cri.lode_run  # pyright: ignore[reportAttributeAccessIssue]  # noqa: B018


def test_a_run_is_found_by_the_beginning_of_its_name(folder: Path, run: cri.OpenRun) -> None:
    from cri.opened import load_run

    assert load_run(folder.name[:15], folder.parent).path == folder
    assert "accuracy" in repr(run)
    assert len(repr(run)) < 200


def test_nearest_cases_are_those_of_the_study(run: cri.OpenRun) -> None:
    from cri.attribution.neighbors import similarity
    from cri.models.activations import collect, residual_sites

    case, site = run.case(6, 6), residual_sites(run.bridge)[-1]
    acts = collect(run.bridge, run.tokens, [site])[site]
    scores = similarity(acts[run.split.train_ids], acts[[case]])[:, 0]
    table = run.nearest((6, 6), k=5)
    assert table["case"].tolist() == run.split.train_ids[np.argsort(-scores, kind="stable")[:5]].tolist()
    assert table.columns.tolist() == ["case", "a", "b", "answer", "distance", "group", "similarity"]
    distance = np.abs(run.task.cases[table["case"]] - [6, 6]).max(1)
    assert table["distance"].tolist() == distance.tolist()
    trained = int(run.split.train_ids[0])
    assert trained not in run.nearest(trained, k=3)["case"].tolist()  # a case is not its own neighbour


@pytest.mark.parametrize("target", ["predicted", "true"])
def test_influence_is_that_of_the_studies_for_the_same_answer(run: cri.OpenRun, target: Any) -> None:
    from cri.attribution.ekfac import fit_ekfac
    from cri.attribution.influence import influence

    case = run.case(6, 6)
    tokens = run.explained([case], "prediction" if target == "predicted" else "reference")
    train = run.tokens[run.split.train_ids]
    fisher = fit_ekfac(run.model, train, labels="sampled", progress=False)
    scores = influence(run.model, fisher, train, tokens, target=tokens.target, progress=False)[:, 0]
    table = run.influence(case, target=target, k=None)
    assert len(table) == len(run.split.train_ids)
    found = table.set_index("case")["score"].loc[run.split.train_ids].to_numpy()
    assert np.allclose(found, scores, atol=1e-4 * np.abs(scores).max())
    assert table["score"].is_monotonic_decreasing


def test_whose_answer_is_explained_matters_where_they_differ(run: cri.OpenRun) -> None:
    wrong = run.predictions.loc[(run.predictions["status"] == "wrong"), "id"]
    case = int(wrong.iloc[0])
    mine, right = (
        run.influence(case, "same_answer", target=t, k=None).set_index("case") for t in ("predicted", "true")
    )
    answers = run.task.answers
    assert {answers[i] for i in right.index[right["score"] > 0]} <= {answers[case]}
    assert {answers[i] for i in mine.index[mine["score"] > 0]} <= {str(run.predictions["prediction"][case])}


def test_the_last_row_of_the_lens_is_what_the_model_writes(run: cri.OpenRun) -> None:
    case = run.case(6, 6)
    table = run.logit_lens(case, k=1)
    assert table["top"].iloc[-1][0].strip() == run.predictions["prediction"][case]
    assert (table["answer_rank"].iloc[-1] == 0) == bool(run.predictions["correct"][case])


def test_a_patch_after_the_last_layer_brings_the_source_s_answer(run: cri.OpenRun) -> None:
    case, source = run.case(6, 6), run.case(1, 2)
    table = run.patch(source, case)
    assert table["answer"].iloc[-1].strip() == run.predictions["prediction"][source]
    assert (table["before"].str.strip() == run.predictions["prediction"][case]).all()
    one = run.patch(source, case, "blocks.0.hook_resid_post")
    assert one["site"].tolist() == ["blocks.0.hook_resid_post@prompt_end"]


def test_a_trace_is_shown_and_edited(written: cri.OpenRun) -> None:
    from cri.formats.traces import Edit
    from cri.interventions.edits import CaseEdit, step_edits

    table = written.trace((9, 8))
    assert "".join(f"{t}\n" for t in table["text"]).rstrip("\n") == "".join(
        line.text for line in written.format.trace(written.task, 9, 8)
    )
    first = table.index[table["elements"].map(lambda e: e.get("carry", "0") != "0")][0]
    row = written.edit((9, 8), "carry", "0")
    case = written.case(9, 8)
    same = step_edits(written, [CaseEdit(case, Edit(int(first), "carry", "0"))]).iloc[0]
    assert row["outcome"] == same["outcome"]
    assert row["expected"] == same["expected"] == "7"


def test_a_map_is_of_a_column_or_of_one_number_a_case(run: cri.OpenRun) -> None:
    assert run.map("correct").get_xlabel() == "b"
    drawn = run.map(np.arange(run.task.n_cases)).images[0].get_array()
    assert drawn is not None
    assert float(drawn.max()) == run.task.n_cases - 1


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda r: r.case(50, 1), "case"),
        (lambda r: r.nearest([1, 2]), "case"),
        (lambda r: r.nearest(True), "case"),
        (lambda r: r.nearest(10**6), "case"),
        (lambda r: r.nearest(1, site=3), "site"),
        (lambda r: r.nearest(1, site="blocks.9.hook_resid_post"), "site"),
        (lambda r: r.nearest(1, metric="manhattan"), "metric"),
        (lambda r: r.nearest(1, k=0), "k"),
        (lambda r: r.influence(1, "EKFAC2"), "method"),
        (lambda r: r.influence(1, target="both"), "target"),
        (lambda r: r.influence(1, "same_answer", k=10**6), "k"),
        (lambda r: r.logit_lens(1, k=0), "k"),
        (lambda r: r.trace(1), "format"),
        (lambda r: r.map("nope"), "values"),
        (lambda r: r.map([1.0, 2.0]), "values"),
    ],
)
def test_a_wrong_argument_is_one_line_that_names_it(run: cri.OpenRun, call: Any, field: str) -> None:
    with pytest.raises(CriError, match=f"^{field}: [^\n]+$"):
        call(run)


def test_wrong_edits_are_named(written: cri.OpenRun) -> None:
    for arguments, field in (((9, 8), "carrot", "1"), "element"), (((9, 8), "carry", 1), "value"):
        with pytest.raises(CriError, match=f"^{field}"):
            written.edit(*arguments)  # pyright: ignore[reportArgumentType]


def _command(argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = 0
    try:
        main(argv)
    except SystemExit as stop:
        code = int(stop.code or 0)
    out = capsys.readouterr()
    return code, out.out, out.err


def test_every_word_of_the_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _command([], capsys)
    assert code == 0
    assert all(f"  {name} " in out for name in COMMANDS)
    assert all(name in out for name in studies())
    for words in (["train"], ["study", "leave_x_out"], ["study", "retraining_bank"], ["runs"], ["map"]):
        code, out, err = _command([*words, "--help"], capsys)
        assert code == 0, err
        assert "usage:" in out


@pytest.mark.parametrize("words", [*([name] for name in COMMANDS), *(["study", name] for name in studies()), ["runs"]])
def test_every_help_has_an_example(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = _command([*words, "--help"], capsys)
    assert code == 0, err
    assert "xample" in out
    assert f"cri {words[0]}" in out


def test_runs_are_listed_shown_compared_and_removed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    shutil.copytree(folder, tmp_path / folder.name)
    (tmp_path / "half-made").mkdir()
    (tmp_path / "half-made" / "config.json").write_text("[]")
    code, out, _ = _command(["runs", "ls", "--runs", str(tmp_path)], capsys)
    assert code == 0
    assert folder.name in out
    assert "finished" in out
    assert "damaged" in out
    code, out, _ = _command(["runs", "show", folder.name[:12], "--runs", str(tmp_path)], capsys)
    assert "steps: 150" in out
    code, out, err = _command(["runs", "compare", folder.name, "--runs", str(tmp_path)], capsys)
    assert code == 2
    assert err.startswith("error: runs: ")
    code, out, _ = _command(["runs", "rm", folder.name, "--runs", str(tmp_path)], capsys)
    assert not (tmp_path / folder.name).exists()
    code, out, _ = _command(["runs", "--runs", str(tmp_path / "none")], capsys)
    assert out.startswith("no runs in")


@pytest.mark.parametrize(
    ("argv", "field"),
    [(["trian"], "command"), (["study"], "study"), (["study", "x"], "study"), (["runs", "x"], "runs"),
     (["runs", "rm"], "runs"), (["runs", "show", "nothing"], "run"), (["runs", "ls", "--runs"], "runs")],
)  # fmt: skip
def test_bad_words_are_one_line(argv: list[str], field: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = _command(argv, capsys)
    assert code == 2
    assert err.startswith(f"error: {field}: ")
    assert err.count("\n") == 1


def test_a_dry_run_says_what_would_be_trained_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cri.training.forecast import DRY_RUN, forecast

    monkeypatch.chdir(tmp_path)
    small = ["--task-params", "size=12", "--steps", "40"]
    for words in (
        ["train", *small, "--split-params", "half_side=2"],
        ["sweep", *small, "--half-side", "2"],
        ["map", "--size", "12", "--half-side", "2", "--steps", "40"],
        ["study", "recipe_search", "test"],
    ):
        code, out, err = _command([*words, "--dry-run"], capsys)
        assert code == 0, err
        assert " to train: about " in out
        assert "new" in out
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]
        assert not DRY_RUN.get()
    records = str(Path(__file__).parents[1] / "studies" / "retraining_bank")
    code, out, err = _command(["study", "leave_x_out", "--records", records, "--dry-run"], capsys)
    assert code == 0, err
    assert "nothing to train" in out
    DRY_RUN.set(False)
    for words in (["export", "--dry-run"], ["study", "performance", "--dry-run"]):
        code, _, err = _command(words, capsys)
        assert code == 2
        assert err.startswith("error: dry-run: ")
    (row,) = forecast([cri.recipe("addition", task_params={"size": 12}, split_params={"half_side": 2})], tmp_path)
    assert row.cases == 144 - 25
    assert row.minutes > 0
    assert row.megabytes == pytest.approx(4e-6 * row.parameters)


def test_words_are_completed(capsys: pytest.CaptureFixture[str]) -> None:
    offered = {}
    for words in ([], ["study"], ["runs"], ["completion"], ["map"], ["study", "matrix"], ["nothing"]):
        offered[" ".join(words)] = _command(["complete", *words], capsys)[1].split()
    assert set(COMMANDS) <= set(offered[""])
    assert offered["study"] == studies()
    assert "compare" in offered["runs"]
    assert {"tasks", "--seeds", "--half-side"} <= set(offered["map"])
    assert {"cpu", "--out"} <= set(offered["study matrix"])
    assert offered["nothing"] == []
    for shell in offered["completion"]:
        assert "cri complete" in _command(["completion", shell], capsys)[1]
    assert _command(["completion", "tcsh"], capsys)[0] == 2


def test_bash_completes(tmp_path: Path) -> None:
    import shutil

    if shutil.which("bash") is None:
        pytest.skip("no bash here")
    program = tmp_path / "cri"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m cri "$@"\n')
    program.chmod(0o755)
    script = 'eval "$(cri completion bash)"; COMP_WORDS=(cri study ma); COMP_CWORD=2; _cri; echo "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "-c", f"PATH={tmp_path}:$PATH; {script}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["matrix"]


def test_warnings_stand_above_bars(capsys: pytest.CaptureFixture[str]) -> None:
    import warnings
    from dataclasses import dataclass

    from cri.cli import run_command
    from cri.training.jobs import progress_bar

    @dataclass(frozen=True)
    class Nothing:
        pass

    def work(config: Nothing) -> None:
        with progress_bar(3, "work", "step"), warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning("look out", UserWarning, "here.py", 1)

    before = warnings.showwarning
    run_command(Nothing, work, argv=[])
    assert "warning: look out\n" in capsys.readouterr().err
    assert warnings.showwarning is before


@pytest.mark.parametrize("words", [[], ["--help"], ["runs", "ls"]])
def test_the_command_answers_at_once(words: list[str], tmp_path: Path) -> None:
    seconds = []
    for _ in range(3):  # the best of three: the machine may be busy
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "cri", *words], capture_output=True, check=True, cwd=tmp_path)
        seconds.append(time.perf_counter() - started)
    modules = subprocess.run(
        [sys.executable, "-c", f"import sys; from cri.__main__ import main; main({words!r}); "
         "print([m for m in ('torch', 'pandas', 'transformers') if m in sys.modules])"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert modules.stdout.splitlines()[-1] == "[]"
    assert min(seconds) < 5  # within a second on a quiet machine


def test_a_run_that_kept_a_sample_of_its_answers_answers_every_case(run: cri.OpenRun) -> None:
    """As runs of long texts do: nothing is looked up by a case's place in the sample."""
    kept = run.predictions.iloc[[100, 3, 50]].sort_values("id")
    partly = dataclasses.replace(run, predictions=kept.reset_index(drop=True))
    whole = run.predictions.set_index("id", drop=False)
    asked = [7, 3, 143, 100]
    found = partly.decoded(asked)
    assert found["id"].tolist() == asked
    assert found["prediction"].tolist() == whole.loc[asked, "prediction"].tolist()
    assert np.array_equal(partly.explained(asked, "prediction").ids, run.explained(asked, "prediction").ids)
    assert partly.nearest(7, k=3).equals(run.nearest(7, k=3))
    shown = np.ma.asarray(partly.map(np.arange(144.0)).images[0].get_array())
    assert sorted(shown[np.isfinite(shown)].tolist()) == [3, 50, 100]
