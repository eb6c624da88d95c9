"""How fast, against what a user would use instead?

Every row sets this package and an opponent on the same work, on the same machine, in one run. What takes too long
is measured on a stated number of steps or cases and extrapolated linearly: columns `measured` and
`opponent_measured` say on how many, next to the `of` in all. `ratio` is opponent seconds over ours.
"""

from __future__ import annotations

import math
import os
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cri.cli import run_command
from cri.errors import CriError, unknown_name
from cri.storage import provenance, read_json, write_json, write_text


@dataclass(frozen=True)
class PerformanceConfig:
    """How much of each piece of work to measure."""

    name: str = "cpu"
    device: str = "auto"
    parts: tuple[str, ...] = (
        "nano", "decoding", "trace_decoding", "activations", "patching", "attribution", "paper", "traces", "growth",
        "replicas",
    )  # fmt: skip
    """Which pieces, in order: the cheap ones first. One that fails leaves the others be."""
    record: Path = Path("studies/performance")
    size: int = 100
    """Grid size of the addition task."""
    nano_steps: int = 100
    """Steps measured of the 4,000 of a `nano` run (both sides)."""
    paper_model: str = "gpt2-shape"
    paper_steps: int = 3
    """Steps measured of the 31,900 of the paper's protocol (opponent; ours takes ten times as many)."""
    one_by_one: int = 20
    """Cases measured of one-at-a-time decoding."""
    scratchpad_steps: int = 300
    """Training steps, not timed, of the model whose traces are decoded."""
    traces_one_by_one: int = 128
    """Scratchpads decoded against one-at-a-time `generate`."""
    traces_batched: int = 1024
    """Scratchpads decoded against batched `generate`."""
    patching_pairs: int = 100
    attribution_cases: tuple[int, int] = (2000, 200)
    """Training and test cases scored by this package and by kronfluence, besides the whole grid."""
    replicas: int = 256
    replica_steps: int = 300
    """Steps measured of the 4,000 of each replica (opponent)."""
    replicas_measured: int = 4
    """Replicas really trained by this package; the rest is extrapolated."""
    trace_steps: int = 1
    trace_tokens: int = 2000
    trace_batch: int = 2
    trace_micro: int = 1
    growth_steps: int = 20
    repeats: int = 3
    """Short measurements are repeated in turn, ours and the opponent's, and the quickest of each counts."""
    threads: int = 1
    """Of each process on CPU, ours and the opponent's. Small models gain little from a second thread, and on a busy
    machine they lose much."""


PRESETS = {
    "cpu": PerformanceConfig(),
    "gpu": PerformanceConfig(
        name="gpu", device="cuda",
        parts=("nano", "decoding", "trace_decoding", "paper", "traces", "growth", "replicas"),
        nano_steps=500, paper_steps=60, one_by_one=60, traces_one_by_one=256, traces_batched=4096, replica_steps=4000,
        replicas_measured=256, trace_steps=6, trace_tokens=2048, trace_batch=64, trace_micro=16, growth_steps=100,
        repeats=1,
    ),
    "test": PerformanceConfig(
        name="test", size=12, nano_steps=4, paper_model="nano", paper_steps=2, one_by_one=2, scratchpad_steps=20,
        traces_one_by_one=3, traces_batched=80, patching_pairs=8, attribution_cases=(40, 8), replicas=4,
        replica_steps=4, replicas_measured=2, trace_steps=1, trace_tokens=24, trace_batch=2, trace_micro=1,
        growth_steps=2, repeats=1,
    ),
}  # fmt: skip


def run(config: PerformanceConfig) -> Path:
    """Measures each part and writes `results.csv` and `manifest.json` below the record after each row; rows of parts
    measured before and not asked for now stay."""
    import pandas as pd
    import torch
    from transformers.utils import logging

    from cri.studies.performance.parts import PARTS
    from cri.studies.performance.rows import clear
    from cri.training.setup import resolve_device

    for part in config.parts:
        if part not in PARTS:
            raise unknown_name("parts", part, PARTS)
    device = resolve_device(config.device)
    if config.name == "gpu" and not device.startswith("cuda"):
        raise CriError("device: the gpu preset needs a GPU")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if device == "cpu":
        torch.set_num_threads(config.threads)
    logging.set_verbosity_error()
    folder = config.record / config.name
    table, manifest = folder / "results.csv", folder / "manifest.json"
    parts: dict[str, Any] = read_json(manifest)["parts"] if manifest.exists() else {}
    rows: list[dict[str, Any]] = pd.read_csv(table).to_dict("records") if table.exists() else []
    here = {
        **provenance(),
        # where the part was measured: provenance names the machine's GPU whether it is used or not
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "CPU",
        "threads": torch.get_num_threads(),
    }

    def record() -> None:
        write_text(table, pd.DataFrame.from_records(rows).to_csv(index=False, float_format="%.5g"))
        write_json(manifest, {"parts": parts})

    for part in config.parts:
        started = time.perf_counter()
        rows = [row for row in rows if row["part"] != part]
        parts[part] = dict(here)
        try:
            for row in PARTS[part](config, device):
                rows.append({"part": part, **row})
                ratio = f"  {row['ratio']:.1f}x {row['opponent']}" if "ratio" in row else ""
                ours = row.get("ours_s", math.nan)
                print(f"{part}: {row['work']}: {ours:.4g} s{ratio}  {row.get('note', '')}", flush=True)
                record()
        except Exception as error:  # a part that cannot run here must not lose the others
            parts[part]["failed"] = f"{type(error).__name__}: {error}"
            print(f"{part}: failed: {parts[part]['failed']}", flush=True)
            traceback.print_exc()
        parts[part]["seconds"] = round(time.perf_counter() - started, 1)
        record()
        clear(device)
    print(folder)
    return folder


def main() -> None:
    """`python -m cri.studies.performance`."""
    run_command(PerformanceConfig, run, __doc__, presets=PRESETS, prog="python -m cri.studies.performance")


if __name__ == "__main__":
    main()
