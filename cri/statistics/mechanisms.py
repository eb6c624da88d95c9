"""Planted mechanisms: how models that answer in a known way would respond to the training cases they are given.

Each maps the training subsets to log-odds of the queries, [subset, query], up to scale; the analysis of these log-odds
must recover the planted mechanism. Like real models, they are not linear in the training cases.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int, Num, Shaped

from cri.data.case_relations import grid_distance, mirror_images
from cri.data.memberships import offsets, steps_by_column
from cri.statistics.readings import ANYWHERE, CASES, COLUMN, IMAGE, LINES, NOTHING
from cri.tasks import Task

Kept = Bool[np.ndarray, "subset train"]
Response = Float[np.ndarray, "subset query"]
TrainIds = Int[np.ndarray, " train"]
TestIds = Int[np.ndarray, " query"]
DECAY, REACH = 2.0, 6
"""Of planted cases and number lines: weights exp(-d / 2) up to 6 cells away."""


def _log_counts(kept: Kept, weights: Num[np.ndarray, "train query"] | Bool[np.ndarray, "train query"]) -> Response:
    """log(1 + weighted number of training cases): the tenth case teaches less than the first."""
    return np.log1p(kept.astype(np.float32) @ weights.astype(np.float32)).astype(np.float64)


def cases(task: Task, kept: Kept, train_ids: TrainIds, test_ids: TestIds) -> Response:
    """Kernel vote: log-odds of the nearby cases with the answer, weighted by nearness, against those with another."""
    distance = grid_distance(task, train_ids, test_ids)
    weights = np.where(distance <= REACH, np.exp(-distance / DECAY), 0.0)
    answers: Shaped[np.ndarray, " case"] = np.array(task.answers)
    same = answers[train_ids][:, None] == answers[test_ids][None]
    votes = [kept.astype(np.float64) @ (weights * mask) + 0.05 for mask in (same, ~same)]
    return np.log(votes[0]) - np.log(votes[1])


def number_line(task: Task, kept: Kept, train_ids: TrainIds, test_ids: TestIds) -> Response:
    """Interpolation along the number line of either operand, the other held fixed: the nearer the trained neighbours
    in row and column, the better, whatever their answers."""
    away = np.abs(offsets(task, train_ids, test_ids))
    on_line = (away.min(axis=2) == 0) & (away.max(axis=2) <= REACH)
    return _log_counts(kept, np.where(on_line, np.exp(-away.max(axis=2) / DECAY), 0.0))


def mirror(task: Task, kept: Kept, train_ids: TrainIds, test_ids: TestIds) -> Response:
    """The mirror image is looked up: 1 where it is trained."""
    image = mirror_images(task)[test_ids]
    return kept.astype(np.float64) @ ((train_ids[:, None] == image[None]) & (image >= 0))


def column_step(task: Task, kept: Kept, train_ids: TrainIds, test_ids: TestIds) -> Response:
    """Executes the step of the tens, its carry included, as often as it was trained in the column of tens."""
    masks = steps_by_column(task, train_ids, test_ids)
    none = np.zeros((len(train_ids), len(test_ids)), dtype=bool)
    return _log_counts(kept, masks.get("step of the tens", none))


def digits_anywhere(task: Task, kept: Kept, train_ids: TrainIds, test_ids: TestIds) -> Response:
    """Executes both steps, trained in whatever column: the sum of their log counts."""
    masks = steps_by_column(task, train_ids, test_ids)
    nothing_yet = np.zeros((len(kept), len(test_ids)))
    return sum((_log_counts(kept, mask) for mask in masks.values()), start=nothing_yet)


def nothing(task: Task, kept: Kept, train_ids: TrainIds, test_ids: TestIds) -> Response:
    """Nothing is learnt from any case."""
    return np.zeros((len(kept), len(test_ids)))


PLANTED: dict[str, Callable[[Task, Kept, TrainIds, TestIds], Response]] = {
    CASES: cases, LINES: number_line, IMAGE: mirror, COLUMN: column_step, ANYWHERE: digits_anywhere, NOTHING: nothing,
}  # fmt: skip
"""By the reading that each must get."""


def outputs(response: Response, reliability: float, n_seeds: int, seed: int) -> Float[np.ndarray, "seed subset query"]:
    """Log-odds of retrainings: the response with unit variance over subsets (averaged over queries), and noise of each
    seed, so that two seeds agree to `reliability`."""
    rng = np.random.default_rng(seed)
    centered = response - response.mean(axis=0)
    scale = np.sqrt((centered**2).mean())
    signal = centered / scale if scale > 0 else centered
    noise = np.sqrt((1 - reliability) / reliability)
    return signal + noise * rng.standard_normal((n_seeds, *response.shape))
