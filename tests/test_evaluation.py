"""Batched decoding against one case at a time through Hugging Face's own generate."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cri.config import RunConfig, TrainConfig
from cri.evaluation.decoding import decode, max_new_tokens_for
from cri.training.setup import prepare
from cri.training.trainer import Trainer

CASES = {
    "number": RunConfig(task_params={"size": 14}, train=TrainConfig(steps=60, batch_size=64)),
    "digit": RunConfig(task_params={"size": 14}, tokenizer="digit", train=TrainConfig(steps=60, batch_size=64)),
    "rope": RunConfig(task_params={"size": 14}, tokenizer="digit", model="nano-rope", train=TrainConfig(steps=60)),
    "trace": RunConfig(task_params={"size": 12}, format="scratchpad", train=TrainConfig(steps=30, batch_size=32)),
}


@pytest.fixture(scope="module", params=CASES)
def trained(request):
    config = CASES[request.param].replace(split="random")
    materials = prepare(config)
    trainer = Trainer(materials.model, materials.tokens, materials.split.train_ids, config.train)
    trainer.run(config.train.steps)
    return materials


def one_by_one(materials, case: int, max_new_tokens: int) -> tuple[list[int], bool]:
    tokens = materials.tokens
    prompt = tokens.ids[case, : tokens.prompt_lengths[case]][None]
    out = materials.model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=max_new_tokens, do_sample=False,
        pad_token_id=tokens.pad, eos_token_id=tokens.eos,
    )  # fmt: skip
    new = out[0, prompt.shape[1] :].tolist()
    return (new[: new.index(tokens.eos)], True) if tokens.eos in new else (new, False)


def test_batched_equals_one_by_one(trained):
    tokens, max_new_tokens = trained.tokens, max_new_tokens_for(trained.tokens)
    decoded = decode(trained.model, tokens, batch_tokens=40 * max_new_tokens)
    cases = np.linspace(0, len(tokens) - 1, 10 if max_new_tokens > 20 else 40).astype(int)
    for case in cases:
        expected, finished = one_by_one(trained, int(case), max_new_tokens)
        assert decoded.ids[case, : decoded.lengths[case]].tolist() == expected
        assert bool(decoded.finished[case]) == finished


def test_batches_do_not_change_the_result(trained):
    whole, parts = decode(trained.model, trained.tokens), decode(trained.model, trained.tokens, batch_tokens=300)
    for a, b in ((whole.ids, parts.ids), (whole.lengths, parts.lengths), (whole.finished, parts.finished)):
        np.testing.assert_array_equal(a, b)


def test_stopping_when_wrong_keeps_what_is_right(trained):
    tokens = trained.tokens
    full, stopped = decode(trained.model, tokens), decode(trained.model, tokens, stop_when_wrong=True)
    for case in range(0, len(tokens), 7):
        reference = tokens.ids[case, tokens.prompt_lengths[case] : tokens.lengths[case] - 1].tolist()
        right, kept = (bool(d.finished[case]) and d.ids[case, : d.lengths[case]].tolist() == reference
                       for d in (full, stopped))  # fmt: skip
        assert right == kept
    assert stopped.lengths.sum() <= full.lengths.sum()


def test_out_of_room_is_unfinished(trained):
    decoded = decode(trained.model, trained.tokens, max_new_tokens=1)
    assert decoded.ids.shape == (len(trained.tokens), 1)
    np.testing.assert_array_equal(decoded.finished, decoded.lengths == 0)


def test_sampling_is_reproducible_and_varied(trained):
    part = trained.tokens[np.arange(20)]
    first, again, other = (
        decode(trained.model, part, temperature=1.0, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.ids, again.ids)
    assert (first.ids != other.ids).any()


def test_attention_implementation_is_put_back(trained):
    before = trained.model.config._attn_implementation, trained.model.config.pad_token_id
    decode(trained.model, trained.tokens[np.arange(3)])
    assert (trained.model.config._attn_implementation, trained.model.config.pad_token_id) == before
