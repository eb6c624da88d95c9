"""A command tried from the README leaves the repository as it was, and families have one parser."""

from __future__ import annotations

import importlib
import os
import pkgutil
import shutil
import subprocess
import sys

import pytest

import cri.studies
from cri.errors import CriError
from cri.options import FamilyName, StudyOptions

STUDIES = sorted(m.name for m in pkgutil.iter_modules(cri.studies.__path__) if m.name != "common")


def presets(name):
    package = "cri.retraining" if name == "retraining_bank" else f"cri.studies.{name}"
    return importlib.import_module(f"{package}.config").PRESETS


def git(root, *words):
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


@pytest.mark.parametrize("name", STUDIES)
def test_what_a_study_writes_by_default_is_ignored_by_git(name, pytestconfig, tmp_path):
    shutil.copy(pytestconfig.rootpath / ".gitignore", tmp_path)
    assert git(tmp_path, "init", "-q")[0] == 0
    for config in presets(name).values():
        assert isinstance(config, StudyOptions)
        written = [config.tables(name, getattr(config, "name", "x")), config.figures]
        written += [config.runs] if hasattr(config, "runs") else []
        for path in written:
            assert not path.is_absolute()
            assert git(tmp_path, "check-ignore", str(path / "file"))[0] == 0, f"{path} is tracked"


def test_a_study_run_as_the_readme_has_it_leaves_git_status_clean(pytestconfig, tmp_path):
    shutil.copy(pytestconfig.rootpath / ".gitignore", tmp_path)
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "recorded.csv").write_text("a\n1\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    before = git(tmp_path, "status", "--porcelain")[1]
    words = ["test", "--size", "16", "--half-side", "2", "--steps", "4", "--jobs", "1", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(pytestconfig.rootpath)}
    command = [sys.executable, "-m", "cri.studies.lso_map"]
    done = subprocess.run(
        [*command, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "build" / "studies" / "lso_map" / "test" / "runs.csv").exists()
    assert (tmp_path / "build" / "figures" / "lso_map_test.png").exists()
    assert git(tmp_path, "status", "--porcelain")[1] == before
    # and the way to record is the one that the pages name
    done = subprocess.run([*command, *words, "--out", "."], cwd=tmp_path, env=environment, check=False)
    assert (tmp_path / "studies" / "lso_map" / "test" / "runs.csv").exists()
    assert (tmp_path / "figures" / "lso_map_test.png").exists()


def test_families_are_parsed_in_one_place():
    family = FamilyName.parse("base_addition:scratchpad:digit")
    assert family == FamilyName("base_addition", "scratchpad", "digit")
    assert (str(family), family.folder) == ("base_addition:scratchpad:digit", "base_addition-scratchpad-digit")
    assert family.title == "base addition, scratchpad, digit tokens"
    assert FamilyName.parse("addition:direct:number").title == "addition, number tokens"
    for text in ("addition", "addition:direct", "addition:direct:", "a:b:c:d"):
        with pytest.raises(CriError, match=r"family: .* is not TASK:FORMAT:TOKENIZER"):
            FamilyName.parse(text)
