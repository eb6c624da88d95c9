"""Edits of the residual stream at the prompt's end: what fills the hole, and what breaks where there was none."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cri.errors import CriError
from cri.geometry.number_line import helix_basis
from cri.geometry.spectra import means_by_value
from cri.geometry.subject import Edit, Subject


def _orthonormal(columns: Float[np.ndarray, "d k"]) -> Float[np.ndarray, "d k"]:
    return np.linalg.qr(columns)[0]


def periodic_subspace(
    acts: Float[np.ndarray, "case d"], sums: Int[np.ndarray, " case"], periods: tuple[int, ...]
) -> Float[np.ndarray, "d k"]:
    """Orthonormal directions in which the mean activation of a sum goes round with each period.

    Least squares of the means by sum on a constant, a line and circles of the periods; the circles' directions are
    kept (two a period). Fitted together, so that no period explains what another one does.
    """
    values, means = means_by_value(acts, sums)
    basis = helix_basis(int(values.max()) + 1, periods)[values]
    if len(values) <= basis.shape[1]:
        raise CriError(f"periods: {len(values)} sums are too few for {len(periods)} periods and a line")
    weights = np.linalg.lstsq(basis, means, rcond=None)[0]
    return _orthonormal(weights[2:].T)


def random_subspace(d: int, k: int, seed: int) -> Float[np.ndarray, "d k"]:
    """As many random directions: the control of a subspace."""
    return _orthonormal(np.random.default_rng(seed).standard_normal((d, k)))


def set_component(hook: str, basis: Float[np.ndarray, "d k"], wanted: Float[np.ndarray, "case k"]) -> Edit:
    """The component in a subspace is set to `wanted` (coordinates of every case of the grid) at the prompt's end."""
    columns, goal = torch.from_numpy(basis).float(), torch.from_numpy(np.asarray(wanted)).float()

    def write(tensor: Tensor, ids: np.ndarray) -> Tensor:
        last = tensor[:, -1]
        tensor[:, -1] = last + (goal[torch.from_numpy(ids)] - last @ columns) @ columns.T
        return tensor

    return hook, write


def project_out(hook: str, basis: Float[np.ndarray, "d k"], mean: Float[np.ndarray, " d"], n_cases: int) -> Edit:
    """The component in a subspace is set to that of `mean` in every case."""
    return set_component(hook, basis, np.repeat((mean @ basis)[None], n_cases, axis=0))


def where_answers_lie(
    subject: Subject,
    acts: Float[np.ndarray, "case d"],
    basis: Float[np.ndarray, "d k"],
    answers: Int[np.ndarray, " case"],
) -> Float[np.ndarray, "case k"]:
    """For every case, the mean coordinates of the training cases outside the square whose sum is `answers[case]`.

    NaN-free: an answer without such cases takes those of the nearest one that has some.
    """
    known = np.flatnonzero(subject.train & ~subject.square)
    values, means = means_by_value(acts[known], subject.sums[known])
    nearest = np.abs(answers[:, None] - values[None]).argmin(1)
    return means[nearest] @ basis


def move_along(hook: str, direction: Float[np.ndarray, " d"], amount: float) -> Edit:
    """Moves the activation by the shortest vector that changes the read-out x @ direction by `amount`."""
    vector = torch.from_numpy(direction * (amount / (direction @ direction))).float()

    def write(tensor: Tensor, ids: np.ndarray) -> Tensor:
        tensor[:, -1] += vector
        return tensor

    return hook, write


def from_cases(hook: str, acts: Float[np.ndarray, "case d"], sources: Int[np.ndarray, " case"]) -> Edit:
    """Each case's activation at the prompt's end is replaced by that of its source (`acts` and `sources` of every
    case)."""
    table = torch.from_numpy(acts)

    def write(tensor: Tensor, ids: np.ndarray) -> Tensor:
        tensor[:, -1] = table[torch.from_numpy(sources[ids])].to(tensor)
        return tensor

    return hook, write


def same_answer_sources(subject: Subject, offset: int = 0) -> Int[np.ndarray, " case"]:
    """For every case the nearest training case outside the square whose sum is its own plus `offset` (itself where
    there is none); an offset of 0 excludes the case itself."""
    known = np.flatnonzero(subject.train & ~subject.square)
    sources = np.arange(len(subject.cases))
    by_sum: dict[int, Any] = {s: known[subject.sums[known] == s] for s in np.unique(subject.sums[known])}
    for case in range(len(sources)):
        line = by_sum.get(int(subject.sums[case]) + offset, np.zeros(0, dtype=int))
        line = line[line != case]
        if len(line):
            sources[case] = line[np.abs(subject.cases[line] - subject.cases[case]).sum(1).argmin()]
    return sources
