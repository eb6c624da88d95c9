"""Does a model execute the rule that its prompt states, once it has been trained on many?

Trains one small model each on 1, 4, 16, 64 (and 256) rules of a grammar over digit lists with the same number of
examples, and controls whose prompts show an opaque name, another rule's text, or the text's tokens out of order. Asks
about rules, combinations of values and values that no training case has; edits one value of the stated rule; cuts
attention to it; exchanges its residuals.
"""

from __future__ import annotations

from pathlib import Path

from cri.cli import run_command
from cri.studies.rule_reading.config import NAME, PRESETS, RuleReading


def run(config: RuleReading) -> Path:
    """Trains what is missing, records the tables, draws the figures; returns the folder of tables."""
    import pandas as pd

    from cri.storage import read_json
    from cri.studies.common.records import recording
    from cri.studies.rule_reading.figures import draw
    from cri.studies.rule_reading.tables import key_of, run_tables
    from cri.training.runs import load_run
    from cri.training.several import train_runs

    with recording(config.tables(NAME, config.name), config.figures) as record:
        paths = train_runs(list(config.run_configs()), config.runs, jobs=config.jobs, device=config.device)
        parts: dict[str, list[pd.DataFrame]] = {}
        runs = []
        for path in paths:
            opened = load_run(path)
            tables = run_tables(opened, config.per_rule, config.edits, config.n_edits)
            for name, table in tables.items():
                parts.setdefault(name, []).append(table)
            manifest = read_json(path / "manifest.json")
            facts = {k: manifest.get(k) for k in ("train_seconds", "steps_timed", "trained_on", "commit")}
            runs.append({**key_of(opened), "run": path.name, **facts})
            print(tables["accuracy"].to_string(index=False), flush=True)
            print(tables["edits"].query("group == 'all'").to_string(index=False), flush=True)
        joined = {name: pd.concat(tables, ignore_index=True) for name, tables in parts.items()}
        joined["runs"] = pd.DataFrame(runs)
        facts = {"name": config.name, "model": config.model, "steps": config.steps, "examples": config.examples}
        figures = record.write({name: table for name, table in joined.items() if not table.empty}, facts, draw)
    print(*figures, sep="\n")
    return config.tables(NAME, config.name)


def main() -> None:
    """`python -m cri.studies.rule_reading`."""
    run_command(RuleReading, run, __doc__, presets=PRESETS, prog=f"python -m cri.studies.{NAME}")
