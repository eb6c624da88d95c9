"""The errors of wrong answers: near misses, as interpolation makes, or single wrong digits, as a wrong step makes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from cri.data.case_groups import labels


def differences(predicted: Sequence[str], true: Sequence[str]) -> Float[np.ndarray, " case"]:
    """Predicted minus true value of each answer (`labels`: the first run of digits), NaN where nothing was answered."""
    pairs = zip(labels(predicted).tolist(), labels(true).tolist(), strict=True)
    return np.array([float(int(p) - int(t)) if p and t else np.nan for p, t in pairs])


def error_shares(difference: Float[np.ndarray, " case"]) -> dict[str, float | int]:
    """Of the wrong answers (difference not 0; NaN counts as wrong and unread): `n_wrong`, and the shares that are
    `unread`, `within_1` and `within_2` of the right one, and that have the right units (`multiple_of_10`: 10, 20, ...
    away). `median` is the median difference."""
    wrong = difference[difference != 0]
    read = wrong[~np.isnan(wrong)]
    n = len(wrong)
    if n == 0:
        return {"n_wrong": 0, "unread": np.nan, "within_1": np.nan, "within_2": np.nan, "multiple_of_10": np.nan,
                "median": np.nan}  # fmt: skip
    return {
        "n_wrong": n, "unread": float(1 - len(read) / n), "within_1": float((np.abs(read) <= 1).sum() / n),
        "within_2": float((np.abs(read) <= 2).sum() / n), "multiple_of_10": float((read % 10 == 0).sum() / n),
        "median": float(np.median(read)) if len(read) else np.nan,
    }  # fmt: skip


def paired_t(differences: Sequence[float], level: float = 0.95) -> dict[str, float | int]:
    """Mean of paired differences over runs with Student's t interval and two-sided p-value: `mean`, `low`, `high`,
    `p`, `n`. With one run, or equal differences in all runs, `low`, `high` and `p` are NaN."""
    from scipy.stats import t

    values = np.asarray(differences, dtype=np.float64)
    n = len(values)
    out = {"mean": float(values.mean()), "low": np.nan, "high": np.nan, "p": np.nan, "n": n}
    if n > 1 and (se := values.std(ddof=1) / np.sqrt(n)) > 0:
        half = float(t.ppf((1 + level) / 2, n - 1) * se)
        p = float(2 * t.sf(abs(values.mean()) / se, n - 1))
        out |= {"low": out["mean"] - half, "high": out["mean"] + half, "p": p}
    return out
