"""Settings and presets of `cri.studies.performance`."""

from __future__ import annotations

from dataclasses import dataclass

from cri.errors import out_of_range, unknown_name
from cri.models.presets import PRESETS as MODELS
from cri.options import StudyOptions

NAME = "performance"

_COUNTS = (
    "nano_steps", "paper_steps", "one_by_one", "scratchpad_steps", "traces_one_by_one", "traces_batched",
    "patching_pairs", "replicas", "replica_steps", "replicas_measured", "trace_steps", "trace_tokens", "trace_batch",
    "trace_micro", "rule_steps", "rule_pairs", "growth_steps", "pretrained_steps", "repeats", "threads",
)  # fmt: skip


@dataclass(frozen=True)
class PerformanceConfig(StudyOptions):
    """How much of each piece of work to measure."""

    name: str = "cpu"
    device: str = "auto"
    parts: tuple[str, ...] = (
        "nano", "decoding", "trace_decoding", "activations", "patching", "attribution", "paper", "traces",
        "rule_traces", "growth", "pretrained", "replicas",
    )  # fmt: skip
    """Which pieces, in order: the cheap ones first. One that fails leaves the others be."""
    size: int = 100
    """Grid size of the addition task."""
    nano_steps: int = 100
    """Steps measured of the 4,000 of a `nano` run (both sides)."""
    paper_model: str = "gpt2-shape"
    paper_steps: int = 3
    """Steps measured of the 31,900 of the paper's protocol (baseline; ours takes ten times as many)."""
    one_by_one: int = 20
    """Cases measured of one-at-a-time decoding."""
    scratchpad_steps: int = 300
    """Training steps, not timed, of the model whose traces are decoded."""
    traces_one_by_one: int = 128
    """Scratchpads decoded against one-at-a-time `generate`."""
    traces_batched: int = 1024
    """Scratchpads decoded against batched `generate`."""
    patching_pairs: int = 100
    attribution_cases: tuple[int, int] = (2000, 200)
    """Training and test cases scored by this package and by kronfluence, besides the whole grid."""
    replicas: int = 256
    replica_steps: int = 300
    """Steps measured of the 4,000 of each replica (baseline)."""
    replicas_measured: int = 4
    """Replicas really trained by this package; the rest is extrapolated."""
    trace_steps: int = 1
    trace_tokens: int = 2000
    trace_batch: int = 2
    trace_micro: int = 1
    rule_steps: int = 40
    """Steps measured of training on rule-following traces (both sides)."""
    rule_pairs: int = 300
    """Pairs of each length that they are drawn from."""
    growth_steps: int = 20
    pretrained_model: str = "smollm2-135m"
    """Fine-tuned against `Trainer`: a folder written by save_pretrained, `smollm2-135m`, or a preset."""
    pretrained_steps: int = 5
    """Its steps measured (both sides)."""
    repeats: int = 3
    """Short measurements are repeated in turn, ours and the baseline's, and the quickest of each counts."""
    threads: int = 1
    """Of each process on CPU, ours and the baseline's. Small models gain little from a second thread, and on a busy
    machine they lose much."""

    def __post_init__(self) -> None:
        if self.size < 8:
            raise out_of_range("size", self.size, "at least 8, so that a square can be held out")
        if self.paper_model not in MODELS:
            raise unknown_name("paper_model", self.paper_model, MODELS)
        for field in _COUNTS:
            if getattr(self, field) < 1:
                raise out_of_range(field, getattr(self, field), "at least 1")
        if min(self.attribution_cases) < 1:
            raise out_of_range("attribution_cases", self.attribution_cases, "at least 1 and 1")


PRESETS = {
    "cpu": PerformanceConfig(),
    "gpu": PerformanceConfig(
        name="gpu", device="cuda",
        parts=("nano", "decoding", "trace_decoding", "paper", "traces", "growth", "replicas"),
        nano_steps=500, paper_steps=60, one_by_one=60, traces_one_by_one=256, traces_batched=4096, replica_steps=4000,
        replicas_measured=256, trace_steps=6, trace_tokens=2048, trace_batch=64, trace_micro=16, growth_steps=100,
        repeats=1,
    ),
    "test": PerformanceConfig(
        name="test", size=12, nano_steps=4, paper_model="nano", paper_steps=2, one_by_one=2, scratchpad_steps=20,
        traces_one_by_one=3, traces_batched=80, patching_pairs=8, attribution_cases=(40, 8), replicas=4,
        replica_steps=4, replicas_measured=2, trace_steps=1, trace_tokens=24, trace_batch=2, trace_micro=1,
        rule_steps=2, rule_pairs=20, growth_steps=2, pretrained_model="mini-rope", pretrained_steps=2, repeats=1,
    ),
}  # fmt: skip
