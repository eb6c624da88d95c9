"""What looks inside a model, measured: activations, interchange maps, influence scores.

All on CPU in one process, in CPU seconds: what else the machine does at the time then counts little. The baseline's
numbers are compared with ours in every note; a quicker way to other numbers would be no gain.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from cri.config import RunConfig
from cri.errors import CriError
from cri.studies.performance.rows import Row, addition, quickest, row

if TYPE_CHECKING:
    import numpy as np
    from torch import nn
    from transformers import PreTrainedModel

    from cri.data.token_table import TokenTable
    from cri.studies.performance.config import PerformanceConfig

FORWARD, BACKWARD = 1024, 256
"""Cases in one forward pass and in one backward pass, ours and the baseline's."""


def _on_cpu(device: str) -> None:
    if device != "cpu":
        raise CriError("device: this part is measured in CPU seconds; give --device cpu")


def _cpu_seconds(work: Callable[[], Any], results: dict[str, Any], name: str) -> float:
    """CPU seconds of `work()`, whose value is kept in `results`."""
    started = time.process_time()
    results[name] = work()
    return time.process_time() - started


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, relative to the largest expected value."""
    import numpy as np

    return float(np.abs(found - expected).max() / np.abs(expected).max())


def activations(config: PerformanceConfig, device: str) -> Iterator[Row]:
    """The residual stream after every layer for the whole grid, against a plain forward pass over its prompts."""
    import numpy as np
    import torch

    from cri.models.activations import collect, residual_sites
    from cri.models.loading import to_bridge

    _on_cpu(device)
    for preset in ("nano", "mini"):
        materials = addition(config, RunConfig(model=preset))
        model, tokens = materials.model, materials.tokens
        bridge = to_bridge(model, materials.tokenizer)
        sites = residual_sites(bridge)
        prompts = tokens.ids[:, : int(tokens.prompt_lengths.max())]
        results: dict[str, Any] = {}

        def ours(
            bridge: Any = bridge, tokens: TokenTable = tokens, sites: Any = sites, results: Any = results
        ) -> float:
            return _cpu_seconds(lambda: collect(bridge, tokens, sites, batch_size=FORWARD), results, "ours")

        def plain(model: PreTrainedModel = model, prompts: torch.Tensor = prompts) -> float:
            def forward() -> None:
                with torch.no_grad():
                    for batch in prompts.split(FORWARD):
                        model(input_ids=batch, use_cache=False)

            return _cpu_seconds(forward, {}, "nothing")

        seconds, theirs = quickest(config.repeats, ours, plain)
        some = np.linspace(0, len(tokens) - 1, 64).astype(int)
        with torch.no_grad():
            # the last one comes normalised
            states = model(input_ids=prompts[some], output_hidden_states=True).hidden_states[:-1]
        at = torch.arange(len(some)), tokens.prompt_lengths[some] - 1
        worst = max(
            _difference(results["ours"][site][some], state[at].numpy())
            for site, state in zip(sites, states, strict=False)
        )
        yield row(
            f"{preset}, residual stream after every layer, {len(tokens)} cases", "plain Hugging Face forward pass",
            seconds, theirs, f"{len(tokens)} cases", f"{len(tokens)} cases", "the grid",
            f"CPU seconds; {seconds / theirs:.2f} times the plain pass; batches of {FORWARD}; differs from its hidden "
            f"states by {worst:.1e} at most",
        )  # fmt: skip


def patching(config: PerformanceConfig, device: str) -> Iterator[Row]:
    """The interchange map, sites x steps, of pairs of scratchpads against patching cell by cell."""
    import numpy as np
    import torch

    from cri.interventions import make_pairs, patch_map
    from cri.models.loading import to_bridge
    from cri.studies.performance.baselines import patching_cell_by_cell

    _on_cpu(device)
    materials = addition(config, RunConfig(format="scratchpad", tokenizer="digit"))
    model, cases = materials.model, range(materials.task.n_cases)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # as initialised, a model hardly attends to anything: every patch would be as good as none
        for p in model.parameters():
            p.add_(0.08 * torch.randn(p.shape, generator=generator))
    bridge = to_bridge(model, materials.tokenizer)
    pairs = make_pairs(materials, "carry", cases, cases, n=config.patching_pairs)
    n_layers = bridge.cfg.n_layers
    into = [f"blocks.{i}.hook_resid_post" for i in range(n_layers - 1)]
    outputs = [f"blocks.{i}.hook_{c}" for i in range(n_layers) for c in ("attn_out", "mlp_out")]
    sites = ["blocks.0.hook_resid_pre", *into, *outputs]
    results: dict[str, Any] = {}
    seconds, theirs = quickest(
        config.repeats,
        lambda: _cpu_seconds(lambda: patch_map(model, bridge, pairs, sites=sites), results, "ours"),
        lambda: _cpu_seconds(lambda: patching_cell_by_cell(bridge, pairs), results, "theirs"),
    )
    found = results["ours"]
    # what leaves a layer enters the next one
    names = ["blocks.0.hook_resid_pre", *(f"blocks.{i}.hook_resid_pre" for i in range(1, n_layers)), *outputs]
    expected = np.stack([results["theirs"][name] for name in names]) - found.unpatched["toward_rule"]
    n_cells = f"{len(sites)} sites x {pairs.read + 1} tokens"
    worst, largest = _difference(found.effect("toward_rule"), expected), np.abs(expected).max()
    yield row(
        f"nano, interchange map of {len(pairs)} pairs of scratchpads, {n_cells}", "transformer_lens.patching", seconds,
        theirs, "all of it", "all of it", "the map",
        f"CPU seconds; effects on logit(rule) - logit(base) differ by {worst:.1e} of the largest, {largest:.2g}",
    )  # fmt: skip


def attribution(config: PerformanceConfig, device: str) -> Iterator[Row]:
    """Influence scores against kronfluence's on the same cases, and what ours cost at their whole size."""
    import torch

    from cri.attribution.ekfac import fit_ekfac
    from cri.attribution.gradients import gradient_scores
    from cri.attribution.influence import influence
    from cri.studies.performance.baselines import KRONFLUENCE_DAMPING, kronfluence_scores, linear_only

    _on_cpu(device)
    materials = addition(config)
    tokens, split = materials.tokens, materials.split
    options: dict[str, Any] = {"batch_size": BACKWARD, "progress": False}
    asked: dict[str, Any] = {"target": "reference", **options}
    results: dict[str, Any] = {}

    def ekfac(model: nn.Module, train: TokenTable, test: TokenTable, **fit: Any) -> np.ndarray:
        fisher = fit_ekfac(model, train, **fit, **options)
        return influence(model, fisher, train, test, relative_damping=KRONFLUENCE_DAMPING, **asked)

    everything = tokens[split.train_ids], tokens[split.test_ids]
    size = f"{len(split.train_ids):,} training x {len(split.test_ids):,} test cases"
    whole = {
        "EK-FAC scores (Fisher fitted on the training cases)": lambda: ekfac(materials.model, *everything),
        "GradDot and GradCos": lambda: gradient_scores(materials.model, *everything, **asked).cos,
    }
    for what, work in whole.items():
        seconds = _cpu_seconds(work, results, "whole")
        yield {"work": f"nano, {what}, {size}", "ours_s": seconds, "of": "all scores", "note": "CPU seconds"}

    # kronfluence reads linear layers only, and of a tied embedding one use of two
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, layers = linear_only(type(materials.model)(_untied(materials.model.config)).eval())
    names = [f"{layer}.*" for layer in layers]
    n_train, n_test = config.attribution_cases
    some = tokens[split.train_ids[:n_train]], tokens[split.test_ids[:n_test]]
    # the ratio falls as pairs outnumber cases, so the whole size is measured too, once
    for (train, test), repeats in ((some, config.repeats), (everything, 1)):
        methods: list[tuple[str, Literal["ekfac", "identity"], Callable[[], np.ndarray]]] = [
            ("EK-FAC", "ekfac", lambda a=train, b=test: ekfac(model, a, b, labels="empirical", parameters=names)),
            (
                "GradDot", "identity",
                lambda a=train, b=test: gradient_scores(model, a, b, parameters=names, **asked).dot,
            ),
        ]  # fmt: skip
        for method, strategy, work in methods:

            def theirs(
                strategy: Literal["ekfac", "identity"] = strategy, train: TokenTable = train, test: TokenTable = test
            ) -> float:
                results["theirs"], seconds = kronfluence_scores(
                    model, layers, train, test, strategy, batch_size=BACKWARD
                )
                return seconds

            own, other = quickest(repeats, lambda work=work: _cpu_seconds(work, results, "ours"), theirs)
            worst = _difference(results["ours"], results["theirs"])
            yield row(
                f"nano (untied), {method} scores of its linear layers, {len(train):,} training x {len(test):,} test "
                "cases", "kronfluence", own, other, "all of it", "all of it", "all scores",
                f"CPU seconds; scores differ by {worst:.1e} of the largest",
            )  # fmt: skip


def _untied(config: Any) -> Any:
    """The same shape with an output matrix of its own."""
    other = copy.deepcopy(config)
    other.tie_word_embeddings = False
    return other
