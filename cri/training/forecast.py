"""`--dry-run`: what a command would train, for how long and how large, instead of training it.

The doors to training (`train_run`, `train_each`, `train_replicas`) call `stop_if_asked`. Free of torch until then.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path

from cri.config import RunConfig
from cri.storage import is_complete, run_folder

DRY_RUN: ContextVar[bool] = ContextVar("DRY_RUN", default=False)
"""Whether commands say what they would train, and end there."""
TIMED_STEPS = 8
"""Optimiser steps that are measured; as many are taken before, for caches to fill."""


@dataclass(frozen=True)
class Forecast:
    """One training that was asked for.

    Attributes:
        run: the folder's name.
        state: `finished`, `unfinished` or `new`.
        parameters: of the model.
        cases: training cases.
        steps: optimiser steps.
        minutes: training alone on this device, of one process; 0 where the run is finished.
        megabytes: weights on disk; while training, three times as much for the optimiser.
    """

    run: str
    state: str
    parameters: int
    cases: int
    steps: int
    minutes: float
    megabytes: float


def seconds_per_step(config: RunConfig, device: str) -> tuple[float, int, int]:
    """Seconds of one optimiser step, measured on this device; parameters; training cases. Trains a model that is thrown
    away."""
    from cri.training.setup import prepare
    from cri.training.trainer import Trainer

    materials = prepare(config)
    parameters = sum(p.numel() for p in materials.model.parameters())
    train_ids = materials.split.train_ids
    trainer = Trainer(materials.model, materials.tokens, train_ids, config.train, device)
    steps = min(TIMED_STEPS, max(1, config.train.steps // 2))
    trainer.run(steps, log_every=steps)
    started = time.perf_counter()
    trainer.run(min(2 * steps, config.train.steps), log_every=steps)
    return (time.perf_counter() - started) / steps, parameters, len(train_ids)


def forecast(configs: Sequence[RunConfig], out: Path, device: str = "auto") -> list[Forecast]:
    """One row a run; runs that differ in split and seed alone are timed once. Raises `CriError` as training would."""
    from cri.models.device import resolve_device

    where = resolve_device(device)
    known: dict[str, tuple[float, int, int]] = {}
    rows = []
    for config in configs:
        same = config.replace(split="", split_params={}, seed=0)
        key = str(same.to_dict())
        if key not in known:
            known[key] = seconds_per_step(config, where)
        seconds, parameters, cases = known[key]
        folder = run_folder(out, config.name, config.to_dict())
        state = "finished" if is_complete(folder) else "unfinished" if folder.exists() else "new"
        minutes = 0.0 if state == "finished" else seconds * config.train.steps / 60
        rows.append(Forecast(folder.name, state, parameters, cases, config.train.steps, minutes, parameters * 4e-6))
    return rows


def described(rows: Sequence[Forecast], copies: int = 1) -> str:
    """The rows as a table with their totals; `copies`: how many models each row describes."""
    import pandas as pd

    shown = pd.DataFrame([asdict(row) for row in rows]).to_string(index=False, float_format=lambda x: f"{x:.1f}")
    minutes, megabytes = (copies * sum(getattr(row, field) for row in rows) for field in ("minutes", "megabytes"))
    n = copies * sum(row.state != "finished" for row in rows)
    cores = os.cpu_count() or 1
    return (
        f"{shown}\n{n} to train: about {minutes:.1f} minutes of one process, {minutes / cores:.1f} on all {cores} "
        f"cores (training alone; decoding comes on top); {megabytes:.1f} MB of weights"
    )


def stop_if_asked(configs: Sequence[RunConfig], out: Path, device: str, copies: int = 1) -> None:
    """Under `--dry-run`, prints what this training would be, and ends the command; else nothing."""
    if not DRY_RUN.get():
        return
    DRY_RUN.set(False)  # what is timed is trained
    print(described(forecast(configs, out, device), copies))
    print("dry run: nothing was trained or written; what comes after this training is not foreseen")
    raise SystemExit(0)


def end_if_asked(reason: str) -> None:
    """Under `--dry-run`, ends a command that has come this far without training."""
    if DRY_RUN.get():
        print(f"dry run: nothing to train: {reason}")
        raise SystemExit(0)
