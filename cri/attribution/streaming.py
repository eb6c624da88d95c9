"""Inner products of training gradients, streamed, with query vectors held in memory.

Query gradients are held block by block, as they are or as factors, whichever gives the cheaper inner
product; training gradients are formed a batch at a time and dropped. `max_bytes` bounds both together: where
the queries do not fit, the training set is passed over several times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from cri.attribution.outputs import Output
from cri.attribution.per_example import Block, Part, capture, inner, materialise, parts, squared_norms
from cri.data.token_table import TokenTable
from cri.errors import CriError, out_of_range
from cri.models.loading import require_finite

Held = Float[Tensor, "query _"] | list[Part]
"""Query gradients of one block: flattened, or as factors."""


NOT_FINITE = "model: its gradients are not finite"

Rotate = Callable[[list[Part]], list[Part]]
"""An orthogonal change of the coordinates of a block's gradient, applied to its factors."""


def on_model(model: nn.Module, tokens: TokenTable) -> TokenTable:
    """`tokens` on the device of the model, whose parameters must be finite; raises `CriError` otherwise."""
    require_finite(model)
    return tokens.to(next(model.parameters()).device)


def batches(tokens: TokenTable, batch_size: int) -> Iterator[Int[np.ndarray, " row"]]:
    """Rows in batches of equal lengths where possible: less padding, and more positions without gradient."""
    order = np.lexsort((tokens.prompt_lengths.cpu().numpy(), tokens.lengths.cpu().numpy()))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


@dataclass(frozen=True)
class Plan:
    """How a scoring pass fits in memory: examples a batch, queries a pass, blocks kept as factors."""

    batch_size: int
    n_queries: int
    factored: tuple[bool, ...]
    itemsize: int

    def query_groups(self, test: TokenTable) -> Iterator[Int[np.ndarray, " row"]]:
        return batches(test, self.n_queries)


def plan_memory(
    model: nn.Module,
    blocks: Sequence[Block],
    train: TokenTable,
    test: TokenTable,
    output: Output,
    batch_size: int,
    max_bytes: int,
    factored: bool | None,
    vectors: int = 1,
) -> Plan:
    """Choose the inner product of each block and the sizes that keep within `max_bytes`.

    A solver keeps several `vectors` a query, and the gradients of all blocks of a batch at once.

    Factors are cheaper when s_train s_test (m + n + 64) < m n, with s the positions that carry a gradient,
    counted on one longest case; 64 stands for the elementwise work on the two Gram matrices (measured).
    """
    if batch_size < 1:
        raise out_of_range("batch_size", batch_size, "at least 1")
    if not len(train) or not len(test):
        raise CriError("train, test: no cases to score")
    widths = [_positions(model, blocks, tokens, output) for tokens in (train, test)]
    itemsize = 8 if next(model.parameters()).dtype == torch.float64 else 4
    choices, per_query, largest, gram = [], 0, 0, 0
    for block, s_train, s_test in zip(blocks, *widths, strict=True):
        m, n = block.shape
        # <g, g'> costs m n for whole gradients; for factors it is a product of two Gram matrices, [s_train, s_test]
        choice = s_train * s_test * (m + n + 64) < m * n if factored is None else factored
        choices.append(choice)
        # queries are held all along, a training batch only while it is scored: its largest block counts
        per_query += s_test * (m + n) if choice else m * n
        largest = max(largest, s_train * (m + n), 0 if choice else m * n)
        gram = max(gram, 2 * s_train * s_test if choice else 1)
    # measured: forward and backward keep under five values for every input and output feature; eager
    # attention also keeps its T x T patterns
    longest = max(train.ids.shape[1], test.ids.shape[1])
    features = sum(m + n for block in blocks for m, n in [block.shape] if m > 1)
    config = getattr(model, "config", None)
    eager = getattr(config, "_attn_implementation", None) == "eager"
    patterns = 4 * config.num_hidden_layers * config.num_attention_heads if config is not None and eager else 0
    per_example = 5 * longest * features + patterns * longest**2 + 2 * largest
    if vectors > 1:  # a solver needs the gradients of all blocks at once, and several vectors of a query
        per_example += sum(block.size for block in blocks)
        per_query *= vectors
    budget = max_bytes // itemsize
    # at most half for the queries; a large Gram matrix also asks for fewer of them
    n_queries = min(len(test), max(1, min(budget // 2 // max(per_query, 1), (budget // 2 - per_example) // gram)))
    fitting = min(batch_size, (budget - n_queries * per_query) // (per_example + gram * n_queries))
    if fitting < 1:
        need = itemsize * (per_query + per_example + gram)
        raise out_of_range("max_bytes", max_bytes, f"at least {need} for one example at a time of this model")
    return Plan(fitting, n_queries, tuple(choices), itemsize)


def _positions(model: nn.Module, blocks: Sequence[Block], tokens: TokenTable, output: Output) -> list[int]:
    longest = tokens[tokens.lengths.argmax()[None]]
    captured = capture(model, blocks, longest, lambda logits: output(logits, longest))
    return [sum(part.right.shape[1] for part in parts(block, captured)) for block in blocks]


def hold(
    model: nn.Module,
    blocks: Sequence[Block],
    queries: TokenTable,
    output: Output,
    plan: Plan,
    rotations: Sequence[Rotate] | None = None,
) -> tuple[list[Held], Float[np.ndarray, " query"]]:
    """Gradients df/dtheta of the queries, block by block (rotated if asked), and their norms."""
    device = queries.ids.device
    norms = np.zeros(len(queries))
    # materialised gradients go straight to their rows; factors are joined when their widths are known
    whole: list[Tensor | None] = [None for _ in blocks]
    factors: list[list[list[Part]]] = [[] for _ in blocks]
    order = []
    for rows in batches(queries, plan.batch_size):
        batch = queries[rows]
        captured = capture(model, blocks, batch, lambda logits, batch=batch: output(logits, batch))
        square = torch.zeros(len(rows), device=device, dtype=torch.float64)
        for i, block in enumerate(blocks):
            pieces = parts(block, captured)
            if rotations is not None:
                pieces = rotations[i](pieces)
            if plan.factored[i]:
                factors[i].append(pieces)
                square += squared_norms(pieces)
                continue
            flat = materialise(pieces, block.shape).flatten(1)
            total = whole[i]
            if total is None:
                total = whole[i] = flat.new_empty(len(queries), block.size)
            total[torch.as_tensor(rows, device=device)] = flat
            square += torch.linalg.vector_norm(flat, dim=1).square()
        order.append(rows)
        norms[rows] = _finite(square)
    index = torch.as_tensor(np.argsort(np.concatenate(order)), device=device)
    held: list[Held] = []
    for total, batched in zip(whole, factors, strict=True):
        held.append(total if total is not None else [_join(pieces, index) for pieces in zip(*batched, strict=True)])
    return held, norms


def _finite(squared_norm: Tensor) -> Float[np.ndarray, " case"]:
    norms = np.sqrt(squared_norm.cpu().numpy())
    if not np.isfinite(norms).all():
        raise CriError(NOT_FINITE)
    return norms


def _join(pieces: Sequence[Part], index: Tensor) -> Part:
    """Batches of one part, padded to a common number of positions; a padded position has right = 0."""
    width = max(part.right.shape[1] for part in pieces)

    def pad(x: Tensor) -> Tensor:
        return torch.cat([x, x.new_zeros(x.shape[0], width - x.shape[1], *x.shape[2:])], dim=1)

    return Part(torch.cat([pad(p.left) for p in pieces])[index], torch.cat([pad(p.right) for p in pieces])[index])


def stream(
    model: nn.Module,
    blocks: Sequence[Block],
    train: TokenTable,
    loss: Output,
    held: Sequence[Held],
    batch_size: int,
    progress: bool,
    rotations: Sequence[Rotate] | None = None,
    with_norms: bool = True,
) -> tuple[Float[np.ndarray, "train query"], Float[np.ndarray, " train"]]:
    """Inner products of every training case's -dL/dtheta with the held vectors, and its norm (zeros without
    `with_norms`, which spares a pass over the gradients)."""
    scores: np.ndarray | None = None
    norms = np.zeros(len(train))
    dtype = torch.float64 if next(model.parameters()).dtype == torch.float64 else torch.float32
    materialised = [block.size for block, query in zip(blocks, held, strict=True) if isinstance(query, Tensor)]
    space = torch.empty(batch_size * max(materialised, default=0), dtype=dtype, device=train.ids.device)
    with tqdm(total=len(train), desc="gradients", unit="case", disable=not progress, leave=False) as bar:
        for rows in batches(train, batch_size):
            batch = train[rows]
            captured = capture(model, blocks, batch, lambda logits, batch=batch: loss(logits, batch))
            total: Tensor | None = None
            square = torch.zeros(len(rows), device=train.ids.device, dtype=torch.float64)
            for i, (block, query) in enumerate(zip(blocks, held, strict=True)):
                pieces = parts(block, captured)
                if rotations is not None:
                    pieces = rotations[i](pieces)
                if isinstance(query, Tensor):
                    flat = materialise(pieces, block.shape, space).flatten(1)
                    term = flat @ query.T
                    if with_norms:
                        square += torch.linalg.vector_norm(flat, dim=1).square()
                else:
                    term = inner(pieces, query)
                    if with_norms:
                        square += squared_norms(pieces)
                total = term if total is None else total.add_(term)
            assert total is not None
            values = total.cpu().numpy()
            if not np.isfinite(values).all():
                raise CriError(NOT_FINITE)
            if scores is None:
                scores = np.zeros((len(train), values.shape[1]), dtype=values.dtype)
            scores[rows] = values
            norms[rows] = square.sqrt().cpu().numpy()
            bar.update(len(rows))
    assert scores is not None
    return scores, norms
