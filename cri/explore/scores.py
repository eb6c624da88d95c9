"""Attributions of the explained cases to the training cases, and how these relate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from cri.attribution.methods import METHODS
from cri.attribution.neighbors import similarity
from cri.attribution.questions import Question
from cri.data.case_groups import Groups, make_groups
from cri.explore.coding import Blob, coded_scores, ids
from cri.training.runs import Run

LISTED = 50
"""Strongest training cases of either sign that are kept exactly for each explained case and method."""
COSINE, UNTRAINED = "cosine", "cosine, untrained"
MODEL_FREE = {"same answer / distance": "same_answer_by_distance", "nearest operands": "nearest_operands"}
"""Baselines that know cases and answers alone, by their names on the page; the page computes them itself."""


@dataclass(frozen=True, eq=False)
class Scored:
    """Scores [train, case] of the explained cases by method: the asked ones, the cosine at the last layer of the
    trained and of the untrained model, and the model-free baselines."""

    cases: Int[np.ndarray, " case"]
    groups: Groups
    scores: dict[str, Float[np.ndarray, "train case"]]


def score_cases(
    run: Run,
    cases: Int[np.ndarray, " case"],
    methods: Sequence[str],
    own: Float[np.ndarray, "all d"],
    untrained: Float[np.ndarray, "all d"],
) -> Scored:
    """Explains what the model answers (not what is right) in each case."""
    train = run.split.train_ids
    answers = run.decoded(cases)["prediction"].astype(str).tolist()
    question = Question(
        run, train, cases, run.explained(cases, "prediction"), answers, run.model, run.config.seed, run.trained_part()
    )  # fmt: skip
    scores = {name: _last(METHODS[name].score(question)) for name in methods}
    scores[COSINE] = similarity(own[train], own[cases])
    scores[UNTRAINED] = similarity(untrained[train], untrained[cases])
    for label, key in MODEL_FREE.items():
        scores[label] = _last(METHODS[key].score(question))
    return Scored(cases, make_groups(run.task, train, cases, answers), scores)


def _last(scored: object) -> np.ndarray:
    *_, (_, scores) = scored  # pyright: ignore[reportGeneralTypeIssues]
    return scores


def add_scores(run: Run, scored: Scored, method: str) -> Blob:
    """A method's scores: of all training cases in steps, for maps, and the strongest of either sign exactly."""
    blob, train, scores = Blob(), run.split.train_ids, scored.scores[method]
    coded, largest = coded_scores(scores)
    blob.add("map", coded)
    blob.add("largest", largest)
    n = min(LISTED, len(train) // 2)
    order = np.argsort(-scores, axis=0, kind="stable")
    chosen = np.concatenate([order[:n], order[-n:]]).T  # best first, the most opposed last
    blob.add("ids", ids(train[chosen]))
    blob.add("score", np.take_along_axis(scores.T, chosen, axis=1).astype(np.float32))
    return blob
