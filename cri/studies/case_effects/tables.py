"""The tables of `case_effects`, from recorded random halves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cri.data.case_kinds import case_kinds
from cri.data.memberships import ANSWER, Memberships, offsets
from cri.errors import CriError
from cri.statistics.case_effects import Fit, Halves, kind_effects, membership_effects, offset_kernel
from cri.statistics.intervals import Interval
from cri.statistics.readings import (
    ANYWHERE,
    CASES,
    COLUMN,
    MECHANISMS,
    holm,
    mechanism_scores,
    near_sums,
    p_values,
    reading,
    supported,
    z_score,
)
from cri.studies.case_effects.halves import Asked, asked, recorded, untrained
from cri.tasks import PLANTED

CONTROL_BOOT = 300
SHORT_REACH = 12
"""Of kernels that no figure shows."""


def answer_held_fixed(one: Asked) -> Memberships:
    """Memberships among the cases that have the answer asked about: place and step are compared with the answer the
    same, all other training cases being the rest. What no case with the answer can share (an operand) is gone."""
    masks = {name: one.members[name] & one.groups.answer for name in one.members.names}
    masks = {name: mask for name, mask in masks.items() if mask.any()}
    if ANSWER not in masks:
        return Memberships((), np.zeros((0, *one.groups.answer.shape), dtype=bool))
    return Memberships(tuple(masks), np.stack(list(masks.values())))


def exchanged(halves: Halves, seed: int = 0) -> Halves:
    """Outputs of the queries exchanged: every query is asked about with the memberships of another one. Training cases
    keep their places and models their outputs, so that whatever holds for all queries alike is still there."""
    order = np.random.default_rng(seed).permutation(halves.outputs.shape[2])
    return Halves(halves.kept, halves.outputs[:, :, order], halves.blocks)


def verdict_row(fit: Fit) -> dict[str, Any]:
    """What a fit supports: `reading`, `supported` (all mechanisms that survive Holm's correction), and the difference
    of nearby cases and the step with the clearest effect, with its interval."""
    scores = mechanism_scores(fit)
    row: dict[str, Any] = {"reading": reading(scores), "supported": "; ".join(supported(scores)) or "nothing"}
    row["not_told_apart"] = "; ".join(n for n, v in zip(fit.names, fit.vif, strict=True) if v > 10 or " = " in n)
    for name in MECHANISMS:
        value = scores[name].value if name in scores else (np.nan, np.nan, np.nan)
        row |= dict(zip((name, f"{name} low", f"{name} high"), value, strict=True))
    steps = [n for n in sorted(fit.parts) if n.startswith("step ")]
    if CASES in scores and steps and (COLUMN in scores or ANYWHERE in scores):
        step = max(steps, key=lambda n: z_score(fit.interval({n: 1.0})))
        near = near_sums(fit.parts)[0]
        value = fit.interval({**near, step: -1.0})
        ends = {"difference_low": value.low, "difference_high": value.high}
        row |= {"step": step, "near_minus_step": value.estimate, **ends}
    return row


def _rows(one: Asked, fit: Fit, notes: Mapping[str, Any]) -> pd.DataFrame:
    table = fit.table()
    return table.assign(**notes, n_queries=len(one.test_ids), n_subsets=len(one.halves.kept),
                        n_seeds=len(one.halves.outputs))  # fmt: skip


def compute(folder: Path, reach: int, n_boot: int) -> dict[str, pd.DataFrame]:
    """All tables of a bank's folder."""
    parts: dict[str, list[pd.DataFrame]] = {"kernel": [], "kinds": [], "memberships": []}
    verdicts: list[dict[str, Any]] = []
    for base, record in recorded(folder):
        for one in asked(base, record):
            notes = dict(one.names)
            shown = notes["target"] == "reference" and one.task.name not in PLANTED
            far = reach if shown else min(reach, SHORT_REACH)
            kernel = offset_kernel(one.halves, offsets(one.task, one.train_ids, one.test_ids), far)
            parts["kernel"].append(kernel.assign(**notes))
            kinds = case_kinds(one.task, one.names["tokenizer"], one.groups)
            parts["kinds"].append(kind_effects(one.halves, kinds, n_boot).assign(**notes))
            found = {"all cases": one.members, "answer held fixed": answer_held_fixed(one)}
            if notes["target"] != "reference":
                del found["answer held fixed"]
            for which, members in found.items():
                if not len(members.names):
                    continue
                models = {"trained": one.halves}
                if which == "all cases" and notes["target"] == "reference":
                    models["exchanged"] = exchanged(one.halves)
                    models["untrained"] = Halves(one.halves.kept, untrained(record, one.test_ids), one.halves.blocks)
                for model, halves in models.items():
                    fit = membership_effects(
                        halves, members, n_boot if model == "trained" else min(n_boot, CONTROL_BOOT)
                    )
                    mine = {**notes, "cases": which, "model": model}
                    if model == "trained":
                        parts["memberships"].append(_rows(one, fit, mine))
                    size = {"n_queries": len(one.test_ids), "n_seeds": len(halves.outputs),
                            "accuracy": one.accuracy[0], "base_accuracy": one.accuracy[1]}  # fmt: skip
                    verdicts.append({**mine, **verdict_row(fit), **size})
    if not verdicts:
        raise CriError(f"bank: {folder} holds no random halves; python -m cri.studies.retraining_bank makes them")
    tables = {name: pd.concat(tables, ignore_index=True) for name, tables in parts.items()}
    for name in ("kinds", "memberships"):
        tables[name] = corrected(tables[name])
    return {**tables, "verdicts": pd.DataFrame(verdicts)}


FAMILY = ["task", "format", "tokenizer", "target"]


def corrected(table: pd.DataFrame) -> pd.DataFrame:
    """The table with `p` (two-sided, from the interval) and `significant` after Holm's correction over all effects of
    one family and target: every region, split and kind that is printed of it."""
    z = [z_score(Interval(*row)) for row in table[["effect", "low", "high"]].itertuples(index=False)]
    table = table.assign(p=p_values(np.array(z)))
    by = [c for c in (*FAMILY, "cases") if c in table]
    table["significant"] = table.groupby(by, sort=False)["p"].transform(lambda p: holm(p.tolist()))
    return table
