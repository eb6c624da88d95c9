"""The loop: exact resume, kills at random moments, refusals, what is trained on."""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cri.config import RunConfig, TrainConfig
from cri.errors import CorruptRunError, CriError
from cri.materials import prepare
from cri.train import load_run, train_run
from cri.training import Trainer, batch_order, labels_of, learning_rates, summed_loss
from tests.conftest import TINY

SHORT = TINY.replace(steps=24, batch_size=64)


def trained(config: RunConfig, until: int, path=None, resume=None) -> Trainer:
    materials = prepare(config)
    trainer = Trainer(materials.model, materials.tokens, materials.split.train_ids, config.train)
    if resume:
        trainer.restore(resume, materials.identity)
    trainer.run(until)
    if path:
        trainer.save(path, materials.identity)
    return trainer


@pytest.mark.parametrize("config", [SHORT, SHORT.replace(model="nano-rope", tokenizer="digit")], ids=["gpt2", "llama"])
@pytest.mark.parametrize("stop", [1, 11])
def test_resume_equals_uninterrupted_training_bit_for_bit(config, stop, tmp_path):
    whole = trained(config, 24)
    trained(config, stop, tmp_path / "c.safetensors")
    resumed = trained(config, 24, resume=tmp_path / "c.safetensors")
    for name, value in whole.parameters.items():
        assert torch.equal(value, resumed.parameters[name]), name


def test_equal_seeds_give_the_same_run_and_others_another():
    one, two, other = (trained(SHORT.replace(seed=s), 8).parameters for s in (0, 0, 1))
    assert all(torch.equal(one[n], two[n]) for n in one)
    assert any(not torch.equal(one[n], other[n]) for n in one)


def test_gradient_accumulation_takes_the_same_step():
    whole, parts = (trained(SHORT.replace(micro_batch=m), 3).parameters for m in (0, 17))
    for name, value in whole.items():
        assert torch.allclose(value, parts[name], atol=2e-5), name


def test_loss_is_on_the_completion_only_unless_asked():
    materials = prepare(TINY)
    labels = labels_of(materials.tokens, "completion")
    case = materials.task.id_of(3, 4)
    start, stop = int(materials.tokens.prompt_lengths[case]), int(materials.tokens.lengths[case])
    assert (labels[case, :start] == -100).all()
    assert (labels[case, start:stop] == materials.tokens.ids[case, start:stop]).all()
    assert (labels_of(materials.tokens, "all")[case, :stop] != -100).all()


def test_summed_loss_against_hugging_faces():
    materials = prepare(TINY.replace(tokenizer="digit"))
    tokens = materials.tokens[np.array([5, 300, 575])]
    labels = labels_of(tokens, "completion")
    with torch.no_grad():
        ours = summed_loss(materials.model, tokens.ids, labels, int(tokens.prompt_lengths.min()))
        theirs = materials.model(input_ids=tokens.ids, labels=labels).loss * (labels != -100).sum()
    assert torch.allclose(ours, theirs, rtol=1e-5)


@given(n=st.integers(1, 300), batch=st.integers(1, 70), steps=st.integers(1, 40), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_batches_cover_every_epoch_without_repeats(n, batch, steps, seed):
    ids = np.arange(n) * 3
    lengths = np.random.default_rng(seed).integers(4, 9, size=3 * n)
    order = batch_order(ids, lengths, batch_size=batch, steps=steps, seed=seed)
    assert order.shape == (steps, min(batch, n))
    per_epoch = n // min(batch, n)
    for start in range(0, steps, per_epoch):
        epoch = order[start : start + per_epoch].ravel()
        assert len(set(epoch.tolist())) == len(epoch)
        assert set(epoch.tolist()) <= set(ids.tolist())


def test_batches_of_neighbours_in_length_waste_little():
    rng = np.random.default_rng(0)
    lengths = rng.integers(10, 60, size=2000)
    order = batch_order(np.arange(2000), lengths, batch_size=50, steps=40, seed=0)
    padded = 1 - lengths[order].sum() / (lengths[order].max(axis=1) * 50).sum()
    assert padded < 0.05


def test_learning_rate_rises_then_falls_to_nothing():
    rates = learning_rates(TrainConfig(steps=100, warmup=0.1, lr=2.0))
    assert np.argmax(rates) in (9, 10)
    assert rates.max() == pytest.approx(2.0)
    assert (np.diff(rates[10:]) <= 0).all()
    assert rates[-1] < 0.01


def test_a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint(tmp_path, monkeypatch):
    real = Trainer._train_step
    config = SHORT.replace(steps=120)

    def poisoned(self, width):
        real(self, width)
        if self.step > 60:
            self._running.fill_(math.nan)

    monkeypatch.setattr(Trainer, "_train_step", poisoned)
    with pytest.raises(CriError, match=r"the loss is nan at step \d+; lower lr"):
        train_run(config, tmp_path, progress=False, checkpoint_every=50, device="cpu")
    monkeypatch.undo()
    folder = next(tmp_path.iterdir())
    assert (folder / "checkpoint.safetensors").exists()
    assert not (folder / "complete.json").exists()
    # what was kept is good: the run goes on from it to the same end as one that was never stopped
    resumed = load_run(train_run(config, tmp_path, progress=False, device="cpu")).model.state_dict()
    whole = load_run(train_run(config, tmp_path / "whole", progress=False, device="cpu")).model.state_dict()
    assert all(torch.equal(resumed[n], whole[n]) for n in whole)


def test_checkpoints_of_other_runs_or_altered_ones_are_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    trained(SHORT, 2, path)
    with pytest.raises(CorruptRunError, match="another config"):
        trained(SHORT.replace(lr=1e-4), 4, resume=path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptRunError, match="checksum"):
        trained(SHORT, 4, resume=path)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CorruptRunError, match="damaged"):
        trained(SHORT, 4, resume=path)


@pytest.mark.parametrize(
    ("field", "value"), [("steps", 0), ("batch_size", 0), ("lr", 0.0), ("lr", math.inf), ("warmup", 1.0)]
)
def test_settings_out_of_range_are_refused_by_name(field, value):
    with pytest.raises(CriError, match=rf"^{field}: "):
        TrainConfig(**{field: value})


@pytest.mark.slow
def test_kill_at_random_moments_then_resume_to_the_same_bits(tmp_path):
    """SIGKILL at 20 random moments, in start-up, training, checkpointing and evaluation."""
    config = TINY.replace(steps=200, batch_size=64)
    whole = load_run(train_run(config, tmp_path / "whole", device="cpu", progress=False)).model.state_dict()
    script = textwrap.dedent(
        f"""
        import sys, torch
        from pathlib import Path
        torch.set_num_threads(1)
        from cri.config import RunConfig
        from cri.train import train_run
        config = RunConfig.from_dict({config.to_dict()!r})
        print("ready", flush=True)
        train_run(config, Path(sys.argv[1]), device="cpu", checkpoint_every=7, evals=40, progress=False)
        """
    )
    rng, kills = random.Random(0), 0
    killed = tmp_path / "killed"
    for _ in range(60):
        process = subprocess.Popen([sys.executable, "-c", script, str(killed)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(rng.uniform(0.0, 2.5))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        process.stdout.close()
        done = list(killed.glob("*/complete.json"))
        if kills >= 20 or done:
            break
    resumed = load_run(train_run(config, killed, device="cpu", progress=False))
    assert kills >= 20 or done
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, whole[name]), name
    assert not list(killed.glob("*/.*.tmp*"))
