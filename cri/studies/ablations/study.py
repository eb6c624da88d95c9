"""What does the hole depend on? The paper's ablations in one command.

Trains (or reuses) runs that differ from the main split in one thing: half side, place or shape of what is held out,
size of the grid, share of the cases that are trained on, size of the model. May be stopped and called again: finished
runs are kept.
"""

from __future__ import annotations

from pathlib import Path

from cri.cli import run_command
from cri.studies.ablations.config import NAME, PRESETS, Ablations


def run(config: Ablations) -> Path:
    """Trains what is missing, records the tables, draws the figure; returns the folder of tables."""
    import pandas as pd

    from cri.storage import config_hash, read_json
    from cri.studies.ablations.figures import draw
    from cri.studies.ablations.tables import by_condition, run_row
    from cri.studies.common.records import MANIFEST, recording
    from cri.training.runs import load_predictions
    from cri.training.several import train_runs

    points = list(config.run_configs())
    with recording(config.tables(NAME, config.name), config.figures) as record:
        distinct = {config_hash(run_config.to_dict()): run_config for _, run_config in points}
        trained = train_runs(list(distinct.values()), config.runs, jobs=config.jobs, device=config.device)
        paths = dict(zip(distinct, trained, strict=True))
        rows = []
        for condition, run_config in points:
            path = paths[config_hash(run_config.to_dict())]
            row = run_row(condition, run_config, load_predictions(path), read_json(path / MANIFEST))
            rows.append(row | {"run": path.name})
        runs = pd.DataFrame(rows)
        table = by_condition(runs)
        figures = record.write({"runs": runs, "conditions": table}, {"name": config.name}, draw)
    print(table.to_string(index=False, float_format="{:.3f}".format))
    print(*figures, sep="\n")
    return config.tables(NAME, config.name)


def main() -> None:
    """`python -m cri.studies.ablations`."""
    run_command(Ablations, run, __doc__, presets=PRESETS, prog=f"python -m cri.studies.{NAME}")
