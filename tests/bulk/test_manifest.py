"""Manifests: photos from everywhere, in order, with sizes and versions."""

from __future__ import annotations

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dla.bulk import manifest as manifests
from dla.bulk.manifest import Manifest, from_uri, plan, to_uri
from dla.errors import DamagedError, UnavailableError, UsageError
from dla.images.located import LocatedPhoto
from support.bulk import bucket, bulk, photo_folder


def planned(tmp_path: Path, *inputs: str | Path, **options: object) -> list[str]:
    output = str(tmp_path / "m.parquet")
    count, _ = plan(map(str, inputs), output, **options)  # type: ignore[arg-type]
    manifest = Manifest(output)
    assert len(manifest) == count
    return manifest.photos(0, count)


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    return photo_folder(tmp_path / "photos", 4, bad=0)


def test_a_folder_a_pattern_and_files_in_order(tmp_path: Path, photos: list[str]) -> None:
    found = planned(tmp_path, photos[3], tmp_path / "photos", f"{tmp_path}/photos/*2.jpg", "nope.jpg")
    assert found == [photos[3], *photos, photos[2], "nope.jpg"]
    about = os.stat(photos[3])
    place = found[0].place  # type: ignore[attr-defined]
    assert (place.size, place.version) == (about.st_size, str(about.st_mtime_ns))
    assert not isinstance(found[-1], LocatedPhoto)


def test_lists_and_a_column_of_a_table(tmp_path: Path, photos: list[str]) -> None:
    (tmp_path / "list.txt").write_text("\n".join([photos[1], "", "s3://bucket/unread.jpg"]) + "\n")
    pq.write_table(pa.table({"url": [photos[0], None], "id": [1, 2]}), tmp_path / "t.parquet")
    lines = io.BytesIO(f"{photos[2]}\n{photos[3]}\n".encode())
    found = planned(tmp_path, tmp_path / "list.txt", tmp_path / "t.parquet", "-", column="url", lines=lines)
    assert found == [photos[1], "s3://bucket/unread.jpg", photos[0], "", photos[2], photos[3]]


def test_a_column_of_photos(tmp_path: Path, photos: list[str]) -> None:
    table = pa.table({"image": [{"bytes": Path(p).read_bytes(), "path": "x"} for p in photos]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=3)
    found = planned(tmp_path, tmp_path / "t.parquet")
    assert found == [f"{tmp_path}/t.parquet#{n}" for n in range(4)]
    with pytest.raises(UsageError, match='no column "picture". It has: image. Name one with --column'):
        planned(tmp_path, tmp_path / "t.parquet", column="picture")


def test_archives_with_their_places(tmp_path: Path, photos: list[str]) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar, zipfile.ZipFile(tmp_path / "b.zip", "w") as zipped:
        for n, photo in enumerate(photos):
            tar.add(photo, f"./deep/{n}.jpg")
            zipped.write(photo, f"{n}.jpg", zipfile.ZIP_DEFLATED if n % 2 else zipfile.ZIP_STORED)
    found = planned(tmp_path, f"{tmp_path}/*.tar", tmp_path / "b.zip")
    assert found[:1] == [f"{tmp_path}/a.tar!./deep/0.jpg"]
    assert found[4:] == [f"{tmp_path}/b.zip!{n}.jpg" for n in range(4)]
    assert [p.place.packed is None for p in found[4:]] == [True, False, True, False]  # type: ignore[attr-defined]


def test_a_bucket_and_fsspec(tmp_path: Path, photos: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with bucket(monkeypatch) as store:
        for name in ("b/2.jpg", "a/1.jpg", "a/notes.md", "c.jpg"):
            store.write(f"s3://photos/{name}", Path(photos[0]).read_bytes())
        found = planned(tmp_path, "s3://photos/", "s3://photos/*/1.jpg", "s3://photos/c.jpg")
        assert found == [f"s3://photos/{n}" for n in ("a/1.jpg", "b/2.jpg", "c.jpg", "a/1.jpg", "c.jpg")]
        place = found[0].place  # type: ignore[attr-defined]
        assert place.size == os.path.getsize(photos[0])
        assert place.version.endswith("Z")
        # a manifest in a bucket, too
        assert bulk("plan", "s3://photos/", "-o", "s3://photos/m.parquet", "-q") == 0
        assert Manifest("s3://photos/m.parquet").photos(1, 2) == ["s3://photos/b/2.jpg"]
    import fsspec

    fsspec.filesystem("memory").pipe("/m/1.jpg", b"photo")
    assert planned(tmp_path, "fsspec:memory://m/") == ["fsspec:memory:///m/1.jpg"]


@pytest.mark.parametrize(
    "name", ["plain.jpg", "grün.jpg", os.fsdecode(b"b\xff%20.jpg"), "file:odd.jpg", "line\nbreak.jpg"]
)
def test_every_name_has_a_text_and_back(name: str) -> None:
    to_uri(name).encode()
    assert from_uri(to_uri(name)) == name


SECRETS = (
    "s3://AKID:secret@bucket/x.jpg",
    "https://host/x.jpg?X-Amz-Signature=abc",
    "s3://bucket/x.jpg?access_key=AKID&secret_key=s",
    "fsspec:https://host/x?sig=abc",
)


@pytest.mark.parametrize("uri", SECRETS)
def test_an_address_with_a_secret_is_refused_wherever_it_comes_from(
    uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.txt").write_text(f"s3://bucket/fine.jpg\n{uri}\n")
    pq.write_table(pa.table({"uri": [uri]}), tmp_path / "t.parquet")
    for given in (uri, tmp_path / "list.txt", tmp_path / "t.parquet"):
        if given == uri and uri.startswith("https"):
            continue  # no address that dla reads, but a path that does not exist
        assert bulk("plan", given, "-o", tmp_path / "m.parquet") == 2
        message = capsys.readouterr().err
        assert "credentials come from the environment" in message
        assert not any(word in message for word in ("AKID", "secret@", "abc", "=s"))
    assert bulk("plan", tmp_path, "-o", f"{uri.partition('x.jpg')[0]}m.parquet?sig=abc") == 2
    assert not (tmp_path / "m.parquet").exists()


def test_the_same_photos_give_the_same_bytes(tmp_path: Path, photos: list[str]) -> None:
    for name in ("1.parquet", "2.parquet"):
        plan([str(tmp_path / "photos")], str(tmp_path / name))
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()


def test_rows_across_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "_ROWS", 7)
    (tmp_path / "list.txt").write_text("".join(f"s3://b/{n}.jpg\n" for n in range(30)))
    plan([str(tmp_path / "list.txt")], str(tmp_path / "m.parquet"))
    manifest = Manifest(str(tmp_path / "m.parquet"))
    for start, stop in ((0, 3), (5, 16), (13, 14), (20, 30), (28, 40), (30, 40)):
        assert manifest.photos(start, stop) == [f"s3://b/{n}.jpg" for n in range(start, min(stop, 30))]


def test_no_photos_no_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert bulk("plan", tmp_path / "empty", "-o", tmp_path / "m.parquet") == 2
    assert "nothing to plan: no photos in" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["empty"]
    assert bulk("plan", tmp_path, "-o", tmp_path / "m.csv") == 2
    (tmp_path / "photos.tar.gz").touch()
    assert bulk("plan", tmp_path / "photos.tar.gz", "-o", tmp_path / "m.parquet") == 2
    assert "Uncompress it to a .tar" in capsys.readouterr().err


def test_what_is_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="does not exist"):
        len(Manifest(str(tmp_path / "m.parquet")))
    (tmp_path / "m.parquet").write_bytes(b"PAR1 not")
    with pytest.raises(DamagedError, match="not an intact manifest"):
        len(Manifest(str(tmp_path / "m.parquet")))
    pq.write_table(pa.table({"uri": ["x"]}), tmp_path / "m.parquet")
    with pytest.raises(UsageError, match="is no manifest. Make one: dla bulk plan"):
        len(Manifest(str(tmp_path / "m.parquet")))
