"""Addition in base 10: `42+57=` -> `99`."""

from __future__ import annotations

from typing import ClassVar

from cri.config import TrainConfig
from cri.tasks.base import SquareGrid
from cri.tasks.registry import task
from cri.tasks.sums import Sums


@task
class Addition(SquareGrid, Sums):
    """`a+b=` -> `a+b` in base 10."""

    name: ClassVar[str] = "addition"
    color: ClassVar[str] = "#0072B2"
    recipes: ClassVar[dict[str, TrainConfig]] = {"direct": TrainConfig(steps=4000, lr=8e-3)}
