"""A linear function of two numbers: `(4,7)=` -> `21` (4 + 2 * 7 + 3)."""

from __future__ import annotations

from typing import Any, ClassVar

from cri.config import TrainConfig
from cri.tasks.base import RuleCode, ScratchpadWriter, SquareGrid, require
from cri.tasks.registry import task
from cri.tasks.steps import Step, add_steps, digits, mul_steps


@task
class LinearRegression(SquareGrid):
    """`(a,b)=` -> `slope_a * a + slope_b * b + intercept`.

    The scratchpad calculates a*slope_a and b*slope_b (unless the slope is 1), their sum, and the sum with the
    intercept; every block has its equation.
    """

    name: ClassVar[str] = "linear_regression"
    color: ClassVar[str] = "#CC79A7"
    recipes: ClassVar[dict[str, TrainConfig]] = {
        "direct": TrainConfig(steps=4000, lr=8e-3),
        "scratchpad": TrainConfig(steps=4000, batch_size=128, lr=4e-3),
    }
    small_recipes: ClassVar[dict[str, dict[str, Any]]] = {
        "direct": {"steps": 1600, "batch_size": 128, "lr": 8e-3},
        "scratchpad": {"steps": 2500, "batch_size": 16, "lr": 4e-3},
        "rfft": {"steps": 1500, "batch_size": 8, "lr": 4e-3},
    }

    slope_a: int = 1
    slope_b: int = 2
    intercept: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("slope_a", "slope_b"):
            require(1 <= getattr(self, field) <= 9, field, getattr(self, field), "in 1..9")
        require(self.intercept >= 0, "intercept", self.intercept, "non-negative")

    def question(self, a: int, b: int) -> str:
        return f"({a},{b})="

    def value(self, a: int, b: int) -> int:
        return self.slope_a * a + self.slope_b * b + self.intercept

    def steps(self, a: int, b: int) -> tuple[Step, ...]:
        steps: list[Step] = []
        for operand, slope in ((a, self.slope_a), (b, self.slope_b)):
            if slope != 1:
                steps += mul_steps(operand, slope)
        steps += add_steps(self.slope_a * a, self.slope_b * b)
        steps += add_steps(self.slope_a * a + self.slope_b * b, self.intercept)
        return tuple(steps)

    def write_scratchpad(self, pad: ScratchpadWriter, a: int, b: int) -> None:
        terms = [
            str(operand) if slope == 1 else pad.result(pad.equation("*", str(operand), str(slope)))
            for operand, slope in ((a, self.slope_a), (b, self.slope_b))
        ]
        total = pad.result(pad.equation("+", terms[0], terms[1]))
        pad.result(pad.equation("+", total, str(self.intercept)), last=True)

    @property
    def rule(self) -> RuleCode:
        constants = {"slope_a": self.slope_a, "slope_b": self.slope_b, "intercept": digits(self.intercept)}
        return RuleCode(weighted_sum, constants, answer_lists=("product", "result"))


def weighted_sum(num1: list[int], num2: list[int], *, slope_a: int, slope_b: int, intercept: list[int]) -> list[int]:
    if slope_a != 1:
        product = []
        carry = 0
        while num1:
            digit1 = num1.pop()
            total = digit1 * slope_a + carry
            product.insert(0, total % 10)
            carry = total // 10
        if carry:
            product.insert(0, carry)
        num1 = product
    if slope_b != 1:
        product = []
        carry = 0
        while num2:
            digit2 = num2.pop()
            total = digit2 * slope_b + carry
            product.insert(0, total % 10)
            carry = total // 10
        if carry:
            product.insert(0, carry)
        num2 = product
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
    num1 = result
    num2 = intercept
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
    return result
