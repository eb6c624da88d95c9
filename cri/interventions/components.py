"""Direct logit attribution: how much every attention head and MLP writes towards an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int

from cri.checks import checked
from cri.data.case_ids import check_case_ids
from cri.errors import CriError
from cri.models.loading import to_bridge
from cri.training.runs import Run
from cri.training.setup import Materials

if TYPE_CHECKING:
    import pandas as pd


@checked
def logit_attribution(
    run: Run | Materials, case_ids: Int[np.ndarray, " case"], *, batch_size: int = 512
) -> tuple[pd.DataFrame, float]:
    """Direct contribution of every component to the logit of the answer's first token, at the last prompt token.

    On a copy of the model in TransformerLens's compatibility mode (LayerNorm weights folded, writing and
    reading weights centred) component c with output h_c contributes h_c W_U[:, t] / s, s being the scale
    of the last LayerNorm; the unembedding's bias is the last component. Contributions are to centred
    logits (those minus their mean over the vocabulary).

    Returns:
        One row a case and component: `id, correct` (whether the model's token is the answer's), `component`
        (`embed`, `pos_embed`, `L0H0` ..., `L0attn_bias`, `L0mlp` ..., `unembed_bias`), `logit` (of the
        answer's token) and `predicted` (of the token that the model writes). And the greatest difference
        between the sum over components and the model's own centred logits, which is rounding.
    """
    import pandas as pd

    case_ids = check_case_ids(case_ids, run.task.n_cases)
    if not len(case_ids):
        raise CriError("case_ids: give at least one")
    bridge = to_bridge(run.model, run.tokenizer)
    bridge.enable_compatibility_mode(disable_warnings=True)
    n_layers, n_heads = bridge.cfg.n_layers, bridge.cfg.n_heads
    names = ["hook_embed", "hook_pos_embed", "ln_final.hook_scale"]
    names += [f"blocks.{i}.{h}" for i in range(n_layers) for h in ("attn.hook_z", "hook_attn_out", "hook_mlp_out")]
    tables, worst = [], 0.0
    w_u, w_o = bridge.W_U, bridge.W_O
    b_u = getattr(bridge, "b_U", None)
    b_u = torch.zeros(w_u.shape[1]) if b_u is None else b_u
    for start in range(0, len(case_ids), batch_size):
        part = case_ids[start : start + batch_size]
        last = run.tokens.prompt_lengths[part] - 1
        rows = torch.arange(len(part))
        ids = run.tokens.ids[part, : int(last.max()) + 1]
        target = run.tokens.ids[part, last + 1]
        with torch.no_grad():
            logits, cache = bridge.run_with_cache(ids, names_filter=names)
            # rotary models list hook_pos_embed, and add nothing there
            at = {name: cache[name][rows, last] for name in names if name in cache.cache_dict}
            pieces = {name.removeprefix("hook_"): at[name] for name in at if name.endswith("embed")}
            for i in range(n_layers):
                z = at[f"blocks.{i}.attn.hook_z"].reshape(len(part), n_heads, -1)
                heads = torch.einsum("chd,hdm->chm", z, w_o[i])
                pieces |= {f"L{i}H{h}": heads[:, h] for h in range(n_heads)}
                pieces[f"L{i}attn_bias"] = at[f"blocks.{i}.hook_attn_out"] - heads.sum(1)
                pieces[f"L{i}mlp"] = at[f"blocks.{i}.hook_mlp_out"]
            scale = at["ln_final.hook_scale"]
            contributions = {name: (h / scale) @ w_u for name, h in pieces.items()}
            contributions["unembed_bias"] = b_u.expand(len(part), -1)
            own = logits[rows, last]
            written = own.argmax(-1)
            centred = {name: c - c.mean(-1, keepdim=True) for name, c in contributions.items()}
            total = torch.stack(list(centred.values())).sum(0)
            worst = max(worst, float((total - (own - own.mean(-1, keepdim=True))).abs().max()))
        for name, c in centred.items():
            picked = {"logit": c[rows, target].numpy(), "predicted": c[rows, written].numpy()}
            shared = {"id": part, "correct": (written == target).numpy(), "component": name}
            tables.append(pd.DataFrame({**shared, **picked}))
    return pd.concat(tables, ignore_index=True), worst
