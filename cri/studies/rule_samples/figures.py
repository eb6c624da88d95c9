"""The figure of `cri.studies.rule_samples`, from its recorded tables alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

GROUPS = {
    "rule": "other rules",
    "combination": "new combinations",
    "division": "new divisions",
    "start": "new first carry",
    "base": "new base",
    "all": "all new rules",
}
COLORS = ("#332288", "#117733", "#CC6677", "#DDAA33", "#88CCEE")


def draw_curves(curves: pd.DataFrame, target: float, ax: Axes) -> Axes:
    """Right results of one group of rules by number of samples, a line for each model that copies were made of; the
    control dashed."""
    sizes = sorted(curves["samples"].unique())
    arms = list(curves.groupby(["trained_on", "seed", "steps"], sort=True))
    trained = iter(COLORS * (1 + len(arms)))
    for i, ((rules, seed, steps), part) in enumerate(arms):  # pyright: ignore[reportGeneralTypeIssues]
        x = np.array([sizes.index(k) for k in part["samples"]]) + 0.08 * (i - (len(arms) - 1) / 2)
        color, line = ("#000000", "--") if rules == 0 else (next(trained), "-")
        label = f"untrained, {steps:,} steps" if rules == 0 else f"trained on {rules} rules"
        if rules and curves.loc[curves["trained_on"] == rules, "seed"].nunique() > 1:
            label += f", seed {seed}"
        shape = "o" if len(part) > 1 else "D"
        ax.plot(x, part["right"], color=color, linestyle=line, marker=shape, markersize=3, clip_on=False,
                label=label)  # fmt: skip
        ax.vlines(x, part["low"], part["high"], color=color, linewidth=0.8)
    ax.axhline(target, color="0.7", linewidth=0.7, linestyle=":")
    ax.set_xticks(range(len(sizes)), [f"{k}" for k in sizes])
    ax.set_ylim(-0.03, 1.03)
    ax.set_xlabel("samples of the new rule")
    return ax


def draw(folder: Path, figures: Path) -> list[Path]:
    """One panel a group of rules, from the recorded tables."""
    from cri import plots
    from cri.plots.style import save_figure
    from cri.storage import read_json
    from cri.storage.compression import read_table

    facts, curves = read_json(folder / "manifest.json"), read_table(folder / "curves.csv")
    groups = [group for group in GROUPS if (curves["group"] == group).any()]
    with plots.style():
        fig, axes = plots.figure(1, len(groups), (2.1, 2.3), sharey=True)
        for ax, group in zip(axes.flat, groups, strict=True):
            draw_curves(curves[curves["group"] == group], facts["target"], ax)
            ax.set_title(GROUPS[group])
        axes.flat[0].set_ylabel("right results")
        fig.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return save_figure(fig, figures / f"rule_samples_{facts['name']}")
