"""Settings and presets of `cri.studies.neighbor_attribution`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cri.attribution.methods import METHODS, of_kind
from cri.config import RunConfig
from cri.errors import out_of_range, unknown_name
from cri.options import RunOptions
from cri.training.recipes import recipe

NAME = "neighbor_attribution"
METRICS = tuple(of_kind("similarity"))
GRADIENTS = tuple(key for key in of_kind("gradients", "influence") if METHODS[key].needs != "training")
SPLITS = ("square", "random")
"""One run of each, of every seed."""
UNTRAINED, RANDOM_WEIGHTS = CONTROLS = ("untrained", "random weights")
"""The square run's model before its training; for a run that began with a pretrained model, that model, and beside it
one of its shape with random weights, by similarity alone."""


@dataclass(frozen=True)
class NeighborAttribution(RunOptions):
    """Runs to compare, and how."""

    task: str = "addition"
    format: str = "direct"
    tokenizer: str = "number"
    model: str = "nano"
    seeds: tuple[int, ...] = (0,)
    """One square-split and one random-split run each."""
    size: int = 0
    """Grid size; 0 is the paper's."""
    half_side: int = 10
    """Half side of the held-out square at the task's centre."""
    steps: int = 0
    """Training steps; 0 is the recipe's."""
    use: tuple[Path, ...] = ()
    """Folders of finished runs to take instead (fine-tuned ones, say), one of each split for every seed. Task, sizes
    and seeds are theirs."""
    layers_apart: int = 1
    """Layers from one place where the residual stream is read to the next, counted back from the last."""
    k: int = 10
    """Neighbours that count as nearest."""
    metrics: tuple[str, ...] = ("cosine", "euclidean")
    """Methods of similarity, of those that the registry has. The verdict needs cosine."""
    gradients: tuple[str, ...] = GRADIENTS
    """Methods of gradients and influence, of those that need no further training. EK-FAC takes longest."""
    n_boot: int = 2000
    """Bootstrap samples."""
    name: str = "cpu"
    """Names the folder of tables and the figures."""
    removal: Path = Path("studies/counterfactual_removal/gpu")
    """Recorded tables of `counterfactual_removal`, to compare the effect of removing each group with its enrichment."""

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise out_of_range("seeds", self.seeds, "one or more different whole numbers")
        for name in ("k", "layers_apart"):
            if getattr(self, name) < 1:
                raise out_of_range(name, getattr(self, name), "at least 1")
        if self.n_boot < 100:
            raise out_of_range("n_boot", self.n_boot, "at least 100")
        for field, values, known, needed in (
            ("metrics", self.metrics, METRICS, "cosine"), ("gradients", self.gradients, GRADIENTS, "GradCos"),
        ):  # fmt: skip
            for value in values:
                if value not in known:
                    raise unknown_name(field, value, known)
            if needed not in values:
                raise out_of_range(field, values, f"a list with {needed}, on which the verdict rests")

    def run_config(self, split: str, seed: int) -> RunConfig:
        """The run of one split and seed, by the task's recipe."""
        config = recipe(self.task, self.format, tokenizer=self.tokenizer, model=self.model, split=split, seed=seed)
        if self.size:
            config = config.replace(task_params={"size": self.size})
        if split == "square" and self.half_side != 10:
            config = config.replace(split_params={"half_side": self.half_side})
        return config.replace(steps=self.steps) if self.steps else config


PRESETS = {
    "cpu": NeighborAttribution(),
    "test": NeighborAttribution(size=24, half_side=4, steps=150, k=5, n_boot=200, name="test"),
    # models of the shape that the CPU's retraining bank has, so that removals can be compared
    "small": NeighborAttribution(
        size=30,
        half_side=3,
        steps=500,
        seeds=(0, 1, 2),
        name="small",
        removal=Path("studies/counterfactual_removal/cpu"),
    ),
    "full": NeighborAttribution(model="mini", seeds=(0, 1, 2), name="full"),
}
