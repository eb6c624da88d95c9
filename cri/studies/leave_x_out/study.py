"""Locality or step coverage: where does a model fail when as many cases are held out in another way?

`python -m cri.studies.leave_x_out [preset] [--option ...]` takes the recorded retrainings of
`cri.retraining.bank` (and makes them where none are recorded): a square, scattered crossings, rows, columns,
bands, whole answers, whole rule steps, random cases, each of the square's size; and the square slid over the grid.
Measured is the accuracy on the held-out cases themselves.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from cri.cli import run_command
from cri.errors import unknown_name
from cri.retraining import bank as retraining_bank
from cri.studies.common.records import code_hash, write_record

NAME = "leave_x_out"
PLANS = ("leave-out", "leave-out-mirror", "sliding")


@dataclass(frozen=True)
class LeaveXOut:
    """Which retrainings to read."""

    bank: str = "cpu"
    """Preset of `retraining_bank` whose records are read, and made where there are none; it names the folder of tables
    and the figures."""
    records: Path = Path("studies") / retraining_bank.NAME
    """Folder of recorded retrainings."""
    record: Path = Path("studies") / NAME
    """Folder of recorded tables."""
    figures: Path = Path("figures")
    jobs: int = 0
    """Models trained at once on CPU; 0 is one a core."""
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.bank not in retraining_bank.PRESETS:
            raise unknown_name("bank", self.bank, retraining_bank.PRESETS)


PRESETS = {"cpu": LeaveXOut(), "gpu": LeaveXOut(bank="gpu"), "test": LeaveXOut(bank="test")}


def run(config: LeaveXOut) -> list[Path]:
    """Makes tables and figures, prints accuracy by design, returns the figures' paths."""
    from cri.storage import locked
    from cri.studies.leave_x_out.tables import compute, draw

    started = time.perf_counter()
    source = retraining_bank.find_or_make(config, PLANS[0])
    folder = config.record / config.bank
    tables, axis_names = compute(source)
    with locked(folder):
        facts = {
            "bank": config.bank,
            "axis_names": axis_names,
            "records": retraining_bank.checksums(source, *PLANS),
            "code": code_hash("leave_x_out/tables.py"),
            "seconds": round(time.perf_counter() - started, 1),
        }
        write_record(folder, tables, facts)
    figures = draw(folder, config.figures)
    shown = tables["summary"].to_string(index=False, float_format=lambda x: f"{x:.3f}")
    print(f"\nAccuracy on the held-out cases\n{shown}")
    print("\nTables", folder, "\nFigures", *figures, sep="\n  ")
    return figures


def main() -> None:
    """`python -m cri.studies.leave_x_out`."""
    run_command(LeaveXOut, run, __doc__, presets=PRESETS, prog=f"python -m cri.studies.{NAME}")


if __name__ == "__main__":
    main()
