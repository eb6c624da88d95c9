"""Options that every study has in common, and the name of a family of models. Free of torch, for `--help`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cri.errors import CriError

EXAMPLE = "addition:direct:number"


@dataclass(frozen=True)
class StudyOptions:
    """Where a study writes."""

    out: Path = Path("build")
    """Tables go to `studies/` and figures to `figures/` below this folder, which git ignores. `--out .` writes over the
    tables and figures that this repository records."""

    def tables(self, study: str, name: str) -> Path:
        """Folder of a study's tables."""
        return self.out / "studies" / study / name

    @property
    def figures(self) -> Path:
        return self.out / "figures"


@dataclass(frozen=True)
class WorkOptions(StudyOptions):
    """Who trains."""

    jobs: int = 0
    """Models trained at once on CPU; 0 is one a core."""
    device: str = "auto"
    """`auto` takes a GPU where there is one."""


@dataclass(frozen=True)
class RunOptions(WorkOptions):
    """Where trained models are found, or put."""

    runs: Path = Path("runs")
    """Folder of trained runs."""


@dataclass(frozen=True)
class FamilyName:
    """TASK:FORMAT:TOKENIZER: models that differ in split, size and seed alone."""

    task: str
    format: str
    tokenizer: str

    @classmethod
    def parse(cls, text: str, field: str = "family") -> FamilyName:
        """Raises `CriError` naming `field` for anything that has not three parts."""
        parts = text.split(":")
        if len(parts) != 3 or not all(parts):
            raise CriError(f"{field}: {text!r} is not TASK:FORMAT:TOKENIZER (for example {EXAMPLE})")
        return cls(*parts)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> FamilyName:
        """Of a table's row, which has a column for each part."""
        return cls(str(row["task"]), str(row["format"]), str(row["tokenizer"]))

    def __str__(self) -> str:
        return f"{self.task}:{self.format}:{self.tokenizer}"

    @property
    def folder(self) -> str:
        """As folders are called: `addition-direct-number`."""
        return f"{self.task}-{self.format}-{self.tokenizer}"

    @property
    def title(self) -> str:
        """As figures call it: `addition, digit tokens`; the format is named unless it is the direct one."""
        how = "" if self.format == "direct" else f"{self.format}, "
        return f"{self.task.replace('_', ' ')}, {how}{self.tokenizer} tokens"

    @property
    def order(self) -> tuple[str, str, bool]:
        """Sort key: addition before the other tasks, direct before longer formats, number tokens first."""
        return self.task, self.format, self.tokenizer != "number"
