"""`dla convert`: what is written, what is said of it, what is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import get_args

import pytest
import torch
from huggingface_hub import constants

from dla.cli import main
from dla.options import ConvertFormat
from support.authors import AuthorsDLA
from support.released import put_in_cache


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder beside a cache with one network."""
    put_in_cache(tmp_path / "hub", "dla46x_c")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def test_the_file_that_other_code_asks_for(capsys: pytest.CaptureFixture[str]) -> None:
    out = Path("checkpoints/dla46x_c-d761bae7.pth")
    assert main(["convert", "dla46x_c", str(out), "--to", "authors"]) == 0
    said, notes = capsys.readouterr()
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    size = out.stat().st_size / 1e6
    assert said == f"{out}: weights of dla46x_c under the authors' names, {size:.1f} MB, SHA-256 {digest[:8]}...\n"
    assert notes == ""
    AuthorsDLA("dla46x_c").load_state_dict(torch.load(out, weights_only=True), strict=True)


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("m", "model folder of dla46x_c"),
        ("m.safetensors", "weights of dla46x_c under timm's names"),
        ("m.pth", "timm's"),
    ],
)
def test_the_ending_tells_the_form(out: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "dla46x_c", out]) == 0
    assert f"{out}: " in (shown := capsys.readouterr().out)
    assert said in shown
    assert (folder / out).is_dir() == ("." not in out)
    assert main(["info", out if "." in out else f"./{out}"]) == 0
    assert main(["convert", "dla46x_c", out]) == 2
    assert f"{out} exists already. Try: another name, or --force to replace it" in capsys.readouterr().err
    assert main(["convert", "dla46x_c", out, "--force"]) == 0


def test_notes_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "shipped:tiny200", "tiny.pth"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert err == "dla: tiny.pth holds only the weights. Class names, preprocessing and licence need --to folder.\n"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["shipped:tiny200", "a.pth", "--to", "authors"], 2, "the authors' code has no dla34_half. Allowed: dla34, "),
        (["dla46x_c", "a.onnx"], 2, "ends with .onnx. Allowed: .safetensors, .pth"),
        (["dla61", "a"], 2, 'no network is called "dla61"'),
        (["gone.pth", "a"], 3, "gone.pth does not exist"),
        (
            ["dla46x_c", "a.pth", "--architecture", "dla60"],
            3,
            "is a dla46x_c by its config.json, but dla60 was asked for",
        ),
        (["dla46x_c", "a.pth", "--to", "onnx"], 2, "to is onnx. Allowed: folder, timm, authors"),
        (["dla46x_c"], 2, "OUT is missing"),
        ([], 2, "MODEL and OUT are missing, as in: dla convert dla34 dla34-ba72cf86.pth --to authors\n"),
        (["dla46x_c", "models/v1.0"], 2, "ends with .0. Allowed: .safetensors, .pth, or --to folder"),
    ],
)
def test_refusals(words: list[str], code: int, said: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", *words]) == code
    out, err = capsys.readouterr()
    assert said in err
    assert (out, len(err.splitlines())) == ("", 1)
    assert list(folder.iterdir()) == []


def test_a_file_where_a_folder_should_be(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "afile").write_text("mine")
    for out in ("afile/x.pth", "afile/deeper/x.safetensors", "afile/x"):
        assert main(["convert", "dla46x_c", out]) == 2
        assert capsys.readouterr().err == f"dla: afile is a file, so nothing can be written to {out}\n"
    assert (folder / "afile").read_text() == "mine"


def test_a_home_that_is_nobodys_is_a_plain_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "dla46x_c", "~nosuch/x.pth"]) == 0
    assert (folder / "~nosuch" / "x.pth").is_file()


def test_a_variable_for_predict_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLA_MODEL", "dla34")
    monkeypatch.setenv("DLA_FORCE", "maybe")
    assert main(["convert", "dla46x_c", "v1.0", "--to", "folder"]) == 0
    assert (folder / "v1.0" / "config.json").is_file()


def test_help_names_each_form(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    out = capsys.readouterr().out
    assert all(f"  {form} " in out for form in get_args(ConvertFormat))
    assert max(map(len, out.splitlines())) <= 100
