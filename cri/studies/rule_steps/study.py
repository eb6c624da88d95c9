"""Does the model execute the steps that it writes?

`python -m cri.studies.rule_steps [preset] [--option ...]` trains (or reuses) the models and their
shuffled-trace control, then intervenes: one element of a trace is edited and the model writes on; the
rule in the prompt is edited; activations are exchanged between cases that differ in one rule variable;
attention from a step is cut; probes of the direct format are swapped. It ends with the verdict table.
"""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cri.cli import run_command
from cri.config import RunConfig
from cri.errors import CriError, unknown_name
from cri.storage.compression import read_table, stored, tables_in
from cri.studies.common.records import MANIFEST, code_hash, recording
from cri.studies.rule_steps.config import CONTROL, FORMATS, NAME, PRESETS, RuleSteps, Subject


def _train(config: RuleSteps) -> tuple[list[Path], list[Path]]:
    """Folders of the runs to intervene on, and of the shuffled-trace controls."""
    from cri.training.several import train_runs

    if config.use or config.use_control:
        return list(config.use), list(config.use_control)
    subjects = [Subject.parse(text) for text in config.subjects]
    if not subjects:
        raise CriError("subjects: give at least one")
    wanted = [config.run_config(s.family, seed) for s in subjects for seed in s.seeds]
    scratchpads = dict.fromkeys(s.family for s in subjects if s.family.format == "scratchpad")
    shuffled = [dataclasses.replace(family, format=CONTROL) for family in scratchpads]
    controls = [config.run_config(family, 0) for family in shuffled] if config.control else []
    paths = train_runs([*wanted, *controls], config.runs, jobs=config.jobs, device=config.device)
    return paths[: len(wanted)], paths[len(wanted) :]


def check_formats(runs: list[RunConfig], controls: list[RunConfig]) -> None:
    """Raises `CriError` where a run's format cannot be studied, or a control fits none of the runs."""
    if not runs:
        raise CriError("use: give at least one finished run")
    for run in runs:
        if run.format not in FORMATS:
            raise unknown_name(f"use: format of {run.name}", run.format, FORMATS)
    fields = ("task", "task_params", "tokenizer", "split", "split_params", "model")
    scratchpads = [[getattr(run, f) for f in fields] for run in runs if run.format == "scratchpad"]
    for control in controls:
        if control.format != CONTROL:
            raise CriError(f"use_control: {control.name} has the format {control.format}; must be {CONTROL}")
        if [getattr(control, f) for f in fields] not in scratchpads:
            raise CriError(
                f"use_control: {control.name} matches no scratchpad run in {', '.join(fields)}; runs: "
                + ", ".join(run.name for run in runs)
            )


def removal_tables(folder: Path, runs: list[RunConfig]) -> list[Path]:
    """Tables below `folder` that `counterfactual_removal` made of models on the same grid with the same square as all
    these runs: in others a case id means another case."""
    from cri.storage import read_json

    shapes = [
        {"model": run.model, "size": run.task_params.get("size", 0), "half_side": run.split_params.get("half_side", 10)}
        for run in runs
    ]
    made = [path for path in sorted(folder.rglob(MANIFEST)) if all(read_json(path).get("models") == s for s in shapes)]
    return [table for path in made for table in tables_in(path.parent).values()]


def _identity(config: RuleSteps, paths: list[Path], removal: list[Path]) -> dict[str, Any]:
    """What the tables depend on: options, runs, removal tables and code."""
    from cri.storage import file_sha256, read_json

    elsewhere = ("runs", "out", "name", "jobs", "device", "removal", "use", "use_control")
    return {
        "options": json.loads(json.dumps({k: v for k, v in asdict(config).items() if k not in elsewhere})),
        "runs": {path.name: read_json(path / "manifest.json")["identity"] for path in paths},
        "removal": {path.name: file_sha256(path) for path in removal},
        "code": code_hash("rule_steps/*.py"),
    }


def run(config: RuleSteps) -> list[Path]:
    """Makes runs, tables and figures, prints the verdict, and returns the figures' paths.

    Tables made earlier by the same code from the same options and runs are reused.
    """

    from cri.storage import read_json
    from cri.studies.rule_steps.figures import draw
    from cri.training.listing import load_config

    started = time.perf_counter()
    folder = config.tables(NAME, config.name)
    with recording(folder, config.figures) as record:
        paths, controls = _train(config)
        configs = [[load_config(path) for path in group] for group in (paths, controls)]
        check_formats(*configs)
        removal = removal_tables(config.removal, configs[0])
        identity = _identity(config, [*paths, *controls], removal)
        if record.reusable(identity):
            figures = record.redraw(draw)
        else:
            from cri.studies.rule_steps.tables import compute

            tables, facts = compute(paths, controls, removal, config)
            manifest = {"identity": identity, **facts, "seconds": round(time.perf_counter() - started, 1)}
            figures = record.write(tables, manifest, draw)
    facts = read_json(folder / MANIFEST)
    for name, title in (("follow", "Edits followed"), ("iia", "Interchange interventions"), ("verdict", "Verdict"),
                        ("agreement_rates", "Agreement with the behavioural map and the removal index")):  # fmt: skip
        if stored(folder / f"{name}.csv").exists():
            table = read_table(folder / f"{name}.csv")
            table = table[table["seen"] == "all"].drop(columns="seen") if "seen" in table else table
            print(f"\n{title}\n{table.to_string(index=False, float_format=lambda x: f'{x:.3f}')}")
    for note in facts["notes"]:
        print(f"note: {note}")
    print("\nTables", folder, "\nFigures", *figures, sep="\n  ")
    return figures


def main() -> None:
    """`python -m cri.studies.rule_steps`."""
    run_command(RuleSteps, run, __doc__, presets=PRESETS, prog=f"python -m cri.studies.{NAME}")
