"""Shapes of the models that are trained from scratch. Free of torch, so that command lines answer `--help` quickly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Preset:
    """Shape of a from-scratch model; `gpt2` blocks learn absolute positions, `llama` blocks rotate (RoPE)."""

    n_layers: int
    d_model: int
    n_heads: int
    block: Literal["gpt2", "llama"] = "gpt2"
    mlp_ratio: int = 4
    """Width of a `llama` block's MLP in units of `d_model`."""


PRESETS: dict[str, Preset] = {
    "nano": Preset(2, 64, 4),
    "mini": Preset(4, 256, 8),
    "gpt2-shape": Preset(12, 768, 12),
    "gpt2-medium-shape": Preset(24, 1024, 16),
    "nano-rope": Preset(2, 64, 4, "llama"),
    "micro-rope": Preset(2, 128, 4, "llama"),
    "slim-rope": Preset(2, 128, 4, "llama", mlp_ratio=2),
    "mini-rope": Preset(4, 256, 8, "llama"),
    "gpt2-rope-shape": Preset(12, 768, 12, "llama"),
}


def is_preset(model: str) -> bool:
    """Whether a model of this name is trained from scratch; any other is pretrained."""
    return isinstance(model, str) and model in PRESETS
