"""The page: the template with a payload in it, as one text."""

from __future__ import annotations

import json
from importlib.resources import files

from cri.explore.payload import Payload


def embedded(data: object) -> str:
    """JSON that cannot end its script element, whatever texts it holds."""
    return json.dumps(data).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def page(payload: Payload) -> str:
    """The whole page. Texts of runs stand in it as JSON or in base64, and the page writes them as text, never as
    markup."""
    template = files("cri.explore").joinpath("page.html").read_text(encoding="utf-8")
    blobs = "\n".join(
        f'<script type="application/octet-stream" id="blob-{name}">{data}</script>'
        for name, data in payload.blobs.items()
    )
    # each mark stands once in the template; facts go in last, so that no text of a run can be taken for a mark
    return template.replace("__BLOBS__", blobs, 1).replace("__FACTS__", embedded(payload.facts), 1)
