"""The short version of `tests/kills.py`: six kills of commands without workers (`tests/test_jobs.py` kills those)."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_six_kills():
    command = [sys.executable, "-m", "tests.kills", "--kills", "6", "--seed", "3", "--commands", "train", "explore"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": "."})
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["faults"] == 0
    assert sum(n for what, n in counts.items() if "SIG" in what) == 6
    assert all(counts[f"{name} compared"] for name in ("train", "explore"))
