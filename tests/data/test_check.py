"""`dla.check_data`: every kind of fault is found, named in full, and nothing else is."""

import hashlib
import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dla
from dla.data.check import DataFinding, DataReport
from dla.data.dataset import open_splits
from support.photos import crops, jpeg


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three classes with nothing wrong."""
    pictures: Iterator[Image.Image] = iter(crops(27))
    for split, count in (("train", 6), ("val", 3)):
        for name in ("daisy", "rose", "tulip"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                (tmp_path / split / name / f"{i}.jpg").write_bytes(jpeg(next(pictures)))
    return tmp_path


def of_kind(report: DataReport, kind: str) -> list[DataFinding]:
    return [finding for finding in report.findings if finding.kind == kind]


def named(finding: DataFinding) -> list[str]:
    """The last two parts of each path, or the classes."""
    return ["/".join(Path(name).parts[-2:]) for name, _, _ in finding.photos] or list(finding.class_ids)


def test_good_photos_are_fit(data: Path) -> None:
    report = dla.check_data(data)
    assert report.passed
    assert report.findings == ()
    assert report.readable == 27
    assert report.splits == {"train": dict.fromkeys(("daisy", "rose", "tulip"), 6),
                             "val": dict.fromkeys(("daisy", "rose", "tulip"), 3)}  # fmt: skip
    assert (report.formats, report.modes, report.exif_rotated) == ({"JPEG": 27}, {"RGB": 27}, 0)
    sides = sorted(min(Image.open(io.BytesIO(p.read_bytes())).size) for p in data.rglob("*.jpg"))
    assert report.short_sides == (sides[0], sides[13], sides[26])


@pytest.mark.parametrize(
    ("gone", "kind"),
    [("val/*/*.jpg", "empty_val"), ("train", "no_train"), ("single", "too_few_photos")],
)
def test_what_a_run_would_refuse_hurts(data: Path, gone: str, kind: str) -> None:
    if gone == "single":
        shutil.rmtree(data / "val")
        for photo in data.glob("train/*/*.jpg"):
            if photo.stem != "0":
                photo.unlink()
        data = data / "train"
    elif gone == "train":
        shutil.rmtree(data / "train")
    else:
        for photo in data.glob(gone):
            photo.unlink()
    with pytest.raises(dla.UsageError):
        open_splits(data)
    report = dla.check_data(data)
    assert not report.passed
    assert [finding.kind for finding in report.findings if finding.severity == "error"] == [kind]


def test_nothing_is_written_into_the_data(data: Path) -> None:
    def everything() -> list[tuple[str, int, str]]:
        return sorted((str(p), p.stat().st_mtime_ns, hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "")
                      for p in data.rglob("*"))  # fmt: skip

    before = everything()
    dla.check_data(data, workers=2)
    assert everything() == before


def spoil(data: Path, kind: str) -> None:
    """One fault of this kind."""
    rose = data / "train" / "rose"
    good = (rose / "0.jpg").read_bytes()
    picture = Image.open(io.BytesIO(good))
    match kind:
        case "zero bytes":
            (rose / "0.jpg").write_bytes(b"")
        case "truncated":
            (rose / "0.jpg").write_bytes(good[: len(good) // 2])
        case "text":
            (rose / "0.jpg").write_text("no picture")
        case "in two splits":
            shutil.copy(rose / "0.jpg", data / "val" / "rose" / "x.jpg")
        case "in two splits, smaller":
            picture.resize((picture.width // 2, picture.height // 2)).save(data / "val" / "rose" / "x.webp")
        case "two labels":
            shutil.copy(rose / "0.jpg", data / "train" / "tulip" / "x.jpg")
        case "two labels, as PNG":
            picture.save(data / "train" / "tulip" / "x.png")
        case "twice":
            shutil.copy(rose / "0.jpg", rose / "x.jpg")
        case "twice, other quality":
            picture.save(rose / "x.jpg", quality=60)
        case "an empty class":
            (data / "train" / "orchid").mkdir()
        case "no val":
            shutil.rmtree(data / "val" / "rose")
        case "unknown to train":
            (data / "val" / "rose").rename(data / "val" / "roses")
        case "class case":
            (data / "train" / "Rose").mkdir()
            (rose / "0.jpg").rename(data / "train" / "Rose" / "0.jpg")
        case "PNG named .jpg":
            picture.resize((90, 90)).rotate(90).save(rose / "0.jpg", "PNG")
        case "CMYK":
            picture.convert("CMYK").save(rose / "0.jpg")
        case "16 bit":
            Image.fromarray(np.asarray(picture.convert("L"), np.uint16) * 257).save(rose / "x.png")
        case "1x1":
            Image.new("RGB", (1, 1), "red").save(rose / "x.png")
        case "file case":
            (rose / "a.jpg").write_bytes(good)
            (rose / "0.jpg").rename(rose / "A.JPG")
            (rose / "a.jpg").write_bytes(jpeg(crops(40)[39]))
        case "other files":
            (rose / "x.heic").touch()
        case "uneven":
            for i in range(1, 6):
                (rose / f"{i}.jpg").unlink()
            for i, crop in enumerate(crops(40)[36:]):
                (data / "train" / "tulip" / f"x{i}.jpg").write_bytes(jpeg(crop))


FAULTS = {
    "zero bytes": ("unreadable", "error", ["rose/0.jpg"]),
    "truncated": ("unreadable", "error", ["rose/0.jpg"]),
    "text": ("unreadable", "error", ["rose/0.jpg"]),
    "in two splits": ("in_two_splits", "error", ["rose/0.jpg", "rose/x.jpg"]),
    "in two splits, smaller": ("in_two_splits", "error", ["rose/0.jpg", "rose/x.webp"]),
    "two labels": ("under_two_labels", "error", ["rose/0.jpg", "tulip/x.jpg"]),
    "two labels, as PNG": ("under_two_labels", "error", ["rose/0.jpg", "tulip/x.png"]),
    "twice": ("duplicate", "warning", ["rose/0.jpg", "rose/x.jpg"]),
    "twice, other quality": ("duplicate", "warning", ["rose/0.jpg", "rose/x.jpg"]),
    "an empty class": ("empty_class", "error", ["orchid"]),
    "no val": ("empty_class", "warning", ["rose"]),
    "PNG named .jpg": ("wrong_ending", "warning", ["rose/0.jpg"]),
    "CMYK": ("odd_mode", "warning", ["rose/0.jpg"]),
    "16 bit": ("odd_mode", "warning", ["rose/x.png"]),
    "1x1": ("tiny", "warning", ["rose/x.png"]),
    "file case": ("similar_names", "warning", ["rose/A.JPG", "rose/a.jpg"]),
    "other files": ("not_used", "warning", []),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_and_nothing_else(data: Path, fault: str) -> None:
    kind, severity, names = FAULTS[fault]
    spoil(data, fault)
    report = dla.check_data(data, workers=0)
    assert [(f.kind, f.severity, named(f)) for f in report.findings if fault != "16 bit" or f.kind != "duplicate"] == [
        (kind, severity, names)
    ]
    assert report.passed is (severity == "warning")
    if kind in ("in_two_splits", "under_two_labels", "duplicate"):
        assert report.findings[0].exact is (fault in ("in two splits", "two labels", "two labels, as PNG", "twice"))


def test_classes_that_do_not_match(data: Path) -> None:
    spoil(data, "unknown to train")
    report = dla.check_data(data)
    assert [(f.kind, f.severity, named(f)) for f in report.findings] == [
        ("unknown_class", "error", ["roses"]), ("empty_class", "warning", ["rose"]),
    ]  # fmt: skip


def test_class_names_that_differ_only_in_case_or_in_how_accents_are_written(data: Path) -> None:
    spoil(data, "class case")
    assert [named(f) for f in of_kind(dla.check_data(data), "similar_classes")] == [["Rose", "rose"]]
    (data / "train" / "Rose").rename(data / "train" / "ros\u00e9")
    (data / "train" / "tulip").rename(data / "train" / "rose\u0301")
    finding = of_kind(dla.check_data(data), "similar_classes")[0]
    assert (named(finding), finding.severity) == (["rose\u0301", "ros\u00e9"], "error")


def test_uneven_classes_are_told(data: Path) -> None:
    spoil(data, "uneven")
    finding = of_kind(dla.check_data(data), "imbalance")[0]
    assert (named(finding), finding.severity) == (["rose", "tulip"], "warning")
    assert finding.message == "tulip has 10 photos to learn from, rose 1: 10 times as many"


def test_both_things_that_are_wrong_with_a_picture_are_said_of_all_its_copies(data: Path) -> None:
    for place in ("train/tulip", "val/daisy", "val/rose"):
        shutil.copy(data / "train/rose/0.jpg", data / place / "x.jpg")
    report = dla.check_data(data)
    copies = ["rose/0.jpg", "tulip/x.jpg", "daisy/x.jpg", "rose/x.jpg"]
    assert [(f.kind, named(f)) for f in report.findings] == [("in_two_splits", copies), ("under_two_labels", copies)]
    assert [split for _, split, _ in report.findings[0].photos] == ["train", "train", "val", "val"]
    assert [label for _, _, label in report.findings[0].photos] == ["rose", "tulip", "daisy", "rose"]


def test_photos_turned_by_exif_are_counted(data: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = crops(40)[39]
    picture.save(data / "train" / "rose" / "0.jpg", exif=exif)
    report = dla.check_data(data)
    assert report.exif_rotated == 1
    assert report.findings == ()


def test_a_table_with_files_that_are_gone_or_named_twice(data: Path) -> None:
    table = data / "photos.csv"
    rows = ["train/rose/0.jpg,rose,train", "train/rose/gone.jpg,rose,train", "train/tulip/0.jpg,tulip,train",
            "train/rose/0.jpg,tulip,train", "val/rose/0.jpg,rose,test"]  # fmt: skip
    table.write_text("\n".join(["path,label,split", *rows]))
    report = dla.check_data(table)
    assert [(f.kind, named(f)) for f in report.findings if f.severity == "error"] == [
        ("unreadable", ["rose/gone.jpg"]), ("under_two_labels", ["rose/0.jpg", "rose/0.jpg"]),
    ]  # fmt: skip
    assert report.findings[0].message.startswith("not_found: ")
    assert list(report.splits) == ["train", "test"]


def test_a_set_without_splits_and_one_class(data: Path) -> None:
    report = dla.check_data(data / "train")
    assert report.passed
    assert list(report.splits) == [""]
    shutil.rmtree(data / "train" / "rose")
    shutil.rmtree(data / "train" / "tulip")
    assert [f.kind for f in dla.check_data(data / "train").findings] == ["too_few_classes"]
