"""Which training settings reach what accuracy? A grid of learning rates and weight decays, trained as replicas.

The table this leaves is where the recipes of `cri.training.recipes` come from, with what did not work beside what did.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from cri.cli import run_command
from cri.studies.recipe_search.config import PRESETS, RecipeSearch
from cri.tasks import make_task
from cri.training.recipes import recipe


def run(config: RecipeSearch) -> Path:
    """Trains the grid, writes and prints the table; returns its path."""
    import pandas as pd

    from cri.data.splits import make_split
    from cri.ensembles.bank import load_bank
    from cri.ensembles.engine import Replica
    from cri.ensembles.train import train_replicas
    from cri.storage import provenance, write_json, write_text

    path = config.record / f"{config.name}.csv"
    tables = []
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
        bank = load_bank(train_replicas(base, replicas, config.runs, device=config.device))
        key = {"task": task_name, "format": fmt, "tokenizer": tokenizer, "steps": steps, "batch_size": batch_size}
        tables.append(bank.table.assign(**key))
        # after each bank, so that an interrupted search has said what it knows
        columns = [*key, "split", "lr", "weight_decay", "seed", "loss", "train_acc", "test_acc"]
        table = pd.concat(tables, ignore_index=True)[columns]
        write_text(path, table.to_csv(index=False, float_format="%.5g"))
        best = tables[-1].sort_values("test_acc", ascending=False).groupby("split", sort=False).head(3)
        print(best[columns].to_string(index=False), flush=True)
    write_json(path.with_suffix(".json"), provenance())
    print(path)
    return path


def main() -> None:
    """`python -m cri.studies.recipe_search`."""
    run_command(RecipeSearch, run, __doc__, presets=PRESETS, prog="python -m cri.studies.recipe_search")
