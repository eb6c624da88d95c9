"""A one-layer transformer without LayerNorm, from a file of weights: the shape of published models of modular addition.

The saved runs of Nanda et al. (2023), *Progress measures for grokking via mechanistic interpretability*, have this
shape. Weights are read from safetensors: nothing is unpickled.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cri.errors import CriError

NAMES = (
    "embed.W_E", "pos_embed.W_pos", "attn.W_Q", "attn.W_K", "attn.W_V", "attn.W_O", "mlp.W_in", "mlp.b_in", "mlp.W_out",
    "mlp.b_out", "unembed.W_U",
)  # fmt: skip


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights by name, float32, without a prefix such as `blocks.0.`; raises `CriError` naming what is missing."""
    from safetensors.torch import load_file

    try:
        found = load_file(path)
    except Exception as error:  # safetensors raises its own class, and OSError for a missing file
        raise CriError(f"model: cannot read {path} as safetensors ({str(error).splitlines()[0]})") from error
    weights = {name.removeprefix("blocks.0."): tensor.float() for name, tensor in found.items()}
    if missing := [name for name in NAMES if name not in weights]:
        raise CriError(f"model: {path} lacks {', '.join(missing)}; it is no one-layer transformer of this shape")
    return weights


@torch.no_grad()
def pair_logits(weights: dict[str, Tensor], p: int) -> Float[np.ndarray, "a b answer"]:
    """Logits of the answers 0 .. p - 1 at the end of the prompt `a b =` (`=` is token p), for every a and b."""
    embed, place = weights["embed.W_E"], weights["pos_embed.W_pos"]
    if embed.shape[1] < p + 1:
        raise CriError(f"p: the model has {embed.shape[1]} tokens; {p} needs {p + 1}")
    a = torch.arange(p).repeat_interleave(p)
    tokens = torch.stack([a, torch.arange(p).repeat(p), torch.full_like(a, p)], dim=1)
    x = embed.T[tokens] + place[: tokens.shape[1]]
    q, k, v = (torch.einsum("hed,cpd->chpe", weights[f"attn.W_{name}"], x) for name in "QKV")
    scores = (q[:, :, -1:] @ k.mT) / q.shape[-1] ** 0.5  # the last position sees all of the prompt
    heads = scores.softmax(-1) @ v
    last = x[:, -1] + heads[:, :, 0].flatten(1) @ weights["attn.W_O"].T
    hidden = torch.relu(last @ weights["mlp.W_in"].T + weights["mlp.b_in"])
    last = last + hidden @ weights["mlp.W_out"].T + weights["mlp.b_out"]
    return (last @ weights["unembed.W_U"])[:, :p].reshape(p, p, p).numpy()
