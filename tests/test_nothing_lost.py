"""Killed, out of disk, in company, tampered with: a run resumes exactly, or refuses with a reason."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cri.config import RunConfig, TrainConfig
from cri.errors import CorruptRunError, CriError
from cri.storage import file_sha256, read_json
from cri.training.runs import load_run, train_run
from tests.kills import training_lines

CONFIG = RunConfig(
    task_params={"size": 10}, split_params={"half_side": 1}, train=TrainConfig(steps=60, batch_size=32, lr=2e-3)
)
RESULTS = ("config.json", "split.json", "metrics.jsonl", "predictions.csv", "model/model.safetensors")

# One process that imports once and then forks a child for every run: a kill costs no second start, and falls into the
# run, not into its imports. What a run imports on its way, a first child tells.
DRIVER = """
import contextlib, importlib, json, os, random, signal, sys, tempfile, time
from pathlib import Path
import torch
from cri.training import checkpoints
from cri.evaluation import decoding as evaluation
from cri import storage as runs
from cri.config import RunConfig
from cri.training.runs import train_run
import cri.training.trainer, cri.models.loading, transformers

torch.set_num_threads(1)
config = RunConfig.from_dict(json.loads(sys.argv[1]))
out, mode = Path(sys.argv[2]), sys.argv[3]
options = dict(device="cpu", checkpoint_every=7, evals=4, progress=False)


def child(prepare=None):
    pid = os.fork()
    if pid == 0:
        try:
            if prepare:
                prepare()
            train_run(config, out, **options)
            os._exit(0)
        except BaseException as error:
            print(f"child: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    return pid


def import_what_a_run_imports():
    # torch refuses gradients in the child of a process that has taken any: the parent imports, and trains nothing
    read, write = os.pipe()
    if os.fork() == 0:
        with tempfile.TemporaryDirectory() as elsewhere:
            train_run(config, Path(elsewhere), **options)
        with open(write, "w") as names:
            json.dump(list(sys.modules), names)
        os._exit(0)
    os.close(write)
    with open(read) as names:
        for name in json.load(names):
            with contextlib.suppress(Exception):
                importlib.import_module(name)
    os.wait()


def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def at_write(n, after):
    # dies at the n-th rename of a finished temporary file: just before it, or just after
    real, count = os.replace, [0]

    def replace(source, target):
        count[0] += 1
        if count[0] == n and not after:
            die()
        real(source, target)
        if count[0] == n:
            die()

    def prepare():
        runs.os.replace = replace

    return prepare


def in_decoding(n):
    real, count = evaluation.decode, [0]

    def decode(*args, **options):
        count[0] += 1
        if count[0] == n:
            die()
        return real(*args, **options)

    def prepare():
        evaluation.decode = decode

    return prepare


import_what_a_run_imports()
killed = 0
if mode == "random":
    started = time.perf_counter()
    assert ended(child()) == 0
    whole = time.perf_counter() - started
    import shutil
    shutil.rmtree(out)
    random.seed(0)
    for _ in range(int(sys.argv[4])):
        pid = child()
        time.sleep(random.random() * whole * 0.2)  # what a killed one has saved the next ones need not do
        os.kill(pid, signal.SIGKILL)
        killed += ended(pid) == -signal.SIGKILL
elif mode == "writes":
    for n in range(1, int(sys.argv[4]) + 1):
        for after in (False, True):
            killed += ended(child(at_write(n, after))) == -signal.SIGKILL
    for n in (1, 2):
        killed += ended(child(in_decoding(n))) == -signal.SIGKILL
code = ended(child())
print(json.dumps({"killed": killed, "code": code}))
"""


def drive(config: RunConfig, out: Path, *arguments: str) -> dict[str, int]:
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", DRIVER, json.dumps(config.to_dict()), str(out), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "child:" not in done.stderr, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def results(out: Path) -> dict[str, str]:
    (folder,) = (path for path in out.iterdir() if path.is_dir())
    training = hashlib.sha256("\n".join(training_lines(folder / "metrics.jsonl")).encode()).hexdigest()
    return {name: file_sha256(folder / name) for name in RESULTS} | {"metrics.jsonl": training}


def resume(folder: Path) -> Path:
    return train_run(CONFIG, folder.parent, device="cpu", checkpoint_every=7, evals=4, progress=False)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("uninterrupted")
    resume(out / "x")
    return out


@pytest.mark.slow
def test_killed_at_random_moments(uninterrupted, tmp_path):
    report = drive(CONFIG, tmp_path, "random", "25")
    assert report["code"] == 0
    assert report["killed"] >= 20
    assert results(tmp_path) == results(uninterrupted)
    (folder,) = tmp_path.iterdir()
    assert not list(folder.glob("*.tmp")) + list(folder.glob("checkpoint*"))


@pytest.mark.slow
def test_killed_at_every_write_and_while_decoding(uninterrupted, tmp_path):
    report = drive(CONFIG, tmp_path, "writes", "6")
    assert report["code"] == 0
    assert report["killed"] >= 8  # a run that gets past its writes ends before it is killed
    assert results(tmp_path) == results(uninterrupted)


def start(config: RunConfig, out: Path, **options) -> subprocess.Popen[str]:
    code = (
        "import json, sys; from pathlib import Path; from cri.config import RunConfig;"
        "from cri.training.runs import train_run;"
        "config = RunConfig.from_dict(json.loads(sys.argv[1]));"
        "print(train_run(config, Path(sys.argv[2]), device='cpu', checkpoint_every=7, evals=4, progress=False))"
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, json.dumps(config.to_dict()), str(out)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, **options)


@pytest.mark.slow
def test_two_processes_ask_for_the_same_run(uninterrupted, tmp_path):
    both = [start(CONFIG, tmp_path) for _ in range(2)]
    outputs = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert results(tmp_path) == results(uninterrupted)


@pytest.mark.slow
def test_full_disk_is_one_error_and_the_run_goes_on_later(uninterrupted, tmp_path):
    """No file may grow beyond 300 kB: the first checkpoint does not fit."""
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    process = start(CONFIG, tmp_path, preexec_fn=limit)
    _, errors = process.communicate()
    assert process.returncode == 1
    assert "CriError: checkpoint.safetensors: cannot be written" in errors.strip().splitlines()[-1]
    (folder,) = tmp_path.iterdir()
    assert not list(folder.glob("*.tmp")) + list(folder.glob("*.safetensors"))
    assert drive(CONFIG, tmp_path, "once") == {"killed": 0, "code": 0}
    assert results(tmp_path) == results(uninterrupted)


@pytest.mark.parametrize("file", ["checkpoint.safetensors", "predictions.csv", "complete.json", "metrics.jsonl"])
def test_no_room_for_a_file_is_one_error_and_the_run_goes_on_later(uninterrupted, tmp_path, monkeypatch, file):
    real_fsync, real_open = os.fsync, Path.open

    def full(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fsync(descriptor):
        return full() if file in os.readlink(f"/proc/self/fd/{descriptor}") else real_fsync(descriptor)

    def open_(self, mode="r", *args, **options):
        return full() if self.name == file and "a" in mode else real_open(self, mode, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(Path, "open", open_)
        with pytest.raises(CriError, match="No space left on device"):
            resume(tmp_path / "x")
    (folder,) = tmp_path.iterdir()
    assert not (folder / "complete.json").exists()
    assert not list(folder.glob("*.tmp"))
    resume(folder)
    assert results(tmp_path) == results(uninterrupted)


@pytest.fixture
def other_code(monkeypatch):
    """The task has changed since."""
    from cri.data.token_table import texts
    from cri.tasks import Addition

    texts.cache_clear()
    monkeypatch.setattr(Addition, "value", lambda self, a, b: a + b + 1)
    yield
    texts.cache_clear()


@pytest.fixture
def interrupted(tmp_path, monkeypatch) -> Path:
    """A run that stopped after its second checkpoint."""
    import cri.training.trainer

    real = cri.training.trainer.Trainer.run

    def run(self, until, *args, **options):
        if until > 15:
            raise KeyboardInterrupt
        real(self, until, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(cri.training.trainer.Trainer, "run", run)
        with pytest.raises(KeyboardInterrupt):
            train_run(CONFIG, tmp_path, device="cpu", checkpoint_every=7, evals=4, progress=False)
    (folder,) = tmp_path.iterdir()
    assert (folder / "checkpoint.safetensors").exists()
    return folder


def test_an_interrupted_run_resumes(uninterrupted, interrupted):
    load_run(resume(interrupted))
    assert results(interrupted.parent) == results(uninterrupted)


def test_what_a_kill_after_the_marker_left_is_removed(uninterrupted, tmp_path):
    shutil.copytree(uninterrupted, tmp_path / "runs")
    (folder,) = (tmp_path / "runs").iterdir()
    (folder / "checkpoint.safetensors").write_text("left")
    (folder / ".predictions.csv.1.tmp").write_text("left")
    resume(folder)
    assert not list(folder.glob("checkpoint*")) + list(folder.glob(".*"))


@pytest.mark.parametrize("damage", ["altered", "cut", "empty"])
def test_an_altered_checkpoint_is_refused(interrupted, damage):
    checkpoint = interrupted / "checkpoint.safetensors"
    data = bytearray(checkpoint.read_bytes())
    data[-9] ^= 4
    checkpoint.write_bytes({"altered": data, "cut": data[:-1000], "empty": b""}[damage])
    with pytest.raises(CorruptRunError, match=r"checkpoint\.safetensors"):
        resume(interrupted)
    assert not (interrupted / "complete.json").exists()


def test_a_checkpoint_made_with_other_data_is_refused(interrupted, other_code):
    with pytest.raises(CorruptRunError, match="other data"):
        resume(interrupted)


def test_a_finished_run_made_with_other_data_is_refused(uninterrupted, tmp_path, other_code):
    shutil.copytree(uninterrupted, tmp_path / "runs")
    with pytest.raises(CorruptRunError, match="other data"):
        train_run(CONFIG, tmp_path / "runs", device="cpu", progress=False)


def test_nothing_is_unpickled(uninterrupted, monkeypatch):
    import pickle

    def refuse(*args, **options):
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    (folder,) = uninterrupted.iterdir()
    run = load_run(folder)
    assert np.isfinite(read_json(folder / "manifest.json")["accuracy"]["train"])
    assert len(run.predictions) == 100


def test_unwritable_folder_is_an_error(tmp_path):
    (tmp_path / "runs").write_text("a file where the folder should be")
    started = time.perf_counter()
    with pytest.raises(CriError, match=r"out: .* cannot be used"):
        train_run(CONFIG, tmp_path / "runs", device="cpu", progress=False)
    assert time.perf_counter() - started < 20
