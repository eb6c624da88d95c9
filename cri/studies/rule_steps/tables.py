"""The tables of `rule_steps`: every intervention on every run, then its summaries with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cri.statistics import estimate, wilson
from cri.storage.compression import read_table
from cri.studies.rule_steps.measures import accuracy_row, intervene
from cri.studies.rule_steps.parts import parts_of
from cri.training.runs import load_run

if TYPE_CHECKING:
    from cri.studies.rule_steps.config import RuleSteps

SUBJECT = ["task", "format", "tokenizer"]
MARGIN = 0.05
"""A follow rate this far above chance counts as more than chance."""
MIN_EDITS = 20
"""Fewer edits than this decide nothing."""
FOLLOWS, PARTLY, IGNORES, UNDECIDED = (
    "executes its steps",
    "uses its steps in part",
    "does not use its steps",
    "undecided",
)


def compute(
    paths: Sequence[Path], controls: Sequence[Path], removal: Sequence[Path], config: RuleSteps
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """All tables by name, and facts for the manifest (squares by task, notes on what could not be done)."""
    tables: dict[str, list[pd.DataFrame]] = {}
    notes: list[str] = []
    squares: dict[str, Any] = {}
    accuracy = []
    for path, is_control in [*((p, False) for p in paths), *((p, True) for p in controls)]:
        run = load_run(path)
        accuracy.append(accuracy_row(run))
        for part in parts_of(run, () if is_control else config.lengths, max(2, config.n_cases // 4)):
            squares[part.label] = {"squares": run.split.squares, "axis_names": run.task.axis_names}
            for name, table in intervene(part, is_control, config, notes).items():
                tables.setdefault(name, []).append(table)
    raw = {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}
    done: dict[str, pd.DataFrame] = {"runs": pd.DataFrame(accuracy)}
    options: dict[str, Any] = {"n_boot": config.n_boot}
    if "edits" in raw:
        done["edits"] = with_chance(raw["edits"])
        done["follow"] = follow_table(done["edits"], **options)
        own = done["edits"][(done["edits"]["model"] != "trained") | done["edits"]["own"].eq(True)]
        done["follow_steps"] = _summary(own, ["follows"], ["model", "region", "kind", "step"], options)
    if "pairs" in raw:
        done["map"] = raw["map"]
        done["iia"] = iia_table(raw["pairs"], **options)
    if "knockout" in raw:
        done["knockout"] = _summary(raw["knockout"], ["drop", "changed"], ["group", "layer", "head"], options)
    if "rule_edits" in raw:
        done["rule_edits"] = rule_edit_table(raw["rule_edits"], **options)
    if "components" in raw:
        done["components"] = _summary(
            raw["components"], ["logit", "predicted"], ["region", "correct", "component"], options
        )
    if "probes" in raw:
        done["probes"] = probe_summary(raw["probes"], raw["swaps"], raw["ablations"], **options)
    if "follow" in done:
        done["verdict"] = verdict_table(done["follow"], done.get("iia"))
        cells = agreement_cells(done["edits"], raw["behaviour"], removal, notes)
        done["agreement"] = cells
        done["agreement_rates"] = agreement_rates(cells, **options)
    return done, {"squares": squares, "notes": list(dict.fromkeys(notes))}


def _summary(table: pd.DataFrame, values: list[str], by: list[str], options: dict[str, Any]) -> pd.DataFrame:
    """Means of several columns by key, each with its interval."""
    keys = [*SUBJECT, *by]
    out: pd.DataFrame | None = None
    for value in values:
        part = estimate(table, value, keys, **options)
        named = {"estimate": value, "low": f"{value}_low", "high": f"{value}_high"}
        part = part.rename(columns=named)[[*keys, *named.values(), "n", "n_runs"]]
        out = part if out is None else out.merge(part.drop(columns=["n", "n_runs"]), on=keys)
    assert out is not None
    return out


def _bounds(rate: pd.Series, n: pd.Series) -> list[tuple[float, float]]:
    """Wilson's bounds of each rate; (0, 1) where none of the rows could tell."""
    return [wilson(round(r * k) if k else 0, int(k)) for r, k in zip(rate, n, strict=True)]


def with_chance(edits: pd.DataFrame) -> pd.DataFrame:
    """Adds `chance`: how often the given answer is what the rule expects of *another* edit of the same task, run,
    model, region and kind. An answer that takes no notice of its own edit follows this often."""
    chance = np.zeros(len(edits))
    for _, part in edits.groupby(["task", "run", "model", "region", "kind"], sort=False):
        counts = part["expected"].value_counts()
        same = part["answer"].map(counts).fillna(0).to_numpy() - (part["answer"] == part["expected"]).to_numpy()
        chance[edits.index.get_indexer(part.index)] = same / max(len(part) - 1, 1)
    return edits.assign(chance=chance)


def follow_table(edits: pd.DataFrame, **options: Any) -> pd.DataFrame:
    """Follow rates by model, region, kind of element and whether the steps after the edit were seen.

    Of trained models only edits whose text before the element is the model's own; of the controls all.
    `kind` and `seen` are also `all`. Columns: keys, `follows` with bootstrap `low`, `high` and
    `wilson_low`, `wilson_high`, `next_line`, `exact`, `returns`, `breaks` (truncated ones included), `chance`, `n`.
    """
    used = edits[(edits["model"] != "trained") | edits["own"].eq(True)]
    used = used.assign(returns=used["outcome"] == "returns", breaks=used["outcome"].isin(["breaks", "truncated"]))
    parts = [used, used.assign(seen="all"), used.assign(kind="all"), used.assign(kind="all", seen="all")]
    keys = ["model", "region", "kind", "seen"]
    out = _summary(pd.concat(parts), ["follows", "next_line", "exact", "returns", "breaks", "chance"], keys, options)
    out[["wilson_low", "wilson_high"]] = _bounds(out["follows"], out["n"])
    kept = [c for c in out.columns if not c.startswith(("next_line_", "exact_", "returns_", "breaks_", "chance_"))]
    return out[kept].sort_values([*SUBJECT, *keys], kind="stable", ignore_index=True)


def iia_table(pairs: pd.DataFrame, **options: Any) -> pd.DataFrame:
    """Interchange intervention accuracy at the best cell for a source's vectors (chosen on the other half of the
    pairs; the controls at the same cell): how often the rule's prediction comes true, and how often the
    source's own text does, with intervals. `max_effect`: the greatest change of a logit difference by any
    patch of any pair (0 to rounding for `self`)."""
    out = _summary(pairs, ["rule", "source"], ["variable", "region", "vectors"], options)
    out[["rule_wilson_low", "rule_wilson_high"]] = _bounds(out["rule"], out["n"])
    keys = [*SUBJECT, "variable", "region", "vectors"]
    return out.merge(
        pairs.groupby(keys, as_index=False)["effect"].max().rename(columns={"effect": "max_effect"}), on=keys
    )


def rule_edit_table(edits: pd.DataFrame, **options: Any) -> pd.DataFrame:
    """Share of cases that follow the prompt's rule or the trained one, by kind of edit, among the cases for
    which these differ (all cases where the prompt holds no rule, or the trained one)."""
    tells = edits[edits["tells"] | edits["kind"].isin(["unchanged", "removed", "unrelated"])]
    outcomes = {name: (tells["outcome"] == name).astype(float) for name in ("prompt", "trained", "other", "truncated")}
    return _summary(tells.assign(**outcomes), list(outcomes), ["kind", "region"], options)


def probe_summary(right: pd.DataFrame, swaps: pd.DataFrame, ablations: pd.DataFrame, **options: Any) -> pd.DataFrame:
    """Decodability beside use, by site and variable.

    `right`, `selectivity`: of the probe on cases it was not fitted on, by part. `swap`, `swap_pattern`,
    `swap_random`, `swap_whole`: how often the rule's prediction comes true when the probe's subspace, that
    of the class means, a random one of the same size, or the whole activation comes from another case.
    `kept`, `kept_pattern`, `kept_random`: accuracy after ablation. `reading`: `used` (decodable, and the
    interval of either swap above the random one's), `decodable, not used` (decodable, and the swaps'
    intervals less than `MARGIN` above the random one, of those whose positive control works), `not decodable`, or
    `undecided`. Decodable: the selectivity's interval above `MARGIN`. The positive control of a kind of swap: some
    layer at which it exchanges the `answer` in more than half of the pairs (`controls`).
    """
    keys = [*SUBJECT, "site", "variable"]
    out = _summary(right[right["part"] == "train"], ["right", "selectivity"], ["site", "variable"], options)
    held_out = _summary(right[right["part"] == "test"], ["right", "selectivity"], ["site", "variable"], options)
    out = out.merge(held_out[[*keys, "right", "selectivity"]], on=keys, suffixes=("", "_held_out"))
    for table, value, names in (
        (swaps, "rule", {"probe": "swap", "pattern": "swap_pattern", "random": "swap_random", "whole": "swap_whole"}),
        (ablations, "right", {"probe": "kept", "pattern": "kept_pattern", "random": "kept_random"}),
    ):
        for basis, name in names.items():
            part = _summary(table[table["basis"] == basis], [value], ["site", "variable"], options)
            renamed = {value: name, f"{value}_low": f"{name}_low", f"{value}_high": f"{name}_high"}
            out = out.merge(part.rename(columns=renamed)[[*keys, *renamed.values()]], on=keys, how="left")
    works = controls(out)
    out["reading"] = [_reading(row, works[tuple(row[k] for k in SUBJECT)]) for row in out.to_dict("records")]
    return out


SWAPS = ("swap", "swap_pattern")


def controls(probes: pd.DataFrame) -> dict[tuple[str, ...], list[str]]:
    """Kinds of swap that pass their positive control, by subject: after the last layer only the unembedding reads
    the answer, so that a swap which moves what is read has to exchange it there. One that fails shows nothing by
    leaving another variable as it is (a probe's own directions may be such along which activations hardly vary)."""
    out = {}
    for key, part in probes.groupby(SUBJECT, sort=False):
        answers = part[part["variable"] == "answer"]
        out[key] = [name for name in SWAPS if (answers[f"{name}_low"] > 0.5).any()]
    return out  # pyright: ignore[reportReturnType]


def _reading(row: dict[str, Any], works: Sequence[str] = SWAPS) -> str:
    if row["selectivity_high"] < MARGIN:
        return "not decodable"
    if not row["selectivity_low"] > MARGIN:
        return UNDECIDED
    if max(row["swap_low"], row["swap_pattern_low"]) > row["swap_random_high"]:
        return "used"
    failed = bool(works) and all(row[f"{name}_high"] < row["swap_random"] + MARGIN for name in works)
    return "decodable, not used" if failed else UNDECIDED


def verdict_table(follow: pd.DataFrame, iia: pd.DataFrame | None) -> pd.DataFrame:
    """The rule-execution score by subject and region, and what it supports.

    `score`: the follow rate over all kinds of edit, with its interval; `control_high`: the upper end of the
    shuffled-trace control's (NaN without one). With bar = max(chance + `MARGIN`, `control_high`):
    score's interval above 1/2 and above the bar -> "executes its steps"; above the bar -> "uses its steps in
    part"; below chance + `MARGIN` -> "does not use its steps"; otherwise, or with fewer than `MIN_EDITS` edits,
    "undecided". `iia`: interchange intervention accuracy for the carry, where measured.
    """
    whole = follow[(follow["kind"] == "all") & (follow["seen"] == "all")]
    rows = []
    for row in whole[whole["model"] == "trained"].to_dict("records"):
        control = whole[
            (whole["model"] == "shuffled") & (whole["task"] == row["task"]) & (whole["tokenizer"] == row["tokenizer"])
            & (whole["region"] == row["region"])
        ]  # fmt: skip
        if row["format"] != "scratchpad":
            control = control.iloc[:0]
        control_high = float(control["wilson_high"].iloc[0]) if len(control) else np.nan
        bar = float(np.nanmax([row["chance"] + MARGIN, control_high]))
        low, high = min(row["follows_low"], row["wilson_low"]), max(row["follows_high"], row["wilson_high"])
        found = {name: row[name] for name in (*SUBJECT, "region")}
        found |= {"score": row["follows"], "low": low, "high": high, "n": row["n"], "n_runs": row["n_runs"]}
        found |= {"chance": row["chance"], "control_high": control_high, "verdict": _decide(low, high, bar, row)}
        found |= _carry_iia(iia, found)
        rows.append(found)
    columns = [*SUBJECT, "region", "verdict", "score", "low", "high", "n", "n_runs", "chance", "control_high"]
    return pd.DataFrame(rows, columns=[*columns, "iia", "iia_low", "iia_high"])


def _decide(low: float, high: float, bar: float, row: dict[str, Any]) -> str:
    if row["n"] < MIN_EDITS or not np.isfinite([low, high]).all():
        return UNDECIDED
    if low > bar:
        return FOLLOWS if low > 0.5 else PARTLY
    return IGNORES if high < row["chance"] + MARGIN else UNDECIDED


def _carry_iia(iia: pd.DataFrame | None, row: dict[str, Any]) -> dict[str, float]:
    if iia is None:
        return {}
    found = iia[(iia["variable"] == "carry") & (iia["vectors"] == "source")]
    for key in (*SUBJECT, "region"):
        found = found[found[key] == row[key]]
    if found.empty:
        return {}
    first = found.iloc[0]
    low = np.nanmin([first["rule_low"], first["rule_wilson_low"]])  # as the score: the wider of the two intervals
    high = np.nanmax([first["rule_high"], first["rule_wilson_high"]])
    return {"iia": first["rule"], "iia_low": float(low), "iia_high": float(high)}


def agreement_cells(
    edits: pd.DataFrame, behaviour: pd.DataFrame, removal: Sequence[Path], notes: list[str]
) -> pd.DataFrame:
    """One row a subject and edited case: `correct` (share of runs that solve it), `follow` (share of its
    edits that are followed) and `cri` (NaN where no removal index is recorded), each averaged over runs."""
    trained = edits[edits["model"] == "trained"]
    keys = [*SUBJECT, "run", "region", "block", "id", "row", "col"]
    cells = trained.groupby(keys, as_index=False)["follows"].mean().rename(columns={"follows": "follow"})
    solved = behaviour[["run", "id", "correct"]].drop_duplicates(["run", "id"]).astype({"correct": float})
    cells = cells.merge(solved, on=["run", "id"], how="left")
    index = removal_index(removal)
    if index is None:
        notes.append("no recorded table holds a removal index by case: agreement is of two, not three")
        return cells.assign(cri=np.nan)
    shared = [key for key in ("task", "format", "tokenizer", "id") if key in index.columns]
    return cells.merge(index.groupby(shared, as_index=False)["cri"].mean(), on=shared, how="left")


def removal_index(paths: Sequence[Path]) -> pd.DataFrame | None:
    """Removal indices by case from the recorded tables that have them (columns `cri` and `id` or `test_id`)."""
    found = []
    for path in paths:
        table = read_table(path).rename(columns={"test_id": "id"})
        if {"id", "cri"} <= set(table.columns):
            found.append(table)
    return pd.concat(found, ignore_index=True) if found else None


def agreement_rates(cells: pd.DataFrame, **options: Any) -> pd.DataFrame:
    """How often the accounts vote alike, cell by cell: `rule` by behaviour where the case is solved, by its
    steps where at least half of the edits are followed, by removal where CRI < 0."""
    behaviour, steps, removal = cells["correct"] >= 0.5, cells["follow"] >= 0.5, cells["cri"] < 0
    known = cells["cri"].notna()
    votes = {
        "behaviour = steps": (behaviour == steps).astype(float),
        "behaviour = removal": (behaviour == removal).where(known).astype(float),
        "steps = removal": (steps == removal).where(known).astype(float),
        "all three": ((behaviour == steps) & (steps == removal)).where(known).astype(float),
    }
    parts = [cells.assign(which=name, agree=value) for name, value in votes.items() if value.notna().any()]
    return _summary(pd.concat(parts), ["agree"], ["region", "which"], options)
