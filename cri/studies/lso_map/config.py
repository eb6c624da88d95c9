"""Settings and presets of `cri.studies.lso_map`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cri.config import RunConfig
from cri.errors import out_of_range
from cri.options import RunOptions
from cri.tasks import TASKS
from cri.training.recipes import recipe

NAME = "lso_map"
KEYS = ["task", "format", "tokenizer", "model", "split"]
"""What tells one map from another; seeds are averaged within a map."""


@dataclass(frozen=True)
class LsoMapConfig(RunOptions):
    """Which runs to map. Each is trained by its task's recipe unless `steps` says otherwise."""

    tasks: tuple[str, ...] = ("addition",)
    formats: tuple[str, ...] = ("direct",)
    tokenizers: tuple[str, ...] = ("number",)
    models: tuple[str, ...] = ("nano",)
    splits: tuple[str, ...] = ("square", "random")
    seeds: tuple[int, ...] = (0,)
    size: int = 0
    """Grid size; 0 is the paper's."""
    half_side: int = 10
    """Half side of the held-out square."""
    steps: int = 0
    """Training steps; 0 is the recipe's."""
    samples: int = 0
    """Answers sampled at temperature 1 for every case, beside the greedy one; the paper's maps take 10."""
    use: tuple[Path, ...] = ()
    """Folders of finished runs to map instead (fine-tuned ones, say); `size` and `half_side` must be theirs."""
    name: str = "cpu"
    """Names the folder of tables and the figures."""

    def __post_init__(self) -> None:
        if self.samples < 0:
            raise out_of_range("samples", self.samples, "at least 0")

    def run_configs(self) -> Iterator[RunConfig]:
        """One config a run, in the order of the tables."""
        axes = (self.tasks, self.formats, self.tokenizers, self.models, self.splits, self.seeds)
        return itertools.starmap(self._run_config, itertools.product(*axes))

    def _run_config(self, task: str, fmt: str, tokenizer: str, model: str, split: str, seed: int) -> RunConfig:
        config = recipe(task, fmt, tokenizer=tokenizer, model=model, split=split, seed=seed)
        if self.size:
            config = config.replace(task_params={"size": self.size})
        if split == "square" and self.half_side != 10:
            config = config.replace(split_params={"half_side": self.half_side})
        return config.replace(steps=self.steps) if self.steps else config


PRESETS: dict[str, LsoMapConfig] = {
    "cpu": LsoMapConfig(),
    "tasks": LsoMapConfig(tasks=tuple(TASKS), name="tasks"),
    "scratchpad": LsoMapConfig(
        formats=("scratchpad",), tokenizers=("number", "digit"), seeds=(0, 1, 2), name="scratchpad"
    ),
    "scratchpad-tasks": LsoMapConfig(
        tasks=tuple(t for t in TASKS if t != "addition"), formats=("scratchpad",), name="scratchpad-tasks"
    ),
    "test": LsoMapConfig(size=24, half_side=3, steps=150, name="test"),
}
