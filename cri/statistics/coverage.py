"""Do the intervals hold what they promise? Coverage in simulation, for few training runs.

A simulated experiment has a true mean, run effects, block effects shared by all runs (a hard question is hard for every
model), and noise of each cell. An interval covers if it holds the true mean; the share of experiments in which it does
is its coverage, 0.95 for an honest 95 % interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from cri.statistics.intervals import LEVEL, Interval, resample_counts, wilson, with_runs

if TYPE_CHECKING:
    import pandas as pd

Values = Float[np.ndarray, "run block"]


def by_resampling_runs(values: Values, n_boot: int, seed: int) -> Interval:
    """Runs and blocks both drawn with replacement (`resample_counts`): what was printed until 2026-11-26."""
    n_blocks = values.shape[1]
    run, block = np.divmod(np.arange(values.size), n_blocks)
    counts = resample_counts(run, block, n_boot, seed)
    if counts is None:
        return Interval(float(values.mean()), np.nan, np.nan)
    means = counts @ values.ravel() / counts.sum(axis=1)
    low, high = np.quantile(means[np.isfinite(means)], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(values.mean()), float(low), float(high))


def by_blocks_and_runs(values: Values, n_boot: int, seed: int) -> Interval:
    """Blocks drawn with replacement, runs by a t interval (`with_runs`)."""
    n_blocks = values.shape[1]
    rng = np.random.default_rng(seed)
    counts = np.concatenate(
        [np.ones((1, n_blocks)), rng.multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), size=n_boot)]
    )
    return with_runs((values @ counts.T) / counts.sum(axis=1))


INTERVALS: dict[str, Callable[[Values, int, int], Interval]] = {
    "runs and blocks resampled": by_resampling_runs,
    "blocks resampled, t over runs": by_blocks_and_runs,
}


def coverage_table(
    n_runs: Sequence[int] = (1, 3, 5, 8),
    n_blocks: Sequence[int] = (25, 100),
    run_sd: Sequence[float] = (0.0, 0.3, 1.0),
    block_sd: float = 0.5,
    noise_sd: float = 1.0,
    n_experiments: int = 1000,
    n_boot: int = 300,
) -> pd.DataFrame:
    """Coverage of both kinds of interval.

    Args:
        run_sd: standard deviations of run effects; 0 means that runs differ by noise only. With a single run, no run
            effect is drawn, as its interval makes no claim about other seeds.
        block_sd, noise_sd: of block effects and of the noise of a run's block.

    Returns:
        One row a setting and kind of interval: `interval`, `n_runs`, `n_blocks`, `run_sd`, `block_sd`, `noise_sd`,
        `coverage`, `low`, `high` (Wilson), `width` (mean), `n_experiments`.
    """
    import pandas as pd

    rows = []
    for runs in n_runs:
        for blocks in n_blocks:
            for sd in run_sd if runs > 1 else (0.0,):
                rng = np.random.default_rng([runs, blocks, round(100 * sd)])
                hits, widths = dict.fromkeys(INTERVALS, 0), dict.fromkeys(INTERVALS, 0.0)
                for experiment in range(n_experiments):
                    effects = sd * rng.standard_normal((runs, 1)) + block_sd * rng.standard_normal((1, blocks))
                    values = effects + noise_sd * rng.standard_normal((runs, blocks))
                    for name, interval in INTERVALS.items():
                        _, low, high = interval(values, n_boot, experiment)
                        hits[name] += int(low <= 0 <= high)
                        widths[name] += high - low
                for name, n_hits in hits.items():
                    low, high = wilson(n_hits, n_experiments)
                    rows.append({
                        "interval": name, "n_runs": runs, "n_blocks": blocks, "run_sd": sd, "block_sd": block_sd,
                        "noise_sd": noise_sd, "coverage": n_hits / n_experiments, "low": low, "high": high,
                        "width": widths[name] / n_experiments, "n_experiments": n_experiments,
                    })  # fmt: skip
    return pd.DataFrame(rows)
