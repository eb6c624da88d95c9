"""The figure of `cri.studies.in_context`, from its recorded tables alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

LABELS = {
    "none": "no examples", "far": "far", "random": "random", "same_step": "shared step", "same_operand": "same operand",
    "other_tens": "other tens digit", "same_answer": "same answer", "mirror": "near (b, a)",
    "near_shuffled": "near, answers exchanged", "near": "near",
}  # fmt: skip
SHADES = ("#BBBBBB", "#777777", "#000000")
REMOVING = {
    "removed": ("example removed", "#000000", "o"),
    "exchanged for a far one": ("exchanged for a far one", "#0077BB", "s"),
    "exchanged for its kind": ("exchanged for its kind", "#999999", "^"),
}
HIDING = {
    "cut": ("example hidden from the question", "#000000", "o"),
    "cut: other tokens": ("as many other tokens hidden", "#999999", "^"),
}


def draw_accuracy(accuracy: pd.DataFrame, ax: Axes) -> Axes:
    """Right answers by kind of example, a shade a number of examples, Wilson intervals; crosses are guesses without a
    model at the largest number."""
    kinds = [kind for kind in LABELS if (accuracy["kind"] == kind).any()]
    sizes = sorted(accuracy.loc[accuracy["k"] > 0, "k"].unique())
    for j, k in enumerate(sizes):
        part = accuracy[accuracy["k"] == k]
        color = SHADES[len(SHADES) - len(sizes) + j] if len(sizes) <= len(SHADES) else str(0.8 * (1 - j / len(sizes)))
        _dots(part, "right", kinds, ax, (f"{k} examples", color, "o"), 0.16 * (j - (len(sizes) - 1) / 2))
    _dots(accuracy[accuracy["k"] == 0], "right", kinds, ax, ("", SHADES[-1], "o"), 0)
    most = accuracy[accuracy["k"] == sizes[-1]]
    y = [kinds.index(kind) for kind in most["kind"]]
    ax.plot(
        most[["between", "copied"]].max(axis=1), y, "x", color="#CC3311", label="guess from their answers", zorder=1
    )
    ax.set_yticks(range(len(kinds)), [LABELS[kind] for kind in kinds])
    ax.set_xlim(-0.03, 1.03)
    ax.set_xlabel("right answers")
    ax.set_ylabel("examples in the prompt")
    ax.legend(fontsize=6, loc="lower left", bbox_to_anchor=(0, 1))
    return ax


def _dots(table: pd.DataFrame, value: str, kinds: list[str], ax: Axes, how: tuple[str, str, str], shift: float) -> None:
    label, color, marker = how
    y = np.array([kinds.index(kind) for kind in table["kind"]]) + shift
    ax.hlines(y, table["low"], table["high"], color=color, linewidth=0.9)
    ax.plot(table[value], y, color=color, marker=marker, linestyle="none", label=label or None, clip_on=False)


def draw_effects(effects: pd.DataFrame, ax: Axes, what: dict[str, tuple[str, str, str]]) -> Axes:
    """How far the log-odds of the model's own answer fall (of the right one, where it gave none), by kind of example
    and what is done to one."""
    target = "predicted" if (effects["target"] == "predicted").any() else "right"
    own = effects[(effects["target"] == target) & effects["what"].isin(list(what))]
    kinds = [kind for kind in LABELS if (own["kind"] == kind).any()]
    for j, name in enumerate(what):
        part = own[own["what"] == name]
        _dots(part, "estimate", kinds, ax, what[name], 0.16 * (j - (len(what) - 1) / 2))
    ax.axvline(0, color="0.6", linestyle=":", linewidth=0.8)
    ax.set_yticks(range(len(kinds)), [LABELS[kind] for kind in kinds])
    ax.set_xlabel(f"fall of log-odds, {target} answer")
    ax.legend(fontsize=6, loc="lower left", bbox_to_anchor=(0, 1))
    return ax


def draw(folder: Path, figures: Path) -> list[Path]:
    """The figure, from the recorded tables."""
    from cri.plots import style
    from cri.plots.style import figure, save_figure
    from cri.storage import read_json
    from cri.storage.compression import read_table

    name = read_json(folder / "manifest.json")["name"]
    effects = read_table(folder / "effects.csv")
    with style():
        fig, axes = figure(1, 3, (3.3, 3.0))
        draw_accuracy(read_table(folder / "accuracy.csv", keep_default_na=False), axes[0, 0])
        draw_effects(effects, axes[0, 1], REMOVING)
        draw_effects(effects, axes[0, 2], HIDING)
        return save_figure(fig, figures / f"in_context_{name}")
