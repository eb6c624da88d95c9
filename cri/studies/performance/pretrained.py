"""Fine-tuning a pretrained model in the direct format, each measurement in a process of its own: seconds a step against
`transformers.Trainer`, the most memory that the process ever held, and a whole short run."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from cri.config import RunConfig
from cri.studies.common.memory import peak_memory
from cri.studies.performance.rows import Row, row, step_seconds

if TYPE_CHECKING:
    from cri.studies.performance.config import PerformanceConfig

Parameters = ParamSpec("Parameters")
Value = TypeVar("Value")

GIB = 1 << 30
PARTS_TRAINED: dict[str, dict[str, Any]] = {
    "all parameters": {},
    "adapters in a third of the layers": {"lora": True, "lora_params": {"r": 16, "alpha": 32, "dropout": 0}},
}
"""What is trained; the second as in `studies/lso_map`, where SmolLM2-135M has them in its last ten of thirty layers."""


def alone(function: Callable[Parameters, Value], *args: Parameters.args, **options: Parameters.kwargs) -> Value:
    """The value of a function that is called in a new process, which ends with it."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    from cri.training.lifetime import end_with_parent, worker_arguments

    pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=end_with_parent, initargs=worker_arguments())
    with pool:
        return pool.submit(function, *args, **options).result()


def measure_steps(who: str, config: RunConfig, steps: int, device: str, threads: int) -> tuple[float, float, int]:
    """Seconds before the first measured step, seconds a step, and the process's peak memory, of `ours` or `theirs`."""
    import torch

    from cri.studies.performance.baselines import hf_trainer_seconds
    from cri.training.setup import part_to_train, prepare

    torch.set_num_threads(threads)
    started = time.perf_counter()
    materials = prepare(config)
    model = part_to_train(materials)
    if who == "ours":
        loaded = time.perf_counter() - started
        start, each = step_seconds(materials, model, config.train, device, steps)
        return loaded + start, each, peak_memory()
    train_ids = materials.split.train_ids
    few = hf_trainer_seconds(model, materials.tokens, train_ids, config.train, device, steps=steps, warmup=2)
    return time.perf_counter() - started - few, few / steps, peak_memory()


def measure_run(config: RunConfig, device: str, threads: int) -> tuple[float, int]:
    """CPU seconds and peak memory of a process that trains one run into a temporary folder, without evaluations on the
    way."""
    import torch

    from cri.training.runs import train_run

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        train_run(config, Path(folder), device=device, evals=0, progress=False)
    return time.process_time(), peak_memory()


def pretrained(config: PerformanceConfig, device: str) -> Iterator[Row]:
    """A pretrained model on addition, 32 cases a step: every part that is trained, against `Trainer` on the same part;
    then a run of 5 steps on a 10 x 10 grid, from the start of its process to its end."""
    size, steps, cuda = min(30, config.size), config.pretrained_steps, device.startswith("cuda")
    base = RunConfig(
        model=config.pretrained_model, tokenizer="digit", task_params={"size": size},
        split_params={"half_side": min(5, size // 6)},
    ).replace(steps=600, batch_size=32, lr=1e-4, precision="bf16" if cuda else "fp32")  # fmt: skip
    name = Path(config.pretrained_model).name
    for label, part in PARTS_TRAINED.items():
        own = base.replace(**part, **({"last_layers": _third(config.pretrained_model)} if part else {}))
        found: dict[str, list[tuple[float, float, int]]] = {"ours": [], "theirs": []}
        for _ in range(config.repeats):
            for who, values in found.items():
                values.append(alone(measure_steps, who, own, steps, device, config.threads))
        (start, each), (_, theirs) = ([min(v[i] for v in values) for i in (0, 1)] for values in found.values())
        peaks = [max(value[2] for value in values) / GIB for values in found.values()]
        yield row(
            f"{name}, a step of 32, {label}", f"transformers.Trainer ({own.train.precision})", each, theirs,
            f"{steps} steps", f"{steps} steps", "1 step",
            f"the process held {peaks[0]:.2f} GiB at most, the baseline's {peaks[1]:.2f} GiB; start {start:.1f} s",
        )  # fmt: skip
    short = base.replace(task_params={"size": 10}, split_params={"half_side": 1}, steps=5)
    started = time.perf_counter()
    cpu, peak = alone(measure_run, short, device, config.threads)
    seconds = time.perf_counter() - started
    note = f"from the start of the process to its end; {cpu:.0f} s of CPU time, it held {peak / GIB:.2f} GiB at most"
    yield {"work": f"{name}, a run of 5 steps of 32 on a 10 x 10 grid", "ours_s": seconds, "of": "1 run", "note": note}


def _third(model: str) -> int:
    """A third of the model's layers, at least one; read from its config alone."""
    from transformers import AutoConfig

    from cri.models.loading import SMOLLM2
    from cri.models.presets import PRESETS, is_preset
    from cri.models.smollm2 import smollm2_folder

    if is_preset(model):
        return max(1, PRESETS[model].n_layers // 3)
    folder = str(smollm2_folder()) if model == SMOLLM2 else model
    return max(1, AutoConfig.from_pretrained(folder, trust_remote_code=False).num_hidden_layers // 3)
