"""A run that many tests read: small photos, two of them damaged, and their manifest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import dla
from dla.bulk.manifest import plan
from dla.cli import main
from support.bulk import ROWS, Planned, bulk, files_in, own_process, photo_folder


@pytest.fixture(scope="session", autouse=True)
def _loaded_once() -> Iterator[None]:
    """Load a network once for all tests: most run one on the same few photos."""
    loaded: dict[str, Any] = {}

    def load(*names: str, **options: Any) -> Any:
        key = repr((names, sorted(options.items())))
        if key not in loaded:
            loaded[key] = dla.load(*names, **options)
        return loaded[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dla.bulk.shard.load", load)
        yield


@pytest.fixture(scope="session")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Planned:
    folder = tmp_path_factory.mktemp("bulk")
    photos = photo_folder(folder / "photos", 17)
    manifest = str(folder / "m.parquet")
    plan([str(folder / "photos")], manifest)
    # in batches of a shard each, on one thread, as the shards are computed
    assert main(["predict", str(folder / "photos"), "-o", str(folder / "ref.jsonl"), "--batch-size", str(ROWS),
                 "--threads", "1", "--engine", "openvino", "-q"]) == 1  # fmt: skip
    with pytest.MonkeyPatch.context() as patch, own_process(patch):
        assert bulk("predict", manifest, "-o", folder / "out", "--rows-per-shard", ROWS, "-q") == 1
    return Planned(folder, photos, manifest, (folder / "ref.jsonl").read_bytes(), files_in(folder / "out"))
