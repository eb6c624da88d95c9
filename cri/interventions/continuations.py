"""Completions written on from any point, and texts as tokens with the characters at which they end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from cri.data.token_table import TokenTable
from cri.data.tokenization import encode_texts
from cri.errors import CriError
from cri.evaluation.decoding import decode
from cri.models.attention import unmasked
from cri.training.runs import Run
from cri.training.setup import Materials

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BLOCK = 64
"""Texts whose own part begins within as many tokens are decoded together."""
_AT_ONCE, _LOGITS_AT_ONCE = 8192, 1 << 26
"""Tokens, and their logits, of one pass."""


def continuations(
    run: Run | Materials,
    starts: Sequence[tuple[int, str, int]],
    model: PreTrainedModel | None = None,
    prompts: Sequence[str] | None = None,
) -> list[tuple[str, bool]]:
    """Greedy continuations of prefixes of completions, batched with a KV cache.

    One pass over the completions tells which of them the model writes by itself from its cut on; only others are
    decoded, from the first token that differs.

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
    rows, cuts = [], []
    for prompt, (_, text, cut) in zip(prompt_ids, starts, strict=True):
        ids, ends = encoded[text]
        n_given = int(np.searchsorted(ends, cut)) + 1 if cut else 0  # the token whose end is at or behind the cut
        rows.append([*prompt, *ids, tokens.eos])
        cuts.append(len(prompt) + n_given)
    table = torch.full((len(rows), max(map(len, rows), default=1)), tokens.pad, dtype=torch.long)
    for i, row in enumerate(rows):
        table[i, : len(row)] = torch.tensor(row)
    cut_at, lengths = torch.tensor(cuts), torch.tensor([len(row) for row in rows])
    whole = TokenTable(table, cut_at, lengths, tokens.pad, tokens.eos)
    table_of_positions = getattr(model.config, "n_positions", None)
    # a reference that is longer than what the model holds (another rule's) only says when to stop
    fits = table_of_positions is None or table.shape[1] <= table_of_positions
    agreed = agreed_until(model, whole) if fits else cut_at
    out = [(completion, True) for _, completion, _ in starts]
    left = lengths - cut_at
    most = cut_at + left + (left.double() * 0.25).round().long().clamp(min=4)
    begun = torch.maximum(cut_at, agreed)
    for block in (begun[agreed < lengths] // _BLOCK).unique().tolist():
        index = ((begun // _BLOCK == block) & (agreed < lengths)).nonzero().flatten()
        start = int(begun[index].min())
        place = torch.arange(start, int(begun[index].max()))
        forced = table[index][:, place].masked_fill(place >= begun[index, None], -1)
        part = TokenTable(table[index], torch.full_like(index, start), lengths[index], tokens.pad, tokens.eos)
        decoded = decode(model, part, max_new_tokens=int(most[index].max()) - start, given=forced)
        allowed = most[index].numpy() - start  # whatever texts are decoded beside it
        done = decoded.finished & (decoded.lengths < allowed)
        written = []
        for i, row, n in zip(index.tolist(), decoded.ids, np.minimum(decoded.lengths, allowed), strict=True):
            first = len(prompt_ids[i])
            written.append([*table[i, first:start].tolist(), *row[max(0, first - start) : n]])
        texts = run.tokenizer.batch_decode(written)
        for i, text, ended in zip(index.tolist(), texts, done.tolist(), strict=True):
            out[i] = (text, ended)
    return out


@torch.inference_mode()
def agreed_until(model: PreTrainedModel, tokens: TokenTable) -> Int[Tensor, " case"]:
    """Place of each sequence's first token behind its prompt that greedy decoding from the prompt would not write; its
    length where decoding writes all of it, end of sequence included.

    Up to that place what is decoded is the sequence itself, so one pass over it tells.
    """
    device = next(model.parameters()).device
    n_tokens = max(1, min(_AT_ONCE, _LOGITS_AT_ONCE // model.config.vocab_size))
    found = tokens.lengths.clone()
    order = tokens.lengths.argsort(stable=True)
    with unmasked(model):
        for rows in order.split(max(1, n_tokens // tokens.ids.shape[1])):
            ids = tokens.ids[rows, : int(tokens.lengths[rows].max())]
            said = model(input_ids=ids[:, :-1].to(device), use_cache=False).logits.argmax(-1).cpu()
            place = torch.arange(1, ids.shape[1])
            behind = (place >= tokens.prompt_lengths[rows, None]) & (place < tokens.lengths[rows, None])
            wrong = (said != ids[:, 1:]) & behind
            first = wrong.int().argmax(1) + 1
            found[rows] = torch.where(wrong.any(1), first, tokens.lengths[rows])
    return found


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
