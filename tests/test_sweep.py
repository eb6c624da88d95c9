"""Sweeps: independent jobs, equal tables from every backend, only what is missing is run again."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from cri.errors import CriError
from cri.sweep import SweepConfig, run, sweep

SMALL = {"task_params": ("size=12",), "half_side": 2, "steps": 12, "device": "cpu"}
GRID = SweepConfig(tasks=("addition", "linear_regression"), seeds=(0, 1), **SMALL)


def test_the_grid_of_configs():
    configs = list(GRID.run_configs())
    assert len(configs) == 8
    assert len({c.name for c in configs}) == 8
    assert all(c.task_params == {"size": 12} and c.train.steps == 12 for c in configs)
    assert {c.split: c.split_params for c in configs} == {"square": {"half_side": 2}, "random": {}}


def test_failed_runs_are_listed_and_tried_again(tmp_path, capsys):
    config = SweepConfig(splits=("square",), seeds=(0,), models=("nano", "nan0"), jobs=1, out=tmp_path, **SMALL)
    with pytest.raises(CriError, match="1 of 2 runs failed; run the same command again"):
        run(config)
    table = pd.read_csv(tmp_path / "sweep.csv")
    assert table["status"].tolist() == ["done", "failed"]
    assert "nan0" in table["error"][1]
    assert "failed: " in capsys.readouterr().out
    done = tmp_path / table["run"][0] / "complete.json"
    before = done.stat().st_mtime_ns
    with pytest.raises(CriError, match="1 of 2"):
        run(config)
    assert done.stat().st_mtime_ns == before


def test_an_unforeseen_error_does_not_end_the_others(tmp_path, monkeypatch):
    import cri.training.several

    real = cri.training.several.train_run

    def broken(config, *args, **options):
        if config.seed == 0:
            raise RuntimeError("a bug")
        return real(config, *args, **options)

    monkeypatch.setattr(cri.training.several, "train_run", broken)
    configs = list(SweepConfig(splits=("square",), seeds=(0, 1), **SMALL).run_configs())
    table = sweep(configs, tmp_path, jobs=1, device="cpu")
    assert table["status"].tolist() == ["failed", "done"]
    assert table["error"][0] == "RuntimeError: a bug"


def test_nothing_to_run_is_an_error():
    with pytest.raises(CriError, match="give at least one"):
        run(SweepConfig(tasks=()))


def command(out: Path, *arguments: str) -> list[str]:
    words = ["--tasks", "addition", "linear_regression", "--seeds", "0", "--task-params", "size=12"]
    words += ["--half-side", "2", "--steps", "12", "--device", "cpu", "--out", str(out)]
    return [sys.executable, "-m", "cri.sweep", *words, *arguments]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("sweep")
    subprocess.run(command(out), check=True, capture_output=True, env={**os.environ, "PYTHONPATH": os.getcwd()})
    return out


@pytest.mark.slow
def test_killed_halfway_the_rest_alone_is_run(finished, tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    first = subprocess.Popen(
        command(tmp_path, "--jobs", "1"),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.time() + 300
    while not list(tmp_path.glob("*/complete.json")) and time.time() < deadline:
        time.sleep(0.05)
    os.killpg(first.pid, 9)
    first.wait()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/complete.json")}
    assert 1 <= len(before) < 4
    subprocess.run(command(tmp_path, "--jobs", "1"), env=environment, check=True, capture_output=True)
    assert (tmp_path / "sweep.csv").read_text() == (finished / "sweep.csv").read_text()
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'cri[dev]'")
def test_ray_gives_the_same_table(finished, tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    subprocess.run(command(tmp_path, "--backend", "ray"), env=environment, check=True, capture_output=True)
    assert (tmp_path / "sweep.csv").read_text() == (finished / "sweep.csv").read_text()
