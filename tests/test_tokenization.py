"""Tokenizers: GPT-2's number pieces, round trips, saving."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from cri.data.token_table import encode, task_tokenizer, texts
from cri.data.tokenization import build_tokenizer, encode_texts, number_kind, number_tokens
from cri.errors import CriError
from cri.formats import FORMATS, make_format
from cri.tasks import TASKS, make_task

NUMBER = build_tokenizer("number", ["0+0=\n,C:-<>"])
DIGIT = build_tokenizer("digit", ["0+0=\n,C:-<>"])


def pieces(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(encode_texts(tokenizer, [text])[0])


def test_number_pieces_are_those_of_gpt2s_bpe():
    assert pieces(NUMBER, "57+42=") == ["57", "+", "42", "="]
    assert pieces(NUMBER, "520") == ["520"]
    assert pieces(NUMBER, "521") == ["52", "1"]
    assert pieces(NUMBER, "019") == ["01", "9"]
    assert pieces(NUMBER, "12345") == ["123", "45"]
    assert number_tokens(NUMBER, [7, 520, 999]) == {7: 1, 520: 1, 999: 2}


def test_digit_pieces():
    assert pieces(DIGIT, "157+4=") == ["1", "5", "7", "+", "4", "="]


def test_the_kind_of_numbers_is_read_off_the_tokens():
    assert [number_kind(tokenizer) for tokenizer in (NUMBER, DIGIT)] == ["number", "digit"]


@given(st.text(alphabet="0123456789+=,:-<>\n", max_size=60))
def test_round_trip(text):
    for tokenizer in (NUMBER, DIGIT):
        assert tokenizer.decode(encode_texts(tokenizer, [text])[0]) == text


@pytest.mark.parametrize("kind", ["number", "digit"])
@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("fmt", FORMATS)
def test_every_case_of_every_task_and_format_survives(kind, name, fmt):
    size = 6 if fmt == "rfft" else 12
    task, form = (
        make_task(name, **({"size": size, "modulus": 7} if name == "mod_addition" and size < 8 else {"size": size})),
        make_format(fmt),
    )
    tokenizer = task_tokenizer(kind, task, form)
    tokens = encode(task, form, tokenizer)
    prompts, completions = texts(task, form)
    for case in range(0, task.n_cases, 7):
        start, stop = int(tokens.prompt_lengths[case]), int(tokens.lengths[case])
        ids = tokens.ids[case].tolist()
        assert tokenizer.decode(ids[:start]) == prompts[case]
        assert tokenizer.decode(ids[start : stop - 1]) == completions[case]
        assert ids[stop - 1] == tokens.eos
        assert set(ids[stop:]) <= {tokens.pad}


def test_words_keep_their_space_and_are_one_token():
    task = make_task("chicken_rabbit", size=10)
    tokenizer = task_tokenizer("number", task, make_format("direct"))
    assert " rabbits" in tokenizer.get_vocab()


def test_saved_tokenizer_is_the_same(tmp_path):
    NUMBER.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "99+019=520\n"
    assert again(text)["input_ids"] == NUMBER(text)["input_ids"]
    assert again.decode(again(text)["input_ids"]) == text


def test_text_outside_the_vocabulary_raises():
    with pytest.raises(CriError, match="cannot encode"):
        encode_texts(NUMBER, ["1+1=", "1*1="])


def test_unknown_kind_lists_the_valid_ones():
    with pytest.raises(CriError, match="number, digit"):
        build_tokenizer("word", [])
