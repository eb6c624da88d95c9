"""What shape do numbers take inside, and what breaks in the hole?

`python -m cri.studies.representation_geometry [preset] [--option ...]` trains (or reuses) direct models of addition on
both splits, and asks of each: the spectrum of its number line, what can be read off its residual stream inside and
outside the square, the phase of its logits, what fills the hole (embeddings replaced, periodic components moved, the
prompt's end taken from a case with the same answer, neurons and heads knocked out), and, by training again, whether a
straighter number line shrinks it. A hand-built model whose code is known is asked the same.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cri.cli import run_command
from cri.studies.common.records import code_hash, recording
from cri.studies.representation_geometry.config import NAME, PRESETS, SPLITS, Geometry

if TYPE_CHECKING:
    import pandas as pd


def _train(config: Geometry) -> list[Path]:
    from cri.training.several import train_runs

    if config.use:
        return list(config.use)
    if not config.number_models:
        return []
    wanted = [config.run_config(split, seed) for split in SPLITS for seed in config.seeds]
    return train_runs(wanted, config.runs, jobs=config.jobs, device=config.device)


def _identity(config: Geometry, paths: list[Path]) -> dict[str, Any]:
    from cri.storage import read_json

    elsewhere = ("runs", "out", "name", "jobs", "device", "use", "use_written")
    return {
        "options": json.loads(json.dumps({k: v for k, v in asdict(config).items() if k not in elsewhere})),
        "runs": {path.name: read_json(path / "manifest.json")["identity"] for path in paths},
        "code": code_hash(f"{NAME}/*.py"),
    }


def _measure_run(path: Path, role: str, config: Geometry) -> dict[str, pd.DataFrame]:
    """Tables of one run, or of the model it started from, with columns that say which."""
    import torch

    from cri.geometry.subject import open_subject
    from cri.studies.representation_geometry.measures import from_run, measure
    from cri.training.runs import load_run
    from cri.training.setup import prepare

    torch.set_num_threads(1)
    run = load_run(path)
    made = prepare(run.config) if role == "untrained" else run
    subject = open_subject(made, half_side=config.half_side)
    tables = measure(subject, config) | from_run(made, subject, run.config.seed == config.seeds[0])
    named = {"run": run.path.name, "role": role, "split": run.config.split, "seed": run.config.seed}
    return {name: table.assign(**named) for name, table in tables.items()}


def _measure_all(paths: list[Path], config: Geometry) -> dict[str, pd.DataFrame]:
    import os

    import joblib
    import pandas as pd

    from cri.geometry.planted import HALF_SIDE, planted_subject
    from cri.studies.representation_geometry.measures import measure

    jobs: list[Any] = [joblib.delayed(_measure_run)(path, "trained", config) for path in paths]
    jobs += [joblib.delayed(_measure_run)(path, "untrained", config) for path in paths[:1]]
    found: Any = joblib.Parallel(n_jobs=config.jobs or os.cpu_count() or 1)(jobs)
    if config.planted:
        from dataclasses import replace

        small = replace(config, periods=(40, 20, 10), helix_periods=(40, 20, 10), smooth=(5, 10), half_side=HALF_SIDE)
        for gap in (True, False):
            named = {
                "run": "planted" if gap else "planted without a gap",
                "role": "planted",
                "split": "square",
                "seed": 0,
            }
            tables = measure(planted_subject(gap), small)
            found.append({name: table.assign(**named) for name, table in tables.items()})
    names = dict.fromkeys(name for tables in found for name in tables)
    return {name: pd.concat([t[name] for t in found if name in t], ignore_index=True) for name in names}


def _measure_written(path: Path, role: str, config: Geometry) -> dict[str, pd.DataFrame]:
    """Tables of one run that writes a token a digit, or of the model it started from."""
    import torch

    from cri.geometry.written import written_tables
    from cri.models.loading import to_bridge
    from cri.training.runs import load_run
    from cri.training.setup import prepare

    torch.set_num_threads(1)
    run = load_run(path)
    made = prepare(run.config) if role == "untrained" else run
    bridge = to_bridge(made.model, made.tokenizer)
    tables = written_tables(made, bridge, ("units", "tens"), config.half_side, every=config.every)
    named = {"run": run.path.name, "role": role, "split": run.config.split, "seed": run.config.seed,
             "format": run.config.format, "tokenizer": run.config.tokenizer}  # fmt: skip
    return {name: table.assign(**named) for name, table in tables.items()}


def _written(config: Geometry) -> tuple[list[Path], dict[str, pd.DataFrame]]:
    """Trains (or opens) the models that write a token a digit, and asks them; and of each format the first as it was
    before training."""
    import pandas as pd

    from cri.config import RunConfig
    from cri.storage import read_json
    from cri.training.several import train_runs

    wanted = [config.run_config(split, seed, family)
              for family in config.written for split in SPLITS for seed in config.written_seeds]  # fmt: skip
    used = [RunConfig.from_dict(read_json(path / "config.json")) for path in config.use_written]
    if not wanted and not used:
        return [], {}
    paths = train_runs(wanted, config.runs, jobs=config.jobs, device=config.device) if wanted else []
    paths, wanted = [*paths, *config.use_written], [*wanted, *used]
    found = [_measure_written(path, "trained", config) for path in paths]
    first = {run_config.format: path for run_config, path in reversed(list(zip(wanted, paths, strict=True)))}
    found += [_measure_written(path, "untrained", config) for path in first.values()]
    return paths, {name: pd.concat([t[name] for t in found], ignore_index=True) for name in found[0]}


def run(config: Geometry) -> list[Path]:
    """Makes runs, tables and figures, prints the summary, and returns the figures' paths.

    Tables made earlier by the same code from the same options and runs are reused.
    """
    from cri.storage import verify
    from cri.storage.compression import read_table
    from cri.studies.representation_geometry.figures import draw
    from cri.studies.representation_geometry.retraining import retrain
    from cri.studies.representation_geometry.tables import summarise

    started = time.perf_counter()
    folder = config.tables(NAME, config.name)
    with recording(folder, config.figures) as record:
        paths = _train(config)
        for path in (*paths, *config.use_written):
            verify(path)
        identity = _identity(config, [*paths, *config.use_written])
        if record.reusable(identity):
            figures = record.redraw(draw)
        else:
            tables = _measure_all(paths, config) | _written(config)[1]
            if config.arms:
                tables["arms"] = retrain(config, config.runs / NAME)
            tables["summary"] = summarise(tables)
            seconds = round(time.perf_counter() - started, 1)
            figures = record.write(tables, {"identity": identity, "seconds": seconds}, draw)
    summary = read_table(folder / "summary.csv")
    print(summary.to_string(index=False, float_format=lambda x: f"{x:.3f}"))
    print("\nTables", folder, "\nFigures", *figures, sep="\n  ")
    return figures


def main() -> None:
    """`python -m cri.studies.representation_geometry`."""
    run_command(Geometry, run, __doc__, presets=PRESETS, prog=f"python -m cri.studies.{NAME}")
