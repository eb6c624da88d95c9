"""Accuracy by length: whole texts, answers, and where they first go wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cri.data.token_table import TokenTable, encode
from cri.evaluation.decoding import decode
from cri.formats.traces import first_deviation
from cri.models.attention import unmasked
from cri.models.positions import positions_of
from cri.statistics import wilson
from cri.tasks import make_task

if TYPE_CHECKING:
    import pandas as pd

    from cri.training.runs import Run

TEST_SEED = 1000
LIST_END = "list end"
"""A list that ends too early or too late, counted apart from a wrong digit."""


def longest_carry_chain(a: int, b: int) -> int:
    """Digits in a row that a carry runs through in a + b."""
    chain = longest = carry = 0
    while a or b:
        carry = int(a % 10 + b % 10 + carry > 9)
        chain = chain + 1 if carry else 0
        longest = max(longest, chain)
        a, b = a // 10, b // 10
    return longest


Pairs = list[tuple[int, int]]


def fresh_cases(run: Run, n_digits: int, n: int) -> tuple[Pairs, TokenTable]:
    """Pairs of a length that the run was not trained on (of one digit there are none), and their reference texts."""
    task = make_task("length_addition", min_digits=n_digits, max_digits=n_digits, per_length=n, mixed=1, seed=TEST_SEED)
    trained = {run.task.operands[i] for i in run.split.train_ids}
    fresh = np.array([i for i, pair in enumerate(task.operands) if pair not in trained], dtype=int)
    return [task.operands[i] for i in fresh], encode(task, run.format, run.tokenizer)[fresh]


@torch.inference_mode()
def first_wrong(run: Run, tokens: TokenTable, batch_tokens: int = 8192) -> list[tuple[int, int] | None]:
    """Place and token of each case's first token that greedy decoding from the prompt would get wrong, None where the
    whole text comes out right.

    Up to there the text that is decoded is the reference, so one pass over the reference tells.
    """
    found: list[tuple[int, int] | None] = [None] * len(tokens)
    order = np.argsort(tokens.lengths.numpy(), kind="stable")
    size = max(1, batch_tokens // max(1, tokens.ids.shape[1]))
    with unmasked(run.model):
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            part = tokens[rows]
            said = run.model(input_ids=part.ids[:, :-1], use_cache=False).logits.argmax(-1)
            wrong = (said != part.ids[:, 1:]) & part.target_mask[:, 1:]
            for i in wrong.any(1).nonzero().flatten().tolist():
                place = int(wrong[i].nonzero()[0])
                found[rows[i]] = place + 1, int(said[i, place])
    return found


def error_kind(run: Run, pair: tuple[int, int], tokens: TokenTable, row: int, wrong: tuple[int, int]) -> str:
    """What the first wrong token is: `list end`, or one of `cri.formats.traces.ERROR_KINDS`."""
    place, token = wrong
    reference = tokens.ids[row, int(tokens.prompt_lengths[row]) : place].tolist()
    expected, written = (str(run.tokenizer.decode([i])) for i in (int(tokens.ids[row, place]), token))
    if "]" in (expected, written) and (expected[-1:].isdigit() or written[-1:].isdigit()):
        return LIST_END
    finished = token == tokens.eos
    text = str(run.tokenizer.decode(reference)) + ("" if finished else written)
    lines = run.format.trace(run.task, *pair)
    deviation = first_deviation(lines, text, finished=finished)
    return "format" if deviation is None else deviation[1]


def length_tables(variant: str, run: Run, lengths: range, n: int, n_decoded: int) -> dict[str, pd.DataFrame]:
    """Tables of one run: `accuracy` by length, `errors` by length and kind, `groups` by length and kind of pair."""
    import pandas as pd

    key = {"variant": variant, "seed": run.config.seed}
    accuracy: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    groups: list[dict[str, Any]] = []
    positions = positions_of(run.model)
    for n_digits in lengths:
        pairs, tokens = fresh_cases(run, n_digits, n)
        if not len(tokens):
            continue
        if positions is not None:
            positions.check(tokens)
        wrong = first_wrong(run, tokens)
        right = np.array([w is None for w in wrong])
        n_read = len(tokens) if run.config.format == "direct" else min(n_decoded, len(tokens))
        answers, agree = _decoded(run, pairs, tokens[np.arange(n_read)], right) if n_read else (0, 0)
        low, high = wilson(int(right.sum()), len(right))
        accuracy.append(
            {**key, "digits": n_digits, "n": len(right), "whole": right.mean(), "low": low, "high": high,
             "n_decoded": n_read, "decoded_answers": answers, "decoded_agree": agree}
        )  # fmt: skip
        kinds = pd.Series([error_kind(run, pairs[i], tokens, i, w) for i, w in enumerate(wrong) if w is not None])
        errors += [{**key, "digits": n_digits, "error": kind, "n": k} for kind, k in kinds.value_counts().items()]
        groups += [{**key, "digits": n_digits, **group} for group in _groups(pairs, right)]
    return {name: pd.DataFrame(rows) for name, rows in (("accuracy", accuracy), ("errors", errors), ("groups", groups))}


def _decoded(run: Run, pairs: Pairs, tokens: TokenTable, right: np.ndarray) -> tuple[int, int]:
    """Of the cases decoded from their prompts: how many answers are right, and in how many whole texts are right just
    where one pass over the reference says so."""
    done = decode(run.model, tokens)
    answers = agree = 0
    for i in range(len(tokens)):
        ids = done.ids[i, : done.lengths[i]].tolist()
        finished = bool(done.finished[i])
        reference = tokens.ids[i, int(tokens.prompt_lengths[i]) : int(tokens.lengths[i]) - 1].tolist()
        answer = run.format.read_answer(run.task, str(run.tokenizer.decode(ids))) if finished else None
        answers += answer == run.task.answer(*pairs[i])
        agree += (finished and ids == reference) == right[i]
    return answers, agree


def _groups(operands: Pairs, right: np.ndarray) -> list[dict[str, Any]]:
    equal = np.array([len(str(a)) == len(str(b)) for a, b in operands])
    chain = np.array([longest_carry_chain(a, b) for a, b in operands])
    kinds = {
        "equal lengths": equal,
        "unequal lengths": ~equal,
        "carry chain 0-1": chain < 2,
        "carry chain 2+": chain >= 2,
    }
    return [
        {"group": name, "n": int(rows.sum()), "whole": right[rows].mean()} for name, rows in kinds.items() if rows.any()
    ]


def reach_table(accuracy: pd.DataFrame, bound: float = 0.95) -> pd.DataFrame:
    """The headline: by run, the longest length up to which every length stays at or above `bound` (0 for none)."""
    import pandas as pd

    rows = []
    for (variant, seed), part in accuracy.groupby(["variant", "seed"], sort=False):
        part = part.sort_values("digits")
        good = part["whole"].to_numpy() >= bound
        n_good = len(good) if good.all() else int(np.argmin(good))
        rows.append({"variant": variant, "seed": seed, "reach": int(part["digits"].iloc[n_good - 1]) if n_good else 0})
    return pd.DataFrame(rows)
