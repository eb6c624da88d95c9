"""Completions written on from any point, and texts as tokens with the characters at which they end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int

from cri.data.token_table import TokenTable
from cri.data.tokenization import encode_texts
from cri.errors import CriError
from cri.evaluation.decoding import decode
from cri.training.runs import Run
from cri.training.setup import Materials

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def continuations(
    run: Run | Materials,
    starts: Sequence[tuple[int, str, int]],
    model: PreTrainedModel | None = None,
    prompts: Sequence[str] | None = None,
) -> list[tuple[str, bool]]:
    """Greedy continuations of prefixes of completions, batched with a KV cache.

    Args:
        starts: (case, completion, cut): the model is given the case's prompt and `completion[:cut]`, up to
            the end of the token that holds the cut.
        prompts: given in place of the format's prompts.

    Returns:
        For each the whole completion (prefix and what was written) and whether it ended. As many
        tokens may be written as the reference still has, and a quarter more.
    """
    if not starts:
        return []
    tokens = run.tokens
    model = run.model if model is None else model
    if prompts is None:
        prompts = [run.format.prompt(run.task, *run.task.operands[case]) for case, _, _ in starts]
    prompt_ids = encode_texts(run.tokenizer, prompts)
    unique = list(dict.fromkeys(text for _, text, _ in starts))
    encoded = dict(zip(unique, encode_with_ends(run.tokenizer, unique), strict=True))
    rows, cuts, given = [], [], []
    for prompt, (_, text, cut) in zip(prompt_ids, starts, strict=True):
        ids, ends = encoded[text]
        n_given = int(np.searchsorted(ends, cut)) + 1 if cut else 0  # the token whose end is at or behind the cut
        rows.append([*prompt, *ids, tokens.eos])
        cuts.append(len(prompt) + n_given)
        given.append(ids[:n_given])
    table = torch.full((len(rows), max(map(len, rows), default=1)), tokens.pad, dtype=torch.long)
    for i, row in enumerate(rows):
        table[i, : len(row)] = torch.tensor(row)
    prompt_lengths, lengths = torch.tensor(cuts), torch.tensor([len(row) for row in rows])
    out: list[tuple[str, bool]] = [("", False)] * len(rows)
    for cut in sorted(set(cuts)):
        index = (prompt_lengths == cut).nonzero().flatten()
        left = int((lengths[index] - cut).max())
        part = TokenTable(table, prompt_lengths, lengths, tokens.pad, tokens.eos)[index]
        decoded = decode(model, part, max_new_tokens=left + max(4, round(0.25 * left)))
        written = [
            [*given[i], *row[:n]] for i, row, n in zip(index.tolist(), decoded.ids, decoded.lengths, strict=True)
        ]
        for i, text, done in zip(
            index.tolist(), run.tokenizer.batch_decode(written), decoded.finished.tolist(), strict=True
        ):
            out[i] = (text, done)
    return out


def encodable(tokenizer: Any, text: str) -> bool:
    """Whether a tokenizer can write a text (one built from a task's texts lacks what occurs in none)."""
    try:
        encode_texts(tokenizer, [text])
    except CriError:
        return False
    return True


def encode_with_ends(tokenizer: Any, texts: Sequence[str]) -> list[tuple[list[int], Int[np.ndarray, " token"]]]:
    """Token ids of each text with the character at which each token ends; raises `CriError` for a text
    that does not survive the round trip."""
    if not texts:
        return []
    found = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
    encode_texts(tokenizer, texts)
    return [
        (list(ids), np.array([stop for _, stop in offsets], dtype=np.int64))
        for ids, offsets in zip(found["input_ids"], found["offset_mapping"], strict=True)
    ]
