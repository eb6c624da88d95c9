"""The figure of `cri.studies.ablations`, from its recorded tables alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cri.plots.style import new_axes, save_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_COLORS = {"direct": "#332288", "scratchpad": "#CC6677", "rfft": "#117733"}
_X = {
    "half-side": "half side of the square",
    "place": "centre of the square",
    "shape": "what is held out",
    "grid": "numbers a side of the grid",
    "share": "share trained on, random split",
    "model": "model",
}


def draw_arm(table: pd.DataFrame, runs: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Held-out accuracy of one arm by condition: a bar of Wilson's interval, the mean over seeds, and every seed where
    there are several; hollow where a run has not learnt its training cases."""
    ax = new_axes(ax)
    values = list(dict.fromkeys(table["value"]))
    formats = list(dict.fromkeys(table["format"]))
    for i, fmt in enumerate(formats):
        part = table[table["format"] == fmt]
        shift = 0.16 * (i - (len(formats) - 1) / 2)
        x = [values.index(v) + shift for v in part["value"]]
        color = _COLORS.get(fmt, "black")
        ax.vlines(x, part["low"], part["high"], color=color, linewidth=1)
        for at, row in zip(x, part.itertuples(), strict=True):
            learnt = row.learnt == row.runs
            ax.plot(at, row.test_accuracy, "o", color=color, markersize=4, markerfacecolor=color if learnt else "white",
                    clip_on=False)  # fmt: skip
        own = runs[runs["format"] == fmt]
        if own["seed"].nunique() > 1:
            x = [values.index(v) + shift for v in own["value"]]
            ax.plot(x, own["test_accuracy"], "_", color=color, markersize=5)
        ax.plot([], [], "o", color=color, markersize=4, label=fmt)
    ax.set_xticks(range(len(values)), values, rotation=25 if max(map(len, values)) > 5 else 0)
    ax.set_xlim(-0.5, len(values) - 0.5)
    ax.set_ylim(-0.03, 1.03)
    ax.set_xlabel(_X[str(table["arm"].iloc[0])])
    return ax


def draw(folder: Path, figures: Path) -> list[Path]:
    """One panel an arm, from the recorded tables."""
    from cri import plots
    from cri.storage import read_json
    from cri.storage.compression import read_table

    text = {"value": str}
    table, runs = (read_table(folder / f"{name}.csv", dtype=text) for name in ("conditions", "runs"))
    arms = list(dict.fromkeys(table["arm"]))
    columns = min(3, len(arms))
    rows = -(-len(arms) // columns)
    with plots.style():
        fig, axes = plots.figure(rows, columns, (2.2, 1.9), sharey=True)
        for ax, arm in zip(axes.flat, arms, strict=False):
            draw_arm(table[table["arm"] == arm], runs[runs["arm"] == arm], ax)
        for ax in axes.flat[len(arms) :]:
            ax.set_axis_off()
        for ax in axes[:, 0]:
            ax.set_ylabel("right among held out")
        if table["format"].nunique() > 1:
            fig.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return save_figure(fig, figures / f"ablations_{read_json(folder / 'manifest.json')['name']}")
