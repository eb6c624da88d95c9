"""The measurements of `cri.studies.performance`, one generator of table rows a piece of work."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cri.config import RunConfig, TrainConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from cri.data import TokenTable
    from cri.materials import Materials
    from cri.studies.performance import PerformanceConfig

PEAK_BF16 = 989e12
"""Dense bf16 operations per second of an H100 SXM (data sheet); the utilisation is counted against this."""

Row = dict[str, Any]


def _row(
    work: str, opponent: str, ours: float, theirs: float, measured: str, opponent_measured: str, of: str, note: str = ""
) -> Row:
    return {
        "work": work, "opponent": opponent, "ours_s": ours, "opponent_s": theirs, "ratio": theirs / ours,
        "measured": measured, "opponent_measured": opponent_measured, "of": of, "note": note,
    }  # fmt: skip


def _materials(config: PerformanceConfig, **changes: Any) -> Materials:
    from cri.materials import prepare

    base = RunConfig(task_params={"size": config.size}, split_params={"half_side": min(10, config.size // 6)})
    return prepare(base.replace(**changes))


def _model(preset: str, tokens: TokenTable, n_positions: int = 64) -> PreTrainedModel:
    from cri.models import build_model

    vocab = int(tokens.ids.max()) + 1
    return build_model(preset, vocab_size=vocab, n_positions=n_positions, pad=tokens.pad, eos=tokens.eos, seed=0)


def _step_seconds(
    materials: Materials, model: PreTrainedModel, train: TrainConfig, device: str, steps: int, **options: Any
) -> tuple[float, float]:
    """Seconds before the first of the measured steps (building, capturing, compiling), and seconds a step."""
    from cri.studies.opponents import synchronize
    from cri.training import Trainer

    started = time.perf_counter()
    trainer = Trainer(model, materials.tokens, materials.split.train_ids, train, device, **options)
    trainer.run(min(10, max(1, train.steps // 2)))
    synchronize(device)
    ready = time.perf_counter()
    first = trainer.step
    trainer.run(first + steps)
    synchronize(device)
    return ready - started, (time.perf_counter() - ready) / (trainer.step - first)


def _quickest(repeats: int, *measurements: Callable[[], float]) -> list[float]:
    """The least of each measurement's values, taken in turn: what else the machine does only ever adds."""
    values = [[measure() for measure in measurements] for _ in range(repeats)]
    return [min(column) for column in zip(*values, strict=True)]


def nano(config: PerformanceConfig, device: str) -> Iterator[Row]:
    """A `nano` Leave-Square-Out run (4,000 steps of 256) against `transformers.Trainer`."""
    from cri.studies.opponents import hf_trainer_seconds

    of, steps = 4000, config.nano_steps
    cuda = device.startswith("cuda")
    materials = _materials(config)
    precision = "bf16" if cuda else "fp32"
    train = TrainConfig(steps=of, precision=precision)
    few = max(2, steps // 2)

    def trainer() -> float:
        model = _model("nano", materials.tokens)
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
            model = _model("nano", materials.tokens)
            startup, each = _step_seconds(materials, model, own, device, steps, compiled=compiled)
            starts.append(startup)
            return each

        each, theirs = _quickest(config.repeats, ours, trainer)
        yield _row(
            f"nano run, 4,000 steps of 256{label}", f"transformers.Trainer ({precision})", min(starts) + of * each,
            of * theirs, f"{steps} steps", f"{few} steps", "4,000 steps",
            f"start {min(starts):.2f} s, then {1e3 * each:.3f} ms a step; opponent {1e3 * theirs:.3f} ms a step",
        )  # fmt: skip


def paper(config: PerformanceConfig, device: str) -> Iterator[Row]:
    """`gpt2-shape` on addition, 31.9k steps of 30, against the public code's loop, ten validations included."""
    from cri.evaluation import decode
    from cri.studies.opponents import generate_seconds, paper_loop_seconds, synchronize

    of, validations = 31_900, 10
    materials = _materials(config)
    held_out = materials.split.test_ids
    theirs_steps = config.paper_steps
    theirs = paper_loop_seconds(
        _model(config.paper_model, materials.tokens), materials.tokens, materials.split.train_ids, device,
        steps=theirs_steps, warmup=min(5, theirs_steps),
    ) * of / theirs_steps  # fmt: skip
    few = held_out[: config.one_by_one]
    one_by_one = generate_seconds(
        _model(config.paper_model, materials.tokens), materials.tokens, few, device, batch_size=1, max_new_tokens=4
    ) * len(held_out) / len(few)  # fmt: skip
    cuda = device.startswith("cuda")
    variants = [("tf32", "tf32", False), ("bf16", "bf16", False), ("tf32, compiled", "tf32", True)]
    for label, precision, compiled in variants if cuda else [("fp32", "fp32", False)]:
        steps = 10 * theirs_steps if cuda else theirs_steps
        train = TrainConfig(
            steps=of, batch_size=30, lr=1e-4, warmup=0.01, beta2=0.999, grad_clip=0.0,
            precision=precision,  # pyright: ignore[reportArgumentType]
        )  # fmt: skip
        model = _model(config.paper_model, materials.tokens)
        startup, each = _step_seconds(materials, model, train, device, steps, compiled=compiled)
        synchronize(device)
        started = time.perf_counter()
        decode(model, materials.tokens[held_out])
        validation = time.perf_counter() - started
        yield _row(
            f"{config.paper_model}, 31.9k steps of 30, {validations} validations of {len(held_out)} cases ({label})",
            "loop of the paper's public code (fp32, padded to 50, one case at a time)",
            startup + of * each + validations * validation, theirs + validations * one_by_one,
            f"{steps} steps, 1 validation", f"{theirs_steps} steps, {len(few)} cases", "31,900 steps",
            f"start {startup:.1f} s, {1e3 * each:.2f} ms a step, {validation:.2f} s a validation; opponent "
            f"{1e3 * theirs / of:.2f} ms a step, {one_by_one:.1f} s a validation",
        )  # fmt: skip
        del model


def decoding(config: PerformanceConfig, device: str) -> Iterator[Row]:
    """Decoding the whole direct grid against `generate`, one at a time and batched."""
    from cri.evaluation import decode
    from cri.studies.opponents import generate_seconds, synchronize

    materials = _materials(config)
    tokens = materials.tokens
    everything = materials.split.train_ids
    for preset in ("nano", "gpt2-shape") if device.startswith("cuda") else ("nano",):
        model = _model(preset, tokens).to(device)  # pyright: ignore[reportArgumentType]
        # every reference is answer and end: the opponent is not made to write more than that
        room = int((tokens.lengths - tokens.prompt_lengths).max())
        decode(model, tokens[everything[:256]], room=room)

        def ours(model: PreTrainedModel = model, room: int = room) -> float:
            synchronize(device)
            started = time.perf_counter()
            decode(model, tokens, room=room)
            return time.perf_counter() - started

        for batch, cases in ((1, config.one_by_one), (64, 64 * max(1, config.one_by_one // 10))):
            some = everything[:cases]

            def theirs(model: PreTrainedModel = model, room: int = room, batch: int = batch, some: Any = some) -> float:
                return generate_seconds(model, tokens, some, device, batch_size=batch, max_new_tokens=room)

            seconds, generated = _quickest(config.repeats, ours, theirs)
            yield _row(
                f"{preset}, whole direct grid", f"generate, {'one at a time' if batch == 1 else f'batches of {batch}'}",
                seconds, generated * len(tokens) / len(some), f"{len(tokens)} cases", f"{len(some)} cases",
                f"{len(tokens)} cases", f"up to {room} tokens each",
            )  # fmt: skip


def replicas(config: PerformanceConfig, device: str) -> Iterator[Row]:
    """Many retrained `nano` models against one after another, and the cost as their number grows."""
    import numpy as np

    from cri.bank import load_bank
    from cri.jointly import Replica
    from cri.replicas import train_replicas
    from cri.studies.opponents import hf_trainer_seconds

    of, n, cuda = 4000, config.replicas, device.startswith("cuda")
    measured = config.replicas_measured
    steps = config.replica_steps
    materials = _materials(config)
    rng = np.random.default_rng(0)

    def some(count: int) -> list[Replica]:
        out = []
        for seed in range(count):
            train = materials.split.train.copy()
            train[rng.choice(materials.split.train_ids, len(materials.split.train_ids) // 2, replace=False)] = False
            out.append(Replica(seed, train))
        return out

    def together(count: int, steps: int, precision: str, compiled: bool | None) -> tuple[float, Any]:
        train = TrainConfig(steps=steps, precision=precision)  # pyright: ignore[reportArgumentType]
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            path = train_replicas(
                materials.config.replace(train=train), some(count), Path(folder), device=device, compiled=compiled,
                progress=False,
            )  # fmt: skip
            seconds = time.perf_counter() - started
            return seconds, load_bank(path)

    precision = "bf16" if cuda else "fp32"
    train = TrainConfig(steps=of, precision=precision)
    alone_steps, few = min(of // 2, steps), max(2, min(100, steps // 2))

    def loop() -> float:
        return _step_seconds(materials, _model("nano", materials.tokens), train, device, alone_steps)[1]

    def trainer() -> float:
        model = _model("nano", materials.tokens)
        return hf_trainer_seconds(
            model, materials.tokens, materials.split.train_ids, train, device, steps=few, warmup=min(10, few)
        ) / few  # fmt: skip

    alone, by_trainer = _quickest(config.repeats, loop, trainer)
    opponents = [
        ("this package's loop, one model after another", alone, f"{alone_steps} steps of 1 model"),
        ("transformers.Trainer, one model after another", by_trainer, f"{few} steps of 1 model"),
    ]
    for kind, compiled in [("bf16", True), ("bf16", False)] if cuda else [("fp32", None)]:
        long = steps if compiled is not False else max(2, steps // 10)
        short = max(1, long // 10)
        if long == of and measured == n:
            seconds, bank = together(n, of, kind, compiled)
            note = f"train accuracy {bank.table.train_acc.mean():.3f}; decoding of every grid and files included"
        else:
            # what every call costs once (processes, files, decoding) falls out of the difference
            lengths = (long, short)
            parts = [lambda k=k, kind=kind, c=compiled: together(measured, k, kind, c)[0] for k in lengths]
            whole, start = _quickest(config.repeats, *parts)
            seconds = n * of * (whole - start) / (long - short) / measured
            note = f"steps alone: from {measured} models with {long} and with {short} steps"
        label = f"{kind}{', compiled' if compiled else ''}{'' if cuda else ', a process a core'}"
        for opponent, single, how in opponents:
            yield _row(
                f"{n} retrained nano models ({label})", opponent, seconds, n * of * single,
                f"{long} steps of {measured} models", how, f"{n} models, 4,000 steps", note,
            )  # fmt: skip
    if cuda:
        for count in (1, 4, 16, 64, 256):
            yield {
                "work": f"R = {count}, uncompiled", "ours_s": _stacked_step_seconds(materials, count, 200, device),
                "of": "1 step of all",
            }  # fmt: skip


def _stacked_step_seconds(materials: Materials, count: int, steps: int, device: str) -> float:
    from cri.stacked import Layout, Member, StackedTrainer
    from cri.studies.opponents import synchronize

    model = _model("nano", materials.tokens)
    layout = Layout(model)
    members = [Member(layout.flatten(model), materials.split.train_ids, seed, 1e-3, 0.0) for seed in range(count)]
    config = TrainConfig(steps=4000, precision="bf16")
    trainer = StackedTrainer(model, layout, materials.tokens, members, config, device)
    trainer.run(10)
    synchronize(device)
    started = time.perf_counter()
    trainer.run(10 + steps)
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

    from cri.data import TokenTable
    from cri.studies.opponents import hf_trainer_seconds, synchronize
    from cri.training import Trainer

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
            trainer = Trainer(model, tokens, rows, own, device, compiled=compiled)
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
        yield _row(
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

    from cri.data import TokenTable
    from cri.evaluation import decode
    from cri.studies.opponents import synchronize

    cuda = device.startswith("cuda")
    steps = config.growth_steps
    precision = "bf16" if cuda else "fp32"
    materials = _materials(config)
    presets = ("nano", "mini", "gpt2-shape", "gpt2-medium-shape") if cuda else ("nano", "mini")
    for preset in presets:
        train = TrainConfig(steps=4000, precision=precision)
        _, each = _step_seconds(materials, _model(preset, materials.tokens), train, device, steps, compiled=False)
        yield {"work": f"{preset}, 256 x {materials.tokens.ids.shape[1]} tokens", "ours_s": each, "of": "1 step"}
    for width in (32, 128, 512, 2048) if cuda else (32, 128):
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(3, 500, (256, width), generator=generator)
        lengths = torch.full((256,), width)
        table = TokenTable(ids, torch.full((256,), 4), lengths, 0, 1)
        train = TrainConfig(steps=1000, batch_size=32, precision=precision)
        own = type("Work", (), {"tokens": table, "split": type("Split", (), {"train_ids": torch.arange(256).numpy()})})
        _, each = _step_seconds(own, _model("nano", table, width), train, device, steps, compiled=False)  # pyright: ignore[reportArgumentType]
        yield {"work": f"nano, 32 x {width} tokens", "ours_s": each, "of": "1 step"}
    for size in (25, 50, 100):
        if size > config.size:
            continue
        tokens = _materials(dataclasses.replace(config, size=size)).tokens
        model = _model("nano", tokens).to(device)  # pyright: ignore[reportArgumentType]
        decode(model, tokens)
        synchronize(device)
        started = time.perf_counter()
        decode(model, tokens)
        yield {"work": f"nano, {size * size} cases decoded", "ours_s": time.perf_counter() - started, "of": "the grid"}


PARTS: dict[str, Callable[[PerformanceConfig, str], Iterator[Row]]] = {
    "nano": nano,
    "paper": paper,
    "decoding": decoding,
    "replicas": replicas,
    "traces": traces,
    "growth": growth,
}


def clear(device: str) -> None:
    gc.collect()
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()
