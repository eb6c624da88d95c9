"""What the explorer's page knows of a run: predictions, activations, nearest cases, attributions, traces.

A payload is made of *blobs*: gzipped bytes that the page decodes when they are first needed. Numbers are little-endian
typed arrays, each on a multiple of 8 bytes; texts are one JSON blob a run.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from cri.attribution.methods import METHODS
from cri.attribution.neighbors import nearest, similarity
from cri.attribution.questions import Question
from cri.data.case_groups import GROUPS, make_groups
from cri.errors import CriError, unknown_name
from cri.models.activations import collect, residual_sites
from cri.models.loading import to_bridge
from cri.opened import OpenRun

CHOSEN = 441
"""Cases that are explained by default: as many as the paper's square holds."""
LISTED = 100
"""Strongest training cases of either sign that are kept for each explained case and method."""
NEAREST = 20
EDITED = 24
"""Cases whose edits are precomputed."""
_KINDS = {"float32": "f4", "uint8": "u1", "int8": "i1", "uint16": "u2", "uint32": "u4", "int32": "i4"}


@dataclass
class Blob:
    """Arrays that the page decodes together."""

    parts: list[bytes] = field(default_factory=list)
    index: dict[str, dict[str, Any]] = field(default_factory=dict)
    size: int = 0

    def add(self, name: str, array: np.ndarray) -> None:
        """Adds an array under a name; its type must be one that JavaScript has."""
        data = np.ascontiguousarray(array)
        if data.dtype.name not in _KINDS:
            raise CriError(f"array: {name} is of type {data.dtype.name}; must be one of {', '.join(_KINDS)}")
        raw = data.astype(data.dtype.newbyteorder("<")).tobytes()
        self.index[name] = {"type": _KINDS[data.dtype.name], "at": self.size, "shape": list(data.shape)}
        padded = raw + bytes(-len(raw) % 8)
        self.parts.append(padded)
        self.size += len(padded)

    def encoded(self) -> str:
        """Gzipped (without a date: equal data, equal text) and in base64."""
        return packed(b"".join(self.parts))


def packed(data: bytes) -> str:
    """gzip, then base64."""
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode()


@dataclass(frozen=True)
class Payload:
    """A page's data: `facts` in plain JSON, `blobs` by name, each gzipped base64."""

    facts: dict[str, Any]
    blobs: dict[str, str]

    @property
    def size(self) -> int:
        """Bytes of text."""
        return sum(map(len, self.blobs.values())) + len(json.dumps(self.facts))


def payload(runs: Sequence[OpenRun], methods: Sequence[str] = ("GradCos", "EK-FAC"), n_cases: int = CHOSEN) -> Payload:
    """The payload of one or several runs of one task and grid.

    Args:
        runs: the first is what the page opens with; the others stand beside it as controls or comparisons.
        methods: attribution methods to score for the explained cases, besides the similarities.
        n_cases: explained cases a run: held-out cases in a framed square first, then others; all where there are fewer.

    Raises `CriError` for runs of different grids, for an unknown method, and for one that trains models again.
    """
    if not runs:
        raise CriError("runs: give at least one")
    for name in methods:
        if name not in METHODS:
            raise unknown_name("methods", name, METHODS)
        if METHODS[name].needs == "training":
            raise CriError(f"methods: {name} trains models again; the explorer scores without training")
    first = runs[0]
    for run in runs[1:]:
        if not np.array_equal(run.task.coords, first.task.coords) or run.task.name != first.task.name:
            raise CriError(
                f"runs: {run.path.name} is of {run.task!r} and {first.path.name} of {first.task!r}; give one grid"
            )
    blobs: dict[str, str] = {}
    described = [_describe(run, i, methods, n_cases, blobs) for i, run in enumerate(runs)]
    rows, cols = first.task.coords.max(0) + 1
    facts = {
        "task": first.task.name, "axes": list(first.task.axis_names), "rows": int(rows), "cols": int(cols),
        "groups": list(GROUPS), "runs": described,
    }  # fmt: skip
    return Payload(facts, blobs)


def explained_cases(run: OpenRun, n: int) -> np.ndarray:
    """Held-out cases to explain, those of a framed square first, then drawn at random; sorted."""
    test = run.split.test_ids
    inside = np.zeros(len(test), dtype=bool)
    for row, col, half in run.split.squares:
        inside |= np.abs(run.task.coords[test] - [row, col]).max(1) <= half
    order = np.random.default_rng(0).permutation(len(test))
    order = np.concatenate([order[inside[order]], order[~inside[order]]])
    return np.sort(test[order[:n]])


def _describe(run: OpenRun, number: int, methods: Sequence[str], n: int, blobs: dict[str, str]) -> dict[str, Any]:
    cases = explained_cases(run, n)
    core, texts = _core(run), _texts(run, cases)
    blobs[f"core{number}"] = core.encoded()
    blobs[f"texts{number}"] = packed(json.dumps(texts).encode())
    acts, sites = _activations(run, cases)
    scores = _scores(run, cases, methods)
    blobs[f"acts{number}"], blobs[f"scores{number}"] = acts.encoded(), scores.encoded()
    config = run.config
    accuracy = run.predictions.groupby("part")["correct"].agg(["mean", "size"])
    return {
        "name": run.path.name, "format": config.format, "tokenizer": config.tokenizer, "model": config.model,
        "split": config.split, "seed": config.seed, "squares": [list(s) for s in run.split.squares],
        "accuracy": {part: [float(row["mean"]), int(row["size"])] for part, row in accuracy.iterrows()},
        "sites": sites, "methods": list(methods), "k": NEAREST, "listed": LISTED,
        "index": {"core": core.index, "acts": acts.index, "scores": scores.index},
    }  # fmt: skip


def _numbers(values: Iterable[Any]) -> np.ndarray:
    """Whole numbers of texts, NaN where there is none."""
    from cri.data.case_groups import labels

    return np.array([float(x) if x else np.nan for x in labels(values)])


def _core(run: OpenRun) -> Blob:
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
def reference_log_odds(run: OpenRun, batch_size: int = 512) -> np.ndarray:
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


def _texts(run: OpenRun, cases: np.ndarray) -> dict[str, Any]:
    texts: dict[str, Any] = {
        "question": run.task.questions, "answer": run.task.answers,
        "prediction": run.predictions["prediction"].astype(str).tolist(),
        "status": run.predictions["status"].tolist(),
    }  # fmt: skip
    if run.format.name != "direct":
        texts |= _traces(run, cases)
    return texts


def _traces(run: OpenRun, cases: np.ndarray) -> dict[str, Any]:
    """Reference lines with their elements, the model's own text, and what it writes after edits of some cases."""
    from cri.data.step_coverage import step_counts
    from cri.interventions.edits import sample_edits, step_edits

    counts = step_counts(run.task, run.split)
    traces = {}
    for case in cases.tolist():
        lines = run.format.trace(run.task, *run.task.operands[case])
        traces[case] = {
            "lines": [
                {
                    "text": line.text.rstrip("\n"), "executes": bool(line.executes),
                    "step": "" if line.step is None else str(line.step),
                    "trained": None if line.step is None or not line.executes else int(counts.get(line.step, 0)),
                    "elements": {e: [s - line.start, t - line.start] for e, (s, t) in line.elements.items()},
                }
                for line in lines
            ],
            "written": str(run.predictions["completion"][case]),
        }  # fmt: skip
    some = cases[np.linspace(0, len(cases) - 1, min(EDITED, len(cases))).astype(int)]
    edits = sample_edits(run.task, run.format, np.unique(some).tolist(), tokenizer=run.tokenizer)
    kept = ("id", "line", "element", "old", "new", "expected", "unedited", "answer", "outcome", "text")
    rows = step_edits(run, edits)[list(kept)].to_dict("records") if edits else []
    return {
        "traces": traces,
        "edits": [{k: str(v) if k not in ("id", "line") else int(v) for k, v in r.items()} for r in rows],
    }


def _activations(run: OpenRun, cases: np.ndarray) -> tuple[Blob, list[str]]:
    """Unit vectors in 8 bits at every residual site, of the trained and of the untrained model; the exact nearest
    training cases of the explained ones; and the logit lens of every case."""
    blob = Blob()
    blob.add("cases", cases.astype(np.uint32))
    bridge = run.bridge
    sites = residual_sites(bridge)[1:]  # before the first layer the last prompt token is the same for all cases
    trained = collect(bridge, run.tokens, sites)
    other = collect(to_bridge(run.untrained(), run.tokenizer), run.tokens, sites)
    train = run.split.train_ids
    for number, site in enumerate(sites):
        for role, acts in (("own", trained[site]), ("untrained", other[site])):
            unit = acts / np.maximum(np.linalg.norm(acts, axis=1, keepdims=True), 1e-12)
            scale = np.maximum(np.abs(unit).max(1, keepdims=True), 1e-12)
            blob.add(f"{role}{number}", np.round(unit / scale * 127).astype(np.int8))
            blob.add(f"{role}{number}scale", (scale[:, 0] / 127).astype(np.float32))
        found, scores = nearest(trained[site][train], trained[site][cases], min(NEAREST, len(train)))
        blob.add(f"near{number}", train[found].astype(np.uint32))
        blob.add(f"near{number}score", scores)
        with torch.no_grad():
            logits = bridge.unembed(bridge.ln_final(torch.from_numpy(trained[site])[:, None]))[:, 0].float()
        at = run.tokens.ids[torch.arange(len(run.tokens)), run.tokens.prompt_lengths]
        rank = (logits > logits.gather(1, at[:, None])).sum(1)
        blob.add(f"rank{number}", rank.clamp(max=65535).numpy().astype(np.uint16))
        blob.add(f"top{number}", logits.argmax(1).numpy().astype(np.uint32))
    return blob, [str(site) for site in sites]


def _scores(run: OpenRun, cases: np.ndarray, methods: Sequence[str]) -> Blob:
    """The strongest training cases of either sign for each explained case, by method; explained is what the model
    answers. Groups of all pairs that are listed."""
    blob, train = Blob(), run.split.train_ids
    answers = run.predictions["prediction"].astype(str).to_numpy()[cases].tolist()
    question = Question(
        run, train, cases, run.explained(cases, "prediction"), answers, run.model, run.config.seed
    )  # fmt: skip
    groups = make_groups(run.task, train, cases, answers)
    blob.add("groups", np.ascontiguousarray(groups.codes.T).astype(np.uint8))
    blob.add("train", train.astype(np.uint32))
    n = min(LISTED, len(train) // 2)
    for number, name in enumerate(methods):
        *_, (_, scores) = METHODS[name].score(question)
        order = np.argsort(-scores, axis=0, kind="stable")
        chosen = np.concatenate([order[:n], order[-n:]]).T  # best first, the most opposed last
        blob.add(f"ids{number}", train[chosen].astype(np.uint32))
        blob.add(f"score{number}", np.take_along_axis(scores.T, chosen, axis=1).astype(np.float32))
        blob.add(f"size{number}", np.abs(scores).max(0).astype(np.float32))
    return blob


def nearest_table(run: OpenRun, cases: np.ndarray, site_number: int) -> Any:
    """The exact nearest training cases that the page lists, as a table: `case, rank, neighbor, similarity`."""
    import pandas as pd

    site = residual_sites(run.bridge)[1:][site_number]
    acts, train = collect(run.bridge, run.tokens, [site])[site], run.split.train_ids
    scores = similarity(acts[train], acts[cases])
    order = np.argsort(-scores, axis=0, kind="stable")[: min(NEAREST, len(train))]
    return pd.DataFrame([
        {"case": int(case), "rank": rank, "neighbor": int(train[i]), "similarity": float(scores[i, column])}
        for column, case in enumerate(cases)
        for rank, i in enumerate(order[:, column])
    ])  # fmt: skip
