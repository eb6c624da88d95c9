"""Rule steps: effect maps over layers and positions, follow rates, knockout, the agreement map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cri.checks import require_columns
from cri.plots.maps import Square, frame_square
from cri.plots.style import MISSING, new_axes

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

PAIR_COLORS = ("#4477AA", "#C9D8EA")
CONTROLS = {"shuffled": ("D", "#CC3311"), "untrained": ("x", "black")}
"""Markers of the models that cannot follow an edit but by chance."""
EDIT_KINDS = {
    "all": "all",
    "digit": "digit",
    "carry": "carry",
    "answer": "answer\nso far",
    "operands": "operands\nleft",
    "decision": "decision",
}
# Paul Tol's bright palette; not the tasks' nor the groups' colours
READ_COLORS = {"question": "#4477AA", "rule": "#AA3377", "previous": "#EE6677", "older": "#228833", "own": "#CCBB44"}
_COMPONENTS = {"resid_pre": "residual in", "attn_out": "attention", "mlp_out": "MLP", "resid_post": "residual"}


def effect_map(
    table: pd.DataFrame,
    ax: Axes | None = None,
    *,
    value: str = "rule",
    label: str = "rule's prediction comes true",
    limits: tuple[float, float] = (0.0, 1.0),
    colorbar: bool = True,
) -> Axes:
    """One value for every site (rows, the first layer below) and position, the trace printed along the axis.

    Args:
        table: `site`, `layer`, `component`, `position`, `token` and `value`, as `PatchMap.table` has them; an
            `element` column marks the position whose variable differs.
        limits: ends of the colour scale; a scale around 0 is drawn in two colours.
    """
    require_columns(table, ("site", "layer", "component", "position", "token", value))
    ax = new_axes(ax)
    sites = list(dict.fromkeys(table["site"]))
    positions = sorted(table["position"].unique())
    grid = table.pivot(index="site", columns="position", values=value).loc[sites[::-1], positions]
    both = limits[0] < 0 < limits[1]
    image = ax.imshow(
        grid.to_numpy(dtype=float), cmap="RdBu_r" if both else "viridis", vmin=limits[0], vmax=limits[1],
        aspect="auto", interpolation="nearest",
    )  # fmt: skip
    names = table.drop_duplicates("site").set_index("site").loc[sites[::-1]]
    ax.set_yticks(
        range(len(sites)),
        [f"{row.layer} {_COMPONENTS.get(str(row.component), row.component)}" for row in names.itertuples()],
    )
    tokens = table.drop_duplicates("position").set_index("position").loc[positions, "token"]
    names_below = [t if len(t) <= 10 else f"{t[:9]}…" for t in map(str, tokens)]
    upright = all(len(t) <= 4 for t in names_below)
    ax.set_xticks(range(len(positions)), names_below, fontsize=6, rotation=0 if upright else 90)
    ax.tick_params(axis="both", length=0)
    for i, token in enumerate(tokens):
        if str(token) in ("↵", "\n") or str(token).endswith("="):  # lines of the trace
            ax.axvline(i + 0.5, color="white", linewidth=0.8)
    if "element" in table.columns and table["element"].notna().any():
        column = positions.index(int(table["element"].dropna().iloc[0]))
        ax.get_xticklabels()[column].set_color("#CC3311")
        ax.get_xticklabels()[column].set_fontweight("bold")
    ax.spines[["top", "right"]].set_visible(True)
    if colorbar:
        bar = ax.figure.colorbar(image, ax=ax, fraction=0.03, pad=0.01)
        bar.set_label(label)
        bar.outline.set_linewidth(0.5)  # pyright: ignore[reportCallIssue]
    return ax


def follow_bars(table: pd.DataFrame, ax: Axes | None = None, *, by: str = "region", legend: bool = True) -> Axes:
    """Share of edits that the model follows, a pair of bars for each kind of edited element, with intervals.

    On top of each bar stands the share of edits after which the model returns to the answer that it gives unedited,
    where the table has it; what is missing to 1 breaks off or fits neither. The controls are markers before their bar;
    a dotted line is the largest chance of any bar. Under each pair stand its numbers of edits.

    Args:
        table: `kind`, `model` (trained, shuffled, untrained), `by`, `follows`, `low`, `high`, `chance`, `n`, one row
            each; optionally `returns`.
        by: the column whose two values make a pair, the first one to the left.
    """
    require_columns(table, ("kind", "model", by, "follows", "low", "high", "chance", "n"))
    ax = new_axes(ax)
    trained = table[table["model"] == "trained"]
    kinds = [kind for kind in EDIT_KINDS if kind in set(trained["kind"])]
    values, width = list(dict.fromkeys(trained[by])), 0.4
    # the whole stands apart from its parts
    x = np.array([0.0 if kind == "all" else i + 0.3 * ("all" in kinds) for i, kind in enumerate(kinds)])
    sizes = []
    for i, value in enumerate(values):
        here = table[table[by] == value].set_index(["model", "kind"])
        rows = here.reindex([("trained", kind) for kind in kinds])
        place = x + (i - (len(values) - 1) / 2) * width
        ax.bar(
            place, rows["follows"], width * 0.94, color=PAIR_COLORS[i], edgecolor=PAIR_COLORS[0], linewidth=0.6,
            label=value,
        )  # fmt: skip
        if "returns" in rows:
            ax.bar(
                place, rows["returns"], width * 0.94, bottom=rows["follows"], color="white", edgecolor="0.7",
                linewidth=0.6, hatch="////", label="returns", zorder=0.5,
            )  # fmt: skip
        ax.errorbar(place, rows["follows"], yerr=_whiskers(rows), fmt="none", ecolor="0.15", elinewidth=0.9, capsize=2)
        halo = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        for at, top, rate in zip(place, rows["high"], rows["follows"], strict=True):
            ax.text(at, top + 0.015, "" if np.isnan(rate) else f"{rate:.2f}", ha="center", va="bottom", fontsize=6,
                    bbox=halo)  # fmt: skip
        sizes.append(["–" if np.isnan(n) else f"{n:,.0f}" for n in rows["n"]])
        for (model, (marker, color)), beside in zip(CONTROLS.items(), (-0.2 * width, 0.2 * width), strict=True):
            rows = here.reindex([(model, kind) for kind in kinds])
            if rows["follows"].notna().any():
                ax.errorbar(
                    place + beside, rows["follows"], yerr=_whiskers(rows), fmt=marker, color=color, markersize=3,
                    elinewidth=0.9, label=model if i == 0 else None, zorder=3,
                )  # fmt: skip
    ax.axhline(trained["chance"].max(), color="0.3", linewidth=0.9, linestyle=":", label="chance", zorder=2)
    ax.set_xticks(
        x, [f"{' | '.join(n)}\n{EDIT_KINDS[k]}" for n, k in zip(zip(*sizes, strict=True), kinds, strict=True)]
    )
    ax.tick_params(axis="x", length=0)
    ax.set_ylim(0, 1.05)
    ax.set_yticks(np.arange(0, 1.1, 0.25))
    for markers in ax.containers:  # markers at 0 are not cut by the axis
        for part in markers.get_children():
            part.set_clip_on(False)
    ax.set_ylabel("edits followed")
    if legend:
        ax.legend(loc="best", handlelength=1.2)
    return ax


def _whiskers(rows: pd.DataFrame) -> np.ndarray:
    ends = np.stack([rows["follows"] - rows["low"], rows["high"] - rows["follows"]])
    return np.maximum(ends, 0)


def knockout_bars(table: pd.DataFrame, ax: Axes | None = None, *, legend: bool = True) -> Axes:
    """How much of a step's tokens is lost when it may not read a group, by layer and head.

    Args:
        table: `group`, `layer`, `head` (-1: all), `drop`, `drop_low`, `drop_high`.
    """
    require_columns(table, ("group", "layer", "head", "drop", "drop_low", "drop_high"))
    ax = new_axes(ax)
    cuts = table[["layer", "head"]].drop_duplicates().sort_values(["layer", "head"]).to_numpy().tolist()
    groups = [g for g in READ_COLORS if g in set(table["group"])]
    for i, group in enumerate(groups):
        rows = table[table["group"] == group].set_index(["layer", "head"]).reindex([tuple(c) for c in cuts])
        y = rows["drop"].to_numpy(dtype=float)
        spread = np.stack([y - rows["drop_low"].to_numpy(dtype=float), rows["drop_high"].to_numpy(dtype=float) - y])
        ax.errorbar(
            np.arange(len(cuts)) + (i - (len(groups) - 1) / 2) * 0.13, y, yerr=np.maximum(spread, 0), fmt="o",
            color=READ_COLORS[group], markersize=3.5, elinewidth=1.0, label=group,
        )  # fmt: skip
    ax.axhline(0, color="0.5", linewidth=0.8, linestyle=":")
    names = ["all" if c[0] < 0 else f"L{c[0]}" if c[1] < 0 else f"L{c[0]}H{c[1]}" for c in cuts]
    ax.set_xticks(range(len(cuts)), names, rotation=45 if len(cuts) > 6 else 0)
    ax.set_ylabel("log probability lost (nats per token)")
    if legend:
        ax.legend(loc="best", title="not read", title_fontsize=7)
    return ax


def agreement_map(
    table: pd.DataFrame,
    ax: Axes | None = None,
    *,
    squares: Sequence[Square] = (),
    axis_names: tuple[str, str] = ("a", "b"),
    legend: bool = True,
) -> Axes:
    """Which measurements support the rule in each cell: behaviour, edited steps, and removal where it was measured.

    Args:
        table: one row a case: `row`, `col`, `correct`, `follow` (both 0 to 1), `cri` (NaN if not measured).
    """
    from matplotlib.colors import ListedColormap

    require_columns(table, ("row", "col", "correct", "follow", "cri"))
    ax = new_axes(ax)
    behaviour, steps = table["correct"].to_numpy() >= 0.5, table["follow"].to_numpy() >= 0.5
    codes = np.where(behaviour, np.where(steps, 3, 2), np.where(steps, 1, 0))
    names = ("neither", "steps only", "behaviour only", "behaviour and steps")
    colors = ("#D55E00", "#E69F00", "#56B4E9", "#0072B2")
    rows, cols = table["row"].to_numpy(), table["col"].to_numpy()
    margin = 3
    grid = np.full((int(rows.max()) + 1 + margin, int(cols.max()) + 1 + margin), np.nan)
    grid[rows, cols] = codes
    cmap = ListedColormap(list(colors)).with_extremes(bad=MISSING)
    ax.imshow(grid, cmap=cmap, vmin=-0.5, vmax=3.5, interpolation="nearest", origin="upper")
    for square in squares:
        frame_square(ax, square)
    known = table[table["cri"].notna()]
    by_rule = known["cri"].to_numpy() < 0
    for mask, marker, color, name in (
        (by_rule, ".", "white", "removal: steps"),
        (~by_rule, "x", "black", "removal: cases"),
    ):
        if mask.any():
            ax.scatter(
                known["col"][mask], known["row"][mask], marker=marker, s=8, color=color, linewidths=0.7, label=name
            )
    ax.set_ylabel(axis_names[0])
    ax.set_xlabel(axis_names[1])
    ax.set_xlim(max(cols.min() - margin, 0) - 0.5, cols.max() + margin + 0.5)
    ax.set_ylim(rows.max() + margin + 0.5, max(rows.min() - margin, 0) - 0.5)
    ax.spines[["top", "right"]].set_visible(True)
    for name, color in zip(names, colors, strict=True):
        ax.scatter([], [], marker="s", s=30, color=color, label=f"votes for the rule: {name}")
    if legend:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), handletextpad=0.3)
    return ax


def rule_edit_bars(table: pd.DataFrame, ax: Axes | None = None, *, legend: bool = True) -> Axes:
    """Whose rule is executed when the prompt shows an edited one: stacked shares by kind of edit.

    Args:
        table: `kind`, `prompt`, `trained`, `other`, `truncated` (shares), `n`.
    """
    require_columns(table, ("kind", "prompt", "trained", "other", "truncated", "n"))
    ax = new_axes(ax)
    bottom = np.zeros(len(table))
    shares = {
        "prompt": ("the prompt's rule", "#4477AA"),
        "trained": ("the trained rule", "#EE6677"),
        "other": ("other", "#CCBB44"),
        "truncated": ("truncated", "#BBBBBB"),
    }
    for name, (label, color) in shares.items():
        share = table[name].to_numpy(dtype=float)
        ax.bar(np.arange(len(table)), share, 0.75, bottom=bottom, color=color, label=label)
        bottom += share
    names = [f"{kind}\nn = {n}" for kind, n in zip(table["kind"].str.replace("_", "\n"), table["n"], strict=True)]
    ax.set_xticks(range(len(table)), names)
    ax.set_ylim(0, 1.02)
    ax.set_ylabel("cases")
    if legend:
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return ax


PROBE_BARS = {
    "selectivity": ("probe's selectivity", "#BBBBBB"),
    "swap_whole": ("whole activation exchanged", "#228833"),
    "swap_pattern": ("class means' directions exchanged", "#AA3377"),
    "swap": ("probe's directions exchanged", "#4477AA"),
    "swap_random": ("random directions exchanged", "#CCBB44"),
}


def probe_bars(table: pd.DataFrame, ax: Axes | None = None, *, legend: bool = True) -> Axes:
    """Decodable beside used, by site and variable: selectivity, and what swaps of the subspace do. A value of 0 has no
    bar; it is marked by a short line on the axis.

    Args:
        table: one variable's rows: `site` and the columns of `PROBE_BARS`, each with `_low` and `_high`.
    """
    require_columns(table, ("site", *PROBE_BARS))
    ax = new_axes(ax)
    for i, (name, (label, color)) in enumerate(PROBE_BARS.items()):
        y = table[name].to_numpy(dtype=float)
        low, high = (table[f"{name}_{end}"].to_numpy(dtype=float) for end in ("low", "high"))
        x = np.arange(len(table)) + (i - 2) * 0.17
        ax.bar(x, y, 0.15, color=color, label=label)
        ax.hlines(np.zeros(len(table)), x - 0.075, x + 0.075, color=color, linewidth=2.2, zorder=3)
        ax.errorbar(x, y, yerr=np.maximum(np.stack([y - low, high - y]), 0), fmt="none", ecolor="0.25", elinewidth=0.8)
    ax.set_xticks(range(len(table)), table["site"].tolist())
    ax.axhline(0, color="0.5", linewidth=0.8, zorder=0)
    ax.set_ylim(-0.1, 1.02)
    if legend:
        ax.legend(loc="best")
    return ax


FEWEST = 10
"""Of cases whose mean is drawn."""


def component_bars(table: pd.DataFrame, ax: Axes | None = None, *, legend: bool = True) -> Axes:
    """Direct contribution of every component to the right answer's logit, for solved and missed cases; a mean of fewer
    than `FEWEST` cases is left out, and the legend says so.

    Args:
        table: `component`, `correct` (bool), `logit`, `logit_low`, `logit_high`, `n`.
    """
    require_columns(table, ("component", "correct", "logit", "logit_low", "logit_high", "n"))
    ax = new_axes(ax)
    components = list(dict.fromkeys(table["component"]))
    for i, (correct, color) in enumerate(((True, "#0072B2"), (False, "#D55E00"))):
        rows = table[table["correct"].astype(bool) == correct].set_index("component").reindex(components)
        if rows["n"].isna().all():
            continue
        if rows["n"].max() < FEWEST:
            ax.bar([0], [0], color="none", label=f"{'right' if correct else 'wrong'}: only {rows['n'].max():.0f}")
            continue
        y = rows["logit"].to_numpy(dtype=float)
        spread = np.stack([y - rows["logit_low"].to_numpy(dtype=float), rows["logit_high"].to_numpy(dtype=float) - y])
        x = np.arange(len(components)) + (i - 0.5) * 0.38
        ax.bar(x, y, 0.36, color=color, label=f"{'right' if correct else 'wrong'} (n = {rows['n'].max():.0f})")
        ax.errorbar(x, y, yerr=np.maximum(spread, 0), fmt="none", ecolor="0.25", elinewidth=0.8)
    ax.axhline(0, color="0.5", linewidth=0.8)
    ax.set_xticks(range(len(components)), [c.replace("_", " ") for c in components], rotation=90)
    ax.set_ylabel("contribution to the\nanswer's centred logit")
    if legend:
        ax.legend(loc="best")
    return ax
