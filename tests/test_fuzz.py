"""2,000 odd command lines and calls, by `tests/fuzz.py`, and that it finds faults where there are some."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

ENVIRONMENT = {**os.environ, "PYTHONPATH": "."}
"""A process of its own: the shapes that the tests check at run time would refuse arguments before the package does."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_thousand_inputs_are_results_or_refusals_of_one_line():
    command = [sys.executable, "-m", "tests.fuzz", "--inputs", "2000"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert sum(counts.values()) == 2000
    for part in ("commands", "functions"):
        assert counts[f"{part} accepted"] > 5
        assert counts[f"{part} refused"] > 100


def test_without_the_guard_types_inside_parameters_are_found():
    command = [sys.executable, "-m", "tests.fuzz", "--inputs", "120", "--command", "export", "--without-checks"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "_params" in done.stdout.replace("-", "_")
    assert "TypeError" in done.stdout
