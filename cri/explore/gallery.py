"""`python -m cri.explore.gallery`: every recorded figure on one page: question, answer, command, tables.

What a figure asks and answers stands in `studies/gallery.csv`, one row a figure; commands are those of the studies'
own pages, or of a record's manifest.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path

from cri.cli import run_command
from cri.errors import CriError
from cri.storage import read_json, require_replaceable, write_text

COLUMNS = ("figure", "record", "tables", "page", "question", "answer")
LIST, PAGE = Path("studies/gallery.csv"), Path("studies/index.html")

_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; img-src 'self' file:">
<title>cri: figures</title>
<style>
:root { color-scheme: light dark; --bg: #fff; --fg: #1a1a1a; --soft: #555; --line: #d5d5d5; --link: #005a9c }
@media (prefers-color-scheme: dark) {
  :root { --bg: #15171a; --fg: #ececec; --soft: #b3b7bd; --line: #3d4249; --link: #7cc4ff }
}
* { box-sizing: border-box }
html { font-size: clamp(15px, 10.6px + .32vw, 23px) }
body { margin: 0; padding: 1rem max(1rem, 3vw); font: 1rem/1.45 system-ui, sans-serif }
body { background: var(--bg); color: var(--fg) }
a { color: var(--link) }
h1 { font-size: 1.3rem } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem } h3 { font-size: 1rem; margin: .4rem 0 }
nav, .soft { color: var(--soft) }
nav a { margin-right: .8rem; display: inline-block }
.figures { display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)) }
article { border: 1px solid var(--line); border-radius: 6px; padding: .7rem; min-width: 0 }
img { width: 100%; height: 16rem; object-fit: contain; background: #fff; border-radius: 4px; display: block }
p { margin: .35rem 0; overflow-wrap: anywhere } code { font-size: .85rem }
.small { font-size: .85rem }
</style>
</head>
<body>
"""


@dataclass(frozen=True)
class Gallery:
    """Where the records and figures are."""

    root: Path = Path(".")
    """The repository: `studies/`, `figures/`."""


@dataclass(frozen=True)
class Entry:
    """One figure: its name without suffix, the record that it is drawn from (`study/folder`), that record's tables, a
    page of the explorer that shows the same models (or ""), what it asks, and its answer in a sentence."""

    figure: str
    record: str
    tables: tuple[str, ...]
    page: str
    question: str
    answer: str

    @property
    def study(self) -> str:
        return self.record.partition("/")[0]


def entries(root: Path) -> list[Entry]:
    """The rows of `studies/gallery.csv`, by study in the order of the file.

    Raises `CriError` for a figure without a row, a row without its figure, a table or page that is not there, and a row
    without question or answer.
    """
    path = root / LIST
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise CriError(f"root: {path} cannot be read ({error.strerror})") from error
    found = []
    for row in rows:
        if set(row) != set(COLUMNS) or not all(row[c] for c in COLUMNS if c != "page"):
            raise CriError(f"figure: {row.get('figure')!r} of {LIST} must have {', '.join(COLUMNS)}; page may be empty")
        tables = tuple(name.strip() for name in row["tables"].split(","))
        found.append(Entry(row["figure"], row["record"], tables, row["page"], row["question"], row["answer"]))
    _check(root, found)
    order = list(dict.fromkeys(entry.study for entry in found))
    return sorted(found, key=lambda entry: order.index(entry.study))


def _check(root: Path, found: list[Entry]) -> None:
    listed, drawn = [e.figure for e in found], {p.stem for p in (root / "figures").glob("*.png")}
    for name in listed:
        if listed.count(name) > 1:
            raise CriError(f"figure: {name} has {listed.count(name)} rows in {LIST}; must have one")
    if missing := sorted(drawn - set(listed)):
        raise CriError(f"figure: {missing[0]} has no row in {LIST}; say there what it asks and answers")
    if gone := sorted(set(listed) - drawn):
        raise CriError(f"figure: {gone[0]} of {LIST} is not in figures/; remove its row")
    for entry in found:
        for table in entry.tables:
            folder = root / "studies" / entry.record
            if not (folder / table).exists() and not (folder / f"{table}.gz").exists():
                raise CriError(f"table: {entry.figure} is drawn from {table}, which studies/{entry.record} lacks")
        if entry.page and not (root / "studies" / entry.page).exists():
            raise CriError(f"page: {entry.figure} leads to studies/{entry.page}, which is not there")


def command_of(root: Path, record: str) -> str:
    """The command that made a record: as the study's page has it, else as its manifest has it."""
    study, _, folder = record.partition("/")
    page, former = root / "studies" / study / "README.md", ""
    for line in page.read_text(encoding="utf-8").splitlines() if page.exists() else ():
        row = re.match(r"\| `(.+?)/`[^|]*\| (.+?) \|", line)
        if row is None:
            continue
        cell = row[2].replace("`", "")
        if cell.startswith("the same"):
            cell = f"{former}, {cell}"
        else:
            former = cell
        if row[1] == folder:
            return cell
    command = str(read_json(root / "studies" / record / "manifest.json").get("command") or "")
    return (
        command if command.startswith("python") else " ".join([f"python -m cri.studies.{study}", *command.split()[1:]])
    )


def gallery(root: Path) -> str:
    """The page, as text."""
    found = entries(root)
    studies = list(dict.fromkeys(entry.study for entry in found))
    pages = sorted((root / "studies" / "explorer").glob("*.html"))
    parts = [
        _HEAD,
        f"<h1>Case or Rule, from the Inside: {len(found)} figures</h1>\n",
        '<p class="soft">Each with what it asks, its answer in a sentence, the command that made its tables, and the '
        "tables that it is drawn from. Numbers, n and intervals stand on the studies' pages.</p>\n",
    ]
    if pages:
        links = "".join(f'<a href="explorer/{escape(p.name)}">{escape(p.stem.replace("-", ", "))}</a>' for p in pages)
        parts.append(f"<nav>Look at the cases themselves: {links}</nav>\n")
    parts.append("<nav>" + "".join(f'<a href="#{s}">{s.replace("_", " ")}</a>' for s in studies) + "</nav>\n")
    for study, group in groupby(found, lambda entry: entry.study):
        title = escape(study.replace("_", " "))
        if (root / "studies" / study / "README.md").exists():
            title = f'<a href="{study}/README.md">{title}</a>'
        parts.append(f'<h2 id="{study}">{title}</h2>\n<div class="figures">\n')
        parts += [_article(root, entry) for entry in group]
        parts.append("</div>\n")
    parts.append("</body>\n</html>\n")
    return "".join(parts)


def _article(root: Path, entry: Entry) -> str:
    folder = root / "studies" / entry.record
    tables = [name if (folder / name).exists() else f"{name}.gz" for name in entry.tables]
    linked = ", ".join(f'<a href="{entry.record}/{name}">{name}</a>' for name in tables)
    where = f'<a href="{entry.page}">look at its cases</a> · ' if entry.page else ""
    source = f"../figures/{entry.figure}"
    return (
        f'<article id="{entry.figure}">\n<a href="{source}.png"><img loading="lazy" src="{source}.png" '
        f'alt="{escape(entry.question)}"></a>\n<h3>{escape(entry.question)}</h3>\n<p>{escape(entry.answer)}</p>\n'
        f'<p class="small soft">{where}<a href="{source}.pdf">PDF</a> · tables: {linked}</p>\n'
        f'<p class="small soft"><code>{escape(command_of(root, entry.record))}</code></p>\n</article>\n'
    )


def run(config: Gallery) -> Path:
    """Writes `studies/index.html` and returns its path."""
    target = config.root / PAGE
    require_replaceable(target, "root")
    write_text(target, gallery(config.root))
    print(target)
    return target


def main() -> None:
    """`python -m cri.explore.gallery`."""
    run_command(Gallery, run, __doc__, prog="python -m cri.explore.gallery")


if __name__ == "__main__":
    main()
