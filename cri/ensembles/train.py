"""Retraining made affordable: many models of one shape, with other seeds, cases or settings, in one call.

On a GPU the models are trained together, as many at a time as memory holds; on CPU each core trains its own.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file
from torch import Tensor

from cri.config import RunConfig
from cri.ensembles.bank import LOSSES, MAPS, TABLE, TEMPLATE, WEIGHTS, AnswerReader
from cri.ensembles.engine import (
    LOG_EVERY,
    Replica,
    Result,
    progress_bar,
    replicas_at_once,
    train_alone,
    train_what_fits,
)
from cri.ensembles.stacked import Layout
from cri.errors import CorruptRunError, CriError, out_of_range
from cri.models.loading import save_model
from cri.storage import (
    atomic_path,
    config_hash,
    is_complete,
    locked,
    mark_complete,
    provenance,
    read_json,
    run_folder,
    verify,
    write_json,
    write_text,
    writing_to,
)
from cri.training.checkpoints import read_checkpoint, write_checkpoint
from cri.training.runs import require_same
from cri.training.setup import Materials, prepare, resolve_device

Method = Literal["auto", "stacked", "processes"]


def _write_part(path: Path, result: Result, reader: AnswerReader, identity: Mapping[str, str]) -> None:
    tensors = {
        "flat": result.flat,
        "losses": result.losses.contiguous(),
        "correct": torch.from_numpy(np.stack([reader.correct(d) for d in result.decoded]).astype(np.uint8)),
        "first_token": torch.from_numpy(np.stack([d.ids[:, 0] for d in result.decoded]).astype(np.int32)),
    }
    write_checkpoint(path, tensors, identity)


def _read_part(path: Path, identity: Mapping[str, str]) -> dict[str, Tensor]:
    tensors, meta = read_checkpoint(path)
    for key, value in identity.items():
        if meta.get(key) != value:
            raise CorruptRunError(f"bank: {path} was made with another {key}; remove the folder and train again")
    return tensors


def train_replicas(
    config: RunConfig,
    replicas: Sequence[Replica],
    out: Path = Path("runs"),
    *,
    device: str = "auto",
    chunk: int | None = None,
    method: Method = "auto",
    jobs: int = 0,
    compiled: bool | None = None,
    checkpoint_seconds: float = 300.0,
    progress: bool = True,
) -> Path:
    """Trains `replicas` of `config` into one bank below `out` and returns its folder (see
    `cri.ensembles.bank.load_bank`); a finished bank is reused, an interrupted one resumed.

    Args:
        config: what the replicas share: task, format, model, optimisation.
        replicas: what distinguishes them. One that diverges has a loss of NaN in the table; the others do not notice.
        out: folder of banks.
        device: `auto`, `cpu`, `cuda`, ...
        chunk: replicas trained together; as many as fit by default.
        method: `stacked` (together on one device) or `processes` (each alone, one a core); by default the quicker.
        jobs: processes, 0 for one a core.
        compiled: use torch.compile; by default where it pays.
        checkpoint_seconds: time between checkpoints of a stack.
        progress: show a progress bar on stderr.

    Raises `CriError` for bad input, `CorruptRunError` for a folder whose files were altered or made otherwise.
    """
    if not replicas:
        raise CriError("replicas: none given")
    if chunk is not None and chunk < 1:
        raise out_of_range("chunk", chunk, "at least 1")
    materials = prepare(config)
    for index, replica in enumerate(replicas):
        if replica.train.shape != (materials.task.n_cases,) or not replica.train.any():
            n_cases = materials.task.n_cases
            raise CriError(f"replicas[{index}].train: not a mask with training cases over {n_cases} cases")
    where = torch.device(resolve_device(device))
    described = {"config": config.to_dict(), "replicas": [r.identity() for r in replicas]}
    identity = {**materials.identity, "replicas": config_hash(described)}
    folder = run_folder(out, f"bank-{config.name}-x{len(replicas)}", described)
    if method == "auto":
        method = "stacked" if where.type == "cuda" else "processes"
    with locked(folder), writing_to(folder):
        if is_complete(folder):
            verify(folder)
            require_same(folder, read_json(folder / "manifest.json")["identity"], identity)
            return folder
        started = time.perf_counter()
        write_json(folder / "config.json", config.to_dict())
        options = (chunk, compiled, checkpoint_seconds)
        if method == "stacked":
            parts = _stacked_parts(folder, materials, replicas, where, identity, options, progress)
        else:
            parts = _process_parts(folder, materials, replicas, identity, jobs, progress)
        _assemble(folder, materials, replicas, parts, identity, str(where), method, time.perf_counter() - started)
    return folder


def _stacked_parts(
    folder: Path,
    materials: Materials,
    replicas: Sequence[Replica],
    device: torch.device,
    identity: Mapping[str, str],
    options: tuple[int | None, bool | None, float],
    progress: bool,
) -> list[Path]:
    chunk, compiled, checkpoint_seconds = options
    size = chunk or replicas_at_once(materials, Layout(materials.model), device)
    size = math.ceil(len(replicas) / math.ceil(len(replicas) / size))  # parts of equal size
    reader = AnswerReader(materials.task, materials.format, materials.tokenizer, materials.tokens)
    steps = materials.config.train.steps
    parts: list[Path] = []
    bar = progress_bar(len(replicas) * steps, f"{len(replicas)} replicas", "step", progress)
    start = 0
    while start < len(replicas):

        def on_step(n: int, step: int, start: int = start) -> None:
            bar.update(start * steps + n * step - bar.n)

        found = sorted(folder.glob(f"part-{start:05d}-{'[0-9]' * 5}.safetensors"))
        if found:  # whatever its size
            part = found[0]
            stop = int(part.stem.split("-")[2])
            checkpoint = folder / f"{part.stem}-checkpoint.safetensors"
        else:
            result, checkpoint = train_what_fits(
                materials,
                replicas,
                device,
                folder,
                start,
                size,
                identity,
                checkpoint_seconds,
                on_step,
                compiled,
            )
            stop = start + len(result.flat)
            size = min(size, stop - start)  # what did not fit once is not tried again
            part = folder / f"part-{start:05d}-{stop:05d}.safetensors"
            _write_part(part, result, reader, identity)
        checkpoint.unlink(missing_ok=True)
        on_step(stop - start, steps)
        parts.append(part)
        start = stop
    bar.close()
    return parts


def _process_parts(
    folder: Path,
    materials: Materials,
    replicas: Sequence[Replica],
    identity: Mapping[str, str],
    jobs: int,
    progress: bool,
) -> list[Path]:
    import joblib

    parts = [folder / f"part-{i:05d}-{i + 1:05d}.safetensors" for i in range(len(replicas))]
    missing = [i for i, part in enumerate(parts) if not part.exists()]
    blocks = [missing[k :: 4 * (jobs or os.cpu_count() or 1)] for k in range(4 * (jobs or os.cpu_count() or 1))]
    blocks = [block for block in blocks if block]

    def work(block: list[int]) -> int:
        torch.set_num_threads(1)
        own = prepare(materials.config)  # cheaper than sending tokenizers and models between processes
        reader = AnswerReader(own.task, own.format, own.tokenizer, own.tokens)
        for index in block:
            _write_part(parts[index], train_alone(own, replicas[index]), reader, identity)
        return len(block)

    bar = progress_bar(len(replicas), f"{len(replicas)} replicas", "model", progress)
    bar.update(len(replicas) - len(missing))
    parallel = joblib.Parallel(n_jobs=jobs or os.cpu_count() or 1, return_as="generator_unordered")
    for done in parallel(joblib.delayed(work)(block) for block in blocks):
        bar.update(int(done))  # pyright: ignore[reportArgumentType]
    bar.close()
    return parts


def _assemble(
    folder: Path,
    materials: Materials,
    replicas: Sequence[Replica],
    parts: Sequence[Path],
    identity: Mapping[str, str],
    device: str,
    method: str,
    seconds: float,
) -> None:
    """Writes the bank's files from its parts, and removes those."""
    read = [_read_part(part, identity) for part in parts]
    stacked = {name: torch.cat([tensors[name] for tensors in read]) for name in read[0]}
    layout = Layout(materials.model)
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file({n: v.contiguous() for n, v in layout.views(stacked["flat"]).items()}, temporary)
    correct = stacked["correct"].numpy()
    train = np.stack([replica.train for replica in replicas])
    with atomic_path(folder / MAPS) as temporary:
        first_token = stacked["first_token"].numpy()
        save_numpy({"train": train.astype(np.uint8), "correct": correct, "first_token": first_token}, temporary)
    losses = stacked["losses"].numpy()
    records = []
    for index, replica in enumerate(replicas):
        own = replica.config(materials.config.train)
        records.append(
            {
                "index": index,
                "seed": own.seed,
                "lr": own.lr,
                "weight_decay": own.weight_decay,
                "n_train": int(replica.train.sum()),
                "loss": float(losses[index, -1]),
                "train_acc": float(correct[index][replica.train].mean()),
                "test_acc": float(correct[index][~replica.train].mean()) if not replica.train.all() else math.nan,
                **replica.note,
            }
        )
    write_text(folder / TABLE, pd.DataFrame.from_records(records).to_csv(index=False))
    config = materials.config.train
    steps = [min(config.steps, LOG_EVERY * (i + 1)) for i in range(losses.shape[1])]
    long = pd.DataFrame(losses.T, index=pd.Index(steps, name="step"))
    write_text(folder / LOSSES, long.to_csv(float_format="%.6g"))
    template = materials.model.to("cpu")  # pyright: ignore[reportArgumentType]
    layout.load(stacked["flat"][0], template)
    save_model(template, materials.tokenizer, folder / TEMPLATE)
    manifest = {
        "identity": identity,
        "n_replicas": len(replicas),
        "n_diverged": int((~np.isfinite(losses[:, -1])).sum()),
        "method": method,
        "seconds": round(seconds, 2),
        "trained_on": device,
        **provenance(),
    }
    write_json(folder / "manifest.json", manifest)
    files = ["config.json", "manifest.json", TABLE, LOSSES, WEIGHTS, MAPS]
    mark_complete(folder, files + [f"{TEMPLATE}/{p.name}" for p in sorted((folder / TEMPLATE).iterdir())])
    for part in parts:
        part.unlink(missing_ok=True)
