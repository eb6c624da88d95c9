"""Digits where they are written: models that write a token a digit decide a sum at several tokens, a scratchpad at each
of its steps. What can be read off there, and what does another case's activation change?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from cri.data.splits import in_square
from cri.data.step_places import COLUMNS, places
from cri.data.step_units import unit_tokens
from cri.data.token_table import TokenTable
from cri.errors import CriError, unknown_name
from cri.geometry.readouts import class_reads
from cri.models.activations import Site, collect
from cri.tasks import Addition

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

    from cri.training.runs import Run
    from cri.training.setup import Materials


@dataclass(frozen=True, eq=False)
class Written:
    """Where one digit is decided, one row a case that has it.

    Attributes:
        column: `units`, `tens`, ...
        case_ids: the cases, [row].
        tokens: their right texts, cut off behind the digit; the "prompt" ends where the digit is predicted.
        digits: what is to be written, [row].
    """

    column: str
    case_ids: Int[np.ndarray, " row"]
    tokens: TokenTable
    digits: Int[np.ndarray, " row"]

    def __len__(self) -> int:
        return len(self.case_ids)

    def targets(self) -> Int[Tensor, " row"]:
        """The token of each row's digit."""
        return self.tokens.ids[torch.arange(len(self)), self.tokens.prompt_lengths]


def written(source: Run | Materials, column: str) -> Written:
    """The places of one column: the answer's digit in the direct format, the digit that the step works out in a
    scratchpad. Cases without such a column have no row.

    Raises `CriError` for another task than addition, an unknown column, a format other than these two, and the direct
    format with a token a number, which decides every digit at once.
    """
    if not isinstance(source.task, Addition):
        raise CriError(f"task: {source.task.name} has no columns of sums here; use addition")
    if column not in COLUMNS:
        raise unknown_name("column", column, COLUMNS)
    if source.format.name == "direct":
        table = _answer_digits(source, column)
    elif source.format.name == "scratchpad":
        table = places(source, f"step:{column}")
        table = table[table["element"] == "digit"]
    else:
        raise CriError(f"format: {source.format.name} is not read here; use direct or scratchpad")
    digits = table["text"].astype(int).to_numpy()
    return Written(column, table["case"].to_numpy(), unit_tokens(source.tokens, table), digits)


def _answer_digits(source: Run | Materials, column: str) -> pd.DataFrame:
    import pandas as pd

    tokens, place = source.tokens, COLUMNS.index(column)
    n_written = (tokens.lengths - tokens.prompt_lengths).numpy() - 1  # the last token ends the sequence
    answers = [str(value) for value in source.task.values]
    if any(len(text) != n for text, n in zip(answers, n_written, strict=True)):
        raise CriError("tokenizer: does not write a token a digit; use a run with digit tokens")
    kept = np.flatnonzero(n_written > place)
    position = tokens.prompt_lengths.numpy()[kept] + n_written[kept] - place - 2
    text = [answers[i][-1 - place] for i in kept]
    return pd.DataFrame({"case": kept, "position": position, "n_tokens": 1, "text": text})


@dataclass(frozen=True, eq=False)
class Board:
    """The regions of a run's grid as rows of a `Written`: held-out cases of the square (`inside`), and training cases
    outside it whose sums occur in it (`outside`)."""

    cases: Int[np.ndarray, "row 2"]
    train: Bool[np.ndarray, " row"]
    square: Bool[np.ndarray, " row"]

    @classmethod
    def of(cls, source: Run | Materials, case_ids: Int[np.ndarray, " row"], half_side: int) -> Board:
        square = in_square(source.task, source.task.center, half_side)
        return cls(source.task.cases[case_ids], source.split.train[case_ids], square[case_ids])

    @property
    def sums(self) -> Int[np.ndarray, " row"]:
        return self.cases.sum(1)

    def regions(self) -> dict[str, Int[np.ndarray, " row"]]:
        low, high = self.sums[self.square].min(), self.sums[self.square].max()
        between = (self.sums >= low) & (self.sums <= high)
        return {
            "inside": np.flatnonzero(self.square & ~self.train),
            "outside": np.flatnonzero(~self.square & self.train & between),
        }


@torch.inference_mode()
def tokens_given(
    bridge: TransformerBridge,
    tokens: TokenTable,
    rows: Int[np.ndarray, " row"],
    patch: tuple[str, Float[np.ndarray, "all d"], Int[np.ndarray, " all"]] | None = None,
    batch_size: int = 1024,
) -> Int[np.ndarray, " row"]:
    """The token of the greatest logit where each row's digit is predicted.

    `patch`: a hook, its activations [every row, d] and for every row the row whose activation stands in its place.
    """
    found = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        part = tokens[batch]
        at = part.prompt_lengths - 1
        index = torch.arange(len(batch))
        hooks: list[Any] = []
        if patch is not None:
            hook_name, acts, sources = patch
            new = torch.from_numpy(acts[sources[batch]])

            def write(tensor: Tensor, hook: Any, at: Tensor = at, index: Tensor = index, new: Tensor = new) -> Tensor:
                tensor = tensor.clone()
                tensor[index, at] = new.to(tensor)
                return tensor

            hooks = [(hook_name, write)]
        width = int(at.max()) + 1
        logits = bridge.run_with_hooks(part.ids[:, :width], fwd_hooks=hooks)
        found.append(logits[index, at].argmax(-1).numpy())
    return np.concatenate(found) if found else np.zeros(0, dtype=int)


def nearest_of_equal(board: Board, key: Shaped[np.ndarray, " row"]) -> Int[np.ndarray, " row"]:
    """For every row the nearest other training row outside the square with the same `key` (itself where there is
    none)."""
    known = np.flatnonzero(board.train & ~board.square)
    by_key = {value: known[key[known] == value] for value in np.unique(key[known])}
    out = np.arange(len(key))
    for row in range(len(key)):
        line = by_key.get(key[row], known[:0])
        line = line[line != row]
        if len(line):
            out[row] = line[np.abs(board.cases[line] - board.cases[row]).sum(1).argmin()]
    return out


def written_tables(
    source: Run | Materials, bridge: TransformerBridge, columns: Sequence[str], half_side: int, every: int = 1
) -> dict[str, pd.DataFrame]:
    """`digits`: by column and region, how often the digit is right where the text before it is right. `digit_reads`:
    logistic read-outs of the digit, of the carry into the column and of the column's own sum, by site.
    `digit_patches`: how often the digit is right with the site's activation taken from the nearest training case
    outside the square that has the same sum, or (`other`) from one drawn at random. Sites are the residual stream after
    attention and after the MLP of every layer, or of every `every`-th, counted back from the last."""
    import pandas as pd

    layers = sorted(range(int(bridge.cfg.n_layers) - 1, -1, -every))
    tables: dict[str, list[pd.DataFrame]] = {"digits": [], "digit_reads": [], "digit_patches": []}
    for column in columns:
        place = written(source, column)
        board = Board.of(source, place.case_ids, half_side)
        regions = {name: rows for name, rows in board.regions().items() if len(rows)}
        hooks = [f"blocks.{i}.hook_resid_{w}" for i in layers for w in ("mid", "post")]
        sites = [Site(hook) for hook in hooks]
        collected = collect(bridge, place.tokens, sites)
        targets = place.targets().numpy()
        rows = []
        for region, ids in regions.items():
            right = tokens_given(bridge, place.tokens, ids) == targets[ids]
            rows.append({"region": region, "accuracy": float(right.mean()), "n": len(ids)})
        tables["digits"].append(pd.DataFrame(rows).assign(column=column))
        power = 10 ** COLUMNS.index(column)
        a, b = board.cases.T
        labels = {
            "digit": place.digits,
            "carry in": (a % power + b % power) // power,
            "sum of the column": a // power % 10 + b // power % 10,
        }
        # what decides all three: the operands' digits up to this column
        keys = dict.fromkeys(labels, a % (10 * power) * 10_000 + b % (10 * power))
        sources = {
            "same sum": nearest_of_equal(board, board.sums),
            "other": np.random.default_rng(0).permutation(np.flatnonzero(board.train & ~board.square))[
                np.arange(len(place)) % int((board.train & ~board.square).sum())
            ],
        }
        patched = []
        for site in sites:
            acts = np.asarray(collected[site], dtype=np.float32)
            reads = class_reads(acts, labels, keys, board.cases, np.flatnonzero(board.train), regions)
            tables["digit_reads"].append(reads.assign(column=column, site=site.hook))
            for name, source_rows in sources.items():
                for region, ids in regions.items():
                    given = tokens_given(bridge, place.tokens, ids, (site.hook, acts, source_rows))
                    accuracy = float((given == targets[ids]).mean())
                    patched.append({"site": site.hook, "source": name, "region": region, "accuracy": accuracy,
                                    "n": len(ids)})  # fmt: skip
        tables["digit_patches"].append(pd.DataFrame(patched).assign(column=column))
    return {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}
