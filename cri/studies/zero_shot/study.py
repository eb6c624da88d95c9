"""What does a pretrained model bring along? Its number tokens, and its answers before any training.

Whether "57" is one token or two decides the shape of the hole that Leave-Square-Out leaves (see the README), so it
belongs to every result on a pretrained model. Answers are decoded greedily from the bare question.
"""

from __future__ import annotations

import re
from pathlib import Path

from cri.cli import run_command
from cri.config import RunConfig
from cri.storage import provenance, write_json, write_text
from cri.studies.zero_shot.config import PRESETS, ZeroShotConfig


def run(config: ZeroShotConfig) -> Path:
    """Writes `results.csv` (one row a task), `answers.csv` (one row a case), `number_tokens.csv` and a manifest."""
    import numpy as np
    import pandas as pd

    from cri.data.tokenization import number_tokens
    from cri.evaluation.decoding import decode, decoding_room
    from cri.training.setup import prepare

    results, answers = [], []
    tokenizer = None
    for task_name in config.tasks:
        materials = prepare(RunConfig(task=task_name, model=config.model, split="random"))
        task, tokenizer = materials.task, materials.tokenizer
        rng = np.random.default_rng(config.seed)
        n = min(config.n_cases or task.n_cases, task.n_cases)
        cases = np.sort(rng.choice(task.n_cases, n, replace=False))
        decoded = decode(materials.model, materials.tokens[cases], room=decoding_room(materials.tokens))
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
    folder = config.record / Path(config.model).name
    assert tokenizer is not None
    counts = pd.Series(number_tokens(tokenizer, range(config.max_number + 1)), name="tokens")
    by_digits = counts.groupby([len(str(n)) for n in counts.index]).agg(["min", "mean", "max"])
    write_text(folder / "results.csv", pd.DataFrame.from_records(results).to_csv(index=False, float_format="%.4g"))
    write_text(folder / "answers.csv", pd.concat(answers).to_csv(index=False))
    write_text(folder / "number_tokens.csv", by_digits.rename_axis("digits").to_csv(float_format="%.4g"))
    write_json(folder / "manifest.json", {"model": config.model, "n_cases": config.n_cases, **provenance()})
    print(pd.DataFrame.from_records(results).to_string(index=False))
    print(by_digits.rename_axis("digits").to_string())
    print(folder)
    return folder


def numbers_agree(completion: str, answer: str) -> bool:
    """Whether the first numbers of `completion` are those of `answer`: all that an untrained model can be asked."""
    expected = re.findall(r"\d+", answer)
    return re.findall(r"\d+", completion)[: len(expected)] == expected


def main() -> None:
    """`python -m cri.studies.zero_shot`."""
    run_command(ZeroShotConfig, run, __doc__, presets=PRESETS, prog="python -m cri.studies.zero_shot")
