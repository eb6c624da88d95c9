"""Tables and figures of `attribution_quality`, from recorded retrainings and the base models' weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cri.attribution.damping import DAMPING
from cri.attribution.methods import METHODS, layer, methods_table
from cri.attribution.questions import Question, standardised_mean
from cri.ensembles.bank import Bank, load_bank
from cri.ensembles.engine import Replica
from cri.ensembles.train import train_replicas
from cri.retraining.judging import judge, outputs_by_seed, questions, region_masks
from cri.retraining.plans import as_often, without
from cri.retraining.records import Retrainings, load_retrainings
from cri.retraining.removals import random_removal
from cri.statistics import wilson
from cri.statistics.datamodels import query_blocks, resamples, subset_sums
from cri.storage import is_complete

if TYPE_CHECKING:
    from cri.studies.attribution_quality.config import AttributionQuality

EKFAC_NAME, ENSEMBLE = "EK-FAC", "EK-FAC, mean over seeds"
ENSEMBLE_SEED, ENSEMBLE_DRAW = 1000, 40_000
"""Where the seeds and the random halves of ensembles begin: no bank has them."""


def ensemble(base: Retrainings, split: str, config: AttributionQuality) -> Bank | None:
    """Models trained on random halves that the judged subsets have nothing to do with, from starts of their own; None
    where none are asked for."""
    if not config.ensemble:
        return None
    train = base.train[int(np.flatnonzero(base.table["split"] == split)[0])]
    train_ids = np.flatnonzero(train)
    replicas = []
    for i in range(config.ensemble):
        draw = ENSEMBLE_DRAW + 10_000 * (split == "random") + i
        half = without(train, random_removal(train_ids, len(train_ids) // 2, draw))
        replicas.append(Replica(ENSEMBLE_SEED + i, half, batch_size=as_often(base.config, train, half)))
    return load_bank(train_replicas(base.config, replicas, config.runs, device=config.device, jobs=config.jobs))


def every_method(
    base: Retrainings, split: str, question: Question, halves: Bank | None, config: AttributionQuality
) -> Iterator[tuple[str, np.ndarray]]:
    """(method, scores [train, query]) of all methods, one at a time; `halves` from `ensemble`."""
    bank = base.bank()
    models = np.flatnonzero(base.table["split"] == split).tolist()
    seed = int(base.table["seed"].iloc[models[0]])
    question = dataclasses.replace(question, model=bank.model(models[0]), seed=seed)
    own = None
    for method in METHODS.values():
        if method.needs == "training" and not config.tracin:
            continue
        if config.methods and method.key not in config.methods:
            continue
        for site, scores in method.score(question):
            if layer(site) == -1:
                continue  # before the first layer the last prompt token is the same for all cases
            if method.key == EKFAC_NAME:
                own = scores
            yield method.at(site), scores
    if own is None:
        return
    for damping in config.dampings if config.variants else ():
        if damping != DAMPING:
            yield f"{EKFAC_NAME}, damping {damping:g}", question.influence(damping=damping)
    if config.variants:
        yield f"{EKFAC_NAME}, empirical", question.influence(question.fit("empirical"))
    if config.variants and config.cg_steps:
        yield f"{EKFAC_NAME} + {config.cg_steps} CG steps", question.influence(cg_steps=config.cg_steps)
    found = [own]
    for replica in models[1:]:
        other = dataclasses.replace(question, model=bank.model(replica))
        found.append(other.influence())
    if len(models) > 1:
        yield ENSEMBLE, standardised_mean(found)
    if halves is None:
        return
    for i in range(len(halves)):
        other = dataclasses.replace(question, model=halves.model(i))
        mine = dataclasses.replace(other, train_ids=np.flatnonzero(halves.train[i]))
        found.append(other.influence(mine.fisher))
        if len(found) in (8, 16, 32) or i == len(halves) - 1:  # to see what more models add
            yield f"{EKFAC_NAME}, mean over {len(found)} models", standardised_mean(found)


def compute(folder: Path, config: AttributionQuality) -> dict[str, pd.DataFrame]:
    """All tables of one family's records."""
    base = load_retrainings(folder / "base")
    records: dict[str, dict[str, Retrainings]] = {}
    for path in sorted(folder.glob("subsets-*")):
        if is_complete(path):
            record = load_retrainings(path)
            records.setdefault(str(record.table["split"].iloc[0]), {})[path.name] = record
    tables, ceilings = [], []
    for split, found in records.items():
        held, asked = questions(base, split)
        halves = ensemble(base, split, config)
        fixed = int(base.table.loc[base.table["split"] == split, "seed"].iloc[0])
        for target in config.targets:
            question = asked[target]
            kept = {name: outputs_by_seed(r, held, target) for name, r in found.items()}
            sums: dict[str, dict[str, np.ndarray]] = {name: {} for name in found}
            for method, scores in every_method(base, split, question, halves, config):
                for name, (masks, _) in kept.items():
                    sums[name][method] = subset_sums(scores, masks[:, question.train_ids])
            for name, (masks, seeds) in kept.items():
                removed = float(found[name].table["removed"].iloc[0])
                for region, mask in region_masks(question, split).items():
                    block = query_blocks(question.task, question.query_ids[mask])
                    draws = resamples(len(masks), block, config.n_boot)
                    notes = {"split": split, "subsets": name, "removed": removed, "target": target, "region": region,
                             "n_blocks": len(np.unique(block))}  # fmt: skip
                    table, ceiling = judge(sums[name], seeds, fixed, mask, draws, notes)
                    tables.append(table)
                    ceilings += ceiling
    out = {"lds": pd.concat(tables, ignore_index=True), "ceiling": pd.DataFrame(ceilings), "methods": methods_table()}
    if is_complete(folder / "top-k"):
        out["top_k"] = top_k_table(load_retrainings(folder / "top-k"))
    return {name: table for name, table in out.items() if len(table)}


def top_k_table(record: Retrainings) -> pd.DataFrame:
    """Share of right answers lost after removing the k highest-scored training cases, with Wilson intervals (test cases
    and seeds counted as independent), and the mean log-odds of the answer."""
    table = record.table
    tests = table.loc[table["test_id"] >= 0, "test_id"].astype(int).unique()
    column = {int(t): int(np.searchsorted(record.queries, t)) for t in tests}
    odds = record.log_odds("prediction")
    rows = []
    for (method, k), part in table.groupby(["method", "k"], sort=False):
        right, value = [], []
        for i, test in zip(part.index, part["test_id"].astype(int), strict=True):
            for case in [test] if test >= 0 else tests.tolist():
                right.append(bool(record.correct[i, case]))
                value.append(odds[i, column[case]])
        lost = len(right) - sum(right)
        low, high = wilson(lost, len(right))
        size = {"n": len(right), "n_tests": len(tests), "n_seeds": part["seed"].nunique()}
        rows.append({"method": method, "k": int(k), "lost": lost / len(right), "low": low, "high": high,
                     "log_odds": float(np.mean(value)), **size})  # fmt: skip
    return pd.DataFrame(rows)
