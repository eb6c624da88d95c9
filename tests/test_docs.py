"""The API pages are made from the docstrings, and every link in them leads somewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_pages_are_built_and_show_the_front_door(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "front_door" / "index.html").read_text()
    for name in ("cri.opened.OpenRun.influence", "cri.retraining.benchmark.benchmark", "cri.formats.rules.own.rule"):
        assert f'id="{name}"' in page
    assert "make docs" in (ROOT / "docs" / "index.md").read_text()
    assert "\ndocs:" in (ROOT / "Makefile").read_text()
