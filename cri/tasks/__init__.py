"""The five tasks: their questions, answers and rule steps; and every task by name.

Parameters default to the paper's values (arXiv 2402.17709, public code GraphPKU/Case_or_Rule), so that
questions and answers reproduce its data exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int

from cri.checks import check_memory
from cri.errors import CriError, unknown_name
from cri.tasks.base import BYTES_A_CASE, SquareGrid, Sums, Task, require
from cri.tasks.length_sampling import sample_mixed_pairs, sample_pairs
from cri.tasks.planted import PLANTED
from cri.tasks.steps import Step, add_steps, halve_steps, mul_steps, sub_steps, to_base


@dataclass(frozen=True)
class Addition(SquareGrid):
    """`a+b=` -> `a+b` in base 10."""

    name: ClassVar[str] = "addition"


@dataclass(frozen=True)
class ModAddition(SquareGrid):
    """`a+b=` -> `(a+b) mod modulus`."""

    name: ClassVar[str] = "mod_addition"
    size: int = 113
    modulus: int = 113

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.modulus >= self.size, "modulus", self.modulus, f"at least size={self.size}")

    def value(self, a: int, b: int) -> int:
        return (a + b) % self.modulus

    def steps(self, a: int, b: int) -> tuple[Step, ...]:
        total = a + b
        steps = add_steps(a, b) + [Step("compare", total, self.modulus, 0)]
        return tuple(steps + sub_steps(total, self.modulus) if total >= self.modulus else steps)


@dataclass(frozen=True)
class BaseAddition(SquareGrid):
    """`a+b=` -> `a+b`, operands and answer printed in another base."""

    name: ClassVar[str] = "base_addition"
    base: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        require(2 <= self.base <= 10, "base", self.base, "in 2..10")

    def question(self, a: int, b: int) -> str:
        return f"{to_base(a, self.base)}+{to_base(b, self.base)}="

    def answer(self, a: int, b: int) -> str:
        return to_base(a + b, self.base)

    def steps(self, a: int, b: int) -> tuple[Step, ...]:
        return tuple(add_steps(a, b, self.base))


@dataclass(frozen=True)
class LinearRegression(SquareGrid):
    """`(a,b)=` -> `slope_a * a + slope_b * b + intercept`."""

    name: ClassVar[str] = "linear_regression"
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


@dataclass(frozen=True)
class ChickenRabbit(Task):
    """Legs (a, even) and heads (b) of a farm -> how many rabbits and chickens.

    Ids run over heads (outer) and legs (inner); grid coordinates are (legs / 2, heads).
    """

    name: ClassVar[str] = "chicken_rabbit"
    axis_names: ClassVar[tuple[str, str]] = ("legs / 2", "heads")
    size: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.size >= 2, "size", self.size, "at least 2")
        check_memory("size", self.size, BYTES_A_CASE * self.size**2, f"a grid of {self.size**2:,} cases")

    def _enumerate(self) -> Iterator[tuple[int, int]]:
        return ((legs, heads) for heads in range(self.size) for legs in range(2 * heads, 4 * heads + 1, 2))

    def _coordinates(self, a: int, b: int) -> tuple[int, int]:
        return a // 2, b

    @property
    def center(self) -> tuple[int, int]:
        return 7 * self.size // 10, self.size // 2

    def question(self, a: int, b: int) -> str:
        return (
            "Rabbits have 4 legs and 1 head. Chickens have 2 legs and 1 head. "
            f"There are {a} legs and {b} heads on the farm. How many rabbits and chickens are there?"
        )

    def value(self, a: int, b: int) -> int:
        return a // 2 - b

    def answer(self, a: int, b: int) -> str:
        return f"There are {a // 2 - b} rabbits and {2 * b - a // 2} chickens."

    def steps(self, a: int, b: int) -> tuple[Step, ...]:
        rabbits = a // 2 - b
        return tuple(halve_steps(a) + sub_steps(a // 2, b) + sub_steps(b, rabbits))


@dataclass(frozen=True)
class LengthAddition(Sums):
    """`a+b=` -> `a+b` with operands of `min_digits..max_digits` digits, sampled without replacement.

    The longer operand has the nominal number of digits: see `cri.tasks.length_sampling`. Grid coordinates are
    (digits, index among the cases of that length); `Split` kind `lengths` divides by the former. With `mixed` set to 1
    the other operand has any number of digits up to that, equally likely, and in three of ten pairs as many.
    """

    name: ClassVar[str] = "length_addition"
    axis_names: ClassVar[tuple[str, str]] = ("digits", "index")
    min_digits: int = 1
    max_digits: int = 5
    per_length: int = 1000
    seed: int = 0
    mixed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.mixed in (0, 1), "mixed", self.mixed, "0 or 1")
        require(self.min_digits >= 1, "min_digits", self.min_digits, "at least 1")
        require(self.max_digits >= self.min_digits, "max_digits", self.max_digits, f"at least {self.min_digits}")
        require(self.max_digits <= 1000, "max_digits", self.max_digits, "at most 1000")
        require(self.per_length >= 1, "per_length", self.per_length, "at least 1")
        n = self.per_length * (self.max_digits - self.min_digits + 1)
        check_memory("per_length", self.per_length, (BYTES_A_CASE + 2 * self.max_digits) * n, f"{n:,} cases")

    def _enumerate(self) -> Iterator[tuple[int, int]]:
        for n_digits in range(self.min_digits, self.max_digits + 1):
            draw = sample_mixed_pairs if self.mixed else sample_pairs
            yield from draw(n_digits, self.per_length, self.seed)

    @cached_property
    def n_digits(self) -> Int[np.ndarray, " case"]:
        """Digits of the longer operand of every case."""
        return np.array([len(str(max(pair))) for pair in self.operands], dtype=np.int64)

    @cached_property
    def coords(self) -> Int[np.ndarray, "case 2"]:
        first = np.searchsorted(self.n_digits, self.n_digits)  # ids run by length
        return np.stack([self.n_digits, np.arange(self.n_cases) - first], axis=1)

    @property
    def center(self) -> tuple[int, int]:
        raise CriError("split: length_addition has no main square; use split lengths")


TASKS: dict[str, type[Task]] = {
    t.name: t for t in (Addition, ModAddition, BaseAddition, LinearRegression, ChickenRabbit)
}
"""The five tasks with a grid; `make_task` knows `length_addition` and the planted ones as well."""

_ALL_TASKS: dict[str, type[Task]] = {**TASKS, LengthAddition.name: LengthAddition, **PLANTED}


def make_task(name: str, **params: Any) -> Task:
    """The task called `name` with the paper's parameters, or those given.

    Raises `UnknownNameError` for an unknown task or parameter, `CriError` for a bad value.
    """
    if name not in _ALL_TASKS:
        raise unknown_name("task", name, _ALL_TASKS)
    valid = [f.name for f in dataclasses.fields(_ALL_TASKS[name])]
    for key in params:
        if key not in valid:
            raise unknown_name(f"parameter of task {name}", key, valid)
    return _ALL_TASKS[name](**params)


def task_from_dict(data: Mapping[str, Any]) -> Task:
    """Inverse of `Task.to_dict`."""
    params = dict(data)
    return make_task(params.pop("name"), **params)
