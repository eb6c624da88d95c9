"""Retraining ground truth: what models trained with and without certain cases say of chosen queries, recorded
compactly so that the models themselves need not be kept.

A record is a folder with `config.json`, `replicas.csv` (one row a model), `record.safetensors.xz` (training masks and
right answers of the whole grid as packed bits, losses of the queries), `manifest.json` and `complete.json`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int

from cri.config import RunConfig
from cri.data.token_table import TARGETS, TokenTable
from cri.ensembles.bank import WEIGHTS, Bank, load_bank, stacked_scores
from cri.ensembles.engine import Replica, decode_stack
from cri.ensembles.stacked import Layout, StackedForward
from cri.ensembles.train import Method, train_replicas
from cri.errors import CorruptRunError, CriError
from cri.evaluation.decoding import Decoded
from cri.models.device import resolve_device
from cri.models.presets import is_preset
from cri.storage import (
    config_hash,
    is_complete,
    locked,
    mark_complete,
    provenance,
    read_json,
    verify,
    write_bytes,
    write_json,
    write_text,
    writing_to,
)
from cri.storage.compression import XZ, pack_arrays, pack_file, read_arrays, stored
from cri.training.jobs import Backend
from cri.training.setup import prepare

RECORD = "record.safetensors"
TABLE = "replicas.csv"
EXPLAINS = "explains"
"""The note of a replica that names the model whose predictions it is asked about."""
SMALLEST_LOSS = 1e-6
"""The smallest value that losses in float32 resolve; log-odds are capped there, at 13.8."""


def log_odds(loss: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """log p / (1 - p) of a whole completion from its loss -log p, summed over the tokens: the margin of the answer,
    for answers of any number of tokens. For one token it is `attribution.outputs.margin`."""
    return -np.log(np.expm1(np.maximum(np.asarray(loss, dtype=np.float64), SMALLEST_LOSS)))


@dataclass(frozen=True, eq=False)
class Retrainings:
    """A finished record, opened.

    Attributes:
        path: its folder.
        config: what the models share.
        table: one row a model: the columns of `Bank.table`, the notes of its replica among them.
        train: which cases each was trained on, [replica, case].
        correct: which cases each answers rightly, decoding greedily, [replica, case].
        queries: the case ids whose outputs were recorded.
        loss: cross-entropy summed over a completion and its end of sequence, [replica, query]: of the `reference`
            answer, and of the `prediction` of the model that the replica's note `explains` names.
        completions: tokens that each model generates for the queries, where recorded, [replica, query, token].
        completion_lengths: how many of them come before the end of sequence, [replica, query].
    """

    path: Path
    config: RunConfig
    table: pd.DataFrame
    train: Bool[np.ndarray, "replica case"]
    correct: Bool[np.ndarray, "replica case"]
    queries: Int[np.ndarray, " query"]
    loss: Mapping[str, Float[np.ndarray, "replica query"]]
    completions: Int[np.ndarray, "replica query token"] | None
    completion_lengths: Int[np.ndarray, "replica query"] | None

    def __len__(self) -> int:
        return len(self.table)

    def log_odds(self, target: str = "reference") -> Float[np.ndarray, "replica query"]:
        """Log-odds of the whole target completion (see `log_odds`)."""
        return log_odds(self.loss[target])

    def bank(self) -> Bank:
        """The models, of a record that kept them."""
        name = read_json(self.path / "manifest.json")["bank"]
        if name is None:
            raise CriError(f"record: {self.path} kept no weights; only those of base models are kept")
        return load_bank(self.path / name)

    def predicted(self, replica: int, tokens: TokenTable) -> TokenTable:
        """The queries' rows of `tokens` with the completions that one model generates as targets."""
        if self.completions is None or self.completion_lengths is None:
            raise CriError(f"record: {self.path} holds no completions; only those of base models do")
        return completed(tokens[self.queries], self.completions[replica], self.completion_lengths[replica])


def completed(tokens: TokenTable, ids: Int[np.ndarray, "case token"], lengths: Int[np.ndarray, " case"]) -> TokenTable:
    """`tokens` with the first `lengths` of the decoded `ids` as completions."""
    return tokens.with_completions([row[:n].tolist() for row, n in zip(ids, lengths, strict=True)])


def load_retrainings(folder: Path | str) -> Retrainings:
    """Opens a finished record; raises `CorruptRunError` for an altered file, `CriError` for none."""
    folder = Path(folder)
    verify(folder)
    if not stored(folder / RECORD).exists():
        raise CriError(f"record: {folder} holds no retrainings")
    arrays = read_arrays(folder / RECORD)
    n_cases = int(read_json(folder / "manifest.json")["n_cases"])
    return Retrainings(
        folder,
        RunConfig.from_dict(read_json(folder / "config.json")),
        pd.read_csv(folder / TABLE, keep_default_na=False, na_values=[""]),
        np.unpackbits(arrays["train"], axis=1, count=n_cases).astype(bool),
        np.unpackbits(arrays["correct"], axis=1, count=n_cases).astype(bool),
        arrays["queries"].astype(np.int64),
        {target: arrays[f"loss_{target}"] for target in TARGETS},
        arrays.get("completions"),
        arrays.get("completion_lengths"),
    )


def retrain(
    folder: Path,
    config: RunConfig,
    replicas: Sequence[Replica],
    queries: Int[np.ndarray, " query"],
    explained: Mapping[str, TokenTable] | None,
    *,
    device: str = "auto",
    method: Method = "auto",
    jobs: int = 0,
    backend: Backend = "processes",
    gpus_per_job: float = 0.0,
    progress: bool = True,
) -> Path:
    """Trains `replicas` into a bank inside `folder`, records what they say, and deletes the bank unless they are base
    models; returns `folder`. A finished record is reused, an interrupted one resumed.

    Args:
        folder: of this record.
        config, device, method, jobs, backend, gpus_per_job, progress: as in `train_replicas`.
        replicas: each with a note `explains`.
        queries: case ids to record the outputs of.
        explained: for each model named in these notes, the queries with the completions that it predicted. None for
            base models: their own completions are decoded, recorded and used, and their weights are kept.

    Raises `CriError` when the folder holds a record of other retrainings.
    """
    queries = np.asarray(queries)
    described = {
        "config": config.to_dict(),
        "replicas": [replica.identity() for replica in replicas],
        "queries": queries.tolist(),
        "explained": None if explained is None else {name: table.sha256() for name, table in explained.items()},
    }
    if not is_preset(config.model):
        described["base_weights"] = prepare(config).base_weights
    identity = config_hash(described)
    with locked(folder), writing_to(folder):
        if is_complete(folder):
            verify(folder)
            if read_json(folder / "manifest.json")["identity"] != identity:
                raise CorruptRunError(
                    f"record: {folder} was made with other options; remove it, or give another name to this bank"
                )
            for bank in folder.glob("bank-*") if explained is not None else ():  # a kill left it after the marker
                shutil.rmtree(bank)
            return folder
        where: dict[str, Any] = {"device": device, "jobs": jobs, "backend": backend, "gpus_per_job": gpus_per_job}
        path = train_replicas(config, replicas, folder, method=method, progress=progress, **where)
        bank = load_bank(path)
        arrays = _measure(bank, queries, explained, resolve_device(device))
        arrays["train"] = np.packbits(bank.train, axis=1)
        arrays["correct"] = np.packbits(bank.correct, axis=1)
        arrays["queries"] = queries.astype(np.int32)
        write_json(folder / "config.json", config.to_dict())
        write_text(folder / TABLE, bank.table.to_csv(index=False, float_format="%.6g"))
        write_bytes(folder / f"{RECORD}{XZ}", pack_arrays(arrays))
        trained = read_json(path / "manifest.json")
        manifest: dict[str, Any] = {
            "identity": identity,
            "n_replicas": len(replicas),
            "n_cases": bank.task.n_cases,
            "n_diverged": trained["n_diverged"],
            "bank": path.name if explained is None else None,
            "method": trained["method"],
            "trained_on": trained["trained_on"],
            "seconds": trained["seconds"],
            **provenance(),
        }
        write_json(folder / "manifest.json", manifest)
        mark_complete(folder, ["config.json", "manifest.json", TABLE, RECORD])
        if explained is None:
            write_bytes(*pack_file(path / WEIGHTS))
            (path / WEIGHTS).unlink()
        else:
            shutil.rmtree(path)
    return folder


def _measure(
    bank: Bank, queries: Int[np.ndarray, " query"], explained: Mapping[str, TokenTable] | None, device: str
) -> dict[str, np.ndarray]:
    """Losses of the queries by every replica, of the reference and of the explained predictions; without
    `explained`, also the completions that each generates."""
    materials = prepare(bank.config)
    template = materials.model.to(device).requires_grad_(False)  # pyright: ignore[reportArgumentType]
    layout = Layout(template)
    forward = StackedForward(template, layout, "fp32")
    tokens = bank.tokens[queries]
    rows = np.arange(len(queries))
    loss = {target: np.zeros((len(bank), len(queries)), dtype=np.float32) for target in TARGETS}
    decoded: list[Decoded] = []
    at_once = 32
    for start in range(0, len(bank), at_once):
        flat = bank.flat(slice(start, min(start + at_once, len(bank))), layout).to(device)
        index = np.arange(start, start + len(flat))
        loss["reference"][index] = stacked_scores(forward, flat, tokens, rows).loss
        if explained is None:
            own = decode_stack(forward, layout, flat, tokens)
            decoded += own
            parts = [(completed(tokens, d.ids, d.lengths), np.array([i])) for i, d in enumerate(own)]
        else:
            names = bank.table[EXPLAINS].to_numpy()[index]
            parts = [(explained[str(name)], np.flatnonzero(names == name)) for name in pd.unique(names)]
        for targets, chosen in parts:
            part = flat[torch.from_numpy(chosen).to(flat.device)]
            loss["prediction"][index[chosen]] = stacked_scores(forward, part, targets, rows).loss
    arrays: dict[str, np.ndarray] = {f"loss_{target}": values for target, values in loss.items()}
    if decoded:
        arrays["completions"] = np.stack([d.ids for d in decoded]).astype(np.int32)
        arrays["completion_lengths"] = np.stack([d.lengths for d in decoded]).astype(np.int32)
    return arrays


def family_records(folder: Path, prefix: str) -> Iterator[tuple[Path, Path]]:
    """(base, record) folders of all finished records below a bank's folder whose plan begins with `prefix`."""
    for path in sorted(folder.glob(f"*/{prefix}*")):
        if is_complete(path) and is_complete(path.parent / "base"):
            yield path.parent / "base", path
