"""Places in traces: the tokens *from which* a rule step, a line or an element is predicted, one row a (case, place).

A scratchpad decides nothing at the last prompt token; it decides where a step is written. A place names such spots of
every case's reference trace (several in one case, none in another):

- `step:all`, every rule step; `step:2`, the one executed third; `step:units`, `step:tens`, ..., those of a column:
  where the step's result is predicted, that is the digit of a scratchpad's state line, the `total` of a rule's
  execution, the relation of a comparison;
- `line:3`, the trace's fourth line: where its first token is predicted;
- `element:carry`, every element of that name (`cri.formats.traces.TraceLine.elements`).

Predicted *from* the token before: causal attention has seen the trace up to there and not the element itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from cri.data.case_ids import check_case_ids
from cri.data.splits import Split
from cri.data.token_table import TokenTable
from cri.errors import CriError
from cri.formats import Format
from cri.formats.traces import TraceLine, join
from cri.tasks import Task
from cri.tasks.steps import Step

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase

COLUMNS = ("units", "tens", "hundreds", "thousands")
NO_COLUMN = -1
RESULTS = ("digit", "total", "relation", "decision")
"""Elements that hold what a step computes, in the order in which they are looked for."""

Kind = Literal["step", "line", "element"]


@runtime_checkable
class Traced(Protocol):
    """What places are found in: a `Run`, or the `Materials` of one."""

    @property
    def task(self) -> Task: ...
    @property
    def format(self) -> Format: ...
    @property
    def split(self) -> Split: ...
    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...
    @property
    def tokens(self) -> TokenTable: ...


@dataclass(frozen=True, order=True)
class Place:
    """A kind of place and which: a column's name, a number from 0, an element's name, or `all` steps."""

    kind: Kind
    which: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.which}"

    @classmethod
    def parse(cls, text: str) -> Place:
        """`step:tens`, `step:2`, `step:all`, `line:3`, `element:carry`; raises `CriError` for anything else."""
        kind, colon, which = text.partition(":")
        number = which.isascii() and which.isdigit()
        if colon and kind == "step" and (number or which in ("all", *COLUMNS)):
            return cls("step", which)
        if colon and kind == "line" and number:
            return cls("line", which)
        if colon and kind == "element" and which:
            return cls("element", which)
        steps = ", ".join(f"step:{name}" for name in ("all", *COLUMNS))
        raise CriError(f"place: {text!r} is not a place; use {steps}, step:NUMBER, line:NUMBER or element:NAME")


@dataclass(frozen=True)
class ExecutedStep:
    """A step where a trace executes it: its line, how many steps come before it, and its column (0 units, 1 tens, ...;
    `NO_COLUMN` for a comparison of whole numbers)."""

    line: int
    index: int
    step: Step
    column: int


def executed_steps(lines: Sequence[TraceLine]) -> list[ExecutedStep]:
    """The steps that a trace's lines execute, in order, with their columns.

    Successive steps of one operation, without a line of no step between them, form one calculation, digit by digit.
    Halving begins with the most significant digit, every other operation with the units.
    """
    blocks: list[list[tuple[int, Step]]] = []
    apart = True
    for i, line in enumerate(lines):
        if line.step is None:
            apart = True
        if line.executes and line.step is not None:
            if apart or blocks[-1][-1][1].op != line.step.op:
                blocks.append([])
            blocks[-1].append((i, line.step))
            apart = False
    out: list[ExecutedStep] = []
    for block in blocks:
        for k, (i, step) in enumerate(block):
            column = NO_COLUMN if step.op == "compare" else len(block) - 1 - k if step.op == "halve" else k
            out.append(ExecutedStep(i, len(out), step, column))
    return out


def _result(line: TraceLine) -> str:
    return next(name for name in RESULTS if name in line.elements)


def _chosen(lines: Sequence[TraceLine], place: Place) -> Iterator[tuple[int, str, tuple[int, int]]]:
    """(line, element, character span) of every spot of `place`; the element of a whole line is ""."""
    match place.kind:
        case "line":
            if int(place.which) < len(lines):
                line = lines[int(place.which)]
                yield int(place.which), "", (line.start, line.stop)
        case "step":
            for found in executed_steps(lines):
                if place.which in ("all", str(found.index), _column_name(found.column)):
                    name = _result(lines[found.line])
                    yield found.line, name, lines[found.line].elements[name]
        case "element":
            for i, line in enumerate(lines):
                if place.which in line.elements:
                    yield i, place.which, line.elements[place.which]


def _column_name(column: int) -> str:
    return COLUMNS[column] if 0 <= column < len(COLUMNS) else ""


def _existing(lines: Sequence[TraceLine], place: Place) -> set[str]:
    match place.kind:
        case "line":
            return {f"0..{len(lines) - 1}"}
        case "step":
            found = executed_steps(lines)
            return {_column_name(f.column) for f in found} | {str(f.index) for f in found} | {"all"}
        case "element":
            return {name for line in lines for name in line.elements}


def check_traced(fmt: Format) -> None:
    """Raises `CriError` for the format that writes no steps."""
    if fmt.name == "direct":
        raise CriError("place: the direct format writes no steps; use prompt_end, or the format scratchpad or rfft")


def places(
    source: Traced, place: str | Place, case_ids: Int[np.ndarray, " case"] | Sequence[int] | None = None
) -> pd.DataFrame:
    """Where `place` lies in the reference traces of `case_ids` (all cases by default), in that order.

    Returns:
        One row a (case, place): `case` (id), `row` (index into `case_ids`), `position` (of the token *from which* it
        is predicted), `n_tokens` (that the element takes), `line`, `element`, `text` (the element's), `step` (index in
        order of execution, -1 where the line executes none), `column` (0 units, ...; -1 none), `op`, `x`, `y` (digits,
        -1 where a number has ended), `carry`, `train` (whether the case is trained on), `seen` and `seen_in_column`
        (in how many *other* training cases the step is executed, anywhere and in that column).

    Raises `CriError` for a place that no case has, naming those there are; for the direct format; and for tokens that
    do not spell the case's trace.
    """
    import pandas as pd

    check_traced(source.format)
    place = Place.parse(place) if isinstance(place, str) else place
    task, tokens = source.task, source.tokens
    ids = np.arange(task.n_cases) if case_ids is None else check_case_ids(np.asarray(case_ids), task.n_cases)
    traces = [source.format.trace(task, *task.operands[i]) for i in ids.tolist()]
    token_of = _token_starts(source, ids, traces)
    anywhere, in_column = _training_counts(source)
    rows: list[dict[str, Any]] = []
    for row, (case, lines, starts) in enumerate(zip(ids.tolist(), traces, token_of, strict=True)):
        by_line = {found.line: found for found in executed_steps(lines)}
        n_prompt, trained = int(tokens.prompt_lengths[case]), bool(source.split.train[case])
        for i, name, (start, stop) in _chosen(lines, place):
            first = int(np.searchsorted(starts, start, side="right")) - 1
            last = int(np.searchsorted(starts, max(stop, start + 1), side="left")) - 1
            found = by_line.get(i)
            facts: dict[str, Any] = {"step": -1, "column": NO_COLUMN, "op": "", "x": -1, "y": -1, "carry": 0}
            seen: dict[str, Any] = {"seen": 0, "seen_in_column": 0}
            if found is not None:
                step, key = found.step, (found.column, found.step)
                facts = {"step": found.index, "column": found.column, "op": step.op, "x": _digit(step.x),
                         "y": _digit(step.y), "carry": step.carry}  # fmt: skip
                seen = {"seen": anywhere[step] - trained, "seen_in_column": in_column[key] - trained}
            text = lines[i].text[start - lines[i].start : stop - lines[i].start]
            rows.append({"case": case, "row": row, "position": n_prompt + first - 1, "n_tokens": last - first + 1,
                         "line": i, "element": name, "text": text, **facts, "train": trained, **seen})  # fmt: skip
    if not rows:
        valid = set[str]().union(*(_existing(lines, place) for lines in traces)) - {""}
        shown = ", ".join(sorted(valid, key=lambda v: (not v.isdigit(), len(v), v))[:12])
        raise CriError(f"place: no case of {task.name} has {place}; choose from {place.kind}:{shown}")
    return pd.DataFrame(rows)


def _digit(value: int | None) -> int:
    return -1 if value is None else value


def _keys(lines: Sequence[TraceLine]) -> Iterator[tuple[int, Step]]:
    return ((found.column, found.step) for found in executed_steps(lines))


def _training_counts(source: Traced) -> tuple[Counter[Step], Counter[tuple[int, Step]]]:
    """In how many training cases each step occurs, anywhere and by column."""
    anywhere, in_column = Counter[Step](), Counter[tuple[int, Step]]()
    for case in source.split.train_ids.tolist():
        keys = set(_keys(source.format.trace(source.task, *source.task.operands[case])))
        in_column.update(keys)
        anywhere.update({step for _, step in keys})
    return anywhere, in_column


def _token_starts(
    source: Traced, ids: Int[np.ndarray, " case"], traces: Sequence[Sequence[TraceLine]]
) -> list[Int[np.ndarray, " token"]]:
    """The character at which each completion token of each case starts."""
    texts = [join(lines) for lines in traces]
    encoded: Any = source.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    out = []
    table = source.tokens
    for case, token_ids, offsets in zip(ids.tolist(), encoded["input_ids"], encoded["offset_mapping"], strict=True):
        given = table.ids[case, int(table.prompt_lengths[case]) : int(table.lengths[case]) - 1].tolist()
        if list(token_ids) != given:
            raise CriError(
                f"tokens: those of case {case} do not spell its {source.format.name} trace; encode this format's own"
            )
        out.append(np.array([start for start, _ in offsets], dtype=np.int64))
    return out
