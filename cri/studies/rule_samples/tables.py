"""Copies of a model trained on k samples of one new rule each, and what they answer about fresh lists."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cri.config import TrainConfig
from cri.errors import CriError, out_of_range
from cri.evaluation.decoding import decode
from cri.interventions.stated_rules import stated_task, token_table
from cri.statistics import estimate, wilson
from cri.tasks.list_rules import all_rules
from cri.tasks.many_rules import ManyRules, most_lists, sample_lists
from cri.training.trainer import Trainer

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel

    from cri.studies.rule_samples.config import RuleSamples
    from cri.training.runs import Run

Case = tuple[int, int]
ALL = "all"


def new_rules(task: ManyRules, group: str, n: int, seed: int) -> list[int]:
    """Numbers of `n` rules of a held-out group, drawn with `seed`; the first of many are those of few. Raises
    `CriError` where the group has fewer."""
    rules = task.asked[group]  # pyright: ignore[reportArgumentType]
    if n > len(rules):
        raise out_of_range("rules", n, f"at most {len(rules)}, as many as group {group} has")
    return random.Random(f"new rules {seed} {group}").sample(rules, len(rules))[:n]


def cases_of(task: ManyRules, rule: int, tests: int, samples: int, seed: int) -> tuple[list[Case], list[Case]]:
    """Questions about one rule that test, and those that train; no list is in both."""
    room = most_lists(task.digits)
    if tests + samples > room:
        raise out_of_range("samples", samples, f"at most {room - tests} beside {tests} tests of these lists")
    lists = sample_lists(tests + samples, task.digits, f"samples {seed} {rule}")
    cases = [(rule, b) for b in lists]
    # the tests are drawn from all lists: the first ones are short more often
    random.Random(f"tests {seed} {rule}").shuffle(cases)
    return cases[:tests], cases[tests:]


def tuned(
    run: Run, model: PreTrainedModel, cases: Sequence[Case], config: TrainConfig
) -> tuple[PreTrainedModel, float]:
    """A copy of `model`, trained on questions about a rule, and its loss in about the last tenth of the steps; the copy
    as it is for no cases."""
    own = copy.deepcopy(model)
    if not cases:
        return own.eval(), np.nan
    losses: list[float] = []
    trainer = Trainer(own, token_table(run, cases, cases), np.arange(len(cases)), config, way="plain")
    trainer.run(config.steps, log_every=max(1, config.steps // 10), on_log=lambda p: losses.append(p.loss))
    trainer.release()
    return own, losses[-1]


def n_right(run: Run, model: PreTrainedModel, cases: Sequence[Case]) -> int:
    """Right results among questions, decoded greedily from their prompts."""
    done = decode(model, token_table(run, cases, cases))
    texts = run.tokenizer.batch_decode([row[:n] for row, n in zip(done.ids, done.lengths, strict=True)])
    readings = [
        run.format.read(run.task, *case, text, finished=bool(ended))
        for case, text, ended in zip(cases, texts, done.finished, strict=True)
    ]
    return sum(reading.status == "right" for reading in readings)


def fits(run: Run, config: RuleSamples, control: bool) -> Iterator[dict[str, Any]]:
    """One row a new rule and number of samples: a copy of the run's model, or with `control` of the untrained one that
    it started from."""
    task = stated_task(run)
    model = run.untrained() if control else run.model
    arm = {"trained_on": 0 if control else task.rules, "seed": run.config.seed}
    most = config.samples[-1]
    asked = [(k, config.steps) for k in config.samples]
    if control:
        asked += [(k, config.long_steps) for k in config.long_samples]
    for group in config.groups:
        for rule in new_rules(task, group, config.control_rules if control else config.rules, config.seed):
            tests, samples = cases_of(task, rule, config.tests, most, config.seed)
            parts = all_rules()[rule]
            named = {"group": group, "rule": rule, "operation": parts.operation, "base": parts.base}
            for k, steps in asked:
                own, loss = tuned(run, model, samples[:k], config.optimisation(not control, steps))
                found = {"loss": loss, "n": len(tests), "right": n_right(run, own, tests) / len(tests)}
                yield {**arm, **named, "samples": k, "steps": steps, **found}


def learning_curves(rows: pd.DataFrame) -> pd.DataFrame:
    """Share of right results by arm, group of rules (`all`: all of them), steps and number of samples: `right`, with
    `low` and `high`, the wider of a bootstrap over rules and Wilson's interval over questions; `n` questions about
    `n_rules`."""
    import pandas as pd

    keys = ["trained_on", "seed", "group", "steps", "samples"]
    both = pd.concat([rows, rows.assign(group=ALL)], ignore_index=True)
    table = estimate(both.assign(run="", block=both["rule"]), "right", keys)
    hits = both.assign(hits=(both["right"] * both["n"]).round()).groupby(keys, sort=False)[["hits", "n"]].sum()
    table["n_rules"] = table.pop("n")
    table["n"] = hits["n"].to_numpy()
    ends = [wilson(int(k), int(n)) for k, n in hits.itertuples(index=False)]
    table["low"] = np.fmin(table["low"], [low for low, _ in ends])
    table["high"] = np.fmax(table["high"], [high for _, high in ends])
    return table.rename(columns={"estimate": "right"})[[*keys, "right", "low", "high", "n", "n_rules"]]


def samples_needed(rows: pd.DataFrame, target: float) -> pd.DataFrame:
    """By arm, group of rules, rule and steps, the fewest samples (of those tried) from which on at least `target` is
    right, `needed`; none where the most samples do not suffice."""
    import pandas as pd

    out = []
    keys = ["trained_on", "seed", "group", "rule", "steps"]
    for key, part in rows.sort_values("samples").groupby(keys, sort=False):
        short = part.loc[part["right"] < target, "samples"]
        enough = part["samples"] if short.empty else part.loc[part["samples"] > short.max(), "samples"]
        needed = np.nan if enough.empty else int(enough.iloc[0])
        out.append({**dict(zip(keys, key, strict=True)), "needed": needed, "most": int(part["samples"].max())})
    return pd.DataFrame(out)


def check_runs(runs: Sequence[Run], groups: Sequence[str]) -> None:
    """Raises `CriError` for a run whose prompts state no rule, and for runs that cannot be asked the same: about other
    lists, or with other held-out rules."""
    for run in runs:
        if run.config.format != "stated_rule":
            raise CriError(f"use: {run.path.name} has the format {run.config.format}; must be stated_rule")
        own, first = stated_task(run), stated_task(runs[0])
        if own.digits != first.digits or any(own.asked[g] != first.asked[g] for g in groups):  # pyright: ignore[reportArgumentType]
            raise CriError(f"use: {run.path.name} has other lists or other held-out rules than {runs[0].path.name}")
