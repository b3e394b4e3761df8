"""`dla predict` from the outside: one record an input, in order, whatever the inputs are."""

import csv
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import dla
from dla.cli import main
from support.photos import CHELSEA, COFFEE, ROCKET, crops, jpeg, troubled_folder

pytestmark = pytest.mark.slow

QUIET = ["-q", "--format", "jsonl"]


def records(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, object]]:
    main(["predict", *words, *QUIET])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """200 inputs: permuted, some twice, some broken, some missing, equal names in two folders."""
    folder = tmp_path_factory.mktemp("inputs")
    paths = []
    for i, crop in enumerate(crops(120)):
        path = folder / "ab"[i % 2] / f"{i // 2}.jpg"
        path.parent.mkdir(exist_ok=True)
        data = jpeg(crop)
        path.write_bytes(data[: len(data) // 2] if i % 15 == 4 else b"" if i % 15 == 9 else data)
        paths.append(str(path))
    paths += [str(folder / f"missing{i}.jpg") for i in range(5)] + paths[:75]
    random.Random(0).shuffle(paths)
    assert len(paths) == 200
    return paths


@pytest.fixture(scope="module")
def alone(inputs: list[str]) -> dict[str, dla.Prediction]:
    """Each file's answer when it is the only input."""
    classifier = dla.load()
    return {path: classifier.predict(path) for path in set(inputs)}


@pytest.mark.parametrize("batch", ["1", "8"])
@pytest.mark.parametrize("workers", ["0", "4"])
def test_each_record_is_its_own_files(
    inputs: list[str],
    alone: dict[str, dla.Prediction],
    batch: str,
    workers: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = records(capsys, *inputs, "--batch-size", batch, "--workers", workers)
    assert [r["path"] for r in found] == inputs
    for record in found:
        expected = alone[str(record["path"])].to_dict()
        if "error" in expected:
            assert record == expected
            continue
        ours, theirs = record["predictions"], expected["predictions"]
        assert [c["probability"] for c in ours] == pytest.approx([c["probability"] for c in theirs], abs=1e-5)
        assert ours[0]["index"] == theirs[0]["index"]


def test_a_folder_with_every_trouble(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = troubled_folder(tmp_path / "photos")
    assert main(["predict", str(tmp_path / "photos"), "--format", "jsonl"]) == 1
    out, err = capsys.readouterr()
    found = [json.loads(line) for line in out.splitlines()]
    assert [os.path.basename(r["path"]) for r in found] == sorted(expected)
    codes = [r["error"]["code"] if "error" in r else None for r in found]
    assert codes == [expected[name] for name in sorted(expected)]
    assert "8 photos: 5 answered, 3 failed (1 truncated, 1 empty_file, 1 not_an_image). " in err
    assert "skipped 1 file of other kinds: 1 ." in err
    by_name = {os.path.basename(r["path"]): r for r in found}
    top = by_name["a_good.png"]["predictions"]
    rotated, animated = by_name["g_rotated.jpg"]["predictions"], by_name["h_animated.gif"]["predictions"]
    assert rotated[0]["class_id"] == top[0]["class_id"] == animated[0]["class_id"]


def test_truncated_files_on_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "half.jpg"
    path.write_bytes(ROCKET.read_bytes()[:60_000])
    found = records(capsys, str(path), "--allow-truncated")
    assert found[0]["truncated"] is True
    assert found[0]["predictions"]


def test_the_schema_of_a_record(capsys: pytest.CaptureFixture[str]) -> None:
    (record,) = records(capsys, str(CHELSEA), "--topk", "3")
    assert list(record) == ["schema", "path", "predictions"]
    assert record["schema"] == "dla.predict/1"
    assert [c["rank"] for c in record["predictions"]] == [1, 2, 3]
    assert set(record["predictions"][0]) == {"rank", "index", "class_id", "label", "probability"}
    probabilities = [c["probability"] for c in record["predictions"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert 0 < sum(probabilities) <= 1


def test_formats_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = [str(CHELSEA), str(tmp_path / "none.jpg"), str(COFFEE)]
    lines = records(capsys, *photos)
    for name in ("out.json", "out.jsonl", "out.csv", "out.txt"):
        assert main(["predict", *photos, "-q", "-o", str(tmp_path / name)]) == 1
        assert capsys.readouterr().out == ""
    assert json.loads((tmp_path / "out.json").read_text()) == lines
    assert [json.loads(x) for x in (tmp_path / "out.jsonl").read_text().splitlines()] == lines
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert [r["path"] for r in rows] == photos
    assert rows[1]["error_code"] == "not_found"
    assert float(rows[0]["probability_5"]) == lines[0]["predictions"][4]["probability"]
    text = (tmp_path / "out.txt").read_text()
    assert text.splitlines()[0] == photos[0]
    assert f"{lines[0]['predictions'][0]['probability']:.1%}".replace("%", " %") in text
    assert "\n  no answer: there is no such file\n" in text


@pytest.mark.parametrize("what", ["empty", "empty/*.jpg", "-"])
def test_nothing_to_do_is_exit_2(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n")))
    assert main(["predict", what if what == "-" else str(tmp_path / what)]) == 2
    assert "nothing to classify" in capsys.readouterr().err


def test_an_output_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(CHELSEA), "-q", "-o", str(tmp_path / "no" / "such.jsonl")]) == 1
    assert "such.jsonl: No such file or directory" in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_said() -> None:
    done = run_dla([str(CHELSEA), "-o", "/dev/full", "--format", "jsonl"])
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def run_dla(words: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dla", "predict", *words]
    return subprocess.run(command, capture_output=True, text=True, **options)


def test_paths_from_stdin_and_a_closed_pipe(tmp_path: Path) -> None:
    for i in range(40):
        shutil.copy(ROCKET, tmp_path / f"{i:02d}.jpg")
    command = f"find {tmp_path} -name '*.jpg' | sort | {sys.executable} -m dla predict - -q --format jsonl | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["path"] == str(tmp_path / "00.jpg")
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_it_ends_soon_with_whole_records(sent: int, code: int, tmp_path: Path) -> None:
    shutil.copy(ROCKET, tmp_path / "a.jpg")
    out = tmp_path / "out.json"
    listed = "\n".join([str(tmp_path / "a.jpg")] * 20_000).encode()
    command = [sys.executable, "-m", "dla", "predict", "-", "-q", "-o", str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        os.set_blocking(process.stdin.fileno(), False)
        process.stdin.write(listed[:60_000])
        process.stdin.flush()
        while not out.exists() or out.stat().st_size < 5_000:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(sent)
        process.wait(120)
        assert process.returncode == code
        assert process.stderr.read() == b""
    assert 1 < len(json.loads(out.read_text())) < 400


def test_a_path_that_is_no_text_survives(tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")
    shutil.copy(CHELSEA, path)
    done = subprocess.run([sys.executable, "-m", "dla", "predict", path, "-q"], capture_output=True)
    assert done.returncode == 0
    assert done.stdout.splitlines()[0] == path


def test_settings_come_from_files_and_variables(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    (tmp_path / "my.yaml").write_text("topk: 2\n")
    monkeypatch.setenv("DLA_TOPK", "4")
    counts = []
    for words in ([], ["--config", str(tmp_path / "my.yaml")], ["--config", str(tmp_path / "my.yaml"), "--topk", "1"]):
        (record,) = records(capsys, str(CHELSEA), *words)
        counts.append(len(record["predictions"]))
    assert counts == [4, 2, 1]


def test_weights_that_cannot_be_had_are_exit_3(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = run_dla([str(CHELSEA), "--model", "dla60"], env=environment)
    assert done.returncode == 3
    assert "timm/dla60.in1k" in done.stderr
    assert str(tmp_path) in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_verbose_says_what_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(CHELSEA), "-v"]) == 0
    err = capsys.readouterr().err
    assert "shipped:tiny200, OpenVINO on cpu" in err
    assert "non-commercial research" in err
