"""The training loop: exact resume, seeds, order of batches, accumulation, a clear stop, several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cri.attention import unmasked
from cri.batches import BatchStream, batch_order, learning_rates
from cri.config import RunConfig, TrainConfig
from cri.errors import CorruptRunError, CriError
from cri.materials import prepare
from cri.models import LoraConfig, add_lora, merge_lora
from cri.training import Trainer, labels_of, summed_loss, target_logits

CONFIG = RunConfig(
    task_params={"size": 15}, split_params={"half_side": 2}, train=TrainConfig(steps=24, batch_size=32, lr=1e-3)
)
VARIED = CONFIG.replace(task_params={"size": 60}, tokenizer="digit")


def trainer_of(config: RunConfig, **options) -> Trainer:
    materials = prepare(config)
    model = add_lora(materials.model, LoraConfig(), config.seed) if config.lora else materials.model
    return Trainer(model, materials.tokens, materials.split.train_ids, config.train, **options)


def train(config: RunConfig, **options) -> tuple[list[float], dict[str, torch.Tensor]]:
    losses: list[float] = []
    trainer = trainer_of(config, **options)
    trainer.run(config.train.steps, 6, lambda p: losses.append(p.loss))
    return losses, {n: p.detach().clone() for n, p in trainer.parameters.items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


RESUMED = {
    "gpt2": CONFIG,
    "llama": CONFIG.replace(model="nano-rope"),
    "varied lengths": VARIED,
    "accumulation": CONFIG.replace(micro_batch=10),
    "checkpointing": CONFIG.replace(gradient_checkpointing=True),
    "lora with dropout": CONFIG.replace(lora=True),
    "bf16": CONFIG.replace(precision="bf16"),
    "traced": CONFIG.replace(steps=100),
}


@pytest.mark.parametrize(
    "name", [n if n in ("gpt2", "lora with dropout") else pytest.param(n, marks=pytest.mark.slow) for n in RESUMED]
)
def test_resumed_equals_uninterrupted_bit_for_bit(name, tmp_path):
    config, checkpoint = RESUMED[name], tmp_path / "checkpoint.safetensors"
    losses, expected = train(config)
    first = trainer_of(config)
    first.run(12, 6)
    first.save(checkpoint, {"config": "x"})
    torch.rand(3)  # somebody else's noise
    second = trainer_of(config)
    second.restore(checkpoint, {"config": "x"})
    rest: list[float] = []
    second.run(config.train.steps, 6, lambda p: rest.append(p.loss))
    assert rest == losses[2:]
    assert_same({n: p.detach() for n, p in second.parameters.items()}, expected)


def test_equal_seeds_equal_runs_and_other_seeds_others():
    losses, weights = train(CONFIG)
    again, same = train(CONFIG)
    assert losses == again
    assert_same(weights, same)
    assert train(CONFIG.replace(seed=1))[0] != losses
    assert train(CONFIG.replace(lora=True))[0] == train(CONFIG.replace(lora=True))[0]


def test_traced_steps_equal_untraced_ones(monkeypatch):
    config = CONFIG.replace(steps=100)
    losses, _ = train(config)
    trainer, found = trainer_of(config), []
    assert trainer._traces
    monkeypatch.setattr(Trainer, "_ways", lambda self, compiled: (False, False))
    trainer = trainer_of(config)
    trainer.run(100, 6, lambda p: found.append(p.loss))
    np.testing.assert_allclose(found, losses, rtol=1e-4)


def test_accumulated_and_checkpointed_steps_equal_whole_ones():
    losses, _ = train(CONFIG)
    for change in ({"micro_batch": 7}, {"gradient_checkpointing": True}):
        np.testing.assert_allclose(train(CONFIG.replace(**change))[0], losses, rtol=1e-5)


@pytest.mark.parametrize("model", ["nano", "nano-rope"])
@pytest.mark.parametrize("loss_on", ["completion", "all"])
def test_loss_is_the_models_own(model, loss_on):
    """Against Hugging Face's loss over the whole sequence, with a padding mask."""
    materials = prepare(VARIED.replace(model=model))
    tokens = materials.tokens[np.arange(0, 3600, 97)]
    labels = labels_of(tokens, loss_on)
    first = int(tokens.prompt_lengths.min()) if loss_on == "completion" else 1
    if loss_on == "all":
        labels[:, 0] = -100  # never predicted
    mask = tokens.token_mask.long()
    expected = materials.model(input_ids=tokens.ids, attention_mask=mask, labels=labels).loss
    with unmasked(materials.model):
        found = summed_loss(materials.model, tokens.ids, labels, first) / (labels != -100).sum()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", ["nano", "nano-rope", "mini"])
@pytest.mark.parametrize("kind", ["library", "products", "pairs", "sums"])
def test_unmasked_shortened_logits_are_the_models_own(model, kind):
    materials = prepare(CONFIG.replace(model=model))
    ids = materials.tokens.ids[:8]
    expected = materials.model(input_ids=ids).logits[:, 3:-1]
    with unmasked(materials.model, kind):
        found = target_logits(materials.model, ids, 4)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_loss_that_is_not_finite_stops_with_the_setting_to_change():
    with pytest.raises(CriError, match=r"lr: the loss is .* at step \d+; lower lr=1e\+06"):
        train(CONFIG.replace(lr=1e6, grad_clip=0.0, steps=200, model="nano-rope"))


def test_checkpoint_of_another_run_or_altered_is_refused(tmp_path):
    checkpoint = tmp_path / "checkpoint.safetensors"
    trainer = trainer_of(CONFIG)
    trainer.run(2)
    trainer.save(checkpoint, {"data": "a"})
    with pytest.raises(CorruptRunError, match="another data"):
        trainer_of(CONFIG).restore(checkpoint, {"data": "b"})
    data = bytearray(checkpoint.read_bytes())
    data[-5] ^= 1
    checkpoint.write_bytes(data)
    with pytest.raises(CorruptRunError, match="checksum"):
        trainer_of(CONFIG).restore(checkpoint, {"data": "a"})
    checkpoint.write_bytes(data[: len(data) // 2])
    with pytest.raises(CorruptRunError, match="damaged"):
        trainer_of(CONFIG).restore(checkpoint, {"data": "a"})


@given(
    n=st.integers(1, 60), batch_size=st.integers(1, 20), steps=st.integers(1, 40), seed=st.integers(0, 5),
    varied=st.booleans(), cut=st.integers(0, 40),
)  # fmt: skip
@settings(max_examples=80, deadline=None)
def test_batch_order(n, batch_size, steps, seed, varied, cut):
    ids = np.arange(100, 100 + n)
    lengths = np.random.default_rng(1).integers(3, 9, 200) if varied else np.full(200, 6)
    order = batch_order(ids, lengths, batch_size=batch_size, steps=steps, seed=seed)
    size = min(batch_size, n)
    assert order.shape == (steps, size)
    assert np.isin(order, ids).all()
    per_epoch = n // size
    for epoch in range(0, steps - per_epoch + 1, per_epoch):
        seen = order[epoch : epoch + per_epoch].ravel()
        assert len(np.unique(seen)) == len(seen), "no case twice in an epoch"
    cut = min(cut, steps - 1)
    stream = BatchStream(ids, lengths, batch_size, seed)
    np.testing.assert_array_equal(stream.batches(cut, steps), order[cut:])
    longer = batch_order(ids, lengths, batch_size=batch_size, steps=steps + 7, seed=seed)
    np.testing.assert_array_equal(longer[:steps], order)


def test_batches_by_length_pad_little():
    lengths = np.random.default_rng(0).integers(20, 200, 4000)
    order = batch_order(np.arange(4000), lengths, batch_size=32, steps=125, seed=0)
    padded = 1 - lengths[order].sum() / (32 * lengths[order].max(1)).sum()
    drawn = np.random.default_rng(0).permutation(4000).reshape(125, 32)
    assert padded < 0.05 < 1 - lengths[drawn].sum() / (32 * lengths[drawn].max(1)).sum()
    assert trainer_of(VARIED).padded_share < 0.05


def test_no_training_cases_is_an_error():
    with pytest.raises(CriError, match="no training cases"):
        batch_order(np.array([], dtype=int), np.full(5, 6), batch_size=2, steps=1, seed=0)


def test_learning_rate_rises_then_falls_to_nothing():
    rates = learning_rates(TrainConfig(steps=100, lr=1.0, warmup=0.1))
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    assert (np.diff(rates[10:]) < 0).all()
    assert rates[-1] < 1e-3


def test_lora_trains_adapters_only_and_merges():
    materials = prepare(CONFIG.replace(lora=True))
    before = {n: p.clone() for n, p in materials.model.state_dict().items()}
    model = add_lora(materials.model, LoraConfig(), 0)
    trainer = Trainer(model, materials.tokens, materials.split.train_ids, CONFIG.replace(lr=1e-2).train)
    trainer.run(24)
    n_trained = sum(p.numel() for p in trainer.parameters.values())
    assert n_trained < 0.3 * sum(p.numel() for p in before.values())
    ids = materials.tokens.ids[:5]
    expected = model(input_ids=ids).logits
    merged = merge_lora(model)
    torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert set(merged.state_dict()) == set(before)
    assert any(not torch.equal(v, before[n]) for n, v in merged.state_dict().items())


SCRIPT = """
import json, sys
from pathlib import Path
from cri.config import RunConfig
from cri.train import train_run
config = RunConfig.from_dict(json.loads(sys.argv[1]))
train_run(config, Path(sys.argv[2]), device="cpu", checkpoint_every=10, evals=2, progress=False)
"""


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """`accelerate launch` with two CPU processes: the losses of one process with the same batches."""
    config = CONFIG.replace(batch_size=31)  # does not divide
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    arguments = [str(tmp_path / "script.py"), json.dumps(config.to_dict())]
    launch = ["accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1", "--mixed_precision=no",
              "--dynamo_backend=no", "--main_process_port=0"]  # fmt: skip
    for command, out in (([sys.executable], "one"), ([sys.executable, "-m", *launch], "two")):
        subprocess.run([*command, *arguments, str(tmp_path / out)], env=environment, check=True, capture_output=True)
    one, two = (
        [json.loads(line) for path in (tmp_path / out).glob("*/metrics.jsonl") for line in path.open()]
        for out in ("one", "two")
    )
    assert len(one) == len(two) > 3
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, abs=2e-6)
    assert all((path / "complete.json").exists() for path in (tmp_path / "two").iterdir())
