"""Every record under `studies/` opens through its door, holds what its checksums say, and is kept small."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cri.errors import CorruptRunError
from cri.evaluation.decoding import decode
from cri.retraining.records import load_retrainings
from cri.storage import MARKER, file_sha256, mark_complete, read_json, verify, write_bytes
from cri.storage.compression import TABLE_LIMIT, content_name, pack_arrays, pack_table, read_arrays, read_table, stored
from cri.studies.common.records import code_hash

ROOT = Path(__file__).parent.parent
STUDIES = ROOT / "studies"
BANK = STUDIES / "retraining_bank"
MARKERS = sorted(STUDIES.rglob(MARKER))
TABLES = sorted(p for p in STUDIES.rglob("*.csv*") if content_name(p.name).endswith(".csv"))
RECORDS = sorted(m.parent for m in MARKERS if stored(m.parent / "record.safetensors").exists())
BASES = [record for record in RECORDS if record.name == "base"]
RECORDED_AGAIN = {"addition-scratchpad-number/subsets-50"}
"""Scratchpads were retrained with two more seeds after the LDS tables of `cpu`, which name the record of one seed."""


def name(path: Path) -> str:
    return str(path.relative_to(STUDIES))


def test_there_are_records():
    assert len(MARKERS) > 70
    assert len(RECORDS) > 50
    assert len(BASES) == 13


@pytest.mark.parametrize("folder", [m.parent for m in MARKERS], ids=name)
def test_checksums_hold(folder: Path):
    verify(folder)


@pytest.mark.parametrize("study", sorted({p.relative_to(STUDIES).parts[0] for p in TABLES}))
def test_every_table_and_json_file_of_a_study_opens(study: str):
    for path in (p for p in TABLES if p.relative_to(STUDIES).parts[0] == study):
        table = read_table(path.with_name(content_name(path.name)))
        assert len(table) > 0, path
        assert len(table.columns) > 1, path
    for path in (STUDIES / study).rglob("*.json"):
        assert read_json(path), path


@pytest.mark.parametrize("folder", RECORDS, ids=name)
def test_retrainings_open(folder: Path):
    record = load_retrainings(folder)
    assert record.train.shape == record.correct.shape == (len(record), read_json(folder / "manifest.json")["n_cases"])
    trained = record.train.sum(axis=1)
    assert (trained == record.table["n_train"]).all()
    right = np.where(record.train, record.correct, False).sum(axis=1) / trained
    np.testing.assert_allclose(right, record.table["train_acc"], atol=1e-5)
    for loss in record.loss.values():
        assert loss.shape == (len(record), len(record.queries))
        assert np.isfinite(loss).all()


@pytest.mark.parametrize("folder", BASES, ids=name)
def test_base_models_are_built_from_config_and_weights_and_answer_as_recorded(folder: Path):
    record = load_retrainings(folder)
    bank = record.bank()
    assert {"template"}.isdisjoint(p.name for p in bank.path.iterdir())
    ids = np.sort(np.random.default_rng(0).permutation(bank.task.n_cases)[:60])
    tokens = bank.tokens[ids]
    decoded = decode(bank.model(1), tokens)
    right = [
        decoded.ids[i, : decoded.lengths[i]].tolist() == tokens.ids[i, start : end - 1].tolist()
        for i, (start, end) in enumerate(zip(tokens.prompt_lengths.tolist(), tokens.lengths.tolist(), strict=True))
    ]
    assert np.mean(np.array(right) == record.correct[1, ids]) >= 0.98  # other machines round ties otherwise


@pytest.mark.parametrize("manifest", sorted(STUDIES.glob("*/*/manifest.json")), ids=name)
def test_the_records_that_tables_rest_on_are_those_here(manifest: Path):
    facts = read_json(manifest)
    for record, checksum in facts.get("records", {}).items():
        if record not in RECORDED_AGAIN:
            assert file_sha256(BANK / facts.get("bank", manifest.parent.name) / record / MARKER)[:16] == checksum


def test_the_data_card_lists_every_record_with_its_checksum():
    rows = re.findall(
        r"^\| `([^`]+)` \| (\d+) \| [\d.]+ \| `([0-9a-f]{16})` \|$", (STUDIES / "DATA.md").read_text(), re.M
    )
    found = {(str(r.relative_to(BANK)), str(len(load_retrainings(r))), file_sha256(r / MARKER)[:16]) for r in RECORDS}
    assert set(rows) == found, f"in studies/DATA.md, or here, only: {sorted(set(rows) ^ found)}"


def test_the_repository_stays_small():
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("not in a git repository")
    sizes = {f: (ROOT / f).stat().st_size for f in done.stdout.decode().split("\0") if f and (ROOT / f).is_file()}
    assert sum(sizes.values()) < 80 * 2**20
    by_hand = "studies/numbers.csv"  # no record: a list that people write and compare line by line
    assert not [f for f, size in sizes.items() if f.endswith(".csv") and size > TABLE_LIMIT and f != by_hand]
    assert not [f for f in sizes if Path(f).name in ("tokenizer.json", "model.safetensors")]


def test_large_tables_are_packed_small_ones_are_not_and_both_are_read(tmp_path: Path):
    large = pd.DataFrame({"x": np.arange(200_000), "y": 0.5})
    for table, packed in ((large, True), (large[:10], False)):
        path, content = pack_table(table, tmp_path / f"{len(table)}.csv")
        assert (path.suffix == ".gz") == packed
        assert pack_table(table, tmp_path / f"{len(table)}.csv")[1] == content
        write_bytes(path, content)
        pd.testing.assert_frame_equal(read_table(tmp_path / f"{len(table)}.csv"), table)


def test_arrays_are_packed_without_loss(tmp_path: Path):
    rng = np.random.default_rng(0)
    arrays = {"loss": rng.normal(size=(30, 40)).astype(np.float32), "bits": rng.integers(0, 255, 999, dtype=np.uint8)}
    arrays["loss"][0, :3] = np.nan, np.inf, -0.0
    write_bytes(tmp_path / "a.safetensors.xz", pack_arrays(arrays))
    for key, array in read_arrays(tmp_path / "a.safetensors").items():
        assert array.tobytes() == arrays[key].tobytes()


@pytest.mark.parametrize("damage", ["cut", "altered", "twice"])
def test_a_damaged_packed_file_is_refused(tmp_path: Path, damage: str):
    path, content = pack_table(pd.DataFrame({"x": np.arange(200_000)}), tmp_path / "cases.csv")
    write_bytes(path, content)
    mark_complete(tmp_path, [path.name])
    assert list(read_json(tmp_path / MARKER)["sha256"]) == ["cases.csv"]
    verify(tmp_path)
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "altered":
        path.write_bytes(pack_table(pd.DataFrame({"x": np.arange(1, 200_001)}), tmp_path / "cases.csv")[1])
    else:
        (tmp_path / "cases.csv").write_bytes(b"x\n1\n")
    with pytest.raises(CorruptRunError, match=r"cases\.csv"):
        verify(tmp_path)


def test_tables_are_made_again_when_statements_change_and_not_when_words_do(tmp_path: Path, monkeypatch):
    from cri.studies.common import records

    package = tmp_path / "cri"
    (package / "studies" / "common").mkdir(parents=True)
    (package / "studies" / "one").mkdir()
    source, shared, own = (
        package / "a.py",
        package / "studies" / "common" / "b.py",
        package / "studies" / "one" / "c.py",
    )
    for path in (source, shared, own):
        path.write_text('"""Says."""\nX = 1\n"""What X is."""\n')
    monkeypatch.setattr(records, "__file__", str(package / "studies" / "common" / "records.py"))
    before = code_hash("one/*.py")
    for path in (source, shared, own):
        path.write_text('"""Says more."""\n\nX = 1  # why\n')
        assert code_hash("one/*.py") == before
        path.write_text('"""Says."""\nX = 2\n')
        assert code_hash("one/*.py") != before
        path.write_text("X = 1\n")
    (package / "plots").mkdir()
    (package / "plots" / "d.py").write_text("Y = 1\n")
    assert code_hash("one/*.py") == before
