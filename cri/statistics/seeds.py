"""Means over runs that differ in their seed alone, one number a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from cri.errors import out_of_range
from cri.statistics.intervals import LEVEL, Interval

if TYPE_CHECKING:
    import pandas as pd


def seed_interval(values: Float[np.ndarray, " run"], level: float = LEVEL) -> Interval:
    """Mean over runs and Student's interval for it (n - 1 degrees of freedom); NaN ends for fewer than two runs.

    It says what another set of seeds would give, for the same cases. With few runs Student's interval keeps its level
    where a bootstrap over runs is too narrow.
    """
    from scipy import stats

    if not 0 < level < 1:
        raise out_of_range("level", level, "between 0 and 1")
    found = np.asarray(values, dtype=np.float64)
    found = found[np.isfinite(found)]
    if not len(found):
        return Interval(np.nan, np.nan, np.nan)
    mean = float(found.mean())
    if len(found) < 2:
        return Interval(mean, np.nan, np.nan)
    half = float(stats.t.ppf((1 + level) / 2, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found)))
    return Interval(mean, mean - half, mean + half)


def over_seeds(table: pd.DataFrame, value: str, by: Sequence[str]) -> pd.DataFrame:
    """`seed_interval` of a column (one row a run and key) per key: `by`, `value`, `estimate, low, high, n_runs`."""
    import pandas as pd

    rows = []
    for key, part in table.groupby(list(by), sort=False, dropna=False):
        values = part[value].to_numpy(dtype=float)
        names = dict(zip(by, key if isinstance(key, tuple) else (key,), strict=True))
        rows.append(
            {**names, "value": value, **seed_interval(values)._asdict(), "n_runs": int(np.isfinite(values).sum())}
        )
    return pd.DataFrame(rows, columns=[*by, "value", "estimate", "low", "high", "n_runs"])
