"""The logit lens: what the model would answer if it stopped after a site."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int

from cri.geometry.subject import Subject


@torch.no_grad()
def logit_lens(
    subject: Subject, acts: Float[np.ndarray, "case d"], ids: Int[np.ndarray, " id"]
) -> Float[np.ndarray, "id number"]:
    """Logits of every number from the residual stream of some cases, through the last LayerNorm and the unembedding.

    Args: `acts` of every case, in id order.
    """
    resid = torch.from_numpy(np.asarray(acts[ids], dtype=np.float32))[:, None]
    logits = subject.bridge.unembed(subject.bridge.ln_final(resid))[:, 0]
    return logits[:, subject.number_tokens].float().numpy()


def lens_ranks(logits: Float[np.ndarray, "id number"], answers: Int[np.ndarray, " id"]) -> Int[np.ndarray, " id"]:
    """How many numbers have a greater logit than the answer (0: the lens shows the answer)."""
    own = logits[np.arange(len(answers)), answers]
    return (logits > own[:, None]).sum(1)
