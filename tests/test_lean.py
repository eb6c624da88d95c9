"""Training a part of a model, and the step that leaves out what changes nothing, against the plain step."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from cri.config import RunConfig, TrainConfig
from cri.errors import CorruptRunError, CriError
from cri.models.loading import LoraConfig
from cri.models.partial import frozen_below, frozen_in_bf16, layers_of, train_last_layers
from cri.training.checkpoints import read_trained
from cri.training.lean import LeanStep
from cri.training.runs import load_run, train_run
from cri.training.setup import part_to_train, prepare
from cri.training.steps import PlainStep
from cri.training.trainer import Trainer

CONFIG = RunConfig(
    model="mini", task_params={"size": 12}, split_params={"half_side": 2}, train=TrainConfig(steps=8, batch_size=16)
)
PARTS = {
    "all": {},
    "last layers": {"last_layers": 2},
    "adapters": {"lora": True, "lora_params": {"dropout": 0}},
    "adapters in the last layers": {"lora": True, "lora_params": {"dropout": 0, "r": 4}, "last_layers": 1},
}
FAMILIES = {"gpt2": "mini", "llama": "mini-rope"}


def _train(config: RunConfig, way) -> tuple[Trainer, list[float]]:
    materials, losses = prepare(config), []
    model = part_to_train(materials)
    trainer = Trainer(model, materials.tokens, materials.split.train_ids, config.train, way=way)
    for stop in (3, config.train.steps):  # the model is whole again between two stretches
        trainer.run(stop, 1, lambda p: losses.append(p.loss))
        assert layers_of(model) is not None
        assert len(layers_of(model)) == 4
    return trainer, losses


@pytest.mark.parametrize(("family", "part"), list(itertools.product(FAMILIES, PARTS)))
@pytest.mark.parametrize("loss_on", ["completion", "all"])
def test_the_lean_step_is_the_plain_step(family, part, loss_on, monkeypatch):
    config = CONFIG.replace(model=FAMILIES[family], loss_on=loss_on, micro_batch=10, tokenizer="digit", **PARTS[part])
    monkeypatch.setattr("cri.training.lean.LARGE_VOCABULARY", 1)
    monkeypatch.setattr("cri.training.lean.spares_work", lambda *_: False)
    slow, slow_losses = _train(config, "plain")
    monkeypatch.undo()
    monkeypatch.setattr("cri.training.lean.LARGE_VOCABULARY", 1)
    lean, losses = _train(config, "lean")
    assert isinstance(lean._step, LeanStep)
    assert type(slow._step) is PlainStep
    assert losses == pytest.approx(slow_losses, abs=2e-5)
    for name, value in slow.parameters.items():
        torch.testing.assert_close(lean.parameters[name], value, rtol=0, atol=2e-4)


def test_frozen_matrices_are_bf16_within_and_themselves_after():
    model = train_last_layers(prepare(CONFIG.replace(model="mini-rope")).model, 1)
    before = dict(model.named_parameters())
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        expected = model(input_ids=ids).logits
        with frozen_in_bf16(model):
            linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
            kinds = {m.weight.dtype for m in linear}
            assert kinds == {torch.bfloat16, torch.float32}  # the last layer is trained
            assert model.get_input_embeddings().weight.dtype == torch.float32  # tied to the head, which is not
            assert torch.equal(model(input_ids=ids).logits, expected)
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is p for name, p in before.items())


def test_frozen_layers_are_counted_from_below():
    model = prepare(CONFIG).model
    assert frozen_below(model) == 0
    assert frozen_below(train_last_layers(model, 1)) == 3
    assert {n.split(".")[2] for n, p in model.named_parameters() if p.requires_grad and ".h." in n} == {"3"}
    model.get_input_embeddings().requires_grad_(True)
    assert frozen_below(model) == 0


@pytest.mark.parametrize("changes", [{"last_layers": 5}, {"last_layers": 5, "lora": True}])
def test_more_layers_than_there_are_is_one_line(changes):
    with pytest.raises(CriError, match=r"last_layers: 5 .*0\.\.4"):
        part_to_train(prepare(CONFIG.replace(**changes)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"last_layers": -1}, "last_layers: -1"),
        ({"lora_params": {"r": 4}}, "give --lora too"),
        ({"lora": True, "lora_params": {"rank": 4}}, "r, alpha, dropout"),
        ({"lora": True, "lora_params": {"r": 0}}, "lora_params.r: 0"),
        ({"lora": True, "lora_params": {"dropout": 1.0}}, "lora_params.dropout: 1"),
        ({"lora": True, "lora_params": {"alpha": "x"}}, "lora_params.alpha"),
    ],
)
def test_settings_of_a_part_are_checked(changes, said):
    with pytest.raises(CriError) as caught:
        prepare(CONFIG.replace(**changes))
    assert said in str(caught.value)


def test_dropout_given_without_a_point_is_a_number():
    assert LoraConfig.of({"dropout": 0}).dropout == 0.0


@pytest.mark.parametrize("changes", [{"last_layers": 1}, {"lora": True, "last_layers": 1}])
def test_a_run_of_a_part_keeps_the_part_alone_and_resumes(changes, tiny_run, tmp_path, interrupt_training):
    """A base by folder: what was trained is kept, the rest is read from the base; a killed run ends the same."""
    config = CONFIG.replace(model=str(tiny_run.path / "model"), **changes)
    options = {"device": "cpu", "checkpoint_every": 3, "evals": 0, "progress": False}
    done = load_run(train_run(config, tmp_path / "a", **options))
    assert [p.name for p in (done.path / "model").iterdir()] == ["trained.safetensors"]
    changed = [
        name for name, p in done.model.named_parameters() if not torch.equal(p, tiny_run.model.get_parameter(name))
    ]
    assert changed
    assert all(".h.1." in name or "ln_f" in name for name in changed)
    assert all(p.requires_grad for p in done.model.parameters())  # opened, it is an ordinary model

    interrupt_training(3)
    with pytest.raises(KeyboardInterrupt):
        train_run(config, tmp_path / "b", **options)
    again = load_run(train_run(config, tmp_path / "b", **options))
    for (name, a), (_, b) in zip(done.model.named_parameters(), again.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_part_of_another_model_is_refused(tiny_run, tmp_path):
    config = CONFIG.replace(model=str(tiny_run.path / "model"), last_layers=1)
    folder = train_run(config, tmp_path, device="cpu", evals=0, progress=False) / "model"
    materials = prepare(config.replace(last_layers=2))
    with pytest.raises(CorruptRunError, match=r"trained\.safetensors does not fit the model at .*h\.0"):
        read_trained(part_to_train(materials), folder / "trained.safetensors")
