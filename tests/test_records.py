"""Records of studies: wholly of one run or of another, whenever their process ends; figures with their tables."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from cri import storage
from cri.errors import CorruptRunError, CriError
from cri.storage import MARKER, file_sha256, is_complete, read_json, verify
from cri.studies.common.records import MANIFEST, recording

# Writes the record of a configuration in a child, once for each call into the file system that makes, moves or removes
# something, and kills the child just before that call; tells what a reader then finds.
DRIVER = """
import json, os, shutil, signal, sys
from pathlib import Path
import pandas as pd
import cri.studies.common.records as records
from cri import storage
from cri.storage import is_complete, read_json, verify

if sys.argv[3] == "two steps":
    storage._exchange = lambda one, other: False
folder, figures = Path(sys.argv[1]), Path(sys.argv[2])


def draw(tables, where):
    where.mkdir()
    name = read_json(tables / "manifest.json")["of"]
    drawn = []
    for kind in ("map", "rings", name):  # one that only this configuration has
        (where / f"{kind}.png").write_text(f"{kind} of {name}")
        drawn.append(where / f"{kind}.png")
    return drawn


def make(name):
    table = pd.DataFrame({"of": [name]})
    with records.recording(folder, figures) as record:
        record.write({"runs": table, "cases": table, name: table}, {"of": name}, draw)


def killed_at(n, name):
    pid = os.fork()
    if pid == 0:
        calls = [0]
        def counted(real):
            def call(*args, **options):
                calls[0] += 1
                if calls[0] == n:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **options)
            return call
        for place, call in ((os, "replace"), (os, "rename"), (os, "unlink"), (os, "rmdir"), (os, "mkdir"),
                            (storage, "_exchange")):
            setattr(place, call, counted(getattr(place, call)))
        make(name)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def found():
    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    verify(folder)
    return {"of": read_json(folder / "manifest.json")["of"], "names": names,
            "tables": sorted({pd.read_csv(p)["of"][0] for p in folder.glob("*.csv")})}


make("old")
n, seen = 0, []
while True:
    n += 1
    if not killed_at(n, "new"):
        break
    at_once = found() if folder.exists() else None
    with records.recording(folder, figures):  # the next process
        pass
    after = found()
    after["figures"] = {p.name: p.read_text() for p in sorted(figures.iterdir())}
    after["left"] = sorted(p.name for p in folder.parent.iterdir() if p not in (folder, figures))
    seen.append([at_once, after])
    make("old")
print(json.dumps(seen))
"""


@pytest.mark.parametrize("way", ["one step", "two steps"])
def test_killed_before_any_change_the_record_is_the_old_or_the_new(tmp_path, way):
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "record"), str(tmp_path / "figures"), way]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()})
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert len(seen) > 15
    for at_once, after in seen:
        # with two steps there is a moment without a record; never is there a mixed one
        assert at_once is not None or way == "two steps"
        for state in filter(None, (at_once, after)):
            assert state["tables"] == [state["of"]]
            assert state["names"] == sorted(["cases.csv", MARKER, MANIFEST, f"{state['of']}.csv", "runs.csv"])
        of = after["of"]
        assert after["figures"] == {f"{kind}.png": f"{kind} of {of}" for kind in sorted(("map", "rings", of))}
        assert after["left"] == []
    assert {after["of"] for _, after in seen} == {"old", "new"}


def write(folder: Path, figures: Path | None = None, **facts) -> list[Path]:
    def draw(tables: Path, where: Path) -> list[Path]:
        where.mkdir()
        drawn = [where / f"{name}.png" for name in facts]
        for path in drawn:
            path.write_text(str(facts[path.stem]))
        return drawn

    with recording(folder, figures) as record:
        return record.write({"t": pd.DataFrame({"x": [1]})}, facts, draw if figures else None)


def test_a_figure_that_the_record_no_longer_has_goes_unless_it_was_changed(tmp_path):
    figures = tmp_path / "figures"
    assert write(tmp_path / "r", figures, a=1, b=2, c=3) == [figures / f"{name}.png" for name in "abc"]
    (figures / "c.png").write_text("drawn over by hand")
    assert write(tmp_path / "r", figures, a=4) == [figures / "a.png"]
    assert {p.name: p.read_text() for p in figures.iterdir()} == {"a.png": "4", "c.png": "drawn over by hand"}
    assert read_json(tmp_path / "r" / MANIFEST)["figures"] == {"a.png": file_sha256(figures / "a.png")}


def test_a_failure_to_draw_or_write_leaves_the_record_as_it_was(tmp_path):
    figures = tmp_path / "figures"
    write(tmp_path / "r", figures, a=1)
    before = {p.name: p.read_bytes() for p in (tmp_path / "r").iterdir()}

    def full(tables, where):
        raise OSError(28, os.strerror(28))

    with (
        recording(tmp_path / "r", figures) as record,
        pytest.raises(CriError, match=r"No space left on device.*stands"),
    ):
        record.write({}, {}, full)
    assert {p.name: p.read_bytes() for p in (tmp_path / "r").iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["figures", "r"]


def test_what_is_no_record_is_not_replaced(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.csv").write_text("x")
    with pytest.raises(CriError, match=r"record: .*mine holds what is no record \(thesis\.csv\)"):
        write(mine)
    write(tmp_path / "r")
    (tmp_path / "r" / "notes.txt").write_text("x")
    with pytest.raises(CriError, match=r"holds what is no record \(notes\.txt\)"):
        write(tmp_path / "r")
    with pytest.raises(CriError, match=r"figures: .* lies in the record's folder"):
        write(tmp_path / "s", tmp_path / "s" / "figures")
    with pytest.raises(CriError, match=r"record: .* is not a folder"):
        write(tmp_path / "r" / "notes.txt")
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_dir()) == ["mine", "r"]
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]


@pytest.mark.parametrize("where", ["record", "figures"])
def test_an_unwritable_place_is_found_before_the_work(tmp_path, where):
    (tmp_path / "file").write_text("x")
    places = {"record": tmp_path / "r" / "new", "figures": tmp_path / "figures", where: tmp_path / "file" / "x" / "y"}
    with (
        pytest.raises(CriError, match=rf"{where}: .* cannot be written to: Not a directory"),
        recording(places["record"], places["figures"]),
    ):
        raise AssertionError("the work began")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_second_process_waits_and_names_the_first(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from cri.storage import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(float(sys.argv[2]))"
    )
    start = [sys.executable, "-c", script, str(tmp_path / "run")]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    with subprocess.Popen([*start, "3"], env=environment, **options) as first:
        assert first.stdout.readline() == "held\n"
        second = subprocess.run([*start, "0"], env=environment, **options, check=False)
    assert f"waiting for process {first.pid} on " in second.stderr
    assert second.stdout == "held\n"
    assert not list(tmp_path.iterdir())  # the folder was made for the lock alone


def test_what_killed_processes_left_is_removed_and_what_living_ones_write_is_not(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    alive = os.getppid()
    for pid in (dead.pid, alive):
        (tmp_path / f".table.csv.{pid}.tmp").write_text("half")
    storage.write_text(tmp_path / "table.csv", "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == [f".table.csv.{alive}.tmp", "table.csv"]
    with storage.locked(tmp_path):
        assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "table.csv"]


@pytest.mark.parametrize("kind", ["fifo", "link", "dangling link", "folder", "device"])
def test_only_regular_files_are_replaced(tmp_path, kind):
    target = tmp_path / "out.jsonl"
    if kind == "fifo":
        os.mkfifo(target)
    elif kind == "folder":
        target.mkdir()
    elif kind == "device":
        target = Path("/dev/null")
    else:
        target.symlink_to(tmp_path / "elsewhere")
        if kind == "link":
            (tmp_path / "elsewhere").write_text("kept")
    before = target.lstat().st_mode
    with pytest.raises(CriError, match=r"is not a regular file"):
        storage.write_text(target, "x")
    assert target.lstat().st_mode == before
    assert kind != "link" or (tmp_path / "elsewhere").read_text() == "kept"


def finished(folder: Path) -> Path:
    write(folder)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    storage.mark_complete(folder, [MANIFEST, "t.csv", "model/config.json"])
    verify(folder)
    return folder


@pytest.mark.parametrize("marker", [{"sha256": {}}, {"sha256": []}, {}, [], 3])
def test_a_marker_that_vouches_for_nothing_is_refused(tmp_path, marker):
    folder = finished(tmp_path / "r")
    storage.write_json(folder / MARKER, marker)
    with pytest.raises(CorruptRunError, match=f"{MARKER}(: sha256 is no object| holds no JSON object| lists no files)"):
        verify(folder)


@pytest.mark.parametrize("name", ["model/adapter_config.json", "model/complete.json", "extra.csv", "sub/x.bin"])
def test_a_file_that_the_marker_does_not_list_is_refused(tmp_path, name):
    folder = finished(tmp_path / "r")
    storage.write_text(folder / name, "{}")
    with pytest.raises(CorruptRunError, match=rf"{re.escape(name)} is no file of this run"):
        verify(folder)


def test_notes_and_what_a_kill_leaves_beside_a_finished_run_do_no_harm(tmp_path):
    folder = finished(tmp_path / "r")
    for name in ("notes.txt", "checkpoint.safetensors", "part-00000-00001.safetensors", ".DS_Store"):
        (folder / name).write_text("x")
    nested = folder / "bank-x"  # with a marker of its own
    nested.mkdir()
    storage.write_json(nested / MANIFEST, {})
    storage.mark_complete(nested, [MANIFEST])
    assert is_complete(nested)
    verify(folder)
