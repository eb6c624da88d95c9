"""`cri.benchmark` and `cri bench`: the recorded scores again, a user's own scores, and what is refused."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cri
from cri.__main__ import main
from cri.errors import CriError

ROOT = Path(__file__).parents[1]


TIED = ("same_answer", "same_step", "same_operand", "shared_step")
"""Methods that count cases, so that many subsets have equal sums. What is recorded of them was ranked before these
shared a rank, in an order that the machine's rounding decided (`studies/log.md`, 2026-11-27)."""


@pytest.fixture(scope="module")
def truth() -> Any:
    return cri.ground_truth("addition/number/random", grid="small")


def test_recorded_scores_of_methods_of_every_kind_come_out_again(truth: Any) -> None:
    started = time.perf_counter()
    recorded = truth.recorded.query("retraining == 'mean over seeds'").set_index("method")
    seen = set()
    for method in ("same_answer_by_distance", "cosine", "EK-FAC"):
        table = cri.benchmark(method, truth, n_boot=50).set_index("method")
        for name in table.index[table["source"] == "now"].intersection(recorded.index):
            within = 0.03 if name in TIED else 0.002  # others have few equal sums
            assert table["lds"][name] == pytest.approx(recorded["lds"][name], abs=within), name
            seen.add(name)
    assert {"same_answer_by_distance", "cosine, layer 1", "EK-FAC"} <= seen
    assert time.perf_counter() - started < 90


def test_scores_and_functions_are_laid_beside_ours(truth: Any) -> None:
    answers = np.array([truth.question.task.answers[i] for i in truth.question.train_ids])
    scores = (answers[:, None] == np.array(truth.question.answers)[None]).astype(int)  # `same_answer`, by hand
    table = cri.benchmark(scores, truth, name="mine", n_boot=50)
    by_name = table.set_index("method")
    assert by_name["lds"]["mine"] == by_name["lds"]["same_answer"]
    assert table["lds"].iloc[1:].is_monotonic_decreasing
    assert table["method"].iloc[0] == "noise ceiling"
    assert by_name["gain"]["same_answer_by_distance"] == 0  # the best of the model-free ones
    assert by_name["gain_high"]["mine"] < 0
    assert by_name.loc["EK-FAC", "source"] == "recorded"

    def by_function(question: Any) -> np.ndarray:
        assert question.model is not None
        return scores

    again = cri.benchmark(by_function, truth, n_boot=50).set_index("method")
    assert again["lds"]["by_function"] == by_name["lds"]["mine"]
    noise = np.random.default_rng(0).normal(size=truth.shape)  # a control: nothing to predict with
    low, high = cri.benchmark(noise, truth, n_boot=200).set_index("method").loc["yours", ["lds_low", "lds_high"]]
    assert low < 0.03
    assert high > -0.03


def test_rows_and_columns_are_named(truth: Any) -> None:
    table = truth.cases()
    assert tuple(table["axis"].value_counts()[["train", "test"]]) == truth.shape
    train, test = (set(table.loc[table["axis"] == axis, "case"]) for axis in ("train", "test"))
    assert not train & test
    assert (table["a"] + table["b"]).astype(str).tolist() == table["answer"].tolist()  # target: the right answer
    assert f"{truth.shape[0]} training cases" in repr(truth)


def test_regions_are_those_of_the_square_split() -> None:
    square = cri.ground_truth("addition/digit/square", grid="small")
    inside = cri.benchmark("same_answer_by_distance", square, region="square", n_boot=20).set_index("method")
    assert "noise ceiling" not in inside.index  # one retraining a half tells no noise
    kept = square.recorded.query("region == 'square' and retraining == 'fixed seed'").set_index("method")
    name = "same_answer_by_distance"
    assert inside["lds"][name] == pytest.approx(kept["lds"][name], abs=0.002)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: cri.ground_truth("addition/number/radnom"), "ground_truth: .*addition/number/random"),
        (lambda t: cri.ground_truth(grid="big"), "grid: .*paper"),  # pyright: ignore[reportArgumentType]
        (lambda t: cri.ground_truth(target="both"), "target: .*predicted"),  # pyright: ignore[reportArgumentType]
        (lambda t: cri.ground_truth(records="/nowhere"), "records: .*repository"),
        (lambda t: cri.benchmark("EKFAC", t), "method: .*EK-FAC"),
        (lambda t: cri.benchmark(np.zeros((3, 4)), t), r"scores: .*\[630, 113\].*\[3, 4\]"),
        (lambda t: cri.benchmark(np.full(t.shape, np.nan), t), "scores: .*finite"),
        (lambda t: cri.benchmark([["a"]], t), "scores: .*numbers"),
        (lambda t: cri.benchmark("same_answer", t, region="square"), "region: .*all"),
        (lambda t: cri.benchmark(np.zeros(t.shape), t, name="bm25"), "name: .*bm25"),
    ],
)
def test_what_is_refused_is_named(truth: Any, call: Any, message: str) -> None:
    with pytest.raises(CriError, match=f"^{message}"):
        call(truth)


def _bench(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = 0
    try:
        main(["bench", *words])
    except SystemExit as stop:
        code = int(stop.code or 0)
    out = capsys.readouterr()
    return code, out.out, out.err


def test_the_command(truth: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pandas as pd

    small = ["--grid", "small", "--records", str(ROOT / "studies" / "retraining_bank")]
    code, out, _ = _bench(["--list"], capsys)
    assert code == 0
    assert "mod_addition/number/square" in out
    code, out, err = _bench([*small, "--cases", str(tmp_path / "cases.csv")], capsys)
    assert code == 0, err
    assert len(pd.read_csv(tmp_path / "cases.csv")) == sum(truth.shape)
    np.save(tmp_path / "flat.npy", np.zeros(truth.shape))
    code, out, _ = _bench([*small, "--scores", str(tmp_path / "flat.npy"), "--out", str(tmp_path / "t.csv")], capsys)
    assert code == 0
    assert pd.read_csv(tmp_path / "t.csv").set_index("method").loc["flat", "lds"] == 0
    os.mkfifo(tmp_path / "pipe")
    for words, field in (
        ([], "scores, method"),
        (["--scores", str(tmp_path / "pipe")], "scores"),
        (["--scores", str(tmp_path / "none.npy")], "scores"),
        (["--scores", str(tmp_path / "cases.csv")], "scores"),
        (["--method", "same_answer", "--records", str(tmp_path / "none")], "records"),
        (["--method", "same_answer", "--out", str(tmp_path)], "out"),
    ):
        code, _, err = _bench(words, capsys)
        assert code == 2
        assert err.startswith(f"error: {field}: "), err
        assert err.count("\n") == 1
