"""The tables of `ablations`: one row a run, and one a condition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from cri.config import RunConfig
from cri.data.splits import depth, make_split
from cri.statistics import wilson
from cri.studies.ablations.config import Condition
from cri.tasks import make_task

KEYS = ["format", "arm", "value"]


def run_row(
    condition: Condition, config: RunConfig, cases: pd.DataFrame, manifest: Mapping[str, Any]
) -> dict[str, Any]:
    """Shares of right answers of one run: in training, held out, on the border ring of its squares and inside that ring
    (not a number for splits without squares)."""
    task = make_task(config.task, **config.task_params)
    split = make_split(task, config.split, **config.split_params)
    right = cases["correct"].to_numpy(dtype=bool)
    rings = [depth(task, (row, col), half_side) for row, col, half_side in split.squares]
    deep = np.max(rings, axis=0) if rings else np.full(task.n_cases, -1)
    return {
        "format": config.format, "arm": condition.arm, "value": condition.value, "seed": config.seed,
        "task": config.task, "tokenizer": config.tokenizer, "model": config.model,
        "n_train": int(split.train.sum()), "n_test": int(split.test.sum()),
        "train_accuracy": right[split.train].mean(), "test_accuracy": right[split.test].mean(),
        "border": right[deep == 0].mean() if rings else np.nan,
        "inside": right[deep > 0].mean() if rings else np.nan,
        "steps": config.train.steps, "seconds": manifest["train_seconds"],
    }  # fmt: skip


def by_condition(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a condition: the mean over seeds of held-out accuracy, with `low` and `high`, Wilson's 95 % over the
    held-out cases of all its runs (it covers the cases, not the seeds; each seed is in the other table), and how many
    runs have learnt (0.99 of their training cases)."""
    rows = []
    for key, part in runs.groupby(KEYS, sort=False):
        right = (part["test_accuracy"] * part["n_test"]).round().sum()
        low, high = wilson(int(right), int(part["n_test"].sum()))
        rows.append({
            **dict(zip(KEYS, key, strict=True)), "test_accuracy": part["test_accuracy"].mean(), "low": low,
            "high": high, "border": part["border"].mean(), "inside": part["inside"].mean(), "runs": len(part),
            "learnt": int((part["train_accuracy"] >= 0.99).sum()), "n_train": int(part["n_train"].iloc[0]),
        })  # fmt: skip
    return pd.DataFrame(rows)
