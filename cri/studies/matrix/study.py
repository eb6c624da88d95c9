"""All tasks, formats and splits beside each other: what is learnt, and what each answer and step rests on.

`python -m cri.studies.matrix [preset] [--option ...]` trains the cells that are missing, one after the other, makes the
rows of each as soon as it is trained, and draws one figure. It may be stopped and called again: trained cells and
finished rows are kept, and cells that are not trained are marked "not yet run".
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cri.cli import run_command
from cri.studies.common.records import MANIFEST, recording
from cri.studies.matrix.config import CONTROL, LEARNT, NAME, PRESETS, Cell, Matrix

if TYPE_CHECKING:
    import pandas as pd

ROWS = ("accuracy", "attribution", "controls", "edits", "interchange")
_MEASURED = ("k", "n_train_units", "n_test_units", "n_edited", "n_pairs", "n_boot")
"""Options on which a cell's rows depend."""


def _cell_folder(config: Matrix, cell: Cell, seed: int) -> Path:
    return config.tables(NAME, f"{config.name}-cells") / f"{cell.name}-s{seed}"


def run_path(config: Matrix, cell: Cell, seed: int) -> Path:
    """Where the trained cell lies, or would."""
    from cri.storage import run_folder

    run_config = config.run_config(cell, seed)
    return run_folder(config.runs, run_config.name, run_config.to_dict())


def _identity(config: Matrix, path: Path) -> dict[str, Any]:
    from cri.storage import MARKER, read_json

    checksums = read_json(path / MARKER)["sha256"]
    weights = {name: value for name, value in checksums.items() if name.endswith((".safetensors", ".csv"))}
    options = {name: getattr(config, name) for name in _MEASURED}
    return {"options": json.loads(json.dumps(options)), "run": path.name, "weights": weights}


def make_rows(config: Matrix, cell: Cell, seed: int, path: Path) -> bool:
    """Records the rows of one trained cell unless they are there; returns whether they were made."""
    with recording(_cell_folder(config, cell, seed)) as record:
        identity = _identity(config, path)
        if record.reusable(identity):
            return False

        from cri.studies.matrix import tables
        from cri.training.runs import load_run

        run = load_run(path)
        made = {"accuracy": _accuracy(config, cell, seed, path)}
        if cell.format in ("scratchpad", CONTROL) and cell.task == "addition" and cell.split == "square":
            made["controls"] = tables.control_rows(run, config)
        if cell.format != CONTROL:
            made["attribution"] = tables.attribution_rows(run, config)
        if cell.format != "direct":
            made["edits"] = tables.edit_rows(run, config)
            made["interchange"] = tables.interchange_rows(run, config)
        record.write({name: table for name, table in made.items() if len(table)}, {"identity": identity})
    return True


def _accuracy(config: Matrix, cell: Cell, seed: int, path: Path) -> pd.DataFrame:
    import pandas as pd

    from cri.storage import read_json
    from cri.studies.matrix.tables import accuracy_row
    from cri.training.runs import load_predictions

    row = accuracy_row(load_predictions(path), config.run_config(cell, seed), read_json(path / MANIFEST), path.name)
    return pd.DataFrame([row])


def _recorded(config: Matrix) -> dict[str, pd.DataFrame]:
    """The rows of all cells, one table a kind; a cell that is not trained is `not yet run` in the accuracy table, one
    that is trained and has no rows has its accuracy alone."""
    import pandas as pd

    from cri.storage import is_complete

    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in ROWS}
    for cell, seed in _jobs(config):
        key = {"task": cell.task, "format": cell.format, "split": cell.split, "seed": seed}
        folder = _cell_folder(config, cell, seed)
        if not is_complete(folder):
            path = run_path(config, cell, seed)
            table = _accuracy(config, cell, seed, path) if is_complete(path) else pd.DataFrame([{}])
            parts["accuracy"].append(table.assign(state=_state(table), **key))
            continue
        for name in ROWS:
            if (folder / f"{name}.csv").exists():
                table = pd.read_csv(folder / f"{name}.csv", keep_default_na=name != "edits")
                if name == "accuracy":
                    table["state"] = _state(table)
                parts[name].append(table.assign(**key)[[*key, *(c for c in table.columns if c not in key)]])
    return {name: pd.concat(found, ignore_index=True) for name, found in parts.items() if found}


def _state(accuracy: pd.DataFrame) -> str:
    if "train_accuracy" not in accuracy:
        return "not yet run"
    return "learnt" if float(accuracy["train_accuracy"].iloc[0]) >= LEARNT else "not learnt"


def _jobs(config: Matrix) -> list[tuple[Cell, int]]:
    """Cells with their seeds; of the control the first alone."""
    return [
        (cell, seed)
        for cell in config.cells()
        for seed in (config.seeds if cell.format != CONTROL else config.seeds[:1])
    ]


def run(config: Matrix) -> list[Path]:
    """Trains, measures, records and draws what is missing; returns the figure's files."""
    from cri.studies.matrix.figures import draw
    from cri.studies.matrix.summary import summary
    from cri.training.runs import train_run
    from cri.training.several import train_runs

    folder = config.tables(NAME, config.name)
    if config.stage == "train":
        wanted = [config.run_config(cell, seed) for cell, seed in _jobs(config)]
        train_runs(wanted, config.runs, jobs=config.jobs, device=config.device)
        return []
    for cell, seed in _jobs(config) if config.stage in ("all", "rows") else ():
        path = run_path(config, cell, seed)
        if config.stage == "all":
            path = train_run(config.run_config(cell, seed), config.runs, device=config.device)
        elif not _trained(path):
            print(f"{cell.name}, seed {seed}: not yet run")
            continue
        made = make_rows(config, cell, seed, path)
        print(f"{cell.name}, seed {seed}: rows {'made' if made else 'kept'}", flush=True)
    if config.stage == "figures":
        return _report(folder, draw(folder, config.figures))
    with recording(folder, config.figures) as record:
        found = _recorded(config)
        options = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items() if k != "stage"}
        facts = {"options": json.loads(json.dumps(options))}
        figures = record.write({**found, "matrix": summary(found, config)}, facts, draw)
    return _report(folder, figures)


def _trained(path: Path) -> bool:
    from cri.storage import is_complete

    return is_complete(path)


def _report(folder: Path, figures: list[Path]) -> list[Path]:
    import pandas as pd

    table = pd.read_csv(folder / "matrix.csv")
    shown = ["task", "format", "split", "seed", "state", "train_accuracy", "test_accuracy", "difference",
             "difference_low", "difference_high", "follows", "returns", "verdict"]  # fmt: skip
    print(table[[c for c in shown if c in table]].to_string(index=False, float_format="{:.2f}".format))
    print("\nTables", folder, "\nFigures", *figures, sep="\n  ")
    return figures


def main() -> None:
    """`python -m cri.studies.matrix`."""
    run_command(Matrix, run, __doc__, presets=PRESETS, prog=f"python -m cri.studies.{NAME}")
