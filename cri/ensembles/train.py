"""Retraining made affordable: many models of one shape, with other seeds, cases or settings, in one call.

On a GPU the models are trained together, as many at a time as memory holds; on CPU each core trains its own.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file
from torch import Tensor

from cri.config import RunConfig
from cri.ensembles.bank import LOSSES, MAPS, TABLE, WEIGHTS, AnswerReader
from cri.ensembles.engine import (
    LOG_EVERY,
    Replica,
    Result,
    bytes_each,
    part_name,
    train_alone,
    train_what_fits,
)
from cri.ensembles.stacked import Layout
from cri.errors import CriError, out_of_range
from cri.models.device import replicas_at_once, resolve_device
from cri.storage import (
    atomic_path,
    clear_unfinished,
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
from cri.training.checkpoints import read_checkpoint, require_identity, write_checkpoint
from cri.training.forecast import stop_if_asked
from cri.training.jobs import Backend, Workers, progress_bar
from cri.training.setup import Materials, prepare, require_same

Method = Literal["auto", "stacked", "processes"]


class Parts:
    """The part files of an unfinished bank: results of some of its replicas, until all are trained."""

    def __init__(self, folder: Path, identity: Mapping[str, str]) -> None:
        self.folder = folder
        self.identity = identity

    def write(self, start: int, result: Result, reader: AnswerReader, device: str) -> None:
        """Writes the replicas from place `start` of the bank on, atomically."""
        tensors = {
            "flat": result.flat,
            "losses": result.losses.contiguous(),
            "correct": torch.from_numpy(np.stack([reader.correct(d) for d in result.decoded]).astype(np.uint8)),
            "first_token": torch.from_numpy(np.stack([d.ids[:, 0] for d in result.decoded]).astype(np.int32)),
        }
        path = self.folder / f"{part_name(start, len(result.flat))}.safetensors"
        write_checkpoint(path, tensors, {**self.identity, "trained_on": device})

    def paths(self) -> list[Path]:
        """Those that are there, in the bank's order."""
        return sorted(self.folder.glob(f"part-{'[0-9]' * 5}-{'[0-9]' * 5}.safetensors"))

    def missing(self, n: int) -> list[range]:
        """The places of a bank of `n` replicas that no part holds yet, as runs of neighbours."""
        ends = [tuple(map(int, path.stem.split("-")[1:])) for path in self.paths()]
        starts = [0, *(stop for _, stop in ends)]
        gaps = [range(start, stop) for start, stop in zip(starts, [*(start for start, _ in ends), n], strict=True)]
        return [gap for gap in gaps if gap]

    def read(self) -> tuple[dict[str, Tensor], str]:
        """All parts together, [replica, ...], and the devices that they were trained on."""
        read = []
        devices = set()
        for path in self.paths():
            tensors, meta = read_checkpoint(path)
            require_identity(path, meta, self.identity)
            read.append(tensors)
            devices.add(meta.get("trained_on", "unknown"))
        return {name: torch.cat([tensors[name] for tensors in read]) for name in read[0]}, ", ".join(sorted(devices))

    def remove(self) -> None:
        """Removes parts and checkpoints of parts, once the bank is finished."""
        for path in self.folder.glob("part-*.safetensors"):
            path.unlink(missing_ok=True)


def train_replicas(
    config: RunConfig,
    replicas: Sequence[Replica],
    out: Path = Path("runs"),
    *,
    device: str = "auto",
    chunk: int | None = None,
    method: Method = "auto",
    jobs: int = 0,
    backend: Backend = "processes",
    gpus_per_job: float = 0.0,
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
        chunk: replicas trained together; as many as fit by default.
        method: `stacked` (together on one device) or `processes` (each alone, one a core); by default the quicker.
        jobs, backend, gpus_per_job, device: where they are trained (see `cri.training.jobs.Workers`). Of a stack on
            this machine there is one at a time; on a Ray cluster, each job trains a share of the replicas.
        compiled: use torch.compile; by default where it pays.
        checkpoint_seconds: time between checkpoints of a stack.
        progress: show a progress bar on stderr.

    Raises `CriError` for bad input, `CorruptRunError` for a folder whose files were altered or made otherwise.
    """
    if config.positions != "plain":
        raise CriError(f"positions: a bank's models have plain positions, not {config.positions}; train runs instead")
    if not replicas:
        raise CriError("replicas: none given")
    if chunk is not None and chunk < 1:
        raise out_of_range("chunk", chunk, "at least 1")
    stop_if_asked([config], out, device, len(replicas))
    materials = prepare(config)
    _check_masks(replicas, materials.task.n_cases)
    workers = Workers(backend, jobs, gpus_per_job, device)
    if workers.here:
        workers = dataclasses.replace(workers, device=resolve_device(device))
    if method == "auto":
        has_gpu = torch.device(workers.device).type == "cuda" if workers.here else gpus_per_job > 0
        method = "stacked" if has_gpu else "processes"
    described = {"config": config.to_dict(), "replicas": [r.identity() for r in replicas]}
    identity = {**materials.identity, "replicas": config_hash(described)}
    folder = run_folder(out, f"bank-{config.name}-x{len(replicas)}", described)
    with locked(folder), writing_to(folder):
        if is_complete(folder):
            verify(folder)
            require_same(folder, read_json(folder / "manifest.json")["identity"], identity)
            clear_unfinished(folder)
            return folder
        started = time.perf_counter()
        write_json(folder / "config.json", config.to_dict())
        parts = Parts(folder.resolve(), identity)
        missing = parts.missing(len(replicas))
        own_bar = method == "stacked" and progress and workers.here
        job: Callable[[Block], None]
        if method == "stacked":
            if workers.here:  # one device: two stacks would only share it
                workers = dataclasses.replace(workers, jobs=1)
            blocks = _neighbours(missing, workers.at_once())
            options = (chunk, compiled, checkpoint_seconds, own_bar)
            job = functools.partial(_train_stacked, materials, parts, workers.device, options)
        else:
            blocks = _dealt(missing, 4 * workers.at_once())
            job = functools.partial(_train_alone, materials, parts)
        bar = progress_bar(len(replicas), f"{len(replicas)} replicas", "model", progress and not own_bar)
        bar.update(len(replicas) - sum(map(len, blocks)))
        for outcome in workers.run(
            job, [{i: replicas[i] for i in block} for block in blocks], lambda block: bar.update(len(block))
        ):
            outcome.get()
        bar.close()
        _assemble(folder, materials, replicas, parts, method, time.perf_counter() - started)
    return folder


def _check_masks(replicas: Sequence[Replica], n_cases: int) -> None:
    """Raises `CriError` for a replica whose training cases are no mask over the task's cases, or are none."""
    for index, replica in enumerate(replicas):
        if replica.train.shape != (n_cases,) or not replica.train.any():
            raise CriError(f"replicas[{index}].train: not a mask with training cases over {n_cases} cases")


Block = Mapping[int, Replica]
"""Replicas that one job trains, by their places in the bank."""


def _neighbours(missing: Sequence[range], n_jobs: int) -> list[Sequence[int]]:
    """The missing places for `n_jobs` jobs that train stacks: each job gets consecutive ones, as a part file holds."""
    length = math.ceil(sum(map(len, missing)) / n_jobs)
    return [gap[start : start + length] for gap in missing for start in range(0, len(gap), length)]


def _dealt(missing: Sequence[range], n_jobs: int) -> list[Sequence[int]]:
    """The missing places, every `n_jobs`-th to one job: as models take equally long, the jobs end together."""
    places = [place for gap in missing for place in gap]
    return [places[k::n_jobs] for k in range(min(n_jobs, len(places)))]


def _train_alone(materials: Materials, parts: Parts, block: Block) -> None:
    """A job: each replica by the ordinary loop, on CPU."""
    reader = AnswerReader(materials.task, materials.format, materials.tokenizer, materials.tokens)
    for place, replica in block.items():
        parts.write(place, train_alone(materials, replica), reader, "cpu")


def _train_stacked(
    materials: Materials,
    parts: Parts,
    device: str,
    options: tuple[int | None, bool | None, float, bool],
    block: Block,
) -> None:
    """A job: neighbouring replicas, as many at a time as memory holds."""
    chunk, compiled, checkpoint_seconds, progress = options
    where = torch.device(resolve_device(device))
    size = chunk or replicas_at_once(bytes_each(materials, Layout(materials.model)), where)
    size = math.ceil(len(block) / math.ceil(len(block) / size))  # parts of equal size
    reader = AnswerReader(materials.task, materials.format, materials.tokenizer, materials.tokens)
    places, steps = list(block), materials.config.train.steps
    bar = progress_bar(len(block) * steps, f"{len(block)} replicas", "step", progress)
    done = 0
    while done < len(block):

        def on_step(n: int, step: int, done: int = done) -> None:
            bar.update(done * steps + n * step - bar.n)

        rest = [block[place] for place in places[done:]]
        result, checkpoint = train_what_fits(
            materials,
            rest,
            where,
            parts.folder,
            places[done],
            size,
            parts.identity,
            checkpoint_seconds,
            on_step,
            compiled,
        )
        n = len(result.flat)
        parts.write(places[done], result, reader, str(where))
        checkpoint.unlink(missing_ok=True)
        on_step(n, steps)
        size = min(size, n)  # what did not fit once is not tried again
        done += n
    bar.close()


def _assemble(
    folder: Path,
    materials: Materials,
    replicas: Sequence[Replica],
    parts: Parts,
    method: str,
    seconds: float,
) -> None:
    """Writes the bank's files from its parts, and removes those."""
    stacked, device = parts.read()
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
    manifest = {
        "identity": parts.identity,
        "n_replicas": len(replicas),
        "n_diverged": int((~np.isfinite(losses[:, -1])).sum()),
        "method": method,
        "seconds": round(seconds, 2),
        "trained_on": device,
        **provenance(),
    }
    write_json(folder / "manifest.json", manifest)
    mark_complete(folder, ["config.json", "manifest.json", TABLE, LOSSES, WEIGHTS, MAPS])
    parts.remove()
