"""What the tasks that add two numbers have in common: question, value, steps, scratchpad, rule."""

from __future__ import annotations

from dataclasses import dataclass

from cri.tasks.base import RuleCode, ScratchpadWriter, Task
from cri.tasks.steps import Step, add_steps, to_base


@dataclass(frozen=True)
class Sums(Task):
    """`a+b=` -> a + b in base `digit_base`, where a subclass does not say otherwise."""

    def question(self, a: int, b: int) -> str:
        return f"{a}+{b}="

    def value(self, a: int, b: int) -> int:
        return a + b

    def steps(self, a: int, b: int) -> tuple[Step, ...]:
        return tuple(add_steps(a, b, self.digit_base))

    def write_scratchpad(self, pad: ScratchpadWriter, a: int, b: int) -> None:
        base = self.digit_base
        pad.result(pad.block("+", to_base(a, base), to_base(b, base), base), last=True)

    @property
    def rule(self) -> RuleCode:
        return RuleCode(add_digits, {"base": self.digit_base})


def add_digits(num1: list[int], num2: list[int], *, base: int) -> list[int]:
    result = []
    carry = 0
    while num1 or num2:
        digit1 = num1.pop() if num1 else 0
        digit2 = num2.pop() if num2 else 0
        total = digit1 + digit2 + carry
        result.insert(0, total % base)
        carry = total // base
    if carry:
        result.insert(0, carry)
    return result
