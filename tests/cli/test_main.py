"""The command itself: help, version, mistyped words, and what it imports."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dla.cli import COMMANDS, main
from support.packages import PARSER, packages_of
from support.photos import CHELSEA


def dla(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dla", *words], capture_output=True, text=True, **options)


@pytest.mark.parametrize("words", [["--help"], *([verb, "--help"] for verb in COMMANDS)])
def test_help_shows_an_example_and_loads_only_the_parser(words: list[str]) -> None:
    done, loaded = packages_of(words)
    assert done.returncode == 0, done.stderr
    assert "example" in done.stdout
    assert "dla " in done.stdout.split("example")[1]
    assert loaded <= PARSER


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


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [
        ("utf-8", "café ☕".encode() + b" \xff"),
        ("latin-1", b"caf\xe9 \\u2615 \xff"),
        ("ascii", b"caf\\u00e9 \\u2615 \xff"),
    ],
)
def test_every_name_can_be_printed(encoding: str, printed: bytes, tmp_path: Path) -> None:
    photo = os.fsencode(tmp_path) + "/café ☕".encode() + b" \xff.jpg"
    shutil.copy(CHELSEA, photo)
    command = [sys.executable, "-m", "dla", "predict", photo, "-q", "--format", "csv"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding})
    assert done.returncode == 0, done.stderr
    assert printed + b".jpg," in done.stdout


@pytest.mark.parametrize(("closed", "there"), [(">&-", ""), ("2>&-", "label_1")])
def test_a_closed_stream_goes_nowhere(closed: str, there: str, tmp_path: Path) -> None:
    command = f"{sys.executable} -m dla predict {CHELSEA} --format csv {closed}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert there in done.stdout
    assert "research" not in done.stdout  # what is said on standard error stays off the results
