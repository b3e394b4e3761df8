"""What people see: no control characters on a terminal, no secrets, no words of the libraries below."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dla
from dla.cli import main
from dla.errors import DlaError, ImageError, UnknownNameError, printable, without_secrets
from support.photos import ROCKET

SECRET = "s3cretS3cret"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"http://me:{SECRET}@hub:8080/x is away", "http://***@hub:8080/x is away"),
        (f"https://{SECRET}@hub/x", "https://***@hub/x"),
        (f"https://cdn/x?X-Amz-Signature={SECRET}&y=1 broke off", "https://cdn/x?*** broke off"),
        (f"Illegal header value b'Bearer hf_{SECRET}'", "Illegal header value b'Bearer ***'"),
        (f"hf_{SECRET} is no token", "hf_*** is no token"),
        (f"--token={SECRET}", "--token=***"),
    ],
)
def test_secrets_are_left_out_of_every_message(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
    for error in (DlaError(text), dla.UsageError(text), ImageError("code", text), UnknownNameError("x", text, [])):
        assert SECRET not in str(error)


@pytest.mark.parametrize(
    "text",
    ["hf-hub:timm/dla60@main", "set HF_TOKEN or HF_HUB_OFFLINE", "hf_hub_filename", "the hub (http://127.0.0.1:9)"],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert without_secrets(text) == text


def test_a_password_in_a_model_s_name_is_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(ROCKET), "--model", f"https://me:{SECRET}@host/w.pt?key={SECRET}"]) in (2, 3)
    said = capsys.readouterr()
    assert SECRET not in said.out + said.err
    assert "https://***@host/w.pt" in said.err


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", r"a\u001b[31mb"),
        ("\r\n\t\x07\x7f\x9b", r"\u000d\u000a\u0009\u0007\u007f\u009b"),
        ("a\u202eb\u2028", r"a\u202eb\u2028"),
        ("plain é 字 🐈 e\u0301", "plain é 字 🐈 e\u0301"),
    ],
)
def test_control_characters_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def on_a_terminal(*args: str) -> bytes:
    """What a terminal receives on standard output and standard error."""
    terminal, end = pty.openpty()
    with subprocess.Popen([sys.executable, "-m", "dla", *args], stdin=end, stdout=end, stderr=end) as process:
        os.close(end)
        shown = b""
        while True:
            try:
                if not (piece := os.read(terminal, 65536)):
                    break
            except OSError:  # EIO: all ends are closed
                break
            shown += piece
    os.close(terminal)
    assert process.returncode in (0, 1, 2, 3)
    return shown


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["table", "csv", "jsonl"])
def test_names_cannot_drive_a_terminal(tmp_path: Path, format_: str) -> None:
    good, bad = tmp_path / "a\x1b]0;title\x07\x9b2J.jpg", tmp_path / "b\x1b[2J\r.jpg"
    good.write_bytes(ROCKET.read_bytes())
    bad.write_bytes(b"no photo")
    shown = on_a_terminal("predict", str(good), str(bad), "--format", format_)
    assert b"\\u001b]0;title\\u0007" in shown
    assert not re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\xc2[\x80-\x9f]|\r(?!\n)", shown)


DAMAGED_TIFFS = r"""
import io, random, sys
from PIL import Image
from dla.cli import main
image = Image.effect_noise((64, 64), 40).convert("RGB")
generator, paths = random.Random(0), []
for name in ("tiff_lzw", "jpeg", "tiff_deflate", "group4"):
    file = io.BytesIO()
    (image.convert("1") if name == "group4" else image).save(file, "TIFF", compression=name)
    for turn in range(20):
        data = bytearray(file.getvalue())
        for _ in range(20):
            data[generator.randrange(8, len(data))] = generator.randrange(256)
        paths.append(f"{sys.argv[1]}/{name}-{turn}.tif")
        with open(paths[-1], "wb") as out:
            out.write(data)
sys.exit(main(["predict", "--format", "jsonl", *paths]))
"""


@pytest.mark.slow
def test_no_library_below_writes_to_standard_error(tmp_path: Path) -> None:
    """libtiff does so past Python; a damaged file has it say "Using code not yet in table." or "JPEGLib: ..."."""
    done = subprocess.run([sys.executable, "-c", DAMAGED_TIFFS, str(tmp_path)], capture_output=True, text=True)
    lines = done.stderr.splitlines()
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 80
    ours = ("dla: ", "80 photos: ", "the built-in network")
    assert [line for line in lines if not line.startswith(ours)] == []
    assert not re.search(r"JPEGLib|LZWDecode|Fax|_TIFF|Pillow|numpy|Traceback", done.stderr + done.stdout)
