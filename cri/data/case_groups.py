"""Groups of training cases relative to a test case and to the label the model predicts for it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int, Int8, Shaped

from cri.checks import checked
from cri.data.case_ids import check_case_ids
from cri.data.case_relations import MAX_STEP_FREQUENCY, grid_distance, mirror_images, shared_operands, shared_steps
from cri.errors import CriError, out_of_range
from cri.tasks import Task

if TYPE_CHECKING:
    import pandas as pd

GROUPS = ("near", "same_answer", "same_operand", "same_step", "rest")
"""The disjoint groups, in order of precedence."""

BY_ANSWER = (
    "near_same_answer", "near_other_answer", "mirror_same_answer", "same_answer_same_step", "same_answer",
    "same_operand", "same_step", "rest",
)  # fmt: skip
"""Disjoint groups in which near cases, those near the mirror image and those that share a step are told apart by their
answer (`by_answer`)."""

_NUMBER = re.compile(r"\d+")


@checked
def labels(texts: Iterable[str]) -> Shaped[np.ndarray, " case"]:
    """The label of each answer text: its first run of digits, as printed; "" where there is none.

    For the number tasks that is the answer itself, for chicken & rabbit the number of rabbits: whole
    answers of that task occur once each, so no two cases would share one.
    """
    return np.array([m.group() if (m := _NUMBER.search(str(text))) else "" for text in texts], dtype=np.str_)


@dataclass(frozen=True, eq=False)
class Groups:
    """How every training case relates to every test case.

    Attributes:
        train_ids, test_ids: case ids of the rows and columns.
        train_labels: label of each training case's reference answer.
        test_labels: label the model predicts for each test case ("" matches nothing).
        distance: grid (Chebyshev) distance of each pair.
        near: the training cases within `radius` of the test case on the grid.
        mirror: those within `radius` of its mirror image (the operands exchanged, the same answer), it included.
        answer: those whose answer is the label predicted for the test case.
        operand: those that share an operand, in its place, with the test case.
        step: those that share an informative rule step (`case_relations.informative_steps`).
        n_near: least number of `near` cases that was asked for.
        radius: distance within which training cases are `near`.
        codes: the disjoint group of each pair, an index into `GROUPS`.
    """

    train_ids: Int[np.ndarray, " train"]
    test_ids: Int[np.ndarray, " test"]
    train_labels: Shaped[np.ndarray, " train"]
    test_labels: Shaped[np.ndarray, " test"]
    distance: Int[np.ndarray, "train test"]
    near: Bool[np.ndarray, "train test"]
    mirror: Bool[np.ndarray, "train test"]
    answer: Bool[np.ndarray, "train test"]
    operand: Bool[np.ndarray, "train test"]
    step: Bool[np.ndarray, "train test"]
    n_near: int
    radius: Int[np.ndarray, " test"]
    codes: Int8[np.ndarray, "train test"]

    def base_rates(self) -> pd.DataFrame:
        """Mean size of each group and its share of the training cases, over the test cases."""
        import pandas as pd

        sizes = np.stack([(self.codes == g).sum(axis=0) for g in range(len(GROUPS))])
        return pd.DataFrame(
            {
                "group": GROUPS,
                "size": sizes.mean(axis=1),
                "smallest": sizes.min(axis=1),
                "largest": sizes.max(axis=1),
                "base": sizes.mean(axis=1) / len(self.train_ids),
            }
        )


@checked
def matched_size(train_labels: Shaped[np.ndarray, " train"], test_labels: Shaped[np.ndarray, " test"]) -> int:
    """Median number of training cases that share a test case's predicted label (at least 1): the size to
    which `near` is matched."""
    names, counts = np.unique(train_labels, return_counts=True)
    size = dict(zip(names.tolist(), counts.tolist(), strict=True))
    sizes = [size.get(label, 0) for label in np.asarray(test_labels).tolist() if label]
    return max(1, round(float(np.median(sizes)))) if sizes else 1


@checked
def make_groups(
    task: Task,
    train_ids: Int[np.ndarray, " train"],
    test_ids: Int[np.ndarray, " test"],
    predictions: Sequence[str],
    *,
    n_near: int | None = None,
    max_step_frequency: float = MAX_STEP_FREQUENCY,
) -> Groups:
    """Groups of the training cases for each test case, given what the model answered.

    `near` is whole rings: the smallest grid distance r_t with at least `n_near` training cases within it.
    Deep inside a held-out square that is the nearest rings beyond its border. A ring is taken whole
    because any choice within one would favour a direction, and along an axis or an anti-diagonal that is
    a shared operand or a shared sum. By default `n_near` is the median size of the predicted labels'
    groups (`matched_size`), so that `near` and its rival `same_answer` can be enriched equally far:
    enrichment is bounded by 1 / base rate.

    The other traits hold for near cases too. For enrichment each pair counts once, by the precedence of
    `GROUPS`: whatever is near is `near`; `same_answer`, `same_operand` and `same_step` are far from the
    test case; `same_step` shares neither answer nor operand. A near case may be retrieved for its answer
    alone: the output-matched contrasts (`matched`), which use the overlapping masks, control for that.

    Args:
        predictions: the model's answer to each test case, as text.
        n_near: least number of near cases; give both models the same when they are compared.

    Raises `CriError` for empty or overlapping sets of cases, or an `n_near` out of range.
    """
    train_ids = check_case_ids(train_ids, task.n_cases, "train_ids")
    test_ids = check_case_ids(test_ids, task.n_cases, "test_ids")
    if len(train_ids) == 0 or len(test_ids) == 0:
        raise CriError(f"groups: {len(train_ids)} training and {len(test_ids)} test cases; both must be positive")
    if len(predictions) != len(test_ids):
        raise CriError(f"predictions: {len(predictions)} for {len(test_ids)} test cases")
    if np.isin(test_ids, train_ids).any():
        raise CriError("test_ids: some are training cases; a case is trivially its own neighbour")
    answers = task.answers
    train_labels, test_labels = labels(answers[i] for i in train_ids), labels(predictions)
    if n_near is None:
        n_near = min(matched_size(train_labels, test_labels), len(train_ids))
    if not 1 <= n_near <= len(train_ids):
        raise out_of_range("n_near", n_near, f"in 1..{len(train_ids)}")

    distance = grid_distance(task, train_ids, test_ids)
    radius = np.partition(distance, n_near - 1, axis=0)[n_near - 1]
    near = distance <= radius
    mirror, image = np.zeros_like(near), mirror_images(task)[test_ids]
    exists = image >= 0
    mirror[:, exists] = grid_distance(task, train_ids, image[exists]) <= radius[exists]
    answer = (train_labels[:, None] == test_labels) & (test_labels != "")
    operand = shared_operands(task, train_ids, test_ids) > 0
    step = shared_steps(task, train_ids, test_ids, max_step_frequency) > 0
    codes = np.full(near.shape, GROUPS.index("rest"), dtype=np.int8)
    for name, mask in reversed(list(zip(GROUPS, (near, answer, operand, step), strict=False))):
        codes[mask] = GROUPS.index(name)
    return Groups(
        train_ids,
        test_ids,
        train_labels,
        test_labels,
        distance,
        near,
        mirror,
        answer,
        operand,
        step,
        n_near,
        radius,
        codes,
    )


@checked
def by_answer(groups: Groups) -> Int8[np.ndarray, "train test"]:
    """Groups of the pairs, as indices into `BY_ANSWER`, that allow comparisons with equal outputs: near cases, and far
    cases that share a step, are divided into those with the test case's answer and those with another.

    Among nearby cases many share the answer, so what `near` cases add may be what their answers add.
    `near_same_answer` against `same_answer_same_step`, and `near_other_answer` against `same_step`, are comparisons
    of place and step with the answer held fixed. For a model that treats a + b and b + a alike, cases near b + a
    are near as well: those with the same answer form the group `mirror_same_answer`.
    """
    near, answer, operand, step = groups.near, groups.answer, groups.operand, groups.step
    # the first that holds
    masks = (near & answer, near, groups.mirror & answer, answer & step, answer, operand, step)
    return np.select(masks, list(range(len(masks))), default=len(masks)).astype(np.int8)
