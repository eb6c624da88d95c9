"""The local phase of the logits: where around a number the model puts its bump, and how high."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Complex128, Float, Int

from cri.errors import out_of_range

if TYPE_CHECKING:
    import pandas as pd

HALF_WINDOW = 20


def local_phase(
    logits: Float[np.ndarray, "case number"],
    centres: Int[np.ndarray, " case"],
    period: float,
    half_window: int = HALF_WINDOW,
) -> Complex128[np.ndarray, " case"]:
    """α = Σ_c w(c - s) (ℓ_c - ℓ̄) e^(2πi(c-s)/T) around each case's centre s, w a Hann window of ± `half_window`.

    A bump at s itself has phase 0; a bump δ above it has phase 2πδ/T. ℓ̄ is the window's weighted mean. NaN where the
    window leaves the numbers. Raises `CriError` for a period longer than the window or below 2.
    """
    if not 2 <= period <= 2 * half_window + 1:
        raise out_of_range("period", period, f"in 2..{2 * half_window + 1}, the window's width")
    offsets = np.arange(-half_window, half_window + 1)
    window = np.cos(np.pi * offsets / (2 * half_window + 2)) ** 2
    wave = window * np.exp(2j * np.pi * offsets / period)
    out = np.full(len(logits), np.nan, dtype=np.complex128)
    fits = np.flatnonzero((centres >= half_window) & (centres + half_window < logits.shape[1]))
    if len(fits):
        around = logits[fits[:, None], centres[fits, None] + offsets].astype(np.float64)
        mean = (around * window).sum(1, keepdims=True) / window.sum()
        out[fits] = ((around - mean) * wave).sum(1)
    return out


def phase_table(
    logits: Float[np.ndarray, "case number"],
    sums: Int[np.ndarray, " case"],
    regions: dict[str, Int[np.ndarray, " case"]],
    periods: tuple[int, ...],
) -> pd.DataFrame:
    """One row a period and region: `cos_true` (mean cos of the phase around the true sum), `cos_given` (around the
    given answer), `amplitude`, `shift_right` (share of wrong answers whose error the phase gives, to the nearest whole
    number modulo the period), `shift_chance` (the same with phases of other wrong cases), `n`, `n_wrong`."""
    import pandas as pd

    rng = np.random.default_rng(0)
    rows = []
    for period in periods:
        for region, ids in regions.items():
            if not len(ids):
                continue
            here, true = logits[ids], sums[ids]
            given = here.argmax(1)
            at_true, at_given = (local_phase(here, centre, period) for centre in (true, given))
            shift = np.angle(at_true) * period / (2 * np.pi)
            wrong = np.flatnonzero((given != true) & ~np.isnan(shift))
            error = given[wrong] - true[wrong]
            hit, by_chance = (
                np.abs((error - s + period / 2) % period - period / 2) <= 0.5
                for s in (shift[wrong], shift[rng.permutation(wrong)])
            )
            rows.append({
                "period": period, "region": region, "cos_true": float(np.nanmean(np.cos(np.angle(at_true)))),
                "cos_given": float(np.nanmean(np.cos(np.angle(at_given)))),
                "amplitude": float(np.nanmean(np.abs(at_true))),
                "shift_right": float(hit.mean()) if len(wrong) else float("nan"),
                "shift_chance": float(by_chance.mean()) if len(wrong) else float("nan"),
                "n": len(ids), "n_wrong": len(wrong),
            })  # fmt: skip
    return pd.DataFrame(rows)
