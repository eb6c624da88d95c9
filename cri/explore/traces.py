"""The traces of a run on a page: lines and elements, where each step was trained, which training steps lie nearest to
it inside the model, and what the model writes after an edit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from cri.attribution.neighbors import nearest
from cri.data.step_places import places
from cri.errors import CriError
from cri.evaluation.scoring import step_text
from cri.formats.traces import Edit, TraceLine
from cri.interventions.continuations import encodable
from cri.interventions.edits import CaseEdit, alternatives, check_text, element_kind, step_edits, written_trace
from cri.interventions.stated_edits import base_of
from cri.models.activations import Site, collect, residual_sites
from cri.training.runs import Run

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

EDITED = 24
"""Cases whose edits are computed beforehand, each element of them once."""
NEAREST_STEPS = 10
_KEPT = ("id", "line", "element", "old", "new", "expected", "unedited", "answer", "outcome", "text")


def traces(
    run: Run, cases: Int[np.ndarray, " case"], bridge: TransformerBridge, untrained: TransformerBridge
) -> dict[str, Any]:
    """Traces of the explained cases, as JSON.

    `traces`: by case, its reference lines with their elements and the model's own text. `near`: by case and line, the
    training steps whose activations after the last layer, where the step's result is predicted, are the most similar
    by cosine, of the trained and of the untrained model, as [case, line, cosine]. `steps`: by case and line, each of
    these steps with its column. `edits`: what the model writes after one element of some cases was changed.
    """
    units = places(run, "step:all")
    of_cases = units[units["case"].isin(cases)]
    by_line = {(r.case, r.line): r for r in of_cases.itertuples()}
    found = {}
    for case in cases.tolist():
        lines = run.format.trace(run.task, *run.task.operands[case])
        found[case] = {
            "lines": [_line(line, by_line.get((case, i))) for i, line in enumerate(lines)],
            "written": str(run.predictions["completion"][case]),
        }
    near, listed = _nearest_steps(run, units, cases, {"own": bridge, "untrained": untrained})
    steps: dict[int, dict[int, str]] = {}
    for case, line, text in listed:
        steps.setdefault(case, {})[line] = text
    chosen = np.unique(cases[np.linspace(0, len(cases) - 1, min(EDITED, len(cases))).astype(int)])
    edits = every_edit(run, chosen)
    rows = step_edits(run, edits)[list(_KEPT)].to_dict("records") if edits else []
    return {
        "traces": found, "near": near, "steps": steps, "edited": chosen.tolist(),
        "edits": [{k: int(v) if k in ("id", "line") else str(v) for k, v in row.items()} for row in rows],
    }  # fmt: skip


def _line(line: TraceLine, unit: Any) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "text": line.text.rstrip("\n"),
        "elements": {e: [s - line.start, t - line.start] for e, (s, t) in line.elements.items()},
    }
    if unit is not None:
        shown |= {
            "step": step_text(line.step), "column": int(unit.column), "trained": int(unit.seen),
            "in_column": int(unit.seen_in_column),
        }  # fmt: skip
    return shown


def _nearest_steps(
    run: Run, units: pd.DataFrame, cases: Int[np.ndarray, " case"], bridges: dict[str, TransformerBridge]
) -> tuple[dict[str, Any], list[tuple[int, int, str]]]:
    train, test = units["train"].to_numpy(), units["case"].isin(cases).to_numpy()
    case, line = units["case"].to_numpy(), units["line"].to_numpy()
    near: dict[str, Any] = {}
    rows: set[int] = set()
    for role, bridge in bridges.items():
        site = Site(residual_sites(bridge)[-1].hook, "step:all")
        acts = collect(bridge, run.tokens, [site], traces=run)[site]
        found, scores = nearest(acts[train], acts[test], min(NEAREST_STEPS, int(train.sum())))
        found = np.flatnonzero(train)[found]
        rows |= set(found.ravel().tolist())
        for unit, ids, values in zip(np.flatnonzero(test).tolist(), found.tolist(), scores.tolist(), strict=True):
            near.setdefault(str(case[unit]), {}).setdefault(str(line[unit]), {})[role] = [
                [int(case[i]), int(line[i]), round(x, 4)] for i, x in zip(ids, values, strict=True)
            ]
    described = units.iloc[sorted(rows)]
    return near, [(int(r.case), int(r.line), _unit_text(r)) for r in described.itertuples()]


def _unit_text(row: Any) -> str:
    x, y = ("-" if digit < 0 else int(digit) for digit in (row.x, row.y))
    place = ("units", "tens", "hundreds", "thousands")[row.column] if 0 <= row.column < 4 else "no column"
    return f"{row.op}({x},{y},{int(row.carry)}), {place}"


def every_edit(run: Run, cases: Int[np.ndarray, " case"]) -> list[CaseEdit]:
    """One edit of every element of each case that can hold something else such that the rule's answer changes."""
    out = []
    for case in cases.tolist():
        rule, (a, b) = written_trace(run.task, run.format, case)
        base = base_of(run.task, a)
        lines = rule.trace(run.task, a, b)
        right = rule.read_answer(run.task, "".join(line.text for line in lines))
        for i, line in enumerate(lines[:-1]):
            for name, (start, stop) in line.elements.items():
                if element_kind(run.task, line, name) is None:
                    continue
                for text in alternatives(line, name, line.text[start - line.start : stop - line.start], base):
                    edit = Edit(i, name, text)
                    if _possible(lines, edit, base) and _tells(run, rule, (a, b), edit, right):
                        out.append(CaseEdit(case, edit))
                        break
    return out


def _possible(lines: Sequence[TraceLine], edit: Edit, base: int) -> bool:
    """Whether the operation can give what the edit writes."""
    try:
        check_text(lines, edit, base)
    except CriError:
        return False
    return True


def _tells(run: Run, rule: Any, operands: tuple[int, int], edit: Edit, right: str | None) -> bool:
    """Whether the rule answers otherwise after the edit, in words that the model can write."""
    try:
        text = "".join(line.text for line in rule.trace(run.task, *operands, edit))
    except CriError:  # a legal text after which the rule cannot run on
        return False
    return rule.read_answer(run.task, text) not in (None, right) and encodable(run.tokenizer, text)
