"""The engine under banks and groups of runs: what a replica is, how many fit, how they are trained.

On a GPU replicas are trained together (`cri.ensembles.stacked`); on CPU, where a batched product of small matrices is
slower than the products one by one, each is trained alone.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cri.config import RunConfig, TrainConfig
from cri.data.token_table import TokenTable
from cri.ensembles.bank import decodes_stacked, stacked_decode
from cri.ensembles.stacked import Layout, Member, StackedForward, StackedTrainer
from cri.errors import CriError
from cri.evaluation.decoding import Decoded, decode
from cri.models.device import bytes_per_replica, compiling_a_stack_pays, give_memory_back, sequences_decoded
from cri.models.presets import is_preset
from cri.storage import config_hash
from cri.training.checkpoints import read_checkpoint
from cri.training.setup import Materials, initial_model
from cri.training.trainer import Trainer

LOG_EVERY = 50
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Replica:
    """One model to train.

    Attributes:
        seed: of its initial weights and the order of its batches.
        train: the cases it is trained on.
        lr, weight_decay, batch_size: as in `TrainConfig`, whose values hold where None.
        note: columns for the bank's table (what was removed, ...).
    """

    seed: int
    train: Bool[np.ndarray, " case"]
    lr: float | None = None
    weight_decay: float | None = None
    batch_size: int | None = None
    note: Mapping[str, Any] = field(default_factory=dict)

    def config(self, base: TrainConfig) -> TrainConfig:
        """The settings of a single run that would train this replica."""
        own = {"lr": self.lr, "weight_decay": self.weight_decay, "batch_size": self.batch_size}
        own = {key: value for key, value in own.items() if value is not None}
        return RunConfig(train=base).replace(seed=self.seed, **own).train

    def identity(self) -> dict[str, Any]:
        mask = config_hash({"mask": np.packbits(self.train).tobytes().hex(), "n": len(self.train)})
        settings = {"lr": self.lr, "weight_decay": self.weight_decay, "batch_size": self.batch_size}
        return {"seed": self.seed, **settings, "train": mask, "note": self.note}


def members_of(materials: Materials, replicas: Sequence[Replica], layout: Layout) -> list[Member]:
    initial: dict[int, Tensor] = {}
    members = []
    for replica in replicas:
        train = replica.config(materials.config.train)
        if train.seed not in initial:
            initial[train.seed] = layout.flatten(initial_of(materials, train.seed))
        ids = np.flatnonzero(replica.train)
        members.append(Member(initial[train.seed], ids, train.seed, train.lr, train.weight_decay, train.batch_size))
    return members


def initial_of(materials: Materials, seed: int) -> Any:
    """The model that a run with `seed` starts from (pretrained ones start the same)."""
    if is_preset(materials.config.model):
        config = materials.config.replace(seed=seed)
        return initial_model(config, materials.task, materials.format, materials.tokenizer, materials.tokens)
    return copy.deepcopy(materials.model)


def bytes_each(materials: Materials, layout: Layout) -> int:
    """Device memory that one replica takes in training."""
    return bytes_per_replica(materials.config.train, materials.tokens, materials.model.config, layout.width)


@dataclass
class Result:
    """What a part of the replicas came to; first axis replica."""

    flat: Tensor
    losses: Tensor
    decoded: list[Decoded]


def train_stack(
    materials: Materials,
    replicas: Sequence[Replica],
    device: torch.device,
    checkpoint: Path,
    identity: Mapping[str, str],
    checkpoint_seconds: float,
    on_step: Callable[[int], Any],
    compiled: bool | None = None,
) -> Result:
    """Trains `replicas` together and decodes the grid with each. Out of memory in training, it raises
    `torch.cuda.OutOfMemoryError`; in decoding, which starts with small batches again, `CriError`."""
    if materials.config.lora or materials.config.last_layers:
        raise CriError("lora, last_layers: models trained in part are trained one at a time (cri.training.runs)")
    template = initial_of(materials, 0)
    layout = Layout(template)
    if compiled is None:
        held = len(replicas) * bytes_each(materials, layout)
        longest = materials.tokens.ids.shape[1]
        compiled = compiling_a_stack_pays(template.config, materials.config.train, longest, held, device)
    members = members_of(materials, replicas, layout)
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
    trainer.save(checkpoint, identity)  # whatever becomes of the decoding, the training is not done twice
    flat = trainer.flat.detach()
    losses = trainer.losses.T.cpu()
    trainer.release()  # its optimiser state and graphs hold most of the memory
    del trainer
    give_memory_back(device)
    decoded = decode_stack(StackedForward(template, layout, "fp32"), layout, flat, materials.tokens)
    return Result(flat.cpu(), losses, decoded)


def train_what_fits(
    materials: Materials,
    replicas: Sequence[Replica],
    device: torch.device,
    folder: Path,
    start: int,
    size: int,
    identity: Mapping[str, str],
    checkpoint_seconds: float,
    on_step: Callable[[int, int], Any],
    compiled: bool | None = None,
) -> tuple[Result, Path]:
    """`train_stack` for the first of `replicas`: `size` of them, or half as many for as long as memory does not hold
    them.

    Args:
        materials, device, identity, checkpoint_seconds, compiled: see `train_stack`.
        replicas: those that are still to be trained.
        folder: folder of the checkpoint. An existing checkpoint is resumed with the number of members that it was
            started with, whatever `size` is now.
        start: the place of the first one in the bank; names the checkpoint.
        on_step: called with the number of members and the step.

    Returns what became of them, and the checkpoint, which the caller removes once that is written.
    """
    n = begun_with(folder, start)
    if not 0 < n <= len(replicas):  # none, or one of more models than are asked for here
        n = min(size, len(replicas))
    while True:
        checkpoint = folder / f"{part_name(start, n)}-checkpoint.safetensors"

        def report(step: int, n: int = n) -> None:
            on_step(n, step)

        try:
            chosen = replicas[:n]
            return (
                train_stack(materials, chosen, device, checkpoint, identity, checkpoint_seconds, report, compiled),
                checkpoint,
            )
        except torch.cuda.OutOfMemoryError:
            pass  # what follows gives memory back, which the error's frames hold in here
        give_memory_back(device)
        if checkpoint.exists() and read_checkpoint(checkpoint)[1]["step"] == str(materials.config.train.steps):
            raise CriError("device: no memory left to load the trained models; run again, training is finished")
        if n == 1:
            raise CriError("model: not even one replica fits in the device's memory")
        checkpoint.unlink(missing_ok=True)
        n = math.ceil(n / 2)
        warnings.warn(f"out of device memory: going on with {n} replicas at a time", stacklevel=2)


def part_name(start: int, n: int) -> str:
    """The stem of the files of `n` replicas, the first of which is at place `start` of the bank."""
    return f"part-{start:05d}-{start + n:05d}"


def begun_with(folder: Path, start: int) -> int:
    """How many members the checkpoint in `folder` has whose first is at place `start`; 0 without one."""
    found = sorted(folder.glob(f"part-{start:05d}-*-checkpoint.safetensors"))
    return int(found[0].stem.split("-")[2]) - start if found else 0


def decode_stack(
    forward: StackedForward, layout: Layout, flat: Float[Tensor, "replica parameter"], tokens: TokenTable
) -> list[Decoded]:
    """Greedy completions of every prompt by every model of a stack, in smaller batches where memory does not hold the
    usual ones; loads weights into the template of `forward`."""
    if decodes_stacked(tokens):
        return _with_less_memory(flat.device, lambda share: stacked_decode(forward, flat, tokens, share))
    template = forward.template

    def one(share: float) -> Decoded:
        return decode(template, tokens, batch_tokens=sequences_decoded(template, flat.device, share))

    decoded = []
    for row in flat:
        layout.load(row, template)
        decoded.append(_with_less_memory(flat.device, one))
    return decoded


def _with_less_memory(device: torch.device, attempt: Callable[[float], T]) -> T:
    """Calls `attempt(share)`, which may use `share` of the free memory: first a quarter, then half of that, and so on,
    after each attempt that runs out of memory."""
    share = 0.25
    while share > 1e-4:
        try:
            return attempt(share)
        except torch.cuda.OutOfMemoryError:
            pass  # as in `train_what_fits`
        give_memory_back(device)
        share /= 2
    raise CriError("device: no memory left to decode, however few cases at a time; run again, training is finished")


def train_alone(materials: Materials, replica: Replica) -> Result:
    """One replica by the ordinary loop, on CPU."""
    config = replica.config(materials.config.train)
    model = initial_of(materials, config.seed)
    trainer = Trainer(model, materials.tokens, np.flatnonzero(replica.train), config)
    losses: list[float] = []
    try:
        trainer.run(config.steps, log_every=LOG_EVERY, on_log=lambda p: losses.append(p.loss))
    except CriError:  # diverged: its row says so; the others are not affected
        losses += [math.nan] * (math.ceil(config.steps / LOG_EVERY) - len(losses))
    model.eval()
    return Result(Layout(model).flatten(model)[None], torch.tensor([losses]), [decode(model, materials.tokens)])
