"""Step edits: change one element of a trace, let the model continue, and see which it follows.

The rule's own continuation of the edited trace comes from the format (`Format.trace` with an `Edit`): it
tells what a model that executes the written steps must answer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from cri.checks import checked
from cri.data.case_ids import check_case_ids
from cri.data.step_coverage import step_counts
from cri.errors import CriError, out_of_range, unknown_name
from cri.evaluation.scoring import step_text
from cri.formats import Format, make_format
from cri.formats.shuffled import trace_owner
from cri.formats.traces import Edit, TraceLine, check_edit, join
from cri.interventions.continuations import continuations, encodable
from cri.interventions.stated_edits import STEP_KINDS, base_of, step_values
from cri.tasks import Task
from cri.tasks.steps import Step
from cri.training.runs import Run
from cri.training.setup import Materials

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Kind = Literal["digit", "carry", "answer", "operands", "decision"]
KINDS: tuple[Kind, ...] = ("digit", "carry", "answer", "operands", "decision")
"""Kinds of element: a newly computed or read digit; a carry; a digit of the answer so far; a digit of the
operands that remain; a decision (a comparison, a loop test, a branch)."""

_FLIPS = {
    ">=": "<",
    "<": ">=",
    "True": "False",
    "False": "True",
    "enter the loop": "end the loop",
    "end the loop": "enter the loop",
    "enter the branch": "skip the branch",
    "skip the branch": "enter the branch",
}


@dataclass(frozen=True)
class CaseEdit:
    """One edit of one case's trace."""

    case: int
    edit: Edit


def written_trace(task: Task, fmt: Format, case: int) -> tuple[Format, tuple[int, int]]:
    """The format and operands whose rule a case's trace executes.

    The case's own, except under the shuffled-trace control, where the trace is another case's scratchpad;
    the rule's answer to an edit of it is then that of the other case.
    """
    a, b = task.operands[case]
    if fmt.name == "shuffled_scratchpad":
        return make_format("scratchpad"), trace_owner(task, a, b)
    return fmt, (a, b)


def element_kind(task: Task, line: TraceLine, name: str) -> Kind | None:
    """What kind of element `name` of a line is, None where an edit of it would say nothing: a list as a
    whole (its items are elements), and the last line, which nothing follows."""
    stem = re.split(r"[\[#]", name)[0]
    if line.kind in ("state", "compare", "equation", "result"):
        kinds: dict[str, Kind] = {"x": "operands", "y": "operands", "relation": "decision"}
        kinds |= {"digit": "digit", "carry": "carry", "answer": "answer"}
        return kinds.get(stem)
    if line.kind == "step":
        return STEP_KINDS.get(name)  # pyright: ignore[reportReturnType]
    if line.kind not in ("arguments", "reads", "effects", "test"):
        return None
    if stem == "decision" or stem.startswith("truth:"):
        return "decision"
    if stem.startswith("operand:"):
        return "operands"
    if stem == "carry":
        return "carry"
    if stem in ("total", "value") or stem.startswith("digit"):
        return "digit"
    if "[" not in name:
        return None
    return "answer" if task.rule and stem in task.rule.answer_lists else "operands"


def steps_done(lines: Sequence[TraceLine]) -> list[int]:
    """Rule steps executed up to and including each line."""
    return np.cumsum([line.executes for line in lines]).tolist()


def alternatives(line: TraceLine, name: str, text: str, base: int = 10) -> list[str]:
    """Other texts that an element can hold, of the same length: one digit changed, a carry that the
    operation can give, a decision turned round."""
    if text in _FLIPS:
        return [_FLIPS[text]]
    if line.kind == "step" and line.step is not None:
        return [str(v) for v in step_values(name, line.step.op, base) if str(v) != text]
    stem = re.split(r"[\[#:]", name)[-1 if name.startswith("operand:") else 0]
    if stem == "carry":
        if "*" in line.text:
            choices = [str(i) for i in range(base - 1)]
        elif line.kind == "state":
            choices = ["0", "-1"] if re.match(r"\d*-", line.text) else ["0", "1"]
        else:
            choices = ["0", "-1"] if text == "-1" else ["0", "1"]
        return [c for c in choices if c != text]
    if not text.isdecimal():
        return []
    if stem == "total":  # what two digits and a carry can add up to
        return [str(v) for v in range(2 * base) if str(v) != text]
    places = list(range(len(text)))
    if line.kind == "state" and stem == "answer":  # the newest digit is an element of its own
        del places[-1 if "/" in line.text else 0]
    return [
        text[:i] + str(d) + text[i + 1 :]
        for i in places
        for d in range(1 if i == 0 and len(text) > 1 else 0, base)
        if str(d) != text[i]
    ]


_CARRIES = {"add": ("0", "1"), "sub": ("0", "-1"), "halve": ("0", "1")}


def check_text(lines: Sequence[TraceLine], edit: Edit, base: int) -> None:
    """Raises `CriError` for a carry that the operation cannot give, or a digit that the base does not have: a rule
    would go on with it, but no calculation can produce it."""
    own = lines[edit.line]
    if own.kind == "step" and own.step is not None:
        allowed = list(map(str, step_values(edit.element, own.step.op, base)))
        if edit.text not in allowed:
            raise out_of_range(
                "edit.text", edit.text, f"in {allowed[0]}..{allowed[-1]}, as {edit.element} of this step"
            )
        return
    if re.split(r"[\[#:]", edit.element)[0] == "carry":
        step = next((line.step for line in lines[edit.line :] if line.step is not None), None)
        # the last state of a product is followed by another operation's steps
        product = own.kind == "state" and "*" in own.text
        allowed = _CARRIES.get(step.op if step and not product else "", tuple(str(i) for i in range(base - 1)))
        if edit.text not in allowed:
            raise out_of_range("edit.text", edit.text, f"a carry of this operation: {', '.join(allowed)}")
    elif any(char.isdecimal() and int(char) >= base for char in edit.text) and edit.element != "total":
        raise out_of_range("edit.text", edit.text, f"digits below {base}")


def _answer(task: Task, fmt: Format, lines: Sequence[TraceLine]) -> str | None:
    return fmt.read_answer(task, join(lines))


def check_kinds(kinds: Iterable[str]) -> None:
    """Raises `UnknownNameError` for an unknown kind."""
    for kind in kinds:
        if kind not in KINDS:
            raise unknown_name("elements", kind, KINDS)


@checked
def sample_edits(
    task: Task,
    fmt: Format,
    case_ids: Iterable[int],
    kinds: Sequence[str] = KINDS,
    *,
    step: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    seed: int = 0,
    tries: int = 10,
) -> list[CaseEdit]:
    """For every case and kind one edit drawn at random, such that the rule's answer changes.

    A case without an element of some kind gets no edit of that kind. Neither does a case where none of `tries`
    draws changes the rule's answer (such an edit cannot separate the outcomes `follows` and `returns`).

    Args:
        step: edit only what is written after exactly that many rule steps; None edits anywhere.
        tokenizer: draw only edits after which it can write what the rule does.

    Raises `CriError` for an unknown kind, for a format without a trace, and for a step that no case has.
    """
    check_kinds(kinds)
    if fmt.name == "direct":
        raise CriError("format: direct writes no trace to edit; use scratchpad or rfft")
    edits: list[CaseEdit] = []
    last_step = 0
    for case in check_case_ids(list(case_ids), task.n_cases).tolist():
        rng = np.random.default_rng([seed, case])
        rule, (a, b) = written_trace(task, fmt, case)
        lines = rule.trace(task, a, b)
        original = _answer(task, rule, lines)
        done = steps_done(lines)
        last_step = max(last_step, *done)
        places: dict[str, list[tuple[int, str]]] = {kind: [] for kind in kinds}
        for i, line in enumerate(lines[:-1]):
            for name in line.elements if step is None or done[i] == step else ():
                kind = element_kind(task, line, name)
                if kind in places:
                    places[kind].append((i, name))
        for kind in kinds:
            edit = _draw(task, rule, (a, b), lines, places[kind], original, base_of(task, a), rng, tries, tokenizer)
            if edit is not None:
                edits.append(CaseEdit(int(case), edit))
    if step is not None and not 0 <= step <= last_step:
        raise out_of_range("step", step, f"in 0..{last_step}")
    return edits


def _draw(
    task: Task,
    rule: Format,
    operands: tuple[int, int],
    lines: list[TraceLine],
    places: list[tuple[int, str]],
    original: str | None,
    base: int,
    rng: np.random.Generator,
    tries: int,
    tokenizer: PreTrainedTokenizerBase | None,
) -> Edit | None:
    for _ in range(tries if places else 0):
        i, name = places[int(rng.integers(len(places)))]
        texts = alternatives(lines[i], name, _element_text(lines, i, name), base)
        if not texts:
            continue
        edit = Edit(i, name, texts[int(rng.integers(len(texts)))])
        try:
            check_text(lines, edit, base)
            edited = rule.trace(task, *operands, edit)
        except CriError:  # no text of this operation, or one after which the rule cannot run on (an empty list)
            continue
        answer = _answer(task, rule, edited)
        if answer not in (None, original) and (tokenizer is None or encodable(tokenizer, join(edited))):
            return edit
    return None


def _element_text(lines: Sequence[TraceLine], line: int, name: str) -> str:
    start, stop = lines[line].elements[name]
    return lines[line].text[start - lines[line].start : stop - lines[line].start]


def _next_line(text: str, expected: Sequence[TraceLine], line: int) -> bool:
    """Whether a text follows the rule's to the end of the next line that holds a value."""
    until = next((x for x in expected[line + 1 :] if x.elements), expected[-1])
    return text.startswith(join(expected)[: until.stop])


def _outcome(answer: str | None, expected: str | None, unedited: str | None, done: bool) -> str:
    """Whether a model's answer after an edit follows the rule on the edited trace, or repeats the unedited answer."""
    if answer is not None and answer == expected:
        return "follows"
    if answer is not None and answer == unedited:
        return "returns"
    return "breaks" if done else "truncated"


_SEEN_DIGITS = ("operand:digit1", "operand:digit2", "operand:carry")


def executed_steps(lines: Sequence[TraceLine], after: int) -> list[Step] | None:
    """Rule steps that the lines after line `after` execute, as written there.

    A rule's trace names the steps of the unedited case, so they are read off its sums instead, with 0
    where a number has ended. None for sums of another form.
    """
    if all(line.kind not in ("effects", "reads") for line in lines):
        return [line.step for line in lines[after + 1 :] if line.executes and line.step is not None]
    steps = []
    for line in lines[after + 1 :]:
        if line.kind == "effects" and "total" in line.elements:
            if not set(_SEEN_DIGITS) <= set(line.elements):
                return None
            x, y, carry = (
                int(line.text[start - line.start : stop - line.start])
                for start, stop in (line.elements[name] for name in _SEEN_DIGITS)
            )
            op = "sub" if line.text[line.elements["operand:digit1"][1] - line.start] == "-" else "add"
            steps.append(Step(op, x, y, carry))
    return steps


def _zeroed(step: Step) -> Step:
    return step._replace(x=step.x or 0, y=step.y or 0)


def _steps_seen(lines: Sequence[TraceLine], after: int, counts: Mapping[Step, int]) -> tuple[str, bool | None]:
    steps = executed_steps(lines, after)
    if steps is None:
        return "", None
    return step_text(steps[0]) if steps else "", all(counts.get(step, 0) > 0 for step in steps)


@checked
def step_edits(
    run: Run | Materials,
    edits: Sequence[CaseEdit],
    *,
    model: PreTrainedModel | None = None,
    completions: Mapping[int, str] | None = None,
) -> pd.DataFrame:
    """Lets a model continue, greedily, from traces with one edited element, and from the same traces as
    they were; one row an edit.

    The text before the element is the reference trace; `own` says whether the model writes the same by
    itself. What follows the element, the rest of its line included, is the model's.

    Args:
        run: what the model was trained on.
        edits: see `sample_edits`, or chosen by hand.
        model: another model in its place (an untrained one); by default the run's.
        completions: the model's own texts by case id, for `own` (None where there is none); by default those of a
            finished run.

    Returns:
        `id, a, b, row, col, train, kind, line, element, step` (rule steps done), `next_step` (the first
        one that the edited trace still executes), `seen` (whether all of those occur in training),
        `old, new` (the element's text), `own`, `unedited` (the answer without the edit), `expected` (what
        the rule answers from the edited trace), `answer`, `outcome`, `follows`, `exact` (the whole text
        is the rule's), `text`, `expected_text`. Outcomes: `follows` (the expected answer), `returns` (the
        unedited one), `truncated`, `breaks` (any other answer or none). `next_line`: whether the text is the rule's
        up to the end of the next line with a value, whatever follows.

    Raises `CriError` for an edit that is no legal element, naming the legal ones.
    """
    import pandas as pd

    task, fmt = run.task, run.format
    if completions is None and isinstance(run, Run) and model is None:
        completions = dict(zip(run.predictions["id"].tolist(), run.predictions["completion"].tolist(), strict=True))
    counts: Counter[Step] = step_counts(task, run.split)
    if fmt.name == "rfft":  # its sums hold 0 for a digit that is not there
        for step, n in list(counts.items()):
            counts[_zeroed(step)] += 0 if step == _zeroed(step) else n
    before, after, rows = [], [], []
    for item in edits:
        rule, (a, b) = written_trace(task, fmt, item.case)
        lines = rule.trace(task, a, b)
        check_edit(lines, item.edit)
        check_text(lines, item.edit, base_of(task, a))
        expected = rule.trace(task, a, b, item.edit)
        line, name = item.edit.line, item.edit.element
        old = _element_text(lines, line, name)
        if old == item.edit.text:
            raise CriError(f"edit.text: {old!r} is what {name!r} of line {line} holds already")
        before.append((item.case, join(lines), lines[line].elements[name][1]))
        after.append((item.case, join(expected), expected[line].elements[name][1]))
        next_step, seen = _steps_seen(expected, line, counts)
        prefix = join(lines)[: lines[line].elements[name][0]]
        case_a, case_b = task.operands[item.case]
        rows.append(
            {
                "id": item.case, "a": case_a, "b": case_b,
                "row": int(task.coords[item.case, 0]), "col": int(task.coords[item.case, 1]),
                "train": bool(run.split.train[item.case]), "kind": element_kind(task, lines[line], name) or "other",
                "line": line, "element": name, "step": steps_done(lines)[line], "next_step": next_step, "seen": seen,
                "old": old, "new": item.edit.text,
                "own": None if completions is None or item.case not in completions
                else completions[item.case].startswith(prefix),
                "expected": _answer(task, rule, expected), "expected_text": join(expected), "lines": expected,
            }
        )  # fmt: skip
    texts = continuations(run, [*before, *after], model)
    for row, (old_text, old_done), (text, done) in zip(rows, texts[: len(rows)], texts[len(rows) :], strict=True):
        unedited = fmt.read_answer(task, old_text) if old_done else None
        answer = fmt.read_answer(task, text) if done else None
        outcome = _outcome(answer, row["expected"], unedited, done)
        row |= {
            "unedited": unedited or "", "answer": answer or "", "outcome": outcome, "follows": outcome == "follows",
            "next_line": _next_line(text, row.pop("lines"), row["line"]),
            "exact": done and text == row["expected_text"], "text": text,
        }  # fmt: skip
    return pd.DataFrame(rows)
