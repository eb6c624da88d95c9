"""Recorded random halves, by the cases that are asked about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from cri import statistics
from cri.data.memberships import Memberships, memberships
from cri.ensembles.bank import stacked_scores
from cri.ensembles.engine import initial_of
from cri.ensembles.stacked import Layout, StackedForward
from cri.retraining.records import EXPLAINS, TARGETS, Retrainings, family_records, load_retrainings, log_odds
from cri.statistics.case_effects import Halves
from cri.statistics.datamodels import query_blocks
from cri.tasks import PLANTED, Task
from cri.training.setup import Materials, prepare

HALF = 0.5


@dataclass(frozen=True, eq=False)
class Asked:
    """One region's queries: what models trained on random halves say of them.

    Attributes:
        names: task, format, tokenizer, split, region, target.
        task: of the models.
        train_ids, test_ids: training cases of the base model, and the queries.
        halves: outputs of the trained models.
        groups: how training cases relate to the queries, given the label that `target` names.
        members: the same as overlapping memberships.
        accuracy: of the trained models on the queries, and of the base model.
    """

    names: dict[str, str]
    task: Task
    train_ids: Int[np.ndarray, " train"]
    test_ids: Int[np.ndarray, " query"]
    halves: Halves
    groups: statistics.Groups
    members: Memberships
    accuracy: tuple[float, float]


def recorded(folder: Path) -> Iterator[tuple[Retrainings, Retrainings]]:
    """(base models, random halves) of all families and splits of a bank."""
    for base, path in family_records(folder, "subsets-"):
        record = load_retrainings(path)
        if float(record.table["removed"].iloc[0]) == HALF:
            yield load_retrainings(base), record


def by_seed(record: Retrainings) -> list[Int[np.ndarray, " subset"]]:
    """Rows of each seed, subsets in one order."""
    order = record.table.sort_values(["seed", "subset"])
    return [order.index[order["seed"] == seed].to_numpy() for seed in order["seed"].unique()]


def predicted_labels(base: Retrainings, model: int, materials: Materials) -> list[str]:
    """What a base model answers to every query, as labels."""
    table = base.predicted(model, materials.tokens)
    texts = []
    for i, case in enumerate(base.queries.tolist()):
        start, stop = int(table.prompt_lengths[i]), int(table.lengths[i]) - 1
        text = str(materials.tokenizer.decode(table.ids[i, start:stop].tolist()))
        a, b = materials.task.operands[case]
        texts.append(materials.format.read(materials.task, a, b, text, finished=True).answer or "")
    return texts


def regions(
    record: Retrainings, train: Bool[np.ndarray, " case"], square: Bool[np.ndarray, " case"]
) -> dict[str, np.ndarray]:
    """Held-out queries by region of the square split; the random split has but one."""
    held = ~train[record.queries]
    if str(record.table["split"].iloc[0]) != "square":
        return {"random": held}
    inside = square[record.queries]
    return {"square": held & inside, "outside": held & ~inside}


def relations(task: Task, train_ids: np.ndarray, test_ids: np.ndarray, answers: list[str]) -> statistics.Groups:
    """Groups relative to the labels asked about; of planted tasks, whose answers are shared by many more cases, `near`
    is as large as addition has it on the same grid."""
    if task.name not in PLANTED:
        return statistics.make_groups(task, train_ids, test_ids, answers)
    sums = task.cases.sum(axis=1)
    n_near = statistics.matched_size(sums[train_ids].astype(str), sums[test_ids].astype(str))
    return statistics.make_groups(task, train_ids, test_ids, answers, n_near=n_near)


def asked(base: Retrainings, record: Retrainings) -> Iterator[Asked]:
    """Every region and target of one record."""
    materials = prepare(record.config)
    task = materials.task
    model = int(np.flatnonzero(base.table[EXPLAINS] == record.table[EXPLAINS].iloc[0])[0])
    train = base.train[model]
    train_ids = np.flatnonzero(train)
    rows = by_seed(record)
    kept = record.train[rows[0]][:, train_ids]
    said = predicted_labels(base, model, materials)
    config = record.config
    names = {"task": config.task, "format": config.format, "tokenizer": config.tokenizer,
             "split": str(record.table["split"].iloc[0])}  # fmt: skip
    for region, mask in regions(record, train, materials.split.test).items():
        if mask.sum() < 2:
            continue
        test_ids = record.queries[mask]
        right = float(record.correct[:, test_ids].mean()), float(base.correct[model, test_ids].mean())
        for target in TARGETS:
            answers = [task.answers[i] for i in test_ids]
            if target == "prediction":
                answers = [said[i] for i in np.flatnonzero(mask)]
            groups = relations(task, train_ids, test_ids, answers)
            values = record.log_odds(target)
            outputs = np.stack([values[index][:, mask] for index in rows])
            halves = Halves(kept, outputs, query_blocks(task, test_ids))
            members = memberships(task, config.tokenizer, groups)
            yield Asked(
                {**names, "region": region, "target": target}, task, train_ids, test_ids, halves, groups, members, right
            )


def untrained(record: Retrainings, test_ids: Int[np.ndarray, " query"]) -> np.ndarray:
    """Log-odds of the right answers by fresh random initialisations, one for every subset: what effects seem to be
    where nothing was learnt. [1, subset, query]."""
    materials = prepare(record.config)
    template = materials.model.requires_grad_(False)
    layout = Layout(template)
    forward = StackedForward(template, layout, "fp32")
    tokens = materials.tokens[test_ids]
    index = np.arange(len(test_ids))
    n_subsets = record.table["subset"].nunique()
    out = np.zeros((1, n_subsets, len(test_ids)))
    for i in range(n_subsets):
        flat = layout.flatten(initial_of(materials, 200_000 + i))[None]
        out[0, i] = log_odds(stacked_scores(forward, flat, tokens, index).loss[0])
    return out
