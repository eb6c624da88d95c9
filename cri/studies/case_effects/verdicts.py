"""One table of the verdicts of all recorded retrainings, of every bank and instrument, corrected together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cri.errors import CriError
from cri.options import FamilyName
from cri.statistics.intervals import Interval
from cri.statistics.readings import ANYWHERE, CASES, COLUMN, MECHANISMS, holm, p_values, z_score
from cri.statistics.verdict import BOTH, NEARBY, STEPS, UNDECIDED
from cri.storage import file_sha256, read_json
from cri.storage.compression import read_table, stored
from cri.tasks import PLANTED, make_task

BANKS = ("gpu", "cpu")
"""Whose records are read: the paper's grid, small grids."""
HALVES, FIXED, REMOVALS = "random halves", "random halves, answer held fixed", "designed removals"
INSTRUMENTS = {"all cases": HALVES, "answer held fixed": FIXED}
DIFFERENCE = "near minus step"
_ENDS = ("low", "high")
_NAMES = ["task", "format", "tokenizer", "split", "region", "target"]


def collect(study: Path, removals: Path, banks: Path) -> pd.DataFrame:
    """One row a record and question: task, format, tokenizer, `grid`, split, region, target, instrument.

    Args:
        study: folder of this study's recorded tables, one a bank.
        removals: likewise of `counterfactual_removal`.
        banks: folder of the recorded retrainings.

    Returns:
        What the row is about, then `near`, `step` (the clearest step) and `difference` (near minus step), each with
        `_low` and `_high`, `step_name`, the other mechanisms that are supported (`also`), `verdict`, `n` (test cases),
        `n_seeds`, `n_compared` (comparisons that are corrected together: all of one instrument and target).

    Raises `CriError` where no table of any bank is recorded.
    """
    rows = [
        row for bank in BANKS for row in (*_from_halves(study, banks, bank), *_from_removals(removals, banks, bank))
    ]
    if not rows:
        raise CriError(f"out: {study} holds no verdicts; python -m cri.studies.case_effects gpu --out . records some")
    table = pd.DataFrame(rows)
    by = ["planted", "instrument", "target"]
    return pd.concat([decided(part) for _, part in table.groupby(by, sort=False)], ignore_index=True)


def sources(study: Path, removals: Path) -> dict[str, str]:
    """Checksums of the tables that are collected, for the manifest."""
    paths = [stored(folder / bank / name) for bank in BANKS for folder, name in _tables(study, removals)]
    return {f"{p.parent.parent.name}/{p.parent.name}/{p.name}": file_sha256(p)[:16] for p in paths if p.exists()}


def _tables(study: Path, removals: Path) -> tuple[tuple[Path, str], ...]:
    return (study, "verdicts.csv"), (removals, "index.csv")


def _about(row: dict[str, Any], banks: Path, bank: str) -> dict[str, Any]:
    """What a row is about, the size of the grid included."""
    config = read_json(banks / bank / FamilyName.of(row).folder / "base" / "config.json")
    size = make_task(config["task"], **config["task_params"]).coords[:, 1].max() + 1
    return {"bank": bank, "grid": int(size), "planted": row["task"] in PLANTED, **{name: row[name] for name in _NAMES}}


def _effect(name: str, value: Interval) -> dict[str, float]:
    return {name: value.estimate, f"{name}_low": value.low, f"{name}_high": value.high}


def _interval(row: dict[str, Any], name: str, mark: str = " ") -> Interval:
    return Interval(row[name], *(row[f"{name}{mark}{end}"] for end in _ENDS))


def _from_halves(study: Path, banks: Path, bank: str) -> Iterator[dict[str, Any]]:
    path = stored(study / bank / "verdicts.csv")
    if not path.exists():
        return
    table = read_table(path, keep_default_na=False, na_values=[""])
    for row in table[table["model"] == "trained"].to_dict("records"):
        scores = {name: _interval(row, name) for name in MECHANISMS if np.isfinite(row[name])}
        steps = {name: scores[name] for name in (COLUMN, ANYWHERE) if name in scores}
        none = Interval(np.nan, np.nan, np.nan)
        step = max(steps, key=lambda name: z_score(steps[name]), default="")
        between = Interval(row["near_minus_step"], row["difference_low"], row["difference_high"])
        yield {
            **_about(row, banks, bank), "instrument": INSTRUMENTS[row["cases"]],
            **_effect("near", scores.get(CASES, none)), **_effect("step", steps.get(step, none)),
            **_effect("difference", between), "step_name": step, "n": row["n_queries"], "n_seeds": row["n_seeds"],
            "scores": {**scores, DIFFERENCE: between},
        }  # fmt: skip


def _from_removals(removals: Path, banks: Path, bank: str) -> Iterator[dict[str, Any]]:
    """At the largest size of each family and split."""
    path = stored(removals / bank / "index.csv")
    if not path.exists():
        return
    table = read_table(path)
    largest = table.groupby(["task", "format", "tokenizer", "split"])["size"].transform("max")
    for row in table[(table["model"] == "trained") & (table["size"] == largest)].to_dict("records"):
        near, step, between = (_interval(row, name, "_") for name in ("near", "step", "difference"))
        yield {
            **_about(row, banks, bank), "instrument": REMOVALS, **_effect("near", near), **_effect("step", step),
            **_effect("difference", between), "step_name": ANYWHERE, "n": row["n"], "n_seeds": row["n_seeds"],
            "scores": {CASES: near, ANYWHERE: step, DIFFERENCE: between},
        }  # fmt: skip


def decided(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of one family of comparisons with their verdicts: all effects and differences corrected together."""
    pairs = [(i, name) for i, scores in enumerate(rows["scores"]) for name, v in scores.items() if np.isfinite(v.low)]
    z = np.array([z_score(rows["scores"].iloc[i][name]) for i, name in pairs])
    passed = holm(p_values(z).tolist())
    signs: list[dict[str, int]] = [{} for _ in range(len(rows))]
    for (i, name), value, ok in zip(pairs, z, passed, strict=True):
        signs[i][name] = int(np.sign(value)) if ok else 0
    also = [
        "; ".join(name for name in MECHANISMS if name not in (CASES, COLUMN, ANYWHERE) and sign.get(name, 0) > 0)
        for sign in signs
    ]
    found = rows.drop(columns="scores").assign(also=also, verdict=[verdict(sign) for sign in signs])
    return found.assign(n_compared=len(pairs))


def verdict(sign: dict[str, int]) -> str:
    """What significant effects support (`sign`: 1, -1, or 0 where it is not significant). One of nearby cases and steps
    alone takes that the other is not supported *and* that the difference of the two is significant: that an effect is
    not significant does not make it absent."""
    near, step = sign.get(CASES, 0) > 0, max(sign.get(COLUMN, 0), sign.get(ANYWHERE, 0)) > 0
    if near and step:
        return BOTH
    if near and sign.get(DIFFERENCE, 0) > 0:
        return NEARBY
    if step and sign.get(DIFFERENCE, 0) < 0:
        return STEPS
    return UNDECIDED
