"""Formats: a case as prompt and completion, and a model's completion read back.

`direct` answers at once, `scratchpad` writes the state of the calculation line by line, `rfft`
(rule-following fine-tuning) is given the rule as code and writes down its execution.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from cri.errors import out_of_range, unknown_name
from cri.tasks import Task
from cri.traces import Reading, Status, TraceLine, first_deviation, join


@dataclass(frozen=True)
class Format(ABC):
    """How a case is put to a model, and how its answer is read."""

    name: ClassVar[str]

    @abstractmethod
    def trace(self, task: Task, a: int, b: int) -> list[TraceLine]:
        """The lines of the completion: their texts joined are `completion(task, a, b)`.

        Raises `CriError` for negative operands, or where the task lacks this format.
        """

    @abstractmethod
    def read_answer(self, task: Task, text: str) -> str | None:
        """The answer that a finished completion gives, None where it gives none."""

    def prompt(self, task: Task, a: int, b: int) -> str:
        """Everything that the model is given."""
        return task.question(a, b)

    def completion(self, task: Task, a: int, b: int) -> str:
        """What the model must write (without the end-of-sequence token)."""
        return join(self.trace(task, a, b))

    def atoms(self, task: Task) -> list[str]:
        """Strings that a whole-word tokenizer keeps as one token (empty for `direct` and `scratchpad`)."""
        return []

    def read(self, task: Task, a: int, b: int, text: str, *, finished: bool) -> Reading:
        """Reads a model's `text`; `finished` says whether it ended with the end-of-sequence token."""
        lines = self.trace(task, a, b)
        answer = self.read_answer(task, text) if finished else None
        deviation = first_deviation(lines, text, finished=finished)
        status: Status
        if not finished:
            status = "truncated"
        elif answer is None:
            status = "malformed"
        else:
            status = "right" if answer == task.answer(a, b) else "wrong"
        if deviation is None:
            return Reading(status, answer)
        index, error = deviation
        return Reading(status, answer, index, lines[index].step, error)


def check_operands(a: int, b: int) -> None:
    """Raises `CriError` for a negative operand."""
    for name, value in (("a", a), ("b", b)):
        if value < 0:
            raise out_of_range(name, value, "a non-negative integer")


def _match_answer(task: Task, text: str) -> str | None:
    pattern = r"There are \d+ rabbits and \d+ chickens\." if task.name == "chicken_rabbit" else r"\d+"
    text = text.strip()
    return text if re.fullmatch(pattern, text) else None


@dataclass(frozen=True)
class Direct(Format):
    """The answer right after the question."""

    name: ClassVar[str] = "direct"

    def trace(self, task: Task, a: int, b: int) -> list[TraceLine]:
        check_operands(a, b)
        text = task.answer(a, b)
        span = {"answer": (0, len(text))}
        return [TraceLine(text, 0, len(text), elements=span, roles={"answer": "answer"})]

    def read_answer(self, task: Task, text: str) -> str | None:
        return _match_answer(task, text)


FORMATS: dict[str, Format] = {f.name: f for f in (Direct(),)}


def make_format(name: str) -> Format:
    """The format called `name`; raises `UnknownNameError` listing the valid ones."""
    if name not in FORMATS:
        raise unknown_name("format", name, FORMATS)
    return FORMATS[name]
