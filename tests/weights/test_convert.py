"""What is converted means the same wherever it goes: to timm, to the authors' code, and back."""

from __future__ import annotations

import dataclasses
import resource
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import dla
from dla.errors import DamagedError, DlaError, UsageError
from dla.models.build import build
from dla.weights.convert import convert
from dla.weights.keys import unused_projections
from dla.weights.load import load_model
from dla.weights.model_folder import ModelConfig, read_config, write_folder
from support.authors import AuthorsDLA
from support.oracle import randomise, relative, timm

pytestmark = pytest.mark.slow


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def logits(model: nn.Module, side: int = 64) -> Tensor:
    x_N3HW = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return model.eval()(x_N3HW)


@pytest.fixture(scope="module")
def small() -> nn.Module:
    """One of the twelve networks, with statistics that are not those of a fresh one."""
    torch.manual_seed(0)
    model = build("dla46x_c", num_classes=4)
    randomise(model)
    return model


@pytest.fixture(scope="module")
def folder(small: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("convert") / "mine"
    cfg = {key: small.pretrained_cfg[key] for key in ("mean", "std", "crop_pct", "interpolation")}
    config = ModelConfig("dla46x_c", 4, tuple("abcd"), pretrained_cfg={"input_size": (3, 96, 96), **cfg})
    write_folder(path, small.state_dict(), config)
    return path


@pytest.mark.filterwarnings("ignore::dla.errors.GuessedWarning")
def test_timm_reads_the_folder(small: nn.Module, folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "weights.pth"
    torch.save({"state_dict": small.state_dict()}, bare)
    for source in (folder, bare):
        made = convert(str(source), tmp_path / source.stem)
        assert (made.format, made.architecture) == ("folder", "dla46x_c")
        theirs = timm.create_model(f"local-dir:{made.path}", pretrained=True)
        torch.testing.assert_close(logits(theirs), logits(small), rtol=0, atol=1e-5)
        assert relative(logits(theirs), logits(small)) < 1e-5
    assert timm.create_model(f"local-dir:{tmp_path / 'mine'}", pretrained=True).pretrained_cfg["input_size"] == (
        3, 96, 96,
    )  # fmt: skip


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_timm_reads_the_bare_file(ending: str, small: nn.Module, folder: Path, tmp_path: Path) -> None:
    made = convert(str(folder), tmp_path / f"bare{ending}")
    assert made.format == "timm"
    assert "Class names" in made.notes[-1]
    theirs = timm.create_model("dla46x_c", num_classes=4, checkpoint_path=str(made.path))
    assert list(dla.create_model("dla46x_c").state_dict()) == list(theirs.state_dict())
    assert relative(logits(theirs), logits(small)) < 1e-5


def test_there_and_back_is_the_same(folder: Path, tmp_path: Path) -> None:
    first = convert(str(folder), tmp_path / "copy")
    assert read_config(first.path).label_names == tuple("abcd")
    bare = convert(str(folder), tmp_path / "b.pth")
    authors = convert(str(bare.path), tmp_path / "a.pth", to="authors")
    again = convert(str(authors.path), tmp_path / "c.safetensors")
    assert again.sha256 == convert(str(folder), tmp_path / "d.safetensors").sha256 == first.sha256
    assert "projections that no output depends on" in again.notes[0]


@pytest.mark.parametrize("name", ["dla34", "dla60", "dla102", "dla169"])
def test_the_authors_code_loads_it_strictly(name: str, tmp_path: Path) -> None:
    ours = build(name)
    randomise(ours)
    source, out = tmp_path / "ours.safetensors", tmp_path / f"{name}-0a1b2c3d.pth"
    save_file(ours.state_dict(), source)
    made = convert(str(source), out, to="authors")
    assert (made.architecture, made.size_bytes) == (name, out.stat().st_size)
    assert not zipfile.is_zipfile(out), "PyTorch before 1.6 reads no zip files"
    state = torch.load(out, weights_only=True)
    theirs = AuthorsDLA(name, pool=2)
    assert list(state) == list(theirs.state_dict())
    theirs.load_state_dict(state, strict=True)
    dead, mine = unused_projections(ours), ours.state_dict()
    assert set(state) == set(mine) | set(dead)
    for key, tensor in mine.items():
        assert torch.equal(state[key], tensor), key
        assert state[key].dtype == tensor.dtype
    assert relative(logits(theirs), logits(ours)) < 1e-5


def test_networks_that_the_authors_do_not_have(folder: Path, tmp_path: Path) -> None:
    for name in ("dla60_res2net", "dla60_res2next", "dla34_half"):
        source = tmp_path / f"{name}.safetensors"
        save_file(build(name, num_classes=2).state_dict(), source)
        with pytest.raises(UsageError, match=f"the authors' code has no {name}. Allowed: dla34, dla46_c, "):
            convert(str(source), tmp_path / "a.pth", to="authors")
    config = read_config(folder)
    for odd in ({"output_stride": 8}, {"global_pool": "max"}):
        write_folder(tmp_path / "odd", load_model(str(folder)).model.state_dict(),
                     dataclasses.replace(config, model_args=odd))  # fmt: skip
        with pytest.raises(UsageError, match=r"the authors' code has 3 channels, output stride 32, average pooling"):
            convert(str(tmp_path / "odd"), tmp_path / "a.pth", to="authors")
    assert not (tmp_path / "a.pth").exists()


def test_what_is_there_stays_unless_forced(folder: Path, tmp_path: Path) -> None:
    file, full, empty = tmp_path / "b.pth", tmp_path / "full", tmp_path / "empty"
    file.write_text("mine")
    empty.mkdir()
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    for out in (file, full):
        with pytest.raises(UsageError, match="exists already"):
            convert(str(folder), out)
    with pytest.raises(UsageError, match="not a model folder, so it was not changed"):
        convert(str(folder), full, force=True)
    assert [p.name for p in full.iterdir()] == ["notes.txt"]
    convert(str(folder), empty)
    convert(str(folder), empty, force=True)
    convert(str(folder), file, force=True)
    assert load_model(str(file)).config.architecture == "dla46x_c"


def test_a_disk_that_is_full_changes_nothing(folder: Path, tmp_path: Path) -> None:
    for out in ("model", "b.pth", "b.safetensors"):
        small = convert(str(folder), tmp_path / out)
        before = small.sha256
        with files_up_to(100_000), pytest.raises(DlaError, match="cannot be written: File too large"):
            convert(str(folder), tmp_path / out, force=True)
        assert convert(str(tmp_path / out), tmp_path / f"again-{out}", to=small.format).sha256 == before
        with files_up_to(100_000), pytest.raises(DlaError, match="cannot be written"):
            convert(str(folder), tmp_path / f"new-{out}")
    assert not list(tmp_path.glob("new-*"))
    assert not list(tmp_path.rglob("*.part*"))


@pytest.mark.parametrize(
    ("out", "to", "said"),
    [
        ("a.onnx", None, r"ends with \.onnx. Allowed: \.safetensors, \.pth, or --to folder"),
        ("a", "onnx", "to is 'onnx'. Allowed: folder, timm, authors"),
        ("a", "timm", r"must be a file that ends with \.safetensors or \.pth, for --to timm"),
        ("a.safetensors", "authors", r"must be a file that ends with \.pth, for --to authors"),
        ("folder.pth", "timm", "is a folder; --to timm writes a file"),
    ],
)
def test_names_that_do_not_fit(out: str, to: str | None, said: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(UsageError, match=said):
        convert(str(folder), tmp_path / out, to=to)


@pytest.mark.filterwarnings("ignore::dla.errors.GuessedWarning")
def test_the_network_of_a_bare_file_is_checked(small: nn.Module, folder: Path, tmp_path: Path) -> None:
    bare = convert(str(folder), tmp_path / "b.pth")
    with pytest.raises(DamagedError, match="These are the weights of dla46x_c"):
        convert(str(bare.path), tmp_path / "m", architecture="dla60")
    made = convert(str(bare.path), tmp_path / "deep" / "er" / "m", architecture="dla46x_c")
    assert relative(logits(load_model(str(made.path)).model), logits(small)) < 1e-5
