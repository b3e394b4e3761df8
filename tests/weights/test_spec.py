"""Every way to name a model, and every way to get it wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from dla.errors import UnavailableError, UnknownNameError, UsageError
from dla.models.registry import TABLE
from dla.weights import spec
from dla.weights.spec import ModelSource, resolve_source


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model folder, files, and names that could mislead."""
    monkeypatch.chdir(tmp_path)
    for folder in ("model", "dla60", "hf-hub", "a b"):
        (tmp_path / folder).mkdir()
    for file in ("w.safetensors", "w.pth", "dla34.pth", "notes.txt"):
        (tmp_path / file).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("dla60", ModelSource("hub", "timm/dla60.in1k", architecture="dla60")),
        ("dla60.in1k", ModelSource("hub", "timm/dla60.in1k", architecture="dla60")),
        ("./dla60", ModelSource("folder", "dla60")),
        ("hf-hub:me/mine", ModelSource("hub", "me/mine")),
        ("hf_hub:me/mine", ModelSource("hub", "me/mine")),
        ("HF-Hub:Me/Mine-1.0@refs/pr/1", ModelSource("hub", "Me/Mine-1.0", "refs/pr/1")),
        ("local-dir:model", ModelSource("folder", "model")),
        ("Local-Dir:a b", ModelSource("folder", "a b")),
        ("model", ModelSource("folder", "model")),
        ("model/", ModelSource("folder", "model")),
        ("w.safetensors", ModelSource("file", "w.safetensors")),
        ("./w.pth", ModelSource("file", "w.pth")),
        ("dla34.pth", ModelSource("file", "dla34.pth")),
        ("notes.txt", ModelSource("file", "notes.txt")),  # reading it says what is wrong with it
    ],
)
def test_sources(text: str, source: ModelSource) -> None:
    assert resolve_source(text) == source


def test_every_released_network_has_its_repository() -> None:
    released = [name for name, row in TABLE.items() if row.tag]
    assert len(released) == 12
    assert [resolve_source(name).where for name in released] == [f"timm/{name}.in1k" for name in released]


def test_home(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    assert (
        resolve_source("~/model") == resolve_source("local-dir:~/model") == ModelSource("folder", str(here / "model"))
    )


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("dla61", UnknownNameError, 'no network is called "dla61". Nearest: dla60, '),
        ("dla61.in1k", UnknownNameError, 'no network is called "dla61". Nearest: dla60, '),
        ("", UnknownNameError, 'no network is called "". All: dla models'),
        ("resnet50", UnknownNameError, 'no network is called "resnet50". All: dla models'),
        ("dla60.in21k", UnknownNameError, 'is called "dla60.in21k". Nearest: dla60.in1k.'),
        ("dla34_half", UsageError, "has no released weights. Try: the path of a folder or file with weights."),
        (
            "me/mine",
            UnavailableError,
            "me/mine does not exist. On the hub: hf-hub:me/mine",
        ),
        ("hub:mine", UsageError, '"hub:mine" does not exist. On the hub: hf-hub:OWNER/NAME; a folder: local-dir:PATH'),
        ("C:\\mine", UnavailableError, "C:\\mine does not exist."),
        ("/models/mine", UnavailableError, "/models/mine does not exist."),
        ("./mine", UnavailableError, "./mine does not exist."),
        (".mine", UnavailableError, ".mine does not exist."),
        ("gone/w.pth", UnavailableError, "gone/w.pth does not exist."),
        ("dla60.safetensors", UnavailableError, "dla60.safetensors does not exist."),
        ("local-dir:gone", UnavailableError, "gone is not a folder. A model folder holds config.json and "),
        ("local-dir:w.pth", UnavailableError, "w.pth is not a folder."),
        ("local-dir:", UsageError, '"local-dir:" names no folder. Allowed: local-dir:PATH'),
        ("~nosuch/x.pth", UnavailableError, "~nosuch/x.pth does not exist."),
        ("~nosuch/x", UnavailableError, "~nosuch/x does not exist."),
        ("local-dir:~nosuch/x", UnavailableError, "~nosuch/x is not a folder."),
        ("d" * 300, UnknownNameError, f'no network is called "{"d" * 300}".'),
        (f"local-dir:{'d' * 300}", UnavailableError, "is not a folder."),
        ("hf-hub:mine", UsageError, 'is not a repository. Allowed: hf-hub:owner/name or hf-hub:owner/name@revision'),
        ("hf-hub:", UsageError, '"hf-hub:" is not a repository.'),
        ("hf-hub:a/b/c", UsageError, '"hf-hub:a/b/c" is not a repository.'),
        ("hf-hub:a/b@", UsageError, '"hf-hub:a/b@" is not a repository.'),
        ("hf-hub:a/b@../../x", UsageError, '"hf-hub:a/b@../../x" is not a repository.'),
        ("hf-hub:../b", UsageError, '"hf-hub:../b" is not a repository.'),
        ("shipped:..", UnknownNameError, 'no shipped network is called "..".'),
        ("shipped:", UnknownNameError, 'no shipped network is called "".'),
    ],
)  # fmt: skip
def test_wrong_sources(text: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error) as raised:
        resolve_source(text)
    assert said in str(raised.value)


def test_shipped(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "shipped" / "tiny").mkdir(parents=True)
    (here / "shipped" / "tiny" / "config.json").touch()
    (here / "shipped" / "empty").mkdir()
    monkeypatch.setattr(spec, "files", lambda package: here)
    assert resolve_source("shipped:tiny") == ModelSource("folder", str(here / "shipped" / "tiny"), name="shipped:tiny")
    with pytest.raises(UnknownNameError, match='no shipped network is called "tinny". Nearest: tiny.'):
        resolve_source("shipped:tinny")
    with pytest.raises(UnknownNameError, match='is called "empty"'):
        resolve_source("shipped:empty")
