"""R models of one shape trained together: parameters stacked, the forward pass under `vmap`.

All parameters of all models lie in one matrix, [replica, parameter]. A training step is then one batched
forward and backward pass and one pass of AdamW over that matrix, with a gradient norm, a learning rate and
a weight decay for each row: what each model computes does not depend on the others.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call, vmap

from cri.config import TrainConfig
from cri.data.token_table import TokenTable
from cri.errors import CriError
from cri.models.attention import Kind, has_dropout, last_layer_where_scored, stacked_kind, unmasked
from cri.models.device import autocast, bucket, matmul_precision, rounding, whole_tiles
from cri.training.batches import BatchStream, learning_rates
from cri.training.checkpoints import read_checkpoint, require_identity, write_checkpoint
from cri.training.compilation import GraphedStep, Traced
from cri.training.loss import labels_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ALIGN = 8
"""Parameters start at multiples of this many elements, as matrix kernels want them."""


class Layout:
    """Where each parameter of a model lies in its row of the stacked matrix."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.names = [name for name, _ in model.named_parameters()]
        self.shapes = [p.shape for _, p in model.named_parameters()]
        self.sizes = [math.ceil(s.numel() / _ALIGN) * _ALIGN for s in self.shapes]
        self.width = sum(self.sizes)

    def flatten(self, model: PreTrainedModel) -> Float[Tensor, " parameter"]:
        """The model's parameters as one row."""
        row = torch.zeros(self.width)
        for part, (_, p) in zip(row.split(self.sizes), model.named_parameters(), strict=True):
            part[: p.numel()] = p.detach().reshape(-1).float().cpu()
        return row

    def views(self, flat: Float[Tensor, "replica parameter"]) -> dict[str, Tensor]:
        """The stacked matrix as named parameters, [replica, *shape]; gradients flow back to it."""
        parts = flat.split(self.sizes, dim=1)
        return {
            name: part[:, : shape.numel()].unflatten(1, shape)
            for name, shape, part in zip(self.names, self.shapes, parts, strict=True)
        }

    def stack(self, named: Mapping[str, Tensor]) -> Float[Tensor, "replica parameter"]:
        """Inverse of `views`."""
        n = len(next(iter(named.values())))
        flat = torch.zeros(n, self.width)
        for name, part in zip(self.names, flat.split(self.sizes, dim=1), strict=True):
            value = named[name].reshape(n, -1)
            part[:, : value.shape[1]] = value
        return flat

    def load(self, row: Float[Tensor, " parameter"], model: PreTrainedModel) -> None:
        """Writes one row into `model`; inverse of `flatten`."""
        with torch.no_grad():
            for part, (_, p) in zip(row.split(self.sizes), model.named_parameters(), strict=True):
                p.copy_(part[: p.numel()].view(p.shape))


def check_stackable(model: PreTrainedModel) -> None:
    """Raises `CriError` for a model with active dropout (its noise has no seed of its own per replica)."""
    if has_dropout(model):
        raise CriError("model: replicas need a model without dropout; use a preset")


class StackedForward:
    """The forward pass of every replica at once.

    Args:
        template: a model of the shape, on the device; its own weights do not matter.
        layout: of that shape.
        precision: as in `TrainConfig`, for `loss`.
        compiled: pass `loss` through torch.compile.
    """

    def __init__(self, template: PreTrainedModel, layout: Layout, precision: str, compiled: bool = False) -> None:
        self.template = template
        self.layout = layout
        self.precision = precision
        self.compiled = compiled
        self._losses: dict[tuple[int, Kind], Traced] = {}

    def loss(
        self,
        flat: Float[Tensor, "replica parameter"],
        ids: Int[Tensor, "replica batch pos"],
        labels: Int[Tensor, "replica batch pos"],
        first: int,
    ) -> Float[Tensor, " replica"]:
        """Cross-entropy of each replica's own batch, summed over labelled positions from `first` on."""
        kind = stacked_kind(ids.shape[2], self.compiled)
        if (first, kind) not in self._losses:

            def one(parameters: dict[str, Tensor], ids: Tensor, labels: Tensor) -> Tensor:
                # the last token is only ever predicted
                logits = self._logits(parameters, ids[:, :-1], ids.shape[1] - first).float()
                targets = labels[:, first:]
                picked = logits.gather(-1, targets.clamp_min(0)[..., None])[..., 0]
                return ((logits.logsumexp(-1) - picked) * (targets != -100)).sum()

            @contextlib.contextmanager
            def context() -> Iterator[None]:
                with unmasked(self.template, kind), autocast(flat.device, self.precision):
                    yield

            self._losses[first, kind] = Traced(vmap(one), context, self.compiled, rounding(self.precision))
        return self._losses[first, kind](self.layout.views(flat), ids, labels)

    @torch.no_grad()
    def logits(
        self, flat: Float[Tensor, "replica parameter"], ids: Int[Tensor, "replica batch pos"], first: int
    ) -> Float[Tensor, "replica batch out vocab"]:
        """Logits after positions `first`.., in float32 throughout."""

        def one(parameters: dict[str, Tensor], ids: Tensor) -> Tensor:
            return self._logits(parameters, ids, ids.shape[1] - first)

        # called with many shapes a few times each: tracing would cost more than it saves
        kind = stacked_kind(ids.shape[2])
        with unmasked(self.template, kind), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop because we have not yet")
            return vmap(one)(self.layout.views(flat), ids)

    def _logits(self, parameters: dict[str, Tensor], ids: Tensor, keep: int) -> Tensor:
        inputs = {"input_ids": ids, "use_cache": False, "logits_to_keep": keep}
        head: Any = self.template.get_output_embeddings()  # a causal language model has one
        # of the slice that `logits_to_keep` leaves, matmul under vmap would copy the head once for each sequence
        hook = head.register_forward_pre_hook(lambda module, args: (args[0].contiguous(),))
        try:
            with last_layer_where_scored(self.template, ids.shape[1], keep):
                return functional_call(self.template, parameters, (), inputs).logits
        finally:
            hook.remove()


def adamw_(
    flat: Float[Tensor, "replica parameter"],
    grad: Float[Tensor, "replica parameter"],
    mean: Float[Tensor, "replica parameter"],
    square: Float[Tensor, "replica parameter"],
    scale: Float[Tensor, "replica 1"],
    lr: Float[Tensor, "replica 1"],
    decay: Float[Tensor, "replica 1"],
    correction2: Float[Tensor, ""],
    beta2: float,
) -> None:
    """One step of AdamW (beta1 0.9, eps 1e-8) in place, on gradients times `scale`.

    `lr` is divided by its bias correction already, `decay` is what weights are multiplied by, `correction2` the
    root of the second moment's bias correction.
    """
    grad = grad * scale
    mean.lerp_(grad, 0.1)
    square.mul_(beta2).add_(grad * grad, alpha=1 - beta2)
    flat.mul_(decay).sub_(lr * (mean / (square.sqrt() / correction2 + 1e-8)))


@dataclass(frozen=True)
class Member:
    """What distinguishes one model of a stack.

    Attributes:
        initial: its starting weights (see `Layout.flatten`).
        train_ids: the cases it is trained on.
        seed: seeds the order of its batches.
        lr, weight_decay: its optimiser settings.
        batch_size: cases a step.
    """

    initial: Float[Tensor, " parameter"]
    train_ids: Int[np.ndarray, " train"]
    seed: int
    lr: float
    weight_decay: float
    batch_size: int


class StackedTrainer:
    """The state of one joint training: weights and optimiser state of all members, step, logged losses.

    Args:
        template: a model of the shape; its own weights do not matter. Moved to `device`.
        layout: of that shape.
        tokens: the grid.
        members: the models to train.
        config: as for one model; `seed`, `lr`, `weight_decay` and `batch_size` are taken from the members instead.
            `micro_batch` and `gradient_checkpointing` have no effect here: fewer members at a time save memory.
        device: where.
        compiled: pass forward, backward and AdamW through torch.compile.
        log_every: steps over which losses are averaged.
    """

    def __init__(
        self,
        template: PreTrainedModel,
        layout: Layout,
        tokens: TokenTable,
        members: Sequence[Member],
        config: TrainConfig,
        device: torch.device | str,
        *,
        compiled: bool = False,
        log_every: int = 50,
    ) -> None:
        check_stackable(template)
        self.device = torch.device(device)
        self.config = config
        self.layout = layout
        self.log_every = log_every
        self.template = template.to(self.device).eval().requires_grad_(False)  # pyright: ignore[reportArgumentType]
        self.forward = StackedForward(self.template, layout, config.precision, compiled)
        self.flat = torch.stack([m.initial for m in members]).to(self.device).requires_grad_()
        # one matrix [replica, parameter]: clipping and AdamW are then a few operations on it, however many models
        self.mean, self.square = torch.zeros_like(self.flat), torch.zeros_like(self.flat)
        self.streams = [BatchStream(m.train_ids, tokens.lengths.numpy(), m.batch_size, m.seed) for m in members]
        self.batch = whole_tiles(max(s.size for s in self.streams), self.device)  # what is added is masked out
        self.ids = tokens.ids.to(self.device)
        self.labels = labels_of(tokens, config.loss_on).to(self.device)
        self.lengths = tokens.lengths.numpy()
        self.first = int(tokens.prompt_lengths.min()) if config.loss_on == "completion" else 1
        as_vector = {"dtype": torch.float32, "device": self.device}
        self.lr = torch.tensor([m.lr for m in members], **as_vector)
        self.weight_decay = torch.tensor([m.weight_decay for m in members], **as_vector)
        # members may have different peak learning rates, but share one schedule
        self.schedule = torch.tensor(learning_rates(config.steps, config.lr, config.warmup) / config.lr, **as_vector)
        self.step = 0
        self.done = torch.zeros((), dtype=torch.long, device=self.device)  # `step`, where the device reads it
        self.running = torch.zeros(len(members), device=self.device)
        self.losses = torch.zeros(math.ceil(config.steps / log_every), len(members), device=self.device)
        # batches of some steps ahead, at most 64 MiB: one copy from the host, after which the device waits for nothing
        self.chunk = max(1, min(config.steps, (64 << 20) // (4 * len(members) * self.batch)))
        self.rows = torch.zeros(self.chunk, len(members), self.batch, dtype=torch.int32, device=self.device)
        self._chunk_start = -1  # first step of the chunk that `rows` holds
        self._widths: list[int] = []
        self._update = torch.compile(adamw_, dynamic=False) if compiled else adamw_
        self._graphed = GraphedStep(self._train_step, self.device)

    def _train_step(self, width: Any) -> None:
        """One step of all members, reading only from the device."""
        rows = self.rows.index_select(0, (self.done % self.chunk)[None])[0]
        absent = rows < 0  # smaller batches are filled up, as all members must have one shape
        rows = rows.clamp_min(0).long()
        ids = self.ids[rows, :width]
        labels = self.labels[rows, :width].masked_fill(absent[..., None], -100)
        n_targets = (labels[..., self.first :] != -100).sum((1, 2))
        losses = self.forward.loss(self.flat, ids, labels, self.first) / n_targets
        # no member's loss depends on another's row, so that the gradient of the sum is that of each
        (grad,) = torch.autograd.grad(losses.sum(), self.flat)
        lr = self.schedule.index_select(0, self.done[None]) * self.lr
        with torch.no_grad():
            self.running += losses.detach()
            self.done += 1
            self._apply(grad, lr)

    def _apply(self, grad: Tensor, lr: Float[Tensor, " replica"]) -> None:
        """Each row's gradient is scaled down to norm `grad_clip` (as `clip_grad_norm_` does for one model), then
        AdamW."""
        step, beta2 = self.done.double(), self.config.beta2
        scale = torch.ones_like(lr)
        if self.config.grad_clip > 0:
            scale = (self.config.grad_clip / (torch.linalg.vector_norm(grad, dim=1) + 1e-6)).clamp(max=1.0)
        rate, decay = lr / (1 - 0.9**step).float(), 1 - lr * self.weight_decay
        correction2 = (1 - beta2**step).sqrt().float()
        moments = (self.flat.detach(), grad, self.mean, self.square)
        factors = (scale[:, None], rate[:, None], decay[:, None], correction2, beta2)
        try:
            self._update(*moments, *factors)
        except Exception as error:
            if self._update is adamw_ or isinstance(error, torch.cuda.OutOfMemoryError):
                raise
            warnings.warn(f"torch.compile failed for AdamW, going on without: {error}", stacklevel=2)
            self._update = adamw_
            adamw_(*moments, *factors)

    def _load_rows(self, start: int) -> list[int]:
        """Puts the batches of the chunk that begins at step `start` on the device, unless they are there; returns their
        widths."""
        if start == self._chunk_start:
            return self._widths
        stop = min(start + self.chunk, self.config.steps)
        host = np.full((stop - start, *self.rows.shape[1:]), -1, dtype=np.int32)
        for r, stream in enumerate(self.streams):
            host[:, r, : stream.size] = stream.batches(start, stop)
        self.rows[: stop - start].copy_(torch.from_numpy(host))
        longest = self.ids.shape[1]
        if bucket(int(self.lengths.min()), longest) == longest:  # the only width there is
            widths = np.full(stop - start, longest)
        else:
            widths = np.where(host < 0, 0, self.lengths[host]).max(axis=(1, 2))
        self._chunk_start, self._widths = start, [bucket(int(w), longest) for w in widths]
        return self._widths

    def run(self, until: int, on_log: Callable[[int], None] | None = None) -> None:
        """Trains up to (not including) step `until`; `on_log` is called with the step, at logged steps."""
        until = min(until, self.config.steps)
        with matmul_precision(self.config.precision):
            while self.step < until:
                start = self.step - self.step % self.chunk
                widths = self._load_rows(start)
                for width in widths[self.step - start : until - start]:
                    self._graphed(width)
                    self.step += 1
                    if self.step % self.log_every == 0 or self.step == self.config.steps:
                        index = (self.step - 1) // self.log_every
                        self.losses[index] = self.running / (self.step - index * self.log_every)
                        self.running.zero_()
                        if on_log:
                            on_log(self.step)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def model(self, replica: int, into: PreTrainedModel) -> PreTrainedModel:
        """`into`, a model of the shape, with the replica's present weights."""
        self.layout.load(self.flat[replica].detach().cpu(), into)
        return into

    def release(self) -> None:
        """Gives the memory of graphs and optimiser back; no step can follow."""
        self._graphed.release()
        del self._graphed, self.mean, self.square

    def save(self, path: Path, identity: Mapping[str, str]) -> None:
        """Writes the state to one safetensors file, atomically; `restore` compares `identity`."""
        state = {"flat": self.flat.detach(), "mean": self.mean, "square": self.square}
        state |= {"losses": self.losses, "running": self.running}
        write_checkpoint(path, {k: v.cpu() for k, v in state.items()}, {**identity, "step": str(self.step)})

    def restore(self, path: Path, identity: Mapping[str, str]) -> None:
        """Inverse of `save`; raises `CorruptRunError` for a damaged file or one of other members."""
        tensors, meta = read_checkpoint(path)
        require_identity(path, meta, identity)
        own = {"flat": self.flat, "mean": self.mean, "square": self.square, "losses": self.losses}
        with torch.no_grad():
            for name, tensor in {**own, "running": self.running}.items():
                tensor.copy_(tensors[name])
        self.step = int(meta["step"])
        self.done.fill_(self.step)
