"""Does a prediction change when the cases that it might rest on are removed and the model is retrained?

`python -m cri.studies.counterfactual_removal [preset] [--option ...]` takes the recorded retrainings of
`cri.retraining.bank` (and makes them where none are recorded), measures what removing nearby cases does beside
cases that share a rule step, an operand, the answer, or nothing, and ends with the removal index of every model and
its calibration on planted mechanisms.
"""

from __future__ import annotations

import time
from pathlib import Path

from cri.cli import run_command
from cri.retraining import bank as retraining_bank
from cri.retraining import config as bank_config
from cri.studies.common.records import code_hash, recording
from cri.studies.counterfactual_removal.config import NAME, PRESETS, CounterfactualRemoval


def run(config: CounterfactualRemoval) -> list[Path]:
    """Makes tables and figures, prints the index and its calibration, returns the figures' paths."""
    from cri.studies.counterfactual_removal.figures import draw
    from cri.studies.counterfactual_removal.tables import compute

    started = time.perf_counter()
    with recording(config.tables(NAME, config.bank), config.figures) as record:
        source = retraining_bank.find_or_make(config, bank_config.DESIGNED_REMOVALS)
        tables = compute(source, config.n_boot)
        facts = {
            "bank": config.bank,
            "models": bank_config.PRESETS[config.bank].shape,
            "records": retraining_bank.checksums(source, "base", "removals-*", "subsets-*", "near-sizes"),
            "n_boot": config.n_boot,
            "code": code_hash("counterfactual_removal/tables.py"),
            "seconds": round(time.perf_counter() - started, 1),
        }
        figures = record.write(tables, facts, draw)
    index = tables["index"]
    shown = index[index["target"] == "prediction"].drop(columns="target")
    numbers = {"index": False, "float_format": lambda x: f"{x:.2f}"}
    print(f"\nRemoval index\n{shown.to_string(**numbers)}")
    if "dose_index" in tables:
        print(f"\nRemoval index from random subsets\n{tables['dose_index'].to_string(**numbers)}")
    if "calibration" in tables:
        print(f"\nCalibration: patchwork against digit_table\n{tables['calibration'].to_string(**numbers)}")
    print("\nTables", record.folder, "\nFigures", *figures, sep="\n  ")
    return figures


def main() -> None:
    """`python -m cri.studies.counterfactual_removal`."""
    run_command(CounterfactualRemoval, run, __doc__, presets=PRESETS, prog=f"python -m cri.studies.{NAME}")
