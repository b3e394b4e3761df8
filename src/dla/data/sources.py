"""Read labelled photos from one folder per class, a CSV or TSV file, or a parquet file."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dla.errors import DamagedError, UnavailableError, UsageError, import_optional, pip_line
from dla.images.find import PHOTO_SUFFIXES, PhotoFinder, is_kind
from dla.storage.files import JsonObject, parse_object

REMEDY = "sort the photos into one folder per class, or list them in a CSV with the columns path and label"
TABLES = (".parquet", ".csv", ".tsv")
# The usual words for a split, in any case; what is called "test" is validated on only where there is no other.
VAL_NAMES = ("val", "valid", "validation", "dev", "eval", "test")
SPLIT_NAMES = ("train", *VAL_NAMES)
_SAME_AS = {"training": "train", "testing": "test"}


def split_word(name: str) -> str | None:
    """Return the split that a folder, a file or a row is called after ("Training" is "train"), or None."""
    word = name.strip().lower()
    word = _SAME_AS.get(word, word)
    return word if word in SPLIT_NAMES else None


@dataclass
class LabelledPhotos:
    """Labelled photos in the order of the source. `class_ids` includes classes without photos."""

    photos: list[str | bytes] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    class_ids: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def add(self, photo: str | bytes, label: str, name: str) -> None:
        """Append a photo."""
        self.photos.append(photo)
        self.labels.append(label)
        self.names.append(name)
        self.class_ids.add(label)

    def extend(self, other: LabelledPhotos) -> None:
        """Append all photos of another source."""
        self.photos += other.photos
        self.labels += other.labels
        self.names += other.names
        self.class_ids |= other.class_ids
        self.notes += other.notes


def read_folder(folder: Path) -> LabelledPhotos:
    """Read a folder with one folder per class, searched recursively, without hidden files and folders.

    Raises:
        UsageError: the folder has no folders, so no classes, or the name of one is not UTF-8 text.
    """
    source, entries = LabelledPhotos(), [e for e in os.scandir(folder) if not e.name.startswith(".")]
    stray = sum(1 for e in entries if not is_kind(e.is_dir) and Path(e.name).suffix.lower() in PHOTO_SUFFIXES)
    classes = sorted(e.name for e in entries if is_kind(e.is_dir))
    if not classes:
        what = f"{stray:,} photos are directly in it" if stray else "it has no photos"
        raise UsageError(f"{folder} has no class folders ({what}). To name the classes, {REMEDY}")
    if stray:
        source.notes.append(f"{folder}: photos outside the class folders are not used ({stray:,})")
    for name in classes:
        if name.encode(errors="replace").decode() != name:
            raise UsageError(f"{folder} has a class folder whose name is not UTF-8 text: {name!a}. Rename it")
    finder = PhotoFinder([os.path.join(folder, name) for name in classes])
    for class_id in classes:
        source.class_ids.add(class_id)
        finder.inputs = [os.path.join(folder, class_id)]
        for path in finder:
            source.add(path, class_id, path)
    if finder.others:
        kinds = ", ".join(f"{kind or 'no suffix'} {count:,}" for kind, count in finder.others.most_common(4))
        source.notes.append(f"{folder}: files without the suffix of a photo are not used ({kinds})")
    return source


def read_table(path: Path, options: DataOptions) -> dict[str, LabelledPhotos]:
    """Read the rows of a CSV, TSV or parquet file by the value of their split column, or all as "" if there is none.

    Raises:
        UnavailableError: the file is damaged (DamagedError), or pyarrow is not installed.
        UsageError: a column is missing, or there are no rows.
    """
    rows = _parquet_rows(path, options) if path.suffix.lower() == ".parquet" else _csv_rows(path, options)
    sources: dict[str, LabelledPhotos] = {}
    for photo, label, split, name in rows:
        sources.setdefault(split, LabelledPhotos()).add(photo, label, name)
    if not sources:
        raise UsageError(f"{path} has no rows. It needs one row per photo")
    return sources


TableRow = tuple[str | bytes, str, str, str]  # photo, label, split, name


def _csv_rows(path: Path, options: DataOptions) -> Iterator[TableRow]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, "excel-tab" if path.suffix.lower() == ".tsv" else "excel", strict=True)
            header = next(reader, [])
            columns = _columns(path, header, options, "path", ("label",))
            places = [header.index(name) for name in columns]
            for row in reader:
                if row:  # csv reads an empty line as an empty row
                    yield _csv_row(path, reader.line_num, header, row, places)
    except UnicodeDecodeError as error:
        raise DamagedError(f"{path} is not UTF-8 text (byte {error.start:,}). Save it as CSV in UTF-8") from error
    except csv.Error as error:
        raise DamagedError(f"{path}, line {reader.line_num}: this is not valid CSV ({error})") from error


def _csv_row(path: Path, line: int, header: list[str], row: list[str], places: list[int]) -> TableRow:
    if len(row) != len(header):
        raise DamagedError(f"{path}, line {line}: {len(row)} cells, but the first line names {len(header)} columns")
    for place in places:
        if not row[place].strip():
            raise DamagedError(f"{path}, line {line}: the {header[place]} is empty")
    photo, label, *split = (row[place] for place in places)
    file = os.path.join(path.parent, photo)
    if os.path.exists(file) and not (os.path.isfile(file) or os.path.isdir(file)):
        # reading a pipe would block for ever
        raise DamagedError(f"{path}, line {line}: {photo} is a pipe or a device. Name a file")
    return file, label, split[0].strip() if split else "", file


def _parquet_rows(path: Path, options: DataOptions) -> Iterator[TableRow]:
    pq = import_optional("pyarrow.parquet", f"parquet files need pyarrow: {pip_line('train')}")
    import pyarrow as pa

    try:
        schema = pq.read_schema(path)
        columns = _columns(path, schema.names, options, "image", ("synset", "label"))
        table = pq.read_table(path, columns=columns)
        cells = [table[name].to_pylist() for name in columns]
    except UsageError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise UnavailableError(f"{path} cannot be read: {error.strerror}") from error
        raise DamagedError(f"{path} is not an intact parquet file: it is cut off or altered") from error
    readable = _label_names(schema.metadata or {}, columns[1])
    for i, (photo, label, *split) in enumerate(zip(*cells, strict=True)):
        name = f"{path.name}#{i}"
        if isinstance(photo, dict):  # the Image feature of Hugging Face datasets
            photo = photo.get("bytes")
        if photo is None:  # it counts as a photo that cannot be read
            photo = b""
        if not isinstance(photo, bytes):
            raise UsageError(f"{name}: the column {columns[0]} holds {type(photo).__name__}, not an encoded photo")
        label, *split = (_text(name, column, cell) for column, cell in zip(columns[1:], (label, *split), strict=True))
        if readable and not (isinstance(label, int) and 0 <= label < len(readable)):
            unknown = "which means no label" if label == -1 else f"but only 0 to {len(readable) - 1} have names"
            raise DamagedError(f"{name}: the {columns[1]} is {label}, {unknown}. Leave such rows out")
        yield photo, readable[label] if readable else str(label), str(split[0]) if split else "", name


def _text(name: str, column: str, cell: Any) -> Any:
    """Return a cell, decoded if it is bytes; raise a DamagedError if it is empty or not UTF-8."""
    if isinstance(cell, bytes):
        try:
            cell = cell.decode()
        except UnicodeDecodeError:
            raise DamagedError(f"{name}: the {column} is {cell!r}, which is not UTF-8 text. Give a name") from None
    if cell is None or cell != cell or (isinstance(cell, str) and not cell.strip()):  # NaN: a missing value of pandas
        raise DamagedError(f"{name}: the {column} is empty")
    if isinstance(cell, list | dict):
        raise DamagedError(f"{name}: the {column} is a {type(cell).__name__}. Give one name or number for each photo")
    return cell


def _label_names(metadata: dict[bytes, bytes], column: str) -> list[str]:
    """Return the class names in the metadata of a parquet file by Hugging Face `datasets`, or an empty list."""
    with suppress(DamagedError):
        features = JsonObject(parse_object(metadata.get(b"huggingface", b""), ""), "").object("info").object("features")
        return list(features.object(column).texts("names"))
    return []


def _columns(path: Path, header: Sequence[str], options: DataOptions, image: str, labels: tuple[str, ...]) -> list[str]:
    """Return the columns of the photos, the classes and, if there is one, the split; `image` and `labels` are usual."""
    usual = {"image_column": (image,), "label_column": labels, "split_column": ("split",)}
    if options.split_column is None and "split" not in header:
        del usual["split_column"]
    columns = []
    for option, names in usual.items():
        wanted = getattr(options, option)
        names = names if wanted is None else (wanted,)
        column = next((name for name in names if name in header), None)
        if column is None:
            listed = ", ".join(header) or "nothing"
            raise UsageError(f'{path} has no column "{names[-1]}". It has: {listed}. Name one with {option}')
        columns.append(column)
    return columns


@dataclass(frozen=True)
class DataOptions:
    """How to read a dataset (docs/data.md).

    Args:
        val_share: share of each class to hold out for validation if the data has no splits.
        image_column: a table's column of files or encoded photos (default: path; in parquet image).
        label_column: a table's column of classes (default: label; in parquet synset if there is one).
        split_column: a table's column of train and val (default: split if there is one).
        max_unreadable: share of the photos that a run may leave out because they cannot be read.
        group: regular expression for the names of photos with masks or boundaries: photos for which it captures the
            same text (a drive, a patient) are all for training or all for validation.
    """

    val_share: float = 0.2
    image_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    max_unreadable: float = 0.01
    group: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.val_share < 1:
            raise UsageError(f"val_share is {self.val_share}. Allowed: a share between 0 and 1, such as 0.2")
        if not 0 <= self.max_unreadable <= 1:
            raise UsageError(f"max_unreadable is {self.max_unreadable}. Allowed: a share from 0 to 1, such as 0.01")
