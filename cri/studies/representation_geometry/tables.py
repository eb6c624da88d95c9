"""The tables of single runs, drawn together over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from cri.statistics.seeds import over_seeds, seed_interval

if TYPE_CHECKING:
    import pandas as pd

MODEL = ("role", "split")
CONTROLS = {"start": "default", "untied": "default", "noise": "untied", "smooth": "untied", "bent": "smooth"}
"""What each arm is compared with, seed by seed."""
_KEYS = {
    "accuracy": (("region",), ("accuracy", "within_3")),
    "bends": (("site",), ("bend",)),
    "readouts": (("site", "target", "region"), ("r2", "rmse", "bias", "control_r2")),
    "classes": (("site", "target", "region"), ("kappa", "control")),
    "phases": (("period", "region"), ("cos_true", "cos_given", "shift_right", "shift_chance")),
    "embeddings": (("replaced", "region"), ("accuracy",)),
    "components": (("site", "period", "edit", "region"), ("accuracy",)),
    "patches": (("site", "region"), ("accuracy", "next_followed")),
    "units": (("unit", "layer", "which", "region"), ("accuracy",)),
    "lens": (("site", "region"), ("right", "given", "median_rank")),
    "moves": (("site", "region", "direction", "amount"), ("median_change", "as_told")),
    "direct": (("component", "region", "correct"), ("true", "given")),
    "digits": (("format", "column", "region"), ("accuracy",)),
    "digit_reads": (("format", "column", "site", "target", "region"), ("kappa", "control")),
    "digit_patches": (("format", "column", "site", "source", "region"), ("accuracy",)),
}


def summarise(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Every measure over seeds: `table, role, split`, the measure's own keys in `what`, `value, estimate, low, high,
    n_runs`. Planted models, which have no seeds, are left in the tables of single runs."""
    import pandas as pd

    parts = []
    for name, (keys, values) in _KEYS.items():
        if name not in tables:
            continue  # only where the study was asked for it
        table = tables[name]
        table = table[table["role"] != "planted"]
        for value in values:
            part = over_seeds(table, value, [*MODEL, *keys])
            what = part[list(keys)].astype(str).agg(" | ".join, axis=1) if len(part) else ""
            parts.append(part.drop(columns=list(keys)).assign(table=name, what=what))
    if "arms" in tables:
        parts.append(_arms(tables))
    columns = ["table", *MODEL, "what", "value", "estimate", "low", "high", "n_runs"]
    return pd.concat(parts, ignore_index=True)[columns]


def _arms(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Accuracy in the square by arm, and each arm's difference from its control over the same seeds."""
    import pandas as pd

    arms = tables["arms"]
    own = tables["accuracy"]
    own = own[(own["role"] == "trained") & (own["split"] == "square") & (own["region"] == "inside")]
    default = own[["seed", "accuracy"]].rename(columns={"accuracy": "square_accuracy"}).assign(arm="default")
    every = pd.concat([default, arms[["seed", "square_accuracy", "arm"]]], ignore_index=True)
    wide = every.pivot(index="seed", columns="arm", values="square_accuracy")
    rows = [{"what": arm, "value": "square_accuracy", **seed_interval(wide[arm].to_numpy())._asdict(),
             "n_runs": int(wide[arm].notna().sum())} for arm in wide.columns]  # fmt: skip
    for arm, control in CONTROLS.items():
        if arm in wide and control in wide:
            gain = (wide[arm] - wide[control]).to_numpy()
            rows.append({"what": f"{arm} minus {control}", "value": "square_accuracy",
                         **seed_interval(gain)._asdict(), "n_runs": int(np.isfinite(gain).sum())})  # fmt: skip
    return pd.DataFrame(rows).assign(table="arms", role="trained", split="square")
