"""Layers whose per-example gradients can be had from one backward pass over a batch, and those gradients.

Every trainable parameter becomes (a part of) a *block*: a matrix whose gradient for one example is a sum
of outer products over the positions of that example,

    g = sum_u left_u^T right_u,      left_u [pos, m], right_u [pos, n], g [m, n],

one term u for each use of the parameter:

- `nn.Linear` and Hugging Face's `Conv1D`: left = gradient at the output, right = input with a 1
  appended when there is a bias (homogeneous coordinate), so weight and bias are one block [out, in + 1];
- `nn.Embedding`: left = the one-hot token, kept as its index; right = gradient at the output;
- a tied head: both of these, as two uses of one block;
- LayerNorm and RMSNorm gains, their biases, and the bias of a tied head: vectors, m = 1, with the
  gradient itself on the right.

The pieces come from forward hooks (inputs) and `torch.autograd.grad` at the hooked outputs; no gradient of
a parameter is ever formed by autograd.
"""

from __future__ import annotations

import fnmatch
import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from cri.data.token_table import TokenTable
from cri.errors import CriError
from cri.models.positions import positions_of

Kind = Literal["linear", "embedding", "gain", "shift"]


class Use(NamedTuple):
    """One module's use of a block; `columns` of a linear one: (has the weight, has the bias)."""

    name: str
    module: nn.Module
    kind: Kind
    columns: tuple[bool, bool] = (True, False)


@dataclass(frozen=True, eq=False)
class Block:
    """A trainable matrix (or a vector, with one row), laid out [out, in] or [token, embedding]."""

    parameters: tuple[str, ...]
    shape: tuple[int, int]
    uses: tuple[Use, ...]

    @property
    def name(self) -> str:
        return " + ".join(self.parameters)

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]


class Part(NamedTuple):
    """Factors of one use: left is [case, pos, m], or the indices [case, pos] of one-hot rows."""

    left: Shaped[Tensor, "case pos *m"]
    right: Float[Tensor, "case pos n"]


Captured = Mapping[nn.Module, Sequence[tuple[Tensor, Tensor]]]
"""Input and output gradient of each call of each hooked module."""


def is_norm(module: nn.Module) -> bool:
    # every Hugging Face family brings its own RMSNorm class; they share the name and an elementwise gain
    return isinstance(module, nn.LayerNorm) or type(module).__name__.endswith(("RMSNorm", "LayerNorm"))


def _unsupported(name: str, module: nn.Module, parameter: str) -> CriError:
    return CriError(
        f"parameters: no per-example gradient for {parameter!r}, of the layer {name!r} ({type(module).__name__}); "
        "supported are Linear, Conv1D, Embedding, LayerNorm and RMSNorm; leave it out by naming the parameters wanted"
    )


def find_blocks(model: nn.Module, parameters: Sequence[str] = ("*",)) -> list[Block]:
    """Blocks of the trainable parameters whose name matches one of the glob patterns `parameters`.

    A parameter with several names (a tied head) is selected by any of them. Frozen parameters belong to
    no block. Raises `CriError` for a pattern that matches nothing and for a selected parameter of a layer
    that is not supported, naming the layer.
    """
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            names.setdefault(parameter, []).append(name)
    everything = [name for group in names.values() for name in group]
    for pattern in parameters:
        if not fnmatch.filter(everything, pattern):
            shown = ", ".join(everything[:8]) + (", ..." if len(everything) > 8 else "")
            raise CriError(f"parameters: {pattern!r} matches no trainable parameter; there are {shown or 'none'}")
    chosen = {p for p, group in names.items() if any(fnmatch.fnmatch(n, q) for n in group for q in parameters)}

    uses: dict[nn.Parameter, list[Use]] = {}
    shared = {p for p in chosen if len(names[p]) > 1}
    for module_name, module in model.named_modules():
        own = {key: p for key, p in module.named_parameters(recurse=False) if p in chosen}
        weight, bias = own.get("weight"), own.get("bias")
        if isinstance(module, nn.Linear | Conv1D):
            supported = {"weight", "bias"}
            # a homogeneous coordinate belongs to one matrix only, so a shared one leaves its bias apart
            joined = bias is not None and weight is not None and not {weight, bias} & shared
            if weight is not None:
                uses.setdefault(weight, []).append(Use(module_name, module, "linear", (True, joined)))
            if bias is not None and not joined:
                uses.setdefault(bias, []).append(Use(module_name, module, "shift"))
        elif isinstance(module, nn.Embedding):
            plain = module.max_norm is None and not module.scale_grad_by_freq
            supported = {"weight"} if plain else set()
            if weight is not None:
                uses.setdefault(weight, []).append(Use(module_name, module, "embedding"))
        elif is_norm(module):
            supported = {key for key in ("weight", "bias") if key in own and own[key].ndim == 1}
            if weight is not None:
                uses.setdefault(weight, []).append(Use(module_name, module, "gain"))
            if bias is not None:
                uses.setdefault(bias, []).append(Use(module_name, module, "shift"))
        else:
            supported = set()
        for key, parameter in own.items():
            if key not in supported:
                raise _unsupported(module_name, module, names[parameter][0])

    blocks = []
    for parameter, group in uses.items():
        use = group[0]
        own_names = [names[parameter][0]]
        if use.kind in ("gain", "shift"):
            shape = (1, parameter.numel())
        else:
            rows, columns = parameter.shape
            if isinstance(use.module, Conv1D):
                rows, columns = columns, rows
            if use.columns[1]:
                own_names.append(names[use.module.bias][0])  # pyright: ignore[reportArgumentType]
            shape = (rows, columns + use.columns[1])
        blocks.append(Block(tuple(own_names), shape, tuple(group)))
    return blocks


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off, whatever the mode of each submodule, and back again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def capture(
    model: nn.Module,
    blocks: Collection[Block],
    tokens: TokenTable,
    objective: Callable[[Float[Tensor, "case next vocab"]], Float[Tensor, " case"]],
) -> Captured:
    """Inputs and output gradients of every layer in `blocks`, for the sum of `objective` over the batch. Where the head
    is in no block, `objective` sees logits of 0 at tokens that are not targets.

    The model sees all tokens but the last column; logits at position t score token t + 1. Padding is on
    the right, where a causal model's real positions never attend to it, so no mask is needed. Examples
    must not interact (no batch statistics): then the gradient at row i is that of example i alone.
    """
    modules = {use.module: use.name for block in blocks for use in block.uses}
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def remember(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((module, args[0].detach(), output))

    inputs = tokens.ids[:, :-1]
    extra: dict[str, Tensor] = {}
    accepted = inspect.signature(model.forward).parameters
    if "position_ids" in accepted and positions_of(model) is None:
        # given per row: otherwise learned positions are looked up once for the whole batch
        extra["position_ids"] = torch.arange(inputs.shape[1], device=inputs.device).expand_as(inputs)
    options = {"use_cache": False} if "use_cache" in accepted else {}
    hooks = [module.register_forward_hook(remember) for module in modules]
    scored: Tensor | None = None
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # pyright: ignore[reportCallIssue]
    if isinstance(head, nn.Module) and head not in modules:
        # 49,152 logits a token, as pretrained models have, cost as much as eight of their layers
        scored = tokens.target_mask[:, 1:]
        hooks.append(head.register_forward_pre_hook(lambda _, args: (args[0][scored],)))
    try:
        with evaluating(model), torch.enable_grad():
            logits = model(input_ids=inputs, **extra, **options).logits
            if scored is not None:
                everywhere = logits.new_zeros(*scored.shape, logits.shape[-1])
                logits = everywhere.index_put((scored,), logits)
            total = objective(logits).sum()
            outputs = [output for _, _, output in calls]
            gradients = torch.autograd.grad(total, outputs, allow_unused=True, materialize_grads=True)
    finally:
        for hook in hooks:
            hook.remove()
    captured: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}
    for (module, seen, output), gradient in zip(calls, gradients, strict=True):
        if output.ndim != 3 or output.shape[:2] != inputs.shape:
            raise CriError(
                f"parameters: the layer {modules[module]!r} ({type(module).__name__}) puts out {tuple(output.shape)}, "
                f"not one row for each of {inputs.shape[0]} examples and {inputs.shape[1]} positions"
            )
        captured.setdefault(module, []).append((seen, gradient))
    for module, name in modules.items():
        if module not in captured:
            raise CriError(f"parameters: the layer {name!r} ({type(module).__name__}) is never called by the model")
    return captured


def _normalised(module: nn.Module, seen: Tensor) -> Tensor:
    """A norm's output per unit gain: found by difference, which holds whatever its eps, dtype or offset."""
    shifts = {key: torch.zeros_like(p) for key, p in module.named_parameters(recurse=False)}
    with torch.no_grad():
        at_one = torch.func.functional_call(module, {**shifts, "weight": torch.ones_like(shifts["weight"])}, (seen,))
        return at_one - torch.func.functional_call(module, shifts, (seen,))


def _float(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def parts(block: Block, captured: Captured, compress: bool = True) -> list[Part]:
    """Factors of every example's gradient of `block`, one part a use.

    Positions whose output gradient is zero in every row are dropped when `compress` is set: the last
    layer's MLP, for one, is then left with the positions that predict.
    """
    out = []
    for use in block.uses:
        for seen, gradient in captured[use.module]:
            gradient = _float(gradient)
            if use.kind == "gain" or use.kind == "shift":
                vector = gradient * _normalised(use.module, seen) if use.kind == "gain" else gradient
                ones = gradient.new_ones(len(gradient), 1, 1)
                out.append(Part(ones, vector.sum(1, keepdim=True)))
                continue
            if compress:
                keep = (gradient.amax(2).amax(0) != 0) | (gradient.amin(2).amin(0) != 0)
                if not keep.all():
                    seen, gradient = seen[:, keep], gradient[:, keep]
            if use.kind == "embedding":
                blank = getattr(use.module, "padding_idx", None)
                if blank is not None:  # torch gives the padding row no gradient
                    gradient = gradient * (seen != blank)[..., None]
                out.append(Part(seen, gradient))
            else:
                right = _float(seen)
                if use.columns[1]:
                    right = torch.cat([right, right.new_ones(*right.shape[:2], 1)], dim=2)
                out.append(Part(gradient, right))
    return out


def materialise(
    pieces: Sequence[Part], shape: tuple[int, int], space: Float[Tensor, " _"] | None = None
) -> Float[Tensor, "case m n"]:
    """Per-example gradients g = sum over parts of left^T right; written into `space` where it is given, as
    fresh memory costs more than the product itself."""
    size = (len(pieces[0].right), *shape)
    total = pieces[0].right.new_empty(size) if space is None else space[: math.prod(size)].view(size)
    first, *_ = pieces
    if len(pieces) == 1 and first.left.is_floating_point():
        return torch.bmm(first.left.mT, first.right, out=total)
    total.zero_()
    for left, right in pieces:
        if left.is_floating_point():
            total.baddbmm_(left.mT, right)
        else:
            rows = left + shape[0] * torch.arange(size[0], device=left.device)[:, None]
            total.view(-1, shape[1]).index_add_(0, rows.flatten(), right.flatten(0, 1))
    return total


def _gram(x: Tensor, y: Tensor) -> Tensor:
    """Inner products of the rows of x and y, either of which may be indices of one-hot rows."""
    if x.is_floating_point():
        return x @ y.T if y.is_floating_point() else x[:, y]
    return y[:, x].T if y.is_floating_point() else x[:, None] == y[None]


def inner(a: Sequence[Part], b: Sequence[Part]) -> Float[Tensor, "a b"]:
    """Inner products <g_i, g_j> of two sets of gradients, from their factors:
    sum over positions s, t of (left_is . left_jt) (right_is . right_jt)."""
    total: Tensor | float = 0.0
    for x in a:
        for y in b:
            s, t = x.right.shape[1], y.right.shape[1]
            # positions before cases, so that the sums over positions add whole contiguous rows
            left = _gram(x.left.transpose(0, 1).flatten(0, 1), y.left.transpose(0, 1).flatten(0, 1))
            right = x.right.transpose(0, 1).flatten(0, 1) @ y.right.transpose(0, 1).flatten(0, 1).T
            product = right.mul_(left).view(s, len(x.right), t, len(y.right))
            total = total + product.sum(0).sum(1)
    assert isinstance(total, Tensor)
    return total


def squared_norms(pieces: Sequence[Part]) -> Float[Tensor, " case"]:
    """|g_i|^2 from the factors."""
    total = pieces[0].right.new_zeros(len(pieces[0].right))
    for x in pieces:
        for y in pieces:
            left = torch.vmap(_gram)(x.left, y.left)
            total = total + (left * (x.right @ y.right.mT)).sum((1, 2))
    return total


def summed_squares(pieces: Sequence[Part], shape: tuple[int, int]) -> Float[Tensor, "m n"]:
    """Sum over cases of the elementwise square of the gradient, sum_i g_i^2.

    Squaring the sum over positions gives products over pairs of positions, which one matrix product adds up;
    with few positions this beats forming every g_i by far.
    """
    s = sum(part.right.shape[1] for part in pieces)
    if s > 12 or not all(part.left.is_floating_point() for part in pieces):
        return materialise(pieces, shape).square_().sum(0)
    first, second = torch.triu_indices(s, s, device=pieces[0].right.device)
    left, right = (torch.cat(side, dim=1) for side in zip(*pieces, strict=True))
    pairs = left[:, first] * left[:, second] * (2.0 - (first == second).to(left.dtype))[:, None]
    return pairs.flatten(0, 1).T @ (right[:, first] * right[:, second]).flatten(0, 1)
