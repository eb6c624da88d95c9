"""Locality or step coverage: where does a model fail when as many cases are held out in another way?

`python -m cri.studies.leave_x_out [preset] [--option ...]` takes the recorded retrainings of
`cri.retraining.bank` (and makes them where none are recorded): a square, scattered crossings, rows, columns,
bands, whole answers, whole rule steps, random cases, each of the square's size; and the square slid over the grid.
Measured is the accuracy on the held-out cases themselves.
"""

from __future__ import annotations

import time
from pathlib import Path

from cri.cli import run_command
from cri.retraining import bank as retraining_bank
from cri.studies.common.records import code_hash, recording
from cri.studies.leave_x_out.config import NAME, PLANS, PRESETS, LeaveXOut


def run(config: LeaveXOut) -> list[Path]:
    """Makes tables and figures, prints accuracy by design, returns the figures' paths."""
    from cri.studies.leave_x_out.tables import compute, draw

    started = time.perf_counter()
    with recording(config.tables(NAME, config.bank), config.figures) as record:
        source = retraining_bank.find_or_make(config, PLANS[0])
        tables, axis_names = compute(source)
        facts = {
            "bank": config.bank,
            "axis_names": axis_names,
            "records": retraining_bank.checksums(source, *PLANS, "base", "image-*", "diagonal-*"),
            "code": code_hash("leave_x_out/tables.py"),
            "seconds": round(time.perf_counter() - started, 1),
        }
        figures = record.write(tables, facts, draw)
    shown = tables["summary"].to_string(index=False, float_format=lambda x: f"{x:.3f}")
    print(f"\nAccuracy on the held-out cases\n{shown}")
    print("\nTables", record.folder, "\nFigures", *figures, sep="\n  ")
    return figures


def main() -> None:
    """`python -m cri.studies.leave_x_out`."""
    run_command(LeaveXOut, run, __doc__, presets=PRESETS, prog=f"python -m cri.studies.{NAME}")
