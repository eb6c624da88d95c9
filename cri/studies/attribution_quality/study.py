"""Which attribution method foretells what retraining does?

`python -m cri.studies.attribution_quality [preset] [--option ...]` takes the recorded retrainings on random training
subsets of `cri.retraining.bank` (and makes them where none are recorded), scores every training case for every
query by each method on the base models, and reports the linear datamodeling score with its noise ceiling, the gain
over the best baseline that asks no model, and the partial score given it; and how many removed cases it takes to lose
a right answer.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from cri.cli import run_command
from cri.errors import CriError, out_of_range, unknown_name
from cri.retraining import bank as retraining_bank
from cri.studies.common.records import code_hash, write_record

NAME = "attribution_quality"


@dataclass(frozen=True)
class AttributionQuality:
    """Which retrainings to read, and which methods to judge."""

    bank: str = "cpu"
    """Preset of `retraining_bank` whose records are read, and made where there are none; it names the folder of tables
    and the figures."""
    family: str = "addition:direct:number"
    """TASK:FORMAT:TOKENIZER of the models that are explained."""
    dampings: tuple[float, ...] = (1e-6, 1e-4, 0.001, 0.01, 0.1, 1.0)
    """Relative dampings of EK-FAC that are compared with the one chosen beforehand (`quality_scores.DAMPING`)."""
    tracin: bool = True
    """Train the first base model again on the CPU, for checkpoints."""
    cg_steps: int = 8
    """Conjugate-gradient steps that refine EK-FAC, on the Fisher of 2,000 training cases; 0 leaves them out."""
    ensemble: int = 24
    """Models trained on random halves of the training cases, whose EK-FAC scores are averaged with those of the base
    models; 0 leaves them out."""
    n_boot: int = 1000
    """Bootstrap samples."""
    records: Path = Path("studies") / retraining_bank.NAME
    """Folder of recorded retrainings."""
    record: Path = Path("studies") / NAME
    """Folder of recorded tables."""
    figures: Path = Path("figures")
    runs: Path = Path("runs")
    """Folder of the ensemble's models."""
    jobs: int = 0
    """Models trained at once on CPU; 0 is one a core."""
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.bank not in retraining_bank.PRESETS:
            raise unknown_name("bank", self.bank, retraining_bank.PRESETS)
        if self.family.count(":") != 2:
            raise CriError(f"family: {self.family!r} is not TASK:FORMAT:TOKENIZER (for example addition:direct:number)")
        if any(not 0 < d < float("inf") for d in self.dampings):
            raise out_of_range("dampings", self.dampings, "positive and finite")
        for field, low in (("n_boot", 100), ("cg_steps", 0), ("ensemble", 0)):
            if getattr(self, field) < low:
                raise out_of_range(field, getattr(self, field), f"at least {low}")


PRESETS = {
    "cpu": AttributionQuality(),
    "gpu": AttributionQuality(bank="gpu"),
    "test": AttributionQuality(bank="test", dampings=(1.0,), cg_steps=2, ensemble=2, n_boot=100),
}


def run(config: AttributionQuality) -> list[Path]:
    """Makes tables and figures, prints the scores, returns the figures' paths."""
    from cri.storage import locked
    from cri.studies.attribution_quality.figures import draw
    from cri.studies.attribution_quality.tables import compute

    started = time.perf_counter()
    name = config.family.replace(":", "-")
    source = retraining_bank.find_or_make(config, "subsets-", name) / name
    folder = config.record / (config.bank if config.family == PRESETS["cpu"].family else f"{config.bank}-{name}")
    tables = compute(source, config)
    with locked(folder):
        facts = {
            "bank": config.bank,
            "family": config.family,
            "records": retraining_bank.checksums(source.parent, "base", "subsets-*", "top-k"),
            "code": code_hash("attribution_quality/tables.py"),
            "seconds": round(time.perf_counter() - started, 1),
        }
        write_record(folder, tables, facts)
    figures = draw(folder, config.figures)
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
    run_command(AttributionQuality, run, __doc__, presets=PRESETS, prog=f"python -m cri.studies.{NAME}")


if __name__ == "__main__":
    main()
