"""Kinds of training case as seen from a test case: the plane of offsets, reduced to kinds with a name.

Kinds overlap. With a token a digit, the case that is ten away in one operand is as near as the one next to it: both
differ in one token.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool

from cri.data.case_groups import Groups
from cri.data.case_relations import grid_distance, mirror_images
from cri.data.memberships import offsets, steps_by_column, token_distance
from cri.tasks import Task

NEXT, FAR = 3, 6
"""Up to 3 cells away a case is called next to another, beyond 6 far."""


def case_kinds(task: Task, tokenizer: str, groups: Groups) -> dict[str, Bool[np.ndarray, "train test"]]:
    """By name, which pairs of `groups` are of a kind; kinds that no pair has are left out.

    Args:
        task: of the cases.
        tokenizer: `number` or `digit`: what a token of the question is.
        groups: of training and test cases, whose labels say which answers are the same.
    """
    train, test = groups.train_ids, groups.test_ids
    away = np.abs(offsets(task, train, test))
    distance, on_line = away.max(axis=2), away.min(axis=2) == 0
    answer = groups.answer
    image = mirror_images(task)[test]
    to_image = np.full(distance.shape, 10_000)
    exists = image >= 0
    to_image[:, exists] = grid_distance(task, train, image[exists])
    tokens = token_distance(task, tokenizer, train, test)
    steps = steps_by_column(task, train, test)
    base = task.digit_base
    kinds = {
        "answer line, 1 to 3 away": answer & (distance <= NEXT),
        "answer line, 4 to 6 away": answer & (distance > NEXT) & (distance <= FAR),
        "answer line, farther": answer & (distance > FAR) & (to_image > NEXT),
        "mirror image": to_image == 0,
        "answer line, 1 to 3 from the mirror image": answer & (distance > FAR) & (to_image > 0) & (to_image <= NEXT),
        "another answer, 1 to 3 away": ~answer & (distance <= NEXT),
        "one operand, 1 away": on_line & (distance == 1),
        f"one operand, {base} away": on_line & (distance == base),
        f"one operand, {2 * base} or {3 * base} away": on_line & np.isin(distance, (2 * base, 3 * base)),
        "one operand, other": on_line & (distance > 1) & (distance % base != 0),
        "one token differs": tokens == 1,
        "two tokens differ": tokens == 2,
        **steps,
    }
    shared = np.logical_or.reduce([answer, on_line, tokens <= 1, *steps.values()])
    kinds["nothing shared, farther than 6"] = ~shared & (distance > FAR)
    if tokenizer == "number":
        del kinds["two tokens differ"]
    return {name: mask for name, mask in kinds.items() if mask.any()}
