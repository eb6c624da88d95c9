"""Configuration of one run. Free of torch, so that command lines answer `--help` quickly."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal

from tyro.conf import Suppress

from cri.checks import check_dataclass
from cri.errors import CorruptRunError, CriError, out_of_range


@dataclass(frozen=True)
class TrainConfig:
    """Optimisation of one run. AdamW, linear warm-up, cosine decay to zero."""

    steps: int = 4000
    batch_size: int = 256
    lr: float = 3e-3
    warmup: float = 0.05
    """Fraction of the steps over which the learning rate rises."""
    weight_decay: float = 0.0
    beta2: float = 0.99
    grad_clip: float = 1.0
    """Norm that longer gradients are scaled down to; 0 for none."""
    loss_on: Literal["completion", "all"] = "completion"
    """`all` also scores the prompt (the paper's public code)."""
    micro_batch: int = 0
    """Sequences per forward pass; 0 takes the whole batch at once (gradient accumulation otherwise)."""
    gradient_checkpointing: bool = False
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """`tf32` multiplies matrices with 10-bit mantissas on GPUs that can (elsewhere it is `fp32`); `bf16` computes the
    forward pass under autocast. Weights and optimiser stay in float32."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_dataclass(self)
        for name, low in (("steps", 1), ("batch_size", 1), ("micro_batch", 0)):
            if getattr(self, name) < low:
                raise out_of_range(name, getattr(self, name), f"at least {low}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise out_of_range("lr", self.lr, "positive")
        for name in ("warmup", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise out_of_range(name, getattr(self, name), "in [0, 1)")
        for name, allowed in (("grad_clip", "at least 0 (0 for none)"), ("weight_decay", "at least 0")):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise out_of_range(name, getattr(self, name), allowed)
        for name, valid in (("loss_on", ("completion", "all")), ("precision", ("fp32", "tf32", "bf16"))):
            if getattr(self, name) not in valid:
                raise out_of_range(name, getattr(self, name), f"one of {', '.join(valid)}")


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's numbers; its hash names the run's folder."""

    task: str = "addition"
    task_params: Suppress[dict[str, Any]] = field(default_factory=dict)
    """Parameters of the task; the paper's where not given."""
    format: str = "direct"
    split: str = "square"
    split_params: Suppress[dict[str, Any]] = field(default_factory=dict)
    tokenizer: str = "number"
    """`number`, `digit` or `list`; a pretrained model brings its own and ignores this."""
    model: str = "nano"
    """A preset, a folder written by save_pretrained, `smollm2-135m`, or a hub id."""
    lora: bool = False
    """Train low-rank adapters only (merged when the run is saved)."""
    lora_params: Suppress[dict[str, Any]] = field(default_factory=dict)
    """Settings of the adapters: r (8), alpha (16), dropout (0.05)."""
    last_layers: int = 0
    """Train the last so many layers and the final norm, or with `lora` the adapters there, and nothing else; 0 for all
    layers."""
    positions: Literal["plain", "none", "random", "structured"] = "plain"
    """What a token's position is: its order, nothing, its order with random gaps, or line, variable and index in the
    list (`cri.models.positions`)."""
    position_params: Suppress[dict[str, Any]] = field(default_factory=dict)
    """Options of random or structured positions."""
    decoded: int = 0
    """Cases of each part (training, held out) that are decoded when training ends, drawn at random; 0 for all."""
    train: TrainConfig = field(default_factory=TrainConfig)

    @property
    def seed(self) -> int:
        return self.train.seed

    @property
    def name(self) -> str:
        """Readable part of the folder's name; of a model given by path or hub id, the last part alone."""
        model = PurePath(self.model).name
        return f"{self.task}-{self.format}-{self.split}-{model}-{self.tokenizer}-s{self.seed}"

    def __post_init__(self) -> None:
        check_dataclass(self)
        for name in ("decoded", "last_layers"):
            if getattr(self, name) < 0:
                raise out_of_range(name, getattr(self, name), "at least 0")
        if self.lora_params and not self.lora:
            raise CriError("lora_params: these are settings of adapters; give --lora too")

    def to_dict(self) -> dict[str, Any]:
        """JSON form. Fields that came later are left out at their defaults, so that earlier runs keep their hashes."""
        data = dataclasses.asdict(self)
        later = {"positions": "plain", "position_params": {}, "decoded": 0, "lora_params": {}, "last_layers": 0}
        return {key: value for key, value in data.items() if key not in later or value != later[key]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunConfig:
        """Inverse of `to_dict`; a file with other fields was made by another version."""
        try:
            return cls(**{**data, "train": TrainConfig(**data["train"])})
        except (TypeError, ValueError, KeyError) as error:  # a `CriError` is a ValueError
            raise CorruptRunError(f"run: config.json does not fit this version ({error}); train again") from error

    def replace(self, **changes: Any) -> RunConfig:
        """A copy with changed fields; those of `TrainConfig` may be given directly."""
        own = {f.name for f in dataclasses.fields(self)}
        inner = {k: v for k, v in changes.items() if k not in own}
        outer = {k: v for k, v in changes.items() if k in own}
        if inner:
            outer["train"] = dataclasses.replace(outer.get("train", self.train), **inner)
        return dataclasses.replace(self, **outer)
