"""Positions and masks that follow from the text written so far.

A model's `position_ids` are by default the tokens' order (`plain`). They may also be `none` (all equal: no position at
all under rotary embeddings), `random` (increasing, with random gaps: Ruoss et al. 2023, arXiv 2305.16843), or
`structured`: period * line + columns * band + column, where the band is the variable that a token belongs to and the
column is its index in its list, from a random start (position coupling, Cho et al. 2024, arXiv 2405.20671, for texts of
many lines). A value and its copy then lie at the same relative position, however long the list is.

The model stays as it is: `attach` puts a hook before its forward pass, which gives it positions and mask from its
`input_ids` where the caller gives none. With a KV cache the hook remembers, beside the cache, where the text stands.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from cri.errors import CriError
from cri.formats.fields import Fields
from cri.models.position_options import RandomOptions, StructuredOptions

if TYPE_CHECKING:
    from cri.data.token_table import TokenTable

_PAIRED = torch.int16
"""What is compared for every pair of tokens is a small number: a quarter of the memory that 64 bits pass through."""
NO_ITEM = -1
"""Column, among those of lists' items, of a token that stands in no list."""


@dataclass
class TextState:
    """Where a batch of texts stands, and what masks need to know of every token so far.

    Attributes:
        line, band, column: of the last token, [text].
        listed: whether it stands in a list, [text].
        lines, bands, segments: of every token so far, [text, pos]; a segment is one value as it is written.
        items: column of every token so far that stands in a list, `NO_ITEM` for others, [text, pos].
        lists: which list of the text every token so far belongs to or follows, from 0, [text, pos].
        closed: newest finished segment of every band, [text, band].
        starts: column shift of every text's lists, [text].
        n: tokens so far.
    """

    line: Int[Tensor, " text"]
    band: Int[Tensor, " text"]
    column: Int[Tensor, " text"]
    listed: Int[Tensor, " text"]
    lines: Int[Tensor, "text pos"]
    bands: Int[Tensor, "text pos"]
    segments: Int[Tensor, "text pos"]
    items: Int[Tensor, "text pos"]
    lists: Int[Tensor, "text pos"]
    closed: Int[Tensor, "text band"]
    starts: Int[Tensor, " text"]
    n: int = 0

    def select(self, rows: Int[Tensor, " row"]) -> TextState:
        """The chosen texts."""
        chosen = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "n"}
        return TextState(**chosen, n=self.n)


@dataclass(eq=False)
class Positions:
    """Positions and masks of one run's texts.

    Args:
        kind: one of `KINDS`.
        options: of that kind (see `position_options`).
        fields: where lists stand, of structured positions.
        vocabulary: token texts in id order, likewise.
        with_lines: whether lines count in positions; a table of learned positions holds one period only.
    """

    kind: str
    options: RandomOptions | StructuredOptions | None = None
    fields: Fields | None = None
    vocabulary: Sequence[str] = ()
    with_lines: bool = True
    _tables: dict[torch.device, Tensor] = field(default_factory=dict, repr=False)

    @property
    def structured(self) -> StructuredOptions:
        assert isinstance(self.options, StructuredOptions)
        return self.options

    @property
    def masked(self) -> bool:
        """Whether the mask hides more than the future."""
        return self.kind == "structured" and bool(
            self.structured.window or self.structured.reach or self.structured.own or self.structured.newest
        )

    @property
    def n_bands(self) -> int:
        """Bands, a power of two of at least 8."""
        assert self.fields is not None
        return max(8, 1 << len(self.fields.variables).bit_length())

    @property
    def period(self) -> int:
        """Positions of a line."""
        return self.structured.columns * self.n_bands

    def _table(self, device: torch.device) -> Int[Tensor, "question token 5"]:
        """For tokens off and on the question's line: line, whether a place is set, band (-1: as before), column,
        whether it is shifted."""
        if device not in self._tables:
            assert self.fields is not None
            rows = []
            for on_question in (False, True):
                places = [self.fields.place(token, on_question) for token in self.vocabulary]
                rows.append([self._entry(place) for place in places])
            self._tables[device] = torch.tensor(rows, device=device)
        return self._tables[device]

    def _entry(self, place: Any) -> tuple[int, ...]:
        if place is None:
            return 0, 0, -1, 0, 0
        band = -1 if place.band is None else place.band if self.structured.bands else 0
        if not self.structured.index:  # columns count from the line's beginning
            return place.line, place.line, band, 0, 0
        return place.line, 1, band, place.column, int(place.indexed)

    def begin(self, n: int, device: torch.device, starts: Int[Tensor, " text"] | None = None) -> TextState:
        """The state before the first token of `n` texts."""
        zero = torch.zeros(n, dtype=torch.long, device=device)
        shift = zero if starts is None else starts
        none = zero[:, None][:, :0]
        if self.kind != "structured":
            return TextState(zero, zero, zero, zero, none, none, none, none, none, none, shift)
        assert self.fields is not None
        first = self.fields.first
        column = first.column + (shift if first.indexed else 0) if self.structured.index else -1
        band = (first.band or 0) if self.structured.bands else 0
        closed = torch.zeros(n, self.n_bands, dtype=torch.long, device=device)
        listed = zero + int(first.indexed)
        return TextState(zero, zero + band, zero + column, listed, none, none, none, none, none, closed, shift)

    def advance(
        self, ids: Int[Tensor, "text new"], state: TextState
    ) -> tuple[Int[Tensor, "text new"], Bool[Tensor, "text 1 new key"], TextState]:
        """Positions of the tokens that follow, which tokens each may attend to, and the state after them."""
        device, (n, width) = ids.device, ids.shape
        order = torch.arange(width, device=device)
        seen = torch.arange(state.n + width, device=device)
        causal = (seen <= state.n + order[:, None])[None, None]
        if self.kind != "structured":
            positions = self._unstructured(n, state.n + width, device)[:, state.n :]
            return positions, causal, TextState(*[getattr(state, f.name) for f in fields(state)][:-1], n=len(seen))
        options, table = self.structured, self._table(device)
        assert self.fields is not None
        lines = state.line[:, None] + table[0, :, 0][ids].cumsum(1)
        begins, setting, band, column, shifted = table[(lines == self.fields.question_line).long(), ids].unbind(-1)
        del begins
        base = column + shifted * state.starts[:, None]
        event = torch.where(setting > 0, order, -1).cummax(1).values
        last = event.clamp(min=0)
        columns = torch.where(event >= 0, base.gather(1, last) + order - last, state.column[:, None] + 1 + order)
        opened = torch.where(band >= 0, order, -1).cummax(1).values
        bands = torch.where(opened >= 0, band.gather(1, opened.clamp(min=0)), state.band[:, None])
        columns = columns.clamp(max=options.columns - 1)  # a text that the bands hold is never changed by this
        positions = columns + options.columns * bands + (self.period * lines if self.with_lines else 0)
        all_lines, all_bands = torch.cat([state.lines, lines], 1), torch.cat([state.bands, bands], 1)
        allowed = causal
        if options.window:
            of_key = all_lines.to(_PAIRED)
            allowed = allowed & (of_key[:, None, state.n :, None] - of_key[:, None, None] <= options.window)
        inside = torch.where(event >= 0, shifted.gather(1, last), state.listed[:, None])
        items = torch.cat([state.items, torch.where(inside > 0, columns, NO_ITEM)], 1)
        begun = shifted.cumsum(1) + (state.lists[:, -1:] if state.n else 0)
        lists = torch.cat([state.lists, begun], 1)
        if options.reach or options.own:
            allowed = allowed & self._listed(items, lists, all_bands, width)[:, None]
        segments, closed = state.segments, state.closed
        if options.newest:
            before = segments[:, -1:] if state.n else torch.zeros_like(lines[:, :1])
            opening = band >= 0
            own = before + opening.long().cumsum(1)
            segments = torch.cat([segments, own], 1)
            earlier = torch.cat([state.band[:, None], bands[:, :-1]], 1)
            ending = nn.functional.one_hot(earlier, self.n_bands) * (opening * (own - 1))[..., None]
            newest = torch.cat([closed[:, None], ending], 1).cummax(1).values[:, 1:]
            closed = newest[:, -1]
            of_key = newest.gather(2, all_bands[:, None].expand(-1, width, -1))
            allowed = allowed & ((all_bands[:, None] == 0) | (segments[:, None] >= of_key))[:, None]
        after = TextState(
            lines[:, -1], bands[:, -1], columns[:, -1], inside[:, -1], all_lines, all_bands, segments, items, lists,
            closed, state.starts, len(seen),
        )  # fmt: skip
        return positions, allowed.expand(n, 1, width, len(seen)), after

    def _listed(
        self,
        items: Int[Tensor, "text key"],
        lists: Int[Tensor, "text key"],
        bands: Int[Tensor, "text key"],
        width: int,
    ) -> Bool[Tensor, "text new key"]:
        """Which list items the last `width` tokens may attend to by `reach`, `own` and `ends`; other tokens are
        allowed."""
        options, first = self.structured, items.shape[1] - width
        items, bands = items.to(_PAIRED), bands.to(_PAIRED)
        of_query, hidden = items[:, first:, None], items.new_zeros(1, dtype=torch.bool)
        if options.reach:
            hidden = (of_query - items[:, None]).abs() > options.reach
        if options.own:
            hidden = hidden | (bands[:, first:, None] != bands[:, None])
        hidden = hidden & (of_query != NO_ITEM)
        if options.ends:
            # a token outside of lists comes after them, so that the last column of each is known by then
            last = items.new_zeros(len(items), items.shape[1] + 1).scatter_reduce(1, lists, items, "amax")
            hidden = hidden | (of_query == NO_ITEM) & (last.gather(1, lists) - items > options.reach)[:, None]
        return ~(hidden & (items != NO_ITEM)[:, None])

    def following(self, ids: Int[Tensor, "text new"], state: TextState) -> tuple[dict[str, Tensor], TextState]:
        """`position_ids` and `attention_mask` (see `inputs`) of the tokens that follow, and the state after them."""
        positions, allowed, after = self.advance(ids, state)
        return {"position_ids": positions, **({"attention_mask": allowed} if self.masked else {})}, after

    def _unstructured(self, n: int, width: int, device: torch.device) -> Int[Tensor, "text pos"]:
        if self.kind == "none":
            row = torch.zeros(width, dtype=torch.long, device=device)
        elif self.kind == "random":
            assert isinstance(self.options, RandomOptions)
            if width > self.options.longest // 2:
                raise CriError(
                    f"positions: a text of {width} tokens is longer than random positions hold; must be at most "
                    f"longest / 2 = {self.options.longest // 2}"
                )
            # evaluation: one fixed draw of half of the positions, of which a text has the first
            drawn = np.random.default_rng(0).permutation(self.options.longest)[: self.options.longest // 2]
            row = torch.from_numpy(np.sort(drawn)[:width]).to(device)
        else:
            row = torch.arange(width, device=device)
        return row[None].expand(n, -1)

    def inputs(
        self, ids: Int[Tensor, "text pos"], draws: Float[Tensor, "text draw"] | None = None, *, additive: bool = False
    ) -> dict[str, Tensor]:
        """`position_ids` and, where it hides more than the future, the `attention_mask` of whole texts.

        With `draws` (uniform in [0, 1), see `n_draws`) they are those of a training batch: lists start at random
        columns, random positions are drawn anew. An `additive` mask holds 0 or the lowest number, as transformers' own
        attention takes it.
        """
        if draws is not None and self.kind == "random":
            assert isinstance(self.options, RandomOptions)
            # the first positions of a random order: the ranks of `longest` draws
            chosen = draws.argsort(1)[:, : ids.shape[1]].sort(1).values
            return {"position_ids": chosen} if not additive else {"position_ids": chosen, **_causal(ids)}
        starts = None
        if draws is not None and self.kind == "structured" and self.structured.span:
            free = (self.structured.span - self.list_lengths(ids)).clamp(min=0)
            starts = (draws[:, 0] * (free + 1)).long()
        positions, allowed, _ = self.advance(ids, self.begin(len(ids), ids.device, starts))
        if additive:
            return {"position_ids": positions, "attention_mask": _additive(allowed.expand(len(ids), -1, -1, -1))}
        return {"position_ids": positions, **({"attention_mask": allowed} if self.masked else {})}

    @property
    def n_draws(self) -> int:
        """Random numbers that a training example takes."""
        return self.options.longest if isinstance(self.options, RandomOptions) else 1

    def list_lengths(self, ids: Int[Tensor, "text pos"]) -> Int[Tensor, " text"]:
        """Items of the longest operand, by the question's digits."""
        assert self.fields is not None
        table = self._table(ids.device)
        lines = table[0, :, 0][ids].cumsum(1)
        on_question = lines == max(self.fields.question_line, 0)
        setting = table[on_question.long(), ids][..., 1] > 0
        order = torch.arange(ids.shape[1], device=ids.device)
        start = torch.where(setting | ~on_question, order, -1).cummax(1).values
        return ((order - start) * on_question * ~setting).amax(1)

    def check(self, tokens: TokenTable) -> None:
        """Raises `CriError` where a text is longer than the positions hold."""
        if self.kind == "random":
            self._unstructured(1, tokens.ids.shape[1], tokens.ids.device)
        if self.kind != "structured":
            return
        options = self.structured
        for start in range(0, len(tokens), 1024):
            ids = tokens.ids[start : start + 1024]
            plain = Positions(
                self.kind,
                _replaced(options, window=0, reach=0, own=False, ends=False, newest=False, columns=1 << 20),
                self.fields,
                self.vocabulary,
            )
            shift = (options.span - self.list_lengths(ids)).clamp(min=0) if options.span else None
            positions, _, _ = plain.advance(ids, plain.begin(len(ids), ids.device, shift))
            columns = (positions % (1 << 20)) * tokens.token_mask[start : start + 1024]
            if int(columns.max()) >= options.columns:
                raise CriError(
                    f"positions: a list or line needs {int(columns.max()) + 1} columns, more than the "
                    f"{options.columns} of a band; raise position_params.columns or shorten the numbers"
                )


def _replaced(options: StructuredOptions, **changes: Any) -> StructuredOptions:
    return StructuredOptions(**{f.name: getattr(options, f.name) for f in fields(options)} | changes)


def _additive(allowed: Bool[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    zeros = torch.zeros(allowed.shape, device=allowed.device)
    return zeros.masked_fill(~allowed, torch.finfo(torch.float32).min)


def _causal(ids: Int[Tensor, "text pos"]) -> dict[str, Tensor]:
    order = torch.arange(ids.shape[1], device=ids.device)
    return {"attention_mask": _additive((order <= order[:, None])[None, None].expand(len(ids), -1, -1, -1))}


class PositionHook:
    """Gives a model positions and mask wherever its caller gives none."""

    def __init__(self, positions: Positions) -> None:
        self.positions = positions

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        ids = args[0] if args else kwargs.get("input_ids")
        if ids is None or kwargs.get("position_ids") is not None:
            return None
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        state = getattr(cache, "cri_text", None)
        if state is None:
            state = self.positions.begin(len(ids), ids.device)
        where, allowed, after = self.positions.advance(ids, state)
        if cache is not None:
            cache.cri_text = after
        own = str(getattr(model.config, "_attn_implementation", "")).startswith("cri_")
        given: dict[str, Any] = {"position_ids": where}
        if not own:  # transformers would take jumping positions for several texts in one row
            given["attention_mask"] = _additive(allowed.expand(len(ids), -1, -1, -1))
        elif self.positions.masked:
            given["attention_mask"] = allowed
        return args, {**kwargs, **given}


def attach(model: nn.Module, positions: Positions) -> None:
    """From now on `model` sees these positions wherever its caller gives none (copies of it, too)."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise CriError(f"positions: {type(model).__name__} takes no position_ids")
    if positions.kind != "plain":
        model.register_forward_pre_hook(PositionHook(positions), with_kwargs=True)


def positions_of(model: nn.Module) -> Positions | None:
    """The positions attached to `model` (or to the model that an adapter wraps), None for plain ones."""
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, PositionHook):
                return hook.positions
    return None
