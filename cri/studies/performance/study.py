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
from pathlib import Path
from typing import Any

from cri.cli import run_command
from cri.errors import CriError, unknown_name
from cri.storage import provenance, read_json, write_json, write_text
from cri.studies.performance.config import PRESETS, PerformanceConfig


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
