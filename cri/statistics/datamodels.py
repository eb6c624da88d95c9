"""The linear datamodeling score (LDS): does an attribution predict what retraining does?

For a query q and training subsets S, the attribution predicts g_S = sum of its scores over S; retraining on S gives the
output f_S. LDS(q) is Spearman's rank correlation of g and f over the subsets (Ilyas et al. 2022; Park et al. 2023,
TRAK, section 2). Reported are means over queries, with intervals by a bootstrap that draws subsets and blocks of
queries at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Num
from scipy.stats import rankdata

from cri.errors import CriError, out_of_range
from cri.statistics.intervals import BLOCK_SIDE, LEVEL, N_BOOT, Interval, grid_blocks, resample_counts
from cri.tasks import Task

Ranks = Float[np.ndarray, "subset query"]
PerQuery = Float[np.ndarray, "boot query"]
MIN_BLOCKS = 16
_EQUAL = 1e-9
"""Of the largest score: a difference between sums that says nothing."""


def subset_sums(
    scores: Num[np.ndarray, "train query"], kept: Bool[np.ndarray, "subset train"]
) -> Float[np.ndarray, "subset query"]:
    """What an attribution predicts of each subset: the sum of the scores of its cases (in float64: the differences
    between subsets are small beside the sums).

    Sums that differ by rounding alone are made equal, so that they share a rank: many subsets have as many cases of a
    group, and the order in which a machine adds would decide among them.
    """
    centered = np.asarray(scores, dtype=np.float64) - np.mean(scores, axis=0, dtype=np.float64)
    unit = _EQUAL * np.abs(centered).max(axis=0, initial=0)
    unit[unit == 0] = 1
    return np.round(kept.astype(np.float64) @ centered / unit) * unit


def rank(values: Num[np.ndarray, "subset query"]) -> Ranks:
    """Ranks over subsets, ties sharing their mean."""
    return rankdata(values, axis=0)


def rank_correlation(x: Ranks, y: Ranks, weights: Num[np.ndarray, "boot subset"]) -> PerQuery:
    """Correlation of two sets of ranks for each query under each row of subset weights; 0 where either is constant
    (a method that says the same of every subset predicts nothing).

    In bootstrap samples the ranks stay those among all subsets: a resampled rank is a monotone function of them.
    """
    w = weights / weights.sum(axis=1, keepdims=True)
    mean_x, mean_y = w @ x, w @ y
    cov = w @ (x * y) - mean_x * mean_y
    var = (w @ x**2 - mean_x**2) * (w @ y**2 - mean_y**2)
    scale = np.sqrt(np.maximum(var, 0))
    return np.divide(cov, scale, out=np.zeros_like(cov), where=scale > 1e-9)


@dataclass(frozen=True, eq=False)
class Resamples:
    """Bootstrap draws shared by all methods, so that their differences are paired.

    Attributes:
        subsets: how often each subset counts, [boot, subset]; the first row is the sample itself.
        queries: how often each query counts, [boot, query]; likewise.
    """

    subsets: Num[np.ndarray, "boot subset"]
    queries: Num[np.ndarray, "boot query"]

    def interval(self, values: PerQuery, level: float = LEVEL) -> Interval:
        """Mean over queries with its percentile interval."""
        means = (values * self.queries).sum(axis=1) / self.queries.sum(axis=1)
        low, high = np.quantile(means[1:], [(1 - level) / 2, (1 + level) / 2])
        return Interval(float(means[0]), float(low), float(high))


def resamples(n_subsets: int, block: Int[np.ndarray, " query"], n_boot: int = N_BOOT, seed: int = 0) -> Resamples:
    """Draws of subsets with replacement, and of blocks of queries (cells of one patch of the grid have nearly the
    same outputs)."""
    if n_boot < 1:
        raise out_of_range("n_boot", n_boot, "at least 1")
    if n_subsets < 2:
        raise out_of_range("n_subsets", n_subsets, "at least 2")
    rng = np.random.default_rng(seed)
    subsets = rng.multinomial(n_subsets, np.full(n_subsets, 1 / n_subsets), size=n_boot)
    queries = resample_counts(np.zeros(len(block), dtype=int), block, n_boot, seed)
    if queries is None:
        raise CriError("queries: all lie in one block; at least two are needed for an interval")
    ones = (np.ones((1, n_subsets), dtype=int), np.ones((1, len(block)), dtype=np.float32))
    return Resamples(np.concatenate([ones[0], subsets]), np.concatenate([ones[1], queries]))


def query_blocks(task: Task, case_ids: Int[np.ndarray, " query"]) -> Int[np.ndarray, " query"]:
    """Blocks of queries to resample: `grid_blocks` of the widest patches, up to 5 x 5, that leave at least
    `MIN_BLOCKS`; each query its own where none do (fewer blocks make intervals too narrow)."""
    for side in range(BLOCK_SIDE, 1, -1):
        blocks = grid_blocks(task, case_ids, side)
        if len(np.unique(blocks)) >= MIN_BLOCKS:
            return blocks
    return np.arange(len(case_ids))


def partial(xy: PerQuery, xz: PerQuery, yz: PerQuery) -> PerQuery:
    """Correlation of x and y with z held fixed, from the three correlations; 0 where z leaves nothing of x or y."""
    scale = np.sqrt(np.maximum((1 - xz**2) * (1 - yz**2), 0))
    return np.divide(xy - xz * yz, scale, out=np.zeros_like(xy), where=scale > 1e-6)


def lds_table(
    predicted: Mapping[str, Float[np.ndarray, "subset query"]],
    outputs: Mapping[str, list[Float[np.ndarray, "subset query"]]],
    baselines: tuple[str, ...],
    draws: Resamples,
) -> pd.DataFrame:
    """LDS of every method against every kind of retraining.

    Args:
        predicted: `subset_sums` of each method.
        outputs: by kind of retraining (`fixed seed`, `new seed`, ...), the outputs of one or more retrainings of the
            same subsets; the LDS of a kind is the mean over these.
        baselines: the model-free methods. The one with the highest LDS is what the others are compared with;
            chosen after the fact, it is favoured.

    Returns:
        One row a method and kind: `lds`, `gain` (LDS minus that of the best baseline), `partial` (given the best
        baseline), each with `_low` and `_high`; `best_baseline`, `n_subsets`, `n_queries`.
    """
    ranks = {name: rank(values) for name, values in predicted.items()}
    rows = []
    for kind, retrained in outputs.items():
        truth = [rank(values) for values in retrained]

        def against_truth(name: str, truth: list[Ranks] = truth) -> list[PerQuery]:
            return [rank_correlation(ranks[name], y, draws.subsets) for y in truth]

        correlation = {name: against_truth(name) for name in ranks}
        lds = {name: np.mean(values, axis=0) for name, values in correlation.items()}
        best = max(baselines, key=lambda name: lds[name][0].mean())
        for name in ranks:
            between = rank_correlation(ranks[name], ranks[best], draws.subsets)
            left = [partial(xy, between, zy) for xy, zy in zip(correlation[name], correlation[best], strict=True)]
            values = {"lds": lds[name], "gain": lds[name] - lds[best], "partial": np.mean(left, axis=0)}
            row: dict[str, object] = {"method": name, "retraining": kind}
            for column, value in values.items():
                row[column], row[f"{column}_low"], row[f"{column}_high"] = draws.interval(value)
            size = {"n_subsets": draws.subsets.shape[1], "n_queries": draws.queries.shape[1]}
            rows.append({**row, "best_baseline": best, **size})
    return pd.DataFrame(rows)


def noise_ceiling(outputs: list[Float[np.ndarray, "subset query"]], draws: Resamples) -> dict[str, Interval]:
    """How well subsets can be told apart by retraining at all.

    Args:
        outputs: retrainings of the same subsets with different seeds, at least two.

    Returns:
        `reliability`: rank correlation between two seeds, the mean over all pairs; `ceiling`: its root, the LDS that
        the expected output over seeds would reach against a single retraining (attenuation formula, Spearman 1904);
        a negative reliability counts as 0.
    """
    if len(outputs) < 2:
        raise CriError("outputs: a noise ceiling needs retrainings with at least two seeds")
    ranks = [rank(values) for values in outputs]
    pairs = [(i, j) for i in range(len(ranks)) for j in range(i)]
    values = np.mean([rank_correlation(ranks[i], ranks[j], draws.subsets) for i, j in pairs], axis=0)
    reliability = draws.interval(values)
    return {"reliability": reliability, "ceiling": Interval(*(float(np.sqrt(max(x, 0.0))) for x in reliability))}
