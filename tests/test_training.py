"""The training loop: exact resume, seeds, order of batches, accumulation, a clear stop, several processes."""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import weakref
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cri.config import RunConfig, TrainConfig
from cri.errors import CorruptRunError, CriError
from cri.models.attention import has_dropout, unmasked
from cri.models.device import resolve_device
from cri.models.loading import LoraConfig, add_lora, merge_lora
from cri.training.batches import BatchStream, batch_order, learning_rates
from cri.training.checkpoints import read_checkpoint, write_checkpoint
from cri.training.compilation import Traced
from cri.training.distributed import process_rank
from cri.training.loss import labels_of, summed_loss, target_logits
from cri.training.setup import prepare
from cri.training.steps import PlainStep, TracedStep
from cri.training.trainer import Trainer

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


FAST = [("traced", name) for name in ("gpt2", "llama", "varied lengths", "accumulation", "bf16")]


@pytest.mark.parametrize(("way", "name"), [*FAST, pytest.param("compiled", "gpt2", marks=pytest.mark.slow)])
def test_every_fast_path_takes_the_plain_step(way, name):
    """The same gradient from the same weights, and the same losses over a run; the stack's: `test_replicas`."""
    config = RESUMED[name].replace(steps=12)
    tolerance = 2e-2 if config.train.precision == "bf16" else 1e-4
    steps = {w: trainer_of(config, way=w)._step for w in ("plain", way)}
    assert type(steps[way]) is TracedStep
    assert type(steps["plain"]) is PlainStep
    gradients = []
    for step in steps.values():
        cases = step.batches.cases()
        step.backward(cases, step.batches.width(0), step.batches.n_targets(cases))
        gradients.append(torch.cat([p.grad.flatten() for p in step.optimized if p.grad is not None]))
    plain, fast = gradients
    assert (fast - plain).norm() <= tolerance * plain.norm()
    losses, found = (train(config, way=w)[0] for w in ("plain", way))
    np.testing.assert_allclose(found, losses, rtol=tolerance)


def test_the_plain_step_is_the_loop_of_a_tutorial():
    """Against Hugging Face's loss, with its padding mask, and torch's AdamW: nothing of this package in the loop."""
    config = VARIED.replace(steps=6, weight_decay=0.1, beta2=0.9)
    materials = prepare(config)
    model, tokens, train = prepare(config).model.train(), materials.tokens, config.train
    order = batch_order(materials.split.train_ids, tokens.lengths.numpy(), batch_size=32, steps=6, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, train.beta2), weight_decay=train.weight_decay)
    expected = []
    for batch, lr in zip(order, learning_rates(train.steps, train.lr, train.warmup), strict=True):
        optimizer.param_groups[0]["lr"] = lr
        ids, mask = tokens.ids[batch], tokens.token_mask[batch]
        labels = ids.masked_fill(~tokens.target_mask[batch], -100)
        loss = model(input_ids=ids, attention_mask=mask.long(), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(float(loss.detach()))
    trainer, losses = trainer_of(config, way="plain"), []
    trainer.run(6, 1, lambda p: losses.append(p.loss))
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    for name, p in trainer.parameters.items():
        torch.testing.assert_close(p.detach(), model.get_parameter(name).detach(), rtol=1e-2, atol=2e-4, msg=name)


def test_what_cannot_be_traced_is_stepped_plainly():
    for change in ({"gradient_checkpointing": True}, {"lora": True}):
        assert type(trainer_of(CONFIG.replace(**change), way="compiled")._step) is PlainStep
    assert type(trainer_of(CONFIG)._step) is PlainStep
    assert type(trainer_of(CONFIG.replace(steps=100))._step) is TracedStep


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
    with pytest.raises(CorruptRunError, match="other data"):
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


@pytest.mark.parametrize("ways", [("traced", "traced"), ("traced", "plain"), ("plain", "traced")])
def test_a_checkpoint_is_resumed_whichever_way_parameters_are_optimised(ways, tmp_path):
    """On a GPU each parameter has moments of its own, on CPU all lie in one tensor."""
    checkpoint = tmp_path / "c.safetensors"
    trainers = [trainer_of(CONFIG, way=way) for way in ways]
    first, second = trainers
    first.run(6)
    first.save(checkpoint, {})
    second.restore(checkpoint, {})
    for trainer in trainers:
        trainer.run(10)
    for (name, a), b in zip(first.parameters.items(), second.parameters.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4, msg=name)
    # restarted moments would have made four full steps of the learning rate
    assert {float(s["step"]) for s in second._step.optimizer.state.values()} == {10.0}
    tensors, meta = read_checkpoint(checkpoint)
    write_checkpoint(checkpoint, {k: v for k, v in tensors.items() if not k.endswith("ln_f.bias.exp_avg")}, meta)
    with pytest.raises(CorruptRunError, match=r"has no exp_avg of transformer.ln_f.bias"):
        trainer_of(CONFIG).restore(checkpoint, {})


def test_a_failed_step_leaves_no_gradient_to_the_next(monkeypatch):
    config = CONFIG.replace(grad_clip=0.0)
    _, expected = train(config.replace(steps=2))
    trainer = trainer_of(config.replace(steps=2))
    optimizer = trainer._step.optimizer
    real = optimizer.step
    monkeypatch.setattr(optimizer, "step", lambda: 1 / 0)  # as a capture that fails after the backward pass
    with pytest.raises(ZeroDivisionError):
        trainer._step(trainer.batches.width(0))
    monkeypatch.setattr(optimizer, "step", real)
    trainer._step.running.zero_()
    trainer.run(2)
    assert_same({n: p.detach() for n, p in trainer.parameters.items()}, expected)


def test_a_released_trainer_keeps_its_model_only():
    trainer = trainer_of(CONFIG)
    trainer.run(2)
    weights = {n: p.detach().clone() for n, p in trainer.parameters.items()}
    moments = [weakref.ref(m) for s in trainer._step.optimizer.state.values() for m in s.values()]
    trainer.release()
    assert moments
    assert all(ref() is None for ref in moments)
    assert_same({n: p.detach() for n, p in trainer.parameters.items()}, weights)


def test_a_backward_pass_that_does_not_compile_is_run_uncompiled(monkeypatch):
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    def broken(graph, inputs):
        raise RuntimeError("no backward pass")

    backend = aot_autograd(fw_compiler=lambda graph, inputs: make_boxed_func(graph.forward), bw_compiler=broken)
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda graph, dynamic: real(graph, backend=backend, dynamic=dynamic))
    traced = Traced(lambda w, x: (x @ w).square().sum(), contextlib.nullcontext, True)
    w = torch.eye(3).requires_grad_()
    with pytest.warns(UserWarning, match="torch.compile failed"):
        loss = traced(w, torch.ones(2, 3))
    loss.backward()
    torch.testing.assert_close(w.grad, torch.full((3, 3), 4.0))


def test_a_wrong_compilation_is_not_used(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda graph, dynamic: lambda w, x: 1.1 * graph(w, x))
    traced = Traced(lambda w, x: (x @ w).square().sum(), contextlib.nullcontext, True)
    w = torch.eye(3).requires_grad_()
    with torch.no_grad(), pytest.warns(UserWarning, match="differ from the uncompiled"):
        assert traced(w, torch.ones(2, 3)) == 6
    traced = Traced(lambda w, x: (x @ w).square().sum(), contextlib.nullcontext, True)
    with pytest.warns(UserWarning, match="differ from the uncompiled"):
        loss = traced(w, torch.ones(2, 3))
    loss.backward()
    torch.testing.assert_close(w.grad, torch.full((3, 3), 4.0))


@pytest.mark.parametrize("kind", ["library", "products", "pairs", "sums"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_attention_drops_out_in_training_only(kind, architecture):
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    if architecture == "gpt2":
        none = {"embd_pdrop": 0.0, "resid_pdrop": 0.0}
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2, n_positions=8, attn_pdrop=0.5, **none)
        )
    else:
        shape = {
            "vocab_size": 50,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
        }
        model = LlamaForCausalLM(LlamaConfig(attention_dropout=0.5, **shape))
    assert has_dropout(model)
    ids = torch.arange(8)[None]
    for training in (True, False):
        model.train(training)
        with unmasked(model, kind), torch.no_grad():
            first, second = (model(input_ids=ids).logits for _ in range(2))
        assert torch.equal(first, second) != training


@pytest.mark.parametrize(
    ("name", "value"),
    [("beta2", 1.5), ("beta2", 1.0), ("beta2", math.nan), ("grad_clip", math.nan), ("grad_clip", -1.0),
     ("weight_decay", -1.0), ("weight_decay", math.inf)],
)  # fmt: skip
def test_settings_that_train_nothing_are_refused(name, value):
    with pytest.raises(CriError, match=rf"^{name}: .* is not allowed; must be [^\n]*$"):
        TrainConfig(**{name: value})
    TrainConfig(grad_clip=0.0, weight_decay=0.0, beta2=0.0)


def test_processes_wait_longer_than_the_first_decodes(monkeypatch):
    import accelerate

    asked = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(
        accelerate,
        "PartialState",
        lambda **options: asked.append(options) or SimpleNamespace(process_index=1, num_processes=2, device="cpu"),
    )
    assert process_rank() == (1, 2)
    assert resolve_device("auto") == "cpu"
    assert all(options["timeout"] >= timedelta(hours=12) for options in asked)
    assert len(asked) == 2


def test_a_gpu_chosen_by_number_becomes_the_current_one(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, "empty", lambda *shape, device: None)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert [resolve_device(d) for d in ("cuda:1", "cuda", "cpu")] == ["cuda:1", "cuda", "cpu"]
    assert chosen == [torch.device("cuda:1")]


def test_no_training_cases_is_an_error():
    with pytest.raises(CriError, match="no training cases"):
        batch_order(np.array([], dtype=int), np.full(5, 6), batch_size=2, steps=1, seed=0)


def test_learning_rate_rises_then_falls_to_nothing():
    rates = learning_rates(100, lr=1.0, warmup=0.1)
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
from cri.training.runs import train_run
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
        [
            json.loads(line)
            for path in (tmp_path / out).glob("*/metrics.jsonl")
            for line in path.read_text().splitlines()
        ]
        for out in ("one", "two")
    )
    assert len(one) == len(two) == 3  # checkpoints at 10 and 20, and the end
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, abs=2e-6)
    assert all((path / "complete.json").exists() for path in (tmp_path / "two").iterdir())
