"""Tokenizers built from a task's own texts, and pretrained ones, behind Hugging Face's interface.

- `number`: a run of digits is cut greedily, left to right, into the tokens GPT-2's BPE also has:
  whole numbers 0..520 and two-digit strings with a leading zero. "57" is one token, "1234" is
  "123", "4". This is the paper's setting.
- `digit`: every digit is a token of its own.
- `list`: as `digit`, but a comma and the digit after it are one token: `[4,7]` is `[`, `4`, `,7`, `]`.

In all, words (with the space before them), other single characters, and the whole-line *atoms* of a
format (code lines of a recited rule) are one token each. Special tokens are `<pad>`, `<eos>` and `<unk>`;
there is no beginning-of-sequence token. `<unk>` only keeps foreign callers (TransformerLens probes a
tokenizer with "a") from failing: `encode_texts` raises for text outside the vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from cri.checks import checked
from cri.errors import CriError, unknown_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
MAX_NUMBER = 520
"""GPT-2's BPE has a single token for every whole number up to here."""

_DIGIT_PATTERNS = {
    # longest first: 100..520, then any two digits, then one
    "number": r"[1-4][0-9]{2}|5[01][0-9]|520|[0-9]{2}|[0-9]",
    "digit": r"[0-9]",
    "list": r",?[0-9]",
}
_DIGIT_TOKENS = {
    "number": [str(i) for i in range(MAX_NUMBER + 1)] + [f"0{i}" for i in range(10)],
    "digit": [str(i) for i in range(10)],
    "list": [f"{comma}{i}" for comma in ("", ",") for i in range(10)],
}
TOKENIZERS = tuple(_DIGIT_PATTERNS)


def _pattern(kind: str, atoms: Sequence[str]) -> str:
    longest_first = [re.escape(atom) for atom in sorted(set(atoms), key=lambda a: (-len(a), a))]
    return "|".join([*longest_first, _DIGIT_PATTERNS[kind], r" ?[A-Za-z_]+", r"(?s:.)"])


@checked
def build_tokenizer(kind: str, texts: Iterable[str], atoms: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A `number`, `digit` or `list` tokenizer whose vocabulary covers `texts`.

    Args:
        kind: one of `TOKENIZERS`.
        texts: everything the tokenizer must be able to encode (digits are always covered).
        atoms: strings kept as one token wherever they occur.

    Encoding a text and decoding the ids gives the text back, unless the text holds a piece that
    occurred in none of `texts`: then encoding raises.
    """
    if kind not in _DIGIT_PATTERNS:
        raise unknown_name("tokenizer", kind, TOKENIZERS)
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pattern = _pattern(kind, atoms)
    split = re.compile(pattern)
    pieces: set[str] = set()
    for text in texts:
        pieces.update(split.findall(text))
    digit_tokens = _DIGIT_TOKENS[kind]
    words = sorted(pieces.difference(digit_tokens))
    vocab = {token: i for i, token in enumerate([PAD, EOS, UNK, *digit_tokens, *words])}
    core = Tokenizer(models.WordLevel(vocab=vocab, unk_token=UNK))
    # tokenizers' Regex is Oniguruma: its inline dot-all flag is spelt (?m:)
    core.pre_tokenizer = pre_tokenizers.Split(Regex(pattern.replace("(?s:.)", "(?m:.)")), behavior="isolated")  # pyright: ignore[reportAttributeAccessIssue]
    core.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
        name_or_path=f"cri-{kind}",
    )


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without special tokens; raises `CriError` for a text that does not survive
    the round trip (a piece outside the vocabulary)."""
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]  # pyright: ignore[reportAssignmentType]
    # one decode of everything is far quicker than one per text; look for the culprit only when it fails
    if tokenizer.decode([i for row in ids for i in row]) != "".join(texts):
        for text, row in zip(texts, ids, strict=True):
            if tokenizer.decode(row) != text:
                raise CriError(f"tokenizer: cannot encode {text[:80]!r}; it decodes as {tokenizer.decode(row)[:80]!r}")
    return ids


def number_kind(tokenizer: PreTrainedTokenizerBase) -> str:
    """How a tokenizer cuts numbers, whatever its name: `digit` where each digit is a token, else `number`."""
    ids: list[int] = tokenizer("57", add_special_tokens=False)["input_ids"]  # pyright: ignore[reportAssignmentType]
    return "digit" if len(ids) > 1 else "number"


def require_digits(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises `CriError` naming the digits that a pretrained tokenizer cannot write."""
    missing = []
    for digit in "0123456789":
        ids = tokenizer(digit, add_special_tokens=False)["input_ids"]
        if not ids or str(tokenizer.decode(ids)).strip() != digit:
            missing.append(digit)
    if missing:
        raise CriError(
            f"tokenizer: {tokenizer.name_or_path!r} cannot write the digits {', '.join(missing)}, so its model cannot "
            "answer; choose a model whose tokenizer knows numbers, such as gpt2 or smollm2-135m"
        )


def require_prompts_in_context(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], completions: Sequence[str]
) -> None:
    """Raises `CriError` where a prompt's tokens alone are not those it has before its answer: a model would be trained
    on one text and asked another."""
    joint: list[list[int]] = tokenizer(  # pyright: ignore[reportAssignmentType]
        [p + c for p, c in zip(prompts, completions, strict=True)], add_special_tokens=False
    )["input_ids"]
    for prompt, row, alone in zip(prompts, joint, encode_texts(tokenizer, prompts), strict=True):
        if row[: len(alone)] != alone:
            ends = [tokenizer.convert_ids_to_tokens(ids[max(0, len(alone) - 2) : len(alone)]) for ids in (alone, row)]
            raise CriError(
                f"tokenizer: the prompt {prompt[-40:]!r} ends in the tokens {ends[0]} alone and in {ends[1]} before "
                "its answer; choose a model whose tokenizer cuts there, such as gpt2 or smollm2-135m"
            )


def eos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise CriError(f"tokenizer: {tokenizer.name_or_path!r} has no end-of-sequence token")
    return int(tokenizer.eos_token_id)  # pyright: ignore[reportArgumentType]


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding id; a pretrained tokenizer without one (GPT-2) pads with its end-of-sequence token,
    which is never attended to or scored."""
    return eos_id(tokenizer) if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]


def number_tokens(tokenizer: PreTrainedTokenizerBase, numbers: Iterable[int]) -> dict[int, int]:
    """How many tokens each number takes: decides the shape of the hole (is "57" one token or two?)."""
    return {n: len(tokenizer(str(n), add_special_tokens=False)["input_ids"]) for n in numbers}  # pyright: ignore[reportArgumentType]
