"""Ranges of numbers, as captions write them."""

from __future__ import annotations

from collections.abc import Iterable


def span(values: Iterable[float]) -> str:
    """`45 to 49` of a column of whole numbers, or the one there is."""
    found = sorted(set(values))
    return f"{found[0]:.0f}" if len(found) == 1 else f"{found[0]:.0f} to {found[-1]:.0f}"
