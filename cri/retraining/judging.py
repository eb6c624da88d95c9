"""Retrainings on random subsets as ground truth of attribution: what a method is asked, and how its answer is judged.

The study `attribution_quality` and `cri.benchmark` share these functions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from cri.attribution.methods import of_kind
from cri.attribution.questions import Question
from cri.retraining.records import Retrainings
from cri.statistics.datamodels import Resamples, lds_table, noise_ceiling
from cri.training.setup import prepare

EVERYWHERE = "all"
"""The region of all queries."""
FIXED, NEW, MEAN = "fixed seed", "new seed", "mean over seeds"
"""Kinds of retraining: from the start of the explained model, from other starts, and the mean of all outputs."""


def questions(base: Retrainings, split: str) -> tuple[np.ndarray, dict[str, Question]]:
    """Which of the recorded queries the split's models do not train on, and the question about them for each target:
    `prediction` is the answer that the *first* base model predicts; models of other seeds are scored on it, too."""
    materials = prepare(base.config)
    first = int(np.flatnonzero(base.table["split"] == split)[0])
    train = base.train[first]
    held = np.flatnonzero(~train[base.queries])
    query_ids, train_ids = base.queries[held], np.flatnonzero(train)
    tokens = {
        "prediction": base.predicted(first, materials.tokens)[held],
        "reference": materials.tokens[query_ids],
    }
    out: dict[str, Question] = {}
    for target, table in tokens.items():
        texts = [
            str(materials.tokenizer.decode(table.ids[i, table.prompt_lengths[i] : table.lengths[i] - 1].tolist()))
            for i in range(len(table))
        ]
        out[target] = Question(materials, train_ids, query_ids, table, texts)
    return held, out


def outputs_by_seed(record: Retrainings, held: np.ndarray, target: str) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Training masks of the subsets, and by seed the outputs, [subset, query]."""
    order = record.table.sort_values(["seed", "subset"])
    rows = {int(seed): part.index.to_numpy() for seed, part in order.groupby("seed", sort=False)}
    values = record.log_odds(target)[:, held]
    first = next(iter(rows.values()))
    return record.train[first], {seed: values[index] for seed, index in rows.items()}


def region_masks(question: Question, split: str) -> dict[str, np.ndarray]:
    """Queries by region of the square split; the random split has but one."""
    everywhere = np.ones(len(question.query_ids), dtype=bool)
    if split != "square":
        return {EVERYWHERE: everywhere}
    inside = question.materials.split.test[question.query_ids]
    regions = {EVERYWHERE: everywhere, "square": inside, "outside": ~inside}
    return {name: mask for name, mask in regions.items() if mask.sum() >= 2}


def judge(
    sums: dict[str, np.ndarray],
    seeds: dict[int, np.ndarray],
    fixed: int,
    mask: np.ndarray,
    draws: Resamples,
    notes: dict[str, Any],
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Tables of scores and of noise ceilings of one set of subsets and one region.

    Args:
        sums: `subset_sums` of each method, [subset, query]; the model-free ones among them are the baselines.
        seeds: outputs by seed, from `outputs_by_seed`.
        fixed: the seed of the explained model.
        mask: the region's queries, from `region_masks`.
        draws: bootstrap draws for these subsets and queries.
        notes: columns to add to every row.

    Returns:
        `lds_table` by kind of retraining, and rows `what, estimate, low, high` of the ceilings; none of these where
        the subsets were trained with one seed.
    """
    new = [values[:, mask] for seed, values in seeds.items() if seed != fixed]
    outputs = {FIXED: [seeds[fixed][:, mask]]}
    if new:
        outputs |= {NEW: new, MEAN: [np.mean([seeds[fixed][:, mask], *new], axis=0)]}
    predicted = {name: values[:, mask] for name, values in sums.items()}
    baselines = tuple(name for name in of_kind("model-free") if name in predicted)
    table = lds_table(predicted, outputs, baselines, draws)
    ceilings = []
    if new:
        found = noise_ceiling([seeds[fixed][:, mask], *new], draws)
        n = len(new) + 1
        for name, interval in found.items():
            ceilings.append({**notes, "what": f"{name}, one seed", **interval._asdict()})
        # Spearman-Brown: reliability of the mean of n retrainings
        up = [np.sqrt(n * max(r, 0) / (1 + (n - 1) * max(r, 0))) for r in found["reliability"]]
        ceilings.append({**notes, "what": f"ceiling, {MEAN}", "estimate": up[0], "low": up[1], "high": up[2]})
    return table.assign(**notes), ceilings
