"""Settings and presets of `cri.studies.zero_shot`."""

from __future__ import annotations

from dataclasses import dataclass

from cri.options import StudyOptions
from cri.tasks import TASKS

NAME = "zero_shot"


@dataclass(frozen=True)
class ZeroShotConfig(StudyOptions):
    """Which model, on how many cases of which tasks."""

    model: str = "smollm2-135m"
    """A folder written by save_pretrained, `smollm2-135m`, or a hub id."""
    tasks: tuple[str, ...] = tuple(name for name in TASKS if name != "length_addition")
    n_cases: int = 200
    """Random cases of each task; 0 takes all of them."""
    max_number: int = 999
    """Numbers whose tokens are counted."""
    seed: int = 0


PRESETS = {"smollm2": ZeroShotConfig(), "test": ZeroShotConfig(tasks=("addition",), n_cases=4, max_number=20)}
