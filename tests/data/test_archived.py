"""Labelled photos in archives and stores: the same photos, classes, divisions and bits as in folders."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import dla
from dla.data.archived import address_of
from dla.data.dataset import find_sources, open_split, open_splits
from dla.errors import DamagedError, UnavailableError, UsageError
from dla.images.decode import read_photo
from dla.training.events import StepEvent, TrainerCallback
from support.bulk import bucket
from support.photos import crops, jpeg
from support.tiny import in_the_table

PHOTO = jpeg(Image.new("RGB", (8, 8)))


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 photos of two classes, divided, and the same packed."""
    base = tmp_path_factory.mktemp("data")
    names = [f"{s}/{c}/{n}.jpg" for s, count in (("train", 8), ("val", 4)) for c in ("a", "b") for n in range(count)]
    members = {name: jpeg(crop.resize((40, 40))) for name, crop in zip(names, crops(24), strict=True)}
    for name, data in members.items():
        (base / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (base / "photos" / name).write_bytes(data)
    tar_of(base / "photos.tar", {f"photos/{name}": data for name, data in members.items()})
    with zipfile.ZipFile(base / "photos.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return base


def content(data: Path | str, seed: int = 0) -> dict[str, Any]:
    """The classes, targets and pixels of both splits."""
    splits = open_splits(data, seed=seed)
    pixels = [[read_photo(p).image.tobytes() for p in split.photos] for split in (splits.train, splits.val)]
    return {
        "classes": splits.train.class_ids, "pixels": pixels,
        "targets": [split.targets_N.tolist() for split in (splits.train, splits.val)],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["photos.tar", "photos.zip"])
def test_an_archive_is_the_folder_that_is_packed_in_it(name: str, folder: Path) -> None:
    assert content(folder / name) == content(folder / "photos")


def test_without_splits_the_division_is_that_of_the_folder(folder: Path, tmp_path: Path) -> None:
    files = sorted((folder / "photos" / "train").rglob("*.jpg"))
    packed = {str(file.relative_to(folder / "photos" / "train")): file.read_bytes() for file in files}
    tar_of(tmp_path / "flowers.tar", packed)
    for seed in range(3):
        assert content(tmp_path / "flowers.tar", seed) == content(folder / "photos" / "train", seed)


def test_a_webdataset_in_shards(tmp_path: Path) -> None:
    def shard(first: int) -> dict[str, bytes]:
        members: dict[str, bytes] = {}
        for n in range(first, first + 3):
            label = f"{'ab'[n % 2]}\n".encode()
            members |= {f"{n:03}.jpg": PHOTO, f"{n:03}.cls": label, f"{n:03}.json": b"{}"}
        return members

    for number in range(2):
        tar_of(tmp_path / f"train-{number:06}.tar", shard(3 * number))
    tar_of(tmp_path / "val-000000.tar", shard(6) | {"x.jpg": PHOTO})
    splits = open_splits(tmp_path)
    assert splits.train.class_ids == ("a", "b")
    assert splits.train.targets_N.tolist() == [0, 1, 0, 1, 0, 1]
    assert splits.val.targets_N.tolist() == [0, 1, 0]
    assert splits.train.names[4] == f"{tmp_path}/train-000001.tar!004.jpg"
    assert "photos without a .cls file are not used (1), such as" in splits.notes[0]
    assert open_split(tmp_path).targets_N.tolist() == [0, 1, 0]
    (tmp_path / "more.tar").write_bytes((tmp_path / "val-000000.tar").read_bytes())
    with pytest.raises(UsageError, match=r"named like splits \(train, val\), and others are not"):
        open_splits(tmp_path)


def test_a_bucket(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with bucket(monkeypatch) as store:
        for file in (folder / "photos").rglob("*.jpg"):
            store.write(f"s3://photos/set/{file.relative_to(folder / 'photos')}", file.read_bytes())
        store.write("s3://photos/packed/photos.tar", (folder / "photos.tar").read_bytes())
        expected = content(folder / "photos")
        for address in (
            "s3://photos/set",
            Path("s3://photos/set/"),
            "s3://photos/packed/photos.tar",
            "s3://photos/packed/",
        ):
            assert content(address) == expected, address
        with pytest.raises(UnavailableError, match="s3://photos/none has no photos"):
            open_splits("s3://photos/none")
        assert dla.check_data("s3://photos/set").readable == 24


def test_addresses() -> None:
    assert address_of(Path("s3://b/x")) == address_of("s3://b/x") == "s3://b/x"
    assert address_of(Path("fsspec:memory://x")) == "fsspec:memory://x"
    assert address_of("photos/s3:/x") is None


@pytest.mark.parametrize(
    ("members", "error", "said"),
    [
        ({}, UnavailableError, "has no photos"),
        ({"a.txt": b"x"}, UnavailableError, "has no photos"),
        ({"1.jpg": PHOTO, "a/2.jpg": PHOTO}, UsageError, "photos in no folder of a class, such as .*!1.jpg"),
        ({"1.jpg": PHOTO, "1.cls": b"\xff"}, DamagedError, "cannot be read as the name of a class"),
        ({"1.jpg": PHOTO, "1.cls": b"  "}, DamagedError, "the class is empty"),
        ({"1.jpg": PHOTO, "1.cls": b"x" * 5000}, DamagedError, "cannot be read as the name of a class"),
    ],
)
def test_what_is_no_set_of_labelled_photos(
    members: dict[str, bytes], error: type[Exception], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        find_sources(tar_of(tmp_path / "a.tar", members))


def test_a_damaged_archive(tmp_path: Path) -> None:
    data = tar_of(tmp_path / "a.tar", {f"a/{n}.jpg": PHOTO * 20 for n in range(3)}).read_bytes()
    (tmp_path / "a.tar").write_bytes(data[:20_000])
    with pytest.raises(DamagedError, match="damaged or cut off after"):
        find_sources(tmp_path / "a.tar")


class StoppedError(Exception):
    pass


class Stop(TrainerCallback):
    def __init__(self, steps: int) -> None:
        self.left = steps

    def on_step(self, step: StepEvent) -> None:
        self.left -= 1
        if not self.left:
            raise StoppedError


@pytest.fixture
def network() -> Iterator[str]:
    with in_the_table() as name:
        yield name


@pytest.mark.slow
def test_a_run_on_an_archive_ends_in_the_bits_of_one_on_the_folder(folder: Path, tmp_path: Path, network: str) -> None:
    """Stopped and continued, with and without a cache of its photos."""
    settings = {"model": network, "pretrained": False, "epochs": 2, "batch_size": 4, "input.sizes": {0: 32},
                "input.val_size": 32}  # fmt: skip

    def train(data: Path, name: str, **options: Any) -> Path:
        return dla.train(data, "finetune-small", output=tmp_path / name, workers=0, settings=settings, save_every=0,
                         **options)  # fmt: skip

    whole = train(folder / "photos", "whole")
    with pytest.raises(StoppedError):
        train(folder / "photos.tar", "tar", callback=Stop(5))
    tar = train(folder / "photos.tar", "tar")
    cached = train(folder / "photos.zip", "zip", cache="disk")
    weights = (whole / "best" / "model.safetensors").read_bytes()
    assert (tar / "best" / "model.safetensors").read_bytes() == weights
    assert (cached / "best" / "model.safetensors").read_bytes() == weights
    names = [json.loads((run / "data.json").read_text())["train"]["photos"] for run in (whole, tar)]
    assert [f"photos/{name}" for name in names[0]] == names[1]
    found = [dla.validate(data, str(whole / "best")) for data in (folder / "photos", folder / "photos.tar")]
    assert found[0].evaluation.top1 == found[1].evaluation.top1  # type: ignore[union-attr]
