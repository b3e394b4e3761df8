"""The command itself: help, version, mistyped words, and what it imports."""

import os
import subprocess
import sys

import pytest

from dla.cli import VERBS, main


def dla(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dla", *words], capture_output=True, text=True, **options)


@pytest.mark.parametrize("words", [["--help"], *([verb, "--help"] for verb in VERBS)])
def test_help_is_quick_shows_an_example_and_loads_no_torch(words: list[str]) -> None:
    code = f"""
import sys
from dla.cli import main
try:
    main({words!r})
finally:
    assert "torch" not in sys.modules and "numpy" not in sys.modules, sorted(sys.modules)
"""
    seconds = []  # of the processor: the clock's would also count what else the machine does
    for _ in range(3):
        began = os.times()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        ended = os.times()
        seconds.append(ended[2] + ended[3] - began[2] - began[3])
    assert done.returncode == 0, done.stderr
    assert "example" in done.stdout
    assert "dla " in done.stdout.split("example")[1]
    assert min(seconds) < 0.3


def test_version() -> None:
    done = dla("--version")
    assert done.returncode == 0
    assert done.stdout.split()[0] == "dla"
    assert done.stdout.split()[1].count(".") == 2


def test_without_a_verb_it_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "predict" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pedict"], 'no verb is called "pedict". Nearest: predict. All: dla --help'),
        (["predict", "a.jpg", "--topl", "3"], 'no option is called "--topl". Nearest: --topk'),
        (["predict", "a.jpg", "--topk", "many"], "topk"),
        (["predict", "a.jpg", "--format", "xml"], "xml"),
        (["predict", "a.jpg", "--topk", "0"], "topk is 0"),
        (["predict", "a.jpg", "--model", "dla61"], 'no network is called "dla61". Nearest: dla60'),
        (["predict"], "nothing to classify"),
        (["predict", "a.jpg", "--output", "b.jpg"], "has the name of a photo"),
        (["predict", "a.jpg", "--device", "abacus"], "'abacus' cannot be used here"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if "research" not in line]) == 1
