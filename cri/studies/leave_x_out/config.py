"""Settings and presets of `cri.studies.leave_x_out`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cri.errors import unknown_name
from cri.options import WorkOptions
from cri.retraining import config as bank_config

NAME = "leave_x_out"
PLANS = ("leave-out", "leave-out-mirror", "sliding")


@dataclass(frozen=True)
class LeaveXOut(WorkOptions):
    """Which retrainings to read."""

    bank: str = "cpu"
    """Preset of `retraining_bank` whose records are read, and made where there are none; it names the folder of tables
    and the figures."""
    records: Path = Path("studies") / bank_config.NAME
    """Folder of recorded retrainings; where it has none, those below `out` are read, and made."""

    def __post_init__(self) -> None:
        if self.bank not in bank_config.PRESETS:
            raise unknown_name("bank", self.bank, bank_config.PRESETS)


PRESETS = {"cpu": LeaveXOut(), "gpu": LeaveXOut(bank="gpu"), "test": LeaveXOut(bank="test")}
