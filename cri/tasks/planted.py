"""What the tasks with a planted mechanism have in common: instruments are calibrated on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cri.config import TrainConfig
from cri.tasks.base import SquareGrid, require
from cri.tasks.steps import Step


@dataclass(frozen=True)
class Labelling(SquareGrid):
    """A labelling whose mechanism is known: labels in 0 .. n_labels-1.

    The rule step of a case is the pair of its operands' last digits, whether the labels come from it or not: both
    plantings are asked the same question.
    """

    recipes: ClassVar[dict[str, TrainConfig]] = {"direct": TrainConfig(steps=2000, lr=8e-3)}

    n_labels: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.n_labels >= 2, "n_labels", self.n_labels, "at least 2")

    def question(self, a: int, b: int) -> str:
        return f"{a}+{b}="

    def steps(self, a: int, b: int) -> tuple[Step, ...]:
        return (Step("table", a % 10, b % 10, 0),)
