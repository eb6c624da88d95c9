"""Shared fixtures: no hub, shapes checked at run time, one tiny trained run for everybody."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start

from jaxtyping import install_import_hook

# annotated shapes are checked whenever the tests call a function of these modules; those that handle text
# alone have no shapes, and would only be slowed down
_WITH_SHAPES = (
    "attribution", "data.case_groups", "data.case_relations", "data.held_out", "data.splits", "data.step_coverage",
    "data.step_places", "data.step_units", "data.token_table", "ensembles.bank", "ensembles.stacked", "ensembles.train",
    "evaluation.decoding", "interventions", "models.activations", "models.loading", "retraining.records",
    "retraining.removals", "statistics", "training.loss", "training.runs", "training.steps", "training.trainer",
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


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs shared by the session."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def tiny_run(runs: Path):
    """The TINY run, trained once and opened."""
    from cri.training.runs import load_run, train_run

    return load_run(train_run(TINY, runs, progress=False))
