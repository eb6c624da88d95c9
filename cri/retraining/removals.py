"""Designed removals: groups of training cases to retrain without, of equal size, relative to one test case."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Shaped

from cri.data.case_ids import check_case_ids
from cri.data.case_relations import MAX_STEP_FREQUENCY, grid_distance, shared_operands, shared_steps
from cri.errors import CriError, out_of_range
from cri.tasks import Task

REMOVALS = ("near", "same_answer", "same_operand", "same_step")
"""What a removed group shares with the test case; `random_removal` is their control."""


def by_distance(
    task: Task, train_ids: Int[np.ndarray, " train"], test_id: int, rng: np.random.Generator
) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " train"]]:
    """Positions in `train_ids` from the nearest case on the grid to the farthest, and the distances in the order of
    `train_ids`. Distance is Chebyshev's; ties are at random: an order within a ring would favour an axis."""
    distance = grid_distance(task, train_ids, np.array([test_id]))[:, 0]
    return np.lexsort((rng.random(len(distance)), distance)), distance


def removal_groups(
    task: Task,
    train_ids: Int[np.ndarray, " train"],
    test_id: int,
    train_labels: Shaped[np.ndarray, " train"],
    label: str,
    size: int,
    seed: int,
    kinds: Sequence[str] = REMOVALS,
    max_step_frequency: float = MAX_STEP_FREQUENCY,
) -> dict[str, Int[np.ndarray, " _"]]:
    """Training cases to remove for one test case, by group, all groups of one size m <= `size`.

    `near` is the m nearest on the grid (`by_distance`). The others lie farther away than the `size` nearest and are
    disjoint, as in `statistics.GROUPS`: `same_answer` has the answer `label`, `same_operand` an operand in its place
    but not the answer, `same_step` neither of these but an informative rule step
    (`case_relations.informative_steps`). m is
    `size`, or the number of `same_step` cases where these are fewer: all of them are removed then. Each group is a
    random draw from its cases; one that has fewer than m is left out.

    Args:
        train_labels: labels of the training cases' reference answers.
        label: the label that the model predicts for the test case; "" matches nothing.
        kinds: the groups wanted; a group that is not wanted is not set apart from the others. (Where a case's only step
            decides its answer, all that share the step share the answer.)

    Returns:
        Case ids in ascending order. Empty when no training case shares a step without being near.

    Raises `CriError` where `test_id` is a training case or there are not `size` training cases.
    """
    train_ids = check_case_ids(train_ids, task.n_cases, "train_ids")
    check_case_ids([test_id], task.n_cases, "test_id")
    if not 1 <= size <= len(train_ids):
        raise out_of_range("size", size, f"in 1..{len(train_ids)}")
    if test_id in train_ids:
        raise CriError(f"test_id: {test_id} is a training case; a case is trivially its own neighbour")
    test = np.array([test_id])
    rng = np.random.default_rng([seed, test_id, size])
    order, distance = by_distance(task, train_ids, test_id, rng)
    far = distance > distance[order[size - 1]]
    shared = {
        "same_answer": (np.asarray(train_labels) == label) & (label != ""),
        "same_operand": shared_operands(task, train_ids, test)[:, 0] > 0,
        "same_step": shared_steps(task, train_ids, test, max_step_frequency)[:, 0] > 0,
    }
    left, masks = far, {}
    for name, mask in shared.items():
        if name in kinds or name == "same_step":  # whose number sets the size of all groups
            masks[name] = left & mask
            left = left & ~mask
    m = min(size, int(masks["same_step"].sum()))
    if m == 0:
        return {}
    groups = {"near": train_ids[order[:m]]}
    for name, mask in masks.items():
        if mask.sum() >= m:
            groups[name] = rng.choice(train_ids[mask], size=m, replace=False)
    return {name: np.sort(ids) for name, ids in groups.items()}


def random_removal(train_ids: Int[np.ndarray, " train"], size: int, seed: int) -> Int[np.ndarray, " removed"]:
    """`size` training cases drawn at random: what removing any cases does. Ascending ids."""
    if not 1 <= size < len(train_ids):
        raise out_of_range("size", size, f"in 1..{len(train_ids) - 1}")
    return np.sort(np.random.default_rng([seed, size]).choice(train_ids, size=size, replace=False))
