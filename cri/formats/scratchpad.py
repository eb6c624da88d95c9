r"""The scratchpad grammar: the state of a digit-by-digit calculation, one line a step.

A *block* calculates one quantity `x OP y`:

    x OP y,ANSWER,C:CARRY      state: remaining digits, answer so far, carry; once at the start, then
                               after every step (a final carry is one more line without a step)
    VALUE                      the block's result, the answer so far copied

    +   units first; both operands lose their last digit at every step: 99+99,,C:0 / 9+9,8,C:1 / ...
    -   the same with borrows as C:-1; zeros in front of the answer so far are kept (-,019,C:0) and
        dropped in the result (19)
    *   by one digit: the first operand loses its last digit, the factor stays: 84*2,,C:0 / 8*2,8,C:0
    /   by two, most significant digit first: 256/2,,C:0 / 56/2,1,C:0 / 6/2,12,C:1 / /2,128,C:0; the
        carry is the remainder that the next digit is read with, zeros in front are dropped in the result

A block which does not start from the question itself is introduced by its equation, `x OP y=`. A task's
scratchpad is a sequence of blocks and comparisons, which `Task.write_scratchpad` names. The last line is the
task's answer. The additions reproduce the public data of arXiv 2402.17709 (GraphPKU/Case_or_Rule) byte for
byte; `linear_regression` and `chicken_rabbit` are ours in the same grammar.

Line kinds: `state`, `result`, `equation`, `compare`, `answer`. Elements: `x`, `y` (remaining operands),
`answer` (so far), `digit` (its newest digit), `carry` in states; `x`, `y` in equations; `x`, `relation`,
`y` in comparisons; `answer` in results and in the last line, whose sentence also has `rabbits` and
`chickens`. A state line executes the step that leads to it. The last line is an `answer`, never a `result`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cri.errors import CriError
from cri.formats.traces import Edit, TraceLine, TraceWriter
from cri.tasks import Task
from cri.tasks.steps import Step

_OPS = {"+": "add", "-": "sub", "*": "mul", "/": "halve"}


def scratchpad_trace(task: Task, a: int, b: int, edit: Edit | None = None) -> list[TraceLine]:
    """The scratchpad of case (a, b), or what the rule writes on from an edited element.

    With an `edit`, the lines before it are those of the case, the edited line carries the new text, and
    everything after follows from the edited state. Raises `CriError` where the edit names no element of
    the trace, or a text that its element cannot hold.
    """
    writer = _Scratchpad(edit)
    task.write_scratchpad(writer, a, b)
    return writer.finish()


def published_trace(task: Task, a: int, b: int, edit: Edit | None = None) -> list[TraceLine]:
    """The scratchpad of the public files: that of `scratchpad_trace`, and of `base_addition` with a repeated last state
    line in some cases (`Task.repeats_last_state`). The repeated line executes no step, follows an edit of the line
    before it, and cannot be edited itself.

    Raises `CriError` as `scratchpad_trace` does, and for an edit of the repeated line.
    """
    if not task.repeats_last_state(a, b):
        return scratchpad_trace(task, a, b, edit)
    repeated = len(scratchpad_trace(task, a, b)) - 1
    if edit is not None and edit.line == repeated:
        raise CriError(f"edit.line: line {repeated} repeats the one before it; edit line {repeated - 1}")
    if edit is not None and edit.line > repeated:
        edit = replace(edit, line=edit.line - 1)
    *states, answer = scratchpad_trace(task, a, b, edit)
    length = states[-1].stop - states[-1].start
    again = _moved(states[-1], length)._replace(step=None, executes=False)
    return [*states, again, _moved(answer, length)]


def _moved(line: TraceLine, by: int) -> TraceLine:
    elements = {name: (start + by, stop + by) for name, (start, stop) in line.elements.items()}
    return line._replace(start=line.start + by, stop=line.stop + by, elements=elements)


class _Scratchpad(TraceWriter):
    """A trace writer that knows the grammar; every value is returned as written, after an edit."""

    def number(self, name: str, text: str, role: str, *, allow_empty: bool = False) -> str:
        written = self.element(name, text, role)
        if not ((written.isascii() and written.isdigit()) or (allow_empty and not written)):
            raise self._illegal(name, written, "digits")
        return written

    def _illegal(self, name: str, text: str, allowed: str) -> CriError:
        return CriError(f"edit.text: {text!r} is not allowed for {name!r}; must be {allowed}")

    def result(self, answer: str, last: bool = False) -> str:
        """The line with a block's result, without zeros in front."""
        value = self.number("answer", answer, "answer" if last else "copy")
        self.end_line("answer" if last else "result", last=last)
        return value

    def sentence(self, template: str, **numbers: str) -> None:
        """The last line where it is a sentence, with a place `{}` for each number in order."""
        start = self.length
        first, *others = template.split("{}")
        self.put(first)
        for (name, number), text in zip(numbers.items(), others, strict=True):
            self.number(name, number, "answer")
            self.put(text)
        self.mark("answer", start, self.length, "answer")
        self.end_line("answer", last=True)

    def equation(self, op: str, x: str, y: str) -> str:
        """The line `x OP y=` and the block that it introduces; returns the block's answer."""
        x = self.number("x", x, "copy")
        self.put(op)
        y = self.number("y", y, "copy")
        self.put("=")
        self.end_line("equation")
        return self.block(op, x, y)

    def compare(self, x: str, y: str) -> bool:
        """The line that compares two whole numbers; returns whether x >= y."""
        x = self.number("x", x, "copy")
        relation = ">=" if int(x) >= int(y) else "<"
        # the relation precedes y but is worked out from it; an edited y changes the next line only
        relation = self.element("relation", relation, "compare")
        if relation not in (">=", "<"):
            raise self._illegal("relation", relation, "'>=' or '<'")
        y = self.number("y", y, "copy")
        self.end_line("compare", Step("compare", int(x), int(y), 0), executes=True)
        return relation == ">="

    def block(self, op: str, x: str, y: str, base: int = 10) -> str:
        """The state lines of `x OP y`; returns the answer without superfluous zeros in front."""
        advance = _ADVANCE[op]
        x, y, answer, carry = self._state(op, x, y, "", 0, None)
        while x or (y and op in "+-") or (carry > 0 and op in "+*"):
            step, digit, new_x, new_y, new_carry = advance(x, y, carry, base)
            executed = Step(_OPS[op], *step, carry) if step != (None, None) else None
            answer = answer + digit if op == "/" else digit + answer
            x, y, answer, carry = self._state(op, new_x, new_y, answer, new_carry, executed)
        return answer if op in "+*" else answer.lstrip("0") or "0"

    def _state(self, op: str, x: str, y: str, answer: str, carry: int, step: Step | None) -> tuple[str, str, str, int]:
        x = self.number("x", x, "copy", allow_empty=True)
        self.put(op)
        y = self.number("y", y, "copy", allow_empty=True)
        self.put(",")
        start, newest = self.length, len(answer) - 1 if op == "/" else 0
        digit = self.edited("digit") if answer else None
        if digit is not None:
            if len(digit) != 1:
                raise self._illegal("digit", digit, "one digit")
            answer = answer[:newest] + digit + answer[newest + 1 :]
        answer = self.number("answer", answer, "copy", allow_empty=True)
        if answer:
            newest = len(answer) - 1 if op == "/" else 0
            self.mark("digit", start + newest, start + newest + 1, "digit")
        self.put(",C:")
        text = self.element("carry", str(carry), "carry")
        if not text.removeprefix("-").isdecimal():
            raise self._illegal("carry", text, "an integer")
        self.end_line("state", step, executes=step is not None)
        return x, y, answer, int(text)


_Advance = tuple[tuple[int | None, int | None], str, str, str, int]
"""(digits read, digit written, remaining x, remaining y, carry)"""


def _last(digits: str) -> int | None:
    return int(digits[-1]) if digits else None


def _add(x: str, y: str, carry: int, base: int) -> _Advance:
    total = (_last(x) or 0) + (_last(y) or 0) + carry
    return (_last(x), _last(y)), str(total % base), x[:-1], y[:-1], total // base


def _sub(x: str, y: str, carry: int, base: int) -> _Advance:
    total = (_last(x) or 0) - (_last(y) or 0) + carry
    return (_last(x), _last(y)), str(total % base), x[:-1], y[:-1], total // base


def _mul(x: str, y: str, carry: int, base: int) -> _Advance:
    factor = int(y or "0")
    total = (_last(x) or 0) * factor + carry
    return (_last(x), factor if x else None), str(total % base), x[:-1], y, total // base


def _halve(x: str, y: str, carry: int, base: int) -> _Advance:
    total, divisor = carry * base + int(x[0]), int(y or "0")
    if divisor == 0:
        raise CriError("edit.text: division by zero")
    return (int(x[0]), divisor), str(total // divisor), x[1:], y, total % divisor


_ADVANCE: dict[str, Callable[[str, str, int, int], _Advance]] = {"+": _add, "-": _sub, "*": _mul, "/": _halve}
