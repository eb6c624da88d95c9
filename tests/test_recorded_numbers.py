"""Numbers of pages stand in recorded tables.

`studies/numbers.csv` names for each number the table, the row (a query) and the column it comes from. Pages in
`WHOLE` have no other number with a decimal point.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
NUMBERS = pd.read_csv(ROOT / "studies" / "numbers.csv", dtype={"number": str})
WHOLE = ("studies/case_effects/README.md",)
_NUMBER = re.compile(r"(?<![\w.])[−-]?\d+\.\d+(?![\w.])")


def in_text(text: str) -> list[str]:
    """Numbers with a decimal point outside of code, `-` as the minus sign."""
    return [m.group().replace("−", "-") for m in _NUMBER.finditer(re.sub(r"`[^`]*`", "", text))]


@pytest.mark.parametrize("table", sorted(set(NUMBERS["table"])))
def test_numbers_are_what_their_tables_say(table):
    found = pd.read_csv(ROOT / table, keep_default_na=False, na_values=[""])
    for row in NUMBERS[NUMBERS["table"] == table].itertuples():
        chosen = found.query(str(row.query))
        assert len(chosen) == 1, f"{row.page}: {row.query} is {len(chosen)} rows of {table}"
        number = str(row.number).replace("−", "-")
        value = float(chosen[str(row.column)].iloc[0])
        digits = len(number.partition(".")[2])
        assert abs(round(value, digits) - float(number)) < 10**-digits / 2, (
            f"{row.page}: {number} is {value} in {table}"
        )


@pytest.mark.parametrize("page", sorted(set(NUMBERS["page"])))
def test_numbers_stand_on_their_page(page):
    on_page = set(in_text((ROOT / page).read_text()))
    listed = set(NUMBERS.loc[NUMBERS["page"] == page, "number"].str.replace("−", "-"))
    assert {n for n in listed if "." in n} <= on_page


@pytest.mark.parametrize("page", WHOLE)
def test_no_number_stands_on_a_page_without_its_table(page):
    listed = {n.replace("−", "-") for n in NUMBERS.loc[NUMBERS["page"] == page, "number"]}
    assert set(in_text((ROOT / page).read_text())) <= listed


def test_the_parser_sees_numbers():
    assert in_text("0.10 [−0.06, 0.2] of `0.3` and 4, v1.2.3") == ["0.10", "-0.06", "0.2"]
