"""A model is found, read and hashed once, whatever is made of it; what was opened before needs no torch."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import dla
from dla.exporting import verify
from dla.inference.traced_model import open_traced
from dla.models.build import build
from dla.weights import spec
from dla.weights.load import load_model
from dla.weights.model_folder import ModelConfig, write_folder
from dla.weights.spec import ModelFiles, open_files, resolve_source
from support.photos import COFFEE

pytestmark = pytest.mark.slow

CFG = {"input_size": [3, 64, 64]}


class Reads:
    """How often each file was opened, by its name, and data of the weights' `size` hashed, while it is on."""

    def __init__(self) -> None:
        self.on, self.opened, self.hashed, self.parsed, self.resolved = False, Counter[str](), 0, 0, 0
        self.size = 0

    def begin(self, size: int) -> None:
        self.__init__()  # type: ignore[misc]
        self.on, self.size = True, size


READS = Reads()


def _hook(event: str, args: tuple[Any, ...]) -> None:
    if READS.on and event == "open" and isinstance(args[0], str | bytes | os.PathLike):
        READS.opened[Path(os.fsdecode(args[0])).name] += 1


sys.addaudithook(_hook)  # for the rest of the process; it counts while READS is on


@pytest.fixture
def reads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reads]:
    sha256, parse, resolve = hashlib.sha256, spec.parse_config, spec.resolve_source

    def count_hashes(data: bytes = b"", **options: Any) -> Any:
        READS.hashed += len(data) == READS.size
        return sha256(data, **options)

    def count_parses(*args: Any) -> Any:
        READS.parsed += 1
        return parse(*args)

    def count_resolves(*args: Any) -> Any:
        READS.resolved += 1
        return resolve(*args)

    monkeypatch.setattr(hashlib, "sha256", count_hashes)
    monkeypatch.setattr(spec, "parse_config", count_parses)
    monkeypatch.setattr(spec, "resolve_source", count_resolves)
    READS.begin((folder / "model.safetensors").stat().st_size)
    yield READS
    READS.on = False


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    net = build("dla46x_c", num_classes=2)
    write_folder(tmp_path / "m", net.state_dict(), ModelConfig("dla46x_c", 2, pretrained_cfg=CFG))
    return tmp_path / "m"


def bare(folder: Path) -> Path:
    return Path(shutil.copy(folder / "model.safetensors", folder.with_name("x.safetensors")))


def check_once(reads: Reads, weights: str) -> None:
    reads.on = False
    assert (reads.opened[weights], reads.hashed, reads.resolved) == (1, 1, 1)
    assert reads.opened["config.json"] == reads.parsed == (weights == "model.safetensors")


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_loading_a_folder_reads_it_once(folder: Path, reads: Reads, engine: str) -> None:
    dla.load(str(folder), engine=engine)
    check_once(reads, "model.safetensors")


def test_loading_a_folder_that_is_known_reads_it_once(folder: Path, reads: Reads) -> None:
    dla.load(str(folder))
    reads.begin(reads.size)
    dla.load(str(folder))
    reads.parsed += 1  # what the cache says of the config holds, and config.json is read for its digest alone
    check_once(reads, "model.safetensors")


@pytest.mark.filterwarnings("ignore::dla.errors.GuessedWarning")
def test_loading_a_file_reads_it_once(folder: Path, reads: Reads) -> None:
    path = bare(folder)
    reads.begin(reads.size)
    dla.load(str(path))
    check_once(reads, "x.safetensors")


@pytest.mark.parametrize("known", [False, True])
def test_exporting_reads_a_model_once(
    folder: Path, reads: Reads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    monkeypatch.setattr(verify, "SAMPLE_IMAGES", 2)
    if known:
        dla.load(str(folder))
        reads.begin(reads.size)
    dla.export(str(folder), tmp_path / "out", "onnx")
    check_once(reads, "model.safetensors")


def test_info_with_engines_reads_a_model_once(folder: Path, reads: Reads) -> None:
    assert dla.info(str(folder), engines=True).engines is not None
    check_once(reads, "model.safetensors")


WITHOUT_TORCH = """
import sys, dla
classifier = dla.load(sys.argv[1], engine="openvino")
assert "torch" not in sys.modules, "torch was loaded"
print(classifier.origin, classifier.sha256, *classifier.notes)
print([c.probability for c in classifier.predict(sys.argv[2]).classes])
"""


@pytest.mark.filterwarnings("ignore::dla.errors.GuessedWarning")
def test_a_file_that_was_opened_before_needs_no_torch(folder: Path, tmp_path: Path) -> None:
    path = bare(folder)
    first = dla.load(str(path), engine="openvino")
    command = [sys.executable, "-c", WITHOUT_TORCH, str(path), str(COFFEE)]
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    said, probabilities = again.stdout.splitlines()
    assert said == f"{path} {first.sha256}"
    assert json.loads(probabilities) == [c.probability for c in first.predict(str(COFFEE)).classes]
    config = dla.load(str(path)).config
    assert config.to_json() == first.config.to_json()
    assert config.architecture == "dla46x_c"


@pytest.mark.filterwarnings("ignore::dla.errors.GuessedWarning")
def test_a_known_file_under_another_name_still_says_what_its_name_promises(folder: Path) -> None:
    plain = dla.load(str(bare(folder)))
    assert plain.notes == ()
    named = shutil.copy(folder / "model.safetensors", folder.with_name("dla46x_c-00000000.safetensors"))
    for _ in range(2):
        (note,) = dla.load(str(named)).notes
        assert "not with 00000000" in note


def test_a_promise_of_a_source_is_kept_where_its_files_are_known(folder: Path) -> None:
    dla.load(str(folder))
    source = resolve_source(str(folder))
    promised = ModelFiles("dla60", type(source)(source.kind, source.where, architecture="dla60"))
    for open_ in (open_traced, load_model):
        with pytest.raises(dla.DamagedError, match="is a dla46x_c by its config.json, but dla60 was asked for"):
            open_(promised)


def test_files_of_a_folder_under_other_names(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "last.safetensors")
    before = dla.load(str(folder))
    (folder / "zz.safetensors").write_bytes(b"")
    for _ in range(2):
        again = dla.load(str(folder))
        assert again.sha256 == before.sha256
        assert again.notes == (f"{folder} has several weight files; last.safetensors is used, not zz.safetensors.",)


@pytest.mark.filterwarnings("ignore::dla.errors.GuessedWarning")
def test_what_only_pytorch_reads_is_not_remembered(folder: Path, tmp_path: Path) -> None:
    state = load_model(str(folder)).model.state_dict()
    state = {name: t.to(torch.bfloat16) if t.is_floating_point() else t for name, t in state.items()}
    save_file(state, folder / "model.safetensors")
    torch.save(state, tmp_path / "x.pth")
    for source in (folder, tmp_path / "x.pth"):
        files = open_files(str(source))
        network, _ = open_traced(files)
        assert network.state["fc.weight"].dtype == "float32"
    assert not (tmp_path / "cache" / "steps").exists()
