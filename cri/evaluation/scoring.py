"""Completions read back, as tables aligned to case ids: what each case says, and where traces go wrong."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from cri.data.case_ids import check_case_ids
from cri.data.splits import Split
from cri.formats import Format
from cri.tasks import Task
from cri.tasks.steps import Step

if TYPE_CHECKING:
    import pandas as pd

STATUSES = ("right", "wrong", "truncated", "malformed")


def step_text(step: Step | None) -> str:
    """A step as tables show it: `add(9,-,1)` is 9 plus a carry of 1, the other number having ended."""
    if step is None:
        return ""
    x, y = ("-" if digit is None else digit for digit in (step.x, step.y))
    return f"{step.op}({x},{y},{step.carry})"


def reading_table(
    task: Task, fmt: Format, split: Split, ids: Iterable[int], texts: Iterable[str], finished: Iterable[bool]
) -> pd.DataFrame:
    """One row a case, in the order of `ids`: the table that maps are drawn from.

    Columns: `id, a, b, row, col` (grid coordinates), `train` (bool), `part` (train, test), `status` (right,
    wrong, truncated, malformed), `correct` (bool), `answer` (the reference), `prediction` (the answer read
    back, or empty), `completion` (the whole text), `first_deviation` (trace line, -1 for none), `error`
    (its kind, or empty), `step` (that line's step, or empty).
    """
    import pandas as pd

    records: list[dict[str, Any]] = []
    cases = check_case_ids(list(ids), task.n_cases, "ids").tolist()
    for case, text, done in zip(cases, texts, finished, strict=True):
        a, b = task.operands[case]
        reading = fmt.read(task, a, b, text, finished=bool(done))
        train = bool(split.train[case])
        records.append(
            {
                "id": int(case),
                "a": a,
                "b": b,
                "row": int(task.coords[case, 0]),
                "col": int(task.coords[case, 1]),
                "train": train,
                "part": "train" if train else "test",
                "status": reading.status,
                "correct": reading.status == "right",
                "answer": task.answer(a, b),
                "prediction": reading.answer or "",
                "completion": text,
                "first_deviation": -1 if reading.first_deviation is None else reading.first_deviation,
                "error": reading.error or "",
                "step": step_text(reading.step),
            }
        )
    return pd.DataFrame.from_records(records)


def value_errors(task: Task, table: pd.DataFrame) -> pd.DataFrame:
    """How far off the answers of a `reading_table` are, row by row.

    Columns: `difference` (predicted minus true value; NaN where no number was answered), `units` and `tens` (whether
    that digit of the value is right, in the task's base).
    """
    import numpy as np
    import pandas as pd

    true = task.values[table["id"].to_numpy()].astype(float)
    read = [task.read_value(text) for text in table["prediction"]]
    given = np.array([np.nan if value is None else float(value) for value in read])
    columns = {"difference": given - true}
    for place, name in enumerate(("units", "tens")):
        power = task.digit_base**place
        # the tens digit of a number that has only units counts as 0
        columns[name] = (given // power % task.digit_base == true // power % task.digit_base) & ~np.isnan(given)
    return pd.DataFrame(columns, index=table.index)


def accuracy_table(table: pd.DataFrame) -> pd.DataFrame:
    """Counts by part (train, test, all) of a `reading_table`.

    Columns: `part`, `n`, one count for each status, `accuracy` (right answers), `exact` (completions
    without any deviation); a part without cases has no row.
    """
    import pandas as pd

    part, status = table["part"].to_numpy(), table["status"].to_numpy()
    followed = (table["first_deviation"].to_numpy() == -1) & (status != "truncated")
    records: list[dict[str, Any]] = []
    for name in ("train", "test", "all"):
        rows = np.full(len(table), True) if name == "all" else part == name
        if rows.any():
            counts = {s: int((status[rows] == s).sum()) for s in STATUSES}
            accuracy, exact = (status[rows] == "right").mean(), followed[rows].mean()
            records.append({"part": name, "n": int(rows.sum()), **counts, "accuracy": accuracy, "exact": exact})
    return pd.DataFrame.from_records(records)


def error_table(table: pd.DataFrame) -> pd.DataFrame:
    """Where completions first deviate: counts by part, status, error kind and step, most frequent first.

    Counts all cases that are not right, and right ones whose trace deviates. Columns: `part, status, error, step, n`.
    """
    keys = ["part", "status", "error", "step"]
    deviating = table.loc[(table["status"] != "right") | (table["first_deviation"] >= 0), keys]
    counts = deviating.assign(n=1).groupby(keys, as_index=False).sum()
    return counts.sort_values(["part", "n", *keys[1:]], ascending=[True, False, True, True, True])
