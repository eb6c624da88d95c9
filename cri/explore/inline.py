"""The explorer's page inside a notebook: a frame that holds the whole page, and so asks nobody for anything."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from cri.attribution.neighbors import METRICS
from cri.errors import unknown_name
from cri.explore.page import page
from cri.explore.payload import Payload
from cri.explore.scores import MODEL_FREE
from cri.storage import require_replaceable, write_text


def check_method(method: str, scored: Sequence[str]) -> None:
    """Raises `UnknownNameError` for a method that the page will not have scored."""
    valid = [*METRICS, *scored, *MODEL_FREE]
    if method not in valid:
        raise unknown_name("method", method, valid)


@dataclass(frozen=True, repr=False)
class Inline:
    """A page that shows itself in a notebook.

    Attributes:
        text: the page.
        height: of its frame, in pixels.
    """

    text: str
    height: int

    @classmethod
    def of(cls, payload: Payload, place: Sequence[int] | None, method: str, height: int) -> Inline:
        """A page that opens at a place of the grid (row, column), with a method."""
        view = {"method": method} | ({} if place is None else {"a": place[0], "b": place[1]})
        return cls(page(payload, "#" + urlencode(view)), height)

    def __repr__(self) -> str:
        return f"<explorer page, {len(self.text) / 2**20:.1f} MiB: shown by a notebook, written by .save(path)>"

    def _repr_html_(self) -> str:
        # a document of its own: the notebook's styles and scripts do not reach it, nor it them
        return (
            f'<iframe title="cri explorer" sandbox="allow-scripts allow-downloads" allow="clipboard-write" '
            f'style="width:100%;height:{self.height}px;border:0" srcdoc="{html.escape(self.text)}"></iframe>'
        )

    def save(self, path: Path | str) -> Path:
        """Writes the page as a file, whole or not at all."""
        require_replaceable(Path(path), "path")
        write_text(Path(path), self.text)
        return Path(path)
