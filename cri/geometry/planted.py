"""A model whose code is known: it adds on a line, writes the sum on circles, and is out of phase in a square.

The weights are set by hand in a stock GPT-2 of two layers, so that every analysis of this package can be asked for what
is known. Operands lie on a line and circles, with a mark on those of a gap. Attention adds them. The first MLP
sees whether both operands are marked, and if so moves the sum by `shift`. The second MLP writes cos and sin of the
(moved) sum at each period; the unembedding compares them with every number's. So in the square where both operands
are marked the coarse sum is nearly right, the fine code is out of phase, and the answer is wrong by `shift`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cri.data.splits import square
from cri.data.token_table import encode, task_tokenizer
from cri.data.tokenization import encode_texts
from cri.formats import make_format
from cri.geometry.number_line import helix_basis
from cri.geometry.subject import Subject
from cri.models.loading import to_bridge
from cri.tasks import Addition

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SIZE, CENTER, HALF_SIDE = 60, 30, 5
PERIODS = (40, 20, 10)
SHIFT = 3
_LEVEL = 300.0
"""The constant that dominates every LayerNorm's variance, so that it divides by nearly the same number always."""
_WIDTH = 64
_LINE, _MARK, _CIRCLES, _MOVED, _FINE, _LEVEL_AT = 0, 1, 2, 8, 9, 15
"""Features: the line, the mark, the operands' circles (6), the moved sum, the sum's circles (6), the constant. Feature
i is kept as +x in dimension 2i and -x in 2i + 1, so that means over dimensions are 0."""


def planted_subject(gap: bool = True) -> Subject:
    """The hand-built model, opened; without the `gap` no operand is marked and every sum is right."""
    task, fmt = Addition(SIZE), make_format("direct")
    tokenizer = task_tokenizer("number", task, fmt)
    tokens = encode(task, fmt, tokenizer)
    numbers = [ids[0] for ids in encode_texts(tokenizer, [str(n) for n in range(2 * SIZE - 1)])]
    model = _model(len(tokenizer), tokens.ids.shape[1], numbers, gap)
    split = square(task, (CENTER, CENTER), HALF_SIDE)
    bridge = to_bridge(model, tokenizer)
    return Subject(bridge, tokens.ids[:, :4], task.cases, torch.tensor(numbers), split.train, split.test, SIZE)


def _pair(feature: int) -> tuple[int, int]:
    return 2 * feature, 2 * feature + 1


def _put(table: Any, row: Any, feature: int, value: Any) -> None:
    plus, minus = _pair(feature)
    table[row, plus], table[row, minus] = value, -value


def _reads(feature: int, weight: float = 1.0) -> torch.Tensor:
    """The vector that reads `weight` times a feature."""
    vector = torch.zeros(_WIDTH)
    plus, minus = _pair(feature)
    vector[plus], vector[minus] = weight / 2, -weight / 2
    return vector


def _writes(feature: int, weight: float = 1.0) -> torch.Tensor:
    return 2 * _reads(feature, weight)


@torch.no_grad()
def _model(vocab: int, n_positions: int, numbers: list[int], gap: bool) -> PreTrainedModel:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocab, n_embd=_WIDTH, n_layer=2, n_head=1, n_positions=n_positions, activation_function="relu",
        embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0, tie_word_embeddings=False, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    for name, parameter in model.named_parameters():
        parameter.fill_(np.sqrt(2 * _LEVEL**2 / _WIDTH) if "ln_" in name and name.endswith("weight") else 0.0)
    body: Any = model.transformer
    circles = helix_basis(SIZE, PERIODS)[:, 2:]
    for n in range(SIZE):
        _put(body.wte.weight, numbers[n], _LINE, n / 100)
        for i, value in enumerate(circles[n]):
            _put(body.wte.weight, numbers[n], _CIRCLES + i, 0.3 * value)
        if gap and abs(n - CENTER) <= HALF_SIDE:
            _put(body.wte.weight, numbers[n], _MARK, 0.2)
    _put(body.wpe.weight, slice(None), _LEVEL_AT, _LEVEL)
    # attention with equal weights over the prompt's four tokens: 4 x mean = sum of line and mark
    values = body.h[0].attn.c_attn.weight[:, 2 * _WIDTH :]
    for feature in (_LINE, _MARK):
        values[:, _pair(feature)[0]] = _reads(feature, 4)
        body.h[0].attn.c_proj.weight[_pair(feature)[0]] = _writes(feature)
    _first_mlp(body.h[0].mlp)
    _second_mlp(body.h[1].mlp)
    waves = helix_basis(len(numbers), PERIODS)[:, 2:]
    for c in range(len(numbers)):
        row = 0.02 * (_reads(_MOVED, 2 * c * 100) - _reads(_LEVEL_AT, c**2 / _LEVEL))
        for i, value in enumerate(waves[c]):
            row = row + _reads(_FINE + i, 10 * value)
        model.lm_head.weight[numbers[c]] = row
    return model


def _first_mlp(mlp: Any) -> None:
    """The moved sum: the sum, and `SHIFT` more where both operands are marked (marks add up to 0.4)."""
    mlp.c_fc.weight[:, 0] = _reads(_LINE)
    mlp.c_proj.weight[0] = _writes(_MOVED)
    mlp.c_fc.weight[:, 1] = _reads(_MARK)
    mlp.c_fc.bias[1] = -0.3
    mlp.c_proj.weight[1] = _writes(_MOVED, SHIFT / 100 / 0.1)


def _second_mlp(mlp: Any) -> None:
    """cos and sin of the moved sum, linear between whole numbers: a neuron for every knot, which bends the lines."""
    n = 2 * SIZE - 1
    waves = helix_basis(n + 8, PERIODS)[:, 2:]
    slopes = np.diff(waves, axis=0)
    bends = np.diff(slopes, axis=0, prepend=np.zeros((1, slopes.shape[1])))
    for knot in range(n + 6):
        mlp.c_fc.weight[:, knot] = _reads(_MOVED, 100)
        mlp.c_fc.bias[knot] = -float(knot)
        for i in range(waves.shape[1]):
            mlp.c_proj.weight[knot] += _writes(_FINE + i, float(bends[knot, i]))
    for i in range(waves.shape[1]):
        mlp.c_proj.bias += _writes(_FINE + i, float(waves[0, i]))
