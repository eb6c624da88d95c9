"""What a training case changes, on the plane of its offsets from the question, and by kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cri.plots.style import MISSING, SIGNED

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

KIND_ORDER = (
    "answer line, 1 to 3 away", "answer line, 4 to 6 away", "answer line, farther", "mirror image",
    "answer line, 1 to 3 from the mirror image", "another answer, 1 to 3 away", "one operand, 1 away",
    "one operand, 10 away", "one operand, 9 away", "one operand, 20 or 30 away", "one operand, 18 or 27 away",
    "one operand, other", "one token differs", "two tokens differ", "step of the units", "step of the tens",
    "step of the hundreds", "step elsewhere", "nothing shared, farther than 6",
)  # fmt: skip
"""From top to bottom; further kinds stand below."""


def offset_map(table: pd.DataFrame, ax: Axes | None = None, *, limit: float, linear: float, axes=("Δa", "Δb")) -> Axes:
    """The mean effect of a training case at each offset (`statistics.case_effects.offset_kernel`), on a scale that is
    linear up to `linear` and logarithmic beyond, to +- `limit`; the question is the cross in the middle."""
    import matplotlib.pyplot as plt
    from matplotlib.colors import SymLogNorm

    ax = plt.gca() if ax is None else ax
    reach = int(max(table["d_row"].abs().max(), table["d_col"].abs().max()))
    grid = np.full((2 * reach + 1, 2 * reach + 1), np.nan)
    grid[table["d_row"] + reach, table["d_col"] + reach] = table["effect"]
    ax.set_facecolor(MISSING)
    edge = reach + 0.5
    norm = SymLogNorm(linthresh=linear, vmin=-limit, vmax=limit)
    ax.imshow(grid, cmap=SIGNED, norm=norm, extent=(-edge, edge, edge, -edge), interpolation="nearest")
    ax.plot(0, 0, marker="+", color="black", markersize=5, markeredgewidth=0.8)
    step = 10 if reach >= 20 else 5
    ticks = np.arange(-(reach // step) * step, reach + 1, step)
    ax.set_xticks(ticks)
    ax.set_yticks(ticks)
    ax.set_ylabel(axes[0])
    ax.set_xlabel(axes[1])
    return ax


def kind_points(
    table: pd.DataFrame, value: str, ax: Axes | None = None, *, names: bool = True, color: str = "black",
    shift: float = 0.0, marker: str = "o",
) -> Axes:  # fmt: skip
    """One row a kind, a point and interval each: `effect` of one case, or `total`, the effect times the number of such
    cases. Filled where it is significant after correction."""
    import matplotlib.pyplot as plt

    ax = plt.gca() if ax is None else ax
    known = [kind for kind in KIND_ORDER if kind in set(table["kind"])]
    order = known + [kind for kind in dict.fromkeys(table["kind"]) if kind not in known]
    low, high = ("low", "high") if value == "effect" else (f"{value}_low", f"{value}_high")
    rows = table.set_index("kind")
    for y, kind in enumerate(order):
        row = rows.loc[kind]
        ax.plot([row[low], row[high]], [y + shift] * 2, color=color, linewidth=1)
        face = color if row["significant"] else "white"
        ax.plot(row[value], y + shift, marker=marker, color=color, markerfacecolor=face, markersize=4)
    ax.axvline(0, color="#999999", linewidth=0.6, zorder=0)
    ax.set_yticks(range(len(order)), order if names else [""] * len(order))
    ax.set_ylim(len(order) - 0.5, -0.5)
    return ax
