"""Cases x format x tokenizer -> token tensors and loss masks, aligned to case ids."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from cri.data.tokenization import build_tokenizer, encode_texts, eos_id, pad_id
from cri.errors import CriError
from cri.formats import Format
from cri.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class TokenTable:
    """Reference sequences (prompt, completion, end of sequence), one row a case, right-padded.

    Attributes:
        ids: token ids, [case, pos].
        prompt_lengths: tokens of the prompt, [case]; the last prompt token is at `prompt_lengths - 1`.
        lengths: tokens of the whole sequence with its end-of-sequence token, [case].
        pad: the padding id.
        eos: the end-of-sequence id.
    """

    ids: Int[Tensor, "case pos"]
    prompt_lengths: Int[Tensor, " case"]
    lengths: Int[Tensor, " case"]
    pad: int
    eos: int

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def target_mask(self) -> Bool[Tensor, "case pos"]:
        """True where the token is to be predicted: the completion and the end of sequence."""
        pos = torch.arange(self.ids.shape[1], device=self.ids.device)
        return (pos >= self.prompt_lengths[:, None]) & (pos < self.lengths[:, None])

    @property
    def token_mask(self) -> Bool[Tensor, "case pos"]:
        """True where there is a token, not padding."""
        pos = torch.arange(self.ids.shape[1], device=self.ids.device)
        return pos < self.lengths[:, None]

    def to(self, device: torch.device | str) -> TokenTable:
        return TokenTable(
            self.ids.to(device), self.prompt_lengths.to(device), self.lengths.to(device), self.pad, self.eos
        )

    def __getitem__(self, rows: Int[Tensor, " row"] | Int[np.ndarray, " row"]) -> TokenTable:
        """The chosen rows, cropped to the longest among them."""
        index = torch.as_tensor(rows, device=self.ids.device)
        lengths = self.lengths[index]
        width = int(lengths.max()) if len(index) else 0
        return TokenTable(self.ids[index, :width], self.prompt_lengths[index], lengths, self.pad, self.eos)

    def sha256(self) -> str:
        """Hash of the data, for manifests."""
        digest = hashlib.sha256()
        for tensor in (self.ids, self.prompt_lengths, self.lengths):
            digest.update(np.ascontiguousarray(tensor.cpu().numpy()).tobytes())
        return digest.hexdigest()


@functools.lru_cache(maxsize=4)  # tokenizer and token table need the same; traces take seconds to write
def texts(task: Task, fmt: Format) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Prompts and completions of every case, in id order."""
    prompts = tuple(fmt.prompt(task, a, b) for a, b in task.operands)
    completions = tuple(fmt.completion(task, a, b) for a, b in task.operands)
    return prompts, completions


def task_tokenizer(kind: str, task: Task, fmt: Format) -> PreTrainedTokenizerBase:
    """The `number` or `digit` tokenizer covering the whole grid of `task` in `fmt`."""
    prompts, completions = texts(task, fmt)
    return build_tokenizer(kind, [*prompts, *completions], fmt.atoms(task))


def encode(task: Task, fmt: Format, tokenizer: PreTrainedTokenizerBase) -> TokenTable:
    """Token table of the whole grid, row i being case id i.

    Prompt and completion are encoded apart, so that the prompt's tokens are those the model is given
    when it decodes. Raises `CriError` for text the tokenizer cannot represent.
    """
    prompts, completions = texts(task, fmt)
    if not prompts:
        raise CriError(f"task: {task.name} has no cases")
    pad, eos = pad_id(tokenizer), eos_id(tokenizer)
    prompt_ids, completion_ids = encode_texts(tokenizer, prompts), encode_texts(tokenizer, completions)
    rows = [p + c + [eos] for p, c in zip(prompt_ids, completion_ids, strict=True)]
    ids = torch.full((len(rows), max(map(len, rows))), pad, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return TokenTable(ids, torch.tensor([len(p) for p in prompt_ids]), torch.tensor([len(r) for r in rows]), pad, eos)
