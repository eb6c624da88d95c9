"""Influence of training cases on test cases: EK-FAC, and EK-FAC refined by conjugate gradients.

Sign: positive where adding weight to the training case raises the test case's output (a *proponent*):

    score[i, j] = < -dL_i/dtheta, (F + D)^-1 df_j/dtheta >,

with D = `damping + relative_damping * mean(eigenvalues of the block)` on each block's diagonal. When case i
leaves a training set of n cases, the predicted change of f_j is -score / n (Koh & Liang 2017, with the
Fisher for the Hessian: Grosse et al. 2023). The queries are preconditioned, the training gradients streamed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from cri.attribution.damping import DAMPING
from cri.attribution.ekfac import EKFAC, fisher_gradients
from cri.attribution.outputs import Output, log_likelihood, require_target
from cri.attribution.per_example import materialise, parts
from cri.attribution.streaming import hold, on_model, plan_memory, stream
from cri.checks import checked
from cri.data.token_table import Target, TokenTable
from cri.errors import out_of_range


@checked
def influence(
    model: nn.Module,
    fisher: EKFAC,
    train: TokenTable,
    test: TokenTable,
    *,
    target: Target,
    output: Output = log_likelihood,
    loss: Output = log_likelihood,
    damping: float = 0.0,
    relative_damping: float = DAMPING,
    cg_steps: int = 0,
    cg_tokens: TokenTable | None = None,
    batch_size: int = 256,
    max_bytes: int = 2 << 30,
    progress: bool = True,
) -> Float[np.ndarray, "train test"]:
    """Influence scores [train, test]; positive marks proponents.

    Args:
        model, train, test, target, output, loss, batch_size, max_bytes: as in `gradient_scores`.
        fisher: from `fit_ekfac` on this model.
        damping: added to every eigenvalue of every block; as it grows, damping * score tends to GradDot.
        relative_damping: added as this multiple of the block's mean eigenvalue.
        cg_steps: conjugate-gradient steps on the whole Fisher, blocks coupled (see `conjugate_gradients`);
            0 leaves the EK-FAC solution.
        cg_tokens: cases that Fisher is averaged over; `train` by default.
    """
    if cg_steps < 0:
        raise out_of_range("cg_steps", cg_steps, "non-negative")
    require_target(test, target)
    train, test = on_model(model, train), on_model(model, test)
    blocks = fisher.blocks(model)
    dampings = fisher.dampings(damping, relative_damping)
    bases = [basis.to(train.ids.device) for basis in fisher.bases]
    # in the eigenbasis the EK-FAC Fisher is diagonal, and factors are cheap to rotate
    rotations = [basis.rotate for basis in bases]
    damped = [(b.eigenvalues + d).flatten() for b, d in zip(bases, dampings, strict=True)]
    # 7 vectors: gradient, solution, residual, preconditioned residual, direction, its product with F + D, one temporary
    plan = plan_memory(model, blocks, train, test, output, batch_size, max_bytes, False, 7 if cg_steps else 1)
    scores = np.zeros((len(train), len(test)), dtype=np.float64 if plan.itemsize == 8 else np.float32)
    for queries in plan.query_groups(test):
        held, _ = hold(model, blocks, test[queries], output, plan, rotations)
        gradients = [g for g in held if isinstance(g, Tensor)]
        solution = [g / e if cg_steps else g.div_(e) for g, e in zip(gradients, damped, strict=True)]
        if cg_steps:
            cases = train if cg_tokens is None else on_model(model, cg_tokens)
            solution = conjugate_gradients(
                model, fisher, cases, gradients, solution, dampings,
                loss=loss, steps=cg_steps, batch_size=plan.batch_size, progress=progress,
            )  # fmt: skip
        scores[:, queries], _ = stream(
            model, blocks, train, loss, solution, plan.batch_size, progress, rotations, with_norms=False
        )
    return scores


def conjugate_gradients(
    model: nn.Module,
    fisher: EKFAC,
    tokens: TokenTable,
    gradients: Sequence[Float[Tensor, "query _"]],
    start: Sequence[Float[Tensor, "query _"]],
    dampings: Sequence[float],
    *,
    loss: Output,
    steps: int,
    batch_size: int,
    progress: bool,
) -> list[Float[Tensor, "query _"]]:
    """Solve (F + D) x = g for all queries at once, starting at and preconditioned by EK-FAC.

    F here is the Fisher of all covered parameters together, not block by block: the average over `tokens`
    of the outer products of their gradients, one fixed draw of sampled labels a case (or the empirical
    ones, as `fisher` was fitted). A product with F costs a backward pass over `tokens` and two matrix
    products; nothing of size parameters x cases is kept. Stopping early regularises. Gradients, start and
    solution are in the coordinates of the eigenbases.
    """
    blocks = fisher.blocks(model)
    bases = [basis.to(tokens.ids.device) for basis in fisher.bases]
    damped = [(b.eigenvalues + d).flatten() for b, d in zip(bases, dampings, strict=True)]

    def product(x: Sequence[Tensor], bar: tqdm) -> list[Tensor]:
        out = [v * d for v, d in zip(x, dampings, strict=True)]
        # seeded alike every time: F must be the same matrix in every step
        generator = torch.Generator(tokens.ids.device).manual_seed(fisher.seed + 1)
        for _, captured in fisher_gradients(model, blocks, tokens, loss, fisher.labels, generator, batch_size, bar):
            flat = [
                materialise(basis.rotate(parts(block, captured)), block.shape).flatten(1)
                for block, basis in zip(blocks, bases, strict=True)
            ]
            along = torch.stack([v @ g.T for v, g in zip(x, flat, strict=True)]).sum(0) / len(tokens)
            for total, g in zip(out, flat, strict=True):
                total.addmm_(along, g)
        return out

    def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Float[Tensor, "query 1"]:
        return torch.stack([(v * w).sum(1, keepdim=True) for v, w in zip(a, b, strict=True)]).sum(0)

    total = (steps + 1) * len(tokens)
    with tqdm(total=total, desc="conjugate gradients", unit="case", disable=not progress, leave=False) as bar:
        x = [v.clone() for v in start]
        residual = [g - v for g, v in zip(gradients, product(x, bar), strict=True)]
        z = [r / e for r, e in zip(residual, damped, strict=True)]
        direction = [v.clone() for v in z]
        rz = dot(residual, z)
        for _ in range(steps):
            image = product(direction, bar)
            # a query that is solved (or has no gradient) stays where it is
            alpha = torch.nan_to_num(rz / dot(direction, image), nan=0.0, posinf=0.0, neginf=0.0)
            for v, r, p, q in zip(x, residual, direction, image, strict=True):
                v += alpha * p
                r -= alpha * q
            z = [r / e for r, e in zip(residual, damped, strict=True)]
            rz, before = dot(residual, z), rz
            beta = torch.nan_to_num(rz / before, nan=0.0, posinf=0.0, neginf=0.0)
            direction = [v + beta * p for v, p in zip(z, direction, strict=True)]
    return x
