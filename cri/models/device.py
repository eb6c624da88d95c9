"""What depends on the device: which one it is, number formats, how much fits, what compiling costs.

Training, decoding and stacks of models ask here what fits on a GPU. Attribution plans its own batches from `max_bytes`
(`cri.attribution.streaming.plan_memory`), and a run's optimiser step takes `TrainConfig.batch_size` cases.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch

from cri.config import TrainConfig
from cri.data.token_table import TokenTable
from cri.errors import CriError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

MEMORY_BANDWIDTH = 2e12
"""Bytes a second that a large GPU moves, for estimates of what compiling saves."""


def resolve_device(device: str) -> str:
    """The device to compute on: `auto` is the GPU where there is one. Raises `CriError` for one that cannot be used."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and device in ("auto", "cuda"):
        return str(process_state().device)  # each process its own
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CriError(f"device: {device!r} cannot be used here ({str(error).splitlines()[0]})") from error
    where = torch.device(device)
    if where.type == "meta":
        raise CriError("device: 'meta' holds no numbers; choose auto, cpu or cuda")
    if where.type == "cuda" and where.index is not None:
        torch.cuda.set_device(where)  # streams and graphs are made on the current device
    return device


def process_state() -> Any:
    """accelerate's state of this process, which tells its rank and its device. The other processes wait while the first
    one decodes, which may take longer than torch's default timeout of ten minutes."""
    from accelerate import PartialState

    return PartialState(timeout=timedelta(days=1))


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """Within the block, matrix products in bfloat16 if `precision` is `bf16`. Casts of weights are not kept: a traced
    step casts the present ones every time."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


@contextlib.contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """Float32 matrix products in tf32 within the block if `precision` is `tf32`, in full otherwise."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def same_threads() -> Iterator[None]:
    """Torch's number of threads is after the block what it was before. numba, with its first parallel loop, sets its
    own for the whole process, and what is trained there later differs in the last digits."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def rounding(precision: str) -> float:
    """Share of its norm by which a compiled gradient may be off: several times the largest error of correct ones (1e-5
    in tf32 on a GPU, 7e-3 in bf16 on a CPU). An incorrect one on a GPU had an error of 3e-2 (`studies/log.md`)."""
    return 2e-2 if precision == "bf16" else 1e-3


def give_memory_back(device: torch.device) -> None:
    """Frees device memory that nothing refers to. After an error, call it outside the `except` block: inside the block,
    the error's stack frames still refer to the tensors that did not fit."""
    gc.collect()  # a trainer and its graphs refer to each other
    if device.type == "cuda":
        torch.cuda.empty_cache()


def bucket(width: int, longest: int) -> int:
    """The width that batches of up to `width` tokens are padded to, so that few widths occur: eight in each octave,
    at least 16 apart. Each width is a CUDA graph, and a compilation, of its own."""
    apart = max(16, 2 ** math.floor(math.log2(max(1, width))) // 8)
    return min(longest, math.ceil(width / apart) * apart)


def whole_tiles(batch: int, device: torch.device) -> int:
    """The batch size to pad to: on a GPU matrix units work in eights."""
    return math.ceil(batch / 8) * 8 if device.type == "cuda" else batch


def sequences_decoded(model: PreTrainedModel, device: torch.device, share: float = 0.25) -> int:
    """Sequences x positions to decode at once: those whose keys and values (twice, as copies are made) fit into `share`
    of the free memory."""
    if device.type != "cuda":
        return max(1, int(share * (1 << 18)))
    shape = model.config
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    per_position = 2 * 2 * 4 * shape.num_hidden_layers * heads * (shape.hidden_size // shape.num_attention_heads)
    # what the prompt's forward pass keeps at once is wider than the cache, but only one layer deep
    per_position += 4 * 16 * shape.hidden_size
    return max(int(share * (1 << 14)), int(share * torch.cuda.mem_get_info(device)[0]) // per_position)


def cases_forward(
    shape: PretrainedConfig, n_models: int, width: int, n_logits: int, device: torch.device, share: float = 0.25
) -> int:
    """Cases of `width` tokens that a stack of models reads at once without gradients, `n_logits` positions of each
    being scored, in `share` of the free memory: one layer's activations (about 16 numbers a token and model dimension
    in a block: residual stream, queries, keys, values, four times as many in the MLP, and copies) and the logits."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 1 << 30
    per_case = 4 * n_models * (16 * width * shape.hidden_size + 4 * n_logits * shape.vocab_size)
    return max(1, int(share * free) // per_case)


def bytes_per_replica(train: TrainConfig, tokens: TokenTable, shape: PretrainedConfig, n_parameters: int) -> int:
    """Upper estimate of the device memory that one model of a stack takes in training (tests check that it lies between
    the measured peak and 2.2 times the peak).

    Eight tensors of its parameters: weights, gradient, its scaled copy, two moments, and what AdamW holds on the way.
    For the backward pass, each token and layer keeps about 24 numbers per model dimension (norms, queries, keys and
    values, and twice the MLP's hidden layer, which is four times as wide) and four attention maps; each scored token
    keeps its logits, their exponentials and their gradients.
    """
    n_tokens = train.batch_size * tokens.ids.shape[1]
    n_targets = train.batch_size * int((tokens.lengths - tokens.prompt_lengths).max())
    if train.loss_on == "all":
        n_targets = n_tokens
    attention = shape.num_attention_heads * tokens.ids.shape[1] * 4
    per_token = shape.num_hidden_layers * (24 * shape.hidden_size + attention)
    return 4 * (8 * n_parameters + n_tokens * per_token + n_targets * shape.vocab_size * 4)


def replicas_at_once(bytes_each: int, device: torch.device) -> int:
    """How many models of a stack the device's free memory holds; a seventh is left for what libraries allocate."""
    if device.type != "cuda":
        return 8
    return max(1, int(0.85 * torch.cuda.mem_get_info(device)[0]) // bytes_each)


def compiling_pays(shape: PretrainedConfig, train: TrainConfig, longest: int, device: torch.device) -> bool:
    """Whether torch.compile is expected to save more time than it takes, in training one model.

    It saves kernel launches (about 35 of 2 microseconds a layer and step) and about half of the memory traffic
    between matrix products (some 150 numbers a token, layer and model dimension); it takes some seconds a layer for
    each width of batch. (On CPU it never paid: 25 against 28 ms a step for `nano`, after 47 s.)
    """
    if device.type != "cuda":
        return False
    n_layers, d_model = shape.num_hidden_layers, shape.hidden_size
    n_widths = len({bucket(w, longest) for w in range(longest // 2, longest + 1)})
    per_layer = 70e-6 + 0.5 * train.batch_size * longest * d_model * 150 * 4 / MEMORY_BANDWIDTH
    return train.steps * n_layers * per_layer > n_widths * (10 + 2 * n_layers)


def compiling_a_stack_pays(
    shape: PretrainedConfig, train: TrainConfig, longest: int, bytes_held: int, device: torch.device
) -> bool:
    """Whether torch.compile saves more time than it takes, in training a stack that holds `bytes_held`.

    Uncompiled, these models are bound by memory: the estimate is the bytes they move (five times what they hold, as
    counted for `nano`), of which compilation saves about half; it takes some seconds a layer for each width of batch.
    """
    if device.type != "cuda":
        return False
    seconds_saved = 0.5 * train.steps * 5 * bytes_held / MEMORY_BANDWIDTH
    return seconds_saved > math.ceil(longest / 16) * (10 + 4 * shape.num_hidden_layers)
