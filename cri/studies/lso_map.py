"""Where does the model fail? Leave-Square-Out maps beside their random-split control.

Trains (or reuses) the runs of the chosen tasks, formats, splits and seeds, decodes the whole grid of
each, and records accuracy by case and by ring from the square's border inwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cri.cli import run_command
from cri.config import RunConfig
from cri.errors import CriError
from cri.recipes import recipe
from cri.tasks import TASKS, make_task

if TYPE_CHECKING:
    import pandas as pd

KEYS = ["task", "format", "tokenizer", "model", "split"]
"""What tells one map from another; seeds are averaged within a map."""


@dataclass(frozen=True)
class LsoMapConfig:
    """Which runs to map. Each is trained by its task's recipe unless `steps` says otherwise."""

    tasks: tuple[str, ...] = ("addition",)
    formats: tuple[str, ...] = ("direct",)
    tokenizers: tuple[str, ...] = ("number",)
    models: tuple[str, ...] = ("nano",)
    splits: tuple[str, ...] = ("square", "random")
    seeds: tuple[int, ...] = (0,)
    size: int = 0
    """Grid size; 0 is the paper's."""
    half_side: int = 10
    """Half side of the held-out square."""
    steps: int = 0
    """Training steps; 0 is the recipe's."""
    name: str = "demo"
    """Names the folder of tables and the figures."""
    runs: Path = Path("runs")
    """Folder of trained runs."""
    record: Path = Path("studies/lso_map")
    """Folder of recorded tables."""
    figures: Path = Path("figures")
    jobs: int = 0
    """Runs trained at once on CPU; 0 is one a core."""
    device: str = "auto"

    def run_configs(self) -> Iterator[RunConfig]:
        """One config a run, in the order of the tables."""
        for task in self.tasks:
            for fmt in self.formats:
                for tokenizer in self.tokenizers:
                    for model in self.models:
                        for split in self.splits:
                            for seed in self.seeds:
                                yield self._run_config(task, fmt, tokenizer, model, split, seed)

    def _run_config(self, task: str, fmt: str, tokenizer: str, model: str, split: str, seed: int) -> RunConfig:
        config = recipe(task, fmt, tokenizer=tokenizer, model=model, split=split, seed=seed)
        if self.size:
            config = config.replace(task_params={"size": self.size})
        if split == "square" and self.half_side != 10:
            config = config.replace(split_params={"half_side": self.half_side})
        return config.replace(steps=self.steps) if self.steps else config


PRESETS: dict[str, LsoMapConfig] = {
    "demo": LsoMapConfig(),
    "tasks": LsoMapConfig(tasks=tuple(TASKS), seeds=(0, 1, 2), name="tasks"),
    "test": LsoMapConfig(size=24, half_side=3, steps=150, name="test"),
}


def run(config: LsoMapConfig) -> Path:
    """Trains what is missing, records the tables, draws the figures; returns the folder of tables."""
    from cri.runs import provenance, read_json, write_json, write_text
    from cri.train import load_predictions, train_runs

    configs = list(config.run_configs())
    if not configs:
        raise CriError("tasks, formats, splits, seeds: give at least one of each")
    paths = train_runs(configs, config.runs, jobs=config.jobs, device=config.device)
    folder = config.record / config.name
    per_run, tables = [], []
    for run_config, path in zip(configs, paths, strict=True):
        table = load_predictions(path)
        manifest = read_json(path / "manifest.json")
        key = {k: getattr(run_config, k) for k in KEYS}
        tables.append(table.assign(**key, run=path.name, seed=run_config.seed))
        per_run.append(run_row(table, manifest) | key | {"seed": run_config.seed, "run": path.name})
    import pandas as pd

    cases = pd.concat(tables, ignore_index=True)
    write_text(folder / "runs.csv", pd.DataFrame(per_run)[_RUN_COLUMNS].to_csv(index=False))
    write_text(folder / "cases.csv", case_table(cases).to_csv(index=False))
    write_text(folder / "rings.csv", ring_table(cases, config.half_side, configs).to_csv(index=False))
    write_json(
        folder / "config.json",
        dataclasses.asdict(config)
        | {"runs": str(config.runs)}
        | {"record": str(config.record), "figures": str(config.figures)},
    )
    write_json(folder / "provenance.json", provenance())
    print(pd.DataFrame(per_run)[_RUN_COLUMNS].drop(columns="run").to_string(index=False))
    for figure in draw(folder, config.figures):
        print(figure)
    return folder


_RUN_COLUMNS = [
    *KEYS, "seed", "train_accuracy", "test_accuracy", "n_train", "n_test", "right", "wrong", "truncated", "malformed",
    "train_seconds", "trained_on", "run",
]  # fmt: skip


def run_row(table: pd.DataFrame, manifest: dict) -> dict[str, object]:
    """One run's accuracies and counts of held-out cases by status."""
    test = table[~table["train"]]
    statuses = test["status"].value_counts()
    return {
        "train_accuracy": round(float(table.loc[table["train"], "correct"].mean()), 4),
        "test_accuracy": round(float(test["correct"].mean()), 4),
        "n_train": int(table["train"].sum()),
        "n_test": len(test),
        **{status: int(statuses.get(status, 0)) for status in ("right", "wrong", "truncated", "malformed")},
        "train_seconds": manifest["train_seconds"],
        "trained_on": manifest["trained_on"],
    }


def case_table(cases: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of every case over seeds, one row a map and case."""
    grouped = cases.groupby([*KEYS, "id", "row", "col", "train"], sort=False)["correct"]
    return grouped.agg(accuracy="mean", n_seeds="size").reset_index()


def ring_table(cases: pd.DataFrame, half_side: int, configs: list[RunConfig]) -> pd.DataFrame:
    """Accuracy by ring of the square (`statistics.ring_accuracy`); of the random split, of held-out cases."""
    import pandas as pd

    from cri.statistics import ring_accuracy

    tasks = {c.task: make_task(c.task, **c.task_params) for c in configs}
    rows = []
    for key, part in cases.groupby(KEYS, sort=False):
        named = dict(zip(KEYS, key, strict=True))  # pyright: ignore[reportArgumentType]
        shown = part if named["split"] == "square" else part[~part["train"]]
        rings = ring_accuracy(shown, (*tasks[named["task"]].center, half_side))
        rows.append(rings.assign(**named))
    return pd.concat(rows, ignore_index=True)[[*KEYS, *[c for c in rows[0].columns if c not in KEYS]]]


def draw(folder: Path, figures: Path) -> list[Path]:
    """The figures, from the recorded tables alone."""
    import pandas as pd

    from cri.plots import style
    from cri.runs import read_json

    config = read_json(folder / "config.json")
    cases, rings = pd.read_csv(folder / "cases.csv"), pd.read_csv(folder / "rings.csv")
    half = config["half_side"]
    with style():
        return [*_draw_maps(cases, half, config, figures), *_draw_rings(rings, config, figures)]


def _draw_maps(cases: pd.DataFrame, half_side: int, config: dict, figures: Path) -> list[Path]:
    from cri import plots

    columns = list(cases.groupby([k for k in KEYS if k != "split"], sort=False))
    splits = list(dict.fromkeys(cases["split"]))
    fig, axes = plots.figure(len(splits), len(columns), size=(2.5, 2.3))
    for j, (key, part) in enumerate(columns):
        named = dict(zip([k for k in KEYS if k != "split"], key, strict=True))  # pyright: ignore[reportArgumentType]
        task = make_task(named["task"], **({"size": config["size"]} if config["size"] else {}))
        for i, split in enumerate(splits):
            table, ax = part[part["split"] == split], axes[i, j]
            if table.empty:
                ax.set_axis_off()
                continue
            squares = [(*task.center, half_side)] if split == "square" else []
            plots.accuracy_map(
                table, ax, value="accuracy", squares=squares, axis_names=task.axis_names, colorbar=j == len(columns) - 1
            )
            held_out = table.loc[~table["train"], "accuracy"].mean()
            what = [named["task"]] + [named[k] for k in ("format", "tokenizer", "model") if cases[k].nunique() > 1]
            ax.set_title(f"{', '.join(what)}\n{split} split: held out {held_out:.2f}, n = {table['n_seeds'].max()}")
    return plots.save_figure(fig, figures / f"lso_map_{config['name']}")


def _draw_rings(rings: pd.DataFrame, config: dict, figures: Path) -> list[Path]:
    from cri import plots

    varying = [k for k in ("format", "tokenizer", "model") if rings[k].nunique() > 1]
    panels = list(rings.groupby(varying, sort=False)) if varying else [((), rings)]
    fig, axes = plots.figure(1, len(panels), size=(3.6, 3.0))
    for ax, (names, part) in zip(axes[0], panels, strict=True):
        plots.ring_accuracy(part, ax)
        ax.set_title(", ".join(map(str, names)))
    return plots.save_figure(fig, figures / f"lso_rings_{config['name']}")


def main() -> None:
    """`python -m cri.studies.lso_map`."""
    run_command(LsoMapConfig, run, __doc__, presets=PRESETS, prog="python -m cri.studies.lso_map")


if __name__ == "__main__":
    main()
