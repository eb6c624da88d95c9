"""The same numbers on a GPU as on CPU; skipped where there is none."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
import torch

from cri.config import RunConfig, TrainConfig
from cri.ensembles.engine import Replica
from cri.ensembles.stacked import Layout, Member, StackedTrainer
from cri.ensembles.train import train_replicas
from cri.evaluation.decoding import decode
from cri.models.attention import SHORT
from cri.training.setup import prepare
from cri.training.trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CONFIG = RunConfig(
    task_params={"size": 20}, split_params={"half_side": 3}, train=TrainConfig(steps=40, batch_size=64, lr=1e-3)
)

FELL_BACK = "CUDA graph not captured|torch.compile failed"


def losses(config, device, **options):
    materials, found = prepare(config), []
    trainer = Trainer(materials.model, materials.tokens, materials.split.train_ids, config.train, device, **options)
    trainer.run(config.train.steps, 10, lambda p: found.append(p.loss))
    return np.array(found), trainer


@pytest.mark.parametrize("model", ["nano", "nano-rope"])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("tf32", 2e-2), ("bf16", 5e-2)])
def test_graphed_training_follows_the_cpu(model, precision, tolerance):
    config = CONFIG.replace(model=model, precision=precision)
    expected, _ = losses(config.replace(precision="fp32"), "cpu")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=FELL_BACK)
        found, trainer = losses(config, "cuda", way="plain")
    assert trainer._graphed.graphs
    np.testing.assert_allclose(found, expected, rtol=tolerance)


@pytest.mark.parametrize(("precision", "tolerance"), [("tf32", 2e-2), ("bf16", 5e-2)])
def test_compiled_training_of_long_texts_follows_the_cpu(precision, tolerance):
    """More than `SHORT` tokens, where the library's attention would be traced without its logsumexp."""
    config = CONFIG.replace(format="scratchpad", precision=precision)
    assert prepare(config).tokens.ids.shape[1] > SHORT
    expected, _ = losses(config.replace(precision="fp32"), "cpu")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=FELL_BACK)
        found, trainer = losses(config, "cuda", way="compiled")
    assert trainer._graphed.graphs
    np.testing.assert_allclose(found, expected, rtol=tolerance)


def test_accumulation_and_checkpointing_follow_the_whole_batch():
    expected, _ = losses(CONFIG, "cuda", way="plain")
    for change in ({"micro_batch": 24}, {"gradient_checkpointing": True}):
        found, _ = losses(CONFIG.replace(**change), "cuda", way="plain")
        np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize("model", ["nano", "nano-rope"])
@pytest.mark.parametrize(("fmt", "compiled"), [("direct", False), ("direct", True), ("scratchpad", False)])
def test_stack_follows_single_runs(model, fmt, compiled):
    config = CONFIG.replace(model=model, format=fmt)
    materials = prepare(config)
    layout = Layout(materials.model)
    own = [{"seed": 0}, {"seed": 1, "batch_size": 61}, {"seed": 2, "batch_size": 50}]  # compiled wrongly once
    members = []
    for change in own:
        one = prepare(config.replace(**change))
        train = one.config.train
        start = layout.flatten(one.model)
        members.append(Member(start, materials.split.train_ids, train.seed, train.lr, 0.0, train.batch_size))
    trainer = StackedTrainer(
        materials.model, layout, materials.tokens, members, config.train, "cuda", compiled=compiled, log_every=10
    )
    trainer.run(config.train.steps)
    for k, change in enumerate(own):
        expected, _ = losses(config.replace(**change), "cpu")
        np.testing.assert_allclose(trainer.losses[:, k].cpu(), expected, rtol=2e-3)


def test_varied_widths_and_resume(tmp_path):
    config = CONFIG.replace(task_params={"size": 120}, split_params={"half_side": 3}, tokenizer="digit", steps=60)
    expected, _ = losses(config, "cuda", way="plain")
    materials = prepare(config)
    half = Trainer(materials.model, materials.tokens, materials.split.train_ids, config.train, "cuda", way="plain")
    half.run(30)
    half.save(tmp_path / "c.safetensors", {})
    again = prepare(config)
    rest = Trainer(again.model, again.tokens, again.split.train_ids, config.train, "cuda", way="plain")
    rest.restore(tmp_path / "c.safetensors", {})
    found: list[float] = []
    rest.run(60, 10, lambda p: found.append(p.loss))
    np.testing.assert_allclose(found, expected[3:], rtol=1e-3)


def test_decoding_agrees_with_the_cpu():
    materials = prepare(dataclasses.replace(CONFIG))
    expected = decode(materials.model, materials.tokens)
    found = decode(materials.model.to("cuda"), materials.tokens)
    assert (expected.ids == found.ids).mean() > 0.99


def test_a_stack_gives_its_memory_back(tmp_path):
    """Decoding needs what training held: graphs and optimiser state go before it starts."""
    materials = prepare(CONFIG)
    replicas = [Replica(seed, materials.split.train) for seed in range(256)]  # so many hold a gigabyte and more
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    train_replicas(CONFIG, replicas, tmp_path, device="cuda", compiled=False, progress=False)
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() - before < 256 << 20
