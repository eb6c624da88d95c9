"""Settings and presets of `cri.studies.matrix`: which cells there are and how each is trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cri.config import RunConfig
from cri.errors import out_of_range, unknown_name
from cri.options import RunOptions
from cri.tasks import TASKS, task_class
from cri.training.recipes import recipe

NAME = "matrix"
FORMATS = ("direct", "scratchpad", "rfft")
SPLITS = ("square", "random")
CONTROL = "shuffled_scratchpad"
LEARNT = 0.99
"""A cell counts as learnt from this share of its training cases on."""

_SMALL: dict[str, dict[str, Any]] = {
    "direct": {"steps": 800, "batch_size": 128, "lr": 8e-3},
    "scratchpad": {"steps": 1500, "batch_size": 32, "lr": 4e-3},
    CONTROL: {"steps": 1500, "batch_size": 32, "lr": 4e-3},
    "rfft": {"steps": 1500, "batch_size": 16, "lr": 4e-3},
}
"""Schedules of the `cpu` preset with which nano learns a small grid (see the page), where the task has none of its own
(`Task.small_recipes`)."""


@dataclass(frozen=True)
class Cell:
    """One task, format and split of the matrix."""

    task: str
    format: str
    split: str

    @property
    def name(self) -> str:
        return f"{self.task}-{self.format}-{self.split}"


@dataclass(frozen=True)
class Matrix(RunOptions):
    """Which cells, and at which size. `jobs` cells are trained at once where `--stage train` asks for no rows, else one
    after the other; rows are made on the CPU."""

    tasks: tuple[str, ...] = tuple(TASKS)
    formats: tuple[str, ...] = FORMATS
    splits: tuple[str, ...] = SPLITS
    seeds: tuple[int, ...] = (0,)
    """Every cell is trained with each."""
    control: bool = True
    """Train the shuffled-trace control of addition's scratchpad as well."""
    model: str = "nano"
    direct_tokenizer: str = "number"
    """One token a number, the paper's setting."""
    trace_tokenizer: str = "digit"
    """Of scratchpads and RFFT: a step is then read from digits, not from whole numbers."""
    grid: Literal["small", "paper"] = "small"
    """`small`: 20 x 20 cases (300 for chicken & rabbit); `paper`: the paper's."""
    size: int = 0
    """Grid size; 0 is that of `grid`."""
    half_side: int = 0
    """Half side of the held-out square; 0 is that of `grid`."""
    steps: int = 0
    """Training steps; 0 is the cell's."""
    k: int = 10
    """Training units that count as nearest."""
    n_train_units: int = 1200
    """Training steps that are scored, drawn at random where there are more."""
    n_test_units: int = 60
    """Held-out cases, and steps of held-out cases, that are asked about."""
    n_edited: int = 40
    """Cases in each region whose traces are edited (of a rule's trace, which is long: a quarter)."""
    n_pairs: int = 24
    """Pairs of cases for interchange interventions."""
    n_boot: int = 1000
    stage: Literal["all", "train", "rows", "tables", "figures"] = "all"
    """`train` stops when the cells are trained, `rows` makes the rows of the cells that are, `tables` puts the
    rows that there are together, `figures` draws again."""
    name: str = "cpu"
    """Names the folder of tables and the figure."""
    removal: Path = Path("studies/counterfactual_removal/cpu")
    """Recorded tables of `counterfactual_removal`: the marginal effect of ten more cases of a kind."""

    def __post_init__(self) -> None:
        for field, values, valid in (("tasks", self.tasks, tuple(TASKS)), ("formats", self.formats, FORMATS),
                                     ("splits", self.splits, SPLITS)):  # fmt: skip
            for value in values:
                if value not in valid:
                    raise unknown_name(field, value, valid)
        for field, low in (("k", 1), ("n_train_units", 20), ("n_test_units", 2), ("n_edited", 1), ("n_pairs", 2),
                           ("n_boot", 100)):  # fmt: skip
            if getattr(self, field) < low:
                raise out_of_range(field, getattr(self, field), f"at least {low}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise out_of_range("seeds", self.seeds, "one or more different whole numbers")

    def cells(self) -> Iterator[Cell]:
        """The cells asked for, cheap formats first."""
        for fmt in self.formats:
            for split in self.splits:
                for task in self.tasks:
                    yield Cell(task, fmt, split)
            if fmt == "scratchpad" and self.control and "addition" in self.tasks:
                yield Cell("addition", CONTROL, "square")

    def run_config(self, cell: Cell, seed: int) -> RunConfig:
        """How a cell is trained."""
        tokenizer = self.direct_tokenizer if cell.format == "direct" else self.trace_tokenizer
        config = recipe(cell.task, cell.format, tokenizer=tokenizer, model=self.model, split=cell.split, seed=seed)
        task, grid = task_class(cell.task), {"size": 0, "half_side": 0}
        if self.grid == "small":
            grid = task.small_grid
            config = config.replace(**task.small_recipes.get(cell.format, _SMALL.get(cell.format, {})))
        if size := self.size or grid["size"]:
            config = config.replace(task_params=task.params_of_size(size))
        if (half_side := self.half_side or grid["half_side"]) and cell.split == "square":
            config = config.replace(split_params={"half_side": half_side})
        return config.replace(steps=self.steps) if self.steps else config


PRESETS = {
    "cpu": Matrix(),
    # three seeds of addition, on the same grid
    "cpu-seeds": Matrix(tasks=("addition",), seeds=(0, 1, 2), name="cpu-seeds"),
    # the paper's grid, for a GPU
    "gpu": Matrix(grid="paper", n_test_units=441, n_train_units=20_000, n_edited=200, n_pairs=100, name="gpu"),
    "test": Matrix(
        tasks=("addition",), formats=("direct", "scratchpad"), splits=("square",), size=16, half_side=2, steps=60,
        k=3, n_train_units=300, n_test_units=30, n_edited=2, n_pairs=4, n_boot=100, name="test",
    ),
}  # fmt: skip
