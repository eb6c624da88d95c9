"""The figures of `cri.studies.rule_reading`, from its recorded tables alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

GROUPS = {
    "trained": ("trained rules", "#000000", "o"),
    "rule": ("other rules", "#332288", "s"),
    "combination": ("new combinations", "#117733", "^"),
    "division": ("new divisions", "#88CCEE", "P"),
    "start": ("new first carry", "#DDAA33", "D"),
    "base": ("new base", "#CC6677", "v"),
}
"""Label, colour and marker of each group of rules."""
SHOWN = {"rule_id": "opaque\nname", "shuffled_rule": "other\ntext", "scrambled_rule": "out of\norder"}
KINDS = {"operation": "operation", "base": "base", "carries": "carry on or off", "start": "first carry",
         "side": "side", "last": "last carry", "new_start": "first carry: untrained value",
         "new_base": "base: untrained value"}  # fmt: skip


def draw_accuracy(accuracy: pd.DataFrame, ax: Axes) -> Axes:
    """Right results by number of training rules and group of rules, a dot a run, Wilson intervals as whiskers; the
    controls' columns on the right."""
    main = accuracy[accuracy["shown"] == "stated_rule"]
    sizes = sorted(main["rules"].unique())
    controls = [name for name in SHOWN if (accuracy["shown"] == name).any()]
    x_of: dict[tuple[str, int], float] = {("stated_rule", n): i for i, n in enumerate(sizes)}
    for i, name in enumerate(controls):
        for n in accuracy.loc[accuracy["shown"] == name, "rules"].unique():
            x_of[name, n] = len(sizes) + 0.5 + i
    for g, (group, (label, color, marker)) in enumerate(GROUPS.items()):
        part = accuracy[accuracy["group"] == group]
        x = np.array([x_of[row.shown, row.rules] for row in part.itertuples()]) + 0.09 * (g - 2.5)
        ax.vlines(x, part["low"], part["high"], color=color, linewidth=0.9)
        ax.plot(x, part["right"], color=color, marker=marker, linestyle="none", label=label, clip_on=False)
        means = part[part["shown"] == "stated_rule"].groupby("rules")["right"].mean()
        ax.plot(np.arange(len(sizes)) + 0.09 * (g - 2.5), means[sizes], color=color, linewidth=0.8)
    if controls:
        ax.axvline(len(sizes) - 0.25, color="0.6", linestyle=":", linewidth=0.8)
    ax.set_xticks(list(x_of.values()), [str(n) if s == "stated_rule" else SHOWN[s] for s, n in x_of])
    ax.set_xlim(-0.4, max(x_of.values()) + 0.4)
    ax.set_ylim(-0.03, 1.03)
    trained_on = accuracy.loc[accuracy["shown"] != "stated_rule", "rules"].unique()
    ax.set_xlabel("training rules" + (f"; controls on {trained_on[0]}" if controls else ""))
    ax.set_ylabel("right results")
    ax.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def draw_edits(edits: pd.DataFrame, ax: Axes) -> Axes:
    """Edited rules executed, by kind of edit, a row of dots a number of training rules."""
    main = edits[(edits["shown"] == "stated_rule") & (edits["group"] == "all")]
    kinds = [kind for kind in KINDS if (main["kind"] == kind).any()]
    sizes = sorted(main["rules"].unique())
    shades = dict(zip(sizes, [str(s) for s in np.linspace(0.75, 0.0, len(sizes))], strict=True))
    for i, n in enumerate(sizes):
        part = main[(main["rules"] == n) & main["kind"].isin(kinds)]
        y = np.array([kinds.index(kind) for kind in part["kind"]]) + 0.15 * (i - (len(sizes) - 1) / 2)
        ax.hlines(y, part["low"], part["high"], color=shades[n], linewidth=0.9)
        ax.plot(part["follows"], y, color=shades[n], marker="o", linestyle="none", label=f"{n} rules", clip_on=False)
    ax.set_yticks(range(len(kinds)), [KINDS[kind] for kind in kinds])
    ax.invert_yaxis()
    ax.set_xlim(-0.03, 1.03)
    ax.set_xlabel("edited rule executed, of cases that can tell")
    ax.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def draw(folder: Path, figures: Path) -> list[Path]:
    """Both figures, from the recorded tables."""
    import matplotlib.pyplot as plt

    from cri.plots import style
    from cri.plots.style import save_figure
    from cri.storage import read_json
    from cri.storage.compression import read_table

    name = read_json(folder / "manifest.json")["name"]
    made = []
    with style():
        for what, size, function in (("accuracy", (5.6, 2.8), draw_accuracy), ("edits", (5.0, 3.0), draw_edits)):
            fig, ax = plt.subplots(figsize=size, layout="constrained")
            function(read_table(folder / f"{what}.csv"), ax)
            made += save_figure(fig, figures / f"rule_reading_{name}_{what}")
    return made
