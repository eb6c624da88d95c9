"""How many samples of a new rule does a model need, once it has been trained on many others, and how many without?

Copies of finished models of many rules are trained for a few steps on 0, 10, ... samples of one rule that they never
saw, and so are copies of an untrained model of the same shape; all are asked about fresh lists. The conjecture that
this tests: following rules is learnt across rules, so that a further one takes few samples.
"""

from __future__ import annotations

import time
from pathlib import Path

from cri.cli import run_command
from cri.errors import CriError
from cri.studies.rule_samples.config import NAME, PRESETS, RuleSamples


def run(config: RuleSamples) -> Path:
    """Trains the copies, records the tables, draws the figure; returns the folder of tables."""
    if not config.use:
        raise CriError("use: give the folder of a finished run in the format stated_rule (cri.studies.rule_reading)")
    import pandas as pd

    from cri.interventions.stated_rules import stated_task
    from cri.studies.common.records import recording
    from cri.studies.rule_samples.figures import draw
    from cri.studies.rule_samples.tables import check_runs, fits, learning_curves, samples_needed
    from cri.training.runs import load_run

    started = time.perf_counter()
    with recording(config.tables(NAME, config.name), config.figures) as record:
        runs = [load_run(path) for path in config.use]
        check_runs(runs, config.groups)
        rows = []
        for opened, control in [*((r, False) for r in runs), *([(runs[0], True)] if config.control_rules else [])]:
            for row in fits(opened, config, control):
                rows.append(row)
                shown = f"trained on {row['trained_on']} rules, rule {row['rule']} ({row['group']}), "
                print(f"{shown}{row['samples']} samples, {row['steps']} steps: {row['right']:.2f} right", flush=True)
        found = pd.DataFrame(rows)
        named = [{"trained_on": stated_task(r).rules, "seed": r.config.seed, "run": r.path.name} for r in runs]
        tables = {
            "fits": found, "curves": learning_curves(found), "needed": samples_needed(found, config.target),
            "runs": pd.DataFrame(named),
        }  # fmt: skip
        facts = {
            "name": config.name, "batch_size": config.batch_size, "lr": config.lr, "control_lr": config.control_lr,
            "tests": config.tests, "target": config.target, "seed": config.seed,
            "seconds": round(time.perf_counter() - started, 1),
        }  # fmt: skip
        figures = record.write(tables, facts, draw)
    print(tables["curves"].to_string(index=False))
    print(*figures, sep="\n")
    return config.tables(NAME, config.name)


def main() -> None:
    """`python -m cri.studies.rule_samples`."""
    run_command(RuleSamples, run, __doc__, presets=PRESETS, prog=f"python -m cri.studies.{NAME}")
