"""Tables and figures of `attribution_quality`, from recorded retrainings and the base models' weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cri.attribution.damping import DAMPING
from cri.attribution.methods import METHODS, layer, methods_table, of_kind
from cri.attribution.questions import Question, standardised_mean
from cri.ensembles.bank import Bank, load_bank
from cri.ensembles.engine import Replica
from cri.ensembles.train import train_replicas
from cri.retraining.plans import as_often, without
from cri.retraining.records import Retrainings, load_retrainings
from cri.retraining.removals import random_removal
from cri.statistics import wilson
from cri.statistics.datamodels import Resamples, lds_table, noise_ceiling, query_blocks, resamples, subset_sums
from cri.storage import is_complete
from cri.training.setup import prepare

if TYPE_CHECKING:
    from cri.studies.attribution_quality.config import AttributionQuality

EVERYWHERE = "all"
EKFAC_NAME, ENSEMBLE = "EK-FAC", "EK-FAC, mean over seeds"
ENSEMBLE_SEED, ENSEMBLE_DRAW = 1000, 40_000
"""Where the seeds and the random halves of ensembles begin: no bank has them."""


def questions(base: Retrainings, split: str) -> tuple[np.ndarray, dict[str, Question]]:
    """Which of the recorded queries the split's models do not train on, and the question about them for each target:
    `prediction` is what the *first* base model answers, and what the models of other seeds are asked about too."""
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


def _judge(
    sums: dict[str, np.ndarray],
    seeds: dict[int, np.ndarray],
    fixed: int,
    mask: np.ndarray,
    draws: Resamples,
    notes: dict[str, Any],
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    new = [values[:, mask] for seed, values in seeds.items() if seed != fixed]
    outputs = {"fixed seed": [seeds[fixed][:, mask]]}
    if new:
        outputs |= {"new seed": new, "mean over seeds": [np.mean([seeds[fixed][:, mask], *new], axis=0)]}
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
        ceilings.append({**notes, "what": "ceiling, mean over seeds", "estimate": up[0], "low": up[1], "high": up[2]})
    return table.assign(**notes), ceilings


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
                    table, ceiling = _judge(sums[name], seeds, fixed, mask, draws, notes)
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
