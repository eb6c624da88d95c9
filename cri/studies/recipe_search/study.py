"""Which training settings reach what accuracy? A grid of learning rates and weight decays, trained as replicas.

The table this leaves is where the recipes of `cri.training.recipes` come from, with what did not work beside what did.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cri.cli import run_command
from cri.errors import CriError
from cri.studies.common.records import recording
from cri.studies.recipe_search.config import NAME, PRESETS, RecipeSearch
from cri.tasks import make_task
from cri.training.recipes import recipe

if TYPE_CHECKING:
    import pandas as pd


def run(config: RecipeSearch) -> Path:
    """Trains the grid, prints what each bank says when it is trained, records the table of all; returns its folder.

    An interrupted search goes on where it was: its banks are kept among the runs."""
    import pandas as pd

    with recording(config.tables(NAME, config.name)) as record:
        tables = list(_bank_tables(config))
        if not tables:
            raise CriError("tasks, formats, tokenizers, steps, batch_sizes: give at least one of each")
        record.write({"results": pd.concat(tables, ignore_index=True)}, {"banks": len(tables)})
    print(record.folder)
    return record.folder


def _bank_tables(config: RecipeSearch) -> Iterator[pd.DataFrame]:
    """One table a bank: a row for each of its runs."""
    from cri.data.splits import make_split
    from cri.ensembles.bank import load_bank
    from cri.ensembles.engine import Replica
    from cri.ensembles.train import train_replicas

    for task_name, fmt, tokenizer, steps, batch_size in itertools.product(
        config.tasks, config.formats, config.tokenizers, config.steps, config.batch_sizes
    ):
        base = recipe(task_name, fmt, tokenizer=tokenizer, model=config.model)
        base = base.replace(steps=steps, batch_size=batch_size, precision=config.precision)
        if config.size:
            base = base.replace(task_params={"size": config.size}, split_params={"half_side": config.size // 8})
        task = make_task(base.task, **base.task_params)
        masks = {s: make_split(task, s, **(base.split_params if s == "square" else {})).train for s in config.splits}
        replicas = [
            Replica(seed, masks[split], lr, decay, note={"split": split})
            for split, lr, decay, seed in itertools.product(
                config.splits, config.lrs, config.weight_decays, config.seeds
            )
        ]
        bank = load_bank(train_replicas(base, replicas, config.runs, device=config.device, jobs=config.jobs))
        key = {"task": task_name, "format": fmt, "tokenizer": tokenizer, "steps": steps, "batch_size": batch_size}
        columns = [*key, "split", "lr", "weight_decay", "seed", "loss", "train_acc", "test_acc"]
        table = bank.table.assign(**key)[columns]
        best = table.sort_values("test_acc", ascending=False).groupby("split", sort=False).head(3)
        print(best.to_string(index=False), flush=True)
        yield table


def main() -> None:
    """`python -m cri.studies.recipe_search`."""
    run_command(RecipeSearch, run, __doc__, presets=PRESETS, prog=f"python -m cri.studies.{NAME}")
