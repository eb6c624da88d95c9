"""How figures call a family (task, format and tokenizer), and in what order they show families."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def family_title(family: Mapping[str, Any]) -> str:
    """`addition, digit tokens`; the format is named unless it is the direct one."""
    how = "" if family["format"] == "direct" else f"{family['format']}, "
    return f"{family['task'].replace('_', ' ')}, {how}{family['tokenizer']} tokens"


def family_order(family: Mapping[str, Any]) -> tuple[str, str, bool]:
    """Sort key: addition before the other tasks, direct before longer formats, number tokens first."""
    return family["task"], family["format"], family["tokenizer"] != "number"


def span(values: Iterable[float]) -> str:
    """`45 to 49` of a column of whole numbers, or the one there is."""
    found = sorted(set(values))
    return f"{found[0]:.0f}" if len(found) == 1 else f"{found[0]:.0f} to {found[-1]:.0f}"
