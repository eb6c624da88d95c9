"""The marginal effect of training cases of each kind on an answer, with place, answer and step told apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cri.checks import require_columns
from cri.plots.style import GROUP_COLORS, new_axes

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

KINDS = {
    "near_same_answer": ("near, same answer", GROUP_COLORS["near"]),
    "near_other_answer": ("near, another answer", GROUP_COLORS["near"]),
    "mirror_same_answer": ("near its mirror image, same answer", "#44AA99"),
    "same_answer": ("far, same answer", GROUP_COLORS["same_answer"]),
    "same_answer_same_step": ("far, same answer, shares a step", GROUP_COLORS["same_step"]),
    "same_step": ("far, another answer, shares a step", GROUP_COLORS["same_step"]),
    "same_operand": ("far, another answer, shares an operand", GROUP_COLORS["same_operand"]),
}
"""Label and colour of the groups (`statistics.BY_ANSWER`), top to bottom: what is compared stands together."""


def marginal_effects(table: pd.DataFrame, ax: Axes | None = None, *, names: bool = True) -> Axes:
    """Effect of ten more training cases of each kind on the log-odds of the right answer; hollow where the answers
    differ. At the right edge the mean number of such cases, which may be fewer than ten. The mirror image of a + b is
    b + a.

    Args:
        table: one row a group of `statistics.BY_ANSWER` with `effect`, `low`, `high`, `size`; one without cases is left
            out.
        names: label the rows; a panel beside another one need not.
    """
    require_columns(table, ("group", "effect", "low", "high", "size"))
    ax = new_axes(ax)
    for y, (group, (_, color)) in enumerate(KINDS.items()):
        rows = table[(table["group"] == group) & (table["size"] > 0)]
        ends = np.abs(rows[["low", "high"]].to_numpy() - rows[["effect"]].to_numpy()).T
        face = color if "same_answer" in group else "white"
        ax.errorbar(
            rows["effect"], np.full(len(rows), y), xerr=ends, color=color, marker="o", markersize=4.5,
            markerfacecolor=face, linestyle="none", elinewidth=1.4,
        )  # fmt: skip
        for size in rows["size"]:
            number = f"{size:.0f}" if size >= 10 else f"{size:.1f}"
            ax.text(1.0, y, number, transform=ax.get_yaxis_transform(), fontsize=6, color="0.45", va="center")
    ax.axvline(0, color="0.5", linewidth=0.8, linestyle=":")
    ax.set_yticks(range(len(KINDS)), [label for label, _ in KINDS.values()] if names else [])
    ax.set_ylim(len(KINDS) - 0.5, -0.5)
    return ax
