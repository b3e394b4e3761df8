"""Files of every format, and everything that a file of weights can be instead."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dla.errors import DamagedError, UnavailableError, UsageError
from dla.weights.state_files import parse_weights, read_state

STATE = {"a.weight": torch.arange(300.0).reshape(3, 100), "a.count": torch.tensor(7), "b": torch.ones(4).half()}


def zipped(what: Any) -> bytes:
    file = io.BytesIO()
    torch.save(what, file)
    return file.getvalue()


def legacy(what: Any) -> bytes:
    """The format before PyTorch 1.6, in which the authors' files are."""
    file = io.BytesIO()
    torch.save(what, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def safe(what: Any) -> bytes:
    return safetensors.torch.save(what)


FORMATS: list[tuple[str, Callable[[Any], bytes]]] = [
    ("w.safetensors", safe),
    ("w.pth", zipped),
    ("w.pth", legacy),
    ("W.PT", zipped),
    ("pytorch_model.bin", zipped),
    ("model_best.pth.tar", legacy),
]


def check_same(state: dict[str, Tensor]) -> None:
    assert state.keys() == STATE.keys()
    for name, tensor in STATE.items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "write"), FORMATS)
def test_formats(tmp_path: Path, name: str, write: Callable[[Any], bytes]) -> None:
    (tmp_path / name).write_bytes(write(STATE))
    check_same(read_state(tmp_path / name))


@pytest.mark.parametrize("container", ["state_dict", "model", "model_ema", "state_dict_ema"])
def test_training_checkpoints(container: str) -> None:
    checkpoint = {
        "epoch": 9,
        "arch": "dla34",
        "args": argparse.Namespace(lr=0.1),
        container: STATE,
        "loss": [1.5, None],
    }
    for write in (zipped, legacy):
        read = parse_weights(write(checkpoint), "last.pth.tar")
        check_same(read.state)
        averaged = (f"last.pth.tar is a training checkpoint; its averaged weights ({container}) are used.",)
        assert read.notes == (averaged if "ema" in container else ())


def test_averaged_weights_come_first() -> None:
    other = {name: tensor + 1 for name, tensor in STATE.items()}
    check_same(parse_weights(zipped({"state_dict": other, "state_dict_ema": STATE}), "last.pth").state)


def test_the_digest_in_a_name() -> None:
    data = safe(STATE)
    read = parse_weights(data, "dla34-ba72cf86.safetensors")
    begins = read.digest[:8]
    note = f"is not the published file: its SHA-256 begins with {begins}, not with ba72cf86."
    assert read.notes == (f"dla34-ba72cf86.safetensors {note}",)
    assert parse_weights(data, f"dla34-{begins}.safetensors").notes == ()
    assert parse_weights(data, "dla34-mine.safetensors").notes == ()


HTML = b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
INSTEAD = [
    (b"", "is empty (0 bytes). Try: download or copy it again."),
    (HTML, "is a web page, not weights. Try: download it again and check the address."),
    (POINTER, "is a git-lfs pointer, not the weights themselves. Try: git lfs pull."),
    (b"some\nnotes, no weights\n" * 9, "is a text file, not weights."),
]


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize(("data", "said"), INSTEAD)
def test_something_else(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DamagedError) as raised:
        read_state(tmp_path / name)
    assert str(raised.value) == f"{tmp_path / name} {said}"


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("w.safetensors", zipped(STATE), "w.safetensors is a PyTorch file, not safetensors. Try: name it .pth."),
        ("w.safetensors", legacy(STATE), "w.safetensors is a PyTorch file, not safetensors. Try: name it .pth."),
        ("w.pth", safe(STATE), "w.pth is a safetensors file, not PyTorch's. Try: name it .safetensors."),
        ("w.pth", zipped(STATE["b"]), "w.pth does not hold tensors by name, but a value of the type Tensor."),
        ("w.pth", zipped([STATE]), "w.pth does not hold tensors by name, but a value of the type list."),
        ("w.pth", zipped({"epoch": 3}), "w.pth: epoch is not a tensor by name, but of the type int."),
        ("w.pth", zipped({3: STATE["b"]}), "w.pth: 3 is not a tensor by name, but of the type Tensor."),
        ("w.pth", bytes(1000), "w.pth is truncated, damaged or not a PyTorch file."),
    ],
)
def test_not_what_the_name_says(name: str, data: bytes, said: str) -> None:
    with pytest.raises(DamagedError) as raised:
        parse_weights(data, name)
    assert str(raised.value) == said


def test_other_extensions() -> None:
    with pytest.raises(UsageError, match=r"w\.onnx is not a weight file\. Allowed: \.safetensors, \.pth, \.pt, \.bin"):
        parse_weights(b"", "w.onnx")


def test_other_extensions_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "film.mp4").open("wb") as film:
        film.truncate(2**40)  # a terabyte, sparse
    with pytest.raises(UsageError, match=r"film\.mp4 is not a weight file\."):
        read_state(tmp_path / "film.mp4")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"gone\.pth does not exist\.$"):
        read_state(tmp_path / "gone.pth")
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(UnavailableError, match=r"folder\.pth cannot be read: Is a directory\.$"):
        read_state(tmp_path / "folder.pth")


@pytest.mark.parametrize(("name", "write"), FORMATS[:3])
@given(data=st.data())
def test_truncated_anywhere(name: str, write: Callable[[Any], bytes], data: st.DataObject) -> None:
    whole = write(STATE)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(DamagedError, match=f"^{name} is (empty|truncated|a text file)"):
        parse_weights(whole[:cut], name)


@pytest.mark.parametrize(("name", "write"), FORMATS[:3])
@given(data=st.data())
def test_altered_anywhere(name: str, write: Callable[[Any], bytes], data: st.DataObject) -> None:
    """One wrong byte either changes a value, or is refused in words of ours; nothing else happens."""
    whole = bytearray(write(STATE))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        read = parse_weights(bytes(whole), name)
    except UnavailableError as error:
        said = str(error)
    else:
        said = f"{name} holds tensors" * all(isinstance(tensor, Tensor) for tensor in read.state.values())
    assert said.startswith(name)
