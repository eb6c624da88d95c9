"""Ordinary runs trained together: what a study needs several of, in the time of one."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cri.batches import learning_rates
from cri.checkpoints import append_metrics
from cri.config import RunConfig
from cri.errors import CriError
from cri.evaluation import Decoded
from cri.jointly import LOG_EVERY, Replica, begun_with, initial_of, progress_bar, replicas_at_once, train_what_fits
from cri.materials import Materials, prepare, resolve_device
from cri.readings import reading_table
from cri.runs import config_hash, is_complete, locked, read_json, run_folder, verify, write_json, writing_to
from cri.splits import make_split
from cri.stacked import Layout
from cri.train import METRICS, begin_run, finish_run, train_runs


def train_run_group(
    configs: Sequence[RunConfig],
    out: Path = Path("runs"),
    *,
    device: str = "auto",
    chunk: int | None = None,
    compiled: bool | None = None,
    checkpoint_seconds: float = 300.0,
    progress: bool = True,
) -> list[Path]:
    """Trains runs that differ only in seed, split, learning rate or weight decay together, and writes each as an
    ordinary run folder (see `cri.train.load_run`); finished ones are kept.

    On CPU this is `train_runs`. Raises `CriError` when the configs differ in anything else, or when a loss is not
    finite (that run is not written, the others are).
    """
    where = torch.device(resolve_device(device))
    if where.type == "cpu" and chunk is None:
        return train_runs(configs, out, device="cpu", progress=progress)
    shared = {"split": "", "split_params": {}, "seed": 0, "lr": 1.0, "weight_decay": 0.0}
    if len({config_hash(c.replace(**shared).to_dict()) for c in configs}) != 1:
        raise CriError("configs: runs trained together may differ only in seed, split, lr and weight_decay")
    folders = [run_folder(out, c.name, c.to_dict()) for c in configs]
    group = out / f"group-{config_hash({'configs': [c.to_dict() for c in configs]})}"
    with locked(group), writing_to(group):
        missing = [i for i, folder in enumerate(folders) if not is_complete(folder)]
        plan = group / "plan.json"
        if plan.exists():  # interrupted: the stack keeps its members, whatever else was finished since
            missing = read_json(plan)["members"]
        elif missing:
            write_json(plan, {"members": missing})
        if missing:
            _train_group(
                [configs[i] for i in missing],
                [folders[i] for i in missing],
                group,
                where,
                (chunk, compiled, checkpoint_seconds),
                progress,
            )
    shutil.rmtree(group, ignore_errors=True)
    for folder in folders:
        verify(folder)
    return folders


def _train_group(
    configs: Sequence[RunConfig],
    folders: Sequence[Path],
    group: Path,
    device: torch.device,
    options: tuple[int | None, bool | None, float],
    progress: bool,
) -> None:
    chunk, compiled, checkpoint_seconds = options
    first = prepare(configs[0])
    splits = [make_split(first.task, config.split, **config.split_params) for config in configs]
    replicas = [
        Replica(c.seed, s.train, c.train.lr, c.train.weight_decay) for c, s in zip(configs, splits, strict=True)
    ]
    size = chunk or replicas_at_once(first, Layout(first.model), device)
    identity = {**first.identity, "members": config_hash({"members": [r.identity() for r in replicas]})}
    bar = progress_bar(len(replicas) * first.config.train.steps, f"{len(replicas)} runs", "step", progress)
    diverged = []
    start = 0
    while start < len(replicas):
        n = begun_with(group, start) or 1
        if all(is_complete(folder) for folder in folders[start : start + n]):
            start += n
            continue
        started = time.perf_counter()

        def on_step(n: int, step: int, start: int = start) -> None:
            bar.update(start * first.config.train.steps + n * step - bar.n)

        result, _ = train_what_fits(
            first,
            replicas,
            device,
            group,
            start,
            size,
            identity,
            checkpoint_seconds,
            on_step,
            compiled,
        )
        n = len(result.flat)
        size = min(size, n)  # what did not fit once is not tried again
        seconds = time.perf_counter() - started
        for k, index in enumerate(range(start, start + n)):
            if not bool(torch.isfinite(result.losses[k, -1])):
                diverged.append(configs[index].name)
                continue
            facts = {
                "train_seconds": round(seconds / n, 2),
                "trained_on": str(device),
                "trained_together": {"runs": n, "seconds": round(seconds, 2)},
            }
            own = Materials(
                configs[index], first.task, splits[index], first.format, first.tokenizer, first.tokens, first.model
            )
            _export(folders[index], own, result.flat[k], result.losses[k], result.decoded[k], facts)
        start += n
    bar.close()
    if diverged:
        raise CriError(f"lr: the loss is not finite for {', '.join(diverged)}; lower lr")


def _export(
    folder: Path, own: Materials, flat: Tensor, losses: Tensor, decoded: Decoded, facts: Mapping[str, Any]
) -> None:
    """Writes one member of a stack as an ordinary run."""
    with locked(folder):
        if is_complete(folder):
            return
        begin_run(folder, own)
        rates, steps = learning_rates(own.config.train), own.config.train.steps
        metrics = folder / METRICS
        metrics.unlink(missing_ok=True)
        for i, loss in enumerate(losses.tolist()):
            step = min(steps, LOG_EVERY * (i + 1))
            append_metrics(metrics, {"step": step, "loss": round(loss, 6), "lr": float(rates[step - 1])})
        texts = own.tokenizer.batch_decode([row[:k] for row, k in zip(decoded.ids, decoded.lengths, strict=True)])
        ids = np.arange(own.task.n_cases)
        table = reading_table(own.task, own.format, own.split, ids, texts, decoded.finished)
        model = initial_of(own, own.config.seed).to("cpu")
        Layout(model).load(flat, model)
        finish_run(folder, own, model.eval(), table, dict(facts))
