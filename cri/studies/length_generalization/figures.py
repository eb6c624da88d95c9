"""The figure of `cri.studies.length_generalization`, from its recorded table alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def draw_lengths(accuracy: pd.DataFrame, train_max: int, ax: Axes) -> Axes:
    """Whole texts right by length, a line a run, Wilson intervals as whiskers."""
    from matplotlib.ticker import MaxNLocator

    colors = dict(zip(accuracy["variant"].unique(), [f"C{i}" for i in range(10)] * 2, strict=False))
    for (variant, seed), part in accuracy.groupby(["variant", "seed"], sort=False):
        part = part.sort_values("digits")
        first = bool(seed == accuracy.loc[accuracy["variant"] == variant, "seed"].iloc[0])
        color = colors[variant]
        ax.plot(part["digits"], part["whole"], color=color, marker="o", markersize=3, label=variant if first else None)
        ax.vlines(part["digits"], part["low"], part["high"], color=color, linewidth=0.7)
    ax.axvline(train_max + 0.5, color="0.6", linestyle=":", linewidth=0.8)
    ax.set_ylim(-0.03, 1.03)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("digits of the longer number (trained left of the dotted line)")
    ax.set_ylabel("whole text right")
    ax.legend(fontsize=6)
    return ax


def draw(folder: Path, figures: Path) -> list[Path]:
    """The figure, from the recorded table."""
    import matplotlib.pyplot as plt
    import pandas as pd

    from cri.plots import style
    from cri.plots.style import save_figure
    from cri.storage import read_json

    manifest = read_json(folder / "manifest.json")
    with style():
        fig, ax = plt.subplots(figsize=(4.5, 2.8), layout="constrained")
        draw_lengths(pd.read_csv(folder / "accuracy.csv"), manifest["train_max"], ax)
        return save_figure(fig, figures / f"length_generalization_{manifest['name']}")
