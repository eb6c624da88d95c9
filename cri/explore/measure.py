"""`python -m cri.explore.measure PAGE ...`: how large pages are, how fast they open and answer, in a real Chromium.

Two clocks, in milliseconds. *Wall*: from the navigation, or the pointer's press, until everything is drawn; a machine
that is busy with other work makes it longer. *CPU*: what the page's main thread computed meanwhile, layout and style
included, by the browser's own count (`Performance.getMetrics`, thread time), which other work hardly touches.
"""

from __future__ import annotations

import csv
import io
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

from tyro.conf import Positional, arg

from cri.cli import run_command
from cri.errors import CriError, out_of_range
from cri.storage import require_replaceable, write_text

COLUMNS = ("page", "mib", "what", "n", "wall_median", "wall_largest", "cpu_median", "cpu_largest")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Measure:
    """Which pages, and how often."""

    pages: Annotated[Positional[tuple[Path, ...]], arg(metavar="PAGE")]
    """Pages of `cri explore`."""
    out: Path = Path("build/explorer_timings.csv")
    """The table."""
    repeats: int = 20
    """Of each interaction; a page is opened a quarter as often."""


def find_browser() -> str:
    """The machine's Chromium; raises `CriError` where there is none."""
    for name in BROWSERS:
        if found := shutil.which(name):
            return found
    raise CriError(f"browser: none of {', '.join(BROWSERS)} is installed (apt-get install chromium)")


def interactions(page: Any) -> dict[str, Callable[[int], None]]:
    """What a user does, by name; each is done with a number that differs from call to call."""
    rows, cols = page.evaluate("[F.rows, F.cols]")
    methods, frames = page.evaluate("[METHODS, Object.keys(FRAMES)]")
    n_sites = page.evaluate("F.runs[0].sites.length")

    def shows(**state: Any) -> None:
        page.evaluate("s => { Object.assign(explorer.state, s); return explorer.refresh(true); }", state)

    def inside(i: int) -> tuple[int, int]:
        return rows // 2 + i % 5 - 2, cols // 2 + (i // 5) % 5 - 2

    return {
        "click a case": lambda i: page.evaluate("([a, b]) => explorer.choose(a, b)", list(inside(i))),
        "switch the method": lambda i: shows(method=methods[i % len(methods)]),
        "switch the site": lambda i: shows(method=methods[0], site=i % n_sites),
        "switch the frame": lambda i: shows(method=methods[3], frame=frames[i % len(frames)]),
        "switch the maps": lambda i: shows(value=("correct", "difference", "logodds", "train")[i % 4], frame="grid"),
        "point at a case": lambda i: page.evaluate("p => explorer.hover(p)", list(inside(i))),
    }


def measured(browser: Any, path: Path, repeats: int) -> list[dict[str, Any]]:
    """One row for opening a page and one for each interaction."""
    facts = {"page": path.stem, "mib": round(path.stat().st_size / 2**20, 2)}
    opened, rows = [], []
    page: Any = None
    session: Any = None
    for _ in range(max(2, repeats // 4)):
        if page is not None:
            page.close()
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        page.goto(path.resolve().as_uri())
        page.wait_for_selector("body[data-ready=yes]", timeout=120_000)
        opened.append((page.evaluate("explorer.opened"), _cpu(session)))
    rows.append(_row(facts, "open", opened))
    for what, act in interactions(page).items():
        for i in range(8):  # everything is decoded, and compiled, before it is timed
            act(i)
        times = []
        for i in range(repeats):
            before = _cpu(session)
            start = page.evaluate("performance.now()")
            act(i)
            times.append((page.evaluate("performance.now()") - start, _cpu(session) - before))
        rows.append(_row(facts, what, times))
    page.close()
    return rows


def _cpu(session: Any) -> float:
    """Milliseconds that the main thread has computed so far."""
    metrics = {m["name"]: m["value"] for m in session.send("Performance.getMetrics")["metrics"]}
    return 1000 * metrics["TaskDuration"]


def _row(facts: dict[str, Any], what: str, times: list[tuple[float, float]]) -> dict[str, Any]:
    wall, cpu = zip(*times, strict=True)
    numbers = (median(wall), max(wall), median(cpu), max(cpu))
    return {
        **facts,
        "what": what,
        "n": len(times),
        **dict(zip(COLUMNS[4:], (round(x, 1) for x in numbers), strict=True)),
    }


def run(config: Measure) -> Path:
    """Writes the table and returns its path."""
    if not config.pages:
        raise CriError("pages: give at least one page of cri explore")
    if config.repeats < 2:
        raise out_of_range("repeats", config.repeats, "at least 2")
    for path in config.pages:
        if not path.is_file():
            raise CriError(f"pages: {path} is not a file")
    require_replaceable(config.out, "out")
    executable = find_browser()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        raise CriError("browser: needs playwright (pip install 'cri[browser]')") from error
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        rows = [row for path in config.pages for row in measured(browser, path, config.repeats)]
        browser.close()
    text = io.StringIO()
    writer: csv.DictWriter[str] = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(config.out, text.getvalue())
    print(text.getvalue(), file=sys.stderr)
    print(config.out)
    return config.out


def main() -> None:
    """`python -m cri.explore.measure`."""
    run_command(Measure, run, __doc__, prog="python -m cri.explore.measure")


if __name__ == "__main__":
    main()
