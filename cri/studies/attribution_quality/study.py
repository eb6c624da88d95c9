"""Which attribution method predicts what retraining does?

`python -m cri.studies.attribution_quality [preset] [--option ...]` takes the recorded retrainings on random training
subsets of `cri.retraining.bank` (and makes them where none are recorded), scores every training case for every
query by each method on the base models, and reports the linear datamodeling score with its noise ceiling, the gain
over the best baseline that is model-free, and the partial score given it; and how many removed cases it takes to lose
a right answer.
"""

from __future__ import annotations

import time
from pathlib import Path

from cri.attribution.methods import help_text, settings
from cri.cli import run_command
from cri.options import EXAMPLE, FamilyName
from cri.retraining import bank as retraining_bank
from cri.studies.attribution_quality.config import NAME, PRESETS, AttributionQuality
from cri.studies.common.records import code_hash, recording


def run(config: AttributionQuality) -> list[Path]:
    """Makes tables and figures, prints the scores, returns the figures' paths."""
    from cri.studies.attribution_quality.figures import draw
    from cri.studies.attribution_quality.tables import compute

    started = time.perf_counter()
    name = FamilyName.parse(config.family).folder
    folder = config.tables(NAME, config.bank if config.family == EXAMPLE else f"{config.bank}-{name}")
    with recording(folder, config.figures) as record:
        source = retraining_bank.find_or_make(config, "subsets-", name) / name
        tables = compute(source, config)
        facts = {
            "bank": config.bank,
            "family": config.family,
            "records": retraining_bank.checksums(source.parent, "base", "subsets-*", "top-k"),
            "methods": settings(),
            "code": code_hash("attribution_quality/tables.py"),
            "seconds": round(time.perf_counter() - started, 1),
        }
        figures = record.write(tables, facts, draw)
    lds = tables["lds"]
    shown = lds[(lds["region"] == "all") | (lds["split"] == "random")]
    columns = [
        "subsets",
        "target",
        "retraining",
        "method",
        "lds",
        "lds_low",
        "lds_high",
        "gain_low",
        "gain_high",
        "partial",
    ]
    print(f"\nLinear datamodeling score\n{shown[columns].to_string(index=False, float_format=lambda x: f'{x:.3f}')}")
    if "ceiling" in tables:  # only where subsets were trained with several seeds
        print(f"\nNoise ceiling\n{tables['ceiling'].to_string(index=False, float_format=lambda x: f'{x:.3f}')}")
    print("\nTables", folder, "\nFigures", *figures, sep="\n  ")
    return figures


def main() -> None:
    """`python -m cri.studies.attribution_quality`."""
    run_command(
        AttributionQuality, run, f"{__doc__}\n\n{help_text()}", presets=PRESETS, prog=f"python -m cri.studies.{NAME}"
    )
