"""Interventions against oracles: a hand-built mechanism, hooks one cell at a time, the rule's own traces."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cri import interventions as iv
from cri.config import RunConfig, TrainConfig
from cri.data.tokenization import build_tokenizer, encode_texts
from cri.errors import CriError
from cri.formats import FORMATS, make_format
from cri.formats.rules.task_rules import task_rule
from cri.formats.shuffled import trace_owner
from cri.formats.traces import Edit, join
from cri.interventions import continuations as going_on
from cri.interventions.edits import alternatives, base_of, check_text, executed_steps, steps_done, written_trace
from cri.interventions.knockout import StepTokens
from cri.interventions.pairs import IGNORE, read_accounts
from cri.interventions.probes import control_labels
from cri.models.activations import Site, residual_sites
from cri.models.loading import build_model, to_bridge
from cri.tasks import TASKS, make_task, task_class
from cri.training.runs import load_run, train_run
from cri.training.setup import prepare

SCRATCHPAD = RunConfig(
    format="scratchpad", tokenizer="digit", task_params={"size": 14}, split_params={"half_side": 2},
    train=TrainConfig(steps=50, batch_size=64, lr=5e-3),
)  # fmt: skip


@pytest.fixture(scope="module")
def scratchpad(runs):
    """A scratchpad run of seconds: it writes traces of the right form, and few right answers."""
    return load_run(train_run(SCRATCHPAD, runs, progress=False))


def random_model(preset: str, vocab: int = 40):
    """A model whose attention and MLPs matter from the start, and its bridge."""
    model = build_model(preset, vocab_size=vocab, n_positions=64, pad=0, eos=1, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.08 * torch.randn(p.shape, generator=generator))
    return model, to_bridge(model, build_tokenizer("digit", ["1+2="]))


def random_pairs(n: int, length: int, vocab: int = 40, window: int = 2, seed: int = 0) -> iv.Pairs:
    generator = torch.Generator().manual_seed(seed)
    base, source, rule, own, other = (
        torch.randint(2, vocab, (n, k), generator=generator) for k in (length, length, window, window, window)
    )
    read = length - window
    return iv.Pairs(
        base,
        source,
        read,
        rule,
        own,
        other,
        np.arange(n),
        np.arange(n),
        "carry",
        None,
        [str(i) for i in range(read + 1)],
    )


# --- step edits ---


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["addition", "base_addition", "mod_addition", "linear_regression", "chicken_rabbit"]),
    st.sampled_from(["scratchpad", "rfft"]),
    st.randoms(use_true_random=False),
)
def test_every_sampled_edit_is_one_element_and_changes_the_rules_answer(name, fmt_name, random):
    task, fmt = make_task(name), make_format(fmt_name)
    case = random.randrange(task.n_cases)
    lines = fmt.trace(task, *task.operands[case])
    for item in iv.sample_edits(task, fmt, [case], seed=random.randrange(100)):
        edit = item.edit
        edited = fmt.trace(task, *task.operands[case], edit)
        start, _ = lines[edit.line].elements[edit.element]
        assert join(edited)[:start] == join(lines)[:start]
        assert join(edited)[start:].startswith(edit.text)
        assert iv.element_kind(task, lines[edit.line], edit.element) in iv.KINDS
        answers = [fmt.read_answer(task, join(t)) for t in (lines, edited)]
        assert answers[0] == task.answers[case]
        assert answers[1] not in (None, answers[0])


def test_alternatives_are_other_texts_of_the_element():
    task, fmt = make_task("addition"), make_format("scratchpad")
    line = fmt.trace(task, 47, 85)[2]  # +,32,C:1
    assert alternatives(line, "carry", "1") == ["0"]
    assert len(alternatives(line, "digit", "3")) == 9
    # the newest digit is an element of its own, so only the older one is changed
    assert {text[0] for text in alternatives(line, "answer", "32")} == {"3"}
    test = next(x for x in make_format("rfft").trace(task, 47, 85) if "decision" in x.elements)
    assert alternatives(test, "decision", "enter the loop") == ["end the loop"]
    assert alternatives(test, "truth:num1", "True") == ["False"]


def test_edits_of_one_step_only_and_bad_requests():
    task, fmt = make_task("addition", size=20), make_format("scratchpad")
    edits = iv.sample_edits(task, fmt, range(200, 220), step=1)
    for item in edits:
        assert steps_done(fmt.trace(task, *task.operands[item.case]))[item.edit.line] == 1
    assert edits
    with pytest.raises(CriError, match=r"step: 5 is not allowed; must be in 0\.\.2"):
        iv.sample_edits(task, fmt, [399], step=5)
    with pytest.raises(CriError, match="choose from digit, carry, answer, operands, decision"):
        iv.sample_edits(task, fmt, [0], ["loop"])
    with pytest.raises(CriError, match="direct writes no trace"):
        iv.sample_edits(task, make_format("direct"), [0])


def test_edits_are_drawn_such_that_the_tokenizer_can_write_what_follows():
    # no sum of this grid reaches the modulus, so its tokenizer has no ">"
    materials = prepare(SCRATCHPAD.replace(task="mod_addition", split="random", split_params={}))
    task, fmt, cases = materials.task, materials.format, range(100, 110)
    edits = iv.sample_edits(task, fmt, cases, ["decision"])
    assert any(item.edit.text == ">=" for item in edits)
    assert not iv.sample_edits(task, fmt, cases, ["decision"], tokenizer=materials.tokenizer)
    some = iv.sample_edits(task, fmt, cases, ["digit", "carry"], tokenizer=materials.tokenizer)
    assert len(iv.step_edits(materials, some)) == len(some) > 0


def test_illegal_edits_are_refused(scratchpad):
    for edit, message in (
        (Edit(1, "remainder", "1"), "choose from x, y, answer, digit, carry"),
        (Edit(9, "carry", "1"), r"edit\.line: 9"),
        (Edit(1, "digit", "x"), "must be digits"),
        (Edit(0, "carry", "0"), "holds already"),
        (Edit(0, "carry", "7"), "edit.text: '7' is not allowed; must be a carry of this operation: 0, 1"),
        (Edit(1, "carry", "-1"), "a carry of this operation: 0, 1"),
    ):
        with pytest.raises(CriError, match=message):
            iv.step_edits(scratchpad, [iv.CaseEdit(100, edit)])


def test_steps_after_an_edit_are_read_off_the_edited_trace():
    task = make_task("addition")
    for name, zero in (("scratchpad", None), ("rfft", 0)):
        fmt = make_format(name)
        lines = fmt.trace(task, 44, 5)
        line = next(i for i, x in enumerate(lines) if "carry" in x.elements and steps_done(lines)[i] == 1)
        [step] = executed_steps(fmt.trace(task, 44, 5, Edit(line, "carry", "1")), line)
        assert (step.op, step.x, step.y, step.carry) == ("add", 4, zero, 1)


def test_going_on_from_the_models_own_text_writes_the_same(scratchpad):
    """Greedy decoding does not notice that it was interrupted, wherever the cut."""
    rows = scratchpad.predictions.sample(12, random_state=0)
    done = rows[rows["status"] != "truncated"]
    starts = [(r.id, r.completion, cut) for r in done.itertuples() for cut in (0, 3, len(r.completion) // 2)]
    written = going_on.continuations(scratchpad, starts)
    assert [text for text, _ in written] == [text for _, text, _ in starts]
    assert all(finished for _, finished in written)


def test_outcomes(scratchpad, monkeypatch):
    task, fmt = scratchpad.task, scratchpad.format
    case = task.id_of(9, 9)
    edits = [iv.CaseEdit(case, Edit(1, "carry", "0"))] * 5
    own, rule = fmt.completion(task, 9, 9), join(fmt.trace(task, 9, 9, Edit(1, "carry", "0")))
    late = rule.replace("\n8", "\n18")
    scripted = [(rule, True), (own, True), ("1+", True), (rule, False), (late, True)]
    monkeypatch.setattr(
        "cri.interventions.edits.continuations", lambda run, starts, model: [(own, True)] * 5 + scripted
    )
    table = iv.step_edits(scratchpad, edits, completions={case: own})
    assert table["outcome"].tolist() == ["follows", "returns", "breaks", "truncated", "returns"]
    assert table["exact"].tolist() == [True, False, False, False, False]
    assert table["expected"].iloc[0] == "8"
    assert table["own"].all()
    assert table["kind"].iloc[0] == "carry"
    # nothing is executed after the edit, and no unseen step either
    assert (table["next_step"] == "").all() or table["seen"].notna().all()


def test_own_marks_edits_of_what_the_model_writes_itself(scratchpad):
    edits = iv.sample_edits(scratchpad.task, scratchpad.format, scratchpad.split.test_ids[:6].tolist())
    table = iv.step_edits(scratchpad, edits)
    for row, item in zip(table.itertuples(), edits, strict=True):
        lines = scratchpad.format.trace(scratchpad.task, row.a, row.b)
        prefix = join(lines)[: lines[item.edit.line].elements[item.edit.element][0]]
        assert row.own == scratchpad.predictions["completion"][row.id].startswith(prefix)
    untrained = iv.step_edits(scratchpad, edits, model=scratchpad.untrained())
    assert untrained["own"].isna().all()
    assert not untrained["follows"].any()


# --- the shuffled-trace control ---


def test_shuffled_traces_are_other_cases_and_answers_are_right():
    task, fmt, plain = make_task("addition", size=20), make_format("shuffled_scratchpad"), make_format("scratchpad")
    owners = [trace_owner(task, a, b) for a, b in task.operands]
    assert sorted(owners) == sorted(task.operands)
    assert all(owner != case for owner, case in zip(owners, task.operands, strict=True))
    for (a, b), owner in list(zip(task.operands, owners, strict=True))[::37]:
        text = fmt.completion(task, a, b)
        assert text.rpartition("\n")[0] == plain.completion(task, *owner).rpartition("\n")[0]
        assert fmt.read(task, a, b, text, finished=True).status == "right"
        for line in fmt.trace(task, a, b):
            assert all(text[start:stop] in line.text for start, stop in line.elements.values())
        edited = fmt.trace(task, a, b, Edit(0, "carry", "1"))
        assert edited[-1].text == task.answer(a, b)
    assert "shuffled_scratchpad" not in FORMATS
    with pytest.raises(CriError, match="shuffled_scratchpad"):
        make_format("scratch")


def test_edits_of_shuffled_traces_expect_the_other_cases_answer():
    materials = prepare(SCRATCHPAD.replace(format="shuffled_scratchpad"))
    task = materials.task
    edits = iv.sample_edits(task, materials.format, [30, 31])
    table = iv.step_edits(materials, edits)
    for row, item in zip(table.itertuples(), edits, strict=True):
        rule, owner = written_trace(task, materials.format, row.id)
        assert owner == trace_owner(task, row.a, row.b)
        assert row.expected == rule.read_answer(task, join(rule.trace(task, *owner, item.edit)))


# --- interchange ---


def toy() -> torch.nn.Module:
    """A two-layer GPT-2 that copies the token at position 0 to the output at position 2, in layer 0's
    attention, and uses nothing else.

    Dims 0..11 hold the token, 12..15 the position, 16..27 what was copied; the head reads the latter.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=12, n_embd=32, n_layer=2, n_head=2, n_positions=4, embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0,
        tie_word_embeddings=False, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.fill_(1.0 if name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")) else 0.0)
        model.transformer.wte.weight[:, :12] = torch.eye(12)
        model.transformer.wpe.weight[:, 12:16] = torch.eye(4)
        qkv = model.transformer.h[0].attn.c_attn.weight  # [d, 3 d], heads side by side within each d
        qkv[14, 0] = 30.0  # position 2 asks
        qkv[12, 32] = 30.0  # position 0 answers
        qkv[:12, 64 : 64 + 12] = torch.eye(12)
        model.transformer.h[0].attn.c_proj.weight[:12, 16:28] = torch.eye(12)
        model.lm_head.weight[:, 16:28] = 50.0 * torch.eye(12)
    return model


def test_the_map_of_a_known_mechanism():
    model = toy()
    bridge = to_bridge(model, build_tokenizer("digit", ["1"]))
    base = torch.tensor([[2, 5, 9], [3, 6, 9], [4, 7, 9]])
    source = torch.tensor([[8, 5, 9], [10, 6, 9], [11, 7, 9]])
    wrong, cases, labels = torch.full((3, 1), 9), np.arange(3), ["a", "b", "="]
    pairs = iv.Pairs(base, source, 2, source[:, :1], base[:, :1], wrong, cases, cases, "digit", 0, labels)
    found = iv.patch_map(model, bridge, pairs)
    assert found.unpatched["base"].all()
    hits = {(site, p) for i, site in enumerate(found.sites) for p in range(3) if found.values["rule"][i, p].all()}
    assert hits == {
        ("blocks.0.hook_resid_pre", 0),  # the token, before it is read
        ("blocks.0.hook_attn_out", 2),  # what was read
        ("blocks.0.hook_resid_post", 2),
        ("blocks.1.hook_resid_post", 2),
    }
    assert found.cross_fitted().all()
    elsewhere = np.ones(found.values["rule"].shape[:2], dtype=bool)
    for site, p in hits:
        elsewhere[found.sites.index(site), p] = False
    assert np.abs(found.effect("toward_rule")[elsewhere]).max() < 1e-4
    assert (found.effect("toward_rule")[~elsewhere] > 10).all()
    swapped = iv.Pairs(
        base,
        base[:, [1, 0, 2]],
        2,
        base[:, 1:2],
        base[:, :1],
        wrong,
        np.arange(3),
        np.arange(3),
        "digit",
        0,
        ["a", "b", "="],
    )
    # position 1 is never read: its swap does nothing, wherever it is made
    assert np.abs(iv.patch_map(model, bridge, swapped, positions=[1]).effect("toward_rule")).max() < 1e-4
    # attention to position 0 is all there is to cut
    targets, first, second = (torch.tensor([[i == k for i in range(4)]] * 3) for k in (3, 0, 1))
    tokens = StepTokens(torch.cat([base, base[:, :1]], dim=1), targets, {"question": first, "older": second}, cases)
    cuts = iv.attention_knockout(bridge, tokens).set_index(["group", "layer", "head"]).sort_index()["changed"]
    assert (cuts.loc[("question", 0, 0)] == 1).all()
    assert (cuts.loc[("question", 0, -1)] == 1).all()
    assert (cuts.loc[("question", -1, -1)] == 1).all()
    assert (cuts.loc["older"] == 0).all()
    assert (cuts.loc[("question", 0, 1)] == 0).all()
    assert (cuts.loc[("question", 1)] == 0).all()


@pytest.mark.parametrize("preset", ["nano", "nano-rope"])
def test_patch_map_equals_hooks_cell_by_cell(preset):
    model, bridge = random_model(preset)
    pairs = random_pairs(6, 9)
    found = iv.patch_map(model, bridge, pairs, batch_size=4)
    window = slice(pairs.read, pairs.read + 2)
    for i, site in enumerate(found.sites):
        for p in found.positions:
            logits = iv.patched_logits(bridge, pairs.base_ids, pairs.source_ids, Site(site, p))[:, window]
            for name, value in read_accounts(logits, pairs).items():
                assert np.allclose(found.values[name][i, p], value.float().numpy(), atol=1e-4), (site, p, name)
    assert np.abs(found.effect("toward_rule")).max() > 0.1
    chosen = iv.patch_map(model, bridge, pairs, sites=["blocks.1.hook_attn_out"], positions=[3, 5])
    row = found.sites.index("blocks.1.hook_attn_out")
    assert np.allclose(chosen.values["toward_rule"][0], found.values["toward_rule"][row, [3, 5]], atol=1e-5)
    assert len(found.table()) == len(found.sites) * len(found.positions)


@pytest.mark.parametrize("preset", ["nano", "nano-rope"])
def test_controls_of_patching(preset):
    model, bridge = random_model(preset)
    pairs = random_pairs(5, 8)
    for name in ("toward_rule", "toward_source"):
        assert np.abs(iv.patch_map(model, bridge, pairs.self_pairs()).effect(name)).max() < 1e-4
    full = iv.patch_map(model, bridge, pairs)
    whole = iv.patch_map(model, bridge, pairs, basis=torch.eye(64))
    assert np.allclose(full.values["toward_rule"], whole.values["toward_rule"], atol=1e-4)
    nothing = iv.patch_map(model, bridge, pairs, basis=torch.zeros(64, 1))
    assert np.abs(nothing.effect("toward_rule")).max() < 1e-4
    first, again = (iv.patch_map(model, bridge, pairs, vectors="random", seed=3) for _ in range(2))
    assert np.array_equal(first.values["toward_rule"], again.values["toward_rule"])
    assert not np.allclose(first.values["toward_rule"], full.values["toward_rule"], atol=1e-2)
    with pytest.raises(CriError, match="choose from blocks"):
        iv.patch_map(model, bridge, pairs, sites=["blocks.0.attn.hook_z"])
    with pytest.raises(CriError, match=r"position: 7 is not allowed; must be in 0\.\.6"):
        iv.patch_map(model, bridge, pairs, positions=[7])


def test_accounts_are_read_up_to_where_they_part():
    pairs = iv.Pairs(
        torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 3, dtype=torch.long), 1,
        torch.tensor([[5, 6], [5, IGNORE]]), torch.tensor([[4, IGNORE], [4, IGNORE]]),
        torch.tensor([[5, 7], [3, IGNORE]]), np.arange(2), np.arange(2), "carry", None, ["", ""],
    )  # fmt: skip
    logits = torch.zeros(2, 2, 9)
    logits[0, 0, 5] = logits[0, 1, 7] = 2.0  # the source's text
    logits[1, 0, 5] = 3.0  # the rule's
    out = {name: value.tolist() for name, value in read_accounts(logits, pairs).items()}
    assert out["rule"] == [False, True]
    assert out["source"] == [True, False]
    assert out["base"] == [False, False]
    assert out["toward_rule"] == [2.0, 3.0]
    assert out["toward_source"] == [2.0, -3.0]


@pytest.mark.parametrize("fmt_name", ["scratchpad", "direct"])
@pytest.mark.parametrize("variable", ["carry", "digit"])
@pytest.mark.parametrize("tokenizer", ["number", "digit"])
def test_pairs_differ_in_one_variable_and_the_rule_predicts_the_swap(fmt_name, variable, tokenizer):
    materials = prepare(RunConfig(format=fmt_name, tokenizer=tokenizer, task_params={"size": 40}))
    task = materials.task
    pairs = iv.make_pairs(materials, variable, range(0, 1600, 3), range(1600), n=40)
    assert len(pairs) == 40
    assert len(set(pairs.base_cases.tolist())) == 40
    for i in range(40):
        (a, b), (c, d) = task.operands[pairs.base_cases[i]], task.operands[pairs.source_cases[i]]
        carry, other = (a % 10 + b % 10) // 10, (c % 10 + d % 10) // 10
        tens = (a // 10 + b // 10 + other) if variable == "carry" else (c // 10 + b // 10 + carry)
        if variable == "carry":
            assert (a // 10, b // 10) == (c // 10, d // 10)
            assert carry != other
        else:
            assert carry == other
            assert a // 10 != c // 10
            assert b // 10 == d // 10
        swapped = tens * 10 + (a + b) % 10
        window = materials.tokenizer.decode(pairs.rule[i][pairs.rule[i] != IGNORE])
        if fmt_name == "direct":
            assert str(swapped).startswith(window)
        else:  # the state line after the tens: "+,72"
            assert f"+,{tens % 10}{(a + b) % 10}".startswith(window)
        if pairs.element is not None and variable == "carry":
            assert pairs.labels[pairs.element] in "01"
            assert materials.tokenizer.decode(pairs.base_ids[i, pairs.element]) == str(carry)


def test_pairs_of_a_rules_trace():
    materials = prepare(RunConfig(format="rfft", tokenizer="number", task_params={"size": 24}))
    pairs = iv.make_pairs(materials, "carry", range(250, 576, 7), range(250, 576), n=20)
    for i in range(len(pairs)):
        (a, b), (c, d) = (materials.task.operands[x[i]] for x in (pairs.base_cases, pairs.source_cases))
        assert (a % 10 + b % 10 >= 10) != (c % 10 + d % 10 >= 10)
        total = a // 10 + b // 10 + (c % 10 + d % 10) // 10
        window = materials.tokenizer.decode(pairs.rule[i][pairs.rule[i] != IGNORE])
        # the sum that reads the swapped carry, on to where the base's own result so far is read out
        assert f"total={a // 10}+{b // 10}+{(c % 10 + d % 10) // 10}={total}" in window
        assert window.endswith(f"result=[{(a + b) % 10}")
    with pytest.raises(CriError, match="differ in loop alone"):
        iv.make_pairs(materials, "loop", range(300, 320), range(300, 320))
    with pytest.raises(CriError, match="choose from carry, digit, loop"):
        iv.make_pairs(materials, "tens", [0], [1])


@pytest.mark.slow
def test_a_whole_map_is_five_times_as_fast_as_patching_cell_by_cell():
    """100 pairs, all sites that `transformer_lens.patching` sweeps too, the same values."""
    import transformer_lens.patching as tl

    model, bridge = random_model("nano", vocab=540)
    pairs = random_pairs(100, 24, vocab=540, window=1)
    sites = [f"blocks.{i}.hook_{c}" for c in ("attn_out", "mlp_out") for i in range(2)]
    sites = ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post", *sites]

    def metric(logits: torch.Tensor) -> torch.Tensor:
        return read_accounts(logits[:, pairs.read :], pairs)["toward_rule"]

    def cell_by_cell() -> list[torch.Tensor]:
        _, cache = bridge.run_with_cache(pairs.source_ids)
        sweeps = (tl.get_act_patch_resid_pre, tl.get_act_patch_attn_out, tl.get_act_patch_mlp_out)
        found = [f(bridge, pairs.base_ids, cache, metric, reduce="none").values for f in sweeps]
        return [found[0][0], found[0][1], found[1][0], found[1][1], found[2][0], found[2][1]]

    def best(function, n: int) -> tuple[float, object]:
        times = []
        for _ in range(n):
            started = time.process_time()
            result = function()
            times.append(time.process_time() - started)
        return min(times), result

    with torch.no_grad():
        slow, cells = best(cell_by_cell, 2)
    fast, found = best(lambda: iv.patch_map(model, bridge, pairs, sites=sites), 3)
    for i in range(len(sites)):
        assert np.allclose(found.values["toward_rule"][i], cells[i].numpy(), atol=1e-4), sites[i]
    print(f"\npatch_map {fast:.2f} s, transformer_lens.patching {slow:.2f} s of CPU time: {slow / fast:.1f} times")
    assert slow / fast >= 5
    assert fast < 120


# --- knockout ---


def test_knockout_equals_zeroed_and_renormalised_attention(scratchpad):
    tokens = iv.step_tokens(scratchpad, scratchpad.split.test_ids[:5].tolist(), step=1)
    bridge = scratchpad.bridge
    found = iv.attention_knockout(bridge, tokens, ["previous"]).set_index(["layer", "head"])
    queries = torch.zeros_like(tokens.targets)
    queries[:, :-1] = tokens.targets[:, 1:]

    def write(pattern, hook):
        pattern = pattern.clone()
        cut = queries[:, :, None] & tokens.groups["previous"][:, None, :]
        cut &= ~torch.eye(cut.shape[1], dtype=torch.bool)
        pattern[:, 2] = pattern[:, 2].masked_fill(cut, 0)
        return pattern / pattern.sum(-1, keepdim=True)

    with torch.no_grad():
        plain = bridge(tokens.ids).log_softmax(-1)
        cut = bridge.run_with_hooks(tokens.ids, fwd_hooks=[("blocks.0.attn.hook_pattern", write)]).log_softmax(-1)
    gain = (plain - cut)[:, :-1].gather(-1, tokens.ids[:, 1:, None])[..., 0]
    wanted = tokens.targets[:, 1:]
    drop = (gain * wanted).sum(-1) / wanted.sum(-1)
    assert np.allclose(found.loc[(0, 2), "drop"].to_numpy(), drop.numpy(), atol=1e-5)
    with pytest.raises(CriError, match="no token belongs to 'rule'; choose from question, previous"):
        iv.attention_knockout(bridge, tokens, ["rule"])


def test_step_tokens_are_the_lines_of_the_step(scratchpad):
    task, tokenizer = scratchpad.task, scratchpad.tokenizer
    case = task.id_of(12, 9)
    tokens = iv.step_tokens(scratchpad, [case], step=2)

    def text(mask):
        return tokenizer.decode(tokens.ids[0][mask[0]])

    lines = [line.text for line in scratchpad.format.trace(task, 12, 9)]
    assert text(tokens.targets) == text(tokens.groups["own"]) == lines[2]
    assert text(tokens.groups["previous"]) == lines[1]
    assert text(tokens.groups["older"]) == lines[0]
    assert text(tokens.groups["question"]) == "12+9="
    with pytest.raises(CriError, match=r"step: 3 is not allowed; must be in 1\.\.2"):
        iv.step_tokens(scratchpad, [case], step=3)


# --- rule edits ---


def test_edited_rules_are_programs_that_answer_otherwise():
    task = make_task("addition")
    answers = {}
    for kind in iv.RULE_EDITS:
        source = iv.edited_source(task, kind)
        if kind in ("removed", "unrelated"):
            continue
        from cri.formats.rules.language import parse_rule
        from cri.formats.rules.tracer import trace_rule

        answers[kind] = trace_rule(parse_rule(source), *task_rule(task).arguments(47, 85)).result
    assert answers["unchanged"] == [1, 3, 2]
    assert answers["base"] == [1, 4, 3]  # 7+5 = 1*9+3, 4+8+1 = 1*9+4
    assert answers["constant"] == [1, 3, 3]
    assert answers["no_carry"] == [2, 2]
    assert answers["no_last_carry"] == [3, 2]
    assert answers["operation"] == [3, 5, 5]
    assert iv.edited_source(make_task("base_addition"), "base").count("total % 8") == 1
    assert iv.edited_source(make_task("chicken_rabbit"), "operation") is None
    with pytest.raises(CriError, match="choose from unchanged, base"):
        iv.edited_source(task, "bases")


def test_rule_edits_ask_with_the_edited_prompt(monkeypatch):
    materials = prepare(RunConfig(format="rfft", tokenizer="digit", task_params={"size": 8}, split="random"))
    task, asked = materials.task, {}

    def answer(run, starts, model, prompts):
        asked.update(zip(prompts, starts, strict=True))
        return [("return [1]", True) if "carry = total" in p else ("return [6]", True) for p in prompts]

    monkeypatch.setattr("cri.interventions.rule_edits.continuations", answer)
    case = task.id_of(7, 4)  # 11: without the last carry, 1
    table = iv.edit_rules(materials, [case]).set_index("kind")
    assert set(table.index) == set(iv.RULE_EDITS)
    assert table.loc[["base", "constant", "operation"], "encodable"].tolist() == [False] * 3
    assert materials.format.prompt(task, 7, 4) in asked
    assert any("carry" not in prompt and "7+4=" in prompt for prompt in asked)
    assert table.loc["no_last_carry", ["expected", "trained", "outcome"]].tolist() == ["1", "11", "prompt"]
    assert table.loc["unchanged", "outcome"] == "other"
    assert not table.loc["removed", "tells"]
    with pytest.raises(CriError, match="no rule in its prompt"):
        iv.edit_rules(prepare(SCRATCHPAD), [0])


# --- the direct format ---


def test_components_add_up_to_the_logits(tiny_run):
    ids = np.arange(40)
    table, worst = iv.logit_attribution(tiny_run, ids, batch_size=16)
    assert worst < 1e-4
    total = table.groupby("id")["logit"].sum()
    last = tiny_run.tokens.prompt_lengths[ids] - 1
    with torch.no_grad():
        logits = tiny_run.model(tiny_run.tokens.ids[ids]).logits[torch.arange(40), last]
    centred = logits - logits.mean(-1, keepdim=True)
    target = tiny_run.tokens.ids[ids, last + 1]
    assert np.allclose(total.to_numpy(), centred[torch.arange(40), target].numpy(), atol=1e-4)
    assert {"embed", "pos_embed", "L0H0", "L1H3", "L1mlp", "unembed_bias"} <= set(table["component"])


def test_components_of_a_rotary_model():
    materials = prepare(RunConfig(model="nano-rope", task_params={"size": 14}, split="random"))
    table, worst = iv.logit_attribution(materials, np.arange(20))
    assert worst < 1e-4
    assert "pos_embed" not in set(table["component"])


@pytest.mark.parametrize("n_cases", [300, 12])
def test_a_probe_solves_the_normal_equations(n_cases):
    rng = np.random.default_rng(1)
    x, labels = rng.normal(3, rng.exponential(size=20), size=(n_cases, 20)), rng.integers(0, 4, n_cases)
    probe = iv.fit_probe(x, labels, ridge=0.01)
    centred, targets = x - x.mean(0), (labels[:, None] == probe.classes) * 1.0
    covariance = centred.T @ centred / n_cases
    left = covariance + 0.01 * np.diag(covariance).mean() * np.eye(20)
    np.testing.assert_allclose(left @ probe.weight, centred.T @ targets / n_cases, atol=1e-10)
    np.testing.assert_allclose(x.mean(0) @ probe.weight + probe.bias, targets.mean(0))


def test_a_probe_finds_what_is_there_and_no_control():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 600)
    directions = np.linalg.qr(rng.standard_normal((10, 3)))[0].T
    x = directions[labels] * 3 + 0.3 * rng.standard_normal((600, 10))
    probe = iv.fit_probe(x[:400], labels[:400])
    assert (probe.predict(x[400:]) == labels[400:]).mean() > 0.97
    assert probe.basis.shape == (10, 2)
    assert np.allclose(probe.basis.T @ probe.basis, np.eye(2))
    # the classes differ only within the span of the three directions
    assert np.linalg.norm(probe.basis - directions.T @ (directions @ probe.basis)) < 0.3
    assert np.linalg.norm(probe.pattern - directions.T @ (directions @ probe.pattern)) < 0.1
    other = control_labels(labels, np.arange(600))
    assert (iv.fit_probe(x[:400], other[:400]).predict(x[400:]) == other[400:]).mean() < 0.5
    with pytest.raises(CriError, match="all labels are the same"):
        iv.fit_probe(x, np.zeros(600, dtype=int))
    basis = iv.random_basis(10, 4)
    assert np.allclose(basis.T @ basis, np.eye(4))
    same = iv.fit_probe(np.ones((600, 10)), labels)  # as at the last prompt token of the embedding
    assert same.pattern.shape == (10, 0)
    assert iv.random_basis(*same.pattern.shape).shape == (10, 0)
    for wrong in ({"d": 0, "k": 1}, {"d": 5, "k": -1}):
        with pytest.raises(CriError, match="is not allowed"):
            iv.random_basis(**wrong)


@pytest.mark.parametrize("variable", ["units", "tens", "carry", "answer"])
def test_probe_labels_and_their_control(variable):
    task = make_task("addition", size=30)
    labels, keys = iv.probe_labels(task, variable)
    for i in (0, 299, 517, 899):
        a, b = task.operands[i]
        value = {"units": (a + b) % 10, "tens": (a + b) // 10 % 10, "carry": (a % 10 + b % 10) // 10, "answer": a + b}
        assert labels[i] == value[variable]
    for values in (labels, control_labels(labels, keys)):
        assert pd.DataFrame({"key": keys, "label": values}).groupby("key")["label"].nunique().max() == 1
    with pytest.raises(CriError, match="has no probe labels"):
        iv.probe_labels(make_task("chicken_rabbit"), variable)


def test_a_planted_variable_is_exchanged_along_its_means_not_along_a_probes_own_directions():
    """What is read lies in large, noisy directions; a small exact copy that nothing reads is what the probe takes."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 900)
    directions = np.linalg.qr(rng.standard_normal((10, 10)))[0]
    read, copy = directions[:3], directions[3:6]
    x = 3 * read[labels] + 0.05 * copy[labels] + rng.standard_normal((900, 3)) @ read
    probe = iv.fit_probe(x, labels, ridge=1e-6)
    base, source = np.arange(450), np.arange(450, 900)
    differ = labels[base] != labels[source]

    def exchanged(basis: np.ndarray) -> float:
        """How often a reader of the large directions says the source's label after the exchange."""
        mixed = x[base] + (x[source] - x[base]) @ basis @ basis.T
        said = (mixed @ read.T).argmax(1)
        return float((said == labels[source])[differ].mean())

    whole, chance = exchanged(np.eye(10)), exchanged(np.zeros((10, 1)))
    assert whole > 0.9
    assert exchanged(probe.pattern) > whole - 0.05  # the positive control
    assert exchanged(probe.basis) < chance + 0.05
    assert exchanged(iv.random_basis(10, 2)) < 0.5


def test_probes_swaps_and_ablations_of_a_run(tiny_run):
    sites = residual_sites(tiny_run.bridge)
    table, probes = iv.probe_table(tiny_run, sites, tiny_run.bridge, variables=["carry", "answer"])
    assert set(table["part"]) == {"train", "test"}
    assert not np.isin(table.loc[table["part"] == "test", "id"], tiny_run.split.train_ids).any()
    solved = np.flatnonzero(tiny_run.predictions["correct"].to_numpy())
    probe = probes[str(sites[-1]), "answer"]
    none = iv.ablate(tiny_run.bridge, tiny_run, solved, sites[-1], probe.basis[:, :0])
    assert none.all()
    gone = iv.ablate(tiny_run.bridge, tiny_run, solved, sites[-1], np.eye(64))
    assert gone.mean() < 0.3  # everybody has the mean activation, and writes one token
    pairs = iv.swap_pairs(tiny_run, "units", solved, n=20)
    for i in range(len(pairs)):
        own, other = (tiny_run.task.values[x[i]] for x in (pairs.base_cases, pairs.source_cases))
        new = int(tiny_run.tokenizer.decode(pairs.rule[i, :1]))
        assert new == own - own % 10 + other % 10
    whole = iv.patch_map(tiny_run.model, tiny_run.bridge, pairs, sites=[sites[-1].hook], positions=[pairs.read])
    assert whole.values["source"].all()  # behind the last layer is only the head
    answers = iv.swap_pairs(tiny_run, "answer", solved, n=10)
    assert (answers.rule[:, 0] == tiny_run.tokens.ids[answers.source_cases, tiny_run.tokens.prompt_lengths[0]]).all()


def test_texts_end_where_their_tokens_end(scratchpad):
    text = "12+9,,C:0\n"
    [(ids, ends)] = going_on.encode_with_ends(scratchpad.tokenizer, [text])
    assert ids == encode_texts(scratchpad.tokenizer, [text])[0]
    assert [scratchpad.tokenizer.decode(ids[: i + 1]) for i in range(len(ids))] == [text[:e] for e in ends]


def test_one_pass_and_decoding_go_on_alike(scratchpad, monkeypatch):
    """Texts that the model writes by itself are told by one pass, others decoded from near where they part: as if all
    were decoded from their cuts."""
    cases = list(range(0, scratchpad.task.n_cases, 9))
    texts = [scratchpad.format.completion(scratchpad.task, *scratchpad.task.operands[i]) for i in cases]
    own = scratchpad.predictions["completion"].tolist()  # what it writes: one pass suffices
    starts = [(i, text, len(text) // 2) for i, text in zip(cases, texts, strict=True)]
    starts += [(i, own[i], 1) for i in cases if going_on.encodable(scratchpad.tokenizer, own[i])]
    prompts = [
        "7+8=",
        *[scratchpad.format.prompt(scratchpad.task, *scratchpad.task.operands[i]) for i, *_ in starts[1:]],
    ]
    fast = going_on.continuations(scratchpad, starts, prompts=prompts)
    monkeypatch.setattr(going_on, "agreed_until", lambda model, tokens: tokens.prompt_lengths)
    monkeypatch.setattr(going_on, "_BLOCK", 1)  # none is told by one pass, each is decoded from its own cut
    slow = going_on.continuations(scratchpad, starts, prompts=prompts)
    assert fast == slow
    assert 0 < sum(done for _, done in slow) < len(slow)
    assert any(text != start[1] for (text, _), start in zip(slow, starts, strict=True))
    assert any(text == start[1] for (text, _), start in zip(slow, starts, strict=True))


@pytest.mark.parametrize("fmt", ["scratchpad", "rfft"])
@pytest.mark.parametrize("name", TASKS)
def test_every_edit_drawn_is_one_that_is_allowed(name, fmt):
    """The last carry of a product is followed by a sum, and the first of a difference by one that borrows: what may be
    drawn there is what may be asked there."""
    task = make_task(name, **task_class(name).params_of_size(14))
    edits = iv.sample_edits(task, make_format(fmt), range(0, task.n_cases, 5))
    assert edits
    for case, edit in ((e.case, e.edit) for e in edits):
        rule, (a, b) = written_trace(task, make_format(fmt), case)
        check_text(rule.trace(task, a, b), edit, base_of(task, a))
