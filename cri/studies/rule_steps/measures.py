"""The interventions of `rule_steps` on one run: tables with one row an edit, a pair, a case."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
from jaxtyping import Int

from cri import interventions as iv
from cri.errors import CriError
from cri.models.activations import residual_sites
from cri.models.loading import to_bridge
from cri.statistics import grid_blocks, wilson
from cri.studies.rule_steps.parts import Part, answered, solved_cases
from cri.tasks import Task
from cri.training.runs import Run

if TYPE_CHECKING:
    from cri.studies.rule_steps.config import RuleSteps

LONG = 96
"""Longer sequences (a rule's traces) are patched at their last 64 positions only, with a quarter of the pairs."""


def accuracy_row(run: Run) -> dict[str, object]:
    """What the run answers, for the table of runs."""
    test = run.predictions[~run.predictions["train"]]
    return {
        "task": run.config.task, **_keys(run), "seed": run.config.seed, "run": run.path.name,
        "train_accuracy": run.predictions.loc[run.predictions["train"], "correct"].mean(),
        "test_accuracy": test["correct"].mean(), "truncated": int((run.predictions["status"] == "truncated").sum()),
    }  # fmt: skip


def _keys(run: Run) -> dict[str, str]:
    return {"format": run.config.format, "tokenizer": run.config.tokenizer}


def regions(
    run: Run, n: int, seed: int = 0, held_out: Int[np.ndarray, " case"] | None = None
) -> dict[str, Int[np.ndarray, " case"]]:
    """Up to `n` held-out cases (of those given, or of all), and for each a training case whose rule takes as many steps
    with the same carries (as many steps where there is none)."""
    rng = np.random.default_rng(seed)
    inside = np.sort(rng.permutation(run.split.test_ids if held_out is None else held_out)[:n])
    pools: dict[tuple[object, ...], list[int]] = {}
    for case in rng.permutation(run.split.train_ids).tolist():
        steps = run.task.case_steps[case]
        pools.setdefault(tuple(s.carry for s in steps), []).append(case)
        pools.setdefault((len(steps), "steps"), []).append(case)
    outside: dict[int, None] = {}
    for case in inside.tolist():
        steps = run.task.case_steps[case]
        for key in (tuple(s.carry for s in steps), (len(steps), "steps")):
            match = next((c for c in pools.get(key, []) if c not in outside), None)
            if match is not None:
                outside[match] = None
                break
    return {"inside": inside, "outside": np.array(sorted(outside), dtype=np.int64)}


def _placed(table: pd.DataFrame, run: Run) -> pd.DataFrame:
    """A table of cases with the columns that estimates need."""
    ids = table["id"].to_numpy(dtype=np.int64)
    return table.assign(
        **_keys(run), seed=run.config.seed, run=run.path.name,
        region=np.where(run.split.train[ids], "outside", "inside"), block=_blocks(run.task, run.split.train, ids),
    )  # fmt: skip


def _blocks(task: Task, train: np.ndarray, ids: Int[np.ndarray, " case"]) -> Int[np.ndarray, " case"]:
    blocks = np.zeros(len(ids), dtype=np.int64)
    for inside in (True, False):
        chosen = train[ids] != inside
        blocks[chosen] = grid_blocks(task, ids[chosen])
    return blocks


def intervene(part: Part, is_control: bool, config: RuleSteps, notes: list[str]) -> dict[str, pd.DataFrame]:
    """Every intervention that the run's format allows, as tables by name; what could not be done goes to `notes`."""
    found = _interventions(part, is_control, config, notes)
    return {name: table.assign(task=part.label) for name, table in found.items() if len(table)}


def _interventions(part: Part, is_control: bool, config: RuleSteps, notes: list[str]) -> dict[str, pd.DataFrame]:
    n = config.n_cases if part.run.config.format != "rfft" else max(2, config.n_cases // 4)
    by_region = regions(part.run, n, held_out=part.held_out)
    cases = np.concatenate(list(by_region.values()))
    run = answered(part.run, cases)
    out: dict[str, pd.DataFrame] = {"behaviour": _placed(run.predictions[["id", "row", "col", "correct"]], run)}
    if run.config.format != "direct":
        out["edits"] = _edits(run, cases, is_control, part.first, config)
    if not part.first:
        return out
    if is_control:
        right = run.predictions.loc[run.predictions["train"], "correct"].mean()
        notes.append(f"{run.path.name}: the control answers {right:.2f} of its training cases right")
        return out
    if run.config.format == "rfft":
        out["rule_edits"] = _rule_edits(run, cases[:: max(1, len(cases) // 40)], notes)
    solved = solved_cases(run)
    if solved.sum() < 2:
        notes.append(f"{run.path.name}: solves {solved.sum()} cases, none to exchange activations between")
        return out
    out |= _interchange(run, solved, config, notes)
    if run.config.format == "direct":
        out |= _direct(run, cases, solved, config, notes)
    else:
        out["knockout"] = _knockout(run, cases[solved[cases]][: config.n_pairs], notes)
    return out


def _edits(
    run: Run, cases: Int[np.ndarray, " case"], is_control: bool, with_untrained: bool, config: RuleSteps
) -> pd.DataFrame:
    edits = iv.sample_edits(
        run.task, run.format, cases.tolist(), config.elements, step=config.edit_step, tokenizer=run.tokenizer
    )
    if not edits:
        raise CriError(f"elements: no trace of {run.path.name} holds {', '.join(config.elements)} to edit")
    parts = [iv.step_edits(run, edits).assign(model="shuffled" if is_control else "trained")]
    if not is_control and with_untrained and run.config.seed == 0:
        # it never ends a text, so a rule's long traces are few
        few = edits if run.tokens.ids.shape[1] <= LONG else edits[::5]
        parts.append(iv.step_edits(run, few, model=run.untrained()).assign(model="untrained"))
    table = pd.concat(parts, ignore_index=True).drop(columns=["text", "expected_text"])
    table["seen"] = table["seen"].map({True: "seen", False: "unseen"}).fillna("unknown")
    return _placed(table, run)


def _rule_edits(run: Run, cases: Int[np.ndarray, " case"], notes: list[str]) -> pd.DataFrame:
    table = iv.edit_rules(run, cases.tolist())
    missing = table.loc[~table["encodable"], "kind"].unique()
    if len(missing):
        notes.append(f"{run.path.name}: its tokenizer cannot write the edited rules {', '.join(missing)}")
    return _placed(table[table["encodable"]], run)


def _interchange(run: Run, solved: np.ndarray, config: RuleSteps, notes: list[str]) -> dict[str, pd.DataFrame]:
    """Maps (means by cell) and one row a pair with the cross-fitted outcome, for every variable and control."""
    rng = np.random.default_rng(0)
    sources = np.sort(rng.permutation(np.flatnonzero(solved & run.split.train))[:1000])
    untrained = run.untrained() if run.config.seed == 0 else None
    maps, rows = [], []
    for variable in iv.VARIABLES if run.config.format != "rfft" else iv.VARIABLES[:2]:
        for region, mask in (("inside", run.split.test), ("outside", run.split.train)):
            bases = np.sort(rng.permutation(np.flatnonzero(solved & mask))[: 4 * config.n_pairs])
            try:
                n = config.n_pairs if run.tokens.ids.shape[1] <= LONG else max(2, config.n_pairs // 4)
                pairs = iv.make_pairs(run, variable, bases.tolist(), sources.tolist(), n=n)
            except CriError as error:
                notes.append(f"{run.path.name}, {region}: {error}")
                continue
            models: dict[str, tuple[Any, Any, iv.Pairs, str]] = {
                "source": (run.model, run.bridge, pairs, "source"),
                "random": (run.model, run.bridge, pairs, "random"),
                "self": (run.model, run.bridge, pairs.self_pairs(), "source"),
            }
            if untrained is not None:
                models["untrained"] = (untrained, to_bridge(untrained, run.tokenizer), pairs, "source")
            cells: iv.PatchMap | None = None
            for name, (model, bridge, chosen, vectors) in models.items():
                positions = range(0 if pairs.read < LONG else pairs.read - 63, pairs.read + 1)
                found = iv.patch_map(model, bridge, chosen, positions=positions, vectors=cast("Any", vectors))
                cells = found if name == "source" else cells
                if name == "source":
                    table = found.table().assign(variable=variable, element=pairs.element)
                    table["token"] = table["token"].str.replace("\n", "↵")
                    table[["low", "high"]] = [
                        wilson(round(r * n), n) for r, n in zip(table["rule"], table["n"], strict=True)
                    ]
                    maps.append(table.assign(**_keys(run), seed=run.config.seed, region=region))
                rows.append(
                    pd.DataFrame(
                        {
                            "id": pairs.base_cases,
                            "source_id": pairs.source_cases,
                            "variable": variable,
                            "vectors": name,
                            "rule": found.cross_fitted("rule", cells),
                            "source": found.cross_fitted("source", cells),
                            "effect": np.abs(found.effect("toward_rule")).max(axis=(0, 1)),
                        }
                    )
                )
    if not rows:
        return {}
    return {"map": pd.concat(maps, ignore_index=True), "pairs": _placed(pd.concat(rows, ignore_index=True), run)}


def _knockout(run: Run, cases: Int[np.ndarray, " case"], notes: list[str]) -> pd.DataFrame:
    try:
        return _placed(iv.attention_knockout(run.bridge, iv.step_tokens(run, cases.tolist(), step=2)), run)
    except CriError as error:
        notes.append(f"{run.path.name}, knockout: {error}")
        return pd.DataFrame()


def _direct(
    run: Run, cases: Int[np.ndarray, " case"], solved: np.ndarray, config: RuleSteps, notes: list[str]
) -> dict[str, pd.DataFrame]:
    parts, worst = iv.logit_attribution(run, cases)
    notes.append(f"{run.path.name}: contributions of components add up to the logits within {worst:.1e}")
    out = {"components": _placed(parts, run)}
    sites = residual_sites(run.bridge)
    try:
        right, probes = iv.probe_table(run, sites, run.bridge)
    except CriError as error:
        notes.append(f"{run.path.name}, probes: {error}")
        return out
    out["probes"] = _placed(right, run)
    swaps, ablations = [], []
    pool = np.flatnonzero(solved)
    asked = np.sort(np.random.default_rng(0).permutation(pool)[: 5 * config.n_pairs])
    for (site_name, variable), probe in probes.items():
        site = next(s for s in sites if str(s) == site_name)
        bases = {"probe": probe.basis, "pattern": probe.pattern, "random": iv.random_basis(*probe.pattern.shape)}
        for name, basis in bases.items():
            kept = iv.ablate(run.bridge, run, asked, site, basis)
            ablations.append(
                pd.DataFrame({"site": site_name, "variable": variable, "basis": name, "id": asked, "right": kept})
            )
        try:
            pairs = iv.swap_pairs(run, variable, pool, n=config.n_pairs)
        except CriError as error:
            notes.append(f"{run.path.name}, {variable}: {error}")
            continue
        import torch

        for name, basis in {**bases, "whole": None}.items():
            found = iv.patch_map(
                run.model, run.bridge, pairs, sites=[site.hook], positions=[pairs.read],
                basis=None if basis is None else torch.from_numpy(basis).float(),
            )  # fmt: skip
            swaps.append(
                pd.DataFrame(
                    {"site": site_name, "variable": variable, "basis": name, "id": pairs.base_cases,
                     "rule": found.values["rule"][0, 0], "source": found.values["source"][0, 0]}
                )
            )  # fmt: skip
    out["ablations"] = _placed(pd.concat(ablations, ignore_index=True), run)
    if swaps:
        out["swaps"] = _placed(pd.concat(swaps, ignore_index=True), run)
    return out
