"""The fine-tuning loop: one Hugging Face model, CPU or GPU, exact resume.

Everything random is a function of (seed, step): the order of batches is drawn per epoch, so a run that
is resumed at step k sees what it would have seen.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from cri.checkpoints import read_checkpoint, write_checkpoint
from cri.config import TrainConfig
from cri.data import TokenTable
from cri.errors import CorruptRunError, CriError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def learning_rates(config: TrainConfig) -> Float[np.ndarray, " step"]:
    """Learning rate of every step: linear from lr/warmup_steps to lr, then cosine towards 0."""
    step = np.arange(config.steps)
    warm = max(1, round(config.warmup * config.steps))
    cosine = 0.5 * (1 + np.cos(np.pi * (step - warm) / max(1, config.steps - warm)))
    return config.lr * np.where(step < warm, (step + 1) / warm, cosine)


def batch_order(
    train_ids: Int[np.ndarray, " train"],
    lengths: Int[np.ndarray, " case"],
    *,
    batch_size: int,
    steps: int,
    seed: int,
    window: int = 32,
) -> Int[np.ndarray, "step batch"]:
    """Case ids of every batch: a new permutation each epoch, the last incomplete batch dropped.

    Where sequences differ in length, batches are formed from neighbours in length within windows of
    `window` batches (and their order shuffled), so that little is padded. Fewer cases than a batch:
    each batch is all of them.
    """
    if len(train_ids) == 0:
        raise CriError("split: no training cases")
    size = min(batch_size, len(train_ids))
    per_epoch = len(train_ids) // size
    uniform = len(np.unique(lengths[train_ids])) == 1
    batches: list[np.ndarray] = []
    for epoch in range(-(-steps // per_epoch)):
        rng = np.random.default_rng([seed, epoch])
        order = train_ids[rng.permutation(len(train_ids))][: per_epoch * size]
        if not uniform:
            for start in range(0, len(order), window * size):
                part = order[start : start + window * size]
                order[start : start + window * size] = part[np.argsort(lengths[part], kind="stable")]
        rows = order.reshape(per_epoch, size)
        batches.append(rows if uniform else rows[rng.permutation(per_epoch)])
    return np.concatenate(batches)[:steps]


def target_logits(model: PreTrainedModel, ids: Int[Tensor, "batch pos"], first: int) -> Float[Tensor, "batch out vocab"]:
    """Logits that predict positions `first`.. of `ids` (the head is not applied to earlier positions)."""
    keep = ids.shape[1] - first + 1
    return model(input_ids=ids, use_cache=False, logits_to_keep=keep).logits[:, :-1]


def summed_loss(
    model: PreTrainedModel, ids: Int[Tensor, "batch pos"], labels: Int[Tensor, "batch pos"], first: int
) -> Float[Tensor, ""]:
    """Cross-entropy summed over labelled positions (-100 is unlabelled) from position `first` on.

    Right padding needs no attention mask: under causal attention no scored token sees it.
    """
    logits = target_logits(model, ids, first)
    return F.cross_entropy(logits.flatten(0, 1).float(), labels[:, first:].flatten(), reduction="sum")


def labels_of(tokens: TokenTable, loss_on: str) -> Int[Tensor, "case pos"]:
    """Token ids where the loss is taken, -100 elsewhere."""
    mask = tokens.target_mask if loss_on == "completion" else tokens.token_mask
    return tokens.ids.masked_fill(~mask, -100)


@dataclass
class Progress:
    """What the loop tells its observer at a logged step."""

    step: int
    loss: float
    lr: float
    seconds: float


class Trainer:
    """The state of one training run: model, optimiser, step. `run` advances it, `save`/`restore` keep it."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokens: TokenTable,
        train_ids: Int[np.ndarray, " train"],
        config: TrainConfig,
        device: torch.device | str = "cpu",
    ) -> None:
        self.config = config
        self.device = torch.device(device)
        self.model = model.to(self.device).train()  # pyright: ignore[reportArgumentType]
        if config.gradient_checkpointing:
            self.model.gradient_checkpointing_enable()
        self.lengths = tokens.lengths.numpy()
        self.order = batch_order(
            train_ids, self.lengths, batch_size=config.batch_size, steps=config.steps, seed=config.seed
        )
        self.lrs = learning_rates(config)
        self.first = int(tokens.prompt_lengths.min()) if config.loss_on == "completion" else 1
        self.ids = tokens.ids.to(self.device)
        self.labels = labels_of(tokens, config.loss_on).to(self.device)
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            list(self.parameters.values()),
            lr=config.lr,
            betas=(0.9, config.beta2),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.step = 0

    @property
    def padded_share(self) -> float:
        """Share of the tokens computed during training that are padding."""
        lengths = self.lengths[self.order]
        return 1 - lengths.sum() / (lengths.max(axis=1) * lengths.shape[1]).sum()

    def _train_step(self) -> Tensor:
        """One optimiser step; returns the mean loss per target token (left on the device)."""
        rows_host = self.order[self.step]
        width = int(self.lengths[rows_host].max())
        rows = torch.from_numpy(rows_host).to(self.device, non_blocking=True)
        labels = self.labels[rows, :width]
        n_targets = (labels[:, self.first :] != -100).sum()
        for group in self.optimizer.param_groups:
            group["lr"] = float(self.lrs[self.step])
        size = self.config.micro_batch or len(rows)
        total = torch.zeros((), device=self.device)
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
                loss = summed_loss(self.model, self.ids[part, :width], labels[start : start + size], self.first)
            loss = loss / n_targets
            loss.backward()
            total += loss.detach()
        if self.config.grad_clip > 0:
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.config.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return total

    def run(
        self,
        until: int,
        log_every: int = 50,
        on_log: Callable[[Progress], None] | None = None,
    ) -> None:
        """Trains up to (not including) step `until`; raises `CriError` at the first logged loss that is
        not finite, before anything is saved from it."""
        self.model.train()
        start, running, count = time.perf_counter(), torch.zeros((), device=self.device), 0
        while self.step < min(until, self.config.steps):
            running += self._train_step()
            count += 1
            if self.step % log_every == 0 or self.step in (until, self.config.steps):
                loss = float(running) / count
                if not math.isfinite(loss):
                    raise CriError(
                        f"lr: the loss is {loss} at step {self.step}; lower lr={self.config.lr:g} (the last good "
                        "checkpoint is kept)"
                    )
                if on_log:
                    on_log(Progress(self.step, loss, float(self.lrs[self.step - 1]), time.perf_counter() - start))
                running, count = torch.zeros((), device=self.device), 0
        self.model.eval()

    def _state(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": p.detach() for name, p in self.parameters.items()}
        for name, p in self.parameters.items():
            for key, value in self.optimizer.state.get(p, {}).items():
                tensors[f"optimizer.{name}.{key}"] = value
        tensors["rng.cpu"] = torch.get_rng_state()
        if self.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self.device)
        return {k: v.cpu().contiguous() for k, v in tensors.items()}

    def save(self, path: Path, identity: Mapping[str, str]) -> None:
        """Writes step, trained weights, optimiser and random state to one safetensors file, atomically.

        `identity` (hashes of config and data) is stored and compared by `restore`.
        """
        write_checkpoint(path, self._state(), {**identity, "step": str(self.step)})

    def restore(self, path: Path, identity: Mapping[str, str]) -> None:
        """Inverse of `save`; raises `CorruptRunError` for a damaged file or one of another run."""
        tensors, meta = read_checkpoint(path)
        for key, value in identity.items():
            if meta.get(key) != value:
                raise CorruptRunError(f"run: {path} was made with another {key}; remove the folder and train again")
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(tensors[f"model.{name}"])
                prefix = f"optimizer.{name}."
                state = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
                if state:  # the step counter stays where fused AdamW wants it: with the parameter
                    self.optimizer.state[p] = {k: v.to(self.device) for k, v in state.items()}
        torch.set_rng_state(tensors["rng.cpu"])
        if "rng.cuda" in tensors and self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["rng.cuda"], self.device)
        self.step = int(meta["step"])
