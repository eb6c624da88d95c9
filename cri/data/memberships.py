"""What a training case has in common with a test case: memberships that overlap, none of which hides another.

`case_groups` puts every pair in one group, by precedence: a nearby case that shares a step counts as near. Here a
pair has every membership that holds, so that one regression can tell them apart, or say that it cannot
(`statistics.case_effects`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Int, Shaped

from cri.data.case_groups import Groups
from cri.data.case_relations import MAX_STEP_FREQUENCY, mirror_images, shared_operands
from cri.errors import CriError, unknown_name
from cri.tasks import Task

Mask = Bool[np.ndarray, "train test"]
Offsets = Int[np.ndarray, "train test 2"]
COLUMNS = ("units", "tens", "hundreds")
"""Names of the first columns of a calculation; a further one is called by its number."""
_NUMBER = re.compile(r"\d+")


def column_name(column: int) -> str:
    """`units` of column 0, `tens` of column 1, ..., `column 3`."""
    return COLUMNS[column] if column < len(COLUMNS) else f"column {column}"


def offsets(task: Task, train_ids: Int[np.ndarray, " train"], test_ids: Int[np.ndarray, " test"]) -> Offsets:
    """(Δrow, Δcol) of each training case as seen from each test case."""
    coords = task.coords.astype(np.int32)
    return coords[train_ids][:, None] - coords[test_ids][None]


def number_tokens(task: Task, tokenizer: str) -> Shaped[np.ndarray, "case place"]:
    """The tokens of the numbers in each question, numbers aligned at their last token, "" where one is shorter.

    With `digit` tokens a number is as many tokens as it has digits, with `number` tokens it is one (numbers of three
    digits above 520, which would be two, occur in no question of the tasks). What stands between the numbers is the
    same in all questions of a task.
    """
    if tokenizer not in ("number", "digit"):
        raise unknown_name("tokenizer", tokenizer, ("number", "digit"))
    numbers = [[list(n) if tokenizer == "digit" else [n] for n in _NUMBER.findall(q)] for q in task.questions]
    if len({len(row) for row in numbers}) != 1:
        raise CriError(f"task: the questions of {task.name} hold different numbers of numbers")
    widths = [max(len(row[j]) for row in numbers) for j in range(len(numbers[0]))]
    rows = [
        [token for number, width in zip(row, widths, strict=True) for token in [""] * (width - len(number)) + number]
        for row in numbers
    ]
    return np.array(rows, dtype=np.str_)


def token_distance(
    task: Task, tokenizer: str, train_ids: Int[np.ndarray, " train"], test_ids: Int[np.ndarray, " test"]
) -> Int[np.ndarray, "train test"]:
    """How many tokens of the question differ (Hamming's distance): what is near for a model that reads these tokens.

    3 + 42 and 3 + 52 are one digit token apart, and ten rows of the grid.
    """
    tokens = number_tokens(task, tokenizer)
    codes = np.stack([np.unique(column, return_inverse=True)[1] for column in tokens.T], axis=1)
    out = np.zeros((len(train_ids), len(test_ids)), dtype=np.int8)
    for column in codes.T:
        out += column[train_ids][:, None] != column[test_ids][None]
    return out


@lru_cache(maxsize=8)
def _step_table(task: Task, max_frequency: float) -> Int[np.ndarray, "case column"]:
    """A number for the informative step that each case executes in each column, -1 where it has none."""
    executed = [
        {(column, s) for column, s in enumerate(steps) if s.op != "compare" and None not in (s.x, s.y)}
        for steps in task.case_steps
    ]
    counts = Counter(step for steps in executed for step in {s for _, s in steps})
    informative = {step for step, n in counts.items() if n <= max_frequency * task.n_cases}
    codes = {step: i for i, step in enumerate(sorted(informative))}
    n_columns = 1 + max((column for steps in executed for column, _ in steps), default=-1)
    table = np.full((task.n_cases, n_columns), -1)
    for i, steps in enumerate(executed):
        for column, step in steps:
            table[i, column] = codes.get(step, -1)
    return table


def steps_by_column(
    task: Task,
    train_ids: Int[np.ndarray, " train"],
    test_ids: Int[np.ndarray, " test"],
    max_frequency: float = MAX_STEP_FREQUENCY,
) -> dict[str, Mask]:
    """By name: which pairs share an informative rule step (`case_relations.informative_steps`) in the same column, a
    mask a column, and which share one that either executes in another column (`step elsewhere`)."""
    table = _step_table(task, max_frequency)
    n_columns = table.shape[1]
    out: dict[str, Mask] = {}
    elsewhere = np.zeros((len(train_ids), len(test_ids)), dtype=bool)
    for one in range(n_columns):
        for other in range(n_columns):
            train, test = table[train_ids, one][:, None], table[test_ids, other][None]
            shared = (train == test) & (train >= 0)
            if one == other:
                out[f"step of the {column_name(one)}"] = shared
            else:
                elsewhere |= shared
    out["step elsewhere"] = elsewhere
    return {name: mask for name, mask in out.items() if mask.any()}


@dataclass(frozen=True, eq=False)
class Memberships:
    """Named, overlapping memberships of the pairs of a training and a test case.

    Attributes:
        names: of the memberships.
        masks: which pairs have them, [kind, train, test].
    """

    names: tuple[str, ...]
    masks: Bool[np.ndarray, "kind train test"]

    def __getitem__(self, name: str) -> Mask:
        if name not in self.names:
            raise unknown_name("membership", name, self.names)
        return self.masks[self.names.index(name)]

    def only(self, names: Sequence[str]) -> Memberships:
        """Those of `names` that there are, in that order."""
        kept = tuple(name for name in names if name in self.names)
        return Memberships(kept, self.masks[[self.names.index(name) for name in kept]])


NEAR, ANSWER = "near", "same answer"
MIRROR, NEAR_MIRROR = "mirror image", "near the mirror image and same answer"
LINE = "near on an operand's line"
WITHIN = (3, 1)
"""Rings within which being near may count for more."""


def within(distance: int) -> str:
    """`within 1`, or `within 3`: on the grid."""
    return f"within {distance}"


def with_answer(name: str) -> str:
    """The membership of those that have the answer as well."""
    return f"{name} and same answer"


NEAR_ANSWER = with_answer(NEAR)
CLOSENESS = (NEAR, NEAR_ANSWER, *(name for d in WITHIN for name in (within(d), with_answer(within(d)))))
"""Memberships that a case next to the test case has by its place, if it has the same answer."""
OPERAND, ONE_TOKEN, TWO_TOKENS = "one operand shared", "one token differs", "two tokens differ"


def memberships(task: Task, tokenizer: str, groups: Groups) -> Memberships:
    """All memberships of the pairs of `groups`, those that no pair has left out.

    `near` are whole rings on the grid (`Groups.near`), `same answer` has the label of the test case. Their interaction,
    `near and same answer`, has an effect of its own, in addition to both. The closest near cases have larger effects
    and also share the tens step more often; the nested memberships `within 3` and `within 1` separate the effect of
    closeness from that of the step. `near on an operand's line` are the near cases
    that share an operand: a number line along which an answer may be interpolated. `mirror image` is the one case with
    the operands exchanged. Steps are told apart by column. `one token differs` and `two tokens differ` are near in
    Hamming's distance; with number tokens the first is the same as sharing an operand, which
    `statistics.case_effects` reports.
    """
    train, test = groups.train_ids, groups.test_ids
    image = mirror_images(task)[test]
    distance = token_distance(task, tokenizer, train, test)
    operand = shared_operands(task, train, test) > 0
    masks = {
        NEAR: groups.near,
        ANSWER: groups.answer,
        NEAR_ANSWER: groups.near & groups.answer,
        **{within(d): groups.distance <= d for d in WITHIN},
        **{with_answer(within(d)): (groups.distance <= d) & groups.answer for d in WITHIN},
        MIRROR: (train[:, None] == image[None]) & (image >= 0),
        NEAR_MIRROR: groups.mirror & ~groups.near & groups.answer,
        OPERAND: operand,
        LINE: groups.near & operand,
        ONE_TOKEN: distance == 1,
        TWO_TOKENS: distance == 2,
        **steps_by_column(task, train, test),
    }
    if tokenizer == "number":
        del masks[TWO_TOKENS]  # of two numbers: all pairs that share no operand
    present = {name: mask for name, mask in masks.items() if mask.any()}
    return Memberships(tuple(present), np.stack(list(present.values())))
