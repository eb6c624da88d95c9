"""`python -m cri.score FILE`: scores answers that were produced elsewhere.

FILE holds one case a line: `id` and `output` (the model's whole text), `finished` (false where it was cut
off; true if absent), and `task` and `format` unless given as options; other keys of an export may stay.
Beside FILE it writes `NAME.cases.csv` (one row a case; `cri.evaluation.scoring.reading_table` names the columns, and
the maps of `cri.plots` draw from them), `NAME.accuracy.csv` (by part and status) and `NAME.errors.csv`
(where and how completions first deviate from the reference).

Examples:
  cri score answers.jsonl
  cri score answers.jsonl --task addition --format scratchpad --part test
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from cri.cli import key_values, run_command
from cri.data.splits import make_split
from cri.errors import CriError
from cri.evaluation.scoring import accuracy_table, error_table, reading_table
from cri.export import Part, part_ids
from cri.formats import make_format
from cri.storage import atomic_path
from cri.tasks import make_task

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ScoreConfig:
    """What to score, and against what."""

    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """JSON lines with id and output."""
    task: str | None = None
    """The task, if the rows do not name it."""
    format: str | None = None
    """The format, if the rows do not name it."""
    split: str = "square"
    """What decides train and test."""
    part: Part = "all"
    """Which cases the file must hold, each exactly once."""
    task_params: Annotated[tuple[str, ...], arg(metavar="KEY=VALUE")] = ()
    """Parameters of the task, as for the export."""
    split_params: Annotated[tuple[str, ...], arg(metavar="KEY=VALUE")] = ()
    """Parameters of the split, as for the export."""


def read_answers(path: Path) -> list[dict[str, Any]]:
    """The rows of an answers file, row i being line i + 1; raises `CriError` naming a line that is not valid."""
    if path.exists() and not path.is_file():
        raise CriError(f"file: {path} is not a regular file")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # JSON may hold other separators, such as U+2028, as text
    except (OSError, UnicodeDecodeError) as error:
        raise CriError(f"file: {path} cannot be read ({error})") from None
    rows: list[dict[str, Any]] = []
    if lines[-1] == "":
        del lines[-1]
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise CriError(f"{path} line {number}: not valid JSON") from None
        if not isinstance(row, dict):
            raise CriError(f"{path} line {number}: not a JSON object")
        for key, kind in (("id", int), ("output", str)):
            value = row.get(key)
            if not isinstance(value, kind) or isinstance(value, bool):
                raise CriError(f"{path} line {number}: {key} must be {'an integer' if kind is int else 'a string'}")
        if any("\ud800" <= char <= "\udfff" for char in row["output"]):
            raise CriError(f"{path} line {number}: output holds half of a surrogate pair, which is no text")
        if not isinstance(row.get("finished", True), bool):
            raise CriError(f"{path} line {number}: finished must be true or false")
        rows.append(row)
    if not rows:
        raise CriError(f"file: {path} holds no answers")
    return rows


def _setting(path: Path, rows: list[dict[str, Any]], key: str, given: str | None) -> str:
    """The task or format, from the option or the rows, which must not contradict each other."""
    value = given
    for number, row in enumerate(rows, start=1):
        named = row.get(key, value)
        value = named if value is None else value
        if named != value:
            raise CriError(f"{path} line {number}: {key} is {named!r}, not {value!r}")
    if value is None:
        raise CriError(f"{key}: no row names it; add --{key}")
    return str(value)


def _by_id(path: Path, rows: list[dict[str, Any]], expected: list[int]) -> Mapping[int, int]:
    """Row index of every expected id."""
    known, where = set(expected), dict[int, int]()
    for index, row in enumerate(rows):
        case = row["id"]
        if case not in known:
            raise CriError(f"{path} line {index + 1}: unknown id {case} (not a case of the part to be scored)")
        if case in where:
            raise CriError(f"{path} line {index + 1}: id {case} is there twice, first on line {where[case] + 1}")
        where[case] = index
    missing = [case for case in expected if case not in where]
    if missing:
        some = ", ".join(map(str, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise CriError(f"{path}: ends at line {len(rows)} with {len(missing)} ids missing: {some} (see --part)")
    return where


def score_rows(config: ScoreConfig) -> pd.DataFrame:
    """The per-case table of an answers file, in id order (columns: see `reading_table`)."""
    rows = read_answers(config.file)
    task = make_task(_setting(config.file, rows, "task", config.task), **key_values("task_params", config.task_params))
    fmt = make_format(_setting(config.file, rows, "format", config.format))
    split = make_split(task, config.split, **key_values("split_params", config.split_params))
    ids = part_ids(split, config.part)
    where = _by_id(config.file, rows, ids)
    for case in ids:
        question = rows[where[case]].get("question")
        if question is not None and question != fmt.prompt(task, *task.operands[case]):
            raise CriError(f"{config.file} line {where[case] + 1}: question is not that of case {case} of {task!r}")
    answers = [rows[where[case]] for case in ids]
    finished = [row.get("finished", True) for row in answers]
    return reading_table(task, fmt, split, ids, [row["output"] for row in answers], finished)


def score(config: ScoreConfig) -> pd.DataFrame:
    """Scores a file, writes the three tables beside it, and prints the accuracy."""
    cases = score_rows(config)
    accuracy = accuracy_table(cases)
    for name, table in (("cases", cases), ("accuracy", accuracy), ("errors", error_table(cases))):
        with atomic_path(config.file.with_suffix(f".{name}.csv")) as temporary:
            table.to_csv(temporary, index=False)
    print(accuracy.to_string(index=False))
    return cases


def main() -> None:
    """`python -m cri.score`."""
    run_command(ScoreConfig, score, description=__doc__, prog="python -m cri.score")


if __name__ == "__main__":
    main()
