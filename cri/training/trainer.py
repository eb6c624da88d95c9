"""The fine-tuning loop: one Hugging Face model, CPU or GPU, exact resume.

Everything random is a function of (seed, step): the order of batches is drawn per epoch, so a run that
is resumed at step k sees what it would have seen.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from cri.config import TrainConfig
from cri.data.token_table import TokenTable
from cri.errors import CorruptRunError, CriError
from cri.models.attention import SHORT, Kind, has_dropout, last_layer_where_scored, unmasked
from cri.models.positions import positions_of
from cri.training.batches import batch_order, learning_rates, uniform
from cri.training.checkpoints import read_checkpoint, require_identity, write_checkpoint
from cri.training.compilation import GraphedStep, Traced, bucket, give_memory_back, matmul_precision, rounding
from cri.training.distributed import process_rank, sum_over_processes

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def target_logits(
    model: PreTrainedModel, ids: Int[Tensor, "batch pos"], first: int, where: Mapping[str, Tensor] | None = None
) -> Float[Tensor, "batch out vocab"]:
    """Logits that predict positions `first`.. of `ids` (the head is not applied to earlier positions); `where` holds
    position ids and mask of all but the last."""
    keep = ids.shape[1] - first  # the last token is only ever predicted
    # a checkpointed layer is computed again later, outside this block
    shortened = (
        contextlib.nullcontext() if checkpointed(model) else last_layer_where_scored(model, ids.shape[1] - 1, keep)
    )
    with shortened:
        return model(input_ids=ids[:, :-1], use_cache=False, logits_to_keep=keep, **(where or {})).logits


def checkpointed(model: PreTrainedModel) -> bool:
    """Whether the model recomputes its layers in the backward pass."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def summed_loss(
    model: PreTrainedModel,
    ids: Int[Tensor, "batch pos"],
    labels: Int[Tensor, "batch pos"],
    first: int,
    where: Mapping[str, Tensor] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy summed over labelled positions (-100 is unlabelled) from position `first` on.

    Right padding needs no attention mask: under causal attention no scored token sees it.
    """
    logits = target_logits(model, ids, first, where)
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


def compile_pays(model: PreTrainedModel, config: TrainConfig, width: int) -> bool:
    """Whether torch.compile is expected to save more time than it takes, on a GPU.

    It saves kernel launches (about 35 of 2 microseconds a layer and step) and about half of the memory traffic
    between matrix products (some 150 numbers a token, layer and model dimension, at 2 TB/s); it takes some seconds a
    layer for each width of batch. (On CPU it never paid: 25 against 28 ms a step for `nano`, after 47 s.)
    """
    n_layers, d_model = model.config.num_hidden_layers, model.config.hidden_size
    n_widths = len({bucket(w, width) for w in range(width // 2, width + 1)})
    per_layer = 70e-6 + 0.5 * config.batch_size * width * d_model * 150 * 4 / 2e12
    return config.steps * n_layers * per_layer > n_widths * (10 + 2 * n_layers)


_MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of a parameter, as torch names it."""


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
        compiled: pass the forward and backward pass through torch.compile; by default where it pays.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokens: TokenTable,
        train_ids: Int[np.ndarray, " train"],
        config: TrainConfig,
        device: torch.device | str = "cpu",
        *,
        compiled: bool | None = None,
    ) -> None:
        self.config = config
        self.rank, self.world = process_rank()
        self.device = torch.device(device)
        self.model = model.to(self.device).train()  # pyright: ignore[reportArgumentType]
        self.positions = positions_of(model)
        if config.gradient_checkpointing:
            model.activation_checkpointing_enable()
            self.model.enable_input_require_grads()  # else adapters behind a frozen embedding see no gradient
        self.lengths = tokens.lengths.numpy()
        self.order = batch_order(
            train_ids, self.lengths, batch_size=config.batch_size, steps=config.steps, seed=config.seed
        )
        self.lrs = learning_rates(config)
        self.first = int(tokens.prompt_lengths.min()) if config.loss_on == "completion" else 1
        self.ids = tokens.ids.to(self.device)
        self.labels = labels_of(tokens, config.loss_on).to(self.device)
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        cuda = self.device.type == "cuda"
        self._compiled, self._traces = self._ways(compiled)
        # a traced step optimises all parameters as one tensor
        self._optimized = self._flattened() if self._traces else self.parameters
        self.optimizer = torch.optim.AdamW(
            list(self._optimized.values()),
            lr=torch.tensor(config.lr, device=self.device) if cuda else config.lr,
            betas=(0.9, config.beta2),
            weight_decay=config.weight_decay,
            fused=True,
            capturable=cuda,
        )
        self.step = 0
        # what the device reads by itself
        self._done = torch.zeros((), dtype=torch.long, device=self.device)
        self._rows = torch.from_numpy(self.order).to(self.device)
        self._rates = torch.from_numpy(self.lrs).float().to(self.device)
        self._running = torch.zeros((), device=self.device)
        self._frozen = {f"model.{n}": p for n, p in model.named_parameters() if not p.requires_grad}
        self._traced: dict[Kind, Traced] = {}
        self._graphed = GraphedStep(self._train_step, self.device)
        if config.gradient_checkpointing or self.world > 1:
            self._graphed.enabled = False  # checkpointing reads the random state, other processes are waited for
        with torch.random.fork_rng([self.device] if cuda else []):
            torch.manual_seed(config.seed)
            self._rng = self._random_state()

    def _ways(self, compiled: bool | None) -> tuple[bool, bool]:
        """Whether the loss is compiled, and whether it is traced."""
        config, cuda = self.config, self.device.type == "cuda"
        # checkpoints cannot be traced, and traced dropout does not survive compilation everywhere
        # what a window leaves out depends on the batch, which a trace could not know
        if config.gradient_checkpointing or has_dropout(self.model) or self.positions is not None:
            return False, False
        if compiled is None:
            compiled = cuda and compile_pays(self.model, config, self.ids.shape[1])
        # on CPU a trace saves a small model a seventh of its time; a CUDA graph saves the same and more
        n_widths = len(np.unique(self.lengths[self.order].max(axis=1)))
        return compiled, compiled or (not cuda and 100 * n_widths <= config.steps)

    def _flattened(self) -> dict[str, torch.nn.Parameter]:
        """All trained parameters as one tensor, of which they become views: clipping and AdamW are then one pass."""
        flat = torch.cat([p.detach().flatten() for p in self.parameters.values()])
        for p, part in zip(
            self.parameters.values(), flat.split([p.numel() for p in self.parameters.values()]), strict=True
        ):
            p.data = part.view_as(p)
        return {"flat": torch.nn.Parameter(flat)}

    def _views(self) -> dict[str, Tensor]:
        """The model's parameters as the traced loss takes them; gradients flow back to the one tensor."""
        parts = self._optimized["flat"].split([p.numel() for p in self.parameters.values()])
        views = {
            f"model.{name}": part.view(p.shape) for part, (name, p) in zip(parts, self.parameters.items(), strict=True)
        }
        return self._frozen | views

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

    def width_of(self, step: int) -> int:
        """Tokens that each sequence of the step's batch is cropped or padded to."""
        width = int(self.lengths[self.order[step]].max())
        # on a GPU few widths, as each is a graph of its own
        return bucket(width, self.ids.shape[1]) if self.device.type == "cuda" else width

    @property
    def padded_share(self) -> float:
        """Share of the tokens computed during training that are padding."""
        widths = np.array([self.width_of(step) for step in range(len(self.order))])
        return float(1 - self.lengths[self.order].sum() / (widths * self.order.shape[1]).sum())

    def _where(self, rows: Int[Tensor, " batch"], ids: Int[Tensor, "batch pos"]) -> dict[str, Tensor]:
        """Position ids and mask of a batch's inputs, the same for a case and step whatever the batch is split into."""
        if self.positions is None:
            return {}
        keys = (rows + len(self.ids) * self._done)[:, None] * self.positions.n_draws
        places = torch.arange(self.positions.n_draws, device=self.device)
        return self.positions.inputs(ids[:, :-1], uniform(keys + places, self.config.seed))

    def _backward(self, rows: Int[Tensor, " batch"], width: int, n_targets: Tensor) -> None:
        """Adds the gradient of the summed loss of these cases over `n_targets`."""
        ids, labels = self.ids[rows, :width], self.labels[rows, :width]
        where = self._where(rows, ids)
        cuda = self.device.type == "cuda"
        kind: Kind = "library"
        if cuda:
            kind = "products" if ids.shape[1] <= SHORT else "kernels" if self._traces else "library"

        @contextlib.contextmanager
        def context() -> Iterator[None]:
            low = self.config.precision == "bf16"
            with unmasked(self.model, kind), torch.autocast(self.device.type, torch.bfloat16, low, False):
                yield

        if not self._traces:
            with context():  # the backward pass too: what was checkpointed is computed again there
                loss = summed_loss(self.model, ids, labels, self.first, where) / n_targets
                loss.backward()
        else:
            if kind not in self._traced:

                def summed(parameters: dict[str, Tensor], ids: Tensor, labels: Tensor) -> Tensor:
                    inputs = (ids, labels, self.first)
                    return torch.func.functional_call(_Loss(self.model), parameters, inputs)

                self._traced[kind] = Traced(summed, context, self._compiled, rounding(self.config.precision))
            loss = self._traced[kind](self._views(), ids, labels) / n_targets
            loss.backward()
        self._running += loss.detach()

    def _train_step(self, width: Any) -> None:
        """One optimiser step; reads only what lies on the device."""
        rows = self._rows.index_select(0, self._done[None])[0]
        n_targets = (self.labels[rows, self.first :] != -100).sum()
        rows = rows[self.rank :: self.world]
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].copy_(self._rates.index_select(0, self._done[None])[0])
            else:
                group["lr"] = float(self.lrs[self.step])
        self.optimizer.zero_grad()  # a step that failed, as a capture may, leaves its gradient behind
        size = self.config.micro_batch or max(1, len(rows))
        for part in rows.split(size):
            self._backward(part, width, n_targets)
        if self.world > 1:
            sum_over_processes([p.grad for p in self._optimized.values() if p.grad is not None])
        if self.config.grad_clip > 0:
            torch.nn.utils.clip_grad_norm_(self._optimized.values(), self.config.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._done += 1

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
        with self._own_random_state(), matmul_precision(self.config.precision):
            while self.step < min(until, self.config.steps):
                self._graphed(self.width_of(self.step))
                self.step += 1
                count += 1
                if self.step % log_every == 0 or self.step in (until, self.config.steps):
                    if self.world > 1:
                        sum_over_processes([self._running])
                    loss = float(self._running) / count
                    self._running.zero_()
                    count = 0
                    if not math.isfinite(loss):
                        raise CriError(
                            f"lr: the loss is {loss} at step {self.step}; lower lr={self.config.lr:g} (the last good "
                            "checkpoint is kept)"
                        )
                    if on_log:
                        on_log(Progress(self.step, loss, float(self.lrs[self.step - 1]), time.perf_counter() - start))
        self.model.eval()

    def _state(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": p.detach() for name, p in self.parameters.items()}
        # by the parameters' names, whether or not they are optimised as one tensor: another device may do otherwise
        sizes = [p.numel() for p in self.parameters.values()]
        for key in _MOMENTS if self.step > 0 else ():
            if self._traces:
                parts = self.optimizer.state[self._optimized["flat"]][key].split(sizes)
            else:
                states = [self.optimizer.state.get(p, {}) for p in self.parameters.values()]
                parts = [s.get(key, torch.zeros_like(p)) for s, p in zip(states, self.parameters.values(), strict=True)]
            for (name, p), part in zip(self.parameters.items(), parts, strict=True):
                tensors[f"optimizer.{name}.{key}"] = part.view(p.shape)
        tensors |= dict(zip(("rng.cpu", "rng.cuda"), self._rng, strict=False))
        return {k: v.cpu().contiguous() for k, v in tensors.items()}

    def save(self, path: Path, identity: Mapping[str, str]) -> None:
        """Writes step, trained weights, optimiser and random state to one safetensors file, atomically.

        `identity` (hashes of config and data) is stored and compared by `restore`.
        """
        write_checkpoint(path, self._state(), {**identity, "step": str(self.step)})

    def restore(self, path: Path, identity: Mapping[str, str]) -> None:
        """Inverse of `save`; raises `CorruptRunError` for a damaged file or one of another run."""
        tensors, meta = read_checkpoint(path)
        require_identity(path, meta, identity)
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(tensors[f"model.{name}"])
        self.step = int(meta["step"])
        self._restore_moments(path, tensors)
        names = ("rng.cpu", "rng.cuda")[: len(self._rng)]
        if all(name in tensors for name in names):  # not so where the run moves to another kind of device
            self._rng = [tensors[name] for name in names]
        self._done.fill_(self.step)

    def _restore_moments(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        self.optimizer.state.clear()
        if self.step == 0:
            return
        moments: dict[str, list[Tensor]] = {key: [] for key in _MOMENTS}
        for key, values in moments.items():
            for name in self.parameters:
                if f"optimizer.{name}.{key}" not in tensors:
                    raise CorruptRunError(f"run: {path} has no {key} of {name}; remove it to start again")
                values.append(tensors[f"optimizer.{name}.{key}"].to(self.device))
        if self._traces:
            moments = {key: [torch.cat([v.flatten() for v in values])] for key, values in moments.items()}
        for p, *values in zip(self._optimized.values(), *moments.values(), strict=True):
            # the step counter lies where fused AdamW wants it: with the parameter
            counter = torch.tensor(float(self.step), device=self.device)
            self.optimizer.state[p] = {"step": counter, **dict(zip(_MOMENTS, values, strict=True))}

    def release(self) -> None:
        """Gives the memory of graphs, gradients and optimiser back; no step can follow."""
        self._graphed.release()
        self.optimizer.zero_grad()
        self.optimizer.state.clear()
        self._traced.clear()
        del self._graphed  # it refers to this trainer, and this trainer to it
        give_memory_back(self.device)


class _Loss(torch.nn.Module):
    """`summed_loss` as a module, so that its model's parameters can be passed in."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, labels: Tensor, first: int) -> Tensor:
        return summed_loss(self.model, ids, labels, first)
