"""The kinds of positions that a run may have, and the options of each kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from cri.errors import CriError, out_of_range, unknown_name

KINDS = ("plain", "none", "random", "structured")


@dataclass(frozen=True)
class RandomOptions:
    """Options of `random` positions: texts of up to half of `longest` tokens can be evaluated."""

    longest: int = 16384

    def __post_init__(self) -> None:
        if self.longest < 2:
            raise out_of_range("position_params.longest", self.longest, "at least 2")


@dataclass(frozen=True)
class StructuredOptions:
    """Options of `structured` positions; each part can be switched off to measure its share."""

    bands: bool = True
    """Every variable has a band of positions of its own."""
    index: bool = True
    """Columns are indices in lists; otherwise the tokens' order in their line."""
    span: int = 16
    """A list of n items starts at a column drawn from 0 .. span - n in every training batch; 0 for no random start."""
    window: int = 16
    """Lines back that a token attends to; 0 for all."""
    reach: int = 0
    """Columns to either side that an item of a list sees of other lists' items and of its own; 0 for all. Names, single
    values and structure stay in sight."""
    own: bool = False
    """An item of a list sees of list items those of its own variable only. For rule traces, whose operations read
    single values: the digits of a scratchpad's answer follow from other lists, which this hides."""
    ends: bool = False
    """Tokens that stand in no list see of a list its end only, the items within `reach` columns of its last token: what
    stands there says what the rule needs (is the list empty, which item is the last), and nothing says how long the
    list is, from which the end of the loop can be predicted in training."""
    newest: bool = False
    """Hide a variable's value once a newer one has been written: strong help, as that is part of executing the rule."""
    columns: int = 32
    """Columns of a band, which bound the length of lists."""

    def __post_init__(self) -> None:
        for name, low in (("span", 0), ("window", 0), ("reach", 0), ("columns", 4)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise out_of_range(f"position_params.{name}", value, f"a whole number of at least {low}")
        if self.ends and not self.reach:
            raise CriError("position_params.ends: true needs position_params.reach of at least 1, which says how much")
        if self.own and not self.bands:
            raise CriError("position_params.own: true needs position_params.bands, which tell variables apart")
        for name in ("bands", "index", "own", "ends", "newest"):
            if not isinstance(getattr(self, name), bool):
                raise out_of_range(f"position_params.{name}", getattr(self, name), "true or false")


def position_options(kind: str, params: Mapping[str, Any]) -> RandomOptions | StructuredOptions | None:
    """The options of positions of this kind; raises `CriError` for an unknown kind, name or value."""
    if kind not in KINDS:
        raise unknown_name("positions", kind, KINDS)
    options = {"random": RandomOptions, "structured": StructuredOptions}.get(kind)
    valid = [f.name for f in fields(options)] if options else []
    for name in params:
        if name not in valid:
            raise unknown_name(f"position_params of {kind} positions", name, valid or ["none at all"])
    return options(**params) if options else None
