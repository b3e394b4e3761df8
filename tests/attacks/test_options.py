"""Recipes and option files made to harm: each ends in one sentence, with exit code 2, in a moment."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from dla.cli import main

pytestmark = pytest.mark.slow

LEVELS = "abcdefghi"
BOMB = "augment:\n - &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f" - &{this} [{','.join(f'*{before}' for _ in range(10))}]\n" for before, this in pairwise(LEVELS)
)
FILES = {
    "a date": "epochs: 2001-99-99",
    "digits": "epochs: " + "9" * 5000,
    "int": "epochs: !!int abc",
    "float": "lr: !!float abc",
    "bool": "pretrained: !!bool abc",
    "timestamp": "epochs: !!timestamp abc",
    "binary": "model: !!binary ===",
    "deep": "epochs: " + "[" * 5000 + "]" * 5000,
    "deep maps": "{a: " * 3000 + "1" + "}" * 3000,
    "nested": "".join("  " * i + f"a{i}:\n" for i in range(1500)) + "  " * 1500 + "x: 1",
    "aliases": BOMB,
    "itself": "augment: &a [*a]",
    "a tab": "epochs:\t- 1",
    "a call": "epochs: !!python/object/apply:os.system [ls]",
    "a list as key": "? [1,2]\n: 3",
    "a mapping as key": "? {a: 1}\n: 3",
    "infinity": "lr: .inf",
    "a merge": "<<: 3",
    "a number as name": "1: 2",
    "null as name": "~: 2",
    "null where two numbers are": "augment:\n  ratio:",
    "a zero byte": 'epochs: "\\0"',
    "null where a number is": "augment:\n  contrast:",
    "text": "just words",
    "nothing": "",
    "a list": "[1, 2]",
}


@pytest.mark.parametrize("name", FILES)
def test_a_recipe_or_option_file_that_is_odd(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(FILES[name])
    (tmp_path / "data" / "a").mkdir(parents=True)
    for words in (
        ["train", str(tmp_path / "data"), "--recipe", str(path), "--print-config"],
        ["predict", "x.jpg", "--config", str(path)],
    ):
        assert main(words) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("dla: ")
        assert str(path) in captured.err
        assert len(captured.err) < 500
        assert captured.err.count("\n") == 1


def test_a_file_of_megabytes_is_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "large.yaml"
    path.write_text("epochs: 1 #" + "x" * 2_000_000)
    assert main(["train", str(tmp_path), "--recipe", str(path), "--print-config"]) == 2
    assert "has more than 1,000 kB" in capsys.readouterr().err
