"""Banks: many trained models of one shape in one folder, and what they all say about the grid.

A finished bank holds `config.json` (of the run that the replicas vary), `replicas.csv` (one row a replica),
`weights.safetensors` (every parameter stacked, [replica, ...]), `maps.safetensors` ([replica, case]:
`train`, `correct`, `first_token`), `losses.csv`, `manifest.json` and `complete.json`. Shape and tokenizer are
built from the config, and checked by the hash of the tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from safetensors import safe_open
from safetensors.numpy import load_file
from safetensors.torch import load
from torch import Tensor

from cri.config import RunConfig
from cri.data.case_ids import check_case_ids
from cri.data.token_table import TokenTable
from cri.ensembles.stacked import Layout, StackedForward
from cri.errors import CriError, out_of_range
from cri.evaluation.decoding import Decoded, max_new_tokens_for
from cri.models.attention import SHORT
from cri.models.device import cases_forward
from cri.storage import read_json, verify
from cri.storage.compression import read_content, stored
from cri.tasks import Task
from cri.training.setup import Materials, prepare, require_same

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cri.data.splits import Split
    from cri.formats import Format

WEIGHTS = "weights.safetensors"
MAPS = "maps.safetensors"
TABLE = "replicas.csv"
LOSSES = "losses.csv"


@dataclass(frozen=True, eq=False)
class Bank:
    """A finished bank, opened.

    Attributes:
        path: its folder.
        config: the run that the replicas vary.
        table: one row a replica: `index, seed, lr, weight_decay, n_train, loss` (mean over the last logged
            steps), `train_acc` and `test_acc` (cases in and outside its own training set), and the caller's notes.
        train: which cases each replica was trained on, [replica, case].
        correct: which cases each answers rightly, decoding greedily from the prompt, [replica, case].
        first_token: the first token each answers with, [replica, case].
    """

    path: Path
    config: RunConfig
    table: pd.DataFrame
    train: Bool[np.ndarray, "replica case"]
    correct: Bool[np.ndarray, "replica case"]
    first_token: Int[np.ndarray, "replica case"]

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def materials(self) -> Materials:
        """Task, split, format, tokenizer and tokens (its model is untrained)."""
        return prepare(self.config)

    @property
    def task(self) -> Task:
        return self.materials.task

    @property
    def split(self) -> Split:
        return self.materials.split

    @property
    def format(self) -> Format:
        return self.materials.format

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.materials.tokenizer

    @property
    def tokens(self) -> TokenTable:
        return self.materials.tokens

    def state(self, replica: int) -> dict[str, Tensor]:
        """The named parameters of one replica."""
        if not -len(self) <= replica < len(self):
            raise out_of_range("replica", replica, f"in 0..{len(self) - 1}")
        return self._weights(replica % len(self))

    def model(self, replica: int) -> PreTrainedModel:
        """One replica as a plain Hugging Face model, on CPU, in eval mode."""
        model = copy.deepcopy(self.materials.model).eval()
        with torch.no_grad():
            for name, value in self.state(replica).items():
                model.get_parameter(name).copy_(value)
        return model

    def flat(self, replicas: slice, layout: Layout) -> Float[Tensor, "replica parameter"]:
        """Some replicas as rows of a stacked matrix, on CPU."""
        return layout.stack(self._weights(replicas))

    def _weights(self, replicas: int | slice) -> dict[str, Tensor]:
        """The parameters of these replicas by name; the others are not read, unless the file is compressed."""
        if stored(self.path / WEIGHTS) != self.path / WEIGHTS:
            return {name: value[replicas] for name, value in self._unpacked.items()}
        with safe_open(self.path / WEIGHTS, framework="pt") as file:
            return {name: file.get_slice(name)[replicas] for name in file.keys()}  # noqa: SIM118

    @cached_property
    def _unpacked(self) -> dict[str, Tensor]:
        return load(read_content(self.path / WEIGHTS))


def load_bank(path: Path | str) -> Bank:
    """Opens a finished bank.

    Raises `CriError` when `path` is no bank, `CorruptRunError` when a file was altered or the bank was made with
    other data than this code makes.
    """
    folder = Path(path)
    verify(folder)
    if not stored(folder / WEIGHTS).exists():
        raise CriError(f"bank: {folder} is a run, not a bank; open it with cri.training.runs.load_run")
    config = RunConfig.from_dict(read_json(folder / "config.json"))
    maps = load_file(folder / MAPS)
    bank = Bank(
        folder,
        config,
        pd.read_csv(folder / TABLE),
        maps["train"].astype(bool),
        maps["correct"].astype(bool),
        maps["first_token"],
    )
    require_same(folder, read_json(folder / "manifest.json")["identity"], bank.materials.identity)
    return bank


def _case_blocks(
    forward: StackedForward,
    flat: Tensor,
    prompt_lengths: Int[np.ndarray, " case"],
    width: int,
    n_logits: int,
    share: float = 0.25,
) -> Iterator[Int[np.ndarray, " block"]]:
    """Indices of cases in blocks of one prompt length that fit into `share` of the free memory, `n_logits` positions
    being scored."""
    size = cases_forward(forward.template.config, len(flat), width, n_logits, flat.device, share)
    for length in np.unique(prompt_lengths):
        rows = np.flatnonzero(prompt_lengths == length)
        for start in range(0, len(rows), size):
            yield rows[start : start + size]


@torch.no_grad()
def stacked_decode(
    forward: StackedForward, flat: Float[Tensor, "replica parameter"], tokens: TokenTable, share: float = 0.25
) -> list[Decoded]:
    """Greedy completions of every prompt by every model of a stack (see `cri.evaluation.decoding.decode`), in blocks of
    cases that fit into `share` of the free memory.

    Without a KV cache: for answers of a few tokens, recomputing the sequence is the lesser cost.
    """
    device, n = flat.device, len(tokens)
    max_new_tokens = max_new_tokens_for(tokens)
    ids_out = np.full((len(flat), n, max_new_tokens), tokens.eos, dtype=np.int64)
    lengths, finished = np.zeros((len(flat), n), dtype=np.int64), np.zeros((len(flat), n), dtype=bool)
    table = tokens.ids.to(device)
    for block in _case_blocks(forward, flat, tokens.prompt_lengths.numpy(), tokens.ids.shape[1], 1, share):
        start = int(tokens.prompt_lengths[block[0]])
        rows = torch.from_numpy(block).to(device)
        text = table[rows, :start].expand(len(flat), -1, -1)
        out = torch.full((len(flat), len(block), max_new_tokens), tokens.eos, device=device)
        ended = torch.zeros(out.shape[:2], dtype=torch.bool, device=device)
        alive = torch.arange(len(block), device=device)
        for i in range(max_new_tokens):
            token = forward.logits(flat, text, text.shape[2] - 1)[:, :, -1].argmax(-1)
            token = token.masked_fill(ended[:, alive], tokens.eos)
            out[:, alive, i] = token
            ended[:, alive] |= token == tokens.eos
            going = ~ended[:, alive].all(0)
            if not bool(going.any()):
                break
            alive = alive[going]
            text = torch.cat([text[:, going], token[:, going, None]], dim=2)
        ids_out[:, block] = out.cpu().numpy()
        finished[:, block] = ended.cpu().numpy()
    has_ended = ids_out == tokens.eos
    lengths = np.where(has_ended.any(2) & finished, has_ended.argmax(2), max_new_tokens)
    return [Decoded(*arrays) for arrays in zip(ids_out, lengths, finished, strict=True)]


def decodes_stacked(tokens: TokenTable) -> bool:
    """Whether completions are short enough for `stacked_decode` to be the quicker way."""
    return max_new_tokens_for(tokens) <= SHORT


class AnswerReader:
    """Says which completions answer their case rightly; equal completions of a case are read once."""

    def __init__(self, task: Task, fmt: Format, tokenizer: PreTrainedTokenizerBase, tokens: TokenTable) -> None:
        self.task, self.format, self.tokenizer = task, fmt, tokenizer
        starts, ids = tokens.prompt_lengths.numpy(), tokens.ids.numpy()
        self.lengths = tokens.lengths.numpy() - starts - 1  # without the end of sequence
        where = starts[:, None] + np.arange(self.lengths.max())
        self.reference = np.take_along_axis(ids, where.clip(max=ids.shape[1] - 1), axis=1)
        self.after_end = np.arange(self.lengths.max()) >= self.lengths[:, None]
        self._read: dict[tuple[int, tuple[int, ...]], bool] = {}

    def correct(self, decoded: Decoded) -> Bool[np.ndarray, " case"]:
        """Right answers among the completions of the whole grid."""
        width = min(decoded.ids.shape[1], self.reference.shape[1])
        same = (decoded.ids[:, :width] == self.reference[:, :width]) | self.after_end[:, :width]
        right = decoded.finished & (decoded.lengths == self.lengths) & same.all(axis=1)
        for case in np.flatnonzero(decoded.finished & ~right).tolist():
            completion = tuple(decoded.ids[case, : decoded.lengths[case]].tolist())
            key = (case, completion)
            if key not in self._read:
                a, b = self.task.operands[case]
                text = self.tokenizer.decode(list(completion))
                self._read[key] = self.format.read(self.task, a, b, str(text), finished=True).status == "right"
            right[case] = self._read[key]
        return right


@dataclass(frozen=True, eq=False)
class Scores:
    """What models say of cases, given the prompt (and, for `loss`, the reference completion).

    Attributes:
        margin: logit of the label minus the highest other logit, at the answer's first token, [replica, case].
        loss: cross-entropy summed over the reference completion and its end of sequence, [replica, case].
        first_token: the token with the highest logit at the answer's first token, [replica, case].
    """

    margin: Float[np.ndarray, "replica case"]
    loss: Float[np.ndarray, "replica case"]
    first_token: Int[np.ndarray, "replica case"]


@torch.no_grad()
def stacked_scores(
    forward: StackedForward,
    flat: Float[Tensor, "replica parameter"],
    tokens: TokenTable,
    case_ids: Int[np.ndarray, " case"],
    labels: Int[np.ndarray, " case"] | Int[np.ndarray, "replica case"] | None = None,
) -> Scores:
    """`Scores` of every model of a stack; `labels` are token ids, by default the first of each reference answer."""
    device, case_ids = flat.device, check_case_ids(case_ids, len(tokens))
    shape = (len(flat), len(case_ids))
    margin, loss = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
    first_token = np.zeros(shape, dtype=np.int32)
    prompt = tokens.prompt_lengths.numpy()
    answers = tokens.ids.numpy()[case_ids, prompt[case_ids]] if labels is None else np.asarray(labels)
    answers = np.broadcast_to(answers, shape)
    width = tokens.ids.shape[1]
    n_logits = width - int(prompt[case_ids].min())
    for block in _case_blocks(forward, flat, prompt[case_ids], width, n_logits):
        part = tokens[case_ids[block]]
        start = int(part.prompt_lengths[0])
        ids = part.ids.to(device)
        logits = forward.logits(flat, ids[:, :-1].expand(len(flat), -1, -1), start - 1).float()
        at_answer = logits[:, :, 0]
        label = torch.tensor(answers[:, block], dtype=torch.long, device=device)[..., None]
        own = at_answer.gather(-1, label)[..., 0]
        other = at_answer.scatter(-1, label, -torch.inf).amax(-1)
        targets = ids[:, start:].expand(len(flat), -1, -1)[..., None]
        token_loss = logits.logsumexp(-1) - logits.gather(-1, targets)[..., 0]
        token_loss = token_loss * part.target_mask[:, start:].to(device)
        margin[:, block] = (own - other).cpu().numpy()
        loss[:, block] = token_loss.sum(-1).cpu().numpy()
        first_token[:, block] = at_answer.argmax(-1).cpu().numpy()
    return Scores(margin, loss, first_token)
