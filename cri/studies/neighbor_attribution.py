"""Which training cases does a prediction in the held-out square rest on?

`python -m cri.studies.neighbor_attribution [preset] [--option ...]` trains (or reuses) the square-split
and the random-split model, scores every training case for every held-out one by activation neighbours,
gradients and content baselines, compares groups of training cases with the controls beside them, and ends
with the verdict table and the list of figures.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cri.cli import key_values, run_command
from cri.config import RunConfig, TrainConfig
from cri.errors import out_of_range, unknown_name

if TYPE_CHECKING:
    import pandas as pd

NAME = "neighbor_attribution"
MANIFEST = "manifest.json"
METRICS = ("cosine", "euclidean", "whitened_cosine")


@dataclass(frozen=True)
class NeighborAttribution:
    """Runs to compare, and how."""

    task: str = "addition"
    task_params: tuple[str, ...] = ()
    """KEY=VALUE ..., for example size=30; the paper's values where not given."""
    format: str = "direct"
    tokenizer: str = "number"
    model: str = "nano"
    half_side: int = 10
    """Half side of the held-out square at the task's centre."""
    seeds: tuple[int, ...] = (0,)
    """One square-split and one random-split run each."""
    steps: int = 4000
    batch_size: int = 256
    lr: float = 3e-3
    k: int = 10
    """Neighbours that count as nearest."""
    metrics: tuple[str, ...] = ("cosine", "euclidean")
    """Of cosine, euclidean, whitened_cosine. The verdict's primary rows need cosine."""
    n_boot: int = 2000
    """Bootstrap samples."""
    runs: Path = Path("runs")
    """Folder of runs."""
    out: Path = Path("studies/neighbor_attribution/cpu")
    """Folder of the tables."""
    figures: Path = Path("figures")
    jobs: int = 0
    """Runs trained at a time; 0 for one a core."""
    device: str = "auto"

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise out_of_range("seeds", self.seeds, "one or more different whole numbers")
        if self.k < 1:
            raise out_of_range("k", self.k, "at least 1")
        if self.n_boot < 100:
            raise out_of_range("n_boot", self.n_boot, "at least 100")
        for metric in self.metrics:
            if metric not in METRICS:
                raise unknown_name("metrics", metric, METRICS)

    def run_config(self, split: str, seed: int) -> RunConfig:
        """The run of one split and seed."""
        train = TrainConfig(steps=self.steps, batch_size=self.batch_size, lr=self.lr, seed=seed)
        return RunConfig(
            task=self.task, task_params=key_values("task_params", self.task_params), format=self.format, split=split,
            split_params={"half_side": self.half_side} if split == "square" else {}, tokenizer=self.tokenizer,
            model=self.model, train=train,
        )  # fmt: skip


_RECORDS = Path("studies") / NAME
PRESETS = {
    "cpu": NeighborAttribution(out=_RECORDS / "cpu"),
    "test": NeighborAttribution(
        task_params=("size=24",), half_side=4, steps=150, batch_size=64, k=5, n_boot=200, out=_RECORDS / "test"
    ),
    "full": NeighborAttribution(model="mini", seeds=(0, 1, 2), steps=6000, lr=1e-3, out=_RECORDS / "full"),
}


def _identity(config: NeighborAttribution, runs: list[Path]) -> dict[str, Any]:
    """What the tables depend on: options, runs and code; not where things lie or how many cores work."""
    from cri.runs import file_sha256, read_json

    options = {k: v for k, v in asdict(config).items() if k not in ("runs", "out", "figures", "jobs", "device")}
    package = Path(__file__).parents[1]
    code = {str(f.relative_to(package)): file_sha256(f) for f in sorted(package.rglob("*.py")) if "plots" not in f.parts}
    return {
        "options": json.loads(json.dumps(options)),
        "runs": {path.name: read_json(path / "manifest.json")["identity"] for path in runs},
        "code": hashlib.sha256(json.dumps(code, sort_keys=True).encode()).hexdigest()[:16],
    }


def _reusable(folder: Path, identity: dict[str, Any]) -> bool:
    from cri.runs import is_complete, read_json, verify

    if not is_complete(folder):
        return False
    verify(folder)
    return read_json(folder / MANIFEST)["identity"] == identity


def run(config: NeighborAttribution) -> list[Path]:
    """Makes runs, tables and figures, prints the verdict, and returns the figures' paths.

    Tables made earlier by the same code from the same options and runs are reused.
    """
    import pandas as pd

    from cri.runs import MARKER, locked, mark_complete, provenance, write_json, write_text
    from cri.studies.neighbor_figures import draw
    from cri.tasks import make_task
    from cri.train import train_runs

    started = time.perf_counter()
    pairs = [[config.run_config(split, seed) for split in ("square", "random")] for seed in config.seeds]
    paths = train_runs([c for pair in pairs for c in pair], config.runs, jobs=config.jobs, device=config.device)
    with locked(config.out):
        identity = _identity(config, paths)
        if not _reusable(config.out, identity):
            from cri.studies.neighbor_tables import compute

            (config.out / MARKER).unlink(missing_ok=True)
            task = make_task(config.task, **pairs[0][0].task_params)
            tables = compute(list(zip(paths[::2], paths[1::2], strict=True)), config)
            for name, table in tables.items():
                write_text(config.out / f"{name}.csv", table.to_csv(index=False, float_format="%.5g"))
            manifest = {
                "identity": identity,
                "square": [*task.center, config.half_side],
                "axis_names": task.axis_names,
                "seconds": round(time.perf_counter() - started, 1),
                **provenance(),
            }
            write_json(config.out / MANIFEST, manifest)
            mark_complete(config.out, [MANIFEST, *(f"{name}.csv" for name in tables)])
    figures = draw(config.out, config.figures)
    for name, title in (("accuracy", "Accuracy"), ("overall", "Verdict (association, not causation)")):
        print(f"\n{title}\n{pd.read_csv(config.out / f'{name}.csv').to_string(index=False)}")
    print(f"\nEvidence\n{verdict_text(pd.read_csv(config.out / 'verdicts.csv'))}")
    print("\nTables", config.out, "\nFigures", *figures, sep="\n  ")
    return figures


def verdict_text(table: pd.DataFrame) -> str:
    """The verdict table for a terminal: each number with its interval."""
    shown = table[["method", "site", "n"]].copy()
    shown["site"] = shown["site"].str.removesuffix("@prompt_end")
    for name, title in (("near_auc", "near"), ("near_vs_random", "- random"), ("near_vs_untrained", "- untrained"),
                        ("step_auc", "step"), ("output_enrichment", "same answer")):  # fmt: skip
        digits = 1 if name == "output_enrichment" else 2
        columns = (table[name], table[f"{name}_low"], table[f"{name}_high"])
        shown[title] = [f"{x:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]" for x, low, high in zip(*columns, strict=True)]
    return shown.assign(verdict=table["verdict"]).to_string(index=False)


def main() -> None:
    """`python -m cri.studies.neighbor_attribution`."""
    run_command(NeighborAttribution, run, __doc__, presets=PRESETS, prog=f"python -m cri.studies.{NAME}")


if __name__ == "__main__":
    main()
