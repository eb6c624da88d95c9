"""Addition in another base, 9 by default: `8+1=` -> `10`."""

from __future__ import annotations

from typing import ClassVar

from cri.config import TrainConfig
from cri.tasks.base import SquareGrid, require
from cri.tasks.registry import task
from cri.tasks.steps import to_base
from cri.tasks.sums import Sums


@task
class BaseAddition(SquareGrid, Sums):
    """`a+b=` -> `a+b`, operands and answer printed in another base.

    The carry is `(x + y + carry) // base`: of a rule step in `cri.tasks.steps.add_steps`, of the rule's code in
    `cri.tasks.sums.add_digits`.
    """

    name: ClassVar[str] = "base_addition"
    color: ClassVar[str] = "#009E73"
    recipes: ClassVar[dict[str, TrainConfig]] = {"direct": TrainConfig(steps=4000, lr=8e-3)}

    base: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        require(2 <= self.base <= 10, "base", self.base, "in 2..10")

    @property
    def digit_base(self) -> int:
        return self.base

    def question(self, a: int, b: int) -> str:
        return f"{to_base(a, self.base)}+{to_base(b, self.base)}="

    def answer(self, a: int, b: int) -> str:
        return to_base(a + b, self.base)

    def repeats_last_state(self, a: int, b: int) -> bool:
        """Where the printed operands, added as if they were decimal, have a further digit in the task's base than the
        answer (564 cases of the paper's grid)."""
        printed = int(to_base(a, self.base)) + int(to_base(b, self.base))
        return len(to_base(printed, self.base)) > len(to_base(a + b, self.base))
