"""Addition modulo a number: `100+50=` -> `37` (modulo 113)."""

from __future__ import annotations

from typing import Any, ClassVar

from cri.config import TrainConfig
from cri.tasks.base import RuleCode, ScratchpadWriter, SquareGrid, require
from cri.tasks.registry import task
from cri.tasks.steps import Step, add_steps, digits, sub_steps
from cri.tasks.sums import Sums


@task
class ModAddition(SquareGrid, Sums):
    """`a+b=` -> `(a+b) mod modulus`.

    The scratchpad adds, then compares (`224>=113`) and subtracts (224-113), or compares (`92<113`) and writes the
    result again.
    """

    name: ClassVar[str] = "mod_addition"
    color: ClassVar[str] = "#D55E00"
    recipes: ClassVar[dict[str, TrainConfig]] = {
        "direct": TrainConfig(steps=12000, lr=3e-3),
        "scratchpad": TrainConfig(steps=4000, batch_size=128, lr=4e-3),
    }
    small_recipes: ClassVar[dict[str, dict[str, Any]]] = {"direct": {"steps": 1500, "batch_size": 128, "lr": 4e-3}}

    size: int = 113
    modulus: int = 113

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.modulus >= self.size, "modulus", self.modulus, f"at least size={self.size}")

    @classmethod
    def params_of_size(cls, size: int) -> dict[str, int]:
        return {"size": size, "modulus": size}  # one period, as on the paper's grid

    def value(self, a: int, b: int) -> int:
        return (a + b) % self.modulus

    def steps(self, a: int, b: int) -> tuple[Step, ...]:
        total = a + b
        steps = add_steps(a, b) + [Step("compare", total, self.modulus, 0)]
        return tuple(steps + sub_steps(total, self.modulus) if total >= self.modulus else steps)

    def write_scratchpad(self, pad: ScratchpadWriter, a: int, b: int) -> None:
        total = pad.result(pad.block("+", str(a), str(b)))
        if pad.compare(total, str(self.modulus)):
            total = pad.equation("-", total, str(self.modulus))
        pad.result(total, last=True)

    @property
    def rule(self) -> RuleCode:
        return RuleCode(add_modulo, {"modulus": digits(self.modulus)})


def add_modulo(num1: list[int], num2: list[int], *, modulus: list[int]) -> list[int]:
    limit = modulus
    result = []
    carry = 0
    while num1 or num2:
        digit1 = num1.pop() if num1 else 0
        digit2 = num2.pop() if num2 else 0
        total = digit1 + digit2 + carry
        result.insert(0, total % 10)
        carry = total // 10
    if carry:
        result.insert(0, carry)
    if len(result) > len(limit) or (len(result) == len(limit) and result >= limit):
        num1 = result
        num2 = limit
        result = []
        carry = 0
        while num1 or num2:
            digit1 = num1.pop() if num1 else 0
            digit2 = num2.pop() if num2 else 0
            total = digit1 - digit2 + carry
            result.insert(0, total % 10)
            carry = total // 10
        while len(result) > 1 and result[0] == 0:
            result.pop(0)
    return result
