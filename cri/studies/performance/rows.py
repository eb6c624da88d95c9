"""What the parts of `cri.studies.performance.study` share: table rows, set-up, and clocks."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cri.config import RunConfig, TrainConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from cri.data.token_table import TokenTable
    from cri.studies.performance.config import PerformanceConfig
    from cri.training.setup import Materials
    from cri.training.steps import Way

Row = dict[str, Any]


def row(
    work: str, baseline: str, ours: float, theirs: float, measured: str, baseline_measured: str, of: str, note: str = ""
) -> Row:
    """One comparison: seconds of the whole work, ours and the baseline's, and on how much of it each was measured."""
    return {
        "work": work, "baseline": baseline, "ours_s": ours, "baseline_s": theirs, "ratio": theirs / ours,
        "measured": measured, "baseline_measured": baseline_measured, "of": of, "note": note,
    }  # fmt: skip


def addition(config: PerformanceConfig, base: RunConfig | None = None) -> Materials:
    """Addition on the config's grid, with a square that fits it, and the rest as in `base` (direct format)."""
    from cri.training.setup import prepare

    where = {"task_params": {"size": config.size}, "split_params": {"half_side": min(10, config.size // 6)}}
    return prepare((base or RunConfig()).replace(**where))


def model_of(preset: str, tokens: TokenTable, n_positions: int = 64) -> PreTrainedModel:
    """An untrained model of the named shape for these tokens, on CPU."""
    from cri.models.loading import build_model

    vocab = int(tokens.ids.max()) + 1
    return build_model(preset, vocab_size=vocab, n_positions=n_positions, pad=tokens.pad, eos=tokens.eos, seed=0)


def way_of(compiled: bool | None, device: str) -> Way | None:
    """How steps are taken that are to be compiled, or not (None: as is quickest). Uncompiled on CPU they are traced
    where that is quicker, as in every run."""
    if compiled:
        return "compiled"
    return "plain" if compiled is False and device.startswith("cuda") else None


def step_seconds(
    materials: Materials,
    model: PreTrainedModel,
    train: TrainConfig,
    device: str,
    steps: int,
    compiled: bool | None = None,
) -> tuple[float, float]:
    """Seconds before the first of the measured steps (building, capturing, compiling), and seconds a step."""
    from cri.studies.performance.baselines import synchronize
    from cri.training.trainer import Trainer

    started = time.perf_counter()
    trainer = Trainer(model, materials.tokens, materials.split.train_ids, train, device, way=way_of(compiled, device))
    trainer.run(min(10, max(1, train.steps // 2)))
    synchronize(device)
    ready = time.perf_counter()
    first = trainer.step
    trainer.run(first + steps)
    synchronize(device)
    return ready - started, (time.perf_counter() - ready) / (trainer.step - first)


def quickest(repeats: int, *measurements: Callable[[], float]) -> list[float]:
    """The least of each measurement's values, taken in turn: what else the machine does only ever adds."""
    values = [[measure() for measure in measurements] for _ in range(repeats)]
    return [min(column) for column in zip(*values, strict=True)]


def clear(device: str) -> None:
    """Frees what a part left behind."""
    gc.collect()
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()
