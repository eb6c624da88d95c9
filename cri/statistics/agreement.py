"""Does a yes/no prediction about cases agree with what was measured?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Num

from cri.checks import checked, require_columns
from cri.errors import CriError
from cri.statistics.intervals import LEVEL, N_BOOT, resample_counts

if TYPE_CHECKING:
    import pandas as pd


def confusion(
    predicted: Bool[np.ndarray, " case"], observed: Bool[np.ndarray, " case"], weights: Num[np.ndarray, "boot case"]
) -> tuple[Num[np.ndarray, " boot"], Num[np.ndarray, " boot"], Num[np.ndarray, " boot"], Num[np.ndarray, " boot"]]:
    """Weighted true positives, false positives, false negatives, true negatives of each row of weights."""
    cells = (predicted & observed, predicted & ~observed, ~predicted & observed, ~predicted & ~observed)
    tp, fp, fn, tn = (weights @ cell.astype(np.float64) for cell in cells)
    return tp, fp, fn, tn


def matthews(
    tp: Num[np.ndarray, " boot"],
    fp: Num[np.ndarray, " boot"],
    fn: Num[np.ndarray, " boot"],
    tn: Num[np.ndarray, " boot"],
) -> Num[np.ndarray, " boot"]:
    """Matthews correlation (tp tn - fp fn) / sqrt((tp+fp)(tp+fn)(tn+fp)(tn+fn)); NaN where either side is
    constant, since nothing can correlate with a constant."""
    scale = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(scale > 0, (tp * tn - fp * fn) / scale, np.nan)


@checked
def agreement(
    table: pd.DataFrame, predicted: str, observed: str, *, n_boot: int = N_BOOT, level: float = LEVEL, seed: int = 0
) -> dict[str, float]:
    """Accuracy and Matthews correlation of one yes/no column against another, with bootstrap intervals.

    Args:
        table: one row a case and run, with the two boolean columns, `run` and `block` (cells of one block are
            resampled together, see `resample_counts`).

    Returns:
        `accuracy`, `mcc`, each with `_low` and `_high` (NaN where there is nothing to resample), `n`,
        `n_runs`, `n_predicted` and `n_observed` (rows where each column is true).
    """
    if table.empty:
        raise CriError("table: no cases to compare")
    require_columns(table, (predicted, observed, "run", "block"))
    p, o = table[predicted].to_numpy(dtype=bool), table[observed].to_numpy(dtype=bool)
    counts = resample_counts(table["run"].to_numpy(), table["block"].to_numpy(), n_boot, seed)
    out: dict[str, float] = {}
    point = confusion(p, o, np.ones((1, len(table))))
    drawn = None if counts is None else confusion(p, o, counts)
    for name, statistic in (("accuracy", _accuracy), ("mcc", matthews)):
        out[name] = float(statistic(*point)[0])
        samples = np.full(1, np.nan) if drawn is None else statistic(*drawn)
        samples = samples[np.isfinite(samples)]
        ends = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2]) if len(samples) else (np.nan, np.nan)
        out[f"{name}_low"], out[f"{name}_high"] = float(ends[0]), float(ends[1])
    sizes = {"n": len(table), "n_runs": table["run"].nunique(), "n_predicted": int(p.sum()), "n_observed": int(o.sum())}
    return out | sizes


def _accuracy(
    tp: Num[np.ndarray, " boot"],
    fp: Num[np.ndarray, " boot"],
    fn: Num[np.ndarray, " boot"],
    tn: Num[np.ndarray, " boot"],
) -> Num[np.ndarray, " boot"]:
    return (tp + tn) / np.maximum(tp + fp + fn + tn, 1e-12)
