"""Which training cases does a prediction in the held-out square rest on?

`python -m cri.studies.neighbor_attribution [preset] [--option ...]` trains (or reuses, or is given by `--use`) the
square-split and the random-split model, scores every training case for every held-out one by activation neighbours,
gradients and content baselines, compares groups of training cases with the controls beside them, and ends
with the verdict table and what it comes to in three sentences.
"""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cri.attribution.methods import help_text, settings
from cri.cli import run_command
from cri.config import RunConfig
from cri.errors import CriError, unknown_name
from cri.storage.compression import read_table, stored, tables_in
from cri.studies.common.records import code_hash, recording

if TYPE_CHECKING:
    import pandas as pd

from cri.studies.neighbor_attribution.config import NAME, PRESETS, SPLITS, NeighborAttribution

_ALIKE = (
    "task", "task_params", "format", "tokenizer", "model", "lora", "lora_params", "last_layers", "positions",
    "position_params",
)  # fmt: skip
"""What the runs given must have in common."""


def used(config: NeighborAttribution) -> tuple[NeighborAttribution, list[Path]]:
    """The settings with task, sizes and seeds of the finished runs in `use`, and these: of each seed the square split,
    then the random one. Raises `CriError` where they are not such pairs, or cannot be compared."""
    from cri.training.listing import load_config

    found: dict[tuple[int, str], tuple[Path, RunConfig]] = {}
    for path in config.use:
        run = load_config(path)
        if run.split not in SPLITS:
            raise unknown_name(f"use: split of {path.name}", run.split, SPLITS)
        if run.decoded:
            raise CriError(f"use: {path.name} has answers to a sample of its cases alone (decoded={run.decoded})")
        key = (run.seed, run.split)
        if key in found:
            both = f"{found[key][0].name} and {path.name}"
            raise CriError(f"use: {both} are both of the {run.split} split, seed {run.seed}")
        found[key] = path, run
    first_path, first = next(iter(found.values()))
    for path, run in found.values():
        for name in _ALIKE:
            if getattr(run, name) != getattr(first, name):
                raise CriError(
                    f"use: {first_path.name} and {path.name} differ in {name} ({getattr(first, name)} and "
                    f"{getattr(run, name)}); must differ in split and seed alone"
                )
    seeds = sorted({seed for seed, _ in found})
    for seed in seeds:
        for split in SPLITS:
            if (seed, split) not in found:
                raise CriError(f"use: no run of the {split} split with seed {seed}; the two are compared, so give both")
    half_side = _half_side([found[seed, "square"] for seed in seeds])
    shape = {"task": first.task, "format": first.format, "tokenizer": first.tokenizer, "model": first.model}
    own = dataclasses.replace(
        config, **shape, seeds=tuple(seeds), size=first.task_params.get("size", 0), half_side=half_side, steps=0
    )
    return own, [found[seed, split][0] for seed in seeds for split in SPLITS]


def _half_side(squares: list[tuple[Path, RunConfig]]) -> int:
    """Of the square that all these runs hold out, which must lie at their task's centre."""
    from cri.storage import read_json
    from cri.tasks import make_task

    _, first = squares[0]
    centre = list(make_task(first.task, **first.task_params).center)
    infos = [read_json(path / "split.json") for path, _ in squares]
    for (path, _), info in zip(squares, infos, strict=True):
        if info["center"] != centre or info["half_side"] != infos[0]["half_side"]:
            raise CriError(
                f"use: {path.name} holds out the square at {info['center']} with half side {info['half_side']}; must "
                f"be at {centre}, the task's centre, and as large in all runs"
            )
    return infos[0]["half_side"]


def _identity(config: NeighborAttribution, runs: list[Path]) -> dict[str, Any]:
    """What the tables depend on: options, weights and code; not where things lie or how many cores work."""
    from cri.storage import MARKER, file_sha256, read_json

    elsewhere = ("name", "runs", "use", "out", "removal", "jobs", "device")
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
    from cri.training.several import train_runs

    started = time.perf_counter()
    folder = config.tables(NAME, config.name)
    with recording(folder, config.figures) as record:
        if config.use:
            config, paths = used(config)
        else:
            wanted = [config.run_config(split, seed) for seed in config.seeds for split in SPLITS]
            paths = train_runs(wanted, config.runs, jobs=config.jobs, device=config.device)
        identity = _identity(config, paths)
        if record.reusable(identity):
            figures = record.redraw(draw)
        else:
            from cri.studies.neighbor_attribution.tables import compute

            tables, facts = compute(list(zip(paths[::2], paths[1::2], strict=True)), config)
            seconds = round(time.perf_counter() - started, 1)
            figures = record.write(tables, {"identity": identity, **facts, "seconds": seconds}, draw)
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
    rows[f"gain by {groups['per'].iloc[0]:.0f} more"] = groups["gain"]
    for (method, site), part in table.groupby(["method", "site"], sort=False):
        rows[f"{method}, {site.partition('@')[0]}"] = part.set_index("group")["enrichment"]
    shown = type(table)(rows).T
    return shown.to_string(float_format=lambda x: f"{x:.2f}")


def main() -> None:
    """`python -m cri.studies.neighbor_attribution`."""
    run_command(
        NeighborAttribution, run, f"{__doc__}\n\n{help_text()}", presets=PRESETS, prog=f"python -m cri.studies.{NAME}"
    )
