"""Tables and plots for a terminal."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kgb_gateway.dewey.tables import Column, bars, spark, table
from kgb_gateway.dewey.texts import cells, cut, pad, visible
from tests.documents import TEXTS


def test_a_table_in_columns() -> None:
    rows = [("a", 1, None), ("漢字", 22, "x")]
    assert list(table(rows, [Column("name"), Column("n", right=True), Column("more")], 80)) == [
        "name   n  more",
        "────  ──  ────",
        "a      1",
        "漢字  22  x",
    ]


def test_the_column_that_grows_is_cut_first() -> None:
    lines = list(table([("x" * 50, "y" * 50)], [Column("a"), Column("b", grows=True)], 72))
    assert lines[2] == "x" * 50 + "  " + "y" * 19 + "…"


def test_a_table_in_ascii() -> None:
    assert all(line.isascii() for line in table([("x" * 90,)], [Column("a")], 20, unicode=False))


def test_a_row_must_fit_its_columns() -> None:
    with pytest.raises(ValueError, match="a row of 1 for 2 columns"):
        list(table([("a",)], [Column("a"), Column("b")], 80))


@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=4), st.integers(14, 100))
def test_a_table_fits_and_stays_a_table(rows: list[tuple[str, str]], width: int) -> None:
    lines = list(table(rows, [Column("one"), Column("two", right=True, grows=True)], width))
    assert len(lines) == len(rows) + 2
    assert all(cells(line) <= width and visible(line) == line and "\n" not in line for line in lines)


@given(TEXTS, st.integers(0, 30))
def test_cut_and_padded_texts_have_their_width(text: str, width: int) -> None:
    line = visible(text.replace("\n", " ").replace("\t", " "))
    assert cells(cut(line, width)) <= width
    assert cells(pad(cut(line, width), width)) == width


def test_bars_are_as_long_as_their_share() -> None:
    assert list(bars(["a", "bb"], [1000, 500], 19)) == ["a   1.0k  █████████", "bb   500  ████▌"]
    assert list(bars(["a", "bb"], [1000, 500], 19, unicode=False)) == ["a   1.0k  #########", "bb   500  ####"]


def test_bars_of_nothing() -> None:
    assert list(bars([], [])) == []
    assert list(bars(["a", "b", "c"], [0, -1, math.nan])) == ["a   0", "b  -1", "c   ?"]


def test_what_is_little_is_seen() -> None:
    assert list(bars(["a", "b"], [1_000_000, 1]))[1].endswith("▏")


def test_sparks() -> None:
    assert spark([0, 1, 2, 4, 8]) == "▁▂▃▅█"
    assert spark([0, 8, math.nan], unicode=False) == "_@ "
    assert spark([0, 0]) == "▁▁"
    assert spark([]) == ""


@given(st.lists(st.floats()))
def test_a_spark_for_each_value_whatever_it_is(values: list[float]) -> None:
    assert len(spark(values)) == len(values)
    assert len(list(bars(["x"] * len(values), values))) == len(values)
