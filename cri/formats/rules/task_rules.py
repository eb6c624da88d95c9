"""A task's rule checked and parsed (`Task.rule` is the function), and how a case runs through it.

Lists hold digits, most significant first. Constants of the task are written into the source (see
`cri.formats.rules.language`); the rule of `base_addition` shows its 9.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from cri.errors import CriError
from cri.formats.rules.language import Rule, parse_rule
from cri.formats.rules.tracer import Trace, trace_rule
from cri.formats.traces import Edit, TraceLine
from cri.tasks import Task
from cri.tasks.steps import Step, digits

Digits = list[int]


@dataclass(frozen=True, eq=False)
class TaskRule:
    """A task's rule, and the way from a case into it and out of it.

    Attributes:
        rule: the rule with the task's constants in its source.
        base: in which the operands' digits are.
        sentence: the answer's text, with a place for every returned list.
        step_lines: how the code lines begin that execute a rule step.
    """

    rule: Rule
    base: int = 10
    sentence: str = "{}"
    step_lines: tuple[str, ...] = ()

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
        return _with_steps(self.run(a, b, edit).lines, task.steps(a, b), self.step_lines)


def _with_steps(lines: Sequence[TraceLine], steps: Sequence[Step], step_lines: tuple[str, ...]) -> list[TraceLine]:
    step_of_line: dict[int, Step] = {}
    step_of_iteration: dict[int, Step] = {}
    executing: dict[int, Step] = {}
    todo = iter(steps)
    for i, line in enumerate(lines):
        if line.kind != "code" or not line.text.startswith(step_lines):
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
    code = task.rule
    if code is None:
        raise CriError(f"format: task {task.name} has no rule")
    return TaskRule(parse_rule(code.function, **code.constants), task.digit_base, code.sentence, code.step_lines)
