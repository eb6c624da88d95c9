"""The training loss: cross-entropy of the scored tokens, with no work on what is not scored."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from cri.data.token_table import TokenTable
from cri.models.attention import last_layer_where_scored

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


class Loss(torch.nn.Module):
    """`summed_loss` as a module, so that its model's parameters can be passed in."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, labels: Tensor, first: int) -> Tensor:
        return summed_loss(self.model, ids, labels, first)
