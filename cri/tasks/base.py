"""What a task is: a grid of cases with questions, answers and rule steps.

A *case* is one (a, b) of a task's grid with a stable integer id; every array of the package is
aligned to these ids.
"""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Protocol

import numpy as np
from jaxtyping import Int

from cri.checks import check_dataclass, check_memory
from cri.config import TrainConfig
from cri.errors import CriError, out_of_range
from cri.tasks.steps import Step

BYTES_A_CASE = 1000
"""About what a case takes as operands, texts and tokens of the direct format; traces take more."""


@dataclass(frozen=True, eq=False)
class RuleCode:
    """A task's rule as a plain Python function, whose source a model is given and whose execution it writes down.

    Attributes:
        function: of the operands as lists of digits, most significant first; returns such a list, or several. What it
            may use is in `cri.formats.rules.language`. Its source is read and parsed, the function is never called.
        constants: of its keyword-only parameters, which are written into the source.
        sentence: the answer's text, with a place for every list returned.
        step_lines: how the code lines begin that execute a rule step. They are executed in the order of `Task.steps`,
            once for each step.
        answer_lists: names of the lists that the rule builds its answer, or a part of it, in.
    """

    function: Callable[..., object]
    constants: Mapping[str, Any] = field(default_factory=dict)
    sentence: str = "{}"
    step_lines: tuple[str, ...] = ("total = ", "if len(result) > ")
    answer_lists: tuple[str, ...] = ("result",)


class ScratchpadWriter(Protocol):
    """What a task writes its scratchpad with: the grammar of `cri.formats.scratchpad`.

    Numbers are texts of digits. Go on with what a method returns, not with what you gave it: an edit may have changed
    it.
    """

    def block(self, op: str, x: str, y: str, base: int = 10) -> str:
        """The lines of `x OP y` (`+`, `-`, `*` by a digit, `/` by two), digit by digit; returns the result."""
        ...

    def equation(self, op: str, x: str, y: str) -> str:
        """The line `x OP y=` and the block of lines that it introduces; returns the result."""
        ...

    def compare(self, x: str, y: str) -> bool:
        """The line `x>=y` or `x<y`; returns whether x >= y."""
        ...

    def result(self, answer: str, last: bool = False) -> str:
        """The line with a block's result; with `last` it is the task's answer and ends the scratchpad."""
        ...

    def sentence(self, template: str, **numbers: str) -> None:
        """The last line, where the answer is a sentence with a place `{}` for each number, in order."""
        ...


@dataclass(frozen=True)
class Task(ABC):
    """A grid of cases with their questions and answers, and all that is particular to the task.

    A subclass is entered by `@task` (`cri.tasks.registry`). Its annotated fields are parameters, whole numbers that are
    part of a run's config. It must define `name`, `enumerate_cases`, `question`, `value` and `center`; a `SquareGrid`
    has cases and centre already. The rest has defaults.
    """

    name: ClassVar[str]
    axis_names: ClassVar[tuple[str, str]] = ("a", "b")
    """What the grid's rows and columns are."""
    color: ClassVar[str] = "black"
    """In figures."""
    planted: ClassVar[str] = ""
    """From what alone the task can be answered, where its mechanism is planted: `cases only`, `steps only`."""
    answer_pattern: ClassVar[str] = r"\d+"
    """Regular expression of an answer in the direct format's words."""
    square_sides: ClassVar[tuple[int, int]] = (10, 19)
    """Least and greatest half side of random held-out squares (split `squares`)."""
    recipes: ClassVar[Mapping[str, TrainConfig]] = {}
    """Training settings by format, where those of the format do not do (see `cri.training.recipes`)."""
    small_grid: ClassVar[Mapping[str, int]] = {"size": 20, "half_side": 3}
    """A grid on which every format is learnt on a CPU in minutes: size, and half side of the held-out square."""
    small_recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Training settings on the small grid by format, where those of the format do not do (see `studies.matrix`)."""

    def __post_init__(self) -> None:
        check_dataclass(self, self.name)

    @abstractmethod
    def enumerate_cases(self) -> Iterator[tuple[int, int]]:
        """All (a, b) in id order."""

    @abstractmethod
    def question(self, a: int, b: int) -> str: ...

    @abstractmethod
    def value(self, a: int, b: int) -> int:
        """The number asked for (chicken & rabbit: the rabbits), for colouring and probing."""

    @property
    @abstractmethod
    def center(self) -> tuple[int, int]:
        """Centre of the task's main Leave-Square-Out square, in grid coordinates."""

    @classmethod
    def params_of_size(cls, size: int) -> dict[str, int]:
        """The task's parameters on a grid of this size."""
        return {"size": size}

    def answer(self, a: int, b: int) -> str:
        """The answer as the direct format completes it."""
        return str(self.value(a, b))

    def read_value(self, answer: str) -> int | None:
        """The number that an answer's text states (`value` is that of the right one): the first in it, None without."""
        base = self.digit_base
        found = re.search(r"\d+", answer)
        if found is None or any(int(digit) >= base for digit in found[0]):
            return None
        return int(found[0], base)

    def steps(self, a: int, b: int) -> tuple[Step, ...]:
        """The rule steps that answer the case, in order of execution; none where the task names none."""
        return ()

    @property
    def digit_base(self) -> int:
        """Base in which numbers are written."""
        return 10

    @property
    def rule(self) -> RuleCode | None:
        """The task's rule, for the format `rfft`; None where it has none."""
        return None

    def write_scratchpad(self, pad: ScratchpadWriter, a: int, b: int) -> None:
        """Writes the scratchpad of case (a, b), for the format `scratchpad`. Raises `CriError` where there is none."""
        raise CriError(f"format: task {self.name} has no scratchpad")

    def repeats_last_state(self, a: int, b: int) -> bool:
        """Whether the public scratchpad file repeats the last state line of a case."""
        return False

    def coordinates(self, a: int, b: int) -> tuple[int, int]:
        """Row and column of a case on the grid."""
        return a, b

    @cached_property
    def operands(self) -> list[tuple[int, int]]:
        """(a, b) of every case as Python integers, item i being case id i."""
        return list(self.enumerate_cases())

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
        return np.array([self.coordinates(a, b) for a, b in self.operands], dtype=np.int64)

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

    def to_dict(self) -> dict[str, Any]:
        """JSON form, read back by `cri.tasks.task_from_dict`."""
        return {"name": self.name, **dataclasses.asdict(self)}


def require(condition: bool, field: str, value: object, allowed: str) -> None:
    """Raises `CriError` naming the field, its value and what is allowed, unless the condition holds."""
    if not condition:
        raise out_of_range(field, value, allowed)


@dataclass(frozen=True)
class SquareGrid(Task):
    """a and b both in 0 .. size-1."""

    size: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.size >= 2, "size", self.size, "at least 2")
        check_memory("size", self.size, BYTES_A_CASE * self.size**2, f"a grid of {self.size**2:,} cases")

    def enumerate_cases(self) -> Iterator[tuple[int, int]]:
        return ((a, b) for a in range(self.size) for b in range(self.size))

    @property
    def center(self) -> tuple[int, int]:
        return self.size // 2, self.size // 2
