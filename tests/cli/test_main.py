"""The command itself: help, version, mistyped words, and what it imports."""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dla.cli import COMMANDS, main
from dla.cli.bulk import SUBCOMMANDS as BULK
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


@pytest.mark.parametrize("words", [[], ["data"]])
def test_without_a_command_it_prints_its_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    alone = capsys.readouterr().out
    assert main([*words, "--help"]) == 0
    assert capsys.readouterr().out == alone
    assert "usage: dla" in alone
    assert "COMMAND" in alone


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pedict"], 'no command is called "pedict". Nearest: predict. All: dla --help'),
        (["predict", "a.jpg", "--topl", "3"], 'no option is called "--topl". Nearest: --topk'),
        (["predict", "a.jpg", "--topk", "many"], "topk is many. Allowed: a whole number"),
        (["predict", "a.jpg", "--format", "xml"], "format is xml. Allowed: table, json, jsonl, csv\n"),
        (["predict", "a.jpg", "--topk"], "--topk takes a value. See: dla predict --help"),
        (["predict", "a.jpg", "--quiet=3"], "--quiet takes no value. See: dla predict --help"),
        (["models", "dla34"], 'unexpected argument "dla34". See: dla models --help'),
        (["validate"], "DATA is missing, as in: dla validate flowers/val --model runs/flowers/best\n"),
        (["predict", "a.jpg", "--config", "gone.yaml"], "gone.yaml does not exist. --config takes a YAML file"),
        (["predict", "a.jpg", "--topk", "0"], "topk is 0"),
        (["predict", "a.jpg", "--model", "dla61"], 'no network is called "dla61". Nearest: dla60'),
        (["predict"], "nothing to classify"),
        (["predict", "a.jpg", "--output", "b.jpg"], "has the suffix of a photo"),
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


PAGES = [[], ["data", "check"], *([name] for name in COMMANDS), *(["bulk", name] for name in BULK)]


@pytest.mark.parametrize("words", PAGES, ids=" ".join)
def test_help_fits_the_terminal_and_is_in_our_words(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with contextlib.suppress(SystemExit):
        main([*words, "--help"])
    page = capsys.readouterr().out
    assert [line for line in page.partition("example:")[0].splitlines() if len(line) > 80] == []
    for foreign in ("ARG:", "ENV:", "(type:", "Known subclasses", "show this help", "customizes", "VERB", "verb ",
                    "skip_unset", "[=flags]", "VALUE", "ITEM", "default: null", "null:", "print_"):  # fmt: skip
        assert foreign not in page


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("topk: many", "topk is many. Allowed: a whole number"),
        ("max_megapixels: many", "max_megapixels is many. Allowed: a number"),
        ("format: xml", "format is xml. Allowed: table, json, jsonl, csv\n"),
        ("topl: 3", 'called "topl". Nearest: topk. All: dla predict --help'),
        ("topk: [", "my.yaml is not valid YAML at line 1: "),
        ("- topk", "my.yaml is not a file of options: it has no fields such as `model: dla60`"),
        ("", "my.yaml is not a file of options"),
        ("topk: 0", "--topk is 0. Allowed: 1 to 100,000"),
        ("topk:", "topk is null. Allowed: a whole number"),
        ("images: [a.jpg]", 'is called "images"'),
    ],
)
@pytest.mark.parametrize("by", ["flag", "variable"])
def test_what_is_wrong_in_an_option_file_is_one_sentence(
    text: str, said: str, by: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(text)
    words = ["predict", "a.jpg"]
    if by == "flag":
        words += ["--config", str(path)]
    else:
        monkeypatch.setenv("DLA_CONFIG", str(path))
    assert main(words) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 1


def test_printed_options_are_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", "a.jpg", "--topk", "3", "--workers", "2", "--format", "csv", "--fail-fast"]
    assert main([*words, "--print-config"]) == 0
    (tmp_path / "my.yaml").write_text(first := capsys.readouterr().out)
    assert main(["predict", "b.jpg", "--config", str(tmp_path / "my.yaml"), "--print-config"]) == 0
    assert capsys.readouterr().out == first
    assert {"topk: 3", "workers: 2", "format: csv", "fail_fast: true"} <= set(first.splitlines())
