"""Groups of training cases, enrichment with intervals, output-matched controls, the verdict table.

Scores are [train, test], larger meaning closer, aligned to the ids in `Groups`. Per-test-case tables are
tidy DataFrames; `estimate` and `paired` turn them into means with bootstrap intervals.
"""

from cri.data.case_groups import BY_ANSWER, GROUPS, Groups, by_answer, labels, make_groups, matched_size
from cri.statistics.agreement import agreement
from cri.statistics.enrichment import TopK, enrichment, kind_shares, matched, neighbor_distance, top_k, vote
from cri.statistics.intervals import (
    Interval,
    bootstrap_ratio,
    estimate,
    grid_blocks,
    paired,
    ring_accuracy,
    stratified_auc,
    wilson,
)
from cri.statistics.verdict import VERDICTS, decide, overall, verdicts

__all__ = [
    "BY_ANSWER",
    "GROUPS",
    "VERDICTS",
    "Groups",
    "Interval",
    "TopK",
    "agreement",
    "bootstrap_ratio",
    "by_answer",
    "decide",
    "enrichment",
    "estimate",
    "grid_blocks",
    "kind_shares",
    "labels",
    "make_groups",
    "matched",
    "matched_size",
    "neighbor_distance",
    "overall",
    "paired",
    "ring_accuracy",
    "stratified_auc",
    "top_k",
    "verdicts",
    "vote",
    "wilson",
]
