"""What a user would run instead of this package, written as they would write it: the opponents of `performance`.

- The loop that the paper's public code describes: fp32, every sequence padded to 50 tokens, batch 30, loss on prompt
  and padding, validation decoding one case at a time.
- Hugging Face's `Trainer`, well configured: bf16 on a GPU, dynamic padding, fused AdamW, loss on the completion.
- `generate`, one case at a time and batched.
"""

from __future__ import annotations

import tempfile
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int

from cri.config import TrainConfig
from cri.data import TokenTable

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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


def generate_seconds(
    model: PreTrainedModel,
    tokens: TokenTable,
    case_ids: Int[np.ndarray, " case"],
    device: str,
    *,
    batch_size: int,
    max_new_tokens: int,
) -> float:
    """Seconds for greedy `generate` over `case_ids` (prompts of one length), `batch_size` at a time."""
    model = model.to(device).eval()  # pyright: ignore[reportArgumentType]
    options: dict[str, Any] = {"do_sample": False, "pad_token_id": tokens.pad, "eos_token_id": tokens.eos}

    def decode(ids: np.ndarray) -> None:
        length = int(tokens.prompt_lengths[ids[0]])
        prompt = tokens.ids[ids, :length].to(device)
        mask = torch.ones_like(prompt)
        model.generate(prompt, attention_mask=mask, max_new_tokens=max_new_tokens, **options).cpu()  # pyright: ignore[reportCallIssue]

    decode(case_ids[:batch_size])
    synchronize(device)
    started = time.perf_counter()
    for start in range(0, len(case_ids), batch_size):
        decode(case_ids[start : start + batch_size])
    return time.perf_counter() - started


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
            gradient_checkpointing=config.gradient_checkpointing,
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
