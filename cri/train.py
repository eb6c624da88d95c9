"""`python -m cri.train`: trains one run and prints its folder. In Python: `train_run`, `load_run`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cri.config import RunConfig
from cri.errors import CriError
from cri.opened import OpenRun, load_run
from cri.storage import read_json
from cri.training.runs import Run, load_predictions, train_run
from cri.training.several import train_runs

__all__ = ["OpenRun", "Run", "TrainCommand", "load_predictions", "load_run", "main", "train_run", "train_runs"]


@dataclass(frozen=True)
class TrainCommand:
    """Trains one run and prints where it lies."""

    run: RunConfig = dataclasses.field(default_factory=RunConfig)
    task_params: tuple[str, ...] = ()
    """KEY=VALUE ..., for example size=30; the paper's values where not given."""
    split_params: tuple[str, ...] = ()
    """KEY=VALUE ..., for example half_side=5 center=[20,30]."""
    lora_params: tuple[str, ...] = ()
    """KEY=VALUE ..., of the adapters: r=16 alpha=32 dropout=0."""
    position_params: tuple[str, ...] = ()
    """KEY=VALUE ..., for example window=16 newest=true; the defaults of `cri.models.positions` where not given."""
    out: Path = Path("runs")
    """Folder of runs."""
    device: str = "auto"
    """`auto` takes a GPU where there is one."""
    checkpoint_every: int = 500
    evals: int = 10
    """How often accuracy on a sample is measured on the way, within a tenth of the run's time; 0 for never."""


def with_recipe(argv: Sequence[str]) -> TrainCommand:
    """The command's defaults: the recipe of the task, format and model that `argv` names."""
    from cri.training.recipes import recipe

    named = {}
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        field, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and field in ("task", "format", "model"):
            named[field] = value if equals else following
    default = RunConfig()
    try:
        config = recipe(
            named.get("task", default.task),
            named.get("format", default.format),
            model=named.get("model", default.model),
        )
    except CriError:  # a task that is none is refused where the whole line is read
        config = default
    return TrainCommand(config)


def main() -> None:
    """`python -m cri.train`."""
    import tyro

    from cri.cli import key_values, run_command

    flat = Annotated[TrainCommand, tyro.conf.OmitArgPrefixes]

    def train(command: TrainCommand) -> None:
        import json

        config = command.run.replace(
            task_params=key_values("task_params", command.task_params),
            split_params=key_values("split_params", command.split_params),
            lora_params=key_values("lora_params", command.lora_params),
            position_params=key_values("position_params", command.position_params),
        )
        folder = train_run(
            config,
            command.out,
            device=command.device,
            checkpoint_every=command.checkpoint_every,
            evals=command.evals,
        )
        accuracy = read_json(folder / "manifest.json")["accuracy"]
        print(json.dumps({k: round(v, 4) for k, v in accuracy.items()}), file=sys.stderr)
        print(folder)

    run_command(
        flat,  # pyright: ignore[reportArgumentType]
        train,
        "Trains one run and prints its folder. Settings that are not given are those of the recipe for the task, the "
        "format and the model (cri/training/recipes.py).\n\nExamples:\n"
        "  cri train --task mod_addition --split random --seed 1\n"
        "  cri train --task-params size=30 --split-params half_side=3 --dry-run",
        default=with_recipe(sys.argv[1:]),
        prog="python -m cri.train",
    )


if __name__ == "__main__":
    main()
