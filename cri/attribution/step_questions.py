"""Attribution of single steps: similarity at a step, gradients and EK-FAC influence with the step's tokens as output.

Which steps of which training cases made this digit likely? A `StepQuestion` answers as a `Question` does, its rows and
columns being units (`cri.data.step_units`) in place of cases, so that every method of `cri.attribution.methods` that
looks at the model scores it. A case's score is the sum over all its tokens; here each step has a score of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from transformers import PreTrainedModel

from cri.attribution.ekfac import EKFAC, fit_ekfac
from cri.attribution.questions import Question
from cri.data.step_places import places
from cri.data.step_units import unit_tokens
from cri.data.token_table import TokenTable
from cri.errors import CriError, unknown_name
from cri.training.runs import Run
from cri.training.setup import Materials

if TYPE_CHECKING:
    import pandas as pd

STEP_METHODS = ("cosine", "GradDot", "GradCos", "EK-FAC")
"""Methods that are asked about steps, by key."""


@dataclass(frozen=True, eq=False)
class StepQuestion(Question):
    """The tokens that a model writes at some steps, to be attributed to steps of its training cases.

    Attributes:
        train_units, test_units: rows of `step_places.places(source, "step:all")`.
        as_reference: whether the model predicts the reference's tokens at each test unit, given the reference prefix.
    """

    train_units: Any = None
    test_units: Any = None
    as_reference: Any = None

    @classmethod
    def ask(
        cls, source: Materials | Run, train: pd.DataFrame, test: pd.DataFrame, model: PreTrainedModel
    ) -> StepQuestion:
        """Asks about what `model` writes at the units `test`. Raises `CriError` without units on either side."""
        if not len(train) or not len(test):
            raise CriError("train, test: give at least one unit each")
        queries, same = written_units(model, unit_tokens(source.tokens, test))
        starts, stops = queries.prompt_lengths.tolist(), queries.lengths.tolist()
        rows = [ids[start:stop] for ids, start, stop in zip(queries.ids.tolist(), starts, stops, strict=True)]
        return cls(
            source, train["case"].to_numpy(), test["case"].to_numpy(), queries,
            source.tokenizer.batch_decode(rows), model,
            train_units=train, test_units=test, as_reference=same,
        )  # fmt: skip

    @property
    def train(self) -> TokenTable:
        return unit_tokens(self.materials.tokens, self.train_units)

    @cached_property
    def activations(self) -> dict[str, Float[np.ndarray, "unit d"]]:
        """The residual stream where each step is predicted, by site: of the training units, then of the test units."""
        from cri.models.activations import Site, collect, residual_sites
        from cri.models.loading import to_bridge

        bridge = to_bridge(self._model(), self.materials.tokenizer)
        cases = np.unique(np.concatenate([self.train_ids, self.query_ids]))
        sites = [Site(site.hook, "step:all") for site in residual_sites(bridge)]
        found = collect(bridge, self.materials.tokens, sites, cases, traces=self.materials)
        table = places(self.materials, "step:all", cases)
        row_of = {key: i for i, key in enumerate(zip(table["case"], table["step"], strict=True))}
        units = [*zip(self.train_units["case"], self.train_units["step"], strict=True)]
        units += zip(self.test_units["case"], self.test_units["step"], strict=True)
        rows = np.array([row_of[key] for key in units])
        return {str(site): vectors[rows] for site, vectors in found.items()}

    def fit(self, labels: str = "sampled") -> EKFAC:
        """The Fisher on the whole training cases, as the model was trained on them."""
        cases = self.materials.tokens[np.unique(self.train_ids)]
        return fit_ekfac(self._model(), cases, labels=labels, progress=False)


def written_units(
    model: PreTrainedModel, units: TokenTable, batch_size: int = 128
) -> tuple[TokenTable, Bool[np.ndarray, " unit"]]:
    """The units with the model's most likely tokens in place of the reference's, each predicted after the reference
    prefix; and whether these tokens equal the reference's."""
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
    return replace(units, ids=ids, target="prediction"), same


MECHANISMS = ("step", "case")


def planted_scores(
    source: Materials | Run,
    train: pd.DataFrame,
    test: pd.DataFrame,
    mechanism: str,
    *,
    noise: float = 0.5,
    seed: int = 0,
) -> Float[np.ndarray, "train test"]:
    """Scores of a hand-built model whose mechanism is known, to calibrate how scores are read.

    A linear model's gradient is its feature vector times a residual, so GradDot of the hand-built model is the inner
    product of features: with mechanism `step` a random code of the step and its column, with `case` a bump around the
    case's place on the grid (1.5 cells wide), both with `noise`.

    Raises `UnknownNameError` for another mechanism.
    """
    import pandas as pd

    if mechanism not in MECHANISMS:
        raise unknown_name("mechanism", mechanism, MECHANISMS)
    rng, d = np.random.default_rng(seed), 256
    units = pd.concat([train, test], ignore_index=True)
    if mechanism == "step":
        names = units[["op", "x", "y", "carry", "column"]].astype(str).agg("|".join, axis=1)
        _, code = np.unique(names.to_numpy(dtype=np.str_), return_inverse=True)
        features = rng.standard_normal((int(code.max()) + 1, d))[code]
    else:
        coords = source.task.coords[units["case"].to_numpy()].astype(float)
        centers = coords[rng.integers(len(coords), size=d)]
        features = 4 * np.exp(-((coords[:, None] - centers[None]) ** 2).sum(-1) / (2 * 1.5**2))
    features = features + noise * rng.standard_normal(features.shape)
    return features[: len(train)] @ features[len(train) :].T
