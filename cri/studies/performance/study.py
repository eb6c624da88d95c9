"""How fast, against what a user would use instead?

Every row sets this package and a baseline on the same work, on the same machine, in one run. What takes too long
is measured on a stated number of steps or cases and extrapolated linearly: columns `measured` and
`baseline_measured` say on how many, next to the `of` in all. `ratio` is baseline seconds over ours.
"""

from __future__ import annotations

import os
import time
import traceback
from pathlib import Path
from typing import Any

from cri.cli import run_command
from cri.errors import CriError, unknown_name
from cri.storage import provenance, read_json
from cri.storage.compression import read_table, stored
from cri.studies.common.records import MANIFEST, Record, recording
from cri.studies.performance.config import NAME, PRESETS, PerformanceConfig


def run(config: PerformanceConfig) -> Path:
    """Measures each part and records `results.csv` after each row. What was measured before stays: rows of parts that
    are not asked for now, and those of a part until it is measured again to its end.

    Raises `CriError` when all is done if a part failed.
    """
    import torch
    from transformers.utils import logging

    from cri.models.device import resolve_device
    from cri.studies.performance.parts import PARTS

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
    here = {
        **provenance(),
        # where the part was measured: provenance names the machine's GPU whether it is used or not
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "CPU",
        "threads": torch.get_num_threads(),
    }
    with recording(config.tables(NAME, config.name)) as record:
        failed = [part for part in config.parts if not _measure(part, config, device, record, here)]
        if failed:
            raise CriError(f"parts: {', '.join(failed)} failed; see above and {record.folder / MANIFEST}")
    print(record.folder)
    return record.folder


def _measure(part: str, config: PerformanceConfig, device: str, record: Record, here: dict[str, Any]) -> bool:
    """Measures one part and records it; whether it got to its end."""
    import pandas as pd

    from cri.studies.performance.parts import PARTS
    from cri.studies.performance.rows import clear

    table, manifest = record.folder / "results.csv", record.folder / MANIFEST
    earlier: list[dict[str, Any]] = read_table(table).to_dict("records") if stored(table).exists() else []
    parts: dict[str, Any] = read_json(manifest)["parts"] if manifest.exists() else {}
    others = [row for row in earlier if row["part"] != part]
    stands = len(others) < len(earlier)  # rows of this part, which nothing short of all its new ones replaces
    rows: list[dict[str, Any]] = []
    started = time.perf_counter()

    def write(**facts: Any) -> None:
        fact = {**here, **facts, "seconds": round(time.perf_counter() - started, 1)}
        tables = {"results": pd.DataFrame.from_records(others + rows)} if others + rows else {}
        record.write(tables, {"parts": {**parts, part: fact}})

    try:
        for row in PARTS[part](config, device):
            rows.append({"part": part, **row})
            ratio = f"  {row['ratio']:.1f}x {row['baseline']}" if "ratio" in row else ""
            seconds = f"{row['ours_s']:.4g} s{ratio}  " if "ours_s" in row else ""
            print(f"{part}: {row['work']}: {seconds}{row.get('note', '')}", flush=True)
            if not stands:
                write()
        write()
    except CriError as error:
        failure = str(error)
    except Exception as error:  # a part that cannot run here must not lose the others
        traceback.print_exc()
        failure = f"{type(error).__name__}: {error}"
    else:
        return True
    finally:
        clear(device)
    print(f"{part}: failed: {failure}", flush=True)
    if not stands:
        write(failed=failure)
    return False


def main() -> None:
    """`python -m cri.studies.performance`."""
    run_command(PerformanceConfig, run, __doc__, presets=PRESETS, prog=f"python -m cri.studies.{NAME}")
