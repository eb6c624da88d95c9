"""Gradient similarity against per-example autograd, and what it must not depend on."""

from __future__ import annotations

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from cri.attribution.gradients import gradient_coverage, gradient_scores, tracin
from cri.attribution.outputs import log_likelihood, margin
from cri.attribution.per_example import Part, find_blocks, inner, materialise, squared_norms, summed_squares
from cri.data.token_table import TokenTable
from cri.errors import CriError

VOCAB = 40
OFF = {"bos_token_id": None, "eos_token_id": None}


def gpt2(tied: bool = True, attention: str = "sdpa", seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2, n_positions=32, initializer_range=0.2,
        activation_function="gelu_pytorch_tanh", tie_word_embeddings=tied, attn_implementation=attention, **OFF,
    )  # fmt: skip
    return _shake(GPT2LMHeadModel(config))


def llama(tied: bool = False, attention: str = "sdpa", seed: int = 0) -> LlamaForCausalLM:
    """Grouped-query attention, with a padding row that torch leaves without gradient."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, pad_token_id=0, initializer_range=0.2, mlp_bias=True,
        tie_word_embeddings=tied, attn_implementation=attention, **OFF,
    )  # fmt: skip
    return _shake(LlamaForCausalLM(config))


def _shake(model):
    """Gains away from 1 and biases away from 0, so that neither is tested at a special value."""
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(0.3 * torch.randn_like(p))
    return model.eval()


MODELS = {
    "gpt2": gpt2,
    "gpt2-untied": lambda **kw: gpt2(tied=False, **kw),
    "llama": llama,
    "llama-tied": lambda **kw: llama(tied=True, **kw),
}


def table(n: int, seed: int, pad_columns: int = 0) -> TokenTable:
    """Random sequences of several lengths; the padding id also occurs in prompts."""
    rng = np.random.default_rng(seed)
    prompts, completions = rng.integers(1, 6, n), rng.integers(1, 4, n)
    lengths = prompts + completions + 1
    ids = np.zeros((n, lengths.max() + pad_columns), dtype=np.int64)
    for i, length in enumerate(lengths):
        ids[i, : length - 1] = rng.integers(0, VOCAB, length - 1)
        ids[i, length - 1] = 1
    return TokenTable(torch.tensor(ids), torch.tensor(prompts), torch.tensor(lengths), 0, 1)


def autograd(model: nn.Module, tokens: TokenTable, output=log_likelihood, left_padding: int = 0) -> torch.Tensor:
    """Per-example gradients of all parameters, [case, parameter], by one plain backward pass a case."""
    rows = []
    for i in range(len(tokens)):
        case = tokens[np.array([i])]
        if left_padding:
            blank = torch.full((1, left_padding), tokens.pad)
            ids = torch.cat([blank, case.ids[:, :-1]], dim=1)
            mask = torch.cat([torch.zeros_like(blank), torch.ones_like(case.ids[:, :-1])], dim=1)
            logits = model(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
            logits = logits[:, left_padding:]
        else:
            logits = model(case.ids[:, :-1]).logits
        gradients = torch.autograd.grad(output(logits, case).sum(), [p for p in model.parameters() if p.requires_grad])
        rows.append(torch.cat([g.flatten() for g in gradients]))
    return torch.stack(rows)


def error(got: np.ndarray, want: np.ndarray | torch.Tensor) -> float:
    want = np.asarray(want)
    return float(np.abs(got - want).max() / np.abs(want).max())


@pytest.mark.parametrize("factored", [False, True, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MODELS)
def test_scores_match_autograd(name, dtype, factored):
    model = MODELS[name]().to(dtype)
    train, test = table(9, 1), table(4, 2)
    scores = gradient_scores(model, train, test, factored=factored, batch_size=4, target="reference", progress=False)
    g, h = autograd(model, train), autograd(model, test)
    bound = 1e-5 if dtype == torch.float32 else 1e-10
    assert error(scores.dot, g @ h.T) <= bound
    assert error(scores.train_norm, g.norm(dim=1)) <= bound
    assert error(scores.test_norm, h.norm(dim=1)) <= bound
    assert error(scores.cos, nn.functional.normalize(g) @ nn.functional.normalize(h).T) <= bound
    assert scores.coverage == 1.0


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_left_padded_autograd_agrees(name):
    model = MODELS[name](attention="eager")
    train, test = table(5, 1), table(3, 2)
    g, h = autograd(model, train, left_padding=3), autograd(model, test, left_padding=2)
    assert error(gradient_scores(model, train, test, target="reference", progress=False).dot, g @ h.T) <= 1e-5


def test_margin_as_output():
    model = gpt2().double()
    train, test = table(6, 1), table(4, 2)
    case = test[np.array([2])]
    log_p = model(case.ids[:, :-1]).logits.log_softmax(-1)[
        0, case.prompt_lengths[0] - 1, case.ids[0, case.prompt_lengths[0]]
    ]
    got = margin(model(case.ids[:, :-1]).logits, case)
    assert torch.allclose(got, log_p - torch.log1p(-log_p.exp()))
    want = autograd(model, train) @ autograd(model, test, margin).T
    assert (
        error(gradient_scores(model, train, test, output=margin, target="reference", progress=False).dot, want) <= 1e-10
    )


def test_positive_score_marks_a_proponent():
    """A small step down the training loss of case i raises the output of every j with a positive score."""
    model, train, test = gpt2().double(), table(3, 1), table(6, 2)
    scores = gradient_scores(model, train, test, output=margin, target="reference", progress=False).dot
    step = copy.deepcopy(model)
    case = train[np.array([0])]
    (-log_likelihood(step(case.ids[:, :-1]).logits, case)).sum().backward()
    with torch.no_grad():
        for p in step.parameters():
            p -= 1e-6 * p.grad
        change = margin(step(test.ids[:, :-1]).logits, test) - margin(model(test.ids[:, :-1]).logits, test)
    np.testing.assert_allclose(change.numpy() / 1e-6, scores[0], rtol=1e-2)


@pytest.mark.parametrize("factored", [False, True])
def test_invariant_to_batching_padding_order_and_passes(factored):
    model, train, test = gpt2().double(), table(13, 1), table(5, 2)

    def dot(a=train, b=test, **options):
        return gradient_scores(model, a, b, factored=factored, target="reference", progress=False, **options).dot

    reference = dot()
    for batch_size in (1, 3, 64):
        assert error(dot(batch_size=batch_size), reference) <= 1e-12
    assert error(dot(table(13, 1, pad_columns=7), table(5, 2, pad_columns=3)), reference) <= 1e-12
    order = np.random.default_rng(0).permutation(13)
    assert error(dot(train[order]), reference[order]) <= 1e-12
    assert error(dot(b=test[np.array([3, 0, 4])]), reference[:, [3, 0, 4]]) <= 1e-12
    assert error(dot(max_bytes=1_500_000), reference) <= 1e-12  # room for one or two queries a pass


def test_too_little_memory_is_refused():
    with pytest.raises(CriError, match="max_bytes: 1000 is not allowed; must be at least"):
        gradient_scores(gpt2(), table(4, 1), table(2, 2), max_bytes=1000, target="reference", progress=False)


@pytest.mark.parametrize("name", MODELS)
def test_eager_and_sdpa_attention_agree(name):
    train, test = table(8, 1), table(4, 2)
    eager, sdpa = (
        gradient_scores(MODELS[name](attention=kind), train, test, target="reference", progress=False).dot
        for kind in ("eager", "sdpa")
    )
    assert error(eager, sdpa) <= 1e-5


def linear_twin(model: GPT2LMHeadModel) -> GPT2LMHeadModel:
    """The same function with every Conv1D written as nn.Linear."""
    twin = copy.deepcopy(model)
    for parent in list(twin.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Conv1D):
                linear = nn.Linear(*child.weight.shape, dtype=child.weight.dtype)
                linear.weight = nn.Parameter(child.weight.detach().T.contiguous())
                linear.bias = nn.Parameter(child.bias.detach().clone())
                setattr(parent, name, linear)
    return twin


def test_conv1d_model_and_linear_twin_score_identically():
    model, train, test = gpt2().double(), table(8, 1), table(4, 2)
    twin = linear_twin(model)
    assert any(isinstance(m, Conv1D) for m in model.modules())
    assert not any(isinstance(m, Conv1D) for m in twin.modules())
    a, b = (gradient_scores(m, train, test, target="reference", progress=False) for m in (model, twin))
    assert error(a.dot, b.dot) <= 1e-12


def test_tracin_sums_checkpoints():
    train, test = table(6, 1), table(3, 2)
    checkpoints = [(gpt2(seed=k), lr) for k, lr in ((0, 0.1), (1, 0.02))]
    want = sum(lr * gradient_scores(m, train, test, target="reference", progress=False).dot for m, lr in checkpoints)
    assert error(tracin(iter(checkpoints), train, test, target="reference", progress=False), want) <= 1e-6
    with pytest.raises(CriError, match="checkpoints: none given"):
        tracin([], train, test, target="reference")


def test_chosen_parameters_and_their_coverage():
    model, train, test = gpt2().double(), table(6, 1), table(3, 2)
    scores = gradient_scores(
        model, train, test, parameters=["*.mlp.*", "*ln_f.bias"], target="reference", progress=False
    )
    keep = torch.cat(
        [torch.full((p.numel(),), ".mlp." in n or n.endswith("ln_f.bias")) for n, p in model.named_parameters()]
    )
    g, h = autograd(model, train), autograd(model, test)
    assert error(scores.dot, g[:, keep] @ h[:, keep].T) <= 1e-10
    assert scores.coverage == pytest.approx(float(h[:, keep].square().sum() / h.square().sum()))
    assert 0 < gradient_coverage(model, test, ["transformer.wpe.weight"], n_cases=1) < 1
    with pytest.raises(
        CriError, match=r"parameters: '\*\.mpl\.\*' matches no trainable parameter; there are transformer.wte"
    ):
        find_blocks(model, ["*.mpl.*"])


def test_frozen_parameters_are_left_out():
    model, train, test = llama().double(), table(6, 1), table(3, 2)
    for name, p in model.named_parameters():
        p.requires_grad_("mlp.up_proj.bias" in name or "q_proj" in name)
    want = autograd(model, train) @ autograd(model, test).T
    scores = gradient_scores(model, train, test, target="reference", progress=False)
    assert error(scores.dot, want) <= 1e-10
    assert scores.coverage == 1.0


def test_tied_head_is_one_block():
    tied = find_blocks(gpt2())
    assert [use.kind for b in tied for use in b.uses if b.shape == (VOCAB, 32)] == ["embedding", "linear"]
    untied = find_blocks(gpt2(tied=False))
    assert sum(b.shape == (VOCAB, 32) for b in untied) == 2
    for blocks, model in ((tied, gpt2()), (untied, gpt2(tied=False))):
        assert sum(b.size for b in blocks) == sum(p.numel() for p in model.parameters())


class Scaled(nn.Module):
    """A layer without a per-example rule: one free parameter."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner, self.scale = inner, nn.Parameter(torch.ones(1))

    def forward(self, *args, **kwargs):
        return self.scale * self.inner(*args, **kwargs)


def test_unsupported_layer_is_named_and_can_be_left_out():
    model, train, test = gpt2().double(), table(5, 1), table(3, 2)
    model.transformer.h[1].mlp = Scaled(model.transformer.h[1].mlp)
    with pytest.raises(CriError, match=r"'transformer.h.1.mlp.scale', of the layer 'transformer.h.1.mlp' \(Scaled\)"):
        gradient_scores(model, train, test, target="reference")
    scores = gradient_scores(model, train, test, parameters=["*.weight", "*.bias"], target="reference", progress=False)
    keep = torch.cat([torch.full((p.numel(),), not n.endswith("scale")) for n, p in model.named_parameters()])
    g, h = autograd(model, train), autograd(model, test)
    assert error(scores.dot, g[:, keep] @ h[:, keep].T) <= 1e-10
    assert scores.coverage < 1


def test_layer_that_mixes_cases_or_is_not_called_is_named():
    model, train, test = gpt2(), table(5, 1), table(3, 2)
    model.spare = nn.Linear(3, 3)
    with pytest.raises(CriError, match=r"the layer 'spare' \(Linear\) is never called"):
        gradient_scores(model, train, test, target="reference", progress=False)


def test_model_is_left_as_it_was():
    model = gpt2().train()
    model.transformer.h[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    gradient_scores(model, table(5, 1), table(3, 2), parameters=["*.mlp.*"], target="reference", progress=False)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert not any(module._forward_hooks for module in model.modules())
    assert all(p.grad is None for p in model.parameters())


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=1, max_size=2),
    st.integers(1, 4), st.integers(1, 4), st.integers(1, 6), st.integers(1, 5), st.integers(0, 99),
)  # fmt: skip
def test_inner_products_of_factors(uses, n_a, n_b, m, n, seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(cases: int) -> list[Part]:
        return [
            Part(
                torch.randint(m, (cases, s), generator=generator)
                if indexed
                else torch.randn(cases, s, m, generator=generator, dtype=torch.float64),
                torch.randn(cases, s, n, generator=generator, dtype=torch.float64),
            )
            for indexed, s in uses
        ]

    a, b = draw(n_a), draw(n_b)
    x, y = materialise(a, (m, n)).flatten(1), materialise(b, (m, n)).flatten(1)
    torch.testing.assert_close(inner(a, b), x @ y.T)
    torch.testing.assert_close(squared_norms(a), x.square().sum(1))
    torch.testing.assert_close(summed_squares(a, (m, n)), x.square().sum(0).view(m, n))


_LONG_TRACES = """
import resource, sys, torch
from transformers import GPT2Config, GPT2LMHeadModel
from cri.attribution.gradients import gradient_scores
from cri.data.token_table import TokenTable
bound = int(sys.argv[1])
ids = {"bos_token_id": None, "eos_token_id": None}
model = GPT2LMHeadModel(GPT2Config(vocab_size=600, n_embd=64, n_layer=2, n_head=4, n_positions=2048, **ids))
def table(n, length):
    return TokenTable(torch.randint(2, 600, (n, length)), torch.full((n,), 20), torch.full((n,), length), 0, 1)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
# libraries loaded, threads started
gradient_scores(model, table(4, 30), table(4, 30), target="reference", progress=False)
before = peak()
gradient_scores(model, table(4, 2000), table(3, 2000), target="reference", progress=False, max_bytes=bound)
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("bound", [250 << 20, 500 << 20])
def test_memory_stays_within_its_bound_on_long_traces(bound):
    command = [sys.executable, "-c", _LONG_TRACES, str(bound)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert int(out.split()[-1]) <= bound
