"""Rule edits: another rule in the prompt, the same question. Whose rule does the trace then execute?

What each rule answers comes from running it (`cri.formats.rules.tracer`). Only cases for which the prompt's rule and
the trained one answer differently can tell.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cri.checks import checked
from cri.data.case_ids import check_case_ids
from cri.errors import CriError, unknown_name
from cri.formats.rules.language import Rule, parse_rule
from cri.formats.rules.task_rules import task_rule
from cri.formats.rules.tracer import trace_rule
from cri.formats.traces import join
from cri.interventions.continuations import continuations, encodable
from cri.tasks import Task
from cri.training.runs import Run
from cri.training.setup import Materials

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel

RULE_EDITS = ("unchanged", "base", "constant", "operation", "no_carry", "no_last_carry", "removed", "unrelated")
"""`unchanged` (a control); `base`: another base in every sum; `constant`: every carry starts at 1; `operation`:
the digits are multiplied; `no_carry`: the line that works the carry out is gone; `no_last_carry`: the lines
that write the last carry are gone; `removed`: no rule in the prompt; `unrelated`: the rule's own lines in
reverse order, which are no program."""


@checked
def edited_source(task: Task, kind: str) -> str | None:
    """The source of a task's rule after an edit; None where `kind` does not change this rule.

    Raises `UnknownNameError` for an unknown kind.
    """
    if kind not in RULE_EDITS:
        raise unknown_name("rule_edits", kind, RULE_EDITS)
    source = task_rule(task).rule.source
    base = task_rule(task).base
    lines = source.splitlines()
    match kind:
        case "unchanged":
            return source
        case "base":
            other = 8 if base == 9 else base - 1
            new = re.sub(rf"(total (?:%|//) ){base}\b", rf"\g<1>{other}", source)
        case "constant":
            new = re.sub(r"^(\s*)carry = 0$", r"\1carry = 1", source, flags=re.MULTILINE)
        case "operation":
            new = source.replace("digit1 + digit2", "digit1 * digit2")
        case "no_carry":
            new = "\n".join(line for line in lines if not line.strip().startswith("carry = total"))
        case "no_last_carry":
            new = re.sub(r"^    if carry:\n.*\n", "", source, flags=re.MULTILINE)
        case "removed":
            return ""
        case _:
            return "\n".join(line.strip() for line in reversed(lines))
    return None if new == source else new


@checked
def edit_rules(
    run: Run | Materials,
    case_ids: Sequence[int],
    kinds: Sequence[str] = RULE_EDITS,
    *,
    model: PreTrainedModel | None = None,
) -> pd.DataFrame:
    """Asks each case with an edited rule in the prompt; one row a case and kind.

    Returns:
        `id, a, b, row, col, train, kind`, `encodable` (whether the tokenizer can write the edited rule:
        one that knows whole code lines cannot write new ones; such a kind has one row without a case),
        `expected` (the prompt's rule's answer; empty where it gives none), `trained` (the trained rule's),
        `tells` (whether these differ), `answer`, `outcome`: `prompt`, `trained`, `truncated`, `other`;
        where the rules agree, or the prompt holds none, `trained` takes precedence.

    Raises `CriError` for a format that shows no rule.
    """
    import pandas as pd

    if run.format.name != "rfft":
        raise CriError(f"format: {run.format.name} has no rule in its prompt; use rfft")
    task, rows = run.task, []
    case_ids = check_case_ids(list(case_ids), task.n_cases).tolist()
    starts, prompts, owners = [], [], []
    trained_rule = task_rule(task)
    for kind in kinds:
        source = edited_source(task, kind)
        if source is None:
            continue
        rule = None if kind in ("removed", "unrelated") else parse_rule(source)
        if not encodable(run.tokenizer, source):
            rows.append({"kind": kind, "encodable": False})
            continue
        for case in case_ids:
            a, b = task.operands[case]
            expected, text = _run(task, rule, a, b)
            row = {
                "id": int(case), "a": a, "b": b,
                "row": int(task.coords[case, 0]), "col": int(task.coords[case, 1]),
                "train": bool(run.split.train[case]), "kind": kind, "encodable": True,
                "expected": expected or "", "trained": task.answer(a, b),
            }  # fmt: skip
            owners.append(row)
            rows.append(row)
            # the reference completion only says how long an answer is; nothing of it is given
            own = trained_rule.run(a, b).text
            starts.append((int(case), text if len(text) > len(own) and encodable(run.tokenizer, text) else own, 0))
            shown = f"{source}\n" if source else ""
            prompts.append(run.format.prompt(task, a, b).replace(f"{trained_rule.rule.source}\n", shown))
    for row, (text, done) in zip(owners, continuations(run, starts, model, prompts), strict=True):
        answer = run.format.read_answer(task, text) if done else None
        row["answer"] = answer or ""
        row["tells"] = row["expected"] != "" and row["expected"] != row["trained"]
        row["outcome"] = (
            "trained" if answer == row["trained"]
            else "prompt" if answer and answer == row["expected"]
            else "other" if done else "truncated"
        )  # fmt: skip
    return pd.DataFrame(rows)


def _run(task: Task, rule: Rule | None, a: int, b: int) -> tuple[str | None, str]:
    """The answer and trace of an edited rule; none where it has none (or runs astray on this case)."""
    if rule is None:
        return None, ""
    try:
        trace = trace_rule(rule, *task_rule(task).arguments(a, b), max_steps=2000)
    except CriError:
        return None, ""
    text = join(trace.lines)
    return task_rule(task).read_answer(text.rpartition("\n")[2]), text
