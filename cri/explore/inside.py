"""The inside of a run on a page: activations, the exact nearest training cases, the logit lens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from cri.attribution.neighbors import METRICS, nearest
from cri.explore.coding import Blob, coded_vectors, ids
from cri.models.activations import Site, collect
from cri.training.runs import Run

NEAREST = 20
"""Training cases in a list."""


def add_vectors(x: Float[np.ndarray, "case d"]) -> Blob:
    """The activations of all cases at one site, for maps of any metric."""
    blob = Blob()
    coded_vectors(blob, x)
    return blob


def add_nearest(
    blob: Blob, number: int, run: Run, x: Float[np.ndarray, "case d"], cases: Int[np.ndarray, " case"]
) -> None:
    """The exact nearest training cases of the explained ones at one site, by every metric."""
    train = run.split.train_ids
    for m, metric in enumerate(METRICS):
        found, scores = nearest(x[train], x[cases], min(NEAREST, len(train)), metric)
        blob.add(f"ids{number}-{m}", ids(train[found]))
        blob.add(f"score{number}-{m}", scores.astype(np.float32))


@torch.no_grad()
def add_lens(blob: Blob, number: int, run: Run, x: Float[np.ndarray, "case d"]) -> None:
    """The logit lens of every case at one site: rank of the right answer's first token, and which token is first."""
    bridge = run.bridge
    logits = bridge.unembed(bridge.ln_final(torch.from_numpy(x)[:, None]))[:, 0].float()
    at = run.tokens.ids[torch.arange(len(run.tokens)), run.tokens.prompt_lengths]
    rank = (logits > logits.gather(1, at[:, None])).sum(1)
    blob.add(f"rank{number}", ids(rank.numpy()))
    blob.add(f"top{number}", ids(logits.argmax(1).numpy()))


def nearest_table(run: Run, cases: Int[np.ndarray, " case"], site: Site, metric: str = "cosine") -> Any:
    """The nearest training cases that the page lists, as a table: `case, rank, neighbor, similarity`."""
    import pandas as pd

    acts, train = collect(run.bridge, run.tokens, [site])[site], run.split.train_ids
    found, scores = nearest(acts[train], acts[cases], min(NEAREST, len(train)), metric)
    return pd.DataFrame({
        "case": np.repeat(cases, found.shape[1]), "rank": np.tile(np.arange(found.shape[1]), len(cases)),
        "neighbor": train[found].ravel(), "similarity": scores.ravel(),
    })  # fmt: skip
