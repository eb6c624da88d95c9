"""The page: the template with a payload in it, as one text."""

from __future__ import annotations

import json
from importlib.resources import files

from cri.explore.payload import Payload

SCRIPTS = ("data.js", "draw.js", "panels.js", "wiring.js")


def embedded(data: object) -> str:
    """JSON that cannot end its script element, whatever texts it holds."""
    return json.dumps(data).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def page(payload: Payload, start: str = "") -> str:
    """The whole page. Texts of runs stand in it as JSON or in base64, and the page writes them as text, never as
    markup.

    Args:
        payload: what it shows.
        start: the view that it opens with where its address names none, such as `#a=50&b=50&method=EK-FAC`.
    """

    def part(name: str) -> str:
        return files("cri.explore").joinpath(name).read_text(encoding="utf-8")

    blobs = "\n".join(
        f'<script type="application/octet-stream" id="blob-{name}">{data}</script>'
        for name, data in payload.blobs.items()
    )
    # each mark stands once in the template; facts go in last, so that no text of a run can be taken for a mark
    whole = part("page.html").replace("__STYLE__", part("page.css"), 1)
    whole = whole.replace("__SCRIPT__", "\n".join(map(part, SCRIPTS)), 1).replace("__BLOBS__", blobs, 1)
    return whole.replace("__FACTS__", embedded({**payload.facts, "start": start}), 1)
