"""Addition of numbers of any length, for length generalisation."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from cri.checks import check_memory
from cri.config import TrainConfig
from cri.errors import CriError
from cri.tasks.base import BYTES_A_CASE, require
from cri.tasks.length_sampling import sample_mixed_pairs, sample_pairs
from cri.tasks.registry import task
from cri.tasks.sums import Sums


@task
class LengthAddition(Sums):
    """`a+b=` -> `a+b` with operands of `min_digits..max_digits` digits, sampled without replacement.

    The longer operand has the nominal number of digits: see `cri.tasks.length_sampling`. Grid coordinates are
    (digits, index among the cases of that length); `Split` kind `lengths` divides by the former. With `mixed` set to 1
    the other operand has any number of digits up to that, equally likely, and in three of ten pairs as many.
    """

    name: ClassVar[str] = "length_addition"
    axis_names: ClassVar[tuple[str, str]] = ("digits", "index")
    recipes: ClassVar[dict[str, TrainConfig]] = {"rfft": TrainConfig(steps=4500, batch_size=32, lr=2e-3)}

    min_digits: int = 1
    max_digits: int = 5
    per_length: int = 1000
    seed: int = 0
    mixed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.mixed in (0, 1), "mixed", self.mixed, "0 or 1")
        require(self.min_digits >= 1, "min_digits", self.min_digits, "at least 1")
        require(self.max_digits >= self.min_digits, "max_digits", self.max_digits, f"at least {self.min_digits}")
        require(self.max_digits <= 1000, "max_digits", self.max_digits, "at most 1000")
        require(self.per_length >= 1, "per_length", self.per_length, "at least 1")
        n = self.per_length * (self.max_digits - self.min_digits + 1)
        check_memory("per_length", self.per_length, (BYTES_A_CASE + 2 * self.max_digits) * n, f"{n:,} cases")

    def enumerate_cases(self) -> Iterator[tuple[int, int]]:
        for n_digits in range(self.min_digits, self.max_digits + 1):
            draw = sample_mixed_pairs if self.mixed else sample_pairs
            yield from draw(n_digits, self.per_length, self.seed)

    @cached_property
    def n_digits(self) -> Int[np.ndarray, " case"]:
        """Digits of the longer operand of every case."""
        return np.array([len(str(max(pair))) for pair in self.operands], dtype=np.int64)

    @cached_property
    def coords(self) -> Int[np.ndarray, "case 2"]:
        first = np.searchsorted(self.n_digits, self.n_digits)  # ids run by length
        return np.stack([self.n_digits, np.arange(self.n_cases) - first], axis=1)

    @property
    def center(self) -> tuple[int, int]:
        raise CriError("split: length_addition has no main square; use split lengths")
