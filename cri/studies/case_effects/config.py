"""Settings and presets of `cri.studies.case_effects`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cri.errors import out_of_range, unknown_name
from cri.options import WorkOptions
from cri.retraining import config as bank_config

NAME = "case_effects"


@dataclass(frozen=True)
class CaseEffects(WorkOptions):
    """Which retrainings to read, and how often planted mechanisms are simulated."""

    bank: str = "cpu"
    """Preset of `retraining_bank` whose random halves are read, and made where there are none; it names the folder of
    tables and the figures."""
    reach: int = 30
    """How far the kernel over offsets goes, in cells of the grid."""
    n_boot: int = 500
    """Bootstrap samples."""
    n_calibration: int = 0
    """Simulated experiments for each planted mechanism; 0 leaves the calibration out. It reads no bank."""
    n_coverage: int = 0
    """Simulated experiments for each setting of the intervals' coverage; 0 leaves it out."""
    verdicts: bool = False
    """Collect the verdicts that this study and `counterfactual_removal` have recorded, of every bank, in one table; it
    reads no bank but its configs."""
    recorded: Path = Path("studies")
    """Folder of the recorded tables that `verdicts` reads."""
    records: Path = Path("studies") / bank_config.NAME
    """Folder of recorded retrainings; where it has none, those below `out` are read, and made."""

    def __post_init__(self) -> None:
        if self.bank not in bank_config.PRESETS:
            raise unknown_name("bank", self.bank, bank_config.PRESETS)
        for field, low in (("n_boot", 100), ("reach", 1), ("n_calibration", 0), ("n_coverage", 0)):
            if getattr(self, field) < low:
                raise out_of_range(field, getattr(self, field), f"at least {low}")


PRESETS = {
    "cpu": CaseEffects(reach=12),
    "gpu": CaseEffects(bank="gpu"),
    # simulations alone: what can be read at all, and what intervals hold
    "calibration": CaseEffects(bank="gpu", n_calibration=80, n_coverage=1000),
    "verdicts": CaseEffects(verdicts=True),
    "test": CaseEffects(bank="test", reach=5, n_boot=100),
}
