"""Examples in the prompt: their kinds, their effects, and attention to them, against slow obvious code."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cri.data.context_cases import KINDS, example_kinds
from cri.data.tokenization import build_tokenizer
from cri.errors import CriError
from cri.interventions.in_context import (
    CUT,
    CUT_CONTROL,
    CUT_KIND,
    FAR_ONE,
    OWN_KIND,
    REMOVED,
    WITHOUT,
    Example,
    Lines,
    Variant,
    answers,
    drops,
    knockouts,
    log_odds,
    removals,
    tail_log_p,
)
from cri.interventions.knockout import _cutter
from cri.models.loading import build_model, load_pretrained, save_model, to_bridge
from cri.studies.common.pieces import Pieces
from cri.studies.common.records import recording
from cri.studies.in_context.config import PRESETS, RELATED, InContext
from cri.studies.in_context.study import in_short, main
from cri.studies.in_context.tables import Asked, accuracy_table, answered, effect_tables, paired_table
from cri.tasks import make_task

TASK = make_task("addition", size=30)
TEXTS = ["".join(f"{q}{a}\n" for q, a in zip(TASK.questions, TASK.answers, strict=True))]


def _folder(path: Path, preset: str = "nano-rope", kind: str = "digit", atoms=(), n_positions: int = 256, texts=TEXTS):
    tokenizer = build_tokenizer(kind, texts, atoms)
    model = build_model(preset, vocab_size=len(tokenizer), n_positions=n_positions, pad=0, eos=1, seed=0)
    save_model(model, tokenizer, path)
    return path


@pytest.fixture(scope="module", params=["nano-rope", "nano"])
def loaded(request, tmp_path_factory):
    model, tokenizer = load_pretrained(str(_folder(tmp_path_factory.mktemp("model") / "m", request.param)))
    return model, Lines.of(tokenizer, TASK)


def _example(a: int, b: int, kind: str = "far") -> Example:
    return Example(TASK.id_of(a, b), kind, str(a + b))


def test_kinds_are_what_they_say():
    rng = np.random.default_rng(0)
    candidates, questions = np.arange(TASK.n_cases), rng.choice(TASK.n_cases, 12, replace=False)
    codes = example_kinds(TASK, candidates, questions, radius=2, far=6)
    pairs = {(c, q): codes[c, j] for j, q in enumerate(questions) for c in candidates}
    assert set(np.unique(codes)) == {-1, *range(len(KINDS))}
    for (c, q), code in pairs.items():
        (x, y), (a, b) = TASK.operands[c], TASK.operands[q]
        distance, image = max(abs(x - a), abs(y - b)), max(abs(x - b), abs(y - a))
        kind = KINDS[code] if code >= 0 else None
        if (x, y) == (a, b) or (x + y == a + b and distance <= 2):
            expected = {None}
        elif distance <= 2:
            expected = {"near"}
        elif a != b and image <= 2:
            expected = {None} if x + y == a + b else {"mirror"}
        elif distance < 6:
            expected = {None}
        elif x + y == a + b:
            expected = {"same_answer"}
        elif x == a or y == b:
            expected = {"other_tens"} if (x - a + y - b) % 10 == 0 else {"same_operand"}
        else:
            expected = {"same_step", "far"}
        assert kind in expected
        if kind in ("same_step", "far"):
            shared = {(s.x, s.y, s.carry) for s in TASK.steps(x, y) if None not in (s.x, s.y)} & {
                (s.x, s.y, s.carry) for s in TASK.steps(a, b) if None not in (s.x, s.y)
            }
            assert (kind == "same_step") <= bool(shared)
    with pytest.raises(CriError, match="far: 2 is not allowed; must be more than radius=2"):
        example_kinds(TASK, candidates, questions, radius=2, far=2)


def _slow(model, prompt: list[int], completion: list[int]) -> float:
    ids = torch.tensor([[*prompt, *completion]])
    with torch.no_grad():
        log_p = model(input_ids=ids).logits[0].double().log_softmax(-1)
    return sum(float(log_p[len(prompt) - 1 + i, token]) for i, token in enumerate(completion))


def test_log_probabilities_are_those_of_plain_passes(loaded, monkeypatch):
    model, lines = loaded
    case, completions = TASK.id_of(7, 8), [lines.answer("15"), lines.answer("9")]
    for examples in ([], [_example(1, 2), _example(3, 4)]):
        other = [_example(4, 5), _example(2, 1)][: len(examples)]
        heads = [[i for e in chosen for i in lines.example(e)] for chosen in (examples, other)]
        expected = [[_slow(model, [*head, *lines.question(case)], c) for c in completions] for head in heads]
        for at_once in (4096, 1):  # one batch, and one row at a time
            monkeypatch.setattr("cri.interventions.in_context.POSITIONS_AT_ONCE", at_once)
            found = tail_log_p(model, heads, lines.question(case), completions)
            np.testing.assert_allclose(found, expected, atol=1e-4)
    p = np.exp(np.array(expected))
    np.testing.assert_allclose(log_odds(np.array(expected)), np.log(p / (1 - p)), atol=1e-9)
    assert np.isfinite(log_odds(np.zeros((1, 1)))).all()


def test_hidden_tokens_are_those_cut_off_by_hooks(loaded):
    """Hidden behind keys and values computed once, or cut off in every layer of a TransformerLens model: the same."""
    model, lines = loaded
    bridge = to_bridge(model, lines.tokenizer)
    examples, case = [_example(11, 12), _example(3, 4, "near"), _example(20, 9)], TASK.id_of(7, 8)
    lengths = [len(lines.example(e)) for e in examples]
    variants = knockouts(examples, lengths, np.random.default_rng(0))
    whole, fallen = drops(model, lines, examples, case, ["15", "9"], variants)
    prompt = lines.prompt(examples, case)
    for column, text in enumerate(("15", "9")):
        completion = lines.answer(text)
        ids = torch.tensor([[*prompt, *completion]])

        def odds(hooks, ids=ids, completion=completion):
            with torch.no_grad():
                log_p = bridge.run_with_hooks(ids, fwd_hooks=hooks)[0].double().log_softmax(-1)
            total = sum(float(log_p[len(prompt) - 1 + i, token]) for i, token in enumerate(completion))
            return log_odds(np.array([[total]]))[0, 0]

        assert whole[column] == pytest.approx(odds([]), abs=1e-3)
        for variant, drop in zip(variants, fallen[:, column], strict=True):
            cut = torch.zeros(1, ids.shape[1], ids.shape[1], dtype=torch.bool)
            cut[:, sum(lengths) :, list(variant.hidden)] = True
            hooks = [(f"blocks.{i}.attn.hook_attn_scores", _cutter(cut, -1)) for i in range(bridge.cfg.n_layers)]
            assert whole[column] - drop == pytest.approx(odds(hooks), abs=1e-3)
    assert np.abs(fallen).max() > 1e-3


def test_what_is_hidden_and_how_much_of_the_others():
    examples = [_example(1, 1), _example(11, 12, "near"), _example(3, 4)]
    variants = knockouts(examples, [6, 8, 6], np.random.default_rng(1))
    by = {(v.what, v.place, v.kind): set(v.hidden) for v in variants}
    assert by[CUT, 1, "near"] == set(range(6, 14))
    assert by[CUT_KIND, -1, "far"] == {*range(6), *range(14, 20)}
    assert len(by[CUT_CONTROL, 1, "near"]) == 8
    assert not by[CUT_CONTROL, 1, "near"] & set(range(6, 14))
    # of 20 tokens 12 are of far examples: the others are too few for a control
    assert ("kind cut: other tokens", -1, "far") not in by


def test_each_example_is_taken_out_and_exchanged(loaded):
    model, lines = loaded
    examples, spares = [_example(1, 2), _example(7, 7, "near")], [_example(2, 9), _example(8, 8, "near")]
    variants = removals(examples, spares, [spares[0], _example(25, 3)])
    shown = [(v.what, v.place, [e.case for e in v.examples]) for v in variants]
    one, two = (e.case for e in examples)
    assert shown == [
        (REMOVED, 0, [two]), (OWN_KIND, 0, [spares[0].case, two]), (REMOVED, 1, [one]),
        (OWN_KIND, 1, [one, spares[1].case]), (FAR_ONE, 1, [one, TASK.id_of(25, 3)]), (WITHOUT, -1, [two]),
        (WITHOUT, -1, [one]),
    ]  # fmt: skip
    case = TASK.id_of(7, 8)
    whole, fallen = drops(model, lines, examples, case, ["15"], variants)
    for variant, drop in zip(variants, fallen[:, 0], strict=True):
        changed = _slow(model, lines.prompt(variant.examples, case), lines.answer("15"))
        assert whole[0] - drop == pytest.approx(log_odds(np.array([[changed]]))[0, 0], abs=1e-3)
    same = drops(model, lines, examples, case, ["15"], [Variant(REMOVED, 0, "far", tuple(examples))])[1]
    assert same[0, 0] == pytest.approx(0, abs=1e-4)


def test_answers_end_with_the_line(loaded):
    model, lines = loaded
    prompts = [lines.prompt([_example(1, 2), _example(12, 13)], case) for case in (5, 400)]
    for prompt, (text, finished) in zip(prompts, answers(model, lines, prompts), strict=True):
        written, longest = list(prompt), len("58\n") + 2
        for _ in range(longest):
            with torch.no_grad():
                written.append(int(model(input_ids=torch.tensor([written])).logits[0, -1].argmax()))
            if written[-1] == lines.newline:
                break
        assert finished == (written[-1] == lines.newline)
        assert text == lines.tokenizer.decode(written[len(prompt) :][: -1 if finished else None])


CONFIG = PRESETS["test"]


def test_examples_are_the_same_for_every_number_and_shuffled_ones_exchange_answers():
    asked = Asked(InContext(**{**vars(CONFIG), "k": (2, 4), "questions": 5}))
    for i, case in enumerate(asked.questions):
        for kind in asked.config.kinds:
            assert asked.examples(i, kind, 4)[:2] == asked.examples(i, kind, 2) or kind == "near_shuffled"
            assert case not in [e.case for e in asked.examples(i, kind, 4)]
        plain, exchanged = asked.examples(i, "near", 4), asked.examples(i, "near_shuffled", 4)
        assert [e.case for e in plain] == [e.case for e in exchanged]
        assert sorted(e.answer for e in plain) == sorted(e.answer for e in exchanged)
        assert TASK.answers[case] not in [e.answer for e in plain]
        examples, spares, far, _ = asked.mixed(i)
        every = [e.case for e in (*examples, *spares)]
        assert len(set(every)) == len(every) == 2 * 3 * asked.config.per_kind
        assert [e.kind for e in spares] == [e.kind for e in examples]
        assert {e.kind for e in far} == {"far"}
        assert not {e.case for e, own in zip(far, examples, strict=True) if own.kind != "far"} & set(every)


def test_tables_of_a_model_that_adds_and_of_one_that_copies(monkeypatch):
    asked = Asked(InContext(**{**vars(CONFIG), "questions": 12}))
    lines = Lines.of(build_tokenizer("digit", TEXTS), TASK)
    right = [asked.task.answers[i] for i in asked.questions]
    rows = {}
    for who in ("adds", "copies"):
        parts = []
        for kind in asked.config.kinds:
            said = right if who == "adds" else [asked.examples(i, kind, 2)[0].answer for i in range(12)]
            written = [(text, True) for text in said]
            monkeypatch.setattr("cri.studies.in_context.tables.answers", lambda *_, w=written: w)
            parts += answered(None, lines, asked, kind, 2)  # pyright: ignore[reportArgumentType]
        rows[who] = pd.DataFrame(parts)
    adds, copies = (accuracy_table(rows[who]).set_index("kind") for who in rows)
    assert (adds["right"] == 1).all()
    assert (adds["low"] < 1).all()
    assert adds.loc["near", "shown"] == copies.loc["near", "right"] == copies.loc["near", "copied"] == 0
    assert (copies["shown"] == 1).all()
    assert 0 < copies.loc["near", "between"] < 1
    assert (adds["distance"] >= 1).all()
    assert "it adds" in in_short(adds.reset_index())
    assert "it does not add" in in_short(copies.reset_index())
    table = paired_table(rows["adds"], ["far"])
    assert (table["estimate"] == 0).all()
    assert set(table["kind"]) == {"near", "near_shuffled", "random"}


def test_effects_are_averaged_within_questions():
    rows = pd.DataFrame(
        [(q, kind, drop + q) for q in (0, 1) for kind, drop in (("near", 3.0), ("near", 5.0), ("far", 1.0))],
        columns=["id", "kind", "drop"],
    ).assign(target="right", what=REMOVED)
    tables = effect_tables(rows)
    near = tables["effects"].query("kind == 'near'").iloc[0]
    assert (near["estimate"], near["n"]) == (4.5, 2)
    assert tables["contrasts"]["estimate"].tolist() == [3.0]


def test_a_killed_study_goes_on(tmp_path):
    made: list[str] = []

    def make(name: str) -> list[dict[str, object]]:
        if name == "b" and "b" not in made:
            made.append(name)
            raise KeyboardInterrupt
        made.append(name)
        return [{"name": name, "x": 0.1, "y": None, "z": True}]

    def study(rests_on: str) -> list[dict[str, object]]:
        with recording(tmp_path / "record") as record:
            pieces = Pieces(record, {"weights": rests_on})
            rows = [row for name in "ab" for row in pieces.rows(name, lambda name=name: make(name))]
            pieces.clear()
            return rows

    with pytest.raises(KeyboardInterrupt):
        study("one")
    assert study("one") == [{"name": name, "x": 0.1, "y": None, "z": True} for name in "ab"]
    assert made == ["a", "b", "b"]
    made.clear()
    with pytest.raises(KeyboardInterrupt):
        study("one")
    study("another")
    assert made == ["a", "b", "a", "b"]
    assert [p.name for p in tmp_path.iterdir() if "pieces" in p.name] == []


def _command(monkeypatch, tmp_path, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["in_context", "test", *arguments, "--out", str(tmp_path)])
    main()


def test_study_end_to_end(tmp_path, monkeypatch, capsys):
    folder = _folder(tmp_path / "model")
    _command(monkeypatch, tmp_path, "--model", str(folder))
    record = tmp_path / "studies" / "in_context" / "test"
    accuracy = pd.read_csv(record / "accuracy.csv", keep_default_na=False)
    assert set(accuracy["kind"]) == {"none", *CONFIG.kinds}
    effects = pd.read_csv(record / "effects.csv")
    assert set(effects["kind"]) == set(CONFIG.mixed)
    assert set(effects["target"]) <= {"right", "predicted"}
    assert (pd.read_csv(record / "explained.csv").groupby("id").size() > 0).sum() == CONFIG.explained
    assert (tmp_path / "figures" / "in_context_test.png").exists()
    assert "right in" in capsys.readouterr().out
    assert not list(record.parent.glob(".*.pieces"))
    monkeypatch.setattr("cri.studies.in_context.study._ask", None)  # asked again, nothing is computed
    _command(monkeypatch, tmp_path, "--model", str(folder))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--kinds", "close"], "kinds: unknown 'close'; choose from near, mirror"),
        (["--mixed", "random"], "mixed: unknown 'random'; choose from near, mirror"),
        (["--k", "0"], "k: 0 is not allowed; must be at least 1"),
        (["--mixed", "far", "--per-kind", "1"], "mixed: one example in a prompt leaves no others"),
        (["--explained", "4"], "explained: 4 is not allowed; must be in 1..questions=3"),
        (["--smallest", "30"], "smallest: 30 is not allowed; must be in 0..size-1=29"),
        (["--size", "101"], "size: 101 is not allowed; must be in 2..100"),
        (["--far", "2"], "far: 2 is not allowed; must be more than radius=2"),
        (["--k", "21"], "questions: 3 is not allowed; must be at most 0: so many cases have"),
        (["--model", "nobody/nothing"], "model: cannot load 'nobody/nothing'"),
    ],
)
def test_bad_input_is_one_line(arguments, said, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        _command(monkeypatch, tmp_path, *arguments)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"texts": ["1+2="]}, "tokenizer: cannot encode"),
        ({"atoms": ("\n1",)}, "at other places in a prompt than alone"),
        ({"preset": "nano", "n_positions": 16}, "do not fit its 16 positions"),
    ],
)
def test_a_model_that_cannot_be_asked_is_named(options, said, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stop:
        _command(monkeypatch, tmp_path, "--model", str(_folder(tmp_path / "model", **options)), "--k", "6")
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_names_of_kinds_are_those_of_the_relations():
    assert RELATED == KINDS
