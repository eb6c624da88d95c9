"""Greedy decoding from the prompt alone, over whole grids, batched with a KV cache -> accuracy maps.

Sequences are grouped by prompt length, so nothing is padded while decoding; a finished sequence leaves
its batch. `max_new_tokens` follows from the reference completions: a generation that has not ended by then
is reported as *truncated*, apart from *wrong*.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from cri.data.case_ids import check_case_ids
from cri.data.splits import Split
from cri.data.token_table import TokenTable
from cri.evaluation.scoring import reading_table
from cri.formats import Format
from cri.models.attention import unmasked
from cri.models.device import sequences_decoded
from cri.models.positions import positions_of
from cri.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class Decoded:
    """Generated completions.

    Attributes:
        ids: generated tokens without the end-of-sequence token, padded with it, [case, token].
        lengths: generated tokens before the end of sequence, [case].
        finished: whether the end-of-sequence token came before `max_new_tokens` were written, [case].
    """

    ids: Int[np.ndarray, "case token"]
    lengths: Int[np.ndarray, " case"]
    finished: Bool[np.ndarray, " case"]


def max_new_tokens_for(tokens: TokenTable, slack: float = 0.25) -> int:
    """Tokens to allow for a completion: the longest reference completion with its end of sequence, plus
    `slack` of it (at least four tokens)."""
    longest = int((tokens.lengths - tokens.prompt_lengths).max())
    return longest + max(4, round(slack * longest))


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    tokens: TokenTable,
    *,
    max_new_tokens: int | None = None,
    batch_tokens: int | None = None,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    stop_when_wrong: bool = False,
    given: Int[Tensor, "case forced"] | None = None,
    on_progress: Callable[[int], Any] | None = None,
) -> Decoded:
    """Completes every prompt of `tokens`.

    Args:
        model: any Hugging Face causal language model; used on its own device.
        tokens: prompts to complete (reference completions only say how long an answer is).
        max_new_tokens: tokens to generate at most; by default `max_new_tokens_for(tokens)`, and never beyond the
            model's table of positions.
        batch_tokens: bound on sequences x positions held at once; by default 65,536, and on a GPU what a quarter of its
            free memory holds.
        temperature: 0 decodes greedily; above 0 samples, with `generator`.
        stop_when_wrong: drop a sequence at its first token that differs from the reference (for formats
            whose text has one right form); it is reported unfinished, with what it wrote so far.
        given: tokens that are written whatever the model says, -1 where it is free (prompts of different lengths are
            decoded together so: cut to the shortest one).
        on_progress: called with the number of cases completed, as they are.
    """
    device = next(model.parameters()).device
    max_new_tokens = max_new_tokens_for(tokens) if max_new_tokens is None else max_new_tokens
    limit = getattr(model.config, "n_positions", None)
    if limit is not None:
        max_new_tokens = min(max_new_tokens, limit - int(tokens.prompt_lengths.max()))
    n = len(tokens)
    if batch_tokens is None:
        batch_tokens = sequences_decoded(model, device)
    out = torch.full((n, max_new_tokens), tokens.eos, dtype=torch.long)
    lengths = torch.zeros(n, dtype=torch.long)
    finished = torch.zeros(n, dtype=torch.bool)
    prompt_lengths = tokens.prompt_lengths.cpu()
    reference = torch.full((n, max_new_tokens), tokens.eos, dtype=torch.long) if stop_when_wrong else None
    if reference is not None:
        for row in range(n):
            part = tokens.ids[row, prompt_lengths[row] : tokens.lengths[row]][:max_new_tokens]
            reference[row, : len(part)] = part
    for prompt_length in prompt_lengths.unique().tolist():
        rows = (prompt_lengths == prompt_length).nonzero().flatten()
        # longest references together, so that a batch ends when most of it ends
        rows = rows[torch.argsort(tokens.lengths.cpu()[rows], descending=True, stable=True)]
        size = max(1, batch_tokens // (prompt_length + max_new_tokens))
        for part in rows.split(size):
            prompt = tokens.ids[part, :prompt_length].to(device)
            ref = None if reference is None else reference[part].to(device)
            own = None if given is None else given[part].to(device)
            done = _decode_batch(model, prompt, max_new_tokens, tokens.eos, temperature, generator, ref, own)
            out[part], lengths[part], finished[part] = (t.cpu() for t in done)
            if on_progress:
                on_progress(len(part))
    return Decoded(out.numpy(), lengths.numpy(), finished.numpy())


def _cache_of_length(model: PreTrainedModel, positions: int) -> Any:
    """A KV cache that holds `positions` from the start: transformers' own copies all of it at every token."""
    from transformers import Cache
    from transformers.cache_utils import DynamicLayer

    class Layer(DynamicLayer):
        filled = 0

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
            if not self.is_initialized:
                shape = (*key_states.shape[:2], positions, key_states.shape[3])
                self.keys, self.values = key_states.new_empty(shape), value_states.new_empty(shape)
                self.is_initialized = True
            stop = self.filled + key_states.shape[2]
            assert self.keys is not None
            assert self.values is not None
            self.keys[:, :, self.filled : stop], self.values[:, :, self.filled : stop] = key_states, value_states
            self.filled = stop
            return self.keys[:, :, :stop], self.values[:, :, :stop]

        def get_seq_length(self) -> int:
            return self.filled

    return Cache(layers=[Layer() for _ in range(model.config.num_hidden_layers)])


def _decode_batch(
    model: PreTrainedModel,
    prompt: Int[Tensor, "case pos"],
    max_new_tokens: int,
    eos: int,
    temperature: float,
    generator: torch.Generator | None,
    reference: Int[Tensor, "case token"] | None,
    given: Int[Tensor, "case forced"] | None = None,
) -> tuple[Int[Tensor, "case token"], Int[Tensor, " case"], Bool[Tensor, " case"]]:
    n, start = prompt.shape
    out = torch.full((n, max_new_tokens), eos, dtype=torch.long, device=prompt.device)
    lengths = torch.zeros(n, dtype=torch.long, device=prompt.device)
    finished = torch.zeros(n, dtype=torch.bool, device=prompt.device)
    held = torch.arange(n, device=prompt.device)  # the sequences in the cache
    going = torch.ones(n, dtype=torch.bool, device=prompt.device)  # those of them that still write
    cache = _cache_of_length(model, start + max_new_tokens)
    inputs, scheme = prompt, positions_of(model)
    text = None if scheme is None else scheme.begin(n, prompt.device)
    # asking a GPU how many are left makes it wait: seldom in long texts
    ask_every = 8 if prompt.device.type == "cuda" and max_new_tokens > 16 else 1
    with unmasked(model):
        for i in range(max_new_tokens):
            if scheme is None or text is None:
                positions = torch.arange(inputs.shape[1], device=prompt.device) + (start + i - inputs.shape[1])
                where = {"position_ids": positions[None].expand(len(inputs), -1)}
            else:
                where, text = scheme.following(inputs, text)
            logits = model(input_ids=inputs, cache=cache, use_cache=True, logits_to_keep=1, **where).logits[:, -1]
            if temperature > 0:
                token = torch.multinomial((logits.float() / temperature).softmax(-1), 1, generator=generator)[:, 0]
            else:
                token = logits.argmax(-1)
            if given is not None and i < given.shape[1]:
                token = torch.where(given[held, i] >= 0, given[held, i], token)
            token = token.masked_fill(~going, eos)
            out[held, i] = token
            finished[held] |= going & (token == eos)
            going = going & (token != eos)
            lengths[held] += going
            if reference is not None:
                going = going & (token == reference[held, i])
            if (i + 1) % ask_every == 0:
                n_going = int(going.sum())
                if n_going == 0:
                    break
                if n_going <= 0.875 * len(held):  # leaving costs a copy of the cache
                    cache.batch_select_indices(going.nonzero().flatten())
                    text = None if text is None else text.select(going)
                    held, token, going = held[going], token[going], going[going]
            inputs = token[:, None]
    return out, lengths, finished


def predictions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens: TokenTable,
    task: Task,
    fmt: Format,
    split: Split,
    case_ids: Sequence[int] | Int[np.ndarray, " case"] | None = None,
    **decode_options: Any,
) -> pd.DataFrame:
    """The accuracy map as a table: every case (or `case_ids`) decoded from its prompt, in id order.

    Columns: see `cri.evaluation.scoring.reading_table`.
    """
    ids = np.arange(task.n_cases) if case_ids is None else check_case_ids(case_ids, task.n_cases)
    decoded = decode(model, tokens if case_ids is None else tokens[ids], **decode_options)
    texts = tokenizer.batch_decode([row[:k] for row, k in zip(decoded.ids, decoded.lengths, strict=True)])
    return reading_table(task, fmt, split, ids, texts, decoded.finished)


def accuracy_by_part(table: pd.DataFrame) -> dict[str, float]:
    """Fraction of right answers among training cases, held-out cases and all."""
    return {
        "train": float(table.loc[table["train"], "correct"].mean()),
        "test": float(table.loc[~table["train"], "correct"].mean()),
        "all": float(table["correct"].mean()),
    }
