"""Settings and presets of `cri.studies.rule_samples`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from cri.config import TrainConfig
from cri.errors import out_of_range, unknown_name
from cri.options import StudyOptions

NAME = "rule_samples"
HELD_OUT = ("rule", "combination", "division", "start", "base")
"""Groups of rules that no model was trained on (see `cri.tasks.many_rules`)."""


@dataclass(frozen=True)
class RuleSamples(StudyOptions):
    """Which models are trained on, on how many samples of which new rules."""

    use: tuple[Path, ...] = ()
    """Folders of finished runs of many_rules in the format stated_rule (`cri.studies.rule_reading` trains such);
    the control, an untrained model, is the start of the first."""
    groups: tuple[str, ...] = ("combination", "division", "base")
    """Groups of held-out rules: some of rule, combination, division, start, base."""
    rules: int = 3
    """New rules of each group."""
    control_rules: int = 1
    """New rules of each group that the untrained model is trained on, too: the first of them."""
    samples: tuple[int, ...] = (0, 10, 30, 100, 300, 1000)
    """Training samples of the new rule, a copy of the model each; the samples of fewer are the first of those of
    more."""
    tests: int = 40
    """Fresh lists that each copy is asked about, the same for all."""
    target: float = 0.95
    """Share of right results that counts as having learnt the rule."""
    steps: int = 100
    """Optimiser steps on the samples of one rule, the same for trained and untrained models."""
    long_steps: int = 1000
    """Steps of a second control, an untrained model that is trained longer, in case `steps` are too few for it."""
    long_samples: tuple[int, ...] = (100, 1000)
    """Samples that this second control is trained on: some of `samples`; none for no such control."""
    batch_size: int = 16
    lr: float = 1e-3
    control_lr: float = 3e-3
    """Learning rate of the untrained models: the one that the trained model was trained with from the start."""
    seed: int = 0
    """Of the rules, the samples and the order of batches."""
    name: str = "cpu"
    """Names the folder of tables and the figure."""

    def __post_init__(self) -> None:
        for group in self.groups:
            if group not in HELD_OUT:
                raise unknown_name("groups", group, HELD_OUT)
        for field, low in (("rules", 1), ("tests", 1), ("steps", 1), ("long_steps", 1), ("batch_size", 1)):
            if getattr(self, field) < low:
                raise out_of_range(field, getattr(self, field), f"at least {low}")
        if not 0 <= self.control_rules <= self.rules:
            raise out_of_range("control_rules", self.control_rules, f"in 0..{self.rules}, the number of rules")
        if any(k < 0 for k in self.samples) or list(self.samples) != sorted(set(self.samples)):
            raise out_of_range("samples", self.samples, "numbers of at least 0, each larger than the one before")
        for k in self.long_samples:
            if k < 1 or k not in self.samples:
                raise out_of_range("long_samples", k, "one of samples, above 0")
        if not (math.isfinite(self.target) and 0 < self.target <= 1):
            raise out_of_range("target", self.target, "above 0 and at most 1")

    def optimisation(self, trained: bool, steps: int) -> TrainConfig:
        """How a copy of a trained model, or of an untrained one, is trained on samples: as `rule_reading` trains, with
        the numbers of steps and cases given here."""
        return TrainConfig(
            steps=steps, batch_size=self.batch_size, lr=self.lr if trained else self.control_lr, warmup=0.03,
            weight_decay=0.1, beta2=0.98, seed=self.seed,
        )  # fmt: skip


PRESETS: dict[str, RuleSamples] = {
    "cpu": RuleSamples(),
    "gpu": RuleSamples(
        groups=HELD_OUT, rules=20, control_rules=20, tests=200, steps=1000, long_steps=20_000, name="gpu"
    ),
    "test": RuleSamples(
        groups=("combination", "base"), rules=2, control_rules=1, samples=(0, 4, 12), tests=4, steps=3, long_steps=5,
        long_samples=(12,), batch_size=4, name="test",
    ),
}  # fmt: skip
