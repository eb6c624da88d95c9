"""What the explorer's page knows of its runs: predictions, activations, nearest cases, attributions, traces.

A payload is plain facts and *blobs* (`cri.explore.coding`), which the page decodes when they are first needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from cri.attribution.methods import METHODS
from cri.attribution.neighbors import METRICS
from cri.data.case_groups import GROUPS, labels
from cri.errors import CriError, out_of_range, unknown_name
from cri.explore.coding import LEVELS, Blob, ids, packed
from cri.explore.inside import add_lens, add_nearest, add_vectors
from cri.explore.scores import Scored, add_scores, score_cases
from cri.explore.summary import accuracies, kernels, kind_of, kinds_of, summaries
from cri.explore.traces import traces
from cri.models.activations import Site, collect, residual_sites
from cri.models.loading import to_bridge
from cri.training.runs import Run

CHOSEN = 441
"""Cases that are explained by default: as many as the paper's square holds."""
Sites = Literal["all", "last"]


@dataclass
class Payload:
    """A page's data: `facts` in plain JSON, `blobs` by name, each gzipped base64."""

    facts: dict[str, Any] = field(default_factory=dict)
    blobs: dict[str, str] = field(default_factory=dict)
    indexes: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of text."""
        return sum(map(len, self.blobs.values())) + len(json.dumps(self.facts))

    def put(self, name: str, blob: Blob | Any) -> str:
        """Adds a blob, or JSON, and returns its name: that of an equal one where there is one (two runs of one seed
        started from the same model)."""
        text = blob.encoded() if isinstance(blob, Blob) else packed(json.dumps(blob).encode())
        same = next((known for known, other in self.blobs.items() if other == text), None)
        if same is not None:
            return same
        self.blobs[name] = text
        if isinstance(blob, Blob):
            self.indexes[name] = blob.index
        return name


def payload(
    runs: Sequence[Run], methods: Sequence[str] = ("GradCos", "EK-FAC"), n_cases: int = CHOSEN, sites: Sites = "all"
) -> Payload:
    """The payload of one or several runs of one task and grid.

    Args:
        runs: the first is what the page opens with; the others stand beside it as controls or comparisons.
        methods: attribution methods to score for the explained cases, besides the similarities.
        n_cases: explained cases a run: held-out cases in any framed square first, then others; all where there are
            fewer.
        sites: the residual stream after every layer, or after the last alone.

    Raises `CriError` for runs of different grids, for one whose cases were not all decoded, for an unknown method, and
    for one that trains models again.
    """
    check(runs, methods, n_cases)
    out = Payload()
    described, scored = [], []
    for number, run in enumerate(runs):
        cases = explained_cases(run, n_cases, [square for other in runs for square in other.split.squares])
        facts, cases = _describe(run, number, methods, cases, sites, out)
        described.append(facts)
        scored.append(cases)
    kernel = [{**facts, "blob": out.put(f"kernel{i}", blob)} for i, (facts, blob) in enumerate(kernels(runs, scored))]
    first, kinds = runs[0], kinds_of(runs)
    for run, facts in zip(runs, described, strict=True):
        facts |= {"kind": kinds.index(kind_of(run)), "accuracy": accuracies(run)}
    rows, cols = first.task.coords.max(0) + 1
    out.facts = {
        "task": first.task.name, "axes": list(first.task.axis_names), "rows": int(rows), "cols": int(cols),
        "groups": list(GROUPS), "metrics": list(METRICS), "levels": LEVELS, "methods": list(methods),
        "runs": described, "kinds": [list(kind) for kind in kinds], "summary": summaries(runs, scored),
        "kernels": kernel, "index": out.indexes,
    }  # fmt: skip
    return out


def check(runs: Sequence[Run], methods: Sequence[str], n_cases: int) -> None:
    """Raises `CriError` for what no page can be made of."""
    if not runs:
        raise CriError("runs: give at least one")
    if n_cases < 1:
        raise out_of_range("cases", n_cases, "at least 1")
    for name in methods:
        if name not in METHODS:
            raise unknown_name("methods", name, METHODS)
        if METHODS[name].needs == "training":
            raise CriError(f"methods: {name} trains models again; the explorer scores without training")
    first = runs[0]
    for run in runs:
        if not np.array_equal(run.task.coords, first.task.coords) or run.task.name != first.task.name:
            raise CriError(
                f"runs: {run.path.name} is of {run.task!r} and {first.path.name} of {first.task!r}; give one grid"
            )
        if len(run.predictions) != run.task.n_cases:
            raise CriError(
                f"runs: {run.path.name} has predictions of {len(run.predictions)} of {run.task.n_cases} cases; "
                "train it with decoded=0, which decodes all"
            )
    names = [run.path.resolve() for run in runs]
    for run, name in zip(runs, names, strict=True):
        if names.count(name) > 1:
            raise CriError(f"runs: {run.path.name} is given {names.count(name)} times; give each once")


def explained_cases(run: Run, n: int, squares: Sequence[Sequence[int]] = ()) -> np.ndarray:
    """Held-out cases to explain, those of a framed square first (the run's own and `squares`: a random split is to be
    compared there), then drawn at random; sorted."""
    test = run.split.test_ids
    inside = np.zeros(len(test), dtype=bool)
    for row, col, half in [*run.split.squares, *squares]:
        inside |= np.abs(run.task.coords[test] - [row, col]).max(1) <= half
    order = np.random.default_rng(0).permutation(len(test))
    order = np.concatenate([order[inside[order]], order[~inside[order]]])
    return np.sort(test[order[:n]])


def shown_sites(run: Run, sites: Sites) -> list[Site]:
    """The residual stream after each layer. Before the first the last prompt token is the same for all cases."""
    every = residual_sites(run.bridge)[1:]
    return every[-1:] if sites == "last" else every


def _describe(
    run: Run, number: int, methods: Sequence[str], cases: np.ndarray, sites: Sites, out: Payload
) -> tuple[dict[str, Any], Scored]:
    if not len(cases):
        raise CriError(f"runs: {run.path.name} holds no case out, so there is none to explain")
    shown = shown_sites(run, sites)
    bridge = run.bridge
    untrained = to_bridge(run.untrained(), run.tokenizer)
    own, other = collect(bridge, run.tokens, shown), collect(untrained, run.tokens, shown)
    blobs: dict[str, Any] = {
        "core": out.put(f"core{number}", _core(run)),
        "texts": out.put(f"texts{number}", _texts(run)),
    }
    near = Blob()
    near.add("cases", ids(cases))
    lens = Blob()
    for i, site in enumerate(shown):
        add_nearest(near, i, run, own[site], cases)
        add_lens(lens, i, run, own[site])
    blobs["near"], blobs["lens"] = out.put(f"near{number}", near), out.put(f"lens{number}", lens)
    for role, acts in (("own", own), ("untrained", other)):
        blobs[role] = [out.put(f"{role}{number}-{i}", add_vectors(acts[site])) for i, site in enumerate(shown)]
    scored = score_cases(run, cases, methods, own[shown[-1]], other[shown[-1]])
    groups = Blob()
    groups.add("groups", np.ascontiguousarray(scored.groups.codes.T).astype(np.uint8))
    blobs["groups"] = out.put(f"groups{number}", groups)
    blobs["scores"] = [out.put(f"scores{number}-{i}", add_scores(run, scored, name)) for i, name in enumerate(methods)]
    if run.format.name != "direct":
        blobs["traces"] = out.put(f"traces{number}", traces(run, cases, bridge, untrained))
    config = run.config
    return {
        "name": run.path.name, "format": config.format, "tokenizer": config.tokenizer, "model": config.model,
        "split": config.split, "seed": config.seed, "squares": [list(s) for s in run.split.squares],
        "explained": len(cases), "sites": [str(site) for site in shown], "blobs": blobs,
        "tokens": {str(i): str(run.tokenizer.decode([i])) for i in _tops(lens, len(shown))},
    }, scored  # fmt: skip


def _tops(lens: Blob, n_sites: int) -> list[int]:
    """Ids of the tokens that come first in the logit lens anywhere."""
    found: set[int] = set()
    raw = b"".join(lens.parts)
    for i in range(n_sites):
        entry = lens.index[f"top{i}"]
        kind = {"u2": "<u2", "u4": "<u4"}[entry["type"]]
        found |= set(np.frombuffer(raw, kind, int(np.prod(entry["shape"])), entry["at"]).tolist())
    return sorted(found)


def _numbers(values: Iterable[Any]) -> np.ndarray:
    """Whole numbers of texts, NaN where there is none."""
    return np.array([float(x) if x else np.nan for x in labels(values)])


def _core(run: Run) -> Blob:
    """One number a case: place, held out or not, right or not, predicted minus true, log-odds of the right answer."""
    blob, table = Blob(), run.predictions
    rows, cols = run.task.coords.T
    blob.add("row", rows.astype(np.uint16))
    blob.add("col", cols.astype(np.uint16))
    blob.add("train", run.split.train.astype(np.uint8))
    blob.add("correct", table["correct"].to_numpy().astype(np.uint8))
    difference = _numbers(table["prediction"]) - _numbers(run.task.answers)
    blob.add("difference", difference.astype(np.float32))
    blob.add("logodds", reference_log_odds(run).astype(np.float32))
    return blob


@torch.no_grad()
def reference_log_odds(run: Run, batch_size: int = 512) -> np.ndarray:
    """Log-odds of the whole reference completion of every case."""
    from cri.retraining.records import log_odds

    tokens, parts = run.tokens, []
    for start in range(0, len(tokens), batch_size):
        part = tokens[np.arange(start, min(start + batch_size, len(tokens)))]
        first = int(part.prompt_lengths.min())
        logits = run.model(part.ids[:, :-1], logits_to_keep=part.ids.shape[1] - first).logits.float()
        logp = logits.log_softmax(-1).gather(-1, part.ids[:, first:, None])[..., 0]
        parts.append(-(logp * part.target_mask[:, first:]).sum(1).numpy())
    return log_odds(np.concatenate(parts))


def _texts(run: Run) -> dict[str, Any]:
    return {
        "question": run.task.questions, "answer": run.task.answers,
        "label": labels(run.task.answers).tolist(), "said": labels(run.predictions["prediction"]).tolist(),
        "prediction": run.predictions["prediction"].astype(str).tolist(),
        "status": run.predictions["status"].tolist(),
    }  # fmt: skip
