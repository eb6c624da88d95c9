"""`python -m cri.export TASK --format FORMAT --split SPLIT --out FILE`: cases as JSON lines.

One case a line: `task, format, part` (train, test), `id, a, b, question` (the prompt), `answer` (the whole
completion). With `--chat`, one `{"messages": [...]}` a line and nothing else, as hosted fine-tuning
services take it; the ids and parts of the lines are then in `FILE.ids.csv`.

Examples:
  cri export addition --out addition.jsonl
  cri export mod_addition --format rfft --part test --out test.jsonl
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, arg

from cri.cli import key_values, run_command
from cri.data.splits import Split, make_split
from cri.errors import CriError
from cri.formats import Format, make_format
from cri.storage import atomic_path, require_replaceable, require_writable
from cri.tasks import Task, make_task

Part = Literal["all", "train", "test"]


@dataclass(frozen=True)
class ExportConfig:
    """What to export, and where to."""

    task: Annotated[Positional[str], arg(metavar="TASK")]
    """A task's name, e.g. addition."""
    out: Path
    """The file to write."""
    format: str = "direct"
    """direct, scratchpad or rfft."""
    split: str = "square"
    """What decides train and test; `square` is the task's main square."""
    part: Part = "all"
    """Which cases to write."""
    task_params: Annotated[tuple[str, ...], arg(metavar="KEY=VALUE")] = ()
    """Parameters of the task, e.g. size=50."""
    split_params: Annotated[tuple[str, ...], arg(metavar="KEY=VALUE")] = ()
    """Parameters of the split, e.g. half_side=5."""
    chat: bool = False
    """Write the messages layout of hosted services."""
    force: bool = False
    """Overwrite existing files."""


def part_of(split: Split, case: int) -> str:
    return "train" if split.train[case] else "test"


def part_ids(split: Split, part: Part) -> list[int]:
    """Ids of a part's cases, ascending."""
    return [i for i in range(len(split.train)) if part in ("all", part_of(split, i))]


def export_rows(task: Task, fmt: Format, split: Split, part: Part = "all") -> Iterator[dict[str, Any]]:
    """The rows of an export, in id order."""
    for case in part_ids(split, part):
        a, b = task.operands[case]
        yield {
            "task": task.name,
            "format": fmt.name,
            "part": part_of(split, case),
            "id": case,
            "a": a,
            "b": b,
            "question": fmt.prompt(task, a, b),
            "answer": fmt.completion(task, a, b),
        }


def as_chat(row: dict[str, Any]) -> dict[str, Any]:
    """A row in the messages layout."""
    return {
        "messages": [
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": row["answer"]},
        ]
    }


def export(config: ExportConfig) -> Path:
    """Writes the file (and `FILE.ids.csv` with `chat`), whole or not at all; raises `CriError` if it exists."""
    task = make_task(config.task, **key_values("task_params", config.task_params))
    fmt = make_format(config.format)
    split = make_split(task, config.split, **key_values("split_params", config.split_params))
    sidecar = config.out.with_name(config.out.name + ".ids.csv")
    for path in (config.out, sidecar) if config.chat else (config.out,):
        require_replaceable(path, "out")
        if path.exists() and not config.force:
            raise CriError(f"out: {path} exists; add --force to overwrite it")
    require_writable("out", config.out.parent)
    rows = list(export_rows(task, fmt, split, config.part))
    with atomic_path(config.out) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(as_chat(row) if config.chat else row) + "\n" for row in rows)
    if config.chat:
        with atomic_path(sidecar) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["line", "id", "part"])
            writer.writerows([line, row["id"], row["part"]] for line, row in enumerate(rows, start=1))
    print(f"{config.out}: {len(rows)} cases of {task.name}, {fmt.name}, split {config.split}")
    return config.out


def main() -> None:
    """`python -m cri.export`."""
    run_command(ExportConfig, export, description=__doc__, prog="python -m cri.export")


if __name__ == "__main__":
    main()
