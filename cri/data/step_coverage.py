"""Which rule steps of a case occur among the training cases, and how often.

All formats execute the same steps (`Task.steps`), so coverage belongs to a task and a split. The
scratchpad's account of the paper's figures is `n_unseen > 0`: a case fails iff one of its steps never
occurs in training. A model need not share a step between columns: counted `by_column`, a step is another one in
the column of units than in that of tens.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd

from cri.data.splits import Split
from cri.tasks import Task
from cri.tasks.steps import Step

Executed = tuple[int, Step]
"""A step and the column it is executed in (0 where columns do not matter)."""


def step_counts(task: Task, split: Split) -> Counter[Step]:
    """How often each step is executed over all training cases."""
    return Counter(step for i in split.train_ids.tolist() for step in task.case_steps[i])


def _executed(task: Task, case: int, by_column: bool) -> list[Executed]:
    return [(column if by_column else 0, step) for column, step in enumerate(task.case_steps[case])]


def step_coverage(task: Task, split: Split, by_column: bool = False) -> pd.DataFrame:
    """Coverage of every case's steps by the training cases, row i being case id i.

    Columns: `n_steps`; `n_unseen`, its steps that no *other* training case executes; `min_count` and
    `total_count`, the smallest and the summed number of times that its steps are executed by training
    cases other than itself.
    """
    counts = Counter(step for i in split.train_ids.tolist() for step in _executed(task, i, by_column))
    rows = np.zeros((task.n_cases, 4), dtype=np.int64)
    for i in range(task.n_cases):
        steps = _executed(task, i, by_column)
        own = Counter(steps) if split.train[i] else Counter[Executed]()
        seen = [counts[step] - own[step] for step in steps]
        rows[i] = len(steps), sum(n == 0 for n in seen), min(seen), sum(seen)
    return pd.DataFrame(rows, columns=["n_steps", "n_unseen", "min_count", "total_count"])
