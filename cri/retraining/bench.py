"""`cri bench`: does an attribution method predict what retraining does? Judges scores of your own, or a method by name,
against recorded retrainings, in about a minute on a CPU and without training.

Examples:
  cri bench --list                                  what was recorded
  cri bench --cases cases.csv                       which case each row and column of the scores is
  cri bench --scores mine.npy                       your scores [training case, test case], saved by numpy.save
  cri bench --method GradCos --grid small           a method of this package, on the 30 x 30 grid
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cri.cli import run_command
from cri.errors import CriError
from cri.storage import require_replaceable, write_text

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class BenchCommand:
    """What to judge, and against which retrainings."""

    scores: Path | None = None
    """File of scores [training case, test case], written by `numpy.save`; larger supports the answer more."""
    method: str = ""
    """Name of a method of this package, instead of `scores`."""
    ground_truth: str = "addition/number/random"
    """TASK/TOKENIZER/SPLIT of the retrained models."""
    grid: Literal["paper", "small"] = "paper"
    """100 x 100 cases, or 30 x 30 and less."""
    target: Literal["true", "predicted"] = "true"
    """Whose answer is explained: the right one, or what the explained model says."""
    region: Literal["all", "square", "outside"] = "all"
    """Test cases of the square split."""
    records: Path | None = None
    """Folder of recorded retrainings; `studies/retraining_bank` of this folder or of the checkout by default."""
    list: bool = False
    """List the ground truths, and stop."""
    cases: Path | None = None
    """Write the case of each row and column of the scores to this CSV file, and stop."""
    out: Path = Path("build/bench.csv")
    """The table."""


def read_scores(path: Path) -> np.ndarray:
    """An array written by `numpy.save`; raises `CriError` for anything else."""
    import numpy as np

    if path.exists() and not path.is_file():  # reading a named pipe would wait for ever
        raise CriError(f"scores: {path} is not a file")
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CriError(f"scores: {path} is no array that numpy.save wrote ({error})") from error
    if not isinstance(found, np.ndarray):
        raise CriError(f"scores: {path} holds several arrays; save one with numpy.save")
    return found


def run(command: BenchCommand) -> None:
    """The whole command."""
    from cri.retraining.benchmark import benchmark, ground_truth, ground_truths

    if command.list:
        print(ground_truths(command.records).to_string(index=False))
        return
    if command.cases is None and (command.scores is None) == (not command.method):
        raise CriError("scores, method: give one of the two (--scores FILE.npy or --method NAME)")
    where = command.out if command.cases is None else command.cases
    require_replaceable(where, "out" if command.cases is None else "cases")
    truth = ground_truth(command.ground_truth, grid=command.grid, target=command.target, records=command.records)
    if command.cases is not None:
        write_text(where, truth.cases().to_csv(index=False))
        print(f"scores must be [training case, test case] = {list(truth.shape)}", file=sys.stderr)
        print(where)
        return
    method = command.method if command.scores is None else read_scores(command.scores)
    name = None if command.scores is None else command.scores.stem
    table = benchmark(method, truth, region=command.region, name=name)
    write_text(where, table.to_csv(index=False, float_format="%.5g"))
    print(table.to_string(index=False, float_format=lambda x: f"{x:.3f}", na_rep=""))
    print("\nIntervals: 95 %. The gain is over the best model-free method; recorded rows have no interval for it.")
    print(where)


def main() -> None:
    """`cri bench`."""
    run_command(BenchCommand, run, __doc__, prog="cri bench")
