"""The tables of `counterfactual_removal`, from recorded retrainings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cri import statistics
from cri.data.token_table import TARGETS
from cri.ensembles.bank import stacked_scores
from cri.ensembles.engine import initial_of
from cri.ensembles.stacked import Layout, StackedForward
from cri.errors import CriError
from cri.retraining.records import EXPLAINS, Retrainings, family_records, load_retrainings, log_odds
from cri.statistics.datamodels import query_blocks, resamples
from cri.statistics.group_effects import dose_index, effects_by_query, group_effects
from cri.statistics.removal_index import RANDOM, STEP, case_table, effects, index_table, paired_effects
from cri.tasks import PLANTED
from cri.training.setup import Materials, prepare

if TYPE_CHECKING:
    from cri.data.token_table import TokenTable
    from cri.tasks import Task

FAMILY = ["task", "format", "tokenizer", "split"]
KEYS = [*FAMILY, "target", "region", "size"]
EVERYWHERE = "all"
"""The region of all test cases of a split together."""
CONTROLS = ("untrained", "relabelled")


@dataclass(frozen=True, eq=False)
class Subject:
    """The designed removals of one family and split, and its base models."""

    names: dict[str, str]
    base: Retrainings
    removals: Retrainings


def subjects(folder: Path) -> list[Subject]:
    """All recorded removals of a bank."""
    found = []
    for base, path in family_records(folder, "removals-"):
        record = load_retrainings(path)
        config = record.config
        names = {"task": config.task, "format": config.format, "tokenizer": config.tokenizer}
        split = str(record.table["split"].iloc[0])
        found.append(Subject({**names, "split": split}, load_retrainings(base), record))
    if not found:
        raise CriError(f"bank: {folder} holds no designed removals; python -m cri.studies.retraining_bank makes them")
    return found


def outputs_table(record: Retrainings, values: np.ndarray, target: str) -> pd.DataFrame:
    """One row a retraining and test case it concerns: a designed removal concerns its own, a random one all of the
    same seed and size.

    Args:
        values: output of each query, [replica, query].
    """
    table = record.table
    tests = table.loc[table["group"] != RANDOM, ["test_id", "region"]].drop_duplicates("test_id")
    column = {test: int(np.searchsorted(record.queries, test)) for test in tests["test_id"].astype(int)}
    regions = dict(zip(tests["test_id"].astype(int), tests["region"], strict=True))
    rows = []
    for i, row in enumerate(table.to_dict("records")):
        concerned = list(column) if row["group"] == RANDOM else [int(row["test_id"])]
        notes = {name: row[name] for name in ("seed", "size", "group", "n_removed")}
        rows += [
            {"target": target, "region": regions[test], "test_id": test, **notes, "output": values[i, column[test]],
             "right": bool(record.correct[i, test])}
            for test in concerned
        ]  # fmt: skip
    return pd.DataFrame(rows)


def untrained_outputs(subject: Subject, materials: Materials, tables: dict[str, TokenTable]) -> np.ndarray:
    """Log-odds of the explained predictions by fresh random initialisations, one for every retraining of the record:
    what removals seem to do where nothing was learnt. [replica, query]."""
    template = materials.model.requires_grad_(False)
    layout = Layout(template)
    forward = StackedForward(template, layout, "fp32")
    record = subject.removals
    rows = np.arange(len(record.queries))
    out = np.zeros((len(record), len(rows)))
    for i, name in enumerate(record.table[EXPLAINS].astype(str)):
        flat = layout.flatten(initial_of(materials, 100_000 + i))[None]
        out[i] = log_odds(stacked_scores(forward, flat, tables[name], rows).loss[0])
    return out


def with_everywhere(table: pd.DataFrame) -> pd.DataFrame:
    """The table with all its rows again as region `all`, where a split has several regions."""
    several = table.groupby(FAMILY)["region"].transform("nunique") > 1
    return pd.concat([table, table[several].assign(region=EVERYWHERE)], ignore_index=True)


def relabelled(pairs: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """`near` and `step` exchanged in a random half of the retrainings of each region and size: which is which then
    says nothing."""
    rng = np.random.default_rng(seed)
    swap = pd.Series(False, index=pairs.index)
    for _, part in pairs.groupby([*FAMILY, "target", "region", "size"], sort=False):
        swap.loc[rng.permutation(part.index)[: len(part) // 2]] = True
    return pairs.assign(near=pairs["near"].where(~swap, pairs["step"]), step=pairs["step"].where(~swap, pairs["near"]))


def base_table(subject: Subject) -> pd.DataFrame:
    """Accuracy of the base models: on their training cases, the square and the held-out queries."""
    record = subject.base
    mine = record.table["split"] == subject.names["split"]
    held = {"train": record.train[mine], "held out": ~record.train[mine]}
    rows = []
    for part, masks in held.items():
        for (_, row), mask, right in zip(record.table[mine].iterrows(), masks, record.correct[mine], strict=True):
            accuracy = float(right[mask].mean())
            rows.append(
                {**subject.names, "seed": int(row["seed"]), "part": part, "n": int(mask.sum()), "accuracy": accuracy}
            )
    return pd.DataFrame(rows)


def group_table(table: pd.DataFrame, **options: Any) -> pd.DataFrame:
    """Mean effect of each group's removal, with intervals over seeds and test cases."""
    table = with_everywhere(table).rename(columns={"seed": "run"})
    table["block"] = table["test_id"]
    means = statistics.estimate(table, "delta", [*KEYS, "group"], **options)
    sizes = table.groupby([*KEYS, "group"], sort=False).agg(n_removed=("n_removed", "mean"), right=("right", "mean"))
    tests = table.groupby([*KEYS, "group"], sort=False)["test_id"].nunique().rename("n_tests")
    return means.rename(columns={"n": "n_retrainings"}).merge(sizes.join(tests).reset_index(), on=[*KEYS, "group"])


def size_table(folder: Path, **options: Any) -> pd.DataFrame:
    """Effects of removing ever more of the nearest cases (`near-sizes`), as `group_table` has them."""
    parts = []
    for _, path in family_records(folder, "near-sizes"):
        record = load_retrainings(path)
        names = {name: getattr(record.config, name) for name in FAMILY[:-1]}
        for target in TARGETS:
            table = effects(outputs_table(record, record.log_odds(target), target))
            parts.append(table.assign(**names, split="square"))
    return group_table(pd.concat(parts, ignore_index=True), **options) if parts else pd.DataFrame()


def dose_tables(folder: Path, **options: Any) -> dict[str, pd.DataFrame]:
    """By region of the queries, from random subsets (`statistics.group_effects`): effects of groups, `doses`, and the
    index of their means, `dose_index`; and the same with groups of matched answers, `doses_matched` and
    `dose_index_matched`."""
    parts: dict[str, list[pd.DataFrame]] = {}
    for base_path, path in family_records(folder, "subsets-"):
        record, base = load_retrainings(path), load_retrainings(base_path)
        for name, table in _doses(record, base, **options):
            parts.setdefault(name, []).append(table)
    return {name: pd.concat(tables, ignore_index=True) for name, tables in parts.items()}


def dose_groups(task: Task, train_ids: np.ndarray, test_ids: np.ndarray) -> statistics.Groups:
    """Groups relative to the right answers: subsets are trained with several seeds, which predict different ones.

    Of a planted table the step decides the answer: "same answer" would leave no case to "same step". `near` is then as
    large as addition has it on the same grid.
    """
    if task.name not in PLANTED:
        return statistics.make_groups(task, train_ids, test_ids, [task.answers[i] for i in test_ids])
    sums = task.cases.sum(axis=1)
    n_near = statistics.matched_size(sums[train_ids].astype(str), sums[test_ids].astype(str))
    return statistics.make_groups(task, train_ids, test_ids, [""] * len(test_ids), n_near=n_near)


MATCHED = {"same answer": ("near_same_answer", "same_answer_same_step"), "other answers": ("near_other_answer", STEP)}
"""What is compared where the answer is held fixed: near cases, and those far away that share a step."""


def _doses(record: Retrainings, base: Retrainings, **options: Any) -> Iterator[tuple[str, pd.DataFrame]]:
    materials = prepare(record.config)
    task, square = materials.task, materials.split.test
    explained = int(np.flatnonzero(base.table[EXPLAINS] == record.table[EXPLAINS].iloc[0])[0])
    train = base.train[explained]
    split = str(record.table["split"].iloc[0])
    held = ~train[record.queries]
    inside = square[record.queries]
    regions = {"square": held & inside, "outside": held & ~inside} if split == "square" else {"random": held}
    order = record.table.sort_values(["seed", "subset"])
    by_seed = [order.index[order["seed"] == seed].to_numpy() for seed in order["seed"].unique()]
    train_ids = np.flatnonzero(train)
    kept = record.train[by_seed[0]][:, train_ids]
    names = {"task": record.config.task, "format": record.config.format, "tokenizer": record.config.tokenizer}
    for region, mask in regions.items():
        if mask.sum() < 2:
            continue
        test_ids = record.queries[mask]
        groups = dose_groups(task, train_ids, test_ids)
        codes = statistics.by_answer(groups)
        outputs = np.mean([record.log_odds("reference")[rows][:, mask] for rows in by_seed], axis=0)
        blocks = query_blocks(task, test_ids)
        draws = resamples(len(kept), blocks, options.get("n_boot", 2000))
        # the control: groups of the same sizes, of other training cases
        shuffled = np.random.default_rng(0).permutation(len(train_ids))
        notes = {**names, "split": split, "region": region, "removed": float(record.table["removed"].iloc[0]),
                 "n_seeds": len(by_seed)}  # fmt: skip
        right = {"accuracy": record.correct, "base_accuracy": base.correct[[explained]]}
        size = {name: rows[:, test_ids].mean() for name, rows in right.items()}
        size |= {"n": len(test_ids), "n_blocks": len(np.unique(blocks)), "n_subsets": len(kept)}
        effects = effects_by_query(groups.codes, kept, outputs, draws)
        yield "doses", group_effects(effects, groups.codes, draws).assign(**notes)
        found = {"trained": effects, "relabelled": effects_by_query(groups.codes[shuffled], kept, outputs, draws)}
        rows = [{**notes, "model": model, **dose_index(e, draws), **size} for model, e in found.items()]
        yield "dose_index", pd.DataFrame(rows)
        kinds = statistics.BY_ANSWER
        effects = effects_by_query(codes, kept, outputs, draws, names=kinds)
        yield "doses_matched", group_effects(effects, codes, draws, names=kinds).assign(**notes)
        found = {
            "trained": effects,
            "relabelled": effects_by_query(codes[shuffled], kept, outputs, draws, names=kinds),
        }
        rows = [
            {**notes, "answers": which, "model": model, **dose_index(e, draws, near, step), **size}
            for which, (near, step) in MATCHED.items()
            for model, e in found.items()
            if {near, step} <= present(codes)
        ]
        yield "dose_index_matched", pd.DataFrame(rows)


def present(codes: np.ndarray) -> set[str]:
    """Groups of `BY_ANSWER` that hold any case."""
    return {statistics.BY_ANSWER[code] for code in np.unique(codes)}


def calibration(cases: pd.DataFrame, **options: Any) -> pd.DataFrame:
    """Does the index of single cases tell the planted mechanisms apart? AUC of `patchwork` over `digit_table`."""
    rows = []
    planted = cases[cases["task"].isin(PLANTED)]
    for (target, size, region), part in with_everywhere(planted).groupby(["target", "size", "region"], sort=False):
        if part["task"].nunique() < 2:
            continue
        positive = (part["task"] == "patchwork").to_numpy()
        same = np.zeros(len(part), dtype=int)
        # one block a test case; those of the two tasks are different cases
        block = np.arange(len(part))
        value = statistics.stratified_auc(part["cri"].to_numpy(), positive, same, same, block, **options)
        n_cases, n_steps = int(positive.sum()), int((~positive).sum())
        # where all pairs are told apart a bootstrap has nothing left to vary: as many successes in as few trials
        fewest = min(n_cases, n_steps)
        floor, _ = statistics.wilson(round(value.estimate * fewest), fewest)
        n = {"wilson_low": floor, "n_cases": n_cases, "n_steps": n_steps}
        rows.append({"target": target, "size": size, "region": region, **value._asdict(), **n})
    return pd.DataFrame(rows).rename(columns={"estimate": "auc"})


def compute(folder: Path, n_boot: int) -> dict[str, pd.DataFrame]:
    """All tables of a bank's folder."""
    from cri.retraining.plans import explained_predictions

    options: dict[str, Any] = {"n_boot": n_boot}
    found = subjects(folder)
    delta, null, base = [], [], []
    for subject in found:
        base.append(base_table(subject))
        for target in TARGETS:
            table = effects(outputs_table(subject.removals, subject.removals.log_odds(target), target))
            delta.append(table.assign(**subject.names))
        materials = prepare(subject.removals.config)
        values = untrained_outputs(subject, materials, explained_predictions(subject.base, materials.tokens))
        table = effects(outputs_table(subject.removals, values, "prediction"))
        null.append(table.assign(**subject.names))
    deltas, nulls = pd.concat(delta, ignore_index=True), pd.concat(null, ignore_index=True)
    by_retraining = paired_by_target(deltas)
    pairs, null_pairs = with_everywhere(by_retraining), with_everywhere(paired_by_target(nulls))
    cases = pd.concat([case_table(part).assign(target=t) for t, part in deltas.groupby("target", sort=False)])
    controls = {"untrained": null_pairs, "relabelled": with_everywhere(relabelled(by_retraining))}
    control_rows = [index_table(table, KEYS, **options).assign(model=name) for name, table in controls.items()]
    index = pd.concat([index_table(pairs, KEYS, **options).assign(model="trained"), *control_rows], ignore_index=True)
    tables = {
        "accuracy": pd.concat(base, ignore_index=True).drop_duplicates(),
        "effects": deltas,
        "groups": group_table(deltas, **options),
        "index": index,
        "cases": cases[(cases["split"] == "square") & (cases["target"] == "prediction")],
        # another name of the column: readers of `cri` by case want the square's cases
        "cases_other": cases[(cases["split"] != "square") | (cases["target"] != "prediction")].rename(
            columns={"cri": "index", "cri_low": "index_low", "cri_high": "index_high"}
        ),
        "calibration": calibration(cases, **options),
        **dose_tables(folder, **options),
        "near_sizes": size_table(folder, **options),
    }
    return {name: table for name, table in tables.items() if len(table)}


def paired_by_target(table: pd.DataFrame) -> pd.DataFrame:
    parts: Sequence[pd.DataFrame] = [
        paired_effects(part).assign(target=target) for target, part in table.groupby("target", sort=False)
    ]
    return pd.concat(parts, ignore_index=True)
