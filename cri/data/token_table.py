"""Cases x format x tokenizer -> token tensors and loss masks, aligned to case ids."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from cri.checks import checked
from cri.data.case_ids import check_case_ids
from cri.data.tokenization import build_tokenizer, encode_texts, eos_id, pad_id
from cri.errors import CriError
from cri.formats import Format
from cri.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


Target = Literal["reference", "prediction"]
"""What the completions are: the task's right answers, or what a model gave."""
TARGETS: tuple[Target, ...] = get_args(Target)


@dataclass(frozen=True, eq=False)
class TokenTable:
    """Sequences (prompt, completion, end of sequence), one row a case, right-padded.

    Attributes:
        ids: token ids, [case, pos].
        prompt_lengths: tokens of the prompt, [case]; the last prompt token is at `prompt_lengths - 1`.
        lengths: tokens of the whole sequence with its end-of-sequence token, [case].
        pad: the padding id.
        eos: the end-of-sequence id.
        target: whether the completions are the right answers or a model's own.
    """

    ids: Int[Tensor, "case pos"]
    prompt_lengths: Int[Tensor, " case"]
    lengths: Int[Tensor, " case"]
    pad: int
    eos: int
    target: Target = "reference"

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
        return replace(
            self,
            ids=self.ids.to(device),
            prompt_lengths=self.prompt_lengths.to(device),
            lengths=self.lengths.to(device),
        )

    def __getitem__(self, rows: Int[Tensor, " row"] | Int[np.ndarray, " row"]) -> TokenTable:
        """The chosen rows, cropped to the longest among them; raises `CriError` for a mask, a fraction or a row that
        is not there."""
        if isinstance(rows, Tensor):
            rows = rows.cpu().numpy()
        index = torch.from_numpy(check_case_ids(rows, len(self), "rows")).to(self.ids.device)
        lengths = self.lengths[index]
        width = int(lengths.max()) if len(index) else 0
        return replace(self, ids=self.ids[index, :width], prompt_lengths=self.prompt_lengths[index], lengths=lengths)

    def with_completions(self, rows: Sequence[Sequence[int]]) -> TokenTable:
        """The same prompts with what a model completed them with: `rows` has the token ids of each completion, without
        the end of sequence, which follows."""
        starts = self.prompt_lengths.tolist()
        lengths = [start + len(row) + 1 for start, row in zip(starts, rows, strict=True)]
        ids = np.full((len(self), max(lengths, default=0)), self.pad, dtype=np.int64)
        prompts = self.ids.cpu().numpy()
        for i, (start, row) in enumerate(zip(starts, rows, strict=True)):
            ids[i, :start] = prompts[i, :start]
            ids[i, start : lengths[i]] = [*row, self.eos]
        return replace(self, ids=torch.from_numpy(ids), lengths=torch.tensor(lengths), target="prediction")

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


@checked
def task_tokenizer(kind: str, task: Task, fmt: Format) -> PreTrainedTokenizerBase:
    """The tokenizer of this kind covering the whole grid of `task` in `fmt`, and what else the format may write."""
    prompts, completions = texts(task, fmt)
    return build_tokenizer(kind, [*prompts, *completions, *fmt.further_texts(task)], fmt.atoms(task))


@checked
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
