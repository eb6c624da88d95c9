"""Formats: a case as prompt and completion, and a model's completion read back.

`direct` answers at once, `scratchpad` writes the state of the calculation line by line (grammar in
`cri.formats.scratchpad`), `rfft` (rule-following fine-tuning) is given the rule as code and writes down its
execution (layout in `cri.formats.rules.tracer`). All three execute the same rule steps, `Task.steps`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from cri.checks import checked
from cri.errors import CriError, out_of_range, unknown_name
from cri.formats.rules.language import Rule
from cri.formats.rules.stated import (
    read_result,
    rule_id,
    rule_text,
    scrambled_text,
    shuffled_text,
    stated_atoms,
    stated_trace,
)
from cri.formats.rules.task_rules import task_rule
from cri.formats.rules.tracer import trace_atoms
from cri.formats.scratchpad import published_trace, scratchpad_trace
from cri.formats.shuffled import shuffled_trace
from cri.formats.traces import Edit, Reading, Status, TraceLine, TraceWriter, first_deviation, join
from cri.tasks import Task
from cri.tasks.many_rules import ManyRules, unpack


@dataclass(frozen=True)
class Format(ABC):
    """How a case is put to a model, and how its answer is read."""

    name: ClassVar[str]

    @abstractmethod
    def trace(self, task: Task, a: int, b: int, edit: Edit | None = None) -> list[TraceLine]:
        """The lines of the completion: their texts joined are `completion(task, a, b)`.

        With an `edit`, what the rule would write if one element had another text: the lines before it
        unchanged, its line up to it unchanged, everything after following from the edited state.

        Raises `CriError` for negative operands, where the task lacks this format, and for an edit that
        names no element or holds no legal value.
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

    def further_texts(self, task: Task) -> list[str]:
        """Texts that a tokenizer must be able to write, beside those of the task's own cases."""
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
    text = text.strip()
    return text if re.fullmatch(task.answer_pattern, text) else None


@dataclass(frozen=True)
class Direct(Format):
    """The answer right after the question."""

    name: ClassVar[str] = "direct"

    def trace(self, task: Task, a: int, b: int, edit: Edit | None = None) -> list[TraceLine]:
        check_operands(a, b)
        writer = TraceWriter(edit)
        writer.element("answer", task.answer(a, b), "answer")
        writer.end_line("answer", last=True)
        return writer.finish()

    def read_answer(self, task: Task, text: str) -> str | None:
        return _match_answer(task, text)


@dataclass(frozen=True)
class Scratchpad(Format):
    """The state of the calculation after every step, then the answer on a line of its own."""

    name: ClassVar[str] = "scratchpad"

    def trace(self, task: Task, a: int, b: int, edit: Edit | None = None) -> list[TraceLine]:
        check_operands(a, b)
        return scratchpad_trace(task, a, b, edit)

    def read_answer(self, task: Task, text: str) -> str | None:
        return _match_answer(task, text.rstrip().rpartition("\n")[2])


@dataclass(frozen=True)
class PublishedScratchpad(Scratchpad):
    """The scratchpad as the public data of arXiv 2402.17709 has it, to the letter (see `cri.formats.scratchpad`)."""

    name: ClassVar[str] = "scratchpad_as_published"

    def trace(self, task: Task, a: int, b: int, edit: Edit | None = None) -> list[TraceLine]:
        check_operands(a, b)
        return published_trace(task, a, b, edit)


@dataclass(frozen=True)
class ShuffledScratchpad(Scratchpad):
    """A control: another case's scratchpad in front of this case's answer (see `cri.formats.shuffled`)."""

    name: ClassVar[str] = "shuffled_scratchpad"

    def trace(self, task: Task, a: int, b: int, edit: Edit | None = None) -> list[TraceLine]:
        check_operands(a, b)
        return shuffled_trace(task, a, b, edit)


INTRODUCTION = "Follow the code step by step to answer the question:"


def rule_prompt(question: str, rule: Rule) -> str:
    """The prompt of the `rfft` format, for any question and rule (a user's own, or an edited one)."""
    return f"{INTRODUCTION}\n{question}\n{rule.source}\n"


@dataclass(frozen=True)
class RuleFollowing(Format):
    """The prompt holds the rule's source; the completion is the rule's execution, traced."""

    name: ClassVar[str] = "rfft"

    def prompt(self, task: Task, a: int, b: int) -> str:
        return rule_prompt(task.question(a, b), task_rule(task).rule)

    def trace(self, task: Task, a: int, b: int, edit: Edit | None = None) -> list[TraceLine]:
        check_operands(a, b)
        return task_rule(task).trace(task, a, b, edit)

    def completion(self, task: Task, a: int, b: int) -> str:
        check_operands(a, b)
        return task_rule(task).run(a, b).text  # the same lines, without the time to look up their steps

    def read_answer(self, task: Task, text: str) -> str | None:
        return task_rule(task).read_answer(text.rstrip().rpartition("\n")[2])

    def atoms(self, task: Task) -> list[str]:
        return [INTRODUCTION, *trace_atoms(task_rule(task).rule)]


@dataclass(frozen=True)
class StatedRule(Format):
    """One of many rules in the prompt, then the lists; the completion is the rule's execution (`rules.stated`)."""

    name: ClassVar[str] = "stated_rule"

    def shown(self, task: ManyRules, a: int, b: int) -> str:
        """What the prompt says about the rule."""
        return rule_text(task.rule_of(a))

    def prompt(self, task: Task, a: int, b: int) -> str:
        own = _many_rules(self.name, task)
        return self.shown(own, a, b) + own.question(a, b)

    def trace(self, task: Task, a: int, b: int, edit: Edit | None = None) -> list[TraceLine]:
        check_operands(a, b)
        return stated_trace(_many_rules(self.name, task).rule_of(a), *unpack(b), edit)

    def read_answer(self, task: Task, text: str) -> str | None:
        return read_result(text)

    def atoms(self, task: Task) -> list[str]:
        return stated_atoms()

    def further_texts(self, task: Task) -> list[str]:
        return stated_atoms()  # questions about lists and edited rules that are no cases, too


@dataclass(frozen=True)
class ShuffledRule(StatedRule):
    """A control: another rule's text, drawn for each case."""

    name: ClassVar[str] = "shuffled_rule"

    def shown(self, task: ManyRules, a: int, b: int) -> str:
        return shuffled_text(task.rule_of(a), f"{a} {b}")


@dataclass(frozen=True)
class RuleId(StatedRule):
    """A control: an opaque name in the rule's place."""

    name: ClassVar[str] = "rule_id"

    def shown(self, task: ManyRules, a: int, b: int) -> str:
        return rule_id(task.rule_of(a))


@dataclass(frozen=True)
class ScrambledRule(StatedRule):
    """A control: the text's tokens in an order drawn for each rule."""

    name: ClassVar[str] = "scrambled_rule"

    def shown(self, task: ManyRules, a: int, b: int) -> str:
        return scrambled_text(task.rule_of(a))


def _many_rules(name: str, task: Task) -> ManyRules:
    if not isinstance(task, ManyRules):
        raise CriError(f"format: {name} needs the task many_rules, not {task.name}")
    return task


FORMATS: dict[str, Format] = {f.name: f for f in (Direct(), Scratchpad(), RuleFollowing())}
"""The three formats; `make_format` knows the control `shuffled_scratchpad`, the variant `scratchpad_as_published`, and
`STATED` as well."""

STATED: dict[str, Format] = {f.name: f for f in (StatedRule(), ShuffledRule(), RuleId(), ScrambledRule())}
"""The format of the task `many_rules`, and its three controls."""

_ALL_FORMATS: dict[str, Format] = {
    **FORMATS, **{f.name: f for f in (ShuffledScratchpad(), PublishedScratchpad())}, **STATED
}  # fmt: skip


@checked
def make_format(name: str) -> Format:
    """The format called `name`; raises `UnknownNameError` listing the valid ones."""
    if name not in _ALL_FORMATS:
        raise unknown_name("format", name, _ALL_FORMATS)
    return _ALL_FORMATS[name]
