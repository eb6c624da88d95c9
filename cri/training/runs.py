"""One run, from config to finished folder and back: `train_run`, `load_run`.

A finished folder holds `config.json`, `split.json`, `model/` (save_pretrained, with the tokenizer),
`metrics.jsonl`, `predictions.csv` (the whole grid decoded), `manifest.json` and `complete.json`.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from cri.config import RunConfig
from cri.data.splits import Split
from cri.errors import CorruptRunError, out_of_range, unknown_name
from cri.storage import (
    clear_unfinished,
    is_complete,
    locked,
    mark_complete,
    provenance,
    read_json,
    run_folder,
    verify,
    write_json,
    write_text,
    writing_to,
)
from cri.tasks import REGISTERED, Task
from cri.tasks.plugins import origin, require_origin
from cri.training.forecast import stop_if_asked
from cri.training.jobs import progress_bar
from cri.training.setup import (
    TRAINED,
    Materials,
    part_to_train,
    prepare,
    reopen,
    require_same,
    whole,
)

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor
    from torch.nn import Module
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cri.data.token_table import Target, TokenTable
    from cri.formats import Format

CHECKPOINT = "checkpoint.safetensors"
METRICS = "metrics.jsonl"
PREDICTIONS = "predictions.csv"
_TEXT_COLUMNS = dict.fromkeys(("part", "status", "answer", "prediction", "completion", "error", "step"), str)


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run, opened.

    Attributes:
        path: its folder.
        config: what was asked for.
        task, split, format, tokenizer, tokens: as in training; `tokens` covers the whole grid.
        model: the trained Hugging Face model, on CPU, in eval mode.
        predictions: the whole grid decoded, or of a run of long texts so many cases of each part as its config says,
            one row a case in id order (see `cri.evaluation.decoding.predictions`). By case: `decoded(case_ids)`.
    """

    path: Path
    config: RunConfig
    task: Task
    split: Split
    format: Format
    tokenizer: PreTrainedTokenizerBase
    tokens: TokenTable
    model: PreTrainedModel
    predictions: pd.DataFrame

    @cached_property
    def bridge(self) -> TransformerBridge:
        """A TransformerLens bridge over a copy of the model."""
        from cri.models.loading import to_bridge

        return to_bridge(self.model, self.tokenizer)

    def explained(self, case_ids: Sequence[int] | Int[np.ndarray, " case"], target: Target) -> TokenTable:
        """Tokens of the cases with what is to be explained about them as completions: the right answers
        (`reference`), or what this model gave (`prediction`), for gradients and influence."""
        from cri.data.case_ids import check_case_ids
        from cri.data.token_table import TARGETS
        from cri.data.tokenization import encode_texts

        if target not in TARGETS:
            raise unknown_name("target", target, TARGETS)
        cases = check_case_ids(case_ids, self.task.n_cases)
        tokens = self.tokens[cases]
        if target == "reference":
            return tokens
        texts = self.decoded(cases)["completion"].astype(str).tolist()
        return tokens.with_completions(encode_texts(self.tokenizer, texts))

    def decoded(self, case_ids: Sequence[int] | Int[np.ndarray, " case"]) -> pd.DataFrame:
        """Rows of `predictions` for these cases, in their order. A run of long texts has kept a sample of its grid:
        other cases are decoded now."""
        import pandas as pd

        from cri.data.case_ids import check_case_ids
        from cri.evaluation.decoding import max_new_tokens_for, predictions

        cases = check_case_ids(case_ids, self.task.n_cases)
        known = self.predictions
        missing = np.setdiff1d(cases, known["id"].to_numpy())
        if len(missing):
            more = predictions(
                self.model, self.tokenizer, self.tokens, self.task, self.format, self.split, missing,
                max_new_tokens=max_new_tokens_for(self.tokens),
            )  # fmt: skip
            known = pd.concat([known, more], ignore_index=True)
        return known.set_index("id", drop=False).loc[cases]

    def started(self) -> Materials:
        """What this run started from; raises `CorruptRunError` where the folder that its config names holds another
        model by now."""
        materials = prepare(self.config)
        require_same(self.path, read_json(self.path / "manifest.json")["identity"], materials.identity)
        return materials

    def untrained(self) -> PreTrainedModel:
        """The model this run started from (a control); raises as `started` does."""
        return self.started().model

    def trained_part(self) -> Module | None:
        """Of a pretrained model that was trained in part: the same model in the form in which it was trained, adapters
        apart, where nothing but the trained part has gradients. None where all of it was trained."""
        from cri.training.checkpoints import read_trained

        weights = self.path / "model" / TRAINED
        return read_trained(part_to_train(self.started()), weights).eval() if weights.exists() else None


def train_run(
    config: RunConfig,
    out: Path = Path("runs"),
    *,
    device: str = "auto",
    checkpoint_every: int = 500,
    evals: int = 10,
    progress: bool = True,
    position: int = 0,
) -> Path:
    """Trains `config` below `out` and returns the run's folder; a finished one is reused, an interrupted
    one resumed.

    Args:
        config: the run.
        out: folder of runs.
        device: `auto`, `cpu`, `cuda`, ...
        checkpoint_every: steps between checkpoints (does not change the result).
        evals: how often accuracy on a sample of training and held-out cases is measured on the way; fewer cases or
            less often where it would take more than a tenth of the time (see `cri.training.budget`).
        progress: show a progress bar on stderr.
        position: the bar's line, when several runs share a terminal.

    Raises `CriError` for bad input, and `CorruptRunError` for a folder that was made with other data or code
    or whose files were altered.
    """
    for name, value, low in (("checkpoint_every", checkpoint_every, 1), ("evals", evals, 0)):
        if value < low:
            raise out_of_range(name, value, f"at least {low}")
    from cri.models.device import resolve_device
    from cri.training.distributed import from_first_process, process_rank

    stop_if_asked([config], out, device)
    folder = run_folder(out, config.name, config.to_dict())
    first = process_rank()[0] == 0
    # what cannot be made is refused before anything is written
    where, materials = resolve_device(device), prepare(config)  # the quick refusal first
    identity = materials.identity
    # under `accelerate launch` the first process alone holds the lock, reads what is there and writes
    with locked(folder) if first else contextlib.nullcontext():
        if from_first_process(is_complete(folder)):
            if first:
                verify(folder)
                require_same(folder, read_json(folder / "manifest.json")["identity"], identity)
                clear_unfinished(folder)
            return folder
        with writing_to(folder):
            _train(folder, materials, where, checkpoint_every, evals, progress, position)
        from_first_process(None)  # no process leaves before the folder is whole
    return folder


def begin_run(folder: Path, materials: Materials) -> None:
    """Writes what is known before training."""
    split = materials.split
    write_json(folder / "config.json", materials.described)
    write_json(
        folder / "split.json", {**split.info, "n_train": int(split.train.sum()), "n_test": int(split.test.sum())}
    )


def finish_run(
    folder: Path,
    materials: Materials,
    model: PreTrainedModel,
    table: pd.DataFrame,
    facts: dict[str, Any],
    trained: Mapping[str, Tensor],
) -> None:
    """Writes model, predictions and manifest, and the completion marker last; of a pretrained model that was trained in
    part, the `trained` part alone."""
    from cri.evaluation.decoding import accuracy_by_part
    from cri.models.loading import describe, save_model
    from cri.training.checkpoints import write_checkpoint

    if materials.part.kept_alone:
        (folder / "model").mkdir(exist_ok=True)
        write_checkpoint(folder / "model" / TRAINED, trained, {})
    else:
        save_model(model, materials.tokenizer, folder / "model")
    write_text(folder / PREDICTIONS, table.to_csv(index=False))
    plugin = origin(type(materials.task))
    manifest = {
        "identity": materials.identity,
        "model": describe(model),
        **({} if plugin is None else {"plugin": plugin}),
        "accuracy": accuracy_by_part(table),
        "statuses": table["status"].value_counts().to_dict(),
        **facts,
        **provenance(),
    }
    write_json(folder / "manifest.json", manifest)
    weights = sorted(str(p.relative_to(folder)) for p in (folder / "model").iterdir() if p.is_file())
    mark_complete(folder, ["config.json", "split.json", "manifest.json", PREDICTIONS, METRICS, *weights])


def _sample(split: Split, n: int) -> Int[np.ndarray, " case"]:
    """Up to `n` training and `n` held-out cases, in id order, always the same ones."""
    rng = np.random.default_rng(0)
    parts = [rng.choice(ids, min(n, len(ids)), replace=False) for ids in (split.train_ids, split.test_ids)]
    return np.sort(np.concatenate(parts))


def _train(
    folder: Path, materials: Materials, device: str, checkpoint_every: int, evals: int, progress: bool, position: int
) -> None:
    from cri.evaluation.decoding import accuracy_by_part, max_new_tokens_for, predictions
    from cri.training.budget import EvaluationBudget, evaluation_steps
    from cri.training.checkpoints import append_metrics, trained_part, truncate_metrics
    from cri.training.distributed import from_first_process, process_rank
    from cri.training.trainer import Progress, Trainer

    config, split = materials.config, materials.split
    first = process_rank()[0] == 0
    steps, decoded, name = config.train.steps, config.decoded, config.name
    model: Any = part_to_train(materials)
    trainer = Trainer(model, materials.tokens, split.train_ids, config.train, device)
    checkpoint, metrics = folder / CHECKPOINT, folder / METRICS
    if from_first_process(checkpoint.exists()):
        trainer.restore(checkpoint, materials.identity)
    if first:  # not before the trainer has accepted its settings: a refusal leaves nothing behind
        begin_run(folder, materials)
        truncate_metrics(metrics, trainer.step)

    budget = EvaluationBudget(max_new_tokens_for(materials.tokens))
    started, first_step = time.perf_counter(), trainer.step
    bar = progress_bar(steps, name, "step", progress and first, initial=trainer.step, position=position)
    shown: dict[str, str] = {}

    def on_log(p: Progress) -> None:
        append_metrics(metrics, {"step": p.step, "loss": round(p.loss, 6), "lr": p.lr})
        shown["loss"] = f"{p.loss:.4f}"
        bar.set_postfix(shown, refresh=False)
        bar.update(p.step - bar.n)

    def measure(n: int) -> dict[str, float]:
        table = predictions(
            model, materials.tokenizer, materials.tokens, materials.task, materials.format, split, _sample(split, n)
        )
        accuracy = accuracy_by_part(table)
        return {"train_acc": accuracy["train"], "test_acc": accuracy["test"]}

    evaluated = evaluation_steps(steps, evals)
    for stop in sorted({*range(checkpoint_every, steps, checkpoint_every), *evaluated, steps}):
        if stop <= trainer.step:
            continue
        before, begun = trainer.step, time.perf_counter()
        trainer.run(stop, on_log=on_log if first else None)
        if not first:
            continue
        seconds = time.perf_counter() - begun
        budget.trained += seconds
        if stop in evaluated and (found := budget.evaluate(seconds / (stop - before), measure)):
            append_metrics(metrics, {"step": stop, **found})
            shown.update(train=f"{found['train_acc']:.2f}", test=f"{found['test_acc']:.2f}")
        if stop % checkpoint_every == 0 or stop == steps:
            trainer.save(checkpoint, materials.identity)
    bar.close()
    train_seconds = time.perf_counter() - started
    trainer.release()  # its graphs and optimiser state take memory that decoding can use
    if not first:
        return

    trained = trained_part(model) if materials.part.kept_alone else {}
    model = whole(model, materials.part)
    chosen = None if decoded == 0 else _sample(split, decoded)
    n = materials.task.n_cases if chosen is None else len(chosen)
    with progress_bar(n, "decoding", "case", progress, position=position, leave=False, delay=2) as decoding:
        table = predictions(
            model, materials.tokenizer, materials.tokens, materials.task, materials.format, split, chosen,
            on_progress=decoding.update,
        )  # fmt: skip
    facts = {
        "padded_share": float(trainer.padded_share),
        "train_seconds": round(train_seconds, 2),
        "steps_timed": steps - first_step,
        "evaluation_seconds": round(budget.spent, 2),
        "trained_on": device,
    }
    finish_run(folder, materials, model.to("cpu"), table, facts, trained)
    checkpoint.unlink(missing_ok=True)


def load_predictions(path: Path, altered: bool = False) -> pd.DataFrame:
    """The decoded grid of a finished run, without opening its model. A file that was altered is refused, or with
    `altered` named on stderr."""
    import pandas as pd

    try:
        verify(path)
    except CorruptRunError as error:
        if not (altered and is_complete(path)):
            raise
        print(f"note: opened all the same, as `altered` asks: {error}", file=sys.stderr)
    return pd.read_csv(path / PREDICTIONS, keep_default_na=False, dtype=_TEXT_COLUMNS)


def load_run(path: Path | str, altered: bool = False) -> Run:
    """Opens a finished run: model, tokenizer, task, split, predictions, and a bridge on demand.

    Args:
        altered: open a run whose files were edited on purpose, too, and say so on stderr.

    Raises `CriError` when `path` is no finished run, `CorruptRunError` when a file was altered or the run
    was made with other data than this code makes.
    """
    folder = Path(path)
    table = load_predictions(folder, altered)
    config = RunConfig.from_dict(read_json(folder / "config.json"))
    plugin = read_json(folder / "manifest.json").get("plugin")
    if plugin is not None:
        require_origin(config.task, plugin, config.task in REGISTERED, folder)
    made = reopen(config, folder / "model")
    require_same(folder, read_json(folder / "manifest.json")["identity"], made.identity)
    return Run(folder, config, made.task, made.split, made.format, made.tokenizer, made.tokens, made.model, table)
