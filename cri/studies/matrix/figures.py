"""The figures of `matrix`, from its recorded tables alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from cri import plots
from cri.data import step_units as units
from cri.plots.matrix import OUTCOME_COLORS, VERDICT_COLORS, effect_rows, verdict_matrix
from cri.storage.compression import read_table, tables_in

_LABEL = "effect on EK-FAC scores (standard deviations)"


def _glance(table: pd.DataFrame) -> Any:
    from matplotlib.patches import Patch

    n_columns = len(table[["format", "split"]].drop_duplicates())
    fig, axes = plots.figure(1, 1, (1.25 * n_columns + 1.1, 0.86 * table["task"].nunique() + 1.2))
    verdict_matrix(table, axes[0, 0])
    shown = {name: color for name, color in VERDICT_COLORS.items() if (table["verdict"] == name).any()}
    shown |= {f"edit: {name}": color for name, color in OUTCOME_COLORS.items()}
    handles = [Patch(facecolor=color, edgecolor="#888888", label=name) for name, color in shown.items()]
    note = (
        "right: share of training | held-out cases. step − case: effect of the same step minus that of a near case\n"
        "on EK-FAC scores (standard deviations, beyond the untrained model, 95 %). Bar: held-out traces with an\n"
        "edited element, whose model goes on as the rule demands (follows) or to the unedited answer (returns)"
    )
    fig.legend(handles=handles, loc="outside lower center", ncols=4, title=note, title_fontsize=6.5)
    return fig


def _by_cell(attribution: pd.DataFrame) -> Any:
    """One panel a cell with steps: the effects of all memberships, of the trained and the untrained model."""
    part = attribution[
        (attribution["unit"] == "step") & (attribution["method"] == "EK-FAC") & (attribution["group"] != "difference")
        & attribution["model"].isin(["trained", "untrained"])
    ]  # fmt: skip
    part = part[part["seed"] == part["seed"].min()]
    if part.empty:
        return None
    cells = list(part.groupby(["task", "format", "split"], sort=False))
    columns = min(4, len(cells))
    groups = [name for name in units.GROUPS if (part["group"] == name).any()]
    fig, axes = plots.figure(-(-len(cells) // columns), columns, (2.2, 1.9), sharey=True)
    for ax, (key, rows) in zip(axes.flat, cells, strict=False):
        effect_rows(rows.rename(columns={"model": "series"}), ax, groups=groups)
        task, fmt, split = (str(k).replace("_", " ") for k in key)
        ax.set_title(f"{task}\n{fmt}, {split} (n = {int(rows['n_test'].max())})", fontsize=7)
    for ax in list(axes.flat)[len(cells) :]:
        ax.set_visible(False)
    fig.supxlabel(_LABEL, fontsize=8)
    handles, names = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, names, loc="outside upper center", ncols=2)
    return fig


def _controls(controls: pd.DataFrame) -> Any:
    shown = controls[controls["group"].isin([units.SAME_STEP, units.NEAR, units.RESULT, units.MIRROR_STEP])]
    fig, axes = plots.figure(1, 1, (5.6, 2.6))
    effect_rows(shown.rename(columns={"model": "series"}), axes[0, 0], label="effect (standard deviations of scores)")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


def _edits(edits: pd.DataFrame) -> Any:
    """Stacked outcomes by kind of element, one panel a cell."""
    part = edits[(edits["region"] == "held out") & (edits["kind"] != "all") & (edits["seed"] == edits["seed"].min())]
    cells = list(part.groupby(["task", "format", "split"], sort=False))
    if not cells:
        return None
    columns = min(4, len(cells))
    fig, axes = plots.figure(-(-len(cells) // columns), columns, (2.0, 1.7), sharex=True)
    colors = OUTCOME_COLORS | {"neither": "#BBBBBB"}
    for ax, (key, rows) in zip(axes.flat, cells, strict=False):
        left = [0.0] * len(rows)
        names = [f"{kind} ({n})" for kind, n in zip(rows["kind"], rows["n"], strict=True)]
        for name, color in colors.items():
            ax.barh(names, rows[name], left=left, color=color, label=name)
            left = [a + b for a, b in zip(left, rows[name], strict=True)]
        ax.set_xlim(0, 1)
        ax.invert_yaxis()
        task, fmt, split = (str(k).replace("_", " ") for k in key)
        ax.set_title(f"{task}\n{fmt}, {split}", fontsize=7)
    for ax in list(axes.flat)[len(cells) :]:
        ax.set_visible(False)
    fig.supxlabel("share of edits of held-out traces (number of edits)", fontsize=8)
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return fig


def draw(folder: Path, figures: Path) -> list[Path]:
    """Draws every figure that the tables in a folder allow; returns the files written."""
    tables = {name: read_table(path, keep_default_na=name != "edits") for name, path in tables_in(folder).items()}
    drawn: dict[str, Any] = {}
    with plots.style():
        drawn["verdicts"] = _glance(tables["matrix"])
        for name, function in (("attribution", _by_cell), ("controls", _controls), ("edits", _edits)):
            if name in tables:
                drawn[name] = function(tables[name])
        return [
            path
            for name, fig in drawn.items()
            if fig is not None
            for path in plots.save_figure(fig, figures / f"matrix_{folder.name}_{name}")
        ]
