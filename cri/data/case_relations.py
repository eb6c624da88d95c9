"""How cases of a task relate to each other: distance, mirror images, shared operands, answers and rule steps."""

from __future__ import annotations

from collections import Counter

import numpy as np
from jaxtyping import Float32, Int, Shaped
from scipy import sparse

from cri.checks import checked
from cri.data.case_ids import check_case_ids
from cri.errors import out_of_range
from cri.tasks import Task

TrainIds = Int[np.ndarray, " train"]
TestIds = Int[np.ndarray, " test"]
Pairs = Float32[np.ndarray, "train test"]

MAX_STEP_FREQUENCY = 0.05
"""A step found in a larger fraction of the grid's cases is not informative (see `informative_steps`)."""


@checked
def grid_distance(task: Task, train_ids: TrainIds, test_ids: TestIds) -> Int[np.ndarray, "train test"]:
    """Chebyshev distance on the grid, max(|row_i - row_t|, |col_i - col_t|): the measure in which the
    held-out squares are balls and their borders rings."""
    coords = task.coords.astype(np.int32)
    train, test = (coords[ids] for ids in _checked(task, train_ids, test_ids))
    rows = np.abs(train[:, None, 0] - test[None, :, 0])
    return np.maximum(rows, np.abs(train[:, None, 1] - test[None, :, 1]), out=rows)


def _checked(task: Task, train_ids: TrainIds, test_ids: TestIds) -> tuple[TrainIds, TestIds]:
    return check_case_ids(train_ids, task.n_cases, "train_ids"), check_case_ids(test_ids, task.n_cases, "test_ids")


@checked
def mirror_images(task: Task) -> Int[np.ndarray, " case"]:
    """For each case, the id of the case with the operands exchanged; -1 where that is no other case, or one with
    another answer."""
    ids = {operands: i for i, operands in enumerate(task.operands)}
    out = np.full(task.n_cases, -1)
    for i, (a, b) in enumerate(task.operands):
        other = ids.get((b, a), i)
        if other != i and task.answers[other] == task.answers[i]:
            out[i] = other
    return out


@checked
def shared_operands(task: Task, train_ids: TrainIds, test_ids: TestIds) -> Pairs:
    """How many operands two cases share, each in its own place: 0 or 1 (2 only for the same case)."""
    train, test = (task.cases[ids] for ids in _checked(task, train_ids, test_ids))
    return (train[:, None] == test[None]).sum(axis=2).astype(np.float32)


@checked
def same_answer(train_labels: Shaped[np.ndarray, " train"], test_labels: Shaped[np.ndarray, " test"]) -> Pairs:
    """1 where the training case's answer is the label of the test case, else 0.

    Args:
        train_labels: labels of the training cases' reference answers.
        test_labels: labels the model *predicts* for the test cases; an empty label matches nothing.
    """
    train, test = np.asarray(train_labels), np.asarray(test_labels)
    return ((train[:, None] == test[None]) & (test != "")[None]).astype(np.float32)


@checked
def informative_steps(task: Task, max_frequency: float = MAX_STEP_FREQUENCY) -> sparse.csr_matrix:
    """Which informative rule steps each case executes, 1 or 0, [case, step].

    A step (operation, digits, carry-in; the place where it is applied is no part of it) is informative if

    - it works on two digits: copying down the last digit of the longer number is no arithmetic, and
      `compare` sees the whole total, so sharing it is sharing the answer;
    - at most `max_frequency` of the grid's cases execute it: steps that nearly all cases share
      (0 + 0, the units of the intercept) tell no two cases apart.

    For 100 x 100 addition each of the 181 digit pairs with a possible carry-in qualifies, found in 0.5 to
    1.6 % of the cases: as units pair (one case in a hundred, spread evenly over the grid) or as tens pair
    with its carry (most of a 10 x 10 block). On a 30 x 30 grid too both kinds qualify, units pairs found in 1 % of
    the cases and tens pairs in 5 %, so that most cases that share a step there share that of the tens.
    """
    if not 0 < max_frequency <= 1:
        raise out_of_range("max_frequency", max_frequency, "in (0, 1]")
    sets = [{s for s in steps if s.op != "compare" and None not in (s.x, s.y)} for steps in task.case_steps]
    counts = Counter(step for steps in sets for step in steps)
    columns = {step: j for j, step in enumerate(s for s, n in counts.items() if n <= max_frequency * task.n_cases)}
    pairs = [(i, columns[step]) for i, steps in enumerate(sets) for step in steps if step in columns]
    rows, cols = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    shape = (task.n_cases, len(columns))
    return sparse.csr_matrix((np.ones(len(rows), dtype=np.float32), (rows, cols)), shape=shape)


@checked
def shared_steps(
    task: Task, train_ids: TrainIds, test_ids: TestIds, max_frequency: float = MAX_STEP_FREQUENCY
) -> Pairs:
    """How many informative rule steps two cases share, wherever they are applied."""
    steps = informative_steps(task, max_frequency)
    train_ids, test_ids = _checked(task, train_ids, test_ids)
    return (steps[train_ids] @ steps[test_ids].T).toarray().astype(np.float32, copy=False)
