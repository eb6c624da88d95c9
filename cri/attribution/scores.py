"""Scores of training cases for queries by every attribution method, for `attribution_quality` and its bank."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int

from cri.attribution import baselines
from cri.attribution.ekfac import EKFAC, fit_ekfac
from cri.attribution.gradients import gradient_scores, tracin
from cri.attribution.influence import influence
from cri.attribution.neighbors import similarity
from cri.config import RunConfig
from cri.data import case_relations
from cri.data.case_groups import labels
from cri.data.token_table import TokenTable
from cri.tasks import Task
from cri.training.batches import learning_rates
from cri.training.setup import Materials, prepare

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONTENT = ("same_answer", "same_answer_by_distance", "shared_operand", "nearest_operands", "shared_step", "bm25")
"""Model-free methods."""

DAMPING = 1e-5
"""Relative damping of EK-FAC. Chosen on 20 random halves of the 30 x 30 grid that no bank holds: of 0.1, 0.001 and
1e-5, less was better every time (see `studies/log.md`)."""


@dataclass(frozen=True, eq=False)
class Question:
    """What is to be attributed: the outputs of some queries to some training cases.

    Attributes:
        materials: task and tokens.
        train_ids: training cases of the explained model.
        query_ids: the queries' case ids.
        queries: their tokens with the completions to be explained.
        answers: the labels of these completions.
    """

    materials: Materials
    train_ids: Int[np.ndarray, " train"]
    query_ids: Int[np.ndarray, " query"]
    queries: TokenTable
    answers: list[str]

    @property
    def task(self) -> Task:
        return self.materials.task

    @property
    def train(self) -> TokenTable:
        return self.materials.tokens[self.train_ids]


def content_scores(question: Question) -> Iterator[tuple[str, np.ndarray]]:
    """(method, scores [train, query]) of the model-free methods."""
    task, train, test = question.task, question.train_ids, question.query_ids
    train_labels = labels(task.answers[i] for i in train)
    test_labels = labels(question.answers)
    yield "same_answer", case_relations.same_answer(train_labels, test_labels)
    yield (
        "same_answer_by_distance",
        baselines.same_answer_by_distance(task, train, test, train_labels, test_labels),
    )
    yield "shared_operand", case_relations.shared_operands(task, train, test)
    yield "nearest_operands", baselines.nearest_operands(task, train, test)
    yield "shared_step", case_relations.shared_steps(task, train, test)
    yield "bm25", baselines.bm25(question.train, question.queries)


def representation_scores(question: Question, model: PreTrainedModel) -> Iterator[tuple[str, np.ndarray]]:
    """Cosine similarity after each layer at the last prompt token; of the last layer also whitened."""
    from cri.models.activations import collect, residual_sites
    from cri.models.loading import to_bridge

    bridge = to_bridge(model, question.materials.tokenizer)
    cases = np.concatenate([question.train_ids, question.query_ids])
    n = len(question.train_ids)
    sites = residual_sites(bridge)[1:]  # before the first layer the last prompt token is the same for all cases
    found = collect(bridge, question.materials.tokens, sites, cases)
    for layer, vectors in enumerate(found.values()):
        yield f"cosine, layer {layer}", similarity(vectors[:n], vectors[n:], "cosine")
    last = found[sites[-1]]
    yield f"whitened cosine, layer {len(sites) - 1}", similarity(last[:n], last[n:], "whitened_cosine")


def gradient_method_scores(question: Question, model: PreTrainedModel) -> Iterator[tuple[str, np.ndarray]]:
    """GradDot and GradCos over all parameters."""
    found = gradient_scores(model, question.train, question.queries, progress=sys.stderr.isatty())
    yield "GradDot", found.dot
    yield "GradCos", found.cos


def fitted(question: Question, model: PreTrainedModel, labels: str = "sampled") -> EKFAC:
    """The EK-FAC Fisher of a model on the training cases."""
    return fit_ekfac(model, question.train, labels=labels, progress=sys.stderr.isatty())


def influence_scores(
    question: Question, model: PreTrainedModel, fisher: EKFAC, damping: float, cg_steps: int = 0, cg_cases: int = 2000
) -> np.ndarray:
    """EK-FAC influence with relative damping; refined by conjugate gradients on the Fisher of `cg_cases` training
    cases where `cg_steps` > 0."""
    sample = np.random.default_rng(0).permutation(len(question.train_ids))[:cg_cases]
    return influence(
        model, fisher, question.train, question.queries, relative_damping=damping, cg_steps=cg_steps,
        cg_tokens=question.materials.tokens[np.sort(question.train_ids[sample])] if cg_steps else None,
        progress=sys.stderr.isatty(),
    )  # fmt: skip


def checkpoints(
    config: RunConfig, train_ids: Int[np.ndarray, " train"], seed: int, n: int = 5
) -> Iterator[tuple[PreTrainedModel, float]]:
    """The model at `n` evenly spaced steps of a training on the CPU with the base model's seed and cases, each with
    its learning rate, for TracIn. On a GPU the base model saw the same batches from the same start, in other
    arithmetic."""
    from cri.ensembles.engine import initial_of
    from cri.training.trainer import Trainer

    materials = prepare(config)
    settings = config.replace(seed=seed).train
    model = initial_of(materials, seed)
    trainer = Trainer(model, materials.tokens, train_ids, settings)
    rates = learning_rates(settings)
    # the last step has a rate of nearly 0: the middles of n equal parts
    for step in (settings.steps * (2 * np.arange(n) + 1) // (2 * n)).tolist():
        trainer.run(max(step, 1), log_every=max(1, settings.steps // 20))
        model.eval()
        yield model, float(rates[max(step, 1) - 1])
        model.train()


def tracin_scores(question: Question, seed: int) -> np.ndarray:
    """TracIn over five checkpoints."""
    found = checkpoints(question.materials.config, question.train_ids, seed)
    return tracin(found, question.train, question.queries, progress=sys.stderr.isatty())


def standardised_mean(scores: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over models of scores divided by their standard deviation for each query: models whose gradients are
    large do not outvote the others."""
    with torch.no_grad():
        total = torch.zeros(scores[0].shape)
        for matrix in scores:
            values = torch.from_numpy(np.ascontiguousarray(matrix, dtype=np.float32))
            total += values / values.std(dim=0).clamp_min(1e-12)
    return (total / len(scores)).numpy()
