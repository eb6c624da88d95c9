"""The performance study in miniature: what its tables say holds, and nothing measured is lost."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cri.cli import run_command
from cri.config import RunConfig
from cri.errors import CriError, MissingDependencyError
from cri.evaluation.decoding import decode
from cri.storage import read_json, verify
from cri.studies.common.memory import peak_memory
from cri.studies.performance import pretrained
from cri.studies.performance.baselines import kronfluence_scores, timed_generate
from cri.studies.performance.config import PRESETS, PerformanceConfig
from cri.studies.performance.parts import PARTS
from cri.studies.performance.pretrained import alone
from cri.studies.performance.rows import quickest, row
from cri.studies.performance.study import run
from cri.training.setup import prepare

MINIATURE = dataclasses.replace(PRESETS["test"], device="cpu")


def measured(folder, *parts: str) -> pd.DataFrame:
    found = run(dataclasses.replace(MINIATURE, parts=parts, out=folder))
    table, manifest = pd.read_csv(found / "results.csv"), read_json(found / "manifest.json")
    assert not [part for part in parts if "failed" in manifest["parts"][part]]
    assert set(parts) <= set(table["part"])
    return table


def check(table: pd.DataFrame) -> None:
    """Every row has its seconds; where there is a baseline, its seconds, its extent and the ratio too. A profile has
    shares instead, which make up the whole."""
    profile = table["work"].str.startswith("profile")
    for note in table.loc[profile, "note"]:
        assert sum(float(share) for share in re.findall(r" (\d\.\d\d)", note)) == pytest.approx(1, abs=0.03)
    table = table[~profile]
    assert np.isfinite(table["ours_s"]).all()
    assert (table["ours_s"] > 0).all()
    against = table[table["baseline"].notna()]
    assert (against["baseline_s"] > 0).all()
    assert np.allclose(against["ratio"], against["baseline_s"] / against["ours_s"], rtol=1e-3)
    assert against[["measured", "baseline_measured", "of"]].notna().all(axis=None)


def differences(table: pd.DataFrame, part: str) -> list[float]:
    """How far the part's notes say that our numbers are from the baseline's."""
    notes = table.loc[(table["part"] == part) & table["baseline"].notna(), "note"]
    return [float(re.search(r"(?:differ by|states by) (\S+)", note)[1]) for note in notes]


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_recorded_rows_are_read_as_todays(name):
    """A renamed column is renamed in the records too: parts measured again are joined to what is there."""
    table = pd.read_csv(Path(__file__).parents[1] / "studies" / "performance" / name / "results.csv")
    assert list(table.columns) == ["part", *row("", "", 1, 1, "", "", "")]
    against = table[table["baseline"].notna() & table["baseline_s"].notna()]
    assert len(against)
    assert np.allclose(against["ratio"], against["baseline_s"] / against["ours_s"], rtol=1e-3)


@pytest.fixture(scope="module")
def cheap(tmp_path_factory):
    return measured(tmp_path_factory.mktemp("record"), "decoding", "trace_decoding", "activations", "patching")


def test_cheap_parts(cheap):
    check(cheap)
    assert cheap["part"].drop_duplicates().tolist() == ["decoding", "trace_decoding", "activations", "patching"]
    for part, n in (("activations", 2), ("patching", 1)):
        found = differences(cheap, part)
        assert len(found) == n
        assert max(found) < 1e-4


def test_traces_are_decoded_on_the_same_cases_and_end(cheap):
    against = cheap[(cheap["part"] == "trace_decoding") & cheap["baseline"].notna()]
    for note, n in zip(against["note"], (MINIATURE.traces_one_by_one, MINIATURE.traces_batched), strict=True):
        mean, ended, of, equal = re.search(r"trace (\S+) tokens, (\d+) of (\d+) ended, (\d+) equal", note).groups()
        assert int(of) == n
        # single tokens may be tied; after a few steps of training most traces have an end
        assert int(equal) >= 0.9 * n
        assert int(ended) >= 0.5 * n
        assert 15 < float(mean) < 50


@pytest.mark.slow
def test_training_parts(tmp_path):
    check(measured(tmp_path, "nano", "paper", "traces", "rule_traces", "growth"))


@pytest.mark.slow
def test_a_pretrained_model_is_measured_in_processes_of_its_own(tmp_path, monkeypatch):
    kinds = []

    def first_of_its_kind(function, *args):
        """A process imports for ten seconds, so the second and further measurements of a kind are made in this one."""
        kinds.append(function.__name__)
        return (alone if kinds.count(function.__name__) == 1 else lambda f, *a: f(*a))(function, *args)

    monkeypatch.setattr(pretrained, "alone", first_of_its_kind)
    table = measured(tmp_path, "pretrained")
    check(table)
    assert kinds == ["measure_steps"] * 4 + ["measure_run"]
    assert table["baseline"].notna().tolist() == [True, True, False]
    for note in table["note"]:
        for held in re.findall(r"(\S+) GiB", note):
            assert 0.1 < float(held) < 4  # torch alone takes more than the first


def test_peak_memory_is_that_of_the_process_itself():
    held = bytearray(b"x") * (300 << 20)
    assert peak_memory() > 300 << 20
    assert alone(peak_memory) < 200 << 20  # a new process has not what this one holds
    del held
    grown = "from cri.studies.common.memory import peak_memory as p; a = p(); b = bytearray(b'x') * (200 << 20); "
    done = subprocess.run(
        [sys.executable, "-c", grown + "print(p() - a)"], capture_output=True, text=True, check=True
    )  # fmt: skip
    assert 190 << 20 < int(done.stdout) < 260 << 20


@pytest.mark.slow
def test_replicas(tmp_path):
    # a process of its own: shapes checked at run time do not go to the processes that it starts
    command = [sys.executable, "-m", "cri.studies.performance", "test", "--device", "cpu", "--parts", "replicas"]
    subprocess.run([*command, "--out", tmp_path], check=True, capture_output=True)
    table = pd.read_csv(tmp_path / "studies" / "performance" / "test" / "results.csv")
    # what is short comes before the bank, whose few steps in miniature extrapolate to anything
    assert table["work"].iloc[0] == "one nano model"
    check(table.iloc[:1])
    assert len(table) == 3
    assert np.isfinite(table["ours_s"]).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_attribution(tmp_path):
    pytest.importorskip("kronfluence")
    table = measured(tmp_path, "attribution")
    check(table)
    assert table["work"].str.contains("119 training x 25 test").sum() == 4
    ekfac, dot, ekfac_of_all, dot_of_all = differences(table, "attribution")
    assert max(ekfac, dot, dot_of_all) < 1e-4
    # in float32 ours and kronfluence's are each 1.1e-4 and 1.2e-4 from ours in float64 here
    assert ekfac_of_all < 3e-4


def test_kronfluence_that_is_missing_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "kronfluence.analyzer", None)
    tokens = prepare(RunConfig(task_params={"size": 12}, split="random")).tokens
    with pytest.raises(MissingDependencyError, match="pip install --no-deps kronfluence einconv opt-einsum"):
        kronfluence_scores(torch.nn.Linear(1, 1), [], tokens, tokens, "ekfac", batch_size=4)


def test_generate_in_padded_batches_writes_what_decode_writes():
    materials = prepare(RunConfig(tokenizer="digit", task_params={"size": 24}))
    model, tokens = materials.model, materials.tokens
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    cases = np.random.default_rng(0).permutation(len(tokens))[:30]
    assert len(tokens.prompt_lengths[cases].unique()) == 3
    found = decode(model, tokens[cases], max_new_tokens=7)
    columns = (column.tolist() for column in (found.ids, found.lengths, found.finished))
    expected = [ids[:n] + [tokens.eos] * ended for ids, n, ended in zip(*columns, strict=True)]
    for batch_size in (1, 8):
        seconds, texts = timed_generate(model, tokens, cases, "cpu", batch_size=batch_size, max_new_tokens=7)
        assert texts == expected
        assert seconds > 0
    assert len({tuple(text) for text in expected}) > 10


def test_the_least_of_each_measurement_counts_and_they_take_turns():
    called = []

    def measurement(name, values):
        left = iter(values)
        return lambda: called.append(name) or next(left)

    assert quickest(3, measurement("ours", [3.0, 1.0, 2.0]), measurement("theirs", [5.0, 6.0, 4.0])) == [1.0, 4.0]
    assert called == ["ours", "theirs"] * 3


@pytest.fixture
def parts(monkeypatch):
    """Parts without work: `first` and `second` give a row, `broken` one and then fails."""

    def of(name, fails=False):
        def part(config, device):
            yield row(f"{name} of {config.size}", "somebody", 1.0, 2.0, "all", "all", "all")
            if fails:
                raise RuntimeError("no such kernel")

        return part

    for name in ("first", "second", "broken"):
        monkeypatch.setitem(PARTS, name, of(name, name == "broken"))


def test_rows_of_other_parts_survive_and_a_part_measured_again_is_replaced(parts, tmp_path):
    def again(size, *names):
        folder = run(dataclasses.replace(MINIATURE, parts=names, size=size, out=tmp_path))
        return pd.read_csv(folder / "results.csv"), read_json(folder / "manifest.json")["parts"]

    table, _ = again(12, "first", "second")
    assert table["work"].tolist() == ["first of 12", "second of 12"]
    table, recorded = again(13, "first")
    assert sorted(table["work"]) == ["first of 13", "second of 12"]
    assert set(recorded) == {"first", "second"}
    assert all(part["device"] == "CPU" and part["seconds"] >= 0 for part in recorded.values())


def test_a_failing_part_is_recorded_and_loses_nothing(parts, tmp_path, capsys):
    with pytest.raises(CriError, match="parts: broken failed"):
        run(dataclasses.replace(MINIATURE, parts=("first", "broken", "second"), out=tmp_path))
    folder = tmp_path / "studies" / "performance" / "test"
    assert pd.read_csv(folder / "results.csv")["part"].tolist() == ["first", "broken", "second"]
    recorded = read_json(folder / "manifest.json")["parts"]
    assert recorded["broken"]["failed"] == "RuntimeError: no such kernel"
    assert not [part for part in ("first", "second") if "failed" in recorded[part]]
    assert "broken: failed" in capsys.readouterr().out


def test_a_part_that_fails_leaves_what_was_measured_of_it_before(parts, tmp_path, monkeypatch):
    folder = run(dataclasses.replace(MINIATURE, parts=("first",), out=tmp_path))
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    for broken in (PARTS["broken"], lambda config, device: iter([1 / 0])):
        monkeypatch.setitem(PARTS, "first", broken)
        with pytest.raises(CriError, match="parts: first failed"):
            run(dataclasses.replace(MINIATURE, parts=("first",), size=13, out=tmp_path))
        assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_part_that_fails_at_once_leaves_a_record_that_can_be_read(parts, tmp_path, monkeypatch):
    monkeypatch.setitem(PARTS, "broken", lambda config, device: iter([1 / 0]))
    with pytest.raises(CriError, match="parts: broken failed"):
        run(dataclasses.replace(MINIATURE, parts=("broken",), out=tmp_path))
    folder = run(dataclasses.replace(MINIATURE, parts=("first",), out=tmp_path))
    verify(folder)
    assert set(read_json(folder / "manifest.json")["parts"]) == {"broken", "first"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", "1"),
        ("paper-model", "bogus"),
        ("replicas", "0"),
        ("repeats", "-1"),
        ("pretrained-steps", "0"),
        ("attribution-cases", "0 4"),
    ],
)
def test_a_bad_value_is_one_line_before_anything_is_measured(parts, tmp_path, capsys, field, value):
    arguments = ["test", f"--{field}", *value.split(), "--parts", "first", "--out", str(tmp_path / "record")]
    with pytest.raises(SystemExit) as stop:
        run_command(PerformanceConfig, run, "", arguments, PRESETS)
    assert stop.value.code == 2
    assert field.replace("-", "_") in capsys.readouterr().err.replace("-", "_")
    assert not list(tmp_path.iterdir())


def test_what_looks_inside_a_model_is_measured_on_cpu():
    for part in ("activations", "patching", "attribution"):
        assert part not in PRESETS["gpu"].parts
        with pytest.raises(ValueError, match="device: this part is measured in CPU seconds"):
            next(PARTS[part](MINIATURE, "cuda"))


def test_presets_name_parts_that_exist():
    for config in PRESETS.values():
        assert set(config.parts) <= set(PARTS)
    assert PRESETS["cpu"].parts == tuple(PARTS)
    assert PRESETS["gpu"].parts[-1] == "replicas"


def test_an_unknown_part_is_one_line(tmp_path, capsys):
    arguments = ["test", "--parts", "decoding", "nothing", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as stop:
        run_command(PerformanceConfig, run, "", arguments, PRESETS)
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: parts: unknown 'nothing'; choose from nano, decoding")
    assert not list(tmp_path.iterdir())
