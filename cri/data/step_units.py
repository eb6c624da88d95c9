"""(case, step) as the unit: its tokens as a sequence of their own, and what two units have in common.

A unit's sequence is the case's, cut off behind the step's tokens, of which the step's alone are to be predicted. So
whatever takes a `TokenTable` (gradients, EK-FAC, influence) takes units: log p of a unit is that of the step's tokens
given the trace before them, and the log p of all tokens of a case, one unit each, add up to that of the case.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped

from cri.data.case_relations import grid_distance, mirror_images
from cri.data.token_table import TokenTable
from cri.errors import CriError
from cri.tasks import Task

if TYPE_CHECKING:
    import pandas as pd

Mask = Bool[np.ndarray, "train test"]

SAME_STEP, STEP_ELSEWHERE, DIGITS, RESULT = "same step", "same step, other column", "same digits", "same result"
NEAR, MIRROR, MIRROR_STEP, OPERAND, POSITION = (
    "near case", "near the mirror image", "digits exchanged", "same operand", "same position",
)  # fmt: skip
GROUPS = (SAME_STEP, STEP_ELSEWHERE, DIGITS, RESULT, NEAR, MIRROR, MIRROR_STEP, OPERAND, POSITION)
"""Memberships of a pair (training unit, test unit); they overlap."""
N_NEAR = 8
"""Least number of near training cases: as many as surround a cell of the grid."""


def unit_tokens(tokens: TokenTable, table: pd.DataFrame) -> TokenTable:
    """One row a unit of `table` (from `step_places.places`): the case's tokens up to and with the step's.

    Raises `CriError` for positions outside the sequences.
    """
    case = torch.as_tensor(table["case"].to_numpy().copy())
    start = torch.as_tensor(table["position"].to_numpy() + 1)
    stop = start + torch.as_tensor(table["n_tokens"].to_numpy().copy())
    if bool((start < 1).any()) or bool((stop > tokens.lengths[case]).any()):
        raise CriError("position: a unit's tokens lie outside its case's sequence")
    width = int(stop.max())
    ids = tokens.ids[case, :width].clone()
    ids[torch.arange(width)[None] >= stop[:, None]] = tokens.pad
    return replace(tokens, ids=ids, prompt_lengths=start, lengths=stop)


def two_digit(table: pd.DataFrame) -> pd.DataFrame:
    """The units that work on two digits: copying the last digit of the longer number is no arithmetic, and a comparison
    sees whole numbers, so that sharing it is sharing the answer (as `case_relations.informative_steps` has it)."""
    keep = (table["op"] != "compare") & (table["x"] >= 0) & (table["y"] >= 0)
    return table[keep].reset_index(drop=True)


def _equal(train: pd.DataFrame, test: pd.DataFrame, *columns: str) -> Mask:
    out = np.ones((len(train), len(test)), dtype=bool)
    for column in columns:
        out &= train[column].to_numpy()[:, None] == test[column].to_numpy()[None]
    return out


def near_cases(
    task: Task, train_ids: Int[np.ndarray, " train"], test_ids: Int[np.ndarray, " test"], n_near: int = N_NEAR
) -> Mask:
    """Training cases within the least grid distance of each test case that holds `n_near` of them (whole rings)."""
    distance = grid_distance(task, train_ids, test_ids)
    n_near = min(n_near, len(train_ids))
    return distance <= np.sort(distance, axis=0)[n_near - 1]


def step_memberships(
    task: Task,
    train: pd.DataFrame,
    test: pd.DataFrame,
    written: Shaped[np.ndarray, " test"] | None = None,
    n_near: int = N_NEAR,
) -> dict[str, Mask]:
    """Which memberships each pair of a training and a test unit has; those that no pair has are left out.

    - `same step`: operation, digits and carry-in, in the same column; `same step, other column`;
    - `same digits`: operation and digits, whatever carry and column (so a same step has the same digits);
    - `digits exchanged`: operation and carry, the two (different) digits exchanged;
    - `same result`: what is written is what the model writes for the test unit (`written`; by default the reference);
    - `near case`: the unit's case is one of at least `n_near` nearest training cases on the grid; `near the mirror
      image`: of those nearest to the case with the operands exchanged, and not near itself;
    - `same operand`: the cases share an operand, in its place; `same position`: the same operation executed in the same
      column and after as many steps.

    Args:
        train, test: units, from `step_places.places`.
    """
    same_digits = _equal(train, test, "op", "x", "y") & (test["op"] != "").to_numpy()[None]
    same_step = same_digits & _equal(train, test, "carry")
    same_column = _equal(train, test, "column")
    x, y = (train[c].to_numpy()[:, None] for c in "xy")
    swapped = (x == test["y"].to_numpy()[None]) & (y == test["x"].to_numpy()[None]) & (x != y)
    texts = test["text"].to_numpy() if written is None else np.asarray(written)
    result = (train["text"].to_numpy()[:, None] == texts[None]) & (texts != "")[None]

    train_cases, train_of = np.unique(train["case"].to_numpy(), return_inverse=True)
    test_cases, test_of = np.unique(test["case"].to_numpy(), return_inverse=True)

    def by_case(mask: Bool[np.ndarray, "train_case test_case"]) -> Mask:
        return mask[train_of][:, test_of]

    near = near_cases(task, train_cases, test_cases, n_near)
    image = mirror_images(task)[test_cases]
    mirror = near_cases(task, train_cases, np.maximum(image, 0), n_near) & (image >= 0)[None] & ~near
    operand = (task.cases[train_cases][:, None] == task.cases[test_cases][None]).any(axis=2)
    masks = {
        SAME_STEP: same_step & same_column,
        STEP_ELSEWHERE: same_step & ~same_column,
        DIGITS: same_digits,
        RESULT: result,
        NEAR: by_case(near),
        MIRROR: by_case(mirror),
        MIRROR_STEP: swapped & _equal(train, test, "op", "carry"),
        OPERAND: by_case(operand),
        POSITION: _equal(train, test, "op", "column", "step"),
    }
    return {name: masks[name] for name in GROUPS if masks[name].any()}
