"""Settings and presets of `cri.studies.representation_geometry`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cri.config import RunConfig
from cri.errors import CriError, out_of_range, unknown_name
from cri.options import FamilyName, RunOptions
from cri.training.recipes import recipe

NAME = "representation_geometry"
SPLITS = ("square", "random")
ARMS = ("default", "start", "untied", "noise", "smooth", "bent")
DIGIT_LR = 2.5e-3
"""At the recipe's learning rate not every model with a token a digit learns its training cases (`studies/log.md`)."""
Arm = Literal["default", "start", "untied", "noise", "smooth", "bent"]
"""How the operands' embeddings are held while a model is trained again: as they come; as they come, but started on a
smooth curve; apart from the unembedding (the control of the next three); with noise in training; on a smooth curve; on
a smooth curve with a fixed bend over the square."""


@dataclass(frozen=True)
class Geometry(RunOptions):
    """Models to look into, and what to ask. `device` is where they are trained; all else runs on the CPU."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of the models with a token a number."""
    number_models: bool = True
    """Ask models with a token a number; without them only those that write digits are asked."""
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
    """Embeddings to train again with (some of `ARMS`); a minute or two a seed each."""
    arm_waves: int = 20
    """Smooth waves that the arms `smooth` and `bent` may use."""
    written: tuple[str, ...] = ()
    """Families of addition that write a token a digit, asked digit by digit (`addition:direct:digit`), or step by step
    (`addition:scratchpad:number`)."""
    written_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of these families."""
    use_written: tuple[Path, ...] = ()
    """Folders of finished runs to ask digit by digit as well, of pretrained models for example."""
    every: int = 1
    """Layers from one that is asked digit by digit to the next; the last is always asked."""
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
        if self.every < 1:
            raise out_of_range("every", self.every, "at least 1")
        if not (self.number_models or self.written or self.use_written):
            raise CriError("number_models: false leaves no model; give some by written or use_written")
        for name in self.written:
            family = FamilyName.parse(name, "written")
            if family.task != "addition" or family.format not in ("direct", "scratchpad"):
                raise CriError(f"written: {name} is not addition in the direct format or in a scratchpad")
            if family.format == "direct" and family.tokenizer == "number":
                raise CriError(f"written: {name} decides all digits at once; use digit tokens")
        for arm in self.arms:
            if arm not in ARMS:
                raise unknown_name("arms", arm, ARMS)

    def run_config(self, split: str, seed: int, family: str = "addition:direct:number") -> RunConfig:
        """One run's config: its recipe, at the study's sizes."""
        name = FamilyName.parse(family)
        config = recipe(name.task, name.format, tokenizer=name.tokenizer, model=self.model, seed=seed)
        config = config.replace(split=split)
        if name.format == "direct" and name.tokenizer == "digit":
            config = config.replace(lr=DIGIT_LR)
        if self.size:
            config = config.replace(task_params={"size": self.size})
        if split == "square" and self.half_side != 10:
            config = config.replace(split_params={"half_side": self.half_side})
        return config.replace(steps=self.steps) if self.steps else config


PRESETS = {
    "cpu": Geometry(
        arms=("start", "untied", "noise", "smooth", "bent"),
    ),
    "digits": Geometry(seeds=(0,), written=("addition:direct:digit",), planted=False, name="digits"),
    "scratchpad": Geometry(
        number_models=False, size=50, half_side=5, written=("addition:scratchpad:digit",), written_seeds=(0, 1, 2),
        planted=False, name="scratchpad",
    ),
    "test": Geometry(
        seeds=(0,), size=24, half_side=2, steps=40, periods=(20, 10), helix_periods=(24,), smooth=(3,),
        arms=("start", "untied", "noise", "smooth", "bent"), arm_waves=3, planted=False,
        written=("addition:direct:digit",), written_seeds=(0,), name="test",
    ),
}  # fmt: skip
