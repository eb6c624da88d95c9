"""`python -m cri.explore RUN [RUN ...]`: one page of one or several runs of a grid, to open from disk.

The first run is what the page opens with; the others stand beside it: the random split, another seed, another format.

Example:
  cri explore addition-direct-square addition-direct-random --out build/explorer.html
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from cri.cli import run_command
from cri.errors import CriError, out_of_range
from cri.storage import require_replaceable, write_text
from cri.training.listing import find_run


@dataclass(frozen=True)
class ExploreConfig:
    """Which runs, and how much of them."""

    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUN")]
    """Folders of finished runs, or the beginnings of their names below `--runs-folder`."""
    folder: Annotated[Path, arg(name="runs-folder")] = Path("runs")
    """Where runs are looked for by name."""
    out: Path = Path("build/explorer.html")
    """The page."""
    methods: tuple[str, ...] = ("GradCos", "EK-FAC")
    """Attribution methods to score, besides the similarities."""
    cases: int = 441
    """Held-out cases that are explained, those of the square first."""
    sites: Literal["all", "last"] = "all"
    """The residual stream after every layer, or after the last alone: a smaller page."""


def run(config: ExploreConfig) -> Path:
    """Writes the page and returns its path."""
    if not config.runs:
        raise CriError("runs: give at least one finished run")
    if config.cases < 1:
        raise out_of_range("cases", config.cases, "at least 1")
    if config.out.is_dir():
        raise CriError(f"out: {config.out} is a folder; name a file such as page.html")
    require_replaceable(config.out, "out")
    from cri.explore.page import page
    from cri.explore.payload import payload
    from cri.training.runs import load_run

    opened = [load_run(find_run(config.folder, name)) for name in config.runs]
    text = page(payload(opened, config.methods, config.cases, config.sites))
    write_text(config.out, text)
    if all(run.config.split != "random" for run in opened):
        print("no run of a random split is given, so no map has that control beside it", file=sys.stderr)
    print(f"{len(text) / 2**20:.1f} MiB; open it in a browser", file=sys.stderr)
    print(config.out)
    return config.out


def main() -> None:
    """`python -m cri.explore`."""
    run_command(ExploreConfig, run, __doc__, prog="python -m cri.explore")
