"""Does a model execute the rule that its prompt states? Questions with one part of the rule edited, attention to that
part cut off, and its residuals exchanged.

The formats are those of the task `many_rules`, whose texts hold each value of a rule in one token at a fixed place
(`cri.formats.rules.stated.PLACES`). A question is asked in lists that no training case has. Only questions can tell
whose rule is executed for which the stated and the edited rule have different results.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from cri.checks import checked
from cri.data.token_table import TokenTable
from cri.data.tokenization import encode_texts
from cri.errors import CriError, out_of_range, unknown_name
from cri.formats import StatedRule
from cri.formats.rules.stated import PLACES
from cri.interventions.continuations import encodable
from cri.tasks.list_rules import HELD_OUT_BASE, HELD_OUT_START, PARTS, Group, ListRule, all_rules, kept_out, rule_number
from cri.tasks.many_rules import ManyRules, most_lists, sample_lists, unpack
from cri.training.runs import Run
from cri.training.setup import Materials

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

EDITS = (*PARTS, "new_base", "new_start")
"""Kinds of edit: another value of one part, among those that training rules have; and the base, and the first carry,
that no training rule has."""
_NEW: dict[str, tuple[str, object]] = {"new_base": ("base", HELD_OUT_BASE), "new_start": ("start", HELD_OUT_START)}

Queries = Literal["later", "trace"]
"""From where attention is cut: from every later token, or from those that predict the trace alone."""


@dataclass(frozen=True)
class RuleQuestion:
    """A question about lists that no training case has, with the rule as it was and after an edit.

    Attributes:
        kind: one of `EDITS`.
        part: the part of the rule that differs.
        old, new: numbers of the two rules.
        lists: the lists, as the task packs them.
        group: of the new rule.
    """

    kind: str
    part: str
    old: int
    new: int
    lists: int
    group: Group


@checked
def stated_task(run: Run | Materials) -> ManyRules:
    """The run's task; raises `CriError` where its prompts state no rule of the grammar."""
    if not (isinstance(run.task, ManyRules) and isinstance(run.format, StatedRule)):
        raise CriError(f"format: {run.format.name} of {run.task.name} states no rule of the grammar")
    return run.task


@checked
def fresh_lists(run: Run | Materials, rules: Sequence[int], n: int, seed: int = 0) -> list[tuple[int, int]]:
    """`n` questions (rule, lists) for each rule, none of them a case that was trained on."""
    task = stated_task(run)
    trained = {task.operands[i] for i in run.split.train_ids}
    found = []
    for rule in rules:
        lists = sample_lists(min(6 * n, most_lists(task.digits)), task.digits, f"asked {seed} {rule}")
        new = [b for b in lists if (rule, b) not in trained][:n]
        found += [(rule, b) for b in new]
    return found


@checked
def group_of(task: ManyRules, rule: ListRule) -> Group:
    """The group of any rule of the grammar, for models of this task."""
    reason = kept_out(rule)
    if reason is not None:
        return reason
    return "trained" if rule_number(rule) in task.asked["trained"] else "rule"


@checked
def edited_questions(
    run: Run | Materials, kinds: Sequence[str] = EDITS, n: int = 100, seed: int = 0
) -> list[RuleQuestion]:
    """`n` questions of each kind that can tell: a trained rule, drawn at random, fresh lists, and another value of one
    part with which the result differs. Raises `UnknownNameError` for an unknown kind."""
    task = stated_task(run)
    for kind in kinds:
        if kind not in EDITS:
            raise unknown_name("kinds", kind, EDITS)
    trained = {task.operands[i] for i in run.split.train_ids}
    found = []
    for kind in kinds:
        rng = random.Random(f"edits {seed} {kind}")
        part, made = _NEW.get(kind, (kind, None))[0], 0
        room = most_lists(task.digits)
        for lists in sample_lists(min(50 * n + 50, room), task.digits, f"edited {seed} {kind}"):
            old = rng.choice(task.asked["trained"])
            rule = all_rules()[old]
            new = rule.with_part(part, _other_value(kind, rule, rng))
            if (old, lists) in trained or rule.apply(*unpack(lists)) == new.apply(*unpack(lists)):
                continue
            question = RuleQuestion(kind, part, old, rule_number(new), lists, group_of(task, new))
            if all(encodable(run.tokenizer, text) for text in _texts(run, question)):
                found.append(question)
                made += 1
            if made == n:
                break
    return found


def _other_value(kind: str, rule: ListRule, rng: random.Random) -> object:
    if kind in _NEW:
        return _NEW[kind][1]
    held_out = {"base": HELD_OUT_BASE, "start": HELD_OUT_START}.get(kind)
    own = getattr(rule, kind)
    return rng.choice([value for value in PARTS[kind] if value not in (own, held_out)])


def _texts(run: Run | Materials, q: RuleQuestion) -> list[str]:
    """Prompt and completion of the old and of the new rule."""
    return [
        make(run.task, rule, q.lists) for rule in (q.old, q.new) for make in (run.format.prompt, run.format.completion)
    ]


@checked
def token_table(
    run: Run | Materials, prompts: Sequence[tuple[int, int]], traces: Sequence[tuple[int, int]]
) -> TokenTable:
    """Sequences of the prompts of some (rule, lists), each completed by the trace of another. Raises `CriError` for
    none, and unless there are as many traces as prompts."""
    stated_task(run)
    if len(prompts) == 0 or len(prompts) != len(traces):
        raise CriError(f"traces: give one for each prompt, and at least one; not {len(traces)} for {len(prompts)}")
    heads = encode_texts(run.tokenizer, [run.format.prompt(run.task, *case) for case in prompts])
    bodies = encode_texts(run.tokenizer, [run.format.completion(run.task, *case) for case in traces])
    rows = [[*head, *body, run.tokens.eos] for head, body in zip(heads, bodies, strict=True)]
    ids = torch.full((len(rows), max(map(len, rows))), run.tokens.pad, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    lengths = torch.tensor([len(row) for row in rows])
    return TokenTable(ids, torch.tensor([len(head) for head in heads]), lengths, run.tokens.pad, run.tokens.eos)


@checked
@torch.no_grad()
def writes(
    bridge: TransformerBridge, tokens: TokenTable, hooks: Sequence[tuple[str, Any]] = ()
) -> Bool[Tensor, " case"]:
    """Whether greedy decoding from each prompt would write the whole completion, end of sequence included.

    It would just where each of the completion's tokens is the most probable one behind the completion up to there, so
    one pass tells, under hooks that act on given positions, too.
    """
    said = bridge.run_with_hooks(tokens.ids, fwd_hooks=list(hooks))[:, :-1].argmax(-1)
    wrong = (said != tokens.ids[:, 1:]) & tokens.target_mask[:, 1:]
    return ~wrong.any(1)


@checked
def cut_hooks(
    bridge: TransformerBridge, tokens: TokenTable, places: Int[Tensor, " case"], queries: Queries
) -> list[tuple[str, Any]]:
    """Hooks that keep tokens from attending to one place each, in every layer and head.

    Args:
        places: the token that is hidden, of every sequence.
        queries: `later` hides it from all tokens behind it, `trace` from the last token of the prompt and those behind.
    """
    n, width = tokens.ids.shape
    if len(places) != n or not bool(((places >= 0) & (places < width)).all()):
        raise out_of_range("places", places.tolist(), f"{n} places, one a sequence, in 0..{width - 1}")
    pos = torch.arange(width)
    first = places + 1 if queries == "later" else torch.maximum(tokens.prompt_lengths - 1, places + 1)
    cut = (pos[None, :, None] >= first[:, None, None]) & (pos[None, None, :] == places[:, None, None])

    def write(scores: Tensor, hook: Any) -> Tensor:
        return scores.masked_fill(cut[:, None], -torch.inf)

    assert cut.shape == (n, width, width)
    return [(f"blocks.{layer}.attn.hook_attn_scores", write) for layer in range(bridge.cfg.n_layers)]


@checked
@torch.no_grad()
def patch_hooks(
    bridge: TransformerBridge, source: TokenTable, mask: Bool[Tensor, "case pos"], layer: int
) -> list[tuple[str, Any]]:
    """Hooks that write the residual stream of `source` before one layer into another run, where `mask` says so."""
    if not 0 <= layer < bridge.cfg.n_layers:
        raise out_of_range("layer", layer, f"in 0..{bridge.cfg.n_layers - 1}")
    if mask.shape != source.ids.shape:
        raise out_of_range("mask", list(mask.shape), f"of the shape of the source, {list(source.ids.shape)}")
    name = f"blocks.{layer}.hook_resid_pre"
    _, cache = bridge.run_with_cache(source.ids, names_filter=[name])
    kept = cache[name]

    def write(resid: Tensor, hook: Any) -> Tensor:
        return torch.where(mask[..., None], kept, resid)

    return [(name, write)]


@dataclass(frozen=True, eq=False)
class Asked:
    """Questions as tokens: the prompt of either rule, completed by the trace of either.

    Attributes:
        tables: by (rule of the prompt, rule of the trace), each `old` or `new`.
        places: the token of the edited part, [case].
        others: the token of another part, the control, [case].
    """

    tables: dict[tuple[str, str], TokenTable]
    places: Int[Tensor, " case"]
    others: Int[Tensor, " case"]


@checked
def ask(run: Run | Materials, questions: Sequence[RuleQuestion]) -> Asked:
    """The tokens of questions whose rule's text is readable; raises `CriError` for the controls' formats."""
    if run.format.name != "stated_rule":
        raise CriError(f"format: {run.format.name} has no token for a part of the rule; use stated_rule")
    if not questions:
        raise CriError("questions: give at least one")
    cases = {name: [(getattr(q, name), q.lists) for q in questions] for name in ("old", "new")}
    tables = {(p, t): token_table(run, cases[p], cases[t]) for p in cases for t in cases}
    parts = list(PARTS)
    # the next part in order: a control that lies beside the edited one, never the same
    after = [parts[(parts.index(q.part) + 1) % len(parts)] for q in questions]
    places, others = (torch.tensor([PLACES[p] for p in names]) for names in ([q.part for q in questions], after))
    return Asked(tables, places, others)


def outcomes(
    bridge: TransformerBridge, asked: Asked, prompt: str, hooks: Callable[[TokenTable, str], Sequence[tuple[str, Any]]]
) -> tuple[Bool[Tensor, " case"], Bool[Tensor, " case"]]:
    """Whether the whole trace of the new rule is written, and that of the old one, after the prompt of `prompt` (`old`
    or `new`) under `hooks`, which are given the sequences and the rule whose trace they end in."""
    new, old = (
        writes(bridge, asked.tables[prompt, trace], hooks(asked.tables[prompt, trace], trace))
        for trace in ("new", "old")
    )
    return new, old
