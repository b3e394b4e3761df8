"""Object stores: patience, refusals, secrets in addresses."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from dla.errors import ImageError, UsageError
from dla.images.decode import read_photo
from dla.images.find import PhotoFinder
from dla.storage import stores
from dla.storage.stores import Store, StoreError, check_no_secrets, open_store
from support.bulk import bucket
from support.photos import crops, jpeg

PHOTO = jpeg(crops(1)[0])


class Flaky:
    """A file system that fails a number of times before each answer."""

    type_name = "flaky"

    def __init__(self, failures: int, error: OSError) -> None:
        self.failures, self.error, self.calls = failures, error, 0

    def get_file_info(self, path: str) -> Any:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        raise FileNotFoundError(path)


BUSY = OSError("When reading information: AWS Error SLOW_DOWN during HeadObject operation: Please reduce your rate")


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time passes by sleeping alone."""
    pauses: list[float] = []
    monkeypatch.setattr(stores.time, "sleep", pauses.append)
    monkeypatch.setattr(stores.time, "monotonic", lambda: sum(pauses))
    return pauses


def test_a_busy_store_is_asked_again(slept: list[float]) -> None:
    files = Flaky(6, BUSY)
    with pytest.raises(FileNotFoundError):
        Store(files, "s3://").info("s3://b/1.jpg")
    assert files.calls == 7
    assert 3 < sum(slept) < 15


def test_a_store_that_stays_silent_is_an_error_in_time(slept: list[float]) -> None:
    with pytest.raises(StoreError, match="did not answer for 60 s .SLOW_DOWN during HeadObject operation"):
        Store(Flaky(10**6, BUSY), "s3://").info("s3://b/1.jpg")
    assert 45 < sum(slept) <= 60


@pytest.mark.parametrize(
    "error",
    [PermissionError("no"), OSError("AWS Error ACCESS_DENIED during HeadObject operation: No response body.")],
)
def test_a_refusal_is_not_asked_again(error: OSError, slept: list[float]) -> None:
    files = Flaky(10**6, error)
    with pytest.raises(StoreError, match="access is refused. Credentials come from the environment"):
        Store(files, "s3://").info("s3://b/1.jpg")
    assert files.calls == 1


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/a%20b/c@2x.jpg",
        "fsspec:hf://datasets/o/n@main/1.jpg",
        "gs://b/x?generation=3",
        "plain/a@b?c",
        "s3://b",
    ],
)
def test_addresses_without_secrets(uri: str) -> None:
    check_no_secrets(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://user@bucket/x", "s3://b/x?secret_key=1", "s3://b/x?AWSAccessKeyId=1", "https://h/x?sv=1&sig=2",
        "gs://b/x?X-Goog-Signature=1", "fsspec:https://u:p@h/x", "https://h/x?X-Amz-Credential=1", "s3://b/x?token=1",
    ],
)  # fmt: skip
def test_addresses_with_secrets(uri: str) -> None:
    with pytest.raises(UsageError, match="credentials come from the environment") as caught:
        check_no_secrets(uri)
    assert "=1" not in str(caught.value)
    assert "p@" not in str(caught.value)
    with pytest.raises(UsageError):
        open_store(uri)


@pytest.mark.parametrize("uri", ["fsspec:zip://a::s3://b/x", "fsspec:memory", "fsspec:nope://x", "ftp://x"])
def test_other_addresses_are_refused(uri: str) -> None:
    with pytest.raises(UsageError, match="Allowed: "):
        open_store(uri)


def test_photos_in_a_bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import tarfile

    (tmp_path / "1.jpg").write_bytes(PHOTO)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "1.jpg", "in/1.jpg")
    with bucket(monkeypatch) as store:
        store.write("s3://photos/1.jpg", PHOTO)
        store.write("s3://photos/a.tar", (tmp_path / "a.tar").read_bytes())
        pixels = read_photo(PHOTO).image.tobytes()
        for name in (
            "s3://photos/1.jpg",
            *PhotoFinder(["s3://photos/a.tar", "s3://photos/"]),
            "s3://photos/a.tar!in/1.jpg",
        ):
            assert read_photo(name).image.tobytes() == pixels, name
        for name, code in (("s3://photos/2.jpg", "not_found"), ("s3://nobucket/2.jpg", "not_found")):
            with pytest.raises(ImageError) as caught:
                read_photo(name)
            assert caught.value.code == code
        (listed,) = PhotoFinder(["s3://photos/*.jpg"])
        store.write("s3://photos/1.jpg", PHOTO + b"more")
        with pytest.raises(ImageError, match="changed or replaced"):
            read_photo(listed)
        with pytest.raises(StoreError, match="there is no such bucket"):
            store.write("s3://nobucket/1.jpg", PHOTO)
        store.remove("s3://photos/1.jpg")
        assert store.info("s3://photos/1.jpg") is None


def test_fsspec_reads_and_writes() -> None:
    store = open_store("fsspec:memory://stores/")
    store.write("fsspec:memory://stores/deep/1.jpg", PHOTO)
    assert read_photo("fsspec:memory://stores/deep/1.jpg").image
    (found,) = store.walk("fsspec:memory://stores")
    assert re.fullmatch(r"fsspec:memory:///?stores/deep/1.jpg", found.uri)
    assert read_photo(found.uri).image
    assert found.size == len(PHOTO)
