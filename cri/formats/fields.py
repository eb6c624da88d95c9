"""Where a format's lists and values stand: what each token says about the line, the variable and the index.

Texts of the `rfft` and `scratchpad` formats are lists and values of named variables, line by line. A token either goes
on with what stands before it, or sets the place anew: `num1=` opens the variable num1, `[` a list, a newline a line.
Places follow from the text written so far and from nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cri.errors import CriError
from cri.formats import Format, RuleFollowing, Scratchpad
from cri.formats.rules.task_rules import task_rule
from cri.tasks import Task


@dataclass(frozen=True)
class Place:
    """A place that a token sets.

    Attributes:
        band: the variable, 0 being none (structure); None leaves it as it is.
        column: the token's own column, from where the following tokens count on.
        indexed: whether a list starts here, whose columns are shifted by the random start.
        line: 1 where the token begins a new line.
    """

    band: int | None
    column: int = 0
    indexed: bool = False
    line: int = 0


@dataclass(frozen=True)
class Fields:
    """The variables of a format's texts, and the tokens that open them.

    Attributes:
        variables: names in band order; band 0 is structure, variable i has band i + 1.
        places: token text -> place.
        question: the same for tokens on the question's line, where operands are written without names.
        question_line: which line that is; -1 where the question is written as every other line is.
        first: the place *before* the first token.
    """

    variables: tuple[str, ...]
    places: Mapping[str, Place]
    question: Mapping[str, Place] = field(default_factory=dict)
    question_line: int = -1
    first: Place = field(default_factory=lambda: Place(0, -1))

    def place(self, token: str, on_question: bool) -> Place | None:
        """What `token` sets, None where it continues what stands before it."""
        table = self.question if on_question else self.places
        if token in table:
            return table[token]
        return Place(0, line=1) if "\n" in token else None


def require_lists(fmt: Format, task: Task) -> None:
    """Raises `CriError` for a format without lists and for a question that is not `a+b=`; takes no time."""
    if not isinstance(fmt, RuleFollowing | Scratchpad):
        raise CriError(f"positions: the format {fmt.name} has no lists; structured positions need rfft or scratchpad")
    if task.question(1, 1) != "1+1=":
        raise CriError(f"positions: the questions of {task.name} are not of the form a+b=")


def format_fields(fmt: Format, task: Task, vocabulary: Iterable[str]) -> Fields:
    """The fields of `fmt`'s texts about `task`, as tokens of `vocabulary`.

    Raises `CriError` as `require_lists` does, and for a tokenizer without a token for each name and digit.
    """
    require_lists(fmt, task)
    rfft = isinstance(fmt, RuleFollowing)
    fields = _rule_fields(task) if rfft else _scratchpad_fields()
    known = set(vocabulary)
    # a comma stands before every answer of a scratchpad, and must be a token of its own there
    merged = any(len(token) > 1 and token[-1].isdigit() and (token[0].isdigit() or not rfft) for token in known)
    missing = [token for token in [*fields.places, *map(str, range(10))] if token not in known]
    if merged or (missing and set(missing) != set(missing) & _optional(task, rfft)):
        needed = "digit or list" if rfft else "digit"
        raise CriError(f"positions: structured positions of {fmt.name} need the tokenizer {needed}")
    return fields


def _optional(task: Task, rfft: bool) -> set[str]:
    """Forms of a rule's variable names (`NAME=` and `, NAME=`) that its traces may lack."""
    names = task_rule(task).rule.variables if rfft else ()
    return {f"{name}=" for name in names} | {f", {name}=" for name in names}


def _rule_fields(task: Task) -> Fields:
    rule = task_rule(task).rule
    band = {name: i + 1 for i, name in enumerate(rule.variables)}
    places: dict[str, Place] = {"[": Place(None, 1, True)}
    for name, i in band.items():
        places |= {f"{name}=": Place(i), f", {name}=": Place(i)}
    returned = rule.source.rstrip().rpartition("return ")[2].partition(",")[0]
    places["return "] = Place(band[returned])
    a, b = (band[name] for name in rule.parameters[:2])
    question = {"\n": Place(a, 1, True, line=1), "+": Place(b, 1, True), "=": Place(0)}
    return Fields(tuple(band), places, question, question_line=1)


def _scratchpad_fields() -> Fields:
    """Scratchpad lines are `a+b,answer,C:carry`; the question, `a+b=`, is the first of them."""
    first, next_line = Place(1, 1, True), Place(1, 1, True, line=1)
    places = {"\n": next_line, "=": next_line, "+": Place(2, 1, True), ",": Place(3, 1, True), "C": Place(4)}
    return Fields(("a", "b", "answer", "carry"), places, first=first)
