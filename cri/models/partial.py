"""Training a part of a model: which layers, what the frozen rest computes once, and where it lies in bfloat16.

Nothing here changes what a step computes, up to rounding: frozen layers below the first trained one give the same
hidden states at every step, so they are computed once a case (as is done for the frozen features of any probe).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cri.errors import CriError, out_of_range

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def layers_of(model: nn.Module) -> nn.ModuleList | None:
    """The blocks of the model in order, None where the architecture keeps them otherwise."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) and hasattr(module[-1], "mlp"):
            return module
    return None


def require_layers(model: nn.Module, n: int) -> nn.ModuleList:
    """The blocks of a model of which the last `n` are to be trained; raises `CriError` where there are not so many."""
    layers = layers_of(model)
    if layers is None:
        raise CriError("last_layers: this architecture has no list of layers; give 0 to train all of it")
    if n > len(layers):
        raise out_of_range("last_layers", n, f"in 0..{len(layers)}, the model's layers (0 for all of the model)")
    return layers


def train_last_layers(model: PreTrainedModel, n: int) -> PreTrainedModel:
    """Freezes all but the last `n` layers and the final norm; embeddings and head (often one matrix) stay as they
    are. Raises `CriError` where the model has not so many layers."""
    layers = require_layers(model, n)
    model.requires_grad_(False)
    for layer in list(layers)[len(layers) - n :]:
        layer.requires_grad_(True)
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in ("norm", "ln_f", "final_layer_norm"):
            module.requires_grad_(True)
    return model


def frozen_below(model: nn.Module) -> int:
    """Layers at the bottom that no gradient reaches: none of their parameters is trained, nor is the embedding."""
    layers = layers_of(model)
    embedding: Any = model.get_input_embeddings()  # pyright: ignore[reportCallIssue]
    if layers is None or any(p.requires_grad for p in embedding.parameters()):
        return 0
    trained = [i for i, layer in enumerate(layers) if any(p.requires_grad for p in layer.parameters())]
    return min(trained, default=len(layers))


class Prefix(nn.Module):
    """Stands in for the lowest layers: returns what they would, for the cases whose turn it is.

    Attributes:
        hidden: the residual stream after those layers, [case, pos, d_model].
        rows: the rows of `hidden` that the next forward pass is about; None passes the input through, as `seen`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hidden: Float[Tensor, "case pos d_model"] | None = None
        self.rows: Int[Tensor, " batch"] | None = None
        self.seen: Tensor | None = None

    def forward(self, hidden_states: Tensor, *args: Any, **options: Any) -> Tensor:
        if self.hidden is None or self.rows is None:
            self.seen = hidden_states
            return hidden_states
        return self.hidden[self.rows, : hidden_states.shape[1]]


@contextlib.contextmanager
def replaced_layers(layers: nn.ModuleList, *parts: nn.Module) -> Iterator[None]:
    """Within the block the model has these layers instead; names of parameters are those of before only after it."""
    whole = list(layers)
    try:
        del layers[:]
        layers.extend(parts)
        yield
    finally:
        del layers[:]
        layers.extend(whole)


@contextlib.contextmanager
def frozen_in_bf16(model: nn.Module) -> Iterator[None]:
    """Within the block frozen matrices of products are bfloat16, as autocast would make them at every step.

    An embedding that is tied to the head keeps its float32 numbers: the head alone is given a copy.
    """
    from transformers.pytorch_utils import Conv1D

    kept: list[tuple[nn.Module, nn.Parameter]] = []
    copies: dict[int, nn.Parameter] = {}
    try:
        for module in model.modules():
            weight = getattr(module, "weight", None)
            if not isinstance(module, nn.Linear | Conv1D) or not isinstance(weight, nn.Parameter):
                continue
            if weight.requires_grad or weight.dtype != torch.float32:
                continue
            if id(weight) not in copies:
                copies[id(weight)] = nn.Parameter(weight.detach().bfloat16(), requires_grad=False)
            kept.append((module, weight))
            module.weight = copies[id(weight)]  # pyright: ignore[reportAttributeAccessIssue]
        yield
    finally:
        for module, weight in kept:
            module.weight = weight  # pyright: ignore[reportAttributeAccessIssue]


@contextlib.contextmanager
def scored_alone(model: PreTrainedModel, rows: Tensor) -> Iterator[None]:
    """Within the block the head is applied where the mask `rows` [batch, pos] is true, and nowhere else: logits are
    [scored token, vocab]. With 49,152 words a token's logits cost as much as eight of its layers."""
    head: Any = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda module, args: (args[0][rows],))
    try:
        yield
    finally:
        handle.remove()
