"""Which training cases does a prediction in the held-out square rest on?

`python -m cri.studies.neighbor_attribution [preset] [--option ...]` trains (or reuses) the square-split
and the random-split model, scores every training case for every held-out one by activation neighbours,
gradients and content baselines, compares groups of training cases with the controls beside them, and ends
with the verdict table and what it comes to in three sentences.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cri.attribution.methods import help_text, settings
from cri.cli import run_command
from cri.storage.compression import read_table, stored, tables_in
from cri.studies.common.records import code_hash, recording

if TYPE_CHECKING:
    import pandas as pd

from cri.studies.neighbor_attribution.config import NAME, PRESETS, NeighborAttribution


def _identity(config: NeighborAttribution, runs: list[Path]) -> dict[str, Any]:
    """What the tables depend on: options, weights and code; not where things lie or how many cores work."""
    from cri.storage import MARKER, file_sha256, read_json

    elsewhere = ("name", "runs", "out", "removal", "jobs", "device")
    options = {k: v for k, v in asdict(config).items() if k not in elsewhere}
    return {
        "options": json.loads(json.dumps(options)),
        "runs": {path.name: _weights(read_json(path / MARKER)["sha256"]) for path in runs},
        "removal": {
            p.name: file_sha256(p) for name, p in tables_in(config.removal).items() if name in ("groups", "doses")
        },
        "methods": settings(),
        "code": code_hash("neighbor_attribution/*.py"),
    }


def _weights(checksums: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in checksums.items() if name.endswith((".safetensors", ".csv"))}


def run(config: NeighborAttribution) -> list[Path]:
    """Makes runs, tables and figures, prints the verdict, and returns the figures' paths.

    Tables made earlier by the same code from the same options and runs are reused.
    """

    from cri.studies.neighbor_attribution.figures import draw
    from cri.studies.neighbor_attribution.summary import ending
    from cri.tasks import make_task
    from cri.training.runs import train_runs

    started = time.perf_counter()
    pairs = [[config.run_config(split, seed) for split in ("square", "random")] for seed in config.seeds]
    folder = config.tables(NAME, config.name)
    with recording(folder, config.figures) as record:
        paths = train_runs([c for pair in pairs for c in pair], config.runs, jobs=config.jobs, device=config.device)
        identity = _identity(config, paths)
        if record.reusable(identity):
            figures = record.redraw(draw)
        else:
            from cri.studies.neighbor_attribution.tables import compute

            task = make_task(config.task, **pairs[0][0].task_params)
            tables = compute(list(zip(paths[::2], paths[1::2], strict=True)), config)
            facts = {
                "identity": identity,
                "square": [*task.center, config.half_side],
                "axis_names": task.axis_names,
                "seconds": round(time.perf_counter() - started, 1),
            }
            figures = record.write(tables, facts, draw)
    for name, title in (("accuracy", "Accuracy"), ("overall", "Verdict (association, not causation)")):
        print(f"\n{title}\n{read_table(folder / f'{name}.csv').to_string(index=False)}")
    if stored(folder / "causal.csv").exists():
        print(f"\nEnrichment beside the measured effect\n{causal_text(read_table(folder / 'causal.csv'))}")
    print(f"\nEvidence\n{verdict_text(read_table(folder / 'verdicts.csv'))}")
    print(f"\nIn short\n{ending(folder, figures, config)}")
    return figures


def verdict_text(table: pd.DataFrame) -> str:
    """The verdict table for a terminal: each number with its interval."""
    shown = table[["method", "site", "n"]].copy()
    shown["site"] = shown["site"].str.removesuffix("@prompt_end")
    for name, title in (("near_excess", "near"), ("near_vs_random", "- random"), ("near_vs_untrained", "- untrained"),
                        ("step_excess", "step"), ("output_enrichment", "same answer")):  # fmt: skip
        digits = 1 if name == "output_enrichment" else 2
        columns = (table[name], table[f"{name}_low"], table[f"{name}_high"])
        shown[title] = [
            f"{x:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]" for x, low, high in zip(*columns, strict=True)
        ]
    return shown.assign(verdict=table["verdict"]).to_string(index=False)


def causal_text(table: pd.DataFrame) -> str:
    """Enrichment of each group by method, and in the first rows what its removal did and its cases' marginal effect."""
    groups = table.drop_duplicates("group").set_index("group")
    rows = {f"removed ({groups['n_removed'].mean():.0f} cases)": groups["effect"]}
    rows[f"worth of {groups['per'].iloc[0]:.0f} more"] = groups["worth"]
    for (method, site), part in table.groupby(["method", "site"], sort=False):
        rows[f"{method}, {site.partition('@')[0]}"] = part.set_index("group")["enrichment"]
    shown = type(table)(rows).T
    return shown.to_string(float_format=lambda x: f"{x:.2f}")


def main() -> None:
    """`python -m cri.studies.neighbor_attribution`."""
    run_command(
        NeighborAttribution, run, f"{__doc__}\n\n{help_text()}", presets=PRESETS, prog=f"python -m cri.studies.{NAME}"
    )
