"""What is no run, no table, no model and no site is refused by name: files of the wrong shape, misused calls."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import cri
from cri.attribution.ekfac import EKFAC, fit_ekfac
from cri.config import RunConfig, TrainConfig
from cri.errors import CorruptRunError, CriError
from cri.formats.rules.tracer import trace_rule
from cri.formats.traces import Edit
from cri.interventions.patching import patched_logits
from cri.models.activations import Site, collect
from cri.models.loading import build_model, load_pretrained, save_model, to_bridge
from cri.plots import score_map
from cri.score import ScoreConfig, score
from cri.storage import read_json
from cri.training.checkpoints import truncate_metrics
from cri.training.runs import train_run
from cri.training.setup import prepare


@pytest.fixture(scope="module")
def materials():
    return prepare(RunConfig(tokenizer="digit", task_params={"size": 12}, split_params={"half_side": 2}))


@pytest.fixture(scope="module")
def bridge(materials):
    return to_bridge(materials.model, materials.tokenizer)


@pytest.fixture(scope="module")
def folder(materials, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "good"
    save_model(materials.model, materials.tokenizer, path)
    return path


def _cut(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _set(name: str, **values: object):
    def change(path: Path) -> None:
        file = path / name
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return change


def _more_words(path: Path) -> None:
    file = path / "tokenizer.json"
    data = json.loads(file.read_text())
    data["model"]["vocab"]["zzz"] = 5000
    file.write_text(json.dumps(data))


def _bert(path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    size = json.loads((path / "config.json").read_text())["vocab_size"]
    (path / "model.safetensors").unlink()
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertForMaskedLM(BertConfig(vocab_size=size, initializer_range=0.5, **shape))
    model.save_pretrained(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_cut, "model: the weights of .* cannot be read .*damaged"),
        (lambda path: (path / "tokenizer.json").write_text("{}"), "model: the tokenizer of .* cannot be read"),
        (_set("config.json", n_embd=32), "model: the weights of .* do not fit its config.json"),
        (_set("config.json", n_layer="two"), "model: the weights of .* cannot be read .*n_layer"),
        (_more_words, "model: the tokenizer of .* has ids up to 5000, the model's vocabulary ends at"),
        (_bert, r"model: .* \(bert\) reads the tokens after the one it predicts"),
    ],
    ids=["cut short", "empty tokenizer", "other shape", "layers by name", "larger tokenizer", "BERT"],
)
def test_model_folders(folder, tmp_path, change, said):
    shutil.copytree(folder, tmp_path / "bad")
    change(tmp_path / "bad")
    with pytest.raises(CriError, match=said) as raised:
        load_pretrained(str(tmp_path / "bad"))
    assert len(str(raised.value).splitlines()) == 1


def test_a_good_folder_is_opened(folder):
    assert load_pretrained(str(folder))[0].config.model_type == "gpt2"


def test_one_infinite_weight_is_named(materials):
    model = build_model("nano", vocab_size=30, n_positions=16, pad=0, eos=1, seed=0)
    with torch.no_grad():
        model.get_parameter("transformer.h.1.mlp.c_fc.weight")[3, 4] = float("inf")
    with pytest.raises(CriError, match=r"model: transformer\.h\.1\.mlp\.c_fc\.weight has values that are not finite"):
        fit_ekfac(model, materials.tokens[np.arange(4)], progress=False)


def test_a_hook_without_its_switch_names_the_switch(bridge, materials):
    with pytest.raises(CriError, match=r"site: .*hook_result.*use_attn_result"):
        collect(bridge, materials.tokens, [Site("blocks.0.attn.hook_result")], np.arange(3))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "holds no JSON object"),
        ("3", "holds no JSON object"),
        ("[" * 100_000, "cannot be read"),
        ('{"identity": []}', "identity is no object"),
        ('{"accuracy": 0.5}', "accuracy is no object"),
        ("{}", "has no 'identity'"),
    ],
)
def test_json_of_the_wrong_shape(tmp_path, text, said):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(CorruptRunError, match=f"run: .*manifest.json.*{said}"):
        read_json(tmp_path / "manifest.json")["identity"]


@pytest.mark.parametrize("config", [{}, {"train": 3}, {"train": {"lr": "x"}}, {"train": {}, "task": 5}])
def test_configs_of_the_wrong_shape(config):
    with pytest.raises(CorruptRunError, match=r"config\.json does not fit this version"):
        RunConfig.from_dict(config)


def test_metrics_and_saved_fits_of_the_wrong_shape(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('[]\n3\n{"step": 1}\n{"step": null}\n{"step": 9}\n' + "[" * 20_000)
    truncate_metrics(tmp_path / "metrics.jsonl", 5)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'
    (tmp_path / "ekfac.json").write_text("[]")
    with pytest.raises(CorruptRunError, match="not a saved EK-FAC fit"):
        EKFAC.load(tmp_path)


def _answers(path: Path, outputs: dict[int, str]) -> ScoreConfig:
    rows = [{"id": i, "output": outputs.get(i, str(i))} for i in range(16)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return ScoreConfig(path, "addition", "direct", "random", task_params=("size=4",))


def test_a_line_separator_within_a_text_ends_no_line(tmp_path):
    cases = score(_answers(tmp_path / "answers.jsonl", {2: "1\u20282", 3: "1\x852"}))
    assert len(cases) == 16
    assert list(cases["status"][2:4]) == ["malformed", "malformed"]


@pytest.mark.parametrize("line", ["[" * 100_000, '{"id": 0, "output": "\\ud800"}', '{"id": 1e400, "output": ""}'])
def test_lines_that_are_no_answers(tmp_path, line):
    config = _answers(tmp_path / "answers.jsonl", {})
    config.file.write_text(line)
    with pytest.raises(CriError, match=r"answers\.jsonl line 1: "):
        score(config)
    assert [p.name for p in tmp_path.iterdir()] == ["answers.jsonl"]


def test_a_fifo_or_a_device_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero"), tmp_path):
        with pytest.raises(CriError, match=r"file: .* is not a regular file"):
            score(ScoreConfig(path, "addition", "direct"))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("return x.pop(10**22)", "unsupported|too large"),
        ("return x.pop(10000000000000000000000)", "rule line 2: .*too large"),
        ("y = " + "+".join(["x[0]"] * 3000) + "\n    return y", "nested too deep"),
        ("y = " + "(" * 150 + "x[0]" + ")" * 150 + "\n    return y", None),
        ("x.append(x)\n    return x", "a list of more than|nested too deep"),
        ("y = [1]\n    while True:\n        y = [y, y]\n    return y", "a list of more than 10000 items"),
    ],
    ids=["power", "huge index", "long sum", "brackets", "a list in itself", "doubled"],
)
def test_rules_that_ask_for_too_much(source, said):
    rule = f"def f(x):\n    {source}"
    if said is None:
        assert trace_rule(rule, [1]).result == 1
        return
    with pytest.raises(CriError, match=said):
        trace_rule(rule, [1])


def test_a_rule_that_takes_too_long_is_stopped(monkeypatch):
    monkeypatch.setattr("cri.formats.rules.tracer._MAX_SECONDS", 0.2)
    slow = "def f(x):\n    y = 0\n    while y < 10000000:\n        y = y + 1\n    return y"
    with pytest.raises(CriError, match=r"rule f: still running after 0\.2 s"):
        trace_rule(slow, 1, max_steps=10**9)


def test_an_edited_list_holds_numbers():
    with pytest.raises(CriError, match=r"edit\.text: .*must be an int, a bool or a list"):
        trace_rule("def f(x):\n    return x", [1, 2], edit=Edit(0, "x", "[1, 'a']"))


def test_sites_and_tables(bridge, materials):
    tokens, site = materials.tokens, Site("blocks.0.hook_resid_post")
    for sites, said in (
        ([str(site)], r"sites: .*must be a list of items, each Site"),
        (site, r"sites: .*must be a list of items, each Site"),
        (str(site), r"sites: .*must be a list of items, each Site"),
    ):
        with pytest.raises(CriError, match=said):
            collect(bridge, tokens, sites)
    with pytest.raises(CriError, match=r"tokens: .*must be TokenTable"):
        collect(bridge, tokens.ids[3], [site])


def test_a_patch_at_the_default_site_is_at_the_prompts_last_token(bridge, materials):
    tokens = materials.tokens
    n = int(tokens.prompt_lengths[0])
    same = [i for i in range(len(tokens)) if int(tokens.prompt_lengths[i]) == n][:6]
    base, source = tokens.ids[same[:3], :n], tokens.ids[same[3:], :n]
    hook = "blocks.0.hook_resid_post"
    found = patched_logits(bridge, base, source, Site(hook))
    assert torch.equal(found, patched_logits(bridge, base, source, Site(hook, n - 1)))
    assert not torch.allclose(found[:, -1], bridge(base)[:, -1])
    for site, said in (
        (Site(hook, n), r"site\.position"), (Site(hook, -n - 1), r"site\.position"), (Site(hook, "step:tens"), "trace")
    ):  # fmt: skip
        with pytest.raises(CriError, match=said):
            patched_logits(bridge, base, source, site)


def test_a_map_needs_a_table_and_its_columns():
    table = pd.DataFrame({"row": [0, 0], "col": [0, 1], "score": [0.1, 0.2]})
    with pytest.raises(CriError, match="table: lacks the columns nope; it has row, col, score"):
        score_map(table, "nope", test_case=(0, 0))
    with pytest.raises(CriError, match="table: a Series is no table with a row a case"):
        score_map(table.iloc[0], "score", test_case=(0, 0))


def test_a_folder_of_runs_lists_them(tiny_run):
    with pytest.raises(
        CriError, match=rf"is no run, but a folder of \d+; give one of them: .*{tiny_run.path.name[:20]}"
    ):
        cri.load_run(tiny_run.path.parent)


def test_predictions_edited_on_purpose_are_opened_when_asked_for(tiny_run, tmp_path, capsys):
    shutil.copytree(tiny_run.path, tmp_path / "run")
    table = tmp_path / "run" / "predictions.csv"
    table.write_text(table.read_text().replace("right", "wrong", 1))
    with pytest.raises(CorruptRunError, match=r"predictions\.csv was altered"):
        cri.load_run(tmp_path / "run")
    run = cri.load_run(tmp_path / "run", altered=True)
    assert (run.predictions["status"] == "wrong").sum() == (tiny_run.predictions["status"] == "wrong").sum() + 1
    assert "predictions.csv was altered" in capsys.readouterr().err


def test_a_saved_map_keeps_the_label_of_its_colour_bar(tiny_run, tmp_path):
    ax = cri.load_run(tiny_run.path).map("correct")
    bar = ax.figure.axes[-1]
    ax.figure.canvas.draw()
    box = bar.yaxis.label.get_window_extent()
    assert box.width > 0
    assert box.x1 <= ax.figure.bbox.x1
    assert box.y1 <= ax.figure.bbox.y1


def test_a_short_run_is_not_evaluated_again_and_again(tmp_path):
    config = RunConfig(task_params={"size": 8}, split_params={"half_side": 1}, train=TrainConfig(steps=5, batch_size=8))
    folder = train_run(config, tmp_path, device="cpu", progress=False)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert not [row for row in rows if "train_acc" in row]
