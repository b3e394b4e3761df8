"""`dla features` from the outside: one row an input, in order, in a file that is whole or not there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import dla
from dla.cli import main
from dla.inference import feature_files as report
from support.photos import CHELSEA, COFFEE, ROCKET, crops, jpeg

pytestmark = pytest.mark.slow

SETTINGS = ["-q", "--threads", "1"]


def features(*words: str) -> int:
    return main(["features", *words, *SETTINGS])


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Twelve inputs, the first and three more of them wrong; one cut, one called by bytes that are no text."""
    folder = tmp_path_factory.mktemp("inputs")
    paths = []
    for i, crop in enumerate(crops(10)):
        path = folder / f"{i} ü.jpg"
        data = jpeg(crop)
        path.write_bytes(b"" if i == 0 else data[: len(data) // 2] if i == 4 else data)
        paths.append(str(path))
    strange = os.path.join(os.fsencode(folder), b"caf\xe9.png")
    shutil.copy(CHELSEA, strange)
    return [*paths, os.fsdecode(strange), str(folder / "gone.jpg")]


@pytest.mark.parametrize("at", ["pre_logits", "level4.tree1"])
def test_npz_and_parquet_hold_what_python_gives(at: str, inputs: list[str], tmp_path: Path) -> None:
    npz, parquet = tmp_path / "f.npz", tmp_path / "f.parquet"
    for file in (npz, parquet):
        assert features(*inputs, "--at", at, "-o", str(file), "--allow-truncated") == 1
    expected = list(dla.load().features(inputs, at, allow_truncated=True))
    shape = next(f.values.shape for f in expected if f.values is not None)
    assert sum(f.error is not None for f in expected) == 2
    assert [f.truncated for f in expected].index(True) == 4

    with np.load(npz) as arrays:  # which refuses pickles
        found = dict(arrays)
    assert list(found) == [
        "schema", "at", "model", "weights_sha256", "path", "error_code", "error_message", "truncated", "features",
    ]  # fmt: skip
    assert [str(found[name]) for name in ("schema", "at", "model")] == ["dla.features/1", at, "shipped:tiny200"]
    assert found["path"].tolist() == inputs
    assert found["error_code"].tolist() == [f.error.code if f.error else "" for f in expected]
    assert found["error_message"].tolist() == [f.error.message if f.error else "" for f in expected]
    assert found["truncated"].tolist() == [f.truncated for f in expected]
    assert found["features"].dtype == np.float32
    assert found["features"].shape == (len(inputs), *shape)

    table = pq.read_table(parquet)
    about = {k.decode(): v.decode() for k, v in table.schema.metadata.items()}
    assert (about["schema"], about["at"], about["model"]) == ("dla.features/1", at, "shipped:tiny200")
    assert tuple(json.loads(about["shape"])) == shape
    assert table["path"].to_pylist() == [os.fsencode(p).decode("utf-8", "backslashreplace").replace("\\xe9", "\\udce9")
                                         for p in inputs]  # fmt: skip
    assert table["error_code"].to_pylist() == [f.error.code if f.error else None for f in expected]
    assert table["truncated"].to_pylist() == [f.truncated for f in expected]
    for f, row, values in zip(expected, found["features"], table["features"].to_pylist(), strict=True):
        if f.values is None:
            assert np.isnan(row).all()
            assert values is None
        else:
            assert np.array_equal(row, f.values)
            assert np.array_equal(np.reshape(np.float32(values), shape), f.values)


def test_all_failed_is_still_a_file_of_the_right_shape(tmp_path: Path) -> None:
    out = tmp_path / "f.npz"
    assert features("gone.jpg", "gone too.jpg", "--at", "level5", "-o", str(out)) == 1
    found = np.load(out)["features"]
    assert found.shape == (2, *dla.load().features_shape("level5"))
    assert np.isnan(found).all()


def test_row_groups_are_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "ROW_GROUP_BYTES", 3 * 4 * 256)
    out = tmp_path / "f.parquet"
    assert features(*[str(COFFEE)] * 7, "-o", str(out)) == 0
    file = pq.ParquetFile(out)
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [3, 3, 1]


def test_equal_features_are_equal_files(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz", "a.parquet", "b.parquet"):
        assert features(str(COFFEE), "gone.jpg", "-o", str(tmp_path / name)) == 1
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["features", str(COFFEE), "gone.jpg", "-v", "--at", "level5", "-o", str(tmp_path / "f.npz")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    side = dla.info("shipped:tiny200").input_size[1] // 32
    assert f"level5: 256 x {side} x {side} numbers per photo" in err
    assert "dla: gone.jpg: there is no such file" in err
    assert f"2 photos: 1 answered, 1 failed (1 not_found; see {tmp_path / 'f.npz'})" in err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([str(COFFEE)], 2, ".npz or .parquet, as in: dla features cat.jpg holiday/ --output features.npz\n"),
        ([str(COFFEE), "-o", "f.csv"], 2, "--output is f.csv. Allowed: a file that ends in .npz or .parquet"),
        (["-o", "f.npz"], 2, "nothing to extract features of: name photos"),
        (["empty", "-o", "f.npz"], 2, "nothing to extract features of: no photos in empty"),
        (
            [str(COFFEE), "-o", "f.npz", "--at", "level7"],
            2,
            'no node of this network is called "level7". Nearest: level',
        ),
        ([str(COFFEE), "-o", "no/such.npz"], 2, "--output no/such.npz: there is no folder no. Create it, or"),
        ([str(COFFEE), "-o", "d.npz"], 2, "--output d.npz is a folder. Give a file"),
        ([str(COFFEE), "-o", "f.npz", "--model", "dla99"], 2, 'no network is called "dla99"'),
    ],
)
def test_wrong_usage_leaves_nothing(
    words: list[str], code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "d.npz"):
        (tmp_path / folder).mkdir()
    assert features(*words) == code
    assert message in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["d.npz", "empty"]


def test_a_missing_package_is_said_with_its_pip_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert features(str(COFFEE), "-o", str(tmp_path / "f.parquet")) == 3
    assert capsys.readouterr().err == "dla: parquet files need pyarrow: pip install 'dla[train]'\n"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_a_run_that_breaks_leaves_the_old_file(
    ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / f"f.{ending}"
    out.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report._Npz, "finish", full)
    monkeypatch.setattr(report._Parquet, "finish", full)
    assert features(str(COFFEE), "-o", str(out), "--force") == 1
    assert capsys.readouterr().err == f"dla: {out}: No space left on device\n"
    assert os.listdir(tmp_path) == [out.name]
    assert out.read_bytes() == b"old"


@pytest.mark.parametrize("ending", ["npz", "parquet"])
def test_two_runs_into_one_file_do_not_meet(ending: str, tmp_path: Path) -> None:
    out, about = tmp_path / f"f.{ending}", {"at": "pre_logits", "model": "m", "weights_sha256": "0"}
    one, two = (dla.Features(name, np.ones(3, np.float32)) for name in "ab")
    with report.open_features(str(out), (3,), about) as first:
        first.write(one)
        with report.open_features(str(out), (3,), about) as second:
            second.write(two)
            second.write(two)
        whole = out.read_bytes()
        with pytest.raises(dla.UsageError), report.open_features(str(out), (3,), about):
            raise dla.UsageError("a run that fails")
        assert out.read_bytes() == whole
        assert len(os.listdir(tmp_path)) == 2
    assert os.listdir(tmp_path) == [out.name]
    paths = np.load(out)["path"].tolist() if ending == "npz" else pq.read_table(out)["path"].to_pylist()
    assert paths == ["a"]


def test_the_file_has_the_rights_of_any_new_file(tmp_path: Path) -> None:
    out, other = tmp_path / "f.npz", tmp_path / "other"
    other.touch()
    assert features(str(COFFEE), "-o", str(out)) == 0
    assert out.stat().st_mode == other.stat().st_mode


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code", "ending"), [(signal.SIGINT, 130, "npz"), (signal.SIGTERM, 143, "parquet")])
def test_stopped_it_leaves_nothing(sent: int, code: int, ending: str, tmp_path: Path) -> None:
    out = tmp_path / f"f.{ending}"
    command = [sys.executable, "-m", "dla", "features", "-", "-o", str(out), *SETTINGS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(f"{ROCKET}\n".encode() * 100)
        process.stdin.flush()  # and left open, so that the run does not end by itself
        while not os.listdir(tmp_path):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(sent)
        process.wait(120)
        assert process.returncode == code
        assert process.stderr.read() == b""
    assert os.listdir(tmp_path) == []
