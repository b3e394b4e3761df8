"""`dla completion`: what the shell offers is what the commands take."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from dla.cli import COMMANDS, main
from dla.models.registry import TABLE
from dla.training.recipe_files import shipped_recipes

ASK = """\
source {script}
COMP_WORDS=({words} "{last}"); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMPREPLY=()
_shtab_dla
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "dla.bash"
    with pytest.MonkeyPatch.context() as patch, path.open("w") as file:
        patch.setattr("sys.stdout", file)
        assert main(["completion", "bash"]) == 0
    return path


def offered(script: Path, words: str, last: str = "") -> set[str]:
    asked = ASK.format(script=script, words=words, last=last)
    done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, cwd=script.parent)
    assert done.stderr == ""
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "last", "expected"),
    [
        ("dla", "", set(COMMANDS)),
        ("dla", "pre", {"predict"}),
        ("dla data", "", {"check"}),
        ("dla data check", "--fo", {"--format"}),
        ("dla predict", "--max", {"--max-failed", "--max-megabytes", "--max-megapixels"}),
        ("dla predict --format", "", {"table", "json", "jsonl", "csv"}),
        ("dla export --to", "", {"onnx", "openvino", "pt2"}),
        ("dla train", "--optimizer.n", {"--optimizer.name", "--optimizer.nesterov"}),
        ("dla train --recipe", "fine", {name for name in shipped_recipes() if name.startswith("fine")}),
        ("dla predict --model", "dla60", {name for name in TABLE if name.startswith("dla60")}),
        ("dla info", "dla34", {"dla34", "dla34_half"}),
        ("dla predict --output", "dla.b", {"dla.bash"}),
    ],
)
def test_bash_offers(words: str, last: str, expected: set[str], script: Path) -> None:
    assert offered(script, words, last) == expected


def test_zsh_has_every_command_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "zsh"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("#compdef dla\n")
    assert all(f'"{name}:' in text or f"{name}:" in text for name in COMMANDS)
    assert "--max-failed" in text
    if zsh := shutil.which("zsh"):
        assert subprocess.run([zsh, "-n"], input=text, text=True, capture_output=True).stderr == ""


@pytest.mark.parametrize(
    ("words", "said"), [([], "SHELL is missing, as in: dla completion bash > "), (["fish"], "fish")]
)
def test_wrong_usage(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", *words]) == 2
    assert said in capsys.readouterr().err
