"""A planted task that can be answered from steps only."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from cri.tasks.planted import Labelling
from cri.tasks.registry import task


@task
class DigitTable(Labelling):
    """A random table over the pair of last digits: each case is one step, whose label can be learnt only from the
    cases that execute it, wherever they lie."""

    name: ClassVar[str] = "digit_table"
    planted: ClassVar[str] = "steps only"

    @cached_property
    def _table(self) -> Int[np.ndarray, "10 10"]:
        return np.random.default_rng(self.seed).integers(self.n_labels, size=(10, 10))

    def value(self, a: int, b: int) -> int:
        return int(self._table[a % 10, b % 10])
