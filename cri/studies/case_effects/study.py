"""What does one training case change in an answer: at which offset, and by what it shares with the question?

`python -m cri.studies.case_effects [preset] [--option ...]` reads the models that `cri.retraining.bank` trained on
random halves (and makes them where none are recorded). It draws the mean change of a test case's log-odds for a
training case at each offset, tells apart by one regression what such cases share (place, answer, mirror image, tokens,
operands, rule steps by column), and says what is not told apart. The preset `calibration` asks the same of planted
mechanisms, and how often intervals hold the truth; `verdicts` makes one table of all verdicts that are recorded.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from cri.cli import run_command
from cri.retraining import bank as retraining_bank
from cri.studies.case_effects.config import NAME, PRESETS, CaseEffects
from cri.studies.common.records import code_hash, recording

REMOVALS = "counterfactual_removal"


def run(config: CaseEffects) -> list[Path]:
    """Makes tables and figures, prints the verdicts, returns the figures' paths."""
    from cri.studies.case_effects.calibration import calibrate
    from cri.studies.case_effects.figures import draw
    from cri.studies.case_effects.tables import compute
    from cri.studies.case_effects.verdicts import collect, sources

    started = time.perf_counter()
    facts: dict[str, Any] = {"bank": config.bank, "n_boot": config.n_boot, "code": code_hash(f"{NAME}/*.py")}
    simulated = bool(config.n_calibration or config.n_coverage)
    name = "verdicts" if config.verdicts else "calibration" if simulated else config.bank
    with recording(config.tables(NAME, name), config.figures) as record:
        if config.verdicts:
            tables = {"table": collect(config.recorded / NAME, config.recorded / REMOVALS, config.records)}
            facts = {"code": facts["code"], "tables": sources(config.recorded / NAME, config.recorded / REMOVALS)}
            shown = tables["table"].drop(columns=["bank", "split", "step_name", "n_compared"])
        elif simulated:
            tables = calibrate(config.n_calibration, config.n_coverage)
            shown = next(iter(tables.values()))
        else:
            source = retraining_bank.find_or_make(config, "subsets-")
            tables = compute(source, config.reach, config.n_boot)
            facts["records"] = retraining_bank.checksums(source, "base", "subsets-*")
            verdicts = tables["verdicts"]
            columns = ["task", "tokenizer", "region", "target", "cases", "reading", "supported", "near_minus_step",
                       "difference_low", "difference_high", "n_queries", "n_seeds"]  # fmt: skip
            shown = verdicts.loc[verdicts["model"] == "trained", columns]
        figures = record.write(tables, {**facts, "seconds": round(time.perf_counter() - started, 1)}, draw)
    print(shown.to_string(index=False, float_format=lambda x: f"{x:.2f}"))
    print("\nTables", record.folder, "\nFigures", *figures, sep="\n  ")
    return figures


def main() -> None:
    """`python -m cri.studies.case_effects`."""
    run_command(CaseEffects, run, __doc__, presets=PRESETS, prog=f"python -m cri.studies.{NAME}")
