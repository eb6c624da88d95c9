"""Decoding measured: short answers over a whole grid, and scratchpad traces."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from cri.studies.performance.rows import Row, addition, model_of, quickest, row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from cri.evaluation.decoding import Decoded
    from cri.studies.performance.config import PerformanceConfig

BATCH = 64
"""Prompts that the baseline's batched `generate` is given at once."""


def decoding(config: PerformanceConfig, device: str) -> Iterator[Row]:
    """Decoding the whole direct grid against `generate`, one at a time and batched."""
    from cri.evaluation.decoding import decode
    from cri.studies.performance.baselines import synchronize, timed_generate

    materials = addition(config)
    tokens, everything = materials.tokens, materials.split.train_ids
    for preset in ("nano", "gpt2-shape") if device.startswith("cuda") else ("nano",):
        model = model_of(preset, tokens).to(device)  # pyright: ignore[reportArgumentType]
        # every reference is answer and end: the baseline is not made to write more than that
        max_new_tokens = int((tokens.lengths - tokens.prompt_lengths).max())
        decode(model, tokens[everything[:256]], max_new_tokens=max_new_tokens)

        def ours(model: PreTrainedModel = model, max_new_tokens: int = max_new_tokens) -> float:
            synchronize(device)
            started = time.perf_counter()
            decode(model, tokens, max_new_tokens=max_new_tokens)
            return time.perf_counter() - started

        for batch, cases in ((1, config.one_by_one), (BATCH, BATCH * max(1, config.one_by_one // 10))):
            some = everything[:cases]

            def theirs(
                model: PreTrainedModel = model, longest: int = max_new_tokens, batch: int = batch, some: Any = some
            ) -> float:
                return timed_generate(model, tokens, some, device, batch_size=batch, max_new_tokens=longest)[0]

            seconds, generated = quickest(config.repeats, ours, theirs)
            yield row(
                f"{preset}, whole direct grid", f"generate, {'one at a time' if batch == 1 else f'batches of {batch}'}",
                seconds, generated * len(tokens) / len(some), f"{len(tokens)} cases", f"{len(some)} cases",
                f"{len(tokens)} cases", f"up to {max_new_tokens} tokens each",
            )  # fmt: skip


def trace_decoding(config: PerformanceConfig, device: str) -> Iterator[Row]:
    """Scratchpads of addition (digit tokens, prompts of several lengths) by a `nano` model, against `generate`.

    The model is trained first, not timed, for `scratchpad_steps`: its answers are mostly wrong after so few, but its
    traces have the right form and end where real ones do, and this is what decoding takes its time from.
    """
    import numpy as np

    from cri.evaluation.decoding import decode, max_new_tokens_for
    from cri.studies.performance.baselines import synchronize, timed_generate
    from cri.training.recipes import recipe
    from cri.training.trainer import Trainer

    materials = addition(config, recipe("addition", "scratchpad", tokenizer="digit"))
    tokens, model = materials.tokens, materials.model
    train = dataclasses.replace(materials.config.train, steps=config.scratchpad_steps)
    Trainer(model, tokens, materials.split.train_ids, train, device).run(train.steps)
    model = model.to(device).eval()  # pyright: ignore[reportArgumentType]
    max_new_tokens = max_new_tokens_for(tokens)
    cases = np.random.default_rng(0).permutation(len(tokens))
    made = f"nano, scratchpads after {train.steps} steps of {train.batch_size}"

    def decoded(some: np.ndarray) -> tuple[float, Decoded]:
        synchronize(device)
        started = time.perf_counter()
        found = decode(model, tokens[some], max_new_tokens=max_new_tokens)
        return time.perf_counter() - started, found

    decoded(cases[:BATCH])  # what is set up once
    for batch, count in ((1, config.traces_one_by_one), (BATCH, config.traces_batched)):
        some = cases[:count]
        texts: dict[str, list[list[int]]] = {}

        def ours(some: np.ndarray = some, texts: dict[str, list[list[int]]] = texts) -> float:
            seconds, found = decoded(some)
            columns = zip(found.ids.tolist(), found.lengths.tolist(), found.finished.tolist(), strict=True)
            texts["ours"] = [ids[:n] + [tokens.eos] * ended for ids, n, ended in columns]
            return seconds

        def theirs(batch: int = batch, some: np.ndarray = some, texts: dict[str, list[list[int]]] = texts) -> float:
            seconds, texts["theirs"] = timed_generate(
                model, tokens, some, device, batch_size=batch, max_new_tokens=max_new_tokens
            )
            return seconds

        own, other = quickest(config.repeats, ours, theirs)
        lengths, their_lengths = ([len(text) for text in texts[who]] for who in ("ours", "theirs"))
        ended = sum(text[-1] == tokens.eos for text in texts["ours"])
        equal = sum(a == b for a, b in zip(texts["ours"], texts["theirs"], strict=True))
        how = "one at a time" if batch == 1 else f"batches of {batch} padded on the left"
        yield row(
            f"{made}: {len(some)} cases", f"generate, {how}", own, other, f"{len(some)} cases", "the same cases",
            f"{len(some)} cases",
            f"{sum(lengths) / own:.0f} tokens a second, baseline {sum(their_lengths) / other:.0f}; mean trace "
            f"{np.mean(lengths):.1f} tokens, {ended} of {len(some)} ended, {equal} equal to the baseline's",
        )  # fmt: skip
    everything = np.arange(len(tokens))
    [seconds] = quickest(config.repeats, lambda: decoded(everything)[0])
    yield {"work": f"{made}: the whole grid", "ours_s": seconds, "of": f"{len(tokens):,} cases"}
