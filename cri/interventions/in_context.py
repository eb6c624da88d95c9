"""Examples in the prompt: cases as lines before a question, and what its answer owes to each of them.

An example is taken out of the prompt, or exchanged for another; or it stays, and the question and its answer may not
attend to its tokens (in no layer and no head). The change of an answer's log-odds is the example's effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cri.data.token_table import TokenTable
from cri.data.tokenization import encode_texts, require_digits
from cri.errors import CriError
from cri.evaluation.decoding import decode
from cri.models.attention import unmasked
from cri.models.loading import require_positions
from cri.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

POSITIONS_AT_ONCE = 4096
"""Tokens of all sequences held at once: keys and values of a model of 135 M parameters take 200 MB then."""


@dataclass(frozen=True)
class Example:
    """A case as a line of the prompt.

    Attributes:
        case: its id.
        kind: how it is related to the question.
        answer: the answer that the line shows.
    """

    case: int
    kind: str
    answer: str


@dataclass(frozen=True, eq=False)
class Lines:
    """Questions and answers as lines of a prompt, in the tokens of one tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    task: Task
    newline: int

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, task: Task) -> Lines:
        """Raises `CriError` for a tokenizer that cannot write digits, or that has no token for the end of a line."""
        require_digits(tokenizer)
        ids = encode_texts(tokenizer, ["\n"])[0]
        if len(ids) != 1:
            raise CriError(
                f"tokenizer: {tokenizer.name_or_path!r} writes the end of a line as {len(ids)} tokens, and answers "
                "are read up to it; choose a model whose tokenizer has one, such as gpt2 or smollm2-135m"
            )
        return cls(tokenizer, task, ids[0])

    def question(self, case: int) -> list[int]:
        return encode_texts(self.tokenizer, [self.task.questions[case]])[0]

    def answer(self, text: str) -> list[int]:
        """An answer's tokens, the end of the line among them."""
        return [*encode_texts(self.tokenizer, [text])[0], self.newline]

    def example(self, example: Example) -> list[int]:
        return [*self.question(example.case), *self.answer(example.answer)]

    def prompt(self, examples: Sequence[Example], case: int) -> list[int]:
        """Tokens of the examples' lines and the question; raises `CriError` where the tokenizer cuts the whole text, or
        the question before its answer, at other places."""
        lines = [self.task.questions[e.case] + e.answer + "\n" for e in examples]
        ids = [*(i for e in examples for i in self.example(e)), *self.question(case)]
        whole = "".join(lines) + self.task.questions[case] + self.task.answers[case] + "\n"
        if encode_texts(self.tokenizer, [whole])[0] != [*ids, *self.answer(self.task.answers[case])]:
            raise CriError(
                f"tokenizer: {self.tokenizer.name_or_path!r} cuts the line {whole.splitlines()[0]!r} at other places "
                "in a prompt than alone; choose a model whose tokenizer does not, such as gpt2 or smollm2-135m"
            )
        return ids


def answers(model: PreTrainedModel, lines: Lines, prompts: Sequence[Sequence[int]]) -> list[tuple[str, bool]]:
    """What greedy decoding writes behind each prompt up to the end of the line, and whether it came to one. As many
    tokens are allowed as the longest right answer has, and two more."""
    longest = max(len(lines.answer(answer)) for answer in set(lines.task.answers)) + 2
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    require_positions(model, int(lengths.max()) + longest)
    ids = torch.full((len(prompts), int(lengths.max())), lines.newline)
    for i, prompt in enumerate(prompts):
        ids[i, : len(prompt)] = torch.tensor(prompt)
    table = TokenTable(ids, lengths, lengths, lines.newline, lines.newline)
    done = decode(model, table, max_new_tokens=longest, batch_tokens=POSITIONS_AT_ONCE)
    texts = lines.tokenizer.batch_decode([row[:n] for row, n in zip(done.ids, done.lengths, strict=True)])
    return list(zip(texts, done.finished.tolist(), strict=True))


@torch.inference_mode()
def tail_log_p(
    model: PreTrainedModel,
    head: Sequence[Sequence[int]],
    question: Sequence[int],
    completions: Sequence[Sequence[int]],
    allowed: Bool[Tensor, "row pos"] | None = None,
) -> Float[np.ndarray, "row completion"]:
    """Log probability of each completion of head and question, summed over its tokens.

    The head's keys and values are computed once for all completions, and once for all rows of `allowed`.

    Args:
        head: token ids before the question, of one length; may be empty.
        allowed: which tokens of the head the question and its completions may attend to, a row each; with it there is
            one head, which attends to itself as ever.
    """
    from transformers import DynamicCache

    n_head, n_rows = len(head[0]), len(head) if allowed is None else len(allowed)
    tails = torch.zeros(len(completions), len(question) + max(map(len, completions)), dtype=torch.long)
    scored = torch.zeros(tails.shape, dtype=torch.bool)
    for i, completion in enumerate(completions):
        tail = torch.tensor([*question, *completion])
        tails[i, : len(tail)] = tail
        scored[i, len(question) : len(tail)] = True
    require_positions(model, n_head + tails.shape[1])
    out = []
    at_once = max(1, POSITIONS_AT_ONCE // (len(tails) * (n_head + tails.shape[1])))
    for start in range(0, n_rows, at_once):
        rows = slice(start, min(start + at_once, n_rows))
        n = rows.stop - rows.start
        cache, mask = DynamicCache(config=model.config), {}
        heads = head if allowed is not None else head[rows]
        inputs = tails[:, :-1].repeat(n, 1)
        if allowed is not None:
            mask = {"attention_mask": _may_attend(allowed[rows], len(tails), inputs.shape[1]).to(model.device)}
        with unmasked(model):
            if n_head:
                ids = torch.tensor(heads, device=model.device)
                model(input_ids=ids, cache=cache, use_cache=True, logits_to_keep=1, **_from(0, n_head))
                cache.batch_repeat_interleave(len(inputs) // len(heads))
            logits = model(
                input_ids=inputs.to(model.device), cache=cache, use_cache=True,
                logits_to_keep=tails.shape[1] - len(question), **_from(n_head, inputs.shape[1]), **mask,
            ).logits  # fmt: skip
        kept = slice(len(question), None)
        log_p = logits.double().log_softmax(-1).gather(-1, tails[:, kept].repeat(n, 1)[..., None].to(model.device))
        log_p = log_p[..., 0].cpu().masked_fill(~scored[:, kept].repeat(n, 1), 0).sum(1)
        out.append(log_p.reshape(n, len(tails)).numpy())
    return np.concatenate(out)


def _from(start: int, n: int) -> dict[str, Tensor]:
    return {"position_ids": torch.arange(start, start + n)[None]}


def _may_attend(allowed: Bool[Tensor, "row pos"], repeats: int, n_tail: int) -> Bool[Tensor, "sequence 1 q k"]:
    """The mask of the tail's queries: the allowed tokens of the head, and the tail up to each query."""
    to_head = allowed.repeat_interleave(repeats, 0)[:, None, None].expand(-1, 1, n_tail, -1)
    to_tail = torch.ones(n_tail, n_tail, dtype=torch.bool).tril().expand(len(to_head), 1, -1, -1)
    return torch.cat([to_head, to_tail], dim=-1)


def log_odds(log_p: Float[np.ndarray, "row completion"]) -> Float[np.ndarray, "row completion"]:
    """log p / (1 - p) of log p, finite where p is 1 up to rounding."""
    return log_p - np.log(-np.expm1(np.minimum(log_p, -1e-12)))


@dataclass(frozen=True)
class Variant:
    """A prompt with a part of its examples taken out or exchanged, or hidden.

    Attributes:
        what: was done.
        place: of the example that it was done to, counted from 0; -1 for all of a kind.
        kind: of the example or examples.
        examples: that the prompt has now; empty where they are hidden instead.
        hidden: tokens of the examples' lines that the question may not attend to; empty where none is.
    """

    what: str
    place: int
    kind: str
    examples: tuple[Example, ...] = ()
    hidden: tuple[int, ...] = ()


REMOVED, OWN_KIND, FAR_ONE, WITHOUT = "removed", "exchanged for its kind", "exchanged for a far one", "kind removed"
CUT, CUT_CONTROL, CUT_KIND, CUT_KIND_CONTROL = "cut", "cut: other tokens", "kind cut", "kind cut: other tokens"


def removals(examples: Sequence[Example], spares: Sequence[Example], far: Sequence[Example]) -> list[Variant]:
    """Each example taken out, exchanged for its spare of the same kind, and (unless it is a far one itself) for a far
    one; and all examples of a kind taken out together.

    Args:
        spares, far: one for each example.
    """
    out = []
    for i, example in enumerate(examples):
        before, after = examples[:i], examples[i + 1 :]
        out.append(Variant(REMOVED, i, example.kind, (*before, *after)))
        out.append(Variant(OWN_KIND, i, example.kind, (*before, spares[i], *after)))
        if example.kind != far[i].kind:
            out.append(Variant(FAR_ONE, i, example.kind, (*before, far[i], *after)))
    kinds = dict.fromkeys(e.kind for e in examples)
    return out + [Variant(WITHOUT, -1, kind, tuple(e for e in examples if e.kind != kind)) for kind in kinds]


def knockouts(examples: Sequence[Example], n_tokens: Sequence[int], rng: np.random.Generator) -> list[Variant]:
    """Each example's tokens hidden, and all those of a kind; and each time, as the control, as many tokens drawn from
    the other examples' lines."""
    owner = np.repeat(np.arange(len(examples)), n_tokens)
    kinds = np.array([e.kind for e in examples])
    out = []
    groups = [(CUT, CUT_CONTROL, i, str(kinds[i]), owner == i) for i in range(len(examples))]
    groups += [(CUT_KIND, CUT_KIND_CONTROL, -1, kind, kinds[owner] == kind) for kind in dict.fromkeys(kinds.tolist())]
    for what, control, place, kind, mask in groups:
        own, others = np.flatnonzero(mask), np.flatnonzero(~mask)
        out.append(Variant(what, place, kind, hidden=tuple(own.tolist())))
        if len(others) >= len(own):
            drawn = rng.choice(others, len(own), replace=False)
            out.append(Variant(control, place, kind, hidden=tuple(sorted(drawn.tolist()))))
    return out


def drops(
    model: PreTrainedModel,
    lines: Lines,
    examples: Sequence[Example],
    case: int,
    targets: Sequence[str],
    variants: Sequence[Variant],
) -> tuple[Float[np.ndarray, " target"], Float[np.ndarray, "variant target"]]:
    """Log-odds of each target answer behind the whole prompt, and how much they fall by each variant."""
    lines.prompt(examples, case)  # the tokenizer must not join lines
    question, completions = lines.question(case), [lines.answer(text) for text in targets]
    heads = [[i for e in chosen for i in lines.example(e)] for chosen in (examples, *(v.examples for v in variants))]
    log_p = np.zeros((len(heads), len(targets)))
    hiding = [i for i, v in enumerate(variants, 1) if v.hidden]
    by_length: dict[int, list[int]] = {}
    for i, head in enumerate(heads):
        if i not in hiding:
            by_length.setdefault(len(head), []).append(i)
    for index in by_length.values():
        log_p[index] = tail_log_p(model, [heads[i] for i in index], question, completions)
    if hiding:
        allowed = torch.ones(len(hiding), len(heads[0]), dtype=torch.bool)
        for row, i in enumerate(hiding):
            allowed[row, list(variants[i - 1].hidden)] = False
        log_p[hiding] = tail_log_p(model, heads[:1], question, completions, allowed)
    odds = log_odds(log_p)
    return odds[0], odds[0] - odds[1:]
