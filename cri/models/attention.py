"""Forward passes that compute no more than they must: attention without padding masks, a last layer only where scored.

The package's sequences are padded on the right only, so causal attention needs no mask at all. For the attention
functions registered here, transformers builds no mask. It then does not inspect the data in every forward pass
either, which would wait for the device, as CUDA graphs and `vmap` do not allow. Structured positions bring a mask
of their own (`cri.models.positions`), boolean, True where a query may attend.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from cri.models.partial import layers_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHORT = 32
"""Up to this many positions attention is written out: library kernels work in tiles of 64 or more."""
Kind = Literal["library", "kernels", "products", "pairs", "sums"]
"""`library`: scaled_dot_product_attention. `kernels`: its GPU kernels by name, for traces: traced without gradients,
the library keeps nothing for the backward pass. `products`: matrix products and a softmax, for short sequences.
`pairs`: products of every query with every key, summed by head in one matrix product: the quickest on CPU for a
few queries. `sums`: broadcast products and sums alone, which a compiler fuses into one kernel."""


def training_kind(device: torch.device, width: int, traced: bool) -> Kind:
    """The quickest kind for training one model on texts of `width` tokens."""
    if device.type != "cuda":
        return "library"
    return "products" if width <= SHORT else "kernels" if traced else "library"


def stacked_kind(width: int, compiled: bool = False) -> Kind:
    """The quickest kind for a stack of models that can be launched: on a GPU, the library's takes no more than 65,535
    sequences, and traced without gradients it does not keep the logsumexp that its backward pass needs."""
    return "sums" if compiled and width <= SHORT else "products"


def causal_attention(
    query: Float[Tensor, "batch head q d"],
    key: Float[Tensor, "batch kv k d"],
    value: Float[Tensor, "batch kv k d"],
    scaling: float,
    kind: Kind,
    dropout: float = 0.0,
) -> Float[Tensor, "batch head q d"]:
    """Softmax(q k^T scaling) v, the last query being aligned with the last key; `dropout` is the share of the weights
    that is left out at random."""
    n_queries, n_keys = query.shape[-2], key.shape[-2]
    query, key = query.to(value.dtype), key.to(value.dtype)  # rotation leaves float32 under autocast
    if kind == "library" and n_queries in (1, n_keys):
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            dropout_p=dropout,
            is_causal=n_queries > 1,
            scale=scaling,
            enable_gqa=key.shape[1] != query.shape[1],
        )
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    if kind == "kernels" and n_queries == n_keys and query.shape[-1] % 8 == 0:
        return _kernel(query, key, value, scaling, dropout)
    position = torch.arange(n_keys, device=query.device)
    future = position > position[n_keys - n_queries :, None]
    if kind == "sums":
        scores = (query[..., :, None, :].float() * key[..., None, :, :].float()).sum(-1) * scaling
        weights = F.dropout(scores.masked_fill(future, -torch.inf).softmax(-1), dropout, dropout > 0)
        return (weights[..., None] * value[..., None, :, :].float()).sum(-2).to(value.dtype)
    if kind == "pairs":
        return _pairs(query, key, value, future, scaling, dropout)
    scores = torch.matmul(query, key.transpose(-1, -2)).float() * scaling
    weights = F.dropout(scores.masked_fill(future, -torch.inf).softmax(-1), dropout, dropout > 0).to(value.dtype)
    return torch.matmul(weights, value)


def masked_attention(
    query: Float[Tensor, "batch head q d"],
    key: Float[Tensor, "batch kv k d"],
    value: Float[Tensor, "batch kv k d"],
    allowed: Bool[Tensor, "batch 1 q k"],
    scaling: float,
    dropout: float = 0.0,
) -> Float[Tensor, "batch head q d"]:
    """Softmax(q k^T scaling) v over the allowed keys.

    On CPU long sequences go block by block, and keys that no query of a block may attend to are left out: under a
    window that is most of them.
    """
    query, key = query.to(value.dtype), key.to(value.dtype)
    options: dict[str, Any] = {"dropout_p": dropout, "scale": scaling, "enable_gqa": key.shape[1] != query.shape[1]}
    n_queries = query.shape[-2]
    if query.device.type != "cpu" or n_queries <= _BLOCK:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, **options)
    parts = []
    for start in range(0, n_queries, _BLOCK):
        rows = allowed[:, :, start : start + _BLOCK]
        used = rows.amax((0, 1, 2)).nonzero()
        low, high = int(used[0]), int(used[-1]) + 1
        parts.append(
            F.scaled_dot_product_attention(
                query[:, :, start : start + _BLOCK],
                key[:, :, low:high],
                value[:, :, low:high],
                attn_mask=rows[..., low:high],
                **options,
            )
        )
    return torch.cat(parts, dim=2)


_BLOCK = 128
"""Queries of a block: of 64, 128 and 256 the quickest for traces of 600 tokens and windows of 120."""


def _kernel(
    query: Float[Tensor, "batch head q d"],
    key: Float[Tensor, "batch head k d"],
    value: Float[Tensor, "batch head k d"],
    scaling: float,
    dropout: float,
) -> Float[Tensor, "batch head q d"]:
    """One of the GPU's fused kernels, which return what their backward pass needs whether or not gradients are on."""
    ops: Any = torch.ops.aten
    if value.dtype in (torch.bfloat16, torch.float16):
        return ops._scaled_dot_product_flash_attention(query, key, value, dropout, True, scale=scaling)[0]
    return ops._scaled_dot_product_efficient_attention(
        query, key, value, None, True, dropout, True, scale=scaling
    )[0]  # fmt: skip


def _pairs(
    query: Float[Tensor, "batch head q d"],
    key: Float[Tensor, "batch head k d"],
    value: Float[Tensor, "batch head k d"],
    future: Bool[Tensor, "q k"],
    scaling: float,
    dropout: float,
) -> Float[Tensor, "batch head q d"]:
    heads, d = query.shape[1], query.shape[3]
    query, key, value = (x.transpose(1, 2).flatten(2) for x in (query, key, value))  # heads side by side, as they were
    of_head = torch.eye(heads, device=query.device, dtype=query.dtype).repeat_interleave(d, dim=0)
    scores = (query[:, :, None] * key[:, None]) @ of_head * scaling
    weights = F.dropout(scores.masked_fill(future[..., None], -torch.inf).softmax(2), dropout, dropout > 0)
    out = ((weights @ of_head.T) * value[:, None]).sum(2)
    return out.unflatten(2, (heads, d)).transpose(1, 2)


def _entry(kind: Kind) -> Any:
    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
    ) -> tuple[Tensor, None]:
        if attention_mask is not None and (attention_mask.dtype != torch.bool or attention_mask.ndim != 4):
            raise ValueError("attention_mask: this attention takes right-padded sequences and boolean masks")
        scaling = options.get("scaling") or float(query.shape[-1]) ** -0.5
        left_out = query.shape[2] - getattr(module, _KEEP, query.shape[2])
        chosen: Kind = kind
        if left_out and kind == "library":
            n_pairs = (query.shape[2] - left_out) * key.shape[2]
            chosen = "pairs" if query.device.type == "cpu" and n_pairs <= 64 else "products"
        dropout = options.get("dropout", 0.0) if module.training else 0.0
        query = query[:, :, left_out:]
        if attention_mask is None:
            out = causal_attention(query, key, value, scaling, chosen, dropout)
        else:
            out = masked_attention(query, key, value, attention_mask[:, :, left_out:], scaling, dropout)
        out = out.transpose(1, 2)
        return F.pad(out, (0, 0, 0, 0, left_out, 0)) if left_out else out.contiguous(), None  # pyright: ignore[reportArgumentType]

    return attend


@contextlib.contextmanager
def unmasked(model: PreTrainedModel, kind: Kind = "library") -> Iterator[None]:
    """Within the block `model` attends causally, with no mask and without looking for padding."""
    from transformers import AttentionInterface

    name = f"cri_{kind}"
    AttentionInterface.register(name, _entry(kind))
    config = model.config
    before, pad = config._attn_implementation, config.pad_token_id
    config._attn_implementation = name
    config.pad_token_id = None
    try:
        yield
    finally:
        config._attn_implementation = before
        config.pad_token_id = pad


def has_dropout(model: nn.Module) -> bool:
    """Whether the model drops anything at random in training: in modules, or (Llama) in attention itself."""
    return any(
        (isinstance(m, nn.Dropout) and m.p > 0) or getattr(m, "attention_dropout", 0.0) > 0 for m in model.modules()
    )


_KEEP = "cri_keep"
"""Attribute of an attention module: how many positions, from the end, it is asked about."""


@contextlib.contextmanager
def last_layer_where_scored(model: nn.Module, length: int, keep: int) -> Iterator[None]:
    """Within the block, the last layer's attention and MLP are computed for the last `keep` of `length` positions only.

    Earlier positions reach the scored ones through keys and values alone, so nothing that is scored changes. (In the
    direct format that is a third of a small model's work.) Needs `unmasked`.
    """
    attention, mlp = _last_layer(model)
    if mlp is None or attention is None or keep > 0.75 * length:
        yield
        return
    before = mlp.register_forward_pre_hook(lambda module, args: (args[0][..., -keep:, :].contiguous(),))
    after = mlp.register_forward_hook(lambda module, args, out: F.pad(out, (0, 0, length - keep, 0)))  # pyright: ignore[reportArgumentType]
    setattr(attention, _KEEP, keep)
    try:
        yield
    finally:
        before.remove()
        after.remove()
        delattr(attention, _KEEP)


def _last_layer(model: nn.Module) -> tuple[nn.Module | None, nn.Module | None]:
    """Attention and MLP of the last layer, None where the architecture keeps them elsewhere."""
    layers = layers_of(model)
    if layers is None:
        return None, None
    attention = getattr(layers[-1], "attn", None) or getattr(layers[-1], "self_attn", None)
    return attention, layers[-1].mlp  # pyright: ignore[reportReturnType]
