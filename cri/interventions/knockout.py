"""Attention knockout: where does a step read from?

The tokens of one trace line may not attend to a group of earlier tokens, in one head, one layer, or
everywhere; the loss of their own log probability says how much they read there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cri.checks import checked
from cri.data.case_ids import check_case_ids
from cri.errors import CriError, out_of_range
from cri.formats.traces import join
from cri.interventions.continuations import encode_with_ends
from cri.interventions.edits import steps_done, written_trace
from cri.training.runs import Run
from cri.training.setup import Materials

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

GROUPS = ("question", "rule", "previous", "older", "own")
"""What a step can read: the question's tokens in the prompt; the rule's source there (`rfft`); the previous
trace line (`rfft`: the previous loop iteration); older lines; earlier tokens of its own lines, except the
very token that predicts."""


@dataclass(frozen=True, eq=False)
class StepTokens:
    """Reference traces up to the end of one step, and which tokens belong to what.

    Attributes:
        ids: token ids, [case, pos], right-padded.
        targets: tokens of the step, [case, pos]; they are predicted at the position before.
        groups: for each of `GROUPS` that occurs, its tokens, [case, pos].
        cases: case ids, [case].
    """

    ids: Int[Tensor, "case pos"]
    targets: Bool[Tensor, "case pos"]
    groups: dict[str, Bool[Tensor, "case pos"]]
    cases: Int[np.ndarray, " case"]


@checked
def step_tokens(run: Run | Materials, case_ids: Sequence[int], step: int) -> StepTokens:
    """The tokens of the lines that execute rule step number `step` (counted from 1) of each case; cases
    with fewer steps are left out.

    Raises `CriError` for the direct format, and for a step that no case has.
    """
    task, fmt = run.task, run.format
    if fmt.name == "direct":
        raise CriError("format: direct writes no steps to knock out; use scratchpad or rfft")
    rows, cases, longest = [], [], 0
    for case in check_case_ids(list(case_ids), task.n_cases).tolist():
        rule, operands = written_trace(task, fmt, case)
        lines = rule.trace(task, *operands)
        done = steps_done(lines)
        longest = max(longest, done[-1])
        if not 1 <= step <= done[-1]:
            continue
        executing = done.index(step)
        iteration = lines[executing].iteration
        if iteration is None:  # a scratchpad's step is one line, the previous one its input
            own, previous = [executing], [executing - 1]
        else:
            own = [i for i, x in enumerate(lines) if x.iteration == iteration]
            previous = [i for i, x in enumerate(lines) if x.iteration == iteration - 1] or [own[0] - 1]
        question = task.question(*task.operands[case])
        rows.append((fmt.prompt(task, *task.operands[case]), question, join(lines), lines, own, previous))
        cases.append(int(case))
    if not rows:
        raise out_of_range("step", step, f"in 1..{longest}")
    return _tokens(run, rows, np.array(cases))


def _tokens(run: Run | Materials, rows: list[Any], cases: Int[np.ndarray, " case"]) -> StepTokens:
    encoded = encode_with_ends(run.tokenizer, [row[2] for row in rows])
    prompts = encode_with_ends(run.tokenizer, [row[0] for row in rows])
    kept = [len(p[0]) + int(np.searchsorted(e[1], row[3][row[4][-1]].stop)) + 1
            for row, e, p in zip(rows, encoded, prompts, strict=True)]  # fmt: skip
    width = max(kept)
    ids = torch.full((len(rows), width), run.tokens.pad)
    masks = {name: torch.zeros(len(rows), width, dtype=torch.bool) for name in ("targets", *GROUPS)}
    for i, ((prompt, question, _, lines, own, previous), (body, ends), (head, head_ends)) in enumerate(
        zip(rows, encoded, prompts, strict=True)
    ):
        start = len(head)
        row = [*head, *body][: kept[i]]
        ids[i, : len(row)] = torch.tensor(row)
        where = prompt.index(question)
        in_question = (head_ends > where) & (head_ends <= where + len(question))
        masks["question"][i, :start] = torch.from_numpy(in_question)
        masks["rule"][i, :start] = torch.from_numpy(~in_question)
        line_of = np.searchsorted(np.array([x.stop for x in lines]), ends)[: len(row) - start]
        first = min(previous[0], own[0])
        masks["targets"][i, start : len(row)] = torch.from_numpy(np.isin(line_of, own))
        masks["own"][i, start : len(row)] = torch.from_numpy(np.isin(line_of, own))
        masks["previous"][i, start : len(row)] = torch.from_numpy(np.isin(line_of, previous))
        masks["older"][i, start : len(row)] = torch.from_numpy(line_of < first)
    targets = masks.pop("targets")
    groups = {name: mask for name, mask in masks.items() if mask.any()}
    return StepTokens(ids, targets, groups, cases)


@checked
def attention_knockout(
    bridge: TransformerBridge, tokens: StepTokens, groups: Sequence[str] | None = None, *, batch_size: int = 128
) -> pd.DataFrame:
    """Effect of cutting attention from a step's tokens to each group, by layer and head.

    At the positions that predict the step's tokens, attention scores to the group's keys are set to minus
    infinity before the softmax (the predicting token itself is never cut), in one head, in all heads of
    one layer (`head` -1), or in all layers (`layer` -1).

    Returns:
        One row a case and cut: `id, group, layer, head`, `drop` (mean fall of the log probability of the
        step's own tokens, nats per token), `changed` (fraction of those tokens that the model no longer
        writes, of those that it wrote before), `n_keys`.

    Raises `CriError` for a group that does not occur.
    """
    import pandas as pd

    chosen = list(tokens.groups) if groups is None else list(groups)
    for group in chosen:
        if group not in tokens.groups:
            raise CriError(f"groups: no token belongs to {group!r}; choose from {', '.join(tokens.groups)}")
    n_layers, n_heads = bridge.cfg.n_layers, bridge.cfg.n_heads
    cuts = [(-1, -1)] + [(layer, head) for layer in range(n_layers) for head in range(-1, n_heads)]
    device = next(bridge.parameters()).device
    parts = []
    for start in range(0, len(tokens.ids), batch_size):
        part = slice(start, start + batch_size)
        ids, targets = tokens.ids[part].to(device), tokens.targets[part].to(device)
        queries = targets[:, 1:]  # the position before a target predicts it
        plain, hit = _scores(bridge, ids, targets, [])
        for group in chosen:
            keys = tokens.groups[group][part].to(device)
            cut = torch.zeros(*ids.shape, ids.shape[1], dtype=torch.bool, device=device)
            cut[:, :-1] = queries[:, :, None] & keys[:, None, :]
            cut &= ~torch.eye(ids.shape[1], dtype=torch.bool, device=device)
            for layer, head in cuts:
                layers = range(n_layers) if layer < 0 else [layer]
                hooks = [(f"blocks.{i}.attn.hook_attn_scores", _cutter(cut, head)) for i in layers]
                score, still = _scores(bridge, ids, targets, hooks)
                n = targets[:, 1:].sum(-1)
                written = hit.sum(-1).clamp(min=1)
                rows = {
                    "id": tokens.cases[part], "group": group, "layer": layer, "head": head,
                    "drop": ((plain - score).sum(-1) / n).cpu().numpy(),
                    "changed": ((hit & ~still).sum(-1) / written).cpu().numpy(),
                    "n_keys": keys.sum(-1).cpu().numpy(),
                }  # fmt: skip
                parts.append(pd.DataFrame(rows))
    return pd.concat(parts, ignore_index=True)


def _cutter(cut: Bool[Tensor, "case q k"], head: int) -> Any:
    def write(scores: Tensor, hook: Any) -> Tensor:
        scores = scores.clone()
        if head < 0:
            return scores.masked_fill(cut[:, None], -torch.inf)
        scores[:, head] = scores[:, head].masked_fill(cut, -torch.inf)
        return scores

    return write


def _scores(
    bridge: TransformerBridge, ids: Int[Tensor, "case pos"], targets: Bool[Tensor, "case pos"], hooks: list[Any]
) -> tuple[Float[Tensor, "case out"], Bool[Tensor, "case out"]]:
    """Log probabilities of the target tokens (0 elsewhere), and whether they are what greedy decoding writes."""
    with torch.no_grad():
        logits = bridge.run_with_hooks(ids, fwd_hooks=hooks)[:, :-1].float()
    wanted = targets[:, 1:]
    logp = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    return logp.where(wanted, torch.zeros_like(logp)), (logits.argmax(-1) == ids[:, 1:]) & wanted
