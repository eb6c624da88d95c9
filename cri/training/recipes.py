"""Training settings that reach training accuracy >= 0.99 from scratch: a task's own, or else the format's.

Found by search with the smallest models (see `studies/log.md`); a command takes them unless told otherwise.
"""

from __future__ import annotations

from typing import Any

from cri.checks import checked
from cri.config import RunConfig, TrainConfig
from cri.models.presets import is_preset
from cri.tasks import task_class

_BY_FORMAT = {
    "direct": TrainConfig(),
    "scratchpad": TrainConfig(steps=1500, batch_size=128, lr=4e-3),
    "shuffled_scratchpad": TrainConfig(steps=3000, batch_size=128, lr=4e-3),
    "rfft": TrainConfig(steps=1500, batch_size=32, lr=2e-3),
}
"""Where the task has none of its own (`Task.recipes`)."""

_BY_MODEL: dict[str, dict[str, Any]] = {
    "gpt2-shape": {"lr": 3e-4, "precision": "bf16"},
    "gpt2-medium-shape": {"lr": 2e-4, "precision": "bf16"},
}
"""Settings of the large shapes that replace these: a lower learning rate, and bf16 (on a GPU)."""
_PRETRAINED: dict[str, Any] = {"lr": 1e-4}
"""The paper's for GPT-2."""


@checked
def recipe(task: str, fmt: str = "direct", **fields: Any) -> RunConfig:
    """The run of `task` in format `fmt` with its settings; `fields` replace those of `RunConfig` or
    `TrainConfig`."""
    train = task_class(task).recipes.get(fmt, _BY_FORMAT.get(fmt, TrainConfig()))
    config = RunConfig(task=task, format=fmt, train=train)
    model = fields.get("model", config.model)
    own = _BY_MODEL.get(model, {}) if is_preset(model) else _PRETRAINED
    return config.replace(**(own | fields))
