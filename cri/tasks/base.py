"""What a task is: a grid of cases with questions, answers and rule steps.

A *case* is one (a, b) of a task's grid with a stable integer id; every array of the package is
aligned to these ids.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int, Shaped

from cri.checks import check_dataclass, check_memory
from cri.errors import CriError, out_of_range
from cri.tasks.steps import Step, add_steps

BYTES_A_CASE = 1000
"""About what a case takes as operands, texts and tokens of the direct format; traces take more."""


@dataclass(frozen=True)
class Task(ABC):
    """A grid of cases with their questions and answers; subclasses are frozen dataclasses."""

    def __post_init__(self) -> None:
        check_dataclass(self, self.name)

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
        """JSON form, read back by `cri.tasks.task_from_dict`."""
        return {"name": self.name, **dataclasses.asdict(self)}


def require(condition: bool, field: str, value: object, allowed: str) -> None:
    """Raises `CriError` naming the field, its value and what is allowed, unless the condition holds."""
    if not condition:
        raise out_of_range(field, value, allowed)


@dataclass(frozen=True)
class Sums(Task):
    """`a+b=` -> a + b in base 10, where a subclass does not say otherwise."""

    def question(self, a: int, b: int) -> str:
        return f"{a}+{b}="

    def value(self, a: int, b: int) -> int:
        return a + b

    def steps(self, a: int, b: int) -> tuple[Step, ...]:
        return tuple(add_steps(a, b))


@dataclass(frozen=True)
class SquareGrid(Sums):
    """a and b both in 0 .. size-1."""

    size: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.size >= 2, "size", self.size, "at least 2")
        check_memory("size", self.size, BYTES_A_CASE * self.size**2, f"a grid of {self.size**2:,} cases")

    def _enumerate(self) -> Iterator[tuple[int, int]]:
        return ((a, b) for a in range(self.size) for b in range(self.size))

    @property
    def center(self) -> tuple[int, int]:
        return self.size // 2, self.size // 2
