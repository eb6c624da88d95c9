"""Commands killed at random moments: is anything alive afterwards, is anything lost, are the results as if undisturbed?

`python -m tests.kills [--kills 100] [--seed 0]` kills `train`, `sweep`, the map study, the bank of retrained models and
the explorer in turn, by SIGTERM or SIGKILL, the command itself or one of its workers, starts each again where it was
until it is done, and compares. It prints a line a kill and ends with exit code 1 where one of these does not hold.
Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pandas as pd

TINY = ["--task-params", "size=12", "--half-side", "2", "--device", "cpu"]
BANK = "addition:direct:number"
COMMANDS: dict[str, tuple[str, list[str]]] = {
    "train": (
        "cri.train",
        ["--task-params", "size=12", "--split-params", "half_side=2", "--steps", "400", "--batch-size", "32",
         "--checkpoint-every", "40", "--device", "cpu", "--out", "{out}/runs"],
    ),
    "sweep": ("cri.sweep", [*TINY, "--seeds", "0", "1", "--steps", "150", "--jobs", "2", "--out", "{out}/runs"]),
    "map": (
        "cri.studies.lso_map.study",
        ["test", "--size", "12", "--half-side", "2", "--steps", "150", "--jobs", "2", "--device", "cpu", "--runs",
         "{out}/runs", "--out", "{out}/record"],
    ),
    "bank": (
        "cri.retraining.bank",
        ["test", "--plans", f"{BANK}/base", f"{BANK}/subsets-50", "--jobs", "2", "--device", "cpu", "--out",
         "{out}/record"],
    ),
    # the run that it explains is made by `train`, once, and nobody disturbs that
    "explore": ("cri.explore.command", ["{out}/../explored", "--cases", "25", "--out", "{out}/page.html"]),
}  # fmt: skip
TOO_LATE = "ended before"
TIMED = ["train_seconds", "commit"]
"""Columns that differ between two runs of the same command."""


def start(command: str, out: Path) -> int:
    """The command in a child of its own session, without the seconds that imports take; returns its number."""
    module, arguments = COMMANDS[command]
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        sys.argv = [module, *(word.format(out=out) for word in arguments)]
        importlib.import_module(module).main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if code == 0:  # joblib ends its idle workers when the interpreter does
            with contextlib.suppress(Exception):
                from joblib.externals.loky import get_reusable_executor

                get_reusable_executor().shutdown(wait=True)
        os._exit(code)


def session(leader: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] not in "ZX":
            found.append(int(folder.name))
    return found


def is_worker(pid: int) -> bool:
    try:
        return b"popen_loky" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def alive_after(leader: int, seconds: float = 10) -> list[int]:
    """Who of the session is still there after so many seconds at most."""
    until = time.monotonic() + seconds
    while (left := session(leader)) and time.monotonic() < until:
        time.sleep(0.05)
    return left


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def training_lines(metrics: Path) -> list[str]:
    """The lines of a run's `metrics.jsonl` that two trainings share: of evaluations on the way the clock decides how
    many there are and how many cases they take (`cri.training.budget`)."""
    return [line for line in metrics.read_text().splitlines() if "loss" in json.loads(line)]


def results(out: Path) -> dict[str, str]:
    """Checksums of tables, weights and figures below `out`."""
    found = {}
    for path in sorted(
        p for p in out.rglob("*") if p.suffix in (".csv", ".gz", ".jsonl", ".safetensors", ".png", ".html")
    ):
        data = path.read_bytes()
        if path.name.startswith("runs.csv"):
            data = pd.read_csv(path).drop(columns=TIMED).to_csv().encode()
        if path.name == "metrics.jsonl":
            data = "\n".join(training_lines(path)).encode()
        found[str(path.relative_to(out))] = hashlib.sha256(data).hexdigest()
    return found


def unfinished(out: Path) -> list[str]:
    """Locks, temporaries and checkpoints below `out`."""
    return [str(p.relative_to(out)) for p in out.rglob("*") if p.name.startswith((".", "checkpoint", "part-"))]


def finished(command: str, out: Path) -> dict[str, int]:
    """When each run or record of retrainings below `out` was finished: what a kill must leave as it is. A map's record
    is made again by each command, and a bank inside a record goes when the record is there."""
    markers = (out if command == "bank" else out / "runs").rglob("complete.json")
    return {str(p): p.stat().st_mtime_ns for p in markers if not p.parent.name.startswith("bank-")}


def kill_once(command: str, out: Path, seconds: float, rng: random.Random) -> tuple[str, int, list[str]]:
    """Starts the command in `out`, kills at a random moment; what was killed, the exit code, and what is wrong."""
    number = rng.choice([signal.SIGTERM, signal.SIGKILL])
    of_worker = command not in ("train", "explore") and rng.random() < 0.5
    moment = rng.uniform(0, seconds)
    before = finished(command, out)
    pid = start(command, out)
    time.sleep(moment)
    workers = [p for p in session(pid) if is_worker(p)]
    target = rng.choice(workers) if of_worker and workers else pid
    who = "parent" if target == pid else "worker"
    hit = target in session(pid)
    with contextlib.suppress(ProcessLookupError):  # it had ended
        os.kill(target, number)
    code = ended(pid)
    faults = [f"alive: {left}" for left in [alive_after(pid)] if left]
    allowed = {0, -number, 128 + number} if who == "parent" else {0}
    if code not in allowed:
        faults.append(f"exit code {code}")
    after = finished(command, out)
    lost = [path for path, at in before.items() if after.get(path) != at]
    if lost:
        faults.append(f"lost: {lost}")
    return f"{signal.Signals(number).name} {who}" if hit else TOO_LATE, code, faults


def compare(command: str, out: Path, expected: dict[str, str]) -> list[str]:
    """What differs from a run that nobody disturbed."""
    found = results(out)
    differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    faults = [f"differs: {differing}"] if differing else []
    left = unfinished(out)
    return [*faults, f"left: {left}"] if left else faults


def run(kills: int, seed: int, where: Path, commands: list[str]) -> Counter[str]:
    """Kills the commands in turn; counts of kills by command, signal and target, and of faults."""
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    expected, seconds = {}, {}
    if "explore" in commands:
        out = where / "explored-run"
        out.mkdir(parents=True)
        if code := ended(start("train", out)):
            raise SystemExit(f"train: exit code {code}, see {out.with_suffix('.log')}")
        next((out / "runs").glob("*/complete.json")).parent.rename(where / "explored")
    for command in commands:
        out = where / f"{command}-undisturbed"
        out.mkdir(parents=True)
        started = time.monotonic()
        pid = start(command, out)
        if code := ended(pid):
            raise SystemExit(f"{command}: exit code {code}, see {out.with_suffix('.log')}")
        seconds[command] = time.monotonic() - started
        print(json.dumps({"undisturbed": command, "seconds": round(seconds[command], 1)}), flush=True)
        expected[command] = results(out)
        assert expected[command], command
    i = 0
    while i < kills:
        command = commands[i % len(commands)]
        out = where / command
        out.mkdir(exist_ok=True)
        started = time.monotonic()
        what, code, faults = kill_once(command, out, seconds[command], rng)
        if what == TOO_LATE:  # counts for nothing but what it shows; the machine is quicker than it was
            seconds[command] = 0.8 * min(seconds[command], time.monotonic() - started)
        last = i >= kills - len(commands)
        if last and code:  # to its end, undisturbed
            code = ended(start(command, out))
            faults += [f"exit code {code} when started again"] if code else []
        if code == 0:
            faults += compare(command, out, expected[command])
            counts[f"{command} compared"] += 1
            shutil.rmtree(out)
        counts[f"{command} {what}"] += 1
        counts["faults"] += bool(faults)
        i += what != TOO_LATE
        print(json.dumps({"kill": i, "command": command, "what": what, "code": code, "faults": faults}), flush=True)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    parser.add_argument("--keep", type=Path, help="an empty folder that is kept; a temporary one otherwise")
    options = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", PYTHONPATH=os.getcwd(), MPLBACKEND="Agg")
    import torch

    torch.set_num_threads(1)
    heavy = ("cri.training.trainer", "cri.evaluation.decoding", "cri.models.loading", "transformers.models.gpt2",
             "matplotlib.pyplot", "cri.explore.payload", "cri.attribution.ekfac")  # fmt: skip
    for module in (*heavy, *(module for module, _ in COMMANDS.values())):
        importlib.import_module(module)
    with contextlib.ExitStack() as stack:
        where = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        counts = run(options.kills, options.seed, where, options.commands)
    print(json.dumps(dict(sorted(counts.items()))))
    raise SystemExit(1 if counts["faults"] else 0)


if __name__ == "__main__":
    main()
