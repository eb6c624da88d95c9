"""Settings and presets of `cri.studies.counterfactual_removal`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cri.errors import out_of_range, unknown_name
from cri.options import WorkOptions
from cri.retraining import config as bank_config

NAME = "counterfactual_removal"


@dataclass(frozen=True)
class CounterfactualRemoval(WorkOptions):
    """Which retrainings to read."""

    bank: str = "cpu"
    """Preset of `retraining_bank` whose records are read, and made where there are none; it names the folder of tables
    and the figures."""
    records: Path = Path("studies") / bank_config.NAME
    """Folder of recorded retrainings; where it has none, those below `out` are read, and made."""
    n_boot: int = 2000
    """Bootstrap samples."""

    def __post_init__(self) -> None:
        if self.bank not in bank_config.PRESETS:
            raise unknown_name("bank", self.bank, bank_config.PRESETS)
        if self.n_boot < 100:
            raise out_of_range("n_boot", self.n_boot, "at least 100")


PRESETS = {
    "cpu": CounterfactualRemoval(),
    "gpu": CounterfactualRemoval(bank="gpu"),
    "test": CounterfactualRemoval(bank="test", n_boot=200),
}
