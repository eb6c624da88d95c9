"""Settings and presets of `cri.studies.recipe_search`."""

from __future__ import annotations

from dataclasses import dataclass

from cri.options import RunOptions
from cri.tasks import TASKS

NAME = "recipe_search"


@dataclass(frozen=True)
class RecipeSearch(RunOptions):
    """The grid of settings. One bank of replicas for each task, format, tokenizer, batch size and length."""

    tasks: tuple[str, ...] = tuple(TASKS)
    formats: tuple[str, ...] = ("direct",)
    tokenizers: tuple[str, ...] = ("number",)
    model: str = "nano"
    splits: tuple[str, ...] = ("square", "random")
    steps: tuple[int, ...] = (4000, 8000)
    batch_sizes: tuple[int, ...] = (256,)
    lrs: tuple[float, ...] = (1e-3, 2e-3, 3e-3, 5e-3, 8e-3)
    weight_decays: tuple[float, ...] = (0.0, 0.03, 0.3, 1.0)
    seeds: tuple[int, ...] = (0,)
    size: int = 0
    """Grid size; 0 is the paper's."""
    precision: str = "fp32"
    name: str = "search"


PRESETS = {
    "all": RecipeSearch(),
    "test": RecipeSearch(
        tasks=("addition",),
        steps=(30,),
        batch_sizes=(64,),
        lrs=(1e-3, 5e-3),
        weight_decays=(0.0,),
        size=24,
        name="test",
    ),
}
