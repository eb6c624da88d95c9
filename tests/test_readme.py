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
COMMANDS = sorted({line.split("#")[0].strip() for line in re.findall(r"python -m cri\.[^\n`]+", README)})


def test_python_runs_on_a_real_run(tiny_run):
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    assert blocks
    for block in blocks:
        code, runs_opened = re.subn(r'load_run\("[^"]+"\)', f'load_run("{tiny_run.path}")', block)
        assert runs_opened
        code = re.sub(
            r"run\.case\(50, 50\)", "run.case(12, 12)", code
        )  # the middle of the paper's grid, and of this one
        exec(compile(code, "README.md", "exec"), {})


def test_there_are_commands():
    assert len(COMMANDS) >= 4


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_have_the_options_shown(command):
    words = shlex.split(command)[2:]
    module, options = words[0], [w for w in words[1:] if w.startswith("--")]
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for option in options:
        assert option in done.stdout, f"{module} has no {option}"


def test_links_lead_somewhere():
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", README) if not t.startswith("http")]
    assert targets
    missing = [t for t in targets if not (ROOT / t).exists()]
    assert not missing, missing


def test_the_two_commands_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "test"):
        assert f"make {target}" in README
        assert re.search(rf"^{target}:", makefile, flags=re.M)
    assert "make test" in (ROOT / ".ci" / "run").read_text()
