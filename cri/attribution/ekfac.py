"""The EK-FAC approximation of the Fisher matrix (George et al. 2018; Grosse et al. 2023, section 2.3).

F is the average over cases of the outer product of per-example summed-loss gradients. Block by block (see
`layers`: a weight with its bias is one block) it is taken as diagonal in the Kronecker product of two
eigenbases, those of the second moments of the left and the right factors over every real position, prompt
included, padding never:

    F_block ~ (U_L x U_R) diag(eigenvalues) (U_L x U_R)^T,   eigenvalues = mean_i (U_L^T g_i U_R)^2.

Every block is treated this way. For a vector (norm gains, lone biases) the eigenbasis is that of its own Fisher
block, so it is exact; the token side of an untied embedding has a diagonal second moment, so it needs no
eigenbasis; a tied head pools the factors of its two uses. A side longer than `max_factor_dim` (the vocabulary of
a pretrained model) keeps its own coordinates: corrected eigenvalues are valid in any basis.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from cri.attribution.gradients import gradient_coverage
from cri.attribution.outputs import Output, log_likelihood
from cri.attribution.per_example import Block, Captured, Part, capture, find_blocks, parts, summed_squares
from cri.attribution.streaming import NOT_FINITE, batches, on_model, plan_memory
from cri.checks import checked
from cri.data.token_table import TokenTable
from cri.errors import CorruptRunError, CriError, out_of_range, unknown_name

LABELS = ("sampled", "empirical")


@dataclass(frozen=True, eq=False)
class Eigenbasis:
    """Fisher of one block: eigenvectors of each side in columns (None keeps the coordinates) and the
    corrected eigenvalues, laid out as the block."""

    left: Float[Tensor, "m m"] | None
    right: Float[Tensor, "n n"] | None
    eigenvalues: Float[Tensor, "m n"]

    def to(self, device: torch.device | str) -> Eigenbasis:
        left, right = (None if side is None else side.to(device) for side in (self.left, self.right))
        return Eigenbasis(left, right, self.eigenvalues.to(device))

    def rotate(self, pieces: list[Part]) -> list[Part]:
        """Factors of U_L^T g U_R from those of g."""
        return [Part(_rotate(left, self.left), _rotate(right, self.right)) for left, right in pieces]


@dataclass(frozen=True, eq=False)
class EKFAC:
    """A fitted Fisher approximation, one `Eigenbasis` a block.

    Attributes:
        parameters: names of the parameters of each block.
        bases: the blocks, in the same order.
        labels: whether the labels were `sampled` from the model (the Fisher) or the `empirical` ones.
        seed: of the sampled labels.
        n_cases: cases it was fitted on.
        coverage: share of the squared gradient norm that the covered parameters hold.
    """

    parameters: tuple[tuple[str, ...], ...]
    bases: tuple[Eigenbasis, ...]
    labels: str
    seed: int
    n_cases: int
    coverage: float

    def blocks(self, model: nn.Module) -> list[Block]:
        """The blocks of `model` this was fitted on; raises `CriError` if it has other ones."""
        blocks = find_blocks(model, [name for group in self.parameters for name in group])
        have = [(block.name, block.shape) for block in blocks]
        fitted = [
            (" + ".join(group), tuple(basis.eigenvalues.shape))
            for group, basis in zip(self.parameters, self.bases, strict=True)
        ]
        for mine, other in itertools.zip_longest(fitted, have, fillvalue=("nothing", ())):
            if mine != other:
                raise CriError(f"ekfac: fitted on {mine[0]} of shape {mine[1]}; the model has {other[0]} of {other[1]}")
        return blocks

    def dampings(self, damping: float, relative_damping: float) -> list[float]:
        """The damping of each block: `damping + relative_damping * mean(eigenvalues)`.

        A block whose Fisher vanishes (no training case has a gradient there, as in the first factor of an adapter that
        was not trained yet) adds nothing to any score, and any damping will do: 1 where the others are relative.
        """
        for field, value in (("damping", damping), ("relative_damping", relative_damping)):
            if not 0 <= value < float("inf"):
                raise out_of_range(field, value, "non-negative and finite")
        if damping + relative_damping == 0:
            raise out_of_range("damping", damping, "positive where relative_damping is 0")
        total = [damping + relative_damping * float(basis.eigenvalues.mean()) for basis in self.bases]
        return [value or 1.0 for value in total]

    def save(self, folder: Path | str) -> None:
        """Write `ekfac.safetensors` and `ekfac.json` into `folder`; the latter last, as it completes the pair."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{i}.{side}": tensor.contiguous()
            for i, basis in enumerate(self.bases)
            for side, tensor in vars(basis).items()
            if tensor is not None
        }
        record = {key: getattr(self, key) for key in ("parameters", "labels", "seed", "n_cases", "coverage")}
        (folder / "ekfac.json").unlink(missing_ok=True)
        save_file(tensors, folder / "ekfac.safetensors.part")
        os.replace(folder / "ekfac.safetensors.part", folder / "ekfac.safetensors")
        (folder / "ekfac.json.part").write_text(json.dumps(record, indent=1))
        os.replace(folder / "ekfac.json.part", folder / "ekfac.json")

    @classmethod
    def load(cls, folder: Path | str) -> EKFAC:
        """Read what `save` wrote; raises `CorruptRunError` when it is missing or damaged."""
        folder = Path(folder)
        try:
            record = json.loads((folder / "ekfac.json").read_text())
            tensors = load_file(folder / "ekfac.safetensors")
            names = tuple(tuple(group) for group in record.pop("parameters"))
            bases = tuple(
                Eigenbasis(tensors.get(f"{i}.left"), tensors.get(f"{i}.right"), tensors[f"{i}.eigenvalues"])
                for i in range(len(names))
            )
            return cls(parameters=names, bases=bases, **record)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptRunError(f"{folder}: not a saved EK-FAC fit ({error})") from error


def sample_labels(
    logits: Float[Tensor, "case next vocab"], tokens: TokenTable, generator: torch.Generator
) -> TokenTable:
    """`tokens` with every token to be predicted redrawn from the model's own distribution, given the true
    tokens before it."""
    p = logits.detach().float().softmax(-1)
    drawn = torch.multinomial(p.flatten(0, 1), 1, generator=generator).view(p.shape[:2])
    return dataclasses.replace(tokens, ids=torch.cat([tokens.ids[:, :1], drawn], dim=1))


def fisher_gradients(
    model: nn.Module,
    blocks: Sequence[Block],
    tokens: TokenTable,
    loss: Output,
    labels: str,
    generator: torch.Generator,
    batch_size: int,
    bar: tqdm,
) -> Iterator[tuple[TokenTable, Captured]]:
    """Captured gradients of the loss under the chosen labels, batch by batch."""
    for rows in batches(tokens, batch_size):
        batch = tokens[rows]

        def objective(logits: Tensor, batch: TokenTable = batch) -> Tensor:
            return loss(logits, batch if labels == "empirical" else sample_labels(logits, batch, generator))

        yield batch, capture(model, blocks, batch, objective)
        bar.update(len(rows))


def _second_moment(x: Tensor, size: int) -> Float[Tensor, "size size"]:
    """Sum of the outer products of rows, or of one-hot rows given as indices."""
    return (x.T @ x).double() if x.is_floating_point() else torch.bincount(x, minlength=size).double().diag()


def _no_moments(block: Block, max_factor_dim: int, device: torch.device) -> list[Tensor | None]:
    """Zero second moments [size, size] of the sides of a block that get an eigenbasis, None for one that gets none: a
    single row, a side that is too long, or one-hot in every use."""
    left = any(use.kind != "embedding" for use in block.uses)
    return [
        torch.zeros(size, size, dtype=torch.float64, device=device) if wanted and 1 < size <= max_factor_dim else None
        for wanted, size in zip((left, True), block.shape, strict=True)
    ]


def _add_second_moments(
    moments: Sequence[Sequence[Tensor | None]], blocks: Sequence[Block], batch: TokenTable, captured: Captured
) -> None:
    """Adds one batch to the second moments of each block's sides, in place."""
    real = batch.token_mask[:, 1:]
    for block, moment in zip(blocks, moments, strict=True):
        every, nonzero = parts(block, captured, compress=False), parts(block, captured)
        for inputs, gradients in zip(every, nonzero, strict=True):
            # inputs count at every real position; a gradient of zero adds nothing to its own side
            left, right = (side.flatten(0, 1) for side in gradients)
            if not left.is_floating_point():
                left = inputs.left[real]
            elif block.uses[0].kind not in ("gain", "shift"):
                right = inputs.right[real]
            for x, size, total in zip((left, right), block.shape, moment, strict=True):
                if total is not None:
                    total += _second_moment(x, size)


def _rotate(x: Tensor, basis: Tensor | None) -> Tensor:
    if basis is None:
        return x
    return x @ basis if x.is_floating_point() else basis[x]


@checked
def fit_ekfac(
    model: nn.Module,
    tokens: TokenTable,
    *,
    loss: Output = log_likelihood,
    labels: str = "sampled",
    parameters: Sequence[str] = ("*",),
    seed: int = 0,
    batch_size: int = 256,
    max_factor_dim: int = 4096,
    max_bytes: int = 2 << 30,
    progress: bool = True,
) -> EKFAC:
    """Fit the EK-FAC Fisher on `tokens` (the training cases) in two passes.

    Args:
        loss: minus the training loss of a case.
        labels: `sampled` redraws the targets from the model (the true Fisher, the Gauss-Newton matrix of
            cross-entropy); `empirical` keeps them.
        parameters: glob patterns of parameter names.
        seed: of the sampled labels; the same seed and batch size give the same fit.
        batch_size: upper bound on the examples in one backward pass.
        max_factor_dim: longest side that is given an eigenbasis.
        max_bytes: memory for one batch; the second moments come on top.

    Second moments are accumulated and decomposed in float64. Raises `CriError` for a parameter of an
    unsupported layer, naming it.
    """
    if labels not in LABELS:
        raise unknown_name("labels", labels, LABELS)
    tokens = on_model(model, tokens)
    blocks = find_blocks(model, parameters)
    device = tokens.ids.device
    generator = torch.Generator(device).manual_seed(seed)
    batch_size = plan_memory(model, blocks, tokens, tokens, loss, batch_size, max_bytes, False).batch_size

    moments = [_no_moments(block, max_factor_dim, device) for block in blocks]
    with tqdm(total=2 * len(tokens), desc="EK-FAC", unit="case", disable=not progress, leave=False) as bar:
        for batch, captured in fisher_gradients(model, blocks, tokens, loss, labels, generator, batch_size, bar):
            _add_second_moments(moments, blocks, batch, captured)
        if not all(bool(c.isfinite().all()) for pair in moments for c in pair if c is not None):
            raise CriError(NOT_FINITE)
        dtype = torch.float64 if next(model.parameters()).dtype == torch.float64 else torch.float32
        bases = []
        for i, block in enumerate(blocks):
            # second moments are as large as their eigenvectors: of a large model there is no room for all of both
            pair, moments[i] = moments[i], []
            left, right = (None if c is None else torch.linalg.eigh(c).eigenvectors.to(dtype) for c in pair)
            bases.append(Eigenbasis(left, right, torch.zeros(block.shape, dtype=torch.float64, device=device)))
        # labels are sampled anew: eigenvalues on the sample that determined the eigenvectors would be too large
        for _, captured in fisher_gradients(model, blocks, tokens, loss, labels, generator, batch_size, bar):
            for block, basis in zip(blocks, bases, strict=True):
                basis.eigenvalues.add_(summed_squares(basis.rotate(parts(block, captured)), block.shape))
    fitted = tuple(
        dataclasses.replace(b, eigenvalues=(b.eigenvalues / len(tokens)).clamp(min=0).to(dtype)).to("cpu")
        for b in bases
    )
    coverage = gradient_coverage(model, tokens, parameters, output=loss)
    return EKFAC(tuple(b.parameters for b in blocks), fitted, labels, seed, len(tokens), coverage)
