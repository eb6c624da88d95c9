"""Activations: any set of hook sites for any cases, as arrays aligned to case ids.

A *site* is a TransformerLens hook name and a token position. Names are checked against the model's own
hooks first: a name that TransformerLens does not know would be dropped without a word.
"""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cri.data.case_ids import check_case_ids
from cri.data.token_table import TokenTable
from cri.errors import CriError, UnknownNameError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

PROMPT_END = "prompt_end"
"""The last prompt token: where the direct format's answer is decided."""


@dataclass(frozen=True, order=True)
class Site:
    """A hook name and a token position.

    Attributes:
        hook: TransformerLens name, such as `blocks.1.hook_resid_post`.
        position: `prompt_end`, or a token index from the start of the sequence (negative: from the end of
            the prompt, -1 being its last token).
    """

    hook: str
    position: str | int = PROMPT_END

    def __str__(self) -> str:
        return f"{self.hook}@{self.position}"

    @classmethod
    def parse(cls, text: str) -> Site:
        """`blocks.1.hook_resid_post@prompt_end`, `blocks.1.hook_resid_post@2`; the last prompt token where no
        position is given."""
        hook, _, position = text.partition("@")
        if not position or position == PROMPT_END:
            return cls(hook)
        try:
            return cls(hook, int(position))
        except ValueError:
            raise CriError(f"site: {text!r} has no such position; use {PROMPT_END} or a whole number") from None


_BY_QUERY = ("hook_pattern", "hook_attn_scores")
"""Hooks whose tensors are [case, head, query, key]."""


def residual_sites(bridge: TransformerBridge) -> list[Site]:
    """The residual stream at the last prompt token: after the embedding, and after every layer."""
    layers = [Site(f"blocks.{i}.hook_resid_post") for i in range(bridge.cfg.n_layers)]
    return [Site("blocks.0.hook_resid_pre"), *layers]


def check_sites(bridge: TransformerBridge, sites: Sequence[Site]) -> None:
    """Raises `UnknownNameError` for a hook the model does not have, naming the closest ones."""
    known = bridge.hook_dict
    for site in sites:
        if site.hook not in known:
            close = difflib.get_close_matches(site.hook, known, n=3, cutoff=0.4) or sorted(known)[:3]
            raise UnknownNameError(f"site: the model has no hook {site.hook!r}; closest: {', '.join(close)}")


def _positions(site: Site, tokens: TokenTable) -> Int[Tensor, " case"]:
    if site.position == PROMPT_END:
        return tokens.prompt_lengths - 1
    position = int(site.position)
    where = tokens.prompt_lengths + position if position < 0 else torch.full_like(tokens.lengths, position)
    if bool((where < 0).any()) or bool((where >= tokens.lengths).any()):
        raise CriError(f"site: position {position} of {site} lies outside some of the sequences")
    return where


@contextmanager
def _reading(bridge: TransformerBridge, hooks: list[tuple[str, Callable[..., Any]]]) -> Iterator[None]:
    try:
        with torch.no_grad(), bridge.hooks(fwd_hooks=hooks):  # pyright: ignore[reportArgumentType]
            yield
    except ValueError as error:
        if str(error).startswith("Cannot add hook"):  # TransformerLens's own words name the switch that is off
            raise CriError(f"site: {error}") from error
        raise


def collect(
    bridge: TransformerBridge,
    tokens: TokenTable,
    sites: Sequence[Site],
    case_ids: Int[np.ndarray, " case"] | None = None,
    *,
    batch_size: int = 1024,
    memory_limit: int = 4 << 30,
    folder: Path | None = None,
    on_progress: Callable[[int], Any] | None = None,
) -> dict[Site, Float[np.ndarray, "case d"]]:
    """Activations of `sites` for every case (or `case_ids`, in that order), float32.

    Only the wanted positions are kept, as they are computed; layers beyond the last wanted one are not
    run. Above `memory_limit` bytes the arrays are memory-mapped `.npy` files in `folder`. Activations with
    heads ([head, d_head] per token) are flattened to one vector; of attention patterns and scores, every head's row of
    the query at that position is kept ([head, key], keys up to the last wanted position).

    Raises `UnknownNameError` for an unknown hook, `CriError` for a hook that is switched off, is never run or has no
    vector at a token, for a position outside a sequence, for ids that are no case ids, when the
    limit is exceeded and no `folder` is given, or when the folder's disk has no room.
    """
    check_sites(bridge, sites)
    rows = np.arange(len(tokens)) if case_ids is None else check_case_ids(case_ids, len(tokens))
    if not len(rows):
        raise CriError("case_ids: give at least one")
    positions = {site: _positions(site, tokens) for site in sites}
    last_wanted = max(int(where.max()) for where in positions.values()) + 1
    device = next(bridge.parameters()).device
    stop_at = _stop_layer(sites, bridge.cfg.n_layers)
    arrays: dict[Site, np.ndarray] = {}
    slot: dict[str, Any] = {}

    def keep(tensor: Tensor, hook: Any, *, wanted: list[Site]) -> None:
        for site in wanted:
            picked = _at_positions(tensor, slot["positions"][site].to(device), site, last_wanted)
            vectors = picked.flatten(1).float().cpu().numpy()
            if site not in arrays:
                arrays[site] = _allocate(len(rows), vectors.shape[1], site, len(sites), memory_limit, folder)
            arrays[site][slot["start"] : slot["start"] + len(vectors)] = vectors

    by_hook: dict[str, list[Site]] = {}
    for site in sites:
        by_hook.setdefault(site.hook, []).append(site)
    hooks = [(name, lambda t, hook, wanted=wanted: keep(t, hook, wanted=wanted)) for name, wanted in by_hook.items()]
    with _reading(bridge, hooks):
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            slot.update(start=start, positions={site: where[part] for site, where in positions.items()})
            # causal attention: nothing after the last wanted position can matter
            ids = tokens.ids[part, :last_wanted].to(device)
            bridge(ids, return_type=None, **({} if stop_at is None else {"stop_at_layer": stop_at}))
            if on_progress:
                on_progress(len(part))
    for array in arrays.values():
        if isinstance(array, np.memmap):
            array.flush()
    if silent := [site.hook for site in sites if site not in arrays]:
        raise CriError(f"site: {silent[0]} is never run in this model; choose another hook")
    return {site: arrays[site] for site in sites}


def _at_positions(tensor: Tensor, where: Int[Tensor, " case"], site: Site, n_positions: int) -> Tensor:
    """The rows of an activation at one position a case, [case, ...]; refuses a hook that has no vector at a token."""
    cases = torch.arange(len(tensor), device=tensor.device)
    if site.hook.rpartition(".")[2] in _BY_QUERY:  # [case, head, query, key]: the position is that of the query
        return tensor[cases, :, where]
    if tensor.ndim < 3 or tensor.shape[1] != n_positions:
        raise CriError(
            f"site: {site.hook} has shape {tuple(tensor.shape)}, not a vector at every token; choose another"
        )
    return tensor[cases, where]


def _stop_layer(sites: Sequence[Site], n_layers: int) -> int | None:
    """The first layer that need not run, None where the whole model must."""
    last = -1
    for site in sites:
        parts = site.hook.split(".")
        if parts[0] != "blocks":
            if "embed" in parts[0] and parts[0] != "unembed":
                continue
            return None
        last = max(last, int(parts[1]))
    return None if last + 1 >= n_layers else last + 1


def _allocate(
    n: int, d: int, site: Site, n_sites: int, memory_limit: int, folder: Path | None
) -> Float[np.ndarray, "case d"]:
    size = 4 * n * d
    if size * n_sites <= memory_limit:
        return np.empty((n, d), dtype=np.float32)
    if folder is None:
        raise CriError(
            f"memory_limit: {n_sites} sites of {size / 2**20:.0f} MiB exceed {memory_limit / 2**20:.0f} MiB; give a "
            "folder to stream to, or fewer sites or cases"
        )
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if size > free:
        raise CriError(f"folder: {folder} has {free / 2**20:.0f} MiB free, {site} needs {size / 2**20:.0f} MiB")
    path = folder / f"{site}.npy"
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, d))
