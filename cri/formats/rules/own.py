"""A rule of one's own: any plain Python function over digit lists, traced line by line, and edited."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cri.formats.rules.language import Rule, parse_rule
from cri.formats.rules.tracer import Trace, trace_rule
from cri.formats.traces import Edit, edit_of, trace_table
from cri.tasks.base import RuleCode
from cri.tasks.steps import digits

if TYPE_CHECKING:
    import pandas as pd

Number = int | list[int]


@dataclass(frozen=True, eq=False)
class OwnRule(RuleCode):
    """A function as a rule: as `rule` of a task it is what the format `rfft` writes down; alone it can be traced.

    Its source is read and parsed; the function itself is never called.
    """

    @property
    def parsed(self) -> Rule:
        """The rule with its constants filled in; `parsed.source` is what a model is shown."""
        return parse_rule(self.function, **self.constants)

    def run(self, *numbers: Number, edit: Edit | None = None) -> Trace:
        """The execution: `lines`, `text`, `result`. Numbers are digit lists, or whole numbers taken in base 10."""
        return trace_rule(self.parsed, *(digits(n) if isinstance(n, int) else n for n in numbers), edit=edit)

    def trace(self, *numbers: Number) -> pd.DataFrame:
        """The execution, one row a line: `line, text, elements` (name -> text)."""
        return _shown(self.run(*numbers))

    def edit(self, numbers: tuple[Number, ...], element: str, value: str, line: int | None = None) -> pd.DataFrame:
        """The execution with one element changed where it is written, as the rule goes on from there.

        Args:
            numbers: the arguments, as in `trace`.
            element: its name on the line, such as `total` (see `trace`).
            value: the new text.
            line: number of the trace's line; by default the first line whose element is not `value` already.

        Raises `CriError` for an element that no line has, and for a value that it cannot hold.
        """
        return _shown(self.run(*numbers, edit=edit_of(self.run(*numbers).lines, element, value, line)))


def _shown(trace: Trace) -> pd.DataFrame:
    return trace_table(trace.lines)[["line", "text", "elements"]]


def rule(
    function: Callable[..., object],
    *,
    sentence: str = RuleCode.sentence,
    step_lines: tuple[str, ...] = RuleCode.step_lines,
    answer_lists: tuple[str, ...] = RuleCode.answer_lists,
    **constants: Any,
) -> OwnRule:
    """A function as a rule; `@cri.rule` above a function without constants does the same.

    Args:
        function: of lists of digits, most significant first; returns one, or several. It may use names, numbers,
            lists, `while`, `if`, `for` over a list or range, and what else `cri.formats.rules.language` lists.
        sentence, step_lines, answer_lists: of `cri.tasks.base.RuleCode`.
        constants: of the function's keyword-only parameters; they are written into the source.

    Raises `CriError` naming the line and the construct for a function outside that language.
    """
    made = OwnRule(function, constants, sentence, step_lines, answer_lists)
    _ = made.parsed  # refused here rather than at its first use
    return made
