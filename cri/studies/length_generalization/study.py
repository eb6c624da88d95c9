"""Trained on short numbers, how far does each format carry, and what do positions have to do with it?

Trains direct, scratchpad and rule-following models on numbers of one to five digits with the same number of examples,
and counts on longer ones how many whole texts come out right: rule following with plain, no, random and structured
positions, and with each part of the last left out. (Figure 5 of the paper has Llama-2-7B and GPT-3.5.)
"""

from __future__ import annotations

from pathlib import Path

from cri.cli import run_command
from cri.studies.length_generalization.config import NAME, PRESETS, LengthConfig


def run(config: LengthConfig) -> Path:
    """Trains what is missing, records the tables, draws the figure; returns the folder of tables."""
    import pandas as pd

    from cri.storage import read_json
    from cri.studies.common.records import recording
    from cri.studies.length_generalization.figures import draw
    from cri.studies.length_generalization.tables import length_tables, reach_table
    from cri.training.runs import load_run
    from cri.training.several import train_runs

    pairs = list(config.run_configs())
    with recording(config.tables(NAME, config.name), config.figures) as record:
        paths = train_runs([c for _, c in pairs], config.runs, jobs=config.jobs, device=config.device)
        parts: dict[str, list[pd.DataFrame]] = {"accuracy": [], "errors": [], "groups": []}
        runs = []
        for (variant, run_config), path in zip(pairs, paths, strict=True):
            opened = load_run(path)
            lengths = range(1, config.test_max + 1)
            tables = length_tables(variant, opened, lengths, config.cases, config.decoded)
            for name, table in tables.items():
                parts[name].append(table)
            manifest = read_json(path / "manifest.json")
            facts = {k: manifest.get(k) for k in ("train_seconds", "steps_timed", "trained_on", "commit")}
            runs.append({"variant": variant, "seed": run_config.seed, "run": path.name, **facts})
            print(tables["accuracy"].to_string(index=False), flush=True)
        joined = {name: pd.concat(tables, ignore_index=True) for name, tables in parts.items()}
        joined["reach"], joined["runs"] = reach_table(joined["accuracy"]), pd.DataFrame(runs)
        facts = {"name": config.name, "train_max": config.train_max, "cases": config.cases, "model": config.model}
        figures = record.write({name: table for name, table in joined.items() if not table.empty}, facts, draw)
    print(joined["reach"].to_string(index=False))
    print(*figures, sep="\n")
    return config.tables(NAME, config.name)


def main() -> None:
    """`python -m cri.studies.length_generalization`."""
    run_command(LengthConfig, run, __doc__, presets=PRESETS, prog=f"python -m cri.studies.{NAME}")
