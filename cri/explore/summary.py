"""What holds over all explained cases and over seeds, with n and an interval.

Runs that differ in their seed alone are of one *kind*. Intervals: cases are resampled in patches of the grid, and the
spread between seeds is added by Student's t (`statistics.intervals.with_runs`); with one seed only the first is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from cri.data.case_groups import GROUPS
from cri.explore.coding import Blob
from cri.explore.scores import COSINE, MODEL_FREE, UNTRAINED, Scored
from cri.statistics.intervals import LEVEL, grid_blocks, resample_counts, with_runs
from cri.training.runs import Run

TOP = 10
"""A case's strongest training cases, of which shares are taken."""
HALF = 20
"""Offsets up to which mean scores are kept."""


def kind_of(run: Run) -> tuple[str, ...]:
    """What runs that differ in their seed alone have in common."""
    config = run.config
    return config.format, config.split, config.tokenizer, config.model


def kinds_of(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Every kind among the runs, once, in their order."""
    return list(dict.fromkeys(map(kind_of, runs)))


def accuracies(run: Run) -> list[dict[str, Any]]:
    """One row a part of one run."""
    return [{"part": part, **_mean([run], [ids], [_right(run)[ids]])} for part, ids in _parts(run)]


def summaries(runs: Sequence[Run], scored: Sequence[Scored]) -> dict[str, list[dict[str, Any]]]:
    """`accuracy`: one row a kind and part. `shares`: one row a kind, method and group: its share among the ten
    highest-scoring training cases of the explained cases, and its share of all training cases (`base`)."""
    accuracy, shares = [], []
    for number, seeds, several in _by_kind(runs, scored):
        named = {"kindNumber": number, "seeds": len(seeds)}
        for part in (0, 1):
            ids = [_parts(run)[part][1] for run in seeds]
            values = [_right(run)[i] for run, i in zip(seeds, ids, strict=True)]
            accuracy.append({**named, "part": ("train", "test")[part], **_mean(seeds, ids, values)})
        cases = [one.cases for one in several]
        for method in several[0].scores:
            for code, group in enumerate(GROUPS):
                found = [_share(one, method, code) for one in several]
                base = float(np.mean([(one.groups.codes == code).mean() for one in several]))
                shares.append({**named, "method": method, "group": group, "base": base, **_mean(seeds, cases, found)})
    return {"accuracy": accuracy, "shares": shares}


def _by_kind(runs: Sequence[Run], scored: Sequence[Scored]) -> Iterator[tuple[int, list[Run], list[Scored]]]:
    for number, kind in enumerate(kinds_of(runs)):
        which = [i for i, run in enumerate(runs) if kind_of(run) == kind]
        yield number, [runs[i] for i in which], [scored[i] for i in which]


def _parts(run: Run) -> tuple[tuple[str, np.ndarray], tuple[str, np.ndarray]]:
    return ("train", run.split.train_ids), ("test", run.split.test_ids)


def _right(run: Run) -> np.ndarray:
    return run.predictions["correct"].to_numpy(float)


def kernels(runs: Sequence[Run], scored: Sequence[Scored]) -> list[tuple[dict[str, Any], Blob]]:
    """The mean score of a training case at each offset (row, column) from the explained case, up to `HALF` away, by
    kind and method, with half the width of its 95 % interval.

    Each case's scores are first divided by its largest, and similarities taken relative to their median. The interval
    is Student's, over seeds where there are several, else over patches of explained cases.
    """
    out = []
    for number, seeds, several in _by_kind(runs, scored):
        for method in several[0].scores:
            if method in MODEL_FREE and method != next(iter(MODEL_FREE)):
                continue  # the distance itself
            parts = [_offset_means(run, one, method) for run, one in zip(seeds, several, strict=True)]
            n = np.sum([count.sum(0) for _, count in parts], axis=0)
            with np.errstate(invalid="ignore", divide="ignore"):
                if len(parts) > 1:
                    samples = np.stack([total.sum(0) / count.sum(0) for total, count in parts])
                    mean = samples.mean(0)
                else:
                    ((total, count),) = parts
                    samples, mean = total / count, total.sum(0) / n
            blob = Blob()
            blob.add("mean", mean.astype(np.float32))
            blob.add("half", _half_width(samples).astype(np.float32))
            blob.add("n", n.astype(np.uint32))
            facts = {"method": method, "kind": number, "seeds": len(seeds), "cases": len(several[0].cases)}
            out.append((facts, blob))
    return out


def _offset_means(run: Run, one: Scored, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Sums and counts [patch, offset] of scaled scores."""
    scores = one.scores[method].astype(np.float64)
    if method in (COSINE, UNTRAINED):
        scores = scores - np.median(scores, axis=0)
    scores = scores / np.maximum(np.abs(scores).max(0), 1e-30)
    width = 2 * HALF + 1
    place = run.task.coords[run.split.train_ids][:, None] - run.task.coords[one.cases][None] + HALF
    inside = ((place >= 0) & (place < width)).all(axis=2)
    patches, patch = np.unique(grid_blocks(run.task, one.cases), return_inverse=True)
    cell = (patch[None] * width + place[..., 0]) * width + place[..., 1]
    size, shape = len(patches) * width**2, (len(patches), width**2)
    total = np.bincount(cell[inside], weights=scores[inside], minlength=size).reshape(shape)
    return total, np.bincount(cell[inside], minlength=size).reshape(shape)


def _half_width(samples: np.ndarray) -> np.ndarray:
    """Of Student's interval over the first axis, NaN where fewer than two are there."""
    from scipy.stats import t

    there = np.isfinite(samples)
    n = there.sum(0)
    values = np.where(there, samples, 0)
    mean = values.sum(0) / np.maximum(n, 1)
    variance = (there * (values - mean) ** 2).sum(0) / np.maximum(n - 1, 1)
    return np.where(n > 1, t.ppf((1 + LEVEL) / 2, np.maximum(n - 1, 1)) * np.sqrt(variance / np.maximum(n, 1)), np.nan)


def _share(one: Scored, method: str, code: int) -> Float[np.ndarray, " case"]:
    scores = one.scores[method]
    top = np.argsort(-scores, axis=0, kind="stable")[:TOP]
    return (np.take_along_axis(one.groups.codes, top, axis=0) == code).mean(axis=0)


def _mean(
    runs: Sequence[Run], cases: Sequence[Int[np.ndarray, " case"]], values: Sequence[Float[np.ndarray, " case"]]
) -> dict[str, Any]:
    """Mean of shares over cases, then over runs; no interval (None) where there is one patch and one run."""
    samples = []
    for run, ids, value in zip(runs, cases, values, strict=True):
        counts = resample_counts(np.zeros(len(ids), dtype=int), grid_blocks(run.task, ids))
        drawn = [] if counts is None else ((counts @ value) / np.maximum(counts.sum(1), 1e-9)).tolist()
        samples.append([float(value.mean()), *drawn])
    width = min(map(len, samples))  # 1 where the cases of a run lie in one patch
    found = with_runs(np.array([row[:width] for row in samples]))
    low, high = (None if np.isnan(x) else round(float(np.clip(x, 0, 1)), 4) for x in (found.low, found.high))
    return {"mean": round(found.estimate, 4), "low": low, "high": high, "cases": len(values[0])}
