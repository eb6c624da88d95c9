"""The step of large models on a CPU: the plain step without the work that changes nothing.

Three things cost most of a fine-tuning step of a pretrained model in the direct format, and none of them is needed:
logits of the whole vocabulary at tokens that are not scored, layers below the first trained one, and casts of frozen
weights to bfloat16 at every step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from cri.checks import machine_memory
from cri.config import TrainConfig
from cri.models.attention import has_dropout, last_layer_where_scored, training_kind
from cri.models.partial import Prefix, frozen_below, frozen_in_bf16, layers_of, replaced_layers, scored_alone
from cri.models.positions import positions_of
from cri.training.steps import Batches, PlainStep, TracedStep, Way, choose_way

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LARGE_VOCABULARY = 4096
"""From so many words on, it pays to leave out logits; the package's own tokenizers have some 600."""
AT_ONCE = 64
"""Cases of which the frozen layers are computed at once."""


class LeanStep(PlainStep):
    """`PlainStep` with logits of scored tokens alone, frozen layers at the bottom computed once a case, and frozen
    matrices kept in bfloat16 where the step computes in it.

    The hidden states of all training cases are held if they fit into an eighth of the machine's memory; else the
    frozen layers are computed at every step, without gradients.
    """

    def __init__(self, model: PreTrainedModel, batches: Batches, config: TrainConfig) -> None:
        super().__init__(model, batches, config)
        self._prefix: Prefix | None = None
        self.n_spared = frozen_below(model)
        if self._bytes_held(int(batches.order.max()) + 1) > machine_memory() / 8:
            self.n_spared = 0

    def _bytes_held(self, n_cases: int) -> int:
        return 4 * n_cases * (self.batches.ids.shape[1] - 1) * self.model.config.hidden_size

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        bf16 = frozen_in_bf16(self.model) if self.precision == "bf16" else contextlib.nullcontext()
        with bf16:
            layers = layers_of(self.model)
            if layers is None or self.n_spared == 0:
                yield
                return
            if self._prefix is None:
                self._prefix = self._computed_once()
            with replaced_layers(layers, self._prefix, *list(layers)[self.n_spared :]):
                yield

    @torch.no_grad()
    def _computed_once(self) -> Prefix:
        """The frozen layers' output for every training case."""
        layers = layers_of(self.model)
        assert layers is not None
        prefix, inputs = Prefix(), self.batches.ids[:, :-1]
        used = torch.from_numpy(self.batches.order).unique()
        hidden = torch.zeros(len(inputs), inputs.shape[1], self.model.config.hidden_size)
        was_training = self.model.training
        self.model.eval()
        kind = training_kind(self.device, inputs.shape[1], traced=False)
        with replaced_layers(layers, *list(layers)[: self.n_spared], prefix), self.context(kind):
            for part in used.split(AT_ONCE):
                self.model(input_ids=inputs[part], use_cache=False, logits_to_keep=1)
                assert prefix.seen is not None
                hidden[part] = prefix.seen.float()
        self.model.train(was_training)
        prefix.hidden, prefix.seen = hidden, None
        return prefix

    def backward(self, cases: Int[Tensor, " part"], width: int, n_targets: Tensor) -> Tensor:
        ids, labels = self.batches.ids[cases, :width], self.batches.labels[cases, 1:width]
        if self._prefix is not None:
            self._prefix.rows = cases
        scored, n_inputs = labels != -100, width - 1
        keep = n_inputs - (self.batches.first - 1)
        with (
            self.context(training_kind(self.device, width, traced=False)),
            last_layer_where_scored(self.model, n_inputs, keep),
            scored_alone(self.model, scored),
        ):
            logits = self.model(input_ids=ids[:, :-1], use_cache=False).logits
            loss = F.cross_entropy(logits.float(), labels[scored], reduction="sum") / n_targets
            loss.backward()
        return loss.detach()

    def release(self) -> None:
        self._prefix = None
        super().release()


def spares_work(model: PreTrainedModel, batches: Batches) -> bool:
    """Whether `LeanStep` is to be taken where nothing else is asked for: on a CPU, of a model with a large vocabulary
    or with frozen layers at the bottom. (On a GPU a step is a graph, whose shapes may not depend on the batch.)"""
    if batches.device.type != "cpu" or model.get_output_embeddings() is None:
        return False
    return model.config.vocab_size >= LARGE_VOCABULARY or frozen_below(model) > 0


def make_step(
    model: PreTrainedModel, batches: Batches, config: TrainConfig, way: Way | None = None, checkpointing: bool = False
) -> PlainStep:
    """The step of a run, the quickest where no `way` is asked for.

    Checkpointed layers cannot be traced, traced dropout does not survive compilation everywhere, and what a window of
    positions leaves out depends on the batch, which a trace could not know: such steps are taken plainly.
    """
    special = checkpointing or positions_of(model) is not None
    if not special and way in (None, "lean") and spares_work(model, batches):
        return LeanStep(model, batches, config)
    if special or has_dropout(model) or way == "lean":
        way = "plain"
    way = way or choose_way(model, batches, config)
    if way == "plain":
        return PlainStep(model, batches, config)
    return TracedStep(model, batches, config, compiled=way == "compiled")
