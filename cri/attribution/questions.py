"""The input of every attribution method: outputs of some queries, to be attributed to some training cases.

A `Question` holds what the methods of `cri.attribution.methods` score, and computes what several of them share once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from transformers import PreTrainedModel

from cri.attribution.damping import DAMPING
from cri.attribution.ekfac import EKFAC, fit_ekfac
from cri.attribution.gradients import GradientScores, gradient_scores, tracin
from cri.attribution.influence import influence
from cri.config import RunConfig
from cri.data.case_groups import labels
from cri.data.token_table import TokenTable
from cri.errors import CriError
from cri.tasks import Task
from cri.training.batches import learning_rates
from cri.training.runs import Run
from cri.training.setup import Materials, prepare

Scores = Float[np.ndarray, "train query"]


@dataclass(frozen=True, eq=False)
class Question:
    """What is to be attributed: the outputs of some queries to some training cases.

    Attributes:
        materials: task, tokenizer and tokens: of a run, or of what a run would start from.
        train_ids: training cases of the explained model.
        query_ids: the queries' case ids.
        queries: their tokens with the completions to be explained; `queries.target` says which these are.
        answers: the labels of these completions, "" where there is none.
        model: the explained model; None where only model-free methods are asked.
        seed: of its training, which TracIn repeats.
        part: the explained model with gradients for what was trained of it alone (`Run.trained_part`); None where all
            of it was.
        layers_apart: layers from one site of the residual stream to the next (`residual_sites`).
    """

    materials: Materials | Run
    train_ids: Int[np.ndarray, " train"]
    query_ids: Int[np.ndarray, " query"]
    queries: TokenTable
    answers: list[str]
    model: PreTrainedModel | None = None
    seed: int | None = None
    part: torch.nn.Module | None = None
    layers_apart: int = 1

    @property
    def task(self) -> Task:
        return self.materials.task

    @property
    def train(self) -> TokenTable:
        return self.materials.tokens[self.train_ids]

    @property
    def train_labels(self) -> Shaped[np.ndarray, " train"]:
        return labels(self.task.answers[i] for i in self.train_ids)

    @property
    def query_labels(self) -> Shaped[np.ndarray, " query"]:
        return labels(self.answers)

    @cached_property
    def activations(self) -> dict[str, Float[np.ndarray, "case d"]]:
        """The residual stream at the last prompt token by site: of the training cases, then of the queries."""
        from cri.models.activations import collect, residual_sites
        from cri.models.loading import to_bridge

        bridge = to_bridge(self._model(), self.materials.tokenizer)
        cases = np.concatenate([self.train_ids, self.query_ids])
        found = collect(bridge, self.materials.tokens, residual_sites(bridge, self.layers_apart), cases)
        return {str(site): vectors for site, vectors in found.items()}

    @cached_property
    def gradients(self) -> GradientScores:
        """Inner products and norms of all gradients."""
        return gradient_scores(
            self._trained(), self.train, self.queries, target=self.queries.target, progress=sys.stderr.isatty()
        )

    @cached_property
    def fisher(self) -> EKFAC:
        """The EK-FAC Fisher of the model on the training cases."""
        return self.fit()

    def fit(self, labels: str = "sampled") -> EKFAC:
        return fit_ekfac(self._trained(), self.train, labels=labels, progress=sys.stderr.isatty())

    def influence(
        self, fisher: EKFAC | None = None, damping: float = DAMPING, cg_steps: int = 0, cg_cases: int = 2000
    ) -> Scores:
        """EK-FAC influence; refined by conjugate gradients on the Fisher of `cg_cases` training cases where
        `cg_steps` > 0."""
        sample = np.random.default_rng(0).permutation(len(self.train_ids))[:cg_cases]
        return influence(
            self._trained(), fisher or self.fisher, self.train, self.queries, target=self.queries.target,
            relative_damping=damping, cg_steps=cg_steps,
            cg_tokens=self.materials.tokens[np.sort(self.train_ids[sample])] if cg_steps else None,
            progress=sys.stderr.isatty(),
        )  # fmt: skip

    def tracin(self, n_checkpoints: int) -> Scores:
        """TracIn over evenly spaced checkpoints of a training like the model's."""
        if self.seed is None:
            raise CriError("seed: TracIn trains the model again and needs the seed of its training")
        found = checkpoints(self.materials.config, self.train_ids, self.seed, n_checkpoints)
        return tracin(found, self.train, self.queries, target=self.queries.target, progress=sys.stderr.isatty())

    def _trained(self) -> torch.nn.Module:
        """The model that gradients are taken of."""
        return self._model() if self.part is None else self.part

    def _model(self) -> PreTrainedModel:
        if self.model is None:
            raise CriError("model: this method needs the explained model, and the question has none")
        return self.model


def checkpoints(
    config: RunConfig, train_ids: Int[np.ndarray, " train"], seed: int, n: int
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
    rates = learning_rates(settings.steps, settings.lr, settings.warmup)
    # the last step has a rate of nearly 0: the middles of n equal parts
    for step in (settings.steps * (2 * np.arange(n) + 1) // (2 * n)).tolist():
        trainer.run(max(step, 1), log_every=max(1, settings.steps // 20))
        model.eval()
        yield model, float(rates[max(step, 1) - 1])
        model.train()


def standardised_mean(scores: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over models of scores divided by their standard deviation for each query: models whose gradients are
    large do not outvote the others."""
    with torch.no_grad():
        total = torch.zeros(scores[0].shape)
        for matrix in scores:
            values = torch.from_numpy(np.ascontiguousarray(matrix, dtype=np.float32))
            total += values / values.std(dim=0).clamp_min(1e-12)
    return (total / len(scores)).numpy()
