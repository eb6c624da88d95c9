"""What does a pretrained model bring along? Its number tokens, and its answers before any training.

Whether "57" is one token or two decides the shape of the hole that Leave-Square-Out leaves (see the README), so it
belongs to every result on a pretrained model. Answers are decoded greedily from the bare question.
"""

from __future__ import annotations

import re
from pathlib import Path

from cri.cli import run_command
from cri.config import RunConfig
from cri.errors import CriError
from cri.studies.common.records import Record, recording
from cri.studies.zero_shot.config import NAME, PRESETS, ZeroShotConfig


def run(config: ZeroShotConfig) -> Path:
    """Records `results.csv` (one row a task), `answers.csv` (one row a case) and `number_tokens.csv`; returns their
    folder."""
    with recording(config.tables(NAME, Path(config.model).name)) as record:
        _ask(config, record)
    return record.folder


def _ask(config: ZeroShotConfig, record: Record) -> None:
    """Asks the model, records and prints what it says."""
    import numpy as np
    import pandas as pd

    from cri.data.tokenization import number_tokens
    from cri.evaluation.decoding import decode, max_new_tokens_for
    from cri.training.setup import prepare

    results, answers = [], []
    tokenizer = None
    for task_name in config.tasks:
        materials = prepare(RunConfig(task=task_name, model=config.model, split="random"))
        task, tokenizer = materials.task, materials.tokenizer
        rng = np.random.default_rng(config.seed)
        n = min(config.n_cases or task.n_cases, task.n_cases)
        cases = np.sort(rng.choice(task.n_cases, n, replace=False))
        decoded = decode(materials.model, materials.tokens[cases], max_new_tokens=max_new_tokens_for(materials.tokens))
        rows = []
        for i, case in enumerate(cases.tolist()):
            a, b = task.operands[case]
            text = str(tokenizer.decode(decoded.ids[i, : decoded.lengths[i]].tolist()))
            answer = task.answer(a, b)
            exact = materials.format.read(task, a, b, text, finished=bool(decoded.finished[i])).status == "right"
            rows.append(
                {
                    "task": task_name,
                    "id": case,
                    "answer": answer,
                    "completion": text,
                    "exact": exact,
                    "numbers_right": numbers_agree(text, answer),
                }
            )
        table = pd.DataFrame.from_records(rows)
        answers.append(table)
        shares = {"exact": table["exact"].mean(), "numbers_right": table["numbers_right"].mean()}
        results.append({"task": task_name, "n": n, **shares})
    if tokenizer is None:
        raise CriError("tasks: give at least one")
    counts = pd.Series(number_tokens(tokenizer, range(config.max_number + 1)), name="tokens")
    by_digits = counts.groupby([len(str(n)) for n in counts.index]).agg(["min", "mean", "max"])
    tables = {
        "results": pd.DataFrame.from_records(results),
        "answers": pd.concat(answers),
        "number_tokens": by_digits.rename_axis("digits").reset_index(),
    }
    record.write(tables, {"model": config.model, "n_cases": config.n_cases})
    for name in ("results", "number_tokens"):
        print(tables[name].to_string(index=False))
    print(record.folder)


def numbers_agree(completion: str, answer: str) -> bool:
    """Whether the first numbers of `completion` are those of `answer`: all that an untrained model can be asked."""
    expected = re.findall(r"\d+", answer)
    return re.findall(r"\d+", completion)[: len(expected)] == expected


def main() -> None:
    """`python -m cri.studies.zero_shot`."""
    run_command(ZeroShotConfig, run, __doc__, presets=PRESETS, prog=f"python -m cri.studies.{NAME}")
