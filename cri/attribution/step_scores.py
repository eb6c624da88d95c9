"""Scores of training units for test units, both (case, step): similarity at the step, gradients, EK-FAC influence.

All take the step's tokens as output (`cri.data.step_units.unit_tokens`): which steps of which training cases made
this digit likely? On the training side units are steps, so that a case's score is told apart by its steps; whole cases
are scored by `gradients.gradient_scores` and `influence.influence` with a `TokenTable` of cases.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Shaped

from cri.attribution.ekfac import fit_ekfac
from cri.attribution.gradients import gradient_scores
from cri.attribution.influence import influence
from cri.attribution.neighbors import similarity
from cri.data.step_places import Traced, places
from cri.data.step_units import unit_tokens
from cri.data.token_table import TokenTable
from cri.errors import unknown_name
from cri.models.activations import Site, collect, residual_sites
from cri.models.loading import to_bridge

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel

DAMPING = 1e-5
"""Relative damping of EK-FAC, as `attribution_quality` chose it (see `studies/log.md`)."""
PARAMETERS = "all parameters"
"""The site of gradients and influence."""


@dataclass(frozen=True, eq=False)
class StepQuestion:
    """Which training units are scored for which test units.

    Attributes:
        source: task, traces and tokens.
        train, test: units, from `step_places.places(source, "step:all", ...)`, one block of rows a case.
    """

    source: Traced
    train: pd.DataFrame
    test: pd.DataFrame


def written_units(
    model: PreTrainedModel, units: TokenTable, batch_size: int = 128
) -> tuple[TokenTable, Shaped[np.ndarray, " unit"]]:
    """The units with the tokens that the model finds likeliest in place of the reference's, each given the reference
    before it; and whether they are the reference's."""
    ids, same = units.ids.clone(), np.zeros(len(units), dtype=bool)
    device = next(model.parameters()).device
    with torch.no_grad():
        for start in range(0, len(units), batch_size):
            rows = torch.arange(start, min(start + batch_size, len(units)))
            part = units[rows]
            best = model(input_ids=part.ids[:, :-1].to(device)).logits.argmax(-1).cpu()
            chosen = torch.where(part.target_mask[:, 1:], best, part.ids[:, 1:])
            ids[rows, 1 : part.ids.shape[1]] = chosen
            same[rows.numpy()] = (chosen == part.ids[:, 1:]).all(1).numpy()
    return replace(units, ids=ids), same


def similarity_scores(
    question: StepQuestion, model: PreTrainedModel, metric: str = "cosine"
) -> Iterator[tuple[str, str, np.ndarray]]:
    """(method, site, scores [train unit, test unit]) of the residual stream from which the steps are predicted."""
    source = question.source
    bridge = to_bridge(model, source.tokenizer)
    cases = np.concatenate([question.train["case"].unique(), question.test["case"].unique()])
    sites = [Site(site.hook, "step:all") for site in residual_sites(bridge)]
    table = places(source, "step:all", cases).reset_index()
    key = ["case", "step"]
    rows = [
        units[key].merge(table[[*key, "index"]], on=key, how="left", validate="one_to_one")["index"].to_numpy()
        for units in (question.train, question.test)
    ]
    for site, vectors in collect(bridge, source.tokens, sites, cases, traces=source).items():
        yield metric, str(site), similarity(vectors[rows[0]], vectors[rows[1]], metric)


def parameter_scores(
    question: StepQuestion, model: PreTrainedModel, *, max_bytes: int = 1 << 30, progress: bool = False
) -> Iterator[tuple[str, str, np.ndarray]]:
    """GradDot, GradCos and EK-FAC influence of training units on test units, over all parameters.

    The Fisher is fitted on the whole training cases, as they were trained on. What is explained are the tokens that the
    model writes at the test unit. At most `max_bytes` are held for gradients (see `streaming.plan_memory`).
    """
    tokens = question.source.tokens
    train = unit_tokens(tokens, question.train)
    test, _ = written_units(model, unit_tokens(tokens, question.test))
    found = gradient_scores(model, train, test, max_bytes=max_bytes, progress=progress)
    yield "grad_dot", PARAMETERS, found.dot
    yield "grad_cos", PARAMETERS, found.cos.astype(np.float32)
    cases = tokens[question.train["case"].unique()]
    fisher = fit_ekfac(model, cases, max_bytes=max_bytes, progress=progress)
    scores = influence(model, fisher, train, test, relative_damping=DAMPING, max_bytes=max_bytes, progress=progress)
    yield "ekfac", PARAMETERS, scores.astype(np.float32)


MECHANISMS = ("step", "case")


def planted_scores(question: StepQuestion, mechanism: str, *, noise: float = 0.5, seed: int = 0) -> np.ndarray:
    """Scores [train unit, test unit] of a hand-built model whose mechanism is known, to calibrate the reading.

    A linear model's gradient is its feature vector (times a residual), so GradDot of the hand-built model is the inner
    product of features: with mechanism `step` a random code of the step and its column, with `case` a bump around the
    case's place on the grid (of width 1.5 cells), both with `noise`.

    Raises `UnknownNameError` for another mechanism.
    """
    if mechanism not in MECHANISMS:
        raise unknown_name("mechanism", mechanism, MECHANISMS)
    rng = np.random.default_rng(seed)
    d = 256
    if mechanism == "step":
        keys = ["op", "x", "y", "carry", "column"]
        units = _both(question)
        _, code = np.unique(units[keys].astype(str).agg("|".join, axis=1).to_numpy(), return_inverse=True)
        features = rng.standard_normal((code.max() + 1, d))[code]
    else:
        coords = question.source.task.coords[_both(question)["case"].to_numpy()].astype(float)
        centers = coords[rng.integers(len(coords), size=d)]
        features = np.exp(-((coords[:, None] - centers[None]) ** 2).sum(-1) / (2 * 1.5**2)) * 4
    features = features + noise * rng.standard_normal(features.shape)
    n = len(question.train)
    return features[:n] @ features[n:].T


def _both(question: StepQuestion) -> pd.DataFrame:
    """Training units, then test units."""
    import pandas as pd

    return pd.concat([question.train, question.test], ignore_index=True)
