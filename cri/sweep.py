"""Many runs from one command: tasks x formats x tokenizers x models x splits x seeds, as independent jobs.

Finished runs are skipped, interrupted ones resumed; failed ones are listed with their error, and tried
again when the command is run again. Jobs are processes of this machine, or tasks of a Ray cluster.

Examples:
  cri sweep --tasks addition mod_addition --seeds 0 1 2
  cri sweep --task-params size=30 --half-side 3 --dry-run
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cri.cli import run_command
from cri.config import RunConfig
from cri.errors import CriError
from cri.training.jobs import Backend, Workers, progress_bar
from cri.training.recipes import recipe

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class SweepConfig:
    """Which runs to make. Each is trained by its task's recipe unless `steps` says otherwise."""

    tasks: tuple[str, ...] = ("addition",)
    formats: tuple[str, ...] = ("direct",)
    tokenizers: tuple[str, ...] = ("number",)
    models: tuple[str, ...] = ("nano",)
    splits: tuple[str, ...] = ("square", "random")
    seeds: tuple[int, ...] = (0,)
    task_params: tuple[str, ...] = ()
    """KEY=VALUE ..., for every task."""
    half_side: int | None = None
    """Half side of the held-out square; the split's own where not given."""
    steps: int = 0
    """Training steps; 0 is the recipe's."""
    out: Path = Path("runs")
    """Folder of runs; the sweep's table is written there as `sweep.csv`."""
    backend: Backend = "processes"
    """`ray` hands the jobs to the Ray cluster that RAY_ADDRESS names, or to a local one; `out` must be a folder that
    all its machines share."""
    jobs: int = 0
    """Jobs at once, 1 for this process alone; 0 is one a core (with Ray: as many as the cluster takes)."""
    gpus_per_job: float = 0.0
    """With Ray: the share of a GPU that each job is given (0.25 puts four jobs on one)."""
    device: str = "auto"

    def run_configs(self) -> Iterator[RunConfig]:
        """One config a run, in the order of the table."""
        from cri.cli import key_values

        params = key_values("task_params", self.task_params)
        axes = (self.tasks, self.formats, self.tokenizers, self.models, self.splits, self.seeds)
        for task, fmt, tokenizer, model, split, seed in itertools.product(*axes):
            fields: dict[str, Any] = {"task_params": params, "split": split, "seed": seed}
            if split == "square" and self.half_side is not None:
                fields["split_params"] = {"half_side": self.half_side}
            if self.steps:
                fields["steps"] = self.steps
            yield recipe(task, fmt, tokenizer=tokenizer, model=model, **fields)


def described(error: Exception | None) -> str:
    """An error as one cell of the table; an unexpected one with its kind."""
    return "" if error is None else str(error) if isinstance(error, CriError) else f"{type(error).__name__}: {error}"


def sweep(
    configs: Sequence[RunConfig],
    out: Path = Path("runs"),
    *,
    backend: Backend = "processes",
    jobs: int = 0,
    gpus_per_job: float = 0.0,
    device: str = "auto",
) -> pd.DataFrame:
    """`train_run` for each config as independent jobs.

    Returns one row a config: `task, format, tokenizer, model, split, seed, status` (done, failed), `train_accuracy`,
    `test_accuracy`, `error, run` (the folder's name), also written to `sweep.csv` below `out`. The table does not
    depend on where the jobs run (`backend`, `jobs`, `gpus_per_job`, `device`: see `cri.training.jobs.Workers`).
    """
    import pandas as pd

    from cri.storage import read_json, require_replaceable, require_writable, run_folder, write_text
    from cri.training.several import train_each

    require_writable("out", out)
    require_replaceable(out / "sweep.csv", "out")
    bar = progress_bar(len(configs), f"{len(configs)} runs", "run")
    workers = Workers(backend, jobs, gpus_per_job, device)
    done = train_each(configs, out, workers, progress=False, on_done=lambda item: bar.update(1))
    bar.close()
    rows = []
    for config, outcome in zip(configs, done, strict=True):
        name = run_folder(out, config.name, config.to_dict()).name
        error = described(outcome.error)
        keys = ("task", "format", "tokenizer", "model", "split", "seed")
        accuracy = {} if error else read_json(out / name / "manifest.json")["accuracy"]
        rows.append(
            {
                **{key: getattr(config, key) for key in keys},
                "status": "failed" if error else "done",
                "train_accuracy": accuracy.get("train"),
                "test_accuracy": accuracy.get("test"),
                "error": error,
                "run": name,
            }
        )
    table = pd.DataFrame.from_records(rows)
    write_text(out / "sweep.csv", table.to_csv(index=False))
    return table


def run(config: SweepConfig) -> Path:
    """The whole command; raises `CriError` listing the runs that failed, after the others have finished."""
    from cri.models.device import resolve_device
    from cri.training.setup import check_steps

    configs = list(config.run_configs())
    if not configs:
        raise CriError("tasks, formats, tokenizers, models, splits, seeds: give at least one of each")
    for each in configs:  # what no machine of this kind can do; what a single run cannot is a row of the table
        check_steps(each.train)
    if config.backend == "processes":
        resolve_device(config.device)
    options = {"jobs": config.jobs, "gpus_per_job": config.gpus_per_job, "device": config.device}
    table = sweep(configs, config.out, backend=config.backend, **options)
    print(table.drop(columns=["error", "run"]).to_string(index=False))
    failed = table[table["status"] == "failed"]
    for name, error in zip(failed["run"], failed["error"], strict=True):
        print(f"failed: {name}: {error}")
    if len(failed):
        raise CriError(f"{len(failed)} of {len(table)} runs failed; run the same command again to try them again")
    path = config.out / "sweep.csv"
    print(path)
    return path


def main() -> None:
    """`python -m cri.sweep`."""
    run_command(SweepConfig, run, __doc__, prog="python -m cri.sweep")


if __name__ == "__main__":
    main()
