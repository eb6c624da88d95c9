"""Positions from the text so far: the same in one pass and step by step, in Hugging Face and in the bridge."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from cri.config import RunConfig, TrainConfig
from cri.data.token_table import encode, task_tokenizer
from cri.errors import CriError
from cri.evaluation.decoding import decode
from cri.formats import make_format
from cri.models.attention import unmasked
from cri.models.loading import to_bridge
from cri.models.position_options import position_options
from cri.models.positions import Positions, positions_of
from cri.models.rotary import FEW_WITHIN_LINE, WITHIN_LINE, rope_parameters
from cri.storage import config_hash
from cri.tasks import make_task
from cri.training.setup import Materials, prepare, run_positions
from cri.training.trainer import Trainer

RFFT = RunConfig(
    task="length_addition",
    task_params={"per_length": 6, "max_digits": 3, "mixed": 1},
    format="rfft",
    split="lengths",
    split_params={"train_max": 3, "test_fraction": 0.1},
    tokenizer="list",
    model="nano-rope",
    train=TrainConfig(steps=4, batch_size=4),
)
KINDS = [
    ("none", {}),
    ("random", {"longest": 2048}),
    ("structured", {}),
    ("structured", {"newest": True}),
    ("structured", {"reach": 2, "span": 27}),
    ("structured", {"reach": 1, "own": True, "ends": True}),
    ("structured", {"window": 0, "bands": False}),
    ("structured", {"index": False, "columns": 64, "window": 3}),
]
EACH_KIND = pytest.mark.parametrize(("kind", "params"), KINDS, ids=lambda value: str(value))


def _materials(kind: str, params: dict[str, object], **changes: object) -> Materials:
    return prepare(RFFT.replace(positions=kind, position_params=params, **changes))


def _agreed_logits(materials: Materials, ids: torch.Tensor) -> torch.Tensor:
    """Logits that Hugging Face's attention, ours and the bridge's agree in."""
    model = materials.model
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with unmasked(model):
            own = model(input_ids=ids).logits
        bridged = to_bridge(model, materials.tokenizer)(ids)
    assert (own - plain).abs().max() < 1e-5
    assert (bridged - plain).abs().max() < 1e-5
    return plain


def _walk(texts: list[str], start: int) -> list[tuple[int, int, int]]:
    """Line, variable and column of every token of an RFFT text of addition, the slow and obvious way."""
    names = ["", "num1", "num2", "result", "carry", "digit1", "digit2", "total"]
    line, band, column = 0, 0, -1
    places = []
    for token in texts:
        column += 1
        name = token.removeprefix(", ").removesuffix("=")
        if "\n" in token:
            line, band, column = line + 1, 0, 0
            if line == 1:  # the question: its operands are lists without brackets
                band, column = 1, 1 + start
        elif line == 1 and token == "+":
            band, column = 2, 1 + start
        elif line == 1 and token == "=":
            band, column = 0, 0
        elif token.endswith("=") and name in names[1:]:
            band, column = names.index(name), 0
        elif token == "return ":
            band, column = 3, 0
        elif token == "[":
            column = 1 + start
        places.append((line, band, column))
    return places


@pytest.mark.parametrize("start", [0, 5])
def test_places_of_a_whole_trace(start):
    materials = _materials("structured", {})
    positions = positions_of(materials.model)
    assert positions is not None
    row = materials.tokens.ids[-1:, : int(materials.tokens.lengths[-1])]
    found, _, _ = positions.advance(row, positions.begin(1, row.device, torch.tensor([start])))
    expected = _walk([positions.vocabulary[i] for i in row[0].tolist()], start)
    assert found[0].tolist() == [256 * line + 32 * band + column for line, band, column in expected]
    assert len(set(found[0].tolist())) == row.shape[1]  # every token has a position of its own


@EACH_KIND
def test_step_by_step_equals_one_pass(kind, params):
    materials = _materials(kind, params)
    positions, ids = positions_of(materials.model), materials.tokens.ids[::5]
    assert positions is not None
    whole, mask, _ = positions.advance(ids, positions.begin(len(ids), ids.device))
    mask = mask.expand(len(ids), -1, -1, -1)
    state = positions.begin(len(ids), ids.device)
    for first, last in [(0, 40), *((i, i + 1) for i in range(40, ids.shape[1]))]:
        where, allowed, state = positions.advance(ids[:, first:last], state)
        assert torch.equal(where, whole[:, first:last])
        assert torch.equal(allowed.expand(len(ids), -1, -1, -1), mask[:, :, first:last, :last])


def test_window_and_newest_value():
    materials = _materials("structured", {"window": 4, "newest": True})
    positions, tokens = positions_of(materials.model), materials.tokens
    assert positions is not None
    n = int(tokens.lengths[-1])
    row = tokens.ids[-1:, :n]
    where, allowed, _ = positions.advance(row, positions.begin(1, row.device))
    line, band = where[0] // 256, where[0] % 256 // 32
    texts = [positions.vocabulary[i] for i in row[0].tolist()]
    opens = [i for i, text in enumerate(texts) if text.endswith("num1=") or (text == "\n" and line[i] == 1)]
    for q in range(n):
        done = [i for i in opens if i < q and (band[i + 1 : q + 1] != 1).any()]  # written out before q
        for k in range(q + 1):
            seen = bool(allowed[0, 0, q, k])
            if line[q] - line[k] > 4:
                assert not seen
            elif band[k] == 1 and done:
                assert seen == (k >= done[-1]), (q, k)
            elif band[k] == 0:
                assert seen
    assert not bool(allowed[0, 0].triu(1).any())


def _side_lobe(turns: tuple[int, ...]) -> tuple[float, int]:
    """The largest mean cosine at another position than the one sought, and the nearest such position."""
    offsets = np.arange(1, 129)
    kernel = np.cos(2 * np.pi * np.outer(offsets, turns) / 256).mean(1)
    return float(kernel.max()), int(offsets[kernel.argmax()])


def test_wider_heads_tell_positions_better_apart():
    assert _side_lobe(FEW_WITHIN_LINE) == (pytest.approx(0.53, abs=0.005), 10)
    assert _side_lobe(WITHIN_LINE)[0] == pytest.approx(0.22, abs=0.005)
    for head_size, turns in ((32, FEW_WITHIN_LINE), (64, WITHIN_LINE)):
        made = rope_parameters(256, head_size)
        plain = 10_000.0 ** -(np.arange(head_size // 2) / (head_size // 2))
        angles = plain / np.array(made["long_factor"])
        assert angles[: len(turns)] * 256 / (2 * np.pi) == pytest.approx(np.array(turns))
        assert (angles[len(turns) :] * 256 < 2).all()  # these see lines


def test_wide_heads_open_in_the_bridge():
    materials = _materials("structured", {"reach": 2}, model="sharp-rope")
    assert materials.model.config.head_dim == 64
    _agreed_logits(materials, materials.tokens.ids[-2:])


def _listed(texts):
    """Whether each token stands in a list: between brackets, or in an operand of the question."""
    listed, inside = [], False
    for text in texts:
        if text == "[" or (text == "\n" and not any(listed)) or (text == "+" and inside):
            inside = True
        elif text.endswith("=") or "\n" in text or text == "return ":
            inside = False
        listed.append(inside)
    return listed


@pytest.mark.parametrize(("own", "ends"), [(False, False), (True, False), (True, True)])
def test_items_of_lists_see_near_columns_and_structure_their_ends(own, ends):
    materials = _materials("structured", {"window": 0, "reach": 2, "own": own, "ends": ends})
    positions, tokens = positions_of(materials.model), materials.tokens
    assert positions is not None
    row = tokens.ids[-1:, : int(tokens.lengths[-1])]
    _, allowed, _ = positions.advance(row, positions.begin(1, row.device, torch.tensor([3])))
    texts = [positions.vocabulary[i] for i in row[0].tolist()]
    bands, columns = zip(*[(band, column) for _, band, column in _walk(texts, 3)], strict=True)
    listed = _listed(texts)
    last, end = [0] * len(texts), 0  # the last column of the list that a token stands in
    for k in reversed(range(len(texts))):
        starts_after = k + 1 < len(texts) and listed[k + 1] and columns[k + 1] <= columns[k]
        if listed[k] and (k + 1 == len(texts) or not listed[k + 1] or starts_after):
            end = columns[k]
        last[k] = end
    hidden = [0, 0, 0]
    for q in range(len(texts)):
        for k in range(q + 1):
            both = listed[q] and listed[k]
            far = both and abs(columns[q] - columns[k]) > 2
            foreign = own and both and bands[q] != bands[k]
            within = ends and not listed[q] and listed[k] and last[k] - columns[k] > 2
            hidden = [n + h for n, h in zip(hidden, (far, foreign, within), strict=True)]
            assert bool(allowed[0, 0, q, k]) == (not far and not foreign and not within), (q, k, texts[q], texts[k])
    assert hidden[0] > 100
    assert [n > 100 for n in hidden[1:]] == [own, ends]


@EACH_KIND
def test_hugging_face_own_attention_and_bridge_agree(kind, params):
    materials = _materials(kind, params)
    model, ids = materials.model, materials.tokens.ids[-3:]
    plain = _agreed_logits(materials, ids)
    with torch.no_grad():
        ordered = model(input_ids=ids, position_ids=torch.arange(ids.shape[1])[None].expand(3, -1)).logits
    assert (ordered - plain).abs().max() > 1e-4  # positions matter


@EACH_KIND
def test_decoding_equals_teacher_forcing(kind, params):
    materials = _materials(kind, params)
    model, tokens = materials.model, materials.tokens[np.arange(len(materials.tokens))[-4:]]
    written = decode(model, tokens, max_new_tokens=60)
    rows = [
        torch.cat([tokens.ids[i, : tokens.prompt_lengths[i]], torch.from_numpy(written.ids[i, : written.lengths[i]])])
        for i in range(len(tokens))
    ]
    for i, row in enumerate(rows):
        with torch.no_grad():
            said = model(input_ids=row[None, :-1]).logits[0].argmax(-1)
        assert torch.equal(said[tokens.prompt_lengths[i] - 1 :], row[tokens.prompt_lengths[i] :])


def test_a_cache_of_transformers_own_remembers_the_text():
    from transformers import DynamicCache

    materials = _materials("structured", {})
    model, ids = materials.model, materials.tokens.ids[-2:, :90]
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        cache = DynamicCache(config=model.config)
        parts = [model(input_ids=part, cache=cache, use_cache=True).logits for part in ids.split([70, 1, 19], dim=1)]
    assert (torch.cat(parts, dim=1) - whole).abs().max() < 1e-5


def test_resumed_training_draws_the_same_starts(tmp_path):
    ends = []
    for stop in (4, 2):
        materials = _materials("structured", {})
        trainer = Trainer(materials.model, materials.tokens, materials.split.train_ids, RFFT.train)
        trainer.run(stop)
        if stop < 4:
            trainer.save(tmp_path / "checkpoint.safetensors", {})
            materials = _materials("structured", {})
            trainer = Trainer(materials.model, materials.tokens, materials.split.train_ids, RFFT.train)
            trainer.restore(tmp_path / "checkpoint.safetensors", {})
            trainer.run(4)
        ends.append(torch.cat([p.detach().flatten() for p in materials.model.parameters()]))
    assert torch.equal(*ends)


def test_gradients_by_layer_see_the_positions():
    from cri.attribution.gradients import gradient_scores

    materials = _materials("structured", {})
    model, train, test = materials.model, materials.tokens[np.array([0, 9])], materials.tokens[np.array([4])]

    def gradient(row):
        logits = model(input_ids=row.ids[:, :-1]).logits.log_softmax(-1)  # the hook gives the positions
        picked = logits.gather(2, row.ids[:, 1:, None])[..., 0][row.target_mask[:, 1:]]
        parts = torch.autograd.grad(picked.sum(), [p for p in model.parameters() if p.requires_grad])
        return torch.cat([part.flatten() for part in parts])

    rows = [train[np.array([i])] for i in (0, 1)]
    expected = torch.stack([gradient(row) @ gradient(test) for row in rows])
    found = gradient_scores(model, train, test, target="reference", progress=False).dot[:, 0]
    assert np.allclose(found, expected.numpy(), rtol=1e-3)


def test_earlier_runs_keep_their_hash():
    assert config_hash(RunConfig().to_dict()) == config_hash(
        {k: v for k, v in RunConfig().to_dict().items() if k not in ("positions", "position_params", "decoded")}
    )
    structured = RFFT.replace(positions="structured")
    assert config_hash(structured.to_dict()) != config_hash(RFFT.to_dict())
    assert RunConfig.from_dict(structured.to_dict()) == structured


def test_scratchpad_states_line_up():
    task, fmt = make_task("length_addition", min_digits=2, max_digits=2, per_length=4), make_format("scratchpad")
    tokenizer = task_tokenizer("digit", task, fmt)
    config = RFFT.replace(format="scratchpad", tokenizer="digit", positions="structured")
    positions = run_positions(config, task, fmt, tokenizer)
    ids = encode(task, fmt, tokenizer).ids[:1]
    where, _, _ = positions.advance(ids, positions.begin(1, ids.device))
    first = {"a": [2, 3], "b": [2, 3]}
    line, band, column = where[0] // 256, where[0] % 256 // 32, where[0] % 32
    for copy in (0, 1):  # the question and the first state
        for b, name in ((1, "a"), (2, "b")):
            digits = [int(c) for c, x, y in zip(column, line, band, strict=True) if x == copy and y == b and c > 1]
            assert digits[:2] == first[name]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--format", "direct", "--tokenizer", "digit"], "the format direct has no lists"),
        (["--format", "rfft", "--tokenizer", "number"], "need the tokenizer digit or list"),
        (["--format", "scratchpad", "--tokenizer", "list"], "need the tokenizer digit"),
        (["--format", "rfft", "--tokenizer", "list", "--position-params", "columns=4", "span=0"], "more than the 4"),
        (["--format", "rfft", "--tokenizer", "list", "--position-params", "wide=4"], "bands, index, span"),
        (["--format", "rfft", "--tokenizer", "list", "--position-params", "ends=true"], "needs position_params.reach"),
        (
            ["--format", "rfft", "--tokenizer", "list", "--position-params", "own=true", "bands=false"],
            "needs position_params.bands",
        ),
        (["--format", "rfft", "--tokenizer", "list", "--position-params", "reach=-2"], "position_params.reach"),
        (["--format", "rfft", "--tokenizer", "list", "--position-params", "window=-1"], "position_params.window"),
        (["--task", "linear_regression", "--format", "rfft", "--tokenizer", "list"], "not of the form a+b="),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(args, message, tmp_path, monkeypatch, capsys):
    from cri.train import main

    named = [] if "--task" in args else ["--task", "addition", "--task-params", "size=24"]
    shape = ["--split-params", "half_side=2"]
    where = ["--model", "nano-rope", "--positions", "structured", "--out", str(tmp_path / "runs")]
    monkeypatch.setattr(sys, "argv", ["train", *named, *args, *shape, *where])
    with pytest.raises(SystemExit) as stop:
        main()
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert message in error
    assert len(error.splitlines()) == 1


def test_random_positions_hold_half_of_their_range():
    positions = Positions("random", position_options("random", {"longest": 64}))
    with pytest.raises(CriError, match="at most longest / 2 = 32"):
        positions.inputs(torch.zeros(1, 40, dtype=torch.long))
    with pytest.raises(CriError, match="plain, none, random, structured"):
        position_options("rotary", {})
