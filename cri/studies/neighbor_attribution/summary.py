"""What the study ends with on a terminal: three sentences with their intervals, how far they carry, what comes next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cri.attribution.methods import layer
from cri.statistics import wilson
from cri.storage.compression import read_table, stored
from cri.studies.neighbor_attribution.config import NAME, NeighborAttribution

if TYPE_CHECKING:
    import pandas as pd

RECORDED = Path("studies") / NAME / "addition-again"
"""The same study of addition with three seeds, as this repository records it."""


def _interval(row: Any, name: str) -> str:
    return f"{row[name]:.2f} [{row[f'{name}_low']:.2f}, {row[f'{name}_high']:.2f}]"


def _share(part: pd.DataFrame) -> str:
    right, n = int(part["right"].sum()), int(part["n"].sum())
    low, high = wilson(right, n)
    return f"{right / n:.2f} [{low:.2f}, {high:.2f}]"


def _row(verdicts: pd.DataFrame, method: str) -> pd.Series:
    """A method's row, of the last layer where it has several."""
    rows = verdicts[verdicts["method"] == method]
    return rows.iloc[int(np.argmax([-2 if (n := layer(site)) is None else n for site in rows["site"]]))]


def sentences(accuracy: pd.DataFrame, verdicts: pd.DataFrame, k: int) -> list[str]:
    """Where it fails, what similarity says, what influence says; each with 95 % intervals."""
    held = accuracy[accuracy["part"] == "test"].set_index("model")
    out = [
        f"The model trained without the square answers {_share(held.loc[['square']])} of its cases rightly; the model "
        f"of the random split, {_share(held.loc[['random']])} of the cases held out there."
    ]
    ranked = (("cosine", "are most similar in the last layer"), ("EK-FAC", "influence (EK-FAC) ranks first"))
    for method, how in ranked:
        if method not in set(verdicts["method"]):
            continue
        row = _row(verdicts, method)
        out.append(
            f"Among the {k} training cases that {how}, the share of near ones exceeds what equal outputs explain by "
            f"{_interval(row, 'near_excess')}; less the same share in the model of the random split this is "
            f"{_interval(row, 'near_vs_random')}: {row['verdict']}."
        )
    return out


def caveat(verdicts: pd.DataFrame, n_seeds: int, recorded: Path | None = RECORDED) -> str:
    """How far the sentences carry. With one seed, how it compares with the three that are recorded, if they are."""
    if n_seeds > 1:
        return f"{n_seeds} seeds: the intervals cover seeds and patches of the grid."
    text = (
        "One seed: the intervals cover patches of the grid, not other models. Another start makes another hole, so one "
        "seed can give a verdict that several take back."
    )
    if recorded is None or not stored(recorded / "verdicts.csv").exists():
        return text
    ours, known = _row(verdicts, "cosine"), _row(read_table(recorded / "verdicts.csv"), "cosine")
    said = "also say" if ours["verdict"] == known["verdict"] else "say"
    return (
        f"{text} Three seeds of addition on the paper's grid ({recorded}) {said} {known['verdict']!r} for similarity: "
        f"{_interval(known, 'near_vs_random')} more than in the random split."
    )


def ending(folder: Path, figures: Sequence[Path], config: NeighborAttribution) -> str:
    """The end of the study's output, from its tables."""
    accuracy, verdicts = (read_table(folder / f"{name}.csv") for name in ("accuracy", "verdicts"))
    lines = [f"{i}. {text}" for i, text in enumerate(sentences(accuracy, verdicts, config.k), 1)]
    # other runs than the study's own are not laid beside those that are recorded
    lines.append(caveat(verdicts, len(config.seeds), None if config.use else RECORDED))
    lines.append("All this is association. Whether an answer changes without these cases takes retraining.")
    where = figures[0].parent if figures else folder
    lines.append(f"Pictures: {where}/{NAME}_{config.name}_*.png; tables: {folder}")
    if len(config.seeds) == 1 and not config.use:
        lines.append("Next: cri neighbors --seeds 0 1 2   (three seeds; or cri bench --list: which method to believe)")
    else:
        lines.append("Next: cri attribute   (which method predicts what retraining does?)")
    return "\n".join(lines)
