"""Runs: reuse, refusal, reading back; the command line's one-line errors."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cri.config import RunConfig
from cri.errors import CorruptRunError, CriError
from cri.evaluation.decoding import predictions
from cri.storage import config_hash, file_sha256, mark_complete, read_json, verify, write_json
from cri.train import load_run, main, train_run, train_runs, with_recipe
from cri.training.recipes import recipe
from tests.conftest import TINY


@pytest.fixture
def copied(tiny_run, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_run.path, tmp_path / tiny_run.path.name))


def test_a_finished_run_reads_back(tiny_run):
    assert tiny_run.config == TINY
    assert int(tiny_run.split.test.sum()) == 49
    again = predictions(
        tiny_run.model, tiny_run.tokenizer, tiny_run.tokens, tiny_run.task, tiny_run.format, tiny_run.split
    )
    pd.testing.assert_frame_equal(again, tiny_run.predictions, check_dtype=False)
    manifest = read_json(tiny_run.path / "manifest.json")
    assert manifest["accuracy"]["train"] == pytest.approx(again.loc[again["train"], "correct"].mean())
    assert {"commit", "dirty", "versions", "device", "command"} <= set(manifest)
    assert not (tiny_run.path / "checkpoint.safetensors").exists()


def test_metrics_have_loss_accuracy_and_steps(tiny_run):
    rows = [json.loads(line) for line in (tiny_run.path / "metrics.jsonl").read_text().splitlines()]
    losses = [r["loss"] for r in rows if "loss" in r]
    assert losses[-1] < losses[0]
    assert any("test_acc" in r for r in rows)
    assert rows[-1]["step"] == TINY.train.steps


def test_a_finished_run_is_reused(tiny_run):
    before = file_sha256(tiny_run.path / "complete.json")
    started = time.perf_counter()
    assert train_run(TINY, tiny_run.path.parent, progress=False) == tiny_run.path
    assert time.perf_counter() - started < 2
    assert file_sha256(tiny_run.path / "complete.json") == before


def test_another_config_is_another_run(tiny_run):
    assert config_hash(TINY.replace(seed=1).to_dict()) != config_hash(TINY.to_dict())
    assert config_hash(RunConfig.from_dict(TINY.to_dict()).to_dict()) == config_hash(TINY.to_dict())


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_damaged_weights_are_refused(copied, damage):
    weights = copied / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    if damage == "truncated":
        weights.write_bytes(data[: len(data) // 2])
    elif damage == "altered":
        data[-1] ^= 1
        weights.write_bytes(data)
    else:
        weights.unlink()
    with pytest.raises(CorruptRunError, match=r"model\.safetensors"):
        load_run(copied)
    with pytest.raises(CorruptRunError, match=r"model\.safetensors"):
        train_run(TINY, copied.parent, progress=False)


def test_a_run_made_with_other_data_is_refused(copied):
    manifest = read_json(copied / "manifest.json")
    manifest["identity"]["data"] = "0" * 16
    write_json(copied / "manifest.json", manifest)
    mark_complete(copied, list(read_json(copied / "complete.json")["sha256"]))
    verify(copied)
    with pytest.raises(CorruptRunError, match="other data"):
        load_run(copied)


def test_an_unfinished_folder_is_no_run(copied, tmp_path):
    (copied / "complete.json").unlink()
    with pytest.raises(CorruptRunError, match="not finished"):
        load_run(copied)
    with pytest.raises(CriError, match="not a folder"):
        load_run(tmp_path / "nothing")


def test_untrained_model_is_the_runs_own_start(tiny_run):
    start, trained = tiny_run.untrained(), tiny_run.model
    assert start.config.to_dict()["n_embd"] == trained.config.to_dict()["n_embd"]
    assert not torch.equal(start.lm_head.weight, trained.lm_head.weight)


def test_runs_in_parallel_equal_runs_in_turn(tmp_path):
    configs = [TINY.replace(steps=15, seed=seed) for seed in (0, 1)]
    together = train_runs(configs, tmp_path / "a", jobs=2, device="cpu", progress=False)
    for config, path in zip(configs, together, strict=True):
        alone = load_run(train_run(config, tmp_path / "b", device="cpu", progress=False)).model.state_dict()
        for name, value in load_run(path).model.state_dict().items():
            assert torch.equal(value, alone[name]), name


def test_square_cases_are_never_trained_on(tiny_run):
    from cri.training.batches import batch_order

    order = batch_order(tiny_run.split.train_ids, tiny_run.tokens.lengths.numpy(), batch_size=32, steps=50, seed=0)
    assert tiny_run.split.train[order].all()
    assert len(np.unique(order)) > 400


def command(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *args], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--task", "adition"], "task: unknown 'adition'; choose from addition"),
        (["--model", "nan0"], "'nan0'"),
        (["--tokenizer", "bpe"], "choose from number, digit"),
        (["--format", "prose"], "choose from direct"),
        (["--split", "disc"], "choose from square"),
        (["--split-params", "center=[3,50]"], "leaves the grid"),
        (["--split", "squares", "--split-params", "centers=[[30,30],[32,32]]", "half_sides=[4,4]"], "overlap"),
        (["--split-params", "half_side"], "KEY=VALUE"),
        (["--lr", "-1"], "lr: -1.0 is not allowed; must be positive"),
        (["--steps", "many"], "--steps"),
        (["--stepz", "3"], "--stepz"),
        (["--device", "cuda:7"], "device"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train", "--out", str(tmp_path / "runs"), *args])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    said = capsys.readouterr()
    lines = said.err.strip().splitlines()
    assert len(lines) == 1, said.err
    assert message in lines[0]
    assert said.out == ""
    assert not list(tmp_path.glob("runs/*/model"))


def test_a_process_ends_as_the_function_does(tmp_path):
    done = command("cri.train", "--out", str(tmp_path / "runs"), "--task", "adition")
    assert done.returncode == 2
    assert done.stderr.startswith("error: task: unknown 'adition'")
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


@pytest.mark.parametrize("module", ["cri.train", "cri.studies.lso_map", "cri.studies.neighbor_attribution"])
def test_help_is_quick(module):
    seconds = []
    for _ in range(3):  # the quickest of three: other tests run beside this one
        started = time.perf_counter()
        done = command(module, "--help")
        seconds.append(time.perf_counter() - started)
    assert done.returncode == 0
    assert "usage: python -m " + module in done.stdout
    assert min(seconds) < 1.5  # about 0.3 s, and 2 s on an idle machine where torch is imported


def test_command_line_prints_where_the_run_lies(tmp_path):
    done = command(
        "cri.train",
        "--out",
        str(tmp_path),
        "--task-params",
        "size=12",
        "--split-params",
        "half_side=1",
        "--steps",
        "5",
    )
    assert done.returncode == 0, done.stderr
    assert load_run(done.stdout.strip()).config.train.steps == 5


def test_settings_that_are_not_given_are_the_recipes():
    assert with_recipe(["--task", "mod_addition", "--split", "random"]).run == recipe("mod_addition")
    assert with_recipe(["--format=rfft", "--task=length_addition"]).run == recipe("length_addition", "rfft")
    assert with_recipe([]).run == recipe("addition")
    assert with_recipe(["--model", "some/pretrained"]).run.train.lr == 1e-4
    assert with_recipe(["--model", "gpt2-shape"]).run.train.precision == "bf16"
    assert with_recipe(["--task"]).run == RunConfig()  # what is wrong is said where the whole line is read
