"""The gallery says of every recorded figure what it asks and answers, and is what its command makes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from cri.errors import CriError
from cri.explore.gallery import LIST, PAGE, Gallery, command_of, entries, gallery, run

ROOT = Path(__file__).parent.parent


def test_the_gallery_is_what_its_command_makes():
    assert (ROOT / PAGE).read_text() == gallery(ROOT), "run python -m cri.explore.gallery"


def test_every_figure_has_its_question_answer_command_and_tables():
    text = (ROOT / PAGE).read_text()
    found = entries(ROOT)
    assert {entry.figure for entry in found} == {p.stem for p in (ROOT / "figures").glob("*.png")}
    for entry in found:
        assert entry.question.endswith("?")
        assert entry.answer.endswith(".")
        assert command_of(ROOT, entry.record).startswith(f"python -m cri.studies.{entry.study}")
    for link in re.findall(r'(?:href|src)="([^"#]+)"', text):
        assert (ROOT / "studies" / link).exists(), link
    assert not re.search(r'(?:href|src)="(?:https?:|/)', text)


def test_a_figure_without_a_row_and_a_row_without_its_table_are_refused(tmp_path: Path):
    for place in ("studies/lso_map/addition", "figures"):
        (tmp_path / place).mkdir(parents=True)
    shutil.copy(ROOT / "studies/lso_map/README.md", tmp_path / "studies/lso_map")
    (tmp_path / "figures/one.png").touch()
    head = "figure,record,tables,page,question,answer\n"
    for rows, words in (
        ("", "one has no row"),
        ("one,lso_map/addition,rings.csv,,Why?,So.\n", "rings.csv, which studies/lso_map/addition lacks"),
        ("one,lso_map/addition,rings.csv,,,So.\n", "must have"),
        ("one,lso_map/addition,rings.csv,,Why?,So.\ntwo,lso_map/addition,rings.csv,,Why?,So.\n", "two of"),
        ("one,lso_map/addition,rings.csv,,Why?,So.\n" * 2, "has 2 rows"),
    ):
        (tmp_path / LIST).write_text(head + rows)
        with pytest.raises(CriError, match=rf"^\w+: [^\n]*{words}[^\n]*$"):
            run(Gallery(tmp_path))
        assert not (tmp_path / PAGE).exists()
    (tmp_path / "studies/lso_map/addition/rings.csv").touch()
    (tmp_path / LIST).write_text(head + "one,lso_map/addition,rings.csv,,Why <b>?,So.\n")
    run(Gallery(tmp_path))
    assert "Why &lt;b&gt;?" in (tmp_path / PAGE).read_text()
