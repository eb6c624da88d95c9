"""The fine-tuning loop: one Hugging Face model, CPU or GPU, exact resume.

What a step computes is in `steps`. Everything random is a function of (seed, step): the order of batches is drawn per
epoch, so a run that is resumed at step k sees what it would have seen.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from cri.config import TrainConfig
from cri.data.token_table import TokenTable
from cri.errors import CorruptRunError, CriError
from cri.models.device import matmul_precision
from cri.training.checkpoints import read_checkpoint, require_identity, write_checkpoint
from cri.training.compilation import GraphedStep
from cri.training.distributed import sum_over_processes
from cri.training.lean import make_step
from cri.training.steps import MOMENTS, Batches, Way

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Progress:
    """What the loop tells its observer at a logged step."""

    step: int
    loss: float
    lr: float
    seconds: float


class Trainer:
    """The state of one training run: model, optimiser, step. `run` advances it, `save`/`restore` keep it.

    On a GPU everything a step needs lies on the device, and the step is a CUDA graph (one for each padded width)
    unless gradient checkpointing is asked for; the host waits only at logged steps. Under `accelerate launch` each
    process takes its share of every batch, and gradients are summed: the losses of one process with the same batch.

    Args:
        model: any Hugging Face causal language model; parameters that require no gradient stay as they are.
        tokens: the grid.
        train_ids: the cases to train on.
        config: the optimisation.
        device: where; under `accelerate launch` the process's own GPU, or CPU.
        way: how steps are taken (see `cri.training.steps`): `plain`, `traced`, `compiled`, `lean`; by default the
            quickest.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokens: TokenTable,
        train_ids: Int[np.ndarray, " train"],
        config: TrainConfig,
        device: torch.device | str = "cpu",
        *,
        way: Way | None = None,
    ) -> None:
        self.steps, self.lr, self.precision = config.steps, config.lr, config.precision
        checkpointing, seed = config.gradient_checkpointing, config.seed
        self.device = torch.device(device)
        self.model = model.to(self.device).train()  # pyright: ignore[reportArgumentType]
        if checkpointing:
            model.activation_checkpointing_enable()
            self.model.enable_input_require_grads()  # else adapters behind a frozen embedding see no gradient
        self.batches = Batches(tokens, train_ids, config, self.device)
        self._step = make_step(self.model, self.batches, config, way, checkpointing)
        self.parameters = self._step.parameters
        self._graphed = GraphedStep(self._step, self.device)
        if checkpointing or self._step.world > 1:
            self._graphed.enabled = False  # checkpointing reads the random state, other processes are waited for
        self.step = 0
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            self._rng = self._random_state()

    @property
    def padded_share(self) -> float:
        """Share of the tokens computed during training that are padding."""
        return self.batches.padded_share

    def _random_state(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        return [*states, torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else states

    @contextlib.contextmanager
    def _own_random_state(self) -> Iterator[None]:
        """Noise (dropout) is the run's own: whatever else is drawn between its steps changes nothing."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            self._set_random_state()
            yield
            self._rng = self._random_state()

    def _set_random_state(self) -> None:
        torch.set_rng_state(self._rng[0])
        if len(self._rng) > 1:
            torch.cuda.set_rng_state(self._rng[1], self.device)

    def run(
        self,
        until: int,
        log_every: int = 50,
        on_log: Callable[[Progress], None] | None = None,
    ) -> None:
        """Trains up to (not including) step `until`; raises `CriError` at the first logged loss that is
        not finite, before anything is saved from it."""
        self.model.train()
        start, count = time.perf_counter(), 0
        with self._own_random_state(), matmul_precision(self.precision), self._step.session():
            while self.step < min(until, self.steps):
                self._graphed(self.batches.width(self.step))
                self.step += 1
                count += 1
                if self.step % log_every == 0 or self.step in (until, self.steps):
                    if self._step.world > 1:
                        sum_over_processes([self._step.running])
                    loss = float(self._step.running) / count
                    self._step.running.zero_()
                    count = 0
                    if not math.isfinite(loss):
                        raise CriError(
                            f"lr: the loss is {loss} at step {self.step}; lower lr={self.lr:g} (the last good "
                            "checkpoint is kept)"
                        )
                    if on_log:
                        on_log(
                            Progress(
                                self.step, loss, float(self.batches.lrs[self.step - 1]), time.perf_counter() - start
                            )
                        )
        self.model.eval()

    def save(self, path: Path, identity: Mapping[str, str]) -> None:
        """Writes step, trained weights, optimiser and random state to one safetensors file, atomically.

        `identity` (hashes of config and data) is stored and compared by `restore`.
        """
        tensors = {f"model.{name}": p.detach() for name, p in self.parameters.items()}
        if self.step > 0:
            for key, values in self._step.moments().items():
                tensors |= {f"optimizer.{name}.{key}": value for name, value in values.items()}
        tensors |= dict(zip(("rng.cpu", "rng.cuda"), self._rng, strict=False))
        tensors = {k: v.cpu().contiguous() for k, v in tensors.items()}
        write_checkpoint(path, tensors, {**identity, "step": str(self.step)})

    def restore(self, path: Path, identity: Mapping[str, str]) -> None:
        """Inverse of `save`; raises `CorruptRunError` for a damaged file or one of another run."""
        tensors, meta = read_checkpoint(path)
        require_identity(path, meta, identity)
        for name, p in self.parameters.items():
            if f"model.{name}" not in tensors or tensors[f"model.{name}"].shape != p.shape:
                raise CorruptRunError(f"run: {path} has no weights for {name}; remove it to start again")
        if not meta.get("step", "").isdecimal():
            raise CorruptRunError(f"run: {path} does not say after which step it was made; remove it to start again")
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(tensors[f"model.{name}"])
        self.step = int(meta["step"])
        self.batches.done.fill_(self.step)
        self._step.optimizer.state.clear()
        if self.step > 0:
            for name in self.parameters:
                for key in MOMENTS:
                    if f"optimizer.{name}.{key}" not in tensors:
                        raise CorruptRunError(f"run: {path} has no {key} of {name}; remove it to start again")
            moments = {
                key: {name: tensors[f"optimizer.{name}.{key}"].to(self.device) for name in self.parameters}
                for key in MOMENTS
            }
            self._step.load_moments(moments, self.step)
        names = ("rng.cpu", "rng.cuda")[: len(self._rng)]
        if all(name in tensors for name in names):  # not so where the run moves to another kind of device
            self._rng = [tensors[name] for name in names]

    def release(self) -> None:
        """Gives the memory of graphs, gradients and optimiser back; no step can follow."""
        self._graphed.release()
        del self._graphed
        self._step.release()
