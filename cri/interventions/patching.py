"""Interchange interventions: a source case's activation written into a base case, over layers x positions.

Sites are those that write to the residual stream. A patch at position p changes nothing before p, so the
base's keys and values are reused there, and only positions from p on are computed again, from the layer
above the patch on, for all sites at once. Activations, MLPs and the head come from the TransformerLens
bridge; the layers above a patch are the Hugging Face model's own, with its KV cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cri.checks import checked
from cri.errors import CriError, out_of_range, unknown_name
from cri.interventions.pairs import Pairs, read_accounts
from cri.models.activations import PROMPT_END, Site, check_sites
from cri.models.attention import unmasked
from cri.models.positions import positions_of

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel

COMPONENTS = ("resid_pre", "attn_out", "mlp_out", "resid_post")
Vectors = Literal["source", "random"]


@checked
def patch_sites(n_layers: int) -> list[str]:
    """The embedding's output, then every layer's attention output, MLP output and residual stream."""
    layers = [f"blocks.{i}.hook_{c}" for i in range(n_layers) for c in COMPONENTS[1:]]
    return ["blocks.0.hook_resid_pre", *layers]


@dataclass(frozen=True, eq=False)
class PatchMap:
    """Patched runs over sites x positions.

    Attributes:
        sites: hook names, in the order of the first axis.
        positions: token positions, in the order of the second axis.
        values: from `read_accounts`, each [site, pos, pair].
        unpatched: the same without a patch, each [pair].
        pairs: what was patched.
    """

    sites: list[str]
    positions: list[int]
    values: dict[str, Float[np.ndarray, "site pos pair"]]
    unpatched: dict[str, Float[np.ndarray, " pair"]]
    pairs: Pairs

    def effect(self, name: str) -> Float[np.ndarray, "site pos pair"]:
        """Change of `toward_rule` or `toward_source` against the unpatched run."""
        return self.values[name] - self.unpatched[name]

    def table(self) -> pd.DataFrame:
        """One row a site and position: `site, layer, component, position, token`, `rule`, `base`, `source`
        (fractions of pairs whose output each account predicts; `rule` is the interchange intervention
        accuracy), `effect_rule`, `effect_source` (mean changes in logit difference), `n`."""
        import pandas as pd

        means = {name: self.values[name].mean(-1) for name in ("rule", "base", "source")}
        means |= {f"effect_{name}": self.effect(f"toward_{name}").mean(-1) for name in ("rule", "source")}
        rows = [
            {
                "site": site, "layer": int(site.split(".")[1]), "component": site.rpartition("hook_")[2],
                "position": position, "token": self.pairs.labels[position],
                **{name: float(value[i, j]) for name, value in means.items()}, "n": len(self.pairs),
            }
            for i, site in enumerate(self.sites)
            for j, position in enumerate(self.positions)
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def cross_fitted(self, name: str = "rule", cells: PatchMap | None = None) -> Float[np.ndarray, " pair"]:
        """`values[name]` at the cell where the rule's prediction comes true most often among the other half
        of the pairs (every second one): the best of many cells is not judged on the pairs that picked it.

        `cells` picks the cell from another map of the same shape, which puts a control where the effect is.
        """
        hits = (cells or self).values["rule"].reshape(-1, len(self.pairs))
        shown = self.values[name].reshape(-1, len(self.pairs))
        half = np.arange(len(self.pairs)) % 2 == 0
        out = np.full(len(self.pairs), np.nan)  # a single pair has no other half
        for fit in (half, ~half):
            if fit.any() and (~fit).any():
                out[~fit] = shown[hits[:, fit].mean(-1).argmax()][~fit]
        return out


@checked
def patch_map(
    model: PreTrainedModel,
    bridge: TransformerBridge,
    pairs: Pairs,
    *,
    sites: Sequence[str] | None = None,
    positions: Sequence[int] | None = None,
    vectors: Vectors = "source",
    basis: Float[Tensor, "d k"] | None = None,
    seed: int = 0,
    batch_size: int = 128,
) -> PatchMap:
    """Patches every site at every position of every pair and reads the outputs.

    At position p of a site with activations h, the base's is replaced by
    h_base + P (h_source - h_base), P being the identity, or the projection on the columns of `basis`.

    Args:
        model, bridge: the same weights; `bridge` reads, `model` runs on (GPT-2 or Llama blocks).
        sites: some of `patch_sites`; all by default.
        positions: token positions up to `pairs.read`; all by default.
        vectors: `random` replaces each difference by a random direction of equal norm (a control).
        basis: orthonormal columns.
        batch_size: pairs at a time (memory).

    Raises `UnknownNameError` for a site that is not one of `patch_sites`, `CriError` for a position beyond
    `pairs.read` and for models with other blocks.
    """
    valid = patch_sites(bridge.cfg.n_layers)
    chosen = list(sites) if sites is not None else valid
    for site in chosen:
        if site not in valid:
            raise unknown_name("site", site, valid)
    check_sites(bridge, [Site(site) for site in chosen])
    where = list(range(pairs.read + 1)) if positions is None else list(positions)
    for position in where:
        if not 0 <= position <= pairs.read:
            raise out_of_range("position", position, f"in 0..{pairs.read}")
    generator = torch.Generator().manual_seed(seed)
    parts, unpatched = [], []
    for start in range(0, len(pairs), batch_size):
        part = pairs[slice(start, start + batch_size)]
        with torch.no_grad(), unmasked(model, "products"):
            engine = _Engine(model, bridge, part, chosen, vectors, basis, generator)
            unpatched.append(read_accounts(engine.base_logits(), part))
            cells = [read_accounts(engine.patched(p), part) for p in where]
            parts.append({name: torch.stack([cell[name] for cell in cells], dim=1) for name in cells[0]})
    return PatchMap(chosen, where, _joined(parts), _joined(unpatched), pairs)


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, np.ndarray]:
    return {name: torch.cat([p[name] for p in parts], dim=-1).float().cpu().numpy() for name in parts[0]}


class _Engine:
    """Everything about one batch of pairs that all patches share."""

    def __init__(
        self,
        model: PreTrainedModel,
        bridge: TransformerBridge,
        pairs: Pairs,
        sites: list[str],
        vectors: str,
        basis: Tensor | None,
        generator: torch.Generator,
    ) -> None:
        from transformers import DynamicCache

        body: Any = model.base_model
        self.layers: Any = getattr(body, "h", None) or getattr(body, "layers", ())
        if not len(self.layers) or "blocks.0.hook_resid_mid" not in bridge.hook_dict:
            raise CriError(f"model: {model.config.model_type} blocks cannot be patched; use GPT-2 or Llama ones")
        self.body, self.bridge, self.config, self.sites = body, bridge, model.config, sites
        self.device = next(model.parameters()).device
        ids = pairs.base_ids.to(self.device)
        self.read, self.window = pairs.read, pairs.rule.shape[1]
        # the layers above a patch are run one by one, past the hook that gives a model its positions
        scheme = positions_of(model)
        given = {} if scheme is None else scheme.inputs(ids)
        plain = torch.arange(ids.shape[1], device=self.device).expand(len(ids), -1)
        self.where: Tensor = given.get("position_ids", plain)
        self.allowed: Tensor | None = given.get("attention_mask")
        n_layers = bridge.cfg.n_layers
        self.pre = [f"blocks.{i}.hook_resid_pre" for i in range(n_layers)]
        self.mid = [f"blocks.{i}.hook_resid_mid" for i in range(n_layers)]
        self.post = f"blocks.{n_layers - 1}.hook_resid_post"
        names = {*sites, *self.pre, *self.mid, self.post}
        # A patch changes one position, and attention is causal. Everything before it is the base's, so that the base
        # and the source are run once for all patches, and a patch runs only what comes after it.
        base = bridge.run_with_cache(ids, names_filter=sorted(names))[1]
        source = bridge.run_with_cache(pairs.source_ids.to(self.device), names_filter=sorted(set(sites)))[1]
        # the last residual is needed for positions without a patch, every other one to run on from
        self.base = {name: base[name] for name in names}
        self.patch: dict[str, tuple[int, Tensor]] = {}
        for site in sites:
            delta = source[site] - base[site]
            if vectors == "random":
                noise = torch.randn(delta.shape, generator=generator).to(delta)
                delta = noise * delta.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
            if basis is not None:
                delta = delta @ basis.to(delta) @ basis.to(delta).T
            self.patch[site] = self._after(site, base[site] + delta)
        # keys and values of the base, which the layers above a patch attend to at unpatched positions
        self.cache: Any = DynamicCache(config=self.config)
        model(input_ids=ids, cache=self.cache, use_cache=True, logits_to_keep=1)

    def base_logits(self) -> Float[Tensor, "pair window vocab"]:
        return self._head(self._window(self.post))

    def _head(self, resid: Tensor) -> Tensor:
        return self.bridge.unembed(self.bridge.ln_final(resid))

    def _after(self, site: str, value: Float[Tensor, "pair pos d"]) -> tuple[int, Float[Tensor, "pair pos d"]]:
        """The first layer that a patched value affects, and the residual stream that enters this layer with the value
        at its position; after its attention, a layer computes each position separately."""
        layer, component = int(site.split(".")[1]), site.rpartition("hook_")[2]
        if component == "resid_pre":
            return layer, value
        if component == "resid_post":
            return layer + 1, value
        if component == "mlp_out":
            return layer + 1, self.base[self.mid[layer]] + value
        mid, block = self.base[self.pre[layer]] + value, self.bridge.blocks[layer]
        return layer + 1, mid + block.mlp(block.ln2(mid))

    def patched(self, p: int) -> Float[Tensor, "site pair window vocab"]:
        """Logits over the window with each site patched at position p."""
        # Patches of one position differ only in the layer that they enter. They share one pass upwards: each joins the
        # batch at its own layer, so that the cost is that of the lowest site, not of the sum of all.
        entering: dict[int, list[tuple[int, Tensor]]] = {}
        for i, site in enumerate(self.sites):
            layer, values = self.patch[site]
            entering.setdefault(layer, []).append((i, values[:, p]))
        order: list[int] = []
        ends: list[Tensor] = []
        resid: Tensor | None = None
        last, first = len(self.layers) - 1, self.read - p
        for layer in range(last + 1):
            new = entering.get(layer, [])
            order += [i for i, _ in new]
            # of the last layer only the window is read, so that a patch that enters there needs less than the others
            if layer == last and resid is not None:
                ends.append(self._layer(layer, resid, slice(0, p), p)[:, first : first + self.window])
            if layer == last and new:
                ends.append(self._last(torch.cat([value for _, value in new]), p))
            elif layer < last:
                plain = self.base[self.pre[layer]][:, p + 1 :]
                rows = [torch.cat([value[:, None], plain], dim=1) for _, value in new]
                if rows or resid is not None:
                    resid = self._layer(layer, torch.cat([*([] if resid is None else [resid]), *rows]), slice(0, p), p)
        # a patch behind the last layer changes its own position alone: no layer follows that could move it
        for i, value in entering.get(last + 1, []):
            order.append(i)
            end = self._window(self.post)
            ends.append(end if first else torch.cat([value[:, None], end[:, 1:]], dim=1))
        by_site = torch.cat(ends).view(len(order), -1, *ends[0].shape[1:])[torch.tensor(order).argsort()]
        return self._head(by_site.flatten(0, 1)).view(*by_site.shape[:3], -1)

    def _window(self, site: str) -> Float[Tensor, "pair window d"]:
        return self.base[site][:, self.read : self.read + self.window]

    def _last(self, values: Float[Tensor, "row d"], p: int) -> Float[Tensor, "row window d"]:
        """The last layer's output over the window where only position p enters it changed: the keys and values
        of all others are the base's, and outputs before the window are not read."""
        layer = len(self.layers) - 1
        window = self._window(self.pre[layer])[:, 0 if p < self.read else 1 :]
        fed = torch.cat([values[:, None], window.repeat(len(values) // len(window), 1, 1)], dim=1)
        others = [i for i in range(self.read) if i != p]
        return self._layer(layer, fed, others, p)[:, -self.window :]

    def _layer(self, layer: int, resid: Float[Tensor, "row fed d"], past: slice | list[int], p: int) -> Tensor:
        """One layer over the rows fed: position p and the last positions of the sequence. At `past` it attends to the
        base's keys and values."""
        from transformers import DynamicCache

        kept, cache = self.cache.layers[layer], DynamicCache(config=self.config)
        if past != [] and past != slice(0, 0):
            repeats = len(resid) // len(kept.keys)
            pair: Any = [x[:, :, past].repeat(repeats, 1, 1, 1) for x in (kept.keys, kept.values)]
            cache.update(*pair, layer)
        length, fed = kept.keys.shape[2], resid.shape[1]
        queries = [p, *range(length - fed + 1, length)]
        repeats = len(resid) // len(self.where)
        options: dict[str, Any] = {"attention_mask": None}
        if self.allowed is not None:
            keys = [*(past if isinstance(past, list) else range(past.stop)), *queries]
            options = {"attention_mask": self.allowed[:, :, queries][..., keys].repeat(repeats, 1, 1, 1)}
        if hasattr(self.body, "rotary_emb"):
            where = self.where[:, queries].repeat(repeats, 1)
            options |= {"position_ids": where, "position_embeddings": self.body.rotary_emb(resid, where)}
        out = self.layers[layer](resid, cache=cache, use_cache=True, **options)
        return out[0] if isinstance(out, tuple) else out


@checked
def patched_logits(
    bridge: TransformerBridge,
    base_ids: Int[Tensor, "pair pos"],
    source_ids: Int[Tensor, "pair pos"],
    site: Site,
) -> Float[Tensor, "pair pos vocab"]:
    """Logits with one site of the source written into the base by a hook: any hook name, one position.

    The slow and obvious way, for single questions and for checking `patch_map`.

    Args:
        base_ids, source_ids: sequences of equal shape.
        site: its position counts from the sequences' start, or from their end where it is negative; `prompt_end` is the
            last token, the sequences being prompts.

    Raises `CriError` for other shapes, a position outside the sequences, and a place in the trace.
    """
    check_sites(bridge, [site])
    if base_ids.shape != source_ids.shape or base_ids.ndim != 2:
        raise CriError(f"source_ids: shape {tuple(source_ids.shape)} is not [pair, pos] as base_ids have it")
    n = base_ids.shape[1]
    if site.in_trace:
        raise CriError(f"site: {site} lies in the trace; give the index of its token as position")
    position = -1 if site.position == PROMPT_END else int(site.position)
    if not -n <= position < n:
        raise out_of_range("site.position", position, f"in {-n}..{n - 1}")
    with torch.no_grad():
        _, cache = bridge.run_with_cache(source_ids, names_filter=[site.hook])
        vector = cache[site.hook][:, position]

        def write(tensor: Tensor, hook: Any) -> Tensor:
            tensor = tensor.clone()
            tensor[:, position] = vector
            return tensor

        return bridge.run_with_hooks(base_ids, fwd_hooks=[(site.hook, write)])
