"""Bulk runs from the plan to the collected records, with workers in this process."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from dla.bulk.manifest import plan
from dla.cli import main
from dla.storage import stores
from support.bulk import KEY, ROWS, SECRET, Planned, bucket, bulk, files_in, own_process, photo_folder


def predict(planned: Planned, output: Path | str, *words: object) -> int:
    flags = () if "--rows-per-shard" in words else ("--rows-per-shard", ROWS)
    return bulk("predict", planned.manifest, "-o", output, "-q", *flags, *map(str, words))


def collected(output: Path | str, file: Path, code: int = 1) -> bytes:
    assert bulk("collect", output, "-o", file, "-q", "--force") == code
    return file.read_bytes()


def test_the_records_are_those_of_dla_predict(planned: Planned, tmp_path: Path) -> None:
    assert collected(planned.folder / "out", tmp_path / "all.jsonl") == planned.records
    rows = list(csv.reader(collected(planned.folder / "out", tmp_path / "all.csv").decode().splitlines()))
    assert [row[0] for row in rows[1:]] == planned.photos
    assert [row[1] for row in rows[-2:]] == ["not_an_image"] * 2
    collected(planned.folder / "out", tmp_path / "all.parquet")
    table = pq.read_table(tmp_path / "all.parquet").to_pylist()
    assert [row["row"] for row in table] == list(range(17))
    assert table[3]["predictions"] == json.loads(planned.records.splitlines()[3])["predictions"]


def test_any_division_into_jobs_gives_the_same_files(
    planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with own_process(monkeypatch) as made:
        for job in ("2/3", "0/3", "1/3"):
            predict(planned, tmp_path / "out", "--shard", job)
        assert [task.shard for task in made] == [2, 0, 3, 1]
    assert files_in(tmp_path / "out") == planned.parts


def test_a_run_goes_on_with_what_is_missing(
    planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(planned.folder / "out", tmp_path / "out")
    for name in ("part-000001.parquet", "part-000003.parquet"):
        (tmp_path / "out" / name).unlink()
    assert bulk("collect", tmp_path / "out", "-o", tmp_path / "all.jsonl") == 2
    assert "is not complete: rows 5 to 9, rows 15 to 16 are missing" in capsys.readouterr().err
    assert not (tmp_path / "all.jsonl").exists()
    with own_process(monkeypatch) as made:
        assert bulk("predict", planned.manifest, "-o", tmp_path / "out", "--rows-per-shard", ROWS) == 1
        assert [task.shard for task in made] == [1, 3]
    # errors of the earlier run count, so the exit code is that of one run
    told = capsys.readouterr().err
    assert "17 photos (10 of them in an earlier run): 15 answered, 2 failed (2 not_an_image" in told
    assert files_in(tmp_path / "out") == planned.parts


def test_what_else_is_no_part_of_this_run(
    planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, part = tmp_path / "out", "part-000002.parquet"
    shutil.copytree(planned.folder / "out", out)
    shutil.copy(out / part, out / "part-000004.parquet")
    assert bulk("collect", out, "-o", tmp_path / "all.jsonl") == 2
    assert "has part-000004.parquet, but the run has 4 shards, so rows would be double" in capsys.readouterr().err
    (out / "part-000004.parquet").unlink()
    shutil.copy(out / "part-000000.parquet", out / part)
    assert bulk("collect", out, "-o", tmp_path / "all.jsonl") == 2
    told = capsys.readouterr().err
    assert "row 0 is double or of another shard and row 10 is missing" in told
    (out / part).write_bytes(planned.parts[part][:-50])
    assert bulk("collect", out, "-o", tmp_path / "all.jsonl") == 3
    assert "is not an intact part of a bulk run. Remove it" in capsys.readouterr().err
    (out / part).unlink()
    (out / "run.json").unlink()
    with own_process(monkeypatch):
        assert predict(planned, out) == 2
        assert "has parts, but no run.json" in capsys.readouterr().err
        assert predict(planned, out, "--force") == 1
    assert files_in(out) == planned.parts


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--topk", "3"), "was started with topk 5, and this is 3"),
        (("--rows-per-shard", "6"), "rows_per_shard 5, and this is 6"),
        (("--batch-size", "4"), "batch_size 8, and this is 4"),
        (("--threads", "2"), "threads 1, and this is 2"),
        (("--engine", "torch"), "engine"),
        (("--max-megapixels", "3"), "max_pixels 179000000, and this is 3000000"),
    ],
)
def test_another_run_is_refused(
    words: tuple[str, ...], said: str, planned: Planned, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(planned, planned.folder / "out", *words) == 2
    assert said in capsys.readouterr().err
    assert files_in(planned.folder / "out") == planned.parts


def test_another_manifest_model_command_or_version_is_refused(
    planned: Planned, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = planned.folder / "out"
    plan(planned.photos[:16], str(tmp_path / "m.parquet"))
    assert bulk("predict", tmp_path / "m.parquet", "-o", out, "--rows-per-shard", ROWS) == 2
    assert "was started with another manifest" in capsys.readouterr().err
    assert bulk("features", planned.manifest, "-o", out, "--rows-per-shard", ROWS) == 2
    assert "was started with the command predict, and this is features" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr("dla.bulk.run_file.__version__", "0.0.9")
        assert predict(planned, out) == 2
        assert 'dla of version "0.1.0", and this is "0.0.9"' in capsys.readouterr().err
    shutil.copytree("src/dla/shipped/tiny200", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["dla"]["temperature"] = 2.0
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    assert predict(planned, out, "--model", tmp_path / "model") == 2
    assert "was started with another model" in capsys.readouterr().err


def test_another_instruction_set_goes_on_and_says_so(
    planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(planned.folder / "out", tmp_path / "out")
    (tmp_path / "out" / "part-000001.parquet").unlink()
    monkeypatch.setattr("dla.bulk.shard.instructions", lambda: ("avx", "avx512f"))
    with own_process(monkeypatch):
        assert predict(planned, tmp_path / "out") == 1
    metadata = {
        n: pq.read_schema(tmp_path / "out" / n).metadata for n in ("part-000000.parquet", "part-000001.parquet")
    }
    assert b"instructions" not in metadata["part-000000.parquet"]
    assert metadata["part-000001.parquet"][b"instructions"] == b"avx avx512f"
    assert (tmp_path / "out" / "run.json").read_bytes() == planned.parts["run.json"]
    assert collected(tmp_path / "out", tmp_path / "all.jsonl") == planned.records


def test_a_file_that_is_another_one_by_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = photo_folder(tmp_path / "photos", 4, bad=0)
    plan([str(tmp_path / "photos")], str(tmp_path / "m.parquet"))
    shutil.copy(photos[0], photos[1])
    os.utime(photos[2], (1, 1))
    os.remove(photos[3])
    with own_process(monkeypatch):
        assert bulk("predict", tmp_path / "m.parquet", "-o", tmp_path / "out", "-q") == 1
    records = list(map(json.loads, collected(tmp_path / "out", tmp_path / "all.jsonl").splitlines()))
    assert [r.get("error", {}).get("code") for r in records] == [None, "changed", "changed", "not_found"]
    assert records[1]["error"]["message"] == (
        f"{photos[1]}: the file was changed or replaced since it was listed. List it again"
    )


def test_a_photo_that_kills_its_worker_costs_its_own_record(
    planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with own_process(monkeypatch, frozenset({7})):
        assert predict(planned, tmp_path / "out") == 1
    records = collected(tmp_path / "out", tmp_path / "all.jsonl").splitlines()
    assert json.loads(records[7])["error"]["code"] == "worker_died"
    expected = planned.records.splitlines()
    assert [a == b for a, b in zip(records, expected, strict=True)] == [n != 7 for n in range(17)]
    with own_process(monkeypatch) as made:  # without it, nothing is left to do
        assert predict(planned, tmp_path / "out") == 1
        assert made == []
        assert predict(planned, tmp_path / "out", "--retry-failed") == 1
        assert [task.shard for task in made] == [1]
    assert files_in(tmp_path / "out") == planned.parts


def test_features_are_those_of_dla_features(
    planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = [planned.manifest, "--rows-per-shard", ROWS, "-q"]
    with own_process(monkeypatch):
        assert bulk("features", *inputs, "-o", tmp_path / "f", "--at", "level4") == 1
        assert bulk("features", *inputs, "-o", tmp_path / "h", "--half") == 1
        assert bulk("features", *inputs, "-o", tmp_path / "x", "--at", "level9") == 2
    assert main(["features", str(planned.folder / "photos"), "-o", str(tmp_path / "ref.parquet"), "--at", "level4",
                 "--batch-size", str(ROWS), "--threads", "1", "--engine", "openvino", "-q"]) == 1  # fmt: skip
    collected(tmp_path / "f", tmp_path / "f.parquet")
    assert pq.read_table(tmp_path / "f.parquet").equals(pq.read_table(tmp_path / "ref.parquet"))
    collected(tmp_path / "h", tmp_path / "h.npz")
    with np.load(tmp_path / "h.npz") as half:
        assert half["features"].shape == (17, 256)
        assert np.isnan(half["features"][-2:]).all()
    schema = pq.read_schema(tmp_path / "h" / "part-000000.parquet")
    assert str(schema.field("features").type) == "fixed_size_list<element: halffloat>[256]"
    capsys.readouterr()
    assert bulk("collect", tmp_path / "f", "-o", tmp_path / "f.jsonl") == 2
    assert "Allowed: a file that ends in .parquet or .npz" in capsys.readouterr().err


def test_everything_in_a_bucket_and_no_key_in_any_file(
    planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with bucket(monkeypatch) as store, own_process(monkeypatch):
        for photo in planned.photos:
            store.write(f"s3://photos/in/{Path(photo).name}", Path(photo).read_bytes())
        assert bulk("plan", "s3://photos/in/", "-o", "s3://photos/m.parquet") == 0
        flags = ("s3://photos/m.parquet", "-o", "s3://photos/out", "--rows-per-shard", ROWS)
        assert bulk("predict", *flags, "--shard", "0/2") == 0
        assert bulk("predict", *flags) == 1
        records = collected("s3://photos/out", tmp_path / "all.jsonl")
        files = {stored.uri: store.read(stored.uri) for stored in store.walk("s3://photos/out")}
    here = re.escape(f"{planned.folder}/photos/")
    assert records.decode() == re.sub(here, "s3://photos/in/", planned.records.decode())
    assert len(files) == 5
    told = capfd.readouterr()
    for text in (*files.values(), records, told.err.encode(), told.out.encode()):
        assert not any(secret.encode() in text for secret in (KEY, SECRET))


def test_wrong_usage(planned: Planned, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    for words, said in (
        (("predict", "-o", out), "MANIFEST is missing"),
        (("predict", planned.manifest), "--output is missing"),
        (
            ("predict", planned.manifest, "-o", out, "--shard", "3/3"),
            "shard is 3/3. Allowed: I/N with I from 0 to N - 1",
        ),
        (("predict", planned.manifest, "-o", out, "--address", "auto"), "Add --runner ray"),
        (("predict", planned.manifest, "-o", "s3://k:s@b/out"), "the address has a user name or password"),
        (("predict", planned.manifest, "-o", planned.manifest), "is a file"),
        (("predict", planned.photos[0], "-o", out), "is not an intact manifest"),
        (("collect", tmp_path, "-o", tmp_path / "x.jsonl"), "has no bulk run"),
        (("collect", planned.folder / "out", "-o", tmp_path / "x.txt"), "Allowed: a file that ends in .jsonl, .csv"),
        (("collect", planned.folder / "out", "-o", tmp_path / "x.csv", "--unpack", tmp_path), "--unpack is for masks"),
        (("predikt",), 'no command of dla bulk is called "predikt". Nearest: predict'),
    ):
        assert bulk(*words) in (2, 3), words
        assert said in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("module", "words", "extra"),
    [
        ("pyarrow.parquet", ("bulk", "plan", "photos", "-o", "new.parquet"), "bulk"),
        ("pyarrow.parquet", ("predict", "t.parquet"), "bulk"),
        ("pyarrow.fs", ("predict", "s3://bucket/1.jpg"), "bulk"),
        ("fsspec", ("predict", "fsspec:memory://1.jpg"), "bulk"),
        ("ray", ("bulk", "predict", "m.parquet", "-o", "out", "--runner", "ray"), "ray"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    module: str, words: tuple[str, ...], extra: str, planned: Planned, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").symlink_to(planned.folder / "photos")
    shutil.copy(planned.manifest, "m.parquet")
    (tmp_path / "t.parquet").touch()
    stores._arrow_store.cache_clear()
    stores._fsspec_store.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    assert main(list(words)) == 3
    assert f"pip install '.[{extra}]'" in capsys.readouterr().err


def dense(patch: pytest.MonkeyPatch, network: Any) -> None:
    """Run this network, whose answers are known, wherever one is loaded."""
    object.__setattr__(network.engine, "name", "OpenVINO on cpu")
    patch.setattr("dla.bulk.shard.load", lambda *args, **options: network)
    patch.setattr("dla.inference.classifier.load", lambda *args, **options: network)


@pytest.mark.parametrize("command", ["segment", "edges"])
def test_masks_and_boundaries_are_those_of_the_command(
    command: str, planned: Planned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from support import pixel_models

    dense(monkeypatch, pixel_models.segmenter() if command == "segment" else pixel_models.edge_detector())
    with own_process(monkeypatch):
        assert (
            bulk(command, planned.manifest, "-o", tmp_path / "out", "--rows-per-shard", ROWS, "--model", "x", "-q") == 1
        )
    capsys.readouterr()
    for form in ("jsonl", "csv"):
        assert main([command, str(planned.folder / "photos"), "--model", "x", "--format", form, "-q"]) == 1
        expected = capsys.readouterr().out
        assert collected(tmp_path / "out", tmp_path / f"all.{form}").decode() == expected
    assert main([command, str(planned.folder / "photos"), "--model", "x", "-o", str(tmp_path / "ref"), "-q"]) == 1
    assert bulk("collect", tmp_path / "out", "-o", tmp_path / "u.jsonl", "--unpack", tmp_path / "png", "-q") == 1
    unpacked = files_in(tmp_path / "png")
    assert len(unpacked) == 15 * (1 if command == "segment" else 3)
    assert unpacked.items() <= files_in(tmp_path / "ref").items()
    assert json.loads((tmp_path / "u.jsonl").read_text().splitlines()[0])["files"].keys() <= {
        "mask",
        "edges",
        "thin",
        "lines",
    }
