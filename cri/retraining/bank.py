"""Retraining ground truth: the same model trained again and again without some of its training cases.

`python -m cri.studies.retraining_bank [preset] [--plans ...]` trains the plans in order (on a GPU many models at once,
on CPU one a core) and records what the models say of the queries. A plan that is finished is kept, one that was
interrupted goes on; the base models of a family are trained first where they are missing.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from cri.cli import run_command
from cri.errors import CriError
from cri.options import FamilyName
from cri.retraining.config import DESIGNED_REMOVALS, NAME, PRESETS, RetrainingBank, Study


def run(config: RetrainingBank) -> list[Path]:
    """Trains and records the plans in order; returns the folders of their records."""
    from cri.retraining.plans import BASE, base, build, explained_predictions, make_family, plan_parts
    from cri.retraining.records import load_retrainings, retrain
    from cri.training.setup import check

    wanted = [plan_parts(plan) for plan in config.plans]
    if not wanted:
        raise CriError("plans: give at least one")
    for family in dict.fromkeys(family for family, _ in wanted):
        check(config.run_config(family))
    families = {}
    folders = []
    options: dict[str, Any] = {
        name: getattr(config, name) for name in ("device", "method", "jobs", "backend", "gpus_per_job")
    }
    for name, kind in wanted:
        started = time.perf_counter()
        if name not in families:
            family = make_family(name, config)
            models = list(base(family, config))
            path = retrain(config.folder(name, BASE), family.config, models, family.queries, None, **options)
            families[name] = family, load_retrainings(path)
        family, record = families[name]
        folder = config.folder(name, kind)
        if kind != BASE:
            replicas = build(kind, family, config, record)
            tables = explained_predictions(record, family.materials.tokens)
            retrain(folder, family.config, replicas, family.queries, tables, **options)
        folders.append(folder)
        n = len(load_retrainings(folder))
        print(f"{name}/{kind}: {n} models, {time.perf_counter() - started:.0f} s, {folder}", flush=True)
    return folders


def find_or_make(study: Study, plan: str, family: str = "*") -> Path:
    """The folder of the bank that a study reads: the recorded one, or else the one in the study's output. If neither
    holds a finished record of `family` (by default of any) whose plan begins with `plan`, the bank is trained into the
    study's output, with its planted models for designed removals. Raises `CriError` for a family not in the preset."""
    from cri.storage import is_complete
    from cri.training.forecast import end_if_asked

    preset = PRESETS[study.bank]
    recorded, made = study.records / preset.name, study.tables(NAME, preset.name)
    for folder in (recorded, made):
        if any(is_complete(path) for path in folder.glob(f"{family}/{plan}*")):
            end_if_asked(f"the retrainings are recorded in {folder}")
            return folder
    planned = {FamilyName.parse(p.partition("/")[0]).folder for p in preset.plans}
    if family not in {"*", *planned}:
        raise CriError(f"family: {family} is not recorded in {recorded}, nor among the plans of that preset")
    for name in (study.bank, f"{study.bank}-planted"):
        if name in PRESETS and (name == study.bank or plan == DESIGNED_REMOVALS):
            run(dataclasses.replace(PRESETS[name], out=study.out, jobs=study.jobs, device=study.device))
    return made


def checksums(folder: Path, *plans: str) -> dict[str, str]:
    """Of the finished records of a bank's plans (glob patterns), for the manifest of tables that rest on them."""
    from cri.storage import MARKER, file_sha256

    markers = sorted(marker for plan in plans for marker in folder.glob(f"*/{plan}/{MARKER}"))
    return {f"{m.parent.parent.name}/{m.parent.name}": file_sha256(m)[:16] for m in markers}


def main() -> None:
    """`python -m cri.studies.retraining_bank`."""
    run_command(RetrainingBank, run, __doc__, presets=PRESETS, prog=f"python -m cri.studies.{NAME}")
