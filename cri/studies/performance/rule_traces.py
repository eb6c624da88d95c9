"""Training on rule-following traces of numbers of one to five digits, in training tokens a second."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cri.config import RunConfig, TrainConfig
from cri.studies.performance.rows import Row, quickest, row, step_seconds

if TYPE_CHECKING:
    from cri.studies.performance.config import PerformanceConfig
    from cri.training.setup import Materials

KTOKENS = 1000
PROFILED = 3
"""Steps under the profiler, which slows them a little: shares are reported, no seconds."""
STRUCTURED = {"reach": 2, "span": 16, "own": True, "ends": True}
"""The positions of `studies/length_generalization` that carry furthest."""


OPERATIONS = {
    "attention": ("attention", "softmax"),
    "matrix products": ("mm",),
    "AdamW": ("adam", "foreach", "Optimizer"),
    "copies": ("copy", "cat", "clone", "index", "gather", "embedding", "fill", "zero", "contiguous"),
}
"""Kinds of work by parts of the names of torch's operations; the rest is arithmetic on single numbers."""


def rule_traces(config: PerformanceConfig, device: str) -> Iterator[Row]:
    """Seconds for a thousand tokens of traces (padding not counted) against `transformers.Trainer`, both with plain
    positions; and ours with structured ones, for which `Trainer` has no masks, against the same."""
    from cri.studies.performance.baselines import hf_trainer_seconds
    from cri.training.batches import batch_order
    from cri.training.setup import prepare

    steps = config.rule_steps
    train = TrainConfig(steps=20 + steps, batch_size=6, lr=3e-3, beta2=0.98)
    base = RunConfig(
        task="length_addition", task_params={"per_length": config.rule_pairs, "mixed": 1}, format="rfft",
        split="lengths", split_params={"train_max": 5, "test_fraction": 0.1}, tokenizer="list", model="sharp-rope",
        train=train,
    )  # fmt: skip
    plain, structured = prepare(base), prepare(base.replace(positions="structured", position_params=STRUCTURED))
    tokens, train_ids = plain.tokens, plain.split.train_ids
    lengths = tokens.lengths.numpy()
    order = batch_order(train_ids, lengths, batch_size=train.batch_size, steps=train.steps, seed=train.seed)
    first = min(10, train.steps // 2)  # where `step_seconds` begins to count
    per_step = lengths[order[first : first + steps]].sum() / steps
    # it draws its batches at random: so many tokens a step are to be expected
    theirs_per_step = train.batch_size * lengths[train_ids].mean()

    def ours() -> float:
        seconds = step_seconds(plain, copy.deepcopy(plain.model), train, device, steps)[1]
        return KTOKENS * seconds / per_step

    def ours_structured() -> float:
        seconds = step_seconds(structured, copy.deepcopy(structured.model), train, device, steps)[1]
        return KTOKENS * seconds / per_step

    def trainer() -> float:
        model = copy.deepcopy(plain.model)
        seconds = hf_trainer_seconds(model, tokens, train_ids, train, device, steps=steps, warmup=2)
        return KTOKENS * seconds / steps / theirs_per_step

    found = quickest(config.repeats, ours, ours_structured, trainer)
    for label, each in (("plain positions", found[0]), ("structured positions, own lists and ends", found[1])):
        yield row(
            f"1,000 training tokens of rule-following traces, {label}", "transformers.Trainer (fp32, plain positions)",
            each, found[2], f"{steps} steps of {per_step:.0f} tokens", f"{steps} steps of about "
            f"{theirs_per_step:.0f} tokens", "1,000 tokens", f"{KTOKENS / each:.0f} tokens a second; baseline "
            f"{KTOKENS / found[2]:.0f}",
        )  # fmt: skip
    for label, materials in (("plain", plain), ("structured", structured)):
        shares = operation_shares(materials, train, device)
        parts = ", ".join(f"{kind} {share:.2f}" for kind, share in shares.items())
        yield {
            "work": f"profile of training on rule-following traces, {label} positions",
            "measured": f"{PROFILED} steps of {per_step:.0f} tokens", "note": f"share of the operations' time: {parts}",
        }  # fmt: skip


def operation_shares(materials: Materials, train: TrainConfig, device: str) -> dict[str, float]:
    """Shares of the time that torch's operations take in training steps, by kind (see `OPERATIONS`); they sum to 1."""
    import torch
    from torch.profiler import profile

    from cri.training.trainer import Trainer

    model = copy.deepcopy(materials.model)
    trainer = Trainer(model, materials.tokens, materials.split.train_ids, train, device)
    trainer.run(2)
    with profile() as record:
        trainer.run(trainer.step + PROFILED)
    cuda = torch.device(device).type == "cuda"
    spent = dict.fromkeys([*OPERATIONS, "arithmetic on single numbers"], 0.0)
    for event in record.key_averages():
        found = next((kind for kind, names in OPERATIONS.items() if any(name in event.key for name in names)), None)
        spent[found or "arithmetic on single numbers"] += (
            event.self_device_time_total if cuda else event.self_cpu_time_total
        )
    total = sum(spent.values())
    return {kind: value / total for kind, value in spent.items()}
