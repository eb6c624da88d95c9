"""Activations: any set of hook sites for any cases, as arrays aligned to case ids.

A *site* is a TransformerLens hook name and a token position. Names are checked against the model's own
hooks first: a name that TransformerLens does not know would be dropped without a word.
"""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cri.checks import checked
from cri.data.case_ids import check_case_ids
from cri.data.step_places import Place, Traced, places
from cri.data.token_table import TokenTable
from cri.errors import CriError, UnknownNameError, out_of_range

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

PROMPT_END = "prompt_end"
"""The last prompt token: where the direct format's answer is decided."""


@dataclass(frozen=True, order=True)
class Site:
    """A hook name and a token position.

    Attributes:
        hook: TransformerLens name, such as `blocks.1.hook_resid_post`.
        position: `prompt_end`; a token index from the start of the sequence (negative: from the end of the prompt,
            -1 being its last token); or a place in the trace, from which a rule step, a line or an element is
            predicted: `step:tens`, `step:2`, `step:all`, `line:3`, `element:carry` (`cri.data.step_places`).
    """

    hook: str
    position: str | int = PROMPT_END

    def __str__(self) -> str:
        return f"{self.hook}@{self.position}"

    @classmethod
    @checked
    def parse(cls, text: str) -> Site:
        """`blocks.1.hook_resid_post@prompt_end`, `...@2`, `...@step:tens`; the last prompt token where no position is
        given."""
        hook, _, position = text.partition("@")
        if not position or position == PROMPT_END:
            return cls(hook)
        if ":" in position:
            return cls(hook, str(Place.parse(position)))
        try:
            return cls(hook, int(position))
        except ValueError:
            raise CriError(
                f"site: {text!r} has no such position; use {PROMPT_END} or a whole number, or a place in the trace "
                "such as step:tens, line:3, element:carry"
            ) from None

    @property
    def in_trace(self) -> bool:
        """Whether the position is a place in the trace, of which a case may have none or several."""
        return isinstance(self.position, str) and ":" in self.position


_BY_QUERY = ("hook_pattern", "hook_attn_scores")
"""Hooks whose tensors are [case, head, query, key]."""


@checked
def residual_sites(bridge: TransformerBridge, apart: int = 1) -> list[Site]:
    """The residual stream at the last prompt token: after the embedding, and after every layer, or after the last and
    each `apart`-th before it."""
    if apart < 1:
        raise out_of_range("apart", apart, "at least 1")
    n = int(bridge.cfg.n_layers)
    layers = [Site(f"blocks.{i}.hook_resid_post") for i in range((n - 1) % apart, n, apart)]
    return [Site("blocks.0.hook_resid_pre"), *layers]


@checked
def check_sites(bridge: TransformerBridge, sites: Sequence[Site]) -> None:
    """Raises `UnknownNameError` for a hook the model does not have, naming the closest ones."""
    known = bridge.hook_dict
    for site in sites:
        if site.hook not in known:
            close = difflib.get_close_matches(site.hook, known, n=3, cutoff=0.4) or sorted(known)[:3]
            raise UnknownNameError(f"site: the model has no hook {site.hook!r}; closest: {', '.join(close)}")


@dataclass(frozen=True, eq=False)
class _Spots:
    """The rows of one site's array: the case that each belongs to, as an index into the chosen cases, and its token."""

    case: Int[np.ndarray, " row"]
    position: Int[np.ndarray, " row"]


def _spots(site: Site, tokens: TokenTable, rows: Int[np.ndarray, " case"], traces: Traced | None) -> _Spots:
    if site.in_trace:
        if traces is None:
            raise CriError(f"site: {site} lies in the trace; give the run whose traces these are (traces=run)")
        table = places(traces, str(site.position), rows)
        return _Spots(table["row"].to_numpy(), table["position"].to_numpy())
    prompt, lengths = tokens.prompt_lengths.numpy(force=True)[rows], tokens.lengths.numpy(force=True)[rows]
    if site.position == PROMPT_END:
        where = prompt - 1
    else:
        position = int(site.position)
        where = prompt + position if position < 0 else np.full_like(prompt, position)
        if (where < 0).any() or (where >= lengths).any():
            raise CriError(f"site: position {position} of {site} lies outside some of the sequences")
    return _Spots(np.arange(len(rows)), where)


@contextmanager
def _reading(bridge: TransformerBridge, hooks: list[tuple[str, Callable[..., Any]]]) -> Iterator[None]:
    try:
        with torch.no_grad(), bridge.hooks(fwd_hooks=hooks):  # pyright: ignore[reportArgumentType]
            yield
    except ValueError as error:
        if str(error).startswith("Cannot add hook"):  # TransformerLens's own words name the switch that is off
            raise CriError(f"site: {error}") from error
        raise


_ATTENTION_LIMIT = 1 << 25
"""Attention scores [case, head, query, key] of one batch, in numbers: 128 MiB in float32."""


@checked
def collect(
    bridge: TransformerBridge,
    tokens: TokenTable,
    sites: Sequence[Site],
    case_ids: Int[np.ndarray, " case"] | None = None,
    *,
    traces: Traced | None = None,
    batch_size: int = 1024,
    memory_limit: int = 4 << 30,
    folder: Path | None = None,
    on_progress: Callable[[int], Any] | None = None,
) -> dict[Site, Float[np.ndarray, "row d"]]:
    """Activations of `sites` for every case (or `case_ids`, in that order), float32.

    Of a site in the trace the rows are those of `cri.data.step_places.places(traces, site.position, case_ids)`, one a
    (case, place); of any other there is one a case. Only the wanted positions are kept, as they are computed; layers
    beyond the last wanted one are not run, nor tokens behind the last wanted one of a batch. Above `memory_limit` bytes
    the arrays are memory-mapped `.npy` files in `folder`. Activations with heads ([head, d_head] per token) are
    flattened to one vector; of attention patterns and scores, every head's row of the query at that position is kept
    ([head, key], keys up to the last position wanted of any case, 0 behind the batch's last).

    Args:
        traces: the run (or its materials) whose reference traces `tokens` hold, for sites in the trace.
        batch_size: upper bound on the cases in one forward pass; long sequences go in smaller batches.

    Raises `UnknownNameError` for an unknown hook, `CriError` for a hook that is switched off, is never run or has no
    vector at a token, for a position outside a sequence, for a place that no case has, for ids that are no case ids,
    when the limit is exceeded and no `folder` is given, or when the folder's disk has no space.
    """
    check_sites(bridge, sites)
    if batch_size < 1:
        raise out_of_range("batch_size", batch_size, "at least 1")
    rows = np.arange(len(tokens)) if case_ids is None else check_case_ids(case_ids, len(tokens))
    if not len(rows):
        raise CriError("case_ids: give at least one")
    at_position = {site.position: _spots(site, tokens, rows, traces) for site in sites}
    wanted = np.zeros(len(rows), dtype=np.int64)  # tokens that each case needs
    for spots in at_position.values():
        np.maximum.at(wanted, spots.case, spots.position + 1)
    store = _Store(bridge, sites, at_position, int(wanted.max()), memory_limit, folder)
    with _reading(bridge, store.hooks()):
        for part in _batches(wanted, batch_size, int(bridge.cfg.n_heads)):
            store.expect(part, int(wanted[part].max()))
            # causal attention: nothing after the last wanted position can matter
            ids = tokens.ids[rows[part], : store.n_positions].to(store.device)
            bridge(ids, return_type=None, **store.stop)
            if on_progress:
                on_progress(len(part))
    return store.finished()


def _batches(wanted: Int[np.ndarray, " case"], batch_size: int, n_heads: int) -> Iterator[Int[np.ndarray, " batch"]]:
    """Indices of the cases that need any token, neighbours in length together."""
    order = np.argsort(wanted, kind="stable")
    order = order[wanted[order] > 0]
    while len(order):
        size = min(batch_size, len(order))
        while size > 1 and size * n_heads * int(wanted[order[size - 1]]) ** 2 > _ATTENTION_LIMIT:
            size = -(-size // 2)
        yield order[:size]
        order = order[size:]


class _Store:
    """The arrays of `collect`, filled by hooks batch by batch."""

    def __init__(
        self,
        bridge: TransformerBridge,
        sites: Sequence[Site],
        at_position: Mapping[str | int, _Spots],
        n_keys: int,
        memory_limit: int,
        folder: Path | None,
    ) -> None:
        self.sites, self.at_position, self.n_keys = list(sites), at_position, n_keys
        self.memory_limit, self.folder = memory_limit, folder
        self.device = next(bridge.parameters()).device
        stop = _stop_layer(sites, bridge.cfg.n_layers)
        self.stop = {} if stop is None else {"stop_at_layer": stop}
        self.arrays: dict[Site, np.ndarray] = {}
        self.n_positions = 0
        self._batch: dict[str | int, tuple[np.ndarray, Tensor, Tensor]] = {}

    def hooks(self) -> list[tuple[str, Callable[..., Any]]]:
        by_hook: dict[str, list[Site]] = {}
        for site in self.sites:
            by_hook.setdefault(site.hook, []).append(site)
        return [(name, lambda t, hook, chosen=chosen: self._keep(t, chosen)) for name, chosen in by_hook.items()]

    def expect(self, part: Int[np.ndarray, " batch"], n_positions: int) -> None:
        """Says which cases the next forward pass has, cropped to how many tokens."""
        self.n_positions = n_positions
        for position, spots in self.at_position.items():
            place = np.full(int(max(spots.case.max(initial=0), part.max())) + 1, -1)
            place[part] = np.arange(len(part))
            local = place[spots.case]
            here = np.flatnonzero(local >= 0)
            case, token = torch.from_numpy(local[here]), torch.from_numpy(spots.position[here])
            self._batch[position] = (here, case.to(self.device), token.to(self.device))

    def _keep(self, tensor: Tensor, chosen: Sequence[Site]) -> None:
        for site in chosen:
            here, case, token = self._batch[site.position]
            picked = _at_spots(tensor, case, token, site, self.n_positions)
            if site.hook.rpartition(".")[2] in _BY_QUERY:
                picked = torch.nn.functional.pad(picked, (0, self.n_keys - picked.shape[-1]))
            vectors = picked.flatten(1).float().cpu().numpy()
            if site not in self.arrays:
                n = len(self.at_position[site.position].case)
                self.arrays[site] = self._allocate(n, vectors.shape[1], site)
            self.arrays[site][here] = vectors

    def _allocate(self, n: int, d: int, site: Site) -> Float[np.ndarray, "row d"]:
        size, n_sites, limit = 4 * n * d, len(self.sites), self.memory_limit
        if size * n_sites <= limit:
            return np.empty((n, d), dtype=np.float32)
        if self.folder is None:
            raise CriError(
                f"memory_limit: {n_sites} sites of {size / 2**20:.0f} MiB exceed {limit / 2**20:.0f} MiB; give a "
                "folder to stream to, or fewer sites or cases"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise CriError(
                f"folder: {self.folder} has {free / 2**20:.0f} MiB free, {site} needs {size / 2**20:.0f} MiB"
            )
        path = self.folder / f"{site}.npy"
        return np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, d))

    def finished(self) -> dict[Site, Float[np.ndarray, "row d"]]:
        for array in self.arrays.values():
            if isinstance(array, np.memmap):
                array.flush()
        if silent := [site.hook for site in self.sites if site not in self.arrays]:
            raise CriError(f"site: {silent[0]} is never run in this model; choose another hook")
        return {site: self.arrays[site] for site in self.sites}


def _at_spots(
    tensor: Tensor, case: Int[Tensor, " row"], token: Int[Tensor, " row"], site: Site, n_positions: int
) -> Tensor:
    """The rows of an activation at (case, token), [row, ...]; refuses a hook that has no vector at a token."""
    if site.hook.rpartition(".")[2] in _BY_QUERY:  # [case, head, query, key]: the position is that of the query
        return tensor[case, :, token]
    if tensor.ndim < 3 or tensor.shape[1] != n_positions:
        raise CriError(
            f"site: {site.hook} has shape {tuple(tensor.shape)}, not a vector at every token; choose another"
        )
    return tensor[case, token]


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
