"""Effects of removals, the removal index, leave-X-out designs, attribution quality."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cri.attribution.methods import KIND_COLORS
from cri.checks import require_columns
from cri.plots.maps import frame_square
from cri.plots.style import GROUP_COLORS, new_axes

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

RETRAININGS = {
    "fixed seed": ("one retraining, the base model's seed", "#0072B2", "o"),
    "new seed": ("one retraining, a new seed", "#56B4E9", "s"),
    "mean over seeds": ("mean over retraining seeds", "#000000", "D"),
}
"""Label, colour and marker by what is predicted."""
LEARNT = 0.9
"""Below this training accuracy, errors on held-out cases are no evidence about these cases."""
DESIGN_NAMES = {"apart": "off diagonal", "mirrored": "+ its image", "one_sided": "+ neighbour"}
"""Of leave-X-out designs that are not drawn by their own name."""
POOR = f"training accuracy below {LEARNT}"
READING_COLORS = {
    "nearby cases": GROUP_COLORS["near"],
    "shared steps": GROUP_COLORS["same_step"],
    "nearby cases and shared steps": "#44AA99",
    "undecided": "#777777",
}
"""Of what intervals support: `statistics.removal_index.read`, and the verdicts of `case_effects`."""
CONTROL = "#999999"
"""Of cases removed at random."""
CEILING = "#D55E00"
BAND = "#F1F1F1"


def _whiskers(table: pd.DataFrame, value: str, low: str = "low", high: str = "high") -> np.ndarray:
    """Lengths below and above a value, [2, row], none negative or NaN."""
    x = table[value].to_numpy(dtype=float)
    ends = np.stack([x - table[low].to_numpy(dtype=float), table[high].to_numpy(dtype=float) - x])
    return np.nan_to_num(np.maximum(ends, 0))


def removal_effects(table: pd.DataFrame, ax: Axes | None = None, *, legend: bool = True) -> Axes:
    """Effect of removing each group, by region, with intervals.

    Args:
        table: one row a region and group: `region` (in the order to draw), `group`, `estimate`, `low`, `high`: the
            drop of the log-odds beyond that after a random removal of the same size.
    """
    require_columns(table, ("region", "group", "estimate", "low", "high"))
    ax = new_axes(ax)
    regions = list(dict.fromkeys(table["region"]))
    groups = [g for g in GROUP_COLORS if g in set(table["group"])]
    for i, group in enumerate(groups):
        rows = table[table["group"] == group].set_index("region").reindex(regions)
        x = np.arange(len(regions)) + (i - (len(groups) - 1) / 2) * 0.16
        ax.errorbar(
            x, rows["estimate"], yerr=_whiskers(rows, "estimate"), color=GROUP_COLORS[group], marker="o",
            markersize=3.5, linestyle="none", elinewidth=1.2, label=group.replace("_", " "),
        )  # fmt: skip
    ax.axhline(0, color="0.5", linewidth=0.8, linestyle=":")
    ax.set_xticks(range(len(regions)), regions)
    ax.set_xlim(-0.5, len(regions) - 0.5)
    ax.set_ylabel("drop of log-odds beyond random")
    if legend:
        ax.legend(loc="best")
    return ax


def strip_limit(table: pd.DataFrame) -> float:
    """Ends of an axis that holds the intervals `difference_low` .. `difference_high` of all rows; at least 1.2, also
    where no row has a number."""
    widest = np.abs(table[["difference_low", "difference_high"]].to_numpy(dtype=float))
    return 1.2 * float(np.nanmax(widest, initial=1.0))


def difference_strip(
    means: pd.DataFrame, cases: pd.DataFrame | None = None, ax: Axes | None = None, *, limit: float = 0.0,
    pale: bool = False, names: bool = True,
) -> Axes:  # fmt: skip
    """Effect of near cases minus that of cases that share a step, for several models below headers: the difference of
    the mean effects with its interval, coloured by its reading, single test cases as dots. Linear between -1 and 1,
    logarithmic beyond.

    Args:
        means: one row a model, top to bottom: `group` (its header; rows of a group stand together), `name`,
            `difference`, `difference_low`, `difference_high`, `reading`. Rows without a number are left empty, so that
            strips beside one another have the same rows.
        cases: one row a test case: `group`, `name`, `difference`; models without single cases may be missing.
        limit: ends of the axis; by default what is drawn.
        pale: draw a control, to stand beside what it controls.
        names: write headers; a panel beside another one need not.
    """
    ends = ("difference_low", "difference_high")
    require_columns(means, ("group", "name", "difference", *ends, "reading"))
    ax = new_axes(ax)
    limit = limit or strip_limit(means)
    ax.set_xscale("symlog", linthresh=1, linscale=0.8)
    # every header takes a row of its own
    headers = (means["group"] != means["group"].shift()).to_numpy()
    y = np.arange(len(means)) + np.cumsum(headers)
    ax.axvline(0, color="0.5", linewidth=0.8, linestyle=":", zorder=0)
    for row, title in zip(y[headers] - 1, means["group"][headers], strict=True):
        ax.axhspan(row - 0.42, row + 0.42, color=BAND, linewidth=0, zorder=1)
        if names and not pale:
            ax.text(-0.96 * limit, row, title, fontsize=7, fontweight="bold", va="center", zorder=2)
    if cases is not None:
        at = {(row["group"], row["name"]): i for i, row in zip(y, means.to_dict("records"), strict=True)}
        place = cases[["group", "name"]].apply(tuple, axis=1).map(at).to_numpy(dtype=float)
        spread = ((np.arange(len(cases)) * 0.618) % 1 - 0.5) * 0.5  # evenly, in no order
        ax.scatter(
            cases["difference"], place + spread, s=8, color="#88AACC", linewidths=0, zorder=1.5,
            label="dot: one test case",
        )  # fmt: skip
    for reading, color in READING_COLORS.items():
        mine = (means["reading"] == reading).to_numpy()
        if mine.any():
            ax.errorbar(
                means["difference"][mine], y[mine], xerr=_whiskers(means[mine], "difference", *ends), color=color,
                marker="D", markersize=4, linestyle="none", elinewidth=1.4, alpha=0.4 if pale else 1, zorder=3,
                label=reading,
            )  # fmt: skip
    ax.set_yticks(y, means["name"])
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(y[-1] + 0.6, -0.6)
    ax.set_xlim(-limit, limit)
    ticks = [t for t in (-100, -10, -1, 0, 1, 10, 100) if abs(t) <= limit]
    ax.set_xticks(ticks, [f"{t:g}".replace("-", "−") for t in ticks])
    ax.minorticks_off()
    return ax


def design_accuracy(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Accuracy on the held-out cases themselves, by leave-X-out design: one dot a seed, the mean as a bar; a cross
    where the model did not learn its training cases either (`LEARNT`).

    Args:
        table: one row a design and seed: `design` (in the order to draw), `accuracy`, `train_accuracy`, `unseen` (share
            of the held-out cases with a rule step that is never trained).
    """
    require_columns(table, ("design", "accuracy", "train_accuracy", "unseen"))
    ax = new_axes(ax)
    designs = list(dict.fromkeys(table["design"]))
    for i, design in enumerate(designs):
        rows = table[table["design"] == design]
        y = rows["accuracy"].to_numpy(dtype=float)
        x = i + (np.linspace(-0.2, 0.2, len(y)) if len(y) > 1 else np.zeros(1))
        poor = (rows["train_accuracy"] < LEARNT).to_numpy()
        ax.bar(i, y.mean(), width=0.7, color="#D7DEE6")
        ax.scatter(x[~poor], y[~poor], s=12, color="#0072B2", zorder=3, linewidths=0, clip_on=False, label="one seed")
        if poor.any():
            ax.scatter(
                x[poor], y[poor], s=14, color="#D55E00", zorder=3, marker="x", linewidths=1.1, clip_on=False, label=POOR
            )
        ax.text(i, 1.03, f"{100 * rows['unseen'].mean():.0f}", ha="center", va="bottom", fontsize=7, color="0.3")
    ax.text(-0.6, 1.12, "% of them with a never-trained step:", fontsize=7, color="0.3", va="bottom")
    names = [DESIGN_NAMES.get(str(design), str(design)) for design in designs]
    ax.set_xticks(range(len(designs)), names, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_xlim(-0.6, len(designs) - 0.4)
    ax.set_ylim(0, 1.02)
    ax.set_yticks([0, 0.5, 1])
    ax.set_ylabel("accuracy on held-out cases")
    return ax


def quality_bars(table: pd.DataFrame, ax: Axes | None = None, *, ceiling: float | None = None) -> Axes:
    """LDS of each method with intervals.

    Args:
        table: one row a method, top to bottom: `name`, `kind` (of `KIND_COLORS`), `lds`, `lds_low`, `lds_high`.
        ceiling: the noise ceiling, drawn as a line.
    """
    require_columns(table, ("name", "kind", "lds", "lds_low", "lds_high"))
    ax = new_axes(ax)
    y = np.arange(len(table))
    for kind, color in KIND_COLORS.items():
        mine = (table["kind"] == kind).to_numpy()
        if mine.any():
            ax.barh(y[mine], table["lds"][mine], color=color, height=0.68, label=kind)
    ax.errorbar(
        table["lds"], y, xerr=_whiskers(table, "lds", "lds_low", "lds_high"), color="black", marker="none",
        linestyle="none", elinewidth=1.0,
    )  # fmt: skip
    if ceiling is not None:
        _mark_ceiling(ax, ceiling, f"noise ceiling {ceiling:.2f}")
    _name_methods(ax, table["name"].tolist())
    return ax


def quality_points(table: pd.DataFrame, ax: Axes | None = None, *, ceilings: Sequence[float] = ()) -> Axes:
    """LDS of each method with intervals, against one retraining or the mean of several: a mark for each beside one
    another.

    Args:
        table: one row a method (top to bottom) and retraining: `name`, `retraining` (of `RETRAININGS`), `lds`,
            `lds_low`, `lds_high`.
        ceilings: the noise ceiling of one retraining, and of the mean of several where there are several.
    """
    require_columns(table, ("name", "retraining", "lds", "lds_low", "lds_high"))
    ax = new_axes(ax)
    names = list(dict.fromkeys(table["name"]))
    for i in range(0, len(names), 2):  # bands lead the eye from a name to its marks
        ax.axhspan(i - 0.5, i + 0.5, color=BAND, linewidth=0, zorder=0)
    present = [retraining for retraining in RETRAININGS if retraining in set(table["retraining"])]
    for i, retraining in enumerate(present):
        label, color, marker = RETRAININGS[retraining]
        rows = table[table["retraining"] == retraining].set_index("name").reindex(names)
        y = np.arange(len(names)) + (i - (len(present) - 1) / 2) * 0.25
        ax.errorbar(
            rows["lds"], y, xerr=_whiskers(rows, "lds", "lds_low", "lds_high"), color=color, marker=marker,
            markersize=3.5, linestyle="none", elinewidth=1.0, label=label,
        )  # fmt: skip
    # away from one another: the two lines may lie close
    for ceiling, text, side in zip(
        ceilings, ("ceiling of one: {:.2f}", "mean: {:.2f}"), ("right", "left"), strict=False
    ):
        _mark_ceiling(ax, ceiling, text.format(ceiling), side)
    _name_methods(ax, names)
    return ax


def _mark_ceiling(ax: Axes, x: float, text: str, side: str = "center") -> None:
    ax.axvline(x, color=CEILING, linewidth=1.0, linestyle="--")
    ax.text(x, 1.005, text, color=CEILING, fontsize=7, ha=side, va="bottom", transform=ax.get_xaxis_transform())


def _name_methods(ax: Axes, names: Sequence[str]) -> None:
    """A row a method, downwards, from a line at no correlation."""
    ax.axvline(0, color="0.5", linewidth=0.8)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("rank correlation\nwith retraining (LDS)")


def flip_curves(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Share of right answers that are lost after removing the k highest-scored training cases, by method.

    Args:
        table: one row a method and k: `name`, `color`, `k`, `lost`, `low`, `high`; `random`, cases removed at random,
            is the control.
    """
    require_columns(table, ("name", "color", "k", "lost", "low", "high"))
    ax = new_axes(ax)
    control = table["name"] == "random"
    curves = list(table[~control].groupby("name", sort=False)) + list(table[control].groupby("name"))
    markers = itertools.cycle("os^Dv*PX")
    for i, (name, rows) in enumerate(curves):
        style = "o--" if name == "random" else f"{next(markers)}-"
        color = rows["color"].iloc[0]
        rows = rows.sort_values("k")
        x = rows["k"].to_numpy() * 1.06 ** (i - (len(curves) - 1) / 2)  # beside one another, or whiskers coincide
        ax.errorbar(
            x, rows["lost"], yerr=_whiskers(rows, "lost"), fmt=style, color=color, markersize=4, elinewidth=0.8,
            label=str(name),
        )  # fmt: skip
    ax.set_xscale("log")
    ticks = sorted(table["k"].unique().tolist())
    ax.set_xticks(ticks, [str(k) for k in ticks])
    ax.minorticks_off()
    ax.set_ylim(-0.03, 1.03)
    ax.set_xlabel("training cases removed")
    ax.set_ylabel("right answers lost")
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))  # beside the curves: any of them may fill a corner
    return ax


def sliding_map(
    table: pd.DataFrame, ax: Axes | None = None, *, axis_names: tuple[str, str] = ("a", "b"), colorbar: bool = True
) -> Axes:
    """Accuracy in a held-out square by the place of its centre, with a frame where the square lies by default and a
    cross where some model did not learn its training cases either (`LEARNT`).

    Args:
        table: one row a centre and seed: `center_row`, `center_col`, `default_row`, `default_col` (the task's centre),
            `accuracy`, `train_accuracy`.
        axis_names: what rows and columns are (`Task.axis_names`).
    """
    place = ["center_row", "center_col"]
    require_columns(table, (*place, "default_row", "default_col", "accuracy", "train_accuracy"))
    ax = new_axes(ax)
    grid = table.pivot_table(index=place[0], columns=place[1], values="accuracy")
    trained = table.pivot_table(index=place[0], columns=place[1], values="train_accuracy", aggfunc="min").to_numpy()
    image = ax.imshow(grid.to_numpy(), cmap="cividis", vmin=0, vmax=1, interpolation="nearest", origin="upper")
    for (i, j), value in np.ndenumerate(grid.to_numpy()):
        if np.isfinite(value):
            text, color = f"{value:.2f}".removeprefix("0"), "white" if value < 0.6 else "black"
            ax.text(j, i, text, ha="center", va="center", fontsize=7, color=color)
            if trained[i, j] < LEARNT:
                ax.scatter(j + 0.33, i - 0.33, s=14, marker="x", color=color, linewidths=1.1)
    if (trained < LEARNT).any():  # crosses are black or white, whichever shows: one for the legend
        ax.scatter([], [], s=14, marker="x", color="black", linewidths=1.1, label=f"a model with {POOR}")
    # the task's centre need not be one of the places: between two of them it stands between their cells
    row = np.interp(table["default_row"].iloc[0], grid.index, range(grid.shape[0]))
    col = np.interp(table["default_col"].iloc[0], grid.columns, range(grid.shape[1]))
    frame_square(ax, (float(row), float(col), 0))
    ax.patches[-1].set_label("default place of the square")
    ax.set_xticks(range(grid.shape[1]), [str(c) for c in grid.columns])
    ax.set_yticks(range(grid.shape[0]), [str(r) for r in grid.index])
    ax.set_ylabel(f"centre: {axis_names[0]}")
    ax.set_xlabel(f"centre: {axis_names[1]}")
    if colorbar:
        bar = ax.figure.colorbar(image, ax=ax, fraction=0.046, pad=0.03)
        bar.set_label("mean accuracy in the square")
        bar.outline.set_linewidth(0.5)
    return ax


def group_points(table: pd.DataFrame, value: str, ax: Axes | None = None) -> Axes:
    """One effect for each group of training cases, with its interval.

    Args:
        table: one row a group: `group`, `value`, `{value}_low`, `{value}_high`.
        value: the column to draw.
    """
    require_columns(table, ("group", value, f"{value}_low", f"{value}_high"))
    ax = new_axes(ax)
    groups = [g for g in GROUP_COLORS if g in set(table["group"])]
    rows = table.set_index("group").reindex(groups)
    for i, group in enumerate(groups):
        one = rows.loc[[group]]
        ax.errorbar(
            i, one[value], yerr=_whiskers(one, value, f"{value}_low", f"{value}_high"), color=GROUP_COLORS[group],
            marker="o", markersize=4, elinewidth=1.2, linestyle="none",
        )  # fmt: skip
    ax.axhline(0, color="0.5", linewidth=0.8, linestyle=":")
    ax.set_xticks(range(len(groups)), [g.replace("_", " ") for g in groups], rotation=40, ha="right")
    ax.set_xlim(-0.5, len(groups) - 0.5)
    return ax
