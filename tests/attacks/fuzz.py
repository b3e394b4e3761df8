"""Damages files of every kind that is read, each try from a seed, and reads them: `make fuzz SEED=1 TRIES=1000`.

A try passes if the file is read or refused by an error of ours. It fails on any other exception, a crash, a record that
is lost or in another place, words of a library on standard error, more than `MAX_SECONDS`, or more than `MAX_MEMORY`.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import traceback
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tifffile
import torch
from PIL import Image

import dla
from dla.cli import main
from dla.data.dataset import Split, Splits, find_sources
from dla.data.photo_cache import PhotoStore
from dla.data.sources import DataOptions
from dla.data.split_file import restore_splits, splits_to_dict
from dla.engines.quantized import parse_quantized
from dla.errors import ERROR_CODES, DlaError
from dla.images.find import read_path_list
from dla.inference.classifier import Prediction
from dla.inference.result_files import PredictionWriter, engine_of, open_results
from dla.training.checkpoints import Checkpoints
from dla.training.events import EpochEvent
from dla.training.recipe import Recipe
from dla.training.recipe_files import recipe_from, to_yaml
from dla.training.run_folder import RunFolder
from dla.types import NO_PROGRESS
from dla.weights.load import load_model
from dla.weights.model_folder import ModelConfig, write_folder
from dla.weights.spec import shipped
from dla.weights.state_files import parse_weights, read_state

MAX_SECONDS = 10
MAX_MEMORY = 512  # MB that one try may add to the most that was ever used
MAX_PIXELS = 2_000_000

Read = Callable[[Path], None]


@dataclass
class Kind:
    """Whole files of one kind by name, and what reads a damaged one in its place."""

    files: Mapping[str, bytes]
    read: Read
    folder: Callable[[Path], Path] = lambda folder: folder
    whole: dict[str, bytes] = field(default_factory=dict)


# How files are damaged

BYTES = (b"\0", b"\x01", b"\x7f", b"\x80", b"\xff")
NUMBERS = (0, 1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)
TOKEN = re.compile(rb'"(?:[^"\\\n]|\\.)*"|-?\d[\d.eE+-]*|true|false|null|[A-Za-z_]\w*|[\[\]{}:,\n]')
TOKENS = (b"0", b"-1", b"1e999", b"NaN", b"99999999999999999999", b"null", b"true", b"[]", b"{}", b'""', b'"\\u0000"',
          b'"\\ud800"', b"[[[[[[", b"0.5", b"1.0", b'"../../x"', b"\xff\xfe", b"-0", b'[1, "a"]', b'{"a": {}}',
          b"2001-99-99", b"\x1b[31m", b"&a [*a]", b"!!int x", b'"', b",", b"\t", b"\r\n")  # fmt: skip


def damaged(data: bytes, dice: random.Random) -> bytes:
    """Some changes of bytes, or of words where the file is text."""
    changes = dice.choice((1, 1, 1, 2, 4, 16))
    text = len(TOKEN.findall(data[:400])) > 20
    for _ in range(changes):
        data = dice.choice(BY_WORD if text and dice.random() < 0.7 else BY_BYTE)(data, dice)
    return data


def span(data: bytes, dice: random.Random, most: int = 64) -> slice:
    start = dice.randrange(len(data) + 1)
    return slice(start, start + dice.randrange(1, most))


def cut(data: bytes, dice: random.Random) -> bytes:
    return data[: dice.randrange(len(data) + 1)]


def without(data: bytes, dice: random.Random) -> bytes:
    where = span(data, dice)
    return data[: where.start] + data[where.stop :]


def twice(data: bytes, dice: random.Random) -> bytes:
    where = span(data, dice)
    return data[: where.stop] + data[where] * dice.choice((1, 1, 2, 100)) + data[where.stop :]


def other_byte(data: bytes, dice: random.Random) -> bytes:
    at = dice.randrange(len(data) + 1)
    return data[:at] + dice.choice((*BYTES, dice.randbytes(1))) + data[at + 1 :]


def other_number(data: bytes, dice: random.Random) -> bytes:
    at, form = dice.randrange(len(data) + 1), dice.choice(("<I", ">I", "<H", ">H", "<Q"))
    size = struct.calcsize(form)
    return data[:at] + struct.pack(form, dice.choice(NUMBERS) % 2 ** (8 * size)) + data[at + size :]


def noise(data: bytes, dice: random.Random) -> bytes:
    where = span(data, dice)
    return data[: where.start] + dice.randbytes(where.stop - where.start) + data[where.stop :]


def of_the_head(change: Callable[[bytes, random.Random], bytes]) -> Callable[[bytes, random.Random], bytes]:
    return lambda data, dice: change(data[:128], dice) + data[128:]


def other_word(data: bytes, dice: random.Random) -> bytes:
    words = list(TOKEN.finditer(data))
    if not words:
        return data
    one, new = dice.choice(words), dice.choice((*TOKENS, dice.choice(words)[0]))
    return data[: one.start()] + new + data[one.end() :]


def without_line(data: bytes, dice: random.Random) -> bytes:
    lines = data.splitlines(keepends=True)
    if lines:
        lines.pop(dice.randrange(len(lines)))
    return b"".join(lines)


BY_BYTE = (cut, without, twice, other_byte, other_number, noise,
           *map(of_the_head, (without, other_byte, other_byte, other_number, other_number)))  # fmt: skip
BY_WORD = (other_word, other_word, other_word, without_line, without, twice)


def with_true_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have the checksums of what they hold now, so that the damage reaches the decoder."""
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return data
    result, at = data[:8], 8
    while at + 12 <= len(data):
        length = struct.unpack(">I", data[at : at + 4])[0]
        body = data[at + 4 : at + 8 + length]
        result += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return result + data[at:]


def inside_zip(data: bytes, dice: random.Random) -> bytes:
    """An archive with one damaged entry, as its directory says."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(target, "w") as out:
        victim = dice.choice(source.namelist())
        for info in source.infolist():
            content = source.read(info)
            out.writestr(info, damaged(content, dice) if info.filename == victim else content)
    return target.getvalue()


def one_damaged(data: bytes, dice: random.Random) -> bytes:
    if data[:2] == b"PK" and dice.random() < 0.5:
        return inside_zip(data, dice)
    changed = damaged(data, dice)
    return with_true_checksums(changed) if dice.random() < 0.5 else changed


# Photos


def photo_files() -> dict[str, bytes]:
    random_ = np.random.default_rng(0)
    pixels = (np.linspace(0, 200, 13 * 17 * 3).reshape(13, 17, 3) + random_.integers(0, 50, (13, 17, 3))).astype(
        np.uint8
    )
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a photo"
    files: dict[str, bytes] = {}

    def add(name: str, one: Image.Image, format_: str, **options: Any) -> None:
        file = io.BytesIO()
        one.save(file, format_, **options)
        files[name] = file.getvalue()

    add("p.jpg", image, "JPEG", exif=exif)
    add("progressive.jpg", image, "JPEG", progressive=True)
    add("cmyk.jpg", image.convert("CMYK"), "JPEG")
    add("p.png", image, "PNG", exif=exif)
    add("palette.png", image.convert("P"), "PNG", transparency=3)
    add("grey16.png", Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), "PNG")
    add("alpha.png", image.convert("RGBA"), "PNG")
    add("bits.png", image.convert("1"), "PNG")
    add("p.webp", image, "WEBP", exif=exif)
    add("lossless.webp", image, "WEBP", lossless=True)
    add("moving.webp", image, "WEBP", save_all=True, append_images=[image.rotate(90)])
    add("p.gif", image, "GIF")
    add("moving.gif", image, "GIF", save_all=True, append_images=[image.rotate(90)])
    add("p.bmp", image, "BMP")
    add("palette.bmp", image.convert("P"), "BMP")
    add("p.avif", image, "AVIF", speed=10)
    add("alpha.avif", image.convert("RGBA"), "AVIF", speed=10)
    for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        add(f"{compression}.tif", image, "TIFF", compression=compression)
    add("fax.tif", image.convert("1"), "TIFF", compression="group4")
    for dtype in (np.uint16, np.float32, np.uint32):
        for planar in ("contig", "separate"):
            file = io.BytesIO()
            array = pixels.astype(dtype) if planar == "contig" else np.moveaxis(pixels, 2, 0).astype(dtype)
            tifffile.imwrite(file, array, photometric="rgb", planarconfig=planar, byteorder=">")
            files[f"{np.dtype(dtype).name}-{planar}.tif"] = file.getvalue()
    return files


@dataclass
class Photos:
    """Reads a damaged photo between two good ones, by the pipeline of every command."""

    classifier: dla.Classifier
    good: Path

    def __call__(self, path: Path) -> None:
        for allowed in (False, True):
            options = {"allow_truncated": allowed, "max_pixels": MAX_PIXELS, "workers": 0}
            found = list(self.classifier.predict([self.good, path, self.good], 2, **options))  # type: ignore[arg-type]
            assert [one.path for one in found] == [str(self.good), str(path), str(self.good)]
            assert found[0].classes == found[2].classes != ()
            assert found[1].classes or found[1].error.code in ERROR_CODES  # type: ignore[union-attr]


# Everything else


def state_files() -> dict[str, bytes]:
    from safetensors.torch import save

    state = {f"layer{i}.weight": torch.arange(12.0).reshape(3, 4) for i in range(3)}
    files = {"w.safetensors": save(state)}
    for name, data in {"w.pth": state, "nested.pth": {"state_dict": state, "epoch": 3}}.items():
        for zipped in (True, False):
            file = io.BytesIO()
            torch.save(data, file, _use_new_zipfile_serialization=zipped)
            files[f"{'new' if zipped else 'old'}-{name}"] = file.getvalue()
    return files


def read_weights(path: Path) -> None:
    parse_weights(path.read_bytes(), path.name)
    read_state(path)


def tables() -> dict[str, bytes]:
    files = {"t.csv": b"path,label,split\n" + b"".join(b'p%d.jpg,"class %d",train\n' % (i, i % 2) for i in range(20))}
    files["t.tsv"] = files["t.csv"].replace(b",", b"\t")
    for compression in ("none", "snappy", "zstd"):
        file = io.BytesIO()
        photos = [{"bytes": b"photo %d" % i, "path": None} for i in range(20)]
        info = {"info": {"features": {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}}}
        table = pa.table({"image": photos, "label": [i % 2 for i in range(20)], "split": ["train"] * 20})
        pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), file, compression=compression)
        files[f"{compression}.parquet"] = file.getvalue()
    return files


def run_folder(folder: Path) -> dict[str, bytes]:
    """The files of a run, without the training."""
    for i in range(8):
        (folder / "data" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        (folder / "data" / "ab"[i % 2] / f"{i}.jpg").touch()
    names = [str(folder / "data" / "ab"[i % 2] / f"{i}.jpg") for i in range(8)]
    whole = Split(names, np.arange(8) % 2, ("a", "b"), names)
    run = RunFolder(folder / "run")
    run.claim(
        Recipe(photos=str(folder / "data")),
        splits_to_dict(Splits(whole.take(range(6)), whole.take([6, 7]), "as they are"), folder / "data"),
    )
    run.update(best={"epoch": 1, "top1": 0.5, "top5": 1.0, "top1_interval": [0.1, 0.9]}, versions={}, machine={})
    for epoch in (1, 2):
        run.add_epoch(EpochEvent(epoch, epoch, 0.5, 0.1, {"top1": 0.5, "top5": 1.0, "val_loss": 0.5}, 1.0, 1.0, 0.1))
    Checkpoints(run.checkpoints).save(
        2, {"network.x": torch.zeros(3)}, {"epoch": 2, "step": 0, "best": None}, best=True
    )
    return {str(p.relative_to(run.path)): p.read_bytes() for p in run.path.rglob("*") if p.is_file()}


@dataclass
class Run:
    """What a command does with a run's folder before its first step."""

    data: Path

    def __call__(self, path: Path) -> None:
        run = RunFolder(path)
        recipe = Recipe(photos=str(self.data))
        run.check(recipe)
        run.facts()
        saved = run.data()
        if saved is not None:
            splits = restore_splits(saved, self.data)
            assert len(splits.train) == len(splits.train.targets_N)
        run.truncate_epochs(1)
        Checkpoints(run.checkpoints).load_newest(NO_PROGRESS)
        run.update(more=1)


@dataclass
class Results:
    """Continues a damaged result file: what is kept of it is the records of the first inputs."""

    classifier: dla.Classifier
    inputs: list[str]
    settings = {"topk": 2, "batch_size": 2, "allow_truncated": False, "max_megapixels": 1, "max_megabytes": 600}  # noqa: RUF012

    def files(self, folder: Path) -> dict[str, bytes]:
        for suffix in ("jsonl", "csv"):
            output = str(folder / f"out.{suffix}")
            opened = open_results(output, suffix, self.classifier, self.settings, iter(self.inputs), resume=False)  # type: ignore[arg-type]
            with opened as (file, _, left), PredictionWriter(file, suffix, 2) as writer:  # type: ignore[arg-type]
                for path in left:
                    writer.write(Prediction(path, self.classifier.best_classes(np.linspace(0, 1, 200), 2)))
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    def __call__(self, path: Path) -> None:
        for suffix in ("jsonl", "csv"):
            output = str(path / f"out.{suffix}")
            engine_of(output)
            opened = open_results(output, suffix, self.classifier, self.settings, iter(self.inputs), resume=True)  # type: ignore[arg-type]
            with opened as (_, before, left):
                assert self.inputs[before.count :] == list(left)


def config_files(folder: Path) -> dict[str, bytes]:
    config = ModelConfig(
        "dla46_c", 2, ("a", "b"), {"a": "one", "b": "two"}, {"drop_rate": 0.1},
        pretrained_cfg=dla.Preprocessing((32, 32)).to_config(), dla={"task": "classify"},
    )  # fmt: skip
    write_folder(folder, dla.create_model("dla46_c", num_classes=2).state_dict(), config)
    return {"config.json": (folder / "config.json").read_bytes()}


def by_command(*words: str) -> Read:
    """Give the file to a command, which must refuse or print it."""

    def read(path: Path) -> None:
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            code = main([word.format(path) for word in words])
        assert code in (0, 2, 3), (code, err.getvalue())
        assert code == 0 or re.fullmatch(r"dla: .*\n", err.getvalue()), err.getvalue()

    return read


def read_list(path: Path) -> None:
    with path.open("rb") as file:
        for _ in read_path_list(file):
            pass


def kinds(folder: Path) -> dict[str, Kind]:
    """All kinds; `folder` is for the files that stay whole."""
    classifier = dla.load(threads=1)
    good = folder / "good.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 40, 3), np.uint8)).save(good)
    (folder / "model").mkdir()
    (folder / "results").mkdir()
    results = Results(classifier, [f"{i}.jpg" for i in range(9)])
    recipe = {"r.yaml": to_yaml(Recipe(photos="data")).encode()}
    options = {"c.yaml": b"topk: 3\nbatch_size: 8\nworkers: 2\nmodel: dla34\nformat: json\nquiet: true\n"}
    configs = config_files(folder / "model")
    store = Split([str(good)], np.zeros(1, np.int64), ("a",), ["good"])
    photo_store = PhotoStore(store, "disk", folder / "cache")
    pixels = np.asarray(photo_store[0])
    cached = {str(p.relative_to(folder / "cache")): p.read_bytes() for p in (folder / "cache").rglob("*.rgb")}

    def read_cached(path: Path) -> None:
        assert np.array_equal(np.asarray(PhotoStore(store, "disk", path)[0]), pixels)

    return {
        "photo": Kind(photo_files(), Photos(classifier, good)),
        "weights": Kind(state_files(), read_weights),
        "config": Kind(configs, lambda path: load_model(str(path)) and None,
                       whole={"model.safetensors": (folder / "model" / "model.safetensors").read_bytes()}),
        "recipe": Kind(recipe, lambda path: recipe_from(str(path), {}) and None),
        "recipe by command": Kind(recipe, by_command("train", str(folder), "--recipe", "{}", "--print-config")),
        "options by command": Kind(options, by_command("predict", "x.jpg", "--config", "{}", "--print-config")),
        "table": Kind(tables(), lambda path: find_sources(path, DataOptions()) and None),
        "run": Kind(run_folder(folder), Run(folder / "data")),
        "int8": Kind({"int8.zip": (shipped("tiny200") / "int8.zip").read_bytes()},
                     lambda path: parse_quantized(path.read_bytes(), path.name) and None),
        "results": Kind(results.files(folder / "results"), results),
        "list of paths": Kind({"list": b"a.jpg\nb/c.jpg\n\xffd.jpg\n" * 3, "zeros": b"a.jpg\0b c.jpg\0"}, read_list),
        "cached photo": Kind(cached, read_cached),
    }  # fmt: skip


IN_FOLDERS = ("run", "results", "config", "cached photo")  # the reader takes the folder of the damaged file


@dataclass
class Fuzzer:
    """Makes and reads the damaged file of each try, which depends only on `seed` and its number."""

    seed: int
    folder: Path
    failures: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        (self.folder / "whole").mkdir()
        self.kinds = kinds(self.folder / "whole")
        self.place = self.folder / "try"
        self.check_whole()

    def run(self, tries: range, begun: Callable[[int], None] = lambda number: None) -> None:
        previous = signal.signal(signal.SIGALRM, _too_long)
        try:
            with caught_stderr() as new_words:
                for number in tries:
                    begun(number)
                    self.one(number, new_words)
        finally:
            signal.signal(signal.SIGALRM, previous)

    def write(self, name: str, victim: str, data: bytes) -> Path:
        """Write a damaged file, and what lies beside it; return what its reader takes."""
        kind, in_folder = self.kinds[name], name in IN_FOLDERS
        shutil.rmtree(self.place, ignore_errors=True)
        for file, content in {**(kind.files if in_folder else {}), **kind.whole, victim: data}.items():
            (self.place / file).parent.mkdir(parents=True, exist_ok=True)
            (self.place / file).write_bytes(content)
        return self.place if in_folder else self.place / victim

    def check_whole(self) -> None:
        """Read every file as it is: otherwise a damaged one could be refused for another reason than its damage."""
        for name, kind in self.kinds.items():
            for victim, data in kind.files.items():
                kind.read(self.write(name, victim, data))

    def one(self, number: int, new_words: Callable[[], str]) -> None:
        dice = random.Random(f"{self.seed} {number}")
        name = dice.choice(list(self.kinds))
        kind = self.kinds[name]
        victim = dice.choice(list(kind.files))
        path = self.write(name, victim, one_damaged(kind.files[victim], dice))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        signal.alarm(MAX_SECONDS)
        try:
            kind.read(path)
            outcome = "read"
        except DlaError:
            outcome = "refused"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            outcome = "failed"
            self.failures.append(f"try {number}, {name}, {victim}: {''.join(traceback.format_exception(error)[-3:])}")
        finally:
            signal.alarm(0)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        if grown > MAX_MEMORY:
            self.failures.append(f"try {number}, {name}, {victim}: {grown} MB")
        if words := new_words():
            self.failures.append(f"try {number}, {name}, {victim}: on standard error: {words}")
        self.outcomes[f"{name}: {outcome}"] += 1


@contextmanager
def caught_stderr() -> Iterator[Callable[[], str]]:
    """Catch standard error, also of C libraries; yield a function that returns what is new since its last call."""
    with tempfile.TemporaryFile() as file:
        fd, before = file.fileno(), os.dup(2)

        def new_words() -> str:
            sys.stderr.flush()
            words = os.pread(fd, 2000, 0)
            os.ftruncate(fd, 0)
            os.lseek(fd, 0, os.SEEK_SET)
            return words.decode(errors="replace")

        sys.stderr.flush()
        os.dup2(fd, 2)
        try:
            yield new_words
        finally:
            sys.stderr.flush()
            os.dup2(before, 2)
            os.close(before)


class TooLongError(BaseException):
    """A try is not over after `MAX_SECONDS`."""


def _too_long(*_: object) -> None:
    raise TooLongError


def fuzz(seed: int, tries: range, begun: Callable[[int], None] = lambda number: None) -> Fuzzer:
    """Run the tries in this process."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow, about damaged metadata
        fuzzer = Fuzzer(seed, Path(folder))
        fuzzer.run(tries, begun)
    return fuzzer


def _in_child(seed: int, tries: range, at: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    fuzzer = fuzz(seed, tries, lambda number: setattr(at, "value", number))
    answers.put((fuzzer.failures, fuzzer.outcomes))


def runs(seed: int, tries: range) -> Iterator[tuple[list[str], Counter[str]]]:
    """Yield the failures and outcomes of each process: another one goes on after a crash."""
    context = multiprocessing.get_context("spawn")
    while tries:
        at, answers = context.Value("q", tries.start), context.Queue()
        process = context.Process(target=_in_child, args=(seed, tries, at, answers))
        process.start()
        while process.is_alive() and answers.empty():
            process.join(0.2)
        if not answers.empty() or process.exitcode == 0:
            yield answers.get()
            process.join()
            return
        if process.exitcode > 0:
            raise RuntimeError(f"the fuzzer itself ended with {process.exitcode}")
        yield [f"try {at.value}: the process ended with {process.exitcode}"], Counter()
        tries = range(at.value + 1, tries.stop)


def main_() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tries", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="the number of the first try, to repeat one that failed")
    args = parser.parse_args()
    failures, outcomes = list[str](), Counter[str]()
    for failed, counted in runs(args.seed, range(args.first, args.first + args.tries)):
        failures += failed
        outcomes += counted
    for name, count in sorted(outcomes.items()):
        print(f"{count:7,}  {name}")
    print(f"{sum(outcomes.values()):7,}  tries, {len(failures)} failures", *failures, sep="\n")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main_())
