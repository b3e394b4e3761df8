"""Photos by row: whatever the cache, the same pixels."""

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dla.data import photo_cache as module
from dla.data.dataset import Split
from dla.data.photo_cache import Budget, PhotoStore
from dla.errors import ImageError, UsageError
from support.photos import crops, jpeg
from support.progress import Recorder


@pytest.fixture
def split(tmp_path: Path) -> Split:
    """Files and encoded photos; the last one is turned by its EXIF block."""
    photos: list[str | bytes] = [jpeg(c) for c in crops(5)]
    for i in (1, 3):
        (tmp_path / f"{i}.jpg").write_bytes(bytes(photos[i]))
        photos[i] = str(tmp_path / f"{i}.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    photos.append(jpeg(crops(1)[0], exif=exif))
    return Split(photos, np.zeros(6, np.int64), ("a",), [f"photo {i}" for i in range(6)])


def stores(split: Split, folder: Path, **options: Any) -> list[PhotoStore]:
    return [
        PhotoStore(split, **options),
        PhotoStore(split, "ram", **options),
        PhotoStore(split, "disk", folder / "cache", **options),
    ]


def pixels(store: PhotoStore) -> list[bytes]:
    images = [store[row] for row in range(len(store))]
    assert all(image.mode == "RGB" for image in images)
    return [bytes(f"{image.size}", "ascii") + image.tobytes() for image in images]


@pytest.mark.parametrize("short_side", [None, 50, 90])
def test_every_cache_gives_the_same_pixels_again_and_again(
    split: Split, tmp_path: Path, short_side: int | None
) -> None:
    first, *others = stores(split, tmp_path, short_side=short_side)
    wanted = pixels(first)
    assert [pixels(store) for store in (first, *others, *others)] == [wanted] * 5
    assert pixels(PhotoStore(split, "disk", tmp_path / "cache", short_side=short_side)) == wanted


def test_photos_are_upright_and_made_small_in_shape(split: Split) -> None:
    stored = Image.open(io.BytesIO(split.photos[5]))
    assert PhotoStore(split)[5].size == stored.size[::-1]
    for full, small in ((PhotoStore(split)[i], PhotoStore(split, short_side=40)[i]) for i in range(6)):
        assert min(small.size) == 40
        assert abs(max(small.size) - 40 * max(full.size) / min(full.size)) <= 0.5


def test_what_is_kept_is_not_decoded_again(split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, *keeping = stores(split, tmp_path)
    before = [pixels(store) for store in keeping]
    monkeypatch.setattr(module, "read_photo", None)
    assert [pixels(store) for store in keeping] == before
    with pytest.raises(TypeError):
        plain[0]


def test_memory_has_an_end(split: Split) -> None:
    sizes = [3 * image.width * image.height for image in (PhotoStore(split)[i] for i in range(6))]
    store = PhotoStore(split, "ram", budget=Budget(sizes[0] + sizes[1]))
    wanted = pixels(PhotoStore(split))
    assert pixels(store) == pixels(store) == wanted
    assert sum(a.nbytes for a in store._kept.values()) == sizes[0] + sizes[1]


def test_a_changed_file_is_another_photo(split: Split, tmp_path: Path) -> None:
    old = PhotoStore(split, "disk", tmp_path / "cache")[1]
    Path(str(split.photos[1])).write_bytes(jpeg(crops(9)[8]))
    new = PhotoStore(split, "disk", tmp_path / "cache")[1]
    assert new.tobytes() == PhotoStore(split)[1].tobytes() != old.tobytes()


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "gone"])
def test_damaged_files_are_made_again(split: Split, tmp_path: Path, damage: str) -> None:
    wanted = pixels(PhotoStore(split, "disk", tmp_path / "cache"))
    files = sorted((tmp_path / "cache").rglob("*.rgb"))
    good = [path.read_bytes() for path in files]
    assert len(files) == 6
    for path, data in zip(files, good, strict=True):
        match damage:
            case "cut":
                path.write_bytes(data[: len(data) // 2])
            case "flipped":
                path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
            case "empty":
                path.write_bytes(b"")
            case "gone":
                path.unlink()
    assert pixels(PhotoStore(split, "disk", tmp_path / "cache")) == wanted
    assert [path.read_bytes() for path in files] == good
    assert sorted(p for p in (tmp_path / "cache").rglob("*") if p.is_file()) == files


def test_a_folder_that_cannot_be_written_is_said_once(split: Split, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    progress = Recorder()
    store = PhotoStore(split, "disk", tmp_path / "file", progress=progress)
    assert pixels(store) == pixels(PhotoStore(split))
    assert len(progress.said) == 1
    assert progress.said[0].startswith(f"{tmp_path / 'file'}: photos cannot be cached there (")


def test_threads_share_a_store(split: Split, tmp_path: Path) -> None:
    wanted = pixels(PhotoStore(split))
    for store in stores(split, tmp_path):
        with ThreadPoolExecutor(8) as pool:
            rows = [i % 6 for i in range(120)]
            found = list(pool.map(lambda row, store=store: store[row], rows))
        assert [bytes(f"{i.size}", "ascii") + i.tobytes() for i in found] == [wanted[row] for row in rows]


def test_what_cannot_be_read_is_named(split: Split, tmp_path: Path) -> None:
    broken = Split([b"", str(tmp_path / "gone.jpg")], np.zeros(2, np.int64), ("a",), ["x.parquet#0", "gone"])
    for store in stores(broken, tmp_path):
        with pytest.raises(ImageError, match="x.parquet#0: the file is empty"):
            store[0]
        with pytest.raises(ImageError, match="gone: there is no such file"):
            store[1]


def test_wrong_options(split: Split, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='cache is "disc". Allowed: none, ram, disk'):
        PhotoStore(split, "disc")  # type: ignore[arg-type]
    for options in ({"cache": "disk"}, {"cache": "ram", "folder": tmp_path}):
        with pytest.raises(UsageError, match='Give a folder for "disk", and only for it'):
            PhotoStore(split, **options)
