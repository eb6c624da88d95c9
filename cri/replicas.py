"""Retraining made affordable: many models of one shape, with other seeds, cases or settings, in one call.

On a GPU the models are trained together (`cri.stacked`), as many at a time as memory holds. On CPU, where a
batched product of small matrices is slower than the products one by one, each core trains its own.
"""

from __future__ import annotations

import gc
import math
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool
from safetensors.numpy import save_file as save_numpy
from torch import Tensor

from cri.bank import (
    LOSSES,
    MAPS,
    TABLE,
    TEMPLATE,
    WEIGHTS,
    AnswerReader,
    decodes_stacked,
    stacked_decode,
)
from cri.checkpoints import append_metrics, read_checkpoint, write_checkpoint
from cri.config import RunConfig, TrainConfig
from cri.errors import CorruptRunError, CriError, out_of_range
from cri.evaluation import Decoded, decode
from cri.materials import Materials, initial_model, prepare, resolve_device
from cri.models import is_preset, save_model
from cri.readings import reading_table
from cri.runs import (
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
)
from cri.stacked import Layout, Member, StackedForward, StackedTrainer
from cri.train import METRICS, begin_run, finish_run, require_same, train_runs
from cri.training import Trainer

LOG_EVERY = 50
Method = Literal["auto", "stacked", "processes"]


@dataclass(frozen=True, eq=False)
class Replica:
    """One model to train.

    Attributes:
        seed: of its initial weights and the order of its batches.
        train: the cases it is trained on.
        lr, weight_decay: as in `TrainConfig`, whose values hold where None.
        note: columns for the bank's table (what was removed, ...).
    """

    seed: int
    train: Bool[np.ndarray, " case"]
    lr: float | None = None
    weight_decay: float | None = None
    note: Mapping[str, Any] = field(default_factory=dict)

    def config(self, base: TrainConfig) -> TrainConfig:
        """The settings of a single run that would train this replica."""
        own = {"lr": self.lr, "weight_decay": self.weight_decay}
        own = {key: value for key, value in own.items() if value is not None}
        return RunConfig(train=base).replace(seed=self.seed, **own).train

    def identity(self) -> dict[str, Any]:
        mask = config_hash({"mask": np.packbits(self.train).tobytes().hex(), "n": len(self.train)})
        return {"seed": self.seed, "lr": self.lr, "weight_decay": self.weight_decay, "train": mask, "note": self.note}


def _members(materials: Materials, replicas: Sequence[Replica], layout: Layout) -> list[Member]:
    initial: dict[int, Tensor] = {}
    members = []
    for replica in replicas:
        train = replica.config(materials.config.train)
        if train.seed not in initial:
            initial[train.seed] = layout.flatten(_initial(materials, train.seed))
        ids = np.flatnonzero(replica.train)
        members.append(Member(initial[train.seed], ids, train.seed, train.lr, train.weight_decay))
    return members


def _initial(materials: Materials, seed: int) -> Any:
    """The model that a run with `seed` starts from (pretrained ones start the same)."""
    if is_preset(materials.config.model):
        return initial_model(materials.config.replace(seed=seed), materials.tokenizer, materials.tokens)
    return materials.model


def bytes_per_replica(materials: Materials, layout: Layout) -> int:
    """Device memory that one replica takes in training, estimated from above: eight tensors of its parameters, and
    what the forward pass keeps for the backward pass."""
    config, shape = materials.config.train, materials.model.config
    tokens = config.batch_size * materials.tokens.ids.shape[1]
    targets = config.batch_size * int((materials.tokens.lengths - materials.tokens.prompt_lengths).max())
    if config.loss_on == "all":
        targets = tokens
    attention = shape.num_attention_heads * materials.tokens.ids.shape[1] * 5
    per_token = shape.num_hidden_layers * (48 * shape.hidden_size + attention)
    return 4 * (8 * layout.width + tokens * per_token + targets * shape.vocab_size * 5)


def replicas_at_once(materials: Materials, layout: Layout, device: torch.device) -> int:
    """How many replicas the device's free memory holds."""
    if device.type != "cuda":
        return 8
    return max(1, int(0.85 * torch.cuda.mem_get_info(device)[0]) // bytes_per_replica(materials, layout))


def compile_pays(materials: Materials, layout: Layout, n_replicas: int, device: torch.device) -> bool:
    """Whether torch.compile saves more time than it takes.

    Uncompiled, these models are bound by memory: the estimate is the bytes they move over 2 TB/s, of which
    compilation saves about half; it takes some seconds a layer for each width of batch.
    """
    if device.type != "cuda":
        return False
    n_bytes = 3 * n_replicas * bytes_per_replica(materials, layout)
    n_widths = math.ceil(materials.tokens.ids.shape[1] / 16)
    seconds_saved = 0.5 * materials.config.train.steps * n_bytes / 2e12
    return seconds_saved > n_widths * (10 + 4 * materials.model.config.num_hidden_layers)


@dataclass
class _Result:
    """What a part of the replicas came to; first axis replica."""

    flat: Tensor
    losses: Tensor
    decoded: list[Decoded]


def _train_stack(
    materials: Materials,
    replicas: Sequence[Replica],
    device: torch.device,
    checkpoint: Path,
    identity: Mapping[str, str],
    checkpoint_seconds: float,
    on_step: Callable[[int], Any],
    compiled: bool | None = None,
) -> _Result:
    """Trains `replicas` together and decodes the grid with each."""
    template = _initial(materials, 0)
    layout = Layout(template)
    if compiled is None:
        compiled = compile_pays(materials, layout, len(replicas), device)
    members = _members(materials, replicas, layout)
    trainer = StackedTrainer(
        template,
        layout,
        materials.tokens,
        members,
        materials.config.train,
        device,
        compiled=compiled,
        log_every=LOG_EVERY,
    )
    if checkpoint.exists():
        trainer.restore(checkpoint, identity)
        on_step(trainer.step)
    saved = time.perf_counter()
    while trainer.step < materials.config.train.steps:
        trainer.run(trainer.step + 500, on_log=on_step)
        if time.perf_counter() - saved > checkpoint_seconds:
            trainer.save(checkpoint, identity)
            saved = time.perf_counter()
    flat = trainer.flat.detach()
    losses = trainer.losses.T.cpu()
    del trainer  # its optimiser state and graphs hold most of the memory
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    forward = StackedForward(template, layout, "fp32")
    if decodes_stacked(materials.tokens):
        decoded = stacked_decode(forward, flat, materials.tokens)
    else:
        decoded = []
        for row in flat:
            layout.load(row, template)
            decoded.append(decode(template, materials.tokens))
    return _Result(flat.cpu(), losses, decoded)


def _train_one(materials: Materials, replica: Replica) -> _Result:
    """One replica by the ordinary loop, on CPU."""
    config = replica.config(materials.config.train)
    model = _initial(materials, config.seed)
    trainer = Trainer(model, materials.tokens, np.flatnonzero(replica.train), config)
    losses: list[float] = []
    try:
        trainer.run(config.steps, log_every=LOG_EVERY, on_log=lambda p: losses.append(p.loss))
    except CriError:  # diverged: its row says so, and the others are none the worse
        losses += [math.nan] * (math.ceil(config.steps / LOG_EVERY) - len(losses))
    model.eval()
    return _Result(Layout(model).flatten(model)[None], torch.tensor([losses]), [decode(model, materials.tokens)])


def _write_part(path: Path, result: _Result, reader: AnswerReader, identity: Mapping[str, str]) -> None:
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
    checkpoint_seconds: float = 300,
    progress: bool = True,
) -> Path:
    """Trains `replicas` of `config` into one bank below `out` and returns its folder (see `cri.bank.load_bank`);
    a finished bank is reused, an interrupted one resumed.

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
    with locked(folder):
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


def _bar(total: int, desc: str, unit: str, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc=desc, unit=unit, disable=not progress, mininterval=0.5 if sys.stderr.isatty() else 10)


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
    bar = _bar(len(replicas) * steps, f"{len(replicas)} replicas", "step", progress)
    start = 0
    while start < len(replicas):
        # a part begun with another size is finished with that size
        found = sorted(folder.glob(f"part-{start:05d}-*.safetensors"))
        stop = int(found[0].stem.split("-")[2]) if found else min(start + size, len(replicas))
        part = folder / f"part-{start:05d}-{stop:05d}.safetensors"
        checkpoint = folder / f"part-{start:05d}-{stop:05d}-checkpoint.safetensors"

        def on_step(step: int, start: int = start, stop: int = stop) -> None:
            bar.update(start * steps + (stop - start) * step - bar.n)

        if not part.exists():
            try:
                result = _train_stack(
                    materials, replicas[start:stop], device, checkpoint, identity, checkpoint_seconds, on_step, compiled
                )
            except torch.cuda.OutOfMemoryError as error:
                if stop - start == 1:
                    raise CriError("model: not even one replica fits in the device's memory") from error
                size = math.ceil((stop - start) / 2)
                checkpoint.unlink(missing_ok=True)
                warnings.warn(f"out of device memory: going on with {size} replicas at a time", stacklevel=2)
                del error
                torch.cuda.empty_cache()
                continue
            _write_part(part, result, reader, identity)
        checkpoint.unlink(missing_ok=True)
        on_step(steps)
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
            _write_part(parts[index], _train_one(own, replicas[index]), reader, identity)
        return len(block)

    bar = _bar(len(replicas), f"{len(replicas)} replicas", "model", progress)
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
    from safetensors.torch import save_file

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


def train_run_group(
    configs: Sequence[RunConfig],
    out: Path = Path("runs"),
    *,
    device: str = "auto",
    chunk: int | None = None,
    compiled: bool | None = None,
    checkpoint_seconds: float = 300,
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
    with locked(group):
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
    splits = [prepare_split(first, config) for config in configs]
    replicas = [
        Replica(c.seed, s.train, c.train.lr, c.train.weight_decay) for c, s in zip(configs, splits, strict=True)
    ]
    size = chunk or replicas_at_once(first, Layout(first.model), device)
    identity = {**first.identity, "members": config_hash({"members": [r.identity() for r in replicas]})}
    bar = _bar(len(replicas) * first.config.train.steps, f"{len(replicas)} runs", "step", progress)
    diverged = []
    for start in range(0, len(replicas), size):
        part = slice(start, min(start + size, len(replicas)))
        if all(is_complete(folder) for folder in folders[part]):
            continue
        n = part.stop - part.start
        started = time.perf_counter()

        def on_step(step: int, start: int = start, n: int = n) -> None:
            bar.update(start * first.config.train.steps + n * step - bar.n)

        checkpoint = group / f"checkpoint-{part.start}-{part.stop}.safetensors"
        result = _train_stack(
            first, replicas[part], device, checkpoint, identity, checkpoint_seconds, on_step, compiled
        )
        seconds = time.perf_counter() - started
        for k, index in enumerate(range(part.start, part.stop)):
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
    bar.close()
    if diverged:
        raise CriError(f"lr: the loss is not finite for {', '.join(diverged)}; lower lr")


def prepare_split(materials: Materials, config: RunConfig) -> Any:
    """The split of `config` for the task of `materials`."""
    from cri.splits import make_split

    return make_split(materials.task, config.split, **config.split_params)


def _export(
    folder: Path, own: Materials, flat: Tensor, losses: Tensor, decoded: Decoded, facts: Mapping[str, Any]
) -> None:
    """Writes one member of a stack as an ordinary run."""
    from cri.training import learning_rates

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
        model = _initial(own, own.config.seed).to("cpu")
        Layout(model).load(flat, model)
        finish_run(folder, own, model.eval(), table, dict(facts))
