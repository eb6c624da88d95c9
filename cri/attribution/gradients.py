"""Gradient similarity of every (training case, test case) pair: GradDot, GradCos, TracIn.

Sign: a score is positive where a small gradient step on the training case raises the test case's output
(a *proponent*). With L_i the training loss of case i and f_j the output of test case j,

    GradDot[i, j] = <-dL_i/dtheta, df_j/dtheta>,

and for the default output, the log-likelihood of the test case's own targets, this is the familiar
<dL_i, dL_j>. Losses and outputs are sums over an example's target tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from cri.attribution.outputs import Output, log_likelihood, require_target
from cri.attribution.per_example import evaluating, find_blocks
from cri.attribution.streaming import hold, on_model, plan_memory, stream
from cri.checks import checked
from cri.data.token_table import Target, TokenTable
from cri.errors import CriError


@dataclass(frozen=True, eq=False)
class GradientScores:
    """Gradient inner products and norms.

    Attributes:
        dot: GradDot, [train, test].
        train_norm, test_norm: gradient norms over the covered parameters.
        coverage: share of the squared gradient norm (of test cases) that the covered parameters hold.
    """

    dot: Float[np.ndarray, "train test"]
    train_norm: Float[np.ndarray, " train"]
    test_norm: Float[np.ndarray, " test"]
    coverage: float

    @property
    def cos(self) -> Float[np.ndarray, "train test"]:
        """GradCos: the cosine of the two gradients; 0 where either vanishes."""
        scale = self.train_norm[:, None] * self.test_norm[None]
        return np.divide(self.dot, scale, out=np.zeros_like(self.dot), where=scale > 0)


@checked
def gradient_scores(
    model: nn.Module,
    train: TokenTable,
    test: TokenTable,
    *,
    target: Target,
    output: Output = log_likelihood,
    loss: Output = log_likelihood,
    parameters: Sequence[str] = ("*",),
    batch_size: int = 256,
    max_bytes: int = 2 << 30,
    factored: bool | None = None,
    progress: bool = True,
) -> GradientScores:
    """GradDot and GradCos of all training and test cases (Charpiat et al. 2019; Pruthi et al. 2020).

    Args:
        model: a causal language model called as `model(input_ids=...).logits`.
        train: training cases with the labels they were trained on.
        test: test cases with the completions to be explained.
        target: which completions `test` must have, so that none is explained by mistake: the model's own `prediction`,
            or the `reference` answer (`Run.explained` gives either).
        output: what is explained about a test case.
        loss: minus the training loss of a case.
        parameters: glob patterns of parameter names; all trainable ones by default.
        batch_size: upper bound on the examples in one backward pass.
        max_bytes: memory for held query gradients and for one batch together.
        factored: force the factored or the materialised inner product; by default the cheaper, by block.

    Raises `CriError` for a parameter of an unsupported layer, naming it, and where `test` has other completions
    than `target` says.
    """
    require_target(test, target)
    train, test = on_model(model, train), on_model(model, test)
    blocks = find_blocks(model, parameters)
    plan = plan_memory(model, blocks, train, test, output, batch_size, max_bytes, factored)
    dot = np.zeros((len(train), len(test)), dtype=np.float64 if plan.itemsize == 8 else np.float32)
    train_norm, test_norm = np.zeros(len(train)), np.zeros(len(test))
    for queries in plan.query_groups(test):
        held, norms = hold(model, blocks, test[queries], output, plan)
        test_norm[queries] = norms
        dot[:, queries], train_norm = stream(model, blocks, train, loss, held, plan.batch_size, progress)
    return GradientScores(dot, train_norm, test_norm, gradient_coverage(model, test, parameters, output=output))


@checked
def tracin(
    checkpoints: Iterable[tuple[nn.Module, float]],
    train: TokenTable,
    test: TokenTable,
    *,
    target: Target,
    output: Output = log_likelihood,
    loss: Output = log_likelihood,
    parameters: Sequence[str] = ("*",),
    batch_size: int = 256,
    max_bytes: int = 2 << 30,
    progress: bool = True,
) -> Float[np.ndarray, "train test"]:
    """TracIn over checkpoints (Pruthi et al. 2020, TracInCP): sum_k lr_k GradDot_k [train, test].

    `checkpoints` gives each model with its learning rate and may load them one at a time. The formula is
    that of plain gradient descent; the preconditioning of Adam is not in it. Other arguments and the sign
    as in `gradient_scores`.
    """
    total: np.ndarray | None = None
    for model, lr in checkpoints:
        scores = gradient_scores(
            model, train, test, target=target, output=output, loss=loss, parameters=parameters,
            batch_size=batch_size, max_bytes=max_bytes, progress=progress,
        )  # fmt: skip
        total = lr * scores.dot + (0.0 if total is None else total)
    if total is None:
        raise CriError("checkpoints: none given")
    return total


@checked
def gradient_coverage(
    model: nn.Module,
    tokens: TokenTable,
    parameters: Sequence[str] = ("*",),
    *,
    output: Output = log_likelihood,
    n_cases: int = 16,
) -> float:
    """Share of the squared gradient norm of all trainable parameters that lies in the selected ones.

    By autograd, over `n_cases` cases spread evenly through `tokens`; 1 at once if everything is selected.
    """
    covered = {name for block in find_blocks(model, parameters) for name in block.parameters}
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if covered == set(trainable):
        return 1.0
    tokens = on_model(model, tokens)
    inside = total = 0.0
    for row in np.unique(np.linspace(0, len(tokens) - 1, n_cases).astype(int)):
        case = tokens[np.array([row])]
        with evaluating(model), torch.enable_grad():
            value = output(model(input_ids=case.ids[:, :-1]).logits, case).sum()
        gradients = torch.autograd.grad(value, list(trainable.values()), allow_unused=True)
        for name, gradient in zip(trainable, gradients, strict=True):
            squared = 0.0 if gradient is None else float(gradient.double().square().sum())
            total += squared
            inside += squared * (name in covered)
    return inside / total if total else 1.0
