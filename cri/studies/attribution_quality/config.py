"""Settings and presets of `cri.studies.attribution_quality`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cri.attribution.methods import METHODS, of_kind
from cri.errors import CriError, out_of_range, unknown_name
from cri.options import EXAMPLE, FamilyName, RunOptions
from cri.retraining import config as bank_config

NAME = "attribution_quality"
TARGETS = ("reference", "prediction")


@dataclass(frozen=True)
class AttributionQuality(RunOptions):
    """Which retrainings to read, and which methods to judge."""

    bank: str = "cpu"
    """Preset of `retraining_bank` whose records are read, and made where there are none; it names the folder of tables
    and the figures."""
    family: str = EXAMPLE
    """TASK:FORMAT:TOKENIZER of the models that are explained."""
    targets: tuple[str, ...] = TARGETS
    """What is attributed: the `reference` answer, or the `prediction` of the first base model."""
    methods: tuple[str, ...] = ()
    """Methods to judge; all of them by default. Variants of EK-FAC are judged where it is."""
    variants: bool = True
    """Judge EK-FAC with other dampings, empirical labels and conjugate gradients, too."""
    dampings: tuple[float, ...] = (1e-6, 1e-4, 0.001, 0.01, 0.1, 1.0)
    """Relative dampings of EK-FAC that are compared with the one chosen beforehand (`cri.attribution.damping`)."""
    tracin: bool = True
    """Train the first base model again on the CPU, for checkpoints."""
    cg_steps: int = 8
    """Conjugate-gradient steps that refine EK-FAC, on the Fisher of 2,000 training cases; 0 leaves them out."""
    ensemble: int = 24
    """Models trained on random halves of the training cases, whose EK-FAC scores are averaged with those of the base
    models; 0 leaves them out."""
    n_boot: int = 1000
    """Bootstrap samples."""
    records: Path = Path("studies") / bank_config.NAME
    """Folder of recorded retrainings; where it has none, those below `out` are read, and made."""

    def __post_init__(self) -> None:
        if self.bank not in bank_config.PRESETS:
            raise unknown_name("bank", self.bank, bank_config.PRESETS)
        FamilyName.parse(self.family)
        for field, names, known in (("targets", self.targets, TARGETS), ("methods", self.methods, METHODS)):
            for name in names:
                if name not in known:
                    raise unknown_name(field, name, known)
        if not self.targets:
            raise CriError(f"targets: give at least one of {', '.join(TARGETS)}")
        if self.methods and not set(self.methods) & set(of_kind("model-free")):
            raise CriError("methods: give at least one model-free method, which the others are compared with")
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
