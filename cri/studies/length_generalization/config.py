"""Settings and presets of `cri.studies.length_generalization`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cri.config import RunConfig, TrainConfig
from cri.errors import out_of_range, unknown_name
from cri.options import RunOptions

NAME = "length_generalization"

_LOCAL = {"reach": 2, "span": 27}


def _local(**changes: Any) -> dict[str, Any]:
    return {"positions": "structured", "position_params": _LOCAL | changes}


def _own(**changes: Any) -> dict[str, Any]:
    return _local(**{"span": 16, "own": True, "ends": True} | changes)


VARIANTS: dict[str, dict[str, Any]] = {
    "direct": {"format": "direct", "tokenizer": "digit"},
    "scratchpad": {"format": "scratchpad", "tokenizer": "digit"},
    "scratchpad-structured": {"format": "scratchpad", "tokenizer": "digit", "positions": "structured"},
    "rfft-plain": {},
    "rfft-none": {"positions": "none"},
    "rfft-random": {"positions": "random"},
    "rfft-structured": {"positions": "structured"},
    "rfft-local": _local(),
    "rfft-local-16": _local(span=16),
    "rfft-local-own": _own(),
    "rfft-own-newest": _own(newest=True),
    "rfft-own-no-window": _own(window=0),
    "rfft-own-no-ends": _own(ends=False),
    "rfft-own-no-own": _own(own=False),
    "rfft-own-no-reach": _own(reach=0, ends=False),
    "rfft-own-no-bands": _own(bands=False, own=False),
    "rfft-own-no-start": _own(span=0),
    "rfft-own-no-index": _own(index=False, columns=64),
    "rfft-own-blunt": _own() | {"model": "slim-rope"},
}
"""Formats and positions by name. `rfft-structured` has bands, indices with a random start and a window of lines;
`rfft-local` also hides list items more than two columns away (`reach`). `rfft-local-16` starts lists within 16 columns
only, and `rfft-local-own` hides other variables' lists and all but the ends of lists as well (`own`, `ends`). The
others differ from the last in one part: the strongest help is added, a part is left out (`reach` with the `ends` that
need it, `bands` with the `own` that needs them), or the model has fewer rotary frequencies."""
PARTS = (
    "rfft-plain", "rfft-none", "rfft-random", *(variant for variant in VARIANTS if "own" in variant), "rfft-local-16",
)  # fmt: skip
MAIN = ("rfft-structured", "rfft-local", "rfft-local-16", "rfft-local-own")


@dataclass(frozen=True)
class LengthConfig(RunOptions):
    """Which variants to train on short numbers, and on which lengths to test them."""

    variants: tuple[str, ...] = ("direct", "scratchpad", "rfft-plain", "rfft-structured")
    """Some of `VARIANTS`."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the variants rfft-structured and rfft-local, and of those that add to the latter (`MAIN`)."""
    other_seeds: tuple[int, ...] = (0,)
    """Seeds of every other variant."""
    model: str = "slim-rope"
    train_max: int = 5
    """Digits of the longest numbers in training."""
    test_max: int = 15
    """Digits of the longest numbers in the test."""
    per_length: int = 3750
    """Training pairs of each length."""
    cases: int = 200
    """Test pairs of each length, none of which can be a training pair beyond `train_max`."""
    decoded: int = 4
    """Test pairs of each length that are also decoded from the prompt, in formats with long texts."""
    steps: int = 8000
    batch_size: int = 6
    lr: float = 3e-3
    name: str = "cpu"
    """Names the folder of tables and the figures."""

    def __post_init__(self) -> None:
        for variant in self.variants:
            if variant not in VARIANTS:
                raise unknown_name("variants", variant, VARIANTS)
        if self.test_max < 1:
            raise out_of_range("test_max", self.test_max, "at least 1")
        if self.cases < 1:
            raise out_of_range("cases", self.cases, "at least 1")

    def run_configs(self) -> Iterator[tuple[str, RunConfig]]:
        """One (variant, config) a run, in the order of the tables."""
        for variant in self.variants:
            for seed in self.seeds if variant in MAIN else self.other_seeds:
                yield variant, self._run_config(variant, seed)

    def _run_config(self, variant: str, seed: int) -> RunConfig:
        settings = {"format": "rfft", "tokenizer": "list", "model": self.model, **VARIANTS[variant]}
        optimisation = TrainConfig(
            steps=self.steps, batch_size=self.batch_size, lr=self.lr, warmup=0.007, weight_decay=0.1, beta2=0.98,
            seed=seed,
        )  # fmt: skip
        return RunConfig(
            task="length_addition",
            # operands of unequal lengths in half of the pairs, as an uneven end is what a rule must cope with
            task_params={"per_length": self.per_length, "mixed": 1}
            | ({} if self.train_max == 5 else {"max_digits": self.train_max}),
            split="lengths",
            split_params={"train_max": self.train_max, "test_fraction": 0.02},
            decoded=50,
            train=optimisation,
            **settings,
        )


_PRETRAINED = ("direct", "scratchpad", "rfft-plain", "rfft-random")
"""Pretrained tokenizers have no token for a variable's name, so structured positions are out of their reach."""
PRESETS: dict[str, LengthConfig] = {
    "cpu": LengthConfig(),
    "local": LengthConfig(
        variants=("direct", "scratchpad", "rfft-plain", "rfft-local"), model="sharp-rope", steps=5000, name="local"
    ),
    "own": LengthConfig(
        variants=("rfft-plain", "rfft-local-own"), model="sharp-rope", steps=3000, name="own"
    ),
    "parts": LengthConfig(
        variants=PARTS, seeds=(0,), model="sharp-rope", cases=100, decoded=0, steps=1500, name="parts"
    ),
    "gpu": LengthConfig(
        variants=tuple(VARIANTS), seeds=(0, 1, 2, 3, 4), other_seeds=(0, 1, 2), model="sharp-rope", steps=40_000,
        batch_size=32, per_length=30_000, decoded=200, name="gpu",
    ),
    "smollm2": LengthConfig(
        variants=_PRETRAINED, other_seeds=(0, 1, 2), model="smollm2-135m", steps=10_000, batch_size=32, lr=1e-4,
        per_length=30_000, decoded=200, name="smollm2",
    ),
    "gpt2": LengthConfig(
        variants=("direct", "scratchpad"), other_seeds=(0, 1, 2), model="gpt2", steps=10_000, batch_size=32, lr=1e-4,
        per_length=30_000, decoded=200, name="gpt2",
    ),
    "test": LengthConfig(
        variants=("direct", MAIN[0]), seeds=(0,), model="nano-rope", train_max=2, test_max=3, per_length=60, cases=4,
        decoded=2, steps=3, name="test",
    ),
}  # fmt: skip
