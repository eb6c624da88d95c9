"""Pairs of cases that differ in one variable of a rule step, and what each account predicts for a swap.

A source case's activations are patched into a base case. The pair's next step differs in exactly one
variable: the carry, one digit, or whether the calculation goes on. Their answers so far differ too, which
separates the accounts: the *rule* goes on from the base's digits with the source's variable (as the format's
oracle writes it from the edited trace), a retrieved *case* brings the source's own text, and a patch
without effect leaves the base's text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cri.checks import checked
from cri.data.case_ids import check_case_ids
from cri.data.tokenization import encode_texts
from cri.errors import CriError, unknown_name
from cri.formats import Format, make_format
from cri.formats.traces import Edit, TraceLine, join
from cri.interventions.continuations import encode_with_ends
from cri.tasks import Task
from cri.training.runs import Run
from cri.training.setup import Materials

Variable = Literal["carry", "digit", "loop"]
VARIABLES: tuple[Variable, ...] = ("carry", "digit", "loop")
"""Rule variables that a pair can differ in: the carry into a step, the first operand's digit of a step, and
whether a calculation without digits left goes on (`loop`; not in `rfft`, where no two such cases have different traces
of equal length)."""

IGNORE = -1


@dataclass(frozen=True, eq=False)
class Pairs:
    """Base and source sequences of one layout, token by token, and the tokens that the accounts predict.

    Positions up to `read` hold the base's (source's) prompt and trace; the window behind it is the
    rule's text, which is read token by token under teacher forcing.

    Attributes:
        base_ids, source_ids: token ids, [pair, pos]; `pos` covers `read` and all of the window but its
            last token.
        read: position that predicts the window's first token; patches go to positions 0..read.
        rule, base, source: the window's tokens as each account writes it, [pair, window], -1 from where
            it no longer tells the accounts apart.
        base_cases, source_cases: case ids, [pair].
        variable: what the pairs differ in.
        element: position of the variable's tokens in the base (None in the direct format).
        labels: the first pair's base tokens up to `read`.
    """

    base_ids: Int[Tensor, "pair pos"]
    source_ids: Int[Tensor, "pair pos"]
    read: int
    rule: Int[Tensor, "pair window"]
    base: Int[Tensor, "pair window"]
    source: Int[Tensor, "pair window"]
    base_cases: Int[np.ndarray, " pair"]
    source_cases: Int[np.ndarray, " pair"]
    variable: str
    element: int | None
    labels: list[str]

    def __len__(self) -> int:
        return len(self.base_ids)

    def __getitem__(self, rows: Int[np.ndarray, " row"] | slice) -> Pairs:
        i = np.arange(len(self))[rows]
        return Pairs(
            self.base_ids[i], self.source_ids[i], self.read, self.rule[i], self.base[i], self.source[i],
            self.base_cases[i], self.source_cases[i], self.variable, self.element, self.labels,
        )  # fmt: skip

    def self_pairs(self) -> Pairs:
        """Every base as its own source: patching must change nothing."""
        return Pairs(
            self.base_ids, self.base_ids, self.read, self.rule, self.base, self.source, self.base_cases,
            self.base_cases, self.variable, self.element, self.labels,
        )  # fmt: skip


@dataclass(frozen=True)
class _Place:
    """One line of a case's trace at which a variable can be swapped."""

    case: int
    line: int
    element: str
    text: str
    step: tuple[object, ...]
    """The other variables of the step, which base and source share."""
    so_far: str
    """What was calculated before: must differ, or the accounts say the same."""
    base_text: str
    cut: int
    """Characters of the completion up to which base and source are read."""


@checked
def make_pairs(
    run: Run | Materials,
    variable: str,
    base_cases: Iterable[int],
    source_cases: Iterable[int],
    *,
    n: int = 100,
    seed: int = 0,
) -> Pairs:
    """Draws up to `n` pairs, at most one for each base case. All have the same token layout (apart from digits) and
    trace line: those that most base cases share.

    In the direct format the variable is that of the scratchpad which the case would have, and the rule's
    prediction is that scratchpad's answer.

    Raises `UnknownNameError` for an unknown variable, `CriError` where the format is not one of direct,
    scratchpad and rfft, and where no pair can be made.
    """
    if variable not in VARIABLES:
        raise unknown_name("variables", variable, VARIABLES)
    if run.format.name not in ("direct", "scratchpad", "rfft"):
        raise CriError(f"format: {run.format.name} has no rule steps to swap; use direct, scratchpad or rfft")
    base_cases = check_case_ids(list(base_cases), run.task.n_cases, "base_cases").tolist()
    source_cases = check_case_ids(list(source_cases), run.task.n_cases, "source_cases").tolist()
    rng = np.random.default_rng(seed)
    bases = _layouts(run, [p for c in base_cases for p in _places(run.task, run.format, c, variable)])
    sources = _layouts(run, [p for c in source_cases for p in _places(run.task, run.format, c, variable)])
    candidates: dict[tuple[object, ...], list[_Place]] = {}
    for place, layout in sources:
        candidates.setdefault((layout, place.line, place.element, place.step), []).append(place)
    found: dict[tuple[object, ...], dict[int, tuple[_Place, _Place]]] = {}
    for place, layout in (bases[i] for i in rng.permutation(len(bases))):
        pool = candidates.get((layout, place.line, place.element, place.step), [])
        pool = [s for s in pool if s.text != place.text and s.so_far != place.so_far and s.case != place.case]
        group = found.setdefault((layout, place.line, place.element), {})
        if pool and place.case not in group:
            group[place.case] = place, pool[int(rng.integers(len(pool)))]
    for chosen in sorted(found.values(), key=len, reverse=True):
        pairs = _encode(run, variable, list(chosen.values()), n)
        if pairs is not None:
            return pairs
    raise CriError(f"variables: no two cases of {run.task.name} in {run.format.name} differ in {variable} alone")


def _rule_format(fmt: Format) -> Format:
    return make_format("scratchpad") if fmt.name == "direct" else fmt


def _places(task: Task, fmt: Format, case: int, variable: str) -> list[_Place]:
    lines = _rule_format(fmt).trace(task, *task.operands[case])
    if fmt.name == "rfft":
        return list(_rfft_places(lines, case, variable))
    places, text = [], join(lines)
    states = [i for i, line in enumerate(lines) if line.kind == "state" and lines[i + 1].kind != "compare"]
    first = lines[states[0]] if states else None
    for i in states:
        line = lines[i]
        value = {name: text[start:stop] for name, (start, stop) in line.elements.items()}
        ends = not (value["x"] or value["y"])
        if "answer" not in value or "digit" not in value or "+" not in line.text:
            continue  # nothing calculated before, so that rule and source would say the same
        if variable == "digit" and not ends and value["x"]:
            fixed: tuple[object, ...] = (value["x"][:-1], value["y"], value["carry"])
            element = "x"
        elif variable == "carry" and not ends:
            fixed, element = (value["x"], value["y"]), "carry"
        elif variable == "loop" and ends and value["carry"] in "01":
            fixed, element = (), "carry"
        else:
            continue
        cut = line.stop if fmt.name != "direct" else (first.start if first else 0)
        places.append(_Place(case, i, element, value[element], fixed, value["answer"], text, cut))
    return places


def _rfft_places(lines: Sequence[TraceLine], case: int, variable: str) -> Iterable[_Place]:
    text = join(lines)
    for i, line in enumerate(lines):
        if line.iteration is None or line.step is None:
            continue
        value = {name: text[start:stop] for name, (start, stop) in line.elements.items()}
        so_far = _last_result(lines[:i], text)
        following = next((x.step for x in lines[i + 1 :] if x.executes and x.step is not None), None)
        if variable == "carry" and {"carry", "operand:total"} <= set(value) and following is not None:
            yield _Place(case, i, "carry", value["carry"], (following.x, following.y), so_far, text, line.stop)
        elif variable == "digit" and "digit1" in value and line.iteration > 0:
            fixed = (value.get("num1"), line.step.y, line.step.carry)
            yield _Place(case, i, "digit1", value["digit1"], fixed, so_far, text, line.stop)


def _last_result(lines: Sequence[TraceLine], text: str) -> str:
    for line in reversed(lines):
        if "result" in line.elements and line.kind == "effects":
            start, stop = line.elements["result"]
            return text[start:stop]
    return ""


def _layouts(run: Run | Materials, places: list[_Place]) -> list[tuple[_Place, tuple[str, ...]]]:
    """Each place with the tokens of its prompt and completion up to the cut, digits blanked."""
    if not places:
        return []
    prompts = encode_texts(run.tokenizer, [run.format.prompt(run.task, *run.task.operands[p.case]) for p in places])
    texts = dict.fromkeys(p.base_text for p in places)
    encoded = dict(zip(texts, _encoded(run, list(texts)), strict=True))
    blank = {i: re.sub(r"\d+", "#", t) for t, i in run.tokenizer.get_vocab().items()}
    out = []
    for place, prompt in zip(places, prompts, strict=True):
        given, _ = _divided(*encoded[place.base_text], place.cut)
        out.append((place, tuple(blank[i] for i in [*prompt, *given])))
    return out


def _encoded(run: Run | Materials, texts: list[str]) -> list[tuple[list[int], Int[np.ndarray, " token"]]]:
    if run.format.name == "direct":  # the scratchpad that its places are found in is never shown
        return [([], np.zeros(0, dtype=np.int64))] * len(texts)
    return encode_with_ends(run.tokenizer, texts)


def _divided(ids: list[int], ends: Int[np.ndarray, " token"], cut: int) -> tuple[list[int], list[int]]:
    """Tokens that end by the cut, and the rest; one that lies across it is of the rest."""
    n = int(np.searchsorted(ends, cut, side="right"))
    return ids[:n], ids[n:]


def _written(run: Run | Materials, place: _Place, other: _Place) -> tuple[list[list[int]], list[list[int]]] | None:
    """What base and source are given behind their prompts, and what base, rule and source go on with."""
    task, fmt = run.task, run.format
    try:
        lines = _rule_format(fmt).trace(task, *task.operands[place.case], Edit(place.line, place.element, other.text))
    except CriError:
        return None
    texts, cuts = [place.base_text, join(lines), other.base_text], [place.cut, lines[place.line].stop, other.cut]
    if fmt.name == "direct":
        answers = [_rule_format(fmt).read_answer(task, text) for text in texts]
        if None in answers:
            return None
        texts, cuts = [str(answer) for answer in answers], [0, 0, 0]
    base, rule, source = (
        _divided(ids, ends, cut) for (ids, ends), cut in zip(encode_with_ends(run.tokenizer, texts), cuts, strict=True)
    )
    return [base[0], source[0]], [[*part[1], run.tokens.eos] for part in (base, rule, source)]


def _encode(run: Run | Materials, variable: str, chosen: list[tuple[_Place, _Place]], n: int) -> Pairs | None:
    rows = []
    tokenizer, eos = run.tokenizer, run.tokens.eos
    for place, other in chosen:
        if len(rows) == n:
            break
        written = _written(run, place, other)
        if written is None:
            continue
        bodies, (base, rule, source) = written
        d_base, d_source = _first_difference(rule, base), _first_difference(rule, source)
        if d_base is None or d_source is None or _first_difference(base, source) is None:
            continue
        prompts = [run.format.prompt(run.task, *run.task.operands[p.case]) for p in (place, other)]
        given = [[*a, *b] for a, b in zip(encode_texts(tokenizer, prompts), bodies, strict=True)]
        window = max(d_base, d_source) + 1
        rows.append((place, other, given, rule[:window], base[: d_base + 1], source[: d_source + 1]))
    if not rows:
        return None
    width = max(len(row[3]) for row in rows)
    read = len(rows[0][2][0]) - 1

    def padded(index: int) -> Int[Tensor, "pair window"]:
        return torch.tensor([row[index] + [IGNORE] * (width - len(row[index])) for row in rows])

    def sequences(which: int) -> Int[Tensor, "pair pos"]:
        return torch.tensor([row[2][which] + (row[3] + [eos] * (width - len(row[3])))[:-1] for row in rows])

    return Pairs(
        sequences(0), sequences(1), read, padded(3), padded(4), padded(5),
        np.array([row[0].case for row in rows]), np.array([row[1].case for row in rows]), variable,
        _element_position(run, rows[0][0]), [str(tokenizer.decode([i])) for i in rows[0][2][0]],
    )  # fmt: skip


def _element_position(run: Run | Materials, place: _Place) -> int | None:
    if run.format.name == "direct":
        return None
    lines = run.format.trace(run.task, *run.task.operands[place.case])
    stop = lines[place.line].elements[place.element][1]
    [(_, ends)] = encode_with_ends(run.tokenizer, [place.base_text])
    prompt = encode_texts(run.tokenizer, [run.format.prompt(run.task, *run.task.operands[place.case])])[0]
    return len(prompt) + int(np.searchsorted(ends, stop))


def _first_difference(x: Sequence[int], y: Sequence[int]) -> int | None:
    return next((i for i, (a, b) in enumerate(zip(x, y, strict=False)) if a != b), None)


def read_accounts(
    logits: Float[Tensor, "*cell pair window vocab"], pairs: Pairs
) -> dict[str, Float[Tensor, "*cell pair"] | Bool[Tensor, "*cell pair"]]:
    """What patched logits over the window say.

    Returns:
        `rule`, `base`, `source`: whether every greedy token up to where an account parts from the others
        is that account's. `toward_rule`: logit(rule) - logit(base) where these two first differ;
        `toward_source`: logit(source) - logit(rule) where these do, so a positive change means that the
        source's own text gains over the rule's.
    """
    greedy, shape = logits.argmax(-1), (*logits.shape[:-2], 1)
    out: dict[str, Tensor] = {}
    for name in ("rule", "base", "source"):
        tokens = getattr(pairs, name).to(logits.device)
        out[name] = ((greedy == tokens) | (tokens == IGNORE)).all(-1)
    for name, (plus, minus, window) in {
        "toward_rule": (pairs.rule, pairs.base, pairs.base),
        "toward_source": (pairs.source, pairs.rule, pairs.source),
    }.items():
        # an account's window ends where it parts from the rule
        where = (window != IGNORE).sum(-1, keepdim=True) - 1
        flat = logits.flatten(-2)  # picks single logits without copying rows of the vocabulary
        high, low = (
            flat.gather(-1, (where * logits.shape[-1] + tokens.gather(-1, where)).to(flat.device).expand(shape))
            for tokens in (plus, minus)
        )
        out[name] = (high - low).squeeze(-1)
    return out
