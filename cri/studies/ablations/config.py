"""Settings and presets of `cri.studies.ablations`: which conditions there are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cri.config import RunConfig
from cri.errors import CriError, out_of_range, unknown_name
from cri.options import RunOptions
from cri.tasks import TASKS, task_class
from cri.training.recipes import recipe

NAME = "ablations"


@dataclass(frozen=True)
class Condition:
    """One point of an ablation: what differs from the paper's main split."""

    arm: str
    value: str
    changes: dict[str, Any] = field(default_factory=dict)
    """Fields of `RunConfig`."""
    size: int = 0
    """Grid size; 0 is the paper's."""


def _square(arm: str, value: str, size: int = 0, **params: Any) -> Condition:
    return Condition(arm, value, {"split": "square", "split_params": params}, size)


_CONDITIONS: dict[str, tuple[Condition, ...]] = {
    "half-side": tuple(_square("half-side", f"{h}", **({} if h == 10 else {"half_side": h})) for h in (5, 10, 15, 20)),
    "place": (
        *(_square("place", f"({a}, {b})", center=[a, b]) for a, b in ((25, 25), (75, 75), (25, 75), (75, 25))),
        _square("place", "(50, 50)"),
    ),
    "shape": (
        _square("shape", "square"),
        Condition("shape", "three squares", {"split": "squares"}),
        Condition("shape", "scattered", {"split": "scattered"}),
    ),
    "grid": (
        *(_square("grid", f"{n}", size=n, half_side=n // 10) for n in (40, 60, 80)),
        _square("grid", "100"),
    ),
    "share": tuple(
        Condition("share", f"{f}", {"split": "random", "split_params": {} if f == 0.7 else {"fraction": f}})
        for f in (0.3, 0.5, 0.7, 0.9)
    ),
    "model": tuple(Condition("model", m, {"model": m, "split": "square"}) for m in ("nano", "mini")),
}  # fmt: skip
ARMS = tuple(_CONDITIONS)
"""half side and place of the square; three squares, or the crossings of 21 rows and 21 columns, in its place; grids
with a square of the same share of the side; the share of cases trained on where the others are held out at random; the
size of the model."""


@dataclass(frozen=True)
class Ablations(RunOptions):
    """Which ablations of the held-out square, on which task and formats."""

    arms: tuple[str, ...] = ARMS
    """Some of half-side, place, shape, grid, share, model."""
    task: str = "addition"
    formats: tuple[str, ...] = ("direct",)
    tokenizer: str = "number"
    seeds: tuple[int, ...] = (0,)
    steps: int = 0
    """Training steps; 0 is the recipe's."""
    name: str = "cpu"
    """Names the folder of tables and the figure."""

    def __post_init__(self) -> None:
        for arm in self.arms:
            if arm not in ARMS:
                raise unknown_name("arms", arm, ARMS)
        if self.task not in TASKS:
            raise unknown_name("task", self.task, tuple(TASKS))
        if not self.arms or not self.formats or not self.seeds:
            raise CriError("arms, formats, seeds: give at least one of each")
        if self.steps < 0:
            raise out_of_range("steps", self.steps, "at least 0 (0 for the recipe's)")

    def run_configs(self) -> Iterator[tuple[Condition, RunConfig]]:
        """One (condition, config) a point of the figure; some configs come more than once, as each arm has the paper's
        main split among its points."""
        for fmt in self.formats:
            for arm in self.arms:
                for condition in _CONDITIONS[arm]:
                    for seed in self.seeds:
                        yield condition, self._run_config(condition, fmt, seed)

    def _run_config(self, condition: Condition, fmt: str, seed: int) -> RunConfig:
        config = recipe(self.task, fmt, tokenizer=self.tokenizer, seed=seed, **condition.changes)
        if condition.size:
            config = config.replace(task_params=task_class(self.task).params_of_size(condition.size))
        return config.replace(steps=self.steps) if self.steps else config


PRESETS: dict[str, Ablations] = {
    "cpu": Ablations(),
    # texts are longer, so this takes several times as long
    "scratchpad": Ablations(formats=("scratchpad",), name="scratchpad"),
    "gpu": Ablations(formats=("direct", "scratchpad"), seeds=(0, 1, 2), name="gpu"),
    "test": Ablations(arms=("shape",), steps=5, name="test"),
}
