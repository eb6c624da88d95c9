"""What a user would run instead of this package, written as they would write it: the baselines of `performance`.

- The loop that the paper's public code describes: fp32, every sequence padded to 50 tokens, batch 30, loss on prompt
  and padding, validation decoding one case at a time.
- Hugging Face's `Trainer`, well configured: bf16 on a GPU, dynamic padding, fused AdamW, loss on the completion.
- `generate`, one case at a time and in padded batches.
- kronfluence for influence scores, and `transformer_lens.patching` for interchange interventions.
"""

from __future__ import annotations

import copy
import tempfile
import time
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn

from cri.config import TrainConfig
from cri.data.token_table import TokenTable
from cri.errors import MissingDependencyError

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel

    from cri.interventions.pairs import Pairs


def synchronize(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def paper_loop_seconds(
    model: PreTrainedModel,
    tokens: TokenTable,
    train_ids: Int[np.ndarray, " train"],
    device: str,
    *,
    steps: int,
    batch_size: int = 30,
    padded_to: int = 50,
    warmup: int = 5,
) -> float:
    """Seconds of `steps` training steps of the public code's loop (a forward and backward pass, AdamW, a scheduler)."""
    from torch.utils.data import DataLoader, TensorDataset
    from transformers import get_cosine_schedule_with_warmup

    ids = torch.full((len(tokens), padded_to), tokens.pad)
    ids[:, : tokens.ids.shape[1]] = tokens.ids
    mask = torch.zeros_like(ids)
    mask[:, : tokens.ids.shape[1]] = tokens.token_mask.long()
    loader = DataLoader(TensorDataset(ids[train_ids], mask[train_ids]), batch_size, shuffle=True, drop_last=True)
    model = model.to(device).train()  # pyright: ignore[reportArgumentType]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    scheduler = get_cosine_schedule_with_warmup(optimizer, 319, 31_900)
    done, started = 0, 0.0
    while done < steps + warmup:
        for batch, attention in loader:
            batch, attention = batch.to(device), attention.to(device)
            loss = model(input_ids=batch, attention_mask=attention, labels=batch).loss
            loss.backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            loss.item()  # shown on a progress bar
            done += 1
            if done == warmup:
                synchronize(device)
                started = time.perf_counter()
            if done == steps + warmup:
                break
    synchronize(device)
    return time.perf_counter() - started


def timed_generate(
    model: PreTrainedModel,
    tokens: TokenTable,
    case_ids: Int[np.ndarray, " case"],
    device: str,
    *,
    batch_size: int,
    max_new_tokens: int,
) -> tuple[float, list[list[int]]]:
    """Greedy `generate` over `case_ids` in their order, `batch_size` at a time, prompts padded on the left.

    Returns the seconds, and the tokens that each case wrote, with its end of sequence where that came in time.
    """
    model = model.to(device).eval()  # pyright: ignore[reportArgumentType]
    options: dict[str, Any] = {"do_sample": False, "pad_token_id": tokens.pad, "eos_token_id": tokens.eos}

    def write(ids: np.ndarray) -> torch.Tensor:
        lengths = tokens.prompt_lengths[ids]
        width = int(lengths.max())
        from_end = torch.arange(width, 0, -1)  # of each position
        mask = from_end <= lengths[:, None]
        where = (lengths[:, None] - from_end).clamp(min=0)
        prompt = tokens.ids[ids].gather(1, where).masked_fill(~mask, tokens.pad)
        out: torch.Tensor = model.generate(  # pyright: ignore[reportAssignmentType, reportCallIssue]
            prompt.to(device), attention_mask=mask.long().to(device), max_new_tokens=max_new_tokens, **options
        )
        return out[:, width:].cpu()

    write(case_ids[:batch_size])
    synchronize(device)
    started = time.perf_counter()
    batches = [write(case_ids[start : start + batch_size]) for start in range(0, len(case_ids), batch_size)]
    seconds = time.perf_counter() - started
    written = [row for batch in batches for row in batch.tolist()]
    return seconds, [row[: row.index(tokens.eos) + 1] if tokens.eos in row else row for row in written]


def hf_trainer_seconds(
    model: PreTrainedModel,
    tokens: TokenTable,
    train_ids: Int[np.ndarray, " train"],
    config: TrainConfig,
    device: str,
    *,
    steps: int,
    warmup: int = 10,
    micro_batch: int | None = None,
    compiled: bool = False,
) -> float:
    """Seconds of `steps` optimiser steps of `transformers.Trainer` with the settings of `config`, after `warmup`."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    rows = [
        {"input_ids": tokens.ids[i, :n].tolist(), "labels": [-100] * p + tokens.ids[i, p:n].tolist()}
        for i, p, n in zip(train_ids.tolist(), tokens.prompt_lengths[train_ids].tolist(),
                           tokens.lengths[train_ids].tolist(), strict=True)
    ]  # fmt: skip

    def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in batch)
        padded = {"input_ids": tokens.pad, "labels": -100}
        out = {k: torch.tensor([row[k] + [v] * (width - len(row[k])) for row in batch]) for k, v in padded.items()}
        lengths = torch.tensor([len(row["input_ids"]) for row in batch])
        return {**out, "attention_mask": (torch.arange(width) < lengths[:, None]).long()}

    class Clock(TrainerCallback):
        started = stopped = 0.0

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == warmup:
                synchronize(device)
                self.started = time.perf_counter()
            if state.global_step == warmup + steps:
                synchronize(device)
                self.stopped = time.perf_counter()

    cuda = torch.device(device).type == "cuda"
    size = micro_batch or config.batch_size
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=warmup + steps,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=config.batch_size // size,
            learning_rate=config.lr,
            weight_decay=config.weight_decay,
            adam_beta2=config.beta2,
            max_grad_norm=config.grad_clip,
            lr_scheduler_type="cosine",
            bf16=cuda,
            use_cpu=not cuda,
            optim="adamw_torch_fused",
            activation_checkpointing=config.gradient_checkpointing,
            torch_compile=compiled,
            dataloader_num_workers=4 if cuda else 0,
            dataloader_pin_memory=cuda,
            dataloader_drop_last=len(rows) >= size,
            logging_steps=50,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=rows,  # pyright: ignore[reportArgumentType]
            data_collator=collate,
            callbacks=[clock],  # pyright: ignore[reportArgumentType]
        )
        trainer.train()
    return clock.stopped - clock.started


def linear_only(model: PreTrainedModel) -> tuple[nn.Module, list[str]]:
    """The GPT-2 with every `Conv1D` replaced in place by an equal `nn.Linear`, and the names of its linear layers:
    what kronfluence tracks."""
    from transformers.pytorch_utils import Conv1D

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv1D):
                n_in, n_out = child.weight.shape
                linear = nn.Linear(n_in, n_out, dtype=child.weight.dtype)
                linear.weight = nn.Parameter(child.weight.detach().T.contiguous())
                linear.bias = nn.Parameter(child.bias.detach().clone())
                setattr(parent, name, linear)
    return model, [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


KRONFLUENCE_DAMPING = 0.1
"""Times a block's mean eigenvalue: what kronfluence takes where it is given none."""


def kronfluence_scores(
    model: nn.Module,
    layers: list[str],
    train: TokenTable,
    test: TokenTable,
    strategy: Literal["ekfac", "identity"],
    *,
    batch_size: int,
) -> tuple[Float[np.ndarray, "train test"], float]:
    """Scores by kronfluence over the linear `layers`, and the CPU seconds they took.

    `ekfac` fits the empirical Fisher on `train` and damps as kronfluence does by itself (0.1 of a block's mean
    eigenvalue); `identity` is GradDot. The output is minus the summed loss of a completion, as in training.

    Raises `MissingDependencyError` where kronfluence, an optional development dependency, is not installed.
    """
    try:
        from kronfluence.analyzer import Analyzer, prepare_model
        from kronfluence.arguments import FactorArguments, ScoreArguments
        from kronfluence.task import Task
    except ImportError as error:
        raise MissingDependencyError(
            f"kronfluence: not installed ({error}); pip install --no-deps kronfluence einconv opt-einsum"
        ) from error

    class LanguageModelling(Task):
        def compute_train_loss(self, batch: Any, model: Any, sample: bool = False) -> torch.Tensor:
            ids, targets, _ = batch
            logits = model(input_ids=ids, use_cache=False).logits.flatten(0, 1)
            return nn.functional.cross_entropy(logits, targets.flatten(), ignore_index=-100, reduction="sum")

        def compute_measurement(self, batch: Any, model: Any) -> torch.Tensor:
            return self.compute_train_loss(batch, model)

        def get_influence_tracked_modules(self) -> list[str]:
            return layers

        def get_attention_mask(self, batch: Any) -> torch.Tensor:
            return batch[2]

    def dataset(tokens: TokenTable) -> Any:
        targets = torch.where(tokens.target_mask, tokens.ids, -100)[:, 1:]
        return torch.utils.data.TensorDataset(tokens.ids[:, :-1], targets, tokens.token_mask[:, 1:].long())

    task = LanguageModelling()
    prepared = prepare_model(copy.deepcopy(model), task)  # it wraps the layers in place
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer("baseline", prepared, task, cpu=True, output_dir=folder, disable_tqdm=True)
        started = time.process_time()
        analyzer.fit_all_factors(
            "factors", dataset(train), per_device_batch_size=batch_size,
            factor_args=FactorArguments(strategy=strategy, use_empirical_fisher=True),
        )  # fmt: skip
        analyzer.compute_pairwise_scores(
            "scores", "factors", dataset(test), dataset(train), per_device_query_batch_size=batch_size,
            per_device_train_batch_size=batch_size,
            score_args=ScoreArguments(damping_factor=None),
        )  # fmt: skip
        seconds = time.process_time() - started
        scores: Any = analyzer.load_pairwise_scores("scores")
    return scores["all_modules"].T.numpy(), seconds


def patching_cell_by_cell(bridge: TransformerBridge, pairs: Pairs) -> dict[str, Float[np.ndarray, "pos pair"]]:
    """What `transformer_lens.patching` sweeps, one forward pass of all pairs a cell: logit(rule) - logit(base) of
    every pair when the source's activation is written into the base at a site and position up to `pairs.read`.

    The sites are the residual stream into every layer, and every layer's attention and MLP output.
    """
    import transformer_lens.patching as tl

    from cri.interventions.pairs import read_accounts

    n_layers = bridge.cfg.n_layers
    cells = tl.make_df_from_ranges([n_layers, pairs.read + 1], ["layer", "pos"])

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return read_accounts(logits[:, pairs.read :], pairs)["toward_rule"]

    sweeps = {
        "resid_pre": tl.get_act_patch_resid_pre,
        "attn_out": tl.get_act_patch_attn_out,
        "mlp_out": tl.get_act_patch_mlp_out,
    }
    out = {}
    with torch.no_grad():
        _, cache = bridge.run_with_cache(pairs.source_ids)
        for component, sweep in sweeps.items():
            found = sweep(bridge, pairs.base_ids, cache, metric, index_axis_names=None, index_df=cells, reduce="none")
            values = found.values.view(n_layers, pairs.read + 1, len(pairs)).numpy()
            out |= {f"blocks.{i}.hook_{component}": value for i, value in enumerate(values)}
    return out
