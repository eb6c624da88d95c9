"""The rows of `matrix`: for one trained cell, what its answers and its steps rest on, and what its edits do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cri import interventions as iv
from cri import statistics
from cri.attribution.methods import METHODS
from cri.attribution.questions import Question
from cri.attribution.step_questions import MECHANISMS, STEP_METHODS, StepQuestion, planted_scores
from cri.config import RunConfig
from cri.data import step_units as units
from cri.data.case_groups import make_groups
from cri.data.step_places import places
from cri.errors import CriError
from cri.formats import make_format
from cri.statistics.memberships import membership_regression, overlapping_enrichment
from cri.training.runs import Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from cri.studies.matrix.config import Matrix

CONTRAST = (units.SAME_STEP, units.NEAR)
ANSWER = "same answer"
BLOCK_SIDE = 2
"""Patches of held-out cases that are resampled together: the small grids' squares have 5 or 7 cells a side."""
MODELS = ("trained", "untrained", "beyond untrained")
EDITED = ("digit", "carry", "answer", "operands", "decision")
VARIABLES = ("carry", "digit")

Masks = Mapping[str, np.ndarray]


def accuracy_row(table: pd.DataFrame, config: RunConfig, manifest: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Shares of right answers among training and held-out cases of a decoded grid, with how the cell was trained."""
    held_out = table[~table["train"]]
    right, n = int(held_out["correct"].sum()), len(held_out)
    low, high = statistics.wilson(right, n)
    return {
        "n_train": int(table["train"].sum()),
        "n_test": n,
        "train_accuracy": float(table.loc[table["train"], "correct"].mean()),
        "test_accuracy": right / n,
        "test_low": low,
        "test_high": high,
        "truncated": int((held_out["status"] == "truncated").sum()),
        "steps": config.train.steps,
        "batch_size": config.train.batch_size,
        "lr": config.train.lr,
        "tokenizer": config.tokenizer,
        "model": config.model,
        "seconds": manifest["train_seconds"],
        "run": name,
    }


def _sample(n: int, size: int, seed: int = 0) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).permutation(n)[:size])


def step_question(run: Run, model: PreTrainedModel, config: Matrix) -> StepQuestion:
    """Steps on two digits of held-out cases, and those of training cases."""
    table = units.two_digit(places(run, "step:all"))
    train, test = (table[table["train"] == t].reset_index(drop=True) for t in (True, False))
    train, test = (
        t.iloc[_sample(len(t), n)].reset_index(drop=True)
        for t, n in ((train, config.n_train_units), (test, config.n_test_units))
    )
    return StepQuestion.ask(run, train, test, model)


def case_question(run: Run, model: PreTrainedModel, config: Matrix) -> tuple[Question, Masks]:
    """What the model answers to held-out cases, asked at the last prompt token, with memberships of cases."""
    table = run.predictions
    readable = table["status"].isin(["right", "wrong"]).to_numpy()
    test = np.flatnonzero(readable & run.split.test)
    if not len(test):
        raise CriError(f"run: {run.path.name} gives no readable answer to a held-out case")
    test, train = test[_sample(len(test), config.n_test_units)], run.split.train_ids
    answers = table["prediction"].to_numpy()[test].tolist()
    queries = run.explained(test, "prediction")
    groups = make_groups(run.task, train, test, answers, n_near=units.N_NEAR)
    masks = {
        units.SAME_STEP: groups.step, ANSWER: groups.answer, units.NEAR: groups.near,
        units.MIRROR: groups.mirror & ~groups.near, units.OPERAND: groups.operand,
    }  # fmt: skip
    question = Question(run, train, test, queries, answers, model, run.config.seed)
    return question, {name: mask for name, mask in masks.items() if mask.any()}


def _methods(question: Question) -> Iterator[tuple[str, str, np.ndarray]]:
    for key in STEP_METHODS:
        for site, scores in METHODS[key].score(question):
            yield key, site, np.asarray(scores)


def _read(
    scores: np.ndarray, masks: Masks, block: np.ndarray, config: Matrix, result: str, minus: np.ndarray | None = None
) -> pd.DataFrame:
    """Effects of the memberships on the scores; of the model's own scores also the shares among the nearest."""
    effects = membership_regression(scores, masks, block, CONTRAST, n_boot=config.n_boot, minus=minus)
    if minus is not None:
        return effects
    shares = overlapping_enrichment(scores, masks, config.k).groupby("group")[["share", "base"]].mean()
    same = masks.get(result)
    if same is not None:
        inner = overlapping_enrichment(scores, masks, config.k, same).groupby("group")["excess"].mean()
        shares = shares.assign(matched_excess=inner.reindex(shares.index))
    return effects.merge(shares.reset_index(), on="group", how="left")


def attribution_rows(run: Run, config: Matrix) -> pd.DataFrame:
    """Effects of memberships on every method's scores, at the last prompt token and (formats with steps) at steps: of
    the trained model, of the untrained one, and of the difference of their standardised scores."""
    parts = []
    untrained = run.untrained()
    for unit in ("case",) if run.config.format == "direct" else ("case", "step"):
        found: dict[str, dict[tuple[str, str], np.ndarray]] = {}
        masks: Masks = {}
        ids = np.zeros(0, dtype=np.int64)
        for name, model in (("trained", run.model), ("untrained", untrained)):
            if unit == "case":
                question, masks = case_question(run, model, config)
            else:
                question = step_question(run, model, config)
                if name == "trained":  # both models are read by what the trained one writes
                    written = np.array(question.answers, dtype=np.str_)
                    masks = units.step_memberships(run.task, question.train_units, question.test_units, written)
            ids = question.query_ids
            found[name] = {(method, site): scores for method, site, scores in _methods(question)}
        block = statistics.grid_blocks(run.task, ids, BLOCK_SIDE)
        result = ANSWER if unit == "case" else units.RESULT
        for (method, site), scores in found["trained"].items():
            control = found["untrained"][method, site]
            for model, values, minus in zip(MODELS, (scores, control, scores), (None, None, control), strict=True):
                table = _read(values, masks, block, config, result, minus)
                parts.append(table.assign(unit=unit, model=model, method=method, site=site, n_test=len(ids)))
    return pd.concat(parts, ignore_index=True)


def _asked_steps(run: Run, table: pd.DataFrame) -> pd.DataFrame:
    """Units of a shuffled-trace model with the steps that the case asked would execute in their place, in order."""
    own = places(_Retraced(run), "step:all")
    facts = ["op", "x", "y", "carry", "column", "text"]
    own = own.set_index(["case", "step"])[facts]
    keys = pd.MultiIndex.from_frame(table[["case", "step"]])
    kept = keys.isin(own.index)
    asked = own.loc[keys[kept]].set_axis(table.index[kept])
    return units.two_digit(table[kept].drop(columns=facts).join(asked))


class _Retraced:
    """The run's cases with their own scratchpads in place of the shuffled ones."""

    def __init__(self, run: Run) -> None:
        from cri.data.token_table import encode

        self.task, self.split, self.tokenizer = run.task, run.split, run.tokenizer
        self.format = make_format("scratchpad")
        self.tokens = encode(run.task, self.format, run.tokenizer)


def control_rows(run: Run, config: Matrix) -> pd.DataFrame:
    """Readings whose answer is known: planted mechanisms on a scratchpad's units; of a shuffled-trace model, its units
    by the steps that its traces hold, and by those of the case asked, which it never writes."""
    question = step_question(run, run.model, config)
    train, test = question.train_units, question.test_units
    read: list[tuple[str, str, np.ndarray, pd.DataFrame, pd.DataFrame]] = []
    if run.config.format == "scratchpad":
        read += [(f"planted {m}", "GradDot", planted_scores(run, train, test, m), train, test) for m in MECHANISMS]
    else:
        scores = question.influence()
        read.append(("shuffled traces, by the step written", "EK-FAC", scores, train, test))
        asked = [_asked_steps(run, t.assign(unit=np.arange(len(t)))) for t in (train, test)]
        inner = scores[np.ix_(asked[0]["unit"].to_numpy(), asked[1]["unit"].to_numpy())]
        read.append(("shuffled traces, by the step of the case asked", "EK-FAC", inner, *asked))
    parts = []
    for name, method, scores, rows, columns in read:
        masks = units.step_memberships(run.task, rows, columns)
        block = statistics.grid_blocks(run.task, columns["case"].to_numpy(), BLOCK_SIDE)
        table = _read(scores, masks, block, config, units.RESULT)
        parts.append(table.assign(unit="step", model=name, method=method, site="", n_test=len(columns)))
    return pd.concat(parts, ignore_index=True)


def edit_rows(run: Run, config: Matrix) -> pd.DataFrame:
    """What a model makes of an edited element of its trace, by kind of element and region: the shares that go on as the
    rule demands, that return to the unedited answer, and that do neither, with Wilson intervals."""
    n = config.n_edited if run.config.format != "rfft" else max(4, config.n_edited // 4)
    parts = []
    for region, ids in (("held out", run.split.test_ids), ("trained", run.split.train_ids)):
        cases = ids[_sample(len(ids), n)]
        edits = iv.sample_edits(run.task, run.format, cases.tolist(), EDITED, tokenizer=run.tokenizer)
        if edits:
            parts.append(iv.step_edits(run, edits).assign(region=region))
    table = pd.concat(parts, ignore_index=True)
    table["seen"] = table["seen"].map({True: "seen", False: "unseen"}).fillna("unknown")
    rows = []
    for kind, group in (("all", table), *table.groupby("kind")):
        for region, part in group.groupby("region"):
            counts = {name: int((part["outcome"] == name).sum()) for name in ("follows", "returns")}
            counts["neither"] = len(part) - sum(counts.values())
            shares: dict[str, Any] = {"kind": kind, "region": region, "n": len(part)}
            for name, count in counts.items():
                low, high = statistics.wilson(count, len(part))
                shares |= {name: count / len(part), f"{name}_low": low, f"{name}_high": high}
            rows.append(shares)
    return pd.DataFrame(rows)


def interchange_rows(run: Run, config: Matrix) -> pd.DataFrame:
    """Share of pairs of cases in which exchanging a variable moves the output to what the rule predicts, at the best
    cell of the other half of the pairs (`interventions.patch_map`)."""
    solved = np.flatnonzero(run.predictions["correct"].to_numpy())
    rng, rows = np.random.default_rng(0), []
    for variable in VARIABLES:
        bases, sources = (np.sort(rng.permutation(solved)[: 4 * config.n_pairs]) for _ in range(2))
        try:
            pairs = iv.make_pairs(run, variable, bases.tolist(), sources.tolist(), n=config.n_pairs)
        except CriError:  # no two cases differ in this variable alone
            continue
        positions = range(max(0, pairs.read - 63), pairs.read + 1)
        cells: iv.PatchMap | None = None
        for vectors in ("source", "random"):
            found = iv.patch_map(run.model, run.bridge, pairs, positions=positions, vectors=vectors)
            cells = cells or found  # the control is put where the effect is
            moved = np.asarray(found.cross_fitted("rule", cells), dtype=float)
            low, high = statistics.wilson(round(moved.sum()), len(moved))
            rows.append({"variable": variable, "vectors": vectors, "rule": moved.mean(), "low": low, "high": high,
                         "n": len(moved)})  # fmt: skip
    return pd.DataFrame(rows, columns=["variable", "vectors", "rule", "low", "high", "n"])
