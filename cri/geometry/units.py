"""Neurons and heads: what each is tuned to, and what the answer loses without it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cri.geometry.spectra import variances_explained
from cri.geometry.subject import Edit, Subject

if TYPE_CHECKING:
    import pandas as pd

TUNED = 0.5
"""A neuron is called tuned where one variable explains at least this share of its variance over the grid."""


def neuron_hook(layer: int) -> str:
    return f"blocks.{layer}.mlp.out.hook_in"


def head_hook(layer: int) -> str:
    return f"blocks.{layer}.attn.o.hook_in"


def tuning(acts: Float[np.ndarray, "case neuron"], cases: Int[np.ndarray, "case 2"]) -> pd.DataFrame:
    """For every neuron: the share of its variance over `cases` that each of a, b, a + b, a - b and residues of the sum
    explains alone, in how many cases it is active, and what it is tuned to.

    One row a neuron: `neuron, a, b, a+b, a-b, mod 2, mod 5, mod 10, active` (share of cases where it is positive),
    `centre` (mean sum of the cases, weighted by positive activation), `tuned` (the simplest variable whose share is
    within 0.05 of the largest, residues of the sum first and `a+b` last; `mixed` where the largest is below `TUNED`;
    `silent` where the neuron does not vary).
    """
    import pandas as pd

    a, b = cases.T
    total = a + b
    variables = {"a": a, "b": b, "a+b": total, "a-b": a - b}
    variables |= {f"mod {t}": total % t for t in (2, 5, 10)}
    x = acts.astype(np.float64)
    table = pd.DataFrame({name: variances_explained(x, values) for name, values in variables.items()})
    positive = np.clip(x, 0, None)
    fired = positive.sum(0)
    centre = np.divide(total @ positive, fired, out=np.full(len(fired), np.nan), where=fired > 0)
    labels = [_label(shares, spread) for shares, spread in zip(table.to_dict("records"), x.std(0), strict=True)]
    table = table.round(4).assign(active=(x > 0).mean(0), centre=centre, tuned=labels)
    table.insert(0, "neuron", np.arange(x.shape[1]))
    return table


def _label(shares: dict[str, float], spread: float) -> str:
    if spread < 1e-6:
        return "silent"
    best = max(shares.values())
    if best < TUNED:
        return "mixed"
    # a function of the sum's residue is a function of the sum: the coarser description wins where it does as well
    order = ("mod 2", "mod 5", "mod 10", "a", "b", "a-b", "a+b")
    return next(name for name in order if shares[name] >= best - 0.05)


def set_units(hook: str, units: Int[np.ndarray, " unit"], values: Float[np.ndarray, " unit"]) -> Edit:
    """Sets some coordinates of a hook at the prompt's end (neurons to their means over cases: mean ablation)."""
    index, fixed = torch.from_numpy(np.asarray(units)), torch.from_numpy(np.asarray(values)).float()

    def write(tensor: Tensor, ids: np.ndarray) -> Tensor:
        last = tensor[:, -1]
        flat = last.flatten(1).clone()  # [head, d_head] of attention counts as one vector
        flat[:, index] = fixed.to(flat)
        tensor[:, -1] = flat.view_as(last)
        return tensor

    return hook, write


def head_coordinates(subject: Subject, head: int) -> Int[np.ndarray, " unit"]:
    """Where a head's output lies in the input of the attention's output matrix."""
    width = subject.d_head
    return np.arange(head * width, (head + 1) * width)
