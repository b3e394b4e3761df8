"""Columns, by what a terminal makes of them: rich measures letters by its own tables."""

from __future__ import annotations

import pytest
from rich.cells import cell_len

from dla.text_table import cell_width, text_table

ROWS = [
    ("class", "photos", "called"),
    ("猫 tabby", "12", "dog"),
    ("cafe\u0301", "3", "狗 or something longer than the rest"),
]


@pytest.mark.parametrize(
    "text", ["", "cat", "猫 tabby", "cafe\u0301", "café", "☕", "ｶﾀｶﾅ", "\uff37\uff29", "한국어", "Ωμέγα"]
)
def test_letters_are_as_wide_as_rich_has_them(text: str) -> None:
    assert cell_width(text) == cell_len(text)


def test_columns_stand_under_each_other() -> None:
    lines = text_table(ROWS, "<><")
    assert [cell_len(line[: line.index(last)]) for line, (_, _, last) in zip(lines, ROWS, strict=True)] == [18, 18, 18]
    assert lines[0] == "class     photos  called"
    assert lines[2].endswith("   3  狗 or something longer than the rest")


def test_nothing_is_cut() -> None:
    assert text_table(ROWS, "<><")[2].endswith(ROWS[2][2])
    lines = text_table(ROWS, "<><", width=40)
    assert max(map(cell_len, lines)) <= 40
    assert " ".join(" ".join(lines[2:]).split()) == " ".join(ROWS[2])
    assert lines[3].startswith(" " * 18)


def test_a_last_column_keeps_some_room() -> None:
    assert max(map(cell_len, text_table(ROWS, "<><", width=10))) <= 18 + 20
