"""Output functions: what about a case is differentiated, one number from its logits and tokens.

All are sums over an example's tokens, never means, and larger means more support for the tokens given.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from cri.data.token_table import TARGETS, Target, TokenTable
from cri.errors import CriError, unknown_name

Output = Callable[[Float[Tensor, "case next vocab"], TokenTable], Float[Tensor, " case"]]
"""One number a case from the logits (position t scores the token at t + 1) and the tokens; larger means
more support for the tokens given."""


def require_target(test: TokenTable, target: Target) -> None:
    """Raises `CriError` unless the test cases carry the completions that are to be explained.

    Which answer is explained decides which training cases are found: for one held-out case, the top ten for the right
    answer and the top ten for the wrong answer that the model predicts may have no case in common.
    """
    if target not in TARGETS:
        raise unknown_name("target", target, TARGETS)
    if test.target != target:
        raise CriError(
            f"target: {target!r} is to be explained, and the test cases carry the {test.target} as completions; "
            f"Run.explained(case_ids, {target!r}) gives the others"
        )


def log_likelihood(logits: Float[Tensor, "case next vocab"], tokens: TokenTable) -> Float[Tensor, " case"]:
    """Log-probability of the target tokens (completion and end of sequence), summed over them: minus the
    training loss."""
    targets = tokens.target_mask[:, 1:]
    rows = targets.nonzero()[:, 0]
    log_p = -F.cross_entropy(logits[targets], tokens.ids[:, 1:][targets], reduction="none")
    return log_p.new_zeros(len(logits)).index_add(0, rows, log_p)


def margin(logits: Float[Tensor, "case next vocab"], tokens: TokenTable) -> Float[Tensor, " case"]:
    """Log-odds log p / (1 - p) of the first completion token: its logit minus the log-sum-exp of the others.

    The output function of TRAK (Park et al. 2023, section 3); unlike the loss it does not saturate on a
    case that is answered with confidence.
    """
    case = torch.arange(len(logits), device=logits.device)
    at = logits[case, tokens.prompt_lengths - 1]
    label = tokens.ids[case, tokens.prompt_lengths]
    others = at.masked_fill(F.one_hot(label, at.shape[1]).bool(), -torch.inf)
    return at[case, label] - others.logsumexp(1)
