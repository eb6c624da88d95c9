"""The README's promises: its Python runs, its commands have the options shown, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "studies/README.md")}
COMMANDS = sorted(
    {
        line.split("#")[0].strip()
        for page in PAGES.values()
        for line in re.findall(r"(?:python -m cri\.|(?<=`)cri (?=[a-z])|(?<=\n)cri (?=[a-z]))[^\n`]+", page)
    }
)


def test_its_commands_and_then_its_python_run(tmp_path, monkeypatch):
    """As a reader's session: in a folder of one's own, with fewer training steps."""
    monkeypatch.chdir(tmp_path)
    commands = [c for c in COMMANDS if c.startswith("cri train") and c in README]
    assert len(commands) == 2
    for command in commands:
        words = [*shlex.split(re.sub(r" --steps \d+", "", command))[1:], "--steps", "20", "--evals", "1"]
        done = subprocess.run([sys.executable, "-m", "cri", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}  # which git ignores
    assert "/runs/" in (ROOT / ".gitignore").read_text().split()
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    assert len(blocks) >= 5
    file = tmp_path / "blocks.py"  # the source of a rule is read from its file
    file.write_text("\n".join(blocks))
    names: dict = {}
    exec(compile(file.read_text(), str(file), "exec"), names)
    assert names["times"].run(4, 5).result == [6]
    assert len(names["run"].nearest(names["case"])) == 10
    assert names["scores"].shape == names["truth"].shape


def test_the_readme_is_short():
    assert len(README.splitlines()) < 120


def test_there_are_commands():
    assert len(COMMANDS) >= 4


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_have_the_options_shown(command):
    words = shlex.split(command)
    words = words[2:] if words[0] == "python" else words  # `cri` is a module too
    n_names = 2 if words[0] == "cri" and words[1:] else 1
    options = [w for w in words if w.startswith("--")]
    asked = [*words[:n_names], "--help"]
    done = subprocess.run([sys.executable, "-m", *asked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for option in options:
        assert option in done.stdout, f"{command}: no {option}"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", PAGES[page]) if not t.startswith("http")]
    assert targets
    missing = [t for t in targets if not ((ROOT / page).parent / t).exists()]
    assert not missing, missing


def test_the_two_commands_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "test"):
        assert f"make {target}" in README
        assert re.search(rf"^{target}:", makefile, flags=re.M)
    assert "make test" in (ROOT / ".ci" / "run").read_text()
