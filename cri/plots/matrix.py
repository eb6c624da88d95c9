"""The matrix of tasks, formats and splits at a glance: a coloured verdict and its numbers in every cell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cri.checks import require_columns
from cri.plots.style import MISSING, new_axes

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

VERDICT_COLORS = {
    "same step": "#9AD1C1",
    "near case": "#F2C48D",
    "undecided": "#D9D9D9",
    "not measured": "#F4F4F4",
    "not learnt": "#FFFFFF",
    "not yet run": MISSING,
}
"""Background of a cell; pale, as numbers stand on it."""
OUTCOME_COLORS = {"follows": "#009E73", "returns": "#E69F00", "neither": "#FFFFFF"}
"""What a model makes of an edited element of its trace: goes on as the rule demands, returns to the unedited answer."""
_FORMATS = ("direct", "scratchpad", "rfft")
_SPLITS = ("square", "random")


def _number(row: Any, name: str) -> str:
    value = row.get(name)
    return "–" if value is None or value != value else f"{value:.3f}"


def _lines(row: Any) -> list[str]:
    """What is written into a cell of the matrix."""
    if row["state"] == "not yet run":
        return ["not yet run"]
    if row["verdict"] == "not measured":
        return ["not measured", f"right {_number(row, 'train_accuracy')} | {_number(row, 'test_accuracy')}"]
    lines = [f"right {_number(row, 'train_accuracy')} | {_number(row, 'test_accuracy')}"]
    if row["state"] == "not learnt":
        return ["not learnt", *lines]
    if row.get("difference") == row.get("difference"):
        span = f"[{row['difference_low']:+.1f}, {row['difference_high']:+.1f}]"
        lines.append(f"step − case {row['difference']:+.1f}\n{span}")
    if row.get("follows") == row.get("follows") and row.get("follows") is not None:
        lines.append(f"follows {row['follows']:.2f}, returns {row['returns']:.2f}")
    return [row["verdict"], *lines]


def verdict_matrix(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Rows: tasks; columns: formats, each by split. Of several seeds the first is written.

    Args:
        table: `task`, `format`, `split`, `seed`, `state`, `verdict`, and where measured `train_accuracy`,
            `test_accuracy`, `difference` with `_low` and `_high`, `follows`, `returns`, `neither`.
    """
    import pandas as pd
    from matplotlib.patches import Rectangle

    require_columns(table, ["task", "format", "split", "seed", "state", "verdict"])
    ax = new_axes(ax)
    tasks = list(dict.fromkeys(table["task"]))
    columns = [(f, s) for f in _FORMATS for s in _SPLITS if ((table["format"] == f) & (table["split"] == s)).any()]
    first = table.sort_values("seed").groupby(["task", "format", "split"]).first()
    for i, task in enumerate(tasks):
        for j, (fmt, split) in enumerate(columns):
            if (task, fmt, split) not in first.index:
                continue
            row = first.loc[(task, fmt, split)]
            shade = row["verdict"]
            ax.add_patch(Rectangle((j, i), 0.96, 0.94, facecolor=VERDICT_COLORS[shade], edgecolor="#888888", lw=0.5))
            title, *rest = _lines(row)
            plain = row["state"] == "not yet run"
            ax.text(j + 0.48, i + (0.47 if plain else 0.14), title, ha="center", va="center", fontsize=7,
                    weight="normal" if plain else "bold", color="#777777" if plain else "black")  # fmt: skip
            edited = pd.notna(row.get("follows"))
            middle = i + (0.53 if edited else 0.58)
            ax.text(j + 0.48, middle, "\n".join(rest), ha="center", va="center", fontsize=6, linespacing=1.25)
            left = j + 0.06
            for name, color in OUTCOME_COLORS.items() if edited else ():
                share = 0.84 * row[name]
                ax.add_patch(Rectangle((left, i + 0.84), share, 0.06, facecolor=color, edgecolor="#666666", lw=0.3))
                left += share
    ax.set_xlim(-0.02, len(columns))
    ax.set_ylim(len(tasks), -0.02)
    ax.set_xticks([j + 0.48 for j in range(len(columns))], [s for _, s in columns])
    ax.set_yticks([i + 0.47 for i in range(len(tasks))], [task.replace("_", " ") for task in tasks])
    ax.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False)
    for fmt in dict.fromkeys(f for f, _ in columns):
        where = [j for j, (f, _) in enumerate(columns) if f == fmt]
        name = "RFFT" if fmt == "rfft" else fmt
        ax.text((where[0] + where[-1]) / 2 + 0.48, -0.32, name, ha="center", va="bottom", fontsize=8, weight="bold")
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def effect_rows(
    table: pd.DataFrame, ax: Axes | None = None, *, label: str = "", groups: Sequence[str] | None = None
) -> Axes:
    """Effects with intervals, one row a group, one colour a `series`.

    Args:
        table: `group`, `series`, `effect`, `low`, `high`.
        groups: the rows from above, also those that this table lacks: panels that share an axis need the same. Those of
            the table where not given.
    """
    require_columns(table, ["group", "series", "effect", "low", "high"])
    ax = new_axes(ax)
    groups = list(dict.fromkeys(table["group"]) if groups is None else groups)
    series = list(dict.fromkeys(table["series"]))
    colors = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
    step = 0.7 / max(len(series), 1)
    for k, name in enumerate(series):
        part = table[table["series"] == name]
        y = [groups.index(g) + (k - (len(series) - 1) / 2) * step for g in part["group"]]
        color = colors[k % len(colors)]
        ax.hlines(y, part["low"], part["high"], color=color, lw=1)
        ax.plot(part["effect"], y, "o", ms=3, color=color, label=name)
    ax.axvline(0, color="#999999", lw=0.6, zorder=0)
    ax.set_yticks(range(len(groups)), groups)
    ax.set_ylim(len(groups) - 0.5, -0.5)
    ax.set_xlabel(label)
    return ax
