"""The five tasks: grids of cases, questions, answers, and the rule steps of a case.

A *case* is one (a, b) of a task's grid with a stable integer id; every array of the package is
aligned to these ids. Parameters default to the paper's values (arXiv 2402.17709, public code
GraphPKU/Case_or_Rule), so that questions and answers reproduce its data exactly.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int, Shaped

from cri.errors import CriError, out_of_range, unknown_name
from cri.lengths import sample_pairs
from cri.steps import Step, add_steps, halve_steps, mul_steps, sub_steps, to_base


@dataclass(frozen=True)
class Task(ABC):
    """A grid of cases with their questions and answers; subclasses are frozen dataclasses."""

    name: ClassVar[str]
    axis_names: ClassVar[tuple[str, str]] = ("a", "b")
    """What the grid's rows and columns are."""

    @abstractmethod
    def _enumerate(self) -> Iterator[tuple[int, int]]:
        """All (a, b) in id order."""

    @abstractmethod
    def question(self, a: int, b: int) -> str: ...

    @abstractmethod
    def value(self, a: int, b: int) -> int:
        """The number asked for (chicken & rabbit: the rabbits), for colouring and probing."""

    @abstractmethod
    def steps(self, a: int, b: int) -> tuple[Step, ...]:
        """The rule steps that answer the case, in order of execution."""

    @property
    @abstractmethod
    def center(self) -> tuple[int, int]:
        """Centre of the task's main Leave-Square-Out square, in grid coordinates."""

    def answer(self, a: int, b: int) -> str:
        """The answer as the direct format completes it."""
        return str(self.value(a, b))

    def _coordinates(self, a: int, b: int) -> tuple[int, int]:
        return a, b

    @cached_property
    def operands(self) -> list[tuple[int, int]]:
        """(a, b) of every case as Python integers, item i being case id i."""
        return list(self._enumerate())

    @cached_property
    def cases(self) -> Int[np.ndarray, "case 2"]:
        """`operands` as an array; raises `CriError` beyond 64 bits."""
        return self._int64("cases", self.operands).reshape(-1, 2)

    def _int64(self, what: str, values: Sequence[Any]) -> np.ndarray:
        try:
            return np.array(values, dtype=np.int64)
        except OverflowError:
            raise CriError(f"{what}: the numbers of {self.name} exceed 64 bits; use operands and answers") from None

    @cached_property
    def coords(self) -> Int[np.ndarray, "case 2"]:
        """Grid coordinates (row, column) of every case; distances are measured in these."""
        return np.array([self._coordinates(a, b) for a, b in self.operands], dtype=np.int64)

    @property
    def n_cases(self) -> int:
        return len(self.operands)

    @cached_property
    def questions(self) -> list[str]:
        return [self.question(a, b) for a, b in self.operands]

    @cached_property
    def answers(self) -> list[str]:
        return [self.answer(a, b) for a, b in self.operands]

    @cached_property
    def values(self) -> Int[np.ndarray, " case"]:
        return self._int64("values", [self.value(a, b) for a, b in self.operands])

    @cached_property
    def case_steps(self) -> list[tuple[Step, ...]]:
        """The rule steps of every case, aligned to case ids."""
        return [self.steps(a, b) for a, b in self.operands]

    @cached_property
    def _ids(self) -> dict[tuple[int, int], int]:
        return {(a, b): i for i, (a, b) in enumerate(self.operands)}

    def id_of(self, a: int, b: int) -> int:
        """Case id of operands (a, b); raises `CriError` outside the grid."""
        try:
            return self._ids[a, b]
        except KeyError:
            raise out_of_range("case", (a, b), f"a case of {self!r}") from None

    def to_grid(self, values: Shaped[np.ndarray, " case"]) -> Shaped[np.ndarray, "row col"]:
        """Lays one value per case out on the grid, NaN where the grid has no case."""
        values = np.asarray(values)
        if values.shape != (self.n_cases,):
            raise CriError(f"values: shape {values.shape} is not one value for each of {self.n_cases} cases")
        rows, cols = self.coords.T
        grid = np.full((rows.max() + 1, cols.max() + 1), np.nan)
        grid[rows, cols] = values
        return grid

    def to_dict(self) -> dict[str, Any]:
        """JSON form, read back by `make_task`."""
        return {"name": self.name, **dataclasses.asdict(self)}


def _require(condition: bool, field: str, value: object, allowed: str) -> None:
    if not condition:
        raise out_of_range(field, value, allowed)


@dataclass(frozen=True)
class _SquareGrid(Task):
    """a and b both in 0 .. size-1."""

    size: int = 100

    def __post_init__(self) -> None:
        _require(self.size >= 2, "size", self.size, "at least 2")

    def _enumerate(self) -> Iterator[tuple[int, int]]:
        return ((a, b) for a in range(self.size) for b in range(self.size))

    @property
    def center(self) -> tuple[int, int]:
        return self.size // 2, self.size // 2

    def question(self, a: int, b: int) -> str:
        return f"{a}+{b}="

    def value(self, a: int, b: int) -> int:
        return a + b

    def steps(self, a: int, b: int) -> tuple[Step, ...]:
        return tuple(add_steps(a, b))


@dataclass(frozen=True)
class Addition(_SquareGrid):
    """`a+b=` -> `a+b` in base 10."""

    name: ClassVar[str] = "addition"


@dataclass(frozen=True)
class ModAddition(_SquareGrid):
    """`a+b=` -> `(a+b) mod modulus`."""

    name: ClassVar[str] = "mod_addition"
    size: int = 113
    modulus: int = 113

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.modulus >= self.size, "modulus", self.modulus, f"at least size={self.size}")

    def value(self, a: int, b: int) -> int:
        return (a + b) % self.modulus

    def steps(self, a: int, b: int) -> tuple[Step, ...]:
        total = a + b
        steps = add_steps(a, b) + [Step("compare", total, self.modulus, 0)]
        return tuple(steps + sub_steps(total, self.modulus) if total >= self.modulus else steps)


@dataclass(frozen=True)
class BaseAddition(_SquareGrid):
    """`a+b=` -> `a+b`, operands and answer printed in another base."""

    name: ClassVar[str] = "base_addition"
    base: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(2 <= self.base <= 10, "base", self.base, "in 2..10")

    def question(self, a: int, b: int) -> str:
        return f"{to_base(a, self.base)}+{to_base(b, self.base)}="

    def answer(self, a: int, b: int) -> str:
        return to_base(a + b, self.base)

    def steps(self, a: int, b: int) -> tuple[Step, ...]:
        return tuple(add_steps(a, b, self.base))


@dataclass(frozen=True)
class LinearRegression(_SquareGrid):
    """`(a,b)=` -> `slope_a * a + slope_b * b + intercept`."""

    name: ClassVar[str] = "linear_regression"
    slope_a: int = 1
    slope_b: int = 2
    intercept: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("slope_a", "slope_b"):
            _require(1 <= getattr(self, field) <= 9, field, getattr(self, field), "in 1..9")
        _require(self.intercept >= 0, "intercept", self.intercept, "non-negative")

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
        _require(self.size >= 2, "size", self.size, "at least 2")

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
class LengthAddition(Task):
    """`a+b=` -> `a+b` with operands of `min_digits..max_digits` digits, sampled without replacement.

    The longer operand has the nominal number of digits: see `cri.lengths`. Grid coordinates are
    (digits, index among the cases of that length); `Split` kind `lengths` divides by the former.
    """

    name: ClassVar[str] = "length_addition"
    axis_names: ClassVar[tuple[str, str]] = ("digits", "index")
    min_digits: int = 1
    max_digits: int = 5
    per_length: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.min_digits >= 1, "min_digits", self.min_digits, "at least 1")
        _require(self.max_digits >= self.min_digits, "max_digits", self.max_digits, f"at least {self.min_digits}")
        _require(self.per_length >= 1, "per_length", self.per_length, "at least 1")

    def _enumerate(self) -> Iterator[tuple[int, int]]:
        for n_digits in range(self.min_digits, self.max_digits + 1):
            yield from sample_pairs(n_digits, self.per_length, self.seed)

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

    def question(self, a: int, b: int) -> str:
        return f"{a}+{b}="

    def value(self, a: int, b: int) -> int:
        return a + b

    def steps(self, a: int, b: int) -> tuple[Step, ...]:
        return tuple(add_steps(a, b))


TASKS: dict[str, type[Task]] = {
    t.name: t for t in (Addition, ModAddition, BaseAddition, LinearRegression, ChickenRabbit)
}
"""The five tasks with a grid; `make_task` knows `length_addition` and the planted ones as well."""


@dataclass(frozen=True)
class _Planted(_SquareGrid):
    """A labelling whose mechanism is known, to calibrate instruments on: labels in 0 .. n_labels-1.

    The rule step of a case is the pair of its operands' last digits, whether the labels come from it or not: both
    plantings are asked the same question.
    """

    n_labels: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.n_labels >= 2, "n_labels", self.n_labels, "at least 2")

    def steps(self, a: int, b: int) -> tuple[Step, ...]:
        return (Step("table", a % 10, b % 10, 0),)


@dataclass(frozen=True)
class Patchwork(_Planted):
    """The label of the nearest of `n_sites` random sites, each with a random label: local structure and no rule, so a
    case can be answered from nearby cases only. By default a patch has as many cases as a pair of digits."""

    name: ClassVar[str] = "patchwork"
    n_sites: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.n_sites >= 1, "n_sites", self.n_sites, "at least 1")

    @cached_property
    def _labels(self) -> Int[np.ndarray, "row col"]:
        rng = np.random.default_rng(self.seed)
        sites = rng.uniform(0, self.size, size=(self.n_sites, 2))
        cells = np.arange(self.size)[:, None]
        rows, cols = ((cells - sites[:, axis]) ** 2 for axis in (0, 1))
        nearest = (rows[:, None] + cols).argmin(axis=-1)
        return rng.integers(self.n_labels, size=len(sites))[nearest]

    def value(self, a: int, b: int) -> int:
        return int(self._labels[a, b])


@dataclass(frozen=True)
class DigitTable(_Planted):
    """A random table over the pair of last digits: each case is one step, whose label can be learnt only from the
    cases that execute it, wherever they lie."""

    name: ClassVar[str] = "digit_table"

    @cached_property
    def _table(self) -> Int[np.ndarray, "10 10"]:
        return np.random.default_rng(self.seed).integers(self.n_labels, size=(10, 10))

    def value(self, a: int, b: int) -> int:
        return int(self._table[a % 10, b % 10])


PLANTED: dict[str, type[Task]] = {t.name: t for t in (Patchwork, DigitTable)}
"""Tasks with a planted mechanism: answered from nearby cases, and from steps."""

_ALL_TASKS: dict[str, type[Task]] = {**TASKS, LengthAddition.name: LengthAddition, **PLANTED}


def make_task(name: str, **params: Any) -> Task:
    """The task called `name` with the paper's parameters, or those given.

    Raises `UnknownNameError` for an unknown task or parameter, `CriError` for a bad value.
    """
    if name not in _ALL_TASKS:
        raise unknown_name("task", name, _ALL_TASKS)
    valid = [f.name for f in dataclasses.fields(_ALL_TASKS[name])]
    for key, value in params.items():
        if key not in valid:
            raise unknown_name(f"parameter of task {name}", key, valid)
        _require(isinstance(value, int), f"{name}.{key}", value, "an integer")
    return _ALL_TASKS[name](**params)


def task_from_dict(data: Mapping[str, Any]) -> Task:
    """Inverse of `Task.to_dict`."""
    params = dict(data)
    return make_task(params.pop("name"), **params)
