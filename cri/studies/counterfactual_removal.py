"""Does a prediction change when the cases that it might rest on are removed and the model is retrained?

`python -m cri.studies.counterfactual_removal [preset] [--option ...]` takes the recorded retrainings of
`cri.studies.retraining_bank` (and makes them where none are recorded), measures what removing nearby cases does beside
cases that share a rule step, an operand, the answer, or nothing, and ends with the removal index of every model and
its calibration on planted mechanisms.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cri.cli import run_command
from cri.errors import CriError, out_of_range, unknown_name
from cri.studies import retraining_bank

NAME = "counterfactual_removal"
MANIFEST = "manifest.json"
REMOVALS = "removals-"
"""Plans of designed removals begin so."""


@dataclass(frozen=True)
class CounterfactualRemoval:
    """Which retrainings to read."""

    bank: str = "cpu"
    """Preset of `retraining_bank` whose records are read, and made where there are none; it names the folder of tables
    and the figures."""
    records: Path = Path("studies") / retraining_bank.NAME
    """Folder of recorded retrainings."""
    n_boot: int = 2000
    """Bootstrap samples."""
    record: Path = Path("studies") / NAME
    """Folder of recorded tables."""
    figures: Path = Path("figures")
    jobs: int = 0
    """Models trained at once on CPU; 0 is one a core."""
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.bank not in retraining_bank.PRESETS:
            raise unknown_name("bank", self.bank, retraining_bank.PRESETS)
        if self.n_boot < 100:
            raise out_of_range("n_boot", self.n_boot, "at least 100")


PRESETS = {
    "cpu": CounterfactualRemoval(),
    "gpu": CounterfactualRemoval(bank="gpu"),
    "test": CounterfactualRemoval(bank="test", n_boot=200),
}


def recorded(config: Any, plan: str, family: str = "*") -> Path:
    """The bank's folder. Where it holds no finished record of a plan of the family (of any by default) that begins with
    `plan`, the bank is made first, for removals also its planted models. Raises `CriError` for a family that the preset
    has not."""
    import dataclasses

    from cri.runs import is_complete

    preset = retraining_bank.PRESETS[config.bank]
    folder = config.records / preset.name
    if not any(is_complete(path) for path in folder.glob(f"{family}/{plan}*")):
        if not any(p.replace(":", "-").split("/")[0] == family for p in preset.plans) and family != "*":
            raise CriError(f"family: {family} is not recorded in {folder}, nor among the plans of that preset")
        for name in (config.bank, f"{config.bank}-planted"):
            if name in retraining_bank.PRESETS and (name == config.bank or plan == REMOVALS):
                bank = retraining_bank.PRESETS[name]
                bank = dataclasses.replace(bank, record=config.records, jobs=config.jobs, device=config.device)
                retraining_bank.run(bank)
    return folder


def sources(folder: Path, pattern: str) -> dict[str, str]:
    """Checksums of the records that a table rests on, for its manifest."""
    from cri.runs import MARKER, file_sha256

    markers = sorted(folder.glob(f"*/{pattern}/{MARKER}"))
    return {f"{m.parent.parent.name}/{m.parent.name}": file_sha256(m)[:16] for m in markers}


def code_hash(*names: str) -> str:
    """Hash of the package without plots and studies, and of the named studies' files."""
    from cri.runs import file_sha256

    package = Path(__file__).parents[1]
    files = [f for f in sorted(package.rglob("*.py")) if f.parent.name not in ("plots", "studies")]
    files += [Path(__file__).parent / name for name in names]
    listed = {str(f.relative_to(package)): file_sha256(f) for f in files}
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()[:16]


def run(config: CounterfactualRemoval) -> list[Path]:
    """Makes tables and figures, prints the index and its calibration, returns the figures' paths."""
    from cri.runs import MARKER, locked, mark_complete, provenance, write_json, write_text
    from cri.studies.removal_figures import draw
    from cri.studies.removal_tables import compute

    started = time.perf_counter()
    source = recorded(config, REMOVALS)
    folder = config.record / config.bank
    tables = compute(source, config.n_boot)
    with locked(folder):
        (folder / MARKER).unlink(missing_ok=True)
        for name, table in tables.items():
            write_text(folder / f"{name}.csv", table.to_csv(index=False, float_format="%.5g"))
        facts = {
            "bank": config.bank,
            "models": retraining_bank.PRESETS[config.bank].shape,
            "records": {**sources(source, "base"), **sources(source, "removals-*"), **sources(source, "subsets-*")},
            "n_boot": config.n_boot,
            "code": code_hash("removal_tables.py"),
            "seconds": round(time.perf_counter() - started, 1),
        }
        write_json(folder / MANIFEST, {**facts, **provenance()})
        mark_complete(folder, [MANIFEST, *(f"{name}.csv" for name in tables)])
    figures = draw(folder, config.figures)
    index = tables["index"]
    shown = index[index["target"] == "prediction"].drop(columns="target")
    numbers = {"index": False, "float_format": lambda x: f"{x:.2f}"}
    print(f"\nRemoval index\n{shown.to_string(**numbers)}")
    if "calibration" in tables:
        print(f"\nCalibration: patchwork against digit_table\n{tables['calibration'].to_string(**numbers)}")
    print("\nTables", folder, "\nFigures", *figures, sep="\n  ")
    return figures


def main() -> None:
    """`python -m cri.studies.counterfactual_removal`."""
    run_command(CounterfactualRemoval, run, __doc__, presets=PRESETS, prog=f"python -m cri.studies.{NAME}")


if __name__ == "__main__":
    main()
