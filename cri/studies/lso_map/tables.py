"""The tables of `lso_map`: accuracy by run, case and ring; failures against the coverage of rule steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from cri.config import RunConfig
from cri.data.splits import Split, make_split
from cri.data.step_coverage import step_coverage
from cri.evaluation.scoring import STATUSES
from cri.statistics import agreement, grid_blocks, ring_accuracy
from cri.studies.lso_map.config import KEYS
from cri.tasks import Task, make_task
from cri.training.runs import Run


def run_row(table: pd.DataFrame, manifest: Mapping[str, Any]) -> dict[str, object]:
    """One run's accuracies, and its held-out cases counted by status."""
    test = table[~table["train"]]
    statuses = test["status"].value_counts()
    return {
        "train_accuracy": round(float(table.loc[table["train"], "correct"].mean()), 4),
        "test_accuracy": round(float(test["correct"].mean()), 4),
        **({"test_sampled": round(float(test["sampled"].mean()), 4)} if "sampled" in test else {}),
        "n_train": int(table["train"].sum()),
        "n_test": len(test),
        **{status: int(statuses.get(status, 0)) for status in STATUSES},
        "train_seconds": manifest["train_seconds"],
        "trained_on": manifest["trained_on"],
        "commit": manifest["commit"],
    }


def case_table(cases: pd.DataFrame, configs: Sequence[RunConfig]) -> pd.DataFrame:
    """Every case over seeds, one row a map and case: `accuracy`, `n_seeds`, the `failure` of the first seed (the first
    deviation's kind, `truncated`, or empty where the answer is right), `difference` (predicted minus true value, the
    median over seeds), `units` and `tens` (in which share of seeds that digit is right), `sampled` (share of right
    answers among those sampled at temperature 1, where any were), and `n_unseen`, how many of its rule steps no other
    case executes in training."""
    failure = cases["error"].where(cases["status"] != "truncated", "truncated").where(~cases["correct"], "")
    grouped = cases.assign(failure=failure).groupby([*KEYS, "id", "row", "col", "train"], sort=False)
    table = grouped.agg(
        accuracy=("correct", "mean"), n_seeds=("correct", "size"), failure=("failure", "first"),
        difference=("difference", "median"), units=("units", "mean"), tens=("tens", "mean"),
        **({"sampled": ("sampled", "mean")} if "sampled" in cases else {}),
    ).reset_index()  # fmt: skip
    parts = [
        part.assign(n_unseen=step_coverage(task, split)["n_unseen"].to_numpy()[part["id"]])
        for _, part, task, split in _maps(table, configs)
    ]
    return pd.concat(parts, ignore_index=True)


def sampled_accuracy(run: Run, n_samples: int) -> pd.Series:
    """Of every case: the share of right ones among `n_samples` answers sampled at temperature 1 (greedy decoding asks
    only what comes first)."""
    import torch

    from cri.evaluation.decoding import predictions

    generator = torch.Generator().manual_seed(0)
    right = 0
    for _ in range(n_samples):
        table = predictions(
            run.model, run.tokenizer, run.tokens, run.task, run.format, run.split, temperature=1.0, generator=generator
        )
        right = right + table["correct"].astype(float)
    return right / n_samples


def square_table(cases: pd.DataFrame) -> pd.DataFrame:
    """Every held-out case of the square by seed, of the formats that write steps: `correct`. Seeds fail in different
    places, which the averages of `case_table` cannot show."""
    chosen = cases[(cases["split"] == "square") & ~cases["train"] & (cases["format"] != "direct")]
    return chosen[[*KEYS, "seed", "id", "row", "col", "correct"]]


def _maps(
    cases: pd.DataFrame, configs: Sequence[RunConfig]
) -> Iterator[tuple[dict[str, str], pd.DataFrame, Task, Split]]:
    """Each map's key, cases, task and split."""
    by_key = {tuple(getattr(c, k) for k in KEYS): c for c in configs}
    for key, part in cases.groupby(KEYS, sort=False):
        config = by_key[tuple(key)]
        task = make_task(config.task, **config.task_params)
        yield dict(zip(KEYS, key, strict=True)), part, task, make_split(task, config.split, **config.split_params)


def ring_table(cases: pd.DataFrame, half_side: int, configs: Sequence[RunConfig]) -> pd.DataFrame:
    """Accuracy by ring of the square (`statistics.ring_accuracy`); of the random split, of its held-out cases."""
    tables = []
    for key, part, task, split in _maps(cases, configs):
        shown = part if split.squares else part[~part["train"]]
        tables.append(ring_accuracy(shown, (*task.center, half_side)).assign(**key))
    return pd.concat(tables, ignore_index=True)[[*KEYS, *(c for c in tables[0].columns if c not in KEYS)]]


def region_table(cases: pd.DataFrame, configs: Sequence[RunConfig]) -> pd.DataFrame:
    """Answers counted by status: held-out and training cases, with and without a carry out of the last column.

    The last distinction (for the two tasks whose answer is a plain sum) settles whether a model fails on every sum
    with a further digit or only on those in the square.
    """
    rows = []
    for key, part, task, _ in _maps(cases, configs):
        carries = pd.Series("all", index=part.index)
        if task.name in ("addition", "base_addition"):
            longer = [len(task.answers[i]) > max(map(len, _operands(task, i))) for i in part["id"]]
            carries = pd.Series(["further digit" if x else "no further digit" for x in longer], index=part.index)
        regions = part.assign(part=part["train"].map({True: "train", False: "held out"}), sum=carries)
        for (name, total), chosen in regions.groupby(["part", "sum"], sort=False):
            counts = chosen["status"].value_counts()
            by_status = {s: int(counts.get(s, 0)) for s in STATUSES}
            sizes = {"n": len(chosen), **by_status, "accuracy": chosen["correct"].mean()}
            rows.append({**key, "part": name, "sum": total, **sizes})
    return pd.DataFrame(rows)


def _operands(task: Task, case: int) -> list[str]:
    return task.questions[case].rstrip("=").split("+")


def step_table(cases: pd.DataFrame, configs: Sequence[RunConfig]) -> pd.DataFrame:
    """How well "a held-out case fails iff one of its rule steps never occurs in training" fits what was measured;
    and the same of steps in their column.

    Columns of `statistics.agreement`, over held-out cases and seeds; beside it the control prediction "a case
    fails iff it lies at least `depth` rings inside the square" at the depth that fits best, which has a free
    parameter that the step prediction lacks.
    """
    rows = []
    for key, part, task, split in _maps(cases, configs):
        held_out = part[~part["train"]].copy()
        held_out["failed"] = ~held_out["correct"]
        held_out["block"] = grid_blocks(task, held_out["id"].to_numpy())
        for prediction, by_column in (("unseen step", False), ("unseen step in its column", True)):
            unseen = step_coverage(task, split, by_column)["n_unseen"].to_numpy() > 0
            held_out["predicted"] = unseen[held_out["id"]]
            rows.append({**key, "prediction": prediction, **agreement(held_out, "predicted", "failed")})
        for row, col, half in split.squares[:1]:
            rings = half - pd.concat([(held_out["row"] - row).abs(), (held_out["col"] - col).abs()], axis=1).max(axis=1)
            found = [
                {**key, "prediction": f"at least {depth} rings inside",
                 **agreement(held_out.assign(predicted=rings >= depth), "predicted", "failed")}
                for depth in range(1, half + 1)
            ]  # fmt: skip
            rows.append(max(found, key=lambda r: r["accuracy"]))
    return pd.DataFrame(rows)
