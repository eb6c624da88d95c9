"""A direct model of sums with a token a number, seen as a function from (a, b) to one logit a possible answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cri.data.splits import in_square
from cri.data.tokenization import encode_texts
from cri.errors import CriError
from cri.models.activations import Site, check_sites
from cri.tasks import Addition
from cri.training.runs import Run
from cri.training.setup import Materials

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Edit = tuple[str, Callable[[Tensor, Int[np.ndarray, " case"]], Tensor]]
"""A hook name, and a function of the activation there [case, pos, ...] and the batch's case ids that returns what is to
stand in its place."""

OPERANDS = (0, 2)
"""Token positions of a and b in `a+b=`."""


@dataclass(frozen=True, eq=False)
class Subject:
    """What every analysis of this package needs of a model.

    Attributes:
        bridge: the model, opened.
        prompts: token ids of `a+b=`, [case, pos].
        cases: (a, b) of every case, [case, 2].
        number_tokens: the token of each number that can be an answer, [number].
        train: which cases were trained on, [case].
        square: which cases lie in the square that is studied, trained on or not, [case].
        size: operands are 0 .. size - 1.
    """

    bridge: TransformerBridge
    prompts: Int[Tensor, "case pos"]
    cases: Int[np.ndarray, "case 2"]
    number_tokens: Int[Tensor, " number"]
    train: Bool[np.ndarray, " case"]
    square: Bool[np.ndarray, " case"]
    size: int

    @property
    def sums(self) -> Int[np.ndarray, " case"]:
        return self.cases.sum(1)

    @property
    def n_layers(self) -> int:
        return int(self.bridge.cfg.n_layers)

    @property
    def inside(self) -> Int[np.ndarray, " inside"]:
        """Ids of the square's held-out cases."""
        return np.flatnonzero(self.square & ~self.train)

    @property
    def outside(self) -> Int[np.ndarray, " outside"]:
        """Ids of training cases outside the square whose sums occur in it: the place differs, not the sum."""
        low, high = self.sums[self.square].min(), self.sums[self.square].max()
        return np.flatnonzero(~self.square & self.train & (self.sums >= low) & (self.sums <= high))

    @property
    def d_head(self) -> int:
        return int(self.bridge.cfg.d_head)

    def regions(self) -> dict[str, Int[np.ndarray, " case"]]:
        return {"inside": self.inside, "outside": self.outside}

    def embedding(self) -> Float[np.ndarray, "number d"]:
        """Embeddings of the operands 0 .. size - 1."""
        return self.bridge.embed.weight.detach()[self.number_tokens[: self.size]].float().numpy().copy()

    @torch.no_grad()
    def logits(
        self, ids: Int[np.ndarray, " case"], edits: Sequence[Edit] = (), *, batch_size: int = 2048
    ) -> Float[np.ndarray, "case number"]:
        """Logits of every number at the prompt's end, float32, with activations edited on the way."""
        check_sites(self.bridge, [Site(name) for name, _ in edits])
        parts = []
        for start in range(0, len(ids), batch_size):
            batch = np.asarray(ids[start : start + batch_size])
            hooks: list[Any] = [
                (name, lambda tensor, hook, change=change, batch=batch: change(tensor.clone(), batch))
                for name, change in edits
            ]
            out = self.bridge.run_with_hooks(self.prompts[batch], fwd_hooks=hooks)[:, -1]
            parts.append(out[:, self.number_tokens].float().numpy())
        return np.concatenate(parts)

    def given(self, ids: Int[np.ndarray, " case"], edits: Sequence[Edit] = ()) -> Int[np.ndarray, " case"]:
        """The number that each case is answered with: the one of the greatest logit."""
        return self.logits(ids, edits).argmax(1)

    def right(self, ids: Int[np.ndarray, " case"], edits: Sequence[Edit] = ()) -> Bool[np.ndarray, " case"]:
        return self.given(ids, edits) == self.sums[ids]

    @torch.no_grad()
    def collect(
        self, hooks: Sequence[str], ids: Int[np.ndarray, " case"] | None = None
    ) -> dict[str, Float[np.ndarray, "case d"]]:
        """Activations at the prompt's end, float32, by hook name; of every case where no ids are given.
        Heads' vectors are laid end to end."""
        check_sites(self.bridge, [Site(name) for name in hooks])
        rows = np.arange(len(self.cases)) if ids is None else ids
        parts: dict[str, list[np.ndarray]] = {name: [] for name in hooks}
        for start in range(0, len(rows), 2048):
            prompts = self.prompts[rows[start : start + 2048]]
            cache = self.bridge.run_with_cache(prompts, names_filter=list(hooks))[1]
            for name in hooks:
                parts[name].append(cache[name][:, -1].flatten(1).float().numpy())
        return {name: np.concatenate(found) for name, found in parts.items()}


def residual_hooks(n_layers: int) -> list[str]:
    """The residual stream after the embedding, after every attention and after every layer."""
    middle = [f"blocks.{i}.hook_resid_{where}" for i in range(n_layers) for where in ("mid", "post")]
    return ["blocks.0.hook_resid_pre", *middle]


def open_subject(run: Run | Materials, center: Sequence[int] | None = None, half_side: int = 10) -> Subject:
    """The subject of a run, studied in the square around `center` (the task's own where none is given).

    Raises `CriError` for another task than addition, another format than direct, and a tokenizer that does not give
    every number one token: spectra and phases are functions of a number's token.
    """
    from cri.models.loading import to_bridge

    if not isinstance(run.task, Addition):
        raise CriError(f"task: {run.task.name} has no geometry of sums here; use addition")
    if run.format.name != "direct":
        raise CriError(f"format: {run.format.name} does not decide the answer at the prompt's end; use direct")
    size = run.task.size
    encoded = encode_texts(run.tokenizer, [str(n) for n in range(2 * size - 1)])
    if any(len(ids) != 1 for ids in encoded):
        raise CriError("tokenizer: does not give every number a token of its own; use a run with number tokens")
    length = int(run.tokens.prompt_lengths[0])
    square = in_square(run.task, run.task.center if center is None else center, half_side)
    bridge = run.bridge if isinstance(run, Run) else to_bridge(run.model, run.tokenizer)
    numbers = torch.tensor([ids[0] for ids in encoded])
    return Subject(bridge, run.tokens.ids[:, :length], run.task.cases, numbers, run.split.train, square, size)
