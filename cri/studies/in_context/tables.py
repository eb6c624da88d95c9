"""What a model answers behind examples of a kind, and what its answers owe to single examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from cri.data.case_relations import grid_distance
from cri.data.context_cases import KINDS, example_kinds
from cri.errors import out_of_range
from cri.formats import make_format
from cri.interventions.in_context import Example, Lines, answers, drops, knockouts, removals
from cri.statistics import estimate, paired, wilson
from cri.studies.in_context.config import InContext
from cri.tasks import Task, make_task

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel

_MIXED = 100
"""Seeds the draws for mixed prompts; those of one kind are seeded by the kind's index."""


@dataclass(frozen=True, eq=False)
class Asked:
    """The questions of the study, and which cases are examples of each kind for each of them."""

    config: InContext

    @cached_property
    def task(self) -> Task:
        return make_task("addition", size=self.config.size)

    @cached_property
    def candidates(self) -> np.ndarray:
        """Cases whose operands are both large enough."""
        return np.flatnonzero((self.task.cases >= self.config.smallest).all(axis=1))

    @cached_property
    def questions(self) -> np.ndarray:
        """Case ids; drawn among the cases that have enough examples of every kind."""
        config, rng = self.config, np.random.default_rng(self.config.seed)
        found: list[int] = []
        for block in np.array_split(rng.permutation(self.candidates), max(1, len(self.candidates) // 500)):
            codes = self._codes(block)
            enough = [(codes == KINDS.index(kind)).sum(axis=0) >= n for kind, n in config.needed.items()]
            found += block[np.all(enough, axis=0)].tolist()
            if len(found) >= config.questions:
                return np.array(found[: config.questions])
        wanted = ", ".join(f"{n} {kind}" for kind, n in config.needed.items())
        raise out_of_range("questions", config.questions, f"at most {len(found)}: so many cases have {wanted} examples")

    def _codes(self, questions: np.ndarray) -> np.ndarray:
        radius, far = self.config.radius, self.config.far
        return example_kinds(self.task, self.candidates, questions, radius=radius, far=far)

    @cached_property
    def codes(self) -> np.ndarray:
        """Kind of every candidate for every question."""
        return self._codes(self.questions)

    def draw(self, i: int, kind: str, n: int, rng: np.random.Generator) -> list[Example]:
        """`n` examples of a kind for question number `i`."""
        fits = self.candidates != self.questions[i] if kind == "random" else self.codes[:, i] == KINDS.index(kind)
        cases = rng.choice(self.candidates[fits], n, replace=False).tolist()
        return [Example(case, kind, self.task.answers[case]) for case in cases]

    def examples(self, i: int, kind: str, k: int) -> list[Example]:
        """The first `k` of this question's examples of a kind. The shuffled ones are the near ones, each with the next
        one's answer."""
        if k == 0:
            return []
        if kind == "near_shuffled":
            plain = self.examples(i, "near", k)
            return [Example(e.case, kind, plain[(j + 1) % k].answer) for j, e in enumerate(plain)]
        seeds = [self.config.seed, int(self.questions[i]), (*KINDS, "random").index(kind)]
        return self.draw(i, kind, max(self.config.k), np.random.default_rng(seeds))[:k]

    def mixed(self, i: int) -> tuple[list[Example], list[Example], list[Example], np.random.Generator]:
        """A prompt of several kinds in random order, for each of its examples a spare one of its kind and a far one,
        and the generator that drew them."""
        config = self.config
        rng = np.random.default_rng([config.seed, int(self.questions[i]), _MIXED])
        pairs: list[tuple[Example, Example]] = []
        n = config.per_kind
        far = self.draw(i, "far", n * (len(config.mixed) + 1), rng)
        for kind in config.mixed:
            own = far[: 2 * n] if kind == "far" else self.draw(i, kind, 2 * n, rng)
            pairs += zip(own[:n], own[n:], strict=True)
        left = iter(far[2 * n :])
        triples = [(one, spare, spare if one.kind == "far" else next(left)) for one, spare in pairs]
        order = [triples[j] for j in rng.permutation(len(triples))]
        return [x[0] for x in order], [x[1] for x in order], [x[2] for x in order], rng


def answered(model: PreTrainedModel, lines: Lines, asked: Asked, kind: str, k: int) -> list[dict[str, Any]]:
    """One row a question behind `k` examples of a kind: what was written, the answer read, whether it is right (and its
    units), whether the prompt shows it; and what guesses without a model would reach: `copied`, one of the answers
    shown, and `between`, a number that lies between them and is not shown."""
    task, fmt = asked.task, make_format("direct")
    prompts = [asked.examples(i, kind, k) for i in range(len(asked.questions))]
    ids = asked.questions.tolist()
    texts = answers(model, lines, [lines.prompt(p, case) for p, case in zip(prompts, ids, strict=True)])
    rows = []
    for case, examples, (text, finished) in zip(ids, prompts, texts, strict=True):
        a, b = task.operands[case]
        reading = fmt.read(task, a, b, text, finished=finished)
        shown, true = [int(e.answer) for e in examples], task.value(a, b)
        between = set(range(min(shown), max(shown) + 1)) - set(shown) if shown else set()
        said = None if reading.answer is None else int(reading.answer)
        distance = grid_distance(task, np.array([e.case for e in examples], dtype=np.int64), np.array([case]))
        row = {"kind": kind, "k": k, "id": case, "a": a, "b": b, "completion": text}
        read = {"prediction": reading.answer or "", "correct": reading.status == "right", "shown": said in shown}
        how = {"units": said is not None and said % 10 == true % 10, "error": None if said is None else said - true}
        guesses = {"copied": shown.count(true) / max(1, k), "between": (true in between) / max(1, len(between))}
        rows.append({**row, **read, **how, **guesses, "distance": float(distance.mean()) if k else None})
    return rows


def explained(model: PreTrainedModel, lines: Lines, asked: Asked, i: int) -> list[dict[str, Any]]:
    """One row a variant of question number `i`'s mixed prompt and answer explained: how much its log-odds fall."""
    case = int(asked.questions[i])
    examples, spares, far, rng = asked.mixed(i)
    variants = removals(examples, spares, far)
    variants += knockouts(examples, [len(lines.example(e)) for e in examples], rng)
    (text, finished), = answers(model, lines, [lines.prompt(examples, case)])  # fmt: skip
    targets = {"right": asked.task.answers[case]}
    if finished and text.strip():
        targets["predicted"] = text
    whole, fallen = drops(model, lines, examples, case, list(targets.values()), variants)
    rows = []
    for column, target in enumerate(targets):
        key = {"id": case, "target": target, "correct": text == asked.task.answers[case]}
        for variant, drop in zip(variants, fallen[:, column].tolist(), strict=True):
            what = {"what": variant.what, "kind": variant.kind, "place": variant.place}
            rows.append({**key, **what, "whole": float(whole[column]), "drop": drop})
    return rows


def accuracy_table(rows: pd.DataFrame) -> pd.DataFrame:
    """By kind and number of examples: share of right answers with Wilson's interval, of right units, of answers that
    the prompt shows; median distance of wrong answers from the right one; guesses without a model; mean distance of the
    examples on the grid."""
    import pandas as pd

    out = []
    for (kind, k), part in rows.groupby(["kind", "k"], sort=False):
        low, high = wilson(int(part["correct"].sum()), len(part))
        shares = {name: part[name].mean() for name in ("units", "shown", "copied", "between", "distance")}
        off = part.loc[~part["correct"], "error"].astype(float).abs().median()
        right = {"n": len(part), "right": part["correct"].mean(), "low": low, "high": high}
        out.append({"kind": kind, "k": k, **right, **shares, "median_error": off})
    return pd.DataFrame(out)


def _as_one_run(rows: pd.DataFrame) -> pd.DataFrame:
    """With the columns that intervals are made from: one model, each question drawn on its own."""
    return rows.assign(run=0, test_id=rows["id"], block=rows["id"])


def paired_table(rows: pd.DataFrame, against: Sequence[str]) -> pd.DataFrame:
    """Right answers behind one kind of examples minus those behind another, on the same questions, with bootstrap
    intervals over questions."""
    import pandas as pd

    table = _as_one_run(rows).assign(model=rows["kind"], right=rows["correct"].astype(float))
    kinds = [kind for kind in table["kind"].unique() if kind]
    out = [
        paired(table, "right", (kind, other), ["k"]).assign(kind=kind, against=other)
        for other in against if other in kinds for kind in kinds if kind != other
    ]  # fmt: skip
    if not out:
        return pd.DataFrame()
    return pd.concat(out, ignore_index=True)[["kind", "against", "k", "estimate", "low", "high", "n"]]


def effect_tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Mean fall of the log-odds by answer explained, kind and what was done, first within questions, with bootstrap
    intervals over questions (`effects`); and the difference to a far example on the same question (`contrasts`)."""
    import pandas as pd

    keys = ["target", "what", "kind"]
    by_question = rows.groupby([*keys, "id"], sort=False, as_index=False)["drop"].mean()
    table = _as_one_run(by_question).assign(model=by_question["kind"])
    effects = estimate(table, "drop", keys)[[*keys, "estimate", "low", "high", "n"]]
    kinds = table["kind"].unique()
    if "far" not in kinds:
        return {"effects": effects}
    contrasts = [
        paired(table, "drop", (kind, "far"), ["target", "what"]).assign(kind=kind) for kind in kinds if kind != "far"
    ]
    joined = pd.concat(contrasts, ignore_index=True)[[*keys, "estimate", "low", "high", "n"]]
    return {"effects": effects, "contrasts": joined}
