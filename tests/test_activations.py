"""Activations against TransformerLens's own cache."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cri.config import RunConfig
from cri.errors import CriError
from cri.models.activations import Site, check_sites, collect, residual_sites
from cri.models.loading import to_bridge
from cri.training.setup import prepare


@pytest.fixture(scope="module")
def opened():
    materials = prepare(RunConfig(tokenizer="digit", task_params={"size": 24}, split="random"))
    return to_bridge(materials.model, materials.tokenizer), materials.tokens


def test_equal_to_run_with_cache_case_by_case(opened):
    bridge, tokens = opened
    sites = [
        *residual_sites(bridge),
        Site("blocks.0.attn.hook_z", 1),
        Site("blocks.1.hook_mlp_out", -2),
        Site("unembed.hook_out"),
    ]
    cases = np.array([500, 3, 77, 240])
    found = collect(bridge, tokens, sites, cases, batch_size=3)
    assert list(found) == sites
    for i, case in enumerate(cases):
        prompt = tokens.ids[case : case + 1, : tokens.prompt_lengths[case]]
        with torch.no_grad():
            _, cache = bridge.run_with_cache(prompt)
        for site in sites:
            position = {"prompt_end": -1, 1: 1, -2: -2}[site.position]
            assert np.allclose(found[site][i], cache[site.hook][0, position].flatten().numpy(), atol=1e-5), site


def test_sites_of_every_other_layer_end_with_the_last():
    config = RunConfig(model="mini", task_params={"size": 12}, split="random")
    materials = prepare(config)
    bridge = to_bridge(materials.model, materials.tokenizer)
    every = [site.hook for site in residual_sites(bridge)]
    assert [site.hook for site in residual_sites(bridge, 1)] == every
    assert [site.hook for site in residual_sites(bridge, 2)] == [every[0], *every[2::2]]
    assert [site.hook for site in residual_sites(bridge, 9)] == [every[0], every[-1]]
    with pytest.raises(CriError, match="apart: 0"):
        residual_sites(bridge, 0)


def test_streamed_to_disk_above_the_limit(opened, tmp_path):
    bridge, tokens = opened
    sites = residual_sites(bridge)
    plain = collect(bridge, tokens, sites)
    streamed = collect(bridge, tokens, sites, memory_limit=1000, folder=tmp_path)
    for site in sites:
        assert isinstance(streamed[site], np.memmap)
        assert np.array_equal(streamed[site], plain[site])
    with pytest.raises(CriError, match="give a folder"):
        collect(bridge, tokens, sites, memory_limit=1000)


def test_no_space_for_activations(opened, tmp_path, monkeypatch):
    bridge, tokens = opened
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(1, 1, 10))
    with pytest.raises(CriError, match="MiB free"):
        collect(bridge, tokens, residual_sites(bridge), memory_limit=1000, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_site_names_are_checked_and_parsed(opened):
    bridge, tokens = opened
    with pytest.raises(CriError, match=r"closest: .*blocks\.1\.hook_resid_post"):
        check_sites(bridge, [Site("blocks.1.hook_resid_pots")])
    with pytest.raises(CriError, match="closest"):
        collect(bridge, tokens, [Site("blocks.9.hook_resid_post")])
    assert Site.parse("blocks.0.hook_mlp_out") == Site("blocks.0.hook_mlp_out", "prompt_end")
    assert Site.parse("blocks.0.hook_mlp_out@-2") == Site("blocks.0.hook_mlp_out", -2)
    with pytest.raises(CriError, match="prompt_end or a whole number"):
        Site.parse("blocks.0.hook_mlp_out@end")
    with pytest.raises(CriError, match="outside"):
        collect(bridge, tokens, [Site("blocks.0.hook_mlp_out", 7)])


def test_every_hook_gives_its_own_rows_or_is_refused(opened):
    """Of all hooks of the bridge: what a hook on the case alone sees at the last prompt token, or one line that names
    the hook. Attention patterns and scores are [head, query, key]: the row of the query."""
    bridge, tokens = opened
    cases, seen, refused = np.array([500, 3, 77, 240]), {}, {}
    for name in bridge.hook_dict:
        try:
            found = collect(bridge, tokens, [Site(name)], cases)[Site(name)]
        except CriError as error:
            refused[name] = str(error)
            continue
        for i, case in enumerate(cases):
            n = int(tokens.prompt_lengths[case])
            hook = (name, lambda tensor, hook: seen.update(alone=tensor.detach()))
            with torch.no_grad():
                bridge.run_with_hooks(tokens.ids[case : case + 1, :n], fwd_hooks=[hook])
            if name.endswith(("hook_pattern", "hook_attn_scores")):
                expected = seen["alone"][0, :, -1].numpy()
                rows = found[i].reshape(len(expected), -1)[:, :n]
                assert np.allclose(rows, expected, atol=1e-5), name
            else:
                assert np.allclose(found[i], seen["alone"][0, -1].flatten().numpy(), atol=1e-4), name
    for name, message in refused.items():
        assert message.startswith("site: "), name
        assert name.rpartition(".")[2] in message
    assert {"embed.hook_in", "blocks.0.attn.hook_result"} <= set(refused)
    assert "blocks.1.attn.hook_pattern" not in refused
    assert len(refused) < len(bridge.hook_dict) / 2
