"""Cases as examples in a prompt: how each case is related to the one that is asked, and draws of one kind.

Every case is of one kind at most. Near ones have another answer than the one asked for, and so have those near the
mirror image (b, a): a right answer is then no copy of one that the prompt shows. All other kinds lie far away on the
grid.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, Int8

from cri.checks import checked
from cri.data.case_ids import check_case_ids
from cri.data.case_relations import grid_distance, mirror_images, shared_operands, shared_steps
from cri.errors import out_of_range
from cri.tasks import Task

KINDS = ("near", "mirror", "same_answer", "other_tens", "same_operand", "same_step", "far")
"""The disjoint kinds, in order of precedence:

- `near`: at most `radius` away on the grid, with another answer;
- `mirror`: likewise, from the case with the operands exchanged;
- `same_answer`: the answer is that of the case asked;
- `other_tens`: one operand is the same, the other has the same units: one digit differs, the tens;
- `same_operand`: another case that shares an operand in its place;
- `same_step`: shares an informative rule step (`case_relations.informative_steps`);
- `far`: none of these.
"""


@checked
def example_kinds(
    task: Task,
    candidates: Int[np.ndarray, " example"],
    questions: Int[np.ndarray, " question"],
    *,
    radius: int = 2,
    far: int = 10,
) -> Int8[np.ndarray, "example question"]:
    """The kind of each pair as an index into `KINDS`; -1 for pairs of none: the question itself, near cases (and those
    near the mirror image) with its answer, and cases more than `radius` and less than `far` away.

    Raises `CriError` for a `radius` below 1 or a `far` that is not larger.
    """
    if radius < 1:
        raise out_of_range("radius", radius, "at least 1")
    if far <= radius:
        raise out_of_range("far", far, f"more than radius={radius}")
    rows = check_case_ids(candidates, task.n_cases, "candidates")
    columns = check_case_ids(questions, task.n_cases, "questions")
    distance = grid_distance(task, rows, columns)
    answers = np.array(task.answers)
    answer = answers[rows][:, None] == answers[columns][None]
    image = mirror_images(task)[columns]
    mirror = (image >= 0)[None] & (grid_distance(task, rows, np.maximum(image, 0)) <= radius)
    operand = shared_operands(task, rows, columns) > 0
    difference = np.abs(task.cases[rows][:, None] - task.cases[columns][None]).sum(axis=2)
    tens = operand & (difference % task.digit_base == 0)
    step = shared_steps(task, rows, columns) > 0
    none = -1
    kinds = (  # the first that holds
        (distance == 0, none), (distance <= radius, np.where(answer, none, KINDS.index("near"))),
        (mirror, np.where(answer, none, KINDS.index("mirror"))), (distance < far, none),
        (answer, KINDS.index("same_answer")), (tens, KINDS.index("other_tens")),
        (operand, KINDS.index("same_operand")), (step, KINDS.index("same_step")),
    )  # fmt: skip
    masks, codes = zip(*kinds, strict=True)
    return np.select(masks, [np.broadcast_to(code, distance.shape) for code in codes], KINDS.index("far")).astype(
        np.int8
    )
