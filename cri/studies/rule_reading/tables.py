"""What a run answers about stated rules: accuracy by group of rules, edits, attention cut off, residuals exchanged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cri.evaluation.decoding import decode
from cri.formats.traces import TraceLine, join
from cri.interventions.stated_rules import (
    Asked,
    Queries,
    RuleQuestion,
    ask,
    cut_hooks,
    edited_questions,
    fresh_lists,
    outcomes,
    patch_hooks,
    stated_task,
    token_table,
)
from cri.statistics import wilson
from cri.studies.rule_reading.config import MAIN
from cri.tasks.list_rules import all_rules

if TYPE_CHECKING:
    import pandas as pd

    from cri.data.token_table import TokenTable
    from cri.training.runs import Run

Case = tuple[int, int]


def key_of(run: Run) -> dict[str, Any]:
    """The columns that tell a run's rows apart: what its prompts show, number of training rules, seed."""
    return {"shown": run.config.format, "rules": stated_task(run).rules, "seed": run.config.seed}


def share(name: str, hits: Sequence[bool] | np.ndarray) -> dict[str, Any]:
    """`n`, and a share with the ends of Wilson's interval."""
    n, k = len(hits), int(np.sum(hits))
    low, high = wilson(k, n)
    return {"n": n, name: k / n if n else np.nan, "low": low, "high": high}


def decoded_texts(run: Run, tokens: TokenTable) -> list[tuple[str, bool]]:
    """What greedy decoding writes behind each prompt, and whether it ended."""
    done = decode(run.model, tokens)
    texts = run.tokenizer.batch_decode([row[:n] for row, n in zip(done.ids, done.lengths, strict=True)])
    return list(zip(texts, done.finished.tolist(), strict=True))


def first_wrong_element(lines: Sequence[TraceLine], text: str) -> str:
    """The element of a trace from which a text first deviates: its name, or `end` where none is left."""
    reference = join(lines)
    differ = (i for i, (x, y) in enumerate(zip(reference, text, strict=False)) if x != y)
    place = next(differ, min(len(reference), len(text)))
    longer = text[place : place + 1].isdigit()
    for line in lines:
        for name, (_, stop) in line.elements.items():
            if place < stop or (place == stop and longer):
                return "item" if name.startswith("item") else name
    return "end"


def accuracy_tables(run: Run, per_rule: int) -> dict[str, pd.DataFrame]:
    """Questions about fresh lists, decoded from their prompts.

    Returns:
        `accuracy`: by group of rules, `n` questions about `n_rules` rules, the share with the right result (`right`
        with Wilson's interval; questions about one rule are no independent draws), with the right trace (`whole`), and
        of rules with every result right (`rules_right`). `by_rule`: by rule. `errors`: by group and element of the
        trace that is first wrong.
    """
    import pandas as pd

    task, key = stated_task(run), key_of(run)
    accuracy, by_rule, errors = [], [], []
    for group, rules in task.asked.items():
        cases = fresh_lists(run, rules, max(per_rule, -(-100 // len(rules))))
        texts = decoded_texts(run, token_table(run, cases, cases))
        readings = [run.format.read(task, *c, t, finished=f) for c, (t, f) in zip(cases, texts, strict=True)]
        right = np.array([r.status == "right" for r in readings])
        whole = np.array([r.first_deviation is None and r.status == "right" for r in readings])
        numbers = np.array([rule for rule, _ in cases])
        all_right = [right[numbers == rule].all() for rule in rules]
        accuracy.append(
            {**key, "group": group, **share("right", right), "whole": whole.mean(), "n_rules": len(rules),
             "rules_right": np.mean(all_right)}
        )  # fmt: skip
        for rule in rules:
            parts = {name: getattr(all_rules()[rule], name) for name in ("operation", "base", "start")}
            hits = right[numbers == rule]
            by_rule.append({**key, "group": group, "rule": rule, **parts, "n": len(hits), "n_right": int(hits.sum())})
        wrong = [
            first_wrong_element(run.format.trace(task, *case), text)
            for case, (text, _), ok in zip(cases, texts, whole, strict=True)
            if not ok
        ]
        errors += [{**key, "group": group, "element": e, "n": n} for e, n in pd.Series(wrong).value_counts().items()]
    named = (("accuracy", accuracy), ("by_rule", by_rule), ("errors", errors))
    return {name: pd.DataFrame(rows) for name, rows in named}


def edit_table(run: Run, questions: Sequence[RuleQuestion]) -> pd.DataFrame:
    """Whose result is decoded after the prompt of the edited rule: by kind of edit and group of the new rule, `follows`
    (the new rule's, with Wilson's interval), `keeps` (the old one's), `neither`."""
    import pandas as pd

    task = stated_task(run)
    tokens = token_table(run, [(q.new, q.lists) for q in questions], [(q.new, q.lists) for q in questions])
    rows = []
    for q, (text, finished) in zip(questions, decoded_texts(run, tokens), strict=True):
        answer = run.format.read_answer(task, text) if finished else None
        follows, keeps = (answer == task.answer(rule, q.lists) for rule in (q.new, q.old))
        rows.append({"kind": q.kind, "group": q.group, "follows": follows, "keeps": keeps})
    asked = pd.DataFrame(rows)
    out = []
    known = asked[~asked["kind"].str.startswith("new_")]
    for kind, part in [("all known values", known), *asked.groupby("kind", sort=False)]:
        for group, own in [("all", part), *part.groupby("group", sort=False)]:
            if len(own):
                keeps = own["keeps"].mean()
                shares = share("follows", own["follows"].to_numpy())
                rest = {"keeps": keeps, "neither": 1 - keeps - shares["follows"]}
                out.append({**key_of(run), "kind": kind, "group": group, **shares, **rest})
    return pd.DataFrame(out)


def _shares(new: torch.Tensor, old: torch.Tensor) -> dict[str, Any]:
    return {**share("follows", new.numpy()), "keeps": float(old.float().mean())}


def _by_kind(questions: Sequence[RuleQuestion]) -> list[tuple[str, np.ndarray]]:
    kinds = np.array([q.kind for q in questions])
    return [("all", np.arange(len(kinds))), *((kind, np.flatnonzero(kinds == kind)) for kind in dict.fromkeys(kinds))]


def knockout_table(run: Run, questions: Sequence[RuleQuestion], asked: Asked) -> pd.DataFrame:
    """Whole traces written after the edited prompt while attention to one token of the rule is cut: the edited one, or
    (control) that of the next part; from every later token, or from those that predict the trace."""
    import pandas as pd

    arms: list[tuple[str, Queries | None]] = [
        ("none", None), ("edited", "later"), ("edited", "trace"), ("another", "later"), ("another", "trace"),
    ]  # fmt: skip
    rows = []
    for span, queries in arms:
        places = asked.places if span == "edited" else asked.others

        def hooks(tokens: TokenTable, trace: str, places: Any = places, queries: Any = queries) -> list[Any]:
            return [] if queries is None else cut_hooks(run.bridge, tokens, places, queries)

        new, old = outcomes(run.bridge, asked, "new", hooks)
        for kind, index in _by_kind(questions):
            where = {"kind": kind, "cut": span, "from": queries or ""}
            rows.append({**key_of(run), **where, **_shares(new[index], old[index])})
    return pd.DataFrame(rows)


def interchange_table(run: Run, questions: Sequence[RuleQuestion], asked: Asked) -> pd.DataFrame:
    """Whole traces written after the *old* prompt, its residuals before a layer replaced by those of the new prompt: at
    the edited token, at the next part's (control), at all tokens of the prompt behind the edited one."""
    import pandas as pd

    rows = []
    sources = {trace: asked.tables["new", trace] for trace in ("new", "old")}
    for layer in range(run.bridge.cfg.n_layers):
        for site in ("edited", "another", "behind"):

            def hooks(tokens: TokenTable, trace: str, layer: int = layer, site: str = site) -> list[Any]:
                pos = torch.arange(tokens.ids.shape[1])
                if site == "behind":
                    mask = (pos > asked.places[:, None]) & (pos < tokens.prompt_lengths[:, None])
                else:
                    mask = pos == (asked.places if site == "edited" else asked.others)[:, None]
                return patch_hooks(run.bridge, sources[trace], mask, layer)

            new, old = outcomes(run.bridge, asked, "old", hooks)
            for kind, index in _by_kind(questions):
                where = {"kind": kind, "site": site, "layer": layer}
                rows.append({**key_of(run), **where, **_shares(new[index], old[index])})
    return pd.DataFrame(rows)


def run_tables(run: Run, per_rule: int, kinds: Sequence[str], n_edits: int) -> dict[str, pd.DataFrame]:
    """All tables of one run; what needs a token for each part only where the prompt states the rule."""
    tables = accuracy_tables(run, per_rule)
    questions = edited_questions(run, kinds, n_edits)
    tables["edits"] = edit_table(run, questions)
    if run.config.format == MAIN:
        known = [q for q in questions if not q.kind.startswith("new_")]
        if known:
            asked = ask(run, known)
            tables["knockout"] = knockout_table(run, known, asked)
            tables["interchange"] = interchange_table(run, known, asked)
    return tables
