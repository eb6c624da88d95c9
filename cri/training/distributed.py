"""One model trained by several processes (`accelerate launch`): who this process is, sums and messages among them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cri.models.device import process_state


def process_rank() -> tuple[int, int]:
    """This process's rank and the number of processes (0 and 1 unless started by `accelerate launch`, or torchrun)."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    state = process_state()
    return state.process_index, state.num_processes


def from_first_process(value: Any) -> Any:
    """The first process's `value`, in every process; all wait for it."""
    if process_rank()[1] == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def sum_over_processes(tensors: Sequence[Tensor]) -> None:
    """Adds up each tensor over all processes, in place, in one exchange."""
    flat = torch.cat([t.flatten() for t in tensors])
    torch.distributed.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
