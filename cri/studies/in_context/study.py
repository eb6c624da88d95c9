"""Which examples in a prompt lead a pretrained model to its answer: near cases, cases with the same answer, a shared
rule step?

Asks questions of addition behind k examples of one kind, and decodes greedily. Then puts examples of several kinds into
one prompt, takes each out, exchanges it for another of its kind and for a far one, and hides its tokens from the
question, beside as many other tokens: how far do the log-odds of the answer fall?
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cri.cli import run_command
from cri.studies.in_context.config import NAME, PRESETS, InContext

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel

    from cri.interventions.in_context import Lines
    from cri.studies.common.pieces import Pieces
    from cri.studies.in_context.tables import Asked


def run(config: InContext) -> Path:
    """Records the tables, draws the figure, prints what the model can do; returns the folder of tables."""
    from cri.interventions.in_context import Lines
    from cri.models.loading import load_pretrained
    from cri.storage.compression import read_table
    from cri.studies.common.pieces import Pieces
    from cri.studies.common.records import code_hash, recording
    from cri.studies.in_context.figures import draw
    from cri.studies.in_context.tables import Asked
    from cri.training.checkpoints import tensors_sha256

    folder = config.tables(NAME, config.name)
    with recording(folder, config.figures) as record:
        asked = Asked(config)
        asked.questions  # noqa: B018 (refused before a model is loaded)
        model, tokenizer = load_pretrained(config.model)
        lines = Lines.of(tokenizer, asked.task)
        options = {k: v for k, v in asdict(config).items() if k not in ("name", "out", "model")}
        identity: dict[str, Any] = {
            "options": json.loads(json.dumps(options)),
            "weights": tensors_sha256(model.state_dict())[:16],
            "code": code_hash(f"{NAME}/*.py"),
        }
        if record.reusable(identity):
            figures = record.redraw(draw)
        else:
            # which questions are explained changes none of the pieces
            rests_on = {**identity, "options": {k: v for k, v in identity["options"].items() if k != "explained"}}
            pieces = Pieces(record, rests_on)
            tables = _ask(config, model, lines, asked, pieces)
            facts = {"identity": identity, "name": config.name, "model": Path(config.model).name}
            figures = record.write({name: table for name, table in tables.items() if not table.empty}, facts, draw)
            pieces.clear()
    accuracy = read_table(folder / "accuracy.csv", keep_default_na=False)
    print(accuracy.to_string(index=False))
    effects = read_table(folder / "effects.csv")
    print(effects[effects["what"].isin(("removed", "cut", "cut: other tokens"))].to_string(index=False))
    print(in_short(accuracy), *figures, sep="\n")
    return folder


def _ask(
    config: InContext, model: PreTrainedModel, lines: Lines, asked: Asked, pieces: Pieces
) -> dict[str, pd.DataFrame]:
    """All tables; what was asked before is not asked again."""
    import pandas as pd
    from tqdm import tqdm

    from cri.studies.in_context.tables import accuracy_table, answered, effect_tables, explained, paired_table

    prompts = [("none", 0), *((kind, k) for k in config.k for kind in config.kinds)]
    rows: list[dict[str, Any]] = []
    for kind, k in tqdm(prompts, desc="kinds of examples", leave=False):
        rows += pieces.rows(f"{kind}-{k}", lambda kind=kind, k=k: answered(model, lines, asked, kind, k))
    explanations: list[dict[str, Any]] = []
    for i in tqdm(range(config.explained), desc="questions explained", leave=False):
        explanations += pieces.rows(f"explained-{i}", lambda i=i: explained(model, lines, asked, i))
    answers, dropped = pd.DataFrame(rows), pd.DataFrame(explanations)
    return {
        "accuracy": accuracy_table(answers),
        "paired": paired_table(answers, ("far", "near", "near_shuffled")),
        "answers": answers.drop(columns=["copied", "between", "distance"]),
        **effect_tables(dropped),
        "explained": dropped,
    }


def in_short(accuracy: pd.DataFrame) -> str:
    """Whether the model adds at all: what it answers behind examples that have nothing to do with the question."""
    most = accuracy["k"].max()
    at_most = accuracy[accuracy["k"] == most].set_index("kind")
    for kind in ("far", "random"):
        if kind in at_most.index:
            row = at_most.loc[kind]
            what = "adds" if row["low"] > 0.5 else "does not add"
            where = f"{row['right']:.2f} [{row['low']:.2f}, {row['high']:.2f}] of {row['n']} questions"
            return f"Behind {most} {kind} examples it is right in {where}: it {what}."
    return f"No kind of examples tells whether the model adds; give far or random (kinds: {', '.join(at_most.index)})."


def main() -> None:
    """`python -m cri.studies.in_context`."""
    run_command(InContext, run, __doc__, presets=PRESETS, prog=f"python -m cri.studies.{NAME}")
