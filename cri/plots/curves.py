"""Curves with intervals: accuracy by ring, enrichment by layer, neighbour distance against correctness."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cri.checks import require_columns
from cri.plots.style import (
    FORMAT_MARKERS,
    GROUP_COLORS,
    MODEL_COLORS,
    RIGHT,
    SPLIT_LINES,
    WRONG,
    new_axes,
)
from cri.tasks import REGISTERED

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def ring_accuracy(table: pd.DataFrame, ax: Axes | None = None, *, legend: bool = True) -> Axes:
    """Accuracy by ring from the square's border inwards, with intervals.

    Args:
        table: from `statistics.ring_accuracy`: `ring`, `accuracy`, `low`, `high` (drawn as a band),
            `wilson_low`, `wilson_high` (as whiskers), `n`, `n_runs`, and the columns that tell curves
            apart, each optional: `task` (colour), `format` (marker), `split` (line style). Curves are named by
            the split and by what differs between them.
    """
    from matplotlib.ticker import MaxNLocator

    require_columns(table, ("ring", "accuracy", "low", "high", "wilson_low", "wilson_high", "n", "n_runs"))
    ax = new_axes(ax)
    keys = [key for key in ("task", "format", "split") if key in table.columns]
    told = [key for key in keys if key == "split" or table[key].nunique() > 1]
    curves = table.groupby(keys, sort=False) if keys else [((), table)]
    for names, curve in curves:
        key = dict(zip(keys, names, strict=True))
        task = REGISTERED.get(key.get("task", "addition"))
        color = task.color if task else "black"
        curve = curve.sort_values("ring")
        x, y = curve["ring"].to_numpy(), curve["accuracy"].to_numpy()
        ax.fill_between(x, curve["low"], curve["high"], color=color, alpha=0.15, linewidth=0)
        ax.vlines(x, curve["wilson_low"], curve["wilson_high"], color=color, linewidth=0.7)
        ax.plot(
            x, y, color=color, marker=FORMAT_MARKERS.get(key.get("format", "direct"), "o"), markersize=3,
            linestyle=SPLIT_LINES.get(key.get("split", "square"), "-."),
            markerfacecolor=color if key.get("split", "square") != "random" else "white",
            label=f"{', '.join(str(key[k]) for k in told) or 'accuracy'} ({_size(curve)})",
        )  # fmt: skip
    if (table["ring"] < 0).any():
        ax.axvline(-0.5, color="0.6", linewidth=0.8, linestyle=":")
        ax.text(-0.6, 1.03, "outside", ha="right", va="bottom", fontsize=6, color="0.4")
        ax.text(-0.4, 1.03, "inside", ha="left", va="bottom", fontsize=6, color="0.4")
    ax.set_ylim(-0.03, 1.03)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("ring from the square's border inwards")
    ax.set_ylabel("accuracy")
    if legend and len(ax.lines) <= 4:
        ax.legend(loc="best", handlelength=2.4)
    elif legend:  # too many to stand on the curves
        ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=2.4)
    return ax


def _size(curve: pd.DataFrame) -> str:
    runs = int(curve["n_runs"].max())
    return f"{runs} run{'s' if runs != 1 else ''}, n = {int(curve['n'].sum())}"


def enrichment_curves(
    table: pd.DataFrame,
    ax: Axes | None = None,
    *,
    groups: tuple[str, ...] = ("near", "same_answer", "same_operand", "same_step"),
    connect: bool = True,
    legend: bool = True,
) -> Axes:
    """Enrichment of each group among the top-k neighbours at each site, on a log2 scale, with intervals.

    Args:
        table: from `statistics.estimate` of the enrichment of one method and model: `site` (in the order to
            draw), `group`, `estimate`, `low`, `high`.
        groups: which of them to draw.
        connect: join the points of a group; sites that follow no order (methods, say) are not to be joined.

    Values below 1/16 (0: nothing of the group in any top-k) are drawn there as downward triangles.
    """
    require_columns(table, ("site", "group", "estimate", "low", "high"))
    ax = new_axes(ax)
    sites = list(dict.fromkeys(table["site"]))
    present = [group for group in groups if group in set(table["group"])]
    # the same floor in every panel, so that panels can share their axis
    floor, floored = 2.0**-4, False
    for i, group in enumerate(present):
        rows = table[table["group"] == group].set_index("site").reindex(sites)
        x = np.arange(len(sites)) + (i - (len(present) - 1) / 2) * 0.12
        y = rows["estimate"].to_numpy(dtype=float)
        low, high = rows["low"].to_numpy(dtype=float), rows["high"].to_numpy(dtype=float)
        shown = np.maximum(y, floor)
        bars = np.stack([shown - np.clip(low, floor, shown), np.maximum(high, shown) - shown])
        color = GROUP_COLORS[group]
        zero = y < floor
        ax.errorbar(
            x, shown, yerr=bars, color=color, marker="o", markersize=3.5, capsize=0, elinewidth=1.2,
            linestyle="-" if connect else "none", linewidth=0.8, label=group.replace("_", " "),
            markevery=np.flatnonzero(~zero).tolist(),
        )  # fmt: skip
        ax.scatter(x[zero], shown[zero], marker="v", s=24, color=color, zorder=3)
        floored |= bool(zero.any())
    if floored:  # whatever their group
        ax.errorbar([], [], fmt="v", markersize=5, color="0.4", label="at most 1/16")
    ax.axhline(1.0, color="0.5", linewidth=0.8, linestyle=":")
    ax.set_yscale("log", base=2)
    _name_sites(ax, sites)
    ax.set_ylabel("enrichment in top-k (1 = base rate)")
    if legend:
        ax.legend(loc="best")
    return ax


def matched_curves(table: pd.DataFrame, ax: Axes | None = None, *, connect: bool = True, legend: bool = True) -> Axes:
    """Output-matched excess among the top-k (chance 0) at each site, one curve a model, with intervals.

    Args:
        table: from `statistics.estimate` of one method and contrast: `site`, `model`, `estimate`, `low`, `high`.
        connect: as in `enrichment_curves`.
    """
    require_columns(table, ("site", "model", "estimate", "low", "high"))
    ax = new_axes(ax)
    sites = list(dict.fromkeys(table["site"]))
    models = list(dict.fromkeys(table["model"]))
    for i, model in enumerate(models):
        rows = table[table["model"] == model].set_index("site").reindex(sites)
        y = rows["estimate"].to_numpy(dtype=float)
        bars = np.stack([y - rows["low"].to_numpy(dtype=float), rows["high"].to_numpy(dtype=float) - y])
        ax.errorbar(
            np.arange(len(sites)) + (i - (len(models) - 1) / 2) * 0.12, y, yerr=np.maximum(bars, 0),
            color=MODEL_COLORS.get(model, "black"), marker="o", markersize=3.5, elinewidth=1.2,
            linestyle="-" if connect else "none", linewidth=0.8, label=model,
        )  # fmt: skip
    ax.axhline(0.0, color="0.5", linewidth=0.8, linestyle=":")
    _name_sites(ax, sites)
    ax.set_ylabel("output-matched excess in top-k")
    if legend:
        ax.legend(loc="best")
    return ax


def _name_sites(ax: Axes, sites: list[str]) -> None:
    slanted = max(map(len, sites), default=0) > 6 or len("".join(sites)) > 24
    ax.set_xticks(range(len(sites)), sites, rotation=30 if slanted else 0, ha="right" if slanted else "center")
    ax.set_xlim(-0.5, len(sites) - 0.5)


def distance_correctness(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Distance to the k-th neighbour of right and wrong test predictions.

    Args:
        table: one row a test case with `distance` and `correct`.
    """
    require_columns(table, ("distance", "correct"))
    ax = new_axes(ax)
    values = table["distance"].to_numpy(dtype=float)
    correct = table["correct"].to_numpy(dtype=bool)
    bins = np.linspace(values.min(), max(values.max(), values.min() + 1e-9), 31).tolist()
    for mask, name, color in ((correct, "right", RIGHT), (~correct, "wrong", WRONG)):
        label = f"{name} (n = {int(mask.sum())})"
        ax.hist(values[mask], bins=bins, histtype="stepfilled", color=color, alpha=0.25)
        ax.hist(values[mask], bins=bins, histtype="step", color=color, linewidth=1.1, label=label)
    ax.set_xlabel("distance to the k-th neighbour")
    ax.set_ylabel("test cases")
    ax.legend(loc="best", handlelength=1.2)
    return ax
