"""Several runs, each a job of its own: side by side on this machine, or on a Ray cluster."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cri.config import RunConfig
from cri.training.forecast import stop_if_asked
from cri.training.jobs import Backend, Outcome, Workers
from cri.training.runs import train_run
from cri.training.setup import check


def _train_one(item: tuple[int, RunConfig], out: Path, device: str, progress: bool, at_once: int) -> Path:
    """`train_run` as a job."""
    number, config = item
    return train_run(config, out, device=device, progress=progress, position=number % at_once)


def train_each(
    configs: Sequence[RunConfig],
    out: Path,
    workers: Workers,
    progress: bool = True,
    on_done: Callable[[Any], Any] = lambda item: None,
) -> list[Outcome[Path]]:
    """`train_run` for each config as a job of its own; where one fails, its error stands in its place.

    `on_done` is called whenever a run has ended. With `progress`, those on this machine have a bar each.
    """
    stop_if_asked(configs, out, workers.device)
    if workers.here:
        from cri.models.device import resolve_device

        workers = dataclasses.replace(workers, device=resolve_device(workers.device))
    else:
        out, progress = out.resolve(), False
    at_once = workers.at_once() if progress else 1
    job = functools.partial(_train_one, out=out, device=workers.device, progress=progress, at_once=at_once)
    return workers.run(job, list(enumerate(configs)), on_done)


def train_runs(
    configs: Sequence[RunConfig],
    out: Path = Path("runs"),
    *,
    jobs: int = 0,
    device: str = "auto",
    backend: Backend = "processes",
    gpus_per_job: float = 0.0,
    progress: bool = True,
) -> list[Path]:
    """`train_run` for each config: `jobs` at a time, on this machine or on a Ray cluster (see
    `cri.training.jobs.Workers`); by default one process a core on CPU, in turn on a GPU.

    Results do not depend on that. Raises the first error after the other runs have finished.
    """
    for config in configs:  # all are checked before the first one trains, which may take hours
        check(config)
    workers = Workers(backend, jobs, gpus_per_job, device)
    return [done.get() for done in train_each(configs, out, workers, progress)]
