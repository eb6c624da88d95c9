"""A planted task that can be answered from nearby cases only."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from cri.checks import check_memory
from cri.tasks.base import require
from cri.tasks.planted import Labelling
from cri.tasks.registry import task


@task
class Patchwork(Labelling):
    """The label of the nearest of `n_sites` random sites, each with a random label: local structure and no rule, so a
    case can be answered from nearby cases only. By default a patch has as many cases as a pair of digits."""

    name: ClassVar[str] = "patchwork"
    planted: ClassVar[str] = "cases only"

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
