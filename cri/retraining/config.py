"""Settings and presets of the bank of retrained models (`cri.retraining.bank`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from cri.config import RunConfig
from cri.errors import out_of_range, unknown_name
from cri.options import FamilyName, WorkOptions
from cri.retraining.removals import REMOVALS
from cri.tasks import task_class
from cri.training.jobs import Backend
from cri.training.recipes import recipe

NAME = "retraining_bank"
DESIGNED_REMOVALS = "removals-"
"""Plans of designed removals begin so."""


@dataclass(frozen=True)
class RetrainingBank(WorkOptions):
    """What to train, and at which size."""

    plans: tuple[str, ...] = ()
    """TASK:FORMAT:TOKENIZER/KIND each, in order of priority."""
    model: str = "nano"
    size: int = 0
    """Grid size; 0 is the paper's."""
    half_side: int = 10
    """Half side of the held-out square."""
    steps: int = 0
    """Training steps; 0 is the recipe's."""
    batch_size: int = 0
    """Cases a step; 0 is the recipe's."""
    lr: float = 0
    """Learning rate; 0 is the recipe's."""
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Of training; queries are always scored in fp32."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the base models and of the removals; the first is explained by the random subsets."""
    n_subsets: int = 100
    n_new_seeds: int = 2
    """Seeds with which each subset is trained besides that of the base model."""
    n_outside: int = 100
    """Single cases held out outside the square."""
    n_random_queries: int = 400
    """Cases held out by the random split whose outputs are recorded."""
    n_tests: int = 4
    """Test cases of designed removals in each region of the square split; twice as many of the random split."""
    removal_sizes: tuple[int, ...] = (60, 200)
    """Cases removed; fewer where fewer share a step with the test case."""
    near_sizes: tuple[int, ...] = (20, 60, 200, 600, 2000)
    """How many of the nearest cases are removed, to find the smallest number with an effect; numbers from half of the
    training cases on are skipped."""
    removed: tuple[str, ...] = REMOVALS
    """Groups that are removed, besides random cases."""
    n_random_removals: int = 6
    """Random removals for each seed and size."""
    leave_out_seeds: tuple[int, ...] = (0, 1, 2)
    n_centers: int = 7
    """Rows and columns of centres on which the square slides."""
    sliding_seeds: tuple[int, ...] = (0,)
    top_k: tuple[int, ...] = (20, 80, 320)
    """How many of the highest-scored training cases are removed."""
    name: str = "cpu"
    """Names the folder of records."""
    method: Literal["auto", "stacked", "processes"] = "auto"
    backend: Backend = "processes"
    """`ray` hands parts of a plan to the Ray cluster that RAY_ADDRESS names, or to a local one; `out` must lie in a
    folder that all its machines share."""
    gpus_per_job: float = 0.0
    """With Ray: the share of a GPU that each part is given; 0 trains on CPU."""

    def __post_init__(self) -> None:
        for field in ("seeds", "removal_sizes", "leave_out_seeds", "sliding_seeds", "top_k", "near_sizes"):
            values = getattr(self, field)
            low = 0 if field.endswith("seeds") else 1
            if not values or len(set(values)) != len(values) or min(values) < low:
                raise out_of_range(field, values, "one or more different whole numbers")
        for group in self.removed:
            if group not in REMOVALS:
                raise unknown_name("removed", group, REMOVALS)
        for field, low in (("half_side", 1), ("n_subsets", 2), ("n_new_seeds", 0), ("n_outside", 1), ("n_tests", 1),
                           ("n_random_queries", 1), ("n_random_removals", 1), ("n_centers", 2)):  # fmt: skip
            if getattr(self, field) < low:
                raise out_of_range(field, getattr(self, field), f"at least {low}")

    def run_config(self, family: str) -> RunConfig:
        """The run of a family's square split, by its recipe."""
        name = FamilyName.parse(family)
        config = recipe(name.task, name.format, tokenizer=name.tokenizer, model=self.model)
        config = config.replace(split_params={"half_side": self.half_side})
        if self.size:
            config = config.replace(task_params=task_class(name.task).params_of_size(self.size))
        changes = {
            "steps": self.steps, "batch_size": self.batch_size, "lr": self.lr, "precision": self.precision,
        }  # fmt: skip
        return config.replace(**{key: value for key, value in changes.items() if value})

    @property
    def shape(self) -> dict[str, str | int]:
        """What models of other studies must share with this bank's to be compared with them."""
        return {"model": self.model, "size": self.size, "half_side": self.half_side}

    def folder(self, family: str, kind: str) -> Path:
        """Where the record of a plan lies."""
        return self.tables(NAME, self.name) / FamilyName.parse(family).folder / kind


class Study(Protocol):
    """What studies that read a bank have in common."""

    @property
    def bank(self) -> str: ...
    @property
    def records(self) -> Path: ...
    @property
    def jobs(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def out(self) -> Path: ...
    def tables(self, study: str, name: str) -> Path: ...


def _plans(families: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(f"{family}/{kind}" for family, kinds in families.items() for kind in kinds)


_NUMBER, _DIGIT = "addition:direct:number", "addition:direct:digit"
_MIRROR = "leave-out-mirror"
_LEAVE_OUT = ("leave-out", _MIRROR)
_DESIGNED = ("removals-square", "removals-random", "leave-out")
_TASKS = ("base_addition", "linear_regression", "chicken_rabbit", "mod_addition")
_SCRATCHPAD = "addition:scratchpad:number"
_PLANTED = _plans(
    {f"{task}:direct:number": ("base", "removals-square", "subsets-50") for task in ("patchwork", "digit_table")}
)
_SMALL: dict[str, Any] = {
    "size": 30, "half_side": 3, "steps": 500, "batch_size": 128, "n_new_seeds": 5, "n_outside": 40,
    "n_random_queries": 100, "n_tests": 3, "removal_sizes": (20,), "n_random_removals": 2, "n_centers": 5,
    "top_k": (5, 20, 80), "near_sizes": (20, 60, 200), "sliding_seeds": (0, 1, 2),
}  # fmt: skip
PRESETS = {
    # for 2 cores: a smaller grid and fewer steps; six seeds a subset, as seeds differ more there
    "cpu": RetrainingBank(
        plans=_plans({_NUMBER: ("base", "subsets-50", *_DESIGNED, _MIRROR, "sliding", "near-sizes", "top-k")}), **_SMALL
    ),
    "cpu-more": RetrainingBank(
        plans=_plans({_NUMBER: ("subsets-random-50", "subsets-10")}), **{**_SMALL, "n_new_seeds": 1}
    ),
    "cpu-digit": RetrainingBank(
        plans=_plans({_DIGIT: ("base", "subsets-50", "subsets-random-50", *_LEAVE_OUT, "removals-square")}),
        **{**_SMALL, "steps": 800, "lr": 4e-3, "n_new_seeds": 0},
    ),
    "cpu-tasks": RetrainingBank(
        plans=_plans({
            f"{task}:direct:number": ("base", "subsets-50", *_LEAVE_OUT)
            for task in ("base_addition", "mod_addition", "linear_regression")
        }),
        **{**_SMALL, "steps": 900, "n_subsets": 150, "n_new_seeds": 0},
    ),
    # long sequences: fewer cases in smaller batches
    "cpu-chicken_rabbit": RetrainingBank(
        plans=_plans({"chicken_rabbit:direct:number": ("base", "subsets-50")}),
        **{**_SMALL, "size": 24, "half_side": 2, "steps": 1000, "batch_size": 32, "lr": 4e-3, "n_new_seeds": 0},
    ),
    "cpu-scratchpad": RetrainingBank(
        plans=_plans({_SCRATCHPAD: ("base", "subsets-50", "leave-out")}),
        **{**_SMALL, "size": 20, "half_side": 2, "steps": 800, "batch_size": 32, "n_new_seeds": 2,
           "leave_out_seeds": (0,)},
    ),
    # the paper's grid, as far as two cores go: a model takes one to two minutes there
    "cpu-paper": RetrainingBank(
        plans=_plans({_NUMBER: ("base", *_LEAVE_OUT)}), seeds=(0,), leave_out_seeds=(0,), name="cpu-paper"
    ),
    "cpu-planted": RetrainingBank(
        plans=_PLANTED,
        **{**_SMALL, "steps": 800, "n_new_seeds": 0, "n_random_queries": 20, "removed": ("near", "same_step")},
    ),
    "gpu": RetrainingBank(
        plans=_plans({
            _NUMBER: ("base", "subsets-50", "subsets-random-50", *_DESIGNED, _MIRROR, "sliding", "near-sizes",
                      "top-k", "subsets-10"),
        }),
        name="gpu", precision="tf32",
    ),
    # at the recipe's learning rate digit models differ from seed to seed in what they learn of their training cases
    "gpu-digit": RetrainingBank(
        plans=_plans({_DIGIT: ("base", "subsets-50", "subsets-random-50", *_DESIGNED, _MIRROR, "sliding")}),
        lr=2.5e-3, name="gpu", precision="tf32",
    ),
    "gpu-planted": RetrainingBank(
        plans=_PLANTED, n_new_seeds=0, n_tests=6, removal_sizes=(200,), removed=("near", "same_step"), name="gpu",
        precision="tf32",
    ),
    "gpu-tasks": RetrainingBank(
        plans=_plans({f"{task}:direct:number": ("base", *_DESIGNED) for task in _TASKS}),
        n_tests=2, removal_sizes=(200,), n_random_removals=2, name="gpu", precision="tf32",
    ),
    "gpu-scratchpad": RetrainingBank(
        plans=_plans({_SCRATCHPAD: ("base", "removals-square", "leave-out")}),
        n_tests=2, removal_sizes=(200,), n_random_removals=2, leave_out_seeds=(0,), name="gpu", precision="tf32",
    ),
    "test": RetrainingBank(
        plans=_plans({_NUMBER: ("base", "subsets-50", *_DESIGNED, _MIRROR, "sliding")}),
        size=16, half_side=1, steps=30, batch_size=32, seeds=(0, 1), n_subsets=4, n_new_seeds=1, n_outside=6,
        n_random_queries=10, n_tests=2, removal_sizes=(8,), n_random_removals=2, leave_out_seeds=(0,), n_centers=2,
        top_k=(4,), near_sizes=(8, 30),
        name="test",
    ),
}  # fmt: skip
"""`cpu` and the presets named `cpu-...` (except `cpu-paper`) share one folder; `gpu` and `gpu-...` share another."""
