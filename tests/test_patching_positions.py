"""Patches by layers under positions that follow from the text: against a forward pass written out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cri import interventions as iv
from cri.interventions.pairs import Pairs, read_accounts
from cri.models.activations import Site
from cri.models.loading import to_bridge
from cri.models.positions import positions_of
from cri.models.rotary import rope_parameters
from cri.training.setup import Materials, prepare
from tests.test_positions import KINDS, RFFT, _walk

BEHIND = 3
ROUNDING = 1e-3
"""Positions run into the thousands, so that single precision leaves their angles that uncertain."""


def materials(kind: str, params: dict[str, Any], model: str = "nano-rope") -> Materials:
    """Untrained, with larger weights than usual: else attention is nearly even, whatever the positions."""
    made = prepare(RFFT.replace(positions=kind, position_params=params, model=model))
    with torch.no_grad():
        for p in made.model.parameters():
            p.mul_(3 if p.ndim == 2 else 1)
    return made


def traces(made: Materials, n: int) -> torch.Tensor:
    """Whole texts about the longest numbers, cut to one width; their digits differ."""
    rows = np.argsort(made.tokens.lengths.numpy(), kind="stable")[-n:]
    width = int(made.tokens.lengths[rows].min())
    return made.tokens.ids[rows, :width]


def pairs_of(made: Materials, n: int) -> Pairs:
    """Bases and sources of two texts each, a window of two tokens at the end."""
    ids = traces(made, 2 * n)
    base, source = ids[:n], ids[n:]
    read = ids.shape[1] - 2
    window = torch.arange(2 * n).view(n, 2) % 9
    cases = np.arange(n)
    return Pairs(base, source, read, window, window + 1, window + 2, cases, cases, "digit", 0, [""] * (read + 1))


def by_hand(
    made: Materials, row: torch.Tensor, options: dict[str, int], patch: tuple[int, int, torch.Tensor] | None = None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits of one text, and the residual stream before each layer: every token, line by line, without the library.

    Args:
        options: window and reach, 0 for none.
        patch: layer, place and vector that replaces the residual stream before this layer there.
    """
    model: Any = made.model
    config, state = model.config, model.state_dict()
    names = [str(made.tokenizer.convert_ids_to_tokens(int(i))) for i in row]
    places = _walk(names, 0)
    position = torch.tensor([256 * line + 32 * band + column for line, band, column in places], dtype=torch.float32)
    n, heads = len(row), config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    listed, inside = [], False
    for name, (line, band, _) in zip(names, places, strict=True):
        if name == "[" or (line == 1 and band):
            inside = True
        elif name.endswith("=") or "\n" in name or name == "return ":
            inside = False
        listed.append(inside or (line == 1 and band > 0))
    line, column, item = (torch.tensor(x)[:, None] for x in ([p[0] for p in places], [p[2] for p in places], listed))
    seen = torch.ones(n, n, dtype=torch.bool).tril()
    if options["window"]:
        seen &= line - line.T <= options["window"]
    if options["reach"]:
        seen &= ~(item & item.T & ((column - column.T).abs() > options["reach"]))
    plain = 10_000.0 ** -(np.arange(size // 2) / (size // 2))
    turns = torch.from_numpy(plain / np.array(rope_parameters(256, size)["long_factor"])).float()
    angle = torch.cat([position[:, None] * turns] * 2, dim=1)
    cos, sin = angle.cos(), angle.sin()

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * state[name]

    def rotated(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-second, first], dim=-1) * sin

    resid, before = state["model.embed_tokens.weight"][row], []
    for layer in range(config.num_hidden_layers):
        own = f"model.layers.{layer}."
        if patch is not None and patch[0] == layer:
            resid = resid.clone()
            resid[patch[1]] = patch[2]
        before.append(resid)
        x = norm(resid, own + "input_layernorm.weight")
        q, k, v = (
            (x @ state[f"{own}self_attn.{name}_proj.weight"].T).view(n, heads, size).transpose(0, 1) for name in "qkv"
        )
        scores = rotated(q) @ rotated(k).transpose(1, 2) / size**0.5
        mixed = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v
        resid = resid + mixed.transpose(0, 1).reshape(n, -1) @ state[own + "self_attn.o_proj.weight"].T
        x = norm(resid, own + "post_attention_layernorm.weight")
        gate, up = (x @ state[f"{own}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        resid = resid + (F.silu(gate) * up) @ state[own + "mlp.down_proj.weight"].T
    return norm(resid, "model.norm.weight") @ state["lm_head.weight"].T, before


@pytest.mark.parametrize(
    ("params", "model"),
    [({}, "nano-rope"), ({"reach": 2, "span": 16}, "sharp-rope"), ({"window": 0}, "nano-rope")],
)
def test_patched_logits_equal_a_forward_pass_by_hand(params, model):
    made = materials("structured", params, model)
    bridge, pairs = to_bridge(made.model, made.tokenizer), pairs_of(made, 2)
    options = {"window": params.get("window", 16), "reach": params.get("reach", 0)}
    with torch.no_grad():
        plain, _ = by_hand(made, pairs.base_ids[0], options)
        assert torch.allclose(plain, made.model(input_ids=pairs.base_ids[:1]).logits[0], atol=ROUNDING)
        sources = [by_hand(made, row, options)[1] for row in pairs.source_ids]
        width = pairs.base_ids.shape[1]
        places = [width // 3, pairs.read - 2, pairs.read]
        sites = ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post"]  # before layers 0 and 1
        found = iv.patch_map(made.model, bridge, pairs, sites=sites, positions=places)
        moved = 0.0
        for layer, site in enumerate(sites):
            for j, place in enumerate(places):
                rows = [
                    by_hand(made, row, options, (layer, place, sources[i][layer][place]))[0]
                    for i, row in enumerate(pairs.base_ids)
                ]
                own = torch.stack(rows)
                hooked = iv.patched_logits(bridge, pairs.base_ids, pairs.source_ids, Site(site, place))
                assert torch.allclose(own, hooked, atol=ROUNDING)
                accounts = read_accounts(own[:, pairs.read :], pairs)
                for name, value in accounts.items():
                    assert np.allclose(found.values[name][layer, j], value.float().numpy(), atol=ROUNDING), (
                        site,
                        place,
                    )
                moved = max(moved, float(np.abs(found.effect("toward_rule")[layer, j]).max()))
    assert moved > 0.02


@pytest.mark.parametrize(("kind", "params"), KINDS, ids=lambda value: str(value))
def test_patch_map_equals_hooks_under_every_kind_of_positions(kind, params):
    made = materials(kind, params)
    assert positions_of(made.model) is not None
    bridge, pairs = to_bridge(made.model, made.tokenizer), pairs_of(made, 3)
    places = [1, pairs.read - BEHIND, pairs.read]
    found = iv.patch_map(made.model, bridge, pairs, positions=places, batch_size=2)
    for i, site in enumerate(found.sites):
        for j, place in enumerate(places):
            logits = iv.patched_logits(bridge, pairs.base_ids, pairs.source_ids, Site(site, place))[:, pairs.read :]
            for name, value in read_accounts(logits, pairs).items():
                assert np.allclose(found.values[name][i, j], value.float().numpy(), atol=1e-4), (site, place, name)
    assert np.abs(found.effect("toward_rule")).max() > 1e-3
    own = iv.patch_map(made.model, bridge, pairs.self_pairs(), positions=places)
    assert np.abs(own.effect("toward_rule")).max() < 1e-4


def test_learned_positions_are_patched_under_their_mask():
    made = materials("structured", {}, model="nano")
    bridge, pairs = to_bridge(made.model, made.tokenizer), pairs_of(made, 2)
    site, place = "blocks.0.hook_resid_post", pairs.read - BEHIND
    found = iv.patch_map(made.model, bridge, pairs, sites=[site], positions=[place])
    logits = iv.patched_logits(bridge, pairs.base_ids, pairs.source_ids, Site(site, place))[:, pairs.read :]
    for name, value in read_accounts(logits, pairs).items():
        assert np.allclose(found.values[name][0, 0], value.float().numpy(), atol=1e-4)
