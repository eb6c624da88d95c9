"""Traces: a completion as lines, each line with its rule step and its named elements.

A *line* knows its character span in the completion, the step that it belongs to, and the spans of
its *elements* (a carry, a digit, a loop decision, ...), so that a study can patch or replace exactly
one of them. Scratchpad and rule-following traces are both written by `TraceWriter`, which can also
apply one `Edit` on the way: what is written after the edit is then what the rule would write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from cri.errors import CriError, out_of_range, unknown_name
from cri.tasks.steps import Step

if TYPE_CHECKING:
    import pandas as pd

Status = Literal["right", "wrong", "truncated", "malformed"]

ERROR_KINDS = ("copy", "digit", "carry", "compare", "branch", "loop_count", "answer", "code", "stop", "format")
"""What a first deviation can be: `copy` a value that should be repeated, `digit` and `carry` a value
that should be computed, `compare` a comparison of whole numbers, `branch` and `loop_count` a wrong
decision, `answer` the final answer, `code` a wrongly recited line, `stop` an end that comes too early
or not in time, `format` anything else (punctuation, layout)."""


class TraceLine(NamedTuple):
    """One line of a completion.

    Attributes:
        text: the line with its newline (the last line has none): `completion[start:stop]`.
        start, stop: character span in the completion.
        kind: what sort of line it is (`state`, `result`, `code`, `reads`, ...; see the formats).
        step: the rule step that the line belongs to, None for lines outside any step.
        executes: whether this is the very line that carries out `step`.
        iteration: which loop iteration of the trace the line belongs to (RFFT), counted from 0.
        elements: name -> character span *in the completion*; spans may nest.
        roles: name -> the error kind that a deviation within the element is (see `ERROR_KINDS`).
    """

    text: str
    start: int
    stop: int
    kind: str
    step: Step | None
    executes: bool
    iteration: int | None
    elements: Mapping[str, tuple[int, int]]
    roles: Mapping[str, str]


@dataclass(frozen=True)
class Reading:
    """What a model's text says, compared with the reference trace.

    Attributes:
        status: `right` or `wrong` by the final answer alone; `truncated`: no end of sequence within
            the tokens allowed; `malformed`: finished, but no answer where the format puts it.
        answer: the answer read, in the direct format's words; None if truncated or malformed.
        first_deviation: index of the first trace line that differs from the reference; None if the
            text follows the reference (as far as it goes, if truncated). A right answer may deviate.
        step: the step of that line, None where it belongs to none.
        error: what sort of deviation it is, one of `ERROR_KINDS`; None without deviation.
    """

    status: Status
    answer: str | None
    first_deviation: int | None = None
    step: Step | None = None
    error: str | None = None


@dataclass(frozen=True)
class Edit:
    """Replace one element of one line of a trace by another text."""

    line: int
    element: str
    text: str


def element_text(line: TraceLine, element: str) -> str:
    """What an element of a line holds."""
    start, stop = line.elements[element]
    return line.text[start - line.start : stop - line.start]


def edit_of(lines: Sequence[TraceLine], element: str, value: str, line: int | None = None) -> Edit:
    """The edit of one element of a trace, by default on the first line whose element is not `value` already. Raises
    `CriError` for an element that no line has, and for a value that is not a text or is already there."""
    if not isinstance(value, str):
        raise CriError(f"value: {value!r} is not a text; write {str(value)!r}")
    if line is None:
        held = {n: element_text(x, element) for n, x in enumerate(lines) if element in x.elements}
        if not held:
            raise unknown_name("element", element, sorted({name for x in lines for name in x.elements}))
        line = next((n for n, text in held.items() if text != value), None)
        if line is None:
            raise CriError(f"value: {value!r} is what {element!r} holds already, on every line that has it")
    return Edit(line, element, value)


def trace_table(lines: Sequence[TraceLine]) -> pd.DataFrame:
    """One row a line: `line, text, step, executes, elements` (name -> text)."""
    import pandas as pd

    return pd.DataFrame(
        {
            "line": n,
            "text": line.text.rstrip("\n"),
            "step": line.step,
            "executes": line.executes,
            "elements": {name: element_text(line, name) for name in line.elements},
        }
        for n, line in enumerate(lines)
    )


def join(lines: Sequence[TraceLine]) -> str:
    """The completion that the lines make up."""
    return "".join(line.text for line in lines)


class TraceWriter:
    """Writes a trace line by line, noting element spans, and applies at most one `Edit`.

    The caller must continue with the text that `element` returns, because the edit may have replaced it.
    """

    def __init__(self, edit: Edit | None = None) -> None:
        self.lines: list[TraceLine] = []
        self._edit = edit
        self._applied = edit is None
        self._start = 0
        self._parts: list[str] = []
        self._length = 0
        self._elements: dict[str, tuple[int, int]] = {}
        self._roles: dict[str, str] = {}

    def put(self, text: str) -> None:
        """Writes fixed text."""
        self._parts.append(text)
        self._length += len(text)

    def _unique(self, name: str) -> str:
        unique, n = name, 1
        while unique in self._elements:
            n += 1
            unique = f"{name}#{n}"
        return unique

    def mark(self, name: str, start: int, stop: int, role: str) -> None:
        """Names a stretch of the current line (offsets within the line); a name already used in this
        line gets `#2`, `#3`, ... appended."""
        name = self._unique(name)
        self._elements[name] = (self._start + start, self._start + stop)
        self._roles[name] = role

    def element(self, name: str, text: str, role: str) -> str:
        """Writes a named element and returns its text after the edit, if the edit is of this element."""
        edited = self.edited(name)
        text = text if edited is None else edited
        self.mark(name, self._length, self._length + len(text), role)
        self.put(text)
        return text

    def edited(self, name: str) -> str | None:
        """The replacement of element `name` if it is the one to be edited, here and now, else None."""
        edit = self._edit
        if self._applied or edit is None or edit.line != len(self.lines) or edit.element != self._unique(name):
            return None
        self._applied = True
        return edit.text

    @property
    def length(self) -> int:
        """Characters written on the current line so far."""
        return self._length

    @property
    def position(self) -> int:
        """Characters on all finished lines."""
        return self._start

    def end_line(
        self,
        kind: str,
        step: Step | None = None,
        executes: bool = False,
        iteration: int | None = None,
        last: bool = False,
    ) -> None:
        """Closes the current line, with a newline unless it is the `last` one."""
        text = "".join(self._parts) + ("" if last else "\n")
        stop = self._start + len(text)
        self.lines.append(
            TraceLine(text, self._start, stop, kind, step, executes, iteration, self._elements, self._roles)
        )
        self._start, self._parts, self._length, self._elements, self._roles = stop, [], 0, {}, {}

    def finish(self) -> list[TraceLine]:
        """The lines; raises `CriError` where the edit names no line or no element of the trace."""
        if not self._applied and self._edit is not None:
            check_edit(self.lines, self._edit)
            raise CriError(f"edit.element: {self._edit.element!r} of line {self._edit.line} cannot be edited")
        return self.lines


def check_edit(lines: Sequence[TraceLine], edit: Edit) -> None:
    """Raises `CriError` where `edit` names no line of the trace, or no element of its line."""
    if not 0 <= edit.line < len(lines):
        raise out_of_range("edit.line", edit.line, f"in 0..{len(lines) - 1}")
    if edit.element not in lines[edit.line].elements:
        raise unknown_name(f"edit.element of line {edit.line}", edit.element, lines[edit.line].elements)


def first_deviation(lines: Sequence[TraceLine], text: str, *, finished: bool) -> tuple[int, str] | None:
    """Index and error kind of the first reference line from which `text` differs, None if it follows.

    A text that is cut off (`finished=False`) deviates only where a character differs.
    """
    reference = join(lines)
    shared = _shared_prefix(reference, text)
    if shared == len(text) and (shared == len(reference) or not finished):
        return None
    index = next((i for i, line in enumerate(lines) if shared < line.stop), len(lines) - 1)
    line = lines[index]
    if shared in (len(reference), len(text)):
        # the reference ends and the text goes on, or the other way round, unless a value just grew or shrank
        grew = shared < len(text) and text[shared].isdigit() and text[shared - 1 : shared].isdigit()
        cut = shared < len(reference) and reference[shared].isdigit() and text[shared - 1 : shared].isdigit()
        if not (grew or cut):
            return index, "stop"
    if line.kind in ("state", "result") or (line.kind == "answer" and index):
        # scratchpad: the loop over digits ends too early or too late
        written, newline, _ = text[line.start :].partition("\n")
        if (newline or finished) and ("," in written) != (line.kind == "state"):
            return index, "loop_count"
    grown = shared < len(text) and text[shared].isalnum() and not reference[shared : shared + 1].isalnum()
    hits = [
        (stop - start, -i, name)  # the innermost one, which is the last one of equal length
        for i, (name, (start, stop)) in enumerate(line.elements.items())
        if start <= shared < stop or (shared == stop and grown)
    ]
    if hits:
        return index, line.roles[min(hits)[2]]
    return index, "code" if line.kind in ("code", "fence") else "format"


def _shared_prefix(x: str, y: str) -> int:
    n = min(len(x), len(y))
    if x[:n] == y[:n]:
        return n
    low, high = 0, n  # invariant: x[:low] == y[:low], x[:high] != y[:high]
    while high - low > 1:
        middle = (low + high) // 2
        if x[low:middle] == y[low:middle]:
            low = middle
        else:
            high = middle
    return low
