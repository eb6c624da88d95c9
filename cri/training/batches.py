"""The order of batches and the learning rates of a run: functions of seed and step alone.

That is what makes a resumed run see what the uninterrupted one would have seen.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cri.data.case_ids import check_case_ids
from cri.errors import CriError


def learning_rates(steps: int, lr: float, warmup: float) -> Float[np.ndarray, " step"]:
    """Learning rate of every step: linear to `lr` over the fraction `warmup` of the steps, then cosine towards 0."""
    step = np.arange(steps)
    warm = max(1, round(warmup * steps))
    cosine = 0.5 * (1 + np.cos(np.pi * (step - warm) / max(1, steps - warm)))
    return lr * np.where(step < warm, (step + 1) / warm, cosine)


def uniform(keys: Int[Tensor, "*shape"], seed: int) -> Float[Tensor, "*shape"]:
    """Numbers in [0, 1) that depend on key and seed alone: a 32-bit mix of shifts and products, on any device."""
    low = (1 << 32) - 1
    x = (keys * 0x9E3779B1 + seed * 0x7FEB352D + 0x1B873593) & low
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        x = ((x ^ (x >> shift)) * factor) & low
    return x.to(torch.float64).div(1 << 32).float().clamp(max=1 - 2**-24)


class BatchStream:
    """Case ids of every batch: a new permutation each epoch, the last incomplete batch dropped.

    Where sequences differ in length, batches are formed from neighbours in length within windows of
    `window` batches (and their order shuffled), so that little is padded. Fewer cases than a batch:
    each batch is all of them. Raises `CriError` for no cases.
    """

    def __init__(
        self,
        train_ids: Int[np.ndarray, " train"],
        lengths: Int[np.ndarray, " case"],
        batch_size: int,
        seed: int,
        window: int = 32,
    ) -> None:
        if len(train_ids) == 0:
            raise CriError("split: no training cases")
        train_ids = check_case_ids(train_ids, len(lengths), "train_ids")
        self.train_ids, self.lengths, self.seed, self.window = train_ids, lengths, seed, window
        self.size = min(batch_size, len(train_ids))
        self.per_epoch = len(train_ids) // self.size
        self.uniform = len(np.unique(lengths[train_ids])) == 1

    def epoch(self, epoch: int) -> Int[np.ndarray, "step batch"]:
        """The batches of one epoch."""
        size, window = self.size, self.window * self.size
        rng = np.random.default_rng([self.seed, epoch])
        order = self.train_ids[rng.permutation(len(self.train_ids))][: self.per_epoch * size]
        if self.uniform:
            return order.reshape(self.per_epoch, size)
        for start in range(0, len(order), window):
            part = order[start : start + window]
            order[start : start + window] = part[np.argsort(self.lengths[part], kind="stable")]
        return order.reshape(self.per_epoch, size)[rng.permutation(self.per_epoch)]

    def batches(self, start: int, stop: int) -> Int[np.ndarray, "step batch"]:
        """The batches of steps `start` to `stop` (not included)."""
        first, last = start // self.per_epoch, -(-stop // self.per_epoch)
        rows = np.concatenate([self.epoch(e) for e in range(first, last)])
        return rows[start - first * self.per_epoch : stop - first * self.per_epoch]


def batch_order(
    train_ids: Int[np.ndarray, " train"],
    lengths: Int[np.ndarray, " case"],
    *,
    batch_size: int,
    steps: int,
    seed: int,
) -> Int[np.ndarray, "step batch"]:
    """Case ids of the first `steps` batches (see `BatchStream`)."""
    return BatchStream(train_ids, lengths, batch_size, seed).batches(0, steps)
