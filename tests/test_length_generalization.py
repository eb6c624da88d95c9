"""Accuracy by length: what one pass over the reference tells is what decoding from the prompt gives."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pandas as pd
import pytest

from cri.config import RunConfig
from cri.evaluation.decoding import decode
from cri.storage import config_hash
from cri.studies.length_generalization.config import MAIN, PRESETS, VARIANTS
from cri.studies.length_generalization.tables import (
    error_kind,
    first_wrong,
    fresh_cases,
    longest_carry_chain,
    reach_table,
)
from cri.training.runs import load_run, train_run


def test_carry_chains():
    assert longest_carry_chain(12, 34) == 0
    assert longest_carry_chain(999, 1) == 3
    assert longest_carry_chain(5050, 5050) == 1


def test_reach_is_where_accuracy_first_falls():
    rows = [("a", 0, d, w) for d, w in ((1, 1.0), (2, 0.96), (3, 0.5), (4, 1.0))] + [("b", 0, 1, 0.2)]
    table = pd.DataFrame(rows, columns=["variant", "seed", "digits", "whole"])
    assert reach_table(table)["reach"].tolist() == [2, 0]


def test_every_preset_names_runs_that_can_be_made():
    for preset in PRESETS.values():
        configs = [config for _, config in preset.run_configs()]
        assert len({config_hash(config.to_dict()) for config in configs}) == len(configs) > 0
        assert all(RunConfig.from_dict(config.to_dict()) == config for config in configs)
    assert set(MAIN) < set(VARIANTS)


@pytest.mark.parametrize("variant", MAIN)
def test_one_pass_tells_what_decoding_gives(variant, tmp_path):
    preset = dataclasses.replace(PRESETS["test"], variants=(variant,), steps=60, batch_size=8)
    (_, config), *_ = preset.run_configs()
    run = load_run(train_run(config, tmp_path, progress=False, evals=1))
    pairs, tokens = fresh_cases(run, 2, 6)
    assert not {*pairs} & {run.task.operands[i] for i in run.split.train_ids}
    wrong = first_wrong(run, tokens)
    done = decode(run.model, tokens)
    for i, found in enumerate(wrong):
        start, stop = int(tokens.prompt_lengths[i]), int(tokens.lengths[i])
        reference = tokens.ids[i, start:stop].numpy()
        written = np.append(done.ids[i, : done.lengths[i]], [tokens.eos] if done.finished[i] else [])
        n = min(len(reference), len(written))
        differ = np.flatnonzero(reference[:n] != written[:n])
        if found is None:
            assert np.array_equal(reference, written)
        else:
            assert differ[0] == found[0] - start
            assert written[differ[0]] == found[1]
            assert error_kind(run, pairs[i], tokens, i, found)


def test_study_end_to_end(tmp_path, monkeypatch, capsys):
    from cri.studies.length_generalization.study import main

    where = ["--out", str(tmp_path), "--runs", str(tmp_path / "runs"), "--jobs", "1", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["length_generalization", "test", *where])
    main()
    folder = tmp_path / "studies" / "length_generalization" / "test"
    accuracy = pd.read_csv(folder / "accuracy.csv")
    assert set(accuracy["variant"]) == {"direct", MAIN[0]}
    assert (accuracy["decoded_agree"] == accuracy["n_decoded"]).all()
    assert (tmp_path / "figures" / "length_generalization_test.png").exists()


@pytest.mark.parametrize(
    ("args", "message"), [(["--variants", "rfft"], "rfft-structured"), (["--test-max", "0"], "at least 1")]
)
def test_bad_input_is_one_line_and_exit_code_2(args, message, tmp_path, monkeypatch, capsys):
    from cri.studies.length_generalization.study import main

    monkeypatch.setattr(sys, "argv", ["length_generalization", "test", "--out", str(tmp_path), *args])
    with pytest.raises(SystemExit) as stop:
        main()
    error = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert message in error
    assert len(error.splitlines()) == 1
