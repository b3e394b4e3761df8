"""Opening sets of photos: classes are matched by name."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dla.data.open import open_split, open_splits
from dla.errors import UnavailableError, UsageError
from photos import crops, jpeg


def fill(folder: Path, counts: dict[str, int]) -> None:
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i, crop in enumerate(crops(count)):
            (folder / name / f"{i}.jpg").write_bytes(jpeg(crop))


def test_a_folder_a_class(tmp_path: Path) -> None:
    fill(tmp_path, {"rose": 3, "daisy": 2, "none yet": 0})
    split = open_split(tmp_path)
    assert split.class_ids == ("daisy", "none yet", "rose")
    assert split.targets_N.tolist() == [0, 0, 2, 2, 2]
    assert [Path(str(p)).parent.name for p in split.photos] == ["daisy"] * 2 + ["rose"] * 3


def test_val_is_matched_by_name_not_by_number(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"a": 1, "b": 1, "c": 1})
    fill(tmp_path / "val", {"c": 2, "b": 1})
    train, val = open_splits(tmp_path)
    assert val.class_ids == train.class_ids == ("a", "b", "c")
    assert val.targets_N.tolist() == [1, 2, 2]


def test_a_class_that_train_does_not_have(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"a": 1})
    fill(tmp_path / "val", {"a": 1, "zebra": 1})
    with pytest.raises(UsageError, match="zebra"):
        open_splits(tmp_path)


def test_parquet_of_encoded_photos(tmp_path: Path) -> None:
    data = [jpeg(c) for c in crops(3)]
    pq.write_table(pa.table({"image": data, "synset": ["n2", "n1", "n2"]}), tmp_path / "train.parquet")
    split = open_split(tmp_path / "train.parquet")
    assert list(split.photos) == data
    assert split.class_ids == ("n1", "n2")
    assert np.array_equal(split.targets_N, [1, 0, 1])


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="neither a folder train/ nor a file train.parquet"):
        open_splits(tmp_path)
    (tmp_path / "flat").mkdir()
    with pytest.raises(UsageError, match="no folders, so no classes"):
        open_split(tmp_path / "flat")
