"""The matrix: one row a cell with what it learnt, what its answers and steps rest on, and a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from cri.data import step_units as units

if TYPE_CHECKING:
    from cri.studies.matrix.config import Matrix

KEYS = ["task", "format", "split", "seed"]
METHOD = "EK-FAC"
"""The verdict rests on it: of the methods it predicts best what retraining does (`attribution_quality`)."""


def _verdict(row: pd.Series) -> str:
    """`same step` or `near case` where the interval of the difference beyond the untrained model excludes 0, and so
    does that of the trained model alone."""
    if row["state"] != "learnt":
        return row["state"]
    if row["difference"] != row["difference"]:
        return "not measured"
    bounds = [row[f"{name}_{end}"] for name in ("difference", "own") for end in ("low", "high")]
    if all(b > 0 for b in bounds):
        return "same step"
    if all(b < 0 for b in bounds):
        return "near case"
    return "undecided"


def _effects(table: pd.DataFrame, prefix: str, group: str) -> pd.DataFrame:
    chosen = table[table["group"] == group].set_index(KEYS)
    names = {"effect": prefix, "low": f"{prefix}_low", "high": f"{prefix}_high"}
    return chosen[list(names)].rename(columns=names)


def _of_unit(attribution: pd.DataFrame, unit: str) -> pd.DataFrame:
    """Of one unit, by cell: the difference (same step minus near case) of the trained model, beyond the untrained one,
    and the two effects, by EK-FAC; and the nearest site's by cosine and GradCos's."""
    part = attribution[attribution["unit"] == unit]
    own = part[(part["method"] == METHOD) & (part["model"] == "trained")]
    beyond = part[(part["method"] == METHOD) & (part["model"] == "beyond untrained")]
    columns = [
        _effects(beyond, "difference", "difference"), _effects(own, "own", "difference"),
        _effects(own, "same_step", units.SAME_STEP), _effects(own, "near", units.NEAR),
    ]  # fmt: skip
    for method, prefix in (("GradCos", "gradcos"), ("cosine", "cosine")):
        chosen = part[(part["method"] == method) & (part["model"] == "trained") & (part["group"] == "difference")]
        # of the sites the last layer's, which decides what is written
        last = chosen.sort_values("site").groupby(KEYS).tail(1)
        columns.append(_effects(last, prefix, "difference"))
    n = own.groupby(KEYS)["n_test"].first().rename("n_units")
    return pd.concat([*columns, n], axis=1)


def _edits(table: pd.DataFrame) -> pd.DataFrame:
    chosen = table[(table["kind"] == "all") & (table["region"] == "held out")].set_index(KEYS)
    kept = [f"{name}{end}" for name in ("follows", "returns", "neither") for end in ("", "_low", "_high")]
    return chosen[[*kept, "n"]].rename(columns={"n": "n_edits"})


def _interchange(table: pd.DataFrame) -> pd.DataFrame:
    chosen = table[table["variable"] == "carry"]
    parts = {
        name: chosen[chosen["vectors"] == vectors].set_index(KEYS)["rule"]
        for name, vectors in (("interchange_carry", "source"), ("interchange_control", "random"))
    }
    return pd.DataFrame(parts)


def _removal(row: pd.Series, doses: pd.DataFrame) -> dict[str, Any]:
    """Marginal effect of ten more training cases of a kind (log-odds), where `counterfactual_removal` measured it: the
    same task, format, tokens and split on a grid of its own."""
    region = "square" if row["split"] == "square" else "random"
    same = (doses[["task", "format", "tokenizer", "split", "region"]] == [
        row["task"], row["format"], row["tokenizer"], row["split"], region,
    ]).all(axis=1)  # fmt: skip
    out: dict[str, Any] = {}
    for group, name in (("near", "removal_near"), ("same_step", "removal_step")):
        found = doses[same & (doses["group"] == group)]
        if len(found):
            first = found.sort_values("n_seeds", ascending=False).iloc[0]
            out |= {name: first["effect"], f"{name}_low": first["low"], f"{name}_high": first["high"]}
    return out


def summary(found: Mapping[str, pd.DataFrame], config: Matrix) -> pd.DataFrame:
    """One row a cell and seed. The unit of attribution is the step where the format writes steps, else the case."""
    table = found["accuracy"]
    table = table[table["format"].isin(config.formats)].set_index(KEYS)
    if "attribution" in found:
        case, step = (_of_unit(found["attribution"], unit) for unit in ("case", "step"))
        main = step.combine_first(case) if len(step) else case
        table = table.join(main).join(case.add_prefix("prompt_end_"))
    for name, function in (("edits", _edits), ("interchange", _interchange)):
        if name in found:
            table = table.join(function(found[name]))
    table = table.reset_index()
    doses = config.removal / "doses.csv"
    if doses.exists() and "tokenizer" in table:
        recorded = pd.read_csv(doses)
        table = table.join(pd.DataFrame([_removal(row, recorded) for _, row in table.iterrows()], index=table.index))
    columns = ["difference", *(f"{name}_{end}" for name in ("difference", "own") for end in ("low", "high"))]
    table["verdict"] = table.reindex(columns=[*table.columns, *(c for c in columns if c not in table)]).apply(
        _verdict, axis=1
    )
    return table
