"""Shared fixtures: no hub, shapes checked at run time, one tiny trained run for everybody."""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start

from jaxtyping import install_import_hook

# annotated shapes are checked whenever the tests call a function of these modules; those that handle text
# alone have no shapes, and would only be slowed down
_WITH_SHAPES = (
    "attribution", "data.case_groups", "data.case_relations", "data.context_cases", "data.held_out", "data.splits",
    "data.step_coverage", "data.step_places", "data.step_units", "data.token_table", "ensembles.bank",
    "ensembles.stacked", "ensembles.train", "evaluation.decoding", "interventions", "models.activations",
    "models.loading", "models.partial", "retraining.records", "retraining.removals", "statistics", "training.lean",
    "training.loss", "training.runs", "training.steps", "training.trainer",
)  # fmt: skip
install_import_hook([f"cri.{module}" for module in _WITH_SHAPES], "beartype.beartype")
for module in _WITH_SHAPES:  # a name that no module has would switch the check off without a word
    assert importlib.util.find_spec(f"cri.{module}"), f"conftest: no module cri.{module}"

import pytest
import torch

from cri.config import RunConfig, TrainConfig

torch.set_num_threads(1)

TINY = RunConfig(
    task_params={"size": 24}, split_params={"half_side": 3}, train=TrainConfig(steps=120, batch_size=128, lr=5e-3)
)
"""A run of seconds: a 24 x 24 grid of addition with a 7 x 7 square held out."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: a long test that starts last keeps every other core waiting for it."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="module", autouse=True)
def imported_modules_are_not_collected() -> None:
    """Half a million objects of imported packages are left out of later garbage collections, a third of a second each:
    where memory runs out the package asks for one every time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs shared by the session."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def tiny_run(runs: Path):
    """The TINY run, trained once and opened."""
    from cri.training.runs import load_run, train_run

    return load_run(train_run(TINY, runs, progress=False))


@pytest.fixture
def interrupt_training(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Called with a number of steps, it interrupts the next training that has taken so many, once, as Ctrl-C does."""
    from cri.training.trainer import Trainer

    real = Trainer.run

    def interrupt(after: int) -> None:
        def run(self, until, *args, **keywords):
            if self.step >= after:
                monkeypatch.setattr(Trainer, "run", real)
                raise KeyboardInterrupt
            real(self, until, *args, **keywords)

        monkeypatch.setattr(Trainer, "run", run)

    return interrupt
