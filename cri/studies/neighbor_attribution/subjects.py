"""The models that `neighbor_attribution` looks into, with the cases that each is asked about."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from cri import statistics
from cri.data.case_kinds import case_kinds
from cri.data.tokenization import number_kind
from cri.errors import CriError
from cri.models.loading import random_weights
from cri.models.presets import is_preset
from cri.studies.neighbor_attribution.config import CONTROLS, RANDOM_WEIGHTS, UNTRAINED
from cri.training.runs import Run
from cri.training.setup import part_to_train

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class Subject:
    """One model under study with the cases to score.

    Attributes:
        name: `square`, `random` or one of `CONTROLS`.
        run: whose task, tokens and predictions count (of the controls: the square run's).
        model: the network.
        part: the network with gradients for the trained part alone, as `Run.trained_part` has it.
        train_ids, test_ids: all cases that some comparison needs.
    """

    name: str
    run: Run
    model: PreTrainedModel
    part: Module | None
    train_ids: np.ndarray
    test_ids: np.ndarray

    @property
    def predictions(self) -> list[str]:
        return self.run.predictions["prediction"].to_numpy()[self.test_ids].tolist()


@dataclass(frozen=True, eq=False)
class Comparison:
    """One choice of training and test cases of a subject, and the groups they make."""

    name: str
    groups: statistics.Groups
    rows: np.ndarray
    columns: np.ndarray
    block: np.ndarray
    kinds: dict[str, np.ndarray]


def comparison(
    subject: Subject, name: str, train_ids: np.ndarray, test_ids: np.ndarray, n_near: int | None = None
) -> Comparison:
    rows, columns = np.searchsorted(subject.train_ids, train_ids), np.searchsorted(subject.test_ids, test_ids)
    predictions = np.array(subject.predictions, dtype=object)[columns].tolist()
    groups = statistics.make_groups(subject.run.task, train_ids, test_ids, predictions, n_near=n_near)
    kinds = case_kinds(subject.run.task, number_kind(subject.run.tokenizer), groups)
    return Comparison(name, groups, rows, columns, statistics.grid_blocks(subject.run.task, test_ids), kinds)


def answered(run: Run, case_ids: np.ndarray) -> np.ndarray:
    """Those of `case_ids` whose decoding ended with a readable answer: the others predict no label."""
    return case_ids[run.predictions["status"].isin(["right", "wrong"]).to_numpy()[case_ids]]


def subjects(square: Run, random: Run) -> Iterator[tuple[Subject, list[Comparison]]]:
    """The square-split and the random-split model and the controls, each with its comparisons.

    `full`: all training cases and held-out cases of the square split (square, controls). `common`: those it
    shares with the random split (square, random), so that both models are asked about the same cases with the
    same neighbourhoods. `own`: training cases of the random split and as many of its held-out cases as a
    square has (random).
    """
    train, tests = square.split.train_ids, answered(square, square.split.test_ids)
    random_tests = answered(random, random.split.test_ids)
    common_train = np.flatnonzero(square.split.train & random.split.train)
    common = np.intersect1d(tests, random_tests)
    if len(common) == 0:
        raise CriError("split: no case of the square is held out by the random split and answered by both models")
    subject = Subject("square", square, square.model, square.trained_part(), train, tests)
    matched = comparison(subject, "common", common_train, common)
    yield subject, [comparison(subject, "full", train, tests), matched]

    sample = np.random.default_rng(square.config.seed).permutation(random_tests)[: len(square.split.test_ids)]
    own, random_train = np.sort(sample), random.split.train_ids
    every = np.union1d(common, own)
    subject = Subject("random", random, random.model, random.trained_part(), random_train, every)
    again = comparison(subject, "common", common_train, common, matched.groups.n_near)
    yield subject, [again, comparison(subject, "own", random_train, own)]

    for name in (UNTRAINED,) if is_preset(square.config.model) else CONTROLS:
        subject = Subject(name, square, *control(square, name), train, tests)
        yield subject, [comparison(subject, "full", train, tests)]


def control(run: Run, name: str) -> tuple[PreTrainedModel, Module | None]:
    """The model a run started from, with what was then trained set apart (adapters as they are before the first step);
    or one of its shape with random weights."""
    materials = run.started()
    if name == RANDOM_WEIGHTS:
        return random_weights(materials.model, run.config.seed), None
    if not materials.part.kept_alone:
        return materials.model, None
    return materials.model, part_to_train(replace(materials, model=copy.deepcopy(materials.model)))


def differentiated(subject: Subject) -> dict[str, int]:
    """How many parameters gradients are taken of, and how many the model has."""
    model = subject.model if subject.part is None else subject.part
    own = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"with gradients": own, "of the model": sum(p.numel() for p in subject.model.parameters())}
