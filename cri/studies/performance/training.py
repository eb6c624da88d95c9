"""Training measured: one model, the paper's protocol, long traces, growth with size, many models at once."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cri.config import TrainConfig
from cri.studies.performance.rows import Row, addition, clear, model_of, quickest, row, step_seconds, way_of

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

    from cri.studies.performance.config import PerformanceConfig
    from cri.training.setup import Materials

PEAK_BF16 = 989e12
"""Dense bf16 operations per second of an H100 SXM (data sheet); the utilisation is counted against this."""


def nano(config: PerformanceConfig, device: str) -> Iterator[Row]:
    """A `nano` Leave-Square-Out run (4,000 steps of 256) against `transformers.Trainer`."""
    from cri.studies.performance.baselines import hf_trainer_seconds

    of, steps = 4000, config.nano_steps
    cuda = device.startswith("cuda")
    materials = addition(config)
    precision = "bf16" if cuda else "fp32"
    train = TrainConfig(steps=of, precision=precision)
    few = max(2, steps // 2)

    def trainer() -> float:
        model = model_of("nano", materials.tokens)
        return hf_trainer_seconds(
            model, materials.tokens, materials.split.train_ids, train, device, steps=few, warmup=min(10, few)
        ) / few  # fmt: skip

    variants = [("", precision, None)] if not cuda else [
        ("", "bf16", None), (", tf32", "tf32", None), (", compiled", "bf16", True),
    ]  # fmt: skip
    for label, kind, compiled in variants:
        own = TrainConfig(steps=of, precision=kind)  # pyright: ignore[reportArgumentType]
        starts: list[float] = []

        def ours(own: TrainConfig = own, compiled: bool | None = compiled, starts: list[float] = starts) -> float:
            model = model_of("nano", materials.tokens)
            startup, each = step_seconds(materials, model, own, device, steps, compiled)
            starts.append(startup)
            return each

        each, theirs = quickest(config.repeats, ours, trainer)
        yield row(
            f"nano run, 4,000 steps of 256{label}", f"transformers.Trainer ({precision})", min(starts) + of * each,
            of * theirs, f"{steps} steps", f"{few} steps", "4,000 steps",
            f"start {min(starts):.2f} s, then {1e3 * each:.3f} ms a step; baseline {1e3 * theirs:.3f} ms a step",
        )  # fmt: skip


def paper(config: PerformanceConfig, device: str) -> Iterator[Row]:
    """`gpt2-shape` on addition, 31.9k steps of 30, against the public code's loop, ten validations included."""
    from cri.evaluation.decoding import decode
    from cri.studies.performance.baselines import paper_loop_seconds, synchronize, timed_generate

    of, validations = 31_900, 10
    materials = addition(config)
    held_out = materials.split.test_ids
    theirs_steps = config.paper_steps
    theirs = paper_loop_seconds(
        model_of(config.paper_model, materials.tokens), materials.tokens, materials.split.train_ids, device,
        steps=theirs_steps, warmup=min(5, theirs_steps),
    ) * of / theirs_steps  # fmt: skip
    few = held_out[: config.one_by_one]
    seconds, _ = timed_generate(
        model_of(config.paper_model, materials.tokens), materials.tokens, few, device, batch_size=1, max_new_tokens=4
    )
    one_by_one = seconds * len(held_out) / len(few)
    cuda = device.startswith("cuda")
    variants = [("tf32", "tf32", False), ("bf16", "bf16", False), ("tf32, compiled", "tf32", True)]
    for label, precision, compiled in variants if cuda else [("fp32", "fp32", False)]:
        steps = 10 * theirs_steps if cuda else theirs_steps
        train = TrainConfig(
            steps=of, batch_size=30, lr=1e-4, warmup=0.01, beta2=0.999, grad_clip=0.0,
            precision=precision,  # pyright: ignore[reportArgumentType]
        )  # fmt: skip
        model = model_of(config.paper_model, materials.tokens)
        startup, each = step_seconds(materials, model, train, device, steps, compiled)
        synchronize(device)
        started = time.perf_counter()
        decode(model, materials.tokens[held_out])
        validation = time.perf_counter() - started
        yield row(
            f"{config.paper_model}, 31.9k steps of 30, {validations} validations of {len(held_out)} cases ({label})",
            "loop of the paper's public code (fp32, padded to 50, one case at a time)",
            startup + of * each + validations * validation, theirs + validations * one_by_one,
            f"{steps} steps, 1 validation", f"{theirs_steps} steps, {len(few)} cases", "31,900 steps",
            f"start {startup:.1f} s, {1e3 * each:.2f} ms a step, {validation:.2f} s a validation; baseline "
            f"{1e3 * theirs / of:.2f} ms a step, {one_by_one:.1f} s a validation",
        )  # fmt: skip
        del model


def replicas(config: PerformanceConfig, device: str) -> Iterator[Row]:
    """Many retrained `nano` models against one after another, and the cost as their number grows."""
    import numpy as np

    from cri.studies.performance.baselines import hf_trainer_seconds

    of, n, cuda = 4000, config.replicas, device.startswith("cuda")
    measured = config.replicas_measured
    steps = config.replica_steps
    precision = "bf16" if cuda else "fp32"
    materials = addition(config)
    rng = np.random.default_rng(0)

    def together(count: int, steps: int) -> tuple[float, Any]:
        return _bank_seconds(materials, count, TrainConfig(steps=steps, precision=precision), device, rng)

    train = TrainConfig(steps=of, precision=precision)
    alone_steps, few = min(of // 2, steps), max(2, min(100, steps // 2))

    def loop() -> float:
        return step_seconds(materials, model_of("nano", materials.tokens), train, device, alone_steps)[1]

    def trainer() -> float:
        model = model_of("nano", materials.tokens)
        return hf_trainer_seconds(
            model, materials.tokens, materials.split.train_ids, train, device, steps=few, warmup=min(10, few)
        ) / few  # fmt: skip

    alone, by_trainer = quickest(config.repeats, loop, trainer)
    by_loop = "this package's loop, one model after another"
    # what is short comes first: the bank itself may not end within a time limit
    yield row(
        "one nano model", f"transformers.Trainer ({precision})", alone, by_trainer, f"{alone_steps} steps",
        f"{few} steps", "1 step",
    )  # fmt: skip
    if cuda:
        for count in (1, 4, 16, 64, 256):
            yield row(
                f"R = {count}, uncompiled", by_loop, _stacked_step_seconds(materials, count, 200, device),
                count * alone, "200 steps of all", f"{alone_steps} steps of 1 model", "1 step of all",
            )  # fmt: skip
    if steps == of and measured == n:
        seconds, bank = together(n, of)
        note = f"train accuracy {bank.table.train_acc.mean():.3f}; decoding of every grid and files included"
    else:
        # what every call costs once (processes, files, decoding) falls out of the difference
        short = max(1, steps // 10)
        whole, start = quickest(config.repeats, *[lambda k=k: together(measured, k)[0] for k in (steps, short)])
        seconds = n * of * (whole - start) / (steps - short) / measured
        note = f"steps alone: from {measured} models with {steps} and with {short} steps"
    # a machine's speed drifts over minutes: what is alone is measured on both sides of what is together
    again = quickest(config.repeats, loop, trainer)
    alone, by_trainer = min(alone, again[0]), min(by_trainer, again[1])
    against = [
        (by_loop, alone, f"{alone_steps} steps of 1 model"),
        ("transformers.Trainer, one model after another", by_trainer, f"{few} steps of 1 model"),
    ]
    label = "bf16, compiled" if cuda else "fp32, a process a core"
    for baseline, single, how in against:
        yield row(
            f"{n} retrained nano models ({label})", baseline, seconds, n * of * single,
            f"{steps} steps of {measured} models", how, f"{n} models, 4,000 steps", note,
        )  # fmt: skip


def _bank_seconds(
    materials: Materials, count: int, train: TrainConfig, device: str, rng: np.random.Generator
) -> tuple[float, Any]:
    """Seconds to train `count` models into a bank, each on a random half of the training cases, and the bank."""
    from cri.ensembles.bank import load_bank
    from cri.ensembles.engine import Replica
    from cri.ensembles.train import train_replicas

    ids = materials.split.train_ids
    some = []
    for seed in range(count):
        mask = materials.split.train.copy()
        mask[rng.choice(ids, len(ids) // 2, replace=False)] = False
        some.append(Replica(seed, mask))
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        path = train_replicas(
            materials.config.replace(train=train), some, Path(folder), device=device,
            compiled=True if device.startswith("cuda") else None, progress=False,
        )  # fmt: skip
        return time.perf_counter() - started, load_bank(path)


def _stacked_step_seconds(materials: Materials, count: int, steps: int, device: str) -> float:
    """Seconds of one step of `count` models stacked into one, on a GPU in bf16."""
    from cri.ensembles.stacked import Layout, Member, StackedTrainer
    from cri.studies.performance.baselines import synchronize

    model = model_of("nano", materials.tokens)
    layout = Layout(model)
    config = TrainConfig(steps=4000, precision="bf16")
    members = [
        Member(layout.flatten(model), materials.split.train_ids, seed, config.lr, 0.0, config.batch_size)
        for seed in range(count)
    ]
    trainer = StackedTrainer(model, layout, materials.tokens, members, config, device)
    trainer.run(10)
    synchronize(device)
    started = time.perf_counter()
    trainer.run(10 + steps)
    synchronize(device)
    return (time.perf_counter() - started) / steps


def _flops(model: PreTrainedModel, n_tokens: int, width: int) -> float:
    """6 N a token (N with the head, which the tied embedding is), plus causal attention: 6 layers d_model length."""
    shape = model.config
    n = sum(p.numel() for p in model.parameters())
    return n_tokens * (6 * n + 6 * shape.num_hidden_layers * shape.hidden_size * width)


def traces(config: PerformanceConfig, device: str) -> Iterator[Row]:
    """Fine-tuning a model of SmolLM2-135M's shape on long traces: tokens a second and share of the card's peak."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from cri.data.token_table import TokenTable
    from cri.studies.performance.baselines import hf_trainer_seconds, synchronize
    from cri.training.trainer import Trainer

    cuda = device.startswith("cuda")
    small = config.trace_tokens < 100
    shape = LlamaConfig(
        vocab_size=500 if small else 49152, hidden_size=36 if small else 576, intermediate_size=64 if small else 1536,
        num_hidden_layers=2 if small else 30, num_attention_heads=9, num_key_value_heads=3,
        max_position_embeddings=8192, tie_word_embeddings=True, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    n = 4 * config.trace_batch
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, shape.vocab_size, (n, config.trace_tokens), generator=generator)
    lengths = torch.full((n,), config.trace_tokens)
    tokens = TokenTable(ids, torch.full((n,), config.trace_tokens // 20), lengths, 0, 1)
    rows = torch.arange(n).numpy()
    of = 100
    per_step = config.trace_batch * config.trace_tokens
    train = {"steps": of, "batch_size": config.trace_batch, "lr": 1e-4, "precision": "bf16" if cuda else "fp32"}
    torch.manual_seed(0)
    few = max(1, config.trace_steps // 2)
    theirs = math.nan
    with contextlib.suppress(RuntimeError):
        theirs = hf_trainer_seconds(
            LlamaForCausalLM(shape), tokens, rows, TrainConfig(**train), device, steps=few, warmup=1,
            micro_batch=max(1, config.trace_micro // 2),
        ) / few  # fmt: skip
    clear(device)
    variants = [(False, False, config.trace_micro)] if not cuda else [
        (False, False, config.trace_micro // 2), (False, True, config.trace_micro), (True, False, config.trace_micro),
    ]  # fmt: skip
    for compiled, checkpointing, micro in variants:
        label = f"{'compiled' if compiled else 'uncompiled'}{', gradient checkpointing' if checkpointing else ''}"
        model = LlamaForCausalLM(shape)
        own = TrainConfig(**train, micro_batch=micro, gradient_checkpointing=checkpointing)
        try:
            trainer = Trainer(model, tokens, rows, own, device, way=way_of(compiled, device))
            started = time.perf_counter()
            trainer.run(4 if cuda else 1)
            synchronize(device)
            ready = time.perf_counter()
            first = trainer.step
            trainer.run(first + config.trace_steps)
            synchronize(device)
        except RuntimeError as error:
            yield {"work": f"SmolLM2-135M's shape, {label}", "note": f"failed: {str(error).splitlines()[0]}"}
            clear(device)
            continue
        each = (time.perf_counter() - ready) / config.trace_steps
        rate = _flops(model, per_step, config.trace_tokens) / each
        share = f", {100 * rate / PEAK_BF16:.1f} % of 989 TFLOP/s" if cuda else ""
        work = f"{config.trace_batch} x {config.trace_tokens} tokens a step"
        yield row(
            f"SmolLM2-135M's shape (random weights), {work}, {label}",
            "transformers.Trainer (bf16)" if cuda else "transformers.Trainer", each, theirs,
            f"{config.trace_steps} steps", f"{few} steps", "1 step",
            f"{per_step / each:.0f} tokens a second, {rate / 1e12:.2f} TFLOP/s{share}; start {ready - started:.0f} s; "
            f"micro-batch {micro}",
        )  # fmt: skip
        del trainer, model
        clear(device)


def growth(config: PerformanceConfig, device: str) -> Iterator[Row]:
    """Seconds as the work grows: model size, sequence length, cases decoded."""
    import torch

    from cri.data.token_table import TokenTable
    from cri.evaluation.decoding import decode
    from cri.studies.performance.baselines import synchronize

    cuda = device.startswith("cuda")
    steps = config.growth_steps
    precision = "bf16" if cuda else "fp32"
    materials = addition(config)
    presets = ("nano", "mini", "gpt2-shape", "gpt2-medium-shape") if cuda else ("nano", "mini")
    for preset in presets:
        train = TrainConfig(steps=4000, precision=precision)
        _, each = step_seconds(materials, model_of(preset, materials.tokens), train, device, steps, False)
        yield {"work": f"{preset}, 256 x {materials.tokens.ids.shape[1]} tokens", "ours_s": each, "of": "1 step"}
    for width in (32, 128, 512, 2048) if cuda else (32, 128):
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(3, 500, (256, width), generator=generator)
        lengths = torch.full((256,), width)
        table = TokenTable(ids, torch.full((256,), 4), lengths, 0, 1)
        train = TrainConfig(steps=1000, batch_size=32, precision=precision)
        own = type("Work", (), {"tokens": table, "split": type("Split", (), {"train_ids": torch.arange(256).numpy()})})
        _, each = step_seconds(own, model_of("nano", table, width), train, device, steps, False)  # pyright: ignore[reportArgumentType]
        yield {"work": f"nano, 32 x {width} tokens", "ours_s": each, "of": "1 step"}
    for size in (25, 50, 100):
        if size > config.size:
            continue
        tokens = addition(dataclasses.replace(config, size=size)).tokens
        model = model_of("nano", tokens).to(device)  # pyright: ignore[reportArgumentType]
        decode(model, tokens)
        synchronize(device)
        started = time.perf_counter()
        decode(model, tokens)
        yield {"work": f"nano, {size * size} cases decoded", "ours_s": time.perf_counter() - started, "of": "the grid"}
