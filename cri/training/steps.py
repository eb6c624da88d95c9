"""One optimiser step: plainly, and by faster paths that compute the same.

`PlainStep` is the training loop of any tutorial: forward, backward, clip, AdamW. `TracedStep` replaces the forward and
backward pass by a graph of plain operations, which may be compiled, and optimises all parameters as one tensor. Both
read only what lies on the device, so that either can be recorded as a CUDA graph (`compilation.GraphedStep`). The step
of large models on a CPU is in `lean`, with the choice between them. Tests hold each fast path to the plain step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from cri.config import TrainConfig
from cri.data.token_table import TokenTable
from cri.models.attention import Kind, training_kind, unmasked
from cri.models.device import autocast, bucket, compiling_pays, give_memory_back, rounding
from cri.models.positions import positions_of
from cri.training.batches import batch_order, learning_rates, uniform
from cri.training.compilation import Traced
from cri.training.distributed import process_rank, sum_over_processes
from cri.training.loss import Loss, labels_of, summed_loss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Way = Literal["plain", "traced", "compiled", "lean"]
MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of a parameter, as torch names it."""


class Batches:
    """The batches of a run, where the device finds the next one by itself: no step waits for the host.

    Attributes:
        order: case ids, [step, batch].
        first: the first position that is scored in any sequence.
        ids, labels: the grid's tokens, and those that are scored (-100 elsewhere), on the device, [case, pos].
        lrs: the learning rate of every step.
        done: steps taken, as the device counts them.
    """

    def __init__(
        self, tokens: TokenTable, train_ids: Int[np.ndarray, " train"], config: TrainConfig, device: torch.device
    ) -> None:
        self.device = device
        self.lengths = tokens.lengths.numpy()
        self.order = batch_order(
            train_ids, self.lengths, batch_size=config.batch_size, steps=config.steps, seed=config.seed
        )
        self.first = int(tokens.prompt_lengths.min()) if config.loss_on == "completion" else 1
        self.ids = tokens.ids.to(device)
        self.labels = labels_of(tokens, config.loss_on).to(device)
        self.lrs = learning_rates(config.steps, config.lr, config.warmup)
        self.done = torch.zeros((), dtype=torch.long, device=device)
        self._rows = torch.from_numpy(self.order).to(device)
        self._lrs = torch.from_numpy(self.lrs).float().to(device)

    def width(self, step: int) -> int:
        """Tokens that each sequence of the step's batch is cropped or padded to."""
        width = int(self.lengths[self.order[step]].max())
        # on a GPU few widths, as each is a graph of its own
        return bucket(width, self.ids.shape[1]) if self.device.type == "cuda" else width

    @property
    def padded_share(self) -> float:
        """Share of the tokens computed during training that are padding."""
        widths = np.array([self.width(step) for step in range(len(self.order))])
        return float(1 - self.lengths[self.order].sum() / (widths * self.order.shape[1]).sum())

    def cases(self) -> Int[Tensor, " batch"]:
        """Case ids of the next batch."""
        return self._rows.index_select(0, self.done[None])[0]

    def n_targets(self, cases: Int[Tensor, " batch"]) -> Int[Tensor, ""]:
        """Tokens that are scored in these cases."""
        return (self.labels[cases, self.first :] != -100).sum()

    def lr(self) -> Tensor:
        """The next step's learning rate."""
        return self._lrs.index_select(0, self.done[None])[0]


class PlainStep:
    """One optimiser step of a model on the next batch; calling it with the batch's width takes the step.

    Args:
        model: on the device; parameters that require no gradient stay as they are.
        batches: of the run.
        config: the optimisation.

    Attributes:
        parameters: the trained ones by name.
        optimized: what the optimiser holds: the parameters, or one tensor of which they are views.
        running: sum of the losses of all steps since it was last reset; with several processes, this process's share
            of that sum.
    """

    def __init__(self, model: PreTrainedModel, batches: Batches, config: TrainConfig) -> None:
        self.model, self.batches, self.device = model, batches, batches.device
        self.seed, self.precision = config.seed, config.precision
        self.micro_batch, self.grad_clip = config.micro_batch, config.grad_clip
        self.positions = positions_of(model)
        self.rank, self.world = process_rank()
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.optimized = self._to_optimize()
        cuda = self.device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            self.optimized,
            # a graph reads the learning rate from the device
            lr=torch.tensor(config.lr, device=self.device) if cuda else config.lr,
            betas=(0.9, config.beta2),
            weight_decay=config.weight_decay,
            fused=True,
            capturable=cuda,
        )
        self.running = torch.zeros((), device=self.device)

    def __call__(self, width: Any) -> None:
        batch = self.batches.cases()
        n_targets = self.batches.n_targets(batch)  # of all processes: their gradients are summed
        own = batch[self.rank :: self.world]
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].copy_(self.batches.lr())
            else:
                group["lr"] = float(self.batches.lrs[int(self.batches.done)])
        self.optimizer.zero_grad()  # a step that failed, as a capture may, leaves its gradient behind
        for part in own.split(self.micro_batch or max(1, len(own))):
            self.running += self.backward(part, width, n_targets)
        if self.world > 1:
            sum_over_processes([p.grad for p in self.optimized if p.grad is not None])
        if self.grad_clip > 0:
            torch.nn.utils.clip_grad_norm_(self.optimized, self.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.batches.done += 1

    def backward(self, cases: Int[Tensor, " part"], width: int, n_targets: Tensor) -> Tensor:
        """Adds the gradient of the cases' summed loss over `n_targets`; returns that loss."""
        ids, labels = self.batches.ids[cases, :width], self.batches.labels[cases, :width]
        where = self._where(cases, ids)
        with self.context(training_kind(self.device, width, traced=False)):
            loss = summed_loss(self.model, ids, labels, self.batches.first, where) / n_targets
            loss.backward()  # within: what was checkpointed is computed again
        return loss.detach()

    def _where(self, cases: Int[Tensor, " part"], ids: Int[Tensor, "part pos"]) -> dict[str, Tensor]:
        """Position ids and mask of a batch's inputs, the same for a case and step whatever the batch is split into."""
        if self.positions is None:
            return {}
        keys = (cases + len(self.batches.ids) * self.batches.done)[:, None] * self.positions.n_draws
        places = torch.arange(self.positions.n_draws, device=self.device)
        return self.positions.inputs(ids[:, :-1], uniform(keys + places, self.seed))

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Around the steps that are taken one after another, before anyone else uses the model."""
        yield

    @contextlib.contextmanager
    def context(self, kind: Kind) -> Iterator[None]:
        """How the model computes within the block: attention without padding masks, in the run's precision."""
        with unmasked(self.model, kind), autocast(self.device, self.precision):
            yield

    def _to_optimize(self) -> list[torch.nn.Parameter]:
        return list(self.parameters.values())

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """AdamW's moments by their name and the parameter's; zeros for one that has had no gradient yet."""
        states = {n: self.optimizer.state.get(p, {}) for n, p in self.parameters.items()}
        return {
            key: {n: states[n].get(key, torch.zeros_like(p)) for n, p in self.parameters.items()} for key in MOMENTS
        }

    def load_moments(self, moments: Mapping[str, Mapping[str, Tensor]], step: int) -> None:
        """Inverse of `moments`, after `step` steps."""
        self._load([[moments[key][name] for name in self.parameters] for key in MOMENTS], step)

    def _load(self, moments: list[list[Tensor]], step: int) -> None:
        for p, *values in zip(self.optimized, *moments, strict=True):
            # the step counter lies where fused AdamW wants it: with the parameter
            counter = torch.tensor(float(step), device=self.device)
            self.optimizer.state[p] = {"step": counter, **dict(zip(MOMENTS, values, strict=True))}

    def release(self) -> None:
        """Gives the memory of gradients and optimiser back; no step can follow."""
        self.optimizer.zero_grad()
        self.optimizer.state.clear()
        give_memory_back(self.device)


class TracedStep(PlainStep):
    """The same step, its forward and backward pass traced to plain operations once for each shape.

    A trace spares the host transformers' Python, a seventh of a small model's time on CPU. All trained parameters are
    one tensor, of which the model's are views, so that clipping and AdamW are one pass.

    Args:
        compiled: pass each trace through torch.compile.
    """

    def __init__(self, model: PreTrainedModel, batches: Batches, config: TrainConfig, compiled: bool) -> None:
        super().__init__(model, batches, config)
        self.compiled = compiled
        self._frozen = {f"model.{n}": p for n, p in model.named_parameters() if not p.requires_grad}
        self._sizes = [p.numel() for p in self.parameters.values()]
        self._traced: dict[Kind, Traced] = {}

    def _to_optimize(self) -> list[torch.nn.Parameter]:
        flat = torch.cat([p.detach().flatten() for p in self.parameters.values()])
        parts = flat.split([p.numel() for p in self.parameters.values()])
        for p, part in zip(self.parameters.values(), parts, strict=True):
            p.data = part.view_as(p)
        return [torch.nn.Parameter(flat)]

    def backward(self, cases: Int[Tensor, " part"], width: int, n_targets: Tensor) -> Tensor:
        kind = training_kind(self.device, width, traced=True)
        if kind not in self._traced:

            def summed(parameters: dict[str, Tensor], ids: Tensor, labels: Tensor) -> Tensor:
                return torch.func.functional_call(Loss(self.model), parameters, (ids, labels, self.batches.first))

            tolerance = rounding(self.precision)
            self._traced[kind] = Traced(summed, lambda: self.context(kind), self.compiled, tolerance)
        ids, labels = self.batches.ids[cases, :width], self.batches.labels[cases, :width]
        loss = self._traced[kind](self._views(), ids, labels) / n_targets
        loss.backward()
        return loss.detach()

    def _views(self) -> dict[str, Tensor]:
        """The model's parameters as the traced loss takes them; gradients flow back to the one tensor."""
        parts = self.optimized[0].split(self._sizes)
        named = zip(self.parameters.items(), parts, strict=True)
        return self._frozen | {f"model.{name}": part.view(p.shape) for (name, p), part in named}

    def moments(self) -> dict[str, dict[str, Tensor]]:
        # by the parameters' names, as the plain step's: the run may go on by another path, on another device
        state = self.optimizer.state[self.optimized[0]]
        return {
            key: {
                name: part.view(p.shape)
                for (name, p), part in zip(self.parameters.items(), state[key].split(self._sizes), strict=True)
            }
            for key in MOMENTS
        }

    def _load(self, moments: list[list[Tensor]], step: int) -> None:
        super()._load([[torch.cat([v.flatten() for v in values])] for values in moments], step)

    def release(self) -> None:
        self._traced.clear()
        super().release()


def choose_way(model: PreTrainedModel, batches: Batches, config: TrainConfig) -> Way:
    """The quickest way to take a run's steps.

    On a GPU, CUDA graphs save what a trace saves and more; on CPU a trace pays after a hundred steps of its width.
    """
    if batches.device.type == "cuda":
        longest = batches.ids.shape[1]
        return "compiled" if compiling_pays(model.config, config, longest, batches.device) else "plain"
    n_widths = len(np.unique(batches.lengths[batches.order].max(axis=1)))
    return "traced" if 100 * n_widths <= config.steps else "plain"
