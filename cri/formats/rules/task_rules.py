"""Each task's rule as a plain Python function over digit lists, and how a case runs through it.

Lists hold digits, most significant first. Keyword-only parameters are constants of the task that are
written into the source (see `cri.formats.rules.language`); the rule of `base_addition` shows its 9.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from cri.errors import CriError
from cri.formats.rules.language import Rule, Value, parse_rule
from cri.formats.rules.tracer import Trace, trace_rule
from cri.formats.traces import Edit, TraceLine
from cri.tasks import Addition, BaseAddition, ChickenRabbit, LengthAddition, LinearRegression, ModAddition, Task
from cri.tasks.steps import Step, digits

Digits = list[int]


def add_digits(num1: Digits, num2: Digits, *, base: int) -> Digits:
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


def add_modulo(num1: Digits, num2: Digits, *, modulus: Digits) -> Digits:
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


def weighted_sum(num1: Digits, num2: Digits, *, slope_a: int, slope_b: int, intercept: Digits) -> Digits:
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


def count_rabbits_and_chickens(legs: Digits, heads: Digits) -> tuple[Digits, Digits]:
    pairs = []
    carry = 0
    while legs:
        digit1 = legs.pop(0)
        total = carry * 10 + digit1
        pairs.append(total // 2)
        carry = total % 2
    while len(pairs) > 1 and pairs[0] == 0:
        pairs.pop(0)
    num1 = pairs
    num2 = list(heads)
    rabbits = []
    carry = 0
    while num1 or num2:
        digit1 = num1.pop() if num1 else 0
        digit2 = num2.pop() if num2 else 0
        total = digit1 - digit2 + carry
        rabbits.insert(0, total % 10)
        carry = total // 10
    while len(rabbits) > 1 and rabbits[0] == 0:
        rabbits.pop(0)
    num1 = heads
    num2 = list(rabbits)
    chickens = []
    carry = 0
    while num1 or num2:
        digit1 = num1.pop() if num1 else 0
        digit2 = num2.pop() if num2 else 0
        total = digit1 - digit2 + carry
        chickens.insert(0, total % 10)
        carry = total // 10
    while len(chickens) > 1 and chickens[0] == 0:
        chickens.pop(0)
    return rabbits, chickens


_STEP_LINES = ("total = ", "if len(result) > ")
"""Beginnings of the code lines that execute a rule step: the digit sums, and the comparison with the
modulus. They are executed in the order of `Task.steps`, once for each step (tested)."""


@dataclass(frozen=True, eq=False)
class TaskRule:
    """A task's rule, and the way from a case into it and out of it.

    Attributes:
        rule: the rule with the task's constants in its source.
        base: in which the operands' digits are.
        sentence: the answer's text, with a place for every returned list.
    """

    rule: Rule
    base: int = 10
    sentence: str = "{}"

    def arguments(self, a: int, b: int) -> tuple[Digits, Digits]:
        """The operands as digit lists."""
        return digits(a, self.base), digits(b, self.base)

    def answer(self, returned: Sequence[Digits]) -> str:
        """The returned lists in the direct format's words."""
        return self.sentence.format(*("".join(map(str, number)) for number in returned))

    def read_answer(self, last_line: str) -> str | None:
        """The answer that a trace's last line returns, None where it returns no digit lists."""
        n_lists = self.sentence.count("{}")
        if not re.fullmatch("return " + ", ".join([r"\[\d(?:,\d)*\]"] * n_lists), last_line):
            return None
        return self.answer([[int(d) for d in part.split(",")] for part in re.findall(r"\[(.*?)\]", last_line)])

    def run(self, a: int, b: int, edit: Edit | None = None) -> Trace:
        """The execution of case (a, b) (see `trace_rule`), its lines knowing no steps."""
        return trace_rule(self.rule, *cast("tuple[list[Any], list[Any]]", self.arguments(a, b)), edit=edit)

    def trace(self, task: Task, a: int, b: int, edit: Edit | None = None) -> list[TraceLine]:
        """The lines of `run`, with the task's steps.

        All lines of a loop iteration belong to the step that it executes. After an `edit` the
        steps are still counted off in the task's order; executions beyond them have none.
        """
        return _with_steps(self.run(a, b, edit).lines, task.steps(a, b))


def _with_steps(lines: Sequence[TraceLine], steps: Sequence[Step]) -> list[TraceLine]:
    step_of_line: dict[int, Step] = {}
    step_of_iteration: dict[int, Step] = {}
    executing: dict[int, Step] = {}
    todo = iter(steps)
    for i, line in enumerate(lines):
        if line.kind != "code" or not line.text.startswith(_STEP_LINES):
            continue
        step = next(todo, None)
        if step is None:
            break
        end = next(j for j in range(i + 1, len(lines)) if lines[j].kind in ("effects", "test"))
        executing[end] = step
        step_of_line |= dict.fromkeys(range(i - 1, end + 1), step)
        if line.iteration is not None:
            step_of_iteration[line.iteration] = step
    return [
        line._replace(
            step=step_of_line.get(i) or step_of_iteration.get(cast("int", line.iteration)), executes=i in executing
        )
        for i, line in enumerate(lines)
    ]


@lru_cache(maxsize=64)
def task_rule(task: Task) -> TaskRule:
    """The rule of a task with its parameters; raises `CriError` for a task without one."""
    match task:
        case BaseAddition():
            return TaskRule(parse_rule(add_digits, base=task.base), task.base)
        case ModAddition():
            return TaskRule(parse_rule(add_modulo, modulus=_list(task.modulus)))
        case Addition() | LengthAddition():
            return TaskRule(parse_rule(add_digits, base=10))
        case LinearRegression():
            constants = {"slope_a": task.slope_a, "slope_b": task.slope_b, "intercept": _list(task.intercept)}
            return TaskRule(parse_rule(weighted_sum, **constants))
        case ChickenRabbit():
            return TaskRule(parse_rule(count_rabbits_and_chickens), sentence="There are {} rabbits and {} chickens.")
        case _:
            raise CriError(f"format: task {task.name} has no rule")


def _list(value: int) -> Value:
    return digits(value)


RULES: dict[str, Callable[..., Any]] = {
    "addition": add_digits,
    "base_addition": add_digits,
    "mod_addition": add_modulo,
    "linear_regression": weighted_sum,
    "chicken_rabbit": count_rabbits_and_chickens,
}
