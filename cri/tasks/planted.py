"""Tasks with a planted mechanism, to calibrate instruments on: answered from nearby cases only, and from steps only."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from cri.checks import check_memory
from cri.tasks.base import SquareGrid, Task, require
from cri.tasks.steps import Step


@dataclass(frozen=True)
class _Labelling(SquareGrid):
    """A labelling whose mechanism is known, to calibrate instruments on: labels in 0 .. n_labels-1.

    The rule step of a case is the pair of its operands' last digits, whether the labels come from it or not: both
    plantings are asked the same question.
    """

    n_labels: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.n_labels >= 2, "n_labels", self.n_labels, "at least 2")

    def steps(self, a: int, b: int) -> tuple[Step, ...]:
        return (Step("table", a % 10, b % 10, 0),)


@dataclass(frozen=True)
class Patchwork(_Labelling):
    """The label of the nearest of `n_sites` random sites, each with a random label: local structure and no rule, so a
    case can be answered from nearby cases only. By default a patch has as many cases as a pair of digits."""

    name: ClassVar[str] = "patchwork"
    n_sites: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.n_sites >= 1, "n_sites", self.n_sites, "at least 1")
        check_memory("n_sites", self.n_sites, 8 * self.n_sites * self.size**2, "distances to the sites")

    @cached_property
    def _labels(self) -> Int[np.ndarray, "row col"]:
        rng = np.random.default_rng(self.seed)
        sites = rng.uniform(0, self.size, size=(self.n_sites, 2))
        cells = np.arange(self.size)[:, None]
        rows, cols = ((cells - sites[:, axis]) ** 2 for axis in (0, 1))
        nearest = (rows[:, None] + cols).argmin(axis=-1)
        return rng.integers(self.n_labels, size=len(sites))[nearest]

    def value(self, a: int, b: int) -> int:
        return int(self._labels[a, b])


@dataclass(frozen=True)
class DigitTable(_Labelling):
    """A random table over the pair of last digits: each case is one step, whose label can be learnt only from the
    cases that execute it, wherever they lie."""

    name: ClassVar[str] = "digit_table"

    @cached_property
    def _table(self) -> Int[np.ndarray, "10 10"]:
        return np.random.default_rng(self.seed).integers(self.n_labels, size=(10, 10))

    def value(self, a: int, b: int) -> int:
        return int(self._table[a % 10, b % 10])


PLANTED: dict[str, type[Task]] = {t.name: t for t in (Patchwork, DigitTable)}
"""Tasks with a planted mechanism: answered from nearby cases, and from steps."""
