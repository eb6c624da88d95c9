"""Is what is read what was planted? Simulated models that answer in a known way, through both instruments.

Random halves: `membership_effects` of simulated log-odds, over all training cases and with the answer held fixed.
Designed removals: groups that each mechanism alone needs (`told_apart`), removed for single test cases.
"""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from cri import statistics
from cri.data.memberships import LINE, MIRROR, NEAR_ANSWER, Memberships, memberships
from cri.data.splits import random
from cri.statistics.case_effects import Halves, membership_effects
from cri.statistics.coverage import coverage_table
from cri.statistics.datamodels import query_blocks
from cri.statistics.intervals import stratified_auc, wilson, with_runs
from cri.statistics.mechanisms import PLANTED, outputs
from cri.statistics.readings import (
    ANYWHERE,
    CASES,
    COLUMN,
    IMAGE,
    LINES,
    NOTHING,
    Score,
    mechanism_scores,
    reading,
    z_score,
)
from cri.tasks import Task, make_task

N_QUERIES, N_SUBSETS, N_SEEDS, N_BOOT = 80, 100, 3, 100
RELIABILITIES = (0.3,)
"""Correlation of two retrainings on one half: about 0.3 on the paper's grid (random split)."""
N_TESTS, REMOVED = 36, 60
"""Designed removals: test cases an experiment, and the most cases removed of a group."""


class Design(NamedTuple):
    """A grid's training cases and held-out queries, shared by all experiments."""

    task: Task
    train_ids: np.ndarray
    test_ids: np.ndarray
    members: Memberships
    answer: np.ndarray


def design(size: int = 100, n_queries: int = N_QUERIES) -> Design:
    """Queries held out by the random split of addition with number tokens."""
    task = make_task("addition", size=size)
    split = random(task)
    chosen = np.random.default_rng(0).choice(split.test_ids, size=min(n_queries, len(split.test_ids)), replace=False)
    test_ids = np.sort(chosen)
    groups = statistics.make_groups(task, split.train_ids, test_ids, [task.answers[i] for i in test_ids])
    return Design(task, split.train_ids, test_ids, memberships(task, "number", groups), groups.answer)


def random_halves(n_subsets: int, n_train: int, seed: int) -> np.ndarray:
    """Masks of random halves, [subset, train]."""
    order = np.random.default_rng(seed).random((n_subsets, n_train)).argsort(axis=1)
    return order < n_train // 2


def by_halves(given: Design, planted: str, reliability: float, seed: int) -> dict[str, dict[str, Score]]:
    """Scores of the mechanisms from one simulated set of random halves, by which cases are compared."""
    kept = random_halves(N_SUBSETS, len(given.train_ids), seed)
    response = PLANTED[planted](given.task, kept, given.train_ids, given.test_ids)
    halves = Halves(kept, outputs(response, reliability, N_SEEDS, seed), query_blocks(given.task, given.test_ids))
    same = {name: given.members[name] & given.answer for name in given.members.names}
    same = {name: mask for name, mask in same.items() if mask.any()}
    fixed = Memberships(tuple(same), np.stack(list(same.values())))
    return {
        "random halves": mechanism_scores(membership_effects(halves, given.members, N_BOOT)),
        "random halves, answer held fixed": mechanism_scores(membership_effects(halves, fixed, N_BOOT)),
    }


def told_apart(given: Design, query: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Groups of training cases (positions) that one mechanism needs and no other: near cases with the answer; near
    ones on an operand's line; the mirror image; those that share the step of the tens, without the answer, an operand
    or being within 1; those that share the step of the units. At most `REMOVED` of each."""
    mask = {name: given.members[name][:, query] for name in given.members.names}
    tens, units = mask["step of the tens"], mask["step of the units"]
    answer, near, line = given.answer[:, query], mask["near"], mask[LINE]
    groups = {
        CASES: mask[NEAR_ANSWER] & ~tens,
        LINES: line & ~tens,
        IMAGE: mask[MIRROR],
        COLUMN: tens & ~answer & ~line & ~mask["within 1"],
        ANYWHERE: units & ~answer & ~near & ~mask["one operand shared"],
    }
    found = {name: np.flatnonzero(group) for name, group in groups.items()}
    return {name: rng.permutation(cases)[:REMOVED] for name, cases in found.items() if len(cases)}


def by_removals(given: Design, planted: str, reliability: float, seed: int) -> dict[str, Score]:
    """Scores of the mechanisms from simulated designed removals: the drop of the log-odds when a mechanism's group is
    removed, minus that of a random removal of as many cases. The noise of a retraining is that of random halves."""
    rng = np.random.default_rng([seed, 1])
    chosen = rng.choice(len(given.test_ids), size=min(N_TESTS, len(given.test_ids)), replace=False)
    kept = random_halves(20, len(given.train_ids), seed)
    spread = PLANTED[planted](given.task, kept, given.train_ids, given.test_ids)
    scale = np.sqrt(((spread - spread.mean(axis=0)) ** 2).mean()) or 1.0
    noise = np.sqrt((1 - reliability) / reliability)
    groups = {query: told_apart(given, query, rng) for query in chosen.tolist()}
    removed = [(query, name, cases) for query, found in groups.items() for name, cases in found.items()]
    masks = np.ones((2 * len(removed), len(given.train_ids)), dtype=bool)
    for i, (_, _, cases) in enumerate(removed):
        masks[2 * i, cases] = False
        masks[2 * i + 1, rng.choice(len(given.train_ids), size=len(cases), replace=False)] = False
    found = PLANTED[planted](given.task, masks, given.train_ids, given.test_ids) / scale
    drops: dict[str, list[np.ndarray]] = {}
    for i, (query, name, _) in enumerate(removed):
        without, control = found[2 * i : 2 * i + 2, query, None] + noise * rng.standard_normal((2, N_SEEDS))
        drops.setdefault(name, []).append(control - without)
    return {name: _mean_score(np.stack(values, axis=1), rng) for name, values in drops.items()}


def _mean_score(values: np.ndarray, rng: np.random.Generator) -> Score:
    n = values.shape[1]
    counts = np.concatenate([np.ones((1, n)), rng.multinomial(n, np.full(n, 1 / n), size=N_BOOT)]) / n
    value = with_runs(values @ counts.T)
    return Score(value, z_score(value))


def experiments(n: int, given: Design) -> pd.DataFrame:
    """One row an experiment: `instrument`, `reliability`, `planted`, `reading`, and the scores `z ...`."""
    rows: list[dict[str, Any]] = []
    for reliability, planted, seed in itertools.product(RELIABILITIES, PLANTED, range(n)):
        found = by_halves(given, planted, reliability, seed)
        found["designed removals"] = by_removals(given, planted, reliability, seed)
        for instrument, scores in found.items():
            z = {f"z {name}": scores[name].z if name in scores else 0.0 for name in PLANTED if name != NOTHING}
            rows.append({"instrument": instrument, "reliability": reliability, "planted": planted, "seed": seed,
                         "reading": reading(scores), **z})  # fmt: skip
    return pd.DataFrame(rows)


KEYS = ["instrument", "reliability"]


def confusion(table: pd.DataFrame) -> pd.DataFrame:
    """Planted x reading: `count`, `share` of `n` experiments, with Wilson intervals."""
    rows = []
    for key, part in table.groupby([*KEYS, "planted"], sort=False):
        for read, count in Counter(part["reading"]).most_common():
            low, high = wilson(count, len(part))
            names = dict(zip([*KEYS, "planted"], key, strict=True))
            rows.append({**names, "reading": read, "count": count, "n": len(part), "share": count / len(part),
                         "low": low, "high": high})  # fmt: skip
    return pd.DataFrame(rows)


def separation(table: pd.DataFrame) -> pd.DataFrame:
    """For each pair of planted mechanisms: AUC of the difference of their scores, experiments of one against those of
    the other, with a lower bound: where all are told apart a bootstrap has nothing left to vary, so the bound is
    Wilson's for as many successes in as many trials as the smaller side has. A step anywhere is also one in its
    column: those two are told apart by the score of the first alone."""
    rows = []
    for key, part in table.groupby(KEYS, sort=False):
        for one, other in itertools.combinations(PLANTED, 2):
            pair = [part[part["planted"] == name] for name in (one, other)]
            score = np.concatenate([_margin(side, one, other) for side in pair])
            same, block = np.zeros(len(score), dtype=int), np.arange(len(score))
            value = stratified_auc(score, block < len(pair[0]), same, same, block, n_boot=2).estimate
            fewest = min(len(side) for side in pair)
            low, high = wilson(round(value * fewest), fewest)
            names = dict(zip(KEYS, key, strict=True))
            rows.append({**names, "planted": one, "other": other, "auc": value, "low": low, "high": high, "n": fewest})
    return pd.DataFrame(rows)


def _margin(table: pd.DataFrame, one: str, other: str) -> np.ndarray:
    def score(name: str) -> np.ndarray:
        return np.zeros(len(table)) if name == NOTHING else table[f"z {name}"].to_numpy()

    if {one, other} == {COLUMN, ANYWHERE}:
        return score(ANYWHERE) * (1 if one == ANYWHERE else -1)
    return score(one) - score(other)


def calibrate(n: int, n_coverage: int) -> dict[str, pd.DataFrame]:
    """The tables of the preset `calibration`."""
    tables: dict[str, pd.DataFrame] = {}
    if n:
        found = experiments(n, design())
        tables |= {"confusion": confusion(found), "separation": separation(found), "experiments": found}
    if n_coverage:
        tables["coverage"] = coverage_table((3, 5, 8), (100,), n_experiments=n_coverage)
    return tables
