"""Models: presets, local folders, the TransformerLens bridge, adapters."""

from __future__ import annotations

import pytest
import torch

from cri.config import RunConfig
from cri.errors import CriError, MissingDependencyError
from cri.models.loading import (
    LoraConfig,
    add_lora,
    build_model,
    load_pretrained,
    merge_lora,
    require_positions,
    save_model,
    to_bridge,
)
from cri.training.setup import prepare


@pytest.fixture(scope="module", params=["nano", "nano-rope"])
def materials(request):
    return prepare(RunConfig(model=request.param, tokenizer="digit", task_params={"size": 24}, split="random"))


def test_bridge_logits_equal_hugging_faces(materials):
    ids = materials.tokens.ids[:40]
    before = {k: v.clone() for k, v in materials.model.state_dict().items()}
    bridge = to_bridge(materials.model, materials.tokenizer)
    with torch.no_grad():
        assert torch.allclose(bridge(ids), materials.model(input_ids=ids).logits, atol=1e-5)
    # booting must not have touched the model it copied
    assert all(torch.equal(v, before[k]) for k, v in materials.model.state_dict().items())


def test_bridge_with_right_padding_needs_no_mask(materials):
    """Digit tokens: prompts differ in length, so rows are padded."""
    tokens = materials.tokens
    assert len(tokens.lengths.unique()) > 1
    bridge = to_bridge(materials.model, materials.tokenizer)
    row = int(tokens.lengths.argmin())
    alone = tokens.ids[row : row + 1, : tokens.lengths[row]]
    with torch.no_grad():
        together = bridge(tokens.ids[[row, int(tokens.lengths.argmax())]])[0, : alone.shape[1]]
        assert torch.allclose(together, bridge(alone)[0], atol=1e-5)


def test_equal_seeds_equal_weights_and_the_global_generator_is_left_alone():
    shape = {"vocab_size": 50, "n_positions": 8, "pad": 0, "eos": 1}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, two = build_model("nano", seed=1, **shape), build_model("nano", seed=1, **shape)
    assert torch.equal(torch.rand(3), expected)
    other = build_model("nano", seed=2, **shape)
    assert torch.equal(one.lm_head.weight, two.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_a_local_folder_loads_behind_the_same_call(tmp_path, materials):
    save_model(materials.model, materials.tokenizer, tmp_path)
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".safetensors"}
    model, tokenizer = load_pretrained(str(tmp_path))
    ids = materials.tokens.ids[:5]
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, materials.model(input_ids=ids).logits)
    assert len(tokenizer) == len(materials.tokenizer)
    # and as the base of a run: the model named by its folder
    again = prepare(RunConfig(model=str(tmp_path), task_params={"size": 24}, split="random"))
    assert torch.equal(again.tokens.ids, materials.tokens.ids)


def test_adapters_merge_into_the_same_function(materials):
    model, _ = materials.model, None
    import copy

    wrapped = add_lora(copy.deepcopy(model), LoraConfig(r=2))
    trainable = [n for n, p in wrapped.named_parameters() if p.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1)
        ids = materials.tokens.ids[:4]
        expected = wrapped.eval()(input_ids=ids).logits
        merged = merge_lora(wrapped)
        assert torch.allclose(merged(input_ids=ids).logits, expected, atol=1e-4)
        assert not torch.allclose(expected, model(input_ids=ids).logits, atol=1e-2)


def test_unknown_models_say_what_would_provide_them():
    with pytest.raises(MissingDependencyError, match="hf download nobody/nothing"):
        load_pretrained("nobody/nothing")
    with pytest.raises(CriError, match="choose from nano"):
        build_model("nan0", vocab_size=9, n_positions=4, pad=0, eos=1, seed=0)


def test_sequences_longer_than_the_position_table_are_refused():
    model = build_model("nano", vocab_size=9, n_positions=4, pad=0, eos=1, seed=0)
    require_positions(model, 4)
    with pytest.raises(CriError, match="do not fit its 4 positions"):
        require_positions(model, 5)
