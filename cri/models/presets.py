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
    head_size: int = 0
    """Width of a `llama` block's heads; 0 is `d_model` / `n_heads`. Wider ones have more rotary frequencies."""

    @property
    def d_head(self) -> int:
        return self.head_size or self.d_model // self.n_heads


PRESETS: dict[str, Preset] = {
    "nano": Preset(2, 64, 4),
    "mini": Preset(4, 256, 8),
    "gpt2-shape": Preset(12, 768, 12),
    "gpt2-medium-shape": Preset(24, 1024, 16),
    "nano-rope": Preset(2, 64, 4, "llama"),
    "micro-rope": Preset(2, 128, 4, "llama"),
    "slim-rope": Preset(2, 128, 4, "llama", mlp_ratio=2),
    "sharp-rope": Preset(2, 128, 4, "llama", mlp_ratio=2, head_size=64),
    "mini-rope": Preset(4, 256, 8, "llama"),
    "gpt2-rope-shape": Preset(12, 768, 12, "llama"),
}


def is_preset(model: str) -> bool:
    """Whether a model of this name is trained from scratch; any other is pretrained."""
    return isinstance(model, str) and model in PRESETS
