"""Numbers of pages stand in recorded tables.

`studies/numbers.csv` names for each number on a page the table, the rows (a query) and the column it comes from (a name
or an expression of columns). An empty `aggregate` means one row; `min`, `max`, `mean`, `median`, `sum`, `count` and
`difference` (first row minus second) summarise several; `mean by seed, design then min` takes the least of the groups'
means; `share` is that of the rows that the column's expression holds for; `item 2` is the third number of a list in the
cell. `studies/numbers_elsewhere.csv` lists the few numbers that no table holds, with a command or source. On every
page (`WHOLE`) each number with a decimal point stands on one of the two lists, as often as it stands on the page.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from cri.storage.compression import read_table

ROOT = Path(__file__).parents[1]
NUMBERS = pd.read_csv(ROOT / "studies" / "numbers.csv", dtype=str, keep_default_na=False)
ELSEWHERE = pd.read_csv(ROOT / "studies" / "numbers_elsewhere.csv", dtype=str, keep_default_na=False)
WHOLE = ("README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("studies/**/README.md")))
_NUMBER = re.compile(r"(?<![\w.])[−-]?\d+\.\d+(?!\w|\.\d)")
_WHOLE_NUMBER = re.compile(r"(?<![\w.])[−-]?\d+(?:,\d{3})*(?!\w|\.\d)")


def in_text(text: str, pattern: re.Pattern[str] = _NUMBER) -> list[str]:
    """Numbers with a decimal point outside of code, `-` as the minus sign."""
    return [m.group().replace("−", "-") for m in pattern.finditer(re.sub(r"`[^`]*`", "", text))]


def _summary(values: pd.Series, how: str) -> float:
    if how == "difference":
        first, second = values
        return float(first) - float(second)
    return float(values.agg("mean" if how == "share" else how))


def value_of(chosen: pd.DataFrame, column: str, aggregate: str) -> float:
    """What a row of `numbers.csv` says: a cell, or a summary of a column over the rows that its query chose."""
    values = chosen[column] if column in chosen else chosen.eval(column)
    if not aggregate or aggregate.startswith("item "):
        assert len(values) == 1, f"{len(values)} rows of {column}"
        cell = values.iloc[0]
        return float(str(cell).split()[int(aggregate.removeprefix("item "))] if aggregate else cell)
    assert len(values), f"no row of {column}"
    how, *then = aggregate.split(" then ")
    if then:
        how, _, groups = how.partition(" by ")
        parts = [_summary(part, how) for _, part in values.groupby([chosen[g] for g in groups.split(", ")])]
        return _summary(pd.Series(parts), then[0])
    return _summary(values, how)


def agrees(number: str, value: float) -> bool:
    """Whether a number is a value rounded to the number's decimals; a half may go either way."""
    number = number.replace(",", "").replace("−", "-")
    return abs(value - float(number)) <= 10.0 ** -len(number.partition(".")[2]) / 2 * (1 + 1e-6)


@cache
def _table(path: str) -> pd.DataFrame:
    return read_table(ROOT / path, keep_default_na=False, na_values=[""])


@cache
def _chosen(path: str, query: str) -> pd.DataFrame:
    return _table(path).query(query) if query else _table(path)


@pytest.mark.parametrize("table", sorted(set(NUMBERS["table"])))
def test_numbers_are_what_their_tables_say(table):
    for row in NUMBERS[NUMBERS["table"] == table].itertuples():
        value = value_of(_chosen(table, str(row.query)), str(row.column), str(row.aggregate))
        assert agrees(str(row.number), value), f"{row.page}: {row.number} is {value} in {table}"


@pytest.mark.parametrize("page", sorted(set(NUMBERS["page"]) | set(ELSEWHERE["page"])))
def test_numbers_stand_on_their_page(page):
    text = (ROOT / page).read_text()
    on_page = set(in_text(text)) | {n.replace(",", "") for n in in_text(text, _WHOLE_NUMBER)}
    assert set(_listed(page)) <= on_page


@pytest.mark.parametrize("page", WHOLE)
def test_no_number_stands_on_a_page_without_its_table(page):
    unlisted = Counter(in_text((ROOT / page).read_text())) - Counter(_listed(page))
    assert not unlisted


def _listed(page: str) -> list[str]:
    both = pd.concat([NUMBERS, ELSEWHERE])
    return list(both.loc[both["page"] == page, "number"].str.replace("−", "-"))


def test_numbers_elsewhere_are_few_and_sourced():
    assert len(ELSEWHERE) < len(NUMBERS) / 10
    assert (ELSEWHERE["command"].str.len() > 0).all()
    assert (ELSEWHERE["why"].str.len() > 0).all()


def test_the_parser_sees_numbers():
    text = "0.10 [−0.06, 0.2] of `0.3` and 4, v1.2.3, 435 of 2,000, 0.7."
    assert in_text(text) == ["0.10", "-0.06", "0.2", "0.7"]
    assert in_text(text, _WHOLE_NUMBER) == ["4", "435", "2,000"]


def test_values_are_read_as_written():
    table = pd.DataFrame({"seed": [0, 0, 1], "x": [1.0, 2.0, 6.0], "list": ["1 2", "3 4", "5 6"]})
    last, first = table.query("seed==1"), table.query("seed==0")
    assert value_of(last, "x", "") == 6
    assert value_of(last, "list", "item 1") == 6
    assert value_of(table, "x", "mean by seed then min") == 1.5
    assert value_of(table, "x > 1.5", "share") == pytest.approx(2 / 3)
    assert value_of(first, "100 * x", "difference") == -100
    with pytest.raises(AssertionError, match="2 rows"):
        value_of(first, "x", "")
    assert agrees("0.12", 0.125)
    assert agrees("0.13", 0.125)
    assert not agrees("0.12", 0.1251)
