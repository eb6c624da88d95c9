"""Settings and presets of `cri.studies.rule_reading`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cri.config import RunConfig, TrainConfig
from cri.errors import out_of_range, unknown_name
from cri.options import RunOptions
from cri.tasks.list_rules import PARTS

NAME = "rule_reading"
MAIN = "stated_rule"
CONTROLS = ("rule_id", "shuffled_rule", "scrambled_rule")
EDITS = (*PARTS, "new_base", "new_start")


@dataclass(frozen=True)
class RuleReading(RunOptions):
    """How many rules to train on, and what to ask the models."""

    rules: tuple[int, ...] = (1, 4, 16, 64)
    """Numbers of training rules, a model each; they share the same number of examples."""
    seeds: tuple[int, ...] = (0,)
    """Training seeds; the rules stay the same."""
    controls: tuple[str, ...] = ()
    """What stands in the rule's place in further models, trained on `control_rules` rules: some of rule_id,
    shuffled_rule, scrambled_rule."""
    control_rules: int = 64
    model: str = "slim-rope"
    examples: int = 32_000
    """Training cases of each model."""
    digits: int = 3
    """Digits of the longest lists."""
    per_rule: int = 3
    """Questions about each rule of a group (of at most 100 rules; more where there are fewer), decoded from the
    prompt."""
    edits: tuple[str, ...] = EDITS
    """Kinds of edit of the stated rule."""
    n_edits: int = 100
    """Questions of each kind of edit that can tell whose rule is executed."""
    steps: int = 2000
    batch_size: int = 64
    lr: float = 3e-3
    name: str = "cpu"
    """Names the folder of tables and the figures."""

    def __post_init__(self) -> None:
        for field, values, valid in (("controls", self.controls, CONTROLS), ("edits", self.edits, EDITS)):
            for value in values:
                if value not in valid:
                    raise unknown_name(field, value, valid)
        for field in ("per_rule", "n_edits"):
            if getattr(self, field) < 1:
                raise out_of_range(field, getattr(self, field), "at least 1")

    def run_configs(self) -> Iterator[RunConfig]:
        """One config a run, in the order of the tables."""
        for n in self.rules:
            for seed in self.seeds:
                yield self._run_config(MAIN, n, seed)
        for control in self.controls:
            for seed in self.seeds:
                yield self._run_config(control, self.control_rules, seed)

    def _run_config(self, fmt: str, n: int, seed: int) -> RunConfig:
        own = {"examples": self.examples} if self.examples != 32_000 else {}
        own |= {"digits": self.digits} if self.digits != 3 else {}
        optimisation = TrainConfig(
            steps=self.steps, batch_size=self.batch_size, lr=self.lr, warmup=0.03, weight_decay=0.1, beta2=0.98,
            seed=seed,
        )  # fmt: skip
        return RunConfig(
            task="many_rules",
            task_params={"rules": n, **own},
            format=fmt,
            split="rules",
            tokenizer="number",
            model=self.model,
            decoded=200,
            train=optimisation,
        )


PRESETS: dict[str, RuleReading] = {
    "cpu": RuleReading(controls=CONTROLS),
    "gpu": RuleReading(
        rules=(1, 4, 16, 64, 256), seeds=(0, 1, 2), controls=CONTROLS, model="mini-rope", examples=256_000,
        steps=20_000, batch_size=256, lr=1e-3, n_edits=200, name="gpu",
    ),
    "test": RuleReading(
        rules=(2,), controls=("rule_id",), control_rules=2, model="nano-rope", examples=40, digits=2, per_rule=1,
        n_edits=2, steps=3, batch_size=8, name="test",
    ),
}  # fmt: skip
