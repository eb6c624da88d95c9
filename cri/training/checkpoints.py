"""Checkpoints and metrics: one safetensors file with its own checksum, one JSON line a logged step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cri.errors import CorruptRunError
from cri.storage import atomic_path, write_text


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hash of names, shapes and contents."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes tensors, metadata and their checksum to one file, atomically."""
    with atomic_path(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata={**metadata, "sha256": tensors_sha256(tensors)})
        except SafetensorError as error:  # a full disk, as safetensors reports it
            raise OSError(str(error)) from error


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a checkpoint, verified against its checksum."""
    try:
        with safe_open(path, framework="pt") as file:
            meta = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise CorruptRunError(f"run: {path} is damaged ({error}); remove it to start again") from error
    if meta.get("sha256") != tensors_sha256(tensors):
        raise CorruptRunError(f"run: {path} was altered (checksum); remove it to start again")
    return tensors, meta


def require_identity(path: Path, found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Raises `CorruptRunError` where a checkpoint's metadata are not those of the run that would go on from it."""
    for key, value in expected.items():
        if found.get(key) != value:
            what = key.replace("_", " ")
            raise CorruptRunError(f"run: {path} was made with other {what}; remove the folder and train again")


def append_metrics(path: Path, row: Mapping[str, Any]) -> None:
    """Adds one line to a metrics file."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def truncate_metrics(path: Path, step: int) -> None:
    """Drops the lines after `step` (written by a process that was killed before its next checkpoint)."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # the line that the kill cut short
    write_text(path, "".join(line + "\n" for line in kept))


def trained_part(model: torch.nn.Module) -> dict[str, Tensor]:
    """The parameters that have a gradient, by name, on CPU."""
    return {n: p.detach().cpu().contiguous() for n, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def read_trained(model: Any, path: Path) -> Any:
    """`model`, given the trained part that a run's folder holds; raises `CorruptRunError` where it is another one."""
    tensors, _ = read_checkpoint(path)
    own = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for name in sorted(own.keys() | tensors.keys()):
        if name not in own or name not in tensors or own[name].shape != tensors[name].shape:
            raise CorruptRunError(f"run: {path} does not fit the model at {name}; remove the folder and train again")
        own[name].copy_(tensors[name])
    return model
