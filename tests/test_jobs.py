"""Jobs: the same outcomes in this process, in several, and on a Ray cluster; one that fails ends no other."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from cri.config import RunConfig, TrainConfig
from cri.ensembles.bank import load_bank
from cri.ensembles.engine import Replica
from cri.ensembles.train import Parts, train_replicas
from cri.errors import CriError, MissingDependencyError
from cri.storage import file_sha256
from cri.training.jobs import Workers
from cri.training.setup import prepare

NEEDS_RAY = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'cri[dev]'"
)
WAYS = [
    pytest.param(Workers(jobs=1, device="cpu"), id="this process"),
    pytest.param(Workers(jobs=2, device="cpu"), id="two processes"),
    pytest.param("ray", id="ray", marks=[NEEDS_RAY, pytest.mark.slow]),
]
BANK = RunConfig(
    task_params={"size": 12}, split_params={"half_side": 1}, train=TrainConfig(steps=12, batch_size=16, lr=5e-3)
)


@pytest.fixture(autouse=True)
def modules_found_by_workers(monkeypatch):
    """Workers import what a job refers to by name, this module too."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")]))


@pytest.mark.parametrize("workers", WAYS)
def test_outcomes_are_in_order_and_failures_in_their_place(workers):
    def job(item):
        if item == 2:
            raise CriError("item: 2 is refused")
        if item == 3:
            raise RuntimeError("a bug")
        return item * 10, torch.get_num_threads()

    if workers == "ray":
        workers = Workers("ray", jobs=2)
    before, done = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        outcomes = workers.run(job, [4, 2, 3, 1], done.append)
        assert torch.get_num_threads() == 2, "this process has its threads back"
    finally:
        torch.set_num_threads(before)
    assert [o.value for o in outcomes] == [(40, 1), None, None, (10, 1)]
    assert [type(o.error).__name__ for o in outcomes] == ["NoneType", "CriError", "RuntimeError", "NoneType"]
    assert sorted(done) == [1, 2, 3, 4]
    with pytest.raises(CriError, match="2 is refused"):
        outcomes[1].get()
    with pytest.raises(RuntimeError, match="a bug") as caught:
        outcomes[2].get()
    assert "in job" in caught.value.__notes__[0], "the traceback of the process where it happened"


def test_settings_are_checked_before_anything_runs(monkeypatch):
    with pytest.raises(CriError, match=r"backend: unknown 'slurm'; choose from processes, ray"):
        Workers("slurm")  # pyright: ignore[reportArgumentType]
    with pytest.raises(CriError, match="jobs: -1 is not allowed"):
        Workers(jobs=-1)
    with pytest.raises(CriError, match="gpus_per_job"):
        Workers(gpus_per_job=-0.5)
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingDependencyError, match="backend: needs the package ray"):
        Workers("ray")


def test_how_many_run_at_once(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert [Workers(device="cpu").at_once(), Workers(device="cuda").at_once(), Workers(jobs=3).at_once()] == [6, 1, 3]


def test_missing_parts_are_the_places_between_those_that_are_there(tmp_path):
    for name in ("part-00002-00005", "part-00007-00008", "part-00005-00007-checkpoint"):
        (tmp_path / f"{name}.safetensors").touch()
    assert Parts(tmp_path, {}).missing(10) == [range(2), range(5, 7), range(8, 10)]
    assert Parts(tmp_path, {}).missing(8) == [range(2), range(5, 7)]


@pytest.fixture(scope="module")
def replicas() -> list[Replica]:
    ids = prepare(BANK).split.train_ids
    masks = np.zeros((5, 144), dtype=bool)
    for seed, mask in enumerate(masks):
        mask[np.random.default_rng(seed).permutation(ids)[:90]] = True
    return [Replica(seed % 2, mask, note={"subset": seed}) for seed, mask in enumerate(masks)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "way"),
    [
        pytest.param("processes", {"jobs": 2}, id="processes-two processes"),
        pytest.param("processes", {"backend": "ray"}, id="processes-ray", marks=NEEDS_RAY),
        pytest.param("stacked", {"jobs": 2}, id="stacked-two processes"),  # Ray is given the same jobs as above
    ],
)
def test_a_bank_does_not_depend_on_where_its_parts_are_trained(method, way, replicas, tmp_path):
    options = {"device": "cpu", "method": method, "progress": False}
    expected = load_bank(train_replicas(BANK, replicas, tmp_path / "here", jobs=1, **options))
    found = load_bank(train_replicas(BANK, replicas, tmp_path / "there", **way, **options))
    assert found.path.name == expected.path.name
    assert not list(found.path.glob("part-*"))
    files = ["replicas.csv", "losses.csv", "maps.safetensors", "weights.safetensors"]
    if method == "processes":  # model by model: bit for bit
        assert [file_sha256(found.path / f) for f in files] == [file_sha256(expected.path / f) for f in files]
        return
    for replica in range(len(replicas)):  # stacks of other sizes round otherwise
        for name, value in expected.state(replica).items():
            torch.testing.assert_close(found.state(replica)[name], value, rtol=1e-3, atol=1e-5, msg=name)


def killed_once(item: tuple[str, int]) -> int:
    """A job whose process is killed the first time."""
    folder, number = item
    mark = Path(folder) / str(number)
    if number == 2 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def test_jobs_of_a_killed_process_are_started_again(tmp_path):
    done = Workers(jobs=2, device="cpu").run(killed_once, [(str(tmp_path), n) for n in range(4)])
    assert [outcome.get() for outcome in done] == [0, 1, 4, 9]


def killed(item: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_job_whose_process_is_always_killed_is_an_error():
    done = Workers(jobs=2, device="cpu").run(killed, [1, 2])
    assert [str(outcome.error) for outcome in done] == [
        "jobs: its process was killed, perhaps as memory ran out (see --jobs)"
    ] * 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent(tmp_path, number):
    """The command is ended while its two workers are at work; `cri.cli` turns SIGTERM into a tidy end."""
    code = (
        "import dataclasses, sys, time; from pathlib import Path; from cri.cli import run_command\n"
        "from cri.training.jobs import Workers\n"
        "@dataclasses.dataclass(frozen=True)\nclass Nothing: pass\n"
        "def work(n): (Path(sys.argv[1]) / f'{n}.pid').write_text(str(__import__('os').getpid())); time.sleep(600)\n"
        "run_command(Nothing, lambda c: Workers(jobs=2, device='cpu').run(work, [1, 2]), argv=[])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.getcwd()}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until = time.monotonic() + 300
    while sum(1 for p in tmp_path.glob("*.pid") if p.read_text()) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    pids = [int(p.read_text()) for p in tmp_path.glob("*.pid")]
    assert len(pids) == 2
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (143 if number == signal.SIGTERM else -signal.SIGKILL)
    assert number == signal.SIGKILL or errors.splitlines()[-1] == "interrupted; run the same command again to resume"
    until = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
