"""Tables of photos: CSV, TSV and parquet, and what can be wrong with them."""

import contextlib
import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dla.data.dataset import DataOptions, open_split, open_splits
from dla.data.sources import read_table
from dla.errors import DamagedError, DlaError, UnavailableError, UsageError
from support.photos import jpeg

PHOTO = jpeg(Image.new("RGB", (8, 8)))


def written(folder: Path, text: str | bytes, name: str = "photos.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_paths_are_relative_to_the_file_and_columns_stand_in_any_order(tmp_path: Path) -> None:
    text = f"note,label,path\nx,rose,a/1.jpg\n,tulip,{tmp_path}/far.jpg\n\nx,rose,../b.jpg\n"
    split = open_split(written(tmp_path, text))
    assert split.class_ids == ("rose", "tulip")
    assert split.targets_N.tolist() == [0, 1, 0]
    assert split.photos == [f"{tmp_path}/a/1.jpg", f"{tmp_path}/far.jpg", f"{tmp_path}/../b.jpg"]
    assert split.names == split.photos


def test_a_split_column(tmp_path: Path) -> None:
    path = written(tmp_path, "path,label,split\n1,a,train\n2,b,Train \n3,b,validation\n4,a,train\n")
    with pytest.raises(UsageError, match=r"several spellings \(Train, train, validation\)"):
        open_splits(path)
    path.write_text(path.read_text().replace("Train ", "train"))
    splits = open_splits(path)
    assert [Path(n).name for n in splits.train.names] == ["1", "2", "4"]
    assert splits.val.targets_N.tolist() == [1]
    assert splits.notes == ("validation: 1 of 2 classes have no photos (a)",)


def test_without_one_it_is_divided(tmp_path: Path) -> None:
    rows = [f"{i}.jpg,{'ab'[i % 2]}" for i in range(20)]
    one = open_splits(written(tmp_path, "\n".join(["path,label", *rows])))
    other = open_splits(written(tmp_path, "\n".join(["path,label", *reversed(rows)]), "other.csv"))
    assert one.val.class_counts().tolist() == [2, 2]
    assert set(one.val.names) == set(other.val.names)


def test_quotes_byte_order_marks_line_ends_and_tabs(tmp_path: Path) -> None:
    quoted = '\ufeffpath,label\r\n"a, ""b""\n.jpg","two, words"\r\nc.jpg,Ros\u00e9\r\n'
    split = open_split(written(tmp_path, quoted))
    assert split.names == [f'{tmp_path}/a, "b"\n.jpg', f"{tmp_path}/c.jpg"]
    assert split.class_ids == ("Ros\u00e9", "two, words")
    tabs = open_split(written(tmp_path, "path\tlabel\na,b.jpg\tx\n", "photos.tsv"))
    assert tabs.names == [f"{tmp_path}/a,b.jpg"]


def test_columns_by_name(tmp_path: Path) -> None:
    path = written(tmp_path, "file,kind,part\n1,a,train\n2,b,train\n3,b,val\n")
    options = DataOptions(image_column="file", label_column="kind", split_column="part")
    assert len(open_splits(path, options).train) == 2


def test_train_and_val_may_be_tables_of_their_own(tmp_path: Path) -> None:
    written(tmp_path, "path,label\n1,a\n2,b\n", "train.csv")
    written(tmp_path, "path\tlabel\n3\tb\n", "val.tsv")
    splits = open_splits(tmp_path)
    assert (len(splits.train), splits.val.targets_N.tolist()) == (2, [1])


def test_a_pipe_in_a_table_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p")
    (tmp_path / "t.csv").write_text("path,label\n1,a\np,b\n")
    with pytest.raises(DamagedError, match=r"t.csv, line 3: p is a pipe or a device. Name a file"):
        open_split(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        ("", UsageError, 'no column "path". It has: nothing. Name one with image_column'),
        ("path,label\n", UsageError, "has no rows"),
        ("file,label\n1,a\n", UsageError, 'no column "path". It has: file, label. Name one with image_column'),
        ("path;label\n1;a\n", UsageError, 'no column "path". It has: path;label'),
        ("path,label\n1,a\n2\n", DamagedError, "line 3: 1 cells, but the first line names 2 columns"),
        ("path,label\n1,a\n2,b,c\n", DamagedError, "line 3: 3 cells"),
        ("path,label\n1,a\n\n,b\n", DamagedError, "line 4: the path is empty"),
        ('path,label\n"1\n",a\n2, \n', DamagedError, "line 4: the label is empty"),
        ("path,label,split\n1,a,train\n2,a,\n", DamagedError, "line 3: the split is empty"),
        ('path,label\n1,a\n"2,b\n', DamagedError, "line 3: this is not valid CSV"),
        ('path,label\n1,a\n"2"x,b\n', DamagedError, "line 3: this is not valid CSV"),
        (b"path,label\n1,Ros\xe9\n", DamagedError, "is not UTF-8 text (byte 16)"),
        (
            "path,label,split\n1,a,train\n2,a,holdout\n",
            UsageError,
            'the split of {0}/2 is "holdout". Allowed: train, val',
        ),
        ("path,label,split\n1,a,train\n2,b,train\n3,c,val\n", UsageError, 'val: the class "c" is none of the 2'),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, text: str, error: type[DlaError], said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(error) as caught:
        open_splits(path)
    assert said.format(tmp_path) in str(caught.value)
    assert str(path) in str(caught.value) or "val:" in said


def test_parquet_of_hugging_face_has_photos_in_a_struct_and_names_beside_the_numbers(tmp_path: Path) -> None:
    names = {"info": {"features": {"label": {"names": ["zebra", "ant"], "_type": "ClassLabel"}}}}
    table = pa.table({"image": [{"bytes": b"1", "path": None}, {"bytes": b"2", "path": "x"}], "label": [0, 1]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(names)}), tmp_path / "x.parquet")
    split = open_split(tmp_path / "x.parquet")
    assert split.class_ids == ("ant", "zebra")
    assert split.targets_N.tolist() == [1, 0]
    assert split.photos == [b"1", b"2"]


@pytest.mark.parametrize(
    ("columns", "error", "said"),
    [
        ({"picture": [b""], "label": [1]}, UsageError, 'no column "image". It has: picture, label'),
        ({"image": [b""], "kind": [1]}, UsageError, 'no column "label". It has: image, kind'),
        ({"image": ["a.jpg"], "label": [1]}, UsageError, "x.parquet#0: the column image holds str, not an encoded"),
        ({"image": [b"", b""], "label": [1, None]}, DamagedError, "x.parquet#1: the label is empty"),
        ({"image": [b""], "label": [1], "split": [None]}, DamagedError, "x.parquet#0: the split is empty"),
        ({"image": [b""], "label": [1], "split": [" "]}, DamagedError, "x.parquet#0: the split is empty"),
        ({"image": [b"", b""], "label": ["a", ""]}, DamagedError, "x.parquet#1: the label is empty"),
        ({"image": [b""], "label": [b"\xff"]}, DamagedError, "#0: the label is b'\\\\xff', which is not UTF-8 text"),
    ],
)
def test_parquet_without_what_it_needs(
    tmp_path: Path, columns: dict[str, list[object]], error: type[DlaError], said: str
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(error, match=said):
        open_splits(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("label", "said"),
    [(-1, "x.parquet#1: the label is -1, which means no label"), (2, "is 2, but only 0 to 1 have names")],
)
def test_a_number_without_a_name_is_no_class(tmp_path: Path, label: int, said: str) -> None:
    names = {"info": {"features": {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}}}
    table = pa.table({"image": [b"1", b"2"], "label": [0, label]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(names)}), tmp_path / "x.parquet")
    with pytest.raises(DamagedError, match=said):
        open_split(tmp_path / "x.parquet")


def test_labels_in_bytes_are_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"1", b"2"], "label": [b"ros\xc3\xa9", b"tulip"]}), tmp_path / "x.parquet")
    assert open_split(tmp_path / "x.parquet").class_ids == ("rosé", "tulip")


def test_a_class_that_is_not_utf8(tmp_path: Path) -> None:
    for name in (b"rose", b"tulip\xff"):
        folder = tmp_path / os.fsdecode(name)
        folder.mkdir()
        (folder / "1.jpg").touch()
    with pytest.raises(UsageError, match=r"has a class folder whose name is not UTF-8 text: 'tulip\\udcff'. Rename it"):
        open_split(tmp_path)


def test_parquet_cut_short(tmp_path: Path) -> None:
    whole = io.BytesIO()
    pq.write_table(pa.table({"image": [b"1" * 999], "label": [1]}), whole)
    written(tmp_path, whole.getvalue()[:-20], "x.parquet")
    with pytest.raises(DamagedError, match="is not an intact parquet file"):
        open_split(tmp_path / "x.parquet")


def test_a_missing_label_of_pandas_and_a_list_are_no_classes(tmp_path: Path) -> None:
    photo = PHOTO
    for label, said in (
        (float("nan"), "the label is empty"),
        ([0], "the label is a list"),
        (None, "the label is empty"),
    ):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.parquet"
        labels = [1.0, label] if isinstance(label, float) else [label, label]
        pq.write_table(pa.table({"image": [photo, photo], "label": labels}), path)
        with pytest.raises(DamagedError, match=f"{path.name}#[01]: {said}"):
            read_table(path, DataOptions())


def test_a_row_without_a_photo_is_a_photo_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "photos.parquet"
    images = [{"bytes": PHOTO, "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}, None]
    pq.write_table(pa.table({"image": images, "label": ["a", "a", "b"]}), path)
    (source,) = read_table(path, DataOptions()).values()
    assert [len(photo) > 0 for photo in source.photos] == [True, False, False]


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_parquet_file_is_named(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "photos.parquet"
    pq.write_table(pa.table({"image": [PHOTO] * 3, "label": ["rose", "dänïsch", "tulip"]}), path)
    random, data = np.random.default_rng(seed), bytearray(path.read_bytes())
    for at in random.integers(0, len(data), 1 + seed % 4):
        data[at] = random.integers(256)
    path.write_bytes(data)
    with contextlib.suppress(UnavailableError, UsageError):  # each names the file; some damage changes a photo alone
        read_table(path, DataOptions())
