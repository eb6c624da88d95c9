"""Settings and presets of `cri.studies.rule_steps`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cri.config import RunConfig
from cri.errors import CriError, out_of_range, unknown_name
from cri.options import FamilyName, RunOptions
from cri.training.recipes import recipe

NAME = "rule_steps"
CONTROL = "shuffled_scratchpad"
FORMATS = ("direct", "scratchpad", "rfft", "stated_rule")
ELEMENTS = ("digit", "carry", "answer", "operands", "decision")


@dataclass(frozen=True)
class Subject:
    """Runs that differ in their seed alone."""

    family: FamilyName
    seeds: tuple[int, ...]

    @classmethod
    def parse(cls, text: str) -> Subject:
        """`TASK:FORMAT:TOKENIZER:SEED,SEED...`; raises `CriError` for anything else."""
        name, _, seeds = text.rpartition(":")
        try:
            family, numbers = FamilyName.parse(name), tuple(int(s) for s in seeds.split(","))
        except ValueError:
            raise CriError(
                f"subjects: {text!r} is not TASK:FORMAT:TOKENIZER:SEEDS (for example addition:scratchpad:digit:0,1)"
            ) from None
        if family.format not in FORMATS:
            raise unknown_name("subjects: format", family.format, FORMATS)
        return cls(family, numbers)


@dataclass(frozen=True)
class RuleSteps(RunOptions):
    """Models to intervene on, and how. `device` is where they are trained; the interventions run on the CPU."""

    subjects: tuple[str, ...] = ("addition:scratchpad:number:0",)
    """TASK:FORMAT:TOKENIZER:SEEDS each; a task's recipe is trained where the run is missing."""
    use: tuple[Path, ...] = ()
    """Folders of finished runs to take instead of `subjects`."""
    control: bool = True
    """Train (or reuse) the shuffled-trace control of every scratchpad subject, seed 0."""
    use_control: tuple[Path, ...] = ()
    """Folders of finished control runs, one for every task and tokenizer of `use` in scratchpad format."""
    model: str = "nano"
    size: int = 0
    """Grid size; 0 is the paper's."""
    half_side: int = 10
    steps: int = 0
    """Training steps; 0 is the recipe's."""
    elements: tuple[str, ...] = ELEMENTS
    """Kinds of element to edit."""
    edit_step: int | None = None
    """Edit only what is written after this many rule steps; anywhere if not given."""
    n_cases: int = 200
    """Cases of the square that are edited, and as many outside (a rule's trace, long: a quarter)."""
    n_pairs: int = 100
    """Pairs of cases for interchange interventions."""
    lengths: tuple[int, ...] = ()
    """Digits of longer numbers, whose traces are edited as well; of runs of length_addition."""
    n_boot: int = 2000
    name: str = "cpu"
    """Names the folder of tables and the figures."""
    removal: Path = Path("studies/counterfactual_removal")
    """Where removal indices by case are looked for, to lay them beside."""

    def __post_init__(self) -> None:
        named = [(subject.family, seed) for subject in map(Subject.parse, self.subjects) for seed in subject.seeds]
        for i, (family, seed) in enumerate(named):
            if seed < 0 or (family, seed) in named[:i]:
                raise out_of_range("subjects", f"{family}:{seed}", "given once, with a seed of at least 0")
        for field, low in (("n_cases", 2), ("n_pairs", 2), ("n_boot", 100)):
            if getattr(self, field) < low:
                raise out_of_range(field, getattr(self, field), f"at least {low}")
        for n_digits in self.lengths:
            if n_digits < 1:
                raise out_of_range("lengths", n_digits, "at least 1")
        for kind in self.elements:
            if kind not in ELEMENTS:
                raise unknown_name("elements", kind, ELEMENTS)
        if self.edit_step is not None and self.edit_step < 0:
            raise out_of_range("edit_step", self.edit_step, "at least 0")

    def run_config(self, family: FamilyName, seed: int) -> RunConfig:
        """One run's config: its recipe, at the study's sizes."""
        config = recipe(family.task, family.format, tokenizer=family.tokenizer, model=self.model, seed=seed)
        if self.size:
            config = config.replace(task_params={"size": self.size})
        if self.half_side != 10:
            config = config.replace(split_params={"half_side": self.half_side})
        return config.replace(steps=self.steps) if self.steps else config


PRESETS = {
    "cpu": RuleSteps(),
    "test": RuleSteps(
        subjects=("addition:scratchpad:digit:0",), size=14, half_side=2, steps=60, n_cases=8, n_pairs=8, n_boot=100,
        name="test",
    ),
    "full": RuleSteps(
        subjects=(
            "addition:scratchpad:number:0,1,2", "addition:scratchpad:digit:0,1,2", "base_addition:scratchpad:number:0",
            "mod_addition:scratchpad:number:0", "addition:rfft:digit:0", "addition:direct:number:0",
            "addition:direct:digit:0",
        ),
        name="full",
    ),
}  # fmt: skip
