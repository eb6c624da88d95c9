"""Where does the model fail? Leave-Square-Out maps beside their random-split control.

Trains (or reuses) the runs of the chosen tasks, formats, splits and seeds, decodes the whole grid of
each, and records accuracy by case and by ring from the square's border inwards.
"""

from __future__ import annotations

from pathlib import Path

from cri.cli import run_command
from cri.config import RunConfig
from cri.errors import CriError
from cri.evaluation.scoring import STATUSES
from cri.storage.compression import read_table, stored
from cri.studies.lso_map.config import KEYS, NAME, PRESETS, LsoMapConfig


def run(config: LsoMapConfig) -> Path:
    """Trains what is missing, records the tables, draws the figures; returns the folder of tables."""
    import pandas as pd

    from cri.evaluation.scoring import value_errors
    from cri.storage import read_json
    from cri.studies.common.records import recording
    from cri.studies.lso_map.tables import (
        case_table,
        region_table,
        ring_table,
        run_row,
        sampled_accuracy,
        square_table,
        step_table,
    )
    from cri.tasks import make_task
    from cri.training.runs import load_predictions, load_run
    from cri.training.several import train_runs

    configs = used_configs(config) if config.use else list(config.run_configs())
    if not configs:
        raise CriError("tasks, formats, tokenizers, models, splits, seeds: give at least one of each")
    with recording(config.tables(NAME, config.name), config.figures) as record:
        paths = list(config.use) or train_runs(configs, config.runs, jobs=config.jobs, device=config.device)
        rows, parts = [], []
        for run_config, path in zip(configs, paths, strict=True):
            key = {k: getattr(run_config, k) for k in KEYS} | {"seed": run_config.seed, "run": path.name}
            table = load_predictions(path)
            task = make_task(run_config.task, **run_config.task_params)
            table = table.join(value_errors(task, table))
            if config.samples:
                table["sampled"] = sampled_accuracy(load_run(path), config.samples).to_numpy()
            parts.append(table.assign(**key))
            rows.append(run_row(table, read_json(path / "manifest.json")) | key)
        columns = [c for c in _RUN_COLUMNS if c in rows[0]]
        runs, cases = pd.DataFrame(rows)[columns], pd.concat(parts, ignore_index=True)
        tables = {
            "runs": runs,
            "cases": case_table(cases, configs),
            "rings": ring_table(cases, config.half_side, configs),
            "regions": region_table(cases, configs),
            "steps": step_table(cases, configs),
            "square": square_table(cases),
        }
        shape = {"name": config.name, "size": config.size, "half_side": config.half_side, "samples": config.samples}
        # empty where no format of this map writes steps
        figures = record.write({name: table for name, table in tables.items() if not table.empty}, shape, draw)
    print(runs.drop(columns=["run", "commit", "trained_on"]).to_string(index=False))
    print(*figures, sep="\n")
    return config.tables(NAME, config.name)


def used_configs(config: LsoMapConfig) -> list[RunConfig]:
    """The configs of the finished runs in `use`; raises `CriError` for a run on another grid, or with another square,
    than the figures would show, and for two runs of one map that differ in more than their seed."""
    from cri.training.listing import load_config

    found = []
    for path in config.use:
        run = load_config(path)
        size, half_side = run.task_params.get("size", 0), run.split_params.get("half_side", config.half_side)
        if (size, half_side) != (config.size, config.half_side):
            raise CriError(
                f"use: {path.name} has size {size} and half side {half_side}; "
                f"give --size {size} --half-side {half_side}"
            )
        for other, earlier in zip(config.use, found, strict=False):
            one_map = all(getattr(run, key) == getattr(earlier, key) for key in KEYS)
            if one_map and earlier.replace(seed=run.seed) != run:
                raise CriError(
                    f"use: {other.name} and {path.name} would be averaged in one map, but differ in more than their "
                    "seed; map each under a --name of its own"
                )
        found.append(run)
    return found


_RUN_COLUMNS = [
    *KEYS, "seed", "train_accuracy", "test_accuracy", "test_sampled", "n_train", "n_test", *STATUSES, "train_seconds",
    "trained_on", "commit", "run",
]  # fmt: skip


def draw(folder: Path, figures: Path) -> list[Path]:
    """The figures, from the recorded tables alone."""

    from cri.plots import style
    from cri.storage import read_json
    from cri.studies.lso_map.figures import draw_errors, draw_failures, draw_maps, draw_prediction, draw_rings

    manifest = read_json(folder / "manifest.json")
    cases = read_table(folder / "cases.csv", keep_default_na=False)
    with style():
        drawn = draw_maps(cases, manifest, figures) + draw_rings(read_table(folder / "rings.csv"), manifest, figures)
        drawn += draw_failures(cases, manifest, figures) + draw_errors(cases, manifest, figures)
        if stored(folder / "square.csv").exists():
            square, steps = (read_table(folder / f"{name}.csv") for name in ("square", "steps"))
            drawn += draw_prediction(square, cases, steps, manifest, figures)
        return drawn


def main() -> None:
    """`python -m cri.studies.lso_map`."""
    run_command(LsoMapConfig, run, __doc__, presets=PRESETS, prog=f"python -m cri.studies.{NAME}")
