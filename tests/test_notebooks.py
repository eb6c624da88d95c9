"""Every notebook runs from top to bottom without a warning, and its outputs are stored, so that it can be read."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(ROOT.glob("studies/**/*.ipynb"))


def test_there_are_notebooks():
    names = {path.stem for path in NOTEBOOKS}
    assert {"attribution", "editing_a_carry", "hooking", "inside_the_hole", "own_task"} <= names


def complaints(notebook) -> list[str]:
    """What cells wrote on stderr, and errors."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [o.get("text", o.output_type) for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_can_be_read_without_running(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), f"run {path.name} as a whole"
    assert complaints(notebook) == []
    assert path.stat().st_size < 300_000
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert text.count("**Question.**") == text.count("<details><summary>Answer</summary>") == text.count("</details>")
    assert text.count("**Question.**") >= 3
    stored = str([cell.get("outputs") for cell in code])
    assert "/tmp/" not in stored
    assert "/home/" not in stored
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (path.parent / target).exists(), target


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_runs_from_top_to_bottom_without_a_warning(path):
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    assert complaints(notebook) == []
