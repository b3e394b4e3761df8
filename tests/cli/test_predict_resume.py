"""`dla predict --resume`, `--fail-fast` and `--pictures`."""

from __future__ import annotations

import fcntl
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dla.cli import main
from support.photos import CHELSEA, COFFEE, crops, jpeg

pytestmark = pytest.mark.slow

SETTINGS = ["-q", "--batch-size", "4", "--threads", "1"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """60 inputs, a tenth of them broken or missing, some in a row."""
    folder = tmp_path_factory.mktemp("inputs")
    paths = []
    for i, crop in enumerate(crops(60)):
        path = folder / f"{i}, photo.jpg"
        if i % 10 != 3 and i not in (20, 21, 22, 59):
            path.write_bytes(jpeg(crop))
        paths.append(str(path))
    return paths


def predict(*words: str) -> int:
    return main(["predict", *words, *SETTINGS])


@pytest.fixture(scope="module")
def finished(inputs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of uninterrupted runs, out.jsonl and out.csv, with what is written beside them."""
    folder = tmp_path_factory.mktemp("finished")
    for ending in ("jsonl", "csv"):
        assert predict(*inputs, "-o", str(folder / f"out.{ending}")) == 1
    return folder


@pytest.fixture(scope="module")
def whole(finished: Path) -> dict[str, bytes]:
    """What an uninterrupted run writes, by the file's ending."""
    return {ending: (finished / f"out.{ending}").read_bytes() for ending in ("jsonl", "csv")}


def copied(folder: Path, to: Path, name: str) -> Path:
    """The output `name` of a run in `folder`, copied with what lies beside it."""
    for path in folder.glob(f"{name}*"):
        shutil.copy2(path, to)
    return to / name


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_killed_at_random_moments_and_gone_on_with(
    ending: str, inputs: list[str], whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / f"out.{ending}"
    command = [sys.executable, "-m", "dla", "predict", "-", "-o", str(out), "--workers", "1", *SETTINGS]
    generator = random.Random(ending)
    for resume in ([], ["--resume"]):
        size = (out.stat().st_size if out.exists() else 0) + generator.randrange(len(whole[ending]) // 3)
        with subprocess.Popen([*command, *resume], stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            process.stdin.write("\n".join(inputs).encode())
            process.stdin.flush()  # and left open, so that the run does not end by itself
            while not (out.exists() and out.stat().st_size > size):
                assert process.poll() is None
                time.sleep(0.002)
            process.kill()
        assert process.returncode == -signal.SIGKILL
    assert predict(*inputs, "-o", str(out), "--resume") == 1
    assert out.read_bytes() == whole[ending]


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_cut_off_at_any_byte(
    ending: str, inputs: list[str], finished: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = copied(finished, tmp_path, f"out.{ending}")
    for size in (0, 20, *random.Random(1).sample(range(len(whole[ending])), 4), len(whole[ending]) - 1):
        out.write_bytes(whole[ending][:size])
        assert predict(*inputs, "-o", str(out), "--resume") == 1
        assert out.read_bytes() == whole[ending]


@pytest.mark.parametrize("name", ["photos.tar", "photos.zip", "photos.parquet"])
def test_photos_in_an_archive_or_a_table(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The records are those of the files, and a cut-off run goes on to the same bytes."""
    monkeypatch.chdir(tmp_path)
    photos = {f"{n}.jpg": jpeg(photo) for n, photo in enumerate(crops(5))}
    for photo, data in photos.items():
        (tmp_path / photo).write_bytes(data)
    if name == "photos.parquet":
        pq.write_table(pa.table({"image": list(photos.values())}), name, row_group_size=2)
    elif name == "photos.tar":
        with tarfile.open(name, "w") as tar:
            for photo in photos:
                tar.add(photo)
    else:
        with zipfile.ZipFile(name, "w") as archive:
            for photo in photos:
                archive.write(photo)
    assert predict(*photos, "-o", "files.jsonl") == predict(name, "-o", "out.jsonl") == 0
    records = [[json.loads(line) for line in Path(f).read_text().splitlines()] for f in ("files.jsonl", "out.jsonl")]
    paths = [[record.pop("path") for record in one] for one in records]
    assert records[0] == records[1]
    named = [f"{name}#{n}" if name == "photos.parquet" else f"{name}!{photo}" for n, photo in enumerate(photos)]
    assert paths == [list(photos), named]
    whole = Path("out.jsonl").read_bytes()
    Path("out.jsonl").write_bytes(whole[: len(whole) // 2])
    assert predict(name, "-o", "out.jsonl", "--resume") == 0
    assert Path("out.jsonl").read_bytes() == whole


def test_what_is_answered_is_not_answered_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = [str(tmp_path / f"{i}.jpg") for i in range(7)]
    for path, crop in zip(photos, crops(7), strict=True):
        Path(path).write_bytes(jpeg(crop))
    out = tmp_path / "out.jsonl"
    assert predict(*photos[:6], "-o", str(out)) == 0
    for path in photos[:4]:
        Path(path).unlink()
    capsys.readouterr()
    assert main(["predict", *photos, "-o", str(out), "--resume", *SETTINGS[1:]]) == 0
    assert "7 photos (4 of them in an earlier run): all answered." in capsys.readouterr().err
    assert [json.loads(line)["path"] for line in out.read_text().splitlines()] == photos
    before = out.read_bytes()
    for path in photos:
        Path(path).unlink(missing_ok=True)
    assert predict(*photos, "-o", str(out), "--resume") == 0  # nothing is left, so the last batch stays too
    assert out.read_bytes() == before


def test_the_side_file_says_the_model_and_the_settings(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    assert predict(str(CHELSEA), "-o", str(out), "--topk", "2") == 0
    run = json.loads((tmp_path / "out.csv.run.json").read_text())
    assert run["schema"] == "dla.predict.run/1"
    assert run["model"]["origin"] == "shipped:tiny200"
    assert len(run["model"]["weights_sha256"]) == 64
    assert run["settings"] == {
        "format": "csv", "topk": 2, "batch_size": 4, "allow_truncated": False, "max_megapixels": 179.0,
        "max_megabytes": 600.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--topk", "3"], "was started with topk 5, and this is 3"),
        (["--allow-truncated"], "was started with allow_truncated false, and this is true"),
        (["--batch-size", "2"], "was started with batch_size 4, and this is 2"),
    ],
)
def test_other_settings_are_exit_2(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    assert predict(str(CHELSEA), "-o", str(out)) == 0
    before = out.read_bytes()
    assert main(["predict", str(CHELSEA), "-o", str(out), "--resume", *SETTINGS, *words]) == 2
    assert message in capsys.readouterr().err
    assert out.read_bytes() == before


def test_a_run_goes_on_with_its_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is fastest may be measured anew in between."""
    out = tmp_path / "out.jsonl"
    for engine, title in (("onnx", "ONNX Runtime"), ("torch", "PyTorch")):
        assert predict(str(CHELSEA), "-o", str(out), "--force", "--engine", engine) == 0
        assert predict(str(CHELSEA), str(COFFEE), "-o", str(out), "--resume") == 0
        assert json.loads((tmp_path / "out.jsonl.run.json").read_text())["model"]["engine"] == f"{title} on cpu"
    assert predict(str(CHELSEA), str(COFFEE), "-o", str(out), "--resume", "--engine", "openvino") == 2
    assert "on PyTorch on cpu, and this is shipped:tiny200 on OpenVINO on cpu" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["weights_sha256", "config_sha256"])
def test_another_model_is_exit_2(key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, run_file = tmp_path / "out.jsonl", tmp_path / "out.jsonl.run.json"
    assert predict(str(CHELSEA), "-o", str(out)) == 0
    run = json.loads(run_file.read_text())
    run_file.write_text(json.dumps(run | {"model": run["model"] | {key: "0" * 64}}))
    assert predict(str(CHELSEA), "-o", str(out), "--resume") == 2
    assert "another model than shipped:tiny200 on OpenVINO on cpu is now" in capsys.readouterr().err
    run_file.write_text(json.dumps(run | {"model": run["model"] | {key: "0" * 64, "origin": "timm/dla60"}}))
    assert predict(str(CHELSEA), "-o", str(out), "--resume") == 2
    assert "the model timm/dla60 on OpenVINO on cpu, and this is shipped:tiny200" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", "[" * 100_000, '{"schema": "dla.predict.run/1", "model": 1, "settings": 2}']
)
def test_a_side_file_that_says_nothing(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.jsonl"
    assert predict(str(CHELSEA), "-o", str(out)) == 0
    (tmp_path / "out.jsonl.run.json").write_text(text)
    assert predict(str(CHELSEA), "-o", str(out), "--resume") == 2
    assert "out.jsonl.run.json does not say which model" in capsys.readouterr().err
    (tmp_path / "out.jsonl.run.json").unlink()
    assert predict(str(CHELSEA), "-o", str(out), "--resume") == 2
    assert "out.jsonl has no out.jsonl.run.json next to it" in capsys.readouterr().err
    before = out.read_bytes()
    assert predict(str(CHELSEA), "-o", str(out)) == 2
    assert f"{out} exists already: --resume continues it, --force replaces it\n" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert predict(str(CHELSEA), "-o", str(out), "--force") == 0


def test_other_inputs_are_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.jsonl"
    assert predict(str(CHELSEA), str(COFFEE), "-o", str(out)) == 0
    before = out.read_bytes()
    assert predict(str(COFFEE), str(CHELSEA), "-o", str(out), "--resume") == 2
    assert f"record 1 of {out} is of {CHELSEA}, but now that input is {COFFEE}" in capsys.readouterr().err
    assert predict(str(CHELSEA), "-o", str(out), "--resume") == 2
    assert f"record 2 of {out} is of {COFFEE}, but now there are fewer inputs" in capsys.readouterr().err
    assert out.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "what"),
    [([], "standard output"), (["-o", "out.json"], "json in out.json"), (["-o", "out"], "table in out")],
)
def test_what_cannot_be_gone_on_with(words: list[str], what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(str(CHELSEA), "--resume", *words) == 2
    assert f"--resume cannot continue {what}." in capsys.readouterr().err


def test_resume_without_a_file_begins_one(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert predict(str(CHELSEA), "-o", str(out), "--resume") == 0
    assert len(out.read_text().splitlines()) == 1


def test_fail_fast_stops_after_the_records_so_far(
    inputs: list[str], whole: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    assert predict(*inputs, "-o", str(out), "--fail-fast") == 1
    assert capsys.readouterr().err == f"dla: {inputs[3]}: there is no such file\n"
    assert [json.loads(line)["path"] for line in out.read_text().splitlines()] == inputs[:3]
    assert predict(*inputs, "-o", str(out), "--resume") == 1  # what stopped it was not written, so it comes again
    assert out.read_bytes() == whole["jsonl"]


def test_a_picture_of_each_answered_photo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = []
    for folder, crop in zip("abc", crops(3), strict=True):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / f"{'long' * 50}.jpg"
        path.write_bytes(jpeg(crop))
        photos.append(str(path))
    tall = tmp_path / "tall.png"
    Image.new("L", (3, 5000)).save(tall)
    pictures = tmp_path / "new" / "pictures"
    words = [*photos, "gone.jpg", str(tall), "--topk", "2", "--pictures", str(pictures)]
    assert main(["predict", *words, "--format", "jsonl", *(word for word in SETTINGS if word != "-q")]) == 1
    out, err = capsys.readouterr()
    assert f"dla: the pictures are in {pictures}\n" in err
    records = [json.loads(line) for line in out.splitlines()]
    assert [len(r.get("predictions", ())) for r in records] == [2, 2, 2, 0, 2]
    names = sorted(os.listdir(pictures))
    assert len(names) == 4
    assert all(name.startswith(("long", "tall-")) and name.endswith(".png") for name in names)
    for name in names:
        with Image.open(pictures / name) as page:
            bars = 5 * 30 + 24  # as many as always, whatever --topk says
            assert page.width == 480
            assert bars < page.height <= 960 + bars


def by_stdin(monkeypatch: pytest.MonkeyPatch, paths: list[str], *words: str) -> int:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(paths).encode())))
    return predict("-", *words)


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
@pytest.mark.parametrize("place", [0, 3, 9, 18])
def test_one_other_input_in_the_middle_changes_nothing(
    ending: str, place: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, paths = tmp_path / f"out.{ending}", []
    for i, crop in enumerate(crops(20)):
        paths.append(str(tmp_path / f"{i}.jpg"))
        Path(paths[-1]).write_bytes(jpeg(crop))
    assert by_stdin(monkeypatch, paths, "-o", str(out)) == 0
    before = out.read_bytes()
    other = [*paths[:place], str(COFFEE), *paths[place + 1 :]]
    assert by_stdin(monkeypatch, other, "-o", str(out), "--resume") == 2
    assert f"record {place + 1} of {out} is of {paths[place]}, but now that input is" in capsys.readouterr().err
    assert out.read_bytes() == before


@pytest.mark.parametrize("junk", [b"garbage", b"[" * 100_000])
@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_spoilt_line_in_the_middle_changes_nothing(
    ending: str, junk: bytes, inputs: list[str], finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copied(finished, tmp_path, f"out.{ending}")
    lines = out.read_bytes().split(b"\n")
    lines[10] = junk
    out.write_bytes(b"\n".join(lines))
    before = out.read_bytes()
    assert predict(*inputs, "-o", str(out), "--resume") == 2
    assert f"{out}, line 11: this is not a record" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_a_name_with_a_carriage_return(tmp_path: Path) -> None:
    out, paths = tmp_path / "out.csv", [str(CHELSEA), "gone\r1.jpg", str(COFFEE), str(CHELSEA)]
    assert predict(*paths, "-o", str(out)) == 1
    whole = out.read_bytes()
    out.write_bytes(whole[:-9])
    assert predict(*paths, "-o", str(out), "--resume") == 1
    assert out.read_bytes() == whole


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--topk", "0"], "--topk is 0. Allowed: 1 to 100,000"),
        (["--batch-size", "0"], "--batch-size is 0. Allowed: 1 to 100,000"),
        (["--workers", "-1"], "--workers is -1. Allowed: 0 to 1,024"),
        (["--threads", "-1"], "--threads is -1. Allowed: 1 to 1,024"),
        (["--threads", "99999999999"], "--threads is 99999999999. Allowed: 1 to 1,024"),
        (["--batch-size", "99999999999999999999"], "Allowed: 1 to 100,000"),
        (["--threads", "0"], "--threads is 0. Allowed: 1 to 1,024"),
        *((["--max-megapixels", n], "--max-megapixels is ") for n in (".inf", "-1", "0", ".nan", "1e305")),
        (["--max-megapixels", "inf"], "Allowed: a number"),
        (["--max-megabytes", "0"], "--max-megabytes is 0.0. Allowed: a number above 0, such as 600"),
        (["--pictures", __file__], "pictures is " + __file__),
        (["--pictures", f"{__file__}/sub"], "pictures is " + __file__),
    ],
)  # fmt: skip
def test_wrong_usage_leaves_the_file_alone(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "keep.jsonl"
    out.write_bytes(b"kept")
    assert main(["predict", str(CHELSEA), "-o", str(out), "--force", *SETTINGS, *words]) == 2
    assert message in capsys.readouterr().err
    assert out.read_bytes() == b"kept"


@pytest.mark.parametrize(
    ("name", "way"), [("out.jsonl", "--resume"), ("out.jsonl", "--force"), ("out.json", "--force")]
)
def test_a_file_that_another_run_writes(
    name: str, way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / name
    assert predict(str(CHELSEA), "-o", str(out)) == 0
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with out.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert predict(str(CHELSEA), "-o", str(out), way) == 2
        assert f"another run is writing to {out}." in capsys.readouterr().err
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files
    assert predict(str(CHELSEA), "-o", str(out), "--force") == 0


def test_a_run_locks_its_file_until_it_is_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "dla", "predict", "-", "-o", str(out), *SETTINGS]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(f"{CHELSEA}\n".encode() * 40)
        process.stdin.flush()  # and left open, so that the run does not end by itself
        while not (out.exists() and out.stat().st_size > 0):
            assert process.poll() is None
            time.sleep(0.01)
        assert predict(str(CHELSEA), "-o", str(out), "--resume") == 2
        assert f"another run is writing to {out}." in capsys.readouterr().err
        process.kill()
    assert predict(*[str(CHELSEA)] * 40, "-o", str(out), "--resume") == 0
    assert len(out.read_text().splitlines()) == 40


def test_outputs_that_are_no_files(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dla", "predict", str(CHELSEA), "--format", "jsonl", *SETTINGS, "-o"]
    piped = subprocess.run([*command, "/dev/stdout"], stdout=subprocess.PIPE, check=True)
    assert json.loads(piped.stdout)["path"] == str(CHELSEA)
    with (tmp_path / "out").open("wb") as file:
        subprocess.run([*command, "/dev/stdout"], stdout=file, check=True)
    assert (tmp_path / "out").read_bytes() == piped.stdout
    with open("/dev/null", "wb") as null:
        fcntl.flock(null, fcntl.LOCK_EX | fcntl.LOCK_NB)
        subprocess.run([*command, "/dev/null"], check=True)
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen([*command, str(tmp_path / "pipe")]) as process:
        assert (tmp_path / "pipe").read_bytes() == piped.stdout
    assert process.returncode == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("form", ["jsonl", "csv", "table", "json"])
def test_a_full_disk_is_said_with_the_files_name(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(str(CHELSEA), "-o", "/dev/full", "--format", form) == 1
    assert capsys.readouterr().err == "dla: /dev/full: No space left on device\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_said_with_the_pictures_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dla.inference.classifier.output_name", lambda _: "full")
    (tmp_path / "full.png").symlink_to("/dev/full")
    assert predict(str(CHELSEA), "-o", str(tmp_path / "out.jsonl"), "--pictures", str(tmp_path)) == 1
    assert capsys.readouterr().err == f"dla: {tmp_path / 'full.png'}: No space left on device\n"


@pytest.mark.parametrize(
    ("given", "refused"),
    [(".", True), ("seen", True), ("**/*.png", True), ("*/*", True), ("seen/*.png", True),
     ("a", False), ("a.jpg", False), ("*.png", False), ("*", False), ("**/*.jpg", False), ("a/**/*", False)],
)  # fmt: skip
def test_pictures_are_not_put_where_photos_are_looked_for(
    given: str, refused: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "seen"):
        (tmp_path / folder).mkdir()
    for name in ("a.jpg", "a.png", "a/a.png"):
        Path(name).write_bytes(jpeg(crops(1)[0]))
    for _ in range(2):
        code = predict(given, "-o", "out.jsonl", "--force", "--pictures", "seen")
        assert code == (2 if refused else 0)
        assert (f"--pictures seen is in {given}, which is an input." in capsys.readouterr().err) == refused
    assert (not os.listdir("seen")) == refused
