"""Settings and presets of `cri.studies.representation_geometry`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cri.config import RunConfig
from cri.errors import CriError, out_of_range, unknown_name
from cri.options import RunOptions
from cri.training.recipes import recipe

NAME = "representation_geometry"
SPLITS = ("square", "random")
ARMS = ("default", "untied", "smooth", "bent")
Arm = Literal["default", "untied", "smooth", "bent"]
"""How the operands' embeddings are held while a model is trained again: as they come; apart from the unembedding (the
control of the next two); on a smooth curve; on a smooth curve with a fixed bend over the square."""


@dataclass(frozen=True)
class Geometry(RunOptions):
    """Models to look into, and what to ask. `device` is where they are trained; all else runs on the CPU."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    model: str = "nano"
    size: int = 0
    """Grid size; 0 is the paper's."""
    half_side: int = 10
    steps: int = 0
    """Training steps; 0 is the recipe's."""
    use: tuple[Path, ...] = ()
    """Folders of finished runs to take instead of training the seeds."""
    planted: bool = True
    """Ask the hand-built model too, whose code is known."""
    periods: tuple[int, ...] = (100, 50, 20, 10)
    """Periods of a + b that are read, shifted and projected out."""
    helix_periods: tuple[int, ...] = (100, 50)
    smooth: tuple[int, ...] = (5, 10, 20, 40)
    """Numbers of smooth waves that replace the operands' embeddings."""
    arms: tuple[Arm, ...] = ()
    """Embeddings to train again with (`default`, `untied`, `smooth`, `bent`); a minute or two a seed each."""
    arm_waves: int = 20
    """Smooth waves that the arms `smooth` and `bent` may use."""
    name: str = "cpu"
    """Names the folder of tables and the figures."""

    def __post_init__(self) -> None:
        if not self.use and len(set(self.seeds)) != len(self.seeds):
            raise CriError(f"seeds: {list(self.seeds)} repeats a seed; each is one model")
        for period in (*self.periods, *self.helix_periods):
            if period < 2:
                raise out_of_range("periods", period, "at least 2")
            if self.size and period > 2 * self.size:
                raise out_of_range("periods", period, f"at most {2 * self.size}, twice the grid's size")
        for waves in (*self.smooth, self.arm_waves):
            if waves < 1:
                raise out_of_range("smooth", waves, "at least 1")
        for arm in self.arms:
            if arm not in ARMS:
                raise unknown_name("arms", arm, ARMS)

    def run_config(self, split: str, seed: int) -> RunConfig:
        """One run's config: its recipe, at the study's sizes."""
        config = recipe("addition", "direct", tokenizer="number", model=self.model, seed=seed).replace(split=split)
        if self.size:
            config = config.replace(task_params={"size": self.size})
        if split == "square" and self.half_side != 10:
            config = config.replace(split_params={"half_side": self.half_side})
        return config.replace(steps=self.steps) if self.steps else config


PRESETS = {
    "cpu": Geometry(arms=("untied", "smooth", "bent")),
    "test": Geometry(
        seeds=(0,), size=24, half_side=2, steps=40, periods=(20, 10), helix_periods=(24,), smooth=(3,),
        arms=("untied", "smooth", "bent"), arm_waves=3, planted=False, name="test",
    ),
}  # fmt: skip
